"""Several processes on one socket: they share the load and the streams, die alone, come back, and stop together."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

import anyio
import httpx
import pytest

from streamproxy.server.workers import Crew, packed, unpacked, work
from streamproxy.settings import ConfigurationError, ProviderSettings, Settings
from streamproxy.simulator.received import Received, Server
from streamproxy.simulator.script import Script
from streamproxy.simulator.server import serve
from tests.support.process import configuration
from tests.support.provider import COMPLETED, completed, preview
from tests.support.proxy import BOUND, NO_TRUST, PROMPT
from tests.support.stopping import Running, started
from tests.support.streams import EVENTS, LATER, followed, held
from tests.support.valkey import valkey_server

pytestmark = pytest.mark.anyio

DRAIN: Final = 2.0
LONG: Final = 30.0  # a drain_timeout that no test waits for
SLACK: Final = 10.0  # what a busy machine may add to a time that is tested
SECRET: Final = "0123456789abcdef-Canary"
STARTS: Final = "Application startup complete."

DIES: Final = """
import os, sys
if "streamproxy.server.workers" in sys.orig_argv:
    with open(os.environ["STARTS"], "a") as file:
        file.write("x")
    if os.path.exists(os.environ["BROKEN"]):
        os._exit(7)
"""
"""A sitecustomize module: notes each worker's start, and ends it at once where the machine is said to be broken."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where workers can be made to die as soon as they start."""

    broken: Path
    starts: Path

    @property
    def environ(self) -> Mapping[str, str]:
        return {"BROKEN": str(self.broken), "STARTS": str(self.starts)}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    (tmp_path / "sitecustomize.py").write_text(DIES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Machine(tmp_path / "broken", tmp_path / "starts")


@dataclass(slots=True)
class Stage:
    """Provider, and a proxy of several processes. The provider completes the image when `go` is set."""

    server: Server
    proxy: Running
    client: httpx.AsyncClient
    go: anyio.Event

    async def later(self) -> str:
        """Begin a stream without readers, and return its URL."""
        body = {"model": "sim/gpt-image", "prompt": f"{PROMPT} {uuid4()}", "stream": True}
        answer = await self.client.post(f"{self.proxy.url}/v1/images/generations", json=body, headers=LATER)
        assert answer.status_code == 202, answer.text
        return self.proxy.url + answer.headers["location"]

    async def alive(self, times: int = 20) -> None:
        """Everybody who asks is answered."""
        for _ in range(times):
            assert (await self.client.get(f"{self.proxy.url}/readyz")).status_code == 200

    async def replaced(self, pid: int, count: int) -> None:
        """Wait until there are `count` workers, all of which serve, and this one is none of them."""
        with anyio.fail_after(BOUND):
            while True:
                workers = self.proxy.workers()
                if pid not in workers and len(workers) == count and set(workers) <= self.serving():
                    return
                await anyio.sleep(0.02)

    def serving(self) -> set[object]:
        return set(self.proxy.pids_that_said(STARTS))


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    with valkey_server() as server:
        yield server.url


@asynccontextmanager
async def staged(
    store: str,
    *,
    workers: int = 2,
    drain: float = DRAIN,
    environ: Mapping[str, str] | None = None,
    more: str = "",
) -> AsyncIterator[Stage]:
    go = anyio.Event()

    def handler(received: Received) -> Script:
        return held((preview(0),), go, (completed(),))

    limits = httpx.Limits(max_keepalive_connections=0)  # each request may meet another process
    async with serve(handler) as server:
        settings = f'drain_timeout = {drain}\nstore = "{store}"\nsecret = "{SECRET}"\nworkers = {workers}\n{more}'
        config = configuration(server.url, settings=settings)
        async with (
            started(config, environ=environ) as proxy,
            httpx.AsyncClient(timeout=BOUND, trust_env=False, verify=NO_TRUST, limits=limits) as client,
        ):
            yield Stage(server, proxy, client, go)


async def test_all_serve_and_any_follows_the_streams_of_any(store: str) -> None:
    async with staged(store, workers=3, drain=LONG) as stage:
        workers = stage.proxy.workers()
        assert len(workers) == 3
        assert stage.serving() == set(workers)
        urls = [await stage.later() for _ in range(4)]
        bodies: list[bytes] = []

        async def read(url: str) -> None:
            bodies.append((await stage.client.get(url, headers=EVENTS)).content)

        async with anyio.create_task_group() as tasks:
            for url in urls * 4:
                tasks.start_soon(read, url)
            await stage.alive()
            stage.go.set()
        assert len(bodies) == 16
        assert all(followed(body)[-1].event == COMPLETED for body in bodies)
        assert len(set(stage.proxy.pids_that_said("request"))) > 1
        assert stage.server.calls == 4
        began = stage.proxy.signal(signal.SIGTERM)
        assert await stage.proxy.exited(BOUND) == 0
        assert time.monotonic() - began < SLACK
        assert not any(SECRET in line for line in stage.proxy.log)


async def test_a_killed_worker_is_replaced_unnoticed(store: str) -> None:
    async with staged(store) as stage:
        for _ in range(2):
            killed = stage.proxy.workers()[0]
            os.kill(killed, signal.SIGKILL)
            await stage.proxy.logged(f"worker {killed} ended with status -9")
            ended = time.monotonic()
            await stage.alive()
            await stage.replaced(killed, 2)
            assert time.monotonic() - ended < 2 + SLACK
        stage.proxy.signal(signal.SIGTERM)
        assert await stage.proxy.exited(BOUND) == 0


async def test_any_tells_the_metrics_of_all(store: str) -> None:
    """Whichever is asked. Counters never go back where one is killed, and what ran there runs no more."""

    async def told(stage: Stage) -> set[tuple[float, float]]:
        found: set[tuple[float, float]] = set()
        for _ in range(8):
            answer = await stage.client.get(f"{stage.proxy.url}/metrics")
            assert answer.status_code == 200, answer.text
            lines = (line.rpartition(" ") for line in answer.text.splitlines() if line[0] != "#")
            values = {name: float(value) for name, _, value in lines}
            live = values['streamproxy_requests_total{route="/livez",status="200"}']
            found.add((live, values["streamproxy_streams"]))
        return found

    async with staged(store) as stage:
        for _ in range(20):
            assert (await stage.client.get(f"{stage.proxy.url}/livez")).status_code == 200
        for _ in range(3):
            await stage.later()
        with anyio.fail_after(BOUND):
            while await told(stage) != {(20, 3)}:  # noqa: ASYNC110  a request is counted after its answer
                await anyio.sleep(0.02)
        killed, left = stage.proxy.workers()
        os.kill(killed, signal.SIGKILL)
        await stage.replaced(killed, 2)
        assert {requests for requests, _ in await told(stage)} == {20}
        os.kill(left, signal.SIGKILL)
        await stage.replaced(left, 2)
        assert await told(stage) == {(20, 0)}


async def test_the_parent_tells_the_metrics_of_all(store: str) -> None:
    """On a port of its own, while a worker is dead too. No counter goes back, so Prometheus sees no reset."""

    async def told(url: str) -> dict[str, float]:
        lines = (await stage.client.get(url)).text.splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    async with staged(store, more="metrics_port = 0") as stage:
        [line] = await stage.proxy.logged("Metrics: ")
        [url] = re.findall(r"http://[0-9.:]+/metrics", line)
        assert (await stage.client.get(f"{stage.proxy.url}/metrics")).status_code == 404
        for _ in range(20):
            assert (await stage.client.get(f"{stage.proxy.url}/livez")).status_code == 200
        await stage.later()
        stage.go.set()
        live = 'streamproxy_requests_total{route="/livez",status="200"}'
        ended = 'streamproxy_generation_seconds_count{model="sim/gpt-image",provider="sim"}'
        with anyio.fail_after(BOUND):
            while True:
                before = await told(url)
                if before.get(live) == 20 and before.get(ended) == 1:
                    break
                await anyio.sleep(0.02)
        assert len(set(stage.proxy.pids_that_said("request"))) > 1
        killed = stage.proxy.workers()[0]
        os.kill(killed, signal.SIGKILL)
        await stage.proxy.logged(f"worker {killed} ended with status -9")
        during = await told(url)
        await stage.replaced(killed, 2)
        for after in (during, await told(url)):
            counted = [name for name in before if re.search(r"_(total|count|sum|bucket)\b", name)]
            assert [name for name in counted if after[name] < before[name]] == []
            assert after[live] == 20
            assert [value for name, value in after.items() if "build_info" in name] == [1]
        stage.proxy.signal(signal.SIGTERM)
        assert await stage.proxy.exited(BOUND) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.soak)])
async def test_a_signal_lets_the_streams_of_all_end(store: str, number: signal.Signals) -> None:
    """To the whole group, as a terminal and a supervisor send it: what reaches a worker so is not a second signal."""
    async with staged(store) as stage:
        url = await stage.later()
        workers = stage.proxy.workers()
        for pid in workers:
            os.kill(pid, number)
        stage.proxy.signal(number)
        await stage.proxy.logged("Shutting down")  # the worker that has no stream
        await anyio.sleep(0.5)  # not for order: that the other waits
        assert stage.proxy.child.returncode is None
        stage.go.set()
        assert await stage.proxy.exited(BOUND) == 0
        assert not any(alive(pid) for pid in workers)
    async with staged(store, workers=1) as stage:  # from the store
        path = url.removeprefix("http://").partition("/")[2]
        [event] = followed((await stage.client.get(f"{stage.proxy.url}/{path}", headers=EVENTS)).content)
        assert event.event == COMPLETED


async def test_at_the_deadline_all_have_ended(store: str) -> None:
    async with staged(store) as stage:
        for _ in range(4):
            await stage.later()
        began = stage.proxy.signal(signal.SIGTERM)
        assert await stage.proxy.exited(BOUND) == 0
        assert DRAIN <= time.monotonic() - began < DRAIN + 4 + SLACK


async def test_a_second_signal_ends_all_at_once(store: str) -> None:
    async with staged(store, drain=LONG) as stage:
        await stage.later()
        workers = stage.proxy.workers()
        stage.proxy.signal(signal.SIGTERM)
        await stage.proxy.logged("Shutting down")
        began = stage.proxy.signal(signal.SIGTERM)
        assert await stage.proxy.exited(BOUND) == 128 + signal.SIGTERM
        assert time.monotonic() - began < SLACK
        assert not any(alive(pid) for pid in workers)


async def test_workers_do_not_outlive_their_parent(store: str) -> None:
    async with staged(store) as stage:
        await stage.later()
        workers = stage.proxy.workers()
        stage.proxy.signal(signal.SIGKILL)
        with anyio.fail_after(DRAIN + 2 + SLACK):
            while any(alive(pid) for pid in workers):  # noqa: ASYNC110  their parent has ended
                await anyio.sleep(0.05)


async def test_a_parent_whose_workers_cannot_start_gives_up(store: str, machine: Machine) -> None:
    machine.broken.touch()
    settings = f'store = "{store}"\nsecret = "{SECRET}"\nworkers = 2'
    config = configuration("http://127.0.0.1:1", settings=settings)
    async with started(config, environ=machine.environ, serves=False) as proxy:
        assert await proxy.exited(BOUND) == 1
        await proxy.logged("workers cannot start")
    assert 1 <= len(machine.starts.read_text()) <= 2


@pytest.mark.soak
async def test_workers_that_die_at_once_restart_more_slowly(store: str, machine: Machine) -> None:
    """While one serves; the parent gives up when none does and none can be started."""
    async with staged(store, environ=machine.environ) as stage:
        first, second = stage.proxy.workers()
        machine.broken.touch()
        before = len(machine.starts.read_text())
        os.kill(first, signal.SIGKILL)
        await stage.proxy.logged("ended with status 7", 3)
        began = time.monotonic()
        await stage.proxy.logged("ended with status 7", 5)
        assert time.monotonic() - began >= 0.4 + 0.8  # the pauses before the fourth and the fifth
        await stage.alive()
        assert len(machine.starts.read_text()) - before <= 7
        os.kill(second, signal.SIGKILL)
        assert await stage.proxy.exited(BOUND) == 1


@pytest.mark.soak
async def test_a_machine_that_is_mended_has_all_its_workers_again(store: str, machine: Machine) -> None:
    async with staged(store, environ=machine.environ) as stage:
        killed = stage.proxy.workers()[0]
        machine.broken.touch()
        os.kill(killed, signal.SIGKILL)
        await stage.proxy.logged("ended with status 7")
        machine.broken.unlink()
        await stage.replaced(killed, 2)


async def test_a_lone_process_needs_no_parent(store: str) -> None:
    async with staged(store, workers=1) as stage:
        await stage.alive(1)
        assert stage.proxy.workers() == []


async def test_workers_with_the_memory_store_are_refused() -> None:
    async with started(configuration("http://127.0.0.1:1"), "--workers", "2", serves=False) as proxy:
        assert await proxy.exited(BOUND) == 1
        [line] = await proxy.logged("workers (STREAMPROXY_WORKERS)")
        assert "store is memory" in line
        [fix] = await proxy.logged("fix: ")
        assert "redis://" in fix


def test_settings_survive_the_way_to_a_worker() -> None:
    settings = Settings(
        providers={"sim": ProviderSettings(base_url="http://127.0.0.1:1", deployments={"a": "b"}, models=("x", "y"))},
        caller_keys=("sha256:" + "0" * 64,),
        store="redis://:Canary@h",
        secret=SECRET,
        heartbeat=1.1,
    )
    assert unpacked(packed(settings)) == settings


async def test_settings_that_only_fit_other_fixed_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has another host, and no keys any more. The host stays, so that the keys must."""
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-key-but-long-enough")
    shared = {"workers": 2, "store": "redis://127.0.0.1:1", "secret": SECRET}
    open_to_all = Settings.of({**shared, "host": "0.0.0.0", "caller_keys": ["sha256:" + "0" * 64]})
    with socket.socket() as sock:
        crew = Crew(open_to_all, sock, "", lambda: None)
        with pytest.raises(ConfigurationError, match="host is not loopback"):
            await crew.reload(Settings.of(shared))
        assert await crew.reload(Settings.of({**shared, "caller_keys": ["sha256:" + "1" * 64]})) == ("host",)


@pytest.mark.parametrize("parent_sent", [b"", b"{}"], ids=["nothing", "half of it"])
def test_a_worker_whose_parent_is_gone_does_not_begin(parent_sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    with socket.socket() as sock, theirs:
        with ours:
            ours.sendall(parent_sent)
        assert work(sock, theirs) == 1


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
