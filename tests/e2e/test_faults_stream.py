"""Faults of a provider's answer after its head: every frame before the fault arrives, then exactly one failure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from streamproxy.errors import Failure
from streamproxy.simulator.script import EVENT_STREAM, JSON, Fin, Reset, Script, Send, Stall, Wait, chunk, head, sse
from streamproxy.simulator.server import serve
from tests.support.flood import flooding
from tests.support.provider import (
    answered_item,
    completed,
    failed,
    idle,
    one_failure,
    other_stream,
    passed_on,
    preview,
    provider,
)
from tests.support.proxy import BOUND, PROMPT, events, no_leaks, running_proxy

pytestmark = pytest.mark.anyio

FIRST, SECOND = preview(0), preview(1, size=40_000)
HALF = SECOND[: len(SECOND) // 2]
BOTH = (FIRST, SECOND)
CLOSE = ("Connection", "close")
DONE = b"data: [DONE]\n\n"
PAUSE = Wait(0.05)
"""So that the fault comes alone, after what was before it has been read."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One row: what the provider does, the frames that must arrive nevertheless, and the failure."""

    script: Script = field(repr=False)
    frames: tuple[bytes, ...] = field(repr=False)
    failure: Failure
    settings: dict[str, Any] = field(default_factory=dict)
    clean: bool = False
    """The answer itself ended as HTTP wants it, so its connection may stay."""


def _wire(script: Script) -> bytes:
    return b"".join(step.data for step in script if isinstance(step, Send))


def _short(*frames: bytes) -> Script:
    body = b"".join(frames)
    return (Send(head(200, (EVENT_STREAM,), length=len(body) + 1000)), Send(body), Fin())


def _delimited(*frames: bytes) -> Script:
    return (Send(head(200, (EVENT_STREAM, CLOSE))), *map(Send, frames), Fin())


def _trickle() -> Script:
    slow = tuple(step for byte in HALF[:400] for step in (Send(chunk(bytes([byte]))), Wait(0.02)))
    return (*sse((FIRST,), end=()), *slow)


def _flood(frame: bytes) -> Script:
    """Over 1 MiB of it behind a preview, and then silence."""
    piece = Send(chunk(frame * (65_536 // len(frame))))
    return (*sse((FIRST,), end=()), *(piece,) * 20, Stall())


FAULTS = {
    "comments without end": Fault(_flood(b": keepalive\n\n"), (FIRST,), Failure.STREAM_PROTOCOL),
    "blank lines without end": Fault(_flood(b"\n"), (FIRST,), Failure.STREAM_PROTOCOL),
    "other events without end": Fault(
        _flood(b'event: keepalive\ndata: {"type":"keepalive"}\n\n'), (FIRST,), Failure.STREAM_PROTOCOL
    ),
    "data that is no event without end": Fault(_flood(b"data: : tick\n\n"), (FIRST,), Failure.STREAM_PROTOCOL),
    "fin at a boundary": Fault(sse(BOTH, end=(Fin(),)), BOTH, Failure.UPSTREAM_INCOMPLETE),
    "fin inside an event": Fault(sse((FIRST, HALF), end=(Fin(),)), (FIRST,), Failure.UPSTREAM_INCOMPLETE),
    "fin inside a chunk": Fault(
        (*sse((FIRST,), end=()), Send(chunk(SECOND)[:100]), Fin()), (FIRST,), Failure.UPSTREAM_INCOMPLETE
    ),
    "fin after the head": Fault(sse((), end=(Fin(),)), (), Failure.UPSTREAM_INCOMPLETE),
    "reset at a boundary": Fault(sse(BOTH, end=(Reset(),)), BOTH, Failure.STREAM_RESET),
    "reset inside an event": Fault(sse((FIRST, HALF), end=(Reset(),)), (FIRST,), Failure.STREAM_RESET),
    "short length at a boundary": Fault(_short(*BOTH), BOTH, Failure.UPSTREAM_INCOMPLETE),
    "short length inside an event": Fault(_short(FIRST, HALF), (FIRST,), Failure.UPSTREAM_INCOMPLETE),
    "close-delimited, cut at a boundary": Fault(_delimited(*BOTH), BOTH, Failure.MISSING_TERMINAL_EVENT),
    "close-delimited, cut inside an event": Fault(_delimited(FIRST, HALF), (FIRST,), Failure.MISSING_TERMINAL_EVENT),
    "bad chunk header": Fault(
        sse(BOTH, end=(PAUSE, Send(b"zz\r\nnot a chunk\r\n"), Fin())), BOTH, Failure.STREAM_PROTOCOL
    ),
    "bad chunk header, all in one segment": Fault(
        (Send(_wire(sse(BOTH, end=(Send(b"zz\r\nnot a chunk\r\n"),)))), Fin()), BOTH, Failure.STREAM_PROTOCOL
    ),
    "bad chunk header inside an event": Fault(
        sse((FIRST, HALF), end=(PAUSE, Send(b"zz\r\nnot a chunk\r\n"), Fin())), (FIRST,), Failure.STREAM_PROTOCOL
    ),
    "stall at a boundary": Fault(sse(BOTH, end=(Stall(),)), BOTH, Failure.IDLE_TIMEOUT, settings={"idle_timeout": 0.3}),
    "stall inside an event": Fault(
        sse((FIRST, HALF), end=(Stall(),)), (FIRST,), Failure.IDLE_TIMEOUT, settings={"idle_timeout": 0.3}
    ),
    "trickle": Fault(_trickle(), (FIRST,), Failure.DEADLINE, settings={"total_timeout": 0.5, "idle_timeout": 0.3}),
    "event over the cap": Fault(
        sse((FIRST, preview(1, size=200_000)), end=(Stall(),)),
        (FIRST,),
        Failure.EVENT_TOO_LARGE,
        settings={"max_event_bytes": 100_000},
    ),
    "end without completed": Fault(sse(BOTH), BOTH, Failure.MISSING_TERMINAL_EVENT, clean=True),
    "[DONE] without completed": Fault(sse((*BOTH, DONE), end=(Stall(),)), BOTH, Failure.MISSING_TERMINAL_EVENT),
    "no event at all": Fault(sse(()), (), Failure.MISSING_TERMINAL_EVENT, clean=True),
    "data that is not JSON": Fault(
        sse((FIRST, b"event: image_generation.completed\ndata: {broken\n\n"), end=(Stall(),)),
        (FIRST,),
        Failure.BAD_JSON,
    ),
}


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "buffered"])
@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_costs_no_whole_frame_and_is_told_once(name: str, stream: bool) -> None:
    fault = FAULTS[name]
    row = fault.failure.value
    async with (
        no_leaks(),
        serve(provider(fault.script)) as upstream,
        running_proxy(upstream.url, **fault.settings) as proxy,
    ):
        async with one_failure(fault.failure), other_stream(proxy):
            answer = failed(await proxy.generate(stream=stream))
        assert (answer.status, answer.code) == (row.status, row.code)
        assert answer.frames == (passed_on(*fault.frames) if stream else [])
        assert answer.as_event or not fault.frames or not stream
        assert upstream.calls == 2
        assert await proxy.failures(row.label) == 1
        if not fault.clean:
            await upstream.wait_until(lambda server: server.open_connections <= 1, BOUND)  # the other stream's
        assert await proxy.metric("streamproxy_streams") == 0


JSON_ANSWER = orjson.dumps({"created": 1, "data": [{"b64_json": "QUJD" * 5000}]})
JSON_CUT = JSON_ANSWER[: len(JSON_ANSWER) // 2]
JSON_FAULTS = {
    "fin in a chunked body": (
        (Send(head(200, (JSON,), chunked=True)), Send(chunk(JSON_CUT)), Fin()),
        Failure.UPSTREAM_INCOMPLETE,
    ),
    "reset in a chunked body": (
        (Send(head(200, (JSON,), chunked=True)), Send(chunk(JSON_CUT)), PAUSE, Reset()),
        Failure.STREAM_RESET,
    ),
    "short length": (
        (Send(head(200, (JSON,), length=len(JSON_ANSWER))), Send(JSON_CUT), Fin()),
        Failure.UPSTREAM_INCOMPLETE,
    ),
    "close-delimited, cut": ((Send(head(200, (JSON, CLOSE))), Send(JSON_CUT), Fin()), Failure.BAD_JSON),
    "stall": (
        (Send(head(200, (JSON,), length=len(JSON_ANSWER))), Send(JSON_CUT), Stall()),
        Failure.IDLE_TIMEOUT,
    ),
    "white space without end": (
        (Send(head(200, (JSON,), chunked=True)), *(Send(chunk(b" " * 65_536)),) * 20, Stall()),
        Failure.STREAM_PROTOCOL,
    ),
}


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "buffered"])
@pytest.mark.parametrize("name", JSON_FAULTS)
async def test_a_json_answer_that_breaks_off_is_a_failure(name: str, stream: bool) -> None:
    script, failure = JSON_FAULTS[name]
    async with (
        no_leaks(),
        serve(provider(script)) as upstream,
        running_proxy(upstream.url, idle_timeout=0.3) as proxy,
    ):
        async with one_failure(failure), other_stream(proxy):
            answer = failed(await proxy.generate(stream=stream))
        assert (answer.status, answer.code, answer.frames) == (failure.value.status, failure.value.code, [])
        assert upstream.calls == 2
        assert await proxy.failures(failure.value.label) == 1
        await upstream.wait_until(lambda server: server.open_connections <= 1, BOUND)


GOOD_ENDS = {
    "missing last blank line": sse((*BOTH, completed()[:-1])),
    "missing last line end": sse((*BOTH, completed()[:-2])),
    "fin after completed": sse((*BOTH, completed()), end=(Fin(),)),
    "reset after completed": sse((*BOTH, completed()), end=(PAUSE, Reset())),
    "short length after completed": _short(*BOTH, completed()),
    "close-delimited": _delimited(*BOTH, completed()),
    "stall after completed": sse((*BOTH, completed()), end=(Stall(),)),
    "[DONE]": sse((*BOTH, completed(), DONE)),
}


@pytest.mark.parametrize("name", GOOD_ENDS)
async def test_whatever_follows_a_whole_completed_is_no_failure(name: str) -> None:
    async with no_leaks(), serve(provider(GOOD_ENDS[name])) as upstream, running_proxy(upstream.url) as proxy:
        streamed = await proxy.generate(stream=True)
        assert streamed.status_code == 200
        assert passed_on(*BOTH, completed()) == events(streamed.content)
        buffered = await proxy.generate()
        assert buffered.status_code == 200
        assert orjson.loads(buffered.content)["data"] == [answered_item("B" * 64)]
        assert upstream.calls == 2
        text = (await proxy.client.get(f"{proxy.url}/metrics")).text
        assert "streamproxy_failures_total{" not in text


@pytest.mark.parametrize("ended", ["by total_timeout", "by its caller"])
async def test_previews_without_end_end(ended: str) -> None:
    """This provider is not paced, since no POST follows the stream: it sends as fast as it is read."""
    timeout = 0.5 if ended == "by total_timeout" else BOUND
    with flooding(FIRST * 200) as url:
        async with no_leaks(), running_proxy(url, total_timeout=timeout) as proxy:
            accepted = await proxy.client.post(
                f"{proxy.url}/v1/images/generations",
                json={"model": "sim/gpt-image", "prompt": PROMPT, "stream": True},
                headers={"prefer": "respond-async"},
            )
            assert accepted.status_code == 202
            stream = f"{proxy.url}{accepted.json()['stream_url']}"
            if ended == "by its caller":
                cancelled = await proxy.client.delete(f"{proxy.url}{accepted.json()['cancel_url']}")
                assert cancelled.status_code == 200
            answer = await proxy.client.get(stream, headers={"accept": "text/event-stream"})
            code = "deadline" if ended == "by total_timeout" else "cancelled"
            assert f'"code":"{code}"'.encode() in answer.content
            await idle(proxy)
