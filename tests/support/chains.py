"""Every edge of `deploy/edge`, in its stock form and with our file, as a real server in front of the proxy.

A stock form is the least that forwards requests. LIMIT is the place of its limit of silence, which tests shorten.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Final

import anyio
import pytest

from tests.support.edges import SBIN, free_port, listens
from tests.support.proxy import BOUND

FILES: Final = Path(__file__).parents[2] / "deploy" / "edge"
OURS: Final = "ours"
STOCK: Final = "stock"

_ENVOY: Final = """
static_resources:
  listeners:
  - address: { socket_address: { address: 127.0.0.1, port_value: PORT } }
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: edge
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: { prefix: "/" }
                route: { cluster: streamproxy LIMIT }
          http_filters:
          - name: envoy.filters.http.router
            typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
  clusters:
  - name: streamproxy
    load_assignment:
      cluster_name: streamproxy
      endpoints:
      - lb_endpoints:
        - endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: ORIGIN } } }
"""

_APACHE_MODULES: Final = "mpm_event proxy proxy_http reqtimeout authz_core"
_APACHE: Final = "\n".join(
    (
        'ServerRoot "PLACE"',
        "ServerName edge",
        'PidFile "PLACE/pid"',
        'ErrorLog "PLACE/log"',
        *(f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so" for name in _APACHE_MODULES.split()),
    )
)
_NGINX_PLACES: Final = "".join(
    f" {name}_temp_path PLACE/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)


@dataclass(frozen=True, slots=True)
class Chain:
    """One edge. `limit`: its stock limit of silence, with SECONDS in it; `default`: where the program has none itself.

    `places`: what replaces a text of our file so that tests can run it beside others. `before`: what stands before
    either form for the same. `routes_late`: it listens before it knows where to forward requests, and answers 404.
    """

    program: str
    file: str
    stock: str
    command: Callable[[str, Path, int], Sequence[str]]
    _: KW_ONLY
    limit: str = ""
    default: float | None = None
    places: Mapping[str, str] = field(default_factory=dict)
    before: str = ""
    routes_late: bool = False

    def text(self, form: str, limit: float | None) -> str:
        """The configuration, with PLACE, PORT and ORIGIN in it."""
        if form == STOCK:
            line = "" if limit is None else self.limit.replace("SECONDS", f"{limit:g}")
            return self.before + self.stock.replace("LIMIT", line)
        text = (FILES / self.file).read_text("utf-8")
        for old, new in {"127.0.0.1:8080": "127.0.0.1:ORIGIN", **self.places}.items():
            assert old in text or old == "127.0.0.1:8080", f"{old} is not in {self.file}"
            text = text.replace(old, new)
        return self.before + text


def _varnish(binary: str, config: Path, port: int) -> list[str]:
    # Limits are parameters of the program: the stock form's first line has them, our file's says `pipe_timeout`.
    words = re.findall(r"-p \w+=\w+", config.read_text())
    place = config.parent / "varnish"
    return [binary, "-F", "-a", f"127.0.0.1:{port}", "-f", str(config), "-n", str(place), *" ".join(words).split()]


CHAINS: Final[Mapping[str, Chain]] = {
    "nginx": Chain(
        "nginx",
        "nginx.conf",
        f"events {{}} http {{ {_NGINX_PLACES} access_log off; server {{ listen 127.0.0.1:PORT; location / {{"
        " proxy_pass http://127.0.0.1:ORIGIN; LIMIT } } }",
        lambda binary, config, _: [binary, "-p", str(config.parent), "-c", str(config), "-e", "stderr"],
        limit="proxy_read_timeout SECONDSs;",
        places={"listen 8000": "listen 127.0.0.1:PORT", "http {\n": f"http {{ {_NGINX_PLACES} access_log off;\n"},
        before="daemon off; pid PLACE/pid; worker_processes 1;\n",
    ),
    "caddy": Chain(
        "caddy",
        "Caddyfile",
        "http://127.0.0.1:PORT {\n\treverse_proxy 127.0.0.1:ORIGIN\n}\n",
        lambda binary, config, _: [binary, "run", "--config", str(config), "--adapter", "caddyfile"],
        places={":8000": "http://127.0.0.1:PORT"},
        before="{\n\tadmin off\n}\n",
    ),
    "haproxy": Chain(
        "haproxy",
        "haproxy.cfg",
        "defaults\n mode http\n timeout connect 5s\n LIMIT\nlisten edge\n"
        " bind 127.0.0.1:PORT\n server one 127.0.0.1:ORIGIN\n",
        lambda binary, config, _: [binary, "-db", "-f", str(config)],
        limit="timeout client 50s\n timeout server SECONDSs",
        default=50,  # of most examples
        places={"bind :8000": "bind 127.0.0.1:PORT"},
    ),
    "envoy": Chain(
        "envoy",
        "envoy.yaml",
        _ENVOY,
        lambda binary, config, _: [
            *(binary, "-c", str(config), "--disable-hot-restart", "--concurrency", "1", "-l", "off"),
        ],
        limit=", timeout: SECONDSs",
        places={
            "address: 0.0.0.0, port_value: 8000": "address: 127.0.0.1, port_value: PORT",
            "port_value: 8080": "port_value: ORIGIN",
        },
    ),
    "apache": Chain(
        "apache2",
        "apache.conf",
        "\nListen 127.0.0.1:PORT\nRequestReadTimeout header=20-40,minrate=500 body=10,minrate=500\n"
        'ProxyPass "/" "http://127.0.0.1:ORIGIN/" LIMIT\n',
        lambda binary, config, _: [binary, "-D", "FOREGROUND", "-f", str(config)],
        limit="timeout=SECONDS",
        places={"Listen 8000": "Listen 127.0.0.1:PORT", "*:8000": "*:PORT"},
        before=f"{_APACHE}\n",
    ),
    "varnish": Chain(
        "varnishd",
        "varnish.vcl",
        'vcl 4.1; # parameters: LIMIT\nbackend default { .host = "127.0.0.1"; .port = "ORIGIN"; }\n',
        _varnish,
        limit="-p first_byte_timeout=SECONDS -p between_bytes_timeout=SECONDS",
        places={'"8080"': '"ORIGIN"'},
    ),
    "lighttpd": Chain(
        "lighttpd",
        "lighttpd.conf",
        'server.port = PORT\nserver.bind = "127.0.0.1"\nserver.document-root = "PLACE"\n'
        'server.modules = ( "mod_proxy" )\n'
        'proxy.server = ( "" => ( ( "host" => "127.0.0.1", "port" => ORIGIN ) ) )\n',
        lambda binary, config, _: [binary, "-D", "-f", str(config)],
        places={
            "server.port = 8000": 'server.port = PORT\nserver.bind = "127.0.0.1"',
            '"/var/www/html"': '"PLACE"',
            '"port" => 8080': '"port" => ORIGIN',
        },
    ),
    "traefik": Chain(
        "traefik",
        "traefik.yaml",
        "http:\n  routers: { one: { rule: PathPrefix(`/`), service: one } }\n"
        '  services: { one: { loadBalancer: { servers: [ { url: "http://127.0.0.1:ORIGIN" } ] } } }\n',
        lambda binary, config, port: [
            *(binary, f"--entryPoints.edge.address=127.0.0.1:{port}", f"--providers.file.filename={config}"),
        ],
        routes_late=True,
    ),
}


@asynccontextmanager
async def chained(chain: Chain, text: str, origin: int) -> AsyncIterator[str]:
    """Run an edge with this configuration in front of a port, and yield its URL."""
    binary = shutil.which(chain.program, path=f"{Path(sys.executable).parent}:{SBIN}")
    if binary is None:
        pytest.skip(f"{chain.program} is not installed")
    async with anyio.TemporaryDirectory() as directory:
        place = Path(directory)
        place.chmod(0o755)  # noqa: ASYNC240  as root, workers run as users of their own
        port = free_port()
        config = place / ("edge.yaml" if chain.file.endswith(".yaml") else "edge.conf")
        for name, value in {"PLACE": place, "PORT": port, "ORIGIN": origin}.items():
            text = text.replace(name, str(value))
        await anyio.Path(config).write_text(text)
        environ = {**os.environ, "HOME": directory, "XDG_DATA_HOME": directory, "XDG_CONFIG_HOME": directory}
        log = place / "output"
        with log.open("wb") as output:
            command = chain.command(binary, config, port)
            async with await anyio.open_process(
                command, stdout=output, stderr=subprocess.STDOUT, env=environ, cwd=directory
            ) as process:
                try:
                    await listens(port)
                    if chain.routes_late:
                        await _routes(port)
                    yield f"http://127.0.0.1:{port}"
                except TimeoutError:
                    raise AssertionError(log.read_text("utf-8", "replace")[-2000:]) from None
                finally:
                    process.terminate()
                    with anyio.CancelScope(shield=True):
                        with anyio.move_on_after(5):
                            await process.wait()
                        if process.returncode is None:
                            process.kill()


async def _routes(port: int) -> None:
    """Wait until a request is no 404 any more. Nothing is served yet behind the edge, so then there is no answer."""
    with anyio.fail_after(BOUND):
        while True:
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                await stream.send(b"GET /livez HTTP/1.1\r\nHost: edge\r\n\r\n")
                with anyio.move_on_after(0.2) as waited:
                    await stream.receive()
            if waited.cancelled_caught:
                return
            await anyio.sleep(0.02)
