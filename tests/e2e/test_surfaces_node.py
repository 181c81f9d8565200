"""Chats and responses through the unmodified openai-node, and responses through the AI SDK's own image tool."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any, Final

import anyio
import orjson
import pytest

from streamproxy.core.images import probe
from streamproxy.simulator import Server, running
from streamproxy.simulator.pictures import draw, encode
from streamproxy.simulator.script import Script, Send, event, head, json_answer, sse
from streamproxy.simulator.server import Received, serve
from tests.e2e.node.runner import BOUND, HERE, Call, needs_node, run_node
from tests.support.provider import preview
from tests.support.proxy import Proxy, running_proxy

pytestmark = [pytest.mark.anyio, needs_node]

needs_ai = pytest.mark.skipif(not (HERE / "node_modules" / "ai").is_dir(), reason="the AI SDK is not installed")
CALL: Final = "response.image_generation_call"


@pytest.fixture
async def sim() -> AsyncIterator[Server]:
    async with running(pace=0) as server:
        yield server


@pytest.fixture
async def proxy(sim: Server) -> AsyncIterator[Proxy]:
    async with running_proxy(sim.url) as running_one:
        yield running_one


def respond(**members: object) -> Call:
    tool = {"type": "image_generation", "model": "sim/gpt-image", "size": "256x256", "partial_images": 2}
    return {"method": "respond", "body": {"model": "gpt-5", "input": "x", "tools": [tool], **members}}


def chat(**members: object) -> Call:
    messages = [{"role": "user", "content": "x"}]
    return {"method": "chat", "body": {"model": "sim/plain", "messages": messages, "size": "256x256", **members}}


def size_of(text: str) -> tuple[int, int]:
    info = probe(base64.b64decode(text.rpartition(",")[2], validate=True))
    assert info is not None
    return info.width, info.height


async def test_openai_node(proxy: Proxy) -> None:
    calls = [respond(stream=True), respond(), chat(stream=True, modalities=["image", "text"]), chat()]
    streamed, whole, chunks, completion = await run_node(proxy.url, calls)
    assert all(seen["error"] is None for seen in (streamed, whole, chunks, completion))
    previews = [one for one in streamed["events"] if one["type"] == f"{CALL}.partial_image"]
    assert [size_of(one["partial_image_b64"]) for one in previews] == [(256, 256)] * 2
    assert size_of(streamed["events"][-1]["response"]["output"][0]["result"]) == (256, 256)
    assert size_of(whole["answer"]["output"][0]["result"]) == (256, 256)
    assert [len(one["choices"][0]["delta"].get("images", ())) for one in chunks["events"]] == [0, 1, 0]
    assert size_of(completion["answer"]["choices"][0]["message"]["content"]) == (256, 256)


async def test_openai_node_sees_refusals_and_failures() -> None:
    def handle(received: Received) -> Script:
        error = {"type": "error", "error": {"message": "No.", "type": "server_error", "code": "moderation_blocked"}}
        return sse([preview(0), event("error", orjson.dumps(error))])

    async with serve(handle) as server, running_proxy(server.url) as proxy:
        calls = [chat(model="sim/gpt-image", stream=True), respond(stream=True), chat(n=99), respond(input=[7])]
        failed, ended, many, wrong = await run_node(proxy.url, calls)
        assert (failed["error"]["name"], failed["error"]["code"]) == ("APIError", "moderation_blocked")
        assert [one["type"] for one in ended["events"][-2:]] == ["error", "response.failed"]
        assert (many["error"]["status"], many["error"]["param"]) == (422, "n")
        assert (wrong["error"]["status"], wrong["error"]["param"]) == (422, "input[0]")
        assert server.calls == 2


async def run_ai(url: str, model: str, *more: str, program: str = "tool.mjs") -> dict[str, Any]:
    with anyio.fail_after(BOUND):
        ran = await anyio.run_process(["node", str(HERE / program), f"{url}/v1", model, *more], check=False)
    assert ran.returncode == 0, ran.stderr.decode()
    found = orjson.loads(ran.stdout)
    assert isinstance(found, dict)
    return found


@needs_ai
async def test_the_ai_sdk_shows_previews_and_the_picture(proxy: Proxy, sim: Server) -> None:
    seen = await run_ai(proxy.url, "sim/gpt-image", "stream")
    assert seen["errors"] == []
    assert [size_of(one) for one in seen["results"]] == [(1024, 1024)] * 3  # two previews, and the picture
    assert len(set(seen["results"])) == 3
    assert seen["usage"]["totalTokens"] > 0
    assert len(sim.received) == 1


@needs_ai
async def test_the_ai_sdk_reads_the_answer(proxy: Proxy) -> None:
    seen = await run_ai(proxy.url, "sim/plain", "whole")
    assert [size_of(one) for one in seen["results"]] == [(1024, 1024)]
    assert seen["finish"] == "stop"


@needs_ai
async def test_the_ai_sdk_sees_a_failure() -> None:
    def handle(received: Received) -> Script:
        error = {"type": "error", "error": {"message": "No.", "type": "server_error", "code": "moderation_blocked"}}
        return sse([preview(0), event("error", orjson.dumps(error))])

    async with serve(handle) as server, running_proxy(server.url) as proxy:
        seen = await run_ai(proxy.url, "sim/gpt-image", "stream")
        assert any("No." in error for error in seen["errors"]), seen["errors"]
        assert server.calls == 1


PNG: Final = encode(draw("a lighthouse", 64, 48), "png")


@needs_ai
@pytest.mark.parametrize("model", ["sim/gpt-image", "gpt-image-1"])
@pytest.mark.parametrize("edit", [False, True])
async def test_the_ai_sdk_reads_pictures_at_urls(model: str, edit: bool) -> None:
    """It reads base64 alone. For names of GPT image models it does not ask for that, for others it does."""

    def handle(received: Received) -> Script:
        if received.method == "GET":
            return (Send(head(200, (("Content-Type", "image/png"),), length=len(PNG))), Send(PNG))
        return json_answer(200, {"created": 1, "data": [{"url": f"{server.url}/lighthouse.png?signature=s"}]})

    row = {"models": ["gpt-image-1", "sim/gpt-image"]}
    async with (
        serve(handle) as server,
        running_proxy(server.url, provider=row, fetch_hosts=("127.0.0.1",)) as proxy,
    ):
        shown = (base64.b64encode(PNG).decode(),) if edit else ()
        seen = await run_ai(proxy.url, model, *shown, program="generate.mjs")
        assert [base64.b64decode(one["base64"]) for one in seen["images"]] == [PNG]
        assert seen["images"][0]["mediaType"] == "image/png"
        posts = [one for one in server.received if one.method == "POST"]
        assert [one.target for one in posts] == [f"/v1/images/{'edits' if edit else 'generations'}"]
