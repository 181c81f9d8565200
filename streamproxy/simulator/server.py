"""A raw HTTP/1.1 server that plays scripts: requests are parsed, and answers are the bytes of a script.

`Server` counts events, and its `wait_until` checks a condition at each change. So a test can wait for the event itself,
never for a time.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ssl import SSLContext
from typing import Final

import anyio

from streamproxy.simulator.connection import Connection
from streamproxy.simulator.received import Early, Handler, Received, Server

__all__ = ["Early", "Handler", "Received", "Server", "serve"]

# A 50 MB picture, OpenAI's limit for an input image, has 67 MB as base64 in JSON. Above: 413.
MAX_BODY_BYTES: Final = 96 * 1024 * 1024
# An aborted transport ends in the next turn of the loop; this only bounds a task that does not end.
CLOSE_SECONDS: Final = 5.0


@asynccontextmanager
async def serve(
    handler: Handler,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    ssl: SSLContext | None = None,
    early: Early | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    sock: socket.socket | None = None,
) -> AsyncIterator[Server]:
    """Listen, and answer each request with the handler's script. At the end, close all connections and end all tasks.

    `early(target, headers)` may answer from the head alone, while the body is still being sent. Such a connection
    closes after its script. A listening `sock` replaces `host` and `port`. Raises OSError where it cannot listen.
    """
    server = Server(handler, early, max_body_bytes)
    live: set[Connection] = set()
    loop = asyncio.get_running_loop()
    if sock is None:
        listener = await loop.create_server(lambda: Connection(server, live), host, port, ssl=ssl)
    else:
        listener = await loop.create_server(lambda: Connection(server, live), sock=sock, ssl=ssl)
    server.port = listener.sockets[0].getsockname()[1]
    server.url = f"{'https' if ssl else 'http'}://{f'[{host}]' if ':' in host else host}:{server.port}"
    try:
        yield server
    finally:
        # Not a task group: it would wrap the exceptions of the caller's own block in a group.
        listener.close()
        tasks = [connection.task for connection in live if connection.task is not None]
        for connection in tuple(live):
            connection.transport.abort()
        for task in tasks:
            task.cancel()
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            if tasks:
                await asyncio.wait(tasks)
            await server.wait_closed_connections(math.inf)
            await listener.wait_closed()
