"""The WebSocket seam against real servers: messages both ways, and every failure to open and every end."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Final

import anyio
import pytest
import trustme
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websocket
from websockets.utils import accept_key

from streamproxy.errors import Failure, ProxyError
from streamproxy.simulator.script import Fin, Reset, Script, Send, Stall, head, json_answer
from streamproxy.simulator.server import Server, serve
from streamproxy.upstream.websocket import Socket, SocketLimits, connect
from tests.support.proxy import BOUND, no_leaks

pytestmark = pytest.mark.anyio

SECRET: Final = "sk-0123456789abcdefghijklmnop"
LIMIT: Final = 100_000
Handler = Callable[[ServerConnection], Awaitable[None]]


@cache
def public_trust() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@asynccontextmanager
async def opened(
    url: str, headers: Sequence[tuple[str, str]] = (), *, seconds: float = BOUND, trust: ssl.SSLContext | None = None
) -> AsyncIterator[Socket]:
    limits = SocketLimits(open=seconds, message=LIMIT)
    async with connect(url, headers, limits=limits, ssl_context=trust or public_trust()) as opened:
        yield opened


@asynccontextmanager
async def provider(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A WebSocket server that runs `handler` for each connection; yields its URL."""
    with anyio.fail_after(BOUND):
        async with no_leaks(), serve_websocket(handler, "127.0.0.1", 0, ssl=tls, close_timeout=1) as server:
            (listener,) = server.sockets
            yield f"{'wss' if tls else 'ws'}://127.0.0.1:{listener.getsockname()[1]}/ws?clientId=a"


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[tuple[Server, str]]:
    """A server that answers the handshake with `script`, and its URL."""
    with anyio.fail_after(BOUND):
        async with no_leaks(), serve(lambda _: script) as server:
            yield server, server.url.replace("http:", "ws:")


async def failure(url: str, headers: Sequence[tuple[str, str]] = (), *, seconds: float = BOUND) -> ProxyError:
    """Why a WebSocket does not open."""
    with pytest.raises(ProxyError) as raised:
        async with opened(url, headers, seconds=seconds):
            pass
    assert SECRET not in raised.value.message
    return raised.value


async def end(url: str) -> ProxyError:
    """Why an open WebSocket has no next message."""
    async with opened(url) as opened_socket:
        with pytest.raises(ProxyError) as raised:
            await opened_socket.receive()
        with pytest.raises(ProxyError) as again:
            await opened_socket.send("more")
        assert again.value.failure is raised.value.failure
    return raised.value


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message if message != "bytes" else b"\0\xff")


async def test_messages_come_as_they_were_sent() -> None:
    async with provider(echo) as url, opened(url) as socket:
        for text in ("", "{}", "ä\u2028\0", "x" * LIMIT):
            await socket.send(text)
            assert await socket.receive() == text
        await socket.send("bytes")
        assert await socket.receive() == b"\0\xff"


async def test_the_handshake_has_our_headers_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY", "WS_PROXY", "SOCKS_PROXY"):
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
    seen: list[tuple[str, str]] = []

    async def note(connection: ServerConnection) -> None:
        assert connection.request is not None
        seen.extend((name.lower(), value) for name, value in connection.request.headers.raw_items())

    headers = [("Authorization", f"Bearer {SECRET}"), ("X-One", "1"), ("X-One", "2")]
    async with provider(note) as url, opened(url, headers) as socket:
        with pytest.raises(ProxyError):
            await socket.receive()
    names = {"host", "upgrade", "connection", "sec-websocket-key", "sec-websocket-version", "user-agent"}
    assert {name for name, _ in seen} == names | {"authorization", "x-one"}
    assert [value for name, value in seen if name == "x-one"] == ["1", "2"]
    assert dict(seen)["user-agent"] == "streamproxy"


async def test_a_cancelled_receive_loses_no_message() -> None:
    async with provider(echo) as url, opened(url) as socket:
        with anyio.move_on_after(0.05) as scope:
            await socket.receive()
        assert scope.cancelled_caught
        await socket.send("one")
        assert await socket.receive() == "one"


async def test_leaving_the_block_closes_the_connection() -> None:
    closed = anyio.Event()

    async def until_closed(connection: ServerConnection) -> None:
        await connection.wait_closed()
        assert connection.close_code == 1000
        closed.set()

    async with provider(until_closed) as url:
        async with opened(url):
            pass
        await closed.wait()


@pytest.mark.parametrize("reads", [True, False])
async def test_a_provider_that_ignores_the_close_holds_up_nobody(reads: bool) -> None:
    with anyio.fail_after(BOUND):
        async with no_leaks(), mute(reads) as (url, gone), anyio.create_task_group() as tasks:
            started = anyio.Event()

            async def hold() -> None:
                async with opened(url) as socket:
                    with anyio.move_on_after(0.3):
                        for _ in range(1000):
                            await socket.send("x" * LIMIT)
                    started.set()
                    await socket.receive()

            tasks.start_soon(hold)
            await started.wait()
            tasks.cancel_scope.cancel()
        if reads:
            await gone.wait()


@asynccontextmanager
async def mute(reads: bool = True) -> AsyncIterator[tuple[str, anyio.Event]]:
    """A server that opens a WebSocket and then only reads until the connection has gone, or not even that."""
    gone = anyio.Event()

    async def hold(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            request = b""
            while b"\r\n\r\n" not in request:
                request += await stream.receive()
            key = next(line for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:"))
            accept = accept_key(key.partition(b":")[2].strip().decode())
            await stream.send(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept.encode() + b"\r\n\r\n"
            )
            try:
                while True:
                    await (stream.receive() if reads else anyio.sleep_forever())
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                gone.set()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, hold)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        yield f"ws://127.0.0.1:{port}/", gone
        tasks.cancel_scope.cancel()


# Ends.


async def close_normally(connection: ServerConnection) -> None:
    await connection.close(1000, SECRET)


async def close_with_error(connection: ServerConnection) -> None:
    await connection.close(1011, SECRET)


async def cut(connection: ServerConnection) -> None:
    connection.transport.abort()


async def send_too_much(connection: ServerConnection) -> None:
    await connection.send("x" * (LIMIT + 1))
    await connection.wait_closed()


async def send_too_much_in_fragments(connection: ServerConnection) -> None:
    await connection.send("x" * 1000 for _ in range(LIMIT // 1000 + 1))
    await connection.wait_closed()


async def send_no_text(connection: ServerConnection) -> None:
    await connection.send(b"\xff\xfe", text=True)
    await connection.wait_closed()


async def send_no_frame(connection: ServerConnection) -> None:
    connection.transport.write(b"\xff\xff\xff\xff")
    await connection.wait_closed()


@pytest.mark.parametrize(
    ("handler", "expected", "said"),
    [
        (close_normally, Failure.UPSTREAM_INCOMPLETE, "(code 1000)"),
        (close_with_error, Failure.UPSTREAM_INCOMPLETE, "(code 1011)"),
        (cut, Failure.STREAM_RESET, "broke"),
        (send_too_much, Failure.EVENT_TOO_LARGE, "over 100000 bytes"),
        (send_too_much_in_fragments, Failure.EVENT_TOO_LARGE, "over 100000 bytes"),
        (send_no_text, Failure.STREAM_PROTOCOL, "not UTF-8"),
        (send_no_frame, Failure.STREAM_PROTOCOL, "breaks the protocol"),
    ],
)
async def test_an_end_says_how_it_came(handler: Handler, expected: Failure, said: str) -> None:
    async with provider(handler) as url:
        error = await end(url)
        assert error.failure is expected
        assert said in error.message
        assert SECRET not in error.message


async def test_a_provider_that_answers_no_ping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamproxy.upstream.websocket.PING", 0.1)
    with anyio.fail_after(BOUND):
        async with no_leaks(), mute() as (url, _):
            assert (await end(url)).failure is Failure.IDLE_TIMEOUT


async def test_what_was_sent_before_the_end_comes_first() -> None:
    async def last_words(connection: ServerConnection) -> None:
        await connection.send("one")
        await connection.send("two")

    async with provider(last_words) as url, opened(url) as socket:
        assert [await socket.receive(), await socket.receive()] == ["one", "two"]
        with pytest.raises(ProxyError, match="code 1000"):
            await socket.receive()


# What does not open.


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (json_answer(401, {"error": SECRET}), Failure.PROVIDER_AUTH),
        (json_answer(403, {"error": SECRET}), Failure.PROVIDER_AUTH),
        (json_answer(404, {"error": SECRET}), Failure.UPSTREAM_REQUEST),
        (json_answer(503, {"error": SECRET}), Failure.UPSTREAM_REQUEST),
        (json_answer(200, {"error": SECRET}), Failure.UPSTREAM_REQUEST),
        ((Send(head(101, [("Upgrade", "websocket"), ("Connection", "Upgrade")])), Stall()), Failure.UPSTREAM_REQUEST),
        ((Send(b"\x16\x03\x01nothing of HTTP\r\n\r\n"), Fin()), Failure.UPSTREAM_REQUEST),
        ((Fin(),), Failure.UPSTREAM_REQUEST),
        ((Reset(),), Failure.UPSTREAM_REQUEST),
    ],
    ids=["401", "403", "404", "503", "200", "no key", "no HTTP", "end", "reset"],
)
async def test_an_answer_that_opens_nothing(script: Script, expected: Failure) -> None:
    async with scripted(script) as (server, url):
        assert (await failure(url, [("authorization", SECRET)])).failure is expected
        assert server.calls == 1
        await server.wait_closed_connections(BOUND)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["/other", "elsewhere"])
async def test_no_redirect_is_followed(status: int, location: str) -> None:
    async with scripted(json_answer(200, {})) as (elsewhere, other):
        place = location if location == "/other" else other
        async with serve(lambda _: (Send(head(status, [("Location", place)], length=0)),)) as server:
            error = await failure(server.url.replace("http:", "ws:"), [("x-api-key", SECRET)])
            assert error.failure is Failure.UNEXPECTED_REDIRECT
            assert (server.calls, elsewhere.calls) == (1, 0)


async def test_a_handshake_that_takes_too_long() -> None:
    async with scripted((Stall(),)) as (server, url):
        assert (await failure(url, seconds=0.2)).failure is Failure.CONNECTION_TIMEOUT
        await server.wait_closed_connections(BOUND)


async def test_a_refused_connection() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening
        url = f"ws://127.0.0.1:{taken.getsockname()[1]}/"
        assert (await failure(url)).failure is Failure.CONNECTION_REFUSED


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/", "ws://", "ws://127.0.0.1:99999/", "", f"ws://127.0.0.1/#{SECRET}"]
)
async def test_an_address_that_is_none(url: str) -> None:
    assert (await failure(url)).failure is Failure.UPSTREAM_REQUEST


@pytest.mark.parametrize("value", ["a\r\nx-injected: 1", "a\n", "\0", "\u20ac"])
@pytest.mark.parametrize("place", ["name", "value"])
async def test_a_header_that_cannot_be_sent(value: str, place: str) -> None:
    header = (f"x-{value}", SECRET) if place == "name" else ("x-one", f"{SECRET}{value}")
    async with scripted(json_answer(404, {})) as (server, url):
        assert (await failure(url, [header])).failure is Failure.UPSTREAM_REQUEST
        assert server.connections == 0


# TLS.


@pytest.mark.parametrize("trusted", [True, False])
async def test_tls_is_trusted_or_not(trusted: bool) -> None:
    authority = trustme.CA()
    theirs, ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    if trusted:
        authority.configure_trust(ours)
    async with provider(echo, theirs) as url:
        if trusted:
            async with opened(url, trust=ours) as socket:
                await socket.send("one")
                assert await socket.receive() == "one"
        else:
            assert (await failure(url)).failure is Failure.TLS_CERTIFICATE_ERROR


async def test_tls_towards_a_plain_text_port() -> None:
    async with scripted(json_answer(400, {})) as (server, url):
        assert (await failure(url.replace("ws:", "wss:"))).failure is Failure.TLS_PROTOCOL_ERROR
        assert server.calls == 0
