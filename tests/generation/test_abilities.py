"""What lists say that a model can do: as its host and its adapter have it."""

from __future__ import annotations

from datetime import date
from typing import Any, Final

import pytest

from streamproxy.core.catalogue import Model, Provider
from streamproxy.generation.abilities import FORMATS, abilities, in_words
from streamproxy.providers import ADAPTERS
from streamproxy.settings.providers import read_catalogue

CATALOGUE: Final = read_catalogue()
EVERY: Final = [row for row in CATALOGUE.providers.values() if not row.unlisted]


def found(name: str, provider: str) -> dict[str, Any]:
    row = CATALOGUE.providers[provider]
    return dict(abilities(ADAPTERS[row.adapter], CATALOGUE.resolve(name, [row])))


def test_a_model_with_everything() -> None:
    assert found("openai/gpt-image-2", "openai") == {
        "streams": True,
        "partial_images": 3,
        "edits": True,
        "masks": True,
        "sizes": True,
        "formats": ["png", "jpeg", "webp"],
        "inputs": list(CATALOGUE.models["openai/gpt-image-2"].inputs),
        "n": 10,
        "surfaces": ["images", "responses"],
        "image_sizes": [],
        "price": {"text_input": 5.0, "image_input": 8.0, "image_output": 30.0},
    }


ROWS: Final = [
    ("google/gemini-3.1-flash-image", "gemini", {"masks": False, "formats": ["png", "jpeg"], "streams": False}),
    ("google/gemini-3.1-flash-image", "gemini", {"image_sizes": ["512", "1K", "2K", "4K"], "n": 1}),
    ("google/gemini-3.1-flash-image", "gemini", {"surfaces": ["images", "chat", "responses"]}),
    ("openai/gpt-image-2", "edenai", {"streams": False, "partial_images": 0}),  # this host does not stream
    ("bfl/flux-pro-1.0-fill", "bfl", {"masks": True, "sizes": False}),
    ("bfl/flux-2-pro", "bfl", {"masks": False, "price": {"first_megapixel": 0.03, "per_megapixel": 0.015}}),
    ("fal/fal-ai/flux-pro/v1.1", "fal", {"edits": False, "masks": False}),
    ("zai/glm-image", "zai", {"edits": False, "masks": False}),
    ("bytedance/seedream-4-5-251128", "ark", {"formats": ["jpeg"], "streams": False}),
]


@pytest.mark.parametrize(("model", "provider", "expected"), ROWS)
def test_what_differs(model: str, provider: str, expected: dict[str, object]) -> None:
    said = found(model, provider)
    assert {name: said[name] for name in expected} == expected


@pytest.mark.parametrize("provider", EVERY, ids=lambda row: row.name)
def test_every_listed_model_has_them(provider: Provider) -> None:
    for model, id in CATALOGUE.listed([provider], date(2026, 1, 1)):
        said = found(id, provider.name)
        if said:
            assert set(said["formats"]) <= set(FORMATS)
            assert in_words(model, said)


def test_nothing_is_said_of_an_unknown_model() -> None:
    assert found("lab/new", "upstream") == {}
    assert in_words(Model.unknown("lab/new"), {}) == ""
