"""One accepted connection of the simulator: requests in through httptools, scripts out as raw bytes.

Reading goes on while a script plays, so that a disconnect is noticed at once.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import socket
import struct
import time
from typing import Final, assert_never, cast

import anyio
import httptools

from streamproxy.simulator.received import Received, Server
from streamproxy.simulator.script import Fin, Reset, Script, Send, Stall, Wait, error_answer

log = logging.getLogger(__name__)

# Bytes of a head, as uvicorn's 64 KiB. Above: 431.
MAX_HEAD_BYTES: Final = 64 * 1024
# Bytes of a request that comes while an answer is flushed. Above: the connection closes after the answer.
MAX_NEXT_BYTES: Final = 64 * 1024
# Seconds that Fin waits for the peer's own end. nginx's lingering_timeout is 5 s; a loopback needs less.
LINGER_SECONDS: Final = 1.0
RST_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class _Incoming:
    """One request while it is read. httptools calls its `on_` methods; it calls its connection.

    Each request has its own parser, so that bytes after the last request cannot affect the next one.
    """

    def __init__(self, connection: Connection) -> None:
        self.keeps_alive = False
        self.unread = False
        """Whether bytes of the request are not read, so that the connection cannot be used for another one."""
        self._connection = connection
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers: list[tuple[str, str]] = []
        self._head_size: int | None = 0
        self._body: list[bytes] = []
        self._body_size = 0

    def feed(self, data: bytes) -> None:
        """Parse more bytes. Not to be called once the request has its answer."""
        if self._head_size is not None:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._connection.refuse(400, "The request is not HTTP/1.1 this server understands.")
        if self._head_size is not None and self._head_size > MAX_HEAD_BYTES:
            self._connection.refuse(431, "The request's head is too large.")

    def received(self) -> Received:
        """The request so far."""
        method = self._parser.get_method().decode("latin-1")
        target = self._target.decode("latin-1")
        body = b"".join(self._body)
        return Received(method, target, tuple(self._headers), body, self._body_size, self._connection.number)

    # Callbacks of the parser. Once a script plays, the rest of the same read does not belong to this request.

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        if not self._connection.answering:
            self._head_size = None
            self._connection.take_head(self.received())

    def on_body(self, data: bytes) -> None:
        if self._connection.answering:
            return
        self._body_size += len(data)
        if self._body_size > self._connection.server.max_body_bytes:
            self._connection.refuse(413, "The request's body is too large.")
        else:
            self._body.append(data)

    def on_message_complete(self) -> None:
        if not self._connection.answering:
            # Here, because llhttp resets it when the message ends.
            self.keeps_alive = self._parser.should_keep_alive()
            self._connection.start(self.received(), None)


class Connection(asyncio.Protocol):
    """One accepted connection: requests in, one at a time, and the script of each."""

    def __init__(self, server: Server, live: set[Connection]) -> None:
        self.server = server
        self.live = live
        self.task: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._next = bytearray()
        self._incoming = _Incoming(self)
        self._ending = False

    @property
    def answering(self) -> bool:
        """Whether a script plays."""
        return self.task is not None

    # Callbacks of the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        # With 0, "writable again" means that the kernel has everything, so a step ends when its bytes have left.
        # (asyncio's TLS transport pauses at `high`, not above it: with 0 it would never be writable again.)
        self.transport.set_write_buffer_limits(high=0 if transport.get_extra_info("ssl_object") is None else 1)
        self.server.connections += 1
        self.number = self.server.connections
        self.server.open_connections += 1
        self.live.add(self)
        self.server.change()

    def data_received(self, data: bytes) -> None:
        if not self.answering:
            self._incoming.feed(data)
        elif len(self._next) + len(data) > MAX_NEXT_BYTES:
            self._incoming.unread = True
        elif not self._incoming.unread:
            self._next += data

    def eof_received(self) -> bool:
        # Also after a half-close: a caller that ends its direction has left.
        self._leave()
        self.transport.abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self.live.discard(self)
        self.server.open_connections -= 1
        self.server.change()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _leave(self) -> None:
        if self.answering and not self._ending and not self._gone.is_set():
            self.server.disconnects.append(time.monotonic())
        self._gone.set()
        self._writable.set()
        self.server.change()

    # Answering.

    def take_head(self, received: Received) -> None:
        """Answer from the head alone, if the handler `early` does; else wait for the body."""
        script = None if self.server.early is None else self.server.early(received.target, received.headers)
        if script is not None:
            self._incoming.unread = True
            self.start(received, script)
        elif (received.header("expect") or "").lower() == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def refuse(self, status: int, message: str) -> None:
        """Answer with an error and close, unless a script plays already."""
        if not self.answering:
            self._incoming.unread = True
            script = (*error_answer(status, message, headers=(("Connection", "close"),)), Fin())
            self.start(None, script)

    def start(self, received: Received | None, script: Script | None) -> None:
        """Play a script, by default that of the handler."""
        self.task = asyncio.get_running_loop().create_task(self._answer(received, script))
        if received is not None:
            self.server.record(received)

    async def _answer(self, received: Received | None, script: Script | None) -> None:
        stays = False
        try:
            if script is None and received is not None:
                made = self.server.handler(received)
                script = await made if inspect.isawaitable(made) else made
            stays = await self._play(script or ()) and self._incoming.keeps_alive and not self._incoming.unread
        except Exception:
            # A broken handler must not look like a simulated fault: the connection closes, and the log has the reason.
            log.exception("simulator handler failed")
        finally:
            self.task = None
            if not stays:
                self.transport.close()
        if stays:
            self._incoming = _Incoming(self)
            if self._next:
                data, self._next = bytes(self._next), bytearray()
                self.data_received(data)

    async def _play(self, script: Script) -> bool:
        """Play to the end. Returns whether the connection can be used for another request."""
        for step in script:
            if self._gone.is_set():
                return False
            match step:
                case Send(data):
                    self.transport.write(data)
                    await self._writable.wait()
                case Wait(seconds):
                    with anyio.move_on_after(seconds):
                        await self._gone.wait()
                case Stall():
                    await self._gone.wait()
                case Fin():
                    await self._finish()
                    return False
                case Reset():
                    self._ending = True
                    connection = self.transport.get_extra_info("socket")
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST_ON_CLOSE)
                    self.transport.abort()
                    return False
                case other:
                    assert_never(other)
        return not self._gone.is_set()

    async def _finish(self) -> None:
        self._ending = True
        if self.transport.can_write_eof():  # TLS cannot: its close says close_notify
            self.transport.write_eof()
            with anyio.move_on_after(LINGER_SECONDS):
                await self._gone.wait()
