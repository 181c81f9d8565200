"""The requests of Open WebUI and LibreChat, byte for byte as they send them, and the members of answers that they read.

Sources: open-webui 02530d5, routers/images.py and utils/middleware.py; LibreChat 00b3bc3, OpenAIImageTools.js.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx
import orjson
import pytest
from openai import AsyncOpenAI

from streamproxy.core.images import probe
from streamproxy.simulator import Server, running
from streamproxy.simulator.pictures import draw, encode
from tests.support.proxy import PROMPT, Proxy, running_proxy

pytestmark = pytest.mark.anyio

PNG: Final = encode(draw("a lighthouse", 64, 48), "png")
DATA_URL: Final = "data:image/png;base64," + base64.b64encode(PNG).decode()
SIZE: Final = "256x256"


@pytest.fixture
async def sim() -> AsyncIterator[Server]:
    async with running(pace=0) as server:
        yield server


@pytest.fixture
async def proxy(sim: Server) -> AsyncIterator[Proxy]:
    async with running_proxy(sim.url) as running_one:
        yield running_one


def form(fields: dict[str, str], name: str, files: int) -> tuple[bytes, str]:
    """A form as aiohttp writes it: text parts have a content type too."""
    edge = b"5c3bd3c1b1d64f7b9e8f"
    parts = [
        b'Content-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b'
        % (key.encode(), value.encode())
        for key, value in fields.items()
    ]
    file = b'Content-Type: image/png\r\nContent-Disposition: form-data; name="%b"; filename="a.png"\r\n\r\n'
    parts += [file % name.encode() + PNG] * files
    body = b"".join(b"--" + edge + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + edge + b"--\r\n"
    return body, f"multipart/form-data; boundary={edge.decode()}"


def pictures(answer: httpx.Response) -> list[tuple[int, int]]:
    """The sizes of an answer's pictures: a `url` would be fetched with the key, and so must not be there."""
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert not any(image.get("url") for image in data)
    return [size_of(image["b64_json"]) for image in data]


def size_of(text: str) -> tuple[int, int]:
    info = probe(base64.b64decode(text.rpartition(",")[2], validate=True))
    assert info is not None
    return info.width, info.height


@pytest.mark.parametrize("model", ["sim/gpt-image", "sim/plain"])
@pytest.mark.parametrize("query", ["", "?api-version=2025-04-01-preview"])
async def test_open_webui_generates(proxy: Proxy, model: str, query: str) -> None:
    body = {"model": model, "prompt": PROMPT, "n": 1, "size": SIZE, "response_format": "b64_json"}
    headers = {"authorization": "Bearer none", "content-type": "application/json"}
    url = f"{proxy.url}/v1/images/generations{query}"
    assert pictures(await proxy.client.post(url, json=body, headers=headers)) == [(256, 256)]


@pytest.mark.parametrize(("name", "files"), [("image", 1), ("image[]", 2)])
async def test_open_webui_edits(proxy: Proxy, name: str, files: int) -> None:
    fields = {"model": "sim/gpt-image", "prompt": PROMPT, "n": "1", "size": SIZE, "response_format": "b64_json"}
    body, kind = form(fields, name, files)
    url = f"{proxy.url}/v1/images/edits"
    answer = await proxy.client.post(url, content=body, headers={"authorization": "Bearer none", "content-type": kind})
    assert pictures(answer) == [(256, 256)]


@pytest.mark.parametrize("more", [{}, {"modalities": ["image", "text"]}])
async def test_open_webui_chats(proxy: Proxy, sim: Server, more: dict[str, Any]) -> None:
    """It appends `content`, and keeps what is in `images` as files, each once."""
    body = {
        "stream": True,
        "model": "sim/plain",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "A boat"},
            {"role": "assistant", "content": "Here you are."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Like this"},
                    {"type": "image_url", "image_url": {"url": DATA_URL}},
                ],
            },
        ],
        "stream_options": {"include_usage": True},
        "temperature": 0.7,
        "size": SIZE,
        **more,
    }
    content, images, usages = "", [], []
    async with proxy.client.stream("POST", f"{proxy.url}/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = orjson.loads(line[6:])
            usages += [chunk["usage"]] if chunk.get("usage") else []
            for choice in chunk["choices"]:
                content += choice["delta"].get("content") or ""
                images += [image["image_url"]["url"] for image in choice["delta"].get("images", ())]
    shown = images if more else [content]
    assert [size_of(url) for url in shown] == [(256, 256)]
    assert content == ("" if more else shown[0])
    assert len(usages) == 1
    asked = orjson.loads(sim.received[0].body)
    assert asked["images"] == [{"image_url": DATA_URL}]
    assert asked["prompt"].startswith("Be brief.\n\nUser: A boat\n\nAssistant: Here you are.\n\nUser: Like this")


async def test_librechat_generates(proxy: Proxy) -> None:
    async with AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0) as client:
        made = await client.images.generate(
            model="sim/gpt-image",
            prompt=PROMPT,
            n=1,
            background="auto",
            output_format="png",
            quality="auto",
            size="256x256",
        )
        assert made.data is not None
        assert [size_of(image.b64_json or "") for image in made.data] == [(256, 256)]


async def test_librechat_edits(proxy: Proxy) -> None:
    body, kind = form({"model": "sim/gpt-image", "prompt": PROMPT, "quality": "auto", "size": "auto"}, "image[]", 2)
    answer = await proxy.client.post(f"{proxy.url}/v1/images/edits", content=body, headers={"content-type": kind})
    assert len(pictures(answer)) == 1


async def test_librechat_chats(proxy: Proxy) -> None:
    async with AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": PROMPT}]
        stream = await client.chat.completions.create(
            model="sim/plain", messages=messages, stream=True, user="65a1", temperature=1, extra_body={"size": SIZE}
        )
        content = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert size_of(content) == (256, 256)
