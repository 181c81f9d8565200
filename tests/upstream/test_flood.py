"""A provider that sends faster than its answer is read: deadlines pass, cancellation arrives, others run."""

from __future__ import annotations

import time

import anyio
import anyio.lowlevel
import pytest

from streamproxy.core.requests import UpstreamRequest
from streamproxy.errors import Failure, ProxyError
from streamproxy.upstream import Answer, Deadlines, Upstream, default_ssl_context
from tests.support.flood import flooding
from tests.support.proxy import BOUND, no_leaks

pytestmark = pytest.mark.anyio

WORK = 0.002
"""Seconds of work for each chunk: longer than the next one takes to arrive."""


PIECE = b":\n" * 65_536


async def read(url: str, total: float) -> None:
    """Read the flood as a decoder would that takes its time."""
    deadlines = Deadlines(connect=BOUND, first_byte=BOUND, idle=BOUND, total=total, pool=BOUND)
    upstream = Upstream(
        deadlines=deadlines, max_connections=1, ssl_context=default_ssl_context(), tolerated=lambda _: None
    )
    try:
        async with upstream.open(UpstreamRequest("POST", f"{url}/x", (), (b"{}",))) as response:
            await drain(response)
    finally:
        with anyio.CancelScope(shield=True):
            await upstream.aclose()


async def drain(response: Answer) -> None:
    ends_at = time.monotonic() + BOUND / 6
    while await response.chunk():
        busy_until = time.perf_counter() + WORK
        while time.perf_counter() < busy_until:
            pass
        assert time.monotonic() < ends_at, "neither a deadline nor a cancellation has come through"


async def test_the_whole_exchange_has_its_deadline() -> None:
    with flooding(PIECE) as url:
        async with no_leaks():
            with pytest.raises(ProxyError) as caught:
                await read(url, total=0.2)
        assert caught.value.failure is Failure.DEADLINE


async def test_a_cancellation_comes_through() -> None:
    with flooding(PIECE) as url:
        async with no_leaks():
            with anyio.move_on_after(0.2) as scope:
                await read(url, total=BOUND)
        assert scope.cancelled_caught


async def test_a_cancellation_by_another_task_comes_through() -> None:
    with flooding(PIECE) as url:
        async with no_leaks(), anyio.create_task_group() as tasks:
            tasks.start_soon(read, url, BOUND)
            for _ in range(200):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
