"""Providers with a queue, over real sockets: submissions once, polls, cancellations, refusals and the log."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
import orjson
import pytest
from PIL import Image
from structlog.testing import capture_logs

from streamproxy.simulator import pictures
from streamproxy.simulator.received import Received
from tests.e2e.test_wires import KEY, MODELS, PNG, Setup, wired
from tests.support.proxy import BOUND, PROMPT, events, until

pytestmark = pytest.mark.anyio


@dataclass(frozen=True, slots=True)
class Fault:
    """What a fault of a queue is to the caller: status, code, the provider's own code, and requests for work sent."""

    status: int
    code: str
    provider_code: str | None = None
    posts: int = 1
    before_head: bool = False


FAULTS: Final[Mapping[tuple[str, str], Fault]] = {
    ("fal", "submit-429"): Fault(429, "rate_limit_exceeded", before_head=True),
    ("fal", "key"): Fault(502, "provider_auth", before_head=True),
    ("fal", "unknown"): Fault(404, "model_not_found", before_head=True),
    ("fal", "foreign"): Fault(502, "foreign_host"),
    ("fal", "failed"): Fault(502, "provider_failed", "internal_error"),
    ("fal", "flagged"): Fault(400, "moderation_blocked", "content_policy_violation"),
    ("fal", "nsfw"): Fault(400, "moderation_blocked", "has_nsfw_concepts"),
    ("bfl", "submit-429"): Fault(429, "rate_limit_exceeded", before_head=True),
    ("bfl", "no-credits"): Fault(402, "insufficient_quota", before_head=True),
    ("bfl", "key"): Fault(502, "provider_auth", before_head=True),
    ("bfl", "unknown"): Fault(404, "model_not_found", before_head=True),
    ("bfl", "foreign"): Fault(502, "foreign_host"),
    ("bfl", "lost"): Fault(502, "provider_failed", "not_found"),
    ("bfl", "error"): Fault(502, "provider_failed", "Error"),
    ("bfl", "no-result"): Fault(502, "no_image", "Ready"),
    ("bfl", "request-moderated"): Fault(400, "moderation_blocked", "Request Moderated"),
    ("bfl", "content-moderated"): Fault(400, "moderation_blocked", "Content Moderated"),
    ("replicate", "submit-429"): Fault(429, "rate_limit_exceeded", before_head=True),
    ("replicate", "no-credits"): Fault(402, "insufficient_quota", before_head=True),
    ("replicate", "key"): Fault(502, "provider_auth", before_head=True),
    ("replicate", "unknown"): Fault(404, "model_not_found", before_head=True),
    ("replicate", "foreign"): Fault(502, "foreign_host"),
    ("replicate", "lost"): Fault(502, "provider_failed", "not_found"),
    ("replicate", "nsfw"): Fault(400, "moderation_blocked", "nsfw"),
    ("replicate", "sensitive"): Fault(400, "moderation_blocked", "E005"),
    ("replicate", "failed"): Fault(502, "provider_failed", "failed"),
    ("replicate", "aborted"): Fault(502, "provider_failed", "aborted"),
    ("replicate", "canceled"): Fault(502, "provider_failed", "canceled"),
    ("replicate", "no-output"): Fault(502, "no_image", "succeeded"),
    ("stability", "submit-429"): Fault(429, "rate_limit_exceeded", before_head=True),
    ("stability", "no-credits"): Fault(402, "payment_required", before_head=True),
    ("stability", "key"): Fault(502, "provider_auth", before_head=True),
    ("bedrock", "throttled"): Fault(429, "ThrottlingException", before_head=True),
    ("bedrock", "key"): Fault(502, "provider_auth", before_head=True),
    ("bedrock", "unknown"): Fault(404, "ResourceNotFoundException", before_head=True),
    ("ideogram", "submit-429"): Fault(429, "rate_limit_exceeded", before_head=True),
    ("ideogram", "no-credits"): Fault(402, "insufficient_funds", before_head=True),
    ("ideogram", "key"): Fault(502, "provider_auth", before_head=True),
    ("luma", "submit-429"): Fault(429, "rate_limit_exceeded", before_head=True),
    ("luma", "no-credits"): Fault(402, "insufficient_quota", before_head=True),
    ("luma", "key"): Fault(502, "provider_auth", before_head=True),
    ("luma", "lost"): Fault(502, "provider_failed", "not_found"),
    ("luma", "failed"): Fault(502, "provider_failed", "failed"),
    ("luma", "moderated"): Fault(400, "moderation_blocked", "moderation"),
    ("luma", "no-result"): Fault(502, "no_image", "completed"),
    ("mai", "submit-429"): Fault(429, "RateLimitReached", before_head=True),
    ("mai", "key"): Fault(502, "provider_auth", before_head=True),
    ("mai", "unknown"): Fault(404, "DeploymentNotFound", before_head=True),
    ("dashscope", "submit-429"): Fault(429, "Throttling.RateQuota", before_head=True),
    ("dashscope", "no-credits"): Fault(402, "Arrearage", before_head=True),
    ("dashscope", "key"): Fault(502, "provider_auth", before_head=True),
    ("dashscope", "unknown"): Fault(404, "ModelNotFound", before_head=True),
    ("dashscope", "under-200"): Fault(422, "InvalidParameter", before_head=True),
    ("dashscope", "lost"): Fault(502, "provider_failed", "not_found"),
    ("dashscope", "failed"): Fault(502, "provider_failed", "InternalError"),
    ("dashscope", "flagged"): Fault(400, "moderation_blocked", "DataInspectionFailed"),
    ("dashscope", "cancelled"): Fault(502, "provider_failed", "CANCELED"),
    ("openrouter", "submit-429"): Fault(429, "rate_limit_exceeded", before_head=True),
    ("openrouter", "no-credits"): Fault(402, "insufficient_quota", before_head=True),
    ("openrouter", "key"): Fault(502, "provider_auth", before_head=True),
    ("openrouter", "under-200"): Fault(402, "insufficient_quota", before_head=True),
    ("fireworks", "submit-429"): Fault(429, "rate_limit_exceeded", before_head=True),
    ("fireworks", "no-credits"): Fault(412, "PRECONDITION_FAILED", before_head=True),
    ("fireworks", "key"): Fault(502, "provider_auth", before_head=True),
    ("fireworks", "unknown"): Fault(404, "NOT_FOUND", before_head=True),
    ("cloudflare", "submit-429"): Fault(429, "3036", before_head=True),
    ("cloudflare", "key"): Fault(502, "provider_auth", before_head=True),
    ("cloudflare", "unknown"): Fault(404, "7003", before_head=True),
    ("cloudflare", "under-200"): Fault(422, "5006", before_head=True),
    ("huggingface", "submit-429"): Fault(429, "rate_limit_exceeded", before_head=True),
    ("huggingface", "no-credits"): Fault(402, "insufficient_quota", before_head=True),
    ("huggingface", "key"): Fault(502, "provider_auth", before_head=True),
    ("huggingface", "unknown"): Fault(404, "model_not_found", before_head=True),
    ("huggingface", "loading"): Fault(503, "provider_failed", before_head=True),
    ("huggingface", "under-200"): Fault(422, "provider_refused", before_head=True),
    ("leonardo", "submit-429"): Fault(429, "too-many-requests", before_head=True),
    ("leonardo", "no-credits"): Fault(402, "insufficient-credits", before_head=True),
    ("leonardo", "key"): Fault(502, "provider_auth", before_head=True),
    ("leonardo", "unknown"): Fault(400, "unexpected", before_head=True),
    ("leonardo", "lost"): Fault(502, "provider_failed", "not_found"),
    ("leonardo", "failed"): Fault(502, "provider_failed", "FAILED"),
    ("runware", "submit-429"): Fault(429, "rateLimitExceeded", before_head=True),
    ("runware", "no-credits"): Fault(402, "insufficientCredits", before_head=True),
    ("runware", "key"): Fault(502, "provider_auth", before_head=True),
    ("runware", "unknown"): Fault(400, "invalidModel", before_head=True),
    ("runware", "under-200"): Fault(422, "invalidParameter", before_head=True),
    ("responses", "submit-429"): Fault(429, "rate_limit_exceeded", before_head=True),
    ("responses", "key"): Fault(502, "provider_auth", before_head=True),
    ("responses", "unknown"): Fault(404, "model_not_found", before_head=True),
    ("automatic1111", "sampler"): Fault(404, "model_not_found", before_head=True),
    ("automatic1111", "invalid"): Fault(422, "value_error", before_head=True),
}
FAULTY: Final = {
    "fal": "fal/fal-ai/fault-{}",
    "bfl": "bfl/fault-{}",
    "replicate": "replicate/sim/fault-{}",
    "stability": "stability/fault-{}",
    "bedrock": "bedrock/stability.fault-{}",
    "nova": "nova/amazon.fault-{}",
    "ideogram": "ideogram/ideogram-v3-fault-{}",
    "luma": "luma/fault-{}",
    "mai": "mai/fault-{}",
    "dashscope": "dashscope/wan-fault-{}",
    "openrouter": "openrouter/sim/fault-{}",
    "fireworks": "fireworks/fault-{}",
    "cloudflare": "cloudflare/@cf/fault-{}",
    "huggingface": "huggingface/sim/fault-{}",
    "leonardo": "leonardo/fault-{}",
    "runware": "runware/sim:fault-{}@1",
    "responses": "responses/fault-{}",
    "automatic1111": "automatic1111/fault-{}",
}
QUEUES: Final = pytest.mark.parametrize("wire", ["fal", "bfl", "replicate", "dashscope", "leonardo", "luma"])


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("wire", "fault"), FAULTS)
async def test_faults(wire: str, fault: str, stream: bool, tmp_path: Path) -> None:
    expected = FAULTS[wire, fault]
    async with wired(wire, tmp_path) as setup:
        answer = await _asked(setup, FAULTY[wire].format(fault), stream=stream)
        told: Any
        if expected.before_head or not stream:
            assert answer.status_code == expected.status, answer.text
            told = answer.json()["error"]
            assert (answer.headers.get("x-should-retry") == "false") is not expected.before_head
        else:
            told = events(answer.content)[-1].json["error"]
            assert told["status"] == expected.status
        assert told["code"] == expected.code, told
        assert told.get("provider_code") == expected.provider_code
        assert len(setup.posts) == expected.posts
        assert PROMPT not in answer.text
        assert KEY not in answer.text


async def _asked(setup: Setup, model: str, **members: object) -> Any:
    body = {"model": model, "prompt": PROMPT, **members}
    return await setup.proxy.client.post(f"{setup.proxy.url}/v1/images/generations", json=body)


@QUEUES
async def test_looks_that_fail_are_repeated(wire: str, tmp_path: Path) -> None:
    async with wired(wire, tmp_path) as setup:
        answer = await _asked(setup, FAULTY[wire].format("poll-503"))
        assert answer.status_code == 200, answer.text
        assert len(setup.posts) == 1


@QUEUES
async def test_a_result_that_is_gone_keeps_its_url(wire: str, tmp_path: Path) -> None:
    async with wired(wire, tmp_path) as setup:
        [image] = (await _asked(setup, FAULTY[wire].format("gone"))).json()["data"]
        assert image["b64_json"] is None
        assert "/files/missing" in image["url"]


def _cancels(got: Received) -> bool:
    return got.method == "DELETE" or "/cancel" in got.target


CANCELS: Final = {"fal": "PUT", "replicate": "POST", "dashscope": "POST", "luma": "DELETE"}


@pytest.mark.parametrize("wire", CANCELS)
async def test_a_caller_who_leaves_cancels_the_job(wire: str, tmp_path: Path) -> None:
    async with wired(wire, tmp_path) as setup:
        with anyio.move_on_after(1.0):
            await _asked(setup, FAULTY[wire].format("waits" if wire == "dashscope" else "never"))
        await setup.server.wait_until(lambda server: any(map(_cancels, server.received)), BOUND)
        cancels = [got.method for got in setup.server.received if _cancels(got)]
        assert cancels == [CANCELS[wire]]


@QUEUES
async def test_a_jobs_id_is_in_the_log(wire: str, tmp_path: Path) -> None:
    async with wired(wire, tmp_path) as setup:
        with capture_logs() as logs:
            answer = await _asked(setup, MODELS[wire])
            await until(lambda: any(line["event"] == "generation" for line in logs))
        [line] = [line for line in logs if line["event"] == "job"]
        assert (line["provider"], line["request_id"]) == (wire, answer.headers["x-request-id"])
        looks = [got.target for got in setup.server.received if got.method == "GET" and "/files/" not in got.target]
        assert looks
        assert all(line["job"] in target for target in looks)


MASKED: Final = {
    "bedrock": "bedrock/us.stability.stable-image-inpaint-v1:0",
    "nova": "amazon.nova-canvas-v1:0",
    "ideogram": "ideogram-v3",
    "fal": "fal/fal-ai/flux-general/inpainting",
    "bfl": "bfl/flux-pro-1.0-fill",
    "automatic1111": "automatic1111/default",
    "replicate": "replicate/stability-ai/sdxl",
    "runware": "runware/runware:101@1",
    "responses": "responses/gpt-image-2",
}


@pytest.mark.parametrize("wire", MASKED)
async def test_a_mask_is_white_where_it_was_transparent(wire: str, tmp_path: Path) -> None:
    """The left half of the picture is to be made anew: there alone it differs from what was sent.

    Responses take OpenAI's own kind as it is.
    """
    mask = Image.new("RGBA", (64, 48), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 32, 48))
    out = io.BytesIO()
    mask.save(out, "png")
    async with wired(wire, tmp_path) as setup:
        files = {"image": ("in.png", PNG, "image/png"), "mask": ("mask.png", out.getvalue(), "image/png")}
        data = {"model": MASKED[wire], "prompt": PROMPT, "size": "64x48"}
        answer = await setup.proxy.client.post(f"{setup.proxy.url}/v1/images/edits", files=files, data=data)
        assert answer.status_code == 200, answer.text
        assert "mask" not in answer.headers.get("streamproxy-not-applied", "")
        [image] = answer.json()["data"]
        made = Image.open(io.BytesIO(pictures.from_data_url(f"data:;base64,{image['b64_json']}"))).convert("RGB")
        given = Image.open(io.BytesIO(PNG)).convert("RGB").resize(made.size)
        right, left = (made.width * 3 // 4, made.height // 2), (made.width // 8, made.height // 8)
        assert _apart(made.getpixel(right), given.getpixel(right)) < 40
        assert max(_apart(made.getpixel(at), given.getpixel(at)) for at in (left, (left[0], made.height - 2))) > 40


def _apart(one: Any, other: Any) -> int:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))


async def test_a_fast_app_of_fal_is_one_exchange(tmp_path: Path) -> None:
    async with wired("fal", tmp_path) as setup:
        answer = await _asked(setup, "fal/fal-ai/flux/schnell", n=2, size="512x512")
        assert len(answer.json()["data"]) == 2
        assert answer.json()["cost"] == 0.006
        targets = [got.target for got in setup.server.received if "/files/" not in got.target]
        assert targets == ["/fal/fal-ai/flux/schnell"]


async def test_an_app_of_fal_that_streams(tmp_path: Path) -> None:
    async with wired("fal", tmp_path) as setup:
        answer = await _asked(setup, "fal/fal-ai/flux/dev", stream=True, partial_images=2, size="512x512")
        kinds = [event.event.partition(".")[2] for event in events(answer.content)]
        assert kinds == ["partial_image", "partial_image", "completed"]
        assert setup.posts == ["/fal/fal-ai/flux/dev/stream"]


async def test_one_blackened_picture_of_several(tmp_path: Path) -> None:
    async with wired("fal", tmp_path) as setup:
        answer = await _asked(setup, "fal/fal-ai/fault-nsfw", n=2, stream=True)
        completed, error = events(answer.content)
        assert (completed.event, completed.json["image_index"]) == ("image_generation.completed", 1)
        assert orjson.loads(error.data)["error"]["code"] == "moderation_blocked"
        assert len(setup.posts) == 1


async def test_a_fast_model_of_replicate_is_one_exchange(tmp_path: Path) -> None:
    async with wired("replicate", tmp_path) as setup:
        answer = await _asked(setup, "replicate/black-forest-labs/flux-schnell", n=2, size="1024x1024")
        assert len(answer.json()["data"]) == 2
        assert answer.json()["cost"] == 0.006
        assert [got.method for got in setup.server.received if "/files/" not in got.target] == ["POST"]


async def test_drafts_of_a_prediction(tmp_path: Path) -> None:
    async with wired("replicate", tmp_path) as setup:
        answer = await _asked(setup, "replicate/sim/sketcher", stream=True, partial_images=2)
        kinds = [event.event.partition(".")[2] for event in events(answer.content)]
        assert kinds == ["partial_image", "partial_image", "completed"]
        assert len(setup.posts) == 1


async def test_a_large_input_of_replicate_is_uploaded(tmp_path: Path) -> None:
    large = pictures.encode(pictures.draw("a large one", 1024, 1024), "png")
    assert len(large) > 256_000
    async with wired("replicate", tmp_path) as setup:
        files = {"image": ("in.png", large, "image/png")}
        data = {"model": MODELS["replicate"], "prompt": PROMPT}
        answer = await setup.proxy.client.post(f"{setup.proxy.url}/v1/images/edits", files=files, data=data)
        assert answer.status_code == 200, answer.text
        upload, prediction = [got for got in setup.server.received if got.method == "POST"]
        assert (upload.target, upload.body_size > len(large)) == ("/replicate/v1/files", True)
        assert b"/replicate/v1/files/" in prediction.body


@pytest.mark.parametrize("name", ["x-fal-no-retry", "x-app-fal-disable-fallback", "cancel-after"])
async def test_headers_about_money_are_the_proxys_own(name: str, tmp_path: Path) -> None:
    async with wired("fal", tmp_path) as setup:
        answer = await _asked(setup, MODELS["fal"], extra_headers={name: "0"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "reserved_header")
        assert setup.posts == []


async def test_a_draft_is_shown_while_the_request_is_under_way(tmp_path: Path) -> None:
    async with wired("automatic1111", tmp_path) as setup:
        body = {"model": MODELS["automatic1111"], "prompt": PROMPT, "stream": True, "partial_images": 3}
        answer = await setup.proxy.client.post(f"{setup.proxy.url}/v1/images/generations", json=body)
        kinds = [event.event.partition(".")[2] for event in events(answer.content)]
        assert kinds == ["partial_image", "partial_image", "completed"]
        assert setup.posts == ["/a1111/sdapi/v1/txt2img"]
        asked, *looks = [orjson.loads(got.body) for got in setup.server.received]
        assert {look["id_task"] for look in looks} == {asked["force_task_id"]}


async def test_one_refused_picture_of_several(tmp_path: Path) -> None:
    async with wired("dashscope", tmp_path) as setup:
        answer = await _asked(setup, FAULTY["dashscope"].format("partly"), n=2, stream=True)
        completed, error = events(answer.content)
        assert (completed.event, completed.json["image_index"]) == ("image_generation.completed", 0)
        assert orjson.loads(error.data)["error"]["code"] == "moderation_blocked"
        assert len(setup.posts) == 1


async def test_words_instead_of_a_picture(tmp_path: Path) -> None:
    async with wired("dashscope", tmp_path) as setup:
        answer = await _asked(setup, "dashscope/fault-text", stream=True)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["message"]) == (502, "no_image", "I cannot.")


@pytest.mark.parametrize("model", ["fault-json", "creative", "inpaint"])
async def test_bytes_json_and_what_comes_later(model: str, tmp_path: Path) -> None:
    async with wired("stability", tmp_path) as setup:
        files = {"image": ("in.png", PNG, "image/png")}
        data = {"model": f"stability/{model}", "prompt": PROMPT}
        answer = await setup.proxy.client.post(f"{setup.proxy.url}/v1/images/edits", files=files, data=data)
        assert answer.status_code == 200, answer.text
        assert len(setup.posts) == 1


@pytest.mark.parametrize(("fault", "own"), [("blocked", "content_moderation"), ("filtered", "CONTENT_FILTERED")])
async def test_what_stability_refuses(fault: str, own: str, tmp_path: Path) -> None:
    async with wired("stability", tmp_path) as setup:
        answer = await _asked(setup, FAULTY["stability"].format(fault), stream=True)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["provider_code"]) == (400, "moderation_blocked", own)
        assert len(setup.posts) == 1


REFUSED: Final = [
    ("fireworks", "fault-filtered", "CONTENT_FILTERED"),
    ("cloudflare", "@cf/fault-blocked", "3030"),
    ("leonardo", "fault-blocked", "content-moderation"),
    ("runware", "sim:fault-blocked@1", "providerContentModeration"),
    ("responses", "fault-blocked", "moderation_blocked"),
    ("responses", "fault-refusal", "refusal"),
    ("responses", "fault-filtered", "content_filter"),
]


@pytest.mark.parametrize(("wire", "model", "own"), REFUSED)
async def test_what_is_refused_for_what_it_shows(wire: str, model: str, own: str, tmp_path: Path) -> None:
    async with wired(wire, tmp_path) as setup:
        answer = await _asked(setup, f"{wire}/{model}", stream=True)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["provider_code"]) == (400, "moderation_blocked", own)
        assert len(setup.posts) == 1


KONTEXT: Final = [
    ("moderated", 400, "moderation_blocked", "Content Moderated"),
    ("error", 502, "provider_failed", "Error"),
    ("no-result", 502, "no_image", "Ready"),
]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("fault", "status", "code", "own"), KONTEXT)
async def test_jobs_of_kontext(fault: str, status: int, code: str, own: str, stream: bool, tmp_path: Path) -> None:
    async with wired("fireworks", tmp_path) as setup:
        answer = await _asked(setup, f"fireworks/flux-kontext-fault-{fault}", stream=stream)
        told: Any = events(answer.content)[-1].json["error"] if stream else answer.json()["error"]
        assert (told["status"] if stream else answer.status_code) == status
        assert (told["code"], told["provider_code"]) == (code, own)
        assert len(setup.posts) == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_beside_pictures(stream: bool, tmp_path: Path) -> None:
    async with wired("runware", tmp_path) as setup:
        answer = await _asked(setup, FAULTY["runware"].format("partly"), n=2, stream=stream)
        if stream:
            completed, error = events(answer.content)
            assert (completed.event, completed.json["image_index"]) == ("image_generation.completed", 0)
            told = orjson.loads(error.data)["error"]
        else:
            told = answer.json()["error"]
        assert (told["code"], told["provider_code"]) == ("provider_failed", "timeoutProvider")
        assert len(setup.posts) == 1


RESPONSES: Final = [
    ("text", 502, "no_image", None, False),
    ("incomplete", 502, "provider_failed", "max_output_tokens", False),
    ("failed", 502, "server_error", None, False),
    ("late", 400, "moderation_blocked", "moderation_blocked", True),
]


@pytest.mark.parametrize(("fault", "status", "code", "own", "late"), RESPONSES)
async def test_responses_without_a_picture(
    fault: str, status: int, code: str, own: str | None, late: bool, tmp_path: Path
) -> None:
    async with wired("responses", tmp_path) as setup:
        answer = await _asked(setup, FAULTY["responses"].format(fault), stream=True, partial_images=2)
        told: Any = events(answer.content)[-1].json["error"] if late else answer.json()["error"]
        assert (told["status"] if late else answer.status_code) == status
        assert (told["code"], told.get("provider_code")) == (code, own)
        assert len(setup.posts) == 1


async def test_what_a_response_is_asked(tmp_path: Path) -> None:
    async with wired("responses", tmp_path) as setup:
        answer = await _asked(setup, MODELS["responses"], size="256x256", quality="low", stream=True, partial_images=1)
        last = events(answer.content)[-1].json
        assert (last["size"], last["usage"]["output_tokens"], last["cost"]) == ("256x256", 1056, None)  # type: ignore[index]
        asked = orjson.loads(setup.server.received[0].body)
        [tool] = asked["tools"]
        assert (asked["model"], asked["store"], asked["tool_choice"]) == ("gpt-5", False, {"type": "image_generation"})
        assert (tool["model"], tool["size"], tool["partial_images"]) == ("gpt-image-2", "256x256", 1)


PROGRESS: Final = {
    "fal": "fal/fal-ai/fault-never",
    "bfl": "bfl/fault-never",
    "replicate": "replicate/sim/fault-never",
    "fireworks": "fireworks/flux-kontext-fault-never",
}


@pytest.mark.parametrize("wire", PROGRESS)
async def test_progress_is_in_the_status_and_in_the_log(wire: str, tmp_path: Path) -> None:
    """And in no event, which SDKs would not know."""
    async with wired(wire, tmp_path) as setup:
        body = {"model": PROGRESS[wire], "prompt": PROMPT}
        url = f"{setup.proxy.url}/v1/images/generations"
        with capture_logs() as logs:
            made = await setup.proxy.client.post(url, json=body, headers={"prefer": "respond-async"})
            place = setup.proxy.url + made.json()["status_url"]
            with anyio.fail_after(BOUND):
                while (told := (await setup.proxy.client.get(place)).json()["progress"]) is None:
                    pass
            line = next(line for line in logs if line["event"] == "progress")
        assert told.keys() <= {"fraction", "queue"}
        assert all(value >= 0 for value in told.values())
        assert line["provider"] == wire
        assert line.keys() & {"fraction", "queue"}
        assert (await setup.proxy.client.get(place)).json()["data"] == []
        await setup.proxy.client.delete(setup.proxy.url + made.json()["cancel_url"])
        with anyio.fail_after(BOUND):
            while (after := (await setup.proxy.client.get(place)).json())["status"] != "cancelled":
                pass
        assert after["progress"] is None


ENDINGS: Final = [
    ("flagged", 400, "moderation_blocked", "violence", 1),
    ("overloaded", 502, "provider_failed", None, 1),
    ("empty", 502, "no_image", None, 1),
    ("chat-blocked", 400, "moderation_blocked", "IMAGE_SAFETY", 2),
    ("chat-text", 502, "no_image", "STOP", 2),
]


@pytest.mark.parametrize(("fault", "status", "code", "own", "posts"), ENDINGS)
async def test_openrouters_refusals(
    fault: str, status: int, code: str, own: str | None, posts: int, tmp_path: Path
) -> None:
    async with wired("openrouter", tmp_path) as setup:
        answer = await _asked(setup, FAULTY["openrouter"].format(fault))
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error.get("provider_code")) == (status, code, own)
        assert len(setup.posts) == posts


@pytest.mark.parametrize("stream", [True, False])
async def test_a_model_of_chats(stream: bool, tmp_path: Path) -> None:
    """The images endpoint does not know it, which costs nothing."""
    async with wired("openrouter", tmp_path) as setup:
        answer = await _asked(setup, "openrouter/sim/chat", stream=stream, quality="high")
        assert answer.status_code == 200, answer.text
        assert [target.rpartition("/v1")[2] for target in setup.posts] == ["/images", "/chat/completions"]
        assert answer.headers["streamproxy-not-applied"] == "quality"
        said = events(answer.content)[-1].json if stream else answer.json()
        assert (said["cost"], said["text"]) == (0.0387131, "Here you go: ")


@pytest.mark.parametrize(("fault", "code"), [("memory", "OutOfMemoryError"), ("empty", "no_image")])
async def test_a_failure_at_the_end_of_the_request(fault: str, code: str, tmp_path: Path) -> None:
    async with wired("automatic1111", tmp_path) as setup:
        answer = await _asked(setup, FAULTY["automatic1111"].format(fault))
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, code)
        assert len(setup.posts) == 1


@pytest.mark.parametrize("fault", ["unwatched", "unknown-task", "no-drafts"])
async def test_a_server_without_drafts_makes_the_picture(fault: str, tmp_path: Path) -> None:
    async with wired("automatic1111", tmp_path) as setup:
        answer = await _asked(setup, FAULTY["automatic1111"].format(fault), stream=True, partial_images=3)
        assert [event.event for event in events(answer.content)] == ["image_generation.completed"]
        assert len(setup.posts) == 1


def _looks(received: Iterable[Received]) -> int:
    return sum(got.target.endswith("/internal/progress") for got in received)


@pytest.mark.parametrize(("fault", "interrupts"), [("never", 1), ("queued", 0)])
async def test_only_ones_own_task_is_interrupted(fault: str, interrupts: int, tmp_path: Path) -> None:
    """One that still waits is left alone, for what runs is another's."""
    async with wired("automatic1111", tmp_path) as setup:
        with anyio.move_on_after(BOUND):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(_asked, setup, FAULTY["automatic1111"].format(fault)))
                await setup.server.wait_until(lambda server: _looks(server.received) >= 2, BOUND)
                tasks.cancel_scope.cancel()
        if interrupts:
            await setup.server.wait_until(lambda server: server.received[-1].target.endswith("/interrupt"), BOUND)
        await until(lambda: setup.server.open_connections <= 1)
        assert sum(target.endswith("/interrupt") for target in setup.posts) == interrupts


@pytest.mark.parametrize("stream", [True, False])
async def test_an_unsafe_picture_of_several(stream: bool, tmp_path: Path) -> None:
    async with wired("ideogram", tmp_path, stream_n=True) as setup:
        answer = await _asked(setup, FAULTY["ideogram"].format("half-unsafe"), n=2, stream=stream)
        if stream:
            completed, last = events(answer.content)
            assert (completed.event, completed.json["image_index"]) == ("image_generation.completed", 1)
            error = orjson.loads(last.data)["error"]
            assert error["charged"] is True
        else:
            assert (answer.status_code, answer.headers["x-should-retry"]) == (400, "false")
            error = answer.json()["error"]
        assert (error["code"], error["provider_code"]) == ("moderation_blocked", "is_image_safe")
        assert len(setup.posts) == 1


@pytest.mark.parametrize(
    ("fault", "status", "code", "own"),
    [("unsafe", 400, "moderation_blocked", "is_image_safe"), ("blocked", 400, "moderation_blocked", "422")],
)
async def test_what_ideogram_refuses(fault: str, status: int, code: str, own: str, tmp_path: Path) -> None:
    async with wired("ideogram", tmp_path) as setup:
        answer = await _asked(setup, FAULTY["ideogram"].format(fault))
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["provider_code"]) == (status, code, own)
        assert len(setup.posts) == 1


async def test_ideograms_later_version_and_another_wording(tmp_path: Path) -> None:
    async with wired("ideogram", tmp_path) as setup:
        later = await _asked(setup, "ideogram-4.5", size="1536x1024")
        assert later.status_code == 200, later.text
        assert later.json()["cost"] is None
        [image] = (await _asked(setup, FAULTY["ideogram"].format("rewritten"))).json()["data"]
        assert image["revised_prompt"] == "A lighthouse, in other words."
        assert (await _asked(setup, "ideogram-v3-turbo")).json()["cost"] == 0.03


@pytest.mark.parametrize("stream", [True, False])
async def test_luma_edits_an_image_at_a_url(stream: bool, tmp_path: Path) -> None:
    async with wired("luma", tmp_path) as setup:
        url = "https://pictures.example/1.png"
        made = await _asked(setup, MODELS["luma"], image=url, stream=stream, output_format="png")
        assert made.status_code == 200, made.text
        if stream:
            [event] = events(made.content)
            assert (event.event, event.json["output_format"]) == ("image_edit.completed", "png")
        asked = orjson.loads(setup.server.received[0].body)
        assert asked["modify_image_ref"] == {"url": url}
        refused = await _asked(setup, MODELS["luma"], image=f"data:image/png;base64,{'iVBORw0KGgo='}")
        assert refused.status_code == 400
        assert len(setup.posts) == 1
