"""Pages and names that try to spend the key of a proxy on the reader's own machine: over sockets, and in Chromium."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import anyio
import httpx
import orjson
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route
from structlog.testing import capture_logs

from streamproxy.app import create_app
from streamproxy.settings import Settings
from streamproxy.simulator.server import Server, serve
from streamproxy.web.routes import ROUTES
from tests.support.caller import calling
from tests.support.chromium import chromium, needs_chromium
from tests.support.faults import IMAGE
from tests.support.proxy import BOUND, PROMPT, Proxy, no_leaks, running_proxy, serving, until

pytestmark = pytest.mark.anyio

KEY: Final = "sk-sim-0123456789abcdef"
OWN: Final = {"credential": "env:SIM_KEY", "auth_header": "authorization", "auth_scheme": "Bearer "}
PASSED: Final = {"credential": "caller", "auth_header": "authorization", "auth_scheme": "Bearer "}
BODY: Final = orjson.dumps({"model": "sim/gpt-image", "prompt": PROMPT})
JSON: Final = (("Content-Type", "application/json"), ("Content-Length", str(len(BODY))))


@asynccontextmanager
async def sidecar(**settings: object) -> AsyncIterator[tuple[Server, Proxy]]:
    """A proxy on this machine that holds a key, and asks its callers for none."""
    async with (
        no_leaks(),
        serve(lambda _: IMAGE) as provider,
        running_proxy(provider.url, provider=OWN, environ={"SIM_KEY": KEY}, **settings) as proxy,  # type: ignore[arg-type]
    ):
        yield provider, proxy


async def status(proxy: Proxy, method: str, path: str, headers: Sequence[tuple[str, str]], body: bytes = b"") -> int:
    """What a raw request gets."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "Connection: close", "", ""]
    async with calling(proxy.port) as caller:
        await caller.send("\r\n".join(lines).encode() + body)
        return await caller.head()


@pytest.mark.parametrize("host", ["rebind.evil.example:8080", "evil.localhost.example", "10.1.2.3"])
async def test_no_route_answers_to_a_foreign_name(host: str) -> None:
    async with sidecar() as (provider, proxy):
        for row in ROUTES:
            path = f"/v1{row.path}" if row.surface else row.path
            body = (JSON, BODY) if row.method == "POST" else ((), b"")
            given = (("Host", host), ("Origin", f"http://{host}"), *body[0])
            assert await status(proxy, row.method, path, given, body[1]) == 421, row.path
        assert await status(proxy, "GET", "/nope", (("Host", host),)) == 421
        assert await status(proxy, "OPTIONS", "/v1/images/generations", (("Host", host),)) == 421
        assert provider.calls == 0
        assert await proxy.failures("host") == len(ROUTES) + 2


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
async def test_no_foreign_page_without_fetch_metadata(origin: str) -> None:
    async with sidecar() as (provider, proxy):
        given = (("Host", f"127.0.0.1:{proxy.port}"), ("Origin", origin))
        form = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nsim/gpt-image\r\n--x--\r\n'
        kind = (("Content-Type", "multipart/form-data; boundary=x"), ("Content-Length", str(len(form))))
        assert await status(proxy, "POST", "/v1/images/generations", (*given, *JSON), BODY) == 403
        assert await status(proxy, "POST", "/v1/images/edits", (*given, *kind), form) == 403
        assert await status(proxy, "DELETE", "/v1/streams/str_1", given) == 403
        assert await status(proxy, "GET", "/v1/streams/str_1", given) == 403
        assert provider.calls == 0


async def test_programs_own_names_and_allowed_ones_are_served() -> None:
    async with sidecar(allowed_hosts=["proxy.internal"]) as (provider, proxy):
        names = (f"127.0.0.1:{proxy.port}", "localhost", "sidecar.localhost:1", "[::1]:9", "proxy.internal")
        for host in names:
            assert await status(proxy, "POST", "/v1/images/generations", (("Host", host), *JSON), BODY) == 200
        own = (("Host", "proxy.internal"), ("Origin", "https://proxy.internal"))
        assert await status(proxy, "POST", "/v1/images/generations", (*own, *JSON), BODY) == 200
        assert provider.calls == len(names) + 1


async def test_with_callers_keys_any_host_name_is_accepted() -> None:
    """A container, or a sidecar behind an edge that keeps the host's name."""
    host = (("Host", "app.example.com"), *JSON)
    async with no_leaks(), serve(lambda _: IMAGE) as provider:
        async with running_proxy(provider.url, provider=PASSED) as proxy:
            given = (*host, ("Authorization", "Bearer sk-own"))
            assert await status(proxy, "POST", "/v1/images/generations", given, BODY) == 200
        async with running_proxy(provider.url, provider=OWN, environ={"SIM_KEY": KEY}, caller_keys=KEYS) as proxy:
            given = (*host, ("Authorization", "Bearer caller-key"))
            assert await status(proxy, "POST", "/v1/images/generations", given, BODY) == 200
            assert await status(proxy, "GET", "/livez", (("Host", "10.0.0.7:8080"),)) == 200


KEYS: Final = (f"sha256:{hashlib.sha256(b'caller-key').hexdigest()}",)


async def test_a_private_network_preflight_of_an_allowed_page() -> None:
    async with sidecar(cors_origins=["https://app.example.com"]) as (_, proxy):
        asked = {
            "origin": "https://app.example.com",
            "access-control-request-method": "POST",
            "access-control-request-private-network": "true",
        }
        answer = await proxy.client.options(f"{proxy.url}/v1/images/generations", headers=asked)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-private-network"] == "true"


async def test_a_refused_preflight_is_one_log_line() -> None:
    async with sidecar(cors_origins=["http://localhost:*"]) as (_, proxy):
        asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        with capture_logs() as logs:
            answer = await proxy.client.options(f"{proxy.url}/v1/images/generations", headers=asked)
            await until(lambda: logs)
            allowed = await proxy.client.options(
                f"{proxy.url}/v1/images/generations", headers={**asked, "origin": "http://localhost:5173"}
            )
        assert (answer.status_code, allowed.status_code) == (403, 200)
        assert "cors_origins" in answer.json()["error"]["message"]
        assert [line["failure"] for line in logs if "failure" in line] == ["origin_not_allowed"]
        assert "evil" not in str(logs)


# A real browser. Every name resolves to this machine there, as it does after rebinding.

ATTACK: Final = """<!doctype html><title>elsewhere</title><link rel="icon" href="data:,"><script>
window.attack = async (target) => {
  const form = new FormData();
  form.append('model', 'sim/gpt-image');
  form.append('prompt', 'paid by somebody else');
  form.append('image', new Blob([new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10])], { type: 'image/png' }), 'a.png');
  const post = { method: 'POST', mode: 'no-cors', body: form };
  const json = { method: 'POST', mode: 'no-cors', body: JSON.stringify({ model: 'sim/gpt-image', prompt: 'x' }) };
  await fetch(`${target}/v1/images/edits`, post).catch(() => 0);
  await fetch(`${target}/v1/images/edits`, { ...post, referrerPolicy: 'no-referrer' }).catch(() => 0);
  await fetch(`${target}/v1/images/generations`, json).catch(() => 0);
  return 'done';
};
window.own = async () => {  // same-origin, as a page is after rebinding
  const headers = { 'content-type': 'application/json' };
  const body = JSON.stringify({ model: 'sim/gpt-image', prompt: 'x' });
  const order = await fetch('/v1/images/generations', { method: 'POST', headers, body });
  const models = await fetch('/v1/models');
  return [order.status, models.status];
};
</script>"""


@needs_chromium
@pytest.mark.parametrize("name", ["127.0.0.1", "sidecar.evil.example", "rebind.evil.example"])
async def test_a_page_of_another_name_cannot_pay_with_our_key(name: str) -> None:
    page = Starlette(routes=[Route("/", lambda _: HTMLResponse(ATTACK))])
    async with sidecar() as (provider, proxy), serving(page, Settings(port=0)) as evil:
        with chromium() as browser:
            async with browser.page(f"http://elsewhere.evil.example:{evil.port}/") as tab:
                assert await tab.run(f"attack('http://{name}:{proxy.port}')") == "done"
        with anyio.fail_after(BOUND):
            while await proxy.failures("origin") + await proxy.failures("host") < 3:  # noqa: ASYNC110
                await anyio.sleep(0.05)
        assert provider.calls == 0


@asynccontextmanager
async def _started(mounted: Starlette, _parent: Starlette) -> AsyncIterator[None]:
    """A parent app's lifespan, which runs that of the app mounted in it."""
    async with mounted.router.lifespan_context(mounted):
        yield


@needs_chromium
async def test_a_rebound_page_cannot_pay_with_our_key() -> None:
    """The page has come from the very name and port that now lead to the proxy."""
    async with no_leaks(), serve(lambda _: IMAGE) as provider:
        row = {"base_url": f"{provider.url}/v1", **OWN}
        settings = Settings.of({"port": 0, "providers": {"sim": row}})
        proxied = create_app(settings, environ={"SIM_KEY": KEY})

        async def shown(request: Request) -> HTMLResponse:
            return HTMLResponse(ATTACK)

        routes = [Route("/page", shown), Mount("/", proxied)]
        both = Starlette(routes=routes, lifespan=partial(_started, proxied))
        async with serving(both, settings) as proxy:
            with chromium() as browser:
                async with browser.page(f"http://rebind.evil.example:{proxy.port}/page") as tab:
                    assert await tab.run("own()") == [421, 421]
        assert provider.calls == 0


async def test_an_app_whose_lifespan_has_not_run_says_what_to_do() -> None:
    settings = Settings.of(
        {"port": 0, "providers": {"sim": {"base_url": "http://127.0.0.1:9/v1", "credential": "none"}}}
    )
    transport = httpx.ASGITransport(create_app(settings, environ={}))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        with pytest.raises(RuntimeError, match="lifespan_context"):
            await client.get("/v1/models")
