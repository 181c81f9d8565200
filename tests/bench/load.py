"""The callers: raw sockets that count bytes, compare them, and note when each event was whole. Nothing is parsed twice.

The first answer of a peer is kept and read by `Answer.frame_ends`; from then on a stream is right when its body equals
that one, and an event has arrived when the body has got past the place where it ends.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from enum import Enum
from itertools import count
from typing import Final, cast

from tests.bench.wire import Answer, Void

BUFFER: Final = 256 * 1024
OPENING: Final = 100
"""Idle streams that are opened at a time: under every peer's listen backlog."""

CLOSING_SECONDS: Final = 5.0


class _At(Enum):
    """What the next line on the wire belongs to."""

    HEAD = 1
    CHUNKS = 2
    LAST = 3  # the trailer section, after the chunk of size 0


class _Caller(asyncio.BufferedProtocol):
    """One request and its answer. `buffer` may be shared: it is read before the loop fills it again."""

    def __init__(self, request: bytes, buffer: bytearray, expected: bytes | None, ends: tuple[int, ...]) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.kept = bytearray()
        self.size = 0
        self.arrived: list[int] = []
        self.whole = False
        self.wrong = ""
        self._request = request
        self._buffer = buffer
        self._view = memoryview(buffer)
        self._expected = expected
        self._ends = ends
        self._at = _At.HEAD
        self._line = b""
        self._left = 0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.transport.write(self._request)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        at = 0
        while at < nbytes:
            if self._left:
                end = min(nbytes, at + self._left)
                self._body(self._view[at:end])
                self._left -= end - at
                at = end
                continue
            end = self._buffer.find(b"\n", at, nbytes)
            self._line += self._view[at : nbytes if end < 0 else end]
            if end < 0:
                return
            line, self._line = self._line.rstrip(b"\r"), b""
            self._framing(line)
            at = end + 1

    def _framing(self, line: bytes) -> None:
        match self._at:
            case _At.HEAD:
                if line.startswith(b"HTTP/1") and not line.startswith(b"HTTP/1.1 200"):
                    self.wrong = line.decode("latin-1")
                elif not line:
                    self._at = _At.CHUNKS
                    if not self.opened.done():
                        self.opened.set_result(None)
            case _At.CHUNKS if line and not self.wrong:  # an empty one ends the chunk before
                self._left = int(line.partition(b";")[0], 16)
                if not self._left:
                    self._at = _At.LAST
            case _At.LAST if not line:
                self.whole = True
            case _:
                pass

    def _body(self, piece: memoryview) -> None:
        if self._expected is None:
            self.kept += piece
        elif not self._expected.startswith(piece, self.size):
            self.wrong = f"its body differs from the first one's after byte {self.size}"
        self.size += len(piece)
        while len(self.arrived) < len(self._ends) and self._ends[len(self.arrived)] <= self.size:
            self.arrived.append(time.monotonic_ns())

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(Void(self.wrong or "it closed the connection without an answer"))
            self.opened.exception()  # marks it as retrieved: waiting tasks get it
        if not self.closed.done():  # who waited may have been cancelled
            self.closed.set_result(None)


class Load:
    """The callers of one peer. `numbers` counts the streams of the whole run: stamps are kept by them."""

    def __init__(self, port: int, answer: Answer, numbers: Iterator[int] | None = None) -> None:
        self._port = port
        self._answer = answer
        self._numbers = numbers or count()
        self._buffer = bytearray(BUFFER)
        self._expected: bytes | None = None
        self._ends: tuple[int, ...] = ()

    async def stream(self, mode: str = "flow") -> tuple[int, list[int]]:
        """One whole stream: its number, and when each event had arrived. Raises Void where it is not right."""
        number = next(self._numbers)
        caller = await self._call(number, mode)
        try:
            await caller.closed
        finally:
            if caller.transport is not None:
                caller.transport.abort()  # what is given up must not disturb the next measurement
        if caller.wrong or not caller.whole:
            raise Void(caller.wrong or "it closed the connection inside the answer")
        if self._expected is None:
            body = bytes(caller.kept)
            self._ends = self._answer.frame_ends(body)
            self._expected = body
        elif caller.size != len(self._expected):
            raise Void("its body is shorter than the first one")
        return number, caller.arrived

    async def streams(self, number: int, concurrent: int, mode: str = "flow") -> list[tuple[int, list[int]]]:
        """`number` whole streams, `concurrent` of them at a time."""
        if self._expected is None:
            await self.stream()
        results: list[tuple[int, list[int]]] = []
        left = iter(range(number))

        async def caller() -> None:
            for _ in left:
                results.append(await self.stream(mode))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(number, concurrent)):
                tasks.create_task(caller())
        return results

    @property
    def sent(self) -> int:
        """Bytes of payload that one stream relays: what the provider sends, whatever the peer makes of it."""
        return sum(map(len, self._answer.frames))

    @asynccontextmanager
    async def idle(self, number: int) -> AsyncIterator[None]:
        """`number` streams whose provider has sent its head and nothing else, open until the block ends."""
        callers: list[_Caller] = []
        try:
            while len(callers) < number:
                some = [self._call(0, "idle") for _ in range(min(OPENING, number - len(callers)))]
                connected = await asyncio.gather(*some)
                callers += connected
                await asyncio.gather(*(caller.opened for caller in connected))
            yield
        finally:
            for caller in callers:
                if caller.transport is not None:
                    caller.transport.abort()
            if callers:
                await asyncio.wait([caller.closed for caller in callers], timeout=CLOSING_SECONDS)

    async def _call(self, number: int, mode: str) -> _Caller:
        members = {
            "model": "bench/gpt-image-2",
            "prompt": f"bench {number} {mode}",
            "stream": True,
            "partial_images": len(self._answer.events) - 1,
        }
        body = json.dumps(members).encode()
        request = (
            b"POST /v1/images/generations HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        loop = asyncio.get_running_loop()
        _, caller = await loop.create_connection(
            lambda: _Caller(request, self._buffer, self._expected, self._ends), "127.0.0.1", self._port
        )
        return caller
