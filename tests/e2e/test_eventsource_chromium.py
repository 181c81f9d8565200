"""Chromium's own EventSource, its fetch() and its pictures, in a page of another origin than the proxy's."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
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
from tests.support.cutter import Asked, Cutter, Place, Then, cutting
from tests.support.provider import COMPLETED, PREVIEW, USAGE
from tests.support.proxy import BOUND, running_proxy
from tests.support.scenes import (
    Held,
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
PAGE: Final = (ROOT / "streamproxy" / "docs" / "streams.md").read_text("utf-8")
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
async def test_the_page_of_the_documentation(browser: Chromium, origin: str) -> None:
    """It shows what comes, survives a cut, and says a failure that is one."""
    (snippet,) = re.findall(r"^```js\n(.*?)^```$", PAGE, re.M | re.S)
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


TWELVE: Final = 12
SHOWN_MS: Final = 300.0
"""From an event to its picture on the screen, beyond what the browser itself needs for twelve such pictures on this
machine. Twelve events come at the same time, which is as bad as it gets. Half of them are fetched by their URLs."""


def noisy(width: int) -> str:
    """A real PNG of this width as base64 that is too large to go inline."""
    made = io.BytesIO()
    Image.effect_noise((width, 512), 90).save(made, "PNG")
    return base64.b64encode(made.getvalue()).decode()


def shown_as(stream: int, step: int) -> str:
    """The picture of a stream's step: small ones in even streams, in odd ones some that are references."""
    return noisy(400 + step) if stream % 2 else picture(32 + step)


def frames_of(stream: int) -> tuple[bytes, ...]:
    """Two previews, and the picture."""
    members: tuple[dict[str, object], ...] = ({"partial_image_index": 0}, {"partial_image_index": 1}, {"usage": USAGE})
    kinds = (PREVIEW, PREVIEW, COMPLETED)
    return tuple(
        event(kind, orjson.dumps({"type": kind, "b64_json": shown_as(stream, step), **more}))
        for step, (kind, more) in enumerate(zip(kinds, members, strict=True))
    )


@dataclass(frozen=True, slots=True)
class Dozen:
    """Twelve generations whose frames the test lets go, their ids, and the URL that follows them all."""

    held: list[Held]
    ids: list[str]
    url: str
    cutter: Cutter

    def let(self, count: int) -> None:
        """So many frames of each may go."""
        for held in self.held:
            held.let(count)

    def together(self) -> list[Asked]:
        """The requests that followed them."""
        return [one for one in self.cutter.follows() if one.target.startswith("/v3/streams?")]


@asynccontextmanager
async def twelve(origin: str, *places: Place) -> AsyncIterator[Dozen]:
    held = {f"picture {number}": Held(frames_of(number)) for number in range(TWELVE)}

    def play(received: Received) -> Script:
        return held[orjson.loads(received.body)["prompt"]](received)

    async with (
        serve(play) as upstream,
        running_proxy(upstream.url, cors_origins=(origin,), commit_after=0.05) as proxy,
        cutting(proxy.port, *places) as cutter,
    ):
        pairs: list[str] = []
        for prompt in held:
            answer = await proxy.client.post(
                f"{proxy.url}/v3/images/generations",
                json={"model": "sim/gpt-image", "prompt": prompt, "stream": True, "partial_images": 2},
                headers={"prefer": "respond-async"},
            )
            pairs.append(answer.json()["stream_url"].rpartition("/")[2].replace("?token=", ":"))
        url = "/v3/streams?" + "&".join(f"stream={pair}" for pair in pairs)
        yield Dozen([*held.values()], [pair.partition(":")[0] for pair in pairs], url, cutter)
        assert upstream.calls == TWELVE


@asynccontextmanager
async def pictures() -> AsyncIterator[Callable[[int], list[str]]]:
    """The pictures of a step as a page without any stream has them: inline, or by URLs of a server of their own."""
    files = {f"/{step}.png": base64.b64decode(shown_as(1, step)) for step in range(3)}

    def handle(received: Received) -> Script:
        file = files[received.target.partition("?")[0]]
        return (Send(head(200, (("Content-Type", "image/png"),), length=len(file))), Send(file))

    async with serve(handle) as server:
        inline = "data:image/png;base64,"
        yield lambda step: [
            f"{server.url}/{step}.png?{number}" if number % 2 else inline + shown_as(0, step)
            for number in range(TWELVE)
        ]


async def test_twelve_pictures_on_one_connection(browser: Chromium, origin: str) -> None:
    """A preview is on the screen soon after its event, and there is one connection for all of them.

    What another load on this machine delays, it delays for a bare page as well, just before.
    """
    bare: list[float] = []
    async with pictures() as sources, twelve(origin) as dozen, opened(browser, origin) as page:
        await page.run(f"together({orjson.dumps(dozen.cutter.url).decode()}, {orjson.dumps(dozen.url).decode()})")
        for step in range(3):
            took = await page.run(f"bare({orjson.dumps(sources(step)).decode()})")
            assert isinstance(took, float | int)
            bare.append(took)
            dozen.let(step + 1)
            await page.reports.until(lambda: len(page.reports.of("shown")) == TWELVE * (step + 1))  # noqa: B023
        dozen.let(4)
        await page.reports.stopped()
        shown = [report["ms"] for report in page.reports.of("shown")]
        rounds = [max(shown[at : at + TWELVE]) for at in range(0, len(shown), TWELVE)]
        assert max(rounds[step] - bare[step] for step in range(3)) < SHOWN_MS, (rounds, bare)
        widths = {(report["stream"], report["width"]) for report in page.reports.of("shown")}
        assert widths == {
            (id, (400 if number % 2 else 32) + step) for number, id in enumerate(dozen.ids) for step in range(3)
        }
        refs = {report["stream"] for report in page.reports.of("event") if report["ref"]}
        assert refs == set(dozen.ids[1::2])
        first, last = dozen.together()
        assert (first.status, last.status) == (200, 204)
        assert last.headers["last-event-id"] == "-".join(["1.3"] * TWELVE)
        assert {one.method for one in dozen.cutter.asked} == {"GET"}


@pytest.mark.usefixtures("soon")
async def test_a_cut_connection_resumes_all_twelve(browser: Chromium, origin: str) -> None:
    """Cut between frames and inside one: no event comes twice, and none is missing."""
    mark = b"event: image_generation.completed"
    async with (
        twelve(origin, Place(mark, Then.RST, 200), Place(mark, Then.FIN, 900)) as dozen,
        opened(browser, origin) as page,
    ):
        await page.run(f"together({orjson.dumps(dozen.cutter.url).decode()}, {orjson.dumps(dozen.url).decode()})")
        dozen.let(1)
        await page.reports.until(lambda: len(page.reports.of("event")) == TWELVE)
        dozen.let(4)
        await page.reports.stopped()
        events = [(report["stream"], report["type"]) for report in page.reports.of("event")]
        assert sorted(event for event in events if event[1] == COMPLETED) == sorted((id, COMPLETED) for id in dozen.ids)
        assert not dozen.cutter.places
        follows = dozen.together()
        assert [one.status for one in follows] == [200, 200, 200, 204]
        ids = [report["id"] for report in page.reports.of("event")]
        assert [one.headers.get("last-event-id") in (None, *ids) for one in follows] == [True] * 4
        assert follows[-1].headers["last-event-id"] == "-".join(["1.3"] * TWELVE)
