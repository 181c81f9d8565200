"""Thousands of callers that connect, leave, come back and cancel at random: afterwards nothing of them is left.

Every generation is one request to the provider, and every reader that follows to the end gets each outcome once. The
callers and the provider are in another process, `tests.support.crowd_process`. The proxy is in this one, where its
objects can be counted.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import anyio
import pytest
from structlog.testing import capture_logs

from streamproxy.hub.hub import Hub
from streamproxy.hub.memory import MemoryStore
from tests.support.crowd_process import crowd_process
from tests.support.proxy import BOUND, no_leaks, running_proxy
from tests.support.valkey import valkey_server

pytestmark = pytest.mark.anyio

MANY: Final = 10_000
A_CROWD: Final = pytest.mark.parametrize("connections", [500, pytest.param(MANY, marks=pytest.mark.soak)])
LINGER: Final = 2.0
SECONDS: Final = 150.0
"""What the machine may need at worst; alone it takes a quarter."""

SECRET: Final = "s" * 40


@asynccontextmanager
async def _crowded(store: str, connections: int) -> AsyncIterator[None]:
    """When all callers have come and gone; with `upstream calls == generations`."""
    with anyio.fail_after(SECONDS), capture_logs() as logs:
        async with (
            no_leaks(),
            crowd_process(connections) as crowd,
            running_proxy(crowd.upstream, store=store, secret=SECRET, linger=LINGER, disconnect_grace=0.1) as proxy,
        ):
            report = await crowd.at(proxy)
            assert report.made >= connections
            assert (report.twice, report.missing) == ([], [])
            assert await proxy.metric("streamproxy_upstream_requests_total") >= report.calls > 0
            assert report.ends["image_generation.completed"] > 0
            if connections == MANY:  # of fewer, it may be that none has come back in time, or met an error
                assert report.resumed > 0
                assert report.ends["error"] > 0
            yield
    assert not [line for line in logs if line["event"] in ("unexpected", "store")]


def _hubs() -> list[Hub]:
    """All of this process: nothing public leads to an app's, and a server that starts freezes what there is."""
    gc.unfreeze()
    return [found for found in gc.get_objects() if isinstance(found, Hub)]


@A_CROWD
async def test_a_crowd_leaves_nothing_in_the_process(connections: int) -> None:
    before = _hubs()
    async with _crowded("memory", connections):
        (hub,) = [found for found in _hubs() if found not in before]
        assert hub.running == 0
        assert not hub.admission._viewers_of
        store = hub._backend.store
        assert isinstance(store, MemoryStore)
        assert not store._live
        assert store.bytes == sum(kept.bytes for _, _, kept in store._finished.values())
        await anyio.sleep(LINGER)
        await store.sweep()
        assert (store.bytes, len(store._finished)) == (0, 0)


@A_CROWD
async def test_a_crowd_leaves_nothing_in_a_shared_store(connections: int) -> None:
    with valkey_server() as server:
        async with _crowded(server.url, connections):
            await _until(lambda: not any(map(_of_a_stream, server.lifetimes())))
            assert all(lifetime > 0 for lifetime in server.lifetimes().values())
        await _until(lambda: not server.clients())


def _of_a_stream(key: str) -> bool:
    """Whether it belongs to a stream that is kept, and not to the memory of one, or to a claim."""
    return key.endswith((":log", ":lease", ":meta")) or ":data:" in key


async def _until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(BOUND):
        while not condition():  # noqa: ASYNC110  # it comes true in another process
            await anyio.sleep(0.05)
