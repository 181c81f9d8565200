"""Who is measured, one row each, and how each is started, watched and ended. A peer's directory is its own.

A peer's processes are listed anew at each reading: nginx listens before it forks its worker. The CPU time of one that
has ended is its parent's from then on, and one that appears brings all of its own: the difference of two readings holds
everything between them.

nginx and HAProxy get one worker, HTTP/1.1 and kept connections towards the provider, and otherwise their defaults; but
nginx's are buffers of 4 KB, which make it slower than it has to be, so that there is a row with larger ones too.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from tests.bench.wire import Void

START_SECONDS: Final = 20.0
END_SECONDS: Final = 5.0
READINGS: Final = 20
"""Of a peer's processes until none came or went meanwhile: two or three would do after a start."""

LOG: Final = 1000
"""Characters of a peer's log that are shown when it does not start."""

TICKS: Final = os.sysconf("SC_CLK_TCK")
ROOT: Final = Path(__file__).parents[2]
SBIN: Final = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin"

Command = Callable[[Path, int, int], list[str]]


@dataclass(frozen=True, slots=True)
class Peer:
    """A row: `command(directory, port, origin's port)` writes its configuration and says how it is run.

    `fast`: whether it takes a second or so per GB. `passes_head`: whether a caller gets the head before any data.
    """

    name: str
    command: Command
    binary: str | None = None
    fast: bool = True
    passes_head: bool = True

    @property
    def missing(self) -> bool:
        """Whether its binary is not installed here."""
        return self.binary is not None and shutil.which(self.binary, path=SBIN) is None


def serving(directory: Path, port: int, settings: str) -> list[str]:
    """How streamproxy is run with these settings, in TOML."""
    config = directory / "streamproxy.toml"
    # Callers who left leave streams behind, which a process that is asked to stop would wait for.
    config.write_text(f"drain_timeout = 0.2\n{settings}")
    return [sys.executable, "-m", "streamproxy", "serve", "--port", str(port), "--config", str(config)]


RELAY: Final = "store_bytes = 65536  # what finished streams keep besides is as much as this setting allows"


def _streamproxy(directory: Path, port: int, origin: int, store: str) -> list[str]:
    return serving(
        directory,
        port,
        f"""
max_connections = 4000  # default: 1000, which is exactly what the idle streams need
pool_timeout = 30.0
{store}

[providers.bench]
base_url = "http://127.0.0.1:{origin}/v1"
credential = "none"
""",
    )


NGINX_64K: Final = "proxy_buffering off; proxy_buffer_size 64k; proxy_buffers 8 64k;"


def _nginx(directory: Path, port: int, origin: int, buffering: str) -> list[str]:
    config = directory / "nginx.conf"
    # As root its worker runs as the user nobody, which needs access to the temporary files of buffered answers.
    for parent in (directory.parent, directory):
        parent.chmod(0o755)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n    ".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)
    config.write_text(
        f"""
daemon off;
worker_processes 1;
worker_rlimit_nofile 8192;
error_log stderr;
pid {directory}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    {temporary}
    upstream origin {{ server 127.0.0.1:{origin}; keepalive 64; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            {buffering}
            proxy_read_timeout 300s;
        }}
    }}
}}
"""
    )
    return [shutil.which("nginx", path=SBIN) or "", "-p", str(directory), "-c", str(config), "-e", "stderr"]


def _haproxy(directory: Path, port: int, origin: int) -> list[str]:
    config = directory / "haproxy.cfg"
    config.write_text(
        f"""
global
    nbthread 1
    maxconn 4096
defaults
    mode http
    timeout connect 5s
    timeout client 300s
    timeout server 300s
listen bench
    bind 127.0.0.1:{port}
    server origin 127.0.0.1:{origin}
"""
    )
    return [shutil.which("haproxy", path=SBIN) or "", "-db", "-f", str(config)]


def _tutorial(_directory: Path, port: int, origin: int) -> list[str]:
    return [sys.executable, "-m", "tests.bench.tutorial", str(port), f"http://127.0.0.1:{origin}"]


PEERS: Final[tuple[Peer, ...]] = (
    Peer("streamproxy", partial(_streamproxy, store=RELAY)),
    Peer("streamproxy-default", partial(_streamproxy, store="")),
    Peer("nginx", partial(_nginx, buffering="proxy_buffering off;"), binary="nginx"),
    Peer("nginx-64k", partial(_nginx, buffering=NGINX_64K), binary="nginx"),
    Peer("nginx-buffered", partial(_nginx, buffering="proxy_buffering on;"), binary="nginx", passes_head=False),
    Peer("haproxy", _haproxy, binary="haproxy"),
    Peer("tutorial", _tutorial, fast=False),
)


SHARED: Final = "streamproxy-valkey"


def shared(url: str, why_not: str = "") -> Peer:
    """streamproxy on the Valkey store at this URL; `why_not` says why there is none."""
    store = f'store = "{url}"\nsecret = "{"bench-" * 8}"'
    return Peer(SHARED, partial(_streamproxy, store=store), binary="valkey-server" if why_not else None)


@dataclass(frozen=True, slots=True)
class Running:
    """A started peer; `pid` is its first process. Its readings raise Void where it has ended."""

    peer: Peer
    port: int
    pid: int

    def cpu(self) -> float:
        """CPU seconds, user and system, of all processes and threads that it has or had."""
        return self._sum(_cpu)

    def memory(self) -> float:
        """Bytes resident now."""
        return self._sum(lambda pid: _status(pid, "VmRSS"))

    def peak(self) -> float:
        """Bytes resident at most since it started, of the processes that it has."""
        return self._sum(lambda pid: _status(pid, "VmHWM"))

    def _sum(self, reading: Callable[[int], float]) -> float:
        """Over all its processes; read again where one came or went meanwhile."""
        for _ in range(READINGS):
            with suppress(OSError):  # one went
                pids = list(_family(self.pid))
                total = sum(map(reading, pids))
                if pids == list(_family(self.pid)):
                    return total
        raise Void("it has ended, or its processes come and go")


@contextmanager
def running(peer: Peer, directory: Path, origin: int, cpu: int | None) -> Iterator[Running]:
    """A peer in its own process until the block ends, on one CPU where `cpu` names it; raises Void if none starts."""
    place = directory / peer.name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    port = _free_port()
    command = peer.command(place, port, origin)
    with (place / "log").open("wb") as log, started(command, log.fileno(), cpu) as process:
        _wait_until_open(port, process, place / "log")
        yield Running(peer, port, process.pid)


@contextmanager
def started(
    command: list[str], output: int, cpu: int | None, pass_fds: tuple[int, ...] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """A process until the block ends. Its output goes to a file, since an unread pipe would block it."""
    ours = os.sched_getaffinity(0)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("STREAMPROXY_")}
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})  # inherited
    try:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=pass_fds
        )
    finally:
        os.sched_setaffinity(0, ours)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(END_SECONDS)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_until_open(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError:
            time.sleep(0.02)
        else:
            return
    said = " ".join(log.read_text("utf-8", "replace").split())[-LOG:]
    raise Void(f"it does not listen: {said}")


def _family(pid: int) -> Iterator[int]:
    """A process and its descendants."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from _family(int(child))


def _cpu(pid: int) -> float:
    """Seconds of this process (clock_getcpuclockid(3)) and of its children that have ended (proc(5): in ticks)."""
    ended = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[13:15]
    return time.clock_gettime((~pid << 3) | 2) + sum(map(int, ended)) / TICKS


def _status(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0
