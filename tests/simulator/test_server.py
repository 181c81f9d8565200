"""A server listens where it is told and leaves nothing behind."""

from __future__ import annotations

import asyncio
import socket
import ssl

import anyio
import pytest
import trustme

from streamproxy.simulator.script import Fin, Stall, json_answer
from streamproxy.simulator.server import serve
from tests.simulator.test_connection import SECONDS, exchange, read_all, request
from tests.simulator.test_script import Parsed

pytestmark = pytest.mark.anyio

CLOSED = (*json_answer(200, {"ok": True}), Fin())


async def test_a_given_socket_is_used() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        async with serve(lambda _: CLOSED, sock=sock) as server:
            assert (server.port, server.url) == (port, f"http://127.0.0.1:{port}")
            assert Parsed(await exchange(server, request())).complete


async def test_tls_is_spoken() -> None:
    authority = trustme.CA()
    context, trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(trust)
    async with serve(lambda _: CLOSED, ssl=context) as server:
        assert server.url.startswith("https://")
        with anyio.fail_after(SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=trust)
            writer.write(request())
            assert Parsed(await reader.read()).complete
            writer.close()
            await writer.wait_closed()
        await server.wait_closed_connections(SECONDS)


async def test_leaving_ends_everything_that_was_started() -> None:
    before = asyncio.all_tasks()
    with anyio.fail_after(SECONDS):
        async with serve(lambda _: (Stall(),)) as server:
            streams = [await anyio.connect_tcp("127.0.0.1", server.port) for _ in range(5)]
            for stream in streams[:4]:
                await stream.send(request())
            await server.wait_until(lambda s: s.calls == 4 and s.connections == 5, SECONDS)
        assert server.open_connections == 0
        assert asyncio.all_tasks() == before
        for stream in streams:
            assert await read_all(stream) == b""
            await stream.aclose()
        with pytest.raises(OSError, match="fail"):
            await anyio.connect_tcp("127.0.0.1", server.port)


async def test_an_exception_of_the_block_comes_out_as_it_is() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with serve(lambda _: CLOSED):
            raise KeyError("mine")
