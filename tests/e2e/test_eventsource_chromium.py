"""Chromium's own EventSource, its fetch() and its pictures, in a page of another origin than the proxy's."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import orjson
import pytest
from PIL import Image

from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Send, event, head
from streamproxy.simulator.server import serve
from streamproxy.web import writing
from tests.support.chromium import Chromium, Page, chromium, needs_chromium
from tests.support.cutter import Place, Then
from tests.support.provider import COMPLETED, PREVIEW, USAGE
from tests.support.proxy import BOUND
from tests.support.scenes import (
    Reports,
    Scene,
    Stage,
    comes_back_after_overload,
    is_spared_a_stale_preview,
    staged,
    survives_cuts,
    tells_a_failure_from_a_cut,
)

pytestmark = [pytest.mark.anyio, needs_chromium]

ROOT: Final = Path(__file__).parents[2]
README: Final = (ROOT / "README.md").read_text("utf-8")
KEY: Final = "only-the-order-is-sent-with-this-key"
KEY_HASH: Final = f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}"
ADDRESS: Final = "http://127.0.0.1:8080"
STATIC: Final = Path(__file__).parent / "browser"
KINDS: Final = {".html": "text/html; charset=utf-8", ".mjs": "text/javascript; charset=utf-8"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as running:
        yield running


@pytest.fixture
async def origin() -> AsyncIterator[str]:
    """Where the page comes from; everything that it asks for there is a file of `browser`."""

    def static(received: Received) -> Script:
        path = STATIC / received.target.strip("/")
        found = path.parent == STATIC and path.is_file()
        body = path.read_bytes() if found else b""
        kind = ("Content-Type", KINDS.get(path.suffix, "text/plain"))
        return (Send(head(200 if found else 404, (kind,), length=len(body))), Send(body))

    async with serve(static) as server:
        yield server.url


@asynccontextmanager
async def opened(browser: Chromium, origin: str) -> AsyncIterator[Page]:
    """A tab with the page, whose script has run."""
    async with browser.page(f"{origin}/page.html") as page:
        await page.reports.until(lambda: page.reports.of("ready"))
        yield page


@asynccontextmanager
async def following_in(browser: Chromium, origin: str, url: str) -> AsyncIterator[Reports]:
    async with opened(browser, origin) as page:
        await page.run(f"followed({orjson.dumps(url).decode()})")
        yield page.reports


@pytest.mark.soak
async def test_cuts_with_the_real_retry(browser: Chromium, origin: str) -> None:
    """Nothing is shortened here: the browser comes back when the proxy says so, and not before."""
    await survives_cuts(partial(following_in, browser, origin), (origin,))


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers are told to come back sooner: what they are told is what they do, whichever number it is."""
    monkeypatch.setattr(writing, "RETRY", (200, 400))
    monkeypatch.setattr(writing, "RETRY_OVERLOADED", (300, 500))


@pytest.mark.usefixtures("soon")
async def test_overload_failures_and_stale_previews(browser: Chromium, origin: str) -> None:
    """Side by side: each has a tab, a proxy and a stream of its own."""
    scenes: tuple[Scene, ...] = (comes_back_after_overload, tells_a_failure_from_a_cut, is_spared_a_stale_preview)
    with anyio.fail_after(2 * BOUND):
        async with anyio.create_task_group() as tasks:
            for scene in scenes:
                tasks.start_soon(scene, partial(following_in, browser, origin), (origin,))


def picture(width: int) -> str:
    """A real PNG of this width, as base64."""
    made = io.BytesIO()
    Image.new("RGB", (width, 16), (20, 40, 160)).save(made, "PNG")
    return base64.b64encode(made.getvalue()).decode()


PICTURES: Final = (
    event(PREVIEW, orjson.dumps({"type": PREVIEW, "b64_json": picture(32), "partial_image_index": 0})),
    event(PREVIEW, orjson.dumps({"type": PREVIEW, "b64_json": picture(48), "partial_image_index": 1})),
    event(COMPLETED, orjson.dumps({"type": COMPLETED, "b64_json": picture(64), "usage": USAGE})),
)


@pytest.mark.usefixtures("soon")
async def test_ordered_by_a_page_and_shown_by_reference(browser: Chromium, origin: str) -> None:
    """fetch() with respond-async, EventSource on what it says, and each picture by its URL in an <img>."""
    async with (
        staged(frames=(*PICTURES[:1], *PICTURES[2:]), origins=(origin,), caller_keys=(KEY_HASH,)) as stage,
        opened(browser, origin) as page,
    ):
        await page.run(f"ordered('{stage.cutter.url}', '&payload=ref', '{KEY}')")
        reports = page.reports
        assert reports.of("ordered") == [{"kind": "ordered", "status": 202, "same": True}]
        for number, width in ((1, 32), (2, 64)):
            stage.held.let(number)
            await reports.until(lambda: len(reports.of("event")) == number)  # noqa: B023
            last = reports.of("event")[-1]
            assert last["size"] == 0
            assert await page.run(f"shown('{stage.cutter.url}{last['image_url']}')") == [width, 16]
        await reports.stopped()
        await stage.quiet()
        assert reports.events() == [(PREVIEW, "1.1"), (COMPLETED, "1.2")]
        assert stage.cutter.follows()[-1].status == 204
        pictures = [one for one in stage.cutter.asked if "/images/0" in one.target]
        assert [one.status for one in pictures] == [200, 200]
        with_key = [one.method for one in stage.cutter.asked if "authorization" in one.headers]
        assert with_key == ["POST"]


async def test_the_streamed_post_shows_previews_as_they_come(browser: Chromium, origin: str) -> None:
    async with staged(frames=PICTURES, origins=(origin,)) as stage, opened(browser, origin) as page:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(page.run, f"posted('{stage.cutter.url}')")
            for number, width in ((1, 32), (2, 48), (3, 64)):
                stage.held.let(number)
                await page.reports.until(lambda: len(page.reports.of("event")) == number)  # noqa: B023
                assert page.reports.of("event")[-1]["size"] == [width, 16]
                assert not page.reports.of("end") or number == 3
            await page.reports.until(lambda: page.reports.of("end"))
        (opening,) = page.reports.of("open")
        assert opening["location"].startswith(f"/v3/streams/{opening['stream']}?token=")
        _without_ids(stage)


def _without_ids(stage: Stage) -> None:
    """What a POST is answered with holds neither ids nor a retry."""
    (post,) = [one for one in stage.cutter.asked if one.method == "POST"]
    answer = stage.cutter.answers[post.connection]
    assert not [line for line in answer.split(b"\n") if line.startswith((b"id:", b"retry:"))]


@pytest.mark.usefixtures("soon")
async def test_the_page_of_the_readme(browser: Chromium, origin: str) -> None:
    """It shows what comes, survives a cut, and says a failure that is one."""
    (snippet,) = [block for block in re.findall(r"^```js\n(.*?)^```$", README, re.M | re.S) if "EventSource" in block]
    place = Place(b"id: 1.1\n\n", Then.FIN)
    async with (
        staged(place, frames=PICTURES[:2], cut_short=True, origins=(origin,)) as stage,
        opened(browser, origin) as page,
    ):
        assert snippet.count(ADDRESS) == 1
        await page.run(f"observed(); (async () => {{ {snippet.replace(ADDRESS, stage.cutter.url)} }})()")
        stage.held.let(1)
        await stage.cutter.until(lambda: len(stage.cutter.follows()) == 2)
        stage.held.let(2)
        await page.reports.until(lambda: len(page.reports.of("shown")) == 2)
        assert page.reports.of("told") == []
        stage.held.let(3)
        await stage.cutter.until(lambda: stage.cutter.follows()[-1].status == 204)
        await stage.quiet()
        assert page.reports.of("shown") == [{"kind": "shown", "width": 32}, {"kind": "shown", "width": 48}]
        assert len(page.reports.of("told")) == 1


@pytest.mark.usefixtures("soon")
async def test_a_page_that_may_not_follow_asks_once(browser: Chromium, origin: str) -> None:
    """Its origin is refused, and the browser does not try again."""
    async with (
        staged(frames=PICTURES, origins=("https://app.example.com",)) as stage,
        following_in(browser, origin, await stage.asked()) as reports,
    ):
        await reports.stopped()
        await stage.quiet()
        assert [one.status for one in stage.cutter.follows()] == [403]
        assert reports.of("open") == []
