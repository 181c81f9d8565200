"""core/catalogue: the shipped rows hold together, and every name finds one way to one provider."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict, replace
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamproxy
from streamproxy.core.catalogue import EVERYTHING, Catalogue, Model, Provider, Route, model_object, parse
from streamproxy.core.cost import cost
from streamproxy.core.schema import MAX_PROMPT
from streamproxy.errors import Failure, ProxyError

TEXT = (Path(streamproxy.__file__).parent / "catalogue.toml").read_text(encoding="utf-8")
CATALOGUE = parse(TEXT)
TODAY = date(2026, 11, 21)

OPENAI, AZURE, EDENAI, OCTEN, SIM, UPSTREAM = (
    CATALOGUE.providers[name] for name in ("openai", "azure", "edenai", "octen", "sim", "upstream")
)
DEPLOYED = replace(AZURE, deployments=(("gpt-image-2", "pictures-eu"), ("nano-banana", "odd-one")))
TOGETHER = replace(OPENAI, name="together", serves=(), models=("black-forest-labs/FLUX.1-dev", "house-model:v1"))
OPEN_BARE = replace(OPENAI, name="open", serves=(EVERYTHING,))

# ---------------------------------------------------------------------------------------------------- the shipped rows


@pytest.mark.parametrize("model", CATALOGUE.models.values(), ids=lambda model: model.id)
def test_every_model_row(model: Model) -> None:
    assert model.id == f"{model.owner}/{model.name}"
    assert date(2022, 1, 1).toordinal() < date.fromtimestamp(model.created).toordinal() <= TODAY.toordinal()
    assert model.retired is None or type(model.retired) is date
    assert 1 <= model.max_n <= 10
    assert 0 <= model.partial_images <= 3
    assert model.streams == (model.partial_images > 0), "only a model that streams has previews to ask for"
    assert all(rate is None or rate >= 0 for rate in asdict(model.price).values()) if model.price else True
    assert model.price is None or any(asdict(model.price).values())
    assert model.owner in {owner for provider in CATALOGUE.providers.values() for owner in provider.serves}


@pytest.mark.parametrize("provider", CATALOGUE.providers.values(), ids=lambda provider: provider.name)
def test_every_provider_row(provider: Provider) -> None:
    assert provider.base_url == "" or provider.base_url.startswith("https://")
    assert not provider.base_url.endswith("/")
    assert provider.auth_header in {"authorization", "api-key", "x-api-key", "x-goog-api-key", "x-key", ""}
    assert (provider.auth_scheme in ("Bearer ", "Key ", "Basic ")) == (provider.auth_header == "authorization")
    if provider.adapter == "openai":
        assert provider.generations.startswith("/")
        assert provider.edits.startswith("/")
        assert (provider.edit_input == "image") == (provider.edits == provider.generations)
    assert provider.serves or provider.models or provider.adapter == "comfyui"
    for word in provider.listed:
        assert CATALOGUE.find(word), "a row may only list what the catalogue knows"


def test_no_word_names_two_models() -> None:
    words = [word for model in CATALOGUE.models.values() for word in model.spellings]
    assert len(words) == len(set(words))
    assert all(CATALOGUE.find(word) is model for model in CATALOGUE.models.values() for word in model.spellings)


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("nano-banana", "google/gemini-2.5-flash-image"),
        ("nano-banana-2", "google/gemini-3.1-flash-image"),
        ("nano-banana-pro", "google/gemini-3-pro-image"),
        ("gemini-3-pro-image-preview", "google/gemini-3-pro-image"),
        ("google/gemini-3.1-flash-image-preview", "google/gemini-3.1-flash-image"),
        ("amazon.nova-canvas-v1:0", "amazon/amazon.nova-canvas-v1:0"),
        ("gpt-image-2.5-flare-2026-09-08", "openai/gpt-image-2.5-flare-2026-09-08"),
    ],
)
def test_other_names(name: str, id: str) -> None:
    assert CATALOGUE.find(name) is CATALOGUE.models[id]


@pytest.mark.parametrize(
    ("id", "day"),
    [
        ("openai/gpt-image-1", date(2026, 10, 23)),
        ("openai/dall-e-2", date(2026, 5, 12)),
        ("openai/dall-e-3", date(2026, 5, 12)),
        ("google/imagen-4.0-generate-001", date(2026, 8, 17)),
        ("google/imagen-3.0-capability-001", date(2026, 6, 30)),
        ("google/gemini-2.5-flash-image", date(2027, 3, 15)),
        ("google/gemini-3-pro-image", date(2027, 5, 28)),
        ("google/gemini-nano-banana-2.1", None),
        ("amazon/amazon.nova-canvas-v1:0", date(2026, 9, 30)),
        ("openai/gpt-image-2", None),
    ],
)
def test_what_is_retired(id: str, day: date | None) -> None:
    assert CATALOGUE.models[id].retired == day


def test_gpt_image_models_get_no_response_format() -> None:
    for model in CATALOGUE.models.values():
        assert ("response_format" in model.refuses) == (model.family == "gpt-image" or model.id == "sim/gpt-image")
        assert ("chat" in model.surfaces) == (model.family in ("gemini", "simulator"))


def test_the_price_list_explains_a_bill() -> None:
    assert cost({"input_tokens": 19, "output_tokens": 272}, CATALOGUE.models["openai/gpt-image-1"].price, 1) == 0.010975


# ------------------------------------------------------------------------------------------------------------- resolve


@pytest.mark.parametrize(
    ("name", "providers", "provider", "id", "upstream_model"),
    [
        # One official host: bare name, full id, dated snapshot, alias, a retired model, one that came after us.
        ("gpt-image-2", [OPENAI], "openai", "openai/gpt-image-2", "gpt-image-2"),
        ("openai/gpt-image-2", [OPENAI], "openai", "openai/gpt-image-2", "gpt-image-2"),
        ("gpt-image-2-2026-04-21", [OPENAI], "openai", "openai/gpt-image-2-2026-04-21", "gpt-image-2-2026-04-21"),
        ("dall-e-3", [OPENAI], "openai", "openai/dall-e-3", "dall-e-3"),
        ("openai/gpt-image-9", [OPENAI], "openai", "openai/gpt-image-9", "gpt-image-9"),
        # A gateway wants full ids, and aliases become the id.
        ("gpt-image-2", [EDENAI], "edenai", "openai/gpt-image-2", "openai/gpt-image-2"),
        ("nano-banana-pro", [OCTEN], "octen", "google/gemini-3-pro-image", "google/gemini-3-pro-image"),
        ("edenai/nano-banana", [EDENAI], "edenai", "google/gemini-2.5-flash-image", "google/gemini-2.5-flash-image"),
        ("edenai/openai/gpt-image-2", [EDENAI], "edenai", "openai/gpt-image-2", "openai/gpt-image-2"),
        ("edenai/bytedance/seedream-9", [EDENAI], "edenai", "bytedance/seedream-9", "bytedance/seedream-9"),
        ("bytedance/seedream-9", [EDENAI], "edenai", "bytedance/seedream-9", "bytedance/seedream-9"),
        # The first configured provider that serves the owner; a prefix picks another.
        ("openai/gpt-image-2", [EDENAI, OPENAI], "openai", "openai/gpt-image-2", "gpt-image-2"),
        ("gpt-image-2", [EDENAI, OPENAI], "edenai", "openai/gpt-image-2", "openai/gpt-image-2"),
        ("google/gemini-3-pro-image", [OPENAI, EDENAI], "edenai", "google/gemini-3-pro-image", None),
        ("edenai/gpt-image-2", [OPENAI, EDENAI], "edenai", "openai/gpt-image-2", "openai/gpt-image-2"),
        # Who serves the owner goes before who takes everything, whatever the order.
        ("gpt-image-2", [UPSTREAM, OPENAI], "openai", "openai/gpt-image-2", "gpt-image-2"),
        ("flux-dev", [OPENAI, UPSTREAM], "upstream", "flux-dev", "flux-dev"),
        # The sidecar: as written, known or not; only its own prefix goes.
        ("gpt-image-2", [UPSTREAM], "upstream", "openai/gpt-image-2", "gpt-image-2"),
        ("openai/gpt-image-2", [UPSTREAM], "upstream", "openai/gpt-image-2", "openai/gpt-image-2"),
        ("nano-banana-2", [UPSTREAM], "upstream", "google/gemini-3.1-flash-image", "nano-banana-2"),
        ("some/deep/model:tag", [UPSTREAM], "upstream", "some/deep/model:tag", "some/deep/model:tag"),
        ("upstream/gpt-image-2", [UPSTREAM], "upstream", "openai/gpt-image-2", "gpt-image-2"),
        ("upstream/some/model", [UPSTREAM], "upstream", "some/model", "some/model"),
        ("upstream/", [UPSTREAM], "upstream", "upstream/", "upstream/"),
        ("plain", [UPSTREAM], "upstream", "plain", "plain"),
        # Azure: a deployment named like the model, then the operator's own mapping, by any spelling.
        ("azure/gpt-image-2", [AZURE], "azure", "openai/gpt-image-2", "gpt-image-2"),
        ("gpt-image-2", [DEPLOYED], "azure", "openai/gpt-image-2", "pictures-eu"),
        ("openai/gpt-image-2", [DEPLOYED], "azure", "openai/gpt-image-2", "pictures-eu"),
        ("azure/openai/gpt-image-2", [DEPLOYED], "azure", "openai/gpt-image-2", "pictures-eu"),
        ("google/gemini-2.5-flash-image", [DEPLOYED], "azure", "google/gemini-2.5-flash-image", "odd-one"),
        ("gpt-image-1.5", [DEPLOYED, OPENAI], "openai", "openai/gpt-image-1.5", "gpt-image-1.5"),
        # A name that the operator lists is served although it is unknown; a slash may belong to the name.
        ("black-forest-labs/FLUX.1-dev", [TOGETHER], "together", None, "black-forest-labs/FLUX.1-dev"),
        ("together/house-model:v1", [TOGETHER], "together", None, "house-model:v1"),
        ("house-model:v1", [OPENAI, TOGETHER], "together", "house-model:v1", "house-model:v1"),
        ("foo/bar", [OPEN_BARE], "open", "foo/bar", "foo/bar"),
        ("open/bar", [OPEN_BARE], "open", None, "bar"),
        # The simulator's models, faults included.
        ("sim/gpt-image", [OPENAI, SIM], "sim", "sim/gpt-image", "sim/gpt-image"),
        ("sim/fault-stall", [SIM], "sim", "sim/fault-stall", "sim/fault-stall"),
    ],
)
def test_resolve(
    name: str, providers: list[Provider], provider: str, id: str | None, upstream_model: str | None
) -> None:
    route = CATALOGUE.resolve(name, providers)
    assert route.provider.name == provider
    assert id is None or route.model.id == id
    assert route.upstream_model == (upstream_model or id)
    assert route.model is CATALOGUE.find(name) or route.model.family == "unknown" or "/" in name


@pytest.mark.parametrize(
    ("name", "providers", "near"),
    [
        ("gpt-imgae-2", [OPENAI], "openai/gpt-image-2"),
        ("openai/gpt-image-3", [OCTEN], "openai/gpt-image-2"),
        ("nano-bananna-pro", [OCTEN], "google/gemini-3-pro-image"),
        ("house-model", [TOGETHER], "house-model:v1"),
        ("google/gemini-3-pro-image", [OPENAI], None),
        ("openai/gemini-3-pro-image", [OPENAI], None),  # known, but not OpenAI's
        ("azure/gpt-image-2", [replace(DEPLOYED, name="eu"), SIM], "gpt-image-2"),
        ("gpt-image-1.5", [DEPLOYED], "gpt-image-2"),
        ("plain", [SIM], None),
        ("gpt-image-2", [], None),
        ("", [OPENAI, UPSTREAM], None),
        ("openai/", [OPENAI], None),
        ("x" * 5000, [OPENAI], None),
    ],
)
def test_not_found_says_where_to_look(name: str, providers: list[Provider], near: str | None) -> None:
    with pytest.raises(ProxyError) as caught:
        CATALOGUE.resolve(name, providers)
    error = caught.value
    assert (error.failure, error.status, error.param) == (Failure.MODEL_NOT_FOUND, 404, "model")
    assert "GET /v1/models" in error.message
    if near is not None:
        hint = error.message.split("Did you mean ")[1].split("?")[0].split(", ")
        assert near in hint
        assert len(hint) <= 3
        for word in hint:
            CATALOGUE.resolve(word, providers)


def test_not_found_repeats_nothing_of_the_caller() -> None:
    with pytest.raises(ProxyError) as caught:
        CATALOGUE.resolve("gpt-image-1.55-canary", [OPENAI])
    assert "canary" not in caught.value.message
    assert "openai/gpt-image-1.5" not in caught.value.message


WORDS = st.sampled_from(
    [*(word for model in CATALOGUE.models.values() for word in model.spellings), "flux", "a/b", "a/b:c/d", "*", ""]
)
NAMES = (
    WORDS
    | st.builds("{}/{}".format, st.sampled_from([*CATALOGUE.providers, "together", "open"]), WORDS)
    | st.text("aimgpt-/:*.12", max_size=12)
)
PROVIDERS = st.lists(st.sampled_from([OPENAI, AZURE, DEPLOYED, EDENAI, OCTEN, SIM, UPSTREAM, TOGETHER, OPEN_BARE]))


def outcome(name: str, providers: list[Provider]) -> Route | tuple[Failure, str]:
    try:
        return CATALOGUE.resolve(name, providers)
    except ProxyError as error:
        return error.failure, error.message


@settings(deadline=None)
@given(NAMES, PROVIDERS)
def test_every_name_has_one_outcome(name: str, providers: list[Provider]) -> None:
    found = outcome(name, providers)
    assert found == outcome(name, providers)
    if isinstance(found, Route):
        assert found.upstream_model
        assert found.provider in providers
    else:
        assert found[0] is Failure.MODEL_NOT_FOUND
    if name and any(provider.takes_everything for provider in providers):
        assert isinstance(found, Route)
    if not providers:
        assert not isinstance(found, Route)


@settings(deadline=None)
@given(PROVIDERS)
def test_what_is_listed_is_served(providers: list[Provider]) -> None:
    entries = CATALOGUE.listed(providers, TODAY)
    assert len({model.id for model, _ in entries}) == len(entries)
    for model, served_id in entries:
        assert CATALOGUE.resolve(served_id, providers).model == model


# -------------------------------------------------------------------------------------------------------------- listed


def ids(providers: list[Provider], today: date = TODAY) -> list[str]:
    return [served_id for _, served_id in CATALOGUE.listed(providers, today)]


def test_retired_models_are_listed_if_named_by_operators() -> None:
    assert "openai/gpt-image-1" not in ids([OPENAI])
    named = replace(OPENAI, models=("gpt-image-1",))
    assert ids([named])[0] == "gpt-image-1"
    assert ids([named])[1:] == ids([OPENAI])


def test_a_retirement_takes_effect_on_its_day() -> None:
    assert "openai/gpt-image-1.5" in ids([OPENAI], date(2026, 11, 30))
    assert "openai/gpt-image-1.5" not in ids([OPENAI], date(2026, 12, 1))


def test_simulated_models_belong_to_the_simulator() -> None:
    assert not [id for id in ids([UPSTREAM, EDENAI]) if id.startswith("sim/")]
    assert ids([SIM]) == ["sim/gpt-image", "sim/plain", "sim/plain-ignores-stream", "sim/url"]


def test_with_deployments_only_those_are_listed() -> None:
    assert ids([DEPLOYED]) == ["gpt-image-2", "nano-banana"]


def test_model_object() -> None:
    assert model_object(CATALOGUE.models["openai/gpt-image-2.5-flare"], "flare") == {
        "id": "flare",
        "object": "model",
        "created": 1788825600,
        "owned_by": "openai",
    }
    assert model_object(CATALOGUE.models["openai/dall-e-3"], "dall-e-3")["retired"] == "2026-05-12"


# --------------------------------------------------------------------------------------------------------------- parse

FAMILY = """
[families.f]
streams = false
edits = false
max_n = 1
partial_images = 0
remote_image_urls = false
"""
ONE = FAMILY + '[models."a/x"]\nfamily = "f"\n'
HOST = (
    '[providers.h]\nadapter="openai"\nbase_url=""\nauth_header=""\nauth_scheme=""\nkey_env=""\nnames="bare"\n'
    'generations="/g"\nedits="/e"\nedit_input="images"\nquery=""\nstreams=true\nserves=[]\n'
)


def test_a_row_replaces_what_its_family_says() -> None:
    catalogue = parse(ONE + 'max_n = 4\nprice = { image_output = 2.5 }\n[models."a/y"]\nfamily = "f"\n' + HOST)
    assert (catalogue.models["a/x"].max_n, catalogue.models["a/y"].max_n) == (4, 1)
    assert catalogue.models["a/y"].created == 0
    assert cost({"input_tokens": 0, "output_tokens": 10}, catalogue.models["a/x"].price, 1) == 0.000025
    assert catalogue.providers["h"].models == ()


def test_a_prompt_may_be_as_long_as_its_models_row_says() -> None:
    catalogue = parse(ONE + 'max_prompt = 5\naliases = ["short"]\n')
    assert [catalogue.max_prompt(name) for name in ("a/x", "x", "short")] == [5] * 3
    assert [catalogue.max_prompt(name) for name in ("a/y", None, 7)] == [MAX_PROMPT] * 3 == [32_000] * 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[models", "Expected"),
        (ONE + 'alias = ["b"]', "models.a/x: no such member: alias"),
        (ONE + 'max_n = "1"', "models.a/x: Expected `int`"),
        (ONE + 'released = "yesterday"', "models.a/x: no such member: released"),
        (ONE + 'price = { image_output = "cheap" }', "models.a/x"),
        (FAMILY + '[models."x"]\nfamily = "f"', "models.x: an id is <owner>/<name>"),
        (FAMILY + '[models."a/x"]\nfamily = "g"', "models.a/x: an id is"),
        (FAMILY + '[models."a/x"]\n', "models.a/x: an id is"),
        (ONE + '[models."b/x"]\nfamily = "f"', "'x' of b/x is already a name of a/x"),
        (ONE + 'aliases = ["x"]', "'x' of a/x is already a name of a/x"),
        (ONE + '[models."b/y"]\nfamily = "f"\naliases = ["a/x"]', "'a/x' of b/y is already a name of a/x"),
        (HOST + 'color = "red"', "providers.h: no such member: color"),
        (HOST.replace('"bare"', '"short"'), "providers.h: Invalid enum value 'short'"),
        (HOST.replace('query=""\n', ""), "providers.h: Object missing required field `query`"),
    ],
)
def test_a_broken_row_is_named(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=r"catalogue|Expected") as caught:
        parse(text)
    assert says in str(caught.value)


def test_values_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        OPENAI.base_url = "http://elsewhere"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        CATALOGUE.models["openai/gpt-image-2"].id = "x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        CATALOGUE.models["a/x"] = Model.unknown("a/x")  # type: ignore[index]


def test_an_empty_catalogue_still_passes_everything_on() -> None:
    assert Catalogue([], []).resolve("any/thing", [UPSTREAM]).model == Model.unknown("any/thing")


@settings(deadline=None)
@given(st.text(min_size=1, max_size=20))
def test_an_unknown_model_keeps_its_name(id: str) -> None:
    model = Model.unknown(id)
    assert model.id == id
    assert model.name
    assert (f"{model.owner}/{model.name}" if model.owner else model.name) == id
    assert model.streams
    assert model.edits
    assert model.price is None
    assert not model.refuses


def test_a_hosts_own_list_ends_with_its_models() -> None:
    row, day = CATALOGUE.providers["imagen"], date(2026, 8, 17)
    assert CATALOGUE.listed([row], day) == []
    assert len(CATALOGUE.listed([row], date(2026, 8, 16))) == 3
    named = replace(row, models=("imagen-4.0-generate-001",))
    assert [word for _, word in CATALOGUE.listed([named], day)] == ["imagen-4.0-generate-001"]
