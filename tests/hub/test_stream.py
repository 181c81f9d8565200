"""One stream in a process: its retained entries, its producer's pace, and readers that lag or come back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
import orjson
import pytest
from anyio.lowlevel import checkpoint

from streamproxy.core.cursor import Cursor
from streamproxy.core.events import ERROR, Frame, Operation, Role, type_of
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.generation import Generation
from streamproxy.hub.log import Entry, Record
from streamproxy.hub.store import Fenced
from streamproxy.hub.stream import Stream, Subscriber

pytestmark = pytest.mark.anyio

BOUND = 5.0
BROKEN = ProxyError(Failure.UPSTREAM_INCOMPLETE, "It broke.")
PREVIEW = type_of(Operation.GENERATION, Role.PREVIEW)
COMPLETED = type_of(Operation.GENERATION, Role.COMPLETED)


def preview(text: str, image: int = 0) -> Frame:
    return Frame(PREVIEW, (text.encode(),), image)


def completed(text: str, image: int = 0) -> Frame:
    return Frame(COMPLETED, (text.encode(),), image, final=True)


def texts(stream: Stream) -> list[str]:
    return [text(entry) for entry in stream.log.retained()]


def text(entry: Entry | None) -> str:
    assert entry is not None
    return b"".join(entry.frame.data).decode()


class Keeping:
    """A keeper that stores, and makes room, as a test says."""

    waits = True

    def __init__(
        self,
        store: Callable[[Entry], Awaitable[None]] | None = None,
        make_room: Callable[[Entry], bool] = lambda _: False,
    ) -> None:
        self._store = store
        self._make_room = make_room

    async def keep(self, generation: Generation, entry: Entry) -> None:
        if self._store is not None:
            await self._store(entry)

    def spare(self, generation: Generation, entry: Entry) -> bool:
        return self._make_room(entry)


async def _all(subscriber: Subscriber) -> list[tuple[int, str]]:
    """Everything until the end, with its seq."""
    got: list[tuple[int, str]] = []
    with anyio.fail_after(BOUND):
        while (entry := await subscriber.next()) is not None:
            got.append((entry.cursor.seq, text(entry)))
    return got


async def _settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(10):
        await checkpoint()


async def test_the_newest_previews_and_every_outcome_are_retained() -> None:
    stream = Stream(Record("s", n=3))
    generation = Generation(stream)
    for frame in (preview("a0"), preview("b0", 1), preview("a1"), completed("A"), preview("b1", 1), preview("c0", 2)):
        await generation.append(frame)
    assert texts(stream) == ["A", "b1", "c0"]
    assert stream.log.bytes == len("A") + len("b1") + len("c0")
    await generation.append(completed("B", 1))
    assert texts(stream) == ["A", "c0", "B"]
    stream.finish()
    assert texts(stream) == ["A", "B"]
    assert stream.log.bytes == 2


async def test_a_preview_makes_room_once_every_reader_has_it() -> None:
    stream = Stream(Record("s"))
    asked: list[int] = []

    def make_room(entry: Entry) -> bool:
        asked.append(entry.cursor.seq)
        return entry.cursor.seq > 1

    generation = Generation(stream, keeper=Keeping(make_room=make_room))
    await generation.append(preview("a"))
    assert (asked, texts(stream)) == ([1], ["a"])  # there was room
    viewer = stream.subscribe(Cursor(1, 1))
    await generation.append(preview("b"))
    assert (asked, texts(stream)) == ([1], ["b"])  # the viewer has yet to be given it
    assert text(await viewer.next()) == "b"
    asker = stream.subscribe(asker=True)
    async with anyio.create_task_group() as tasks:
        with anyio.fail_after(BOUND):
            tasks.start_soon(generation.append, preview("c"))
            await _settle()
            assert text(await viewer.next()) == "c"
            assert text(await asker.next()) == "c"
            await _settle()
            assert (asked, texts(stream)) == ([1], ["c"])  # given to the asker, not yet sent
            tasks.start_soon(asker.next)
            await _settle()
            assert (asked, texts(stream), stream.log.bytes) == ([1, 3], [], 0)
            await generation.append(completed("A"))
    assert (asked, texts(stream), stream.log.bytes) == ([1, 3], ["A"], 1)


async def test_entries_of_the_last_reader_are_freed() -> None:
    stream = Stream(Record("s", n=2))
    generation = Generation(stream)
    for frame in (completed("A"), completed("B", 1)):
        await generation.append(frame)
    first, second = stream.subscribe(), stream.subscribe()
    assert text(await first.next()) == "A"
    stream.finish()
    stream.release()
    assert text(await first.next()) == "B"
    assert texts(stream) == ["A", "B"]  # the other one is yet to be given both
    assert text(await second.next()) == "A"
    first.leave()
    assert text(await second.next()) == "B"
    assert (texts(stream), stream.log.bytes) == ([], 0)
    assert await second.next() is None
    assert second.at_end


async def test_a_preview_behind_its_image_s_outcome_is_nobody_s() -> None:
    stream = Stream(Record("s", n=2))
    generation = Generation(stream)
    await generation.append(completed("A"))
    await generation.append(preview("late"))
    await generation.append(preview("b0", 1))
    assert [(entry.cursor.seq, text(entry)) for entry in stream.log.retained()] == [(1, "A"), (2, "b0")]


async def test_readers_share_the_very_frame_that_was_appended() -> None:
    stream = Stream(Record("s"))
    generation = Generation(stream)
    readers = [stream.subscribe() for _ in range(3)]
    frame = completed("A")
    await generation.append(frame)
    for reader in readers:
        entry = await reader.next()
        assert entry is not None
        assert entry.frame is frame


async def test_a_lagging_reader_skips_previews_only() -> None:
    stream = Stream(Record("s", n=2))
    generation = Generation(stream)
    reader = stream.subscribe()
    await generation.append(preview("a0"))
    assert text(await reader.next()) == "a0"
    for frame in (preview("a1"), preview("a2"), completed("A"), preview("b0", 1), preview("b1", 1)):
        await generation.append(frame)
    assert text(await reader.next()) == "A"
    assert text(await reader.next()) == "b1"
    await generation.append(completed("B", 1))
    stream.finish()
    assert await _all(reader) == [(7, "B")]
    assert reader.at_end
    assert await reader.next() is None


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (None, ["A", "b1", "B"]),
        (Cursor(1, 0), ["A", "b1", "B"]),
        (Cursor(1, 1), ["A", "b1", "B"]),
        (Cursor(1, 2), ["b1", "B"]),
        (Cursor(1, 3), ["b1", "B"]),
        (Cursor(1, 4), ["B"]),
        (Cursor(1, 5), ["A", "b1", "B"]),  # never given: from the start
        (Cursor(2, 2), ["A", "b1", "B"]),
        (Cursor(0, 2), ["A", "b1", "B"]),
    ],
    ids=str,
)
async def test_a_cursor_is_where_a_reader_goes_on(after: Cursor | None, expected: list[str]) -> None:
    stream = Stream(Record("s", n=2))
    generation = Generation(stream)
    for frame in (preview("a0"), completed("A"), preview("b0", 1), preview("b1", 1)):
        await generation.append(frame)
    reader = stream.subscribe(after)
    got: list[str] = []
    while len(got) < len(expected) - 1:
        got.append(text(await reader.next()))
    await generation.append(completed("B", 1))
    stream.finish()
    assert [*got, *(said for _, said in await _all(reader))] == expected


async def test_the_producer_waits_until_the_preview_has_been_sent() -> None:
    stream = Stream(Record("s"))
    generation = Generation(stream)
    asker = stream.subscribe(asker=True)
    appended: list[int] = []

    async def produce() -> None:
        for number in range(3):
            await generation.append(preview(str(number)))
            appended.append(number)
        await generation.append(completed("A"))
        appended.append(3)

    with anyio.fail_after(BOUND):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(produce)
            for sent in range(3):
                assert text(await asker.next()) == str(sent)
                await _settle()
                assert appended == list(range(sent))
            assert text(await asker.next()) == "A"
            await _settle()
            assert appended == [0, 1, 2, 3]  # an outcome waits for no reader


async def test_other_readers_do_not_pace_or_wake_each_other() -> None:
    stream = Stream(Record("s"))
    generation = Generation(stream)
    readers = [stream.subscribe() for _ in range(3)]
    woken: list[bool] = []

    async def watch() -> None:
        woken.append(await stream.changed.wait())

    with anyio.fail_after(BOUND):
        for number in range(100):
            await generation.append(preview(str(number)))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            await _settle()
            for reader in readers:
                assert text(await reader.next()) == "99"
                with pytest.raises(TimeoutError):
                    await reader.next(within=0.001)
            assert woken == []  # a step of one reader is no news to the others
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["leaves", "fails"])
async def test_a_waiting_producer_goes_on_when_its_asker_leaves(how: str) -> None:
    stream = Stream(Record("s"))
    generation = Generation(stream)
    asker = stream.subscribe(asker=True)
    stream.subscribe()
    with anyio.fail_after(BOUND):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(generation.append, preview("a0"))
            await _settle()
            if how == "leaves":
                asker.leave()
            else:
                await generation.fail(BROKEN)


async def test_silence_is_a_timeout_and_costs_nothing() -> None:
    stream = Stream(Record("s"))
    generation = Generation(stream)
    reader = stream.subscribe()
    with anyio.fail_after(BOUND):
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await reader.next(within=0.01)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(generation.append, preview("a0"))
            assert text(await reader.next(within=BOUND)) == "a0"
            with pytest.raises(TimeoutError):
                await reader.next(within=0.01)
        stream.finish()
        assert await reader.next(within=0.01) is None


async def test_a_failure_is_the_last_frame_and_is_known_at_once() -> None:
    stream = Stream(Record("s"), request_id="r")
    generation = Generation(stream)
    reader = stream.subscribe()
    await generation.append(preview("a0"))
    await generation.fail(BROKEN)
    stream.finish()
    assert stream.error is BROKEN
    (seq, said), *more = await _all(reader)
    assert (seq, more) == (2, [])
    assert orjson.loads(said) == {
        "type": ERROR,
        "request_id": "r",
        "error": {
            "message": "It broke.",
            "type": "upstream_error",
            "param": None,
            "code": "upstream_incomplete",
            "status": 502,
            "charged": True,
        },
    }


async def test_a_half_written_preview_is_superseded() -> None:
    stream = Stream(Record("s", n=2))
    generation = Generation(stream)
    reader = stream.subscribe()
    await generation.append(preview("a0"))
    first = await reader.next()
    assert first is not None
    await generation.append(preview("a1"))
    await generation.append(completed("B", 1))
    assert not stream.superseded(first)  # a newer preview does not stop one that is under way: none would ever be whole
    await generation.append(completed("A"))
    assert stream.superseded(first)
    assert not any(stream.superseded(entry) for entry in stream.log.retained())
    other = Stream(Record("o", n=2))
    others = Generation(other)
    await others.append(preview("b0", 1))
    half = other.log.after(0)
    assert half is not None
    await others.fail(BROKEN)
    other.finish()
    assert other.superseded(half)


@pytest.mark.parametrize("final", [False, True], ids=["preview", "outcome"])
async def test_an_outcome_is_kept_before_it_is_delivered(final: bool) -> None:
    stream = Stream(Record("s"))
    reader = stream.subscribe()
    seen: list[bool] = []

    async def keep(entry: Entry) -> None:
        await _settle()
        seen.append(stream.log.after(reader.seq) is entry)

    generation = Generation(stream, keeper=Keeping(keep))
    await generation.append(completed("A") if final else preview("a0"))
    assert seen == [not final]
    assert text(await reader.next()) in ("A", "a0")


async def test_producers_side_by_side_take_turns() -> None:
    stream = Stream(Record("s", n=4))
    kept: list[int] = []

    async def keep(entry: Entry) -> None:
        await _settle()
        kept.append(entry.cursor.seq)

    generation = Generation(stream, keeper=Keeping(keep))
    with anyio.fail_after(BOUND):
        async with anyio.create_task_group() as tasks:
            for image in range(4):
                tasks.start_soon(generation.append, preview("p", image))
                tasks.start_soon(generation.append, completed("c", image))
    assert kept == list(range(1, len(kept) + 1))
    seqs = [entry.cursor.seq for entry in stream.log.retained()]
    assert seqs == sorted(set(seqs))
    assert len([entry for entry in stream.log.retained() if entry.critical]) == 4


async def test_an_outcome_is_kept_and_delivered_despite_a_cancel() -> None:
    stream = Stream(Record("s"))
    kept: list[tuple[int, str]] = []
    keeping, go_on = anyio.Event(), anyio.Event()

    async def keep(entry: Entry) -> None:
        keeping.set()
        await go_on.wait()
        kept.append((entry.cursor.seq, entry.frame.type))

    async def produce() -> None:
        with generation.scope:
            await generation.append(completed("A"))
        await generation.fail(BROKEN)

    generation = Generation(stream, keeper=Keeping(keep))
    with anyio.fail_after(BOUND):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(produce)
            await keeping.wait()
            generation.scope.cancel()
            await _settle()
            go_on.set()
    assert kept == [(1, COMPLETED), (2, ERROR)]
    assert [(entry.cursor.seq, entry.frame.type) for entry in stream.log.retained()] == kept


async def test_a_store_that_has_another_end_takes_the_failure_too() -> None:
    """The end that readers here get is the one that readers elsewhere have got."""
    stream = Stream(Record("s"))

    async def fenced(entry: Entry) -> None:
        raise Fenced

    generation = Generation(stream, keeper=Keeping(fenced))
    await generation.fail(BROKEN)
    stream.finish()
    assert stream.error is not None
    assert stream.error.failure is Failure.PRODUCER_LOST
    assert [orjson.loads(said)["error"]["code"] for said in texts(stream)] == ["producer_lost"]


async def test_the_last_reader_s_leaving_is_told_once() -> None:
    idle: list[Stream] = []
    stream = Stream(Record("s"), on_idle=idle.append)
    one, two = stream.subscribe(), stream.subscribe()
    one.leave()
    assert idle == []
    two.leave()
    two.leave()
    one.leave()
    assert idle == [stream]
    assert stream.visits == 2


async def test_readers_of_what_was_given_up_get_what_there_is() -> None:
    stream = Stream(Record("s"))
    generation = Generation(stream)
    reader, waiting = stream.subscribe(), stream.subscribe(Cursor(1, 0))
    await generation.append(preview("a0"))
    assert text(await waiting.next()) == "a0"
    with anyio.fail_after(BOUND):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_all, waiting)
            await _settle()
            stream.give_up()
    assert await _all(reader) == [(1, "a0")]
    assert not reader.at_end
    assert not waiting.at_end


@pytest.mark.parametrize("how", ["accept", "fail", "finish"])
async def test_opened_returns_at_the_first_news(how: str) -> None:
    stream = Stream(Record("s"))
    generation = Generation(stream)
    news: dict[str, Callable[[], object]] = {"accept": stream.accept, "finish": stream.finish}
    with anyio.fail_after(BOUND / 2):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.opened, BOUND)
            await _settle()
            if how == "fail":
                await generation.fail(BROKEN)
            else:
                news[how]()
        await stream.opened(BOUND)


async def test_opened_waits_no_longer_than_asked() -> None:
    stream = Stream(Record("s"))
    with anyio.fail_after(BOUND / 2):
        await stream.opened(0.01)
    assert not stream.acceptance.accepted


async def test_a_wait_for_the_end_is_over_in_time_in_a_flood() -> None:
    """Each event wakes the task that waits, so that a cancellation never finds it asleep."""
    stream = Stream(Record("s"))
    flooding = True

    async def flood() -> None:
        nonlocal flooding
        until = anyio.current_time() + 5
        while anyio.current_time() < until:
            stream.changed.set()
            await anyio.lowlevel.checkpoint()
        flooding = False

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(flood)
        await stream.ended(0.01)
        assert flooding
        tasks.cancel_scope.cancel()
