"""Answers to GET and DELETE of a stream: refusals, overload, and the stream as one object."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio
import pytest

from streamproxy.app import create_app
from streamproxy.hub import STORES
from streamproxy.hub.store import Gone, StoreBackend, Stored, StoreError
from streamproxy.settings import ProviderSettings, Settings
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import EVENT_STREAM, Fin, Script, Send, head, json_answer
from streamproxy.simulator.server import serve
from tests.support.faults import IMAGE_BODY, Held
from tests.support.provider import completed, idle, passed_on, preview
from tests.support.proxy import BOUND, NO_TRUST, events, no_leaks, serving
from tests.support.streams import EVENTS, JSON, LATER, Stage, followed, following, holds, playing, retry_of, staged

pytestmark = pytest.mark.anyio

STRICT: Final = {**EVENTS, "prefer": "handling=strict"}
CANCELLED: Final = {"deleted": False, "cancelled": True}
CUT_SECONDS: Final = 0.1
"""From a cancellation to the end of the connection to the provider."""


async def finished(stage: Stage) -> str:
    """A stream that has ended."""
    stage.go.set()
    url = await stage.later()
    await stage.until(url, "completed")
    return url


@pytest.mark.parametrize("accept", [EVENTS, JSON], ids=["events", "json"])
async def test_a_stream_that_never_was_is_not_found(accept: dict[str, str]) -> None:
    async with staged() as stage:
        answer = await stage.get(stage.url("/v3/streams/str_0"), accept)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert stage.server.calls == 0


@pytest.mark.parametrize("accept", [EVENTS, JSON], ids=["events", "json"])
async def test_a_stream_that_is_no_longer_kept_is_gone(accept: dict[str, str]) -> None:
    async with staged(linger=0.05) as stage:
        stage.go.set()
        url = await stage.later()
        await idle(stage.proxy)
        with anyio.fail_after(BOUND):
            while (answer := await stage.get(url, accept)).status_code != 410:
                assert answer.status_code == 200
        assert answer.json()["error"]["code"] == "stream_gone"
        assert stage.server.calls == 1


async def test_over_the_stores_bytes_the_oldest_is_gone() -> None:
    big = completed(size=50_000)
    async with staged((), (big,), store_bytes=64 * 1024) as stage:
        first = await finished(stage)
        second = await finished(stage)
        assert (await stage.get(first, JSON)).status_code == 410
        assert (await stage.get(second, JSON)).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("https://app.test", 200),
        ("https://evil.test", 403),
        ("http://app.test", 403),
        ("null", 403),
        ("own", 200),
    ],
)
async def test_a_page_of_another_origin_is_refused(origin: str | None, status: int) -> None:
    async with staged(cors_origins=("https://app.test",)) as stage:
        url = await finished(stage)
        own = stage.proxy.url if origin == "own" else origin
        answer = await stage.get(url, EVENTS if own is None else {**EVENTS, "origin": own})
        assert answer.status_code == status
        assert answer.headers.get("access-control-allow-origin") == (origin if origin == "https://app.test" else None)
        if status == 403:
            assert answer.json()["error"]["code"] == "origin_not_allowed"


async def test_without_cors_origins_no_foreign_page_follows() -> None:
    async with staged() as stage:
        url = await finished(stage)
        refused = await stage.get(url, {**EVENTS, "origin": "https://evil.test"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "origin_not_allowed")
        assert "access-control-allow-origin" not in refused.headers
        own = await stage.get(url, {**EVENTS, "origin": stage.proxy.url})
        assert own.status_code == 200


async def test_a_page_may_read_what_it_needs_of_the_head() -> None:
    async with staged(cors_origins=("https://app.test",)) as stage:
        stage.go.set()
        answer = await stage.post(headers={"origin": "https://app.test"}, stream=True)
        exposed = answer.headers["access-control-expose-headers"].lower().split(", ")
        assert {"stream-id", "location", "preference-applied"} <= set(exposed)


async def test_a_stream_has_so_many_viewers() -> None:
    async with staged(max_viewers=2) as stage:
        url = await stage.later()
        async with following(stage, url) as first:
            await first.until(holds(b"id: 1.1"))
            async with following(stage, url) as second:
                await second.until(holds(b"id: 1.1"))
                for headers in (EVENTS, STRICT):
                    refused = await stage.get(url, headers)
                    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_viewers")
                assert (await stage.get(url, JSON)).status_code == 200
            await _welcome(stage, url)
            stage.go.set()
            assert len(followed(await first.rest())) == 2
        assert stage.server.calls == 1


async def test_a_caller_has_so_many_viewers_of_all_its_streams() -> None:
    async with staged(max_viewers_per_caller=1) as stage:
        first, second = await stage.later(), await stage.later()
        async with following(stage, first) as reading:
            await reading.until(holds(b"id: 1.1"))
            assert (await stage.get(second, EVENTS)).status_code == 429
        await _welcome(stage, second)
        other = await stage.later(headers={"authorization": "Bearer another"})
        async with following(stage, first) as reading:
            await reading.until(holds(b"id: 1.1"))
            await _welcome(stage, other)
        stage.go.set()
        await idle(stage.proxy)


async def _welcome(stage: Stage, url: str) -> None:
    """Wait until a viewer is taken."""
    with anyio.fail_after(BOUND):
        while True:
            async with following(stage, url) as reading:
                if reading.response.status_code == 200:
                    await reading.until(holds(b"id: 1.1"))
                    return


async def test_readers_are_not_counted_for_longer_than_they_read() -> None:
    async with staged(max_viewers=1, max_viewers_per_caller=1) as stage:
        url = await finished(stage)
        for _ in range(5):
            assert (await stage.get(url, EVENTS)).status_code == 200
            assert (await stage.get(url, {**EVENTS, "last-event-id": "1.2"})).status_code == 204


@asynccontextmanager
async def draining() -> AsyncIterator[tuple[Stage, str, str]]:
    """A proxy that has been asked to stop, with a stream that runs and one that has ended."""
    go = anyio.Event()
    frames = (preview(0), completed())

    def handler(received: Received) -> Script:
        first: Script = (Send(head(200, (EVENT_STREAM,))), Send(frames[0]))
        rest: Script = (Send(frames[1]), Fin())
        return (*first, *rest) if b"short" in received.body else Held(first, go, rest)

    with anyio.fail_after(2 * BOUND):
        async with no_leaks(), serve(handler) as server:
            row = ProviderSettings(base_url=f"{server.url}/v1", credential="none")
            settings = Settings(port=0, providers={"sim": row})
            app = create_app(settings, environ={}, ssl_context=NO_TRUST)
            async with serving(app, settings) as proxy, anyio.create_task_group() as tasks:
                stage = Stage(server, proxy, go)
                ended = await stage.later(prompt="short")
                await stage.until(ended, "completed")
                running = await stage.later(prompt="long")
                tasks.start_soon(app.state.drain)
                with anyio.fail_after(BOUND):
                    while (await stage.post()).status_code != 503:  # noqa: ASYNC110
                        await anyio.sleep(0.01)
                yield stage, running, ended
                go.set()


async def test_while_draining_a_reader_is_told_to_come_back() -> None:
    async with draining() as (stage, running, ended):
        answer = await stage.get(running, EVENTS)
        assert answer.status_code == 200
        assert 2000 <= retry_of(answer.content) <= 8000
        assert followed(answer.content) == []
        assert answer.headers["cache-control"] == "no-store, no-transform"
        assert answer.headers["x-accel-buffering"] == "no"
        strict = await stage.get(running, STRICT)
        assert strict.status_code == 503
        assert strict.headers["retry-after"] == "2"
        assert strict.json()["error"]["code"] == "draining"
        assert (await stage.state(running))["status"] == "in_progress"
        assert len(followed((await stage.get(ended, EVENTS)).content)) == 1
        assert (await stage.get(ended, {**EVENTS, "last-event-id": "1.2"})).status_code == 204
        assert stage.server.calls == 2


class BrokenStore:
    """A store whose machine is gone."""

    async def create(self, record: object) -> None:
        raise StoreError("gone")

    async def append(self, id: str, entry: object) -> None:
        raise StoreError("gone")

    def spare(self, id: str, entry: object) -> bool:
        return False

    async def finish(self, id: str) -> None:
        raise StoreError("gone")

    async def load(self, id: str) -> Stored | Gone | None:
        raise StoreError("gone")

    async def forget(self, id: str) -> None:
        raise StoreError("gone")

    async def sweep(self) -> None:
        raise StoreError("gone")


async def test_a_store_that_fails_is_no_reason_to_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = STORES["memory"]

    @asynccontextmanager
    async def broken(url: str, max_bytes: int, linger: float) -> AsyncIterator[StoreBackend]:
        async with memory(url, max_bytes, linger) as kept:
            yield StoreBackend(BrokenStore(), kept.claims, kept.marks)

    monkeypatch.setitem(STORES, "memory", broken)
    async with staged() as stage:
        unknown = stage.url("/v3/streams/str_0")
        answer = await stage.get(unknown, EVENTS)
        assert answer.status_code == 200
        assert 2000 <= retry_of(answer.content) <= 8000
        assert followed(answer.content) == []
        for headers in (STRICT, JSON):
            refused = await stage.get(unknown, headers)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "2"
        url = await stage.later()
        async with following(stage, url) as reading:
            await reading.until(holds(b"id: 1.1"))
            stage.go.set()
            assert [event.id for event in followed(await reading.rest())] == ["1.1", "1.2"]
        assert stage.server.calls == 1


async def test_the_stream_as_one_object() -> None:
    async with staged() as stage:
        url = await stage.later()
        before = await stage.state(url)
        assert before.keys() == {
            *("id", "object", "status", "created_at", "stream_url", "status_url", "progress"),
            *("data", "error", "response"),
        }
        assert before["progress"] is None
        assert (before["status"], before["data"], before["error"]) == ("in_progress", [], None)
        assert before["object"] == "image.stream"
        assert isinstance(before["created_at"], int)
        assert abs(before["created_at"] - time.time()) < 30
        assert stage.url(str(before["stream_url"])) == url
        stage.go.set()
        after = await stage.until(url, "completed")
        assert after["data"] == [passed_on(completed())[0].json]
        assert (after["error"], after["response"]) == (None, None)
        answer = await stage.get(url, JSON)
        assert answer.headers["cache-control"] == "no-store"
        assert passed_on(completed())[0].data in answer.content
        assert stage.server.calls == 1


async def test_a_failed_stream_says_why() -> None:
    async with staged(rest=()) as stage:
        url = await stage.later()
        stage.go.set()
        state = await stage.until(url, "failed")
        error = state["error"]
        assert isinstance(error, dict)
        assert error["code"] == "missing_terminal_event"
        [event] = followed((await stage.get(url, EVENTS)).content)
        assert event.event == "error"
        assert event.json["error"] == error
        answer = await stage.get(url, {**EVENTS, "last-event-id": str(event.id)})
        assert answer.status_code == 204
        assert stage.server.calls == 1


async def test_a_head_is_asked_for_without_a_stream() -> None:
    async with staged() as stage:
        url = await stage.later()
        with anyio.fail_after(5):
            answer = await stage.proxy.client.head(url, headers=EVENTS)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        stage.go.set()
        await idle(stage.proxy)


async def test_delete_ends_it_for_everybody_at_once() -> None:
    async with staged() as stage:
        async with stage.proxy.client.stream(
            "POST",
            f"{stage.proxy.url}/v1/images/generations",
            json={"model": "sim/gpt-image", "prompt": "p", "stream": True},
        ) as posted:
            url = stage.url(posted.headers["location"])
            async with following(stage, url) as reading:
                await reading.until(holds(b"id: 1.1"))
                began = time.monotonic()
                ending = stage.url(posted.headers["cancel-location"])
                answer = await stage.proxy.client.delete(ending)
                assert answer.status_code == 200
                assert answer.json() == {"id": posted.headers["stream-id"], "object": "image.stream", **CANCELLED}
                await stage.server.wait_until(lambda server: server.disconnects, BOUND)
                assert stage.server.disconnects[0] - began <= CUT_SECONDS
                got = followed(await reading.rest())
                assert [event.event for event in got] == ["image_generation.partial_image", "error"]
                error = got[-1].json["error"]
                assert isinstance(error, dict)
                assert (error["code"], error["status"]) == ("cancelled", 409)
                assert got[-1].id == "1.2"
            last = events(await posted.aread())[-1]
            assert (last.event, last.json["error"]) == ("error", error)
        assert (await stage.until(url, "cancelled"))["error"] == error
        [event] = followed((await stage.get(url, EVENTS)).content)
        assert event.data == got[-1].data
        assert await stage.proxy.failures("cancelled") == 1
        assert stage.server.calls == 1


async def test_delete_after_the_end_forgets_it_and_says_so() -> None:
    async with staged() as stage:
        stage.go.set()
        ordered = await stage.post(headers=LATER, stream=True)
        url, ending = stage.url(ordered.headers["location"]), stage.url(ordered.json()["cancel_url"])
        await stage.until(url, "completed")
        picture = url.replace("?", "/images/0?")
        assert (await stage.get(picture)).status_code == 200
        answer = await stage.proxy.client.delete(ending)
        assert answer.json() == {
            "id": ordered.json()["id"],
            "object": "image.stream",
            "deleted": True,
            "cancelled": False,
        }
        for gone in (url, picture, ending):
            assert (await stage.get(gone, EVENTS)).status_code == 410
        assert (await stage.proxy.client.delete(ending)).status_code == 410
        assert (await stage.proxy.client.delete(stage.url("/v1/streams/str_0"))).status_code == 404


async def test_delete_ends_a_generation_without_a_stream() -> None:
    """Known by its key alone: the same request with `Prefer: respond-async` says where it is."""
    async with staged((), ()) as stage:
        got: list[int] = []

        async def ask() -> None:
            got.append((await stage.post(headers={"idempotency-key": "k"})).status_code)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await stage.server.wait_until(lambda server: server.calls, BOUND)
            answer = await stage.post(headers={"idempotency-key": "k", "prefer": "respond-async"})
            assert answer.status_code == 202
            assert (await stage.proxy.client.delete(stage.url(answer.json()["cancel_url"]))).status_code == 200
        assert got == [409]
        assert stage.server.calls == 1


async def test_a_json_answer_is_there_as_json_and_is_no_event() -> None:
    async with playing(lambda _: json_answer(200, IMAGE_BODY)) as stage:
        await stage.post(headers={"idempotency-key": "k"})
        answer = await stage.post(headers={"idempotency-key": "k", "prefer": "respond-async"})
        assert answer.status_code == 202
        assert answer.json()["status"] == "completed"
        url = stage.url(answer.headers["location"])
        state = await stage.state(url)
        assert isinstance(state["response"], dict)
        assert state["response"]["data"] == [{"b64_json": "aW1hZ2U="}]
        assert (await stage.get(url, EVENTS)).status_code == 204
        assert stage.server.calls == 1


async def test_a_number_that_no_image_has_is_not_found() -> None:
    async with staged() as stage:
        url = await finished(stage)
        path, _, query = url.partition("?")
        for index in ("1", "9" * 20, "9" * 5000):
            assert (await stage.get(f"{path}/images/{index}?{query}")).status_code == 404, index
