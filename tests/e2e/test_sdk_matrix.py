"""Every shape of tests/golden behind the proxy, read by the official SDKs: a completed image or a typed error.

Never silence (an iteration that ends with neither), never a crash of the SDK's own parser.
"""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator
from dataclasses import dataclass

import anyio
import orjson
import pytest
from openai import APIError, AsyncOpenAI
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent
from PIL import Image

from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Fin, Script, Send, chunk, head
from streamproxy.simulator.server import serve
from tests.e2e.node.runner import Call, Seen, needs_node, run_node
from tests.golden.shapes import SHAPES, Shape
from tests.support.proxy import Proxy, running_proxy

pytestmark = pytest.mark.anyio

BY_MODEL = {f"sim/shape-{number}": shape for number, shape in enumerate(SHAPES)}


def _script(received: Received) -> Script:
    shape = BY_MODEL[orjson.loads(received.body)["model"]]
    headers = shape.headers if shape.content_type is None else (("content-type", shape.content_type), *shape.headers)
    if shape.answers == 204:
        return (Send(head(204, headers)),)
    body = [Send(chunk(shape.body))] if shape.body else []
    end = Fin() if shape.cut else Send(b"0\r\n\r\n")
    return (Send(head(shape.answers, headers, chunked=True)), *body, end)


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async with serve(_script) as upstream, running_proxy(upstream.url) as running:
        yield running


@dataclass(frozen=True, slots=True)
class Outcome:
    """The SDK's result. `status`: None for an error inside a stream, 200 without an error."""

    previews: int
    completed: int
    code: str | None
    status: int | None


def _expected(shape: Shape, *, streamed: bool) -> Outcome:
    if shape.code is None:
        return Outcome(shape.previews if streamed else 0, 1, None, 200)
    begun = streamed and shape.previews > 0
    return Outcome(shape.previews if begun else 0, 0, shape.code, None if begun else shape.status)


def _decodes(b64: str | None) -> None:
    with Image.open(io.BytesIO(base64.b64decode(b64 or "", validate=True))) as picture:
        picture.load()


async def _python(client: AsyncOpenAI, model: str, *, streamed: bool) -> Outcome:
    previews = completed = 0
    try:
        if not streamed:
            answer = await client.images.generate(model=model, prompt="x")
            assert answer.data is not None
            [image] = answer.data
            _decodes(image.b64_json)
            return Outcome(0, 1, None, 200)
        async for event in await client.images.generate(model=model, prompt="x", stream=True):
            if isinstance(event, ImageGenCompletedEvent):
                completed += 1
                assert event.usage.input_tokens_details.image_tokens == 0
            else:
                assert isinstance(event, ImageGenPartialImageEvent)
                previews += 1
            _decodes(event.b64_json)
    except APIError as error:
        return Outcome(previews, completed, error.code, getattr(error, "status_code", None))
    return Outcome(previews, completed, None, 200)


def _node(seen: Seen) -> Outcome:
    types = [event["type"] for event in seen["events"]]
    assert set(types) <= {"image_generation.partial_image", "image_generation.completed"}
    for image in seen["events"] or (seen["answer"] or {}).get("data", ()):
        _decodes(image["b64_json"])
    previews = types.count("image_generation.partial_image")
    completed = len(types) - previews if seen["answer"] is None else len(seen["answer"]["data"])
    error = seen["error"]
    if error is None:
        return Outcome(previews, completed, None, 200)
    assert error["api"], error
    return Outcome(previews, completed, error["code"], error["status"])


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "not streamed"])
async def test_python(proxy: Proxy, streamed: bool) -> None:
    seen = {}
    async with AsyncOpenAI(api_key="none", base_url=f"{proxy.url}/v1", max_retries=0) as client:
        for model, shape in BY_MODEL.items():
            with anyio.fail_after(10):
                seen[shape.name] = await _python(client, model, streamed=streamed)
    assert seen == {shape.name: _expected(shape, streamed=streamed) for shape in SHAPES}


@needs_node
@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "not streamed"])
async def test_node(proxy: Proxy, streamed: bool) -> None:
    calls: list[Call] = [
        {"method": "generate", "body": {"model": model, "prompt": "x", "stream": streamed}} for model in BY_MODEL
    ]
    found = await run_node(proxy.url, calls)
    seen = {shape.name: _node(one) for shape, one in zip(SHAPES, found, strict=True)}
    assert seen == {shape.name: _expected(shape, streamed=streamed) for shape in SHAPES}
