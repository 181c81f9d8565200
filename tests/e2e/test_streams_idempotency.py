"""Idempotency-Key: the same key with the same body is one generation, whatever becomes of its callers."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio
import httpx
import orjson
import pytest

from streamproxy.hub import STORES, keys
from streamproxy.hub.store import Claim, Claims, StoreBackend
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Fin, Reset, Script, Send, error_answer, head, json_answer, sse
from streamproxy.simulator.server import serve
from tests.support.caller import calling
from tests.support.faults import IMAGE_BODY, Held
from tests.support.provider import answered_item, completed, data_of, idle, passed_on, preview
from tests.support.proxy import BOUND, PROMPT, events, running_proxy
from tests.support.streams import (
    EVENTS,
    KEY,
    LATER,
    Reading,
    Stage,
    chunks_until,
    followed,
    form,
    generation_with,
    held,
    holds,
    playing,
    staged,
)

pytestmark = pytest.mark.anyio

MANY: Final = 20
KEYED: Final = {KEY: "one"}
OWNED: Final = {**KEYED, "authorization": "Bearer a caller's own"}
GRACE: Final = 20.0
"""Longer than any test takes."""


def good(received: Received) -> Script:
    return sse((preview(0), completed())) if b'"stream":true' in received.body else json_answer(200, IMAGE_BODY)


async def test_identical_streams_are_one_generation() -> None:
    async with staged() as stage:
        bodies: list[bytes] = []
        ids: set[str] = set()
        begun: list[int] = []

        async def ask() -> None:
            url = f"{stage.proxy.url}/v1/images/generations"
            body = {"model": "sim/gpt-image", "prompt": PROMPT, "stream": True}
            async with stage.proxy.client.stream("POST", url, json=body, headers=KEYED) as response:
                assert response.status_code == 200
                ids.add(response.headers["stream-id"])
                reading = Reading(response)
                await reading.until(holds(data_of(preview(0))))
                begun.append(1)
                if len(begun) == MANY:
                    stage.go.set()
                bodies.append(await reading.rest())

        async with anyio.create_task_group() as tasks:
            for _ in range(MANY):
                tasks.start_soon(ask)
        assert [events(body) for body in bodies] == [passed_on(preview(0), completed())] * MANY
        assert len(ids) == 1
        assert stage.server.calls == 1


async def test_identical_json_requests_are_one_generation() -> None:
    go = anyio.Event()
    async with playing(lambda _: Held((), go, json_answer(200, IMAGE_BODY))) as stage:
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await stage.post(headers=KEYED, n=1))

        async with anyio.create_task_group() as tasks:
            for _ in range(MANY):
                tasks.start_soon(ask)
            await stage.server.wait_until(lambda server: server.calls, BOUND)
            go.set()
        answers.append(await stage.post(headers=KEYED, n=1))
        assert {answer.status_code for answer in answers} == {200}
        assert {answer.content for answer in answers} == {answers[0].content}
        assert {answer.headers["content-type"] for answer in answers} == {"application/json"}
        assert answers[0].json()["data"] == [answered_item("aW1hZ2U=")]
        assert stage.server.calls == 1


async def test_identical_forms_are_one_generation() -> None:
    async with playing(lambda _: json_answer(200, IMAGE_BODY)) as stage:
        answers: list[httpx.Response] = []
        url = f"{stage.proxy.url}/v1/images/edits"
        parts = (("model", b"sim/plain"), ("prompt", b"p"))

        async def ask(number: int, image: bytes = b"\x89PNG" + bytes(100_000)) -> None:
            body, kind = form(f"boundary{number}", parts, image)
            answers.append(await stage.proxy.client.post(url, content=body, headers={**OWNED, "content-type": kind}))

        async with anyio.create_task_group() as tasks:
            for number in range(MANY):
                tasks.start_soon(ask, number)
        assert {answer.status_code for answer in answers} == {200}
        assert {answer.content for answer in answers} == {answers[0].content}
        assert stage.server.calls == 1
        await ask(99, b"\x89PNG" + bytes(99_999) + b"\x01")
        assert answers[-1].status_code == 422
        assert stage.server.calls == 1


async def test_later_answers_are_the_same_stream() -> None:
    async with staged() as stage:
        first = await stage.post(headers={**KEYED, **LATER}, stream=True)
        second = await stage.post(headers={**KEYED, **LATER}, stream=True)
        assert (first.status_code, second.status_code) == (202, 202)
        assert first.json()["id"] == second.json()["id"]
        stage.go.set()
        url = stage.url(second.headers["location"])
        await stage.until(url, "completed")
        third = await stage.post(headers={**KEYED, **LATER}, stream=True)
        assert (third.json()["id"], third.json()["status"]) == (first.json()["id"], "completed")
        assert stage.server.calls == 1


async def test_another_request_with_the_key_is_refused() -> None:
    async with playing(good) as stage:
        assert (await stage.post(headers=OWNED)).status_code == 200
        for members in ({"prompt": "another"}, {"stream": True}, {"n": 1}, {"model": "sim/plain"}):
            answer = await stage.post(headers=OWNED, **members)
            assert (answer.status_code, answer.json()["error"]["code"]) == (422, "idempotency_key_reused")
        edit = await stage.proxy.client.post(
            f"{stage.proxy.url}/v1/images/edits", json={"model": "sim/gpt-image", "prompt": PROMPT}, headers=OWNED
        )
        assert edit.status_code == 422
        assert (await stage.post(headers=OWNED)).status_code == 200
        assert stage.server.calls == 1


async def test_callers_without_a_key_share_only_the_same_body() -> None:
    """They cannot be told apart, so that another body is another caller's, and the same body the same request."""
    async with playing(good) as stage:
        for members in ({}, {"prompt": "another"}, {"stream": True}, {}, {"prompt": "another"}, {"stream": True}):
            assert (await stage.post(headers=KEYED, **members)).status_code == 200
        assert stage.server.calls == 3


async def test_both_versions_of_the_api_are_one() -> None:
    async with playing(good) as stage:
        answers = [
            await stage.proxy.client.post(
                f"{stage.proxy.url}/{version}/images/generations",
                json={"model": "sim/gpt-image", "prompt": PROMPT},
                headers=KEYED,
            )
            for version in ("v1", "v3")
        ]
        assert answers[0].content == answers[1].content
        assert stage.server.calls == 1


async def test_without_the_same_key_requests_are_separate() -> None:
    async with playing(good) as stage:
        for headers in ({}, {}, {KEY: "a"}, {KEY: "b"}, {KEY: "A"}, {KEY: "a", "authorization": "Bearer x"}):
            assert (await stage.post(headers=headers)).status_code == 200
        assert stage.server.calls == 6


async def test_one_caller_has_its_keys_whichever_header_names_it() -> None:
    async with playing(good) as stage:
        for own in ({"authorization": "Bearer k"}, {"x-api-key": "k"}, {"api-key": "k"}):
            assert (await stage.post(headers={**KEYED, **own})).status_code == 200
        assert stage.server.calls == 1


@pytest.mark.parametrize(
    ("key", "status"),
    [
        ("a", 200),
        ("~" * 255, 200),
        ('"8e03978e-40d5-43dd-bc93-6894a57f9324"', 200),
        ("two words", 200),
        ("", 422),
        ("x" * 256, 422),
        ("é", 422),
        ("a\tb", 422),
    ],
    ids=["1", "255", "quoted", "words", "empty", "256", "latin", "tab"],
)
async def test_a_key_is_1_to_255_visible_characters(key: str, status: int) -> None:
    async with playing(good) as stage:
        for _ in range(2):
            answer = await stage.proxy.client.post(
                f"{stage.proxy.url}/v1/images/generations",
                json={"model": "sim/gpt-image", "prompt": PROMPT},
                headers=[(b"idempotency-key", key.encode("latin-1"))],
            )
            assert answer.status_code == status
            if status == 422:
                assert answer.json()["error"]["param"] == "Idempotency-Key"
        assert stage.server.calls == (1 if status == 200 else 0)


async def test_two_keys_are_none() -> None:
    async with playing(good) as stage:
        answer = await stage.proxy.client.post(
            f"{stage.proxy.url}/v1/images/generations",
            json={"model": "sim/gpt-image", "prompt": PROMPT},
            headers=[("idempotency-key", "a"), ("idempotency-key", "a")],
        )
        assert answer.status_code == 422
        assert stage.server.calls == 0


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_the_key_stands_though_its_first_caller_has_left(stream: bool) -> None:
    go = anyio.Event()

    def handler(received: Received) -> Script:
        return held((preview(0),), go, (completed(),)) if stream else Held((), go, json_answer(200, IMAGE_BODY))

    async with playing(handler, disconnect_grace=GRACE) as stage:
        members: dict[str, object] = {"stream": True} if stream else {}
        async with calling(stage.proxy.port) as caller:
            await caller.send(generation_with(KEYED, **members))
            await stage.server.wait_until(lambda server: server.calls, BOUND)
        with anyio.fail_after(BOUND):
            while not await stage.proxy.failures("client_gone"):  # noqa: ASYNC110
                await anyio.sleep(0.01)
        go.set()
        body = orjson.dumps({"model": "sim/gpt-image", "prompt": PROMPT, **members})
        answer = await stage.proxy.client.post(
            f"{stage.proxy.url}/v1/images/generations",
            content=body,
            headers={**KEYED, "content-type": "application/json"},
        )
        assert answer.status_code == 200
        if stream:
            assert events(answer.content)[-1] == passed_on(completed())[0]
        else:
            assert answer.json()["data"] == [answered_item("aW1hZ2U=")]
        assert stage.server.calls == 1
        assert not stage.server.disconnects


NOTHING_PROCESSED: Final[dict[str, tuple[Script, int]]] = {
    "400": (error_answer(400, "No."), 400),
    "401": (error_answer(401, "Who?"), 502),
    "429": (error_answer(429, "Slow down."), 429),
    "503 that says when": (error_answer(503, "Busy.", headers=(("Retry-After", "1"),)), 503),
}


@pytest.mark.parametrize("name", NOTHING_PROCESSED)
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("headers", [{}, LATER], ids=["now", "later"])
async def test_a_refusal_with_nothing_processed_frees_the_key(name: str, stream: bool, headers: dict[str, str]) -> None:
    script, status = NOTHING_PROCESSED[name]
    left = [script]
    async with playing(lambda received: left.pop() if left else good(received)) as stage:
        members: dict[str, object] = {"stream": True} if stream else {}
        assert (await stage.post(headers={**KEYED, **headers}, **members)).status_code == status
        again = await stage.post(headers={**KEYED, **headers}, **members)
        assert again.status_code == (202 if headers else 200)
        assert (await stage.post(headers={**KEYED, **headers}, **members)).status_code == again.status_code
        assert stage.server.calls == 2


async def test_a_refusal_that_took_long_frees_the_key_too() -> None:
    go = anyio.Event()
    left: list[Script] = [Held((), go, error_answer(429, "Slow down."))]
    async with playing(lambda received: left.pop() if left else good(received), commit_after=0.05) as stage:
        url = await stage.later(headers=KEYED)
        go.set()
        await stage.until(url, "failed")
        again = await stage.later(headers=KEYED)
        assert again.partition("?")[0] != url.partition("?")[0]
        await stage.until(again, "completed")
        assert stage.server.calls == 2


async def test_a_refusal_frees_the_key_though_nobody_heard_it() -> None:
    go = anyio.Event()
    left: list[Script] = [Held((), go, error_answer(400, "No."))]
    handler = lambda received: left.pop() if left else good(received)  # noqa: E731
    async with playing(handler, disconnect_grace=GRACE) as stage:
        async with calling(stage.proxy.port) as caller:
            await caller.send(generation_with(KEYED))
            await stage.server.wait_until(lambda server: server.calls, BOUND)
        with anyio.fail_after(BOUND):
            while not await stage.proxy.failures("client_gone"):  # noqa: ASYNC110
                await anyio.sleep(0.01)
        go.set()
        await idle(stage.proxy)
        assert (await stage.post(headers=KEYED)).status_code == 200
        assert stage.server.calls == 2


async def test_a_provider_that_could_not_be_reached_frees_the_key() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # not listening yet: a connection is refused
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        with anyio.fail_after(2 * BOUND):
            async with running_proxy(url) as proxy:
                body = {"model": "sim/gpt-image", "prompt": PROMPT}
                target = f"{proxy.url}/v1/images/generations"
                refused = await proxy.client.post(target, json=body, headers=KEYED)
                assert (refused.status_code, refused.json()["error"]["code"]) == (502, "connection_refused")
                sock.listen()
                sock.setblocking(False)
                async with serve(good, sock=sock) as server:
                    for _ in range(2):
                        assert (await proxy.client.post(target, json=body, headers=KEYED)).status_code == 200
                    assert server.calls == 1


AMBIGUOUS: Final[dict[str, Script]] = {
    "closed": (Fin(),),
    "reset": (Reset(),),
    "no image": json_answer(200, {"created": 1, "data": []}),
    "not JSON": json_answer(200, b"<html>"),
    "500": error_answer(500, "Broken.", code="oops"),
    "cut": (Send(head(200, length=1000)), Send(b'{"data":[{"b64_json":"'), Fin()),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
@pytest.mark.parametrize("headers", [{}, LATER], ids=["now", "later"])
async def test_a_failure_that_may_be_charged_is_not_repeated(name: str, headers: dict[str, str]) -> None:
    async with playing(lambda _: AMBIGUOUS[name]) as stage:
        first = await stage.post(headers={**KEYED, **headers})
        again = await stage.post(headers={**KEYED, **headers})
        assert first.status_code == again.status_code == 502, first.text
        assert first.json()["error"] == again.json()["error"]
        assert first.headers["x-should-retry"] == again.headers["x-should-retry"] == "false"
        assert stage.server.calls == 1


async def test_a_failure_in_the_middle_of_a_stream_is_repeated_too() -> None:
    async with staged(rest=()) as stage:
        stage.go.set()
        async with stage.proxy.client.stream(
            "POST",
            f"{stage.proxy.url}/v1/images/generations",
            json={"model": "sim/gpt-image", "prompt": PROMPT, "stream": True},
            headers=KEYED,
        ) as response:
            status = response.status_code
            body = await response.aread()
        error = events(body)[-1].json["error"] if status == 200 else orjson.loads(body)["error"]
        again = await stage.post(headers=KEYED, stream=True)
        assert again.status_code == 502
        assert isinstance(error, dict)
        assert error["code"] == again.json()["error"]["code"] == "missing_terminal_event"
        assert stage.server.calls == 1


async def test_a_stream_that_is_no_longer_kept_is_not_paid_again() -> None:
    async with playing(good, linger=0.05) as stage:
        assert (await stage.post(headers=KEYED)).status_code == 200
        with anyio.fail_after(BOUND):
            while (answer := await stage.post(headers=KEYED)).status_code == 200:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert (answer.status_code, answer.json()["error"]["code"]) == (410, "stream_gone")
        assert stage.server.calls == 1


async def test_a_full_proxy_takes_repeats_and_frees_other_keys() -> None:
    async with staged(max_streams=1) as stage:
        url = await stage.later(headers=KEYED)
        for _ in range(2):
            refused = await stage.post(headers={KEY: "two"}, stream=True)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
        assert (await stage.later(headers=KEYED)).partition("?")[0] == url.partition("?")[0]
        stage.go.set()
        await stage.until(url, "completed")
        await idle(stage.proxy)
        assert (await stage.post(headers={KEY: "two"}, stream=True)).status_code == 200
        assert stage.server.calls == 2


class Elsewhere:
    """Claims as a second process sees them where the first one's request has the key and no stream; `refused` for good
    while the second one asks for the third time, or never."""

    def __init__(self, inner: Claims, *, refused: bool) -> None:
        self.inner = inner
        self.refused = refused
        self.asked = 0

    async def claim(self, key: str, claim: Claim) -> Claim:
        self.asked += 1
        if self.asked == 1:
            return await self.inner.claim(key, Claim(claim.fingerprint, "str_never"))
        if self.asked == 3 and self.refused:
            await self.inner.disclaim(key)
        return await self.inner.claim(key, claim)

    async def disclaim(self, key: str) -> None:
        await self.inner.disclaim(key)


def claimed_elsewhere(monkeypatch: pytest.MonkeyPatch, *, refused: bool) -> None:
    memory = STORES["memory"]

    @asynccontextmanager
    async def shared(url: str, max_bytes: int, linger: float) -> AsyncIterator[StoreBackend]:
        async with memory(url, max_bytes, linger) as kept:
            yield StoreBackend(kept.store, Elsewhere(kept.claims, refused=refused), kept.marks)

    monkeypatch.setitem(STORES, "memory", shared)


async def test_after_a_refusal_the_next_request_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    claimed_elsewhere(monkeypatch, refused=True)
    async with playing(good) as stage:
        for _ in range(2):
            answer = await stage.post(headers=KEYED, stream=True)
            assert [event.event for event in events(answer.content)][-1] == "image_generation.completed"
        assert stage.server.calls == 1


async def test_a_request_that_becomes_no_stream_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    claimed_elsewhere(monkeypatch, refused=False)
    monkeypatch.setattr(keys, "APPEAR_SECONDS", 0.12)
    async with playing(good) as stage:
        answer = await stage.post(headers=KEYED, stream=True)
        assert (answer.status_code, answer.json()["error"]["code"]) == (410, "stream_gone")
        assert stage.server.calls == 0


async def test_those_who_come_back_are_counted_as_viewers() -> None:
    async with staged(max_viewers=1) as stage:
        url = f"{stage.proxy.url}/v1/images/generations"
        body = {"model": "sim/gpt-image", "prompt": PROMPT, "stream": True}
        async with stage.proxy.client.stream("POST", url, json=body, headers=KEYED) as first:
            reading = Reading(first)
            await reading.until(holds(data_of(preview(0))))
            assert (await stage.post(headers=KEYED, stream=True)).status_code == 429
            stage.go.set()
            await reading.rest()
        assert (await stage.post(headers=KEYED, stream=True)).status_code == 200
        assert stage.server.calls == 1


async def test_a_page_that_repeats_its_post_until_it_is_done() -> None:
    """As @microsoft/fetch-event-source does: the same POST again after each cut, and on each switch of tabs."""
    async with staged((preview(0),), (completed(),), disconnect_grace=GRACE) as stage:
        for cut in range(3):
            async with calling(stage.proxy.port) as caller:
                await caller.send(generation_with({**KEYED, "Accept": "text/event-stream"}, stream=True))
                assert await caller.head() == 200
                await chunks_until(caller, data_of(preview(0)))
                caller.reset() if cut else caller.close()
        stage.go.set()
        answer = await stage.post(headers={**KEYED, **EVENTS}, stream=True)
        assert events(answer.content)[-1] == passed_on(completed())[0]
        after = await _again(stage)
        assert events(after.content) == passed_on(completed())
        assert len(followed((await stage.get(stage.url(after.headers["location"]), EVENTS)).content)) == 1
        assert stage.server.calls == 1
        assert not stage.server.disconnects


async def _again(stage: Stage) -> httpx.Response:
    await idle(stage.proxy)
    return await stage.post(headers=KEYED, stream=True)
