"""A caller on a raw socket: it reads only on demand, and can disconnect in every way."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import anyio
import orjson

from tests.support.proxy import BOUND, PROMPT

READ: Final = 256 * 1024
RST_ON_CLOSE: Final = struct.pack("ii", 1, 0)
GENERATIONS: Final = "/v1/images/generations"
EDITS: Final = "/v1/images/edits"


def post(body: bytes, *, path: str = GENERATIONS, kind: str = "application/json", length: int | None = None) -> bytes:
    """A whole POST. `length`: its Content-Length, by default the right one."""
    size = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nHost: proxy.test\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + body


def generation(**members: object) -> bytes:
    """A whole request for one image: `model` defaults to "sim/gpt-image"."""
    return post(orjson.dumps({"model": "sim/gpt-image", "prompt": PROMPT, **members}))


@dataclass(slots=True)
class Caller:
    """One connection. Received bytes that were not asked for yet are in `_buffer`."""

    sock: socket.socket
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    _buffer: bytearray = field(default_factory=bytearray)

    async def send(self, data: bytes) -> None:
        with anyio.fail_after(BOUND):
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def head(self) -> int:
        """Read the response head, and return its status."""
        lines = (await self._until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        self.status = int(lines[0].split(" ")[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        return self.status

    async def chunk(self) -> bytes:
        """The data of the next chunk of a chunked body, b"" for the last; raises ConnectionError where it is cut."""
        size = int(await self._until(b"\r\n"), 16)
        while len(self._buffer) < size + 2:
            await self._more()
        data = bytes(self._buffer[:size])
        del self._buffer[: size + 2]
        return data

    async def rest(self) -> bytes:
        """The rest of the body: all chunks, or the bytes of its Content-Length."""
        if self.headers.get("transfer-encoding") == "chunked":
            parts: list[bytes] = []
            while data := await self.chunk():
                parts.append(data)
            return b"".join(parts)
        size = int(self.headers["content-length"])
        while len(self._buffer) < size:
            await self._more()
        body = bytes(self._buffer[:size])
        del self._buffer[:size]
        return body

    async def ended(self) -> bool:
        """Wait for the end of the connection. Returns whether it was clean and not a reset."""
        try:
            while True:
                await self._more()
        except ConnectionResetError:
            return False
        except ConnectionAbortedError:
            return True

    def reset(self) -> None:
        """Leave with an RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST_ON_CLOSE)
        self.sock.close()

    def close(self) -> None:
        """Leave with a FIN."""
        self.sock.close()

    def half_close(self) -> None:
        """End our direction only."""
        self.sock.shutdown(socket.SHUT_WR)

    async def _until(self, end: bytes) -> bytes:
        while (at := self._buffer.find(end)) < 0:
            await self._more()
        data = bytes(self._buffer[:at])
        del self._buffer[: at + len(end)]
        return data

    async def _more(self) -> None:
        with anyio.fail_after(BOUND):
            data = await asyncio.get_running_loop().sock_recv(self.sock, READ)
        if not data:
            raise ConnectionAbortedError("the connection ended")
        self._buffer += data


@asynccontextmanager
async def calling(port: int, *, receive_buffer: int | None = None) -> AsyncIterator[Caller]:
    """A connection to the proxy, closed with the block. `receive_buffer`: bytes of the kernel's receive buffer."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        with anyio.fail_after(BOUND):
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        yield Caller(sock)
    finally:
        sock.close()
