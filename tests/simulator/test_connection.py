"""Scripts on a real socket: what a peer gets, and what the server notices of the peer."""

from __future__ import annotations

import time

import anyio
import pytest
from anyio.abc import SocketStream

from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Fin, Reset, Script, Send, Stall, Wait, head, json_answer
from streamproxy.simulator.server import Server, serve
from tests.simulator.test_script import Parsed

pytestmark = pytest.mark.anyio

SECONDS = 10.0
# Seconds on a busy machine; what it must not be mistaken for lasts 600.
AT_ONCE = 0.5
GOOD = json_answer(200, {"ok": True})


def request(body: bytes = b"", *, method: str = "POST", path: str = "/", headers: tuple[str, ...] = ()) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def read_answer(stream: SocketStream) -> Parsed:
    """One framed answer of a connection that stays open."""
    data = b""
    while True:
        data += await stream.receive()
        if (parsed := Parsed(data)).complete:
            return parsed


async def read_all(stream: SocketStream) -> bytes:
    """Everything until the peer's end; raises BrokenResourceError on a reset."""
    pieces = []
    while True:
        try:
            pieces.append(await stream.receive())
        except anyio.EndOfStream:
            return b"".join(pieces)


async def exchange(server: Server, data: bytes) -> bytes:
    """Send a request, read until the server closes."""
    with anyio.fail_after(SECONDS):
        async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
            await stream.send(data)
            return await read_all(stream)


async def test_a_connection_answers_one_request_after_the_other() -> None:
    async with serve(lambda _: GOOD) as server, await anyio.connect_tcp("127.0.0.1", server.port) as stream:
        with anyio.fail_after(SECONDS):
            for number in range(3):
                await stream.send(request(b"%d" % number, headers=("X-Case: Kept", "x-two: 2")))
                assert (await read_answer(stream)).body == b'{"ok":true}'
        assert (server.calls, server.connections, server.open_connections) == (3, 1, 1)
        assert [received.body for received in server.received] == [b"0", b"1", b"2"]
        assert server.received[0].headers[1:3] == (("X-Case", "Kept"), ("x-two", "2"))
        assert {received.connection for received in server.received} == {1}


@pytest.mark.parametrize("cut", range(1, len(request(b"body", headers=("A: b",)))))
async def test_where_a_request_is_cut_changes_nothing(cut: int) -> None:
    data = request(b"body", headers=("A: b",))
    async with serve(lambda _: (*GOOD, Fin())) as server, await anyio.connect_tcp("127.0.0.1", server.port) as stream:
        with anyio.fail_after(SECONDS):
            await stream.send(data[:cut])
            await server.wait_until(lambda s: s.connections == 1, SECONDS)
            await stream.send(data[cut:])
            assert Parsed(await read_all(stream)).complete
        assert [(r.method, r.target, r.body) for r in server.received] == [("POST", "/", b"body")]


async def test_two_requests_in_one_write_get_two_answers_or_one() -> None:
    # Pipelining is not supported, but it must not cause a crash or half of an answer.
    async with serve(lambda _: GOOD) as server:
        last = request(headers=("Connection: close",))
        assert Parsed(await exchange(server, request(headers=("Connection: close",)) + last)).complete


async def test_close_is_honoured() -> None:
    async with serve(lambda _: GOOD) as server:
        assert Parsed(await exchange(server, request(headers=("Connection: close",)))).complete
        await server.wait_closed_connections(SECONDS)


@pytest.mark.parametrize("step", [Stall(), Wait(600.0)])
async def test_a_peer_that_leaves_ends_a_pause_at_once(step: Stall | Wait) -> None:
    async with serve(lambda _: (Send(head(200, chunked=True)), step, Fin())) as server:
        with anyio.fail_after(SECONDS):
            async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
                await stream.send(request())
                await stream.receive()
                assert not server.disconnects
            left = time.monotonic()
            await server.wait_until(lambda s: s.disconnects, SECONDS)
            await server.wait_closed_connections(SECONDS)
        assert server.disconnects[0] - left < AT_ONCE


async def test_leaving_after_the_answer_is_no_disconnect() -> None:
    async with serve(lambda _: GOOD) as server:
        async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
            await stream.send(request())
            await read_answer(stream)
        await server.wait_closed_connections(SECONDS)
        assert not server.disconnects


async def test_a_peer_that_does_not_read_holds_the_script() -> None:
    piece = Send(bytes(64 * 1024))
    flood: Script = (Send(head(200)), *(piece,) * 1024, Fin())
    async with serve(lambda received: flood if received.target == "/flood" else GOOD) as server:
        async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
            await stream.send(request(path="/flood"))
            await server.wait_until(lambda s: s.calls == 1, SECONDS)
            for _ in range(20):  # the loop turns, the flood has had its time
                await exchange(server, request(headers=("Connection: close",)))
        await server.wait_closed_connections(SECONDS)
        assert len(server.disconnects) == 1  # so it was still playing when the peer left
        assert len(await exchange(server, request(path="/flood"))) == len(head(200)) + 64 * 1024 * 1024


async def test_fin_ends_cleanly_and_reset_does_not() -> None:
    ends: dict[str, Script] = {"/fin": (Fin(),), "/reset": (Reset(),)}
    async with serve(lambda received: (*GOOD, *ends[received.target])) as server:
        assert Parsed(await exchange(server, request(path="/fin"))).complete
        with pytest.raises(anyio.BrokenResourceError) as caught:
            await exchange(server, request(path="/reset"))
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        await server.wait_closed_connections(SECONDS)
        assert not server.disconnects


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"not http\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"h" * 100_000, 431),
        (request(bytes(2001)), 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n7d1\r\n" + bytes(2001), 413),
    ],
)
async def test_what_cannot_be_read_is_refused(data: bytes, status: int) -> None:
    async with serve(lambda _: GOOD, max_body_bytes=2000) as server:
        assert Parsed(await exchange(server, data)).status == status
        assert server.calls == 0


async def test_expect_continue_is_answered() -> None:
    async with serve(lambda _: (*GOOD, Fin())) as server, await anyio.connect_tcp("127.0.0.1", server.port) as stream:
        with anyio.fail_after(SECONDS):
            start, _, body = request(b"body", headers=("Expect: 100-continue",)).partition(b"\r\n\r\n")
            await stream.send(start + b"\r\n\r\n")
            assert (await stream.receive()).startswith(b"HTTP/1.1 100 ")
            await stream.send(body)
            assert Parsed(await read_all(stream)).complete


async def test_a_broken_handler_ends_its_connection_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(received: Received) -> Script:
        if received.target == "/broken":
            raise RuntimeError("broken on purpose")
        return GOOD

    async with serve(handler) as server:
        assert await exchange(server, request(path="/broken")) == b""
        assert "broken on purpose" in caplog.text
        assert Parsed(await exchange(server, request(headers=("Connection: close",)))).complete


async def test_early_answers_while_the_body_is_still_sent() -> None:
    refusal = (*json_answer(413, {"error": {}}, (("Connection", "close"),)), Fin())
    async with serve(lambda _: GOOD, early=lambda target, _: refusal if target == "/big" else None) as server:
        with anyio.fail_after(SECONDS):
            async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
                await stream.send(b"POST /big HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n" + bytes(100_000))
                answer = Parsed(await read_all(stream))
        assert (answer.status, server.calls, server.received[0].body_size) == (413, 1, 0)
        assert Parsed(await exchange(server, request(headers=("Connection: close",)))).status == 200
