"""Luma: what Photon is asked, that it takes images by URL only, how a job ends."""

from __future__ import annotations

import pytest

from streamproxy.core.conversation import JobId, Undo
from streamproxy.core.requests import Inline, Input, Remote
from streamproxy.errors import Failure
from tests.contract.scenarios import PROMPT, Scenario
from tests.providers.asking import PNG, job, not_applied, paid, refused, told
from tests.providers.making import CATALOGUE

URL, OTHER = Remote("https://a.test/1.png"), Remote("https://a.test/2.png")


def test_a_generation() -> None:
    request, value, _ = paid(job("luma", "photon-1"))
    assert (request.method, request.url) == ("POST", "https://api.lumalabs.ai/dream-machine/v1/generations/image")
    assert value == {"model": "photon-1", "prompt": PROMPT, "aspect_ratio": "1:1"}


@pytest.mark.parametrize(
    ("size", "ratio"), [("1536x1024", "4:3"), ("1920x1080", "16:9"), ("1024x1536", "3:4"), ("auto", "1:1")]
)
def test_sizes(size: str, ratio: str) -> None:
    assert told(job("luma", "photon-1", {"size": size}))["aspect_ratio"] == ratio


@pytest.mark.parametrize(("format", "said"), [("jpeg", "jpg"), ("png", "png"), ("webp", None)])
def test_formats(format: str, said: str | None) -> None:
    given = job("luma", "photon-1", {"output_format": format})
    assert told(given).get("format") == said
    assert ("output_format" in not_applied(given)) is (said is None)


def test_an_edit_and_pictures_to_follow() -> None:
    edited = told(job("luma", "photon-1", images=(URL,)))
    assert edited == {"model": "photon-1", "prompt": PROMPT, "modify_image_ref": {"url": URL.url}}
    assert told(job("luma", "photon-1", images=(URL, OTHER)))["image_ref"] == [{"url": URL.url}, {"url": OTHER.url}]
    style = {"style_ref": [{"url": "https://a.test/s.png"}]}
    assert told(job("luma", "photon-1", style))["style_ref"] == style["style_ref"]


@pytest.mark.parametrize(("images", "at"), [((PNG,), 0), ((URL, PNG), 1), ((URL,) * 5, 4)])
def test_images_that_it_does_not_take(images: tuple[Input, ...], at: int) -> None:
    error = refused(job("luma", "photon-1", images=images))
    assert (error.failure, error.param) == (Failure.UNSUPPORTED_PARAMETER, f"images[{at}]")


def test_a_mask_is_named() -> None:
    mask = Inline(PNG.base64, "image/png")
    given = job("luma", "photon-1", {"mask": "m", "quality": "high"}, images=(URL,), mask=mask)
    assert not_applied(given) == ("mask", "quality")


def test_a_job_can_be_deleted_until_it_is_over() -> None:
    steps = Scenario("luma", "one").play().steps
    undone = [step.request and f"{step.request.method} {step.request.url}" for step in steps if isinstance(step, Undo)]
    assert undone == ["DELETE https://luma.test/dream-machine/v1/generations/1", None]
    assert [step.id for step in steps if isinstance(step, JobId)] == ["1"]


def test_what_it_cost() -> None:
    price = CATALOGUE.models["luma/photon-1"].price
    run = Scenario("luma", "one", about={"price": price}).play()
    assert b'"cost":0.015,' in b"".join(run.frames[-1].data)
