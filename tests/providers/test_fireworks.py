"""Fireworks: pictures in one exchange, and Kontext's by submit and look."""

from __future__ import annotations

import msgspec
import pytest

from streamproxy.core.conversation import JobId, Progress, Send
from streamproxy.core.requests import Remote
from streamproxy.errors import Failure
from tests.contract.peer import sent
from tests.contract.scenarios import KONTEXT, PROMPT, Scenario
from tests.providers.asking import PNG, job, not_applied, paid, refused, told

DEV = "flux-1-dev-fp8"


@pytest.mark.parametrize(("asked", "accept"), [(None, "image/jpeg"), ("png", "image/png"), ("webp", "image/jpeg")])
def test_a_generation(asked: str | None, accept: str) -> None:
    members = {"size": "1536x1024", "seed": 7, "guidance_scale": 3.5, "output_format": asked}
    request, value, _ = paid(job("fireworks", DEV, members))
    assert request.url.endswith(f"/accounts/fireworks/models/{DEV}/text_to_image")
    assert dict(request.headers)["accept"] == accept
    assert value == {"prompt": PROMPT, "aspect_ratio": "3:2", "seed": 7, "guidance_scale": 3.5}


def test_kontext() -> None:
    value = told(job("fireworks", KONTEXT, {"safety_tolerance": 2, "guidance_scale": 3}, images=(PNG,)))
    image = bytes(PNG.base64).decode()
    assert value == {"prompt": PROMPT, "safety_tolerance": 2, "output_format": "png", "input_image": image}
    url = "https://a.test/1.png"
    assert told(job("fireworks", KONTEXT, images=(Remote(url),)))["input_image"] == url


def test_looks_are_posts_with_the_id() -> None:
    steps = Scenario("fireworks", "later", model=KONTEXT).play().steps
    sends = [step.request for step in steps if isinstance(step, Send)]
    assert [request.url.rpartition("/")[2] for request in sends] == [KONTEXT, "get_result", "get_result"]
    assert msgspec.json.decode(b"".join(map(bytes, sends[1].body))) == {"id": "1"}  # type: ignore[arg-type]
    assert b"canary" not in sent(sends[1])
    assert [step for step in steps if isinstance(step, JobId | Progress)] == [JobId("1"), Progress(fraction=0.5)]


@pytest.mark.parametrize(("model", "most"), [(DEV, 0), (KONTEXT, 1)])
def test_images_that_it_does_not_take(model: str, most: int) -> None:
    error = refused(job("fireworks", model, images=(PNG,) * (most + 1)))
    assert (error.failure, error.param) == (Failure.UNSUPPORTED_PARAMETER, f"images[{most}]")


@pytest.mark.parametrize(
    ("model", "members", "names"),
    [
        (DEV, {"size": "1024x1024", "mask": "m", "safety_tolerance": 1}, ("mask", "safety_tolerance")),
        (KONTEXT, {"num_inference_steps": 4, "output_format": "webp"}, ("num_inference_steps", "output_format")),
    ],
)
def test_what_is_not_applied(model: str, members: dict[str, object], names: tuple[str, ...]) -> None:
    assert not_applied(job("fireworks", model, members)) == names
