"""Imagen's wire: the request to either host, and the pictures of an answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pytest

from streamproxy.core.catalogue import Route
from streamproxy.core.conversation import Convert, Job
from streamproxy.core.requests import Inline
from streamproxy.errors import Failure
from streamproxy.providers import ADAPTERS
from tests.golden.shapes import PICTURE
from tests.providers.google import VERTEX, asked, data, job, play, told

MODEL, FAST, EDITOR = "imagen-4.0-generate-001", "imagen-4.0-fast-generate-001", "imagen-3.0-capability-001"
INPUT: Final = Inline(memoryview(PICTURE), "image/png")
SOME: Final = "Your current safety filter threshold filtered out 2 generated images."
ALL: Final = "All images were filtered out. Support codes: 39322892, 29310472"


def on_vertex(wanted: Job) -> Job:
    return replace(
        wanted, route=Route(replace(wanted.provider, base_url=VERTEX), wanted.model, wanted.route.model.name)
    )


def imagen(model: str = MODEL, *, vertex: bool = False, **members: Any) -> Job:
    wanted = job(model, provider="imagen", **members)
    return on_vertex(wanted) if vertex else wanted


def item(picture: str = "iVBORw0KGgoAAAA") -> dict[str, object]:
    return {"mimeType": "image/png", "bytesBase64Encoded": picture}


@pytest.mark.parametrize("vertex", [False, True])
def test_a_request(vertex: bool) -> None:
    url, body = asked(imagen(vertex=vertex, n=3, size="1792x1024", output_format="jpeg", output_compression=80))
    assert (
        url == (VERTEX if vertex else "https://generativelanguage.googleapis.com/v1beta") + f"/models/{MODEL}:predict"
    )
    assert body == {
        "instances": [{"prompt": "a lighthouse"}],
        "parameters": {
            "sampleCount": 3,
            "includeRaiReason": True,
            "aspectRatio": "16:9",
            "sampleImageSize": "1K",
            "outputOptions": {"mimeType": "image/jpeg", "compressionQuality": 80},
        },
    }


@pytest.mark.parametrize(
    ("size", "model", "expected"),
    [
        ("2048x2048", MODEL, {"aspectRatio": "1:1", "sampleImageSize": "2K"}),
        ("2048x2048", FAST, {"aspectRatio": "1:1"}),
        ("1024x1536", MODEL, {"aspectRatio": "3:4", "sampleImageSize": "1K"}),
        ("auto", MODEL, {}),
        ("large", MODEL, {}),
    ],
)
def test_sizes(size: str, model: str, expected: dict[str, object]) -> None:
    wanted = imagen(model, size=size)
    parameters = asked(wanted)[1]["parameters"]
    assert {name: value for name, value in parameters.items() if name in ("aspectRatio", "sampleImageSize")} == expected
    assert ("size" in ADAPTERS["imagen"].not_applied(wanted)) is (size == "large")


def test_a_mask_is_a_reference_image_that_is_white() -> None:
    wanted = imagen(EDITOR, vertex=True, images=(INPUT,), mask=INPUT, size="512x512")
    _, body = asked(wanted)
    [instance] = body["instances"]
    raw, mask = instance["referenceImages"]
    assert raw == {
        "referenceType": "REFERENCE_TYPE_RAW",
        "referenceId": 1,
        "referenceImage": {"bytesBase64Encoded": PICTURE.decode()},
    }
    assert (mask["referenceType"], mask["referenceId"]) == ("REFERENCE_TYPE_MASK", 2)
    assert mask["maskImageConfig"] == {"maskMode": "MASK_MODE_USER_PROVIDED"}
    assert mask["referenceImage"]["bytesBase64Encoded"] == PICTURE.decode()
    assert body["parameters"]["editMode"] == "EDIT_MODE_INPAINT_INSERTION"
    assert [step.form for step in play(wanted, {}).steps if isinstance(step, Convert)] == ["white mask"]
    assert ADAPTERS["imagen"].not_applied(wanted) == ("size",)
    _, unmasked = asked(imagen(EDITOR, vertex=True, images=(INPUT,)))
    assert unmasked["parameters"]["editMode"] == "EDIT_MODE_DEFAULT"


@pytest.mark.parametrize(("vertex", "images"), [(False, 1), (True, 2)])
def test_an_edit_that_is_not_to_be_had_is_refused(vertex: bool, images: int) -> None:
    run = play(imagen(vertex=vertex, images=(INPUT,) * images), {})
    assert run.error is not None
    assert (run.error.failure, run.error.param) == (Failure.UNSUPPORTED_PARAMETER, f"images[{images - 1}]")
    assert run.steps == []


def test_a_seed_wants_no_watermark_and_is_vertexs() -> None:
    given: dict[str, Any] = {"seed": 7, "negative_prompt": "fog", "guidance_scale": 3}
    parameters = asked(imagen(vertex=True, **given))[1]["parameters"]
    assert {"seed": 7, "addWatermark": False, "negativePrompt": "fog", "guidanceScale": 3}.items() <= parameters.items()
    assert ADAPTERS["imagen"].not_applied(imagen(vertex=True, **given)) == ()
    there = imagen(**given)
    assert ADAPTERS["imagen"].not_applied(there) == ("negative_prompt", "seed")
    assert asked(there)[1]["parameters"].keys() == {"sampleCount", "includeRaiReason", "guidanceScale"}


def test_pictures_and_their_price() -> None:
    events = data(play(imagen(n=2), {"predictions": [item(), item()]}))
    assert [event["image_index"] for event in events] == [0, 1]
    assert [event["cost"] for event in events] == [None, 0.08]


def test_what_was_filtered_is_said() -> None:
    answer = {"predictions": [item(), item(), {"raiFilteredReason": SOME}]}
    events = data(play(imagen(n=4), answer))
    assert [event.get("warning") for event in events] == [None, SOME]
    assert events[-1]["cost"] == 0.08
    assert [event.get("warning") for event in data(play(imagen(n=4, stream=True), answer))] == [None, SOME]


@pytest.mark.parametrize(
    ("status", "answer", "code", "provider_code"),
    [
        (200, {"predictions": [{"raiFilteredReason": ALL}]}, "moderation_blocked", "39322892, 29310472"),
        (200, {"predictions": [{"raiFilteredReason": SOME}]}, "moderation_blocked", "raiFilteredReason"),
        (200, {"predictions": [{"safetyAttributes": {}}]}, "no_image", None),
        (200, {"predictions": [{"mimeType": "image/png", "gcsUri": "gs://a/b.png"}]}, "no_image", None),
        (200, {}, "no_image", None),
        (400, {"error": {"message": "Sensitive words. Support codes: 42876398"}}, "moderation_blocked", "42876398"),
        (404, {"error": {"message": "No model.", "status": "NOT_FOUND"}}, "NOT_FOUND", None),
        (429, {"error": {"status": "RESOURCE_EXHAUSTED"}}, "RESOURCE_EXHAUSTED", None),
    ],
)
def test_refusals(status: int, answer: object, code: str, provider_code: object) -> None:
    error = told(play(imagen(), answer, status=status))
    assert (error.code, error.provider_code) == (code, provider_code)
