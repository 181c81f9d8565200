"""The contract of stores of streams, one row per store: a store returns the entries that a Log retains."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamproxy.core.cursor import Cursor
from streamproxy.core.events import Frame, Operation, Role, error_frame, type_of
from streamproxy.core.sse import Piece
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.log import EPOCH, Entry, Log, Record
from streamproxy.hub.memory import MemoryMarks, MemoryStore
from streamproxy.hub.store import (
    OWN,
    Asking,
    Claim,
    Claims,
    Found,
    Gone,
    Listing,
    Marks,
    Standing,
    Store,
    Stored,
    Summary,
)
from streamproxy.hub.valkey.store import ValkeyStore
from tests.support.valkey import ValkeyServer

pytestmark = pytest.mark.anyio

BOUND: Final = 20.0
LINGER: Final = 1.0

PREVIEW: Final = type_of(Operation.GENERATION, Role.PREVIEW)
COMPLETED: Final = type_of(Operation.GENERATION, Role.COMPLETED)


@dataclass(frozen=True, slots=True)
class Row:
    """An open store. In the block of `pass_linger` what has just finished lingers; soon after it, no more."""

    store: Store
    claims: Claims
    marks: Marks
    listing: Listing
    pass_linger: Callable[[], AbstractAsyncContextManager[None]]


Open = Callable[[], AbstractAsyncContextManager[Row]]


@asynccontextmanager
async def open_memory() -> AsyncIterator[Row]:
    now = [1000.0]
    store = MemoryStore(max_bytes=64 << 20, linger=LINGER, now=lambda: now[0])

    @asynccontextmanager
    async def pass_linger() -> AsyncIterator[None]:
        now[0] += LINGER - 0.01
        yield  # not yet
        now[0] += 0.02

    yield Row(store, store, MemoryMarks(now=lambda: now[0]), store, pass_linger)


def open_valkey(url: str, linger: float) -> Open:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Row]:
        @asynccontextmanager
        async def pass_linger() -> AsyncIterator[None]:
            yield  # the server's clock cannot be set

        with anyio.fail_after(BOUND):
            async with ValkeyStore(url, linger=linger, replica="one").open() as store:
                yield Row(store, store, store, store, pass_linger)

    return opened


@pytest.fixture(params=["memory", "valkey"], scope="module")
def opened(request: pytest.FixtureRequest) -> Open:
    """The store of this row; finished streams linger for as long as a test needs."""
    if request.param == "memory":
        return open_memory
    server: ValkeyServer = request.getfixturevalue("shared_server")
    return open_valkey(server.url, 60.0)


@pytest.fixture(params=["memory", "valkey"], scope="module")
def forgetful(request: pytest.FixtureRequest) -> Open:
    """The store of this row, where finished streams linger for LINGER."""
    if request.param == "memory":
        return open_memory
    server: ValkeyServer = request.getfixturevalue("shared_server")
    return open_valkey(server.url, LINGER)


def record(id: str, *, owner: str | None = "owner", n: int = 1) -> Record:
    return Record(id, owner, 1_700_000_000, n)


def entry(seq: int, frame: Frame, epoch: int = EPOCH) -> Entry:
    return Entry(Cursor(epoch, seq), frame)


def preview(text: bytes, image: int = 0) -> Frame:
    return Frame(PREVIEW, (text,), image)


def completed(text: bytes, image: int = 0) -> Frame:
    return Frame(COMPLETED, (text,), image, final=True)


Plain = tuple[Cursor, str, bytes, int, bool]


def plain(entries: Sequence[Entry]) -> list[Plain]:
    """What must be equal of entries: how the data is cut into pieces need not."""
    return [(e.cursor, e.frame.type, b"".join(e.frame.data), e.frame.image, e.frame.final) for e in entries]


async def stored(store: Store, id: str) -> Stored:
    found = await store.load(id)
    assert isinstance(found, Stored), found
    return found


ids: Final = iter(range(1_000_000))
"""Streams of their own for every example of every test."""

frames = st.builds(
    lambda image, final, pieces: Frame(COMPLETED if final else PREVIEW, tuple(pieces), image, final),
    st.integers(0, 3),
    st.sampled_from([False, False, True]),
    st.lists(st.binary(max_size=40), max_size=3),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(sent=st.lists(frames, max_size=14), gap=st.integers(1, 3))
async def test_a_store_retains_what_a_stream_retains(opened: Open, sent: list[Frame], gap: int) -> None:
    id = f"conflated-{next(ids)}"
    log = Log()
    async with opened() as row:
        await row.store.create(record(id, owner=None, n=4))
        for number, frame in enumerate(sent, 1):
            log.add(entry(number * gap, frame))  # a seq may be missing where the store was away
            await row.store.append(id, entry(number * gap, frame))
            found = await stored(row.store, id)
            assert plain(found.entries) == plain(list(log.retained()))
            assert not found.finished
        log.finish()
        await row.store.finish(id)
        found = await stored(row.store, id)
    assert plain(found.entries) == plain(list(log.retained()))
    assert found.finished
    assert found.record == record(id, owner=None, n=4)


async def test_an_error_ends_what_was_kept_like_in_a_stream(opened: Open) -> None:
    failed = error_frame(ProxyError(Failure.IDLE_TIMEOUT, "Too slow — ünïcode."), "failed")
    log = Log()
    async with opened() as row:
        await row.store.create(record("failed", n=2))
        for seq, frame in enumerate((preview(b"p", 0), completed(b"c", 1), preview(b"q", 2), failed), 1):
            log.add(entry(seq, frame))
            await row.store.append("failed", entry(seq, frame))
        assert plain((await stored(row.store, "failed")).entries) == plain(list(log.retained()))
        await row.store.finish("failed")
        assert [e.frame.type for e in (await stored(row.store, "failed")).entries] == [COMPLETED, "error"]


async def test_bytes_come_back_as_they_went_in(opened: Open) -> None:
    odd = bytes(range(256)) * 16_384  # 4 MiB with every byte, CR, LF and NUL among them
    pieces: tuple[Piece, ...] = (odd[:1], memoryview(odd)[1:3_000_001], b"", memoryview(odd)[3_000_001:])
    async with opened() as row:
        await row.store.create(record("odd"))
        await row.store.append("odd", entry(1, Frame(PREVIEW, (memoryview(odd),), 0)))
        assert b"".join((await stored(row.store, "odd")).entries[0].frame.data) == odd
        await row.store.append("odd", entry(2, Frame(COMPLETED, pieces, 0, final=True)))
        await row.store.append("odd", entry(3, Frame(COMPLETED, (), 1, final=True)))
        await row.store.finish("odd")
        big, empty = (await stored(row.store, "odd")).entries
    assert b"".join(big.frame.data) == odd
    assert empty.frame.size == 0


async def test_the_record_comes_back(opened: Open) -> None:
    async with opened() as row:
        for id, owner in (("whose", "ä owner: {}"), ("nobody's", None)):
            await row.store.create(Record(id, owner, 123, 7))
            found = await stored(row.store, id)
            assert found == Stored(Record(id, owner, 123, 7), (), finished=False)


async def test_streams_do_not_mix(opened: Open) -> None:
    odd_ids = ["one", "two", "{one}", "one}:x{", "*"]
    async with opened() as row:
        for id in odd_ids:
            await row.store.create(record(id))
            await row.store.append(id, entry(1, completed(id.encode())))
        await row.store.finish("one")
        for id in odd_ids:
            found = await stored(row.store, id)
            assert plain(found.entries) == plain([entry(1, completed(id.encode()))])
            assert found.finished == (id == "one")


async def test_what_never_was_is_none(opened: Open) -> None:
    async with opened() as row:
        assert await row.store.load("never") is None


async def test_a_finished_stream_lingers_and_then_is_gone(forgetful: Open) -> None:
    id = f"brief-{next(ids)}"
    async with forgetful() as row:
        await row.store.create(record(id))
        await row.store.create(record("live"))
        await row.store.append(id, entry(1, completed(b"image")))
        await row.store.append("live", entry(1, preview(b"sketch")))
        await row.store.finish(id)
        async with row.pass_linger():
            assert plain((await stored(row.store, id)).entries) == plain([entry(1, completed(b"image"))])
        await row.store.sweep()
        with anyio.fail_after(BOUND):
            found = await row.store.load(id)
            while isinstance(found, Stored):
                await anyio.sleep(0.02)
                found = await row.store.load(id)
        assert isinstance(found, Gone)
        assert plain((await stored(row.store, "live")).entries) == plain([entry(1, preview(b"sketch"))])


async def test_one_of_many_claims_holds(opened: Open) -> None:
    key = f"key-{next(ids)}"
    answers: list[Claim] = []
    async with opened() as row:

        async def ask(number: int) -> None:
            answers.append(await row.claims.claim(key, Claim("print", f"stream-{number}")))

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(ask, number)
        assert len(answers) == 20
        assert len(set(answers)) == 1
        winner = answers[0]
        assert await row.claims.claim(key, Claim("other print", "late")) == winner
        assert await row.claims.claim(f"{key}-other", Claim("other print", "late")) == Claim("other print", "late")


async def test_a_claim_that_is_given_up_can_be_made_anew(opened: Open) -> None:
    key = f"key-{next(ids)}"
    async with opened() as row:
        first, second = Claim("a", "1"), Claim("b", "2")
        assert await row.claims.claim(key, first) == first
        await row.claims.disclaim(key)
        assert await row.claims.claim(key, second) == second
        assert await row.claims.claim(key, first) == second
        await row.claims.disclaim("never claimed")


async def test_what_is_forgotten_is_gone_at_once(opened: Open) -> None:
    one, other = f"forgotten-{next(ids)}", f"kept-{next(ids)}"
    async with opened() as row:
        for id in (one, other):
            await row.store.create(record(id))
            await row.store.append(id, entry(1, completed(b"image")))
        await row.store.forget(other)  # it has not finished
        for id in (one, other):
            await row.store.finish(id)
        await row.store.forget(one)
        await row.store.forget(one)
        assert isinstance(await row.store.load(one), Gone)
        assert (await stored(row.store, other)).finished
        await row.store.forget("never was")


NEW: Final = Found(Standing.NEW)
FOLLOWED: Final = Found(Standing.FOLLOWED)


def adopted(id: str) -> Found:
    return Found(Standing.ADOPTED, id)


@dataclass(slots=True)
class Asker:
    """Requests of one mark, a second apart."""

    marks: Marks
    mark: str
    time: float = 1_700_000_000.5

    async def __call__(self, id: str, asking: Asking = Asking.RETRY) -> Found:
        self.time += 1
        return await self.marks.ask(self.mark, id, self.time, asking)


async def test_a_retry_adopts_what_its_caller_has_left(opened: Open) -> None:
    async with opened() as row:
        ask = Asker(row.marks, f"mark-{next(ids)}")
        assert await ask("one", Asking.FIRST) == NEW
        assert await ask("two") == FOLLOWED
        await row.marks.left(ask.mark, "one", OWN)
        assert await ask("three", Asking.FIRST) == NEW  # a request of its own, whatever was left
        assert await ask("four") == adopted("one")
        assert await ask("five") == FOLLOWED  # "three" may be about to be left
        assert await ask("five", Asking.LAST) == adopted("one")
        await row.marks.left(ask.mark, "three", OWN)
        assert await ask("six") == adopted("three")
        await row.marks.left(ask.mark, "one", 1)
        await row.marks.left(ask.mark, "one", 1)
        assert await ask("seven") == adopted("one")
        for id in ("one", "three"):
            if (rest := row.marks.over(ask.mark, id)) is not None:
                await rest
            await row.marks.left(ask.mark, id, 1)
        assert await ask("eight") == NEW
        assert await ask("nine", Asking.LAST) == NEW


async def test_the_newest_of_what_was_left_is_adopted_first(opened: Open) -> None:
    async with opened() as row:
        ask = Asker(row.marks, f"mark-{next(ids)}")
        names = ["b", "c", "a"]
        for id in names:
            assert await ask(id, Asking.FIRST) == NEW
        for id in names:
            await row.marks.left(ask.mark, id, OWN)
        assert [(await ask("retry")).id for _ in range(4)] == ["a", "c", "b", "a"]
        assert (await row.marks.ask(f"{ask.mark}-other", "x", 1.0, Asking.RETRY)) == NEW


async def test_each_retry_adopts_another_of_many_generations(opened: Open) -> None:
    async with opened() as row:
        ask = Asker(row.marks, f"mark-{next(ids)}")
        names = [f"s{number}" for number in range(20)]
        for id in names:
            await ask(id, Asking.FIRST)
            await row.marks.left(ask.mark, id, OWN)
        found: list[str] = []

        async def retry() -> None:
            found.append((await ask("retry")).id)

        async with anyio.create_task_group() as tasks:
            for _ in names:
                tasks.start_soon(retry)
        assert sorted(found) == sorted(names)


async def test_a_failure_is_every_requests_for_a_while(opened: Open) -> None:
    failure = b'{"type":"error"} \xc3\xbc'
    async with opened() as row:
        ask = Asker(row.marks, f"mark-{next(ids)}")
        await ask("left", Asking.FIRST)
        await row.marks.left(ask.mark, "left", OWN)
        await row.marks.failed(ask.mark, failure, 0.9 * LINGER)
        assert await ask("one", Asking.FIRST) == Found(Standing.FAILED, failure=failure)
        assert await ask("two") == adopted("left")
        assert await ask("three") == Found(Standing.FAILED, failure=failure)
        assert await row.marks.ask(f"{ask.mark}-other", "x", 1.0, Asking.FIRST) == NEW
        async with row.pass_linger():
            pass
        with anyio.fail_after(BOUND):
            while (found := await ask("four", Asking.FIRST)) != NEW:
                assert found.failure == failure


# Listing.


async def listed(row: Row, owner: str, after: str | None = None, limit: int = 9) -> list[tuple[str, bool]]:
    found = await row.listing.owned(owner, after, limit)
    assert found is not None
    return [(one.record.id, one.finished) for one in found]


async def test_an_owners_streams_are_listed_newest_first(opened: Open) -> None:
    mine, other = f"mine-{next(ids)}", f"other-{next(ids)}"
    names = [f"listed-{next(ids)}" for _ in range(4)]
    async with opened() as row:
        assert await row.listing.owned(mine, None, 9) == []
        for id, owner in zip(names, (mine, other, mine, mine), strict=True):
            await row.store.create(record(id, owner=owner))
            await row.store.create(record(f"{id}-nobodys", owner=None))
        await row.store.finish(names[2])
        first, _, second, third = names
        assert await listed(row, mine) == [(third, False), (second, True), (first, False)]
        assert await listed(row, mine, limit=2) == [(third, False), (second, True)]
        assert await listed(row, mine, after=second) == [(first, False)]
        assert await listed(row, mine, after=third, limit=1) == [(second, True)]
        assert await listed(row, mine, after=first) == []
        assert await row.listing.owned(mine, names[1], 9) is None
        assert await row.listing.owned(mine, "never", 9) is None
        assert [one.record for one in await row.listing.owned(other, None, 9) or []] == [record(names[1], owner=other)]


async def test_a_list_says_how_a_stream_failed(opened: Open) -> None:
    owner, id = f"owner-{next(ids)}", f"failed-{next(ids)}"
    async with opened() as row:
        await row.store.create(record(id, owner=owner, n=2))
        await row.store.append(id, entry(1, completed(b"{}")))
        frame = error_frame(ProxyError(Failure.CANCELLED, "The generation was cancelled."), "r")
        await row.store.append(id, entry(2, frame))
        await row.store.finish(id)
        expected = Summary(record(id, owner=owner, n=2), True, b"".join(frame.data))
        assert await row.listing.owned(owner, None, 9) == [expected]


async def test_what_is_forgotten_is_not_listed(opened: Open) -> None:
    owner = f"owner-{next(ids)}"
    names = [f"forgotten-{next(ids)}" for _ in range(5)]
    async with opened() as row:
        for id in names:
            await row.store.create(record(id, owner=owner))
        for id in names[1:4]:
            await row.store.finish(id)
            await row.store.forget(id)
        assert await listed(row, owner, limit=2) == [(names[4], False), (names[0], False)]
        assert await row.listing.owned(owner, names[2], 9) is None


async def test_what_lingered_long_enough_is_not_listed(forgetful: Open) -> None:
    owner, id = f"owner-{next(ids)}", f"lingered-{next(ids)}"
    async with forgetful() as row:
        await row.store.create(record(id, owner=owner))
        await row.store.finish(id)
        async with row.pass_linger():
            assert await listed(row, owner) == [(id, True)]
        with anyio.fail_after(BOUND):
            while await row.listing.owned(owner, None, 9):
                pass
