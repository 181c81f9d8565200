"""The recipes, each as it stands: built by its framework's compiler, and run in Chromium in front of the simulator.

Their backend is the first recipe's, in Node; it alone has the caller's key.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Final

import anyio
import orjson
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from streamproxy import simulator
from streamproxy.simulator import Server
from tests.e2e.node.runner import HERE as NODE
from tests.e2e.node.runner import needs_node
from tests.support.chromium import Chromium, chromium, needs_chromium
from tests.support.proxy import BOUND, Proxy, running_proxy

MODULES: Final = NODE / "node_modules"
NEEDED: Final = ("esbuild", "svelte", "vue", "react", "ai", "typescript")
MISSING: Final = [name for name in NEEDED if not (MODULES / name).is_dir()]

pytestmark = [
    pytest.mark.anyio,
    needs_node,
    needs_chromium,
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} of npm is not installed"),
]

PAGE: Final = files("streamproxy").joinpath("docs", "recipes.md").read_text("utf-8")
ADDRESS: Final = "http://127.0.0.1:8080"
KEY: Final = "a-caller-of-the-recipes"
FILES: Final = ("app/api/pictures/route.ts", "app/picture.tsx", "Picture.vue", "Picture.svelte", "plain.html")
CHAT_FILES: Final = ("app/api/chat/route.ts", "app/message.tsx")
NODE_TYPES: Final = "declare const process: { env: Record<string, string | undefined> };"
COMPLETED: Final = "document.querySelector('progressive-image')?.state === 'completed'"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipes as files, beside links to the npm packages."""
    folder = tmp_path_factory.mktemp("recipes")
    found = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    names = (*FILES, *CHAT_FILES)
    assert [kind for kind, _ in found] == [name.rpartition(".")[2] for name in names]
    for name, (_, text) in zip(names, found, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "node.d.ts").write_text(NODE_TYPES)
    return folder


@asynccontextmanager
async def cooking(project: Path, tmp_path: Path) -> AsyncIterator[tuple[Server, str]]:
    """The simulator, and the URL of the recipes' server, whose packages come from the proxy."""
    keys = (f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}",)
    async with (
        simulator.running(pace=0.02) as upstream,
        running_proxy(upstream.url, caller_keys=keys, cors_origins=("http://127.0.0.1:*",)) as proxy,
    ):
        await installed(project, tmp_path, proxy)
        plain = project / "plain.html"
        plain.write_text(re.sub(r"http://127\.0\.0\.1:\d+", proxy.url, plain.read_text()))
        async with served(project, proxy) as url:
            yield upstream, url


async def installed(project: Path, tmp_path: Path, proxy: Proxy) -> None:
    npm = ["npm", "install", "--no-audit", "--no-fund", "--no-update-notifier", "--no-package-lock", "--no-save"]
    npm += [f"--cache={tmp_path / 'cache'}", "--registry=http://127.0.0.1:9", "--fetch-retries=0"]
    with anyio.fail_after(2 * BOUND):
        done = await anyio.run_process([*npm, f"{proxy.url}/client.tgz"], check=False, cwd=project, env=environ())
    assert done.returncode == 0, done.stderr.decode()[-2000:]


def environ(**more: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return {**own, **more}


@asynccontextmanager
async def served(project: Path, proxy: Proxy) -> AsyncIterator[str]:
    env = environ(STREAMPROXY_URL=f"{proxy.url}/v1", STREAMPROXY_KEY=KEY, IMAGE_MODEL="sim/gpt-image")
    command = ["node", str(NODE / "recipes.mjs"), str(project)]
    process = await anyio.open_process(command, env=env, stderr=None)
    try:
        assert process.stdout is not None
        with anyio.fail_after(2 * BOUND):
            yield (await BufferedByteReceiveStream(process.stdout).receive_until(b"\n", 200)).decode()
    finally:
        process.terminate()
        with anyio.CancelScope(shield=True):
            await process.aclose()


async def test_recipes_in_chromium(browser: Chromium, project: Path, tmp_path: Path) -> None:
    """Each orders by its button, and shows the picture; the page never has the key."""
    async with cooking(project, tmp_path) as (upstream, url):
        for number, name in enumerate(("next", "vue", "svelte", "plain"), start=1):
            async with browser.page(f"{url}/{name}") as page:
                await page.until("document.querySelector('button')")
                await page.click("button")
                await page.until(COMPLETED)
                alt = "document.querySelector('progressive-image').getAttribute('alt')"
                assert await page.run(alt) == "a lighthouse at dusk"
                assert KEY not in str(await page.run("document.documentElement.outerHTML"))
            assert upstream.calls == number, name


async def test_a_picture_in_a_chat(browser: Chromium, project: Path, tmp_path: Path) -> None:
    """The message has the part at once, and the picture forms in it."""
    async with cooking(project, tmp_path) as (upstream, url), browser.page(f"{url}/chat") as page:
        await page.run("send('a red boat')")
        await page.until(COMPLETED)
        assert await page.run("document.querySelector('progressive-image').getAttribute('alt')") == "a red boat"
        assert orjson.loads(upstream.received[-1].body)["prompt"] == "a red boat"
        assert upstream.calls == 1


async def test_recipes_compile_strictly(project: Path, tmp_path: Path) -> None:
    async with simulator.running(pace=0) as upstream, running_proxy(upstream.url) as proxy:
        await installed(project, tmp_path, proxy)
    for name in ("react", "@types", "ai", "csstype"):
        place = project / "node_modules" / name
        if not place.exists():
            os.symlink(MODULES / name, place)
    options = ["--strict", "--noEmit", "--skipLibCheck", "--jsx", "react-jsx", "--lib", "es2022,dom,dom.iterable"]
    options += ["--module", "esnext", "--moduleResolution", "bundler", "--target", "es2022", "--types", "react"]
    names = [name for name in (*FILES, *CHAT_FILES) if name.endswith(("ts", "tsx"))]
    command = ["node", str(MODULES / "typescript" / "bin" / "tsc"), *options, "node.d.ts", *names]
    with anyio.fail_after(2 * BOUND):
        done = await anyio.run_process(command, cwd=project, check=False)
    assert done.returncode == 0, done.stdout.decode()[-3000:]
