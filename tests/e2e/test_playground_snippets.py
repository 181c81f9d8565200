"""The playground's pure modules in Node, and its programs: each is run as it stands against a proxy.

Its checks that need no proxy are in node/playground.mjs, one check for one test here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import orjson
import pytest

from streamproxy import simulator
from streamproxy.simulator import Server, pictures
from streamproxy.simulator.order import Order, read_order
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Send, head
from streamproxy.simulator.server import serve
from tests.e2e.node.runner import HERE, needs_node
from tests.support.chromium import Chromium, chromium, needs_chromium
from tests.support.proxy import BOUND, Proxy, running_proxy

CHECKS: Final = HERE / "playground.mjs"
MODULES: Final = HERE / "node_modules"
CLIENT: Final = Path(__file__).parents[2] / "streamproxy" / "web" / "static"

PROMPT: Final = """it's "a" $HOME `id` \\ </script><b>é😀
second line"""
"""Hard on every language's quotes."""

MEMBERS: Final = {"model": "sim/gpt-image", "prompt": PROMPT, "partial_images": 1, "size": "64x64"}

pytestmark = [pytest.mark.anyio, needs_node]


def node(*words: str) -> str:
    done = subprocess.run(["node", *words], capture_output=True, text=True, timeout=BOUND, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_check() -> None:
    """The list is not empty, and each check passes in a process of its own."""
    names = node(str(CHECKS), "--list").splitlines()
    assert len(names) >= 5
    for name in names:
        node(str(CHECKS), name)


@asynccontextmanager
async def programs(**members: object) -> AsyncIterator[tuple[Server, Proxy, dict[str, str]]]:
    """The simulator, the proxy, and the programs by their languages."""
    async with (
        simulator.running(pace=0) as upstream,
        running_proxy(upstream.url, cors_origins=("http://127.0.0.1:*",)) as proxy,
    ):
        made = node(str(CHECKS), "--snippets", proxy.url, orjson.dumps({**MEMBERS, **members}).decode())
        yield upstream, proxy, orjson.loads(made)


async def ran(command: list[str], cwd: Path) -> str:
    environ = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with anyio.fail_after(2 * BOUND):
        done = await anyio.run_process(command, check=False, cwd=cwd, env=environ)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()[-2000:]
    return done.stdout.decode()


def order(upstream: Server) -> Order:
    """The one order that has arrived."""
    assert upstream.calls == 1
    (received,) = upstream.received
    edit = received.target.endswith("edits")
    return read_order(received.body, received.header("content-type") or "", edit=edit)


def wanted(upstream: Server) -> None:
    made = order(upstream)
    assert (made.prompt, made.width, made.partial_images, made.stream) == (PROMPT, 64, 1, True)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl(tmp_path: Path) -> None:
    async with programs() as (upstream, _, made):
        assert "event: image_generation.completed" in await ran(["sh", "-c", made["curl"]], tmp_path)
        wanted(upstream)


async def test_python(tmp_path: Path) -> None:
    async with programs() as (upstream, _, made):
        await ran([sys.executable, "-c", made["Python"]], tmp_path)
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
        wanted(upstream)


async def test_javascript(tmp_path: Path) -> None:
    async with programs() as (upstream, proxy, made):
        text = made["JavaScript"].replace(f"{proxy.url}/client.js", (CLIENT / "client.js").as_uri())
        (tmp_path / "a.mjs").write_text(text)
        assert "completed" in await ran(["node", "a.mjs"], tmp_path)
        wanted(upstream)


EDIT: Final = {"images": [{"file_id": "upl_1"}], "mask": {"file_id": "upl_2"}}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("language", ["curl", "Python"])
async def test_an_edit(language: str, tmp_path: Path) -> None:
    """Of files in the current folder."""
    picture = pictures.encode(pictures.draw("a", 64, 64), "png")
    for name in ("picture.png", "mask.png"):
        (tmp_path / name).write_bytes(picture)
    command = {"curl": ["sh", "-c"], "Python": [sys.executable, "-c"]}[language]
    async with programs(**EDIT) as (upstream, _, made):
        await ran([*command, made[language]], tmp_path)
        edit = order(upstream)
        assert (edit.images, edit.mask, edit.prompt) == ((picture,), picture, PROMPT)


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as running:
        yield running


@asynccontextmanager
async def page_of(body: str) -> AsyncIterator[str]:
    """The URL of a page of another origin."""
    raw = f"<!doctype html><meta charset=utf-8><link rel=icon href=data:,>{body}".encode()

    def handler(_: Received) -> Script:
        return (Send(head(200, (("Content-Type", "text/html; charset=utf-8"),), length=len(raw))), Send(raw))

    async with serve(handler) as origin:
        yield origin.url


@needs_chromium
async def test_html(browser: Chromium) -> None:
    async with programs() as (upstream, _, made), page_of(made["HTML"]) as url, browser.page(url) as page:
        await page.until("document.querySelector('progressive-image').state === 'completed'")
        assert await page.run("document.querySelector('progressive-image').getAttribute('alt')") == PROMPT
        wanted(upstream)


@needs_chromium
async def test_event_source(browser: Chromium) -> None:
    async with programs() as (upstream, proxy, made), page_of("") as url, browser.page(url) as page:
        await page.run("window.said = []; console.log = (text) => said.push(text)")
        await page.run(f"(async () => {{ {made['EventSource']} }})()")
        await page.until("said.some((text) => text.includes('/images/0?'))")
        said = await page.run("said.at(-1)")
        assert str(said).startswith(proxy.url)
        wanted(upstream)


@pytest.mark.skipif(not (MODULES / "typescript").is_dir(), reason="typescript is not installed")
async def test_react_compiles(tmp_path: Path) -> None:
    async with programs() as (_, _, made):
        (tmp_path / "a.tsx").write_text(made["React"])
    package = tmp_path / "node_modules" / "streamproxy-client"
    package.mkdir(parents=True)
    for name in ("client", "element", "react"):
        for ending in ("js", "d.ts"):
            shutil.copy(CLIENT / f"{name}.{ending}", package)
    for name in ("@types", "react"):
        os.symlink(MODULES / name, tmp_path / "node_modules" / name)
    (package / "package.json").write_text('{"type": "module", "exports": {"./react": "./react.js"}}')
    options = ["--strict", "--noEmit", "--jsx", "react-jsx", "--lib", "es2022,dom", "--target", "es2022"]
    options += ["--module", "nodenext", "--moduleResolution", "nodenext", "--types", "react"]
    (tmp_path / "package.json").write_text('{"type": "module"}')
    await ran(["node", str(MODULES / "typescript" / "bin" / "tsc"), *options, "a.tsx"], tmp_path)
