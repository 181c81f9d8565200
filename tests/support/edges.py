"""Real edges before the proxy, as operators have them: stock nginx and HAProxy with one line and a read timeout."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import pytest

from tests.support.proxy import BOUND

SBIN: Final = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin"

_NGINX: Final = """
daemon off;
worker_processes 1;
error_log stderr;
pid {place}/nginx.pid;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {place}/client_body;
    proxy_temp_path {place}/proxy;
    fastcgi_temp_path {place}/fastcgi;
    uwsgi_temp_path {place}/uwsgi;
    scgi_temp_path {place}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{origin};
            proxy_read_timeout {milliseconds}ms;
        }}
    }}
}}
"""

_HAPROXY: Final = """
global
    maxconn 256
defaults
    mode http
    timeout connect 5s
    timeout client {milliseconds}ms
    timeout server {milliseconds}ms
listen edge
    bind 127.0.0.1:{port}
    server origin 127.0.0.1:{origin}
"""

Command = Callable[[str, Path], list[str]]

EDGES: Final[dict[str, tuple[str, Command]]] = {
    "nginx": (_NGINX, lambda binary, config: [binary, "-p", str(config.parent), "-c", str(config), "-e", "stderr"]),
    "haproxy": (_HAPROXY, lambda binary, config: [binary, "-db", "-f", str(config)]),
}
"""By name: the configuration, and how it is run."""


@asynccontextmanager
async def edge(name: str, origin: int, *, timeout: float) -> AsyncIterator[str]:
    """An edge before this port until the block ends, which waits `timeout` seconds for an answer; its URL."""
    text, command = EDGES[name]
    binary = shutil.which(name, path=SBIN)
    if binary is None:
        pytest.skip(f"{name} is not installed")
    async with anyio.TemporaryDirectory() as directory:
        place = Path(directory)
        place.chmod(0o755)  # noqa: ASYNC240  as root, nginx' worker runs as a user of its own
        port = _free_port()
        config = anyio.Path(place / "edge.conf")
        await config.write_text(text.format(place=place, port=port, origin=origin, milliseconds=int(timeout * 1000)))
        async with await anyio.open_process(
            command(binary, Path(config)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                await _listens(port)
                yield f"http://127.0.0.1:{port}"
            finally:
                process.terminate()
                with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                    await process.wait()


async def _listens(port: int) -> None:
    with anyio.fail_after(BOUND):
        while True:
            try:
                stream = await anyio.connect_tcp("127.0.0.1", port)
            except OSError:
                await anyio.sleep(0.02)
            else:
                await stream.aclose()
                return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
