"""Generations whose last reader has left."""

from __future__ import annotations

import time
from typing import Final

import anyio
import pytest

from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, json_answer
from tests.support.caller import calling
from tests.support.faults import IMAGE_BODY, Held
from tests.support.provider import completed, data_of, idle, passed_on, preview
from tests.support.proxy import BOUND
from tests.support.streams import (
    EVENTS,
    KEY,
    LATER,
    Stage,
    chunks_until,
    followed,
    following,
    generation_with,
    holds,
    playing,
    staged,
)

pytestmark = pytest.mark.anyio

AT_ONCE: Final = 0.1
"""From the end of a caller's connection to the end of the provider's."""


async def cut_post(stage: Stage, headers: dict[str, str] | None = None) -> tuple[str, float, str]:
    """A streamed POST whose caller leaves after the first preview: its stream's URL, when it left, what was applied."""
    async with calling(stage.proxy.port) as caller:
        await caller.send(generation_with(headers or {}, stream=True))
        assert await caller.head() == 200
        await chunks_until(caller, data_of(preview(0)))
        left = time.monotonic()
    return stage.url(caller.headers["location"]), left, caller.headers.get("preference-applied", "")


async def gone(stage: Stage) -> float:
    """Wait until the connection to the provider has been cut; when."""
    await stage.server.wait_until(lambda server: server.disconnects, BOUND)
    return stage.server.disconnects[0]


async def cancelled(stage: Stage, url: str) -> None:
    """Wait until the stream says so, in both its forms."""
    state = await stage.until(url, "cancelled")
    error = state["error"]
    assert isinstance(error, dict)
    assert error["code"] == "cancelled"
    assert followed((await stage.get(url, EVENTS)).content)[-1].json["error"] == error
    assert stage.server.calls == 1


async def completed_alone(stage: Stage, url: str) -> None:
    """The provider goes on without readers, and its image is kept."""
    stage.go.set()
    await idle(stage.proxy)
    assert [event.data for event in followed((await stage.get(url, EVENTS)).content)] == [
        passed_on(completed())[0].data
    ]
    assert not stage.server.disconnects
    assert stage.server.calls == 1


async def test_a_streamed_post_is_cancelled_after_the_grace() -> None:
    async with staged(disconnect_grace=0.4) as stage:
        url, left, applied = await cut_post(stage)
        assert applied == ""
        assert await gone(stage) - left >= 0.4
        await cancelled(stage, url)


async def test_without_a_grace_it_is_cancelled_at_once() -> None:
    async with staged(disconnect_grace=0) as stage:
        url, left, _ = await cut_post(stage)
        assert await gone(stage) - left <= AT_ONCE
        await cancelled(stage, url)


async def test_who_comes_back_within_the_grace_keeps_it_alive() -> None:
    async with staged(disconnect_grace=0.3, heartbeat=1) as stage:
        url, _, _ = await cut_post(stage)
        async with following(stage, url) as reading:
            await reading.until(holds(b"id: 1.1\n\n:\n"))  # a heartbeat: the grace is over
            assert not stage.server.disconnects
            stage.go.set()
            assert [event.event for event in followed(await reading.rest())][-1] == "image_generation.completed"
        assert stage.server.calls == 1


async def test_each_who_leaves_leaves_a_whole_grace() -> None:
    grace = 0.8
    async with staged(disconnect_grace=grace) as stage:
        url, first, _ = await cut_post(stage)
        async with following(stage, url) as reading:
            await reading.until(holds(b"id: 1.1"))
            await anyio.sleep(max(0.0, first + grace * 3 / 4 - time.monotonic()))  # time itself is what is tested
            left = time.monotonic()
        assert await gone(stage) - left >= grace * 0.99
        await cancelled(stage, url)


async def test_a_viewer_who_stays_is_enough() -> None:
    async with staged(disconnect_grace=0) as stage:
        async with calling(stage.proxy.port) as caller:
            await caller.send(generation_with({}, stream=True))
            await caller.head()
            url = stage.url(caller.headers["location"])
            async with following(stage, url) as reading:
                await reading.until(holds(b"id: 1.1"))
                caller.reset()
                with anyio.fail_after(BOUND):
                    while not await stage.proxy.failures("client_gone"):  # noqa: ASYNC110
                        await anyio.sleep(0.01)
                assert not stage.server.disconnects
                stage.go.set()
                assert len(followed(await reading.rest())) == 2
        assert stage.server.calls == 1


async def test_respond_async_runs_to_the_end_with_nobody_there() -> None:
    async with staged(disconnect_grace=0) as stage:
        await completed_alone(stage, await stage.later())


async def test_viewers_of_such_a_stream_come_and_go() -> None:
    async with staged(disconnect_grace=0) as stage:
        url = await stage.later()
        for _ in range(3):
            async with following(stage, url) as reading:
                await reading.until(holds(b"id: 1.1"))
        await completed_alone(stage, url)


async def test_finish_is_asked_for_and_said_to_be_applied() -> None:
    async with staged(disconnect_grace=0) as stage:
        url, _, applied = await cut_post(stage, {"prefer": "on-disconnect=finish"})
        assert applied == "on-disconnect=finish"
        await completed_alone(stage, url)


async def test_finish_can_be_a_models_policy() -> None:
    async with staged(disconnect_grace=0, finish_models=("sim/gpt-image",)) as stage:
        url, _, applied = await cut_post(stage)
        assert applied == ""
        await completed_alone(stage, url)


async def test_another_models_policy_is_its_own() -> None:
    async with staged(disconnect_grace=0, finish_models=("sim/plain",)) as stage:
        url, left, _ = await cut_post(stage)
        assert await gone(stage) - left <= AT_ONCE
        await cancelled(stage, url)


async def test_cancel_can_be_asked_for_where_finish_is_the_policy() -> None:
    async with staged(disconnect_grace=0.2, finish_models=("sim/gpt-image",)) as stage:
        url, left, applied = await cut_post(stage, {"prefer": "on-disconnect=cancel"})
        assert applied == "on-disconnect=cancel"
        assert await gone(stage) - left >= 0.2
        await cancelled(stage, url)


async def test_respond_async_can_be_cancelled_when_nobody_comes() -> None:
    async with staged(disconnect_grace=0.2) as stage:
        answer = await stage.post(headers={"prefer": "respond-async, on-disconnect=cancel"}, stream=True)
        assert answer.status_code == 202
        assert answer.headers["preference-applied"] == "respond-async, on-disconnect=cancel"
        await gone(stage)
        await cancelled(stage, stage.url(answer.headers["location"]))


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_leaving_before_the_head_starts_the_grace(stream: bool) -> None:
    """Its retry may come back."""
    go = anyio.Event()

    def handler(received: Received) -> Script:
        return Held((), go, json_answer(200, IMAGE_BODY))

    async with playing(handler, disconnect_grace=0.4) as stage:
        async with calling(stage.proxy.port) as caller:
            await caller.send(generation_with({}, **({"stream": True} if stream else {})))
            await stage.server.wait_until(lambda server: server.calls, BOUND)
            left = time.monotonic()
        assert await gone(stage) - left >= 0.4
        await idle(stage.proxy)
        assert stage.server.calls == 1


async def test_who_has_a_key_may_come_back_for_json() -> None:
    go = anyio.Event()
    async with playing(lambda _: Held((), go, json_answer(200, IMAGE_BODY)), disconnect_grace=0.4) as stage:
        async with calling(stage.proxy.port) as caller:
            await caller.send(generation_with({KEY: "k"}))
            await stage.server.wait_until(lambda server: server.calls, BOUND)
            left = time.monotonic()
        assert await gone(stage) - left >= 0.4
        await idle(stage.proxy)
        again = await stage.post(headers={KEY: "k", "content-type": "application/json"})
        assert (again.status_code, again.json()["error"]["code"]) == (409, "cancelled")
        assert stage.server.calls == 1


async def test_leaving_after_respond_async_changes_nothing() -> None:
    go = anyio.Event()
    async with playing(lambda _: Held((), go, json_answer(200, IMAGE_BODY)), disconnect_grace=0) as stage:
        async with calling(stage.proxy.port) as caller:
            await caller.send(generation_with({**LATER, KEY: "k"}))
            await stage.server.wait_until(lambda server: server.calls, BOUND)
        with anyio.fail_after(BOUND):
            while not await stage.proxy.failures("client_gone"):  # noqa: ASYNC110
                await anyio.sleep(0.01)
        go.set()
        await idle(stage.proxy)
        answer = await stage.post(headers={**LATER, KEY: "k"})
        assert answer.status_code == 202
        state = await stage.state(stage.url(answer.headers["location"]))
        assert state["status"] == "completed"
        assert not stage.server.disconnects
        assert stage.server.calls == 1
