"""Callers' limits over several processes, which share a Valkey server, and while that is away."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import anyio
import httpx
import pytest

from streamproxy.simulator.script import Script, json_answer
from streamproxy.simulator.server import Server, serve
from tests.support.faults import Held
from tests.support.process import configuration, serving_process
from tests.support.proxy import BOUND, NO_TRUST, PROMPT, Proxy, running_proxy, until
from tests.support.valkey import ValkeyServer, valkey_server

pytestmark = pytest.mark.anyio

KEYS: Final = {name: f"key-of-{name}-0123456789" for name in ("app", "few", "free")}
LIMITS: Final[Mapping[str, Mapping[str, float]]] = {"app": {"usd_per_day": 0.4}, "few": {"streams": 2}, "free": {}}
COST: Final = 0.05
SECRET: Final = "one-secret-for-all-of-them"


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    """One that may be killed; what it keeps survives that."""
    with valkey_server(disk=True) as server:
        yield server


def hashed(name: str) -> str:
    return f"sha256:{hashlib.sha256(KEYS[name].encode()).hexdigest()}"


@asynccontextmanager
async def sharing(valkey: ValkeyServer, server: Server, count: int = 2) -> AsyncIterator[list[Proxy]]:
    """So many proxies with the same callers and the same store."""
    callers = {name: {"key": hashed(name), **LIMITS[name]} for name in KEYS}
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(running_proxy(server.url, callers=callers, store=valkey.url, secret=SECRET))
            for _ in range(count)
        ]


async def ask(proxy: Proxy, name: str) -> httpx.Response:
    body = {"model": "sim/gpt-image", "prompt": PROMPT}
    return await proxy.client.post(f"{proxy.url}/v1/images/generations", json=body, headers=key(name))


async def usage(proxy: Proxy, name: str) -> httpx.Response:
    return await proxy.client.get(f"{proxy.url}/v1/usage", headers=key(name))


async def row(proxy: Proxy, name: str) -> dict[str, Any]:
    [found] = (await usage(proxy, name)).json()["data"]
    assert isinstance(found, dict)
    return found


def key(name: str) -> Mapping[str, str]:
    return {"x-api-key": KEYS[name]}


def answer(cost: float | None = COST) -> Script:
    return json_answer(200, {"created": 1, "data": [{"b64_json": "aW1hZ2U="}], "cost": cost})


async def test_a_budget_of_all_processes(valkey: ValkeyServer) -> None:
    go = anyio.Event()
    said: Counter[int] = Counter()

    async def one(proxy: Proxy) -> None:
        said[(await ask(proxy, "app")).status_code] += 1

    async with serve(lambda _: Held((), go, answer())) as server, sharing(valkey, server) as proxies:
        with anyio.fail_after(BOUND):
            async with anyio.create_task_group() as tasks:
                for number in range(50):
                    tasks.start_soon(one, proxies[number % 2])
                await until(lambda: said[429] == 40)
                go.set()
        assert (said, server.calls) == ({200: 10, 429: 40}, 10)
        rows = [await row(proxy, "app") for proxy in proxies]
        assert rows[0] == rows[1]
        assert (rows[0]["requests"], rows[0]["cost"], rows[0]["estimated"]) == (10, 10 * COST, 0)


async def test_streams_of_all_processes(valkey: ValkeyServer) -> None:
    go = anyio.Event()
    async with serve(lambda _: Held((), go, answer())) as server, sharing(valkey, server) as proxies:
        with anyio.fail_after(BOUND):
            async with anyio.create_task_group() as tasks:
                for proxy in proxies:
                    tasks.start_soon(ask, proxy, "few")
                await server.wait_until(lambda server: server.calls == 2, BOUND)
                for proxy in proxies:
                    refused = await ask(proxy, "few")
                    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "caller_streams")
                go.set()
        for proxy in proxies:
            assert (await ask(proxy, "few")).status_code == 200


async def test_a_restart_forgets_nothing(valkey: ValkeyServer) -> None:
    async with serve(lambda _: answer(0.39)) as server:
        async with sharing(valkey, server, 1) as [proxy]:
            assert (await ask(proxy, "app")).status_code == 200
        async with sharing(valkey, server, 1) as [proxy]:
            assert (await ask(proxy, "app")).status_code == 429
            assert (await row(proxy, "app"))["cost"] == 0.39
        assert server.calls == 1


async def test_without_the_store_only_budgets_are_refused(valkey: ValkeyServer) -> None:
    async with serve(lambda _: answer()) as server, sharing(valkey, server) as proxies:
        for proxy in proxies:
            for name in KEYS:
                assert (await ask(proxy, name)).status_code == 200
        valkey.kill()
        calls = server.calls
        for proxy in proxies:
            refused = await ask(proxy, "app")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
            assert "store" in refused.json()["error"]["message"]
            assert refused.headers["retry-after"]
            assert (await usage(proxy, "app")).status_code == 503
            assert server.calls == calls
            for name in ("few", "free"):
                assert (await ask(proxy, name)).status_code == 200
            calls = server.calls
        valkey.start()
        with anyio.fail_after(BOUND):
            for name, requests in (("app", 2), ("few", 4), ("free", 4)):
                while (await usage(proxies[0], name)).status_code != 200:  # noqa: ASYNC110  it looks again now and then
                    await anyio.sleep(0.1)
                while (await row(proxies[0], name))["requests"] < requests:  # noqa: ASYNC110
                    await anyio.sleep(0.1)
        for name, requests in (("app", 2), ("few", 4), ("free", 4)):
            found = await row(proxies[1], name)
            assert (found["requests"], found["cost"]) == (requests, round(requests * COST, 6))
        assert (await ask(proxies[1], "app")).status_code == 200


async def test_a_killed_process_loses_no_money(valkey: ValkeyServer) -> None:
    """Its generation counts as its estimate, and its place is free after a lease."""
    hung = Held((), anyio.Event(), answer())
    callers = "".join(
        f'[callers.{name}]\nkey = "{hashed(name)}"\n' + "".join(f"{limit} = {most}\n" for limit, most in row.items())
        for name, row in {**LIMITS, "few": {"streams": 1, "usd_per_day": 0.06}}.items()
    )
    async with serve(lambda _: hung) as server, anyio.create_task_group() as tasks:
        config = configuration(server.url, settings=f'store = "{valkey.url}"\nsecret = "{SECRET}"') + callers
        with anyio.fail_after(2 * BOUND):
            async with (
                serving_process(config, status=-signal.SIGKILL) as dies,
                serving_process(config) as lives,
                httpx.AsyncClient(timeout=BOUND, trust_env=False, verify=NO_TRUST) as client,
            ):
                tasks.start_soon(_broken, Proxy(dies.url, dies.port, client))
                await server.wait_until(lambda server: server.calls == 1, BOUND)
                other = Proxy(lives.url, lives.port, client)
                assert (await ask(other, "few")).json()["error"]["code"] == "caller_streams"
                os.kill(dies.pid, signal.SIGKILL)
                while (refused := (await ask(other, "few")).json()["error"]["code"]) == "caller_streams":  # noqa: ASYNC110
                    await anyio.sleep(0.2)
                assert refused == "budget_exhausted"
                found = await row(other, "few")
                assert (found["requests"], found["cost_unknown"], found["estimated"]) == (1, 1, 0.04)
        assert server.calls == 1


async def _broken(proxy: Proxy) -> None:
    """A request whose process dies."""
    with contextlib.suppress(httpx.TransportError):
        await ask(proxy, "few")


async def test_what_is_open_is_settled_on_the_way_out(valkey: ValkeyServer) -> None:
    async with serve(lambda _: answer()) as server:
        async with sharing(valkey, server, 1) as [proxy]:
            valkey.kill()
            assert (await ask(proxy, "free")).status_code == 200
            valkey.start()
        async with sharing(valkey, server, 1) as [proxy]:
            assert (await row(proxy, "free"))["requests"] == 1
