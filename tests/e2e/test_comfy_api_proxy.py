"""The Comfy API as Comfy's own server speaks it: the package comfy-api-proxy, before a simulated ComfyUI."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any, Final

import anyio
import orjson
import pytest
from anyio.streams.text import TextReceiveStream
from openai import AsyncOpenAI

from tests.e2e.test_wires import EDIT_GRAPH, GRAPH, PNG, size_of
from tests.support.comfyui import Comfy, comfyui
from tests.support.proxy import BOUND, PROMPT, Proxy, running_proxy

pytestmark = pytest.mark.anyio

RUNNING: Final = re.compile(r"Running on (http://127\.0\.0\.1:\d+)")
COMMAND: Final = "from comfy_api_proxy.cli import main; raise SystemExit(main())"
DRAFT, MADE = (32, 32), (64, 48)


@asynccontextmanager
async def served(comfy: Comfy) -> AsyncIterator[str]:
    """The address of comfy-api-proxy, in a process of its own."""
    command = [sys.executable, "-uc", COMMAND, "run", "--port", "0", "--comfyui", comfy.url]
    async with await anyio.open_process(command, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL) as process:
        try:
            assert process.stdout is not None
            said = ""
            with anyio.fail_after(2 * BOUND):
                async for text in TextReceiveStream(process.stdout):
                    said += text
                    if found := RUNNING.search(said):
                        break
            assert found is not None
            yield found[1]
        finally:
            process.kill()


@asynccontextmanager
async def painting(comfy: Comfy, tmp_path: Path) -> AsyncIterator[tuple[Proxy, AsyncOpenAI]]:
    for name, graph in (("painter", GRAPH), ("editor", EDIT_GRAPH)):
        (tmp_path / f"{name}.json").write_bytes(orjson.dumps(graph))
    workflows = {name: str(tmp_path / f"{name}.json") for name in ("painter", "editor")}
    async with comfyui(comfy), served(comfy) as url:
        row = {"base_url": url, "credential": "none", "workflows": workflows}
        chosen: dict[str, Any] = {"providers": {"comfyui": row}}
        async with (
            running_proxy(url, **chosen) as proxy,
            AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="callers", max_retries=0) as client,
        ):
            with anyio.fail_after(2 * BOUND):
                yield proxy, client


async def test_previews_and_the_picture(tmp_path: Path) -> None:
    comfy = Comfy()
    async with painting(comfy, tmp_path) as (_, client):
        made = await client.images.generate(
            model="painter", prompt=PROMPT, stream=True, partial_images=2, size="512x512"
        )
        seen = [(event.type, size_of(event.b64_json)) async for event in made]
    *previews, last = seen
    assert set(previews) == {("image_generation.partial_image", DRAFT)}  # those of a moment are joined there
    assert last == ("image_generation.completed", MADE)
    [prompt] = comfy.prompts
    assert prompt["prompt"]["6"]["inputs"]["text"] == PROMPT
    assert prompt["prompt"]["5"]["inputs"] == {"width": 512, "height": 512, "batch_size": 1}
    assert comfy.cancelled == []


async def test_an_edit_uploads_its_image(tmp_path: Path) -> None:
    comfy = Comfy()
    async with painting(comfy, tmp_path) as (_, client):
        made = await client.images.edit(model="editor", image=("in.png", PNG, "image/png"), prompt=PROMPT)
        assert made.data is not None
        assert size_of(made.data[0].b64_json) == MADE
    assert comfy.uploads == [PNG]
    assert comfy.prompts[0]["prompt"]["7"]["inputs"]["image"] == "given.png"


async def test_a_job_that_fails(tmp_path: Path) -> None:
    comfy = Comfy(fails=True)
    async with painting(comfy, tmp_path) as (proxy, _):
        answer = await proxy.generate(model="painter")
        assert answer.status_code == 502
        assert "Out of memory" in answer.json()["error"]["message"]
    assert len(comfy.prompts) == 1


async def test_a_caller_who_leaves_cancels_the_job(tmp_path: Path) -> None:
    comfy = Comfy(holds=True)
    async with painting(comfy, tmp_path) as (proxy, _):
        with anyio.move_on_after(1.0):
            await proxy.generate(model="painter")
        await comfy.told.wait()
    assert comfy.cancelled == [comfy.prompts[0]["prompt_id"]]
