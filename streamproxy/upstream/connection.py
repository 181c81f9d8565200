"""One HTTP/1.1 connection to a provider, and how far the request on it has come.

aiohttp parses; added is what an intermediary must not leave to its parser (RFC 9112, 6.3 and 11.2). Heads are bounded
as a whole, framing has one meaning, and bytes that no request asked for close the connection, so that they can never
be the answer to the next one. A head is parsed apart from what follows it: what is wrong behind an answer must not cost
the answer.
"""

from __future__ import annotations

import fcntl
import re
import selectors
import sys
import termios
from asyncio import AbstractEventLoop, BaseTransport, BufferedProtocol
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import client_proto
from anyio import CancelScope, current_time

from streamproxy.errors import Failure, ProxyError

MAX_INTERIM: Final = 8
"""1xx answers accepted before the real one; more than one is already unusual (RFC 9110, 15.2)."""

MAX_HEADERS: Final = 200
MAX_HEAD_BYTES: Final = 100 * 1024
"""As h11; real heads have 2 to 4 KiB. Above: header_section_size."""

_BLANK_LINE: Final = re.compile(rb"\n\r?\n")
_END_OF_CHUNKED: Final = (b"\n\r\n", b"\n\n")


@dataclass(slots=True, eq=False)
class Progress:
    """How far one request has come: it decides what a failure means, and whether anybody may send it again.

    `deadline` moves: first that of connecting, then `first_byte` seconds counted anew from every piece that is sent,
    and never after `ends_at`, the end of the whole exchange.
    """

    first_byte: float
    ends_at: float
    scope: CancelScope = field(default_factory=CancelScope)
    connection: Connection | None = None
    resolving: bool = False
    accepted: bool = False
    """TCP is there; over https, TLS is yet to come."""
    sent: bool = False
    """Bytes of the request may have left this machine."""
    uploaded: bool = False
    """So has the last of them."""

    def wait_until(self, deadline: float) -> None:
        """Give up at `deadline`, or at the end of the whole exchange."""
        self.scope.deadline = min(deadline, self.ends_at)

    def moved(self) -> None:
        """The next bytes of the request go out: wait anew for the answer."""
        if self.connection is not None and not self.connection.open:
            return  # aiohttp refuses to write them
        self.sent = True
        self.wait_until(current_time() + self.first_byte)


PROGRESS: ContextVar[Progress] = ContextVar("upstream_progress")
"""aiohttp's hooks know no caller-supplied object through httpx; the context of the request's task is where it is."""


class _Reads(BufferedProtocol):
    """What a connection's transport talks to: it reads into a buffer that all of a provider share.

    The loop's own reads are objects of up to 256 KiB. Among them lie the pieces of events, which are kept for longer:
    the heap of a process with 64 streams was 20 MB larger.
    """

    def __init__(self, connection: Connection, buffer: memoryview) -> None:
        self._connection = connection
        self._space = buffer

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._space

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.data_received(bytes(self._space[:nbytes]))

    def eof_received(self) -> None:
        self._connection.eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()


class Connection(client_proto.ResponseHandler):
    """One connection, which takes bytes only as the answer to a request. `buffer`: as large as a read may be."""

    _progress: Progress
    _awaiting = False
    _answered = False
    _tolerated = False
    _interim = 0
    _head_size = 0
    _head_tail = b""
    _chunked = False
    _left = 0
    """Bytes that are missing from a body with Content-Length."""
    _body_tail = b""

    def __init__(self, loop: AbstractEventLoop, tolerated: Callable[[str], None], buffer: memoryview) -> None:
        super().__init__(loop)
        self._tell = tolerated
        self._space = buffer

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        transport.set_protocol(_Reads(self, self._space))

    @property
    def open(self) -> bool:
        """Whether bytes can still be written to it."""
        return super().is_connected()

    def is_connected(self) -> bool:
        """Whether an idle connection is fit for a request: open, and with nothing to read, be it bytes or the end."""
        unread = self._unread() if self.open else 0
        if unread is None:
            return True
        self._tolerate("upstream_extra_bytes" if unread else "stale_conn")
        return False

    def set_response_params(self, **params: Any) -> None:
        self._progress = PROGRESS.get()
        self._progress.connection = self
        self._awaiting = True
        self._interim = 0
        self._head_size = 0
        self._head_tail = b""
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        fed = not data  # aiohttp asks for what its parser holds back with b""
        while self._awaiting and data and self._parser is not None and self._progress.sent:
            end = self._end_of_head(data)
            self._head_size += end
            if self._head_size > MAX_HEAD_BYTES:
                message = f"The provider's answer has a head of over {MAX_HEAD_BYTES} bytes."
                self._refuse(Failure.HEADER_SECTION_SIZE, message)
                return
            super().data_received(data[:end])
            if self._should_close and self._awaiting:
                return  # it was not HTTP
            data = data[end:]
        if data and self._parser is not None and not self._owed():
            self._abort_extra()
        elif data or fed:
            self._left -= len(data)
            self._body_tail = data[-3:] if len(data) > 2 else (self._body_tail + data)[-3:]
            super().data_received(data)
            if self._overrun():
                self._abort_extra()

    def feed_data(self, data: Any, size: int = 0) -> None:
        """aiohttp's parser has read a head."""
        message = data[0]
        if not self._awaiting:
            self._abort_extra()  # a second answer, even if its connection is idle by now
            return
        if 100 <= message.code <= 199 and message.code != 101:
            self._interim += 1
            self._head_size = 0
            if self._interim > MAX_INTERIM:
                self._refuse(Failure.HTTP_PROTOCOL_ERROR, f"The provider sent over {MAX_INTERIM} interim answers.")
                return
        else:
            self._awaiting = False
            self._answered = True
            self._chunked = message.chunked
            self._left = int(message.headers.get("content-length") or 0)
            objection = _objection(message.code, message.raw_headers)
            if objection is not None:
                self._refuse(Failure.HTTP_PROTOCOL_ERROR, objection)
                return
        super().feed_data(data, size)

    def set_exception(self, exc: BaseException, exc_cause: Any = None) -> None:
        """Break off. aiohttp tells only who waits for a head; the reader of a broken body would wait on."""
        super().set_exception(exc, *(() if exc_cause is None else (exc_cause,)))
        payload = self._payload
        if payload is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(exc)

    def close(self) -> None:
        """Close, without waiting for a provider that does not read to take what it was being sent."""
        if self.transport is not None and self.transport.get_write_buffer_size():
            self.abort()
        else:
            super().close()

    def _owed(self) -> bool:
        """Whether bytes may come: the answer to something that was sent, or the rest of one."""
        if self._awaiting:
            return self._progress.sent
        return self._payload is not None and not self._payload.is_eof()

    def _overrun(self) -> bool:
        """Whether bytes stand behind the end of a body that are no head yet: aiohttp's parser swallows them."""
        if self._payload is None or not self._payload.is_eof():
            return False
        if self._chunked:
            return not self._body_tail.endswith(_END_OF_CHUNKED)
        return self._left < 0

    def _end_of_head(self, data: bytes) -> int:
        """Where in `data` the blank line ends that ends a head, else its length."""
        seen = self._head_tail + data
        found = _BLANK_LINE.search(seen)
        self._head_tail = b"" if found else seen[-2:]
        return found.end() - len(seen) + len(data) if found else len(data)

    def _abort_extra(self) -> None:
        self._tolerate("upstream_extra_bytes")
        self.abort()

    def _tolerate(self, label: str) -> None:
        """Tell, once, what ends a connection that has answered: before that it is the request's own failure."""
        if self._answered and not self._tolerated:
            self._tolerated = True
            self._tell(label)

    def _refuse(self, failure: Failure, message: str) -> None:
        self.set_exception(ProxyError(failure, message))
        if self.transport is not None:
            self.transport.abort()

    def _unread(self) -> int | None:
        """Bytes that the kernel holds and the event loop has not handed over, 0 for the end, None for nothing at all.

        Over TLS they count as the end: most often they are its farewell.
        """
        socket = None if self.transport is None else self.transport.get_extra_info("socket")
        if socket is None:
            return None
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(socket.fileno(), selectors.EVENT_READ)
                if not selector.select(0):
                    return None
            if self.transport is not None and self.transport.get_extra_info("ssl_object") is not None:
                return 0
            return int.from_bytes(fcntl.ioctl(socket.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)
        except (OSError, ValueError):
            return 0


def _objection(status: int, headers: tuple[tuple[bytes, bytes], ...]) -> str | None:
    """Why a head that a parser accepts is refused (RFC 9112, 6.1 and 6.3), None where it is fine."""
    names = [name.lower() for name, _ in headers]
    if status == 101:
        return "The provider switched protocols."
    if len(names) > MAX_HEADERS:
        return f"The provider's answer has over {MAX_HEADERS} headers."
    if names.count(b"content-length") + names.count(b"transfer-encoding") > 1:
        return "The provider's answer has conflicting body lengths."
    return None
