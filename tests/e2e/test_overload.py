"""More than there is room for: streams, memory; and a clock that jumps. What runs goes on, and all others are told."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Final

import anyio
import orjson
import pytest

from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, sse
from streamproxy.simulator.server import serve
from tests.support.caller import calling, generation
from tests.support.process import caller, configuration, serving_process
from tests.support.provider import COMPLETED, PREVIEW, completed, passed_on, preview
from tests.support.proxy import BOUND, PROMPT, events
from tests.support.stopping import started
from tests.support.streams import EVENTS, Reading, chunks_until, followed, held, holds, playing

pytestmark = pytest.mark.anyio

ROOM: Final = 100
CROWD: Final = 10_000
HOUR: Final = 3600.0
SMALL: Final = 64 * 1024


@pytest.mark.soak
async def test_a_crowd_over_the_limit_is_told_and_none_hangs() -> None:
    """Every caller has a connection, and all ask at once. Those with room are served, and paid for, once each."""
    go = anyio.Event()
    counts: Counter[int] = Counter()
    bodies: list[bytes] = []

    def handler(received: Received) -> Script:
        return held((preview(0),), go, (completed(),))

    async def ask(port: int, number: int) -> None:
        async with calling(port) as one:
            await ready.wait()
            await one.send(generation(stream=True, prompt=f"{PROMPT} {number}"))
            counts[await one.head()] += 1
            if one.status == 503:
                assert int(one.headers["retry-after"]) > 0
                assert orjson.loads(await one.rest())["error"]["code"] == "overloaded"
            else:
                bodies.append(await one.rest())
            if counts.total() == CROWD:
                go.set()

    ready = anyio.Event()
    async with serve(handler) as server:
        # Refusing a crowd takes one core some seconds, in which a connection to the provider may have to wait.
        settings = f'max_streams = {ROOM}\nconnect_timeout = {BOUND}\nlog_level = "error"'
        config = configuration(server.url, settings=settings)
        async with serving_process(config) as proxy:
            with anyio.fail_after(10 * BOUND):
                async with anyio.create_task_group() as tasks:
                    for number in range(CROWD):
                        tasks.start_soon(ask, proxy.port, number)
                        if number % 100 == 99:  # fewer at a time than the backlog of the listening socket
                            await asyncio.sleep(0.02)
                    ready.set()
        assert counts == {200: ROOM, 503: CROWD - ROOM}
        assert server.calls == ROOM
    assert all(events(body) == passed_on(preview(0), completed()) for body in bodies)


async def test_short_memory_ends_streams_and_passes() -> None:
    go = anyio.Event()
    async with serve(lambda received: held((preview(0),), go, (completed(),))) as server:
        config = configuration(server.url)
        async with started(config) as proxy, caller() as client, calling(proxy.port) as reader:
            await reader.send(generation(stream=True))
            assert await reader.head() == 200
            body = await chunks_until(reader, b"\n\n")
            proxy.reload(f"memory_limit = {SMALL}\n{config}")
            *before, last = events(body + await reader.rest())
            assert before == passed_on(preview(0))
            error = last.json["error"]
            assert isinstance(error, dict)
            assert (last.event, error["code"]) == ("error", "stream_shed")
            url = f"{proxy.url}/v1/images/generations"
            asked = {"model": "sim/gpt-image", "prompt": "another", "stream": True}
            refused = await client.post(url, json=asked)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "memory_short")
            assert int(refused.headers["retry-after"]) > 0
            assert "x-should-retry" not in refused.headers
            ready = await client.get(f"{proxy.url}/readyz")
            assert (ready.status_code, ready.json()["status"]) == (503, "overloaded")
            assert server.calls == 1
            proxy.reload(config)
            await proxy.logged('"recovered":true')
            go.set()
            assert (await client.post(url, json=asked)).status_code == 200
            assert len(await proxy.logged('"label":"overload"', 2)) >= 2


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
async def test_a_clock_that_jumps_ends_nothing(jump: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a running stream, nor one that is kept, nor a key that was used."""
    real, go = time.time, anyio.Event()

    def handler(received: Received) -> Script:
        frames = (preview(0), completed())
        return held(frames[:1], go, frames[1:]) if PROMPT.encode() in received.body else sse(frames)

    async with playing(handler, linger=60, token_seconds=2 * HOUR, idle_timeout=60) as stage:
        key = {"idempotency-key": "one"}
        kept = await stage.later(prompt="another")
        await stage.until(kept, "completed")
        url = await stage.later(headers=key)
        async with stage.proxy.client.stream("GET", url, headers=EVENTS) as response:
            reading = Reading(response)
            await reading.until(holds(b"\nid: 1.1\n\n"))
            monkeypatch.setattr(time, "time", lambda: real() + jump)
            await anyio.sleep(0.3)  # not for order: a timer by the clock would have run out
            go.set()
            assert [event.event for event in followed(await reading.rest())] == [PREVIEW, COMPLETED]
        for one in (url, kept):
            again = await stage.get(one, EVENTS)
            assert [event.event for event in followed(again.content)] == [COMPLETED]
        await stage.later(headers=key)
        assert stage.server.calls == 2
