"""POST with `Prefer: respond-async`, and the headers of a streamed POST about its stream."""

from __future__ import annotations

import re
import time

import anyio
import orjson
import pytest

from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, error_answer, json_answer, sse
from tests.support.caller import calling
from tests.support.faults import IMAGE_BODY, Held
from tests.support.provider import completed, data_of, passed_on, preview
from tests.support.proxy import PROMPT, events
from tests.support.streams import (
    EVENTS,
    LATER,
    Stage,
    chunks_until,
    followed,
    following,
    form,
    generation_with,
    holds,
    playing,
    staged,
)

pytestmark = pytest.mark.anyio

URL = re.compile(r"/(v[13])/streams/(str_[0-9a-f]{32})\?token=[A-Za-z0-9_.-]+")
IMAGE = "data:image/png;base64,aW1hZ2U="


def both(received: Received) -> Script:
    """Streams to those who ask, and answers the others with JSON."""
    asked = b'"stream":true' in received.body or b'name="stream"' in received.body
    return sse((preview(0), completed())) if asked else json_answer(200, IMAGE_BODY)


def body_of(kind: str, model: str, stream: bool) -> tuple[str, bytes, str]:
    """Path, body and content type of a request for one image."""
    members: dict[str, object] = {"model": model, "prompt": PROMPT, **({"stream": True} if stream else {})}
    if kind == "multipart":
        texts = {"model": model, "prompt": PROMPT, **({"stream": "true"} if stream else {})}
        parts = tuple((name, value.encode()) for name, value in texts.items())
        return "edits", *form("b", parts, b"\x89PNG")
    if kind == "edit":
        members["images"] = [{"image_url": IMAGE}]
    path = "generations" if kind == "generation" else "edits"
    return path, orjson.dumps(members), "application/json"


@pytest.mark.parametrize("model", ["sim/gpt-image", "sim/plain"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("kind", ["generation", "edit", "multipart"])
@pytest.mark.parametrize("version", ["v1", "v3"])
async def test_every_image_request_can_be_answered_later(version: str, kind: str, stream: bool, model: str) -> None:
    path, body, content_type = body_of(kind, model, stream)
    async with playing(both, token_seconds=100) as stage:
        answer = await stage.proxy.client.post(
            f"{stage.proxy.url}/{version}/images/{path}", content=body, headers={**LATER, "content-type": content_type}
        )
        assert answer.status_code == 202, answer.text
        said = answer.json()
        assert said.keys() == {"id", "object", "status", "stream_url", "status_url", "cancel_url", "expires_at"}
        assert said["object"] == "image.stream"
        assert said["status"] in ("in_progress", "completed")
        assert abs(said["expires_at"] - time.time() - 100) < 10
        found = URL.fullmatch(said["stream_url"])
        assert found is not None
        assert (found[1], found[2]) == (version, said["id"])
        assert answer.headers["location"] == said["stream_url"]
        assert answer.headers["cancel-location"] == said["cancel_url"]
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert (await stage.get(stage.url(said["status_url"]), EVENTS)).json()["id"] == said["id"]
        assert answer.headers["preference-applied"] == "respond-async"
        assert answer.headers["cache-control"] == "no-store"
        url = stage.url(said["stream_url"])
        await stage.until(url, "completed")
        [event] = followed((await stage.get(url, EVENTS)).content)
        family = "generation" if kind == "generation" else "edit"
        assert event.event == event.json["type"] == f"image_{family}.completed"
        streamed = stream and model == "sim/gpt-image"
        assert event.json["b64_json"] == ("B" * 64 if streamed else "aW1hZ2U=")
        assert stage.server.calls == 1


async def test_the_answer_does_not_wait_for_the_image() -> None:
    async with staged() as stage:
        url = await stage.later()
        state = await stage.state(url)
        assert state["status"] == "in_progress"
        assert state["data"] == []
        async with following(stage, url) as reading:
            await reading.until(holds(b"\n\n"))
            stage.go.set()
            got = followed(await reading.rest())
        assert [event.data for event in got] == [sent.data for sent in passed_on(preview(0), completed())]
        assert (await stage.state(url))["status"] == "completed"
        assert stage.server.calls == 1


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (error_answer(400, "No.", code="moderation_blocked"), 400),
        (error_answer(429, "Slow down.", headers=(("Retry-After", "7"),)), 429),
        (error_answer(500, "Broken."), 502),
    ],
)
async def test_a_fast_refusal_keeps_its_status(script: Script, status: int) -> None:
    async with playing(lambda _: script) as stage:
        answer = await stage.post(headers=LATER, stream=True)
        assert answer.status_code == status
        assert "location" not in answer.headers
        assert answer.headers.get("retry-after") == ("7" if status == 429 else None)
        assert stage.server.calls == 1


@pytest.mark.parametrize(("members", "status"), [({"model": "nobody/model"}, 404), ({"n": 0}, 422), ({"n": "x"}, 422)])
async def test_what_needs_no_provider_is_refused_at_once(members: dict[str, object], status: int) -> None:
    async with playing(both) as stage:
        assert (await stage.post(headers=LATER, **members)).status_code == status
        assert stage.server.calls == 0


async def test_a_slow_refusal_is_the_streams_end() -> None:
    go = anyio.Event()
    async with playing(lambda _: Held((), go, error_answer(400, "No.", code="bad")), commit_after=0.05) as stage:
        url = await stage.later()
        go.set()
        state = await stage.until(url, "failed")
        error = state["error"]
        assert isinstance(error, dict)
        assert (error["code"], error["status"], error["message"]) == ("bad", 400, "No.")
        [event] = followed((await stage.get(url, EVENTS)).content)
        assert event.event == "error"
        assert event.json["error"] == error
        assert stage.server.calls == 1


async def test_other_preferences_change_nothing() -> None:
    async with playing(both) as stage:
        answer = await stage.post(headers={"prefer": "wait=10, on-disconnect=perhaps, handling=lenient"})
        assert answer.status_code == 200
        assert "preference-applied" not in answer.headers
        assert stage.server.calls == 1


async def test_a_streamed_post_says_which_stream_it_began() -> None:
    async with playing(both) as stage:
        answer = await stage.post(stream=True)
        assert events(answer.content) == passed_on(preview(0), completed())
        found = URL.fullmatch(answer.headers["location"])
        assert found is not None
        assert found[2] == answer.headers["stream-id"]
        again = followed((await stage.get(stage.url(answer.headers["location"]), EVENTS)).content)
        assert [event.data for event in again] == [passed_on(completed())[0].data]
        assert "stream-id" not in (await stage.post()).headers
        assert stage.server.calls == 2


@pytest.mark.parametrize("how", ["fin", "reset"])
@pytest.mark.parametrize("grace", [20, 0], ids=["grace", "finish"])
async def test_nothing_is_missed_when_the_post_is_cut(how: str, grace: int) -> None:
    headers = {} if grace else {"prefer": "on-disconnect=finish"}
    async with staged(disconnect_grace=grace) as stage:
        async with calling(stage.proxy.port) as caller:
            await caller.send(generation_with(headers, stream=True))
            assert await caller.head() == 200
            await chunks_until(caller, data_of(preview(0)))
            location = caller.headers["location"]
            caller.close() if how == "fin" else caller.reset()
        await _left(stage)
        async with following(stage, stage.url(location)) as reading:
            await reading.until(holds(b"\n\n"))
            stage.go.set()
            got = followed(await reading.rest())
        assert [event.data for event in got] == [sent.data for sent in passed_on(preview(0), completed())]
        assert [event.id for event in got] == ["1.1", "1.2"]
        assert stage.server.calls == 1


async def _left(stage: Stage) -> None:
    with anyio.fail_after(10):
        while not await stage.proxy.failures("client_gone"):  # noqa: ASYNC110
            await anyio.sleep(0.01)
