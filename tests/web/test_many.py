"""The bytes of several streams for one reader: turns, conflation, and preempted previews."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest

from streamproxy.core.events import Frame
from streamproxy.hub.generation import Generation, OnDisconnect
from streamproxy.hub.hub import Hub
from streamproxy.hub.keys import Names
from streamproxy.hub.limits import HubLimits
from streamproxy.hub.log import Entry, Record, Unmade, Version
from streamproxy.hub.memory import MemoryMarks, MemoryStore
from streamproxy.hub.store import Gone, StoreBackend, Stored, StoreError
from streamproxy.hub.stream import Stream, Versions
from streamproxy.observe import Observer
from streamproxy.web.many import Layout, Place, Reading, State
from streamproxy.web.slicing import SLICE, Pieces
from streamproxy.web.streams import Urls
from streamproxy.web.writing import RETRY_OVERLOADED
from tests.support.streams import IDS, Followed, followed, retry_of

pytestmark = pytest.mark.anyio

PREVIEW = "image_edit.partial_image"
COMPLETED = "image_edit.completed"
LIMITS = HubLimits(grace=60.0, hold=0.0, viewers=9, viewers_of_owner=99, streams=99)
INLINE = Layout(payload="inline", preempt=True, from_now=False, request_id="r")


def data(number: int, size: int) -> bytes:
    return b'{"n":%d,"b64_json":"%b"}' % (number, b"A" * size)


@dataclass(slots=True)
class Made:
    """Streams of a hub."""

    hub: Hub
    generations: list[Generation]

    @property
    def streams(self) -> list[Stream]:
        return [generation.stream for generation in self.generations]

    async def preview(self, number: int, *, n: int = 0, size: int = 8, image: int = 0) -> None:
        """One more preview of a stream."""
        await self.generations[number].append(Frame(PREVIEW, (data(n, size),), image))

    async def complete(self, number: int, *, n: int = 9, size: int = 8, image: int = 0) -> None:
        """An image of a stream is there."""
        await self.generations[number].append(Frame(COMPLETED, (data(n, size),), image, final=True))

    async def end(self, number: int) -> None:
        """No frame will follow in a stream."""
        await self.hub.conclude(self.generations[number])

    @asynccontextmanager
    async def reading(
        self, layout: Layout = INLINE, heartbeat: float = 60.0, versions: Versions | None = None
    ) -> AsyncIterator[Written]:
        """A reader, at its first byte."""
        places = [
            Place(self.hub, stream.id, Urls(f"/v1/streams/{stream.id}", "t"), None, versions) for stream in self.streams
        ]
        for place in places:
            await place.open(from_now=False)
        reading = Reading(places, layout, heartbeat, Observer())
        async with anyio.create_task_group() as tasks, aclosing(reading.written()) as pieces:
            reading.turns.begin(places, tasks)
            yield Written(reading, pieces)
            tasks.cancel_scope.cancel()
        reading.close(sent=True)


@dataclass(slots=True)
class Written:
    """What a reader has been sent, piece by piece as the test asks for it."""

    reading: Reading
    pieces: AsyncGenerator[Pieces, None]
    body: bytearray = field(default_factory=bytearray)

    async def piece(self) -> int:
        """Take one more piece; its size."""
        with anyio.fail_after(5):
            piece = await anext(self.pieces)
        self.body += piece.joined()
        return len(piece)

    async def until(self, text: bytes, times: int = 1) -> None:
        """Take pieces until there is this text."""
        while self.body.count(text) < times:
            await self.piece()

    async def rest(self) -> list[Followed]:
        """Take all that is left; all events."""
        with anyio.fail_after(5):
            async for piece in self.pieces:
                self.body += piece.joined()
        return followed(bytes(self.body), IDS)


class Away(MemoryStore):
    """A store that cannot be reached by those who look for a stream."""

    async def load(self, id: str) -> Stored | Gone | None:
        raise StoreError("away")


@asynccontextmanager
async def several(count: int, kind: type[MemoryStore] = MemoryStore) -> AsyncIterator[Made]:
    async with anyio.create_task_group() as tasks:
        store = kind(max_bytes=1 << 30, linger=60.0, now=anyio.current_time)
        backend = StoreBackend(store, store, MemoryMarks(now=anyio.current_time))
        hub = Hub(backend=backend, tasks=tasks, limits=LIMITS, observer=Observer())
        generations = [
            hub.prepare(Record(f"s{number}", n=9), policy=OnDisconnect.FINISH, names=Names("body"))
            for number in range(count)
        ]
        for generation in generations:
            await hub.register(generation)
        yield Made(hub, generations)
        tasks.cancel_scope.cancel()


def told(events: list[Followed]) -> list[tuple[object, str, object, str | None]]:
    return [(event.json["stream"], event.event.partition(".")[2], event.json["n"], event.id) for event in events]


async def test_a_reader_who_waits_gets_the_newest_preview_of_each() -> None:
    async with several(2) as made, made.reading() as written:
        await written.until(b":\n")
        for n in range(5):
            await made.preview(0, n=n)
            await made.preview(1, n=n)
        await written.until(b"\n\n", 2)
        await made.complete(0)
        await made.end(0)
        await made.complete(1)
        await made.end(1)
        events = await written.rest()
        assert told(events)[:2] == [("s0", "partial_image", 4, "1.5-0.0"), ("s1", "partial_image", 4, "1.5-1.5")]
        assert told(events)[2:] == [("s0", "completed", 9, "1.6-1.5"), ("s1", "completed", 9, "1.6-1.6")]


async def test_several_images_of_a_stream_are_conflated_each() -> None:
    async with several(2) as made, made.reading() as written:
        await written.until(b":\n")
        for n in range(3):
            await made.preview(1, n=n, image=n % 2)
        await written.until(b"\n\n", 2)
        events = followed(bytes(written.body), IDS)
        assert told(events) == [("s1", "partial_image", 1, "0.0-1.2"), ("s1", "partial_image", 2, "0.0-1.3")]


async def test_streams_take_turns() -> None:
    """One that always has more does not keep another from its first word."""
    async with several(2) as made, made.reading() as written:
        await written.until(b":\n")
        for image in range(5):
            await made.complete(0, n=image, image=image)
        await written.until(b"\n\n")
        await made.complete(1)
        await written.until(b'"stream":"s1"')
        assert written.body.count(b'"stream":"s0"') <= 2


async def test_a_frame_is_never_inside_another() -> None:
    async with several(2) as made, made.reading() as written:
        await written.until(b":\n")
        await made.preview(0, size=4 * SLICE)
        while await written.piece() != SLICE:
            pass
        await made.complete(1)
        await made.preview(1, n=1, image=1)
        await written.until(b"\n\n", 3)
        events = followed(bytes(written.body), IDS)
        assert [event.json["stream"] for event in events] == ["s0", "s1", "s1"]


@pytest.mark.parametrize("preempt", [True, False])
async def test_a_half_written_preview_ends_for_its_own_image_only(preempt: bool) -> None:
    layout = Layout(payload="inline", preempt=preempt, from_now=False, request_id="r")
    async with several(2) as made, made.reading(layout) as written:
        await written.until(b":\n")
        await made.preview(0, size=9 * SLICE)
        await written.piece()
        await made.complete(1)
        await written.piece()
        await written.piece()
        assert b"superseded" not in written.body
        await made.complete(0)
        for number in range(2):
            await made.end(number)
        body = bytes(written.body)
        events = [event for event in await written.rest() if event.event != "superseded"]
        assert (b"event: superseded\n\n" in written.body) is preempt
        assert len(written.body) > len(body)
        ids = {str(event.json["stream"]): event.id for event in events[-2:]}
        assert ids == {"s1": "0.0-1.1" if preempt else "1.1-1.1", "s0": "1.2-1.1"}


async def test_what_is_sent_is_not_held() -> None:
    """While a reader is stuck in one stream's picture, the others hold nothing for it."""
    async with several(3) as made, made.reading() as written:
        await written.until(b":\n")
        await made.preview(0, size=4 * SLICE)
        await written.piece()
        for n in range(4):
            await made.preview(1, n=n, size=SLICE)
        assert made.streams[1].log.bytes < 2 * SLICE
        await made.complete(2)
        await written.until(b"\n\n", 3)
        events = followed(bytes(written.body), IDS)
        assert [event.json["n"] for event in events] == [0, 3, 9]


async def test_silence() -> None:
    async with several(2) as made, made.reading(heartbeat=0.01) as written:
        await written.until(b":\n", 4)
        assert written.body.endswith(b":\n:\n:\n:\n")


async def test_a_finished_stream_is_read_at_its_turn() -> None:
    """And sent to its end, while it is in memory: it is not followed before, and not after."""
    async with several(3) as made:
        for number in (0, 2):
            for image in range(2):
                await made.complete(number, n=image, image=image)
            await made.end(number)
        async with made.reading() as written:
            assert [place.subscriber is None for place in written.reading.places] == [True, False, True]
            await written.until(b"\n\n", 2)
            assert b'"stream":"s2"' not in written.body
            await written.until(b"\n\n", 4)
            await made.end(1)
            assert len(await written.rest()) == 4
            assert written.reading.at_end
            assert [place.subscriber for place in written.reading.places] == [None] * 3


async def test_one_that_cannot_be_followed_here_ends_the_answer() -> None:
    """As soon as the others are silent, and without an end: the reader comes back for it."""
    async with several(2) as made, made.reading() as written:
        await written.until(b":\n")
        await made.complete(0)
        made.streams[1].give_up()
        assert told(await written.rest()) == [("s0", "completed", 9, "1.1-0.0")]
        assert not written.reading.at_end


async def test_what_runs_here_is_sent_while_the_store_is_away() -> None:
    """A stream that has ended is only in the store. The reader is told to come back, not too soon."""
    async with several(2, Away) as made:
        await made.complete(0)
        await made.end(0)
        await made.complete(1)
        async with made.reading() as written:
            assert [place.state for place in written.reading.places] == [State.AWAY, State.LIVE]
            assert told(await written.rest()) == [("s1", "completed", 9, "0.0-1.1")]
            low, high = RETRY_OVERLOADED
            assert low <= retry_of(bytes(written.body)) <= high
            assert not written.reading.at_end


@dataclass(slots=True)
class Making:
    """Versions of previews, all of which are there but these: of a stream, by their number."""

    pending: set[tuple[str, int]] = field(default_factory=set)

    def __call__(self, stream: Stream, entry: Entry) -> Version:
        return Unmade.MAKING if (stream.id, entry.cursor.seq) in self.pending else entry


async def test_a_preview_that_is_being_made_holds_up_no_other_stream() -> None:
    making = Making({("s0", 1)})
    async with several(2) as made, made.reading(versions=making) as written:
        await written.until(b":\n")
        await made.preview(0)
        await made.preview(1)
        await written.until(b"\n\n")
        await made.complete(1)
        await written.until(b"\n\n", 2)
        making.pending.clear()
        made.streams[0].changed.set()
        await written.until(b"\n\n", 3)
        await made.end(0)
        await made.end(1)
        assert [event.id for event in await written.rest()] == ["0.0-1.1", "0.0-1.2", "1.1-1.2"]


async def test_one_that_is_superseded_at_its_turn() -> None:
    """Its successor is not there yet: the next stream has its turn."""
    making = Making({("s0", 2)})
    async with several(2) as made, made.reading(versions=making) as written:
        await written.until(b":\n")
        await made.preview(0)
        await made.preview(1)
        await anyio.wait_all_tasks_blocked()  # both have their turn now
        await made.preview(0)
        await written.until(b"\n\n")
        await made.complete(0)
        await written.until(b"\n\n", 2)
        await made.end(0)
        await made.end(1)
        assert [event.id for event in await written.rest()] == ["0.0-1.1", "1.3-1.1"]
