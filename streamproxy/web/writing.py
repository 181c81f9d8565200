"""An event stream's one writer: frames in slices, heartbeats between frames, never inside one.

`written` is the loop for every reader; a Layout says how a frame is written for one kind of them.

    Posted      event: image_edit.completed        whatever wire the caller asked in, here the images API's
                data: {...}

    Followed    data: {...}                        EventSource: fields in an order that WHATWG leaves free. `event` and
                event: image_edit.completed        `id` stand behind the data, so a preview that is of no more use can
                id: 1.17                           end as an event that has no listener, and the cursor stays

The only module that imports sse-starlette, which says when the process is asked to stop; its own pings would land
inside frames. A caller is gone when its connection is reset or closed, and also when it is half closed: a caller that
ends its own direction after the request is not told apart from one that left, so its stream ends.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup
from sse_starlette.sse import EventSourceResponse
from starlette.types import Receive, Scope, Send

from streamproxy.core.events import ANSWER, Frame, error_frame
from streamproxy.core.sse import Piece
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.log import Entry
from streamproxy.hub.stream import Stream, Subscriber
from streamproxy.observe import Observer
from streamproxy.surfaces.images import linked_event
from streamproxy.surfaces.wire import Layout as Wire
from streamproxy.web.caller import watched
from streamproxy.web.responses import NO_REFERRER, Reader
from streamproxy.web.slicing import LARGEST, PIECES, Pieces, sliced

HEARTBEAT: Final = b":\n"
"""A comment line without a blank line: SDKs read a blank line as the end of an event."""

RETRY: Final = (1500, 4000)
"""Milliseconds until a reader reconnects, drawn anew for each: a deploy must not bring all back at once."""

RETRY_OVERLOADED: Final = (2000, 8000)
SUPERSEDED: Final = b"\nevent: superseded\n\n"

Data = Callable[[Entry], tuple[Piece, ...]]


class Layout(Protocol):
    """How a stream is written for one kind of reader."""

    def opening(self) -> bytes:
        """The first bytes, before there is any frame."""
        ...

    def pieces(self, entry: Entry) -> list[Piece]:
        """One whole event; empty where this reader is not to have it. The last piece is its end."""
        ...

    def breaks_off(self, entry: Entry) -> bool:
        """Whether a half-written event of this entry may end as SUPERSEDED."""
        ...

    def lost(self, stream: Stream) -> list[Piece]:
        """The last bytes where this process has lost contact with a stream that goes on elsewhere."""
        ...


@dataclass(frozen=True, slots=True)
class Posted:
    """For the caller who asked, or who asked again with the same key, in the wire of its surface.

    `url`: where each image is, if URLs are wanted.
    """

    wire: Wire
    url: Callable[[int], str] | None = None

    def opening(self) -> bytes:
        return HEARTBEAT + b"".join(self.wire.opening())

    def pieces(self, entry: Entry) -> list[Piece]:
        frame = entry.frame
        return [*self.wire.event(frame if self.url is None else linked_event(frame, self.url(frame.image)))]

    def breaks_off(self, entry: Entry) -> bool:
        return False

    def lost(self, stream: Stream) -> list[Piece]:
        return [*self.wire.event(error_frame(unfollowed(), stream.request_id))]


@dataclass(frozen=True, slots=True)
class Followed:
    """For an EventSource. `data` gives an entry's data: with the image in it, or a reference to it."""

    data: Data
    preempt: bool

    def opening(self) -> bytes:
        return opening_words(RETRY)

    def pieces(self, entry: Entry) -> list[Piece]:
        if entry.frame.type == ANSWER:
            return []
        end = b"\nevent: " + entry.frame.type.encode() + b"\nid: " + str(entry.cursor).encode() + b"\n\n"
        return [b"data: ", *self.data(entry), end]

    def breaks_off(self, entry: Entry) -> bool:
        return self.preempt and not entry.critical

    def lost(self, stream: Stream) -> list[Piece]:
        return []  # it reconnects by itself


async def written(
    subscriber: Subscriber, layout: Layout, heartbeat: float, observer: Observer
) -> AsyncGenerator[Pieces, None]:
    """The stream's bytes for one reader, slice by slice, with a comment after `heartbeat` seconds of silence."""
    yield words(layout.opening())
    stream = subscriber.stream
    while True:
        try:
            entry = await subscriber.next(within=heartbeat)
        except TimeoutError:
            yield words(HEARTBEAT)
            continue
        if entry is None:
            for part in sliced([] if subscriber.at_end else layout.lost(stream)):
                yield part
            return
        pieces = layout.pieces(entry)
        outline = outline_of(entry) if layout.breaks_off(entry) else None
        arrived = entry.arrived
        del entry  # from here on only what has yet to be sent is held
        for part in sliced(pieces, LARGEST):
            yield part
            del part
            if pieces and outline is not None and stream.superseded(outline):
                yield words(SUPERSEDED)
                break
        else:
            note_held(observer, subscriber, arrived)
        pieces.clear()


def note_held(observer: Observer, subscriber: Subscriber, arrived: float) -> None:
    """An event that arrived then has been written whole to a reader. One from before the reader came was not held."""
    if arrived >= subscriber.joined:
        observer.held(time.monotonic() - arrived)


def outline_of(entry: Entry) -> Entry:
    """The entry without its data."""
    return Entry(entry.cursor, Frame(entry.frame.type, (), entry.frame.image, entry.frame.final))


def words(text: bytes) -> Pieces:
    """A short text as a slice."""
    return Pieces((text,), len(text))


def opening_words(bounds: tuple[int, int]) -> bytes:
    """When to come back after the connection ends, and bytes that make intermediaries pass the head on at once.

    No blank line: a field counts as its line ends, and openai-python and httpx-sse take a block without data for an
    event.
    """
    return b"retry: %d\n:\n" % random.randint(*bounds)


async def come_back() -> AsyncGenerator[Pieces, None]:
    """For a reader that cannot be served now: EventSource gives up for good on any status but 200."""
    yield words(opening_words(RETRY_OVERLOADED))


def unfollowed() -> ProxyError:
    """The stream runs in another process and this one has lost contact: the caller should retry with the same key."""
    message = "This stream cannot be followed here any more. Send the request again, with the same Idempotency-Key."
    return ProxyError(Failure.OVERLOADED, message, retry_after="2")


class Cutoff:
    """Cuts the event streams that have not ended `grace` seconds after the process was asked to stop.

    sse-starlette knows when that is. It would keep two more tasks for each stream; here one waits for all of an app.
    """

    def __init__(self, tasks: TaskGroup, grace: float) -> None:
        self._tasks = tasks
        self._grace = grace
        self._open: set[anyio.CancelScope] = set()
        self._watching = False

    @contextmanager
    def over(self) -> Iterator[anyio.CancelScope]:
        """One stream, as long as the block lasts: the scope that is cancelled to cut it."""
        if not self._watching:
            self._watching = True
            self._tasks.start_soon(self._watch)
        with anyio.CancelScope() as stream:
            self._open.add(stream)
            try:
                yield stream
            finally:
                self._open.remove(stream)

    async def _watch(self) -> None:
        await EventStream.asked_to_stop()
        await anyio.sleep(self._grace)
        self._watching = False  # a later stream has a grace of its own
        for stream in self._open:
            stream.cancel()


class EventStream(EventSourceResponse):
    """Event stream bytes to one reader, slice by slice."""

    def __init__(
        self, content: AsyncGenerator[Pieces, None], headers: Mapping[str, str], cutoff: Cutoff, reader: Reader
    ) -> None:
        self._content = content
        super().__init__(
            content, headers={**headers, **NO_REFERRER, "cache-control": "no-store, no-transform"}, ping=0, sep="\n"
        )
        self._cutoff = cutoff
        self._reader = reader
        self._joins = True

    @classmethod
    async def asked_to_stop(cls) -> None:
        """Return when sse-starlette says that the process is asked to stop."""
        await cls._listen_for_exit_signal()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As sse-starlette's, which watches the caller and the process in a task each, and writes in a third."""
        self._joins = PIECES not in scope.get("extensions", {})
        sent = False
        try:
            with self._cutoff.over() as writing, watched(receive, writing):
                await anyio.lowlevel.checkpoint()  # a caller who has left is noticed here, before the first write
                await self._write(send)
                sent = self._reader.at_end
            if not sent:
                self._reader.left(ProxyError(Failure.CALLER_GONE, "The caller left before the end of the stream."))
        finally:
            self._reader.close(sent=sent)

    async def _write(self, send: Send) -> None:
        """As sse-starlette's, for pieces that are bytes already: it copies each and gives it a deadline of its own."""
        headers, self.raw_headers = self.raw_headers, []  # not held as long as the stream
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        del headers
        joins = self._joins
        async with aclosing(self._content) as slices:
            async for part in slices:
                body = part.joined() if joins else part
                del part  # while the next event gathers, this one shall not be held
                await send({"type": "http.response.body", "body": body, "more_body": True})
                del body
        await send({"type": "http.response.body", "body": b"", "more_body": False})
