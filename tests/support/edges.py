"""Real edges in front of the proxy.

EDGES have stock configurations: the upstream, a read timeout, and room for a picture in a request. POOLED keep
connections to the proxy that all callers share, and pass `Upgrade` on as in nginx's documentation of WebSockets.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
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
pid PLACE/nginx.pid;
events { worker_connections 256; }
http {
    access_log off;
    client_body_temp_path PLACE/client_body;
    proxy_temp_path PLACE/proxy;
    fastcgi_temp_path PLACE/fastcgi;
    uwsgi_temp_path PLACE/uwsgi;
    scgi_temp_path PLACE/scgi;
    client_max_body_size 0;
    OF_HTTP
    server {
        listen 127.0.0.1:PORT;
        location / {
            OF_LOCATION
            proxy_read_timeout MILLISECONDSms;
        }
    }
}
"""

_POOL: Final = "upstream pool { server 127.0.0.1:ORIGIN; keepalive 8; }"
_UPGRADE: Final = "proxy_pass http://pool; proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade;"
_MAP: Final = "map $http_upgrade $connection_upgrade { default upgrade; '' close; }"
_MAP_KEPT: Final = "map $http_upgrade $connection_upgrade { default upgrade; '' ''; }"

_HAPROXY: Final = """
global
    maxconn 256
defaults
    mode http
    timeout connect 5s
    timeout client MILLISECONDSms
    timeout server MILLISECONDSms
listen edge
    bind 127.0.0.1:PORT
    server origin 127.0.0.1:ORIGIN
"""


@dataclass(frozen=True, slots=True)
class Edge:
    """A configuration of one program."""

    program: str
    text: str

    def command(self, binary: str, config: Path) -> list[str]:
        """How it is run in the foreground."""
        if self.program == "haproxy":
            return [binary, "-db", "-f", str(config)]
        return [binary, "-p", str(config.parent), "-c", str(config), "-e", "stderr"]


def _nginx(of_location: str, of_http: str = "") -> Edge:
    return Edge("nginx", _NGINX.replace("OF_HTTP", of_http).replace("OF_LOCATION", of_location))


EDGES: Final[Mapping[str, Edge]] = {
    "nginx": _nginx("proxy_pass http://127.0.0.1:ORIGIN;"),
    "haproxy": Edge("haproxy", _HAPROXY),
}

POOLED: Final[Mapping[str, Edge]] = {
    "always": _nginx(f'{_UPGRADE} proxy_set_header Connection "upgrade";', _POOL),
    "map": _nginx(f"{_UPGRADE} proxy_set_header Connection $connection_upgrade;", f"{_POOL} {_MAP}"),
    "map, kept": _nginx(f"{_UPGRADE} proxy_set_header Connection $connection_upgrade;", f"{_POOL} {_MAP_KEPT}"),
    "map, kept, unbuffered": _nginx(
        f"{_UPGRADE} proxy_set_header Connection $connection_upgrade; proxy_request_buffering off;",
        f"{_POOL} {_MAP_KEPT}",
    ),
}
"""Edges by the value of `Connection` towards the proxy. Unbuffered, a body comes in the caller's packets."""


@asynccontextmanager
async def edge(kind: Edge, origin: int, *, timeout: float) -> AsyncIterator[str]:
    """Run an edge in front of this port, and yield its URL. It waits `timeout` seconds for an answer."""
    binary = shutil.which(kind.program, path=SBIN)
    if binary is None:
        pytest.skip(f"{kind.program} is not installed")
    async with anyio.TemporaryDirectory() as directory:
        place = Path(directory)
        place.chmod(0o755)  # noqa: ASYNC240  as root, nginx' worker runs as a user of its own
        port = free_port()
        config = anyio.Path(place / "edge.conf")
        values = {"PLACE": place, "PORT": port, "ORIGIN": origin, "MILLISECONDS": int(timeout * 1000)}
        text = kind.text
        for name, value in values.items():
            text = text.replace(name, str(value))
        await config.write_text(text)
        async with await anyio.open_process(
            kind.command(binary, Path(config)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                await listens(port)
                yield f"http://127.0.0.1:{port}"
            finally:
                process.terminate()
                with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                    await process.wait()


async def listens(port: int) -> None:
    with anyio.fail_after(BOUND):
        while True:
            try:
                stream = await anyio.connect_tcp("127.0.0.1", port)
            except OSError:
                await anyio.sleep(0.02)
            else:
                await stream.aclose()
                return


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
