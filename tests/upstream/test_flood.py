"""A provider that sends faster than its answer is read: deadlines pass, cancellation arrives, others run."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import anyio.lowlevel
import pytest

from streamproxy.core.requests import UpstreamRequest
from streamproxy.errors import Failure, ProxyError
from streamproxy.upstream import Deadlines, Upstream, UpstreamResponse, default_ssl_context
from tests.support.proxy import BOUND, no_leaks

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
WORK = 0.002
"""Seconds of work for each chunk: longer than the next one takes to arrive."""


FLOOD = rf"""
import socket
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
client, _ = listener.accept()
client.settimeout({BOUND})
client.recv(65536)
client.sendall({HEAD!r})
while True:
    client.sendall(b":\n" * 65536)
"""


@contextmanager
def flooding() -> Iterator[str]:
    """The URL of a provider in a process of its own, so that it never waits for ours; it answers once, without end."""
    with subprocess.Popen(
        [sys.executable, "-c", FLOOD], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/x"
        finally:
            process.kill()


async def read(url: str, total: float) -> None:
    """Read the flood as a decoder would that takes its time."""
    deadlines = Deadlines(connect=BOUND, first_byte=BOUND, idle=BOUND, total=total, pool=BOUND)
    upstream = Upstream(
        deadlines=deadlines, max_connections=1, ssl_context=default_ssl_context(), tolerated=lambda _: None
    )
    try:
        async with upstream.open(UpstreamRequest("POST", url, (), (b"{}",))) as response:
            await drain(response)
    finally:
        with anyio.CancelScope(shield=True):
            await upstream.aclose()


async def drain(response: UpstreamResponse) -> None:
    ends_at = time.monotonic() + BOUND / 6
    while await response.chunk():
        busy_until = time.perf_counter() + WORK
        while time.perf_counter() < busy_until:
            pass
        assert time.monotonic() < ends_at, "neither a deadline nor a cancellation has come through"


async def test_the_whole_exchange_has_its_deadline() -> None:
    with flooding() as url:
        async with no_leaks():
            with pytest.raises(ProxyError) as caught:
                await read(url, total=0.2)
        assert caught.value.failure is Failure.DEADLINE


async def test_a_cancellation_comes_through() -> None:
    with flooding() as url:
        async with no_leaks():
            with anyio.move_on_after(0.2) as scope:
                await read(url, total=BOUND)
        assert scope.cancelled_caught


async def test_a_cancellation_by_another_task_comes_through() -> None:
    with flooding() as url:
        async with no_leaks(), anyio.create_task_group() as tasks:
            tasks.start_soon(read, url, BOUND)
            for _ in range(200):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
