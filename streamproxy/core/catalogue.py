"""The known models and hosts, and the way from a caller's model name to the name that a provider is sent.

    parse(text) -> Catalogue               the text of catalogue.toml; the caller reads the file
    catalogue.resolve(name, providers)     -> Route(provider, model, upstream_model)
    catalogue.listed(providers, today)     the models of GET /v1/models
    AUTO                                   the name that leaves the choice of a model to the proxy

Strategy: everything is data, and no provider is named in this module. Every id, alias and bare name points to one
model. Two rows that claim the same word are an error when the file is read. A name outside the catalogue still reaches
a provider that takes it, so models newer than the catalogue work.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, date, datetime, time
from decimal import Decimal
from difflib import get_close_matches
from types import MappingProxyType
from typing import Final, Literal, TypeVar

import msgspec

from streamproxy.core.cost import Price
from streamproxy.core.schema import MAX_IMAGES, MAX_PROMPT
from streamproxy.errors import Failure, ProxyError

EVERYTHING: Final = "*"
UNKNOWN: Final = "unknown"
AUTO: Final = "auto"
SUGGESTIONS: Final = 3

Fields = dict[str, object]
Row = TypeVar("Row", "Provider", "Model")


@dataclass(frozen=True, slots=True)
class Quirks:
    """The differences of an OpenAI-shaped host from OpenAI. The default is a host without any.

    `size`: as the caller wrote it; the same without `auto`; as `width` and `height`; or as one of the aspect ratios
    `ratios` under the name `size`. `max_n`: the most pictures of one request; a host of one is not sent `n`. `takes`:
    members besides model, prompt, n, size and the images; "*" is every one. `values`: (member, caller's value, host's);
    other values of such a member are not sent. `adds`: (member, value) where the caller says nothing, `edit_adds` for
    edits. `edit`: edits in the form in which they came, as JSON, as a form, or none. `image`: the member or part of an
    input image, "" for OpenAI's; `several`: that of more than one, "" for the same. `max_images`: the most of them.
    `masks`: it takes a mask. `blocked`: codes of its refusals for what is shown. `undated`: its answers may lack
    `created`, which the types of SDKs require.
    """

    size: Literal["written", "size", "edges", "ratio"] = "written"
    ratios: tuple[str, ...] = ()
    max_n: int = 10
    takes: tuple[str, ...] = (EVERYTHING,)
    values: tuple[tuple[str, str, str], ...] = ()
    adds: tuple[tuple[str, str | bool | float], ...] = ()
    edit_adds: tuple[tuple[str, str | bool | float], ...] = ()
    edit: Literal["written", "json", "form", "none"] = "written"
    image: str = ""
    several: str = ""
    max_images: int = MAX_IMAGES
    masks: bool = True
    blocked: tuple[str, ...] = ()
    undated: bool = False


@dataclass(frozen=True, slots=True)
class Provider:
    """One host and how to reach it. Configuration replaces fields of the catalogue's row, or adds rows of its own.

    `generations` and `edits` are paths below `base_url` (no trailing slash); `{model}` in them is the upstream model.
    `names`: whether it expects "gpt-image-2", "openai/gpt-image-2", or the caller's name. `edit_input`: JSON edits as
    `images` of {image_url | file_id}, or as `image`, strings, on the generations path. `streams` false: never asked to
    stream. `serves`: owners whose models it has; "*" adds every name that no provider serves by owner. `models`: the
    operator's own list, same "*". `deployments`: (model, upstream name) pairs; with any, it serves no owner.
    `quirks`: its other differences from OpenAI. `hosts`: other hosts of its own, like "*.bfl.ai", that may get the
    credential. `workflows`: (model, JSON) pairs. `signing`: a key in a header, an OAuth token from Google for the
    credential, or AWS's signature by it. `project` and `location` replace {project} and {location} in `base_url`;
    {region} is the location and a hyphen, or empty where it is global. `home`: the location where nothing says one.
    `chat` and `responses`: paths of chat completions and of Responses, for requests that are passed on as they came.
    `text_model`: the model that is asked for a Response, and calls the tool that draws; that of OpenAI's recording.
    `variations`: a path like the other two, "" where it has none. `file_ids`: how ids of its own files begin.
    """

    name: str
    adapter: str
    base_url: str
    auth_header: str
    auth_scheme: str
    key_env: str
    names: Literal["bare", "full", "written"]
    generations: str
    edits: str
    edit_input: Literal["images", "image"]
    query: str
    streams: bool
    serves: tuple[str, ...]
    models: tuple[str, ...] = ()
    deployments: tuple[tuple[str, str], ...] = ()
    hosts: tuple[str, ...] = ()
    workflows: tuple[tuple[str, str], ...] = ()
    quirks: Quirks = Quirks()
    signing: Literal["key", "google", "aws"] = "key"
    project: str = ""
    location: str = ""
    home: str = ""
    variations: str = ""
    file_ids: tuple[str, ...] = ()
    chat: str = ""
    responses: str = ""
    text_model: str = "gpt-5"

    @property
    def takes_everything(self) -> bool:
        return EVERYTHING in self.serves or EVERYTHING in self.models

    @property
    def unlisted(self) -> bool:
        """Whether only the host itself knows its models: it takes every name, and serves no known owner."""
        return self.serves == (EVERYTHING,)

    @property
    def listed(self) -> tuple[str, ...]:
        """Names given by the operator: `models` and the keys of `deployments`, without "*"."""
        return tuple(word for word in (*self.models, *dict(self.deployments)) if word != EVERYTHING)

    def only_named(self) -> Provider:
        """An `unlisted` provider with only the models that the operator named; any other provider unchanged."""
        return replace(self, serves=(), models=self.listed) if self.unlisted else self

    def serves_owner(self, owner: str) -> bool:
        return not self.deployments and owner != "" and owner in self.serves


@dataclass(frozen=True, slots=True)
class Model:
    """One model and its capabilities.

    `streams`: it sends events itself; where false it is never sent `stream` or `partial_images`. `partial_images`: the
    most previews of one request. `max_n`: the most pictures of one request; `max_stream_n`: of one that streams, 0
    where that is not documented. `refuses`: members it answers with an error, so they are never sent. `retired`: the
    day its owner turned or turns it off; gateways may serve it longer, so it is still resolved. `created`: seconds
    since 1970. `simulated`: found by its full id only, and not listed by a provider's "*". `max_prompt`: characters of
    its prompt. `unstreamed_formats`: output formats that it refuses to stream. `fast`: it takes a second or two, so
    that a provider with a queue is asked to answer in one exchange. `surfaces`: the APIs by which it makes pictures.
    `image_sizes`: what `image_config.image_size` may be in a chat. `varies`: its edit without an instruction is a
    variation. `inputs`: kinds of input image that it takes, none where that is not documented.
    """

    id: str
    owner: str
    name: str
    family: str
    streams: bool
    edits: bool
    max_n: int
    partial_images: int
    remote_image_urls: bool
    aliases: tuple[str, ...] = ()
    refuses: tuple[str, ...] = ()
    retired: date | None = None
    created: int = 0
    price: Price | None = None
    simulated: bool = False
    max_stream_n: int = 0
    max_prompt: int = MAX_PROMPT
    unstreamed_formats: tuple[str, ...] = ()
    fast: bool = False
    varies: bool = False
    surfaces: tuple[Literal["images", "chat"], ...] = ("images",)
    image_sizes: tuple[str, ...] = ("1K", "2K", "4K")
    inputs: tuple[str, ...] = ()

    @classmethod
    def unknown(cls, id: str) -> Model:
        """A model outside the catalogue: sent as the caller wrote it, with nothing refused in advance.

        `max_n` and `partial_images` are the most that OpenAI's request schema allows.
        """
        owner, _, name = id.partition("/")
        owner, name = (owner, name) if owner and name else ("", id)
        return cls(
            id, owner, name, UNKNOWN, streams=True, edits=True, max_n=10, partial_images=3, remote_image_urls=True
        )

    @property
    def spellings(self) -> tuple[str, ...]:
        """Every name of the model. Not the bare name of a simulated one ("plain" is too common) or an unknown one."""
        bare = () if self.simulated or self.family == UNKNOWN else (self.name,)
        return (self.id, *bare, *self.aliases)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes. `upstream_model`: the name that the provider is sent, never empty."""

    provider: Provider
    model: Model
    upstream_model: str

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that says what is asked for; of an unknown model also the one with its provider's."""
        qualified = (f"{self.provider.name}/{self.model.id}",) if self.model.family == UNKNOWN else ()
        return (*self.model.spellings, *qualified)


class Catalogue:
    """All models by id and all host rows by name. Raises ValueError where one word would name two models."""

    def __init__(self, models: Sequence[Model], providers: Sequence[Provider]) -> None:
        self.models: Mapping[str, Model] = MappingProxyType({model.id: model for model in models})
        self.providers: Mapping[str, Provider] = MappingProxyType({row.name: row for row in providers})
        self._named: dict[str, Model] = {}
        for model in models:
            for word in model.spellings:
                if word in self._named:
                    raise ValueError(f"catalogue: {word!r} of {model.id} is already a name of {self._named[word].id}")
                self._named[word] = model

    def find(self, name: str) -> Model | None:
        """The model with this id, alias or bare name."""
        return self._named.get(name)

    def max_prompt(self, name: object = None) -> int:
        """Most characters of a prompt for a model of this name, which may be unknown."""
        model = self._named.get(name) if isinstance(name, str) else None
        return MAX_PROMPT if model is None else model.max_prompt

    def resolve(self, name: str, providers: Sequence[Provider]) -> Route:
        """The provider for a model name, the first configured one that fits, and its own name for the model.

        In this order: "<provider>/<model>" where a provider of exactly that name serves the model; a provider that
        lists the model or serves its owner; a provider that takes everything. Raises ProxyError(MODEL_NOT_FOUND).
        """
        for provider in providers:
            rest = name.removeprefix(provider.name + "/")
            if rest and rest != name:
                model = self.find(rest) or self._model(rest if "/" in rest else name)
                if _serves(provider, model, (name, rest)) or provider.takes_everything:
                    return Route(provider, model, _upstream_model(provider, model, name, rest))
        model = self._model(name)
        by_owner = [provider for provider in providers if _serves(provider, model, (name,))]
        for provider in by_owner or [provider for provider in providers if provider.takes_everything]:
            if name:
                return Route(provider, model, _upstream_model(provider, model, name, name))
        raise self._not_found(name, providers)

    def listed(self, providers: Sequence[Provider], today: date) -> list[tuple[Model, str]]:
        """Pairs (model, the id that callers use) for GET /v1/models, no model twice.

        First the names given by operators, then every catalogue model that is served and not yet retired.
        """
        return self._listed(providers, today, today)

    def _listed(self, providers: Sequence[Provider], today: date, at_hosts: date) -> list[tuple[Model, str]]:
        """`listed`, with another day, `at_hosts`, for models listed by the catalogue's own row of a host."""
        found: dict[str, tuple[Model, str]] = {}
        for provider in providers:
            known = self.providers.get(provider.name)
            by_operator = known is None or known.listed != provider.listed
            for word in provider.listed:
                model = self._model(word)
                if by_operator or model.retired is None or model.retired > at_hosts:
                    found.setdefault(model.id, (model, word))
        for model in self.models.values():
            if model.retired is not None and model.retired <= today:
                continue
            if any(p.serves_owner(model.owner) or (p.takes_everything and not model.simulated) for p in providers):
                found.setdefault(model.id, (model, model.id))
        return list(found.values())

    def _model(self, name: str) -> Model:
        known = self.find(name)
        if known is not None:
            return known
        model = Model.unknown(name)
        # "openai/gemini-3-pro-image" is a mistake, not a new model of OpenAI.
        # A name with a slash is the path of a model at a host: "replicate/openai/gpt-image-2".
        return replace(model, owner="") if "/" not in model.name and self.find(model.name) is not None else model

    def _not_found(self, name: str, providers: Sequence[Provider]) -> ProxyError:
        # Models with an announced end are not recommended. The caller's own text is not repeated: it may be a secret.
        served = {
            word: id for model, id in self._listed(providers, date.max, date.min) for word in (*model.spellings, id)
        }
        close = get_close_matches(name[:256], served, n=3 * SUGGESTIONS, cutoff=0.5)  # several words may be one model
        near = list(dict.fromkeys(served[word] for word in close))[:SUGGESTIONS]
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        message = f"No configured provider serves this model.{hint} GET /v1/models lists the models that are served."
        return ProxyError(Failure.MODEL_NOT_FOUND, message, param="model")


def parse(text: str) -> Catalogue:
    """The catalogue in TOML: `[providers.<name>]`; `[models."<owner>/<name>"]`, with defaults in `[families.<name>]`.

    Raises ValueError naming the row: not TOML, a member that no row has, a wrong type, a name that two models claim.
    """
    tables: dict[str, dict[str, Fields]] = tomllib.loads(text, parse_float=Decimal)
    models = [_model_row(id, row, tables.get("families", {})) for id, row in tables.get("models", {}).items()]
    rows = tables.get("providers", {}).items()
    return Catalogue(models, [_row(Provider, f"providers.{name}", {**row, "name": name}) for name, row in rows])


def model_object(model: Model, served_id: str) -> dict[str, object]:
    """One entry of GET /v1/models in OpenAI's shape, plus, where known, the owner's last day."""
    entry = {"id": served_id, "object": "model", "created": model.created, "owned_by": model.owner}
    last_day = {"retired": model.retired.isoformat()} if model.retired is not None else {}
    return {**entry, **last_day}


def _model_row(id: str, row: Fields, families: Mapping[str, Fields]) -> Model:
    owner, _, name = id.partition("/")
    family = row.get("family")
    if not owner or not name or family not in families:
        raise ValueError(f"catalogue: models.{id}: an id is <owner>/<name>, and `family` one of [families]")
    row = {**families[str(family)], **row, "id": id, "owner": owner, "name": name}
    match row.get("released"):
        case date() as released:
            del row["released"]
            row["created"] = int(datetime.combine(released, time(), UTC).timestamp())
    return _row(Model, f"models.{id}", row)


def _row(kind: type[Row], where: str, row: Fields) -> Row:
    strange = row.keys() - {field.name for field in fields(kind)}
    if strange:
        raise ValueError(f"catalogue: {where}: no such member: {', '.join(sorted(strange))}")
    try:
        return msgspec.convert(row, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"catalogue: {where}: {error}") from error


def _serves(provider: Provider, model: Model, written: Sequence[str]) -> bool:
    named = provider.listed
    return any(word in named for word in (*written, *model.spellings)) or provider.serves_owner(model.owner)


def _upstream_model(provider: Provider, model: Model, written: str, rest: str) -> str:
    """The provider's own name for a model. `rest`: `written` without the provider's prefix."""
    deployments = dict(provider.deployments)
    for word in (written, rest, *model.spellings):
        if deployments.get(word):
            return deployments[word]
    if provider.names == "written":
        return rest
    if provider.names == "full":
        return model.id
    if model.family != UNKNOWN:
        return model.name
    # Only routing prefixes are removed: another slash may belong to the model's name ("black-forest-labs/FLUX.1").
    return rest.removeprefix(model.owner + "/") if provider.serves_owner(model.owner) else rest
