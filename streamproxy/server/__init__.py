"""The process: uvicorn on a listening socket, and what uvicorn leaves open. The only package that imports uvicorn.

await serve(app, settings, socket)  until SIGINT, SIGTERM or cancellation; then streams drain

guard       one connection: uvicorn's protocol behind `framing`, which says where each request ends
listening   the socket, bound before anything else starts
workers     several processes on it
memory      the allocator
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Generator
from types import FrameType
from typing import Final, cast

import anyio
from anyio import to_thread
from starlette.types import ASGIApp
from uvicorn import Config, Server

from streamproxy.server.guard import GuardedProtocol
from streamproxy.server.listening import BACKLOG, url_of
from streamproxy.server.memory import give_back, settle
from streamproxy.settings import Settings

KEEP_ALIVE_SECONDS: Final = 75  # idle connection; above the 60 s of nginx and ALB, which must be the first to close
CLOSE_SECONDS: Final = 1  # for the last bytes of streams that ended only because time was up
LIFESPAN_SECONDS: Final = 0.5  # for the app to end once its connections are gone; a store that hangs could hold it
IDLE_TICKS: Final = 50  # of 0.1 s, uvicorn's, between looks whether memory can be given back
SIGNALS: Final = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What asks the process to stop. SIGHUP too: its default ends a process in the middle of its streams."""


Drain = Callable[[], Awaitable[None]]


class _Server(Server):
    """uvicorn's server that says when it listens, drains when it is asked to stop, and leaves a signal at that.

    sse-starlette replaces `Server.handle_exit`, which would end every stream with the first signal; the one here
    overrides both, and `should_exit`, which sse-starlette watches too, is set when the drain is over.
    """

    status = 0
    _tidied = 0  # requests answered when memory was last given back

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

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's, ten times a second; a process that has become idle gives back the memory of its last requests."""
        answered = self.server_state.total_requests
        if counter % IDLE_TICKS == 0 and answered != self._tidied and not self.server_state.tasks:
            self._tidied = answered
            await to_thread.run_sync(give_back)
        return await super().on_tick(counter)

    def _released(self) -> None:
        if self._leash is not None:
            self._loop.remove_reader(self._leash)
        self._stop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            if self._leash is not None:
                self._loop.add_reader(self._leash, self._released)
            settle()
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
        handlers = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
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
