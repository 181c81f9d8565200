"""A streaming caller before and between frames: the head in time, its headers, and heartbeats."""

from __future__ import annotations

import time
from itertools import pairwise

import anyio
import orjson
import pytest

from streamproxy.errors import Failure
from streamproxy.simulator.script import Fin, Script, Send, Stall, Wait, error_answer, head, json_answer, sse
from streamproxy.simulator.server import serve
from tests.support.caller import calling, generation
from tests.support.provider import COMPLETED, completed, failed, idle, one_failure, passed_on, preview, provider
from tests.support.proxy import BOUND, events, no_leaks, running_proxy

pytestmark = pytest.mark.anyio

HEARTBEAT = b":\n"
FIRST = preview(0)
LARGE = preview(1, size=300_000)
REFUSED = error_answer(400, "No.", type="image_generation_user_error", code="moderation_blocked")
LIMITED = error_answer(429, "Slow down.", code="rate_limit_exceeded", headers=(("Retry-After", "7"),))
BROKEN = error_answer(500, "Sorry.", type="server_error")
LATE = Wait(0.4)


async def test_heartbeats_come_at_once_and_each_second_of_silence() -> None:
    script = (Send(head(200, (("Content-Type", "text/event-stream"),), chunked=True)), Stall())
    async with (
        no_leaks(),
        serve(provider(script)) as upstream,
        running_proxy(upstream.url, heartbeat=1, idle_timeout=2.5, commit_after=0.1) as proxy,
    ):
        async with calling(proxy.port) as caller:
            asked = time.monotonic()
            await caller.send(generation(stream=True))
            assert await caller.head() == 200
            assert await caller.chunk() == HEARTBEAT
            at = [time.monotonic()]
            assert at[0] - asked < 1
            for _ in range(2):
                assert await caller.chunk() == HEARTBEAT
                at.append(time.monotonic())
            assert all(0.9 < later - earlier < 1.5 for earlier, later in pairwise(at))
            [error] = events(await caller.rest())
        assert error.json["error"] == {
            "message": "The provider fell silent for 2.5 s. The setting is idle_timeout.",
            "type": "upstream_error",
            "param": None,
            "code": "idle_timeout",
            "status": 504,
            "charged": True,
        }
        assert (upstream.calls, await proxy.failures("stream_idle")) == (1, 1)


async def test_heartbeats_stand_between_frames_only() -> None:
    """The provider is silent in the middle of an event, and after a frame."""
    cut = len(LARGE) // 2
    script = sse((FIRST, LARGE[:cut], LARGE[cut:], completed()), waits=(0, 0, 1.2, 1.2))
    async with (
        no_leaks(),
        serve(provider(script)) as upstream,
        running_proxy(upstream.url, heartbeat=1) as proxy,
    ):
        body = (await proxy.generate(stream=True)).content
        frames = passed_on(FIRST, LARGE, completed())
        assert events(body) == frames
        wire = [b"event: %b\ndata: %b\n\n" % (frame.event.encode(), frame.data) for frame in frames]
        assert body == HEARTBEAT + wire[0] + HEARTBEAT + wire[1] + HEARTBEAT + wire[2]


async def test_a_frame_ends_the_silence() -> None:
    script = sse((FIRST,) * 4 + (completed(),), waits=(0, 0.6, 0.6, 0.6, 0.6))
    async with no_leaks(), serve(provider(script)) as upstream, running_proxy(upstream.url, heartbeat=1) as proxy:
        body = (await proxy.generate(stream=True)).content
        assert events(body) == passed_on(*(FIRST,) * 4, completed())
        assert body.count(b"\n:\n") == 0  # only the first line is one


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [(REFUSED, 400, "moderation_blocked"), (LIMITED, 429, "rate_limit_exceeded"), (BROKEN, 502, "provider_failed")],
    ids=["400", "429", "500"],
)
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "buffered"])
@pytest.mark.parametrize("late", [False, True], ids=["fast", "late"])
async def test_a_refusal_keeps_its_status_until_the_head_is_sent(
    script: Script, status: int, code: str, stream: bool, late: bool
) -> None:
    played = (LATE, *script) if late else script
    async with no_leaks(), serve(provider(played)) as upstream, running_proxy(upstream.url, commit_after=0.1) as proxy:
        response = await proxy.generate(stream=stream)
        answer = failed(response)
        assert (answer.status, answer.code, answer.frames) == (status, code, [])
        assert answer.as_event is (stream and late)
        assert response.content.startswith(HEARTBEAT) is (stream and late)
        assert answer.as_event or response.headers.get("retry-after") == ("7" if status == 429 else None)
        assert upstream.calls == 1
        assert await proxy.metric("streamproxy_failures_total") == 1


async def test_no_head_in_time_means_ours_and_a_heartbeat() -> None:
    script = (Wait(0.8), *sse((FIRST, completed())))
    async with no_leaks(), serve(provider(script)) as upstream, running_proxy(upstream.url, commit_after=0.2) as proxy:
        async with calling(proxy.port) as caller:
            asked = time.monotonic()
            await caller.send(generation(stream=True))
            assert await caller.head() == 200
            assert await caller.chunk() == HEARTBEAT
            assert 0.2 <= time.monotonic() - asked < 0.75
            assert events(await caller.rest()) == passed_on(FIRST, completed())
        assert upstream.calls == 1


async def test_a_connection_that_fails_after_the_head_is_an_event() -> None:
    async with no_leaks(), serve(provider((LATE, Fin()))) as upstream:
        async with running_proxy(upstream.url, commit_after=0.1) as proxy, one_failure(Failure.CONNECTION_TERMINATED):
            answer = failed(await proxy.generate(stream=True))
        assert (answer.as_event, answer.status, answer.code) == (True, 502, "connection_terminated")
        assert upstream.calls == 1


async def test_the_head_of_a_stream() -> None:
    theirs = (
        ("openai-processing-ms", "41"),
        ("x-ratelimit-remaining-requests", "9"),
        ("Set-Cookie", "session=secret"),
        ("Server", "nginx"),
        ("Cache-Control", "public, max-age=60"),
        ("X-Accel-Buffering", "yes"),
        ("Alt-Svc", 'h3=":443"'),
        ("X-Internal", "rack 7"),
        ("Via", "1.1 edge"),
    )
    ours = {"date", "cache-control", "connection", "x-accel-buffering", "content-type", "x-request-id", "vary"}
    passed = {"openai-processing-ms": "41", "x-ratelimit-remaining-requests": "9"}
    passed["streamproxy-attempts"] = "sim/gpt-image;provider=sim;ok"
    async with (
        no_leaks(),
        serve(provider(sse((completed(),), headers=theirs))) as upstream,
        running_proxy(upstream.url) as proxy,
    ):
        headers = (await proxy.generate(stream=True)).headers
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert headers["cache-control"] == "no-store, no-transform"
        assert headers["x-accel-buffering"] == "no"
        assert headers["x-request-id"].startswith("req_")
        assert {name: value for name, value in headers.items() if name not in ours} == {
            **passed,
            "transfer-encoding": "chunked",
            "stream-id": headers["stream-id"],
            "location": headers["location"],
            "cancel-location": headers["cancel-location"],
            "referrer-policy": "no-referrer",
        }
        buffered = (await proxy.generate()).headers
        assert {name: value for name, value in buffered.items() if name not in ours} == {
            **passed,
            "content-length": buffered["content-length"],
        }
        assert upstream.calls == 2


async def test_json_for_a_stream_is_one_completed_event() -> None:
    script = json_answer(200, {"created": 5, "data": [{"b64_json": "QUJD"}]})
    async with no_leaks(), serve(provider(script)) as upstream, running_proxy(upstream.url) as proxy:
        answer = await proxy.generate(model="sim/plain", stream=True, partial_images=2)
        [only] = events(answer.content)
        assert (only.event, only.json["b64_json"], only.json["created_at"]) == (COMPLETED, "QUJD", 5)
        assert answer.headers["streamproxy-not-applied"] == "partial_images"
        assert not {"stream", "partial_images"} & orjson.loads(upstream.received[0].body).keys()
        assert upstream.calls == 1
        with anyio.fail_after(BOUND):
            await idle(proxy)
