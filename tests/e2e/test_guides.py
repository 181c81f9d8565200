"""The samples of Eden AI's guides, as they stand there: what they send, and how they read the answer."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import orjson
import pytest

from streamproxy.core.images import probe
from streamproxy.simulator import running
from streamproxy.simulator.pictures import draw, encode
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Send, error_answer, event, head, json_answer, sse
from streamproxy.simulator.server import Server, serve
from tests.support.proxy import Proxy, events, no_leaks, running_proxy

pytestmark = pytest.mark.anyio

PNG: Final = encode(draw("a lighthouse", 64, 48), "png")
B64: Final = base64.b64encode(PNG).decode()
COMPLETED: Final = "image_generation.completed"
USAGE: Final = {"total_tokens": 291, "input_tokens": 19, "output_tokens": 272}
"""The guide's example of an answer, whose cost is 0.010975."""


@asynccontextmanager
async def answering(
    *items: dict[str, object], model: str = "openai/gpt-image-1"
) -> AsyncIterator[tuple[Proxy, Server]]:
    """A proxy whose provider makes these items, streamed or not, and has the picture at /file.png."""

    def handle(received: Received) -> Script:
        if received.method == "GET":
            return (Send(head(200, (("Content-Type", "image/png"),), length=len(PNG))), Send(PNG))
        if b'"stream":true' in received.body:
            return sse([event(COMPLETED, orjson.dumps({"type": COMPLETED, **items[0], "usage": USAGE}))])
        return json_answer(200, {"created": 1779792103, "data": [*items], "usage": USAGE})

    async with (
        no_leaks(),
        serve(handle) as server,
        running_proxy(server.url, provider={"models": [model]}, fetch_hosts=("127.0.0.1",)) as proxy,
    ):
        yield proxy, server


async def test_an_answer_is_read_by_its_members() -> None:
    """`image["url"] or image["b64_json"]`, on a dict: both are there, and so is `revised_prompt`."""
    async with answering({"b64_json": B64}) as (proxy, _):
        result = (await proxy.generate(model="openai/gpt-image-1", size="1024x1024", n=1)).json()
        image = result["data"][0]
        assert image == {"b64_json": B64, "url": None, "revised_prompt": None}
        assert (image["url"] or image["b64_json"][:60]) == B64[:60]
        assert base64.b64decode(image["b64_json"]) == PNG


async def test_a_url_is_read_the_same_way() -> None:
    async with answering({"url": "https://cdn.example/a.png"}) as (proxy, _):
        image = (await proxy.generate(model="openai/gpt-image-1", response_format="url")).json()["data"][0]
        assert image.keys() >= {"url", "b64_json", "revised_prompt"}
        assert image["url"]


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v3/images/generations"])
async def test_the_guides_bill(path: str) -> None:
    """19 tokens in and 272 out at 5 and 40 USD a million."""
    async with answering({"b64_json": B64}) as (proxy, _):
        whole = (await proxy.generate(path=path, model="openai/gpt-image-1")).json()
        assert (whole["cost"], whole["provider"], whole["usage"]["total_tokens"]) == (0.010975, "sim", 291)
        [last] = events((await proxy.generate(path=path, model="openai/gpt-image-1", stream=True)).content)
        assert (last.json["cost"], last.json["provider"]) == (0.010975, "sim")


async def test_a_picture_in_a_chat_is_saved() -> None:
    async with running(pace=0) as server, running_proxy(server.url) as proxy:
        body: dict[str, Any] = {"model": "sim/plain", "image_config": {"aspect_ratio": "16:9", "image_size": "1K"}}
        body["messages"] = [{"role": "user", "content": "A nano banana dish in a fancy restaurant"}]
        result = (await proxy.client.post(f"{proxy.url}/v3/chat/completions", json=body)).json()
        content = result["choices"][0]["message"]["content"]
        match = re.match(r"data:image/\w+;base64,(.*)", content)
        assert match is not None
        info = probe(base64.b64decode(match.group(1)))
        assert info is not None
        assert info.width / info.height == pytest.approx(16 / 9, rel=0.02)
        assert result["usage"].keys() == {"prompt_tokens", "completion_tokens", "total_tokens"}
        assert "cost" in result


async def test_a_setting_that_a_model_has_not_is_its_refusal() -> None:
    """gpt-image-2 has no transparent backgrounds: its own 400."""
    message = "Transparent background is not supported for this model."
    refused = error_answer(400, message)
    async with serve(lambda _: refused) as server, running_proxy(server.url) as proxy:
        answer = await proxy.generate(background="transparent")
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)
        assert orjson.loads(server.received[0].body)["background"] == "transparent"


async def test_two_pictures_by_url_and_by_base64() -> None:
    async with answering({"b64_json": B64, "revised_prompt": "r"}, {"url": "https://a.test/b.png"}) as (proxy, _):
        data = (await proxy.generate(model="openai/gpt-image-1", n=2)).json()["data"]
        assert [image["revised_prompt"] for image in data] == ["r", None]
        assert [bool(image["b64_json"] or image["url"]) for image in data] == [True, True]
