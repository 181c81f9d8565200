"""client.js in Node, its npm package, its types, and what its parser costs.

What needs no proxy is in node/client.mjs, one check for one test here.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import anyio
import orjson
import pytest

from streamproxy import simulator
from tests.e2e.node.runner import HERE, needs_node
from tests.support.proxy import BOUND, running_proxy

MODULES: Final = HERE / "node_modules"
CHECKS: Final = HERE / "client.mjs"

pytestmark = [pytest.mark.anyio, needs_node]


def node(*words: str) -> str:
    done = subprocess.run(["node", *words], capture_output=True, text=True, timeout=BOUND, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_check() -> None:
    """The list is not empty, and each check passes in a process of its own."""
    names = node(str(CHECKS), "--list").splitlines()
    assert len(names) >= 12
    for name in names:
        node(str(CHECKS), name)


@pytest.mark.skipif(not (MODULES / "eventsource-parser").is_dir(), reason="eventsource-parser is not installed")
def test_half_of_the_cpu_of_eventsource_parser() -> None:
    """From an event of 3 MB to the picture's bytes: a ratio of 0.13 was measured."""
    assert orjson.loads(node(str(HERE / "bench.mjs")))["ratio"] < 0.5


FOLLOW: Final = """
import { createHash } from 'node:crypto';
import { follow, order } from 'streamproxy-client';
import 'streamproxy-client/element';

const ordered = await order({ model: 'sim/gpt-image', prompt: 'a red boat', partial_images: 3, size: '512x512' }, {
  baseUrl: process.argv[2],
});
const following = follow(ordered.stream_url);
const kinds = [];
for await (const event of following) kinds.push(event.kind);
const [picture] = await following.final;
const late = await follow(ordered).final;
await follow(ordered).cancel();
const gone = await follow(ordered.stream_url).final.catch((error) => error.status);
const hash = createHash('sha256').update(Buffer.from(await picture.image.arrayBuffer()));
const last = kinds.pop();
console.log(JSON.stringify({
  kinds: [...new Set(kinds), last], hash: hash.digest('hex'), size: picture.size, late: late.length, gone,
}));
"""


async def test_an_npm_package_that_follows_and_has_types(tmp_path: Path) -> None:
    """Installed from the proxy, imported by its name, compiled with `tsc --strict`; the picture is what was drawn."""
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "follow.mjs").write_text(FOLLOW)
    npm = ["npm", "install", "--no-audit", "--no-fund", "--no-update-notifier", f"--cache={tmp_path / 'cache'}"]
    npm += ["--registry=http://127.0.0.1:9", "--fetch-retries=0"]  # nothing is fetched from elsewhere
    async with simulator.running(pace=0.01) as upstream, running_proxy(upstream.url) as proxy:
        await ran([*npm, f"{proxy.url}/client.tgz"], tmp_path)
        seen = orjson.loads(await ran(["node", "follow.mjs", f"{proxy.url}/v1"], tmp_path))
        drawn = await proxy.generate(prompt="a red boat", size="512x512")
        assert upstream.calls == 2
    assert seen["kinds"][-1] == "completed"
    assert seen["late"] == 1
    assert seen["gone"] == 410
    assert seen["hash"] == hash_of(drawn.json()["data"][0]["b64_json"])
    await compiled(tmp_path)


def hash_of(b64: str) -> str:

    return hashlib.sha256(base64.b64decode(b64)).hexdigest()


async def compiled(project: Path) -> None:
    """The types, by the package's own names."""
    if not (MODULES / "typescript").is_dir():
        pytest.skip("typescript is not installed")
    os.symlink(MODULES / "@types", project / "node_modules" / "@types")
    shutil.copy(HERE / "types.tsx", project)
    options = ["--strict", "--noEmit", "--skipLibCheck", "false", "--jsx", "react-jsx", "--lib", "es2022,dom"]
    target = ["--module", "nodenext", "--target", "es2022", "--types", "react"]
    await ran(["node", str(MODULES / "typescript" / "bin" / "tsc"), *options, *target, "types.tsx"], project)


async def ran(command: list[str], cwd: Path) -> bytes:
    environ = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with anyio.fail_after(2 * BOUND):
        done = await anyio.run_process(command, check=False, cwd=cwd, env=environ)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()[-2000:]
    return done.stdout
