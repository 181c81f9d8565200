"""The documentation in a real Chromium: light and dark, on a phone and a desk, within its content security policy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import pytest

from streamproxy.web.docs import PAGES
from tests.e2e.node.runner import HERE as NODE
from tests.support.chromium import Chromium, Page, chromium, needs_chromium
from tests.support.proxy import BOUND, Proxy, running_proxy

pytestmark = [pytest.mark.anyio, needs_chromium]

NOBODY: Final = "http://127.0.0.1:9"
PATHS: Final = ("/docs", *(f"/docs/{name}" for name in PAGES))
AXE: Final = NODE / "node_modules" / "axe-core" / "axe.min.js"
STYLED: Final = "document.styleSheets.length === 1 && document.styleSheets[0].cssRules.length > 0"
TOO_WIDE: Final = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as running:
        yield running


@asynccontextmanager
async def reading(browser: Chromium, width: int, scheme: str) -> AsyncIterator[tuple[Proxy, Page]]:
    async with running_proxy(NOBODY) as proxy, browser.page("about:blank") as page:
        size: dict[str, object] = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        await page.call("Emulation.setDeviceMetricsOverride", **size)
        await page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        yield proxy, page


async def go(page: Page, url: str) -> None:
    page.loaded = anyio.Event()
    await page.call("Page.navigate", url=url)
    with anyio.fail_after(BOUND):
        await page.loaded.wait()


@pytest.mark.parametrize("width", [320, 390, 1280])
async def test_no_page_is_wider_than_the_screen(browser: Chromium, width: int) -> None:
    async with reading(browser, width, "light") as (proxy, page):
        for path in PATHS:
            await go(page, proxy.url + path)
            assert await page.run(STYLED) is True, path
            assert await page.run(TOO_WIDE) == 0, path
        assert [entry["text"] for entry in page.logged if entry["source"] == "security"] == []


async def test_the_scheme_is_the_readers(browser: Chromium) -> None:
    colours = "[document.documentElement, document.querySelector('main a')].map((one) => getComputedStyle(one))"
    found = []
    for scheme in ("light", "dark"):
        async with reading(browser, 1280, scheme) as (proxy, page):
            await go(page, f"{proxy.url}/docs")
            found.append(await page.run(f"{colours}.map((style) => style.color + style.backgroundColor)"))
    light, dark = found
    assert isinstance(light, list)
    assert isinstance(dark, list)
    assert [one != other for one, other in zip(light, dark, strict=True)] == [True, True]


async def test_a_link_leads_to_a_heading(browser: Chromium) -> None:
    async with reading(browser, 1280, "light") as (proxy, page):
        await go(page, f"{proxy.url}/docs/streams")
        await page.run("document.querySelector('a[href=\"#small-previews\"]').click()")
        await page.until("location.hash === '#small-previews' && scrollY > 0")


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_in_pages(browser: Chromium, scheme: str) -> None:
    async with reading(browser, 390, scheme) as (proxy, page):
        for path in PATHS:
            await go(page, proxy.url + path)
            await page.run(AXE.read_text("utf-8") + ";undefined")
            found: Any = await page.run("axe.run().then(({ violations }) => violations)")
            assert [(one["id"], [node["html"][:80] for node in one["nodes"]]) for one in found] == [], path
