"""GET streams?stream=ID:TOKEN&stream=ID:TOKEN...: several streams on one EventSource.

A browser opens six connections to a host over HTTP/1.1, so a page that follows twelve pictures needs this one.

    data: {..., "stream": "str_2"}
    event: image_generation.completed
    id: 1.5-1.3-0.0                     a cursor for each stream, in the order of the query

Streams take turns, one frame each, in the order in which they have something to send. The frame is chosen at its turn:
a stream that had to wait sends its newest preview. A finished stream is read from the store at its turn, and sent to
its end, so that one of them is in memory at a time.

A stream that is no longer kept is told by an `error` event of its own, with the cursor LOST, and the others go on. A
stream that cannot be reached now ends the answer as soon as the others are silent: the reader comes back for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import anyio
from anyio.abc import TaskGroup
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from streamproxy.core.completion import appended
from streamproxy.core.cursor import Cursor, parse_cursor
from streamproxy.core.events import ANSWER, error_frame
from streamproxy.core.sse import Piece
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.hub import Hub
from streamproxy.hub.log import Entry
from streamproxy.hub.stream import Stream, Subscriber, Versions
from streamproxy.observe import Observer
from streamproxy.web.endpoint import Context
from streamproxy.web.headers import preferences, wants_events
from streamproxy.web.jobs import list_streams
from streamproxy.web.previews import PreviewChoice, preview_choice
from streamproxy.web.responses import NO_REFERRER, Reader, empty_response
from streamproxy.web.slicing import LARGEST, Pieces, sliced
from streamproxy.web.streams import Urls, away, choice, follows, inline, urls
from streamproxy.web.writing import (
    HEARTBEAT,
    RETRY,
    RETRY_OVERLOADED,
    SUPERSEDED,
    Cutoff,
    EventStream,
    note_held,
    opening_words,
    outline_of,
    words,
)

MOST: Final = 64
"""Streams of one request: each takes 97 bytes of the query, and nginx takes a request line of 8 KiB (its default)."""

INLINE: Final = 256 * 1024
"""Bytes of an event that is sent whole unless `payload` says otherwise: 0.2 s at 10 Mbit/s. The others wait for it."""

OPENED: Final = 8
"""Streams that are looked for at a time. Each may be a finished one, whose images are in memory until it is known which
of them the reader has."""

START: Final = Cursor(0, 0)
LOST: Final = Cursor(0, 1)
"""The position in a stream whose loss the reader knows of. No producer has epoch 0."""


async def get_streams(request: Request, context: Context) -> ASGIApp:
    """The events of several streams; without `stream` in the query, a list of the caller's own."""
    if "stream" not in request.query_params:
        return await list_streams(request, context)
    if not wants_events(request) or request.method == "HEAD":
        message = "Several streams are followed as events: accept text/event-stream. Each has a status_url for JSON."
        raise ProxyError(Failure.INVALID_REQUEST, message, param="accept")
    previews = preview_choice(request, context.settings)
    places = _places(request, context, previews)
    reading = Reading(places, _layout(request), context.settings.heartbeat, context.observer)
    with ExitStack() as followed:
        followed.callback(reading.close, sent=False)
        await _open(places, from_now=reading.layout.from_now)
        if reading.at_end:
            return empty_response(204, {"cache-control": "no-store", **NO_REFERRER})
        if (refused := _not_now(context, places)) is not None:
            if preferences(request).get("handling") == "strict":
                raise refused
            return away(context)
        followed.pop_all()
        return ManyStreams(reading, previews.headers, context.cutoff)


async def _open(places: list[Place], *, from_now: bool) -> None:
    """Look for all of them, OPENED at a time: one whose process is slow to answer must not hold up the others."""
    failures: list[ProxyError] = []
    limiter = anyio.CapacityLimiter(OPENED)

    async def one(place: Place) -> None:
        try:
            async with limiter:
                await place.open(from_now=from_now)
        except ProxyError as error:
            failures.append(error)

    async with anyio.create_task_group() as tasks:
        for place in places:
            tasks.start_soon(one, place)
    if failures:
        raise failures[0]


class State(Enum):
    """How much of one stream is left for this reader."""

    LIVE = auto()  # it is followed
    KEPT = auto()  # it has finished, and is read at its turn
    GONE = auto()  # its loss is to be told
    AWAY = auto()  # it cannot be reached now
    OVER = auto()  # nothing


class Place:
    """A reader's place in one of its streams. `cursor`: the last event that was sent; `error`: why it is not there.

    `versions`: as of Stream.subscribe.
    """

    def __init__(self, hub: Hub, id: str, urls: Urls, cursor: Cursor | None, versions: Versions | None = None) -> None:
        self.id = id
        self.urls = urls
        self.cursor = cursor or START
        self.state = State.OVER
        self.subscriber: Subscriber | None = None
        self.error: ProxyError | None = None
        self._hub = hub
        self._given = cursor is not None
        self._versions = versions

    async def open(self, *, from_now: bool) -> None:
        """Look for the stream, and follow it if it runs. Raises ProxyError(TOO_MANY_VIEWERS)."""
        if self.cursor == LOST:
            return
        stream = await self._find()
        if stream is None:
            return
        if from_now and not self._given:
            self.cursor = Cursor(stream.log.epoch, stream.log.last)
        elif not stream.log.gave(self.cursor):
            self.cursor = START
        if not stream.finished:
            self._follow(stream)
            self.state = State.LIVE
        elif follows(stream, self.cursor):
            self.state = State.KEPT

    async def take(self) -> Entry | None:
        """The next event, at this stream's turn; None where there is none, and `state` says why."""
        if self.state is State.KEPT and self.subscriber is None:
            stream = await self._find()
            if stream is None:
                return None
            try:
                self._follow(stream)
            except ProxyError as error:
                self.error, self.state = error, State.AWAY
                return None
        if not self.ready or self.subscriber is None:
            return None  # the preview that was ready has been superseded by one that is being made
        entry = await self.subscriber.next()
        while entry is not None and entry.frame.type == ANSWER:
            entry = await self.subscriber.next()
        if entry is None:
            self.state = State.OVER if self.subscriber.at_end else State.AWAY
            self.leave()
        return entry

    @property
    def ready(self) -> bool:
        """Whether the stream is followed, and has something to send."""
        return self.subscriber is not None and self.subscriber.ready

    def leave(self) -> None:
        """The stream is not followed any more."""
        if self.subscriber is not None:
            self._hub.admission.unwatch(self.subscriber.stream, self.subscriber)
            self.subscriber = None

    def _follow(self, stream: Stream) -> None:
        subscriber = stream.subscribe(self.cursor, versions=self._versions)
        try:
            self._hub.admission.watch(stream, subscriber)
        except ProxyError as error:
            raise _named(error, self.id) from None
        self.subscriber = subscriber

    async def _find(self) -> Stream | None:
        """The stream; None where it is not there. Its token says that it was there once."""
        try:
            return await self._hub.find(self.id)
        except ProxyError as error:
            self.error = error
            if error.status == 503:
                self.state = State.AWAY
            elif error.failure in (Failure.GONE, Failure.NOT_FOUND):
                self.state = State.GONE
            else:
                raise
            return None


def _places(request: Request, context: Context, previews: PreviewChoice) -> list[Place]:
    """The streams that the query names, and where the reader is in them. Raises ProxyError for a wrong token."""
    asked = request.query_params.getlist("stream")
    if len(asked) > MOST:
        raise ProxyError(Failure.INVALID_REQUEST, f"At most {MOST} streams fit into one request.", param="stream")
    named: dict[str, str] = {}
    for text in asked:
        id, _, token = text.partition(":")
        if id in named:
            raise ProxyError(Failure.INVALID_REQUEST, "A stream is named twice.", param=f"stream={id[:_SHOWN]}")
        named[id] = token
        try:
            context.tokens.check(id, token)
        except ProxyError as error:
            raise _named(error, id) from None
    cursors = _cursors(request, len(named))
    versions = context.previews.versions(previews.form)
    return [
        Place(context.hub, id, urls(request, context, id, token, previews), cursor, versions)
        for (id, token), cursor in zip(named.items(), cursors, strict=True)
    ]


def _cursors(request: Request, count: int) -> Sequence[Cursor | None]:
    """A cursor for each stream: the header before the query; an id that is not of so many streams says nothing."""
    query = request.query_params
    given = request.headers.get("last-event-id") or query.get("last_event_id") or query.get("lastEventId") or ""
    parts = given.split("-")
    return [parse_cursor(part) for part in parts] if len(parts) == count else [None] * count


def _named(error: ProxyError, id: str) -> ProxyError:
    """The same failure, with the stream that it is about."""
    return ProxyError(error.failure, error.message, param=f"stream={id[:_SHOWN]}", retry_after=error.retry_after)


_SHOWN: Final = 64
"""Characters of an id that an error repeats: ours have 36, and a caller may write anything there."""


def _not_now(context: Context, places: list[Place]) -> ProxyError | None:
    """Why the reader is to come back later instead: the process stops, or none of its streams can be reached."""
    if context.hub.admission.draining and any(place.state is State.LIVE for place in places):
        return ProxyError(Failure.DRAINING, "The proxy is shutting down.", retry_after="2")
    left = [place for place in places if place.state is not State.OVER]
    return left[0].error if all(place.state is State.AWAY for place in left) else None


@dataclass(frozen=True, slots=True)
class Layout:
    """How the reader wants its events."""

    payload: str
    preempt: bool
    from_now: bool
    request_id: str

    def data(self, place: Place, entry: Entry) -> tuple[Piece, ...]:
        """The event's data, with its stream."""
        ref = self.payload == "ref" or (self.payload == "auto" and entry.frame.size > INLINE)
        data: Callable[[Entry], tuple[Piece, ...]] = place.urls.referenced if ref else inline
        return appended(data(entry), {"stream": place.id})


def _layout(request: Request) -> Layout:
    return Layout(
        payload=choice(request, "payload", ("auto", "inline", "ref")),
        preempt=choice(request, "preempt", ("1", "0")) == "1",
        from_now=choice(request, "from", ("latest", "start", "now")) == "now",
        request_id=request.state.request_id,
    )


class Turns:
    """The streams that have something to send, in the order in which they came to have it. Each is there once."""

    def __init__(self) -> None:
        self._ready: deque[Place] = deque()
        self._added = anyio.Event()
        self._tasks: TaskGroup | None = None

    def __bool__(self) -> bool:
        return bool(self._ready)

    def begin(self, places: list[Place], tasks: TaskGroup) -> None:
        """Let each place have its first turn. `tasks` wait for the next ones."""
        self._tasks = tasks
        for place in places:
            if place.state in (State.KEPT, State.GONE):
                self._ready.append(place)
            elif place.subscriber is not None:
                self.after(place)

    def after(self, place: Place) -> None:
        """The place has had its turn. The next one is at once if its stream had finished before, else when it has more.

        By a task in any case: one that always has more must not be faster than the others' tasks.
        """
        if place.state is State.KEPT:
            self._ready.appendleft(place)
        elif place.subscriber is not None and self._tasks is not None:
            self._tasks.start_soon(self._wait, place, place.subscriber)

    async def next(self, within: float) -> Place:
        """The place whose turn it is. Raises TimeoutError after `within` seconds of silence."""
        if not self._ready:
            self._added = anyio.Event()
            with anyio.fail_after(within):
                await self._added.wait()
        return self._ready.popleft()

    async def _wait(self, place: Place, subscriber: Subscriber) -> None:
        await subscriber.readied()
        self._add(place)

    def _add(self, place: Place) -> None:
        self._ready.append(place)
        self._added.set()


class Reading(Reader):
    """One reader of several streams: its bytes, and whether it has had all of them."""

    def __init__(self, places: list[Place], layout: Layout, heartbeat: float, observer: Observer) -> None:
        self.places = places
        self.layout = layout
        self.turns = Turns()
        self._heartbeat = heartbeat
        self._observer = observer

    @property
    def at_end(self) -> bool:
        return all(place.state is State.OVER for place in self.places)

    def close(self, *, sent: bool) -> None:
        for place in self.places:
            place.leave()

    async def written(self) -> AsyncGenerator[Pieces, None]:
        """The bytes of all streams."""
        yield words(opening_words(RETRY_OVERLOADED if self._any(State.AWAY) else RETRY))
        while self._any(State.LIVE, State.KEPT, State.GONE):
            if self._any(State.AWAY) and not self.turns and not any(place.ready for place in self.places):
                return
            try:
                place = await self.turns.next(self._heartbeat)
            except TimeoutError:
                yield words(HEARTBEAT)
                continue
            if (entry := await place.take()) is not None:
                frame = self._frame(place, entry)
                del entry  # from here on only what has yet to be sent is held
                for part in frame:
                    yield part
                    del part
            self.turns.after(place)
            if place.state is State.GONE and place.error is not None:
                yield words(self._lost(place, place.error))

    def _frame(self, place: Place, entry: Entry) -> Iterator[Pieces]:
        """One whole event; of a preview that is of no more use, what there is of it until then."""
        assert place.subscriber is not None
        stream, cursor, arrived = place.subscriber.stream, entry.cursor, entry.arrived
        end = self._end(entry.frame.type, place, cursor)
        pieces: list[Piece] = [b"data: ", *self.layout.data(place, entry), end]
        outline = outline_of(entry) if self.layout.preempt and not entry.critical else None
        del entry
        for part in sliced(pieces, LARGEST):
            yield part
            del part
            if pieces and outline is not None and stream.superseded(outline):
                yield words(SUPERSEDED)
                return
        place.cursor = cursor
        note_held(self._observer, place.subscriber, arrived)

    def _lost(self, place: Place, error: ProxyError) -> bytes:
        """The event that tells of a stream that is not kept any more."""
        frame = error_frame(error, self.layout.request_id)
        end = self._end(frame.type, place, LOST)
        place.cursor, place.state = LOST, State.OVER
        return b"".join((b"data: ", *appended(frame.data, {"stream": place.id}), end))

    def _end(self, type: str, place: Place, cursor: Cursor) -> bytes:
        """The lines behind the data, with all cursors as they are after this event."""
        cursors = "-".join(str(cursor if one is place else one.cursor) for one in self.places)
        return f"\nevent: {type}\nid: {cursors}\n\n".encode()

    def _any(self, *states: State) -> bool:
        return any(place.state in states for place in self.places)


class ManyStreams(EventStream):
    """The answer. Its tasks wait for streams that are silent, and end with it."""

    def __init__(self, reading: Reading, headers: Mapping[str, str], cutoff: Cutoff) -> None:
        super().__init__(reading.written(), headers, cutoff, reading)
        self._reading = reading

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            self._reading.turns.begin(self._reading.places, tasks)
            try:
                await super().__call__(scope, receive, send)
            except Exception as error:  # to be raised as it is, not as a task group's
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
