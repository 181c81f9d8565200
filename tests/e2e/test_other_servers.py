"""The app under other servers and in other apps: streams, URLs, callers who leave, and the end of the process."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import anyio
import httpx
import orjson
import pytest
from anyio.abc import Process
from starlette.applications import Starlette
from starlette.types import ASGIApp

from streamproxy.app import create_app
from streamproxy.settings import Settings
from streamproxy.simulator.received import Received, Server
from streamproxy.simulator.script import Script
from streamproxy.simulator.server import serve
from tests.support.caller import calling, generation
from tests.support.process import caller, configuration
from tests.support.provider import completed, passed_on, preview
from tests.support.proxy import BOUND, NO_TRUST, PROMPT, events, serving
from tests.support.stopping import ROOT
from tests.support.streams import LATER, chunks_until, followed, held

pytestmark = pytest.mark.anyio

DOCS: Final = (ROOT / "streamproxy" / "docs" / "deploy.md").read_text("utf-8")
SERVERS: Final = {
    "uvicorn": ("--host", "127.0.0.1", "--port", "{port}"),
    "hypercorn": ("--bind", "127.0.0.1:{port}"),
    "granian": ("--host", "127.0.0.1", "--port", "{port}"),
}
"""Each server, and where its command listens."""

PATH: Final = "/pictures"
DRAIN: Final = 3.0


@dataclass(slots=True)
class Stage:
    """A provider that completes when `go` is set, and the app under some server."""

    server: Server
    go: anyio.Event
    port: int
    child: Process

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def ended(self, number: signal.Signals) -> None:
        """Signal it, and wait for its end."""
        os.kill(self.child.pid, number)
        with anyio.fail_after(2 * BOUND):
            await self.child.wait()


def a_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@asynccontextmanager
async def staged(name: str, folder: Path) -> AsyncIterator[Stage]:
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    go, port = anyio.Event(), a_port()
    async with serve(lambda received: held((preview(0),), go, (completed(),))) as server:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("STREAMPROXY_", "OPENAI_"))}
        config = folder / "streamproxy.toml"
        config.write_text(configuration(server.url, settings=f"disconnect_grace = 0\ndrain_timeout = {DRAIN}"))
        env = {**kept, "STREAMPROXY_CONFIG": str(config), "PYTHONPATH": str(ROOT)}
        [command] = re.findall(rf"^{name} .*$", DOCS, re.MULTILINE)
        words = [*shlex.split(command), *(word.format(port=port) for word in SERVERS[name])]
        child = await anyio.open_process([sys.executable, "-m", *words], stdout=None, stderr=None, env=env, cwd=ROOT)
        try:
            stage = Stage(server, go, port, child)
            async with caller() as client:
                await _answers(client, stage)
            yield stage
        finally:
            if child.returncode is None:
                child.kill()
            with anyio.CancelScope(shield=True):
                await child.aclose()


async def _answers(client: httpx.AsyncClient, stage: Stage) -> None:
    with anyio.fail_after(BOUND):
        while True:
            assert stage.child.returncode is None
            try:
                assert (await client.get(f"{stage.url}/readyz")).status_code == 200
                return
            except httpx.TransportError:
                await anyio.sleep(0.05)


@pytest.mark.parametrize("name", SERVERS)
async def test_a_stream_and_a_caller_who_leaves(name: str, tmp_path: Path) -> None:
    async with staged(name, tmp_path) as stage:
        async with calling(stage.port) as leaving:
            await leaving.send(generation(model="sim/gpt-image", stream=True))
            assert await leaving.head() == 200
            await chunks_until(leaving, b"\n\n")
            assert stage.server.open_connections == 1
        await stage.server.wait_closed_connections(BOUND)
        stage.go.set()
        async with caller() as client:
            body = {"model": "sim/gpt-image", "prompt": PROMPT, "stream": True}
            answer = await client.post(f"{stage.url}/v1/images/generations", json=body)
            assert answer.status_code == 200, answer.text
            assert events(answer.content) == passed_on(preview(0), completed())
            assert (await client.get(stage.url + answer.headers["location"])).status_code == 200
        assert stage.server.calls == 2
        await stage.ended(signal.SIGTERM)


async def test_uvicorn_waits_for_streams_that_end_in_time(tmp_path: Path) -> None:
    async with staged("uvicorn", tmp_path) as stage, calling(stage.port) as reader:
        await reader.send(generation(model="sim/gpt-image", stream=True))
        assert await reader.head() == 200
        body = await chunks_until(reader, b"\n\n")
        os.kill(stage.child.pid, signal.SIGTERM)
        await anyio.sleep(1.5)  # not for order: in it sse-starlette's watcher would have looked thrice
        stage.go.set()
        assert events(body + await reader.rest()) == passed_on(preview(0), completed())
        with anyio.fail_after(BOUND):
            await stage.child.wait()


async def test_uvicorn_cuts_those_that_do_not(tmp_path: Path) -> None:
    async with staged("uvicorn", tmp_path) as stage, calling(stage.port) as reader:
        await reader.send(generation(model="sim/gpt-image", stream=True))
        assert await reader.head() == 200
        await chunks_until(reader, b"\n\n")
        os.kill(stage.child.pid, signal.SIGTERM)
        began = anyio.current_time()
        with pytest.raises(ConnectionError):
            await reader.rest()
        assert anyio.current_time() - began > DRAIN - 0.5
        with anyio.fail_after(BOUND):
            await stage.child.wait()
        await stage.server.wait_closed_connections(BOUND)


@asynccontextmanager
async def mounted(parent: str) -> AsyncIterator[tuple[ASGIApp, Settings, anyio.Event]]:
    """The proxy below PATH of an app of this framework, which runs its lifespan."""
    go = anyio.Event()

    def handler(received: Received) -> Script:
        return held((preview(0),), go, (completed(),))

    async with serve(handler) as server:
        row = {"base_url": f"{server.url}/v1", "credential": "none"}
        settings = Settings.of({"disconnect_grace": 0, "providers": {"sim": row}})
        proxy = create_app(settings, environ={}, ssl_context=NO_TRUST)

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            async with proxy.router.lifespan_context(proxy):
                yield
                await proxy.state.drain()

        if parent == "starlette":
            app = Starlette(lifespan=lifespan)
        else:
            fastapi = pytest.importorskip("fastapi")
            app = fastapi.FastAPI(lifespan=lifespan)
        app.mount(PATH, proxy)
        yield app, settings, go


@pytest.mark.parametrize("parent", ["starlette", "fastapi"])
async def test_urls_begin_with_the_path_of_the_mount(parent: str) -> None:
    async with mounted(parent) as (app, settings, go), serving(app, settings) as proxy:
        go.set()
        path = f"{PATH}/v1/images/generations"
        answer = await proxy.generate(path=path, stream=True)
        assert events(answer.content) == passed_on(preview(0), completed())
        assert answer.headers["location"].startswith(f"{PATH}/v1/streams/")
        stream = await proxy.client.get(proxy.url + answer.headers["location"], headers={"accept": "text/event-stream"})
        assert [event.event for event in followed(stream.content)] == ["image_generation.completed"]
        plain = await proxy.generate(path=path, response_format="url", prompt="another")
        [item] = plain.json()["data"]
        assert item["url"].startswith(f"{proxy.url}{PATH}/v1/streams/")
        assert (await proxy.client.get(item["url"])).status_code == 200
        body = {"model": "sim/gpt-image", "prompt": "a third", "stream": True}
        later = await proxy.client.post(proxy.url + path, json=body, headers=LATER)
        places = orjson.loads(later.content)
        named = [value for key, value in places.items() if key.endswith("url")]
        assert named
        assert all(value.startswith(f"{PATH}/v1/streams/") for value in named)


async def test_the_example_of_an_app_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-key-but-long-enough")
    pytest.importorskip("fastapi")
    [example] = re.findall(r"^```python\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)
    program = tmp_path / "example.py"
    program.write_text(example)
    async with serving(runpy.run_path(str(program))["app"], Settings(upstream="http://127.0.0.1:1")) as proxy:
        assert (await proxy.client.get(f"{proxy.url}/pictures/readyz")).status_code == 200


async def test_without_its_lifespan_it_says_what_is_missing(caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(upstream="http://127.0.0.1:1")
    app = Starlette()
    app.mount(PATH, create_app(settings, environ={}, ssl_context=NO_TRUST))
    async with serving(app, settings) as proxy:
        assert (await proxy.client.get(f"{proxy.url}{PATH}/livez")).status_code == 500
    assert "async with proxy.router.lifespan_context(proxy)" in caplog.text
