"""The bench's provider: a raw socket server that writes a precomputed answer, in a process of its own.

    python -m tests.bench.origin FD STAMPS SCALE      FD: a listening socket, inherited

What it does with a request stands in the prompt, the one thing that every peer hands on: `bench <stream> <mode>`.
    flow     all events at once
    paced    PAUSE between events, and streams out of step, so that no event meets another one's
    idle     the head, then nothing
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import sys
import time
from pathlib import Path
from typing import Final

import uvloop

from tests.bench.stamps import Stamps
from tests.bench.wire import HEAD, LAST_CHUNK, Answer

PAUSE: Final = 0.2
IN_STEP: Final = 8  # streams that begin within one PAUSE
REQUEST_LIMIT: Final = 64 * 1024
_PROMPT: Final = re.compile(rb"bench (\d+) (flow|paced|idle)")
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


async def serve(listening: socket.socket, answer: Answer, stamps: Stamps) -> None:
    """Accept until the process is ended."""
    loop = asyncio.get_running_loop()
    assert answer.writes  # made now, not within the first stream
    tasks: set[asyncio.Task[None]] = set()
    while True:
        connection, _ = await loop.sock_accept(listening)
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = loop.create_task(_answer_all(loop, connection, answer, stamps))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def _answer_all(
    loop: asyncio.AbstractEventLoop, connection: socket.socket, answer: Answer, stamps: Stamps
) -> None:
    with connection, contextlib.suppress(ConnectionError):
        while await _answer_one(loop, connection, answer, stamps):
            pass


async def _answer_one(
    loop: asyncio.AbstractEventLoop, connection: socket.socket, answer: Answer, stamps: Stamps
) -> bool:
    """Read one request and answer it; False when the peer has closed."""
    request = b""
    while (asked := _asked(request)) is None:
        piece = await loop.sock_recv(connection, REQUEST_LIMIT)
        if not piece or len(request) > REQUEST_LIMIT:
            return False
        request += piece
    stream, mode = asked
    await loop.sock_sendall(connection, HEAD)
    if mode == b"idle":
        return bool(await loop.sock_recv(connection, 1))
    for event, write in enumerate(answer.writes):
        if mode == b"paced":
            await asyncio.sleep(PAUSE if event else PAUSE * (stream % IN_STEP) / IN_STEP)
        await loop.sock_sendall(connection, write)
        stamps.wrote(stream, event, time.monotonic_ns())
    await loop.sock_sendall(connection, LAST_CHUNK)
    return True


def _asked(request: bytes) -> tuple[int, bytes] | None:
    """Stream and mode, once the request is whole."""
    head, blank, body = request.partition(b"\r\n\r\n")
    length = _LENGTH.search(head + b"\r\n")
    whole = len(body) >= int(length[1]) if length else body.endswith(LAST_CHUNK)
    prompt = _PROMPT.search(body)
    return (int(prompt[1]), prompt[2]) if blank and whole and prompt else None


def main(arguments: list[str]) -> None:
    """See the module's text."""
    descriptor, stamps, scale = arguments
    with socket.socket(fileno=int(descriptor)) as listening:
        listening.setblocking(False)
        uvloop.run(serve(listening, Answer(float(scale)), Stamps(Path(stamps))))


if __name__ == "__main__":
    main(sys.argv[1:])
