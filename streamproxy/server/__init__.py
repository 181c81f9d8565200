"""The process: uvicorn on a listening socket, with drain, limits and workers. The only package that imports uvicorn.

await serve(app, settings, socket)  until SIGINT, SIGTERM or cancellation; then streams drain

guard       one connection: uvicorn's protocol behind `framing`, which finds the end of each request
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
CLOSE_SECONDS: Final = 1  # for the last bytes of streams that the drain's deadline has ended
LIFESPAN_SECONDS: Final = 0.5  # for the lifespan to end once all connections are closed; a store that hangs delays it
IDLE_TICKS: Final = 50  # uvicorn's ticks of 0.1 s between two checks whether memory can be given back
SIGNALS: Final = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that stop the process. SIGHUP is one, because its default ends a process in the middle of its streams."""


Drain = Callable[[], Awaitable[None]]


class _Server(Server):
    """uvicorn's server, which drains before it stops, and does not raise the signal again afterwards.

    sse-starlette replaces `Server.handle_exit`, and would end every stream at the first signal. The method here
    overrides both. sse-starlette also watches `should_exit`, which is set after the drain.
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
        """Drain at the first signal, exit at the second. A draining process answers, so balancers see readyz fail."""
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
        """Run `drain`, in which generations end, then give responses the rest of the time for their last bytes."""
        deadline = self._loop.time() + self._within + CLOSE_SECONDS
        try:
            await drain()
        finally:
            left = max(deadline - self._loop.time(), 0.0)
            self.config.timeout_graceful_shutdown = left  # type: ignore[assignment]  # it takes fractions too
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Run uvicorn's tick, ten times a second. An idle process also gives the memory of its last requests back."""
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
        """Shut down as uvicorn does, with a bound on the lifespan's end."""
        with anyio.move_on_after((self.config.timeout_graceful_shutdown or 0) + LIFESPAN_SECONDS):
            await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle signals as uvicorn does, but do not raise them again: the exit status after a drain is 0."""
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

    `ready` is called once with the address, when the app's lifespan has started. When `leash` becomes readable, as it
    does when the process at its other end has ended, that counts as a signal. Returns the exit status: 0, or 128 and
    the number of a second signal. Raises SystemExit where the lifespan fails.
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
