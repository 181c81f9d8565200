"""Thousands of callers who connect, leave, come back and cancel at random: afterwards nothing of them is left.

Every generation is one request to the provider, and every reader who follows to the end has had each outcome once.
"""

from __future__ import annotations

import gc
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import anyio
import orjson
import pytest
from structlog.testing import capture_logs

from streamproxy.hub.hub import Hub
from streamproxy.hub.memory import MemoryStore
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, sse
from streamproxy.simulator.server import Server, serve
from tests.support.caller import Caller, calling
from tests.support.provider import completed, idle, preview
from tests.support.proxy import BOUND, Proxy, events, no_leaks, running_proxy
from tests.support.streams import followed, generation_with
from tests.support.valkey import valkey_server

pytestmark = pytest.mark.anyio

ACTORS: Final = 24
SEED: Final = 7
LINGER: Final = 2.0
SECONDS: Final = 150.0
"""What the machine may need at worst; alone it takes a third."""

FRAMES: Final = (preview(0), preview(1), completed())
SECRET: Final = "s" * 40
SLOW: Final = "slow"
"""Begins the prompts of generations that only end because somebody ends them."""

Leave = Callable[[Caller], None]
LEAVE: Final[tuple[Leave, ...]] = (Caller.close, Caller.reset)


@dataclass(slots=True)
class Crowd:
    """The callers of one proxy: `left` more connections shall be made."""

    proxy: Proxy
    left: int
    made: int = 0
    prompts: itertools.count[int] = field(default_factory=itertools.count)
    accepted: set[str] = field(default_factory=set)
    urls: list[str] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)

    @asynccontextmanager
    async def caller(self) -> AsyncIterator[Caller]:
        self.left -= 1
        self.made += 1
        async with calling(self.proxy.port) as caller:
            yield caller

    async def post(self, caller: Caller, prompt: str, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        await caller.send(generation_with(named, prompt=prompt, stream=True))

    def prompt(self, speed: str = "fast") -> str:
        return f"{speed} {next(self.prompts)}"

    async def later(self, speed: str = "fast", **headers: str) -> str:
        """Where a new stream is."""
        prompt = self.prompt(speed)
        async with self.caller() as caller:
            await self.post(caller, prompt, prefer="respond-async", **headers)
            assert await caller.head() == 202
            self.accepted.add(prompt)
            self.urls.append(caller.headers["location"])
            return caller.headers["location"]

    async def ask(self, caller: Caller, method: str, url: str, *headers: str) -> int:
        lines = [f"{method} {url} HTTP/1.1", "Host: proxy.test", *headers, "", ""]
        await caller.send("\r\n".join(lines).encode())
        return await caller.head()


async def _whole(crowd: Crowd, chance: random.Random) -> None:
    """The OpenAI surface, to the end."""
    prompt = crowd.prompt()
    async with crowd.caller() as caller:
        await crowd.post(caller, prompt)
        assert await caller.head() == 200
        crowd.accepted.add(prompt)
        assert len(events(await caller.rest())) == len(FRAMES)


async def _leaving(crowd: Crowd, chance: random.Random) -> None:
    """As far as chance wants, then gone."""
    prompt = crowd.prompt(chance.choice(("fast", SLOW)))
    async with crowd.caller() as caller:
        await crowd.post(caller, prompt)
        if chance.random() < 0.7:
            assert await caller.head() == 200
            crowd.accepted.add(prompt)
            for _ in range(chance.randrange(3)):
                await caller.chunk()
        chance.choice(LEAVE)(caller)


async def _resuming(crowd: Crowd, chance: random.Random) -> None:
    """Follows a stream in pieces, by the ids that came: each outcome once, whoever cancels meanwhile."""
    url = await crowd.later()
    outcomes: list[str] = []
    last = ""
    for _ in range(20):
        async with crowd.caller() as caller:
            status = await crowd.ask(caller, "GET", url, "Accept: text/event-stream", f"Last-Event-ID: {last}")
            if status == 204:
                break
            if status == 410:  # on a busy machine the reader is back only after the stream has lingered out
                crowd.ends["gone"] += 1
                return
            assert status == 200
            body = b""
            try:
                for _ in itertools.count() if chance.random() < 0.3 else range(chance.randrange(1, 5)):
                    chunk = await caller.chunk()
                    body += chunk
                    if not chunk:
                        break
            finally:
                chance.choice(LEAVE)(caller)
        for event in followed(body[: body.rindex(b"\n\n") + 2]):
            assert event.id is not None
            last = event.id
            if event.event in ("error", "image_generation.completed"):
                outcomes.append(event.event)
    else:
        raise AssertionError("it never ends")
    assert len(outcomes) == 1
    crowd.ends[outcomes[0]] += 1


async def _cancelling(crowd: Crowd, chance: random.Random) -> None:
    """Begins a stream, perhaps reads of it, cancels it."""
    url = await crowd.later(SLOW)
    async with crowd.caller() as reader:
        if reads := chance.random() < 0.5:
            assert await crowd.ask(reader, "GET", url, "Accept: text/event-stream") == 200
        async with crowd.caller() as caller:
            assert await crowd.ask(caller, "DELETE", url) == 200
        if reads:
            crowd.ends[followed(await reader.rest())[-1].event] += 1


async def _repeating(crowd: Crowd, chance: random.Random) -> None:
    """The same request with the same key, side by side: one generation."""
    prompt = crowd.prompt()
    headers = {"idempotency_key": prompt}

    async def once() -> None:
        async with crowd.caller() as caller:
            await crowd.post(caller, prompt, **headers)
            assert await caller.head() == 200
            assert events(await caller.rest())[-1].event == "image_generation.completed"

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(once)
    crowd.accepted.add(prompt)


async def _looking(crowd: Crowd, chance: random.Random) -> None:
    """Any stream that there is or was, in any form."""
    if not crowd.urls:
        return
    url = chance.choice(crowd.urls[-50:])
    path, _, query = url.partition("?")
    async with crowd.caller() as caller:
        match chance.randrange(3):
            case 0:
                assert await crowd.ask(caller, "GET", url, "Accept: application/json") in (200, 410)
            case 1:
                assert await crowd.ask(caller, "GET", f"{path}/images/0?{query}") in (200, 404, 410)
            case _:
                assert await crowd.ask(caller, "DELETE", url) in (200, 410)


async def _knocking(crowd: Crowd, chance: random.Random) -> None:
    """Connects, says half a request or nothing, and is gone."""
    async with crowd.caller() as caller:
        whole = generation_with({}, prompt="never", stream=True)
        await caller.send(whole[: chance.randrange(len(whole) - 1)])
        chance.choice(LEAVE)(caller)


SCENES: Final[tuple[Callable[[Crowd, random.Random], Awaitable[None]], ...]] = (
    *(_whole, _leaving, _leaving, _resuming, _resuming, _resuming),
    *(_cancelling, _cancelling, _repeating, _looking, _knocking),
)


async def _acting(crowd: Crowd, seed: int) -> None:
    chance = random.Random(seed)
    while crowd.left > 0:
        await chance.choice(SCENES)(crowd, chance)


@asynccontextmanager
async def _crowded(connections: int, store: str) -> AsyncIterator[Crowd]:
    """The crowd, when all have come and gone; with `upstream calls == generations`."""
    chance = random.Random(SEED)
    asked: list[str] = []

    def play(received: Received) -> Script:
        asked.append(orjson.loads(received.body)["prompt"])
        last = BOUND if asked[-1].startswith(SLOW) else 0.0
        return sse(FRAMES, waits=[*(chance.choice((0.0, 0.0, 0.005, 0.03)) for _ in FRAMES[1:]), last])

    with anyio.fail_after(SECONDS), capture_logs() as logs:
        async with no_leaks(), serve(play) as server:
            async with running_proxy(
                server.url, store=store, secret=SECRET, linger=LINGER, disconnect_grace=0.1
            ) as proxy:
                crowd = Crowd(proxy, connections)
                async with anyio.create_task_group() as tasks:
                    for actor in range(ACTORS):
                        tasks.start_soon(_acting, crowd, SEED + actor)
                await idle(proxy)
                await _none_twice(crowd, server, asked)
                yield crowd
            await server.wait_closed_connections(BOUND)
    assert not [line for line in logs if line["event"] in ("unexpected", "store")]


async def _none_twice(crowd: Crowd, server: Server, asked: list[str]) -> None:
    assert crowd.made >= 1000
    assert server.calls == len(asked) == len(set(asked))
    assert crowd.accepted <= set(asked)
    assert await crowd.proxy.metric("streamproxy_upstream_requests_total") >= server.calls
    assert crowd.ends["error"] > 0
    assert crowd.ends["image_generation.completed"] > 0


def _hubs() -> list[Hub]:
    """All of this process: nothing public leads to an app's."""
    return [found for found in gc.get_objects() if isinstance(found, Hub)]


async def test_ten_thousand_callers_leave_nothing_in_the_process() -> None:
    before = _hubs()
    async with _crowded(10_000, "memory"):
        (hub,) = [found for found in _hubs() if found not in before]
        assert hub.running == 0
        assert not hub._viewers_of
        store = hub._store
        assert isinstance(store, MemoryStore)
        assert not store._live
        assert store.bytes == sum(kept.bytes for _, _, kept in store._finished.values())
        await anyio.sleep(LINGER)
        await store.sweep()
        assert (store.bytes, len(store._finished)) == (0, 0)


async def test_two_thousand_callers_leave_nothing_in_a_shared_store() -> None:
    with valkey_server() as server:
        async with _crowded(2_000, server.url):
            await _until(lambda: not any(map(_of_a_stream, server.lifetimes())))
            assert all(lifetime > 0 for lifetime in server.lifetimes().values())
        await _until(lambda: not server.clients())


def _of_a_stream(key: str) -> bool:
    """Whether it belongs to a stream that is kept, and not to the memory of one, or to a claim."""
    return key.endswith((":log", ":lease", ":meta")) or ":data:" in key


async def _until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(BOUND):
        while not condition():  # noqa: ASYNC110  # it comes true in another process
            await anyio.sleep(0.05)
