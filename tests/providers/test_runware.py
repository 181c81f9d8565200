"""Runware: one task, whose id is ours; where input images go; what it cost."""

from __future__ import annotations

import msgspec
import pytest

from streamproxy.core.conversation import JobId, Send
from streamproxy.core.requests import Remote
from tests.contract.scenarios import MASK, PROMPT, Scenario
from tests.providers.asking import MADE, PNG, job, not_applied, paid

DEV, KONTEXT = "runware:101@1", "runware:106@1"
UUID = "01234567-89ab-4def-8123-456789abcdef"
DATA_URL = f"data:image/png;base64,{bytes(PNG.base64).decode()}"


def task(*given: object, **more: object) -> dict[str, object]:
    """The one task of the request that costs money."""
    _, value, _ = paid(job("runware", *given, **more))  # type: ignore[arg-type]
    [found] = msgspec.convert(value, list[dict[str, object]])
    return found


def test_a_generation() -> None:
    assert task(DEV, {"size": "1536x1000", "seed": 7, "output_format": "jpeg"}, n=2) == {
        **{"taskType": "imageInference", "taskUUID": UUID, "positivePrompt": PROMPT, "model": DEV},
        **{"width": 1536, "height": 1024, "numberResults": 2, "outputType": "base64Data", "outputFormat": "JPG"},
        **{"deliveryMethod": "sync", "includeCost": True, "seed": 7},
    }


def test_where_input_images_go() -> None:
    assert task(DEV, images=(PNG,))["seedImage"] == DATA_URL
    assert task(KONTEXT, images=(PNG,))["referenceImages"] == [DATA_URL]
    url = "https://a.test/1.png"
    several = task(DEV, images=(PNG, Remote(url)))
    assert (several["referenceImages"], "seedImage" in several) == ([DATA_URL, url], False)
    masked = task(DEV, images=(PNG,), mask=MASK)
    made = f"data:image/png;base64,{bytes(MADE.base64).decode()}"
    assert (masked["seedImage"], masked["maskImage"]) == (DATA_URL, made)


@pytest.mark.parametrize(
    ("model", "members", "images", "names"),
    [
        (DEV, {"size": "1024x1024", "mask": "m", "output_format": "webp"}, 1, ()),
        (DEV, {"mask": "m"}, 0, ("mask",)),
        (KONTEXT, {"mask": "m", "quality": "low"}, 1, ("mask", "quality")),
    ],
)
def test_what_is_not_applied(model: str, members: dict[str, object], images: int, names: tuple[str, ...]) -> None:
    assert not_applied(job("runware", model, members, images=(PNG,) * images)) == names


def test_its_id_and_its_cost() -> None:
    run = Scenario("runware", "two", n=2).play()
    [request] = [step.request for step in run.steps if isinstance(step, Send)]
    assert request.url == "https://runware.test/v1"
    assert JobId(UUID) in run.steps
    assert b'"cost":0.0026,' in b"".join(run.frames[-1].data)


def test_a_refusal_names_the_member() -> None:
    error = Scenario("runware", "refused").play().error
    assert error is not None
    assert (error.status, error.code, error.param) == (400, "invalidParameter", "width")
