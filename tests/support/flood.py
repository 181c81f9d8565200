"""A provider in its own process that never stops sending, and does not share our event loop."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.proxy import BOUND

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
PROGRAM = """
import socket, sys
piece, first = (bytes.fromhex(sys.stdin.readline()) for _ in range(2))
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
client, _ = listener.accept()
client.settimeout({bound})
client.recv(65536)
client.sendall({head} + first)
while True:
    client.sendall(piece)
"""


@contextmanager
def flooding(piece: bytes, first: bytes = b"") -> Iterator[str]:
    """Its origin. It answers one request: a head of events, `first` once, and then `piece` again and again."""
    program = PROGRAM.format(bound=BOUND, head=HEAD)
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{piece.hex()}\n{first.hex()}\n")
            process.stdin.flush()
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()
