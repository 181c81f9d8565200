"""One connection by itself: bytes out of turn close it, and are counted once."""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from streamproxy.errors import Failure, ProxyError
from streamproxy.upstream.answer import Answer
from streamproxy.upstream.connection import LEAST_READ, READ, READS, Connection, Space
from streamproxy.upstream.deadlines import Deadlines
from tests.support.proxy import no_leaks

pytestmark = pytest.mark.anyio

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


def unexpected(label: str) -> None:
    raise AssertionError(label)


@asynccontextmanager
async def wire(
    tolerated: Callable[[str], None] = unexpected,
) -> AsyncIterator[tuple[Connection, Any, asyncio.StreamWriter]]:
    """One Connection, its socket, and the provider's end of it."""
    loop = asyncio.get_running_loop()
    accepted: asyncio.Future[asyncio.StreamWriter] = loop.create_future()
    server = await asyncio.start_server(lambda _, writer: accepted.set_result(writer), "127.0.0.1", 0)
    async with no_leaks(), server:
        port = server.sockets[0].getsockname()[1]
        transport, connection = await loop.create_connection(lambda: Connection(Space(), tolerated), "127.0.0.1", port)
        try:
            with anyio.fail_after(5):
                yield connection, transport.get_extra_info("socket"), await accepted
        finally:
            transport.abort()
            accepted.result().transport.abort()


def answer_on(connection: Connection) -> Answer:
    limits = Deadlines(connect=5, first_byte=5, idle=5, total=5, pool=5)
    return Answer(connection, limits, anyio.current_time() + 5, lambda connection, _: connection.drop())


async def answered(connection: Connection, provider: asyncio.StreamWriter) -> None:
    """One request, and its answer taken: from here on the connection is idle."""
    answer = answer_on(connection)
    answer.ask(b"GET / HTTP/1.1\r\n\r\n", None)
    provider.write(ANSWER)
    await answer.arrival()
    assert await answer.body(10) == b"{}"
    await answer.aclose()


async def delivered(connection: Connection, sock: Any) -> None:
    """The kernel has it: a loopback delivers at once, and the provider's end of it is in the same loop."""
    while connection.open and not select.select([sock], [], [], 0)[0]:
        await checkpoint()


async def test_bytes_before_the_request_are_no_answer() -> None:
    async with wire() as (connection, sock, provider):
        provider.write(ANSWER)
        await delivered(connection, sock)
        assert not await connection.fit()
        with pytest.raises(ProxyError) as raised:
            answer_on(connection).ask(b"GET / HTTP/1.1\r\n\r\n", None)
        assert raised.value.failure is Failure.CONNECTION_REFUSED  # so that a second connection is tried


async def test_an_idle_connection_with_nothing_to_read_is_fit() -> None:
    async with wire() as (connection, _, provider):
        for _ in range(3):
            assert await connection.fit()
            await answered(connection, provider)


async def test_a_fit_connection_waits_for_no_turn_of_the_loop() -> None:
    turns: list[int] = []
    async with wire() as (connection, _, provider):
        await answered(connection, provider)
        asyncio.get_running_loop().call_soon(turns.append, 1)
        assert await connection.fit()
        assert turns == []


FAREWELLS: dict[str, tuple[bytes, str]] = {
    "the end": (b"", "stale_conn"),
    "bytes": (b"H", "upstream_extra_bytes"),
    "bytes and the end": (ANSWER, "upstream_extra_bytes"),
}


@pytest.mark.parametrize("case", FAREWELLS)
async def test_the_end_of_an_idle_connection_is_told_once(case: str) -> None:
    data, label = FAREWELLS[case]
    told: list[str] = []
    async with wire(told.append) as (connection, sock, provider):
        await answered(connection, provider)
        assert await connection.fit()
        provider.write(data)
        if case != "bytes":
            provider.write_eof()
        await delivered(connection, sock)
        for _ in range(2):
            assert not await connection.fit()
        connection.abort()
        assert not await connection.fit()
        assert told == [label]


async def test_an_end_between_two_requests_is_counted() -> None:
    told: list[str] = []
    async with wire(told.append) as (connection, _, provider):
        await answered(connection, provider)
        provider.transport.abort()  # a reset, or an end
        while connection.open:
            await checkpoint()
        assert not await connection.fit()
        assert told == ["stale_conn"]


def test_many_connections_read_less_at_a_time_each() -> None:
    space = Space()
    sizes = []
    for connections in (1, 16, 17, 64, 1000):
        space.share(connections)
        sizes.append(len(space.view))
        space.share(-connections)
    assert sizes == [READ, READ, READS // 17, LEAST_READ, LEAST_READ]
    assert len(space.view) == READ
