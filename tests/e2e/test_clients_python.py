"""LangChain and LiteLLM, unmodified, against the proxy and the simulator.

Their packages take hundreds of megabytes and have pins of their own. `.ci/run` installs each into an environment beside
this one; `LANGCHAIN_VENV` and `LITELLM_VENV` name those.
"""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import orjson
import pytest

from streamproxy.core.images import probe
from streamproxy.simulator import wires
from streamproxy.simulator.pictures import draw, encode
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, json_answer
from streamproxy.simulator.server import Server, serve
from tests.support.proxy import Proxy, running_proxy

pytestmark = pytest.mark.anyio

HERE: Final = Path(__file__).parent / "python"
WITHIN: Final = 120.0
"""Seconds. Importing either takes up to ten."""

PICTURE: Final = encode(draw("a lighthouse", 64, 48), "png")
LINK: Final = "https://cdn.example/lighthouse.png"


def needs(variable: str) -> pytest.MarkDecorator:
    reason = f"{variable} does not name an environment that has the client; .ci/run makes one"
    return pytest.mark.skipif(not os.environ.get(variable), reason=reason)


@asynccontextmanager
async def standing() -> AsyncIterator[tuple[Proxy, Server]]:
    """A proxy before the simulator, which has one more model: its pictures are at URLs."""
    simulated = wires(0)

    async def handle(received: Received) -> Script:
        if b"sim/linked" in received.body:
            return json_answer(200, {"created": 1, "data": [{"url": LINK}]})
        made = simulated(received)
        return await made if isinstance(made, Awaitable) else made

    async with serve(handle) as server, running_proxy(server.url, inline_urls="asked") as proxy:
        yield proxy, server


async def run(variable: str, *arguments: str) -> dict[str, Any]:
    """What the program in that environment says. No proxies of this machine, and nothing from the network."""
    program = [str(Path(os.environ[variable], "bin", "python")), *arguments]
    own = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGCHAIN_TRACING_V2": "false", "NO_PROXY": "*"}
    with anyio.fail_after(WITHIN):
        ran = await anyio.run_process(program, env={**os.environ, **own}, check=False)
    assert ran.returncode == 0, ran.stderr.decode()[-3000:]
    found = orjson.loads(ran.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def size_of(text: str) -> tuple[int, int]:
    info = probe(base64.b64decode(text.rpartition(",")[2], validate=True))
    assert info is not None
    return info.width, info.height


@needs("LANGCHAIN_VENV")
async def test_langchain_draws_edits_and_chats() -> None:
    async with standing() as (proxy, server):
        seen = await run("LANGCHAIN_VENV", str(HERE / "langchain_calls.py"), f"{proxy.url}/v1")
        for way in ("whole", "streamed", "edited"):
            assert [size_of(picture) for picture in seen[way]] == [(256, 256)], way
        assert seen["chat"].startswith("data:image/png;base64,")
        assert size_of(seen["chat"]) == (1024, 1024)
        assert seen["link"] == LINK
        assert [one.target for one in server.received] == [
            *["/v1/images/generations"] * 2,
            "/v1/images/edits",
            *["/v1/images/generations"] * 2,
        ]


@needs("LITELLM_VENV")
async def test_litellm_draws_edits_and_chats(tmp_path: Path) -> None:
    picture = tmp_path / "in.png"
    picture.write_bytes(PICTURE)
    async with standing() as (proxy, server):
        seen = await run("LITELLM_VENV", str(HERE / "litellm_calls.py"), f"{proxy.url}/v1", str(picture))
        assert [size_of(one) for one in (*seen["made"], *seen["edited"])] == [(256, 256)] * 2
        assert size_of(seen["chat"]) == (1024, 1024)
        assert seen["usage"] > 0
        targets = [one.target for one in server.received]
        assert targets == ["/v1/images/generations", "/v1/images/edits", "/v1/images/generations"]
        assert PICTURE in server.received[1].body
