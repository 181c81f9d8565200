"""The table of settings: name, type with its limits, meaning and default.

    Settings(...)            values, converted and checked; nothing but the arguments is read
    Settings.of(mapping)     the same for names that may be wrong, with providers and callers as mappings
    read(mapping)            the settings without their wrong values, and the problems

A field is written `name: Annotated[type, "meaning"] = default`. Its type carries its checks (settings/values.py).

A wrong configuration is refused as a whole. Each ConfigurationProblem says what happened, names the setting (in TOML
and in the environment) and the fix, and never repeats the value, which may be a misplaced key.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from types import UnionType
from typing import Annotated, Any, Final, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from streamproxy.settings.values import (
    GIB,
    HASH_COMMAND,
    MIB,
    BucketUrl,
    Bytes,
    CallerKey,
    CallerKeys,
    CallerName,
    ConfigurationError,
    ConfigurationProblem,
    Count,
    CredentialReference,
    Dollars,
    Fallbacks,
    FetchHosts,
    Grace,
    Host,
    Hosts,
    Lifetime,
    Model,
    ModelNames,
    Names,
    Origins,
    PathTemplate,
    Pixels,
    Port,
    ProviderName,
    Query,
    Rate,
    Refused,
    Seconds,
    Secret,
    SignedLifetime,
    Silence,
    StoreUrl,
    Text,
    Token,
    Url,
    WebhookOrigins,
    WebhookSecret,
    Workers,
    converted,
)

__all__ = [
    "CallerSettings",
    "ConfigurationError",
    "ConfigurationProblem",
    "ProviderSettings",
    "Settings",
    "describe",
    "read",
]

PREFIX: Final = "STREAMPROXY_"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSettings:
    """The configuration of one provider. None keeps the value of the catalogue's row of that name."""

    base_url: Annotated[Url | None, "address requests go to, path included"] = None
    adapter: Annotated[Token | None, "the wire form it speaks"] = None
    credential: Annotated[
        CredentialReference | None,
        "where its key is: env:NAME, file:PATH, dir:NAME (in $CREDENTIALS_DIRECTORY), caller (the caller's own), adc "
        "(what Google's or AWS's libraries find on this machine) or none; default: the catalogue's variable, from the "
        "environment or that directory; for AWS's signature AWS_ACCESS_KEY_ID and its like",
    ] = None
    auth_header: Annotated[Token | None, "header that carries the key"] = None
    auth_scheme: Annotated[Text | None, 'text before the key, like "Bearer "'] = None
    names: Annotated[
        Literal["bare", "full", "written"] | None, "gpt-image-2, openai/gpt-image-2, or as the caller wrote it"
    ] = None
    generations: Annotated[PathTemplate | None, "path of generations, below base_url; may hold {model}"] = None
    edits: Annotated[PathTemplate | None, "path of edits, below base_url; may hold {model}"] = None
    variations: Annotated[
        PathTemplate | None, "path of variations, below base_url; may hold {model}; empty: it has none"
    ] = None
    chat: Annotated[PathTemplate | None, "path of chat completions, below base_url; empty: it has none"] = None
    responses: Annotated[PathTemplate | None, "path of Responses, below base_url; empty: it has none"] = None
    text_model: Annotated[Text | None, "adapter responses: the model that is asked, and calls the tool"] = None
    edit_input: Annotated[Literal["images", "image"] | None, "member that carries the images of an edit"] = None
    query: Annotated[Query | None, "query of every request, like api-version=preview"] = None
    streams: Annotated[bool | None, "whether it can be asked to stream"] = None
    models: Annotated[Names | None, 'models it serves; "*" is every model'] = None
    deployments: Annotated[dict[str, str] | None, "its own name for a model, by model"] = None
    hosts: Annotated[
        Names | None, "hosts of its own, besides that of base_url, that get the key too, like *.bfl.ai"
    ] = None
    signing: Annotated[
        Literal["key", "google", "aws"] | None,
        "how requests are authorized: a key in a header, Google's OAuth token, or AWS's Signature Version 4",
    ] = None
    project: Annotated[
        Token | None, "Vertex AI: the project in base_url; default: $GOOGLE_CLOUD_PROJECT, else that of the key"
    ] = None
    location: Annotated[
        Token | None,
        "Vertex AI and Bedrock: the location in base_url and in AWS's signature; default: $GOOGLE_CLOUD_LOCATION, else "
        "global; $AWS_REGION or $AWS_DEFAULT_REGION, else where the provider's models are",
    ] = None
    workflows: Annotated[dict[str, str] | None, "ComfyUI: the file of a workflow in API format, by model"] = None
    strict_headers: Annotated[bool, "only allowed extra_headers pass, instead of all but refused ones"] = False
    allow_headers: Annotated[Names, "extra_headers to let through that are refused otherwise"] = ()
    breaker: Annotated[bool, "whether it is not asked for a while after repeated failures"] = True

    def __post_init__(self) -> None:
        """Convert and check. Raises ConfigurationError with every problem."""
        _check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerSettings:
    """The configuration of one caller."""

    key: Annotated[CallerKey, "hash (sha256:...) of its key"] = field(repr=False)
    models: Annotated[ModelNames, 'models that it may ask for; "*" stands for any characters, as in "openai/*"'] = (
        "*",
    )
    providers: Annotated[Names, 'providers that it may use; "*" is every one'] = ("*",)
    streams: Annotated[Count | None, "its generations that run at a time, over all processes; default: any number"] = (
        None
    )
    usd_per_day: Annotated[Dollars | None, "US dollars that it may spend in a day of UTC; default: any amount"] = None

    def __post_init__(self) -> None:
        """Convert and check. Raises ConfigurationError with every problem."""
        _check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting of the proxy. Units are in the descriptions; `describe` lists them."""

    host: Annotated[Host, "address to listen on"] = "127.0.0.1"
    port: Annotated[Port, "TCP port to listen on; 0 takes any free one"] = 8080
    metrics_host: Annotated[Host, "address to listen on for /metrics, where metrics_port is set"] = "127.0.0.1"
    metrics_port: Annotated[
        Port | None, "TCP port that alone serves /metrics, without a key; 0 takes any free one; unset: port serves it"
    ] = None
    workers: Annotated[Workers, "processes that serve; more than one need a store that they share"] = 1
    upstream: Annotated[Url | None, "base URL to pass every model to, with the caller's own key"] = None
    providers: Annotated[
        dict[ProviderName, ProviderSettings],
        "providers by name; empty: each known one whose key is in the environment or in $CREDENTIALS_DIRECTORY",
    ] = field(default_factory=dict)
    caller_keys: Annotated[
        CallerKeys, "hashes (sha256:...) of the keys callers may use; empty: anybody who can connect"
    ] = field(default=(), repr=False)
    callers: Annotated[
        dict[CallerName, CallerSettings], "callers by name, each with a key and limits of its own, besides caller_keys"
    ] = field(default_factory=dict)
    cors_origins: Annotated[Origins, 'origins whose pages may call; "*" alone is every origin, ":*" every port'] = ()
    playground: Annotated[bool, "whether / is a page that orders pictures, to try the proxy in a browser"] = False
    allowed_hosts: Annotated[
        Hosts, "host names besides this machine's own that callers without keys may use where the proxy holds one"
    ] = ()
    connect_timeout: Annotated[Seconds, "seconds to connect to a provider"] = 5.0
    first_byte_timeout: Annotated[Seconds, "seconds a provider has until its response head"] = 180.0
    idle_timeout: Annotated[Seconds, "seconds a provider's response may be silent"] = 300.0
    total_timeout: Annotated[Seconds, "seconds one provider request may take"] = 600.0
    pool_timeout: Annotated[Seconds, "seconds to wait for one of max_connections"] = 1.0
    commit_after: Annotated[Seconds, "seconds until a stream's head is sent before the provider has accepted"] = 2.0
    heartbeat: Annotated[Silence, "seconds of silence between comments"] = 5.0
    json_heartbeat: Annotated[
        Grace, "seconds until a JSON answer begins with white space, and between more of it; 0 never"
    ] = 0.0
    receive_timeout: Annotated[Seconds, "seconds a caller may pause while it sends a request body"] = 30.0
    receive_rate: Annotated[Rate, "bytes a second that a request body must come at, after receive_timeout"] = 4096.0
    send_timeout: Annotated[Seconds, "seconds a caller has to take one slice of a response"] = 20.0
    drain_timeout: Annotated[Seconds, "seconds streams have to end when the process is asked to stop"] = 30.0
    public_url: Annotated[Url | None, "base URL that callers know the proxy by; stream URLs begin with it"] = None
    secret: Annotated[Secret | None, "key that signs stream URLs; random per process unless given"] = field(
        default=None, repr=False
    )
    token_seconds: Annotated[Seconds, "seconds a stream URL is valid"] = 86400.0
    store: Annotated[StoreUrl, "where streams are kept: memory, or a redis:// or rediss:// URL"] = field(
        default="memory", repr=False
    )
    store_bytes: Annotated[Bytes, "bytes the memory store keeps; the oldest finished go first"] = 256 * MIB
    linger: Annotated[Seconds, "seconds a finished stream is kept"] = 900.0
    file_bytes: Annotated[Bytes, "bytes of all uploaded files together; no more are taken until some go"] = GIB
    file_bytes_per_caller: Annotated[Bytes, "bytes of one caller's files together; callers without a key are one"] = (
        256 * MIB
    )
    file_seconds: Annotated[Lifetime, "seconds an uploaded file is kept, unless it asks for less"] = 86400.0
    webhook_origins: Annotated[
        WebhookOrigins, 'origins that webhooks may go to; "ORIGIN internal" may be at an internal address'
    ] = ()
    webhook_secret: Annotated[WebhookSecret | None, "key that signs webhooks: whsec_ and base64"] = field(
        default=None, repr=False
    )
    max_webhooks: Annotated[Count, "webhooks that are not delivered yet"] = 10_000
    max_webhooks_per_caller: Annotated[Count, "webhooks of one caller that are not delivered yet"] = 1000
    results: Annotated[BucketUrl | None, "bucket that completed pictures are put into, like s3://bucket/prefix"] = None
    results_endpoint: Annotated[Url | None, "address of the bucket's service, if that is not AWS"] = None
    results_seconds: Annotated[
        SignedLifetime | None, "seconds a signed URL of a picture is valid; default: token_seconds"
    ] = None
    disconnect_grace: Annotated[Grace, "seconds until a generation without readers is cancelled"] = 15.0
    failure_hold: Annotated[Grace, "seconds a failure that may have been charged is held for the same request"] = 10.0
    finish_models: Annotated[ModelNames, "models whose generations run to the end without readers"] = ()
    preview_models: Annotated[
        ModelNames, "models whose previews are made small, unless the caller says how it wants them"
    ] = ()
    preview_pixels: Annotated[Pixels, "pixels of a small preview's longer side where nothing else is said"] = 512
    default_model: Annotated[Model | None, "model of requests that name none"] = None
    auto: Annotated[ModelNames, "models that the model auto is chosen from, best first; empty: all, by price"] = ()
    fallbacks: Annotated[
        Fallbacks, "models to ask instead, in order, by model: where nothing can have been charged"
    ] = field(default_factory=dict)
    stream_n: Annotated[bool, "whether n > 1 with stream becomes n requests where the model takes one"] = False
    max_streams: Annotated[Count, "generations that run at a time"] = 1000
    max_viewers: Annotated[Count, "readers of one stream"] = 1000
    max_viewers_per_caller: Annotated[Count, "readers of all streams of one caller"] = 2000
    memory_limit: Annotated[
        Bytes | None, "bytes this process may use: new requests are refused at 85 %, the largest streams end at 95 %"
    ] = None
    max_event_bytes: Annotated[Bytes, "bytes of one event from a provider"] = 64 * MIB
    max_json_bytes: Annotated[Bytes, "bytes of a JSON request body"] = 24 * MIB
    max_body_memory: Annotated[Bytes, "bytes of JSON request bodies in memory at a time, over all callers"] = 256 * MIB
    max_upload_bytes: Annotated[Bytes, "bytes of a multipart request body"] = GIB
    max_response_bytes: Annotated[Bytes, "bytes of one provider response"] = 256 * MIB
    max_connections: Annotated[Count, "connections to one provider at a time"] = 1000
    trust_env_proxies: Annotated[bool, "whether HTTP_PROXY and its like apply to provider requests"] = False
    fetch_images: Annotated[bool, "whether image URLs in requests are fetched for models that take no URLs"] = False
    inline_urls: Annotated[
        Literal["always", "asked", "never"],
        "whether pictures at a provider's URLs are fetched and added as b64_json; asked: by response_format b64_json",
    ] = "always"
    fetch_hosts: Annotated[
        FetchHosts, "hosts, *.suffix or host:port, to fetch images from by http and at internal addresses too"
    ] = ()
    log_level: Annotated[Literal["debug", "info", "warning", "error"], "least level that is logged"] = "info"
    log_format: Annotated[
        Literal["auto", "json", "text"], "form of a log line; auto: text on a terminal, otherwise json"
    ] = "auto"

    def __post_init__(self) -> None:
        """Convert and check. Raises ConfigurationError with every problem."""
        _check(self)

    @property
    def has_callers(self) -> bool:
        """Whether callers need a key of this proxy."""
        return bool(self.caller_keys or self.callers)

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Settings:
        """Read settings from a mapping, providers and callers as mappings too.

        Raises ConfigurationError with every problem.
        """
        settings, problems = read(values)
        if problems:
            raise ConfigurationError(problems)
        return settings


def read(values: Mapping[str, object]) -> tuple[Settings, list[ConfigurationProblem]]:
    """Read settings from a mapping. Each wrong value is replaced by its default and listed as a problem."""
    sound, problems = _converted(Settings, values)
    return Settings(**sound), problems


class Described(NamedTuple):
    """One setting as documentation and command line list it. `env` is "" where it can only be set in TOML.

    `takes`: the form of its value as text, like `N` or `json|text`; `SWITCH` for a boolean.
    """

    name: str
    env: str
    default: str
    meaning: str
    takes: str


SWITCH: Final = "true|false"
IN_TOML: Final = ("providers", "callers", "fallbacks")
"""Settings that can only be set in TOML."""
WRITTEN: Final[dict[object, str]] = {bool: SWITCH, int: "N", float: "SECONDS", tuple[str, ...]: "A,B,..."}


def describe() -> list[Described]:
    """Every setting in the order of the source, then those of a provider as `providers.<name>.x`, and of a caller."""
    return [
        Described(
            PLACES[kind] + member.name,
            PREFIX + member.name.upper() if kind is Settings and member.name not in IN_TOML else "",
            _shown(member.default),
            get_args(HINTS[kind][member.name])[-1],
            _written(HINTS[kind][member.name]),
        )
        for kind in HINTS
        for member in fields(kind)
    ]


def _shown(default: object) -> str:
    if default is None or default is MISSING:
        return ""
    if isinstance(default, tuple):
        return ",".join(default)
    return str(default).lower() if isinstance(default, bool) else str(default)


def _written(hint: Any) -> str:
    """The form of a value of this type as text."""
    if get_origin(hint) in (Annotated, Union, UnionType):
        return _written(get_args(hint)[0])
    return "|".join(get_args(hint)) if get_origin(hint) is Literal else WRITTEN.get(hint, "TEXT")


class _Table(NamedTuple):
    """A setting that is a table of tables by name: the type of each, and that of the names."""

    kind: type[ProviderSettings | CallerSettings]
    name: object
    one: str


TABLES: Final[dict[str, _Table]] = {
    "providers": _Table(ProviderSettings, ProviderName, "provider"),
    "callers": _Table(CallerSettings, CallerName, "caller"),
}
PLACES: Final[dict[type, str]] = {Settings: "", **{row.kind: f"{name}.<name>." for name, row in TABLES.items()}}
HINTS: Final = {kind: get_type_hints(kind, include_extras=True) for kind in PLACES}
ROWS: Final = {row.name: row for row in describe()}


def _check(settings: Settings | ProviderSettings | CallerSettings) -> None:
    kind = type(settings)
    values, problems = _converted(kind, {name: getattr(settings, name) for name in HINTS[kind]})
    if problems:
        raise ConfigurationError(problems)
    for name, value in values.items():
        object.__setattr__(settings, name, value)  # frozen from here on


def _converted(kind: type, values: Mapping[str, object]) -> tuple[dict[str, Any], list[ConfigurationProblem]]:
    """The values that are usable, converted, and a problem for each other value and each unknown name."""
    sound: dict[str, Any] = {}
    problems: list[ConfigurationProblem] = []
    hints = HINTS[kind]
    for name, hint in hints.items():
        if name not in values:
            continue
        try:
            value = values[name]
            table = kind is Settings and name in TABLES
            sound[name] = _table(name, value, problems) if table else converted(value, hint)
        except Refused as refused:
            row = ROWS[PLACES[kind] + name]
            meaning = f"its meaning: {row.meaning}{f' (default {row.default})' if row.default else ''}"
            problems.append(ConfigurationProblem(name, refused.happened, refused.fix or meaning, row.env))
    for name in values:
        if name not in hints:
            problems.append(ConfigurationProblem(name, "no setting has this name", meant(name, hints)))
    return sound, problems


def _table(setting: str, value: object, problems: list[ConfigurationProblem]) -> dict[str, Any]:
    """The rows of a table of tables that have no problem, by name."""
    table = TABLES[setting]
    if not isinstance(value, Mapping):
        raise Refused(f"it must be a table for each {table.one}")
    sound: dict[str, Any] = {}
    for name, row in value.items():
        found: list[ConfigurationProblem] = []
        try:
            place = f"{setting}.{converted(name, table.name)}"
        except Refused as refused:
            place = f"{setting}.<name>"  # an invalid name may be a misplaced key
            found.append(ConfigurationProblem(setting, refused.happened, refused.fix))
        values = _row(table, row, place, found)
        if not found:
            sound[name] = row if isinstance(row, table.kind) else table.kind(**values)
        problems += found
    return sound


def _row(table: _Table, row: object, place: str, problems: list[ConfigurationProblem]) -> dict[str, Any]:
    """The sound values of one row."""
    if isinstance(row, table.kind):
        return {}
    if not isinstance(row, Mapping):
        fix = f"write [{place.partition('.')[0]}.<name>] and its settings"
        problems.append(ConfigurationProblem(place, "it must be a table", fix))
        return {}
    values, found = _converted(table.kind, row)
    problems += [replace(problem, setting=f"{place}.{problem.setting}") for problem in found]
    for member in fields(table.kind):
        if member.default is MISSING and member.name not in row:
            problems.append(ConfigurationProblem(f"{place}.{member.name}", "it is missing", HASH_COMMAND))
    return values


def meant(name: str, known: Iterable[str]) -> str:
    """The fix for a name that is not a known one."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {nearest[0]}? Otherwise remove it" if nearest else "remove it; /docs/configuration lists them"
