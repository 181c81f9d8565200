"""One connection to a provider: bytes out as fast as the provider takes them, bytes in to the open answer.

It goes on reading between two answers. Bytes that no request asked for close it, so they can never become the answer to
the next request.
"""

from __future__ import annotations

import asyncio
import select
from asyncio import BaseTransport, BufferedProtocol, Transport
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from streamproxy.errors import Failure, ProxyError
from streamproxy.signals import Signal

if TYPE_CHECKING:
    from streamproxy.upstream.answer import Answer

TURNS: Final = 2
"""Turns of the event loop after which events that the kernel has now are delivered: a task that was ready in the first
turn may run before the sockets are polled.
"""


READ: Final = 256 * 1024
"""Bytes read from a socket at a time, at most."""

LEAST_READ: Final = 64 * 1024
READS: Final = 16 * READ
"""Bytes that one read of every connection may bring in together, since bytes after the end of an event wait until that
event is taken. With 64 connections, each reads LEAST_READ: at 256 KiB they held 18 MB more, and used as much CPU.
"""


class Space:
    """The buffer for reads, shared by all connections: a parser is done with it before the event loop reads again.

    The loop's own reads would make objects of up to 256 KiB. With this, only the parser's pieces become objects.
    """

    def __init__(self) -> None:
        self._whole = memoryview(bytearray(READ))
        self._connections = 0
        self.view = self._whole

    def share(self, more: int) -> None:
        """Count connections that come (1) or go (-1)."""
        self._connections += more
        self.view = self._whole[: max(LEAST_READ, READS // max(1, self._connections))]


class Connection(BufferedProtocol):
    """See the module's text."""

    _transport: Transport

    def __init__(self, space: Space, tolerated: Callable[[str], None]) -> None:
        self._space = space
        self._tolerated = tolerated
        self._answer: Answer | None = None
        self._full = False
        self._room = Signal()
        self._paused = False
        self._used = False
        self._closed_idle = False

    @property
    def open(self) -> bool:
        """Whether bytes can still be written to it."""
        return not self._transport.is_closing()

    async def fit(self) -> bool:
        """Whether the idle connection can be used for a request: open, no unread bytes, no EOF.

        One that the provider has closed is counted as `stale_conn`.
        """
        if self.open and not self._readable():
            return True
        for _ in range(TURNS):
            await asyncio.sleep(0)
        if self._closed_idle:
            self._closed_idle = False
            self._tolerated("stale_conn")
        return self.open

    def _readable(self) -> bool:
        """Whether the kernel has something that the event loop has not told yet. To ask it costs less than a turn."""
        kernel = select.poll()
        kernel.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(kernel.poll(0))

    def carry(self, answer: Answer, request: bytes) -> None:
        """Send a request, or its first bytes. Bytes that come from now on are its answer.

        Raises ProxyError(CONNECTION_REFUSED) where the connection has ended; nothing has been sent then.
        """
        if not self.open:
            message = "The connection to the provider broke before it could be used."
            raise ProxyError(Failure.CONNECTION_REFUSED, message)
        self._answer = answer
        self.write(request)

    def drop(self) -> None:
        """End the answer. Bytes that come from now on belong to no request."""
        self._answer, self._used = None, True
        self.resume()

    def write(self, data: bytes) -> None:
        """Send; see `writable`."""
        self._transport.write(data)

    async def writable(self) -> None:
        """Return when the transport has room for more, or the connection has ended."""
        while self._full:
            await self._room.wait()

    def pause(self) -> None:
        """Stop reading, which holds the provider back through the kernel's buffers."""
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> bool:
        """Resume reading. Returns whether it was paused."""
        paused, self._paused = self._paused, False
        if paused:
            self._transport.resume_reading()
        return paused

    def overrun(self) -> None:
        """Close because of bytes after an answer, which no request asked for."""
        if self.open:
            self._tolerated("upstream_extra_bytes")
            self.abort()

    def abort(self) -> None:
        """Close without sending the rest of the buffer: a provider that does not read would never take it."""
        self._transport.abort()

    # What the transport tells.

    def connection_made(self, transport: BaseTransport) -> None:
        self._transport = cast(Transport, transport)
        self._space.share(1)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._space.view

    def buffer_updated(self, nbytes: int) -> None:
        if self._answer is not None:
            self._answer.receive(self._space.view[:nbytes])
        elif self._used:
            self.overrun()
        else:
            self.abort()  # bytes before any request: the next request takes another connection

    def eof_received(self) -> None:
        if self._answer is not None:
            self._answer.ended(None)
        self._closed_idle = self._answer is None
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._space.share(-1)
        if self._answer is not None:
            self._answer.ended(exc)
        self._closed_idle = self._closed_idle or (self._answer is None and exc is not None)
        self.resume_writing()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._room.set()
