"""Callers that connect, leave, come back and cancel at random. Every scene checks the answers of its own callers."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import anyio

from tests.support.caller import Caller, calling
from tests.support.provider import completed, preview
from tests.support.proxy import events
from tests.support.streams import followed, generation_with

FRAMES: Final = (preview(0), preview(1), completed())
SLOW: Final = "slow"
"""The beginning of the prompts of generations that run until they are cancelled."""

Leave = Callable[[Caller], None]
LEAVE: Final[tuple[Leave, ...]] = (Caller.close, Caller.reset)


@dataclass(slots=True)
class Crowd:
    """The callers of one proxy. `left`: connections still to be made."""

    port: int
    left: int
    made: int = 0
    resumed: int = 0
    prompts: itertools.count[int] = field(default_factory=itertools.count)
    accepted: set[str] = field(default_factory=set)
    urls: dict[str, str] = field(default_factory=dict)
    """URLs of streams, each with the URL that ends it."""
    ends: Counter[str] = field(default_factory=Counter)

    @asynccontextmanager
    async def caller(self) -> AsyncIterator[Caller]:
        self.left -= 1
        self.made += 1
        async with calling(self.port) as caller:
            yield caller

    async def post(self, caller: Caller, prompt: str, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        await caller.send(generation_with(named, prompt=prompt, stream=True))

    def prompt(self, speed: str = "fast") -> str:
        return f"{speed} {next(self.prompts)}"

    async def later(self, speed: str = "fast") -> str:
        """Where a new stream is."""
        prompt = self.prompt(speed)
        async with self.caller() as caller:
            await self.post(caller, prompt, prefer="respond-async")
            assert await caller.head() == 202
            self.accepted.add(prompt)
            self.urls[caller.headers["location"]] = caller.headers["cancel-location"]
            return caller.headers["location"]

    async def ask(self, caller: Caller, method: str, url: str, *headers: str) -> int:
        lines = [f"{method} {url} HTTP/1.1", "Host: proxy.test", *headers, "", ""]
        await caller.send("\r\n".join(lines).encode())
        return await caller.head()


async def _whole(crowd: Crowd, chance: random.Random) -> None:
    """Read an answer of the OpenAI surface to its end."""
    prompt = crowd.prompt()
    async with crowd.caller() as caller:
        await crowd.post(caller, prompt)
        assert await caller.head() == 200
        crowd.accepted.add(prompt)
        assert len(events(await caller.rest())) == len(FRAMES)


async def _leaving(crowd: Crowd, chance: random.Random) -> None:
    """Read a random part of an answer, then disconnect."""
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
    """Follow a stream in pieces, by event ids: no event twice, and one outcome, also if it is cancelled meanwhile."""
    url = await crowd.later()
    outcomes: list[str] = []
    ids: list[str] = [""]
    for _ in range(20):
        async with crowd.caller() as caller:
            status = await crowd.ask(caller, "GET", url, "Accept: text/event-stream", f"Last-Event-ID: {ids[-1]}")
            if status == 204:
                break
            if status == 410:  # on a busy machine the reader is back only after the stream has lingered out
                crowd.ends["gone"] += 1
                return
            assert status == 200
            crowd.resumed += len(ids) > 1
            body = b""
            try:
                for _ in itertools.count() if chance.random() < 0.3 else range(chance.randrange(1, 5)):
                    chunk = await caller.chunk()
                    body += chunk
                    if not chunk:
                        break
            finally:
                chance.choice(LEAVE)(caller)
        for event in followed(body[: max(body.rfind(b"\n\n"), body.index(b"\n:\n") + 1) + 2]):
            assert event.id is not None
            assert event.id not in ids
            ids.append(event.id)
            if event.event in ("error", "image_generation.completed"):
                outcomes.append(event.event)
    else:
        raise AssertionError("it never ends")
    assert len(outcomes) == 1, (outcomes, ids, status)
    crowd.ends[outcomes[0]] += 1


async def _cancelling(crowd: Crowd, chance: random.Random) -> None:
    """Begin a stream, perhaps read a part of it, then cancel it."""
    url = await crowd.later(SLOW)
    async with crowd.caller() as reader:
        if reads := chance.random() < 0.5:
            status = await crowd.ask(reader, "GET", url, "Accept: text/event-stream")
            assert status in (200, 410)  # another has ended it already, and a third has had it forgotten
            reads = status == 200
        async with crowd.caller() as caller:
            assert await crowd.ask(caller, "DELETE", crowd.urls[url]) in (200, 410)
        if reads:
            crowd.ends[followed(await reader.rest())[-1].event] += 1


async def _repeating(crowd: Crowd, chance: random.Random) -> None:
    """Send the same request with the same key side by side: one generation."""
    prompt = crowd.prompt()

    async def once() -> None:
        async with crowd.caller() as caller:
            await crowd.post(caller, prompt, idempotency_key=prompt)
            assert await caller.head() == 200
            assert events(await caller.rest())[-1].event == "image_generation.completed"

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(once)
    crowd.accepted.add(prompt)


async def _looking(crowd: Crowd, chance: random.Random) -> None:
    """Get any present or past stream, in any form."""
    if not crowd.urls:
        return
    url = chance.choice([*crowd.urls][-50:])
    path, _, query = url.partition("?")
    async with crowd.caller() as caller:
        match chance.randrange(3):
            case 0:
                assert await crowd.ask(caller, "GET", url, "Accept: application/json") in (200, 410)
            case 1:
                assert await crowd.ask(caller, "GET", f"{path}/images/0?{query}") in (200, 404, 410)
            case _:
                assert await crowd.ask(caller, "DELETE", crowd.urls[url]) in (200, 410)


async def _knocking(crowd: Crowd, chance: random.Random) -> None:
    """Connect, send half a request or nothing, and disconnect."""
    async with crowd.caller() as caller:
        whole = generation_with({}, prompt="never", stream=True)
        await caller.send(whole[: chance.randrange(len(whole) - 1)])
        chance.choice(LEAVE)(caller)


SCENES: Final[tuple[Callable[[Crowd, random.Random], Awaitable[None]], ...]] = (
    *(_whole, _leaving, _leaving, _resuming, _resuming, _resuming),
    *(_cancelling, _cancelling, _repeating, _looking, _knocking),
)


async def acting(crowd: Crowd, seed: int) -> None:
    """Run one caller: one scene after the other."""
    chance = random.Random(seed)
    while crowd.left > 0:
        await chance.choice(SCENES)(crowd, chance)
