"""The proxy as a process, for tests of its signals, its exit status and the time that it takes to end."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio
import orjson
from anyio.abc import Process as Subprocess
from anyio.streams.buffered import BufferedByteReceiveStream

from streamproxy.signals import Signal
from tests.support.proxy import BOUND

ROOT: Final = Path(__file__).parents[2]
_LISTENING: Final = re.compile(r"API base URL: (http://127\.0\.0\.1:(\d+))/v1")
_LINE_BYTES: Final = 1024 * 1024
ADDRESS: Final = 'host = "127.0.0.1"\nport = 0\n'


@dataclass(slots=True)
class Running:
    """A process that serves. `url` has no path; `log` holds what it has written to standard error, line by line.

    `config`: its configuration's file.
    """

    child: Subprocess
    config: Path
    url: str = ""
    port: int = 0
    log: list[str] = field(default_factory=list)
    changed: Signal = field(default_factory=Signal)

    def signal(self, number: signal.Signals) -> float:
        """Send a signal, and return the time."""
        os.kill(self.child.pid, number)
        return time.monotonic()

    def reload(self, config: str) -> None:
        """Replace the configuration, as editors do it, and send SIGHUP."""
        new = self.config.with_suffix(".new")
        new.write_text(ADDRESS + config)
        new.replace(self.config)
        self.signal(signal.SIGHUP)

    async def exited(self, within: float) -> int:
        """Wait for its end, and return its exit status."""
        with anyio.fail_after(within):
            return await self.child.wait()

    async def logged(self, text: str, times: int = 1) -> list[str]:
        """Wait until so many lines hold `text`."""
        with anyio.fail_after(BOUND):
            while len(found := [line for line in self.log if text in line]) < times:
                await self.changed.wait()
        return found

    def workers(self) -> list[int]:
        """The pids of its workers."""
        pid = self.child.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def pids_that_said(self, text: str) -> list[object]:
        """Which processes wrote a log line with this event."""
        lines = [orjson.loads(line) for line in self.log if line.startswith("{")]
        return [line["pid"] for line in lines if text in line["event"]]


@asynccontextmanager
async def started(
    config: str, *words: str, environ: Mapping[str, str] | None = None, serves: bool = True
) -> AsyncIterator[Running]:
    """Run `serve` on a free loopback port with this TOML, killed with the block. `serves`: wait for its address."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("STREAMPROXY_", "OPENAI_"))}
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**kept, "PYTHONPATH": os.pathsep.join(path), **(environ or {})}
    async with anyio.TemporaryDirectory() as directory:
        file = Path(directory, "streamproxy.toml")
        await anyio.Path(file).write_text(f"{ADDRESS}{config}")
        command = [sys.executable, "-m", "streamproxy", "serve", "--config", str(file), *words]
        child = await anyio.open_process(command, stdin=None, stdout=None, env=env, cwd=ROOT)
        running = Running(child, file)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_read_log, running)
            try:
                with anyio.fail_after(BOUND):
                    while serves and not running.port:
                        assert child.returncode is None, running.log
                        await running.changed.wait()
                yield running
            finally:
                if child.returncode is None:
                    child.kill()
                with anyio.CancelScope(shield=True):
                    await child.aclose()
                tasks.cancel_scope.cancel()


async def _read_log(running: Running) -> None:
    assert running.child.stderr is not None
    lines = BufferedByteReceiveStream(running.child.stderr)
    while True:
        try:
            line = (await lines.receive_until(b"\n", _LINE_BYTES)).decode()
        except (anyio.IncompleteRead, anyio.ClosedResourceError):
            break
        running.log.append(line)
        if found := _LISTENING.search(line):
            running.url, running.port = found[1], int(found[2])
        running.changed.set()
    running.changed.set()
