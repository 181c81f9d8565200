"""Hugging Face: prompt and parameters, an edit's image in the prompt's place, a model that is being loaded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from streamproxy.errors import Failure
from tests.contract.scenarios import PROMPT, Scenario
from tests.providers.asking import PNG, job, not_applied, paid, refused, told

MODEL = "black-forest-labs/FLUX.1-Kontext-dev"


def test_a_generation() -> None:
    request, value, _ = paid(job("huggingface", MODEL, {"size": "1000x600", "seed": 7, "output_format": "jpeg"}))
    assert request.url == f"https://router.huggingface.co/hf-inference/models/{MODEL}"
    assert dict(request.headers)["accept"] == "image/jpeg"
    assert value == {"inputs": PROMPT, "parameters": {"seed": 7, "width": 992, "height": 608}}


def test_an_endpoint_of_ones_own() -> None:
    given = job("huggingface", MODEL)
    provider = replace(given.provider, base_url="https://own.endpoints.huggingface.cloud", generations="")
    request, _, _ = paid(replace(given, route=replace(given.route, provider=provider)))
    assert request.url == "https://own.endpoints.huggingface.cloud"


def test_an_edit() -> None:
    value = told(job("huggingface", MODEL, {"size": "1024x1024", "guidance_scale": 2.5}, images=(PNG,)))
    target = {"width": 1024, "height": 1024}
    parameters = {"prompt": PROMPT, "guidance_scale": 2.5, "target_size": target}
    assert value == {"inputs": bytes(PNG.base64).decode(), "parameters": parameters}
    error = refused(job("huggingface", MODEL, images=(PNG, PNG)))
    assert (error.failure, error.param) == (Failure.UNSUPPORTED_PARAMETER, "images[1]")


def test_a_model_that_is_being_loaded() -> None:
    error = Scenario("huggingface", "loading").play().error
    assert error is not None
    assert (error.status, error.retry_after, error.message) == (503, "20", "No, [redacted].")


@pytest.mark.parametrize(
    ("members", "names"),
    [
        ({"size": "1024x1024", "seed": 1, "negative_prompt": "dull", "output_format": "png"}, ()),
        ({"size": "large", "quality": "low", "output_format": "webp"}, ("output_format", "quality", "size")),
    ],
)
def test_what_is_not_applied(members: dict[str, object], names: tuple[str, ...]) -> None:
    assert not_applied(job("huggingface", MODEL, members)) == names
