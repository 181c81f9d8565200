"""Several processes on one listening socket: a parent that supervises, and workers that serve.

    status = await supervise(settings, sock, ready=...)      the parent, until a signal or until no worker can start

Each worker is a new Python process with its own event loop. It inherits the socket. It reads the settings, which have
secrets, from a channel, because every user of the machine can read arguments. At SIGHUP the parent reads the settings
anew, checks them once, and sends them to all. The channel is a worker's leash too: when the parent closes its end, or
dies, the worker drains and exits. The parent sends no signals for that: if a service manager
signals the whole group, the parent's signal would be the worker's second, which means exit at once.

A worker that dies is replaced, at once if it had served for STEADY_SECONDS, otherwise after a pause that doubles.

The workers keep their metrics in files of one directory, so that each worker can report those of all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import anyio
import msgspec
from anyio import to_thread
from anyio.abc import Process

from streamproxy.app import create_app
from streamproxy.observe.log import configure_logging
from streamproxy.observe.metrics import SHARED, exposition_of, worker_ended
from streamproxy.server import HANGUP, SIGNALS, beside, hooks_of, serve
from streamproxy.server.listening import url_of
from streamproxy.server.memory import tune_allocator
from streamproxy.server.reloading import Apply, Read, Reload
from streamproxy.settings import Settings
from streamproxy.settings.reloading import reloaded
from streamproxy.settings.values import ConfigurationError
from streamproxy.web.info import metrics_app

START_SECONDS: Final = 60.0  # until a worker serves; usually it takes one or two
STEADY_SECONDS: Final = 10.0  # a worker that has served for so long is replaced at once
FIRST_PAUSE: Final = 0.1  # seconds
LONGEST_PAUSE: Final = 30.0
HOPELESS: Final = 5  # failed starts in a row, while no worker serves, after which the parent exits
SEND_SECONDS: Final = 5.0  # for other settings; a loop that has not read them by then hangs
CHANNEL_BYTES: Final = 64 * 1024  # of one read
KILL_SECONDS: Final = 3.0  # over drain_timeout, which a worker exceeds by at most 2
LOG: Final = logging.getLogger("streamproxy.server.workers")


def packed(settings: Settings) -> bytes:
    """All settings, secrets included, as one line of bytes."""
    return msgspec.json.encode(settings) + b"\n"


def unpacked(line: bytes) -> Settings:
    """The settings that `packed` packed."""
    return Settings.of(msgspec.json.decode(line, type=dict[str, object]))


@dataclass(slots=True, eq=False)
class Worker:
    """A running worker. `channel` is the parent's end: settings go out, and one byte comes back when it serves.

    `settings`: those that it was sent last.
    """

    process: Process
    channel: socket.socket
    settings: Settings
    turn: anyio.Lock = field(default_factory=anyio.Lock)

    async def begin(self) -> bool:
        """Send its settings. Returns whether it serves within START_SECONDS."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError), anyio.move_on_after(START_SECONDS):
            await loop.sock_sendall(self.channel, packed(self.settings))
            return bool(await loop.sock_recv(self.channel, 1))
        return False

    async def change(self, settings: Settings) -> None:
        """Send other settings to a worker that serves. One that does not read them within SEND_SECONDS is killed."""
        async with self.turn:
            if settings is not self.settings:
                self.settings = settings
                await self._send(settings)

    async def _send(self, settings: Settings) -> None:
        with anyio.move_on_after(SEND_SECONDS) as sending, contextlib.suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(self.channel, packed(settings))
        if sending.cancelled_caught:  # half a line, and the worker hangs
            self.kill()

    def release(self) -> None:
        """Close the channel, so that it drains and exits."""
        with contextlib.suppress(OSError):
            self.channel.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        """Kill it, if it runs."""
        with contextlib.suppress(ProcessLookupError):
            if self.process.returncode is None:
                self.process.kill()


class Crew:
    """All workers of a parent. `failed`: they could not start, or had to be killed."""

    def __init__(self, settings: Settings, sock: socket.socket, metrics: str, ready: Callable[[], None]) -> None:
        self._settings = settings
        self._sock = sock
        self._metrics = metrics
        self._ready = ready
        self._workers: set[Worker] = set()
        self._serving: set[Worker] = set()
        self._announced = False
        self._failures = 0
        self._stopping = anyio.Event()
        self.failed = False

    async def keep_one(self) -> None:
        """Run one worker, and a new one when it has died, until `stop`."""
        pause = 0.0
        while not self._stopping.is_set():
            served = await self._run()
            if self._stopping.is_set():
                return
            self._failures = 0 if served is not None else self._failures + 1
            if not self._announced or (self._failures >= HOPELESS and not self._serving):
                LOG.error("workers cannot start; giving up")
                self.failed = True
                self.stop()
                return
            steady = served is not None and served >= STEADY_SECONDS
            pause = FIRST_PAUSE if steady or not pause else min(2 * pause, LONGEST_PAUSE)
            with anyio.move_on_after(pause):
                await self._stopping.wait()

    async def _run(self) -> float | None:
        """Run one worker to its end. Returns the seconds that it served; None where it never did."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        numbers = (self._sock.fileno(), theirs.fileno())
        command = [sys.executable, "-m", "streamproxy.server.workers", *map(str, numbers)]
        try:
            process = await anyio.open_process(
                command,
                stdin=subprocess.DEVNULL,
                stdout=None,
                stderr=None,
                env={**os.environ, SHARED: self._metrics},
                pass_fds=numbers,
            )
        finally:
            theirs.close()
        worker = Worker(process, ours, self._settings)
        try:
            return await self._watch(worker)
        finally:
            ours.close()
            worker.kill()
            with anyio.CancelScope(shield=True):
                await process.wait()
            worker_ended(process.pid, self._metrics)

    async def _watch(self, worker: Worker) -> float | None:
        self._workers.add(worker)
        if self._stopping.is_set():
            worker.release()
        began: float | None = None
        try:
            if await worker.begin():
                began = anyio.current_time()
                self._serving.add(worker)
                self._announce()
                await worker.change(self._settings)  # a reload may have come meanwhile
            elif not self._stopping.is_set():
                worker.kill()
            status = await worker.process.wait()
        finally:
            self._workers.discard(worker)
            self._serving.discard(worker)
        if self._stopping.is_set():
            self.failed = self.failed or status != 0
        else:
            LOG.warning("worker %d ended with status %d", worker.process.pid, status)
        return None if began is None else anyio.current_time() - began

    def _announce(self) -> None:
        if not self._announced and len(self._serving) == self._settings.workers:
            self._announced = True
            self._ready()

    async def reload(self, settings: Settings) -> tuple[str, ...]:
        """Let every worker serve by these settings. Returns the names of those that need a restart.

        Raises ConfigurationError.
        """
        settings, left = reloaded(self._settings, settings)
        await to_thread.run_sync(create_app, settings)  # the check for all, with the values that stay
        self._settings = settings
        async with anyio.create_task_group() as tasks:
            for worker in self._serving:
                tasks.start_soon(worker.change, self._settings)
        return left

    def stop(self) -> None:
        """Let every worker drain."""
        self._stopping.set()
        for worker in self._workers:
            worker.release()

    def kill(self) -> None:
        """Kill every worker."""
        for worker in self._workers:
            worker.kill()


async def supervise(
    settings: Settings,
    socks: tuple[socket.socket, socket.socket | None],
    *,
    ready: Callable[[str], None],
    read: Read,
) -> int:
    """Run `settings.workers` workers on the first of `socks`. Returns the exit status.

    `ready` is called once with the address, when all serve. The first SIGINT or SIGTERM drains, the second kills.
    SIGHUP has them serve by the settings that `read` then returns. On the other socket, if there is one, the parent
    itself serves the metrics of all.
    """
    sock, metrics_sock = socks
    async with AsyncExitStack() as around:
        metrics = around.enter_context(tempfile.TemporaryDirectory(prefix="streamproxy-metrics-"))
        if metrics_sock is not None:
            await around.enter_async_context(beside(metrics_app(partial(exposition_of, metrics)), metrics_sock))
        crew = Crew(settings, sock, metrics, lambda: ready(url_of(sock)))
        return await _led(crew, settings, Reload(read, crew.reload))


async def _led(crew: Crew, settings: Settings, reload: Reload) -> int:
    """Run the workers from their start to their end. Returns the exit status."""
    status = 0

    async def obey() -> None:
        nonlocal status
        with anyio.open_signal_receiver(*SIGNALS, *HANGUP) as signals:
            listening.set()
            while (received := await anext(signals)) in HANGUP:
                around.start_soon(reload)
            crew.stop()
            with anyio.move_on_after(settings.drain_timeout + KILL_SECONDS):
                while (received := await anext(signals)) in HANGUP:
                    pass
                status = 128 + received
            crew.kill()

    listening = anyio.Event()
    async with anyio.create_task_group() as around:
        around.start_soon(obey)
        await listening.wait()
        async with anyio.create_task_group() as tasks:
            for _ in range(settings.workers):
                tasks.start_soon(crew.keep_one)
        around.cancel_scope.cancel()
    return status or int(crew.failed)


def work(sock: socket.socket, channel: socket.socket) -> int:
    """Run one worker. Returns its exit status."""
    with channel.makefile("rb") as lines:
        line = lines.readline()
    if not line.endswith(b"\n"):
        return 1  # the parent has died meanwhile
    settings = unpacked(line)
    configure_logging(settings.log_level, settings.log_format, pid=True)
    tune_allocator()
    try:
        app = create_app(settings)
    except ConfigurationError as error:  # a key's file has been removed or changed since the parent's check
        LOG.error("%s", error)
        return 1

    def ready(url: str) -> None:
        with contextlib.suppress(OSError):
            channel.send(b"\n")

    async def served() -> int:
        released = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_obey, channel, app.state.reload, released)
            hooks = hooks_of(app, ready=ready, reload=_left_to_the_parent, stop=released)
            status = await serve(app, settings, sock, hooks)
            tasks.cancel_scope.cancel()
        return status

    return anyio.run(served, backend_options={"use_uvloop": True})


async def _obey(channel: socket.socket, apply: Apply, released: anyio.Event) -> None:
    """Apply the settings that come through the channel, and set `released` when the parent closes it."""
    channel.setblocking(False)
    loop = asyncio.get_running_loop()
    line = bytearray()
    with contextlib.suppress(OSError):
        while piece := await loop.sock_recv(channel, CHANNEL_BYTES):
            line += piece
            if line.endswith(b"\n"):  # the parent sends one and waits for its end; of two, the later counts
                await Reload(partial(unpacked, bytes(line).splitlines()[-1]), apply)()
                line.clear()
    released.set()


async def _left_to_the_parent() -> None:
    """Do nothing at SIGHUP. Where the whole group gets it, so does the parent, which sends the settings."""


def main() -> None:
    """`python -m streamproxy.server.workers <socket's number> <channel's number>`, as the parent starts it."""
    for number in (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)):
        signal.signal(
            number, signal.SIG_IGN
        )  # until it serves: Ctrl-C reaches the whole group, and the parent handles it
    sock, channel = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    sys.exit(work(sock, channel))


if __name__ == "__main__":
    main()
