"""ComfyUI by the API that every ComfyUI has: previews over a WebSocket, the picture from its history."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import orjson
import pytest
from openai import AsyncOpenAI

from tests.e2e.test_wires import EDIT_GRAPH, GRAPH, KEY, PNG, size_of
from tests.support.comfyui import Comfy, comfyui
from tests.support.proxy import BOUND, PROMPT, Proxy, events, running_proxy

pytestmark = pytest.mark.anyio

PREVIEW: Final = "image_generation.partial_image"
COMPLETED: Final = "image_generation.completed"


@asynccontextmanager
async def painting(server: Comfy, tmp_path: Path) -> AsyncIterator[Proxy]:
    """A proxy of this ComfyUI; its workflows are `painter` and `editor`."""
    for name, graph in (("painter", GRAPH), ("editor", EDIT_GRAPH)):
        (tmp_path / f"{name}.json").write_bytes(orjson.dumps(graph))
    workflows = {name: str(tmp_path / f"{name}.json") for name in ("painter", "editor")}
    async with comfyui(server):
        row = {"adapter": "comfyui-websocket", "base_url": server.url, "credential": "env:KEY", "workflows": workflows}
        chosen: dict[str, Any] = {"providers": {"comfyui": row}}
        async with running_proxy(server.url, environ={"KEY": KEY}, **chosen) as proxy:
            with anyio.fail_after(2 * BOUND):
                yield proxy


@pytest.mark.parametrize("breaks", [False, True])
async def test_previews_by_websocket_the_picture_in_any_case(breaks: bool, tmp_path: Path) -> None:
    server = Comfy(breaks=breaks)
    async with painting(server, tmp_path) as proxy:
        answer = await proxy.generate(model="painter", stream=True, partial_images=2, size="512x256")
        found = events(answer.content)
        assert [event.event for event in found] == [PREVIEW, PREVIEW, COMPLETED]
        assert [size_of(str(event.json["b64_json"])) for event in found] == [(32, 32), (32, 32), (64, 48)]
        [prompt] = server.prompts
        assert prompt["prompt"]["6"]["inputs"]["text"] == PROMPT
        assert prompt["prompt"]["5"]["inputs"] == {"width": 512, "height": 256, "batch_size": 1}
        assert set(server.keys) == {KEY}
        assert server.cancelled == []


async def test_an_edit_uploads_its_image_first(tmp_path: Path) -> None:
    server = Comfy()
    async with painting(server, tmp_path) as proxy:
        body = {
            "model": "editor",
            "prompt": PROMPT,
            "images": [{"image_url": "data:image/png;base64," + base64.b64encode(PNG).decode()}],
        }
        answer = await proxy.client.post(f"{proxy.url}/v1/images/edits", json=body)
        assert answer.status_code == 200, answer.text
        assert size_of(answer.json()["data"][0]["b64_json"]) == (64, 48)
        assert server.uploads == [PNG]
        assert server.prompts[0]["prompt"]["7"]["inputs"]["image"] == "given.png"


async def test_a_job_that_fails_is_a_failure_and_is_not_cancelled(tmp_path: Path) -> None:
    server = Comfy(fails=True)
    async with painting(server, tmp_path) as proxy:
        answer = await proxy.generate(model="painter")
        assert answer.status_code == 502
        assert answer.headers["x-should-retry"] == "false"
        assert "Out of memory" in answer.json()["error"]["message"]
        assert len(server.prompts) == 1


async def test_a_caller_who_leaves_cancels_the_job(tmp_path: Path) -> None:
    server = Comfy(holds=True)
    async with painting(server, tmp_path) as proxy:
        with anyio.move_on_after(1.0):
            await proxy.generate(model="painter")
        with anyio.fail_after(BOUND):
            await server.told.wait()
        assert server.cancelled == [server.prompts[0]["prompt_id"]]


@pytest.mark.parametrize("edit", [True, False])
async def test_previews_reach_the_sdk(edit: bool, tmp_path: Path) -> None:
    server = Comfy()
    async with (
        painting(server, tmp_path) as proxy,
        AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="callers", max_retries=0) as client,
    ):
        kinds: list[tuple[str, tuple[int, int]]]
        if edit:
            edits = await client.images.edit(
                model="editor", image=("in.png", PNG, "image/png"), prompt=PROMPT, stream=True, partial_images=2
            )
            kinds = [(event.type, size_of(event.b64_json)) async for event in edits]
        else:
            made = await client.images.generate(model="painter", prompt=PROMPT, stream=True, partial_images=2)
            kinds = [(event.type, size_of(event.b64_json)) async for event in made]
        family = "image_edit" if edit else "image_generation"
        types = [f"{family}.partial_image"] * 2 + [f"{family}.completed"]
        assert kinds == list(zip(types, [(32, 32), (32, 32), (64, 48)], strict=True))
        assert len(server.prompts) == 1
        assert server.uploads == ([PNG] if edit else [])
