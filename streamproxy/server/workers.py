"""Several processes on one listening socket: a parent that supervises, and workers that serve.

    status = await supervise(settings, sock, ready=...)      the parent, until a signal or until no worker can start

Each worker is a new Python process with its own event loop. It inherits the socket. It reads the settings, which have
secrets, from a channel, because every user of the machine can read arguments. The channel is its leash too: when the
parent closes its end, or dies, the worker drains and exits. The parent sends no signals for that: if a service manager
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
from dataclasses import dataclass
from typing import Final

import anyio
import msgspec
from anyio.abc import Process

from streamproxy.app import create_app
from streamproxy.observe import SHARED, configure_logging, worker_ended
from streamproxy.server import SIGNALS, serve
from streamproxy.server.listening import url_of
from streamproxy.server.memory import tune_allocator
from streamproxy.settings import Settings
from streamproxy.settings.values import ConfigurationError

START_SECONDS: Final = 60.0  # until a worker serves; usually it takes one or two
STEADY_SECONDS: Final = 10.0  # a worker that has served for so long is replaced at once
FIRST_PAUSE: Final = 0.1  # seconds
LONGEST_PAUSE: Final = 30.0
HOPELESS: Final = 5  # failed starts in a row, while no worker serves, after which the parent exits
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
    """A running worker. `channel` is the parent's end: settings go out, and one byte comes back when it serves."""

    process: Process
    channel: socket.socket

    async def begin(self, settings: Settings) -> bool:
        """Send its settings. Returns whether it serves within START_SECONDS."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError), anyio.move_on_after(START_SECONDS):
            await loop.sock_sendall(self.channel, packed(settings))
            return bool(await loop.sock_recv(self.channel, 1))
        return False

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
        self._serving = 0
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
        worker = Worker(process, ours)
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
            if await worker.begin(self._settings):
                began = anyio.current_time()
                self._serving += 1
                self._announce()
            elif not self._stopping.is_set():
                worker.kill()
            status = await worker.process.wait()
        finally:
            self._workers.discard(worker)
            self._serving -= began is not None
        if self._stopping.is_set():
            self.failed = self.failed or status != 0
        else:
            LOG.warning("worker %d ended with status %d", worker.process.pid, status)
        return None if began is None else anyio.current_time() - began

    def _announce(self) -> None:
        if not self._announced and self._serving == self._settings.workers:
            self._announced = True
            self._ready()

    def stop(self) -> None:
        """Let every worker drain."""
        self._stopping.set()
        for worker in self._workers:
            worker.release()

    def kill(self) -> None:
        """Kill every worker."""
        for worker in self._workers:
            worker.kill()


async def supervise(settings: Settings, sock: socket.socket, *, ready: Callable[[str], None]) -> int:
    """Run `settings.workers` workers on `sock`. Returns the exit status.

    `ready` is called once with the address, when all serve. The first SIGINT or SIGTERM drains, the second kills.
    """
    with tempfile.TemporaryDirectory(prefix="streamproxy-metrics-") as metrics:
        crew = Crew(settings, sock, metrics, lambda: ready(url_of(sock)))
        return await _led(crew, settings)


async def _led(crew: Crew, settings: Settings) -> int:
    """Run the workers from their start to their end. Returns the exit status."""
    status = 0

    async def obey() -> None:
        nonlocal status
        with anyio.open_signal_receiver(*SIGNALS) as signals:
            listening.set()
            received = await anext(signals)
            crew.stop()
            with anyio.move_on_after(settings.drain_timeout + KILL_SECONDS):
                received = await anext(signals)
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

    return anyio.run(
        lambda: serve(app, settings, sock, ready=ready, drain=app.state.drain, leash=channel),
        backend_options={"use_uvloop": True},
    )


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
