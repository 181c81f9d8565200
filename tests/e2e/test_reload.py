"""SIGHUP to a real process: new requests are served by the new configuration, and running streams notice nothing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import httpx
import pytest

from streamproxy.app import create_app
from streamproxy.server.reloading import Reload
from streamproxy.settings import Settings, describe
from streamproxy.settings.reloading import FIXED
from streamproxy.settings.values import ConfigurationError
from streamproxy.simulator.received import Received, Server
from streamproxy.simulator.script import Script
from streamproxy.simulator.server import serve
from streamproxy.upstream.transport import KEEPALIVE
from tests.support.process import caller
from tests.support.provider import completed, passed_on, preview
from tests.support.proxy import BOUND, NO_TRUST, PROMPT, events, serving
from tests.support.stopping import ROOT, Running, started
from tests.support.streams import held
from tests.support.valkey import valkey_server

pytestmark = pytest.mark.anyio

OLD_KEY: Final = "old-caller-0123456789abcdef"
NEW_KEY: Final = "new-caller-0123456789abcdef"
CANARY: Final = "Canary0123456789"
RUNNING: Final = 64
RELOADED: Final = "configuration reloaded"
REFUSED: Final = "configuration not reloaded"


@dataclass(slots=True)
class Stage:
    """A provider that completes its images when `go` is set, and a proxy process that asks it."""

    server: Server
    proxy: Running
    client: httpx.AsyncClient
    go: anyio.Event
    secret: Path

    async def post(self, key: str, number: int = 0) -> httpx.Response:
        body = {"model": "sim/gpt-image", "prompt": f"{PROMPT} {number}", "stream": True}
        headers = {"authorization": f"Bearer {key}"}
        return await self.client.post(f"{self.proxy.url}/v1/images/generations", json=body, headers=headers)


def hashed(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def config(*keys: str, upstream: str, secret: Path, extra: str = "") -> str:
    callers = ", ".join(f'"{hashed(key)}"' for key in keys)
    row = f'[providers.sim]\nbase_url = "{upstream}/v1"\ncredential = "file:{secret}"\nauth_header = "authorization"\n'
    row += 'auth_scheme = "Bearer "\n'
    return f"caller_keys = [{callers}]\n{extra}\n{row}"


@asynccontextmanager
async def staged(tmp_path: Path, *, extra: str = "") -> AsyncIterator[Stage]:
    go, secret = anyio.Event(), tmp_path / "secret"
    secret.write_text("first-key-of-the-provider")

    def handler(received: Received) -> Script:
        return held((preview(0),), go, (completed(),))

    async with serve(handler) as server:
        first = config(OLD_KEY, upstream=server.url, secret=secret, extra=extra)
        async with started(first) as proxy, caller() as client:
            yield Stage(server, proxy, client, go, secret)


async def test_running_streams_notice_nothing(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage, anyio.create_task_group() as tasks:
        answers: list[httpx.Response] = []

        async def read(number: int) -> None:
            answers.append(await stage.post(OLD_KEY, number))

        for number in range(RUNNING):
            tasks.start_soon(read, number)
        await stage.server.wait_until(lambda server: server.calls == RUNNING, BOUND)
        stage.secret.write_text("second-key-of-the-provider\n")
        stage.proxy.reload(config(NEW_KEY, upstream=stage.server.url, secret=stage.secret))
        await stage.proxy.logged(RELOADED)
        assert (await stage.post(OLD_KEY)).status_code == 401
        assert stage.server.calls == RUNNING
        tasks.start_soon(_served, stage)
        await stage.server.wait_until(lambda server: server.calls == RUNNING + 1, BOUND)
        assert stage.server.received[-1].header("authorization") == "Bearer second-key-of-the-provider"
        assert not answers
        stage.go.set()
    assert [answer.status_code for answer in answers] == [200] * RUNNING
    assert all(events(answer.content) == passed_on(preview(0), completed()) for answer in answers)
    assert not any("key-of-the-provider" in line for line in stage.proxy.log)


async def _served(stage: Stage) -> None:
    answer = await stage.post(NEW_KEY)
    assert events(answer.content) == passed_on(preview(0), completed())


async def test_connections_to_an_unchanged_provider_stay(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.go.set()
        assert (await stage.post(OLD_KEY)).status_code == 200
        stage.proxy.reload(config(NEW_KEY, upstream=stage.server.url, secret=stage.secret))
        await stage.proxy.logged(RELOADED)
        assert (await stage.post(NEW_KEY)).status_code == 200
        assert (stage.server.calls, stage.server.connections) == (2, 1)


async def test_those_to_another_address_close_once_idle(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage, serve(lambda received: held((), stage.go, (completed(),))) as other:
        async with anyio.create_task_group() as tasks:
            stage.go.set()
            assert (await stage.post(OLD_KEY)).status_code == 200
            stage.go = anyio.Event()
            stage.server.handler = lambda received: held((preview(0),), stage.go, (completed(),))
            answers: list[httpx.Response] = []

            async def read() -> None:
                answers.append(await stage.post(OLD_KEY, 1))

            tasks.start_soon(read)
            await stage.server.wait_until(lambda server: server.calls == 2, BOUND)
            stage.proxy.reload(config(OLD_KEY, upstream=other.url, secret=stage.secret))
            await stage.proxy.logged(RELOADED)
            assert stage.server.open_connections == 1
            stage.go.set()
        assert events(answers[0].content) == passed_on(preview(0), completed())
        await stage.server.wait_closed_connections(KEEPALIVE / 3)
        assert (await stage.post(OLD_KEY, 2)).status_code == 200
        assert (stage.server.calls, other.calls) == (2, 1)


BROKEN: Final = {
    "no TOML": (f"caller_keys = ['{CANARY}", "not valid TOML"),
    "a name": (f'caller_key = ["{CANARY}"]', "did you mean caller_keys?"),
    "a key": (f'caller_keys = ["{CANARY}"]', "is not a hash"),
    "a value": (f'heartbeat = "{CANARY}"', "heartbeat"),
    "no provider": ("", "no provider is configured"),
    "no file": ('[providers.openai]\ncredential = "file:/nowhere"', "cannot be read"),
}


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_broken_file_changes_nothing(tmp_path: Path, broken: str) -> None:
    async with staged(tmp_path) as stage:
        stage.go.set()
        text, said = BROKEN[broken]
        stage.proxy.reload(text)
        [line] = await stage.proxy.logged(REFUSED)
        assert said in line
        assert (await stage.post(OLD_KEY)).status_code == 200
        stage.proxy.reload(config(NEW_KEY, upstream=stage.server.url, secret=stage.secret))
        await stage.proxy.logged(RELOADED)
        assert (await stage.post(NEW_KEY)).status_code == 200
    assert not any(CANARY in line for line in stage.proxy.log)


async def test_what_needs_a_restart_is_named(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.go.set()
        extra = 'linger = 5\nlog_level = "warning"'
        stage.proxy.reload(config(NEW_KEY, upstream=stage.server.url, secret=stage.secret, extra=extra))
        await stage.proxy.logged("linger has changed and needs a restart")
        await stage.proxy.logged("log_level has changed and needs a restart")
        assert len(await stage.proxy.logged("needs a restart")) == 2
        assert (await stage.post(NEW_KEY)).status_code == 200


async def test_all_workers_take_the_new_settings(tmp_path: Path) -> None:
    """The parent refuses a broken file for all. A worker that starts later has the new ones from the beginning."""
    with valkey_server() as valkey:
        extra = f'workers = 2\nstore = "{valkey.url}"\nsecret = "0123456789abcdef"'
        async with staged(tmp_path, extra=extra) as stage, anyio.create_task_group() as tasks:
            answers: list[httpx.Response] = []

            async def read(number: int) -> None:
                answers.append(await stage.post(OLD_KEY, number))

            for number in range(8):
                tasks.start_soon(read, number)
            await stage.server.wait_until(lambda server: server.calls == 8, BOUND)
            stage.proxy.reload(f'caller_keys = ["{CANARY}"]')
            assert len(await stage.proxy.logged(REFUSED)) == 1
            stage.proxy.reload(config(NEW_KEY, upstream=stage.server.url, secret=stage.secret, extra=extra))
            lines = await stage.proxy.logged(RELOADED, 3)
            assert len(lines) == 3
            for _ in range(8):  # each on a connection of its own, to either worker
                async with caller() as client:
                    stage.client = client
                    assert (await stage.post(OLD_KEY)).status_code == 401
            stage.go.set()
        assert [answer.status_code for answer in answers] == [200] * 8
        assert not any(CANARY in line for line in stage.proxy.log)


async def test_an_app_takes_settings_too() -> None:
    """Limits and origins, and nothing at all of settings that are wrong."""
    go = anyio.Event()
    row = {"credential": "none"}
    async with serve(lambda received: held((preview(0),), go, (completed(),))) as server:
        row["base_url"] = f"{server.url}/v1"
        values = {"port": 0, "disconnect_grace": 0, "max_streams": 1, "providers": {"sim": row}}
        settings = Settings.of(values)
        app = create_app(settings, environ={}, ssl_context=NO_TRUST)
        async with serving(app, settings) as proxy, anyio.create_task_group() as tasks:
            page = {"origin": "https://app.example.com"}
            tasks.start_soon(lambda: proxy.generate(stream=True))
            await server.wait_until(lambda server: server.calls == 1, BOUND)
            assert (await proxy.generate(stream=True, prompt="another")).status_code == 503
            with pytest.raises(ConfigurationError):
                await app.state.reload(Settings.of({**values, "max_streams": 2, "providers": {"sim": {}}}))
            assert (await proxy.generate(stream=True, prompt="another")).status_code == 503
            assert (
                "access-control-allow-origin"
                not in (await proxy.client.get(f"{proxy.url}/livez", headers=page)).headers
            )
            wider = Settings.of({**values, "port": 1, "max_streams": 2, "cors_origins": [page["origin"]]})
            assert await app.state.reload(wider) == ("port",)
            tasks.start_soon(lambda: proxy.generate(stream=True, prompt="another"))
            await server.wait_until(lambda server: server.calls == 2, BOUND)
            allowed = await proxy.client.get(f"{proxy.url}/livez", headers=page)
            assert allowed.headers["access-control-allow-origin"] == page["origin"]
            go.set()


async def test_an_unforeseen_error_is_told_by_its_type(caplog: pytest.LogCaptureFixture) -> None:
    async def apply(settings: Settings) -> tuple[str, ...]:
        raise ValueError(CANARY)

    await Reload(Settings, apply)()
    assert f"{REFUSED}, the old one stays: ValueError" in caplog.text
    assert CANARY not in caplog.text


def test_the_docs_name_what_needs_a_restart() -> None:
    page = (ROOT / "streamproxy" / "docs" / "deploy.md").read_text("utf-8")
    [said] = re.findall(r"These settings need a restart.*?: (.*?)\.", page, re.DOTALL)
    assert re.findall(r"`(\w+)`", said) == list(FIXED)
    assert set(FIXED) <= {row.name for row in describe()}
