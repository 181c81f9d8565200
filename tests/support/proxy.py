"""A real proxy on a real socket in the test's own event loop, and helpers for its metrics and answers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import anyio
import httpx
import orjson
from starlette.applications import Starlette
from starlette.types import ASGIApp

from streamproxy.app import create_app
from streamproxy.server import Hooks, serve
from streamproxy.server.listening import listen
from streamproxy.settings import Settings
from streamproxy.upstream import Resolver

BOUND = 30.0
"""Most seconds of one test step: far more than it needs, far less than the time limit of CI."""

PROMPT = "a lighthouse at dusk"

NO_TRUST: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Accepts no certificate: these sockets are plain, and reading the public authorities takes longer than most tests."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A running proxy. `url` has no path; `client` has no timeout below BOUND and follows nothing.

    `drain` asks it to stop: it ends with the last stream.
    """

    url: str
    port: int
    client: httpx.AsyncClient
    drain: Callable[[], Coroutine[None, None, None]] | None = None

    async def metric(self, name: str, **labels: str) -> float:
        """A metric's value, 0 where it has not been counted yet."""
        text = (await self.client.get(f"{self.url}/metrics")).text
        for line in text.splitlines():
            head, _, value = line.rpartition(" ")
            if head.partition("{")[0] == name and all(f'{key}="{label}"' in head for key, label in labels.items()):
                return float(value)
        return 0.0

    async def failures(self, label: str) -> float:
        """How many failures have been counted under this label."""
        return await self.metric("streamproxy_failures_total", label=label)

    async def tolerated(self) -> dict[str, float]:
        """Counts of tolerated faults by label."""
        text = (await self.client.get(f"{self.url}/metrics")).text
        found = re.findall(r'^streamproxy_tolerated_total\{label="(\w+)"\} (\S+)$', text, re.MULTILINE)
        return {label: float(value) for label, value in found}

    async def generate(self, *, path: str = "/v1/images/generations", **members: object) -> httpx.Response:
        """POST a generation: `model` defaults to "sim/gpt-image", the rest of the body are `members`."""
        body = {"model": "sim/gpt-image", "prompt": PROMPT, **members}
        return await self.client.post(f"{self.url}{path}", json=body)


@asynccontextmanager
async def running_proxy(
    upstream: str,
    *,
    provider: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    resolver: Resolver | None = None,
    **settings: object,
) -> AsyncIterator[Proxy]:
    """A proxy whose provider `sim` is at `upstream` (an origin; /v1 is added). `settings` replace the defaults.

    A generation without readers ends at once, so that tests need not wait for the grace, and no failure is held.
    """
    row = {"base_url": f"{upstream}/v1", "credential": "none", **(provider or {})}
    chosen = Settings.of({"port": 0, "disconnect_grace": 0, "failure_hold": 0, "providers": {"sim": row}, **settings})
    app = create_app(chosen, environ=environ or {}, ssl_context=ssl_context or NO_TRUST, resolver=resolver)
    async with serving(app, chosen) as proxy:
        yield proxy


@asynccontextmanager
async def serving(app: ASGIApp, settings: Settings) -> AsyncIterator[Proxy]:
    """Serve an app on a free loopback port until the block ends."""
    sock = listen("127.0.0.1", 0)
    port: int = sock.getsockname()[1]
    ready = anyio.Event()
    async with anyio.create_task_group() as tasks:
        observer = getattr(app.state, "observer", None) if isinstance(app, Starlette) else None
        hooks = Hooks(ready=lambda _: ready.set(), observer=observer)
        tasks.start_soon(lambda: serve(app, settings, sock, hooks))
        with anyio.fail_after(BOUND):
            await ready.wait()
        async with httpx.AsyncClient(timeout=BOUND, trust_env=False, verify=NO_TRUST) as client:
            drain = getattr(app.state, "drain", None) if isinstance(app, Starlette) else None
            yield Proxy(f"http://127.0.0.1:{port}", port, client, drain)
        tasks.cancel_scope.cancel()


@dataclass(frozen=True, slots=True)
class Sent:
    """One event as a caller received it."""

    event: str
    data: bytes

    @property
    def json(self) -> dict[str, object]:
        value = orjson.loads(self.data)
        assert isinstance(value, dict)
        return value


def events(body: bytes) -> list[Sent]:
    """The events of a POST answer, which must have exactly our layout: comments between frames, LF, one data line."""
    found: list[Sent] = []
    lines = body.split(b"\n")
    assert lines.pop() == b"", "the stream ends inside a line"
    at = 0
    while at < len(lines):
        if lines[at].startswith(b":"):
            at += 1
            continue
        assert lines[at].startswith(b"event: "), lines[at][:80]
        assert lines[at + 1].startswith(b"data: "), lines[at + 1][:80]
        assert lines[at + 2] == b"", "a frame ends with a blank line"
        found.append(Sent(lines[at][7:].decode(), lines[at + 1][6:]))
        at += 3
    return found


@asynccontextmanager
async def no_leaks() -> AsyncIterator[None]:
    """Assert that tasks, sockets and temporary files are as before, at most 2 s after the block."""
    gc.collect()
    tasks, files = len(_tasks()), _open_files()
    yield
    with anyio.move_on_after(2):
        while len(_tasks()) > tasks or _open_files() > files:
            gc.collect()
            await anyio.sleep(0.02)
    assert len(_tasks()) <= tasks, _tasks()
    assert _open_files() <= files


async def until(reached: Callable[[], object]) -> None:
    """Return when `reached()` is true, for conditions without an event, like a log line after an answer."""
    with anyio.fail_after(BOUND):
        while not reached():  # noqa: ASYNC110
            await anyio.sleep(0.005)


def _tasks() -> set[asyncio.Task[object]]:
    """All tasks but sse-starlette's watcher, of which there is one per thread for good."""
    return {task for task in asyncio.all_tasks() if "_shutdown_watcher" not in repr(task.get_coro())}


def _open_files() -> int:
    """Open sockets and temporary files. Other files are opened once by libraries, and kept open."""
    count = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{number}")
            count += target.startswith("socket:") or "(deleted)" in target
    return count
