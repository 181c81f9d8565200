"""Isolation and bounds of connections: over sockets, through the whole proxy, and behind nginx."""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import anyio.lowlevel
import orjson
import pytest
from anyio import to_thread

from streamproxy.server import guard
from streamproxy.simulator.server import Server, serve
from tests.support.caller import EDITS, GENERATIONS, Caller, calling, post
from tests.support.faults import IMAGE
from tests.support.proxy import BOUND, PROMPT, Proxy, no_leaks, running_proxy

pytestmark = pytest.mark.anyio

BODY: Final = orjson.dumps({"model": "sim/gpt-image", "prompt": PROMPT})
HIDDEN: Final = post(orjson.dumps({"model": "sim/gpt-image", "prompt": "hidden"}))
"""A request inside another one's body: it must never be served."""

LIVE: Final = b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@asynccontextmanager
async def proxied(**settings: object) -> AsyncIterator[tuple[Server, Proxy]]:
    async with no_leaks(), serve(lambda _: IMAGE) as server, running_proxy(server.url, **settings) as proxy:  # type: ignore[arg-type]
        yield server, proxy


def request(*fields: str, line: str = f"POST {GENERATIONS} HTTP/1.1", body: bytes = b"") -> bytes:
    head = "\r\n".join((line, "Host: a", "Content-Type: application/json", *fields, "", ""))
    return head.encode("latin-1") + body


async def everything(caller: Caller, *pieces: bytes, pause: float = 0.02) -> bytes:
    """Send the pieces as packets of their own; all that comes back until the connection ends, or says nothing more."""
    received = b""
    loop = asyncio.get_running_loop()
    with anyio.move_on_after(BOUND):
        for piece in pieces:
            try:
                await loop.sock_sendall(caller.sock, piece)
            except OSError:
                break
            await anyio.sleep(pause)  # so that each is a packet
        while True:
            with anyio.move_on_after(1.0) as quiet:
                try:
                    data = await loop.sock_recv(caller.sock, 1 << 16)
                except OSError:
                    return received
                if not data:
                    return received
                received += data
            if quiet.cancelled_caught:
                return received
    return received


def length(size: int) -> str:
    return f"Content-Length: {size}"


def chunked(*parts: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + end


SWITCHES: Final = {
    "h2c": ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"),
    "websocket": ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13"),
    "foo": ("Connection: upgrade", "Upgrade: foo"),
    "tls": ("Connection: keep-alive, Upgrade", "Upgrade: TLS/1.2"),
}


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_an_upgrade_is_ignored_and_the_body_read(switch: str, framing: str) -> None:
    body = BODY if framing == "length" else chunked(BODY[:9], BODY[9:])
    field = length(len(body)) if framing == "length" else "Transfer-Encoding: chunked"
    async with proxied() as (server, proxy):
        for calls, cut in enumerate((0, 1, 10, -1), start=1):
            async with calling(proxy.port) as caller:
                await caller.send(request(*SWITCHES[switch], field) + body[:cut])
                await anyio.sleep(0.02)
                await caller.send(body[cut:])
                assert await caller.head() == 200
                assert b"aW1hZ2U=" in await caller.rest()
                assert (server.calls, server.received[-1].header("upgrade")) == (calls, None)
                await caller.send(LIVE)  # the connection goes on
                assert await caller.head() == 200


SMUGGLED: Final[dict[str, tuple[bytes, bytes]]] = {
    **{f"upgrade {name}": (request(*fields, length(len(HIDDEN))), HIDDEN) for name, fields in SWITCHES.items()},
    **{
        f"upgrade {name}, chunks": (request(*fields, "Transfer-Encoding: chunked"), chunked(HIDDEN))
        for name, fields in SWITCHES.items()
    },
    "get with upgrade": (request(*SWITCHES["websocket"], length(len(HIDDEN)), line="GET /livez HTTP/1.1"), HIDDEN),
    "connect": (request(length(len(HIDDEN)), line="CONNECT a:80 HTTP/1.1"), HIDDEN),
    "length and chunks": (request(length(5), "Transfer-Encoding: chunked"), b"0\r\n\r\n" + HIDDEN),
    "chunks and length": (request("Transfer-Encoding: chunked", length(len(HIDDEN))), HIDDEN),
    "two lengths": (request(length(0), length(len(HIDDEN))), HIDDEN),
    "two lengths, turned": (request(length(len(HIDDEN)), length(0)), HIDDEN),
    "a list of lengths": (request(f"Content-Length: 0, {len(HIDDEN)}"), HIDDEN),
    "a length with a sign": (request(f"Content-Length: +{len(HIDDEN)}"), HIDDEN),
    "a length after a space": (request(f"Content-Length : {len(HIDDEN)}"), HIDDEN),
    "chunked with a tab": (request("Transfer-Encoding:\tchunked"), chunked(HIDDEN)),
    "chunked and more": (request("Transfer-Encoding: chunked, identity"), b"0\r\n\r\n" + HIDDEN),
    "gzip, chunked": (request("Transfer-Encoding: gzip, chunked"), b"0\r\n\r\n" + HIDDEN),
    "xchunked": (request("Transfer-Encoding: xchunked"), HIDDEN),
    "chunked by a vertical tab": (request("Transfer-Encoding: \x0bchunked"), b"0\r\n\r\n" + HIDDEN),
    "folded": (request("X: a\r\n Transfer-Encoding: chunked", length(len(HIDDEN))), HIDDEN),
    "bare line feeds": (b"POST /livez HTTP/1.1\nHost: a\nContent-Length: 0\n\n", HIDDEN),
    "a bare CR": (request(f"X: a\rContent-Length: {len(HIDDEN)}"), HIDDEN),
    "1.0 with chunks": (request("Transfer-Encoding: chunked", line=f"POST {GENERATIONS} HTTP/1.0"), HIDDEN),
    "0.9": (b"POST /livez\r\n\r\n", HIDDEN),
    "2.0": (request(length(0), line="POST /livez HTTP/2.0"), HIDDEN),
    "an overlong size": (request("Transfer-Encoding: chunked"), b"00000000000000000000000\r\n\r\n" + HIDDEN),
    "a size with a line feed": (request("Transfer-Encoding: chunked"), b"0\n\r\n" + HIDDEN),
    "a chunk too long": (request("Transfer-Encoding: chunked"), b"2\r\nabX" + HIDDEN),
    "trailers": (request("Transfer-Encoding: chunked"), b"0\r\nX: " + HIDDEN[:40].replace(b"\r\n", b" ") + b"\r\n\r\n"),
    "early refusal, length": (request(length(len(HIDDEN)), line="POST /nope HTTP/1.1"), HIDDEN),
    "early refusal, chunks": (request("Transfer-Encoding: chunked", line="POST /nope HTTP/1.1"), chunked(HIDDEN)),
    "wrong type": (post(b"", kind="text/plain", length=len(HIDDEN)), HIDDEN),
    "a get with a body": (request(length(len(HIDDEN)), line="GET /livez HTTP/1.1"), HIDDEN),
    "expect": (request("Expect: 100-continue", length(len(HIDDEN))), HIDDEN),
}


@pytest.mark.parametrize("name", SMUGGLED)
async def test_no_body_is_read_as_a_request(name: str) -> None:
    """Nothing hidden is served, and no more is answered than was asked: one request, and the one behind it."""
    head, body = SMUGGLED[name]
    cuts: Mapping[str, Sequence[bytes]] = {
        "together": [head + body],
        "body later": [head, body],
        "body in two": [head, body[:7], body[7:]],
        "byte by byte": [head, *(body[at : at + 1] for at in range(len(body)))],
    }
    async with proxied(receive_timeout=0.5) as (server, proxy):

        async def attack(cut: str) -> None:
            async with calling(proxy.port) as caller:
                pause = 0.0 if cut == "byte by byte" else 0.02
                answer = await everything(caller, *cuts[cut], LIVE, pause=pause)
            assert len(re.findall(rb"HTTP/1\.1 [2-5]\d\d ", answer)) <= 2, (cut, answer)

        async with anyio.create_task_group() as tasks:
            for cut in cuts:
                tasks.start_soon(attack, cut)
        assert all(b"hidden" not in received.body for received in server.received), server.received
        async with calling(proxy.port) as innocent:  # the next caller is served as usual
            await innocent.send(post(BODY))
            assert await innocent.head() == 200
            await innocent.rest()


async def test_trailers_are_not_headers() -> None:
    trailers = b"0\r\nPrefer: respond-async\r\nAuthorization: Bearer x\r\nX-Request-Id: y\r\n\r\n"
    async with proxied() as (server, proxy), calling(proxy.port) as caller:
        await caller.send(request("Transfer-Encoding: chunked", body=chunked(BODY, end=trailers)))
        assert await caller.head() == 200
        assert caller.headers["x-request-id"] != "y"
        await caller.rest()
        assert server.calls == 1


# Connections that live on.


async def test_a_split_request_leaves_its_connection_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written that no request asked for: once there was a 408, ten seconds after the answer."""
    monkeypatch.setattr(guard, "HEAD_SECONDS", 0.2)
    async with proxied() as (_, proxy), calling(proxy.port) as caller:
        for _ in range(2):
            await caller.send(post(b"", length=len(BODY)))
            await anyio.sleep(0.02)
            await caller.send(BODY)
            assert await caller.head() == 200
            await caller.rest()
            with anyio.move_on_after(0.6) as quiet:
                await asyncio.get_running_loop().sock_recv(caller.sock, 1)
            assert quiet.cancelled_caught


async def test_large_bodies_on_one_connection() -> None:
    big = orjson.dumps({"model": "sim/gpt-image", "prompt": PROMPT, "x": "A" * 3_000_000})
    async with proxied() as (server, proxy), calling(proxy.port) as caller:
        for _ in range(3):
            await caller.send(post(big))
            assert await caller.head() == 200
            await caller.rest()
        assert server.calls == 3


REFUSALS: Final = {
    404: (b"/nope", "application/json"),
    415: (GENERATIONS.encode(), "text/plain"),
    400: (EDITS.encode(), "multipart/form-data"),
}


@pytest.mark.parametrize("status", REFUSALS)
async def test_a_refused_body_does_not_spoil_the_next_request(status: int) -> None:
    path, kind = REFUSALS[status]
    async with proxied() as (server, proxy), calling(proxy.port) as caller:
        await caller.send(post(b"", path=path.decode(), kind=kind, length=200_000))
        assert await caller.head() == status
        await caller.rest()
        for _ in range(20):
            await caller.send(b"x" * 10_000)
            await anyio.sleep(0.001)
        await caller.send(post(BODY))
        assert await caller.head() == 200
        await caller.rest()
        assert server.calls == 1


@pytest.mark.parametrize("status", REFUSALS)
async def test_an_early_refusal_reaches_a_sending_caller(status: int) -> None:
    path, kind = REFUSALS[status]
    async with proxied() as (_, proxy):
        for _ in range(50):
            async with calling(proxy.port) as caller:
                head = post(b"", path=path.decode(), kind=kind, length=3_000_000)
                await caller.send(head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
                for _ in range(10):
                    await caller.send(b"x" * 100_000)
                assert await caller.head() == status
                assert b"error" in await caller.rest()


async def test_a_refused_endless_body_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "LINGER_SECONDS", 0.2)
    async with proxied() as (_, proxy), calling(proxy.port) as caller:
        await caller.send(post(b"x", path="/nope", length=1_000_000))
        assert await caller.head() == 404
        await caller.rest()
        with anyio.fail_after(5):
            await caller.ended()


async def test_a_broken_body_is_answered_at_once() -> None:
    async with proxied() as (server, proxy), calling(proxy.port) as caller:
        await caller.send(request("Transfer-Encoding: chunked", body=b'5\r\n{"a"\r\n'))
        await caller.send(b"zz\r\n")
        with anyio.fail_after(5):
            assert await caller.head() == 400
        assert b"invalid_http" in await caller.rest()
        assert server.calls == 0


async def test_garbage_after_pipelined_requests_loses_none() -> None:
    live = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
    async with proxied() as (_, proxy), calling(proxy.port) as caller:
        answer = await everything(caller, live + live + b"garbage\r\n\r\n")
        assert [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", answer)] == [200, 200, 400]


async def test_pipelined_requests_are_answered_in_order() -> None:
    lines = b"".join(b"GET /v1/models/m%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(1000))
    async with proxied() as (_, proxy), calling(proxy.port) as caller:
        answer = await everything(caller, lines)
        assert answer.count(b"HTTP/1.1 404 ") == 1000


async def test_a_flood_of_tiny_chunks_lets_others_have_their_turn() -> None:
    async with proxied() as (_, proxy), calling(proxy.port) as caller:
        await caller.send(request("Transfer-Encoding: chunked"))
        slowest = 0.0  # of this thread's own time: the machine may be busy with something else
        with anyio.fail_after(BOUND):
            async with anyio.create_task_group() as tasks:

                async def flood() -> None:
                    for _ in range(4):
                        await caller.send(b"1\r\nx\r\n" * 40_000)
                    tasks.cancel_scope.cancel()

                tasks.start_soon(flood)
                while True:
                    began = time.thread_time()
                    await anyio.lowlevel.checkpoint()
                    slowest = max(slowest, time.thread_time() - began)
        assert slowest < 0.1  # 10 ms was seen


async def test_a_connection_is_read_once_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has gathered on a socket would otherwise be read whole, some megabytes, before others have their turn."""
    turns = 0
    reads: Counter[int] = Counter()
    received = guard.GuardedProtocol.data_received

    def counted(self: guard.GuardedProtocol, data: bytes) -> None:
        reads[turns] += 1
        received(self, data)

    monkeypatch.setattr(guard.GuardedProtocol, "data_received", counted)
    async with proxied() as (_, proxy), calling(proxy.port) as caller:
        await caller.send(post(b"x", path="/nope", length=50_000_000))
        assert await caller.head() == 404
        reads.clear()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(to_thread.run_sync, _send_all, caller.sock, b"x" * 10_000_000)
            while sum(reads.values()) < 20:
                time.sleep(0.01)  # noqa: ASYNC251  the bytes are to gather while the loop is busy
                turns += 1
                await anyio.lowlevel.checkpoint()
            most = max(reads.values())
    assert most == 1


def _send_all(sock: socket.socket, data: bytes) -> None:
    view = memoryview(data)
    while view:
        select.select([], [sock], [], BOUND)
        with contextlib.suppress(BlockingIOError):
            view = view[sock.send(view) :]


async def test_http_1_0_gets_no_chunks() -> None:
    async with proxied() as (_, proxy):
        stream = orjson.dumps({"model": "sim/gpt-image", "prompt": PROMPT, "stream": True})
        for version in ("1.0", "1.1"):
            for body in (BODY, stream):
                async with calling(proxy.port) as caller:
                    line = f"POST {GENERATIONS} HTTP/{version}"
                    raw = await everything(
                        caller, request(length(len(body)), "Connection: close", line=line, body=body)
                    )
                head, _, content = raw.partition(b"\r\n\r\n")
                given = [field.lower() for field in head.split(b"\r\n")[1:]]
                assert [field for field in given if field.startswith(b"connection:")] == [b"connection: close"]
                assert (b"transfer-encoding: chunked" in given) == (version == "1.1" and body is stream)
                assert b"aW1hZ2U=" in content


# Clients that ask for another protocol by default.

JAVA: Final = """
import java.net.URI;
import java.net.http.*;
import java.nio.file.*;
public class Ask {
  public static void main(String[] args) throws Exception {
    HttpClient client = HttpClient.newHttpClient();
    for (int i = 1; i < args.length; i += 2) {
      HttpRequest request = HttpRequest.newBuilder(URI.create(args[0] + args[i]))
          .header("content-type", args[i + 1])
          .POST(HttpRequest.BodyPublishers.ofFile(Path.of("body" + i))).build();
      HttpResponse<String> answer = client.send(request, HttpResponse.BodyHandlers.ofString());
      System.out.println(answer.statusCode() + " " + answer.body().contains("aW1hZ2U="));
    }
  }
}
"""

FORM: Final = (
    b"".join(
        b'--edge\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % part
        for part in (
            (b"model", b"", b"sim/gpt-image"),
            (b"prompt", b"", PROMPT.encode()),
            (b"image", b'; filename="a.png"\r\nContent-Type: image/png', b"\x89PNG\r\n\x1a\n"),
        )
    )
    + b"--edge--\r\n"
)
KIND: Final = "multipart/form-data; boundary=edge"


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("javac") is None, reason="no JDK: apt-get install default-jdk-headless")
async def test_javas_own_client_generates_and_edits(tmp_path: Path) -> None:
    (tmp_path / "Ask.java").write_text(JAVA)
    (tmp_path / "body1").write_bytes(BODY)
    (tmp_path / "body3").write_bytes(FORM)
    asked = [GENERATIONS, "application/json", EDITS, KIND]

    def run(*command: str) -> bytes:
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60).stdout

    async with proxied() as (server, proxy):
        await to_thread.run_sync(run, "javac", "Ask.java")
        out = await to_thread.run_sync(run, "java", "Ask", proxy.url, *asked)
        assert out.split(b"\n") == [b"200 true", b"200 true", b""]
        assert server.calls == 2


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_that_asks_for_http_2(tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(FORM)

    def run(*arguments: str) -> bytes:
        command = ["curl", "-s", "--http2", "--max-time", "20", "-w", "%{http_code}", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60).stdout

    async with proxied() as (server, proxy):
        json = ["-H", "content-type: application/json", "-d", BODY.decode(), proxy.url + GENERATIONS]
        assert (await to_thread.run_sync(run, *json)).endswith(b"200")
        form = ["-H", f"content-type: {KIND}", "--data-binary", "@body", proxy.url + EDITS]
        assert (await to_thread.run_sync(run, *form)).endswith(b"200")
        assert server.calls == 2
