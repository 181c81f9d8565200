"""Hubs of several processes on one Valkey store: readers follow streams of another process, and can end them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import orjson
import pytest

from streamproxy.core.cursor import Cursor
from streamproxy.core.events import ANSWER, ERROR, Frame
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub import mirrors
from streamproxy.hub.generation import Generation, OnDisconnect
from streamproxy.hub.hub import Hub
from streamproxy.hub.keys import Names
from streamproxy.hub.limits import HubLimits
from streamproxy.hub.log import Entry, Record
from streamproxy.hub.store import StoreBackend, Stored, StoreError
from streamproxy.hub.stream import Ending, Stream
from streamproxy.hub.valkey import store as valkey
from streamproxy.hub.valkey.client import BLOCK_SECONDS, COMMAND_SECONDS
from streamproxy.hub.valkey.store import ValkeyStore
from streamproxy.observe import Observer
from tests.support.kept import BOUND, COMPLETED, LEASE, PREVIEW, in_touch, store, until
from tests.support.valkey import ValkeyServer

pytestmark = pytest.mark.anyio

LIMITS = HubLimits(grace=0.1, hold=0, viewers=10, viewers_of_owner=10, streams=10)
SKETCH = Frame(PREVIEW, (b"sketch",), 0)
PICTURE = Frame(COMPLETED, (b"picture",), 0, final=True)


@dataclass(frozen=True, slots=True)
class Replica:
    """One process' hub, and the store under it."""

    hub: Hub
    store: ValkeyStore

    async def begin(self, id: str, policy: OnDisconnect = OnDisconnect.FINISH) -> Generation:
        """A generation of this process, whose head has been sent."""
        generation = self.hub.prepare(Record(id, "owner", 1_700_000_000), policy=policy, names=Names("body"))
        await self.hub.register(generation)
        generation.stream.commit()
        return generation


@asynccontextmanager
async def replica(server: ValkeyServer, name: str, lease: float = LEASE) -> AsyncIterator[Replica]:
    async with store(server, name, lease=lease) as opened, anyio.create_task_group() as tasks:
        hub = Hub(
            backend=StoreBackend(opened, opened, opened, opened, opened),
            tasks=tasks,
            limits=LIMITS,
            observer=Observer(),
        )
        tasks.start_soon(hub.tend)
        yield Replica(hub, opened)
        tasks.cancel_scope.cancel()


async def read(stream: Stream) -> list[Entry]:
    """All that a reader from the start gets, to the end."""
    subscriber = stream.subscribe()
    found: list[Entry] = []
    try:
        while (entry := await subscriber.next(within=BOUND)) is not None:
            found.append(entry)
    finally:
        subscriber.leave()
    return found


def code(frame: Frame) -> object:
    return orjson.loads(b"".join(frame.data))["error"]["code"]


async def test_readers_at_another_hub_get_what_is_produced_here(server: ValkeyServer) -> None:
    async with replica(server, "one") as one, replica(server, "two") as two:
        generation = await one.begin("followed")
        await generation.append(SKETCH)
        mirror = await two.hub.find("followed")
        assert mirror.record.owner == "owner"
        subscriber = mirror.subscribe()
        seen = [await subscriber.next(within=BOUND)]
        assert await two.hub.find("followed") is mirror
        await generation.append(PICTURE)
        seen += [await subscriber.next(within=BOUND)]
        await one.hub.conclude(generation)
        assert await subscriber.next(within=BOUND) is None
        assert subscriber.at_end
        assert [entry and (str(entry.cursor), entry.frame) for entry in seen] == [("1.1", SKETCH), ("1.2", PICTURE)]
        subscriber.leave()
        assert [entry.frame for entry in await read(await two.hub.find("followed"))] == [PICTURE]


def stored(server: ValkeyServer, id: str) -> set[int]:
    """The entries of a stream whose bytes the server has."""
    prefix = f"sp:{{{id}}}:data:"
    return {int(key.removeprefix(prefix)) for key in server.lifetimes() if key.startswith(prefix)}


def seqs(stream: Stream) -> list[int]:
    return [entry.cursor.seq for entry in stream.log.retained()]


async def test_previews_are_stored_only_when_asked_for(server: ValkeyServer) -> None:
    async with replica(server, "one") as one, replica(server, "two") as two:
        generation = await one.begin("asked for")
        for _ in range(3):
            await generation.append(SKETCH)
        assert stored(server, "asked for") == set()
        assert seqs(await two.hub.find("asked for")) == [3]
        assert stored(server, "asked for") == {3}
        await generation.append(SKETCH)
        assert stored(server, "asked for") == {4}  # from now on, at once
        await generation.append(PICTURE)
        assert stored(server, "asked for") == {5}


async def test_readers_that_come_at_once_ask_once(server: ValkeyServer) -> None:
    async with replica(server, "one") as one, replica(server, "two") as two:
        await (await one.begin("crowded")).append(SKETCH)
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(two.store.load, "crowded")
        assert server.command("XLEN", "sp:r:one") == b":1\r\n"
        assert stored(server, "crowded") == {1}


async def test_previews_are_deferred_again_when_unasked(server: ValkeyServer) -> None:
    async with replica(server, "one") as one:
        generation = await one.begin("lapsed")
        await generation.append(SKETCH)
        for seq in (1, 2):
            await one.store.show("lapsed")
            assert stored(server, "lapsed") == {seq}
            one.store._produced["lapsed"].shown_until = 0.0  # as after so long
            await generation.append(SKETCH)
            assert stored(server, "lapsed") == {seq}


async def test_a_follower_goes_on_asking(server: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "PRESENCE_SECONDS", 0.1)
    async with replica(server, "one") as one, replica(server, "two") as two:
        generation = await one.begin("renewed")
        subscriber = (await two.hub.find("renewed")).subscribe()
        for seq in range(1, 4):
            one.store._produced["renewed"].shown_until = 0.0  # as after so long
            await until(lambda: one.store._produced["renewed"].shown_until > 0)
            await generation.append(SKETCH)
            entry = await subscriber.next(within=BOUND)
            assert entry is not None
            assert entry.cursor.seq == seq


async def test_a_deferred_preview_never_comes_after_its_turn(server: ValkeyServer) -> None:
    async with replica(server, "one") as one, replica(server, "two") as two:
        generation = await one.begin("late")
        await generation.append(Frame(PREVIEW, (b"sketch",), 1))
        await generation.append(PICTURE)
        subscriber = (await two.hub.find("late")).subscribe()
        await generation.append(Frame(PREVIEW, (b"another",), 1))
        got = [await subscriber.next(within=BOUND) for _ in range(2)]
        assert [entry and entry.cursor.seq for entry in got] == [2, 3]


async def test_a_silent_producer_costs_a_reader_previews(server: ValkeyServer) -> None:
    async with store(server, "busy") as busy, replica(server, "two") as two:
        await busy.create(Record("busy", None, 1, 2))  # nothing here hears what other processes ask
        await busy.append("busy", Entry(Cursor(1, 1), PICTURE))
        assert busy.defer("busy", Entry(Cursor(1, 2), Frame(PREVIEW, (b"sketch",), 1)))
        began = anyio.current_time()
        assert seqs(await two.hub.find("busy")) == [1]
        assert anyio.current_time() - began >= valkey.SHOW_SECONDS


async def test_a_preview_in_an_outage_is_no_recovery(own_server: ValkeyServer) -> None:
    async with replica(own_server, "one") as one:
        generation = await one.begin("away")
        own_server.kill()
        await generation.append(PICTURE)
        assert one.hub.health.failed
        await generation.append(Frame(PREVIEW, (b"sketch",), 1))
        assert one.hub.health.failed


async def test_a_find_is_no_viewer_a_reader_is(server: ValkeyServer) -> None:
    async with replica(server, "one") as one, replica(server, "two") as two:
        await one.begin("looked at")
        await two.hub.find("looked at")
        await anyio.sleep(0.1)
        assert not await one.store.viewed("looked at")
        subscriber = (await two.hub.find("looked at")).subscribe()
        while not await one.store.viewed("looked at"):  # noqa: ASYNC110
            await anyio.sleep(0.01)
        assert server.command("CLIENT", "LIST").count(b"cmd=xread") == 3  # one for each hub's own, one for the stream
        subscriber.leave()
        await until(lambda: server.command("CLIENT", "LIST").count(b"cmd=xread") == 2)


async def test_viewers_elsewhere_keep_a_generation(server: ValkeyServer) -> None:
    async with replica(server, "one") as one, replica(server, "two") as two:
        generations = [await one.begin(id, OnDisconnect.CANCEL) for id in ("watched", "forsaken")]
        (await two.hub.find("watched")).subscribe()
        while not await one.store.viewed("watched"):  # noqa: ASYNC110
            await anyio.sleep(0.01)
        for generation in generations:
            generation.stream.subscribe().leave()
        await until(lambda: generations[1].scope.cancel_called)
        assert not generations[0].scope.cancel_called


async def test_a_cancel_elsewhere_reaches_the_producer(server: ValkeyServer) -> None:
    async with replica(server, "one") as one, replica(server, "two") as two:
        generation = await one.begin("cancelled")
        await two.hub.end(await two.hub.find("cancelled"))
        await until(lambda: generation.scope.cancel_called)
        assert generation.ending is Ending.CANCELLED


async def test_a_cancel_that_cannot_be_passed_on_is_refused(own_server: ValkeyServer) -> None:
    async with replica(own_server, "one") as one, replica(own_server, "two") as two:
        await one.begin("unreachable")
        mirror = await two.hub.find("unreachable")
        own_server.kill()
        with pytest.raises(ProxyError) as refused:
            await two.hub.end(mirror)
        assert refused.value.failure is Failure.OVERLOADED


async def test_a_producer_that_was_taken_for_dead_stops(server: ValkeyServer) -> None:
    async with replica(server, "two") as two, replica(server, "one", lease=30.0) as one:
        generation = await one.begin("zombie")
        await in_touch(two.store)
        server.command("DEL", "sp:{zombie}:lease")  # as if it had not been renewed for so long
        assert code((await read(await two.hub.find("zombie")))[-1].frame) == "producer_lost"
        with pytest.raises(ProxyError) as fenced:
            await generation.append(PICTURE)
        assert fenced.value.failure is Failure.PRODUCER_LOST
        await generation.fail(fenced.value)
        await one.hub.conclude(generation)
        assert code((await read(generation.stream))[-1].frame) == "producer_lost"


@pytest.mark.parametrize(
    ("n", "type", "complete"),
    [(1, COMPLETED, True), (2, COMPLETED, False), (2, ANSWER, True), (2, ERROR, True)],
)
async def test_a_dead_producer_is_told_if_an_image_is_missing(
    server: ValkeyServer, n: int, type: str, complete: bool
) -> None:
    last = Frame(type, (b'{"error":{"code":"own"}}',), 0, final=True)
    async with replica(server, "two") as two:
        async with store(server, "one") as dying:
            await dying.create(Record("dead", None, 1, n))
            await dying.append("dead", Entry(Cursor(1, 1), last))
        mirror = await two.hub.find("dead")  # the lease still holds
        assert not mirror.finished
        with anyio.fail_after(LEASE + 3 * BLOCK_SECONDS):
            frames = [entry.frame for entry in await read(mirror)]
        assert frames[0] == last
        assert [code(frame) for frame in frames[1:]] == ([] if complete else ["producer_lost"])
        found = await two.store.load("dead")
        assert isinstance(found, Stored)
        assert found.finished
        assert [entry.frame for entry in found.entries] == frames


async def test_a_server_that_hangs_holds_nobody_up_twice(own_server: ValkeyServer) -> None:
    async with replica(own_server, "one") as one:
        generation = await one.begin("held up")
        with own_server.hung():
            began = anyio.current_time()
            for _ in range(5):
                await generation.append(SKETCH)
            await generation.append(PICTURE)
            await one.hub.conclude(generation)
            took = anyio.current_time() - began
            assert one.hub.health.failed
            assert [entry.frame for entry in await read(generation.stream)] == [PICTURE]
        assert took < 1.5 * COMMAND_SECONDS, took
        while True:
            try:
                await one.store.sweep()
                break
            except StoreError:
                await anyio.sleep(0.05)
        found = await one.store.load("held up")
        assert isinstance(found, Stored)
        assert [entry.frame for entry in found.entries] == [PICTURE]
