"""uvicorn's HTTP/1.1 protocol behind a strict framing, with a bound on every wait for a caller.

`Framing` finds the end of each request. uvicorn's parser gets canonical heads only, and bodies bypass it. One request
is in progress at a time: the next one on the same connection waits, unread, for the answer to it.

    head        complete within HEAD_SECONDS of its first byte, and within HEAD_BYTES
    body        read by the app, within the app's bounds; a broken one ends the request at once
    answer      if it ends before the whole body has come, the rest is discarded for LINGER_SECONDS. Closing at once
                would make the kernel reset the connection, which can destroy the answer before the caller reads it
    idle        uvicorn's keep-alive; nothing is written without a request
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Final, cast
from urllib.parse import unquote

import httptools
import orjson
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from streamproxy.errors import Failure, ProxyError
from streamproxy.observe import Observer
from streamproxy.server.framing import Framing, Head, Refused
from streamproxy.web.outcome import note_failure
from streamproxy.web.responses import ABORT
from streamproxy.web.slicing import PIECES, Pieces

HEAD_SECONDS: Final = 10.0
"""From the first byte of a head to its end; HAProxy's documentation suggests 5 to 10."""

LINGER_SECONDS: Final = 5.0
"""As nginx's lingering_timeout."""

LINGER_BYTES: Final = 64 * 1024 * 1024
"""Most bytes of one body that are discarded. After them the connection is closed."""

BUFFERED_BYTES: Final = 0
"""Unsent bytes of a response above which the app waits. With 0, a stuck caller holds one slice and not two."""

READ_AHEAD: Final = 64 * 1024
"""Bytes of pipelined requests above which reading pauses."""

TURN_EVENTS: Final = 1000
"""Events of one connection that are handled before others get a turn: about 2 ms of one-byte chunks."""

TURN_BYTES: Final = 64 * 1024
"""Bytes in one read above which the connection waits for the next turn. libuv would go on with the same connection, for
up to 32 reads of 256 KB. With fifty callers that still sent a refused body, one turn took over 100 ms."""

_CLOSE: Final = b"close"
_ENDLESS: Final = 1 << 62


class _Cycle(RequestResponseCycle):
    """uvicorn's cycle, with two corrections: no chunks for HTTP/1.0, and one Connection field in an answer."""

    async def send(self, message: Any) -> None:
        body = message.get("body")
        if isinstance(body, Pieces):
            if self.chunked_encoding and self.scope["method"] != "HEAD":
                await self._write_chunk(body)
                return
            message = {**message, "body": body.joined()}
        old = self.scope["http_version"] == "1.0"
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", []))
            kept = [(name, value) for name, value in headers if name.lower() != b"connection" or value == _CLOSE]
            message = {**message, "headers": kept}
            if old and not any(name.lower() == b"content-length" for name, _ in kept):
                self.chunked_encoding = False
                self.expected_content_length = _ENDLESS  # its end is the connection's
        elif message["type"] == "http.response.body" and old and not message.get("more_body", False):
            self.expected_content_length = min(self.expected_content_length, len(message.get("body", b"")))
        await super().send(message)

    async def _write_chunk(self, body: Pieces) -> None:
        """Write a chunk as uvicorn does, but without a copy of it: uvicorn joins it with its framing."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if not self.disconnected:
            self.transport.writelines((b"%x\r\n" % len(body), *body.pieces, b"\r\n"))


class _Closer(asyncio.Transport):
    """The transport of a cycle. Its `close` waits for the rest of the request, so that no reset destroys the answer."""

    def __init__(self, protocol: GuardedProtocol) -> None:
        super().__init__()
        self._protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._protocol.transport.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self._protocol.transport.writelines(list_of_data)

    def close(self) -> None:
        self._protocol.close_gently()

    def is_closing(self) -> bool:
        return self._protocol.transport.is_closing()


class GuardedProtocol(HttpToolsProtocol):
    """One connection: see the module's text."""

    _framing: Framing
    _closer: _Closer
    _closing = False  # the answer is written, and further bytes are discarded
    _timer: asyncio.TimerHandle | None = None
    _discarded = 0
    _advancing = False
    _framed: tuple[bytes, bytes] | None = None  # what the head in the parser says of its body

    def __init__(self, *uvicorns: Any, observer: Observer | None = None, **own: Any) -> None:
        super().__init__(*uvicorns, **own)
        self._observer = observer

    # What uvicorn, asyncio and the app call.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=BUFFERED_BYTES)
        self._framing = Framing()
        self._closer = _Closer(self)
        self._arm(HEAD_SECONDS, self._head_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if len(data) > TURN_BYTES:
            self.transport.pause_reading()
            self.loop.call_soon(self._read_on)
        if self._closing:
            self._discard(len(data))
            return
        self._framing.receive(data)
        self._advance()

    def on_headers_complete(self) -> None:
        """Start a cycle as uvicorn does. Requests are never queued here: one is in progress at a time."""
        if self._framed is not None:
            self.headers.append(self._framed)
        target = httptools.parse_url(self.url)
        version = self.parser.get_http_version()
        path = target.path.decode("ascii")
        self.scope["method"] = self.parser.get_method().decode("ascii")
        self.scope["http_version"] = version
        self.scope["path"] = self.root_path + (unquote(path) if "%" in path else path)
        self.scope["raw_path"] = self.root_path.encode("ascii") + target.path
        self.scope["query_string"] = target.query or b""
        self.scope["extensions"] = {ABORT: cast("dict[object, object]", self.transport.abort), PIECES: {}}
        self.cycle = _Cycle(
            scope=self.scope,
            transport=self._closer,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        self._start_asgi_task(self.cycle, self.app)

    def on_message_complete(self) -> None:
        """Ignore the parser's end of a canonical head, which has no body. The framing finds the end of the request."""

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._closing or self.transport.is_closing():
            self._unset_keepalive_if_required()
            return
        if self._framing.held or not self._framing.between:
            self._unset_keepalive_if_required()
        self._advance()

    def send_400_response(self, msg: str) -> None:
        """Refuse a canonical head that uvicorn's parser does not take."""
        self._break_off(Refused(Failure.INVALID_HTTP, "The request is not valid HTTP/1.1."))

    def close_gently(self) -> None:
        """Close once the caller has sent the rest of the answered request."""
        self._closing = True
        if self._framing.between:
            self.transport.close()
        else:
            self._linger()

    # What has come.

    @property
    def _idle(self) -> bool:
        """Whether every request that has begun has its answer."""
        return self.cycle is None or self.cycle.response_complete

    def _advance(self) -> None:
        """Handle received bytes, up to the end of the request in progress. The next request waits for its answer."""
        if self._advancing or self._closing:
            return
        self._advancing = True
        try:
            self._turn()
        except Refused as refused:
            self._break_off(refused)
        finally:
            self._advancing = False
        if not self._closing:
            self._watch()

    def _turn(self) -> None:
        for _ in range(TURN_EVENTS):
            if self._closing or (self._framing.between and not self._idle):
                return
            match self._framing.next_event():
                case None:
                    return
                case Head() as head:
                    self._begin(head)
                case bytes() as data if self._idle:
                    self._discard(len(data))
                case bytes() as data:
                    self.on_body(data)
                case _:
                    super().on_message_complete()
        self.flow.pause_reading()
        self.loop.call_soon(self._next_turn)

    def _read_on(self) -> None:
        if not self.flow.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def _next_turn(self) -> None:
        if not self._closing:
            self.flow.resume_reading()
            self._advance()

    def _begin(self, head: Head) -> None:
        self._disarm()
        self._discarded = 0
        self._framed = head.framing
        super().data_received(head.canonical)

    def _watch(self) -> None:
        """Run a timer while the rest of a head, or of an answered request, is awaited."""
        if not self._idle:
            if self._framing.between and self._framing.held > READ_AHEAD:
                self.flow.pause_reading()
        elif not self._framing.between:
            self._arm(LINGER_SECONDS, self.transport.close)
        elif self._framing.held:
            self._arm(HEAD_SECONDS, self._head_late)
        elif self.cycle is not None:
            self._disarm()

    # How it ends.

    def _break_off(self, refused: Refused) -> None:
        """Answer a broken request, unless an answer has begun, and close: later bytes cannot be framed."""
        cycle = self.cycle
        if self._framing.between or cycle is None:
            self._refuse(refused)
            self._tell(refused)
        elif cycle.response_complete:
            self._closing = True
            self.transport.close()
        elif cycle.response_started:
            self._closing = True  # further bytes are discarded; the connection ends with the answer
            cycle.keep_alive = False
        else:
            scope = cast("Scope", cycle.scope)
            note_failure(scope, ProxyError(refused.failure, refused.message))  # not that its caller left
            cycle.disconnected = True
            cycle.message_event.set()
            self._refuse(refused)

    def _head_late(self) -> None:
        self._timer = None
        if not self._framing.begun:
            self.transport.close()  # not one byte: a browser's spare connection, which would show our 408 as a page
            return
        message = f"The request head was not complete within {HEAD_SECONDS:g} seconds."
        refused = Refused(Failure.HEAD_TIMEOUT, message)
        self._refuse(refused)
        self._tell(refused)

    def _tell(self, refused: Refused) -> None:
        """Tell the observer of a request that the app never sees."""
        if self._observer is not None:
            self._observer.refused(ProxyError(refused.failure, refused.message))

    def _refuse(self, refused: Refused) -> None:
        """Answer a request that does not reach the app, and close."""
        self._closing = True
        if self.transport.is_closing():
            return
        row = refused.failure.value
        error = {"message": refused.message, "type": row.type, "param": None, "code": row.code}
        body = orjson.dumps({"error": error})
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        date = b"".join(b"%b: %b\r\n" % pair for pair in self.server_state.default_headers)
        self.transport.write(STATUS_LINE[row.status] + date + head + body)
        self._linger()

    def _linger(self) -> None:
        """End our direction, and discard the rest of the caller's bytes for LINGER_SECONDS."""
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._disarm()
        self._arm(LINGER_SECONDS, self.transport.close)

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > LINGER_BYTES:
            self.transport.close()

    def _arm(self, seconds: float, late: Callable[[], None]) -> None:
        """Start the timer, unless it runs: slow bytes must not extend it."""
        if self._timer is None:
            self._timer = self.loop.call_later(seconds, late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
