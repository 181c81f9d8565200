"""Chats and responses without an image: passed on as they came, with their answers unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import anyio
import httpx
import openai
import orjson
import pytest
from openai import AsyncOpenAI

from streamproxy.errors import Failure
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import (
    EVENT_STREAM,
    LAST_CHUNK,
    Fin,
    Reset,
    Script,
    Send,
    Stall,
    Wait,
    chunk,
    error_answer,
    head,
    json_answer,
    sse,
)
from streamproxy.simulator.server import serve
from tests.support.flood import flooding
from tests.support.provider import one_failure
from tests.support.proxy import BOUND, Proxy, no_leaks, running_proxy

pytestmark = pytest.mark.anyio

CHAT: Final = "/v1/chat/completions"
RESPONSES: Final = "/v1/responses"
BODY: Final = b'{ "messages": [ {"role":"user","content":"h\\u0069"} ],\n "temperature": 1E0, "model":"sim/talker" }'
STREAMED: Final = BODY.replace(b'"temperature"', b'"stream": true, "temperature"')
ANSWER: Final = (
    b'{ "id":"x", "choices":[{"index":0,"message":{"role":"assistant","content":"hi"}}], "usage":{"cost":1E-3} }'
)
KEY: Final = "sk-configured-0123456789abcdef"
NOBODY: Final = "http://127.0.0.1:9"


def text(words: str) -> bytes:
    delta = {"id": "x", "choices": [{"index": 0, "delta": {"content": words}, "finish_reason": None}]}
    return b"data: " + orjson.dumps(delta) + b"\n\n"


DONE: Final = b"data: [DONE]\n\n"


async def post(
    proxy: Proxy, content: bytes, path: str = CHAT, headers: Mapping[str, str] | None = None
) -> httpx.Response:
    given = {"content-type": "application/json", **(headers or {})}
    return await proxy.client.post(proxy.url + path, content=content, headers=given)


def uncommented(body: bytes) -> bytes:
    return b"".join(line for line in body.splitlines(keepends=True) if not line.startswith(b":"))


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_bytes_are_as_they_came_both_ways(path: str) -> None:
    async with (
        no_leaks(),
        serve(lambda _: json_answer(200, ANSWER, (("x-ratelimit-remaining-requests", "7"),))) as server,
        running_proxy(server.url) as proxy,
    ):
        answer = await post(proxy, BODY, path)
        assert (answer.status_code, answer.content) == (200, ANSWER)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-ratelimit-remaining-requests"] == "7"
        [received] = server.received
        assert (received.target, received.body) == (path, BODY)
        assert await proxy.metric("streamproxy_upstream_requests_total", provider="sim") == 1


async def test_a_stream_is_as_it_came() -> None:
    frames = [text("a"), text("b"), DONE]
    async with no_leaks(), serve(lambda _: sse(frames)) as server, running_proxy(server.url) as proxy:
        answer = await post(proxy, STREAMED)
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["x-accel-buffering"] == "no"
        assert uncommented(answer.content) == b"".join(frames)
        assert server.received[0].body == STREAMED


@pytest.mark.parametrize("size", [1, 2, 7])
async def test_where_chunks_are_cut_changes_nothing(size: int) -> None:
    whole = b": hello\r\n\r\n" + text("a") + b"event: x\ndata: 1\ndata: 2\n\n" + DONE + b"data: end"
    pieces = [Send(chunk(whole[at : at + size])) for at in range(0, len(whole), size)]
    script = (Send(head(200, (EVENT_STREAM,), chunked=True)), *pieces, Send(LAST_CHUNK))
    async with no_leaks(), serve(lambda _: script) as server, running_proxy(server.url) as proxy:
        assert (await post(proxy, STREAMED)).content == whole


async def test_only_what_the_policy_removes_goes() -> None:
    body = b'{"model":"gpt-x","extra_headers":{"x-team":"a"},"messages":[]}'
    row = {"credential": "env:KEY", "auth_header": "authorization", "auth_scheme": "Bearer ", "models": ["*"]}
    async with (
        no_leaks(),
        serve(lambda _: json_answer(200, ANSWER)) as server,
        running_proxy(server.url, provider=row, environ={"KEY": KEY}) as proxy,
    ):
        assert (await post(proxy, body, headers={"authorization": "Bearer callers", "x-other": "1"})).status_code == 200
        [received] = server.received
        assert received.body == b'{"model":"gpt-x","messages":[]}'
        assert received.header("x-team") == "a"
        assert received.header("authorization") == f"Bearer {KEY}"
        assert received.header("x-other") is None
        refused = await post(proxy, body.replace(b"x-team", b"cookie"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "credential_header")
        assert server.calls == 1


@pytest.mark.parametrize("model", ["gpt-4o", "sim/talker", "other/talker"])
async def test_no_chat_is_a_404_of_ours(model: str) -> None:
    async with (
        no_leaks(),
        serve(lambda _: json_answer(200, ANSWER)) as server,
        running_proxy(server.url) as proxy,
    ):
        assert (await post(proxy, orjson.dumps({"model": model, "messages": []}))).status_code == 200
        assert orjson.loads(server.received[0].body)["model"] == model


@pytest.mark.parametrize(("path", "word"), [(CHAT, "chat"), (RESPONSES, "image_generation")])
async def test_a_provider_without_the_path(path: str, word: str) -> None:
    async with no_leaks(), running_proxy(NOBODY, provider={"chat": "", "responses": ""}) as proxy:
        answer = await post(proxy, BODY, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_parameter")
        assert word in answer.json()["error"]["message"]


async def test_a_provider_has_its_own_name_and_path() -> None:
    row = {"chat": "/of/{model}/chat", "deployments": {"sim/talker": "a b"}, "query": "v=1"}
    async with (
        no_leaks(),
        serve(lambda _: json_answer(200, ANSWER)) as server,
        running_proxy(server.url, provider=row) as proxy,
    ):
        await post(proxy, BODY)
        assert server.received[0].target == "/v1/of/a%20b/chat?v=1"
        members = b'{"messages": [ {"role":"user","content":"h\\u0069"} ],"temperature": 1E0,"model":"a b"}'
        assert server.received[0].body == members  # what is kept is as it was


# Silence, and leaving.


async def test_heartbeats_before_and_between() -> None:
    first, second = text("a")[:20], text("a")[20:]
    script = (
        Wait(0.2),
        Send(head(200, (EVENT_STREAM,), chunked=True)),
        Send(chunk(first)),
        Wait(1.2),
        Send(chunk(second + DONE)),
        Send(LAST_CHUNK),
    )
    quick: dict[str, Any] = {"commit_after": 0.05, "heartbeat": 1}
    async with no_leaks(), serve(lambda _: script) as server, running_proxy(server.url, **quick) as proxy:
        answer = await post(proxy, STREAMED)
        assert answer.content.count(b":\n") >= 2
        assert answer.content.startswith(b":\n")
        assert uncommented(answer.content) == text("a") + DONE


async def test_white_space_before_a_late_answer() -> None:
    script = (Wait(0.3), *json_answer(200, ANSWER))
    settings: dict[str, Any] = {"json_heartbeat": 0.05}
    async with no_leaks(), serve(lambda _: script) as server, running_proxy(server.url, **settings) as proxy:
        answer = await post(proxy, BODY)
        assert answer.content.startswith(b"\n\n")
        assert answer.json() == orjson.loads(ANSWER)


async def test_a_trickle_that_is_gathered_is_silence() -> None:
    pieces = [step for byte in ANSWER for step in (Wait(0.02), Send(bytes([byte])))]
    script = (Send(head(200, (("Content-Type", "application/json"),), length=len(ANSWER))), *pieces)
    settings: dict[str, Any] = {"json_heartbeat": 0.1}
    async with no_leaks(), serve(lambda _: script) as server, running_proxy(server.url, **settings) as proxy:
        answer = await post(proxy, BODY)
        assert answer.content.startswith(b"\n\n")
        assert answer.json() == orjson.loads(ANSWER)


@pytest.mark.parametrize("begun", [b"", text("a")])
async def test_a_flood_that_is_held_is_silence(begun: bytes) -> None:
    """A line without an end comes without a pause: comments go out all the same, and leaving ends it."""
    settings: dict[str, Any] = {"heartbeat": 1, "max_event_bytes": 1 << 28}
    async with no_leaks():
        with flooding(b"x", begun) as origin:
            async with (
                running_proxy(origin, **settings) as proxy,
                proxy.client.stream("POST", proxy.url + CHAT, content=STREAMED, headers=JSON_TYPE) as answer,
            ):
                came, raw = b"", answer.aiter_raw()
                with anyio.fail_after(BOUND):
                    while came.count(b":\n") < 2:
                        came += await anext(raw)
                assert uncommented(came) == begun


async def test_a_caller_that_leaves_ends_it() -> None:
    script = (Send(head(200, (EVENT_STREAM,), chunked=True)), Send(chunk(text("a"))), Stall())
    async with no_leaks(), serve(lambda _: script) as server, running_proxy(server.url) as proxy:
        async with (
            proxy.client.stream("POST", proxy.url + CHAT, content=STREAMED, headers=JSON_TYPE) as answer,
        ):
            assert text("a") == await anext(answer.aiter_bytes())
        await server.wait_closed_connections(BOUND)
        assert server.calls == 1


JSON_TYPE: Final = {"content-type": "application/json"}


# Failures.


async def test_a_refusal_is_the_providers_and_typed() -> None:
    def handle(received: Received) -> Script:
        return error_answer(400, "Too long.", param="messages", code="context_length_exceeded")

    async with (
        no_leaks(),
        serve(handle) as server,
        running_proxy(server.url) as proxy,
        AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none") as client,
    ):
        for stream in (False, True):
            ask: Any = [{"role": "user", "content": "x"}]
            with pytest.raises(openai.BadRequestError) as raised:
                await client.chat.completions.create(model="sim/talker", messages=ask, stream=stream)
            assert (raised.value.code, raised.value.param) == ("context_length_exceeded", "messages")
        assert server.calls == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_what_may_have_been_charged_is_sent_once(stream: bool) -> None:
    async with (
        no_leaks(),
        serve(lambda _: (Reset(),)) as server,
        running_proxy(server.url) as proxy,
        AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=2) as client,
    ):
        ask: Any = [{"role": "user", "content": "x"}]
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model="sim/talker", messages=ask, stream=stream)
        assert server.calls == 1


@pytest.mark.parametrize("cut", [b"", b'data: {"id', b"data: {}\n"])
async def test_a_broken_stream_ends_with_an_error(cut: bytes) -> None:
    script = (Send(head(200, (EVENT_STREAM,), chunked=True)), Send(chunk(text("a") + cut)), Fin())
    async with no_leaks(), serve(lambda _: script) as server, running_proxy(server.url) as proxy:
        async with one_failure(Failure.UPSTREAM_INCOMPLETE):
            answer = await post(proxy, STREAMED)
        rest = uncommented(answer.content).removeprefix(text("a"))
        *_, error, done, nothing = rest.split(b"\n\n")
        assert (done, nothing) == (b"data: [DONE]", b"")
        said = orjson.loads(error.removeprefix(b"data: "))["error"]
        assert (said["code"], said["status"]) == ("upstream_incomplete", 502)
        async with AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0) as client:
            ask: Any = [{"role": "user", "content": "x"}]
            stream = await client.chat.completions.create(model="sim/talker", messages=ask, stream=True)
            with pytest.raises(openai.APIError, match="ended"):
                [one async for one in stream]


async def test_a_broken_stream_of_responses() -> None:
    script = (Send(head(200, (EVENT_STREAM,), chunked=True)), Send(chunk(text("a"))), Fin())
    async with no_leaks(), serve(lambda _: script) as server, running_proxy(server.url) as proxy:
        answer = await post(proxy, STREAMED, RESPONSES)
        last = answer.content.rstrip().rpartition(b"\n\n")[2]
        assert last.startswith(b"event: error\ndata: ")
        assert orjson.loads(last.partition(b"data: ")[2])["code"] == "upstream_incomplete"


async def test_a_late_failure_of_a_stream_that_has_begun() -> None:
    script = (Wait(0.2), *error_answer(429, "Slow down."))
    settings: dict[str, Any] = {"commit_after": 0.05}
    async with no_leaks(), serve(lambda _: script) as server, running_proxy(server.url, **settings) as proxy:
        answer = await post(proxy, STREAMED)
        assert answer.status_code == 200
        error = orjson.loads(uncommented(answer.content).partition(b"\n\n")[0].removeprefix(b"data: "))["error"]
        assert (error["status"], error["message"]) == (429, "Slow down.")


async def test_limits() -> None:
    events = (Send(head(200, (EVENT_STREAM,), chunked=True)), Send(chunk(b"x" * 70_000)), Stall())
    limits: dict[str, Any] = {"max_event_bytes": 65_536, "max_response_bytes": 65_536}
    async with (
        no_leaks(),
        serve(lambda _: events) as server,
        running_proxy(server.url, **limits) as proxy,
        one_failure(Failure.EVENT_TOO_LARGE),
    ):
        await post(proxy, STREAMED)
    whole = json_answer(200, b'"' + b"x" * 70_000 + b'"')
    async with (
        no_leaks(),
        serve(lambda _: whole) as server,
        running_proxy(server.url, **limits) as proxy,
        one_failure(Failure.RESPONSE_BODY_SIZE),
    ):
        assert (await post(proxy, BODY)).status_code == 502


async def test_what_does_not_apply_is_said() -> None:
    async with (
        no_leaks(),
        serve(lambda _: json_answer(200, ANSWER)) as server,
        running_proxy(server.url) as proxy,
    ):
        for _ in range(2):
            answer = await post(proxy, BODY, headers={"idempotency-key": "one", "prefer": "respond-async"})
            assert answer.status_code == 200
            assert answer.headers["streamproxy-not-applied"] == "idempotency-key, prefer"
        assert server.calls == 2


async def test_the_sdk_reads_a_chat() -> None:
    frames = [text("a"), text("b"), DONE]
    async with (
        no_leaks(),
        serve(
            lambda received: sse(frames) if b'"stream":true' in received.body else json_answer(200, ANSWER)
        ) as server,
        running_proxy(server.url) as proxy,
        AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0) as client,
    ):
        ask: Any = [{"role": "user", "content": "x"}]
        with anyio.fail_after(BOUND):
            whole = await client.chat.completions.create(model="sim/talker", messages=ask)
            assert whole.choices[0].message.content == "hi"
            stream = await client.chat.completions.create(model="sim/talker", messages=ask, stream=True)
            assert [one.choices[0].delta.content async for one in stream] == ["a", "b"]
