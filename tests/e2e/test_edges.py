"""The unmodified SDKs behind real edges that wait a third of the time of the model: one paid call, one image."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio
import pytest
from openai import AsyncOpenAI

from streamproxy.simulator.received import Received, Server
from streamproxy.simulator.script import Script, Wait, json_answer, sse
from streamproxy.simulator.server import serve
from tests.e2e.node.runner import Call, needs_node, run_node
from tests.support.edges import EDGES, edge
from tests.support.faults import IMAGE_BODY
from tests.support.provider import COMPLETED, completed
from tests.support.proxy import BOUND, PROMPT, no_leaks, running_proxy

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("name", EDGES)]

TIMEOUT: Final = 0.5
MODEL_SECONDS: Final = 3 * TIMEOUT
IMAGE: Final = "aW1hZ2U="


def slow(received: Received) -> Script:
    """An answer without streaming, or a stream whose head comes as late."""
    streamed = b'"stream":true' in received.body
    return (Wait(MODEL_SECONDS), *(sse((completed(),)) if streamed else json_answer(200, IMAGE_BODY)))


@asynccontextmanager
async def behind(name: str, *, json_heartbeat: float = 0.0) -> AsyncIterator[tuple[str, Server]]:
    """A proxy behind this edge, before the slow provider: the edge's URL."""
    with anyio.fail_after(2 * BOUND):
        async with (
            no_leaks(),
            serve(slow) as server,
            running_proxy(server.url, disconnect_grace=15, json_heartbeat=json_heartbeat) as proxy,
            edge(EDGES[name], proxy.port, timeout=TIMEOUT) as url,
        ):
            yield url, server


async def test_a_plain_call_of_openai_python_is_paid_once(name: str) -> None:
    async with behind(name) as (url, server), AsyncOpenAI(api_key="k", base_url=f"{url}/v1") as client:
        answer = await client.images.generate(model="sim/gpt-image", prompt=PROMPT)
        assert answer.data is not None
        assert [image.b64_json for image in answer.data] == [IMAGE]
        assert server.calls == 1


async def test_a_form_of_openai_python_is_paid_once(name: str) -> None:
    async with behind(name) as (url, server), AsyncOpenAI(api_key="k", base_url=f"{url}/v1") as client:
        answer = await client.images.edit(model="sim/gpt-image", prompt=PROMPT, image=("a.png", b"\x89PNG" + bytes(99)))
        assert answer.data is not None
        assert [image.b64_json for image in answer.data] == [IMAGE]
        assert server.calls == 1


async def test_a_stream_of_openai_python_is_paid_once(name: str) -> None:
    async with behind(name) as (url, server):
        async with AsyncOpenAI(api_key="k", base_url=f"{url}/v1") as client:
            stream = await client.images.generate(model="sim/gpt-image", prompt=PROMPT, stream=True)
            assert [event.type async for event in stream] == [COMPLETED]
        assert server.calls == 1


@needs_node
async def test_calls_of_openai_node_are_paid_once(name: str) -> None:
    plain: Call = {"method": "generate", "body": {"model": "sim/gpt-image", "prompt": PROMPT}, "retries": 2}
    form: Call = {
        "method": "edit",
        "body": {"model": "sim/gpt-image", "prompt": PROMPT},
        "files": 1,
        "picture": "iVBORw0KGgo=",
        "retries": 2,
    }
    async with behind(name) as (url, server):
        for seen in await run_node(url, [plain, form]):
            assert seen["error"] is None
            assert [image["b64_json"] for image in seen["answer"]["data"]] == [IMAGE]
        assert server.calls == 2


async def test_an_answer_with_white_space_in_it_needs_no_retry(name: str) -> None:
    async with behind(name, json_heartbeat=TIMEOUT / 4) as (url, server):
        async with AsyncOpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0) as client:
            answer = await client.images.generate(model="sim/gpt-image", prompt=PROMPT)
            assert answer.data is not None
            assert [image.b64_json for image in answer.data] == [IMAGE]
        assert server.calls == 1
