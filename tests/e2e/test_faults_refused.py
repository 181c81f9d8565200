"""Providers that refuse, and answers without an image: the caller's error, and what it must not contain."""

from __future__ import annotations

import json
from collections.abc import Callable

import anyio
import pytest
from structlog.testing import capture_logs

from streamproxy.simulator.script import Script, Send, error_answer, head, json_answer
from streamproxy.simulator.server import Received, serve
from tests.support.faults import IMAGE, IMAGE_BODY, STREAMED, Held, Refusal, provider
from tests.support.provider import failed
from tests.support.proxy import BOUND, PROMPT, events, no_leaks, running_proxy, until

pytestmark = pytest.mark.anyio

SHAPED = "sk-proj-0123456789abcdefghijklmnopqrstuvwxyz"
SHAPELESS = "correct horse battery staple".replace(" ", ".")
AUTH = {"auth_header": "authorization", "auth_scheme": "Bearer "}


@STREAMED
@pytest.mark.parametrize("key", [SHAPED, SHAPELESS])
@pytest.mark.parametrize("status", [401, 403, 400, 429, 500])
async def test_a_provider_that_repeats_the_configured_key(
    status: int, key: str, stream: bool, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    expected = {
        401: Refusal(502, "provider_auth", "provider_auth", charged=False),
        403: Refusal(502, "provider_auth", "provider_auth", charged=False),
        400: Refusal(400, "bad", "provider_4xx", charged=False),
        429: Refusal(429, "bad", "provider_429", charged=False),
        500: Refusal(502, "bad", "provider_5xx", token="provider_failed"),
    }[status]
    script = error_answer(status, f"Incorrect key: {key}. Prompt ok.", code="bad", headers=(("x-request-id", key),))
    async with (
        no_leaks(),
        serve(lambda _: script) as server,
        running_proxy(server.url, provider={"credential": "env:KEY", **AUTH}, environ={"KEY": key}) as proxy,
    ):
        answer = await proxy.generate(stream=stream)
        message = await expected.check(proxy, answer)
        assert server.received[0].header("authorization") == f"Bearer {key}"
        assert server.calls == 1
        assert status in (401, 403) or message == "Incorrect key: [redacted]. Prompt ok."
        metrics = (await proxy.client.get(f"{proxy.url}/metrics")).text
    logged = capsys.readouterr()
    seen = answer.text + repr(answer.headers) + metrics + logged.out + logged.err + caplog.text
    assert key not in seen
    assert PROMPT not in seen
    assert (logged.out + logged.err).count(" failure=") == 1


@STREAMED
async def test_a_key_is_found_wherever_a_provider_repeats_it(stream: bool) -> None:
    detail = [{"loc": ["body", SHAPELESS], "msg": SHAPELESS, "type": SHAPELESS}]
    error = {"message": SHAPELESS, "code": SHAPELESS, "moderation_details": {SHAPELESS: [SHAPELESS]}}
    refused = json_answer(400, {"error": error, "detail": detail, "errors": [SHAPELESS]}, (("Retry-After", SHAPELESS),))
    image = json_answer(200, IMAGE_BODY, (("x-request-id", SHAPELESS), ("x-ratelimit-limit", "7")))
    left = [refused, image]
    async with (
        no_leaks(),
        serve(lambda _: left.pop(0)) as server,
        running_proxy(server.url, provider={"credential": "env:KEY", **AUTH}, environ={"KEY": SHAPELESS}) as proxy,
    ):
        for status in (400, 200):
            answer = await proxy.generate(stream=stream)
            assert answer.status_code == status
            assert SHAPELESS not in answer.text + repr(answer.headers)
            assert "retry-after" not in answer.headers
        assert answer.headers["x-ratelimit-limit"] == "7"
        assert server.calls == 2


@STREAMED
@pytest.mark.parametrize("key", ["k", "none", "blocked"])
async def test_a_short_key_is_no_part_of_a_word(key: str, stream: bool) -> None:
    script = error_answer(400, f"Not {key}: blocked-ness is noneish.", type=key, param="k_y", code="moderation_blocked")
    async with (
        no_leaks(),
        serve(lambda _: script) as server,
        running_proxy(server.url, provider={"credential": "env:KEY", **AUTH}, environ={"KEY": key}) as proxy,
    ):
        answer = await proxy.generate(stream=stream)
        error = answer.json()["error"]
        assert (error["code"], error["param"], error["type"]) == ("moderation_blocked", "k_y", "[redacted]")
        assert error["message"].startswith("Not [redacted]: ")
        assert error["message"].endswith("ness is noneish.")


@STREAMED
async def test_a_path_that_the_provider_does_not_have_is_told(stream: bool) -> None:
    script = error_answer(404, "Invalid URL")
    async with (
        no_leaks(),
        serve(lambda _: script) as server,
        running_proxy(server.url, provider={"query": "api-version=2026-preview"}) as proxy,
    ):
        with capture_logs() as lines:
            answer = await proxy.generate(stream=stream)
            await until(lambda: any(line["event"] == "generation" for line in lines))
        assert answer.status_code == 404
        assert answer.json()["error"]["message"].startswith("Invalid URL (The provider was asked for /v1/images/gener")
        [line] = [line for line in lines if line["event"] == "generation"]
        assert line["path"] == "/v1/images/generations"
        assert "2026-preview" not in answer.text + repr(line)
        assert server.calls == 1


@STREAMED
@pytest.mark.parametrize("status", [401, 403])
async def test_a_callers_own_key_keeps_the_status(status: int, stream: bool) -> None:
    script = error_answer(status, f"Incorrect API key provided: {SHAPED}.", code="invalid_api_key")
    async with (
        no_leaks(),
        serve(lambda _: script) as server,
        running_proxy(server.url, provider={"credential": "caller", **AUTH}) as proxy,
    ):
        answer = await proxy.client.post(
            f"{proxy.url}/v1/images/generations",
            json={"model": "sim/gpt-image", "prompt": PROMPT, "stream": stream},
            headers={"authorization": f"Bearer {SHAPED}"},
        )
        refused = Refusal(status, "invalid_api_key", "provider_4xx", charged=False)
        message = await refused.check(proxy, answer)
        assert message.startswith("Incorrect API key provided: [redacted]")
        assert SHAPED not in answer.text
        assert server.received[0].header("authorization") == f"Bearer {SHAPED}"
        assert server.calls == 1


@STREAMED
async def test_a_rate_limit_passes_with_its_retry_after(stream: bool) -> None:
    script = error_answer(429, "Slow down.", type="requests", code="slow", headers=(("Retry-After", "7"),))
    async with provider(script) as (server, proxy):
        answer = await proxy.generate(stream=stream)
        assert await Refusal(429, "slow", "provider_429", charged=False).check(proxy, answer) == "Slow down."
        assert answer.headers["retry-after"] == "7"
        assert answer.json()["error"]["type"] == "requests"
        assert server.calls == 1


@STREAMED
async def test_a_moderation_refusal_is_kept_whole(stream: bool) -> None:
    error = {
        "message": "Your request was rejected by the safety system.",
        "type": "image_generation_user_error",
        "param": None,
        "code": "moderation_blocked",
        "moderation_details": {"moderation_stage": "input", "categories": ["violence"]},
    }
    async with provider(json_answer(400, {"error": error})) as (server, proxy):
        answer = await proxy.generate(stream=stream)
        await Refusal(400, "moderation_blocked", "provider_4xx", charged=False).check(proxy, answer)
        assert answer.json()["error"] == error
        assert server.calls == 1


@STREAMED
@pytest.mark.parametrize(
    ("given", "status", "retry_after"),
    [(500, 502, None), (502, 502, None), (503, 503, None), (503, 503, "1"), (504, 504, None), (599, 502, None)],
)
async def test_a_failing_provider_keeps_its_class(
    given: int, status: int, retry_after: str | None, stream: bool
) -> None:
    headers = (("Retry-After", retry_after),) if retry_after else ()
    script = error_answer(given, "Overloaded.", type="server_error", headers=headers)
    async with provider(script) as (server, proxy):
        answer = await proxy.generate(stream=stream)
        # A 503 with Retry-After is the provider's word that nothing has been processed.
        charged = retry_after is None
        await Refusal(status, "provider_failed", "provider_5xx", charged=charged).check(proxy, answer)
        assert answer.headers.get("retry-after") == retry_after
        assert server.calls == 1


def refusing(script: Script) -> Callable[[Received], Script]:
    return lambda received: script if b'"stream"' in received.body else IMAGE


UNKNOWN_STREAM = error_answer(400, "Unknown parameter: 'stream'.", param="stream", code="unknown_parameter")
RETRIED = {
    "param": UNKNOWN_STREAM,
    "partial-images": error_answer(400, "Not here.", param="partial_images"),
    "message": error_answer(400, "Streaming is not supported by this model."),
    "loc": json_answer(422, {"detail": [{"loc": ["body", "stream"], "msg": "Extra", "type": "extra_forbidden"}]}),
}
NOT_RETRIED = {
    "moderation": error_answer(400, "Your request was rejected.", code="moderation_blocked"),
    "another-param": error_answer(400, "Unknown parameter: 'size'.", param="size"),
    "another-loc": json_answer(422, {"detail": [{"loc": ["body", "size"], "msg": "no", "type": "extra_forbidden"}]}),
    "404": error_answer(404, "Streaming is not supported.", param="stream"),
    "429": error_answer(429, "Streaming is over its limit.", param="stream"),
    "500": error_answer(500, "Streaming failed.", param="stream"),
    "503": error_answer(503, "Streaming failed.", param="stream", headers=(("Retry-After", "1"),)),
}


@pytest.mark.parametrize("refusal", RETRIED)
async def test_a_refusal_to_stream_is_tried_once_without(refusal: str) -> None:
    async with (
        no_leaks(),
        serve(refusing(RETRIED[refusal])) as server,
        running_proxy(server.url) as proxy,
    ):
        answer = await proxy.generate(stream=True, partial_images=2)
        assert [event.event for event in events(answer.content)] == ["image_generation.completed"]
        assert events(answer.content)[0].json["b64_json"] == "aW1hZ2U="
        assert answer.headers["streamproxy-not-applied"] == "partial_images"
        assert server.calls == 2
        first, second = (json.loads(received.body) for received in server.received)
        assert first == {**second, "stream": True, "partial_images": 2}


@pytest.mark.parametrize("refusal", NOT_RETRIED)
async def test_any_other_refusal_is_final(refusal: str) -> None:
    async with (
        no_leaks(),
        serve(refusing(NOT_RETRIED[refusal])) as server,
        running_proxy(server.url) as proxy,
    ):
        assert (await proxy.generate(stream=True)).status_code in (400, 404, 422, 429, 502, 503)
        assert server.calls == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_second_refusal_is_final(stream: bool) -> None:
    async with provider(UNKNOWN_STREAM) as (server, proxy):
        answer = await proxy.generate(stream=stream)
        await Refusal(400, "unknown_parameter", "provider_4xx", charged=False).check(proxy, answer)
        assert server.calls == (2 if stream else 1)


DEEP = b"[" * 20_000 + b"]" * 20_000
BODIES = {
    "too-large": (b'{"data":[{"b64_json":"' + b"A" * 100_000 + b'"}]}', "response_body_size", "upstream_body"),
    "cut-json": (b'{"created":1,"data":[{"b64_json":"iVBORw0', "bad_json", "upstream_body"),
    "not-json": (b"{nothing}", "bad_json", "upstream_body"),
    "not-utf8": (b'{"data":[{"b64_json":"x"}],"note":"\xff"}', "bad_json", "upstream_body"),
    "too-deep": (
        b'{"data":[{"b64_json":"x"}],"x":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
        "bad_json",
        "upstream_body",
    ),
    "deep-error": (b'{"error":' + b"[" * 20_000 + b"]" * 20_000 + b"}", "bad_json", "upstream_body"),
    "no-image": (b'{"created":1,"data":[]}', "no_image", "no_image"),
    "nothing": (b"", "missing_terminal_event", "stream_no_terminal"),
    "refused-in-words": (b'{"code":1026,"msg":"input"}', "1026", "provider_stream_error"),
}
TOKENS = {"1026": "provider_stream_error"}


async def test_an_answer_with_its_picture_elsewhere_is_not_lost() -> None:
    body = b'{"created":1,"images":["aW1hZ2U="]}'
    async with provider(json_answer(200, body)) as (server, proxy):
        answer = await proxy.generate()
        assert answer.status_code == 200
        assert answer.content == body[:-1] + b',"cost":null,"provider":"sim","streamproxy_unread":true}'
        assert server.calls == 1
        streamed = failed(await proxy.generate(stream=True))
        assert (streamed.status, streamed.code) == (502, "no_image")
        message = "The provider's answer has no image in a known place. Its members: created, images."
        assert streamed.message == message
        assert server.calls == 2


@pytest.mark.parametrize("body", BODIES)
async def test_an_answer_without_an_image_in_it(body: str) -> None:
    sent, code, label = BODIES[body]
    start = head(200, (("Content-Type", "application/json"),), length=len(sent))
    async with provider((Send(start), Send(sent)), max_response_bytes=65_536) as (server, proxy):
        await Refusal(502, code, label, token=TOKENS.get(code, "")).check(proxy, await proxy.generate())
        assert server.calls == 1


@pytest.mark.parametrize("body", sorted(BODIES.keys() - {"nothing"}))
async def test_an_answer_without_an_image_after_our_head(body: str) -> None:
    sent, code, label = BODIES[body]
    start = head(200, (("Content-Type", "application/json"),), length=len(sent) + 1)
    begun = anyio.Event()
    async with provider(Held((Send(start + b" "),), begun, (Send(sent),)), max_response_bytes=65_536) as (
        server,
        proxy,
    ):
        body_of_request = {"model": "sim/gpt-image", "prompt": PROMPT, "stream": True}
        async with proxy.client.stream("POST", f"{proxy.url}/v1/images/generations", json=body_of_request) as answer:
            assert answer.status_code == 200
            begun.set()
            [event] = events(await answer.aread())
        error = event.json["error"]
        assert isinstance(error, dict)
        assert (event.event, error["code"]) == ("error", code)
        assert await proxy.failures(label) == 1
        assert server.calls == 1


async def test_an_endless_error_body_ends() -> None:
    script = (Send(head(400, length=1 << 30)), *(Send(b"x" * 65_536),) * 64)
    with anyio.fail_after(BOUND):
        async with provider(script) as (server, proxy):
            await Refusal(400, "provider_refused", "provider_4xx", charged=False).check(proxy, await proxy.generate())
            await server.wait_closed_connections(BOUND)
