"""A TCP relay in front of the proxy that cuts or holds a connection at a chosen place of the response.

A place is found by bytes of the response, so it does not depend on the network's chunks. Places are used in order, each
once. The requests through the relay are recorded, with their Last-Event-ID.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

import anyio
import httptools

from streamproxy.signals import Signal
from tests.support.proxy import BOUND

READ: Final = 64 * 1024
RECEIVE_BUFFER: Final = 64 * 1024
"""Bytes that the kernel takes for a held connection. Soon after them the proxy has to wait."""

KEPT: Final = 1024 * 1024
"""Bytes kept of each connection's response."""

RST_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d{3}) ")


class Then(Enum):
    """The action at a place."""

    RST = auto()
    FIN = auto()
    HOLD = auto()


@dataclass(frozen=True, slots=True)
class Place:
    """The place `beyond` bytes after the first `mark` in a connection's responses."""

    mark: bytes
    then: Then
    beyond: int = 0


@dataclass(slots=True)
class Asked:
    """One request and the status of its answer, 0 until there is one. `at` is `time.monotonic()`."""

    method: str
    target: str
    connection: int
    at: float
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 0


@dataclass(slots=True)
class Cutter:
    """The running relay. `held` is set when a connection is held; setting `go` releases it.

    `answers` and `ended` are by connection, counted from 1: the bytes sent to it, and the time of its end.
    """

    url: str
    port: int
    places: deque[Place] = field(default_factory=deque)
    asked: list[Asked] = field(default_factory=list)
    answers: dict[int, bytearray] = field(default_factory=dict)
    ended: dict[int, float] = field(default_factory=dict)
    connections: int = 0
    held: anyio.Event = field(default_factory=anyio.Event)
    go: anyio.Event = field(default_factory=anyio.Event)
    _changed: Signal = field(default_factory=Signal)

    def follows(self) -> list[Asked]:
        """The requests for a stream's events, in order."""
        return [one for one in self.asked if one.method == "GET" and "/images/" not in one.target]

    async def until(self, reached: Callable[[], bool]) -> None:
        """Return as soon as the condition holds. Raises TimeoutError."""
        with anyio.fail_after(BOUND):
            while not reached():
                await self._changed.wait()

    def change(self) -> None:
        """Wake all waiting tasks."""
        self._changed.set()


@asynccontextmanager
async def cutting(port: int, *places: Place) -> AsyncIterator[Cutter]:
    """Relay to this port of 127.0.0.1 until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        own: int = listener.getsockname()[1]
        cutter = Cutter(f"http://127.0.0.1:{own}", own, deque(places))
        async with anyio.create_task_group() as tasks:

            async def accept() -> None:
                while True:
                    client, _ = await asyncio.get_running_loop().sock_accept(listener)
                    cutter.connections += 1
                    tasks.start_soon(_relay, cutter, client, port, cutter.connections)

            tasks.start_soon(accept)
            yield cutter
            tasks.cancel_scope.cancel()


async def _relay(cutter: Cutter, client: socket.socket, port: int, number: int) -> None:
    with client, socket.socket(socket.AF_INET, socket.SOCK_STREAM) as proxy:
        proxy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        proxy.setblocking(False)
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):  # either side may leave at any time: both connections end then
            await asyncio.get_running_loop().sock_connect(proxy, ("127.0.0.1", port))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_requests, cutter, client, proxy, number, tasks.cancel_scope)
                with contextlib.suppress(OSError):
                    await _responses(cutter, client, proxy, number)
                tasks.cancel_scope.cancel()
    cutter.ended[number] = time.monotonic()
    cutter.change()


class _Heads:
    """The callbacks of httptools: each request's head becomes an Asked."""

    def __init__(self, cutter: Cutter, connection: int) -> None:
        self._cutter = cutter
        self._connection = connection
        self._target = b""
        self._headers: dict[str, str] = {}
        self.parser = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        self._target, self._headers = b"", {}

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        method = self.parser.get_method().decode()
        one = Asked(method, self._target.decode("latin-1"), self._connection, time.monotonic(), self._headers)
        self._cutter.asked.append(one)
        self._cutter.change()


async def _requests(
    cutter: Cutter, client: socket.socket, proxy: socket.socket, number: int, scope: anyio.CancelScope
) -> None:
    loop = asyncio.get_running_loop()
    heads = _Heads(cutter, number)
    with contextlib.suppress(OSError):
        while data := await loop.sock_recv(client, READ):
            heads.parser.feed_data(data)
            await loop.sock_sendall(proxy, data)
    scope.cancel()


async def _responses(cutter: Cutter, client: socket.socket, proxy: socket.socket, number: int) -> None:
    loop = asyncio.get_running_loop()
    kept = cutter.answers[number] = bytearray()
    tail = b""  # of what has passed, in case a mark is cut in two
    left: int | None = None  # bytes until the place whose mark has been seen
    while data := await loop.sock_recv(proxy, READ):
        _answered(cutter, number, data)
        while data:
            if left is None and cutter.places:
                at = (tail + data).find(mark := cutter.places[0].mark)
                if at >= 0:
                    left = max(0, at + len(mark) - len(tail)) + cutter.places[0].beyond
            now, data = (data, b"") if left is None or left > len(data) else (data[:left], data[left:])
            tail = (tail + now)[-64:]
            kept += now[: KEPT - len(kept)]
            await loop.sock_sendall(client, now)
            cutter.change()
            if left is None:
                continue
            left -= len(now)
            if left == 0:
                left, tail = None, b""
                place = cutter.places.popleft()
                if place.then is Then.HOLD:
                    cutter.held.set()
                    await cutter.go.wait()
                    continue
                if place.then is Then.RST:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST_ON_CLOSE)
                return


def _answered(cutter: Cutter, number: int, data: bytes) -> None:
    """Read the status of a response at the start of a chunk: no caller here pipelines requests."""
    found = _STATUS.match(data)
    if found is not None:
        one = next(one for one in cutter.asked if one.connection == number and one.status == 0)
        one.status = int(found[1])
        cutter.change()
