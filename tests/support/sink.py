"""A provider that takes any size of body and keeps only what a test compares: the head, the size and the digest."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import anyio
from anyio.abc import SocketAttribute, SocketStream

READ: Final = 256 * 1024
ANSWER: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 46\r\n\r\n"
    b'{"created":1,"data":[{"b64_json":"aW1hZ2U="}]}'
)


def refusal(status: int, body: bytes) -> bytes:
    """An error answer."""
    head = b"HTTP/1.1 %d No\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(body)) + body


@dataclass(frozen=True, slots=True)
class Taken:
    """One request: its body as far as it came."""

    target: str
    headers: Mapping[str, str]
    size: int
    digest: bytes


@dataclass(slots=True)
class Sink:
    """The requests so far. `answers` are given in turn, and the last one is repeated."""

    answers: list[bytes]
    hold_at: int | None
    answer_at: int | None
    url: str = ""
    calls: int = 0
    taken: list[Taken] = field(default_factory=list)
    holding: anyio.Event = field(default_factory=anyio.Event)
    """Set when `hold_at` bytes of a body have come; reading stops there until `resume` is set."""
    resume: anyio.Event = field(default_factory=anyio.Event)
    closed: anyio.Event = field(default_factory=anyio.Event)
    """Set when a connection has ended in the middle of a request."""

    async def serve(self, stream: SocketStream) -> None:
        async with stream:
            try:
                while await self._exchange(stream):
                    pass
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                pass

    async def _exchange(self, stream: SocketStream) -> bool:
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += await stream.receive(READ)
        self.calls += 1
        line, *lines = data[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        digest, size, expected = hashlib.sha256(), 0, int(headers["content-length"])
        data = data[end + 4 :]
        try:
            while True:
                digest.update(data)
                size += len(data)
                if size >= expected:
                    break
                if self.hold_at is not None and size >= self.hold_at:
                    self.holding.set()
                    await self.resume.wait()
                if self.answer_at is not None and size >= self.answer_at:
                    await stream.send(self.answers[0])
                    self.answer_at = expected + 1
                data = await stream.receive(READ)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            self.closed.set()
            return False
        finally:
            self.taken.append(Taken(line.split(" ")[1], headers, size, digest.digest()))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        await stream.send(answer)
        return True


@asynccontextmanager
async def sinking(*answers: bytes, hold_at: int | None = None, answer_at: int | None = None) -> AsyncIterator[Sink]:
    """Listen on a free loopback port until the block ends. `answer_at`: the first answer comes after so many bytes."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    sink = Sink(list(answers) or [ANSWER], hold_at, answer_at)
    sink.url = f"http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, sink.serve)
        yield sink
        tasks.cancel_scope.cancel()
