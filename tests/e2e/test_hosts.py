"""OpenAI-shaped hosts with quirks, through OpenAI's own SDK against the simulator's form of each."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio
import pytest
from openai import AsyncOpenAI, BadRequestError

from streamproxy.simulator import pictures, wires
from streamproxy.simulator.hosts import HOSTS
from streamproxy.simulator.server import Server, serve
from tests.support.proxy import BOUND, PROMPT, Proxy, events, no_leaks, running_proxy

pytestmark = pytest.mark.anyio

KEY: Final = "sk-hosts-own"
PNG: Final = pictures.encode(pictures.draw("an input", 64, 64), "png")
EVERY: Final = pytest.mark.parametrize("host", HOSTS)
MODERATED: Final = {
    "together": "nsfw",
    "deepinfra": "provider_refused",
    "recraft": "nsfw",
    "zai": "moderation_blocked",
    "sd-cpp": "provider_refused",
}


@asynccontextmanager
async def hosted(host: str) -> AsyncIterator[tuple[Proxy, Server, AsyncOpenAI]]:
    async with no_leaks(), serve(wires(0)) as server:
        row = {"base_url": f"{server.url}/hosts/{host}/v1", "credential": "env:KEY", "auth_header": "authorization"}
        async with (
            running_proxy(server.url, environ={"KEY": KEY}, providers={host: row}, stream_n=True) as proxy,
            AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="callers", max_retries=0) as client,
        ):
            with anyio.fail_after(2 * BOUND):
                yield proxy, server, client


@EVERY
async def test_a_generation(host: str) -> None:
    async with hosted(host) as (_, server, client):
        answer = await client.images.with_raw_response.generate(
            model=f"{host}/painter", prompt=PROMPT, size="512x512", quality="low", n=2
        )
        made = answer.parse()
        assert made.data is not None
        assert len(made.data) == 2
        assert all(image.b64_json or image.url for image in made.data)
        assert made.created > 0
        applied = host == "zai"
        assert answer.headers.get("streamproxy-not-applied") == (None if applied else "quality")
        assert server.calls == (1 if host in ("together", "recraft", "sd-cpp") else 2)
        assert all(received.header("authorization") in (KEY, f"Bearer {KEY}") for received in server.received)


@EVERY
async def test_a_streamed_generation(host: str) -> None:
    async with hosted(host) as (proxy, server, _):
        body = {"model": f"{host}/painter", "prompt": PROMPT, "stream": True, "partial_images": 2}
        answer = await proxy.client.post(f"{proxy.url}/v1/images/generations", json=body)
        [event] = events(answer.content)
        assert event.event == "image_generation.completed"
        assert answer.headers["streamproxy-not-applied"] == "partial_images"
        assert server.calls == 1


@EVERY
@pytest.mark.parametrize("form", [True, False])
async def test_an_edit(host: str, form: bool) -> None:
    async with hosted(host) as (proxy, server, client):
        if host == "zai":
            with pytest.raises(BadRequestError) as refused:
                await client.images.edit(model=f"{host}/painter", prompt=PROMPT, image=("in.png", PNG, "image/png"))
            assert refused.value.code == "unsupported_parameter"
            assert server.calls == 0
            return
        if form:
            made = await client.images.edit(model=f"{host}/painter", prompt=PROMPT, image=("in.png", PNG, "image/png"))
            assert made.data
        else:
            shown = [{"image_url": "data:image/png;base64," + base64.b64encode(PNG).decode()}]
            body = {"model": f"{host}/painter", "prompt": PROMPT, "images": shown}
            answer = await proxy.client.post(f"{proxy.url}/v1/images/edits", json=body)
            assert answer.status_code == 200, answer.text
        [received] = server.received
        sent_as_form = b"multipart/form-data" in (received.header("content-type") or "").encode()
        assert sent_as_form is HOSTS[host].form
        assert (PNG if sent_as_form else base64.b64encode(PNG)) in received.body


@EVERY
async def test_a_refusal_for_what_is_shown(host: str) -> None:
    async with hosted(host) as (proxy, server, _):
        body = {"model": f"{host}/fault-moderated", "prompt": PROMPT}
        answer = await proxy.client.post(f"{proxy.url}/v1/images/generations", json=body)
        error = answer.json()["error"]
        assert answer.status_code == 400
        assert error["code"] == MODERATED[host]
        assert error["message"]
        assert server.calls == 1
