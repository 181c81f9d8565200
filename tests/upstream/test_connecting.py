"""Ways to a provider: several addresses, names asked for once, proxies of the environment, a machine that is full."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import httpx
import pytest
import trustme
from anyio.lowlevel import checkpoint

from streamproxy.core.requests import UpstreamRequest
from streamproxy.errors import Failure, ProxyError
from streamproxy.simulator.script import json_answer
from streamproxy.simulator.server import Server, serve
from streamproxy.upstream import Deadlines, Resolver, Upstream
from streamproxy.upstream.breaker import RetryBudget
from streamproxy.upstream.connecting import Connector, Names
from streamproxy.upstream.transport import Transport
from tests.support.proxy import BOUND, NO_TRUST, no_leaks

pytestmark = pytest.mark.anyio

LIMITS = Deadlines(connect=5, first_byte=5, idle=5, total=10, pool=1)
HOST = "provider.test"


class Known:
    """Every name has these addresses, or none."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = [*addresses]
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        await checkpoint()
        if not self._addresses:
            raise OSError("no such name")
        return self._addresses


def unexpected(label: str) -> None:
    raise AssertionError(label)


@asynccontextmanager
async def upstream_of(
    resolver: Resolver | None = None, *, trust: ssl.SSLContext | None = None, trust_env: bool = False
) -> AsyncIterator[Upstream]:
    with anyio.fail_after(BOUND):
        upstream = Upstream(
            deadlines=LIMITS,
            max_connections=4,
            ssl_context=trust or NO_TRUST,
            tolerated=unexpected,
            trust_env=trust_env,
            resolver=resolver,
        )
        try:
            yield upstream
        finally:
            await upstream.aclose()


async def asked(upstream: Upstream, url: str) -> bytes:
    async with upstream.open(UpstreamRequest("POST", f"{url}/v1", (("x-one", "1"),), (b"{}",))) as answer:
        assert answer.head.status == 200
        return await answer.body(100)


async def refused(upstream: Upstream, url: str) -> ProxyError:
    with pytest.raises(ProxyError) as raised:
        await asked(upstream, url)
    return raised.value


@asynccontextmanager
async def provider(context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    async with no_leaks(), serve(lambda _: json_answer(200, {}), ssl=context) as server:
        yield server


@pytest.mark.parametrize("silent", [False, True], ids=["refuses", "is silent"])
async def test_a_silent_address_does_not_delay_the_next(silent: bool) -> None:
    async with provider() as server, upstream_of(Known("127.0.0.2", "127.0.0.1")) as upstream:
        with socket.socket() as dead:
            dead.bind(("127.0.0.2", server.port))
            waiting = [socket.socket() for _ in range(4)] if silent else []
            if silent:
                dead.listen(0)
            try:
                for sock in waiting:
                    sock.setblocking(False)
                    sock.connect_ex(dead.getsockname())
                with anyio.fail_after(LIMITS.connect / 2):
                    assert await asked(upstream, f"http://{HOST}:{server.port}") == b"{}"
            finally:
                for sock in waiting:
                    sock.close()
        assert server.calls == 1


async def test_names_are_asked_for_once_and_a_failure_is_not_kept() -> None:
    async with no_leaks():
        for resolver, kept in ((Known("127.0.0.1"), 1), (Known(), 2)):
            names = Names(resolver)
            for _ in range(2):
                both = await asyncio.gather(*(names.resolve(HOST, 80) for _ in range(3)), return_exceptions=True)
                assert all(one == ["127.0.0.1"] if kept == 1 else isinstance(one, OSError) for one in both)
            assert len(resolver.asked) == kept
            names.close()


async def test_who_leaves_does_not_take_the_name_from_the_others() -> None:
    async with no_leaks():
        names = Names(Known("127.0.0.1"))
        first = asyncio.create_task(names.resolve(HOST, 80))
        await asyncio.sleep(0)
        second = asyncio.create_task(names.resolve(HOST, 80))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == ["127.0.0.1"]
        names.close()


@dataclass(slots=True)
class Way:
    """An HTTP proxy: what it was asked, and the first lines of the requests it passed on."""

    port: int = 0
    heads: list[str] = field(default_factory=list)
    refuses: bytes = b""


@asynccontextmanager
async def way(to: int, refuses: bytes = b"") -> AsyncIterator[Way]:
    """A proxy whose every way leads to this port of the loopback, or that refuses."""
    found = Way(refuses=refuses)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        found.heads.append(head.decode())
        if found.refuses:
            writer.write(found.refuses)
            writer.close()
            return
        onward, back = await asyncio.open_connection("127.0.0.1", to)
        if head.startswith(b"CONNECT "):
            writer.write(b"HTTP/1.1 200 Connection established\r\nvia: test\r\n\r\n")
        else:
            back.write(head)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pump, reader, back)
                tasks.start_soon(pump, onward, writer)
        finally:
            back.close()

    server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
    async with server:
        found.port = server.sockets[0].getsockname()[1]
        yield found


def environment(patch: pytest.MonkeyPatch, url: str, no_proxy: str = "") -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        patch.delenv(name, raising=False)
        patch.delenv(name.lower(), raising=False)
    patch.setenv("HTTP_PROXY", url)
    patch.setenv("HTTPS_PROXY", url)
    patch.setenv("NO_PROXY", no_proxy)


BASIC = "Proxy-Authorization: Basic bWU6cEBzcw==\r\n"


async def test_plain_requests_to_a_proxy_have_the_whole_url(monkeypatch: pytest.MonkeyPatch) -> None:
    async with provider() as server, way(server.port) as proxy:
        environment(monkeypatch, f"http://me:p%40ss@127.0.0.1:{proxy.port}")
        async with upstream_of(Known(), trust_env=True) as upstream:
            assert await asked(upstream, f"http://{HOST}:81") == b"{}"
        assert proxy.heads[0].startswith(f"POST http://{HOST}:81/v1 HTTP/1.1\r\nHost: {HOST}:81\r\n")
        assert BASIC in proxy.heads[0]


async def test_tls_goes_through_a_blind_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    served, trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert(HOST).configure_cert(served)
    authority.configure_trust(trust)
    async with provider(served) as server, way(server.port) as proxy:
        environment(monkeypatch, f"me:p%40ss@127.0.0.1:{proxy.port}")  # as curl takes it, too
        async with upstream_of(Known(), trust=trust, trust_env=True) as upstream:
            for _ in range(2):
                assert await asked(upstream, f"https://{HOST}") == b"{}"
        assert proxy.heads == [f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\n{BASIC}\r\n"]
        assert server.calls == 2
        assert server.received[0].header("proxy-authorization") is None


@pytest.mark.parametrize("answer", [b"HTTP/1.1 407 No\r\ncontent-length: 0\r\n\r\n", b"garbage\r\n\r\n", b"HTTP/1.1 2"])
async def test_a_proxy_that_opens_no_way_is_a_refused_connection(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with provider() as server, way(server.port, answer) as proxy:
        environment(monkeypatch, f"http://127.0.0.1:{proxy.port}")
        async with upstream_of(Known(), trust_env=True) as upstream:
            error = await refused(upstream, f"https://{HOST}")
        assert error.failure is Failure.CONNECTION_REFUSED
        assert "trust_env_proxies" in error.message
        assert error.details.noted == {"proxy_status": "407" if b"407" in answer else "none"}
        assert server.calls == 0


async def test_a_proxy_needs_environment_and_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with provider() as server, way(server.port) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        environment(monkeypatch, url)
        async with upstream_of() as upstream:
            assert await asked(upstream, server.url) == b"{}"
        environment(monkeypatch, url, no_proxy="127.0.0.1")
        async with upstream_of(trust_env=True) as upstream:
            assert await asked(upstream, server.url) == b"{}"
        assert proxy.heads == []
        for wrong in ("https://127.0.0.1:1", "socks5://127.0.0.1:1", "http://127.1:1", "http://127.0.0.1:x"):
            environment(monkeypatch, wrong)
            async with upstream_of(trust_env=True) as upstream:
                error = await refused(upstream, server.url)
            assert error.failure is Failure.UPSTREAM_REQUEST
            assert "HTTP_PROXY" in error.message
        assert server.calls == 2


async def test_no_descriptors_is_not_a_refusing_provider() -> None:
    async with provider() as server, upstream_of() as upstream:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)  # the lowest number that is free
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            error = await refused(upstream, server.url)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (error.failure, error.status) == (Failure.DESCRIPTORS_EXHAUSTED, 503)
        assert error.details.noted == {"errno": "EMFILE"}
        assert await asked(upstream, server.url) == b"{}"
        assert server.calls == 1


async def test_a_refused_connection_notes_its_errno() -> None:
    async with upstream_of() as upstream:
        with socket.socket() as nothing:
            nothing.bind(("127.0.0.1", 0))
            error = await refused(upstream, f"http://127.0.0.1:{nothing.getsockname()[1]}")
    assert (error.failure, error.details.noted) == (Failure.CONNECTION_REFUSED, {"errno": "ECONNREFUSED"})


async def test_an_early_answer_cuts_neither_side_off() -> None:
    size = 8 << 20

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        read = 0
        while read < size:
            read += len(await reader.read(65536))
        writer.write(b"7\r\n%d\r\n0\r\n\r\n" % read)
        await reader.read()
        writer.close()

    async with no_leaks(), await asyncio.start_server(serve_one, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        request = UpstreamRequest("POST", url, (), (bytes(size),))
        async with upstream_of() as upstream, upstream.open(request) as answer:
            assert not answer.uploaded
            assert await answer.body(100) == b"%d" % size


async def test_any_client_of_httpx_can_use_the_transport() -> None:
    async with provider() as server:
        transport = Transport(
            deadlines=LIMITS,
            max_connections=1,
            connector=Connector(ssl_context=NO_TRUST, resolver=None, trust_env=False, tolerated=unexpected),
            retries=RetryBudget(),
        )
        async with httpx.AsyncClient(transport=transport) as client:
            for _ in range(3):
                response = await client.post(server.url, json={"a": 1}, headers={"x-two": "2"})
                assert (response.status_code, response.content) == (200, b"{}")
        assert (server.calls, server.connections) == (3, 1)
        assert server.received[0].body == b'{"a":1}'
        assert server.received[0].header("x-two") == "2"


async def test_idle_connections_count_as_connections() -> None:
    async with provider() as one, provider() as other:
        transport = Transport(
            deadlines=LIMITS,
            max_connections=1,
            connector=Connector(ssl_context=NO_TRUST, resolver=None, trust_env=False, tolerated=unexpected),
            retries=RetryBudget(),
        )
        async with httpx.AsyncClient(transport=transport) as client:
            assert (await client.get(one.url)).status_code == 200
            assert one.open_connections == 1
            assert (await client.get(other.url)).status_code == 200
            await one.wait_closed_connections(BOUND)
