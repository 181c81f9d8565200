"""The process: uvicorn on a listening socket, and what uvicorn leaves open. The only module that imports uvicorn.

    await serve(app, settings, socket)  until SIGINT, SIGTERM or cancellation; then streams drain

uvicorn has no limit on a request's head: httptools took 200 MB of header. `GuardedProtocol` bounds it in size and time.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import math
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Generator
from types import FrameType
from typing import Final, cast

import anyio
import orjson
from starlette.types import ASGIApp
from uvicorn import Config, Server
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from streamproxy.errors import INVALID, Failure, Row
from streamproxy.listening import BACKLOG, url_of
from streamproxy.settings import Settings

HEAD_SECONDS: Final = 10.0  # from the first byte of a head to its end; HAProxy's documentation suggests 5 to 10
HEAD_BYTES: Final = 32 * 1024  # request line and headers, as nginx: large_client_header_buffers 4 of 8 KiB
KEEP_ALIVE_SECONDS: Final = 75  # idle connection; above the 60 s of nginx and ALB, which must be the first to close
BUFFERED_BYTES: Final = 0  # of a response, above which the app waits: a stuck caller then holds one slice, not two
LINGER_SECONDS: Final = 2.0  # what arrives after a refusal is discarded: closing at once would reset the answer away
CLOSE_SECONDS: Final = 1  # for the last bytes of streams that ended only because time was up
LIFESPAN_SECONDS: Final = 0.5  # for the app to end once its connections are gone; a store that hangs could hold it
M_MMAP_THRESHOLD: Final = -3  # malloc.h
M_TRIM_THRESHOLD: Final = -1
BAD_REQUEST: Final = Row("invalid_http", 400, INVALID, "bad_request")


Drain = Callable[[], Awaitable[None]]


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with bounds on the head: 408 when it takes too long, 431 when it is too large, then close."""

    _timer: asyncio.TimerHandle | None = None  # runs while a head is expected or incomplete
    _heads = 0  # complete heads so far
    _head_open = True  # no complete head, or the last one's message is over
    _fed = 0  # bytes of earlier chunks that the current head began in
    _size = 0  # bytes of the current head that are parsed
    _refusal: tuple[Row, str] = (BAD_REQUEST, "The request is not valid HTTP/1.1.")
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=BUFFERED_BYTES)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused or self.transport.is_closing():
            return
        heads = self._heads
        super().data_received(data)
        if self._refused or not self._head_open:
            return
        if heads != self._heads:
            self._fed = 0  # where in this chunk the next head began is not known: it is counted from the next chunk on
            return
        self._fed += len(data)
        self._arm()
        if self._fed > HEAD_BYTES:
            self._refuse(Failure.HEAD_TOO_LARGE.value, f"The request head has more than {HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {"streamproxy.abort": cast("dict[object, object]", self.transport.abort)}
        self._size = 0
        self._arm()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)  # ": " and CRLF
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._disarm()
        self._heads += 1
        self._head_open = False
        self._fed = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._head_open = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when the parser, or one of the callbacks above, gave up."""
        self._refuse(*self._refusal)

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > HEAD_BYTES:
            self._refusal = Failure.HEAD_TOO_LARGE.value, f"The request head has more than {HEAD_BYTES} bytes."
            raise ValueError("request head too large")  # httptools turns it into an HttpParserError

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._timed_out)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _timed_out(self) -> None:
        self._timer = None
        if self._fed == self._size == self._heads == 0:
            self.transport.close()  # not one byte: a browser's spare connection, which would show our 408 as a page
            return
        self._refuse(Failure.HEAD_TIMEOUT.value, f"The request head was not complete within {HEAD_SECONDS:g} seconds.")

    def _refuse(self, row: Row, message: str) -> None:
        """Answer for a request that the app never saw, and close."""
        self._disarm()
        self._refused = True
        if self.transport.is_closing():
            return
        if self._heads and not self.cycle.response_complete:
            # A response is on its way and an answer inside it would corrupt it: it ends, and nothing follows.
            self.cycle.keep_alive = False
            self.pipeline.clear()
            return
        body = orjson.dumps({"error": {"message": message, "type": row.type, "param": None, "code": row.code}})
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        date = b"".join(b"%b: %b\r\n" % pair for pair in self.server_state.default_headers)
        self.transport.write(STATUS_LINE[row.status] + date + head + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)


class _Server(Server):
    """uvicorn's server that says when it listens, drains when it is asked to stop, and leaves a signal at that.

    sse-starlette replaces `Server.handle_exit`, which would end every stream with the first signal; the one here
    overrides both, and `should_exit`, which sse-starlette watches too, is set when the drain is over.
    """

    status = 0

    def __init__(
        self,
        config: Config,
        *,
        ready: Callable[[], None],
        drain: Drain | None,
        within: float,
        leash: socket.socket | None,
    ) -> None:
        super().__init__(config)
        self._ready = ready
        self._drain = drain
        self._within = within
        self._leash = leash
        self._signalled = False
        self._draining = False
        self._drained: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, still answering, so that a balancer sees readyz fail; a second one exits now."""
        if self._signalled:
            self.status = 128 + sig  # as shells report a process that a signal has ended
            self.force_exit = self.should_exit = True
        self._signalled = True
        self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if self._draining:
            return
        self._draining = True
        if self._drain is None:
            self.should_exit = True
        else:
            self._drained = self._loop.create_task(self._drain_with(self._drain))

    async def _drain_with(self, drain: Drain) -> None:
        """Generations end in `drain`; who is still being sent their last bytes has the rest of the time."""
        deadline = self._loop.time() + self._within + CLOSE_SECONDS
        try:
            await drain()
        finally:
            left = max(deadline - self._loop.time(), 0.0)
            self.config.timeout_graceful_shutdown = left  # type: ignore[assignment]  # it takes fractions too
            self.should_exit = True

    def _released(self) -> None:
        if self._leash is not None:
            self._loop.remove_reader(self._leash)
        self._stop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            if self._leash is not None:
                self._loop.add_reader(self._leash, self._released)
            self._ready()

    async def main_loop(self) -> None:
        try:
            await super().main_loop()
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):  # bounded by timeout_graceful_shutdown
                await self.shutdown()
            self.started = False
            raise

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, which would wait for ever for an app that does not end."""
        with anyio.move_on_after((self.config.timeout_graceful_shutdown or 0) + LIFESPAN_SECONDS):
            await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """As uvicorn's, without raising the signal again afterwards: a drained exit is a success, exit status 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


async def serve(
    app: ASGIApp,
    settings: Settings,
    sock: socket.socket,
    *,
    ready: Callable[[str], None] | None = None,
    drain: Drain | None = None,
    leash: socket.socket | None = None,
) -> int:
    """Serve until SIGINT, SIGTERM or cancellation. A signal first runs `drain`, which lets streams end.

    `ready` is called once with the address, when the app's lifespan has started. What becomes readable on `leash`, like
    the end of its other end's process, counts as a signal. Returns the exit status: 0, or what a second signal made it.
    Raises SystemExit where the app has not started.
    """
    url = url_of(sock)
    config = Config(
        cast("Callable[..., object]", app),
        http=GuardedProtocol,
        loop="uvloop",
        ws="none",
        lifespan="on",
        log_config=None,  # logging is the app's
        access_log=False,  # it prints the query string
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout) if drain is None else CLOSE_SECONDS,
        backlog=BACKLOG,
    )
    server = _Server(
        config,
        ready=lambda: ready(url) if ready is not None else None,
        drain=drain,
        within=settings.drain_timeout,
        leash=leash,
    )
    await server.serve(sockets=[sock])
    return server.status


def tune_allocator() -> bool:
    """Keep the memory of large objects for the next ones; whether the C library could be told.

    Events have 2 to 16 MB. glibc maps an object above its threshold anew and returns it at once, so that each pays a
    page fault per 4 KiB. 32 MiB is the most that glibc takes (HEAP_MAX_SIZE / 2); 64 MiB of freed memory are kept.
    Setting either ends glibc's own adjustment, so a threshold below the objects' size is worse than none. The test of
    this module counts the faults against an untuned process.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, 32 << 20)) and bool(mallopt(M_TRIM_THRESHOLD, 64 << 20))
