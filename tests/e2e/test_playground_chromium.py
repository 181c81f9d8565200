"""The playground in a real Chromium, driven by keyboard and mouse, in front of the simulator.

Pictures are compared with what the simulator draws of the same words, and upstream calls are counted. Its pure modules
are checked in node/playground.mjs.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
import orjson
import pytest
from PIL import Image

from streamproxy import simulator
from streamproxy.demo import Options, demo
from streamproxy.simulator import Server, pictures
from streamproxy.simulator.order import read_order
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, error_answer, event, json_answer, sse
from streamproxy.simulator.server import serve
from tests.e2e.node.runner import HERE as NODE
from tests.support.chromium import Chromium, Page, chromium, needs_chromium
from tests.support.provider import COMPLETED as COMPLETED_EVENT
from tests.support.provider import PREVIEW, USAGE
from tests.support.proxy import BOUND, running_proxy

pytestmark = [pytest.mark.anyio, needs_chromium]

AXE: Final = NODE / "node_modules" / "axe-core" / "axe.min.js"
COMPLETED: Final = "[...document.querySelectorAll('progressive-image')].every(({state}) => state === 'completed')"
FORMING: Final = "document.querySelector('progressive-image')?.state === 'forming'"
READY: Final = "document.querySelector('[name=size]')"
PIXELS: Final = """(async (number) => {
  const { shadowRoot } = document.querySelectorAll('progressive-image')[number];
  const picture = shadowRoot.querySelector('img:last-of-type');
  const canvas = new OffscreenCanvas(picture.naturalWidth, picture.naturalHeight);
  const context = canvas.getContext('2d');
  context.drawImage(picture, 0, 0);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', data));
  return [...hash].map((byte) => byte.toString(16).padStart(2, '0')).join('');
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as running:
        yield running


def drawn(prompt: str) -> str:
    """The hash of the pixels that the simulator draws."""
    image = pictures.draw(prompt, 1024, 1024).image.convert("RGBA")
    return hashlib.sha256(image.tobytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class Stage:
    """The simulator, and the playground of a proxy in front of it."""

    upstream: Server
    url: str
    page: Page

    async def pixels(self, number: int = 0) -> object:
        return await self.page.run(f"{PIXELS}({number})")

    async def draw(self, prompt: str, **options: str) -> None:
        """Fill in the form as a hand would, and press Draw with the mouse."""
        chosen = orjson.dumps({"prompt": prompt, **options}).decode()
        await self.page.run(
            f"""(() => {{
              for (const [name, value] of Object.entries({chosen})) {{
                const control = document.forms[0].elements[name];
                if (name === 'model') control.append(new Option(value)); // one that is not listed, too
                control.value = value;
                for (const type of ['input', 'change']) control.dispatchEvent(new Event(type, {{ bubbles: true }}));
              }}
            }})()"""
        )
        await self.page.click("[name=draw]")

    async def shows(self, prompt: str) -> None:
        """Wait for the picture of this prompt."""
        await self.page.until(f"document.querySelector('progressive-image') && {COMPLETED}")
        assert await self.pixels() == drawn(prompt)

    async def has(self, selector: str) -> str:
        return str(await self.page.run(f"document.querySelector('{selector}').innerText"))


@asynccontextmanager
async def playing(browser: Chromium, *, pace: float = 0.02, width: int = 1280, **settings: Any) -> AsyncIterator[Stage]:
    """The page in a browser that has been here before, so that it orders nothing by itself."""
    async with (
        simulator.running(pace=pace) as upstream,
        running_proxy(upstream.url, playground=True, disconnect_grace=15, **settings) as proxy,
        opened(browser, f"{proxy.url}/", width=width) as page,
    ):
        yield Stage(upstream, proxy.url, page)


VISITED: Final = """localStorage['streamproxy:history'] ??= JSON.stringify([
  { id: '1', began: 1, expires: 1, prompt: 'an old one', model: 'sim/gpt-image', pictures: 1, streams: [] },
])"""


@asynccontextmanager
async def opened(browser: Chromium, url: str, *, visited: bool = True, width: int = 1280) -> AsyncIterator[Page]:
    """The page, loaded. At the end it has broken no rule of its Content-Security-Policy."""
    async with browser.page("about:blank") as page:
        if visited:
            await page.call("Page.addScriptToEvaluateOnNewDocument", source=VISITED)
        await page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        page.loaded = anyio.Event()
        await page.call("Page.navigate", url=url)
        with anyio.fail_after(BOUND):
            await page.loaded.wait()
        await page.until(READY)
        yield page
        assert violations(page) == []


def violations(page: Page) -> list[str]:
    """The browser's complaints about the page's Content-Security-Policy."""
    return [entry["text"] for entry in page.logged if entry["source"] == "security"]


async def test_the_demos_first_picture(browser: Chromium, tmp_path: Path) -> None:
    """The URL that is said first is a page that shows previews and a picture, unasked; a reload orders nothing."""
    said: list[str] = []
    ready = anyio.Event()

    def say(line: str) -> None:
        said.append(line)
        if "Serving until" in line:
            ready.set()

    options = Options(prompt="a red boat", output=tmp_path / "a.png", port=0, pace=0.4, once=False)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(demo, options, say)
        with anyio.fail_after(BOUND):
            await ready.wait()
        async with opened(browser, said[0].split()[0], visited=False) as page:
            await page.until(f"document.querySelector('progressive-image') && {COMPLETED}")
            await page.until("document.querySelector('#total').textContent")
            names: Any = await page.run(
                "[...document.querySelectorAll('#events summary span:nth-of-type(2)')].map((s) => s.textContent)"
            )
            assert names[-1] == "completed"
            assert len(names) > 1
            assert set(names[:-1]) <= {"preview 1", "preview 2", "preview 3"}
            streams = "localStorage['streamproxy:history']"
            before = await page.run(streams)
            await page.reload()
            await page.until(f"document.querySelector('progressive-image') && {COMPLETED}")
            await page.until("document.querySelector('#total').textContent")
            assert await page.run(streams) == before
        tasks.cancel_scope.cancel()


async def test_a_picture_by_keyboard_alone(browser: Chromium) -> None:
    """Tab reaches the prompt, the options and the button, in their order; the events open with Enter."""
    async with playing(browser) as stage:
        page = stage.page
        focused = "document.activeElement.name || document.activeElement.tagName"
        order = []
        for _ in range(12):
            await page.press("Tab")
            order.append(await page.run(focused))
            if order[-1] == "prompt":
                await page.run("document.activeElement.select()")
                await page.call("Input.insertText", text="a red boat")
            if order[-1] == "draw":
                break
        sizes = ["n", "partial_images", "size", "quality", "output_format", "background"]
        assert order == ["prompt", "model", *sizes, "files", "draw"]
        await page.press("Enter", "\r")
        await stage.shows("a red boat")
        await page.until("document.querySelector('#total').textContent")
        assert await page.run(focused) == "draw"
        await page.run("document.querySelector('#events li:last-child summary').focus()")
        await page.press("Enter", "\r")
        shown = await stage.has("#events li:last-child pre")
        assert '"b64_json": "(1.' in shown
        assert "MB of image/png)" in shown
        assert len(shown) < 1000
        assert stage.upstream.calls == 1


def sent(stage: Stage) -> list[Received]:
    return [one for one in stage.upstream.received if one.method == "POST"]


async def test_an_edit_with_a_painted_mask(browser: Chromium) -> None:
    """A picture is taken as the next one's input, a stroke is painted: the provider gets both, of one size."""
    async with playing(browser) as stage:
        page = stage.page
        await stage.draw("a red boat", output_format="jpeg")
        await page.until(f"document.querySelector('progressive-image') && {COMPLETED}")
        await page.click("figcaption button:last-of-type")
        await page.until("document.querySelector('#brush canvas').width === 1024")
        left, top, width, height = await page.box("#brush canvas")
        await page.drag(
            (left + width * 0.25, top + height * 0.5),
            (left + width * 0.5, top + height * 0.5),
            (left + width * 0.75, top + height * 0.5),
        )
        await stage.draw("a blue boat")
        await page.until(f"document.querySelectorAll('#history li').length === 3 && {COMPLETED}")
        first, second = sent(stage)
        assert first.target == "/v1/images/generations"
        assert second.target == "/v1/images/edits"
        order = read_order(second.body, second.header("content-type") or "", edit=True)
        assert order.mask is not None
        source, mask = Image.open(io.BytesIO(order.images[0])), Image.open(io.BytesIO(order.mask))
        assert (source.format, mask.format, mask.mode) == ("JPEG", "PNG", "RGBA")
        assert source.size == mask.size == (1024, 1024)
        alpha = mask.getchannel("A")
        painted = [alpha.getpixel((x, 512)) for x in (256, 400, 512, 700, 768)]
        kept = [alpha.getpixel(place) for place in ((100, 512), (924, 512), (512, 400), (512, 624))]
        assert (set(painted), set(kept)) == ({0}, {255})


async def choose(page: Page, *paths: Path) -> None:
    """Choose files in the file dialogue."""
    found = await page.call("Runtime.evaluate", expression="document.querySelector('[type=file]')")
    await page.call("DOM.setFileInputFiles", files=[str(path) for path in paths], objectId=found["result"]["objectId"])


async def test_a_mask_by_keyboard(browser: Chromium, tmp_path: Path) -> None:
    """Of a chosen file. Space paints where the brush is, arrows move it, and Undo takes the stroke back."""
    file = tmp_path / "boat.png"
    file.write_bytes(pictures.encode(pictures.draw("a red boat", 1024, 1024), "png"))
    async with playing(browser) as stage:
        page = stage.page
        await choose(page, file)
        await page.until("document.querySelector('#brush canvas').width === 1024")
        await page.run("document.querySelector('#brush canvas').focus()")
        colour = """(([x, y]) => {
          const context = document.querySelector('#brush canvas').getContext('2d');
          return [...context.getImageData(x, y, 1, 1).data];
        })"""
        before = await page.run(f"{colour}([512 - 4 * 41, 512])")
        for key in ("ArrowLeft", "ArrowLeft"):
            await page.press(key)
        await page.call("Input.dispatchKeyEvent", type="keyDown", key=" ", text=" ")
        for key in ("ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowLeft"):
            await page.press(key)
        await page.call("Input.dispatchKeyEvent", type="keyUp", key=" ")
        after = await page.run(f"{colour}([512 - 4 * 41, 512])")
        assert before != after
        await page.click("#brush [name=undo]")
        assert await page.run(f"{colour}([512 - 4 * 41, 512])") == before


async def test_pictures_to_edit_are_pasted_and_removed(browser: Chromium, tmp_path: Path) -> None:
    """Other files are left out. Without a stroke there is no mask."""
    (tmp_path / "a.txt").write_text("no picture")
    (tmp_path / "a.png").write_bytes(pictures.encode(pictures.draw("a", 64, 64), "png"))
    async with playing(browser) as stage:
        page = stage.page
        await choose(page, tmp_path / "a.txt", tmp_path / "a.png")
        await page.run(
            """(async () => {
              const pasted = new DataTransfer();
              const canvas = new OffscreenCanvas(32, 32);
              canvas.getContext('2d');
              pasted.items.add(new File([await canvas.convertToBlob()], 'pasted.png', { type: 'image/png' }));
              document.body.dispatchEvent(new ClipboardEvent('paste', { clipboardData: pasted, bubbles: true }));
            })()"""
        )
        names = "[...document.querySelectorAll('.thumbs img')].map(({ alt }) => alt).join()"
        assert await page.run(names) == "a.png,pasted.png"
        await page.click(".thumbs li:first-child button")
        assert await page.run(names) == "pasted.png"
        await stage.draw("a blue boat")
        await page.until(f"document.querySelectorAll('#history li').length === 2 && {COMPLETED}")
        (edit,) = sent(stage)
        order = read_order(edit.body, edit.header("content-type") or "", edit=True)
        assert [Image.open(io.BytesIO(one)).size for one in order.images] == [(32, 32)]
        assert order.mask is None


@pytest.mark.parametrize("early", [True, False], ids=["before it is answered", "later"])
async def test_cancel_reaches_the_provider(browser: Chromium, early: bool) -> None:
    async with playing(browser, pace=20) as stage:
        page = stage.page
        await stage.draw("a red boat")
        await stage.upstream.wait_until(lambda upstream: len(sent(stage)) == 1, BOUND)
        if not early:
            await page.until("!document.querySelector('[name=share]').hidden")
        before = len(stage.upstream.disconnects)
        await page.click("[name=cancel]")
        await stage.upstream.wait_until(lambda upstream: len(upstream.disconnects) > before, BOUND)
        await page.until("document.querySelector('progressive-image').state === 'failed'")
        await page.until("document.querySelector('#history li small').innerText.includes('cancelled')")
        assert len(sent(stage)) == 1


async def test_a_reload_finds_its_picture(browser: Chromium) -> None:
    """In the middle of it: the same stream, one upstream call, and the right pixels in the end."""
    async with playing(browser, pace=0.3) as stage:
        await stage.draw("a red boat")
        await stage.page.until(FORMING)
        await stage.page.reload()
        await stage.shows("a red boat")
        assert len(sent(stage)) == 1
        assert await stage.page.run("document.querySelectorAll('#history li').length") == 2


async def test_a_viewer_by_link(browser: Chromium) -> None:
    """Another browser sees the same pictures by the link, orders nothing, and has no button to cancel."""
    async with playing(browser, pace=0.1) as stage:
        await stage.page.run("void (navigator.clipboard.writeText = async (text) => (window.copied = text))")
        await stage.draw("a red boat", n="2")
        await stage.page.until("!document.querySelector('[name=share]').hidden")
        await stage.page.click("[name=share]")
        await stage.page.until("window.copied")
        link = str(await stage.page.run("window.copied"))
        assert link.startswith(f"{stage.url}/#stream=str_")
        async with opened(browser, link, visited=False) as viewer:
            await viewer.until(f"document.querySelectorAll('progressive-image').length === 2 && {COMPLETED}")
            assert [await viewer.run(f"{PIXELS}({number})") for number in (0, 1)] == [drawn("a red boat")] * 2
            assert await viewer.run("document.querySelector('[name=cancel]').hidden")
            assert await viewer.run("localStorage.length") == 0
        assert len(sent(stage)) == 2


async def test_several_pictures_have_small_previews(browser: Chromium) -> None:
    """They share a connection. The completed ones are whole."""
    async with playing(browser, pace=0.6) as stage:
        await stage.draw("a red boat", n="3")
        await stage.page.until(f"document.querySelectorAll('progressive-image').length === 3 && {COMPLETED}")
        assert [await stage.pixels(number) for number in range(3)] == [drawn("a red boat")] * 3
        asked = (
            "[...document.querySelectorAll('progressive-image')].every((one) => one.getAttribute('preview') === '512')"
        )
        assert await stage.page.run(asked)
        rows: Any = await stage.page.run(
            "[...document.querySelectorAll('#events summary')].map((row) => row.innerText.split('\\n'))"
        )
        sizes = {size for _, name, size in rows if name.startswith("preview")}
        assert sizes
        assert all(size.endswith(" kB") and int(size.split()[0]) < 100 for size in sizes), rows
        assert {size for _, name, size in rows if name.startswith("completed")} == {"1.1 MB"}


async def test_a_caller_key_is_asked_for_and_not_kept(browser: Chromium) -> None:
    key = "a-caller-of-the-playground"
    keys = (f"sha256:{hashlib.sha256(key.encode()).hexdigest()}",)
    async with playing(browser, caller_keys=keys) as stage:
        await stage.page.until("document.activeElement.name === 'key'")
        assert "key" in await stage.has("#note")
        await stage.page.call("Input.insertText", text=key)
        await stage.page.press("Enter", "\r")
        await stage.page.until("document.querySelector('[name=model]').value === 'sim/gpt-image'")
        await stage.draw("a red boat")
        await stage.shows("a red boat")
        everything = "JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.documentElement.outerHTML])"
        assert key not in str(await stage.page.run(everything))


async def test_a_picture_that_the_provider_gives_by_url(browser: Chromium) -> None:
    """The proxy fetches it, so the page's policy allows no other host. Where it may not, there is a link."""
    async with playing(browser, fetch_hosts=("127.0.0.1",)) as stage:
        await stage.draw("a red boat", model="sim/url")
        await stage.shows("a red boat")
    async with playing(browser) as stage:
        await stage.draw("a red boat", model="sim/url")
        await stage.page.until("document.querySelector('figcaption a')")
        link = str(await stage.page.run("document.querySelector('figcaption a').href"))
        assert link.startswith(f"{stage.upstream.url}/files/")
        assert len(violations(stage.page)) == 1
        stage.page.logged.clear()


async def test_several_pictures_without_previews(browser: Chromium) -> None:
    """One request, one stream; and no option that the model does not have."""
    async with playing(browser) as stage:
        await stage.page.run("void (document.forms[0].elements.model.value = 'sim/plain')")
        await stage.page.run("document.forms[0].elements.model.dispatchEvent(new Event('change'))")
        assert await stage.page.run("document.forms[0].elements.partial_images === undefined")
        await stage.draw("a red boat", n="2")
        await stage.page.until(f"document.querySelectorAll('progressive-image').length === 2 && {COMPLETED}")
        (order,) = sent(stage)
        assert orjson.loads(order.body)["n"] == 2


async def test_the_history_shows_it_again(browser: Chromium) -> None:
    async with playing(browser) as stage:
        for prompt in ("a red boat", "a blue boat"):
            await stage.draw(prompt)
            await stage.shows(prompt)
        await stage.page.until("document.querySelectorAll('#history li').length === 3")
        await stage.page.click("#history li:nth-child(2) button")
        await stage.page.until("document.forms[0].elements.prompt.value === 'a red boat'")
        await stage.shows("a red boat")
        stored = str(await stage.page.run("JSON.stringify({ ...localStorage })"))
        assert "b64" not in stored
        assert len(stored) < 3000
        assert len(sent(stage)) == 2


async def test_a_lost_stream_is_said_to_be_lost(browser: Chromium) -> None:
    async with playing(browser) as stage:
        await stage.page.run(
            """(() => {
              const entry = { id: '2', began: 2, expires: 9e9, prompt: 'a', model: 'sim/gpt-image', pictures: 1 };
              const streams = [`${location.origin}/v1/streams/str_1?token=a.b`];
              localStorage['streamproxy:history'] = JSON.stringify([{ ...entry, streams }]);
            })()"""
        )
        await stage.page.reload()
        await stage.page.until(READY)
        await stage.page.click("#history li button")
        await stage.page.until("document.querySelector('#note').textContent.includes('does not keep')")
        await stage.page.until("document.querySelector('#history li small').innerText.includes('no longer kept')")
        assert stage.upstream.calls == 0


MARKUP: Final = "<img src=x onerror=alert(1)><b>bold</b>"


async def test_markup_is_text(browser: Chromium) -> None:
    """In the prompt, and in what the provider says of it."""

    def provider(received: Received) -> Script:
        if received.method == "GET":
            return json_answer(200, {"object": "list", "data": [{"id": "gpt-image", "object": "model"}]})
        return error_answer(400, f"Refused: {MARKUP}", code="moderation_blocked")

    async with (
        serve(provider) as upstream,
        running_proxy(upstream.url, playground=True) as proxy,
        opened(browser, f"{proxy.url}/") as page,
    ):
        stage = Stage(upstream, proxy.url, page)
        await stage.draw(MARKUP)
        await page.until("document.querySelector('#note').textContent")
        assert MARKUP in str(await page.run("document.querySelector('#note').textContent"))
        await page.click("#tab-HTML")
        assert "\\u003cimg" in await stage.has("#snippet")
        assert await page.run("document.querySelectorAll('b, [onerror]').length") == 0


def costs(received: Received) -> Script:
    """A picture, and what it cost."""
    picture = base64.b64encode(pictures.encode(pictures.draw("a red boat", 64, 64), "png")).decode()
    data = {"type": COMPLETED_EVENT, "b64_json": picture, "output_format": "png", "usage": USAGE, "cost": 0.0123}
    return sse([event(COMPLETED_EVENT, orjson.dumps(data))])


async def test_the_cost_is_that_of_all_pictures(browser: Chromium) -> None:
    async with (
        serve(costs) as upstream,
        running_proxy(upstream.url, playground=True) as proxy,
        opened(browser, f"{proxy.url}/") as page,
    ):
        stage = Stage(upstream, proxy.url, page)
        await stage.draw("a red boat", n="2")
        await page.until("document.querySelector('#total').textContent.endsWith(' s, $0.0246')")
        assert "$0.0246" in await stage.has("#history li:first-child small")
        assert upstream.calls == 2


FAILED: Final = "document.querySelector('progressive-image')?.state === 'failed'"


def fails(received: Received) -> Script:
    """A preview, and then an error with markup in its words."""
    picture = base64.b64encode(pictures.encode(pictures.draw("a red boat", 64, 64), "png")).decode()
    preview = {"type": PREVIEW, "b64_json": picture, "partial_image_index": 0, "output_format": "png", "size": "64x64"}
    error = {"type": "error", "error": {"message": f"Broke: {MARKUP}", "code": "odd", "type": "server_error"}}
    return sse([event(PREVIEW, orjson.dumps(preview)), event("error", orjson.dumps(error))], waits=(0, 0.5))


async def test_markup_in_an_error_of_a_stream(browser: Chromium) -> None:
    async with (
        serve(fails) as upstream,
        running_proxy(upstream.url, playground=True) as proxy,
        opened(browser, f"{proxy.url}/") as page,
    ):
        stage = Stage(upstream, proxy.url, page)
        await stage.draw(MARKUP)
        await page.until(FAILED)
        said = "document.querySelector('progressive-image').shadowRoot.querySelector('[role=status]').textContent"
        assert str(await page.run(said)).startswith(f"Broke: {MARKUP}")
        assert await stage.has("#history li:first-child button") == MARKUP
        await page.run("document.querySelector('#events li:last-child details').open = true")
        assert "<b>bold</b>" in await stage.has("#events li:last-child pre")
        assert await page.run("document.querySelectorAll('b, [onerror]').length") == 0


async def test_the_csp_is_watched(browser: Chromium) -> None:
    """A page that breaks it is told: the check at the end of every other test here can fail."""
    async with playing(browser) as stage:
        policy = "document.querySelector('h1').setAttribute('style', 'color: red')"
        await stage.page.run(policy)
        await stage.page.until("true")
        assert len(violations(stage.page)) == 1
        stage.page.logged.clear()


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
async def test_axe_finds_nothing(browser: Chromium, scheme: str, width: int) -> None:
    """Before, and with an edit and its mask; and nothing is wider than the screen."""
    async with playing(browser, width=width) as stage:
        page = stage.page
        media = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in media.items()]
        await page.call("Emulation.setEmulatedMedia", features=features)
        await page.run(AXE.read_text("utf-8") + ";undefined")
        assert await audited(page) == []
        await stage.draw("a red boat")
        await stage.shows("a red boat")
        await page.click("figcaption button:last-of-type")
        await page.until("document.querySelector('#brush canvas').width === 1024")
        await page.run("document.querySelector('#events details').open = true")
        assert await audited(page) == []
        await page.click("[name=forget]")
        overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert await page.run(overflow) == 0


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_after_a_failure(browser: Chromium, scheme: str) -> None:
    async with (
        serve(fails) as upstream,
        running_proxy(upstream.url, playground=True) as proxy,
        opened(browser, f"{proxy.url}/") as page,
    ):
        await page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        await page.run(AXE.read_text("utf-8") + ";undefined")
        await Stage(upstream, proxy.url, page).draw("a red boat")
        await page.until(FAILED)
        assert await audited(page) == []


async def audited(page: Page) -> list[object]:
    """The violations that axe calls serious or critical."""
    found: Any = await page.run("axe.run().then(({ violations }) => violations)")
    return [
        (one["id"], [node["html"][:120] for node in one["nodes"]])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
