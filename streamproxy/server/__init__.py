"""The process: uvicorn on a listening socket, with drain, limits and workers. The only package that imports uvicorn.

await serve(app, settings, socket, hooks)  until SIGINT, SIGTERM or cancellation; then streams drain. SIGHUP reloads
async with beside(app, socket)             another app, as long as the block lasts

guard       one connection: uvicorn's protocol behind `framing`, which finds the end of each request
listening   the socket, bound before anything else starts
workers     several processes on it
reloading   settings anew in a running process
memory      the allocator
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, Final, cast

import anyio
from anyio import to_thread
from starlette.applications import Starlette
from starlette.types import ASGIApp
from uvicorn import Config, Server

from streamproxy.memory import give_back
from streamproxy.observe import Observer
from streamproxy.server.guard import GuardedProtocol
from streamproxy.server.listening import BACKLOG, url_of
from streamproxy.server.memory import settle
from streamproxy.settings import Settings
from streamproxy.web.info import metrics_app

KEEP_ALIVE_SECONDS: Final = 75  # idle connection; above the 60 s of nginx and ALB, which must be the first to close
CLOSE_SECONDS: Final = 1  # for the last bytes of streams that the drain's deadline has ended
LIFESPAN_SECONDS: Final = 0.5  # for the lifespan to end once all connections are closed; a store that hangs delays it
IDLE_TICKS: Final = 50  # uvicorn's ticks of 0.1 s between two checks whether memory can be given back
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
"""Signals that stop the process."""
HANGUP: Final = (signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()
"""The signal that reloads. Where nothing can be reloaded it stops, since its default ends streams in their middle."""

TICK_SECONDS: Final = 0.1
"""Between two ticks of uvicorn's."""

Work = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Connections of a server to what is around it.

    `ready` is called once with the address, when the app's lifespan has started. `drain` runs at a signal, and lets
    streams end. `reload` runs at SIGHUP; without one SIGHUP stops too. When `stop` is set, that counts as a signal.
    `observer` is told of requests that the app never sees, and of the event loop's lag. Its metrics are served on the
    socket `metrics`.
    """

    ready: Callable[[str], None] | None = None
    drain: Work | None = None
    reload: Work | None = None
    stop: anyio.Event | None = None
    observer: Observer | None = None
    metrics: socket.socket | None = None


NO_HOOKS: Final = Hooks()


def hooks_of(app: Starlette, **more: Any) -> Hooks:
    """The hooks of an app of ours, and more of them."""
    return Hooks(drain=app.state.drain, observer=app.state.observer, **more)


class _Server(Server):
    """uvicorn's server, which drains before it stops, and does not raise the signal again afterwards.

    sse-starlette replaces `Server.handle_exit`, and would end every stream at the first signal. The method here
    overrides both. sse-starlette also watches `should_exit`, which is set after the drain.
    """

    status = 0
    _tidied = 0  # requests answered when memory was last given back

    def __init__(self, config: Config, hooks: Hooks, *, within: float) -> None:
        super().__init__(config)
        self._hooks = hooks
        self._within = within
        self._tasks: set[asyncio.Task[None]] = set()
        self._signalled = False
        self._draining = False
        self._loop = asyncio.get_running_loop()
        self._next_tick: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, exit at the second. A draining process answers, so balancers see readyz fail."""
        if self._signalled:
            self.status = 128 + sig  # as shells report a process that a signal has ended
            self.force_exit = self.should_exit = True
        self._signalled = True
        self._loop.call_soon_threadsafe(self._stop)

    def handle_hangup(self, sig: int, frame: FrameType | None) -> None:
        """Reload where that is possible, else drain."""
        if self._hooks.reload is None:
            self.handle_exit(sig, frame)
        else:
            self._loop.call_soon_threadsafe(self._run, self._hooks.reload)

    def _run(self, work: Work) -> None:
        task = self._loop.create_task(_done(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _stop(self) -> None:
        if self._draining:
            return
        self._draining = True
        if self._hooks.drain is None:
            self.should_exit = True
        else:
            self._run(partial(self._drain_with, self._hooks.drain))

    async def _drain_with(self, drain: Work) -> None:
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
        if self._next_tick is not None and self._hooks.observer is not None:
            self._hooks.observer.lag(max(self._loop.time() - self._next_tick, 0.0))
        answered = self.server_state.total_requests
        if counter % IDLE_TICKS == 0 and answered != self._tidied and not self.server_state.tasks:
            self._tidied = answered
            await to_thread.run_sync(give_back)
        ends = await super().on_tick(counter)
        self._next_tick = self._loop.time() + TICK_SECONDS
        return ends

    async def _stop_when(self, asked: anyio.Event) -> None:
        await asked.wait()
        self._stop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            if self._hooks.stop is not None:
                self._run(partial(self._stop_when, self._hooks.stop))
            settle()
            if self._hooks.ready is not None and sockets is not None:
                self._hooks.ready(url_of(sockets[0]))

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
        handlers |= {number: signal.signal(number, self.handle_hangup) for number in HANGUP}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


async def _done(work: Work) -> None:
    await work()


async def serve(app: ASGIApp, settings: Settings, sock: socket.socket, hooks: Hooks = NO_HOOKS) -> int:
    """Serve until SIGINT, SIGTERM or cancellation. A signal first runs the hooks' `drain`.

    Returns the exit status: 0, or 128 and the number of a second signal. Raises SystemExit where the lifespan fails.
    """
    config = _config(
        app,
        http=partial(GuardedProtocol, observer=hooks.observer),
        lifespan="on",
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout) if hooks.drain is None else CLOSE_SECONDS,
    )
    server = _Server(config, hooks, within=settings.drain_timeout)
    async with contextlib.AsyncExitStack() as around:
        if hooks.metrics is not None and hooks.observer is not None:
            await around.enter_async_context(beside(metrics_app(hooks.observer.metrics.exposition), hooks.metrics))
        await server.serve(sockets=[sock])
    return server.status


def _config(app: ASGIApp, **more: Any) -> Config:
    return Config(
        cast("Callable[..., object]", app),
        loop="uvloop",
        ws="none",
        log_config=None,  # logging is the app's
        access_log=False,  # it prints the query string
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        backlog=BACKLOG,
        **more,
    )


class _Beside(Server):
    """A server that leaves signals to another one."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def beside(app: ASGIApp, sock: socket.socket) -> AsyncIterator[str]:
    """Serve another app, which has no lifespan, as long as the block lasts. Yields its address."""
    config = _config(app, http=GuardedProtocol, lifespan="off", timeout_graceful_shutdown=CLOSE_SECONDS)
    server = _Beside(config)

    async def run() -> None:
        with anyio.CancelScope(shield=True):  # it ends by `should_exit`, which also closes what it has opened
            await server.serve(sockets=[sock])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        try:
            yield url_of(sock)
        finally:
            server.should_exit = True
