"""SIGTERM to a real process on real sockets: running answers end normally, and new callers are told to come back."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import anyio
import httpx
import orjson
import pytest

from streamproxy.simulator.received import Received, Server
from streamproxy.simulator.script import Script, json_answer
from streamproxy.simulator.server import serve
from tests.support.caller import Caller, calling, generation
from tests.support.faults import Held
from tests.support.process import caller, configuration
from tests.support.provider import COMPLETED, PREVIEW, answered_item, completed, passed_on, preview
from tests.support.proxy import BOUND, PROMPT, events
from tests.support.stopping import Running, started
from tests.support.streams import EVENTS, JSON, LATER, Reading, chunks_until, followed, held, holds, retry_of
from tests.support.valkey import valkey_server

pytestmark = pytest.mark.anyio

LONG: Final = 30.0  # a drain_timeout that no test waits for
SHORT: Final = 1.5
SLACK: Final = 10.0  # what a busy machine may add to a time that is tested
LARGE: Final = 4_000_000
JSON_ANSWER: Final = b'{"created":1,"data":[{"b64_json":"aW1hZ2U="}]}'
ALIKE: Final = [pytest.param(signal.SIGINT, marks=pytest.mark.soak)]
EVERY_SIGNAL: Final = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
SIGNALS: Final = pytest.mark.parametrize("number", [signal.SIGTERM, *ALIKE])


@dataclass(slots=True)
class Stage:
    """Provider and proxy process. The provider sends a preview, and the completed image when `go` is set."""

    server: Server
    proxy: Running
    client: httpx.AsyncClient
    go: anyio.Event

    async def post(
        self, prompt: str = PROMPT, headers: dict[str, str] | None = None, **members: object
    ) -> httpx.Response:
        body = {"model": "sim/gpt-image", "prompt": prompt, **members}
        return await self.client.post(f"{self.proxy.url}/v1/images/generations", json=body, headers=headers)

    async def later(self) -> str:
        """Begin a stream without readers, and return its URL."""
        answer = await self.post(headers=LATER, stream=True)
        assert answer.status_code == 202, answer.text
        return self.proxy.url + answer.headers["location"]

    async def draining(self) -> httpx.Response:
        """Wait until readyz fails; its answer."""
        with anyio.fail_after(BOUND):
            while (answer := await self.client.get(f"{self.proxy.url}/readyz")).status_code == 200:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        return answer

    async def closed(self) -> None:
        """Wait until no new connection is taken: no generation runs any more."""
        with anyio.fail_after(BOUND):
            while True:
                try:
                    await (await anyio.connect_tcp("127.0.0.1", self.proxy.port)).aclose()
                except OSError:
                    return
                await anyio.sleep(0.02)


@asynccontextmanager
async def staged(drain: float, *, size: int = 64) -> AsyncIterator[Stage]:
    go = anyio.Event()

    def handler(received: Received) -> Script:
        if b'"stream":true' in received.body:
            return held((preview(0),), go, (completed(size=size),))
        return Held((), go, json_answer(200, JSON_ANSWER))

    async with serve(handler) as server:
        config = configuration(server.url, settings=f"drain_timeout = {drain}")
        async with started(config) as proxy, caller() as client:
            yield Stage(server, proxy, client, go)


async def streaming(stage: Stage, reader: Caller) -> bytes:
    """POST a stream on a raw connection and read its first preview; what has come."""
    await reader.send(generation(stream=True))
    assert await reader.head() == 200
    return await chunks_until(reader, b"\n\n")


@EVERY_SIGNAL
async def test_an_idle_process_exits_at_once_with_success(number: signal.Signals) -> None:
    async with staged(LONG) as stage:
        assert (await stage.client.get(f"{stage.proxy.url}/readyz")).status_code == 200  # and stays connected
        began = stage.proxy.signal(number)
        assert await stage.proxy.exited(BOUND) == 0
        assert time.monotonic() - began < SLACK


async def test_everybody_who_is_served_sees_the_end() -> None:
    """And what came before it is no different from an undisturbed answer."""
    async with staged(LONG) as stage, anyio.create_task_group() as tasks:
        answers: list[httpx.Response] = []

        async def buffered() -> None:
            answers.append(await stage.post())

        async with calling(stage.proxy.port) as reader:
            body = await streaming(stage, reader)
            url = stage.proxy.url + reader.headers["location"]
            async with stage.client.stream("GET", url, headers=EVENTS) as response:
                reading = Reading(response)
                await reading.until(holds(b"\nid: 1.1\n\n"))
                tasks.start_soon(buffered)
                await stage.server.wait_until(lambda server: server.calls == 2, BOUND)
                stage.proxy.signal(signal.SIGTERM)
                await stage.draining()
                await anyio.sleep(1.5)  # not for order: in it sse-starlette's watcher would have looked thrice
                stage.go.set()
                assert events(body + await reader.rest()) == passed_on(preview(0), completed())
                assert [event.event for event in followed(await reading.rest())] == [PREVIEW, COMPLETED]
        assert await stage.proxy.exited(SLACK) == 0
    [answer] = answers
    assert answer.status_code == 200
    assert answer.json()["data"] == [answered_item(one["b64_json"]) for one in orjson.loads(JSON_ANSWER)["data"]]


@SIGNALS
async def test_who_comes_is_told_to_come_back(number: signal.Signals) -> None:
    async with staged(LONG) as stage:
        url = await stage.later()
        stage.proxy.signal(number)
        assert (await stage.draining()).json()["status"] == "draining"
        calls = stage.server.calls
        for stream in (True, False):
            refused = await stage.post(stream=stream)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert int(refused.headers["retry-after"]) > 0
            assert refused.headers["connection"] == "close"
            assert "x-should-retry" not in refused.headers
        asked = await stage.client.get(url, headers=EVENTS)
        assert asked.status_code == 200
        assert asked.headers["content-type"].startswith("text/event-stream")
        assert asked.headers.get_list("connection") == ["close"]
        assert 2000 <= retry_of(asked.content) <= 8000
        assert followed(asked.content) == []
        strict = await stage.client.get(url, headers={**EVENTS, "prefer": "handling=strict"})
        assert (strict.status_code, strict.json()["error"]["code"]) == (503, "draining")
        assert int(strict.headers["retry-after"]) > 0
        state = await stage.client.get(url, headers=JSON)
        assert (state.status_code, state.json()["status"]) == (200, "in_progress")
        assert (await stage.client.get(f"{stage.proxy.url}/livez")).status_code == 200
        assert stage.server.calls == calls
        stage.go.set()
        assert await stage.proxy.exited(SLACK) == 0


async def test_a_generation_that_nobody_reads_is_waited_for_too() -> None:
    async with staged(LONG) as stage:
        await stage.later()
        stage.proxy.signal(signal.SIGTERM)
        await stage.draining()
        with anyio.move_on_after(1.0):
            await stage.proxy.child.wait()
        assert stage.proxy.child.returncode is None
        stage.go.set()
        assert await stage.proxy.exited(SLACK) == 0


async def test_the_last_bytes_may_take_the_rest_of_the_time() -> None:
    """A slow caller, whose generation ended long ago, is not cut while there is time."""
    async with staged(LONG, size=LARGE) as stage, calling(stage.proxy.port, receive_buffer=4096) as reader:
        body = await streaming(stage, reader)
        stage.proxy.signal(signal.SIGTERM)
        await stage.draining()
        stage.go.set()
        await stage.closed()
        await anyio.sleep(2.0)  # not for order: twice the second that connections have after the deadline
        assert stage.proxy.child.returncode is None
        assert events(body + await reader.rest()) == passed_on(preview(0), completed(size=LARGE))
        assert await stage.proxy.exited(SLACK) == 0


async def test_at_the_deadline_everything_ends_with_an_error() -> None:
    async with staged(SHORT) as stage, anyio.create_task_group() as tasks:
        answers: list[httpx.Response] = []

        async def buffered() -> None:
            answers.append(await stage.post())

        async with calling(stage.proxy.port) as reader:
            body = await streaming(stage, reader)
            url = stage.proxy.url + reader.headers["location"]
            async with stage.client.stream("GET", url, headers=EVENTS) as response:
                reading = Reading(response)
                await reading.until(holds(b"\nid: 1.1\n\n"))
                tasks.start_soon(buffered)
                await stage.server.wait_until(lambda server: server.calls == 2, BOUND)
                began = stage.proxy.signal(signal.SIGTERM)
                *before, last = events(body + await reader.rest())
                assert before == passed_on(preview(0))
                assert time.monotonic() - began >= SHORT
                watched = followed(await reading.rest())
        assert await stage.proxy.exited(SLACK) == 0
        assert time.monotonic() - began < SHORT + 2 + SLACK
        assert stage.server.open_connections == 0
    [answer] = answers
    said = [last.json, watched[-1].json, answer.json()]
    assert (last.event, watched[-1].event, watched[-1].id) == ("error", "error", "1.2")
    assert answer.status_code == 503
    assert answer.headers["x-should-retry"] == "false"
    for body_of_error in said:
        error = body_of_error["error"]
        assert isinstance(error, dict)
        assert error["code"] == "server_shutdown"


async def test_a_caller_who_does_not_read_holds_nobody_up() -> None:
    async with staged(SHORT, size=LARGE) as stage, calling(stage.proxy.port, receive_buffer=4096) as reader:
        await streaming(stage, reader)
        stage.go.set()
        began = stage.proxy.signal(signal.SIGTERM)
        assert await stage.proxy.exited(BOUND) == 0
        assert SHORT <= time.monotonic() - began < SHORT + 2 + SLACK


@SIGNALS
async def test_a_second_signal_exits_now(number: signal.Signals) -> None:
    async with staged(LONG) as stage, calling(stage.proxy.port) as reader:
        await streaming(stage, reader)
        stage.proxy.signal(signal.SIGTERM)
        await stage.draining()
        began = stage.proxy.signal(number)
        assert await stage.proxy.exited(BOUND) == 128 + number
        assert time.monotonic() - began < SLACK


async def test_a_store_that_hangs_holds_nobody_up() -> None:
    go = anyio.Event()
    with valkey_server() as valkey:
        settings = f'drain_timeout = {SHORT}\nstore = "{valkey.url}"\nsecret = "0123456789abcdef"'
        async with serve(lambda received: held((preview(0),), go, (completed(),))) as server:
            config = configuration(server.url, settings=settings)
            async with started(config) as proxy, caller() as client, calling(proxy.port) as reader:
                body = await streaming(Stage(server, proxy, client, go), reader)
                with valkey.hung():
                    began = proxy.signal(signal.SIGTERM)
                    *_, last = events(body + await reader.rest())
                    assert last.event == "error"
                    assert await proxy.exited(BOUND) == 0
                    assert time.monotonic() - began < SHORT + 2 + SLACK
