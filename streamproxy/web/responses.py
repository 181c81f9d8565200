"""Responses: errors, JSON, and event streams. The only module that imports sse-starlette.

An event stream has one writer, the generator below: frames in slices, and heartbeats between frames, never inside one.
sse-starlette watches the caller; its own pings would land inside frames.

A caller is gone when its connection is reset or closed, and also when it is half closed. A caller that only ends its
own direction cannot be told from one that left, so its stream ends and its generation is cancelled.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final

import anyio
import orjson
import starlette.responses
from sse_starlette.sse import EventSourceResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamproxy.core.events import error_body, error_frame
from streamproxy.core.sse import Piece
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.stream import Subscriber
from streamproxy.surfaces.wire import Layout
from streamproxy.web import caller
from streamproxy.web.outcome import note_failure

SLICE: Final = 64 * 1024
"""Bytes handed to the server at a time: uvicorn copies and buffers each whole, and a stuck reader holds one."""

HEARTBEAT: Final = b":\n"
"""A comment line without a blank line: SDKs read a blank line as the end of an event."""

ABORT: Final = "streamproxy.abort"
"""ASGI extension of our server: drops the connection at once, with whatever it still had to send."""

NOT_APPLIED: Final = "streamproxy-not-applied"

NO_REFERRER: Final = {"referrer-policy": "no-referrer"}
"""On every answer that carries a stream's token, or is reached by one: a page must not tell others its own URL."""

_CLOSING: Final = (
    Failure.BODY_TOO_LARGE,
    Failure.BODY_TIMEOUT,
    Failure.CALLER_GONE,
    Failure.UPLOAD_CUT,
    Failure.DRAINING,
)
"""Failures that end the connection too, mostly because the rest of the request is not waited for."""


class Response:
    """A response with a known body, sent in slices so that a slow caller holds little of it. `body`: its pieces."""

    def __init__(self, status: int, content_type: str, body: Sequence[Piece], headers: Mapping[str, str]) -> None:
        self._status = status
        self._body = body
        size = sum(len(piece) for piece in body)
        everything = {"content-type": content_type, "content-length": str(size), **headers}
        self._headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in everything.items()
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self._status, "headers": self._headers})
        last: Piece = b""
        for piece in sliced([*self._body] if scope["method"] != "HEAD" else []):
            if last:
                await send({"type": "http.response.body", "body": last, "more_body": True})
            last = piece
        await send({"type": "http.response.body", "body": last, "more_body": False})


def empty_response(status: int, headers: Mapping[str, str]) -> ASGIApp:
    """A response without a body, and without a length: 204 has none (RFC 9110, 8.6), of a 304 it is the file's."""
    return starlette.responses.Response(status_code=status, headers=headers)


def json_response(value: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`value` as JSON."""
    return Response(status, "application/json", (orjson.dumps(value),), headers or {})


def error_response(error: ProxyError, request_id: str) -> Response:
    """The HTTP form of a failure: status, JSON body, and for upstream failures RFC 9209's Proxy-Status."""
    headers: dict[str, str] = {"cache-control": "no-store", **NO_REFERRER}
    if error.retry_after is not None and error.retry_after.isascii() and error.retry_after.isprintable():
        headers["retry-after"] = error.retry_after
    if not error.retryable:
        headers["x-should-retry"] = "false"
    if error.failure.value.status == 401:
        headers["www-authenticate"] = 'Bearer realm="streamproxy"'
    if error.failure in _CLOSING:
        headers["connection"] = "close"
    if error.status >= 500:
        token = error.failure.value.code
        headers["proxy-status"] = f"streamproxy; error={token}"
    return json_response(error_body(error, request_id), status=error.status, headers=headers)


class Reader:
    """A caller's place in what it reads, as the writer of its response sees it. This one has nothing to lose."""

    @property
    def at_end(self) -> bool:
        """Whether all there is has been taken to be written."""
        return True

    def left(self, error: ProxyError) -> None:
        """The caller left before the end."""

    def close(self, *, sent: bool) -> None:
        """The response is over. `sent`: it was written to its end."""


class Delivery:
    """A response that is watched: its reader is told whether it was sent to its end, or that the caller left."""

    def __init__(self, response: ASGIApp, reader: Reader) -> None:
        self._response = response
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent = False
        try:
            await caller.unless_gone(receive, partial(self._response, scope, caller.unheard, send))
            sent = True
        except ProxyError as error:
            self._reader.left(error)
        finally:
            self._reader.close(sent=sent)


class PaddedResponse:
    """A JSON answer whose head is sent before there is a body: white space every `interval` seconds, then the body.

    A failure can be no status any more: it is the JSON body of an error, with that status in it.
    """

    def __init__(
        self,
        result: Callable[[], Awaitable[Sequence[Piece]]],
        headers: Mapping[str, str],
        *,
        interval: float,
        request_id: str,
    ) -> None:
        self._result = result
        self._headers = {"content-type": "application/json", "x-accel-buffering": "no", **headers}
        self._interval = interval
        self._request_id = request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self._headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        body: Sequence[Piece] | None = None
        while body is None:
            await send({"type": "http.response.body", "body": b"\n", "more_body": True})
            with anyio.move_on_after(self._interval):
                try:
                    body = await self._result()
                except ProxyError as error:
                    note_failure(scope, error)
                    body = (orjson.dumps(error_body(error, self._request_id, status=True)),)
        for piece in sliced([*body]):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def deliver(response: ASGIApp, scope: Scope, receive: Receive, send: Send, send_timeout: float) -> None:
    """Send a response. The caller has `send_timeout` seconds to take each slice.

    After that its connection is aborted. An ordinary close would wait for the caller to take what is buffered.
    """

    with anyio.CancelScope() as taking:  # one for all slices: its deadline moves

        async def timed(message: Message) -> None:
            taking.deadline = anyio.current_time() + send_timeout
            await send(message)
            taking.deadline = math.inf

        await response(scope, receive, timed)
    if taking.cancelled_caught:
        stalled = ProxyError(Failure.CALLER_STALLED, "The caller stopped reading. The setting is send_timeout.")
        note_failure(scope, stalled)
        abort = scope.get("extensions", {}).get(ABORT)
        if abort is not None:
            abort()
            await caller.gone(receive)  # until the server knows, too


class EventStream(EventSourceResponse):
    """Event stream bytes to one reader, slice by slice. `grace`: seconds to end in when the process is stopped."""

    def __init__(
        self, content: AsyncGenerator[Piece, None], headers: Mapping[str, str], grace: float, reader: Reader
    ) -> None:
        self._content = content
        super().__init__(
            content,
            headers={**headers, **NO_REFERRER, "cache-control": "no-store, no-transform"},
            ping=0,
            sep="\n",
            shutdown_event=anyio.Event(),  # with a grace, SIGTERM lets the stream end instead of cutting it
            shutdown_grace_period=grace,
        )
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent = False
        try:
            await super().__call__(scope, receive, send)
            sent = self._reader.at_end
            if not sent:
                self._reader.left(ProxyError(Failure.CALLER_GONE, "The caller left before the end of the stream."))
        finally:
            self._reader.close(sent=sent)
            del self._reader  # sse-starlette leaves reference cycles: until they are collected, a stream would be held

    async def _stream_response(self, send: Send) -> None:
        """As sse-starlette's, for pieces that are bytes already: it copies each and gives it a deadline of its own."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._content) as pieces:
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                del piece  # while the next event gathers, this one shall not be held
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def posted(subscriber: Subscriber, layout: Layout, heartbeat: float) -> AsyncGenerator[Piece, None]:
    """A stream's bytes in its caller's wire: for the caller who asked, or who asked again with the same key."""
    yield HEARTBEAT
    for piece in sliced([*layout.opening()]):
        yield piece
    while True:
        try:
            entry = await subscriber.next(within=heartbeat)
        except TimeoutError:
            yield HEARTBEAT
            continue
        if entry is None:
            if not subscriber.at_end:
                yield _joined([*layout.event(error_frame(unfollowed(), subscriber.stream.request_id))])
            return
        pieces = [*layout.event(entry.frame)]
        del entry  # from here on only what has yet to be sent is held
        for piece in sliced(pieces):
            yield piece
            del piece


def unfollowed() -> ProxyError:
    """For a caller with a key whose stream another process produces: the way there was lost, the stream was not."""
    message = "This stream cannot be followed here any more. Send the request again, with the same Idempotency-Key."
    return ProxyError(Failure.OVERLOADED, message, retry_after="2")


def sliced(pieces: list[Piece]) -> Iterator[Piece]:
    """The same bytes in slices of at most SLICE: small pieces gathered into one, large ones as they are or as views.

    The list is emptied on the way, so that what nobody else holds is freed as it goes.
    """
    gathered: list[Piece] = []
    size = 0
    pieces.reverse()
    while pieces:
        piece = pieces.pop()
        for part in (piece,) if len(piece) <= SLICE else _views(piece):
            if size + len(part) > SLICE:
                yield _joined(gathered)
                gathered.clear()
                size = 0
            gathered.append(part)
            size += len(part)
    if size:
        yield _joined(gathered)


def _views(piece: Piece) -> Iterator[Piece]:
    view = memoryview(piece)
    for start in range(0, len(view), SLICE):
        yield view[start : start + SLICE]


def _joined(pieces: list[Piece]) -> Piece:
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
