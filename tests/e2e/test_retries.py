"""Retries: the generation of the lost request that they follow, and the failure that is held for them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import anyio
import httpx
import orjson
import pytest

from streamproxy.hub import repeats
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Fin, Reset, Script, Send, error_answer, head, json_answer, sse
from tests.support.caller import Caller, calling, post
from tests.support.faults import IMAGE_BODY, Held
from tests.support.provider import answered_item, completed, idle, passed_on, preview
from tests.support.proxy import BOUND, PROMPT, events
from tests.support.streams import KEY, LATER, Stage, form, generation_with, held, playing, staged

pytestmark = pytest.mark.anyio

COUNT: Final = "x-stainless-retry-count"
FIRST: Final = {COUNT: "0"}
RETRY: Final = {COUNT: "1"}
GRACE: Final = 20.0
"""Longer than any test takes."""

KINDS: Final = ("plain", "stream", "form")


def request_of(kind: str, boundary: str = "b") -> tuple[str, bytes, str]:
    """Path, body and content type of a request for one image."""
    if kind == "form":
        return "edits", *form(boundary, (("model", b"sim/gpt-image"), ("prompt", PROMPT.encode())), b"\x89PNG" * 50_000)
    members = {"model": "sim/gpt-image", "prompt": PROMPT, **({"stream": True} if kind == "stream" else {})}
    return "generations", orjson.dumps(members), "application/json"


async def ask(stage: Stage, kind: str = "plain", headers: dict[str, str] | None = None) -> httpx.Response:
    path, body, content_type = request_of(kind, "another")
    return await stage.proxy.client.post(
        f"{stage.proxy.url}/v1/images/{path}", content=body, headers={"content-type": content_type, **(headers or {})}
    )


def answer(received: Received) -> Script:
    return sse((completed(),)) if b'"stream":true' in received.body else json_answer(200, IMAGE_BODY)


def whole(kind: str, got: httpx.Response) -> None:
    """Assert that this is the image, as the request wanted it."""
    assert got.status_code == 200, got.text
    if kind == "stream":
        assert events(got.content)[-1] == passed_on(completed())[0]
    else:
        assert got.json()["data"] == [answered_item("aW1hZ2U=")]


@asynccontextmanager
async def asking(stage: Stage, kind: str = "plain") -> AsyncIterator[Caller]:
    """A first request on a connection of its own, whose generation has begun; it is closed with the block."""
    calls = stage.server.calls
    path, body, content_type = request_of(kind)
    async with calling(stage.proxy.port) as caller:
        await caller.send(post(body, path=f"/v1/images/{path}", kind=content_type))
        await stage.server.wait_until(lambda server: server.calls > calls, BOUND)
        yield caller


async def gone(stage: Stage, times: int = 1) -> None:
    """Wait until the proxy has seen so many callers leave."""
    with anyio.fail_after(BOUND):
        while await stage.proxy.failures("client_gone") < times:  # noqa: ASYNC110
            await anyio.sleep(0.01)


def slowly(go: anyio.Event) -> Callable[[Received], Script]:
    return lambda received: Held((), go, answer(received))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", ["running", "finished"])
async def test_a_retry_follows_what_its_lost_request_left(kind: str, when: str) -> None:
    go = anyio.Event()
    async with playing(slowly(go), disconnect_grace=GRACE) as stage:
        async with asking(stage, kind):
            pass
        await gone(stage)
        if when == "finished":
            go.set()
            await idle(stage.proxy)
        async with anyio.create_task_group() as tasks:
            got: list[httpx.Response] = []

            async def again() -> None:
                got.append(await ask(stage, kind, RETRY))

            tasks.start_soon(again)
            go.set()
        whole(kind, got[0])
        assert stage.server.calls == 1
        assert not stage.server.disconnects


async def test_a_retry_that_is_lost_leaves_it_to_the_next() -> None:
    go = anyio.Event()
    async with playing(slowly(go), disconnect_grace=GRACE) as stage:
        async with asking(stage):
            pass
        await gone(stage)
        for number in (2, 3):
            path, body, kind = request_of("plain")
            with anyio.move_on_after(0.2):
                await stage.proxy.client.post(
                    f"{stage.proxy.url}/v1/images/{path}", content=body, headers={"content-type": kind, **RETRY}
                )
            await gone(stage, number)
        go.set()
        whole("plain", await ask(stage, headers={COUNT: "3"}))
        assert stage.server.calls == 1


async def test_retries_that_race_for_one_lost_request_share_it() -> None:
    go = anyio.Event()
    async with playing(slowly(go), disconnect_grace=GRACE) as stage:
        async with asking(stage):
            pass
        await gone(stage)
        got: list[httpx.Response] = []

        async def again() -> None:
            got.append(await ask(stage, headers=RETRY))

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(again)
            await anyio.sleep(0.2)
            go.set()
        for each in got:
            whole("plain", each)
        assert stage.server.calls == 1


async def test_two_lost_requests_have_two_retries() -> None:
    scripts = [anyio.Event(), anyio.Event()]
    pictures = iter((b"Zmlyc3Q=", b"c2Vjb25k"))

    def handler(received: Received) -> Script:
        picture = next(pictures)
        return Held((), scripts[0], json_answer(200, b'{"created":1,"data":[{"b64_json":"%b"}]}' % picture))

    async with playing(handler, disconnect_grace=GRACE) as stage:
        async with asking(stage), asking(stage):
            pass
        await gone(stage, 2)
        got: list[str] = []

        async def again() -> None:
            got.append((await ask(stage, headers=RETRY)).json()["data"][0]["b64_json"])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(again)
            tasks.start_soon(again)
            await anyio.sleep(0.2)
            scripts[0].set()
        assert sorted(got) == ["Zmlyc3Q=", "c2Vjb25k"]
        assert stage.server.calls == 2


@pytest.mark.parametrize("headers", [{}, FIRST, {COUNT: "x"}, {COUNT: "-1"}, {COUNT: ""}])
async def test_a_request_without_the_retry_mark_is_a_new_one(headers: dict[str, str]) -> None:
    go = anyio.Event()
    async with playing(slowly(go), disconnect_grace=GRACE) as stage:
        async with asking(stage):
            pass
        await gone(stage)
        go.set()
        whole("plain", await ask(stage, headers=headers))
        assert stage.server.calls == 2


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_still_followed_is_not_shared(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "LEAVING_SECONDS", 0.2)
    go = anyio.Event()
    async with playing(slowly(go), disconnect_grace=GRACE) as stage:
        async with asking(stage, kind) as first, anyio.create_task_group() as tasks:
            tasks.start_soon(ask, stage, kind, RETRY)
            await stage.server.wait_until(lambda server: server.calls == 2, BOUND)
            go.set()
            assert await first.head() == 200
            assert await first.rest()
        assert stage.server.calls == 2


async def test_a_retry_waits_for_its_caller_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "LEAVING_SECONDS", BOUND)
    go = anyio.Event()
    async with playing(slowly(go), disconnect_grace=GRACE) as stage:
        got: list[httpx.Response] = []

        async def again() -> None:
            got.append(await ask(stage, headers=RETRY))

        async with asking(stage) as first, anyio.create_task_group() as tasks:
            tasks.start_soon(again)
            await anyio.sleep(0.2)  # time itself: it has looked more than once
            first.close()
            await gone(stage)
            go.set()
        whole("plain", got[0])
        assert stage.server.calls == 1


@pytest.mark.parametrize("other", ["caller", "key", "body"])
async def test_another_request_is_not_what_was_lost(other: str) -> None:
    go = anyio.Event()
    async with playing(slowly(go), disconnect_grace=GRACE) as stage:
        async with asking(stage):
            pass
        await gone(stage)
        go.set()
        members, headers = {"model": "sim/gpt-image", "prompt": PROMPT}, dict(RETRY)
        match other:
            case "caller":
                headers["authorization"] = "Bearer another"
            case "key":
                headers[KEY] = "k"
            case _:
                members["prompt"] = "another"
        url = f"{stage.proxy.url}/v1/images/generations"
        whole("plain", await stage.proxy.client.post(url, json=members, headers=headers))
        assert stage.server.calls == 2


async def test_what_its_caller_has_had_is_not_found_by_a_retry() -> None:
    async with playing(answer, disconnect_grace=GRACE) as stage:
        for kind in KINDS:
            whole(kind, await ask(stage, kind, FIRST))
            whole(kind, await ask(stage, kind, RETRY))
        assert stage.server.calls == 2 * len(KINDS)


async def test_a_retry_asks_anew_where_nothing_was_processed() -> None:
    go = anyio.Event()
    left: list[Script] = [Held((), go, error_answer(429, "Slow down."))]
    async with playing(lambda received: left.pop() if left else answer(received), disconnect_grace=GRACE) as stage:
        async with asking(stage):
            pass
        await gone(stage)
        go.set()
        await idle(stage.proxy)
        whole("plain", await ask(stage, headers=RETRY))
        assert stage.server.calls == 2


async def test_a_retry_after_the_grace_begins_anew() -> None:
    go = anyio.Event()
    async with playing(slowly(go), disconnect_grace=0.1) as stage:
        async with asking(stage):
            pass
        await stage.server.wait_until(lambda server: server.disconnects, BOUND)
        await idle(stage.proxy)
        go.set()
        whole("plain", await ask(stage, headers=RETRY))
        assert stage.server.calls == 2


CHARGED: Final[dict[str, tuple[Script, str]]] = {
    "no image": (json_answer(200, {"created": 1, "data": []}), "no_image"),
    "cut": ((Send(head(200, length=1000)), Send(b'{"data":[{"b64_json":"'), Fin()), "upstream_incomplete"),
    "reset": ((Reset(),), "connection_terminated"),
    "500": (error_answer(500, "Broken.", code="oops"), "oops"),
}


@pytest.mark.parametrize("name", CHARGED)
@pytest.mark.parametrize("kind", ["plain", "stream"])
async def test_a_retry_gets_the_failure_of_what_was_lost(name: str, kind: str) -> None:
    script, code = CHARGED[name]
    go = anyio.Event()
    async with playing(lambda _: Held((), go, script), disconnect_grace=GRACE) as stage:
        async with asking(stage, kind):
            pass
        await gone(stage)
        go.set()
        await idle(stage.proxy)
        for _ in range(2):
            got = await ask(stage, kind, RETRY)
            assert (got.status_code, got.json()["error"]["code"]) == (502, code)
            assert got.headers["x-should-retry"] == "false"
        assert stage.server.calls == 1


@pytest.mark.parametrize("name", CHARGED)
@pytest.mark.parametrize("kind", ["plain", "stream"])
async def test_a_failure_that_may_have_been_charged_is_held(name: str, kind: str) -> None:
    script, code = CHARGED[name]
    async with playing(lambda _: script, failure_hold=60) as stage:
        first = await ask(stage, kind)
        assert first.json()["error"]["code"] == code
        for headers in ({}, RETRY, LATER):
            again = await ask(stage, kind, headers)
            assert (again.status_code, again.json()["error"]["code"]) == (502, code)
            assert again.headers["x-should-retry"] == "false"
            said = again.json()["error"]["message"]
            assert said.startswith(first.json()["error"]["message"])
            assert "was not sent again" in said
            assert "Idempotency-Key" in said
            assert "failure_hold" in said
        assert stage.server.calls == 1
        assert (await ask(stage, kind, {KEY: "new"})).status_code == 502
        assert (await ask(stage, kind, {"authorization": "Bearer another"})).status_code == 502
        assert (await stage.post(prompt="another")).status_code == 502
        assert stage.server.calls == 4


async def test_a_failure_is_held_for_so_long_and_no_longer() -> None:
    left: list[Script] = [CHARGED["no image"][0]]
    async with playing(lambda received: left.pop() if left else answer(received), failure_hold=0.3) as stage:
        assert (await ask(stage)).status_code == 502
        began = anyio.current_time()
        with anyio.fail_after(BOUND):
            while (got := await ask(stage)).status_code != 200:
                assert stage.server.calls == 1
        assert anyio.current_time() - began > 0.2
        whole("plain", got)


async def test_what_was_wished_for_or_cost_nothing_is_not_held() -> None:
    left: list[Script] = [error_answer(400, "No."), error_answer(429, "Slow down.")]
    async with playing(lambda received: left.pop() if left else answer(received), failure_hold=60) as stage:
        assert [(await ask(stage)).status_code for _ in range(3)] == [429, 400, 200]
    async with staged(failure_hold=60) as stage:
        ordered = await stage.post(headers=LATER, stream=True)
        await stage.proxy.client.delete(stage.url(ordered.json()["cancel_url"]))
        await stage.until(stage.url(ordered.headers["location"]), "cancelled")
        stage.go.set()
        assert (await stage.post(stream=True)).status_code == 200
        assert stage.server.calls == 2


async def test_a_failure_after_the_head_is_held_too() -> None:
    cut = held((preview(0),), anyio.Event(), ())
    assert isinstance(cut, Held)
    cut.released.set()
    async with playing(lambda _: cut, failure_hold=60) as stage:
        first = await ask(stage, "stream")
        assert first.status_code == 200
        assert events(first.content)[-1].event == "error"
        again = await ask(stage, "stream")
        assert (again.status_code, again.json()["error"]["code"]) == (502, "missing_terminal_event")
        assert stage.server.calls == 1


# White space before a JSON answer.


async def test_a_late_json_answer_begins_with_white_space() -> None:
    go = anyio.Event()
    async with playing(slowly(go), json_heartbeat=0.05) as stage, calling(stage.proxy.port) as caller:
        await caller.send(generation_with({}))
        assert await caller.head() == 200
        assert caller.headers["content-type"] == "application/json"
        assert [await caller.chunk() for _ in range(3)] == [b"\n"] * 3
        go.set()
        assert orjson.loads(await caller.rest())["data"] == [answered_item("aW1hZ2U=")]
        assert stage.server.calls == 1


async def test_after_the_head_a_failure_is_a_json_error() -> None:
    go = anyio.Event()
    script = error_answer(429, "Slow down.", code="rate_limit_exceeded")
    async with playing(lambda _: Held((), go, script), json_heartbeat=0.05) as stage:
        async with calling(stage.proxy.port) as caller:
            await caller.send(generation_with({}))
            assert await caller.head() == 200
            go.set()
            said = orjson.loads(await caller.rest())
        assert (said["error"]["status"], said["error"]["code"]) == (429, "rate_limit_exceeded")
        assert said["request_id"] == caller.headers["x-request-id"]
        assert await stage.proxy.failures("provider_429") == 1


async def test_before_it_a_failure_and_an_answer_keep_their_heads() -> None:
    left: list[Script] = [error_answer(400, "No.")]
    async with playing(lambda received: left.pop() if left else answer(received), json_heartbeat=BOUND) as stage:
        assert (await ask(stage)).status_code == 400
        got = await ask(stage)
        whole("plain", got)
        assert "content-length" in got.headers


async def test_leaving_in_white_space_keeps_it_for_a_retry() -> None:
    go = anyio.Event()
    async with playing(slowly(go), json_heartbeat=0.05, disconnect_grace=GRACE) as stage:
        async with calling(stage.proxy.port) as caller:
            await caller.send(generation_with({}))
            assert await caller.head() == 200
        await gone(stage)
        go.set()
        whole("plain", await stage.post(headers=RETRY))
        assert stage.server.calls == 1
