"""Callers that share nginx's connections to the proxy: none can hide a request in a body, or get another's answer."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

import anyio
import httpx
import orjson
import pytest

from streamproxy.simulator.received import Received, Server
from streamproxy.simulator.script import Script, json_answer
from streamproxy.simulator.server import serve
from tests.support.caller import GENERATIONS, Caller, calling, post
from tests.support.edges import POOLED, edge
from tests.support.process import caller
from tests.support.proxy import BOUND, running_proxy

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("name", POOLED)]

ROUNDS: Final = 6
INNOCENT: Final = 3
HIDDEN: Final = post(orjson.dumps({"model": "sim/gpt-image", "prompt": "hidden"}))
BEGUN: Final = HIDDEN[: HIDDEN.index(b"Content-Length")] + b"X: "
"""A request whose head takes in the first line of the next caller's."""

LONG: Final = bytes(200_000)
"""More than nginx holds in memory, so that it sends the body apart from the head."""

SWITCHES: Final[Mapping[str, str]] = {
    "h2c": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
    "websocket": "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n",
    "foo": "Connection: Upgrade\r\nUpgrade: foo\r\n",
    "none": "",
}
BODIES: Final[Mapping[str, bytes]] = {
    "a request": HIDDEN,
    "two requests": HIDDEN * 2,
    "a request and much more": HIDDEN + LONG,
    "half a request": BEGUN,
    "half a request at the end of much": LONG + BEGUN,
}
LINES: Final = (f"POST {GENERATIONS}", "POST /nope", "GET /livez")


@asynccontextmanager
async def pooled(name: str) -> AsyncIterator[tuple[str, Server]]:
    """The URL of an edge with a pool. The image that the provider makes is the prompt."""

    def draws(received: Received) -> Script:
        drawn = base64.b64encode(orjson.loads(received.body)["prompt"].encode())
        return json_answer(200, b'{"created":1,"data":[{"b64_json":"%b"}]}' % drawn)

    async with (
        serve(draws) as server,
        running_proxy(server.url) as proxy,
        edge(POOLED[name], proxy.port, timeout=BOUND) as url,
    ):
        yield url, server


def framings(line: str, switch: str, body: bytes) -> list[tuple[bytes, bytes]]:
    """Head and body of this request, with a length and in chunks."""
    head = f"{line} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{SWITCHES[switch]}"
    return [
        (f"{head}Content-Length: {len(body)}\r\n\r\n".encode(), body),
        (f"{head}Transfer-Encoding: chunked\r\n\r\n".encode(), b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)),
    ]


async def attack(caller: Caller, head: bytes, body: bytes) -> None:
    """Send the body after the head, and wait for whatever comes of it."""
    await caller.send(head)
    await anyio.sleep(0.005)  # so that the body is a packet of its own
    with contextlib.suppress(OSError):
        await caller.send(body)
        await caller.head()


async def order(client: httpx.AsyncClient, url: str, prompt: str) -> None:
    """An innocent caller gets its own image."""
    answer = await client.post(url + GENERATIONS, json={"model": "sim/gpt-image", "prompt": prompt})
    assert answer.status_code == 200, answer.text
    assert base64.b64decode(answer.json()["data"][0]["b64_json"]).decode() == prompt


@pytest.mark.parametrize("switch", SWITCHES)
async def test_a_request_in_a_body_is_never_served(name: str, switch: str) -> None:
    attacks = [pieces for line in LINES for body in BODIES.values() for pieces in framings(line, switch, body)]
    ordered: list[str] = []
    with anyio.fail_after(2 * BOUND):
        async with (
            pooled(name) as (url, server),
            caller() as client,
        ):
            port = urlsplit(url).port
            assert port is not None

            async def attacking(head: bytes, body: bytes) -> None:
                async with calling(port) as caller:
                    await attack(caller, head, body)

            for number in range(ROUNDS):
                async with anyio.create_task_group() as tasks:
                    for head, body in attacks[number % 3 :: 3]:
                        tasks.start_soon(attacking, head, body)
                    for one in range(INNOCENT):
                        ordered.append(f"innocent {number}.{one}")
                        tasks.start_soon(order, client, url, ordered[-1])
                for one in range(INNOCENT):  # and when the attackers' connections are back in the pool
                    ordered.append(f"afterwards {number}.{one}")
                    await order(client, url, ordered[-1])
        drawn = [orjson.loads(received.body)["prompt"] for received in server.received]
        assert sorted(drawn) == sorted(ordered)
