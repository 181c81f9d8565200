"""Stability AI: the request to each route, members that are not applied, later results."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from streamproxy.core.conversation import Convert, Job, JobId, Picture, Send
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers import ADAPTERS
from tests.contract.peer import sent
from tests.contract.scenarios import MASK, PROMPT, Scenario
from tests.providers.asking import MADE, PNG, job, not_applied
from tests.providers.making import CATALOGUE


def asked(given: Job) -> tuple[str, Mapping[str, str]]:
    """The URL of the request that costs money, and the fields of its form, files as base64."""
    conversation = ADAPTERS["stability"].converse(given)
    step: Any = next(conversation)
    while isinstance(step, Convert):
        step = conversation.send(Picture((bytes(MADE.base64),), MADE.media_type))
    conversation.close()
    assert isinstance(step, Send)
    form = sent(step.request).decode("latin-1").partition("--streamproxy-")[2]
    form = form[form.index("\r\n--streamproxy-") :] if not form.startswith("0123456789abcdef") else form
    found = re.findall(r'name="([a-z_]+)"[^\r]*\r\n(?:Content-Type: [^\r]*\r\n)?\r\n(.*?)\r\n--', form, re.DOTALL)
    return step.request.url.rpartition("/stable-image/")[2], dict(found)


def told(given: Job) -> Mapping[str, str]:
    return asked(given)[1]


def test_a_generation_is_a_form_without_files() -> None:
    url, fields = asked(job("stability", "sd3.5-large", {"size": "1536x1024", "seed": 7, "cfg_scale": 5.5}))
    assert url == "generate/sd3"
    assert fields == {
        **{"prompt": PROMPT, "output_format": "png", "model": "sd3.5-large", "aspect_ratio": "3:2"},
        **{"seed": "7", "cfg_scale": "5.5"},
    }


@pytest.mark.parametrize(
    ("model", "path"),
    [("core", "generate/core"), ("stable-image-ultra", "generate/ultra"), ("creative", "upscale/creative")],
)
def test_routes(model: str, path: str) -> None:
    url, fields = asked(job("stability", model, {"output_format": "webp"}))
    assert (url, fields) == (path, {"prompt": PROMPT, "output_format": "webp"})


def test_an_edit() -> None:
    image = bytes(PNG.base64).decode()
    fields = told(job("stability", "sd3.5-large", {"strength": 0.4, "size": "1024x1024"}, images=(PNG,)))
    assert (fields["mode"], fields["strength"], fields["image"]) == ("image-to-image", "0.4", image)
    assert "aspect_ratio" not in fields
    assert told(job("stability", "ultra", images=(PNG,)))["strength"] == "0.75"
    assert told(job("stability", "replace-background-and-relight", images=(PNG,)))["subject_image"] == image
    masked = told(job("stability", "inpaint", {"grow_mask": 0}, images=(PNG,), mask=MASK))
    assert (masked["mask"], masked["grow_mask"]) == (bytes(MADE.base64).decode(), "0")


@pytest.mark.parametrize(("model", "most"), [("core", 0), ("sd3.5-large", 1), ("inpaint", 1)])
def test_images_that_it_does_not_take(model: str, most: int) -> None:
    with pytest.raises(ProxyError) as refused:
        asked(job("stability", model, images=(PNG,) * (most + 1)))
    assert (refused.value.failure, refused.value.param) == (Failure.UNSUPPORTED_PARAMETER, f"images[{most}]")


@pytest.mark.parametrize(
    ("model", "members", "names"),
    [
        ("sd3.5-large", {"output_format": "webp", "quality": "high"}, ("output_format", "quality")),
        ("core", {"output_format": "webp", "style_preset": "anime", "negative_prompt": "dull"}, ()),
        ("core", {"cfg_scale": 5, "background": "transparent"}, ("background", "cfg_scale")),
        ("fast", {"size": "1024x1024", "mask": "m"}, ("mask", "size")),
        ("inpaint", {"mask": "m", "grow_mask": 5}, ()),
    ],
)
def test_what_is_not_applied(model: str, members: dict[str, object], names: tuple[str, ...]) -> None:
    assert not_applied(job("stability", model, members)) == names


def test_a_result_that_comes_later() -> None:
    steps = Scenario("stability", "later", model="creative").play().steps
    urls = [f"{step.request.method} {step.request.url[-10:]}" for step in steps if isinstance(step, Send)]
    assert urls == ["POST e/creative", *["GET /results/1"] * 2]
    assert [step.id for step in steps if isinstance(step, JobId)] == ["1"]


def test_what_it_cost() -> None:
    price = CATALOGUE.models["stabilityai/sd3.5-large"].price
    row = replace(Scenario("stability", "one"), about={"price": price})
    assert b'"cost":0.065,' in b"".join(row.play().frames[-1].data)
