"""GET streams/{id} as events: the layout, where a reader begins, and when it need not come back."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import httpx
import pytest
from httpx_sse import aconnect_sse
from openai import AsyncOpenAI, AsyncStream
from starlette.applications import Starlette
from starlette.routing import Mount

from streamproxy.app import create_app
from streamproxy.core.cursor import Cursor, parse_cursor
from streamproxy.settings import ProviderSettings, Settings
from streamproxy.simulator.script import sse
from streamproxy.simulator.server import serve
from streamproxy.web import streams
from streamproxy.web.responses import Reader
from streamproxy.web.writing import EventStream, come_back
from tests.support.provider import completed, data_of, passed_on, preview
from tests.support.proxy import NO_TRUST, serving
from tests.support.streams import EVENTS, LATER, Stage, followed, following, holds, retry_of, staged

pytestmark = pytest.mark.anyio

LATE = "1.2"
"""The id of the last preview before the image."""

MANY = 40


def numbered(count: int) -> tuple[bytes, ...]:
    return tuple(preview(number) for number in range(count))


async def produced(stage: Stage, url: str, previews: int) -> None:
    """Wait until the provider's first `previews` frames are in the stream."""
    async with following(stage, url) as reading:
        await reading.until(holds(b'"partial_image_index":%d' % (previews - 1)))


async def finished(stage: Stage) -> str:
    """A stream whose image is there, all previews sent before."""
    stage.go.set()
    url = await stage.later()
    await stage.until(url, "completed")
    return url


async def test_the_bytes_of_a_stream() -> None:
    async with staged(numbered(1)) as stage:
        url = await stage.later()
        async with following(stage, url) as reading:
            await reading.until(holds(b"id: 1.1\n\n"))
            stage.go.set()
            body = await reading.rest()
            head = reading.response.headers
        words = b"retry: %d\n:\n" % retry_of(body)
        first = b"data: " + data_of(preview(0)) + b"\nevent: image_generation.partial_image\nid: 1.1\n\n"
        last = b"data: " + passed_on(completed())[0].data + b"\nevent: image_generation.completed\nid: 1.2\n\n"
        assert body == words + first + last
        assert head["content-type"] == "text/event-stream; charset=utf-8"
        assert head["cache-control"] == "no-store, no-transform"
        assert head["x-accel-buffering"] == "no"
        assert 1500 <= retry_of(body) <= 4000


async def test_the_opening_words_do_not_wait_for_an_event() -> None:
    async with staged((), (completed(),)) as stage:
        url = await stage.later()
        async with following(stage, url) as reading:
            await reading.until(holds(b":\n"))
            assert followed(reading.body) == []
            stage.go.set()
            assert len(followed(await reading.rest())) == 1


async def test_silence_is_filled_with_comment_lines() -> None:
    async with staged(heartbeat=1) as stage:
        url = await stage.later()
        async with following(stage, url) as reading:
            await reading.until(holds(b"\n\n"))
            before = len(reading.body)
            await reading.until(lambda body: len(body) > before)
            assert reading.body[before:] == b":\n"
            stage.go.set()
            assert len(followed(await reading.rest())) == 2


async def test_a_late_reader_gets_preview_and_image() -> None:
    async with staged(numbered(3)) as stage:
        url = await stage.later()
        await produced(stage, url, 3)
        async with following(stage, url) as reading:
            await reading.until(holds(b"\n\n"))
            stage.go.set()
            got = followed(await reading.rest())
        assert [(event.id, event.event.rpartition(".")[2]) for event in got] == [
            ("1.3", "partial_image"),
            ("1.4", "completed"),
        ]
        assert stage.server.calls == 1


async def test_who_comes_back_gets_what_follows() -> None:
    async with staged(numbered(2)) as stage:
        url = await stage.later()
        async with following(stage, url) as reading:
            await reading.until(holds(b"id: 1.2\n\n"))
        stage.go.set()
        answer = await stage.get(url, {**EVENTS, "last-event-id": LATE})
        assert [event.id for event in followed(answer.content)] == ["1.3"]
        assert stage.server.calls == 1


@pytest.mark.parametrize(
    ("header", "query", "ids"),
    [
        ("1.3", "1.2", []),
        ("1.2", "1.3", ["1.3"]),
        (None, "1.2", ["1.3"]),
        (None, "1.3", []),
        ("", "1.3", []),
        ("junk", "1.3", ["1.3"]),
    ],
)
async def test_the_header_counts_before_the_query(header: str | None, query: str, ids: list[str]) -> None:
    async with staged(numbered(2)) as stage:
        url = await finished(stage)
        given = {} if header is None else {"last-event-id": header}
        answer = await stage.get(f"{url}&last_event_id={query}", {**EVENTS, **given})
        assert answer.status_code == (200 if ids else 204)
        if ids:
            assert [event.id for event in followed(answer.content)] == ids


@pytest.mark.parametrize("cursor", ["1.3", "01.3", "1.0000000003"])
async def test_a_reader_at_the_end_is_told_to_stop(cursor: str) -> None:
    async with staged(numbered(2)) as stage:
        url = await finished(stage)
        answer = await stage.get(url, {**EVENTS, "last-event-id": cursor})
        assert (answer.status_code, answer.content) == (204, b"")
        assert "content-length" not in answer.headers
        assert stage.server.calls == 1


async def test_finished_and_behind_is_the_image_and_then_the_end() -> None:
    async with staged(numbered(3)) as stage:
        url = await finished(stage)
        for cursor in ("1.1", "1.2", "1.3", "1.0"):
            answer = await stage.get(url, {**EVENTS, "last-event-id": cursor})
            assert [event.id for event in followed(answer.content)] == ["1.4"], cursor
        [event] = followed((await stage.get(url, EVENTS)).content)
        assert event.data == passed_on(completed())[0].data
        assert stage.server.calls == 1


@pytest.mark.parametrize(
    "cursor", ["2.1", "0.1", "1.99", "9999999999.9999999999", "junk", "1", "1.1.1", "-1.1", "1.12345678901", "ä"]
)
async def test_an_id_that_this_stream_never_gave_begins_anew(cursor: str) -> None:
    async with staged(numbered(2)) as stage:
        url = await finished(stage)
        answer = await stage.get(url, {**EVENTS, "last-event-id": cursor.encode("latin-1")})  # type: ignore[dict-item]
        assert [event.id for event in followed(answer.content)] == ["1.3"]
        for name in ("last_event_id", "lastEventId"):
            query = str(httpx.URL(url).copy_merge_params({name: cursor, "from": "now"}))
            assert [event.id for event in followed((await stage.get(query, EVENTS)).content)] == ["1.3"]


@pytest.mark.parametrize(("begin", "ids"), [("latest", ["1.2", "1.3"]), ("start", ["1.2", "1.3"]), ("now", ["1.3"])])
async def test_where_a_reader_without_a_cursor_begins(begin: str, ids: list[str]) -> None:
    async with staged(numbered(2)) as stage:
        url = await stage.later()
        await produced(stage, url, 2)
        async with following(stage, f"{url}&from={begin}") as reading:
            await reading.until(holds(b"\n\n" if ids[:-1] else b":\n"))
            assert [event.id for event in followed(reading.body)] == ids[:-1]
            stage.go.set()
            assert [event.id for event in followed(await reading.rest())] == ids


async def test_from_now_on_a_finished_stream_is_nothing() -> None:
    async with staged() as stage:
        url = await finished(stage)
        assert (await stage.get(f"{url}&from=now", EVENTS)).status_code == 204


@pytest.mark.parametrize("query", ["from=then", "payload=both", "preempt=2", "from=", "payload"])
async def test_a_parameter_that_cannot_be_honoured_is_refused(query: str) -> None:
    async with staged() as stage:
        url = await finished(stage)
        answer = await stage.get(f"{url}&{query}", EVENTS)
        assert answer.status_code == 422
        assert answer.json()["error"]["param"] == query.partition("=")[0]


async def test_readers_of_both_surfaces_get_the_same_data() -> None:
    """The caller who asked sees every preview; a follower misses none either while it keeps up."""
    async with staged(numbered(1), (preview(1), completed())) as stage:
        async with stage.proxy.client.stream(
            "POST",
            f"{stage.proxy.url}/v1/images/generations",
            json={"model": "sim/gpt-image", "prompt": "p", "stream": True},
        ) as posted:
            url = stage.url(posted.headers["location"])
            async with following(stage, url) as reading:
                await reading.until(holds(b"id: 1.1\n\n"))
                stage.go.set()
                got = followed(await reading.rest())
            body = await posted.aread()
        assert b"id:" not in body
        assert b"retry:" not in body
        assert got[-1].data == passed_on(completed())[0].data
        assert got[-1].id == "1.3"
        assert got[-1].data in body
        assert stage.server.calls == 1


async def test_many_readers_are_one_request_upstream() -> None:
    async with staged(numbered(1)) as stage:
        url = await stage.later()
        ids: list[list[str | None]] = []

        async def follow() -> None:
            async with following(stage, url) as reading:
                await reading.until(holds(b"id: 1.1\n\n"))
                ready.append(1)
                if len(ready) == MANY:
                    stage.go.set()
                ids.append([event.id for event in followed(await reading.rest())])

        ready: list[int] = []
        async with anyio.create_task_group() as tasks:
            for _ in range(MANY):
                tasks.start_soon(follow)
        assert ids == [["1.1", "1.2"]] * MANY
        assert stage.server.calls == 1


async def test_every_id_is_digits_and_one_dot() -> None:
    async with staged(numbered(3), (preview(3), completed())) as stage:
        url = await stage.later()
        async with following(stage, url) as reading:
            await reading.until(holds(b"\n\n"))
            stage.go.set()
            got = followed(await reading.rest())
        cursors = [parse_cursor(event.id) for event in got]
        assert all(isinstance(cursor, Cursor) for cursor in cursors)
        assert [event.id for event in got] == sorted({event.id or "" for event in got}, key=_seq)


def _seq(id: str) -> int:
    found = re.fullmatch(r"1\.([0-9]{1,10})", id)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("name", ["last_event_id", "lastEventId"])
async def test_a_polyfill_that_resumes_by_its_url_is_told_to_stop(name: str) -> None:
    """event-source-polyfill and reconnecting-eventsource say lastEventId."""
    async with staged(numbered(1)) as stage:
        url = await finished(stage)
        assert (await stage.get(f"{url}&{name}=1.2", EVENTS)).status_code == 204
        assert [event.id for event in followed((await stage.get(f"{url}&{name}=1.1", EVENTS)).content)] == ["1.2"]


async def test_who_accepts_anything_gets_events() -> None:
    """curl -N, requests with sseclient-py, and fetch with a parser."""
    async with staged(numbered(1)) as stage:
        url = await finished(stage)
        assert [event.id for event in followed((await stage.get(url, {"accept": "*/*"})).content)] == ["1.2"]


@pytest.mark.parametrize("state", ["running", "draining"])
async def test_every_event_that_a_simple_decoder_sees_has_data(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """openai-python's Stream and httpx-sse parse the data of each block, also of one that has none."""
    async with staged(numbered(1)) as stage, AsyncOpenAI(api_key="k", base_url=f"{stage.proxy.url}/v1") as client:
        url = await stage.later()
        stage.go.set()
        await stage.until(url, "completed")
        if state == "draining":
            monkeypatch.setattr(
                streams, "_events", lambda _, wired, __: EventStream(come_back(), {}, wired.cutoff, Reader())
            )
        expected = [] if state == "draining" else ["image_generation.completed"]
        async with aconnect_sse(stage.proxy.client, "GET", url) as source:
            assert [event.json()["type"] async for event in source.aiter_sse()] == expected
        got = await client.get(
            url.removeprefix(f"{stage.proxy.url}/v1"),
            cast_to=object,
            options={"headers": {"accept": "text/event-stream"}},
            stream=True,
            stream_cls=AsyncStream[dict[str, object]],
        )
        assert [event["type"] async for event in got] == expected


async def test_stream_urls_begin_with_public_url() -> None:
    async with staged(numbered(1), public_url="https://images.test/sub/") as stage:
        stage.go.set()
        forwarded = {**LATER, "x-forwarded-prefix": "/evil", "x-forwarded-host": "evil.test"}
        answer = await stage.post(headers=forwarded, stream=True)
        said = answer.json()
        for place in (answer.headers["location"], said["stream_url"], said["status_url"], said["cancel_url"]):
            assert place.startswith(f"https://images.test/sub/v1/streams/{said['id']}")
        url = said["stream_url"].replace("https://images.test/sub", stage.proxy.url)
        await stage.until(url, "completed")
        state = await stage.state(f"{url}&payload=ref")
        assert str(state["data"]).count("https://images.test/sub/v1/streams/") == 1
        assert str(state["stream_url"]) == said["stream_url"]


async def test_stream_urls_begin_with_the_mount_path() -> None:
    async with serve(lambda _: sse((completed(),))) as server:
        row = ProviderSettings(base_url=f"{server.url}/v1", credential="none")
        settings = Settings(port=0, providers={"sim": row})
        app = create_app(settings, environ={}, ssl_context=NO_TRUST)

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            async with app.router.lifespan_context(app):
                yield

        outer = Starlette(routes=[Mount("/images/api", app)], lifespan=lifespan)
        async with serving(outer, settings) as proxy:
            url = f"{proxy.url}/images/api/v3/images/generations"
            answer = await proxy.client.post(url, json={"model": "sim/gpt-image", "prompt": "p"}, headers=LATER)
            assert answer.headers["location"].startswith("/images/api/v3/streams/str_")
            body = (await proxy.client.get(proxy.url + answer.headers["location"])).content
            assert [event.event for event in followed(body)] == ["image_generation.completed"]
