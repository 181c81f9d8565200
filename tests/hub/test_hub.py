"""The registry of a process's streams: finding them, ending them, and a store that fails."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import anyio
import pytest
from anyio.lowlevel import checkpoint
from structlog.testing import capture_logs

from streamproxy.core.cursor import Cursor
from streamproxy.core.events import ERROR, Frame, Operation, Role, type_of
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.generation import Generation, OnDisconnect
from streamproxy.hub.hub import Hub
from streamproxy.hub.keys import Names
from streamproxy.hub.limits import HubLimits
from streamproxy.hub.log import EPOCH, Entry, Record
from streamproxy.hub.memory import MemoryMarks, MemoryStore
from streamproxy.hub.store import Claim, Fenced, Gone, StoreBackend, Stored, StoreError
from streamproxy.hub.stream import Ending, Stream, Subscriber
from streamproxy.observe import Observer
from streamproxy.signals import Signal

pytestmark = pytest.mark.anyio

BOUND: Final = 10.0
CAP: Final = 1000
GRACE: Final = 0.05
LIMITS: Final = HubLimits(grace=GRACE, hold=0, viewers=3, viewers_of_owner=5, streams=4)


class Frail:
    """A memory store that several processes could share, and that fails on demand: `down` with StoreError, `fenced`."""

    def __init__(self) -> None:
        self.inner = MemoryStore(max_bytes=CAP, linger=60.0, now=anyio.current_time)
        self.down = False
        self.fenced = False
        self.calls: list[str] = []
        self.follows = 0
        self.views: set[str] = set()
        self.cancels: list[str] = []
        self.news = Signal()

    async def _reached(self, call: str) -> None:
        self.calls.append(call)
        await checkpoint()
        if self.down:
            raise StoreError("it is down")

    def change(self) -> None:
        self.news.set()

    async def create(self, record: Record) -> None:
        await self._reached("create")
        await self.inner.create(record)

    async def append(self, id: str, entry: Entry) -> None:
        await self._reached("append")
        if self.fenced:
            raise Fenced
        await self.inner.append(id, entry)
        self.change()

    def spare(self, id: str, entry: Entry) -> bool:
        return False

    async def finish(self, id: str) -> None:
        await self._reached("finish")
        await self.inner.finish(id)
        self.change()

    async def load(self, id: str) -> Stored | Gone | None:
        await self._reached("load")
        return await self.inner.load(id)

    async def forget(self, id: str) -> None:
        await self._reached("forget")
        await self.inner.forget(id)

    async def sweep(self) -> None:
        await self._reached("sweep")

    async def claim(self, key: str, claim: Claim) -> Claim:
        await self._reached("claim")
        return await self.inner.claim(key, claim)

    async def disclaim(self, key: str) -> None:
        await self._reached("disclaim")
        await self.inner.disclaim(key)

    async def follow(self, id: str, after: int) -> AsyncGenerator[Entry, None]:
        self.follows += 1
        try:
            while True:
                await self._reached("follow")
                found = await self.inner.load(id)
                assert isinstance(found, Stored)
                for entry in found.entries:
                    if entry.cursor.seq > after:
                        after = entry.cursor.seq
                        yield entry
                if found.finished:
                    return
                await self.news.wait()
        finally:
            self.follows -= 1

    async def cancel(self, id: str) -> None:
        await self._reached("cancel")
        self.cancels.append(id)
        self.change()

    async def cancelled(self) -> AsyncGenerator[str, None]:
        while True:
            while self.cancels:
                yield self.cancels.pop()
            await self.news.wait()

    async def viewing(self, id: str) -> None:
        await self._reached("viewing")
        self.views.add(id)

    async def viewed(self, id: str) -> bool:
        await self._reached("viewed")
        return id in self.views


class Place:
    """A hub and what it is made of."""

    def __init__(self, hub: Hub, store: Frail) -> None:
        self.hub = hub
        self.store = store

    async def create(
        self,
        id: str = "s",
        *,
        policy: OnDisconnect = OnDisconnect.CANCEL,
        committed: bool = True,
        key: str | None = None,
        mark: str | None = None,
    ) -> Generation:
        record = Record(id, "owner", n=2)
        generation = self.hub.prepare(record, policy=policy, names=Names("body", key, mark))
        await self.hub.register(generation)
        if committed:
            generation.stream.commit()
        return generation


@asynccontextmanager
async def hubs(number: int = 1, *, shared: bool = False, limits: HubLimits = LIMITS) -> AsyncIterator[list[Place]]:
    """Hubs of several processes on one store; nothing of them may be left over at the end."""
    store = Frail()
    kept = StoreBackend(store, store, MemoryMarks(now=anyio.current_time), store if shared else None)
    with anyio.fail_after(BOUND):
        async with anyio.create_task_group() as tasks:
            places = [
                Place(Hub(backend=kept, tasks=tasks, limits=limits, observer=Observer()), store) for _ in range(number)
            ]
            yield places
            tasks.cancel_scope.cancel()


def preview(text: str, image: int = 0) -> Frame:
    return Frame(type_of(Operation.EDIT, Role.PREVIEW), (text.encode(),), image)


def completed(text: str, image: int = 0) -> Frame:
    return Frame(type_of(Operation.EDIT, Role.COMPLETED), (text.encode(),), image, final=True)


def texts(stream: Stream) -> list[str]:
    return [b"".join(entry.frame.data).decode() for entry in stream.log.retained()]


async def rest(subscriber: Subscriber) -> list[str]:
    got: list[str] = []
    while (entry := await subscriber.next()) is not None:
        got.append(b"".join(entry.frame.data).decode())
    return got


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # bounded by the test's own block
        await anyio.sleep(0.002)


def failed(place: Place) -> bool:
    return place.hub.health.failed


async def refused(hub: Hub, id: str) -> Failure:
    with pytest.raises(ProxyError) as caught:
        await hub.find(id)
    return caught.value.failure


# Who finds what.


async def test_a_stream_is_found_live_then_kept_then_gone() -> None:
    async with hubs() as [place]:
        generation = await place.create()
        assert await place.hub.find("s") is generation.stream
        await generation.append(completed("A" * 600))
        await place.hub.conclude(generation)
        assert place.hub.running == 0
        again = await place.hub.find("s")
        assert again is not generation.stream
        assert (texts(again), again.finished, again.record.owner, again.record.n) == (["A" * 600], True, "owner", 2)
        other = await place.create("t")
        await other.append(completed("B" * 600))
        await place.hub.conclude(other)
        assert await refused(place.hub, "s") is Failure.GONE
        assert await refused(place.hub, "never") is Failure.NOT_FOUND


async def test_a_stream_is_found_before_it_is_stored() -> None:
    async with hubs() as [place], anyio.create_task_group() as tasks:
        generation = place.hub.prepare(Record("s"), policy=OnDisconnect.CANCEL, names=Names("body"))

        async def create() -> None:
            await place.hub.register(generation)

        tasks.start_soon(create)
        await checkpoint()
        assert await place.hub.find("s") is generation.stream


async def test_what_its_only_caller_has_had_is_kept_no_longer() -> None:
    async with hubs() as [place]:
        generation = await place.create()
        await generation.append(completed("A"))
        place.hub.discard(generation.stream)  # before the end has been kept
        await place.hub.conclude(generation)
        await until(lambda: place.store.inner.bytes == 0)
        assert await refused(place.hub, "s") is Failure.GONE
        assert place.hub.running == 0


async def test_the_end_is_told_once() -> None:
    async with hubs() as [place]:
        generation = await place.create()
        await generation.append(completed("A"))
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(place.hub.conclude, generation)
            await checkpoint()
            found = await place.hub.find("s")
            assert (texts(found), found.finished) == (["A"], True)
        assert place.store.calls.count("finish") == 1
        assert place.hub.running == 0


async def test_the_end_is_kept_though_its_task_is_cancelled() -> None:
    async with hubs() as [place]:
        generation = await place.create()
        await generation.append(completed("A"))
        with anyio.CancelScope() as scope:
            scope.cancel()
            await place.hub.conclude(generation)
        assert (await place.hub.find("s")).finished
        assert place.hub.running == 0


async def test_generations_have_a_limit() -> None:
    async with hubs() as [place]:
        streams = [await place.create(str(number)) for number in range(LIMITS.streams)]
        with pytest.raises(ProxyError) as caught:
            place.hub.admission.admit(place.hub.running)
        assert caught.value.failure is Failure.OVERLOADED
        await place.hub.conclude(streams[0])
        place.hub.admission.admit(place.hub.running)


# Viewers.


async def test_viewers_have_a_limit_per_stream_and_per_owner() -> None:
    async with hubs() as [place]:
        one, two = (await place.create("one")).stream, (await place.create("two")).stream

        def watch(stream: Stream) -> Subscriber:
            subscriber = stream.subscribe()
            place.hub.admission.watch(stream, subscriber)
            return subscriber

        viewers = [watch(one) for _ in range(LIMITS.viewers)]
        with pytest.raises(ProxyError) as caught:
            watch(one)
        assert caught.value.failure is Failure.TOO_MANY_VIEWERS
        assert len(one.subscribers) == LIMITS.viewers
        others = [watch(two) for _ in range(LIMITS.viewers_of_owner - LIMITS.viewers)]
        with pytest.raises(ProxyError):
            watch(two)
        place.hub.admission.unwatch(one, viewers.pop())
        others.append(watch(two))
        for stream, readers in ((one, viewers), (two, others)):
            for reader in readers:
                place.hub.admission.unwatch(stream, reader)
        assert not place.hub.admission._viewers_of
        assert not one.subscribers | two.subscribers


# Without readers.


async def test_without_readers_it_is_cancelled_after_the_grace() -> None:
    async with hubs() as [place]:
        generation = await place.create()
        with generation.scope:
            generation.stream.subscribe().leave()
            assert not generation.scope.cancel_called
            await anyio.sleep_forever()
        assert generation.scope.cancelled_caught
        assert generation.ending is Ending.ABANDONED


async def test_a_return_within_the_grace_begins_it_anew() -> None:
    async with hubs(limits=HubLimits(0.3, 0, 9, 9, 9)) as [place]:
        generation = await place.create()
        generation.stream.subscribe().leave()
        await anyio.sleep(0.2)
        back = generation.stream.subscribe()
        await anyio.sleep(0.2)
        assert not generation.scope.cancel_called
        back.leave()
        began = anyio.current_time()
        await until(lambda: generation.scope.cancel_called)
        assert anyio.current_time() - began > 0.25


@pytest.mark.parametrize("committed", [False, True])
async def test_every_caller_who_leaves_leaves_a_grace(committed: bool) -> None:
    async with hubs() as [place]:
        generation = await place.create(committed=committed)
        generation.stream.subscribe(asker=True).leave()
        assert not generation.scope.cancel_called
        await until(lambda: generation.scope.cancel_called)


async def test_a_stream_that_shall_finish_does() -> None:
    async with hubs(limits=HubLimits(0, 0, 9, 9, 9)) as [place]:
        generation = await place.create(policy=OnDisconnect.FINISH)
        generation.stream.subscribe().leave()
        await generation.append(completed("A"))
        await anyio.sleep(0.05)
        assert not generation.scope.cancel_called
        await place.hub.conclude(generation)
        assert texts(await place.hub.find("s")) == ["A"]


async def test_a_stream_that_ended_in_its_grace_is_not_cancelled() -> None:
    async with hubs() as [place]:
        generation = await place.create()
        generation.stream.subscribe().leave()
        await place.hub.conclude(generation)
        await anyio.sleep(2 * GRACE)
        assert not generation.scope.cancel_called


# Cancelling and draining.


async def _produce(place: Place, generation: Generation) -> None:
    """As a producer does: until it is cancelled, which readers are told."""
    with generation.scope:
        await anyio.sleep_forever()
    failure = Failure.SERVER_SHUTDOWN if generation.ending is Ending.SHUTDOWN else Failure.CANCELLED
    await generation.fail(ProxyError(failure, "Ended."))
    await place.hub.conclude(generation)


async def test_ending_a_stream_cancels_it_then_forgets_it() -> None:
    async with hubs() as [place], anyio.create_task_group() as tasks:
        generation = await place.create()
        reader = generation.stream.subscribe()
        tasks.start_soon(_produce, place, generation)
        assert not await place.hub.end(generation.stream)
        assert not await place.hub.end(generation.stream)
        (said,) = await rest(reader)
        assert '"cancelled"' in said
        assert generation.ending is Ending.CANCELLED
        kept = await place.hub.find("s")
        assert texts(kept) == [said]
        assert await place.hub.end(kept)
        assert await refused(place.hub, "s") is Failure.GONE


async def test_a_drain_waits_for_what_runs_and_takes_nothing_new() -> None:
    async with hubs() as [place], anyio.create_task_group() as tasks:
        generation = await place.create()
        tasks.start_soon(place.hub.drain, BOUND)
        await until(lambda: place.hub.admission.draining)
        with pytest.raises(ProxyError) as caught:
            place.hub.admission.admit(place.hub.running)
        assert caught.value.failure is Failure.DRAINING
        await generation.append(completed("A"))
        assert not generation.scope.cancel_called
        await place.hub.conclude(generation)
    assert generation.ending is None


async def test_at_the_drains_deadline_streams_end() -> None:
    async with hubs() as [place], anyio.create_task_group() as tasks:
        generations = [await place.create(str(number)) for number in range(3)]
        readers = [generation.stream.subscribe() for generation in generations]
        for generation in generations:
            tasks.start_soon(_produce, place, generation)
        await place.hub.drain(0.05)
        assert place.hub.running == 0
        for reader in readers:
            (said,) = await rest(reader)
            assert '"server_shutdown"' in said
            assert reader.at_end


async def test_a_drain_lets_go_of_what_runs_elsewhere() -> None:
    async with hubs(2, shared=True) as [here, there]:
        generation = await there.create()
        followed = await here.hub.find("s")
        reader = followed.subscribe()
        await generation.append(preview("a0"))
        assert await reader.next() is not None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(here.hub.drain, BOUND)
            assert await rest(reader) == []
            assert not reader.at_end  # he comes back, elsewhere
            reader.leave()
        assert not generation.scope.cancel_called


# Other processes.


async def test_a_stream_elsewhere_is_followed_once_for_all_readers() -> None:
    async with hubs(2, shared=True) as [here, there]:
        generation = await there.create()
        await generation.append(preview("a0"))
        one = await here.hub.find("s")
        readers = [one.subscribe(), (await here.hub.find("s")).subscribe(Cursor(EPOCH, 1))]
        assert readers[0].stream is readers[1].stream
        await generation.append(completed("A"))
        await generation.append(completed("B", 1))
        await there.hub.conclude(generation)
        assert await rest(readers[1]) == ["A", "B"]
        assert (await rest(readers[0]))[-2:] == ["A", "B"]
        assert here.store.views == {"s"}
        for reader in readers:
            reader.leave()
        assert here.hub._mirrors is not None
        await here.hub._mirrors.gone()


async def test_readers_who_come_at_once_follow_the_same_mirror() -> None:
    async with hubs(2, shared=True) as [here, there], anyio.create_task_group() as tasks:
        await there.create()
        readers: list[Subscriber] = []

        async def come() -> None:
            readers.append((await here.hub.find("s")).subscribe())

        for _ in range(3):
            tasks.start_soon(come)
        await until(lambda: len(readers) == 3 and here.store.follows > 0)
        assert len({reader.stream for reader in readers}) == 1
        assert here.store.follows == 1


async def test_a_find_elsewhere_does_not_follow_the_stream() -> None:
    async with hubs(2, shared=True) as [here, there]:
        generation = await there.create()
        await generation.append(preview("a0"))
        assert texts(await here.hub.find("s")) == ["a0"]
        assert here.hub._mirrors is not None
        await here.hub._mirrors.gone()
        assert here.store.views == set()
        assert "follow" not in here.store.calls
        await generation.append(preview("a1"))
        assert texts(await here.hub.find("s")) == ["a1"]


async def test_the_last_reader_here_ends_the_following() -> None:
    async with hubs(2, shared=True) as [here, there]:
        generation = await there.create()
        first = (await here.hub.find("s")).subscribe()
        await generation.append(preview("a0"))
        assert await first.next() is not None
        assert here.store.follows == 1
        first.leave()
        await until(lambda: not here.store.follows)
        await generation.append(completed("A"))
        second = (await here.hub.find("s")).subscribe()
        assert second.stream is not first.stream
        await there.hub.conclude(generation)
        assert await rest(second) == ["A"]


async def test_a_reader_at_a_mirrors_end_misses_nothing() -> None:
    async with hubs(2, shared=True) as [here, there]:
        generation = await there.create()
        first = (await here.hub.find("s")).subscribe()
        await generation.append(completed("A"))
        await there.hub.conclude(generation)
        assert await rest(first) == ["A"]
        late = (await here.hub.find("s")).subscribe()
        assert await rest(late) == ["A"]
        assert late.at_end


async def test_cancelling_reaches_the_process_that_produces() -> None:
    async with hubs(2, shared=True) as [here, there], anyio.create_task_group() as tasks:
        tasks.start_soon(there.hub.tend)
        generation = await there.create()
        reader = (await here.hub.find("s")).subscribe()
        tasks.start_soon(_produce, there, generation)
        await here.hub.end(reader.stream)
        (said,) = await rest(reader)
        assert '"cancelled"' in said
        tasks.cancel_scope.cancel()


async def test_viewers_elsewhere_keep_a_stream_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamproxy.hub.limits.PRESENCE_SECONDS", 0.02)
    async with hubs(2, shared=True) as [here, there]:
        generation = await there.create()
        (await here.hub.find("s")).subscribe()
        await until(lambda: "s" in here.store.views)
        generation.stream.subscribe().leave()
        await anyio.sleep(3 * GRACE)
        assert not generation.scope.cancel_called
        back = generation.stream.subscribe()  # while others are asked for: when he leaves, a whole grace begins
        here.store.views.clear()
        back.leave()
        began = anyio.current_time()
        await until(lambda: generation.scope.cancel_called)
        assert anyio.current_time() - began > 0.8 * GRACE


# A store that fails.


async def test_without_its_store_a_stream_goes_on_here() -> None:
    with capture_logs() as logs:
        async with hubs() as [place]:
            generation = await place.create()
            reader = generation.stream.subscribe()
            await generation.append(preview("a0"))
            place.store.down = True
            await generation.append(completed("A"))
            await generation.append(completed("B", 1))
            assert failed(place)
            assert await place.hub.find("s") is generation.stream
            await place.hub.conclude(generation)
            assert await rest(reader) == ["A", "B"]
            assert place.hub.running == 0
            assert (
                await refused(place.hub, "other") is Failure.OVERLOADED
            )  # without the store, NOT_FOUND would be a guess
            with pytest.raises(ProxyError) as unknown:  # a key that cannot be kept would not keep from paying twice
                await place.hub.keys.reserve("k", "f", "id")
            assert unknown.value.failure is Failure.OVERLOADED
            place.store.down = False
            assert await refused(place.hub, "other") is Failure.NOT_FOUND
            assert not failed(place)
    assert [(line.get("failure"), line.get("recovered")) for line in logs if line["event"] == "store"] == [
        ("it is down", None),
        (None, True),
    ]


async def test_a_stream_can_begin_without_the_store() -> None:
    async with hubs() as [place]:
        place.store.down = True
        generation = await place.create()
        reader = generation.stream.subscribe()
        await generation.append(completed("A"))
        await place.hub.conclude(generation)
        assert await rest(reader) == ["A"]
        assert place.hub.running == 0


async def test_readers_elsewhere_end_with_the_store_and_come_back() -> None:
    async with hubs(2, shared=True) as [here, there]:
        generation = await there.create()
        reader = (await here.hub.find("s")).subscribe()
        await generation.append(completed("A"))
        assert await reader.next() is not None
        here.store.down = True
        here.store.change()
        assert await rest(reader) == []
        assert not reader.at_end
        assert failed(here)
        assert await refused(here.hub, "s") is Failure.OVERLOADED
        here.store.down = False
        again = (await here.hub.find("s")).subscribe(Cursor(EPOCH, 1))
        await generation.append(completed("B", 1))
        await there.hub.conclude(generation)
        assert await rest(again) == ["B"]


async def test_a_producer_that_is_fenced_ends_like_everywhere_else() -> None:
    async with hubs() as [place]:
        generation = await place.create()
        reader = generation.stream.subscribe()
        place.store.fenced = True
        with pytest.raises(ProxyError) as caught:
            await generation.append(completed("A"))
        await generation.fail(caught.value)
        await place.hub.conclude(generation)
        assert [entry.frame.type for entry in generation.stream.log.retained()] == [ERROR]
        (said,) = await rest(reader)
        assert '"producer_lost"' in said


# Idempotency.


async def test_a_key_stands_for_its_first_request() -> None:
    async with hubs() as [place]:
        assert await place.hub.keys.reserve("k", "f", "one") is None
        assert await place.hub.keys.reserve("k", "f", "one") is None
        assert await place.hub.keys.reserve("k", "f", "two") == "one"
        with pytest.raises(ProxyError) as caught:
            await place.hub.keys.reserve("k", "g", "three")
        assert caught.value.failure is Failure.IDEMPOTENCY_MISMATCH


async def test_a_key_whose_request_was_refused_is_free() -> None:
    async with hubs() as [place]:
        generation = await place.create(key="k")
        other = await place.create("t")
        await place.hub.keys.reserve("k", "f", "s")
        await place.hub.withdraw("t", other.names)
        assert await place.hub.keys.reserve("k", "f", "two") == "s"
        await place.hub.withdraw("s", generation.names)
        assert await place.hub.keys.reserve("k", "f", "two") is None
