"""Gemini's wire: the request for each member, the choice of the result, and the failure for each finish reason."""

from __future__ import annotations

from typing import Any, Final

import pytest
from google.genai import types

from streamproxy.core.requests import Inline
from streamproxy.errors import Failure
from streamproxy.providers import ADAPTERS
from streamproxy.providers.gemini import SHAPES
from streamproxy.simulator.gemini import PIXELS, TIERS
from tests.golden.shapes import PICTURE
from tests.providers.google import asked, data, job, play, told, whole

FLASH_25, PRO, FLASH_31 = "gemini-2.5-flash-image", "gemini-3-pro-image", "gemini-3.1-flash-image"
LITE, BANANA = "gemini-3.1-flash-lite-image", "gemini-nano-banana-2.1"
INPUT: Final = Inline(memoryview(PICTURE), "image/png")
A, B, C = ("iVBORw0KGgo" + letter * 5 for letter in "ABC")


def part(picture: str, **members: object) -> dict[str, object]:
    return {"inlineData": {"mimeType": "image/png", "data": picture}, "thoughtSignature": "c2ln", **members}


def candidate(*parts: dict[str, object], **members: object) -> dict[str, object]:
    return {"candidates": [{"content": {"role": "model", "parts": list(parts)}, **members}]}


def config(**members: Any) -> Any:
    return asked(job(members.pop("model", PRO), **members))[1]["generationConfig"]


# -------------------------------------------------------------------------------------------------------------- asking


def test_a_request_is_one_turn_of_the_users() -> None:
    url, body = asked(job(PRO, images=(INPUT, INPUT)))
    assert url.endswith("/v1beta/models/gemini-3-pro-image:generateContent")
    [turn] = body["contents"]
    assert [list(part) for part in turn["parts"]] == [["inlineData"], ["inlineData"], ["text"]]
    assert turn["role"] == "user"
    assert turn["parts"][0]["inlineData"] == {"mimeType": "image/png", "data": PICTURE.decode()}


def test_a_stream_is_asked_for_as_events() -> None:
    assert asked(job(PRO, stream=True))[0].endswith(":streamGenerateContent?alt=sse")


@pytest.mark.parametrize("provider", ["gemini", "vertex"])
def test_googles_own_types_know_all_that_is_sent(provider: str) -> None:
    members: dict[str, Any] = {
        "size": "1536x1024",
        "output_format": "jpeg",
        "output_compression": 80,
        "thinking_level": "high",
    }
    members |= {"media_resolution": "low", "response_modalities": ["image"], "image_config": {"image_size": "4K"}}
    _, body = asked(job(PRO, provider=provider, images=(INPUT,), **members))
    assert body.keys() == {"contents", "generationConfig"}
    [turn] = [types.Content.model_validate(content) for content in body["contents"]]
    assert turn.parts is not None
    read = types.GenerateContentConfig.model_validate(body["generationConfig"])
    image = read.image_config
    assert image is not None
    assert (image.aspect_ratio, image.image_size) == ("3:2", "4K")
    assert read.response_modalities == ["IMAGE"]
    assert read.media_resolution is types.MediaResolution.MEDIA_RESOLUTION_LOW
    assert read.thinking_config == types.ThinkingConfig(thinking_level=types.ThinkingLevel.HIGH)
    output = image.image_output_options
    assert (output and (output.mime_type, output.compression_quality)) == (
        ("image/jpeg", 80) if provider == "vertex" else None
    )


@pytest.mark.parametrize("model", SHAPES)
def test_each_size_of_a_model_is_asked_for(model: str) -> None:
    shape = SHAPES[model]
    for ratio in shape.ratios:
        for tier in shape.tiers:
            width, height = (round(edge * TIERS[tier]) for edge in PIXELS[ratio])
            assert config(model=model, size=f"{width}x{height}")["imageConfig"] == {
                "aspectRatio": ratio,
                "imageSize": tier,
            }


@pytest.mark.parametrize(
    ("size", "model", "expected"),
    [
        ("1024x1024", FLASH_25, {"aspectRatio": "1:1"}),
        ("1248x832", FLASH_25, {"aspectRatio": "3:2"}),
        ("1184x864", FLASH_25, {"aspectRatio": "4:3"}),
        ("1536x672", FLASH_25, {"aspectRatio": "21:9"}),
        ("4096x4096", FLASH_25, {"aspectRatio": "1:1"}),
        ("256x256", FLASH_31, {"aspectRatio": "1:1", "imageSize": "512"}),
        ("256x256", PRO, {"aspectRatio": "1:1", "imageSize": "1K"}),
        ("256x256", BANANA, {"aspectRatio": "1:1", "imageSize": "1K"}),
        ("3840x2160", PRO, {"aspectRatio": "16:9", "imageSize": "2K"}),
        ("2048x2048", LITE, {"aspectRatio": "1:1", "imageSize": "1K"}),
        ("1024x1536", PRO, {"aspectRatio": "2:3", "imageSize": "1K"}),
        ("1792x1024", PRO, {"aspectRatio": "16:9", "imageSize": "1K"}),
        ("1000x3000", FLASH_31, {"aspectRatio": "1:4", "imageSize": "2K"}),
        ("1000x3000", PRO, {"aspectRatio": "9:16", "imageSize": "2K"}),
        ("3000x1000", FLASH_31, {"aspectRatio": "21:9", "imageSize": "2K"}),
        ("2048x1000", PRO, {"aspectRatio": "21:9", "imageSize": "1K"}),
        ("1280x896", PRO, {"aspectRatio": "4:3", "imageSize": "1K"}),
        ("16:9", PRO, {"aspectRatio": "16:9"}),
        ("2K", PRO, {"imageSize": "2K"}),
        ("auto", PRO, None),
        (None, PRO, None),
        ("2K", FLASH_25, None),
        ("8:1", PRO, None),
        ("large", PRO, None),
    ],
)
def test_sizes(size: str | None, model: str, expected: object) -> None:
    assert config(model=model, size=size).get("imageConfig") == expected
    named = "size" in ADAPTERS["gemini"].not_applied(job(model, size=size))
    assert named is (expected is None and size not in (None, "auto"))


def test_an_image_config_goes_before_the_size() -> None:
    given = {"aspect_ratio": "9:16", "image_size": "4K", "unknown": 1}
    both = job(PRO, size="1024x1024", image_config=given)
    assert asked(both)[1]["generationConfig"]["imageConfig"] == {"aspectRatio": "9:16", "imageSize": "4K"}
    assert ADAPTERS["gemini"].not_applied(both) == ("image_config", "size")
    one = job(PRO, size="1536x1024", image_config={"image_size": "4K"})
    assert asked(one)[1]["generationConfig"]["imageConfig"] == {"aspectRatio": "3:2", "imageSize": "4K"}
    assert ADAPTERS["gemini"].not_applied(one) == ()


def test_options_as_a_form_writes_them() -> None:
    made = config(image_config='{"aspect_ratio":"1:1"}', response_modalities="image, text")
    assert made == {"imageConfig": {"aspectRatio": "1:1"}, "responseModalities": ["IMAGE", "TEXT"]}


@pytest.mark.parametrize(
    ("members", "failure"),
    [
        ({"image_config": "no JSON"}, Failure.INVALID_REQUEST),
        ({"image_config": ["1:1"]}, Failure.INVALID_REQUEST),
        ({"thinking_level": 3}, Failure.INVALID_REQUEST),
        ({"media_resolution": {}}, Failure.INVALID_REQUEST),
        ({"response_modalities": {"image": True}}, Failure.INVALID_REQUEST),
        ({"response_modalities": ["text"]}, Failure.UNSUPPORTED_PARAMETER),
    ],
)
def test_an_option_of_another_type_is_refused(members: dict[str, Any], failure: Failure) -> None:
    run = play(job(PRO, **members), {})
    assert run.error is not None
    assert (run.error.failure, run.error.param, run.steps) == (failure, next(iter(members)), [])


@pytest.mark.parametrize(
    ("provider", "members", "expected"),
    [
        ("gemini", {"output_format": "webp"}, ("output_format",)),
        ("vertex", {"output_format": "webp"}, ("output_format",)),
        ("gemini", {"output_format": "jpeg", "output_compression": 50}, ("output_compression",)),
        ("vertex", {"output_format": "jpeg", "output_compression": 50}, ()),
        ("vertex", {"output_format": "png", "output_compression": 50}, ("output_compression",)),
        ("gemini", {"background": "transparent", "seed": 1}, ("background", "seed")),
        ("gemini", {"quality": "high", "moderation": "low", "user": "u"}, ("moderation", "quality", "user")),
    ],
)
def test_what_is_not_applied_is_named(provider: str, members: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert ADAPTERS["gemini"].not_applied(job(PRO, provider=provider, **members)) == expected


# -------------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([part(A), part(B), part(C)], "A B C"),
        ([part(A, thought=True), part(B, thought=True), part(C)], "A B C"),
        ([part(A), part(B, thought=True)], "A A"),
        ([part(A, thought=True)], "A"),
        ([part(A, thought=True), part(B, thought=True)], "A B"),
    ],
)
def test_which_picture_is_the_result(parts: list[dict[str, object]], expected: str) -> None:
    chunks = [*map(candidate, parts), candidate(finishReason="STOP")]
    run = play(job(PRO, stream=True, partial_images=3), chunks)
    assert " ".join(event["b64_json"][-1] for event in data(run)) == expected
    assert [event["type"].rpartition(".")[2] for event in data(run)][-1] == "completed"
    for wanted in (0, 1):
        fewer = play(job(PRO, stream=True, partial_images=wanted), chunks)
        assert len(data(fewer)) == min(wanted, len(expected.split()) - 1) + 1
    answer = data(play(job(PRO, partial_images=3), candidate(*parts, finishReason="STOP")))
    assert [event["b64_json"][-1] for event in answer] == [expected[-1]]


def test_words_stand_beside_the_picture_and_in_order() -> None:
    parts: list[dict[str, object]] = [
        {"text": "Here "},
        {"text": "it is."},
        part(A),
        {"text": "hm", "thought": True},
        {"text": "Good?"},
    ]
    for chunks in ([candidate(*parts)], [candidate(one) for one in parts]):
        [event] = data(play(job(PRO, stream=True), chunks))
        assert event["text"] == "Here it is.Good?"
        assert event["parts"] == [
            {"type": "text", "text": "Here it is."},
            {"type": "image", "index": 0},
            {"type": "text", "text": "Good?"},
        ]


def test_an_answer_without_words_has_no_text() -> None:
    [event] = data(play(job(PRO), candidate(part(A))))
    assert "text" not in event
    assert event["parts"] == [{"type": "image", "index": 0}]


USAGE: Final = {
    "promptTokenCount": 574,
    "candidatesTokenCount": 1283,
    "thoughtsTokenCount": 174,
    "totalTokenCount": 2031,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 14}, {"modality": "IMAGE", "tokenCount": 560}],
    "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 1120}],
}


def test_usage_and_cost_in_openais_terms() -> None:
    [event] = data(play(job(PRO), {**candidate(part(A)), "usageMetadata": USAGE}))
    assert event["usage"] == {
        "total_tokens": 2031,
        "input_tokens": 574,
        "output_tokens": 1457,
        "input_tokens_details": {"text_tokens": 14, "image_tokens": 560},
        "output_tokens_details": {"text_tokens": 337, "image_tokens": 1120},
    }
    assert event["cost"] == round((574 * 2 + 337 * 12 + 1120 * 120) / 1e6, 6)


def test_jobs_side_by_side_are_one_answer() -> None:
    answer = {**candidate({"text": "One."}, part(A)), "usageMetadata": USAGE}
    runs = [play(job(PRO, first=first, of=2), answer) for first in (0, 1)]
    together = whole(runs)
    assert len(together["data"]) == 2
    assert (together["usage"]["total_tokens"], together["usage"]["input_tokens_details"]["image_tokens"]) == (
        4062,
        1120,
    )
    assert together["cost"] == 2 * data(runs[0])[0]["cost"]
    assert together["text"] == "One.\nOne."
    assert [one["index"] for one in together["parts"] if one["type"] == "image"] == [0, 1]


def test_the_size_and_format_are_those_of_the_file() -> None:
    [event] = data(play(job(PRO, size="4096x4096", output_format="jpeg"), candidate(part(PICTURE.decode()))))
    assert (event["size"], event["output_format"], event["quality"]) == ("1x1", "png", "auto")


# -------------------------------------------------------------------------------------------------------------- reasons

BLOCKED: Final = frozenset(
    {"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT"}
    | {"IMAGE_RECITATION", "MODEL_ARMOR", "ESCALATION"}
)
REFUSED: Final = frozenset({"LANGUAGE", "MISSING_THOUGHT_SIGNATURE", "PUP_LIMITED_DISABLED"})


@pytest.mark.parametrize("reason", [*(member.value for member in types.FinishReason), "SOMETHING_NEW"])
@pytest.mark.parametrize("content", [{"role": "model"}, {"parts": None}, None])
def test_every_reason_to_finish_is_told(reason: str, content: object) -> None:
    answer = {"candidates": [{"content": content, "finishReason": reason}], "usageMetadata": USAGE}
    expected = ("moderation_blocked", 400) if reason in BLOCKED else ("no_image", 502)
    expected = ("provider_refused", 400) if reason in REFUSED else expected
    for run in (play(job(PRO), answer), play(job(PRO, stream=True), [answer])):
        error = told(run)
        assert (error.code, error.status, error.provider_code, error.charged) == (*expected, reason, True)


@pytest.mark.parametrize("reason", [*(member.value for member in types.BlockedReason), "SOMETHING_NEW"])
def test_every_reason_to_block_is_told(reason: str) -> None:
    answer = {"promptFeedback": {"blockReason": reason}, "usageMetadata": {}}
    for run in (play(job(PRO), answer), play(job(PRO, stream=True), [answer])):
        error = told(run)
        assert (error.code, error.status, error.provider_code) == ("moderation_blocked", 400, reason)


@pytest.mark.parametrize("answer", [{}, {"candidates": None}, {"candidates": []}, {"usageMetadata": USAGE}])
def test_an_answer_without_candidates_has_no_image(answer: dict[str, object]) -> None:
    assert told(play(job(PRO), answer)).code == "no_image"


def test_words_alone_are_told() -> None:
    run = play(job(PRO), candidate({"text": "I cannot draw that."}, finishReason="STOP"))
    assert run.error is not None
    assert (run.error.code, run.error.message) == ("no_image", "I cannot draw that.")


def test_a_filter_is_known_by_its_code() -> None:
    message = "The output could not be shown. Support code: 42876398."
    run = play(job(PRO), {"candidates": [{"finishReason": "OTHER", "finishMessage": message}]})
    assert told(run).code == "moderation_blocked"


@pytest.mark.parametrize(
    ("status", "error", "code", "retry_after"),
    [
        (400, {"status": "INVALID_ARGUMENT", "message": "Bad."}, "INVALID_ARGUMENT", None),
        (404, {"status": "NOT_FOUND"}, "NOT_FOUND", None),
        (429, {"status": "RESOURCE_EXHAUSTED", "details": [{"retryDelay": "12.5s"}]}, "RESOURCE_EXHAUSTED", "12"),
        (400, {"status": "INVALID_ARGUMENT", "details": [{"reason": "API_KEY_INVALID"}]}, "provider_auth", None),
        (403, {"status": "PERMISSION_DENIED"}, "provider_auth", None),
        (503, {"status": "UNAVAILABLE"}, "UNAVAILABLE", None),
    ],
)
def test_statuses(status: int, error: dict[str, object], code: str, retry_after: str | None) -> None:
    run = play(job(PRO), {"error": {"code": status, **error}}, status=status)
    assert run.error is not None
    assert (run.error.code, run.error.retry_after) == (code, retry_after)
    array = play(job(PRO, stream=True), {"error": {"code": status, **error}}, status=200)
    assert array.error is not None
    assert array.error.code == code
