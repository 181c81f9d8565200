"""The proxy as operators run it: `python -m streamproxy serve` in a process of its own, with its log and its memory."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio
import httpx
from anyio.abc import Process as Subprocess

from streamproxy.signals import Signal
from tests.support.proxy import BOUND, NO_TRUST

_LISTENING: Final = re.compile(r"API base URL: (http://127\.0\.0\.1:(\d+))/v1")


@dataclass(slots=True)
class Process:
    """A running process. `url` has no path; `log` holds the lines of its standard error so far."""

    pid: int
    url: str = ""
    port: int = 0
    log: list[str] = field(default_factory=list)
    changed: Signal = field(default_factory=Signal)
    stopping: bool = False

    def stop(self) -> None:
        """SIGTERM, before the block ends; a second one would end it at once."""
        self.stopping = True
        os.kill(self.pid, signal.SIGTERM)

    async def line(self, text: str) -> str:
        """Wait for a line of the log that holds `text`."""
        with anyio.fail_after(BOUND):
            while not (found := [line for line in self.log if text in line]):
                await self.changed.wait()
        return found[-1]

    def resident(self) -> int:
        """Bytes of resident memory."""
        return self._status("VmRSS")

    def reset_peak(self) -> int:
        """Begin to measure the peak of resident memory anew; bytes resident now."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return self.resident()

    def peak(self) -> int:
        """The most bytes that were resident since `reset_peak`, as the kernel counts: nothing is sampled."""
        return self._status("VmHWM")

    def open_files(self, directory: Path) -> list[str]:
        """Files of `directory` that it holds open, deleted ones included."""
        found: list[str] = []
        for number in os.listdir(f"/proc/{self.pid}/fd"):
            try:
                target = os.readlink(f"/proc/{self.pid}/fd/{number}")
            except OSError:
                continue
            if target.startswith(str(directory)):
                found.append(target)
        return found

    async def no_files(self, directory: Path) -> None:
        """Wait until neither the process nor the directory has a file there."""
        with anyio.fail_after(5):
            while self.open_files(directory) or os.listdir(directory):  # noqa: ASYNC110  there is no event for it
                await anyio.sleep(0.01)

    def _status(self, name: str) -> int:
        text = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024


@asynccontextmanager
async def serving_process(
    config: str,
    *,
    environ: Mapping[str, str] | None = None,
    max_file_bytes: int | None = None,
    status: int = 0,
) -> AsyncIterator[Process]:
    """`serve` on a free loopback port with this TOML; it is terminated with the block, and must then end by itself.

    `max_file_bytes`: no file can grow beyond that, as on a full disk. `status`: how it ends, where the block kills it.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("STREAMPROXY_", "OPENAI_"))}
    async with anyio.TemporaryDirectory() as directory:
        path = Path(directory, "streamproxy.toml")
        await anyio.Path(path).write_text(f'host = "127.0.0.1"\nport = 0\n{config}')
        command = [sys.executable, "-m", "streamproxy", "serve", "--config", str(path)]
        env = {**kept, **(environ or {})}
        async with (
            await anyio.open_process(command, stdout=subprocess.DEVNULL, env=env) as child,
            anyio.create_task_group() as tasks,
        ):
            process = Process(child.pid)
            if max_file_bytes is not None:
                resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
            tasks.start_soon(_read_log, child, process)
            try:
                with anyio.fail_after(BOUND):
                    while not process.port:
                        await process.changed.wait()
                yield process
            finally:
                if not process.stopping:
                    with contextlib.suppress(ProcessLookupError):
                        child.terminate()
                with anyio.CancelScope(shield=True):
                    with anyio.move_on_after(10):
                        await child.wait()
                    if child.returncode is None:
                        child.kill()
                        await child.wait()
        assert child.returncode == status, process.log[-3:]


async def _read_log(child: Subprocess, process: Process) -> None:
    assert child.stderr is not None
    pending = b""
    async for data in child.stderr:
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            process.log.append(line.decode())
            if found := _LISTENING.search(process.log[-1]):
                process.url, process.port = found[1], int(found[2])
        process.changed.set()


def configuration(upstream: str, *, credential: str = "none", settings: str = "") -> str:
    """TOML with the one provider `sim` at `upstream` (an origin; /v1 is added)."""
    row = f'[providers.sim]\nbase_url = "{upstream}/v1"\ncredential = "{credential}"\n'
    return f"{settings}\n{row}"


def caller() -> httpx.AsyncClient:
    """A client without proxies, whose timeout is BOUND."""
    return httpx.AsyncClient(timeout=BOUND, trust_env=False, verify=NO_TRUST)
