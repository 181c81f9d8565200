"""The seam towards providers by itself: requests that cannot be sent, bodies that change, bytes out of turn."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

import anyio
import anyio.lowlevel
import pytest

from streamproxy.core.requests import Segment, UpstreamRequest
from streamproxy.errors import Failure, ProxyError
from streamproxy.simulator.script import Script, Send, Stall, json_answer
from streamproxy.simulator.server import Server, serve
from streamproxy.upstream import Deadlines, Upstream
from tests.support.proxy import BOUND, NO_TRUST, no_leaks

pytestmark = pytest.mark.anyio

SECRET = "sk-0123456789abcdefghijklmnop"


class NoNames:
    """Knows no address."""

    async def resolve(self, host: str, port: int) -> list[str]:
        raise OSError("no names here")


def unexpected(label: str) -> None:
    raise AssertionError(label)


@asynccontextmanager
async def connected(script: Script = (), **deadlines: float) -> AsyncIterator[tuple[Server, Upstream]]:
    """A provider that plays `script` for everybody, and the connections to it."""
    seconds = {"connect": 5.0, "first_byte": 5.0, "idle": 5.0, "total": 5.0, "pool": 1.0, **deadlines}
    limits = Deadlines(**seconds)
    with anyio.fail_after(BOUND):
        async with no_leaks(), serve(lambda _: script or json_answer(200, {})) as server:
            upstream = Upstream(
                deadlines=limits,
                max_connections=2,
                ssl_context=NO_TRUST,
                tolerated=unexpected,
                resolver=NoNames(),
            )
            try:
                yield server, upstream
            finally:
                await upstream.aclose()


def post(server: Server, *body: Segment, headers: tuple[tuple[str, str], ...] = (), url: str = "") -> UpstreamRequest:
    return UpstreamRequest("POST", url or f"{server.url}/v1", headers, body or (b"{}",))


async def failure(upstream: Upstream, request: UpstreamRequest) -> ProxyError:
    with pytest.raises(ProxyError) as raised:
        async with upstream.open(request):
            pass
    return raised.value


@pytest.mark.parametrize(
    "url",
    ["http://[::1", "gopher://127.0.0.1/", "http://", "/v1", "http://127.0.0.1:99999/", "http://127.1/"],
)
async def test_an_address_that_is_none(url: str) -> None:
    async with connected() as (_, upstream):
        error = await failure(upstream, UpstreamRequest("POST", url, (("authorization", SECRET),), (b"{}",)))
        assert error.failure is Failure.UPSTREAM_REQUEST
        assert url not in error.message
        assert SECRET not in error.message


@pytest.mark.parametrize("value", ["\u20ac", "a\r\nx-injected: 1", "a\n", "\0", cast(str, None), cast(str, 7)])
async def test_a_header_that_cannot_be_sent(value: str) -> None:
    async with connected() as (server, upstream):
        wrong = value if not isinstance(value, str) else f"{SECRET}{value}"
        error = await failure(upstream, post(server, headers=(("x-one", wrong),)))
        assert error.failure is Failure.UPSTREAM_REQUEST
        assert SECRET not in error.message
        assert server.calls == 0


class Spooled:
    """A file whose size was `size` when it was stored."""

    def __init__(self, size: int, content: bytes | Exception) -> None:
        self.size = size
        self._content = content

    def read(self, offset: int, length: int) -> bytes:
        if isinstance(self._content, Exception):
            raise self._content
        return self._content[offset : offset + length]


@pytest.mark.parametrize(
    "content",
    [b"", b"x" * 70_000, OSError(5, "Input/output error"), ValueError("closed"), RecursionError()],
    ids=["gone", "cut", "io", "closed", "recursion"],
)
async def test_a_file_that_lost_bytes_is_no_shorter_body(content: bytes | Exception) -> None:
    async with connected() as (server, upstream):
        error = await failure(upstream, post(server, b"head", Spooled(100_000, content), b"tail"))
        assert error.failure is Failure.UPLOAD_SPOOL
        assert server.calls == 0


async def test_a_file_that_grew_is_sent_as_it_was() -> None:
    async with connected() as (server, upstream):
        async with upstream.open(post(server, b"head", Spooled(100_000, b"x" * 200_000), b"tail")) as response:
            assert response.head.status == 200
        assert server.received[0].body == b"head" + b"x" * 100_000 + b"tail"


async def test_a_request_without_a_body() -> None:
    async with connected() as (server, upstream):
        async with upstream.open(UpstreamRequest("GET", f"{server.url}/v1/models", (), ())) as response:
            assert await response.body(1000) == b"{}"
        assert server.received[0].header("content-length") is None


async def test_a_request_without_a_body_has_a_first_byte_deadline() -> None:
    async with connected((Stall(),), first_byte=0.1) as (server, upstream):
        error = await failure(upstream, UpstreamRequest("GET", f"{server.url}/v1/models", (), ()))
        assert error.failure is Failure.FIRST_BYTE_TIMEOUT


async def test_the_total_bounds_the_body_too() -> None:
    script = (Send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n1"), Stall())
    async with connected(script, total=0.2) as (server, upstream):
        async with upstream.open(post(server)) as response:
            assert await response.chunk() == b"1"
            with pytest.raises(ProxyError) as raised:
                await response.chunk()
        assert raised.value.failure is Failure.DEADLINE


def called_since(before: int, server: Server) -> bool:
    return server.calls > before


async def test_cancelling_frees_the_connection_and_the_place() -> None:
    async with connected((Stall(),)) as (server, upstream):
        for _ in range(5):  # more than max_connections
            before = server.calls
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(failure, upstream, post(server))
                await server.wait_until(partial(called_since, before), BOUND)
                tasks.cancel_scope.cancel()
        await server.wait_closed_connections(BOUND)
