"""Responses with a body that is known when they begin, or soon after: errors and JSON. Event streams: see `writing`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final

import anyio
import orjson
import starlette.responses
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamproxy.core.events import error_body
from streamproxy.core.sse import Piece
from streamproxy.errors import Failure, ProxyError
from streamproxy.upstream.deadlines import Alarm
from streamproxy.web import caller
from streamproxy.web.outcome import note_failure
from streamproxy.web.slicing import sliced

ABORT: Final = "streamproxy.abort"
"""ASGI extension of our server: drops the connection at once, with whatever it still had to send."""

NOT_APPLIED: Final = "streamproxy-not-applied"
ATTEMPTS: Final = "streamproxy-attempts"

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
        for part in sliced([*self._body] if scope["method"] != "HEAD" else []):
            if last:
                await send({"type": "http.response.body", "body": last, "more_body": True})
            last = part.joined()
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
    if error.details.attempts:
        headers[ATTEMPTS] = error.details.attempts
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

    `result` raises TimeoutError where there is none within the seconds that it is given.
    A failure can be no status any more: it is the JSON body of an error, with that status in it.
    """

    def __init__(
        self,
        result: Callable[[float], Awaitable[Sequence[Piece]]],
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
            try:
                body = await self._result(self._interval)
            except TimeoutError:
                continue
            except ProxyError as error:
                note_failure(scope, error)
                body = (orjson.dumps(error_body(error, self._request_id, status=True)),)
        for part in sliced([*body]):
            await send({"type": "http.response.body", "body": part.joined(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def deliver(response: ASGIApp, scope: Scope, receive: Receive, send: Send, send_timeout: float) -> None:
    """Send a response. The caller has `send_timeout` seconds to take each slice.

    After that its connection is aborted. An ordinary close would wait for the caller to take what is buffered.
    """

    loop = asyncio.get_running_loop()
    with anyio.CancelScope() as taking:
        alarm = Alarm(taking.cancel)  # one for all slices: its time moves

        async def timed(message: Message) -> None:
            alarm.set(loop.time() + send_timeout)
            await send(message)
            alarm.rest()

        try:
            await response(scope, receive, timed)
        finally:
            alarm.cancel()
    if taking.cancelled_caught:
        stalled = ProxyError(Failure.CALLER_STALLED, "The caller stopped reading. The setting is send_timeout.")
        note_failure(scope, stalled)
        abort = scope.get("extensions", {}).get(ABORT)
        if abort is not None:
            abort()
            await caller.gone(receive)  # until the server knows, too
