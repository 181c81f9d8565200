"""The guard's tables through every member of every surface that takes a URL: nothing is dialled, nothing is paid."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Any, Final

import anyio
import httpx
import pytest

from streamproxy.simulator import wires
from streamproxy.simulator.pictures import draw, encode
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Send, head
from streamproxy.simulator.server import Server, serve
from tests.core.test_addresses import INTERNAL, NEVER, REFUSED
from tests.support.dialled import dialled
from tests.support.proxy import PROMPT, Proxy, no_leaks, running_proxy

pytestmark = pytest.mark.anyio

BOUND: Final = 120.0
PNG: Final = encode(draw("a lighthouse", 64, 48), "png")
HELD: Final = "data:image/png;base64," + base64.b64encode(PNG).decode()
GENERATIONS: Final = "/v1/images/generations"
EDITS: Final = "/v1/images/edits"
CHAT: Final = "/v1/chat/completions"
RESPONSES: Final = "/v1/responses"

Body = Mapping[str, object]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The loop of the standard library: the sockets of uvloop raise no audit events."""
    return "asyncio", {"use_uvloop": False}


@dataclass(frozen=True, slots=True)
class Place:
    """A member that takes a URL: its path, the body that has it, and how an error names it."""

    path: str
    body: Callable[[str], Body]
    param: str


def _chat(url: str) -> Body:
    content = [{"type": "text", "text": PROMPT}, {"type": "image_url", "image_url": {"url": url}}]
    return {"messages": [{"role": "user", "content": content}]}


def _response(url: str, mask: str | None = None) -> Body:
    content = [{"type": "input_text", "text": PROMPT}, {"type": "input_image", "image_url": url}]
    tool: dict[str, object] = {"type": "image_generation"}
    if mask is not None:
        tool["input_image_mask"] = {"image_url": mask}
    return {"input": [{"role": "user", "content": content}], "tools": [tool]}


def _images(url: str, **more: object) -> Body:
    return {"prompt": PROMPT, "images": [{"image_url": url}], **more}


PLACES: Final = {
    "an edit's image": Place(EDITS, _images, "images[0].image_url"),
    "an edit's mask": Place(EDITS, lambda url: _images(HELD, mask={"image_url": url}), "mask.image_url"),
    "a generation's image": Place(GENERATIONS, lambda url: {"prompt": PROMPT, "image": url}, "image"),
    "one of several": Place(GENERATIONS, lambda url: {"prompt": PROMPT, "image": [HELD, url]}, "image[1]"),
    "a generation's mask": Place(GENERATIONS, lambda url: {"prompt": PROMPT, "image": HELD, "mask": url}, "mask"),
    "a chat's part": Place(CHAT, _chat, "messages[0].content[1].image_url.url"),
    "a response's part": Place(RESPONSES, _response, "input[0].content[1].image_url"),
    "a response's mask": Place(RESPONSES, lambda url: _response(HELD, mask=url), "tools[0].input_image_mask.image_url"),
}
MASKS: Final = tuple(name for name in PLACES if "mask" in name)
MODELS: Final = {"openai": "sim/plain", "gemini": "google/gemini-3.1-flash-image"}
"""A model of OpenAI's wire, which is sent the images, and one of a wire that makes its own form of them."""

WHERE: Final = [(wire, place) for wire in MODELS for place in PLACES if wire == "openai" or place not in MASKS]
EVERYWHERE: Final = pytest.mark.parametrize(("wire", "place"), WHERE, ids=[f"{wire}, {place}" for wire, place in WHERE])


@asynccontextmanager
async def fetching(**settings: object) -> AsyncIterator[tuple[Proxy, Server]]:
    """A proxy that fetches; its providers, both wires, are also where the one picture is."""
    simulated = wires(0)

    async def handle(received: Received) -> Script:
        if received.method == "GET":
            return (Send(head(200, (("Content-Type", "image/png"),), length=len(PNG))), Send(PNG))
        made = simulated(received)
        return await made if isinstance(made, Awaitable) else made

    async with no_leaks(), serve(handle) as server:
        providers = {
            "sim": {"base_url": f"{server.url}/v1", "credential": "none"},
            "gemini": {"base_url": f"{server.url}/v1beta", "credential": "env:KEY"},
        }
        given: dict[str, Any] = {"providers": providers, "fetch_images": True, **settings}
        async with running_proxy(server.url, environ={"KEY": "k" * 20}, **given) as proxy:
            with anyio.fail_after(BOUND):
                yield proxy, server


async def post(proxy: Proxy, wire: str, place: str, url: str) -> httpx.Response:
    """Ask with this URL in this place. In ASCII, as the table has what no UTF-8 can have."""
    path, body = PLACES[place].path, dict(PLACES[place].body(url))
    if path == RESPONSES:
        tools = body["tools"]
        assert isinstance(tools, list)
        body |= {"model": "gpt-5", "tools": [{**tools[0], "model": MODELS[wire]}]}
    else:
        body["model"] = MODELS[wire]
    return await proxy.client.post(
        proxy.url + path, content=json.dumps(body), headers={"content-type": "application/json"}
    )


def at(address: str) -> str:
    """A URL at an address."""
    host = f"[{address}]" if ":" in address else address
    return f"https://{host}/photo.png"


def test_the_tables_are_whole() -> None:
    assert len(INTERNAL + NEVER) >= 52
    assert len(REFUSED) >= 23
    assert any(isinstance(ip_address(address), IPv6Address) for address in NEVER)


@EVERYWHERE
async def test_nothing_of_the_tables_is_dialled(wire: str, place: str) -> None:
    async with fetching() as (proxy, server):
        assert (await proxy.client.get(f"{proxy.url}/livez")).status_code == 200  # the caller's own connection
        with dialled() as found:
            for url in map(at, INTERNAL + NEVER):
                answer = await post(proxy, wire, place, url)
                assert (answer.status_code, answer.json()["error"]["code"]) == (400, "destination_ip_prohibited"), url
            for url in filter(None, REFUSED):
                answer = await post(proxy, wire, place, url)
                assert 400 <= answer.status_code < 500, ascii(url)
                assert answer.json()["error"]["type"] == "invalid_request_error"
        assert found == []
        assert (server.connections, server.calls) == (0, 0)


@EVERYWHERE
async def test_a_listed_host_is_fetched_from(wire: str, place: str) -> None:
    """The same requests do fetch, and the dialler is seen, so that the test above could fail."""
    async with fetching(fetch_hosts=("127.0.0.1",)) as (proxy, server):
        with dialled() as found:
            answer = await post(proxy, wire, place, f"{server.url}/photo.png")
        assert answer.status_code == 200, answer.text
        assert str(int(server.url.rpartition(":")[2])) in repr(found)
        gets, posts = ([one for one in server.received if one.method == name] for name in ("GET", "POST"))
        assert (len(gets), len(posts)) == (1, 1)
        assert not {"authorization", "x-goog-api-key"} & {name.lower() for name, _ in gets[0].headers}
        shown = 2 if HELD in json.dumps(PLACES[place].body("")) else 1
        assert posts[0].body.count(base64.b64encode(PNG)) == shown


@pytest.mark.parametrize("place", PLACES)
async def test_without_the_setting_nothing_is_fetched(place: str) -> None:
    """For a model that takes no URLs, on every surface, with the setting's name and the member's."""
    async with fetching(fetch_images=False, fetch_hosts=("127.0.0.1",)) as (proxy, server):
        answer = await post(proxy, "openai", place, f"{server.url}/photo.png")
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "unsupported_parameter")
        assert "fetch_images" in error["message"]
        assert error["param"] == PLACES[place].param
        assert server.connections == 0


@pytest.mark.parametrize("place", [place for place in PLACES if place not in MASKS])
async def test_a_model_that_takes_urls_needs_no_setting(place: str) -> None:
    async with fetching(fetch_images=False, fetch_hosts=("127.0.0.1",)) as (proxy, server):
        answer = await post(proxy, "gemini", place, f"{server.url}/photo.png")
        assert answer.status_code == 200, answer.text
        assert [one.method for one in server.received] == ["GET", "POST"]


@pytest.mark.parametrize("path", ["/v1/images/variations", EDITS, "/v1/files", "/v1/upload"])
async def test_a_form_takes_no_url(path: str) -> None:
    """Forms have files: a URL in the place of one is a field of the wrong kind."""
    async with fetching(fetch_hosts=("127.0.0.1",)) as (proxy, server):
        url = f"{server.url}/photo.png"
        texts = {name: (None, text) for name, text in {"model": "sim/plain", "purpose": "vision"}.items()}
        name = "file" if path.endswith(("files", "upload")) else "image"
        answer = await proxy.client.post(
            proxy.url + path, files=[*texts.items(), ("prompt", (None, PROMPT)), (name, (None, url))]
        )
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, name)
        assert server.connections == 0
