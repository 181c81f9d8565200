"""httpx-sse follows a stream by GET, and openai-python reads a retained stream as any other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio
import httpx
import pytest
from httpx_sse import ServerSentEvent, aconnect_sse
from openai import AsyncOpenAI

from streamproxy.web import writing
from tests.support.provider import COMPLETED, PREVIEW, completed, preview
from tests.support.proxy import BOUND, NO_TRUST, PROMPT
from tests.support.scenes import (
    CLOSED,
    Reports,
    Scene,
    comes_back_after_overload,
    is_spared_a_stale_preview,
    staged,
    survives_cuts,
    tells_a_failure_from_a_cut,
)

pytestmark = pytest.mark.anyio

TYPES: Final = (PREVIEW, COMPLETED)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers are told to come back sooner: what they are told is what they do, whichever number it is."""
    monkeypatch.setattr(writing, "RETRY", (200, 400))
    monkeypatch.setattr(writing, "RETRY_OVERLOADED", (300, 500))


class Follower:
    """A loop as people write it round httpx-sse: it knows the last id and when to come back, and 204 ends it."""

    def __init__(self, url: str, reports: Reports) -> None:
        self._url = url
        self._reports = reports
        self._id = ""
        self._retry = 3.0

    async def run(self) -> None:
        async with httpx.AsyncClient(timeout=BOUND, trust_env=False, verify=NO_TRUST) as client:
            while await self._once(client):
                self._reports.add({"kind": "lost", "state": 0})
                await anyio.sleep(self._retry)
        self._reports.add({"kind": "lost", "state": CLOSED})

    async def _once(self, client: httpx.AsyncClient) -> bool:
        """One connection; whether to come back."""
        headers = {"last-event-id": self._id} if self._id else {}
        try:
            async with aconnect_sse(client, "GET", self._url, headers=headers) as source:
                if source.response.status_code != 200:
                    return False
                self._reports.add({"kind": "open"})
                async for event in source.aiter_sse():
                    self._take(event)
        except httpx.TransportError:
            pass  # the connection was cut
        return True

    def _take(self, event: ServerSentEvent) -> None:
        if event.retry is not None:
            self._retry = event.retry / 1000
        self._id = event.id or self._id
        if event.event in TYPES:
            data = event.json()
            index, size = data.get("partial_image_index"), len(data["b64_json"])
            self._reports.add({"kind": "event", "type": event.event, "id": event.id, "index": index, "size": size})
        elif event.event == "error":
            self._reports.add({"kind": "failed", "code": event.json()["error"]["code"], "id": event.id})


@asynccontextmanager
async def following_with_httpx(url: str) -> AsyncIterator[Reports]:
    reports = Reports()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Follower(url, reports).run)
        yield reports
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    "scene", [survives_cuts, comes_back_after_overload, tells_a_failure_from_a_cut, is_spared_a_stale_preview]
)
async def test_httpx_sse(scene: Scene) -> None:
    await scene(following_with_httpx, ())


async def test_a_stream_of_the_sdk_is_followed_by_somebody_else() -> None:
    """openai-python reads its own answer, without ids or a retry; its head says where the same stream is."""
    async with (
        staged(frames=(preview(0), completed())) as stage,
        AsyncOpenAI(api_key="none", base_url=f"{stage.cutter.url}/v1", max_retries=0) as client,
    ):
        stage.held.let(1)
        with anyio.fail_after(BOUND):
            raw = await client.images.with_raw_response.generate(
                model="sim/gpt-image", prompt=PROMPT, stream=True, partial_images=1
            )
            events = aiter(raw.parse())
            assert (await anext(events)).type == PREVIEW
            async with following_with_httpx(stage.cutter.url + raw.headers["location"]) as reports:
                await reports.until(lambda: reports.events() == [(PREVIEW, "1.1")])
                stage.held.let(2)
                assert [event.type async for event in events] == [COMPLETED]
                await reports.stopped()
                assert reports.events() == [(PREVIEW, "1.1"), (COMPLETED, "1.2")]
        assert f"/v1/streams/{raw.headers['stream-id']}?token=" in raw.headers["location"]
        (post,) = [one for one in stage.cutter.asked if one.method == "POST"]
        answer = bytes(stage.cutter.answers[post.connection])
        assert not [line for line in answer.split(b"\n") if line.startswith((b"id:", b"retry:"))]
