"""Providers that cannot be reached: refused, silent, unresolved, untrusted. Nothing of the request is sent."""

from __future__ import annotations

import datetime
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
import pytest
import trustme

from streamproxy.simulator.script import Stall
from streamproxy.simulator.server import Server, serve
from streamproxy.upstream import Resolver
from tests.support.faults import IMAGE, STREAMED, Refusal
from tests.support.proxy import BOUND, Proxy, no_leaks, running_proxy

pytestmark = pytest.mark.anyio

SECRET = "sk-configured-0123456789abcdefghijklmnop"
CERTIFICATE = Refusal(502, "tls_certificate_error", "tls", charged=False)


@asynccontextmanager
async def proxying(
    upstream: str,
    *,
    trust: ssl.SSLContext | None = None,
    resolver: Resolver | None = None,
    connect_timeout: float = 5.0,
    total_timeout: float = 600.0,
) -> AsyncIterator[Proxy]:
    """A proxy with a configured credential; nothing may leak, and no message may hold it."""
    with anyio.fail_after(BOUND):
        async with (
            no_leaks(),
            running_proxy(
                upstream,
                provider={"credential": "env:KEY", "auth_header": "authorization", "auth_scheme": "Bearer "},
                environ={"KEY": SECRET},
                ssl_context=trust,
                resolver=resolver,
                connect_timeout=connect_timeout,
                total_timeout=total_timeout,
            ) as proxy,
        ):
            yield proxy


@contextmanager
def free_port() -> Iterator[int]:
    """A port that refuses connections: bound, not listening."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@contextmanager
def black_hole() -> Iterator[int]:
    """A port that answers no SYN: the kernel drops those beyond a full backlog."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        try:
            for sock in waiting:
                sock.setblocking(False)
                sock.connect_ex(listener.getsockname())
            yield listener.getsockname()[1]
        finally:
            for sock in waiting:
                sock.close()


class Names:
    """Resolves every name to the loopback; or fails, or never answers."""

    def __init__(self, *, fails: bool = False, hangs: bool = False) -> None:
        self._fails = fails
        self._hangs = hangs
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        if self._hangs:
            await anyio.sleep_forever()
        if self._fails:
            raise OSError(None, f"no such name {host}")
        return ["127.0.0.1"]


@STREAMED
async def test_refused(stream: bool) -> None:
    refused = Refusal(502, "connection_refused", "upstream_connect", charged=False)
    with free_port() as port:
        async with proxying(f"http://127.0.0.1:{port}") as proxy:
            message = await refused.check(proxy, await proxy.generate(stream=stream))
            assert "127.0.0.1" not in message


@STREAMED
async def test_no_answer_to_the_connection(stream: bool) -> None:
    silent = Refusal(504, "connection_timeout", "upstream_connect_timeout", charged=False)
    with black_hole() as port:
        async with proxying(f"http://127.0.0.1:{port}", connect_timeout=0.3) as proxy:
            with anyio.fail_after(5):
                message = await silent.check(proxy, await proxy.generate(stream=stream))
            assert "connect_timeout" in message


async def test_the_total_bounds_connecting_too() -> None:
    with black_hole() as port:
        async with proxying(f"http://127.0.0.1:{port}", total_timeout=0.2) as proxy:
            message = await Refusal(504, "deadline", "stream_deadline").check(proxy, await proxy.generate())
            assert "total_timeout" in message


@STREAMED
async def test_a_name_that_does_not_exist(stream: bool) -> None:
    names = Names(fails=True)
    async with proxying("https://provider.test", resolver=names) as proxy:
        nameless = Refusal(502, "dns_error", "dns", charged=False)
        message = await nameless.check(proxy, await proxy.generate(stream=stream))
        assert "provider.test" not in message
        assert names.asked == ["provider.test"]


async def test_a_name_whose_first_request_was_cancelled() -> None:
    names = Names(hangs=True)
    late = Refusal(504, "dns_timeout", "dns", charged=False)
    async with proxying("https://provider.test", resolver=names, connect_timeout=0.3) as proxy:
        answers = []

        async def generate() -> None:
            answers.append(await proxy.generate())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(generate)
            tasks.start_soon(generate)
        assert len(names.asked) == 1
        for answer in answers:
            assert "connect_timeout" in await late.check(proxy, answer, times=2)


async def test_a_slow_connection_is_not_a_dns_failure() -> None:
    silent = Refusal(504, "connection_timeout", "upstream_connect_timeout", charged=False)
    with black_hole() as port:
        async with proxying(f"https://provider.test:{port}", resolver=Names(), connect_timeout=0.3) as proxy:
            for times in (1, 2):  # the second time the name is known
                await silent.check(proxy, await proxy.generate(), times=times)


@asynccontextmanager
async def tls_provider(certificate: trustme.LeafCert) -> AsyncIterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    async with serve(lambda _: IMAGE, ssl=context) as server:
        yield server


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


async def test_a_trusted_certificate_is_fine() -> None:
    authority = trustme.CA()
    async with tls_provider(authority.issue_cert("provider.test")) as server:
        url = f"https://provider.test:{server.port}"
        async with proxying(url, trust=trusting(authority), resolver=Names()) as proxy:
            for _ in range(2):
                assert (await proxy.generate()).status_code == 200
            assert (server.calls, server.connections) == (2, 1)


@STREAMED
@pytest.mark.parametrize("wrong", ["authority", "host", "expired"])
async def test_a_wrong_certificate_stops_before_the_request(wrong: str, stream: bool) -> None:
    authority = trustme.CA()
    host = "another.test" if wrong == "host" else "provider.test"
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    if wrong == "expired":
        certificate = authority.issue_cert(host, not_before=past, not_after=past + datetime.timedelta(days=1))
    else:
        certificate = authority.issue_cert(host)
    trust = trusting(trustme.CA() if wrong == "authority" else authority)
    async with tls_provider(certificate) as server:
        async with proxying(f"https://provider.test:{server.port}", trust=trust, resolver=Names()) as proxy:
            await CERTIFICATE.check(proxy, await proxy.generate(stream=stream))
        assert server.calls == server.connections == 0  # connections count once their handshake is over


@STREAMED
async def test_tls_towards_a_plain_text_port(stream: bool) -> None:
    async with serve(lambda _: IMAGE) as server:
        async with proxying(server.url.replace("http:", "https:")) as proxy:
            plain = Refusal(502, "tls_protocol_error", "tls", charged=False)
            await plain.check(proxy, await proxy.generate(stream=stream))
        assert server.calls == 0


async def test_tls_towards_a_port_that_says_nothing() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        async with proxying(f"https://127.0.0.1:{listener.getsockname()[1]}", connect_timeout=0.3) as proxy:
            silent = Refusal(504, "tls_protocol_error", "tls", charged=False)
            message = await silent.check(proxy, await proxy.generate())
            assert "connect_timeout" in message


async def test_tls_towards_a_port_that_resets() -> None:
    async def reset(listener: socket.socket) -> None:
        accepted = await anyio.to_thread.run_sync(listener.accept)
        with accepted[0] as connection:
            await anyio.wait_readable(connection)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        async with proxying(f"https://127.0.0.1:{listener.getsockname()[1]}") as proxy:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(reset, listener)
                answer = await proxy.generate()
            await Refusal(502, "tls_protocol_error", "tls", charged=False).check(proxy, answer)


@STREAMED
async def test_all_connections_in_use(stream: bool) -> None:
    busy = Refusal(503, "connection_limit_reached", "pool_timeout", charged=False)

    async with (
        no_leaks(),
        serve(lambda _: (Stall(),)) as server,
        running_proxy(server.url, max_connections=1, pool_timeout=0.2) as proxy,
    ):
        with anyio.fail_after(BOUND):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(proxy.generate)
                await server.wait_until(lambda seen: seen.calls == 1, BOUND)
                began = anyio.current_time()
                answer = await proxy.generate(stream=stream)
                assert 0.2 <= anyio.current_time() - began < 1
                assert answer.headers["retry-after"] == "1"
                assert "max_connections" in await busy.check(proxy, answer)
                tasks.cancel_scope.cancel()
        await server.wait_closed_connections(BOUND)
        assert server.calls == 1


async def test_a_freed_connection_goes_to_who_waits() -> None:
    async with (
        no_leaks(),
        serve(lambda _: IMAGE) as server,
        running_proxy(server.url, max_connections=1, pool_timeout=5) as proxy,
    ):
        statuses = []

        async def generate() -> None:
            statuses.append((await proxy.generate()).status_code)

        with anyio.fail_after(BOUND):
            async with anyio.create_task_group() as tasks:
                for _ in range(8):
                    tasks.start_soon(generate)
        assert statuses == [200] * 8
        assert server.connections == 1
