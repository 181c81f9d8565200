"""A server that dies, hangs, comes back, forgets, or is not there yet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import pytest

from streamproxy.hub.log import Entry
from streamproxy.hub.store import Claim, Stored, StoreError
from streamproxy.hub.valkey.client import BLOCK_SECONDS
from streamproxy.hub.valkey.store import ValkeyStore
from tests.support.kept import LEASE, completed, following, preview, record, store, until
from tests.support.valkey import ValkeyServer

pytestmark = pytest.mark.anyio

QUICKLY: Final = 3.0
"""What a call may take when the server has died under it."""


def calls(at: ValkeyStore) -> dict[str, Callable[[], Awaitable[object]]]:
    """Every call there is; `known` is a live stream of this store's, which a follower waits for."""
    return {
        "create": lambda: at.create(record("new")),
        "append preview": lambda: at.append("known", preview(5)),
        "append completed": lambda: at.append("known", completed(6)),
        "finish": lambda: at.finish("known"),
        "load": lambda: at.load("known"),
        "claim": lambda: at.claim("key", Claim("print", "id")),
        "disclaim": lambda: at.disclaim("key"),
        "follow": lambda: following(at, "known", 9, []),
        "cancel": lambda: at.cancel("known"),
        "cancelled": lambda: anext(aiter(at.cancelled())),
        "viewing": lambda: at.viewing("known"),
        "viewed": lambda: at.viewed("known"),
    }


async def failing(call: Callable[[], Awaitable[object]]) -> None:
    with anyio.fail_after(QUICKLY + 0.5), pytest.raises(StoreError) as failed:
        await call()
    assert "127.0.0.1" in str(failed.value)


@pytest.mark.parametrize("how", ["killed", "hung"])
async def test_a_dead_server_is_noticed_by_every_call(own_server: ValkeyServer, how: str) -> None:
    async with store(own_server) as one, anyio.create_task_group() as tasks:
        await one.create(record("known"))
        for name, call in calls(one).items():
            if name in ("follow", "cancelled"):
                tasks.start_soon(failing, call)  # these wait in the server when it dies
        await until(lambda: own_server.command("CLIENT", "LIST").count(b"cmd=xread") == 2)
        if how == "killed":
            own_server.kill()
            for name, call in calls(one).items():
                started = anyio.current_time()
                await failing(call)
                assert anyio.current_time() - started < 1, name  # refused at once
        else:
            with own_server.hung():
                async with anyio.create_task_group() as at_once:
                    for call in calls(one).values():
                        at_once.start_soon(failing, call)


async def test_everything_works_again_when_the_server_is_back(own_server: ValkeyServer) -> None:
    got: list[Entry] = []
    async with store(own_server, "one") as one, store(own_server, "two") as two:
        await one.create(record("kept"))
        await one.append("kept", preview(1))
        await two.load("kept")
        own_server.kill()
        with pytest.raises(StoreError):
            await one.create(record("begun meanwhile"))
        for entry in (preview(2), completed(3, 1, b"during")):
            with pytest.raises(StoreError):
                await one.append("kept", entry)
        await anyio.sleep(LEASE + 0.05)  # all leases are gone when it comes back
        own_server.start()
        found = await two.load("kept")
        assert isinstance(found, Stored)
        assert not found.finished
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(following, two, "kept", 1, got)
            await anyio.sleep(LEASE + BLOCK_SECONDS)  # long enough to judge, if leases had not been renewed
            await one.append("kept", completed(4, 0, b"after"))
            await one.finish("kept")
        assert got == [completed(3, 1, b"during"), completed(4, 0, b"after")]
        await one.append("begun meanwhile", completed(1))
        found = await two.load("begun meanwhile")
        assert isinstance(found, Stored)
        assert found.record == record("begun meanwhile")
        assert found.entries == (completed(1),)


async def test_an_outage_between_two_calls_is_not_noticed(own_server: ValkeyServer) -> None:
    async with store(own_server, lease=30.0) as one:
        await one.create(record("spared"))
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(one.load, "spared")
        own_server.kill()  # several connections are dead, and this process has not noticed
        own_server.start()
        for seq in (1, 2, 3):
            await one.append("spared", completed(seq, seq))
        found = await one.load("spared")
        assert isinstance(found, Stored)
        assert [entry.cursor.seq for entry in found.entries] == [1, 2, 3]


async def test_the_end_of_a_stream_is_kept_when_the_server_is_back(own_server: ValkeyServer) -> None:
    async with store(own_server, "one") as one:
        await one.create(record("ended"))
        own_server.kill()
        with pytest.raises(StoreError):
            await one.append("ended", completed(1))
        with pytest.raises(StoreError):
            await one.finish("ended")
        with pytest.raises(StoreError):
            await one.sweep()
        own_server.start()
        await one.sweep()
        found = await one.load("ended")
        assert isinstance(found, Stored)
        assert found.finished
        assert found.entries == (completed(1),)


async def test_a_server_that_lost_its_data_fails_its_streams(own_server: ValkeyServer) -> None:
    async with store(own_server, "one") as one:
        await one.create(record("forgotten"))
        own_server.command("FLUSHALL")
        own_server.command("SCRIPT", "FLUSH")
        for entry in (completed(1), completed(2)):
            with pytest.raises(StoreError):
                await one.append("forgotten", entry)
        with pytest.raises(StoreError, match="lost this stream"):
            await one.finish("forgotten")
        await one.sweep()  # there is nothing left to try
        await one.create(record("fresh"))
        await one.append("fresh", completed(1))
        assert await one.load("forgotten") is None


async def test_a_server_that_starts_later_is_used(own_server: ValkeyServer) -> None:
    own_server.kill()
    async with store(own_server) as one:
        with pytest.raises(StoreError):
            await one.create(record("eager"))
        own_server.start()
        await one.append("eager", completed(1))
        assert isinstance(await one.load("eager"), Stored)
