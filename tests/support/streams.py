"""A proxy in front of a provider that continues on demand, and readers that follow a stream at GET streams/{id}."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import anyio
import httpx
import orjson

from streamproxy.simulator.received import Handler, Received, Server
from streamproxy.simulator.script import EVENT_STREAM, Script, sse
from streamproxy.simulator.script import Send as SendBytes
from streamproxy.simulator.script import head as head_of
from streamproxy.simulator.server import serve
from tests.support.caller import Caller, post
from tests.support.faults import Held
from tests.support.provider import completed, preview
from tests.support.proxy import BOUND, PROMPT, Proxy, no_leaks, running_proxy

EVENTS: Final = {"accept": "text/event-stream"}
JSON: Final = {"accept": "application/json"}
LATER: Final = {"prefer": "respond-async"}
RETRY: Final = re.compile(rb"retry: ([0-9]+)\n:\n")
ID: Final = re.compile(r"[0-9]{1,10}\.[0-9]{1,10}")
IDS: Final = re.compile(rf"{ID.pattern}(-{ID.pattern})*")
"""Of several streams on one connection: a cursor for each."""

KEY: Final = "idempotency-key"


@dataclass(slots=True)
class Stage:
    """Provider and proxy. The provider sends its first frames at once, the rest when `go` is set."""

    server: Server
    proxy: Proxy
    go: anyio.Event

    def url(self, location: str) -> str:
        """An absolute-path reference of the proxy as a URL."""
        assert location.startswith("/")
        return self.proxy.url + location

    async def post(self, *, headers: Mapping[str, str] | None = None, **members: object) -> httpx.Response:
        """POST a generation and read the whole answer."""
        body = {"model": "sim/gpt-image", "prompt": PROMPT, **members}
        url = f"{self.proxy.url}/v1/images/generations"
        return await self.proxy.client.post(url, json=body, headers=headers)

    async def later(self, *, headers: Mapping[str, str] | None = None, **members: object) -> str:
        """POST a generation with `Prefer: respond-async`; the URL of its stream."""
        answer = await self.post(headers={**LATER, **(headers or {})}, **{"stream": True, **members})
        assert answer.status_code == 202, answer.text
        return self.url(answer.headers["location"])

    async def get(self, url: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """GET and read the whole answer."""
        return await self.proxy.client.get(url, headers=headers)

    async def state(self, url: str) -> dict[str, object]:
        """The stream as JSON."""
        answer = await self.get(url, JSON)
        assert answer.status_code == 200, answer.text
        value = orjson.loads(answer.content)
        assert isinstance(value, dict)
        return value

    async def until(self, url: str, status: str) -> dict[str, object]:
        """Wait until the stream has this status; the stream as JSON."""
        with anyio.fail_after(BOUND):
            while (value := await self.state(url))["status"] != status:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        return value


def held(first: tuple[bytes, ...], go: anyio.Event, rest: tuple[bytes, ...]) -> Script:
    """An event stream whose `rest` is sent when `go` is set."""
    whole = sse((*first, *rest))
    count = len(sse(first, end=()))
    return Held(whole[:count], go, whole[count:])


@asynccontextmanager
async def playing(handler: Handler, **settings: object) -> AsyncIterator[Stage]:
    """A proxy before a provider that plays this handler's scripts; nothing may leak."""
    provider = settings.pop("provider", None)
    assert provider is None or isinstance(provider, dict)
    with anyio.fail_after(2 * BOUND):
        async with (
            no_leaks(),
            serve(handler) as server,
            running_proxy(
                server.url, provider=provider, environ=None, ssl_context=None, resolver=None, **settings
            ) as proxy,
        ):
            yield Stage(server, proxy, anyio.Event())


@asynccontextmanager
async def staged(
    first: tuple[bytes, ...] = (preview(0),), rest: tuple[bytes, ...] = (completed(),), **settings: object
) -> AsyncIterator[Stage]:
    """As `playing`, with a provider that streams `first`, and `rest` once the stage's `go` is set."""
    go = anyio.Event()

    def handler(received: Received) -> Script:
        return held(first, go, rest)

    async with playing(handler, **settings) as stage:
        yield Stage(stage.server, stage.proxy, go)


def first_half(frame: bytes) -> Script:
    """An event stream that begins, and has half of its first frame."""
    return (SendBytes(head_of(200, (EVENT_STREAM,))), SendBytes(frame[: len(frame) // 2]))


@dataclass(frozen=True, slots=True)
class Followed:
    """One event as a reader of GET streams/{id} receives it. `id` None: an event that does not move the cursor."""

    event: str
    data: bytes
    id: str | None

    @property
    def json(self) -> dict[str, object]:
        value = orjson.loads(self.data)
        assert isinstance(value, dict)
        return value


def retry_of(body: bytes) -> int:
    """The `retry` at the beginning of a GET stream, in milliseconds."""
    found = RETRY.match(body)
    assert found is not None, body[:80]
    return int(found[1])


def followed(body: bytes, ids: re.Pattern[str] = ID) -> list[Followed]:
    """The events of a GET answer, which must have exactly our layout: retry and comment; then frames of data, event, id
    and blank line, with comment lines between them."""
    retry_of(body)
    lines = body[body.index(b"\n") + 1 :].split(b"\n")
    assert lines.pop() == b"", "the stream ends inside a line"
    found: list[Followed] = []
    at = 0
    while at < len(lines):
        if lines[at] == b":":
            at += 1
            continue
        assert lines[at].startswith(b"data: "), lines[at][:80]
        assert lines[at + 1].startswith(b"event: "), lines[at + 1][:80]
        data, name, id = lines[at][6:], lines[at + 1][7:].decode(), None
        if lines[at + 2] != b"":
            assert lines[at + 2].startswith(b"id: "), lines[at + 2][:80]
            id = lines[at + 2][4:].decode()
            assert ids.fullmatch(id), id
            at += 1
        assert lines[at + 2] == b"", "a frame ends with a blank line"
        found.append(Followed(name, data, id))
        at += 3
    return found


class Reading:
    """An answer that is still coming. `body`: its bytes so far."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.body = b""
        self._chunks = response.aiter_raw()

    async def until(self, reached: Callable[[bytes], object]) -> None:
        """Read on until `reached(body)`."""
        with anyio.fail_after(BOUND):
            while not reached(self.body):
                self.body += await anext(self._chunks)

    async def rest(self) -> bytes:
        """The whole body, once it has ended."""
        with anyio.fail_after(BOUND):
            async for chunk in self._chunks:
                self.body += chunk
        return self.body


def holds(text: bytes, times: int = 1) -> Callable[[bytes], bool]:
    """Whether a body holds `text`, so many times."""
    return lambda body: body.count(text) >= times


@asynccontextmanager
async def following(stage: Stage, url: str, **headers: str) -> AsyncIterator[Reading]:
    """Follow a stream as events; the connection is closed with the block."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with stage.proxy.client.stream("GET", url, headers={**EVENTS, **named}) as response:
        yield Reading(response)


def generation_with(headers: Mapping[str, str], **members: object) -> bytes:
    """A whole request for one image on a raw connection, with further headers."""
    whole = post(orjson.dumps({"model": "sim/gpt-image", "prompt": PROMPT, **members}))
    added = b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items())
    return whole.replace(b"Host: proxy.test\r\n", b"Host: proxy.test\r\n" + added, 1)


async def chunks_until(caller: Caller, text: bytes) -> bytes:
    """The chunks of an answer until they hold `text`."""
    body = b""
    while text not in body:
        body += await caller.chunk()
    return body


def form(boundary: str, parts: tuple[tuple[str, bytes], ...], image: bytes) -> tuple[bytes, str]:
    """A multipart body with one image, and its content type."""
    lines = b"".join(
        b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (boundary.encode(), name.encode(), value)
        for name, value in parts
    )
    head = b'Content-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png'
    lines += b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary.encode(), head, image)
    return lines + b"--%b--\r\n" % boundary.encode(), f"multipart/form-data; boundary={boundary}"
