"""The store of one process: its byte cap, the order of purges, the memory of purged streams, and the time of claims."""

from __future__ import annotations

import anyio
import pytest

from streamproxy.core.cursor import Cursor
from streamproxy.core.events import Frame, Operation, Role, type_of
from streamproxy.hub import memory
from streamproxy.hub.health import StoreHealth
from streamproxy.hub.log import EPOCH, Entry, Record
from streamproxy.hub.memory import MemoryMarks, MemoryStore
from streamproxy.hub.repeats import Repeats
from streamproxy.hub.store import Asking, Claim, Found, Gone, Standing, Stored
from streamproxy.hub.stream import Stream
from streamproxy.observe import Observer

pytestmark = pytest.mark.anyio

CAP = 100
LINGER = 60.0
DAY = 24 * 3600.0


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    return MemoryStore(max_bytes=CAP, linger=LINGER, now=clock)


def preview(seq: int, size: int) -> Entry:
    return Entry(Cursor(EPOCH, seq), Frame(type_of(Operation.EDIT, Role.PREVIEW), (b"p" * size,)))


def completed(seq: int, size: int, image: int = 0) -> Entry:
    frame = Frame(type_of(Operation.EDIT, Role.COMPLETED), (b"c" * size,), image, final=True)
    return Entry(Cursor(EPOCH, seq), frame)


async def finished(store: MemoryStore, id: str, size: int) -> None:
    """A stream with one image of this size, from begin to end."""
    await store.create(Record(id, None, 0, 1))
    await store.append(id, completed(1, size))
    await store.finish(id)


async def kinds(store: MemoryStore, *ids: str) -> list[str]:
    names = {Stored: "kept", Gone: "gone", type(None): "unknown"}
    return [names[type(await store.load(id))] for id in ids]


async def test_over_the_cap_the_oldest_finished_go_first(store: MemoryStore, clock: Clock) -> None:
    for id in ("a", "b", "c"):
        await finished(store, id, 30)
        clock.now += 1
    assert store.bytes == 90
    await finished(store, "d", 40)
    assert await kinds(store, "a", "b", "c", "d") == ["gone", "kept", "kept", "kept"]
    assert store.bytes == 100
    await finished(store, "e", 1)
    assert await kinds(store, "b", "c", "d", "e") == ["gone", "kept", "kept", "kept"]
    assert store.bytes == 71


async def test_order_is_by_the_end_and_not_by_the_beginning(store: MemoryStore) -> None:
    await store.create(Record("first", None, 0, 1))
    await finished(store, "second", 50)
    await store.append("first", completed(1, 50))
    await store.finish("first")
    await finished(store, "third", 50)
    assert await kinds(store, "first", "second", "third") == ["kept", "gone", "kept"]


async def test_a_live_stream_takes_the_place_of_finished_ones(store: MemoryStore) -> None:
    await finished(store, "done", 60)
    await store.create(Record("live", None, 0, 3))
    await store.append("live", completed(1, 80))
    assert await kinds(store, "done", "live") == ["gone", "kept"]
    await store.append("live", completed(2, 80, image=1))
    assert store.bytes == 160
    found = await store.load("live")
    assert isinstance(found, Stored)
    assert len(found.entries) == 2


async def test_a_stream_over_the_cap_is_purged_at_its_end(store: MemoryStore) -> None:
    await finished(store, "huge", CAP + 1)
    assert await kinds(store, "huge") == ["gone"]
    assert store.bytes == 0


async def test_superseded_previews_take_no_room(store: MemoryStore) -> None:
    await store.create(Record("s", None, 0, 1))
    for seq in range(1, 50):
        await store.append("s", preview(seq, 90))
        assert store.bytes == 90
    await store.append("s", completed(50, 20))
    assert store.bytes == 20
    await store.create(Record("t", None, 0, 1))
    await store.append("t", preview(1, 10))
    await store.finish("t")  # without an outcome: previews are of no more use
    assert store.bytes == 20


async def test_a_live_preview_is_dropped_only_without_room(store: MemoryStore) -> None:
    for id in ("a", "b"):
        await store.create(Record(id, None, 0, 1))
        await store.append(id, preview(1, 50))
        assert not store.spare(id, preview(1, 50))
    await store.append("b", preview(2, 51))
    assert store.spare("b", preview(2, 51))
    assert store.bytes == 50
    await store.append("b", completed(3, 90))
    assert not await _previews(store, "b")
    await store.finish("b")
    assert store.bytes == 50


async def _previews(store: MemoryStore, id: str) -> int:
    found = await store.load(id)
    assert isinstance(found, Stored)
    return sum(not entry.critical for entry in found.entries)


async def test_what_has_lingered_is_gone_when_swept_or_asked_for(store: MemoryStore, clock: Clock) -> None:
    await finished(store, "a", 10)
    clock.now += 1
    await finished(store, "b", 20)
    clock.now += LINGER - 1
    await store.sweep()
    assert store.bytes == 20
    assert await kinds(store, "a", "b", "never") == ["gone", "kept", "unknown"]
    clock.now += 1
    assert await kinds(store, "b") == ["gone"]
    assert store.bytes == 0


async def test_ids_of_what_has_gone_are_forgotten_in_turn(
    store: MemoryStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "REMEMBERED", 3)
    for id in "abcde":
        await finished(store, id, 1)
    clock.now += LINGER
    await store.sweep()
    assert await kinds(store, *"abcde") == ["unknown", "unknown", "gone", "gone", "gone"]


async def test_a_claim_holds_for_a_day(store: MemoryStore, clock: Clock) -> None:
    first, second = Claim("f", "one"), Claim("g", "two")
    assert await store.claim("k", first) is first
    assert await store.claim("other", second) is second
    clock.now += DAY - 0.1
    assert await store.claim("k", second) is first  # asking again does not make it longer
    clock.now += 0.1
    assert await store.claim("k", second) is second
    assert await store.claim("other", first) is first


async def test_a_claim_that_is_taken_back_is_free_again(store: MemoryStore) -> None:
    first, second = Claim("f", "one"), Claim("g", "two")
    await store.claim("k", first)
    await store.disclaim("k")
    await store.disclaim("k")
    assert await store.claim("k", second) is second


async def test_too_many_claims_cost_the_oldest(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CLAIMS", 3)
    claims = {key: Claim("f", key) for key in "abcd"}
    for key in "abc":
        await store.claim(key, claims[key])
    assert await store.claim("a", Claim("f", "again")) is claims["a"]
    await store.claim("d", claims["d"])
    assert await store.claim("b", Claim("f", "again")) is claims["b"]
    assert (await store.claim("a", Claim("f", "again"))).stream_id == "again"


async def test_what_a_caller_has_had_is_over_at_once(clock: Clock) -> None:
    async def find(id: str) -> Stream:
        raise AssertionError(id)

    marks = MemoryMarks(now=clock)
    async with anyio.create_task_group() as tasks:
        repeats = Repeats(marks, health=StoreHealth(Observer()), find=find, tasks=tasks, hold=0)
        assert await marks.ask("mark", "first", 1.0, Asking.FIRST) == Found(Standing.NEW)
        repeats.finished("mark", "first")
        assert await marks.ask("mark", "second", 2.0, Asking.RETRY) == Found(Standing.NEW)
