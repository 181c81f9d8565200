"""Cloudflare: what each family of models is asked, and in which form."""

from __future__ import annotations

import re

import pytest

from streamproxy.core.conversation import Send
from streamproxy.errors import Failure
from streamproxy.providers import ADAPTERS
from tests.contract.peer import sent
from tests.contract.scenarios import PROMPT, SECOND, Scenario
from tests.providers.asking import PNG, job, not_applied, paid, refused, told

SCHNELL, DEV = "@cf/black-forest-labs/flux-1-schnell", "@cf/black-forest-labs/flux-2-dev"
SDXL = "@cf/stabilityai/stable-diffusion-xl-base-1.0"


def test_a_generation() -> None:
    request, value, _ = paid(job("cloudflare", SCHNELL, {"steps": 4, "guidance": 2}))
    assert (request.method, request.url.endswith(f"/{SCHNELL}")) == ("POST", True)
    assert value == {"prompt": PROMPT, "steps": 4}


@pytest.mark.parametrize(
    ("model", "size", "edges"),
    [(SDXL, None, (1024, 1024)), (SDXL, "1536x1024", (1536, 1024)), (SDXL, "4000x2000", (2048, 1024))],
)
def test_sizes(model: str, size: str | None, edges: tuple[int, int]) -> None:
    value = told(job("cloudflare", model, {"size": size}))
    assert (value["width"], value["height"]) == edges


def test_flux_2_is_a_form() -> None:
    conversation = ADAPTERS["cloudflare"].converse(job("cloudflare", DEV, {"steps": 20}, images=(PNG, SECOND)))
    step = next(conversation)
    conversation.close()
    assert isinstance(step, Send)
    form = sent(step.request).decode("latin-1")
    names = re.findall(r'name="([a-z_0-9]+)"', form)
    assert names == ["prompt", "width", "height", "steps", "input_image_0", "input_image_1"]
    assert bytes(PNG.base64).decode() in form


def test_an_edit_in_json() -> None:
    value = told(job("cloudflare", SDXL, {"strength": 0.4}, images=(PNG,)))
    assert (value["image_b64"], value["strength"]) == (bytes(PNG.base64).decode(), 0.4)


@pytest.mark.parametrize(("model", "most"), [(SCHNELL, 0), (SDXL, 1), (DEV, 4)])
def test_images_that_it_does_not_take(model: str, most: int) -> None:
    error = refused(job("cloudflare", model, images=(PNG,) * (most + 1)))
    assert (error.failure, error.param) == (Failure.UNSUPPORTED_PARAMETER, f"images[{most}]")


@pytest.mark.parametrize(
    ("model", "members", "names"),
    [
        (SCHNELL, {"size": "1024x1024", "steps": 4, "strength": 1}, ("size", "strength")),
        (DEV, {"size": "1024x1024", "mask": "m", "output_format": "png"}, ("mask",)),
        (SDXL, {"output_format": "webp", "quality": "low"}, ("output_format", "quality")),
    ],
)
def test_what_is_not_applied(model: str, members: dict[str, object], names: tuple[str, ...]) -> None:
    assert not_applied(job("cloudflare", model, members)) == names


def test_its_words_are_passed_on() -> None:
    error = Scenario("cloudflare", "refused").play().error
    assert error is not None
    assert (error.status, error.code, error.message) == (400, "5006", "No, [redacted].")
