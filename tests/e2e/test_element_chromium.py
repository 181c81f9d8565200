"""<progressive-image> in a real Chromium: what it shows from one picture to the next, and what it costs the page.

Its states, its failures and its connection are in test_client_chromium.
"""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
from PIL import Image

from streamproxy.simulator import pictures
from streamproxy.simulator.script import event
from streamproxy.simulator.server import serve
from tests.e2e.test_client_chromium import held, ordered, page_file, staged
from tests.support import scenes
from tests.support.chromium import Chromium, Page, chromium, needs_chromium
from tests.support.provider import COMPLETED, USAGE

pytestmark = [pytest.mark.anyio, needs_chromium]

TYPES: Final = (Path(__file__).parents[2] / "streamproxy" / "web" / "static" / "element.d.ts").read_text("utf-8")
MOTION: Final = "prefers-reduced-motion"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as running:
        yield running


async def shown(stage: scenes.Stage, page: Page, motion: str) -> list[list[dict[str, bool]]]:
    """Two previews and the picture, one by one: the layers that the element had after each of its changes."""
    await page.call("Emulation.setEmulatedMedia", features=[{"name": MOTION, "value": motion}])
    url = await ordered(stage, page)
    await page.run(f"layered({url})")
    await page.reports.until(lambda: page.reports.of("preview"))
    stage.held.let(2)
    await page.reports.until(lambda: len(page.reports.of("preview")) == 2)
    stage.held.let(4)
    await page.reports.until(lambda: page.reports.of("completed"))
    await page.run("until(() => element().pictures === 1)")
    found: Any = await page.run("layersSeen")
    return [layers for layers in found if layers]


async def test_it_cross_fades_what_is_decoded(browser: Chromium) -> None:
    """The old picture stays below until the new one, which was decoded before it was seen, has faded in."""
    async with held(browser) as (stage, page):
        seen = await shown(stage, page, "no-preference")
    assert all(layer["ready"] for layers in seen for layer in layers)
    over = [layers for layers in seen if len(layers) == 2]
    assert over
    assert all(new["fading"] and not old["fading"] for old, new in over)
    assert max(len(layers) for layers in seen) == 2


async def test_it_does_not_move_where_that_is_not_wanted(browser: Chromium) -> None:
    async with held(browser) as (stage, page):
        seen = await shown(stage, page, "reduce")
    assert seen
    assert not any(layer["fading"] for layers in seen for layer in layers)


async def test_the_time_beside_the_usual_time(browser: Chromium) -> None:
    """The bar is not full before the picture is there, however long it takes."""
    async with held(browser) as (stage, page):
        url = await ordered(stage, page)
        await page.run(f"placed({url}, {{ usual: 30, since: Date.now() / 1000 - 100 }})")
        part = "document.querySelector('progressive-image').shadowRoot.querySelector('[part={}]')"
        said = str(await page.run(part.format("elapsed") + ".textContent"))
        assert re.fullmatch(r"10\d s of about 30 s", said)
        bar = str(await page.run(part.format("progress") + ".style.transform"))
        assert 0.9 < float(bar.removeprefix("scaleX(").removesuffix(")")) < 1
        stage.held.let(4)
        await page.reports.until(lambda: page.reports.of("completed"))
        assert await page.run(part.format("elapsed") + ".textContent") == ""
        assert await page.run(f"getComputedStyle({part.format('progress')}).display") == "none"


async def test_parts_and_properties_are_those_of_the_types(browser: Chromium) -> None:
    """Each of them has an effect."""
    parts = re.search(r"Parts: ([^.]+)\.", TYPES)
    properties = re.search(r"Properties: --progressive-image-([^.]+)\.", TYPES)
    assert parts
    assert properties
    names = [word.strip() for word in re.split(r",|\s-", re.sub(r"\(\w+\)|\n \*", "", properties[1])) if word.strip()]
    looks = {
        "background": ("frame", "backgroundColor", "rgb(1, 2, 3)", "rgb(1, 2, 3)"),
        "accent": ("progress", "backgroundColor", "rgb(3, 2, 1)", "rgb(3, 2, 1)"),
        "fit": ("picture", "objectFit", "contain", "contain"),
        "failed-opacity": ("picture", "opacity", "0.2", "0.2"),
        "font": ("status", "fontSize", "31px monospace", "31px"),
    }
    assert sorted({*looks, "fade"}) == sorted(names)
    async with held(browser, cut_short=True) as (stage, page):
        url = await ordered(stage, page)
        await page.run(f"placed({url})")
        await page.reports.until(lambda: page.reports.of("preview"))
        stage.held.let(3)
        await page.reports.until(lambda: page.reports.of("failed"))
        found: Any = await page.run(
            "[...root.firstChild.shadowRoot.querySelectorAll('[part]')].map((one) => one.getAttribute('part'))"
        )
        assert set(found) == {word.strip() for word in parts[1].split(",")}
        for name, (part, style, value, seen) in looks.items():
            await page.run(f"root.firstChild.style.setProperty('--progressive-image-{name}', '{value}')")
            element = f"root.firstChild.shadowRoot.querySelector('[part={part}]')"
            await page.run(f"until(() => getComputedStyle({element}).{style} === '{seen}')")


async def test_the_fade_is_as_long_as_it_is_told(browser: Chromium) -> None:
    async with held(browser) as (stage, page):
        url = await ordered(stage, page)
        await page.run(f"placed({url}, {{ style: '--progressive-image-fade: 1234567' }})")
        await page.reports.until(lambda: page.reports.of("preview"))
        stage.held.let(2)
        await page.run("until(() => element().pictures === 2)")
        length = "root.firstChild.shadowRoot.querySelector('img:last-of-type').getAnimations()"
        await page.run(f"until(() => {length}.length)")
        assert await page.run(f"{length}.map((one) => one.effect.getTiming().duration)") == [1234567]
        await page.run(f"{length}[0].finish()")


NOISE: Final = 900  # a PNG of noise with this edge is an event of 3 MB
EVENT_BYTES: Final = 3_000_000
ATTEMPTS: Final = 4


@asynccontextmanager
async def following_noise(browser: Chromium) -> AsyncIterator[tuple[Page, str, int]]:
    """A page, the URL of a stream of one large event, and that event's size."""
    noise = Image.merge("RGB", [Image.effect_noise((NOISE, NOISE), 90) for _ in range(3)])
    made = pictures.encode(pictures.Picture(noise), "png")
    data = {"type": COMPLETED, "b64_json": base64.b64encode(made).decode(), "usage": USAGE}
    large = event(COMPLETED, orjson.dumps(data))
    async with (
        serve(page_file) as origin,
        scenes.staged(frames=(large,), origins=(origin.url,)) as stage,
        browser.page(f"{origin.url}/client.html?proxy={stage.cutter.url}") as page,
    ):
        await page.reports.until(lambda: page.reports.of("ready"))
        yield page, await ordered(stage, page), len(large)


async def test_no_long_task_while_3_mb_arrive(browser: Chromium) -> None:
    """Under 50 ms each. A busy machine makes any task long, so one of four tries will do."""
    tries: list[object] = []
    for _ in range(ATTEMPTS):
        async with following_noise(browser) as (page, url, size):
            assert size > EVENT_BYTES
            tries.append(await page.run(f"longTasks({url})"))
        if tries[-1] == []:
            return
    raise AssertionError(tries)


HEAP_MOST: Final = 3_000_000  # bytes; fifty pictures of 512x512 are over 15 MB


async def heap(page: Page) -> int:
    """Bytes that the page's scripts hold, buffers included."""
    await page.call("HeapProfiler.enable")
    await page.call("HeapProfiler.collectGarbage")
    found = await page.call("Runtime.getHeapUsage")
    return int(found["usedSize"]) + int(found["backingStorageSize"])


async def test_fifty_pictures_leave_no_memory(browser: Chromium) -> None:
    """The heap after fifty pictures is what it was after the first five."""
    async with staged(browser, pace=0) as stage:
        await stage.run("oneAfterTheOther(5, 512)")
        before = await heap(stage.page)
        await stage.run("oneAfterTheOther(50, 512)")
        assert await heap(stage.page) - before < HEAP_MOST
