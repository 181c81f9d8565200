"""client.js, element.js and react.js in a real Chromium.

What a page shows is compared, pixel by pixel, with what the simulator draws of the same words, and upstream calls are
counted. Pages are of another origin than the proxy.
"""

from __future__ import annotations

import base64
import hashlib
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
import orjson
import pytest

from streamproxy import simulator
from streamproxy.simulator import Server, pictures
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Send, event, head
from streamproxy.simulator.server import serve
from streamproxy.web import writing
from tests.e2e.node.runner import HERE as NODE
from tests.support import scenes
from tests.support.chromium import Chromium, Page, chromium, needs_chromium
from tests.support.cutter import Cutter, Place, Then, cutting
from tests.support.provider import COMPLETED, PREVIEW, USAGE
from tests.support.proxy import BOUND, PROMPT, Proxy, running_proxy

pytestmark = [pytest.mark.anyio, needs_chromium]

STATIC: Final = Path(__file__).parent / "browser"
KINDS: Final = {".html": "text/html; charset=utf-8", ".mjs": "text/javascript; charset=utf-8"}
ROOT: Final = Path(__file__).parents[2]
README: Final = (ROOT / "README.md").read_text("utf-8")
FRONTENDS: Final = (ROOT / "streamproxy" / "docs" / "frontends.md").read_text("utf-8")
ADDRESS: Final = "http://127.0.0.1:8080"
STREAM: Final = f"{ADDRESS}/v1/streams/..."
PREVIEWED: Final = b"id: 1.1\n\n"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as running:
        yield running


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers are told to come back sooner."""
    monkeypatch.setattr(writing, "RETRY", (200, 400))


def drawn(prompt: str = PROMPT, size: int = 1024) -> str:
    """The hash of the pixels that the simulator draws."""
    image = pictures.draw(prompt, size, size).image.convert("RGBA")
    return hashlib.sha256(image.tobytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class Stage:
    """The simulator, the page that is open, and what cuts its connections."""

    upstream: Server
    page: Page
    cutter: Cutter

    async def run(self, expression: str) -> Any:
        return await self.page.run(expression)


def page_file(received: Received) -> Script:
    """A file of `browser`, or of the npm packages."""
    path = received.target.partition("?")[0].strip("/")
    found = (NODE if path.startswith("node_modules/") else STATIC) / path
    there = found.is_file() and ".." not in path
    body = found.read_bytes() if there else b""
    kind = ("Content-Type", KINDS.get(found.suffix, "text/plain"))
    return (Send(head(200 if there else 404, (kind,), length=len(body))), Send(body))


@asynccontextmanager
async def staged(browser: Chromium, *places: Place, pace: float = 0.02) -> AsyncIterator[Stage]:
    async with (
        simulator.running(pace=pace) as upstream,
        serve(page_file) as origin,
        running_proxy(upstream.url, cors_origins=(origin.url,)) as proxy,
        cutting(proxy.port, *places) as cutter,
        browser.page(f"{origin.url}/client.html?proxy={cutter.url}") as page,
    ):
        await page.reports.until(lambda: page.reports.of("ready"))
        yield Stage(upstream, page, cutter)


def waits_for(test: str) -> str:
    return f"""(async () => {{
      for (let count = 0; count < 1500; count++) {{
        if ({test}) return;
        await new Promise((resolve) => setTimeout(resolve, 20));
      }}
      throw new Error('never: ' + document.body.innerText);
    }})()"""


def html(text: str) -> str:
    (snippet,) = re.findall(r"^```html\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(snippet)


@asynccontextmanager
async def showing(browser: Chromium) -> AsyncIterator[tuple[Proxy, Server, Callable[[str], Awaitable[None]]]]:
    """A proxy, its provider, and a function that shows a page of another origin until its picture is there."""
    page: list[str] = []

    def handler(_: Received) -> Script:
        body = f"<!doctype html><meta charset=utf-8><link rel=icon href=data:,>{page[-1]}".encode()
        return (Send(head(200, (("Content-Type", KINDS[".html"]),), length=len(body))), Send(body))

    async with (
        simulator.running(pace=0) as upstream,
        serve(handler) as origin,
        running_proxy(upstream.url, cors_origins=(origin.url,)) as proxy,
    ):

        async def shown(snippet: str) -> None:
            page.append(snippet)
            async with browser.page(origin.url) as tab:
                await tab.run(waits_for("document.querySelector('progressive-image').state === 'completed'"))

        yield proxy, upstream, shown


async def test_the_page_that_orders(browser: Chromium) -> None:
    """As it stands in the documentation, but for the address."""
    async with showing(browser) as (proxy, upstream, shown):
        snippet = html(FRONTENDS)
        assert snippet.count(ADDRESS) == 3
        await shown(snippet.replace(ADDRESS, proxy.url))
        assert upstream.calls == 1


async def test_the_page_that_follows(browser: Chromium) -> None:
    """The README's backend orders, and its page shows the stream that this names."""
    (backend,) = re.findall(r"^```python\n([^`]*respond-async.*?)^```$", README, re.MULTILINE | re.DOTALL)
    async with showing(browser) as (proxy, upstream, shown):
        assert backend.count(ADDRESS) == 1
        with anyio.fail_after(BOUND):
            run = await anyio.run_process([sys.executable, "-c", backend.replace(ADDRESS, proxy.url)])
        snippet = html(README)
        assert snippet.count(STREAM) == 1
        stream_url = run.stdout.decode().strip()
        await shown(snippet.replace(STREAM, proxy.url + stream_url).replace(ADDRESS, proxy.url))
        assert upstream.calls == 1


async def test_base64_by_the_engine_itself(browser: Chromium) -> None:
    async with staged(browser) as stage:
        assert await stage.run("cutEverywhere()") == "function"


async def test_a_foreign_page_follows(browser: Chromium) -> None:
    async with staged(browser, pace=0.4) as stage:
        assert await stage.run("(async () => followed(await ordered()))()") == [drawn()]
        assert stage.page.reports.of("preview")
        assert stage.upstream.calls == 1


def frame(kind: str, size: int, **members: object) -> bytes:
    """An event with a real picture."""
    made = pictures.encode(pictures.draw(PROMPT, size, size), "png")
    data = {"type": kind, "b64_json": base64.b64encode(made).decode(), **members}
    return event(kind, orjson.dumps(data))


@asynccontextmanager
async def held(browser: Chromium, *places: Place, cut_short: bool = False) -> AsyncIterator[tuple[scenes.Stage, Page]]:
    """A provider that waits before each event, two previews and the picture; `cut_short`: it leaves instead of that.

    At the end there was one upstream call.
    """
    previews = [frame(PREVIEW, size, partial_image_index=number) for number, size in enumerate((64, 512))]
    frames = (*previews, *(() if cut_short else (frame(COMPLETED, 1024, usage=USAGE),)))
    async with (
        serve(page_file) as origin,
        scenes.staged(*places, frames=frames, cut_short=cut_short, origins=(origin.url,)) as stage,
        browser.page(f"{origin.url}/client.html?proxy={stage.cutter.url}") as page,
    ):
        await page.reports.until(lambda: page.reports.of("ready"))
        yield stage, page


async def ordered(stage: scenes.Stage, page: Page) -> str:
    """The stream's URL, as a string of JavaScript; the first preview is on its way."""
    stage.held.let(1)
    return orjson.dumps(await page.run("ordered()")).decode()


OFFLINE_SECONDS: Final = 3.0


@pytest.mark.usefixtures("soon")
async def test_a_network_that_is_gone_for_some_seconds(browser: Chromium) -> None:
    """A connection breaks inside an event, then there is no network: the right pixels in the end."""
    async with held(browser, Place(PREVIEWED, Then.RST, 10_000)) as (stage, page):
        url = await ordered(stage, page)
        found: list[object] = []

        async def follow() -> None:
            found.append(await page.run(f"followed({url})"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            await page.reports.until(lambda: page.reports.of("preview"))
            stage.held.let(2)
            await page.reports.until(lambda: page.reports.of("lost"))
            await page.call("Network.enable")
            conditions = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
            await page.call("Network.emulateNetworkConditions", offline=True, **conditions)
            stage.held.let(4)
            await anyio.sleep(OFFLINE_SECONDS)
            assert not found
            await page.call("Network.emulateNetworkConditions", offline=False, **conditions)
        assert found == [[drawn()]]


async def test_the_element(browser: Chromium) -> None:
    """Its ratio is there before the first byte; it has one picture in the end, which is described, and is not busy."""
    async with held(browser) as (stage, page):
        url = await ordered(stage, page)
        before: Any = await page.run(f"placed({url}, {{width: 1600, height: 900}})")
        assert (before["ratio"], before["pictures"], before["message"]) == (1.78, 0, "")
        await page.reports.until(lambda: page.reports.of("preview"))
        stage.held.let(4)
        await page.reports.until(lambda: page.reports.of("completed"))
        assert all((r["state"], r["busy"]) == ("forming", "true") for r in page.reports.of("preview"))
        assert [(r["state"], r["busy"]) for r in page.reports.of("completed")] == [("completed", "false")]
        await page.run("until(() => element().pictures === 1)")
        after: Any = await page.run("element()")
        assert (after["alts"], after["button"]) == (["A lighthouse"], False)
        assert await page.run("shownPixels()") == drawn()
        assert await page.run("blobs()") == 1
        await page.run("document.querySelector('progressive-image').remove()")
        await page.run("until(() => blobs() === 0)")


async def test_the_element_without_a_size(browser: Chromium) -> None:
    async with staged(browser) as stage:
        url = orjson.dumps(await stage.run("ordered({size: '1536x1024'})")).decode()
        await stage.run(f"placed({url})")
        await stage.page.reports.until(lambda: stage.page.reports.of("completed"))
        assert (await stage.run("element()"))["ratio"] == 1.5


async def test_a_failure_dims_the_last_preview(browser: Chromium) -> None:
    """It says what happened and whether it was charged; the keyboard reaches the button, which orders nothing."""
    async with held(browser, cut_short=True) as (stage, page):
        url = await ordered(stage, page)
        await page.run(f"placed({url})")
        await page.reports.until(lambda: page.reports.of("preview"))
        stage.held.let(3)
        await page.reports.until(lambda: page.reports.of("failed"))
        (failed,) = page.reports.of("failed")
        assert (failed["state"], failed["busy"], failed["charged"]) == ("failed", "false", True)
        await page.run("until(() => element().opacity < 0.5 && element().pictures === 1)")
        shown: Any = await page.run("element()")
        assert shown["message"].endswith("It may have been charged.")
        assert (shown["pictures"], shown["button"]) == (1, True)
        await page.run("document.querySelector('progressive-image').focus()")
        focused = "document.querySelector('progressive-image').shadowRoot.activeElement.textContent"
        assert await page.run(focused) == "Try again"
        await page.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", text="\r")
        await page.reports.until(lambda: len(page.reports.of("failed")) == 2)


@pytest.mark.parametrize(("count", "size"), [(12, 256), (3, 1024)], ids=["events", "large ones, by reference"])
async def test_streams_of_one_page_share_a_connection(browser: Chromium, count: int, size: int) -> None:
    """A browser has six connections to a host. The shared one breaks on the way; two elements show the first stream."""
    place = Place(b"event: image_generation.partial_image", Then.RST)
    async with staged(browser, place, pace=0.3) as stage:
        expected = [drawn(f"picture {number}", size) for number in range(count)]
        assert await stage.run(f"together({count}, {size})") == expected
        followed = [
            one.target for one in stage.cutter.asked if "/streams" in one.target and "/images/" not in one.target
        ]
        assert len(followed) >= 2
        assert {target.count("stream=") for target in followed[:2]} == {count}
        assert stage.upstream.calls == count


TWELVE: Final = 12
SHOWN_SECONDS: Final = 0.3
"""From the provider's event to the screen."""


def dozen_of_frames() -> dict[str, scenes.Held]:
    """Twelve generations by their prompts: two previews and a picture of 1024 pixels each."""
    shown = [frame(PREVIEW, 1024, partial_image_index=number) for number in range(2)]
    frames = (*shown, frame(COMPLETED, 1024, usage=USAGE))
    return {f"picture {number}": scenes.Held(frames) for number in range(TWELVE)}


async def test_twelve_small_previews_on_one_connection(browser: Chromium) -> None:
    """Each is on the screen soon after its event. The completed pictures are those of the provider."""
    held = dozen_of_frames()
    async with (
        serve(lambda received: held[orjson.loads(received.body)["prompt"]](received)) as upstream,
        serve(page_file) as origin,
        running_proxy(upstream.url, cors_origins=(origin.url,), commit_after=0.05) as proxy,
        cutting(proxy.port) as cutter,
        browser.page(f"{origin.url}/client.html?proxy={cutter.url}") as page,
    ):
        reports = page.reports
        await reports.until(lambda: reports.of("ready"))
        orders = ",".join(f"ordered({{prompt: '{prompt}'}})" for prompt in held)
        urls = orjson.dumps(await page.run(f"Promise.all([{orders}])")).decode()
        await page.run(f"watched({urls}, {{preview: 512}})")
        took: list[float] = []
        for step in range(2):
            for one in held.values():
                count = len(reports.of("shown"))
                one.let(step + 1)
                sent = time.time()
                await reports.until(lambda: len(reports.of("shown")) > count)  # noqa: B023
                took.append(reports.of("shown")[-1]["at"] / 1000 - sent)
        for one in held.values():
            one.let(4)
        await reports.until(lambda: len(reports.of("shown")) == 3 * TWELVE)
        small, whole = reports.of("shown")[: 2 * TWELVE], reports.of("shown")[2 * TWELVE :]
        assert {(one["type"], one["width"]) for one in small} == {("preview", 512)}
        assert max(one["bytes"] for one in small) < 40_000
        picture = base64.b64decode(orjson.loads(held["picture 0"].frames[-1].partition(b"data: ")[2])["b64_json"])
        assert {one["hash"] for one in whole} == {hashlib.sha256(picture).hexdigest()}
        # Others on this machine can delay one of the two, and hardly both.
        assert max(map(min, took[:TWELVE], took[TWELVE:])) < SHOWN_SECONDS, took
        [followed] = [one.target for one in cutter.asked if "/streams?" in one.target]
        assert (followed.count("stream="), followed.count("preview=512")) == (TWELVE, 1)
        assert upstream.calls == TWELVE


async def test_the_element_passes_the_size_on(browser: Chromium) -> None:
    async with held(browser) as (stage, page):
        await page.run(f"placed({await ordered(stage, page)}, {{preview: '32'}})")
        await page.reports.until(lambda: page.reports.of("preview"))
        width = "document.querySelector('progressive-image').shadowRoot.querySelector('img').naturalWidth"
        assert await page.run(width) == 32
        stage.held.let(4)
        await page.reports.until(lambda: page.reports.of("completed"))
        assert await page.run("shownPixels()") == drawn()


async def test_streams_of_several_images_end_beside_others(browser: Chromium) -> None:
    """Its end is silence there; the other stream ends later."""
    async with staged(browser, pace=0.2) as stage:
        assert await stage.run("several()") == [2, 1]


async def test_fifty_pictures_leave_no_blob(browser: Chromium) -> None:
    async with staged(browser, pace=0) as stage:
        most = await stage.run("oneAfterTheOther(50)")
        assert most <= 3
        assert stage.upstream.calls == 50


@pytest.mark.skipif(not (NODE / "node_modules" / "react-dom").is_dir(), reason="react is not installed")
async def test_react_in_strict_mode_and_after_a_reload(browser: Chromium) -> None:
    """Effects run twice, and the page is loaded again: one order, one upstream call."""
    async with staged(browser) as stage:
        mount = "mounted({ model: 'sim/gpt-image', prompt: 'a lighthouse at dusk', partial_images: 3 })"
        assert await stage.run(mount) == drawn()
        count = len(stage.page.reports.of("ready"))
        await stage.page.call("Page.reload")
        await stage.page.reports.until(lambda: len(stage.page.reports.of("ready")) > count)
        assert await stage.run(mount) == drawn()
        assert len([one for one in stage.cutter.asked if one.method == "POST"]) == 1
        assert stage.upstream.calls == 1
