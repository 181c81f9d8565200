"""fal: the request to each kind of app by each of fal's three routes, and members that are not applied."""

from __future__ import annotations

from decimal import Decimal

import pytest

from streamproxy.core.cost import Price
from streamproxy.core.requests import Remote
from streamproxy.errors import Failure
from tests.contract.scenarios import PROMPT, Scenario
from tests.providers.asking import MADE, PNG, job, not_applied, paid, refused, told

DEV = "fal-ai/flux/dev"
DATA = "data:image/png;base64,"


def test_retries_and_fallbacks_of_the_queue_are_off() -> None:
    request, value, _ = paid(job("fal", DEV))
    assert (request.method, request.url) == ("POST", "https://queue.fal.run/fal-ai/flux/dev")
    assert dict(request.headers).items() >= {"x-fal-no-retry": "1", "x-app-fal-disable-fallback": "1"}.items()
    assert value == {"prompt": PROMPT, "num_images": 1}


@pytest.mark.parametrize(
    ("model", "stream", "url"),
    [
        ("fal-ai/flux/schnell", False, "https://fal.run/fal-ai/flux/schnell"),
        (DEV, True, "https://fal.run/fal-ai/flux/dev/stream"),
        (DEV, False, "https://queue.fal.run/fal-ai/flux/dev"),
        ("acme/app", True, "https://queue.fal.run/acme/app"),
        ("fal-ai/nano-banana-2", True, "https://queue.fal.run/fal-ai/nano-banana-2"),
    ],
)
def test_which_way(model: str, stream: bool, url: str) -> None:
    request, _, _ = paid(job("fal", model, stream=stream))
    assert request.url == url
    assert dict(request.headers)["x-fal-no-retry"] == "1"


@pytest.mark.parametrize(
    ("model", "size", "shape"),
    [
        (DEV, "1536x1024", {"image_size": {"width": 1536, "height": 1024}}),
        (DEV, "auto", {}),
        ("fal-ai/nano-banana", "1536x1024", {"aspect_ratio": "3:2"}),
        ("fal-ai/nano-banana-pro", "1024x1536", {"aspect_ratio": "2:3", "resolution": "1K"}),
        ("fal-ai/nano-banana-pro", "3840x2160", {"aspect_ratio": "16:9", "resolution": "2K"}),
        ("fal-ai/nano-banana-2/edit", None, {"resolution": "1K"}),
        ("fal-ai/flux-pro/kontext", "2048x1024", {"aspect_ratio": "16:9"}),
        ("fal-ai/gpt-image-1.5", "1024x1536", {"image_size": "1024x1536"}),
        ("fal-ai/bytedance/seedream/v4", "2048x2048", {"max_images": 1, "image_size": {"width": 2048, "height": 2048}}),
    ],
)
def test_sizes(model: str, size: str | None, shape: dict[str, object]) -> None:
    value = told(job("fal", model, {"size": size}))
    assert value == {"prompt": PROMPT, "num_images": 1, **shape}


def test_several_images_are_one_request() -> None:
    assert told(job("fal", DEV, n=3))["num_images"] == 3


def test_options_and_formats() -> None:
    value = told(
        job("fal", DEV, {"seed": 7, "guidance_scale": 3.5, "enable_safety_checker": False, "output_format": "webp"})
    )
    assert value.items() >= {"seed": 7, "guidance_scale": 3.5, "enable_safety_checker": False}.items()
    assert value["output_format"] == "webp"
    assert (
        told(job("fal", "fal-ai/nano-banana", {"size": "1024x1024", "aspect_ratio": "21:9"}))["aspect_ratio"] == "21:9"
    )


@pytest.mark.parametrize(
    ("model", "members", "names"),
    [
        (DEV, {"quality": "high", "background": "transparent", "output_compression": 50}, 3),
        ("fal-ai/gpt-image-1.5", {"quality": "high", "background": "transparent"}, 0),
        (DEV, {"size": "2K"}, 1),
        (DEV, {"mask": "m"}, 1),
        (DEV, {"size": "1024x1024", "seed": 1}, 0),
    ],
)
def test_what_is_not_applied(model: str, members: dict[str, object], names: int) -> None:
    given = job("fal", model, members)
    said = not_applied(given)
    assert len(said) == names
    assert set(said) <= members.keys()
    assert not said or not set(said) & told(given).keys()


def test_input_images() -> None:
    one = told(job("fal", DEV, images=(PNG,)))
    assert str(one["image_url"]).startswith(DATA)
    assert told(job("fal", DEV, images=(Remote("https://a.test/1.png"),)))["image_url"] == "https://a.test/1.png"
    several = told(job("fal", "fal-ai/flux-2/edit", images=(PNG, Remote("https://a.test/1.png"))))
    assert [str(url)[:5] for url in several["image_urls"]] == ["data:", "https"]  # type: ignore[attr-defined]
    for model, images, param in ((DEV, (PNG, PNG), "images[1]"), ("fal-ai/flux-pro/v1.1", (PNG,), "images[0]")):
        error = refused(job("fal", model, images=images))
        assert (error.failure, error.param) == (Failure.UNSUPPORTED_PARAMETER, param)


@pytest.mark.parametrize(
    ("model", "member", "marks"),
    [
        ("fal-ai/flux-general/inpainting", "mask_url", "white"),
        ("fal-ai/ideogram/v3/edit", "mask_url", "black"),
        ("fal-ai/gpt-image-1.5/edit", "mask_image_url", None),
        ("acme/inpainting", "mask_url", "white"),
    ],
)
def test_masks(model: str, member: str, marks: str | None) -> None:
    _, value, conversions = paid(job("fal", model, images=(PNG,), mask=PNG))
    assert [step.form for step in conversions] == ([] if marks is None else [f"{marks} mask"])
    sent = PNG if marks is None else MADE
    assert value[member] == DATA + bytes(sent.base64).decode()


def _last(name: str, price: Price | None, **about: object) -> bytes:
    scenario = Scenario("fal", name, about={"price": price, **about}, stream=False)
    return b"".join(scenario.play().frames[-1].data)


@pytest.mark.parametrize(
    ("name", "price", "cost"),
    [
        ("one", Price(per_image=Decimal("0.04")), b'"cost":0.04'),
        ("one", Price(per_megapixel=Decimal("0.025")), b'"cost":0.025'),
        ("one", Price(per_second=Decimal("0.001")), b'"cost":0.0021'),
        ("one", None, b'"cost":null,"cost_unknown":"The catalogue has no price'),
        ("more-than-asked", Price(per_image=Decimal("0.04")), b'"cost":0.04'),
    ],
)
def test_what_it_cost(name: str, price: Price | None, cost: bytes) -> None:
    assert cost in _last(name, price)


def test_units_that_fal_bills() -> None:
    about = {"family": "fal", "fast": True, "streams": False}
    assert b'"cost":0.07' in _last("direct", Price(per_megapixel=Decimal("0.07")), **about)
