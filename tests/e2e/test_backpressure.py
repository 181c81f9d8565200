"""Callers slower than their provider: the provider is held back, no frame is lost, and a stuck caller is cut off."""

from __future__ import annotations

import socket
import tracemalloc
from collections.abc import Iterator

import anyio
import orjson
import pytest

from streamproxy.errors import Failure
from streamproxy.simulator.received import Received, Server
from streamproxy.simulator.script import (
    EVENT_STREAM,
    Fin,
    Reset,
    Script,
    Send,
    Stall,
    Step,
    Wait,
    head,
    json_answer,
    sse,
)
from streamproxy.simulator.server import serve
from tests.support.caller import Caller, calling, generation
from tests.support.provider import completed, idle, one_failure, passed_on, preview, provider
from tests.support.proxy import BOUND, Proxy, events, no_leaks, running_proxy

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
TINY = 4096
"""Receive buffer of a caller that does not read."""

FRAMES = 192
FRAME = preview(0, size=MIB // 2)
WINDOWS = 48 * MIB
"""More than all socket buffers on the way: Linux gives 4 MiB to a sender and up to 32 MiB to a receiver."""

HELD = 8 * MIB
"""Of the proxy's own: two windows of 512 KiB each, one event of 512 KiB, and room for what else the process does."""


class Counted(tuple[Step, ...]):
    """A script that counts the bytes it could send so far."""

    sent = 0

    def __iter__(self) -> Iterator[Step]:
        for step in super().__iter__():
            yield step
            self.sent += len(step.data) if isinstance(step, Send) else 0


async def _stopped(script: Counted) -> None:
    """Wait until the provider has not been able to send anything for a while."""
    with anyio.fail_after(BOUND):
        before = -1
        while before != script.sent or not before:
            before = script.sent
            await anyio.sleep(0.3)


async def test_a_slow_caller_holds_its_provider_back() -> None:
    firehose = Counted((Send(head(200, (EVENT_STREAM,))), *(Send(FRAME),) * FRAMES, Send(completed()), Fin()))
    async with no_leaks(), serve(provider(firehose)) as upstream, running_proxy(upstream.url) as proxy:
        async with calling(proxy.port, receive_buffer=TINY) as caller:
            tracemalloc.start()
            await caller.send(generation(stream=True))
            await _stopped(firehose)
            held, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert len(FRAME) < firehose.sent < WINDOWS < FRAMES * len(FRAME)
            assert held < HELD
            caller.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * MIB)
            assert await caller.head() == 200
            got = events(await caller.rest())
            assert got[:-1] == passed_on(FRAME) * FRAMES
            assert got[-1:] == passed_on(completed())
        assert (upstream.calls, await proxy.metric("streamproxy_failures_total")) == (1, 0)


@pytest.mark.parametrize("end", [Fin(), Reset()], ids=["fin", "reset"])
async def test_waiting_frames_outlive_their_provider(end: Step) -> None:
    """The provider has disconnected before the caller begins to read; all of its frames are still there."""
    frames = (preview(0, size=12 * MIB), *(preview(number, size=1000) for number in range(1, 50)))
    script = sse(frames, waits=(0, 0.2), end=(Wait(0.1), end))
    async with no_leaks(), serve(provider(script)) as upstream, running_proxy(upstream.url) as proxy:
        async with calling(proxy.port, receive_buffer=TINY) as caller:
            await caller.send(generation(stream=True))
            await upstream.wait_until(lambda server: server.calls and not server.open_connections, BOUND)
            assert await caller.head() == 200
            *got, last = events(await caller.rest())
        assert got == passed_on(*frames)
        assert last.event == "error"
        assert upstream.calls == 1


def _stalling(received: Received) -> Script:
    if orjson.loads(received.body).get("stream"):
        return sse((FRAME,) * 40, end=(Stall(),))
    return json_answer(200, {"created": 1, "data": [{"b64_json": "A" * 20 * MIB}]})


async def _disconnected(server: Server, proxy: Proxy) -> None:
    await server.wait_until(lambda server: not server.open_connections, BOUND)
    await idle(proxy)


async def _told(proxy: Proxy) -> None:
    with anyio.fail_after(BOUND):
        while not await proxy.failures("client_stall"):  # noqa: ASYNC110
            await anyio.sleep(0.01)


async def _cut(caller: Caller) -> None:
    """The caller gets the bytes under way, and then an end that no HTTP parser takes for a whole body."""
    caller.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB)
    assert await caller.head() == 200
    with pytest.raises(ConnectionError):
        await caller.rest()


async def test_a_caller_that_stops_reading_a_stream_is_cut_off() -> None:
    async with no_leaks(), serve(_stalling) as upstream, running_proxy(upstream.url, send_timeout=0.3) as proxy:
        async with one_failure(Failure.CALLER_STALLED), calling(proxy.port, receive_buffer=TINY) as caller:
            await caller.send(generation(stream=True))
            await _disconnected(upstream, proxy)
            await _cut(caller)
        assert await proxy.failures("client_stall") == 1
        assert await proxy.failures("client_gone") == 0
        assert upstream.calls == 1


async def test_a_caller_who_stops_reading_a_json_answer_is_cut_off() -> None:
    async with no_leaks(), serve(_stalling) as upstream, running_proxy(upstream.url, send_timeout=0.3) as proxy:
        async with one_failure(Failure.CALLER_STALLED), calling(proxy.port, receive_buffer=TINY) as caller:
            await caller.send(generation())
            await _told(proxy)
            await _cut(caller)
        assert await proxy.failures("client_stall") == 1
        assert upstream.calls == 1


async def test_a_slow_but_steady_caller_is_not_cut_off() -> None:
    frames = (FRAME,) * 12
    async with (
        no_leaks(),
        serve(provider(sse((*frames, completed())))) as upstream,
        running_proxy(upstream.url, send_timeout=0.3) as proxy,
    ):
        async with calling(proxy.port, receive_buffer=64 * 1024) as caller:
            await caller.send(generation(stream=True))
            assert await caller.head() == 200
            body = b""
            while data := await caller.chunk():
                body += data
                await anyio.sleep(0.005)
        assert events(body) == passed_on(*frames, completed())
        assert await proxy.failures("client_stall") == 0
        assert upstream.calls == 1
