"""Azure: its v1 paths, and Microsoft's own models there, which make one picture at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from streamproxy.core.conversation import JobId, Send
from streamproxy.core.requests import Remote, Spooled
from streamproxy.errors import Failure
from streamproxy.providers import ADAPTERS
from tests.contract.peer import sent as as_sent
from tests.contract.scenarios import FILES, PROMPT, Scenario
from tests.providers.asking import PNG, job, not_applied, paid, refused, told
from tests.providers.making import provider, sent, wanted


@pytest.mark.parametrize(
    ("host", "url"),
    [
        (
            "azure",
            "https://azure.test/v1/openai/deployments/pictures-eu/images/generations?api-version=2025-04-01-preview",
        ),
        ("foundry", "https://foundry.test/v1/openai/v1/images/generations"),
    ],
)
def test_azures_paths(host: str, url: str) -> None:
    request = sent(wanted(host=host, upstream_model="pictures-eu"))
    assert request.url == url
    assert b'"model":"pictures-eu"' in as_sent(request)
    assert provider(host).auth_header == "api-key"


def test_a_generation() -> None:
    request, value, _ = paid(job("mai", "MAI-Image-2.6"))
    assert (request.method, request.url) == ("POST", "/mai/v1/images/generations?api-version=preview")
    assert value == {"model": "MAI-Image-2.6", "prompt": PROMPT, "width": 1024, "height": 1024}


@pytest.mark.parametrize(
    ("size", "width", "height"),
    [("1536x1024", 1248, 832), ("512x512", 768, 768), ("3840x2160", 1360, 768), ("768x1344", 768, 1344)],
)
def test_sizes(size: str, width: int, height: int) -> None:
    value = told(job("mai", "MAI-Image-2.6", {"size": size}))
    assert (value["width"], value["height"]) == (width, height)
    assert width * height <= 1_048_576


def test_an_edit_is_a_form() -> None:
    given = job("mai", "MAI-Image-2.6", images=FILES[:1])
    [step] = [step for step in _steps(given.request.images) if isinstance(step, Send)]
    form = as_sent(step.request)
    assert form.count(b"Content-Disposition: form-data") == 3
    assert b'name="model"\r\n\r\nMAI-Image-2.6\r\n' in form
    assert b'name="image"; filename="' in form
    assert not_applied(replace(given, request=replace(given.request, size="1024x1024"))) == ()


def _steps(images: tuple[object, ...]) -> list[object]:
    assert all(isinstance(image, Spooled) for image in images)
    return list(Scenario("mai", "edited", images=FILES[:1]).play().steps)


def test_images_that_it_does_not_take() -> None:
    assert refused(job("mai", "MAI-Image-2.6", images=(PNG, PNG))).param == "images[1]"
    error = refused(job("mai", "MAI-Image-2.6", images=(Remote("https://a.test/1.png"),)))
    assert (error.failure, error.param) == (Failure.UNSUPPORTED_PARAMETER, "images[0]")


def test_several_are_never_asked_for_at_once() -> None:
    given = job("mai", "MAI-Image-2.6", n=4)
    assert ADAPTERS["mai"].at_once(given.request, given.route) == 1
    assert "n" not in told(given)


def test_what_is_not_applied() -> None:
    members = {"quality": "high", "background": "transparent", "output_format": "webp", "mask": "m"}
    assert not_applied(job("mai", "MAI-Image-2.6", members)) == ("background", "mask", "output_format", "quality")
    assert not_applied(job("mai", "MAI-Image-2.6", {"size": "1024x1024"}, images=(PNG,))) == ("size",)


def test_usage_and_the_id_of_the_request() -> None:
    run = Scenario("mai", "one").play()
    assert [step.id for step in run.steps if isinstance(step, JobId)] == ["1"]
    told = b"".join(run.frames[-1].data)
    assert b'"total_tokens":1036,"input_tokens":12,"output_tokens":1024' in told
    assert b'"cost":null,"cost_unknown"' in told


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("content-filter", "contentFilter"),
        ("content-filter-event", "content_filter"),
        ("content-filter-json", "contentFilter"),
    ],
)
def test_azures_filter_is_moderation(name: str, code: str) -> None:
    """Whether its refusal comes by its status, as an event, or as JSON under 200."""
    error = Scenario("openai", name, stream=name != "content-filter-json").play().error
    assert error is not None
    assert (error.code, error.status, error.details.members) == ("moderation_blocked", 400, {"provider_code": code})
