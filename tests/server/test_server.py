"""The server over real sockets: bounded heads, errors for busy ports, and the drain."""

from __future__ import annotations

import asyncio
import gc
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import orjson
import pytest
from anyio.abc import SocketStream
from sse_starlette.sse import AppStatus
from starlette.types import Message, Receive, Scope, Send

from streamproxy import server
from streamproxy.server import Hooks, guard, serve
from streamproxy.server.framing import HEAD_BYTES
from streamproxy.server.listening import listen, url_of
from streamproxy.server.memory import settle
from streamproxy.settings import ConfigurationError, Settings

pytestmark = pytest.mark.anyio

SECONDS = 10.0
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"


@dataclass(slots=True)
class App:
    """Counts what reaches it; answers with the size of the body, after `gate` has opened."""

    calls: int = 0
    hangs: bool = False
    stopped: bool = False
    entered: anyio.Event = field(default_factory=anyio.Event)
    gate: anyio.Event = field(default_factory=anyio.Event)
    released: anyio.Event = field(default_factory=anyio.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        self.calls += 1
        message: Message = {"more_body": True}
        size = 0
        while message.get("more_body"):
            message = await receive()
            size += len(message.get("body", b""))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first ", "more_body": True})
        self.entered.set()
        await self.gate.wait()
        await send({"type": "http.response.body", "body": b"%d bytes" % size})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if self.hangs:
            await self.released.wait()
        self.stopped = True
        await send({"type": "lifespan.shutdown.complete"})


@asynccontextmanager
async def serving(
    app: App, *, held: bool = False, drain: float = 5.0
) -> AsyncIterator[Callable[[], Awaitable[SocketStream]]]:
    """A served app; yields what connects to it. Responses are held open until the test sets the gate."""
    if not held:
        app.gate.set()
    sock = listen("127.0.0.1", 0)
    port = sock.getsockname()[1]
    started = anyio.Event()
    urls: list[str] = []

    def ready(url: str) -> None:
        urls.append(url)
        started.set()

    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: serve(app, Settings(drain_timeout=drain), sock, Hooks(ready=ready)))
            await started.wait()
            assert urls == [f"http://127.0.0.1:{port}"]
            yield lambda: anyio.connect_tcp("127.0.0.1", port)
            tasks.cancel_scope.cancel()
    assert app.stopped


async def rest(stream: SocketStream) -> bytes:
    received = b""
    async for chunk in stream:
        received += chunk
    return received


async def exchange(connect: Callable[[], Awaitable[SocketStream]], *pieces: bytes) -> bytes:
    """All that comes back until the server closes."""
    async with await connect() as stream:
        answer = b""

        async def read() -> None:
            nonlocal answer
            answer = await rest(stream)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            for piece in pieces:
                try:
                    await stream.send(piece)
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    break
        return answer


def refusal(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    error = orjson.loads(body)["error"]
    assert error["message"]
    return int(head.split()[1]), error["code"]


async def test_a_request_is_answered_without_naming_the_server() -> None:
    app = App()
    async with serving(app) as connect:
        answer = await exchange(connect, LAST)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"0 bytes" in answer
    assert b"\r\ndate: " in answer
    assert b"\r\nserver:" not in answer


@pytest.mark.parametrize("piece", [1, 1000, 10**6])
async def test_where_a_request_is_cut_changes_nothing(piece: int) -> None:
    request = GET + b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello" + LAST
    app = App()
    async with serving(app) as connect:
        answer = await exchange(connect, *(request[at : at + piece] for at in range(0, len(request), piece)))
    assert (app.calls, answer.count(b"HTTP/1.1 200 "), answer.count(b"0 bytes"), answer.count(b"5 bytes")) == (
        3,
        3,
        2,
        1,
    )


HEADS = {
    "one header": b"GET / HTTP/1.1\r\nx: " + b"a" * HEAD_BYTES + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + b"x: aaaaaaaaaa\r\n" * (HEAD_BYTES // 14) + b"\r\n",
    "a long path": b"GET /" + b"a" * HEAD_BYTES + b" HTTP/1.1\r\n\r\n",
    "a header without end": b"GET / HTTP/1.1\r\nx: " + b"a" * (4 * HEAD_BYTES),
    "a name without end": b"GET / HTTP/1.1\r\n" + b"a" * (4 * HEAD_BYTES),
    "much": b"GET / HTTP/1.1\r\nx: " + b"a" * 2**20 + b"\r\n\r\n",
}


@pytest.mark.parametrize("piece", [1000, 2**20])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("before", [b"", GET])
async def test_a_head_over_32_kib_never_reaches_the_app(before: bytes, head: str, piece: int) -> None:
    app = App()
    async with serving(app) as connect, await connect() as stream:
        answer = b""
        if before:  # its answer first: what follows a running response is another case
            await stream.send(before)
            while not answer.endswith(b"0\r\n\r\n"):
                answer += await stream.receive()
            answer = b""
        request = HEADS[head]
        for at in range(0, len(request), piece):
            try:
                await stream.send(request[at : at + piece])
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                break
        answer = await rest(stream)
    assert refusal(answer) == (431, "request_head_too_large")
    assert app.calls == (1 if before else 0)


@pytest.mark.parametrize("piece", [1000, 2**20])
async def test_a_head_just_below_the_bound_and_a_long_body_pass(piece: int) -> None:
    head = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 1000000\r\nx: "
    request = head + b"a" * (HEAD_BYTES - len(head) - 100) + b"\r\n\r\n" + b"b" * 1_000_000
    app = App()
    async with serving(app) as connect:
        answer = await exchange(connect, *(request[at : at + piece] for at in range(0, len(request), piece)))
    assert b"1000000 bytes" in answer


@pytest.mark.parametrize("cut", [1, 3, 15, 16, 20, len(GET) - 1])
async def test_a_head_that_does_not_end_is_refused_in_time(monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    monkeypatch.setattr(guard, "HEAD_SECONDS", 0.05)
    app = App()
    async with serving(app) as connect:
        assert refusal(await exchange(connect, GET[:cut])) == (408, "request_timeout")
        assert await exchange(connect, b"\r\n") == b""  # an empty line asks for nothing
    assert app.calls == 0


async def test_a_slow_head_is_timed_from_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte that arrives must not start the clock again: that is what slowloris lives on."""
    monkeypatch.setattr(guard, "HEAD_SECONDS", 0.3)
    async with serving(App()) as connect, await connect() as stream:
        began = anyio.current_time()
        sent = 0
        received = b""

        async def trickle() -> None:
            nonlocal sent
            while True:
                await stream.send(b"GET / HTTP/1.1\r\n"[sent : sent + 1] if sent < 16 else b"x")
                sent += 1
                await anyio.sleep(0.05)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(trickle)
            while not received.endswith(b"}"):
                received += await stream.receive()
            tasks.cancel_scope.cancel()
    assert refusal(received)[0] == 408
    assert 0.2 < anyio.current_time() - began < 3


async def test_a_second_head_is_timed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "HEAD_SECONDS", 0.05)
    app = App()
    async with serving(app) as connect, await connect() as stream:
        await stream.send(GET)
        answer = b""
        while not answer.endswith(b"0\r\n\r\n"):
            answer += await stream.receive()
        await stream.send(GET[:9])
        assert refusal(await rest(stream))[0] == 408
    assert app.calls == 1


async def test_a_connection_without_a_byte_is_closed_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "HEAD_SECONDS", 0.05)
    async with serving(App()) as connect:
        assert await exchange(connect) == b""


@pytest.mark.parametrize("next_head", [GET[:9], HEADS["a header without end"]], ids=["slow", "large"])
async def test_a_bad_next_head_waits_for_a_running_response(monkeypatch: pytest.MonkeyPatch, next_head: bytes) -> None:
    monkeypatch.setattr(guard, "HEAD_SECONDS", 0.05)
    app = App()
    async with serving(app, held=True) as connect, await connect() as stream:
        await stream.send(GET + next_head[:9])
        await app.entered.wait()
        await stream.send(next_head[9:] or b"x")
        await anyio.sleep(0.2)  # not for order: four times the bound, in which nothing may be written
        app.gate.set()
        answer = await rest(stream)
    first, end, second = answer.partition(b"7\r\n0 bytes\r\n0\r\n\r\n")
    assert (first.count(b"HTTP/1.1 200 "), bool(end)) == (1, True)
    assert refusal(second)[0] in (408, 431)
    assert app.calls == 1


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n"]
)
async def test_what_is_not_http_is_refused(garbage: bytes) -> None:
    app = App()
    async with serving(app) as connect:
        assert refusal(await exchange(connect, garbage)) == (400, "invalid_http")
    assert app.calls == 0


async def test_stopping_lets_a_running_response_end() -> None:
    app = App()
    async with anyio.create_task_group() as tasks:
        answer = b""
        connected = anyio.Event()

        async def follow(connect: Callable[[], Awaitable[SocketStream]]) -> None:
            nonlocal answer
            async with await connect() as stream:
                await stream.send(GET)
                connected.set()
                answer = await rest(stream)

        async with serving(app, held=True) as connect:
            tasks.start_soon(follow, connect)
            await app.entered.wait()
            tasks.start_soon(_open_once_closed, connect, app)
    assert answer.endswith(b"7\r\n0 bytes\r\n0\r\n\r\n")


async def _open_once_closed(connect: Callable[[], Awaitable[SocketStream]], app: App) -> None:
    """Open the gate when the server takes no new connections, so when it has begun to drain."""
    with anyio.fail_after(SECONDS):
        while True:
            try:
                stream = await connect()
            except OSError:
                break
            await stream.aclose()
            await anyio.sleep(0.01)
    app.gate.set()


async def test_stopping_does_not_wait_longer_than_told() -> None:
    app = App()
    async with serving(app, held=True, drain=0.1) as connect:
        stream = await connect()
        await stream.send(GET)
        await app.entered.wait()
    await stream.aclose()


@dataclass(slots=True)
class Draining:
    """A server in the test's own process; its drain lasts until `drained` is set."""

    app: App = field(default_factory=App)
    begun: int = 0
    drained: anyio.Event = field(default_factory=anyio.Event)
    changed: anyio.Event = field(default_factory=anyio.Event)
    status: int = -1
    ended: bool = False

    async def drain(self) -> None:
        self.begun += 1
        self.changed.set()
        await self.drained.wait()

    async def run(self, within: float, stop: anyio.Event | None, started: anyio.Event) -> None:
        self.app.gate.set()
        settings = Settings(drain_timeout=within)
        self.status = await serve(
            self.app,
            settings,
            listen("127.0.0.1", 0),
            Hooks(ready=lambda _: started.set(), drain=self.drain, stop=stop),
        )
        self.ended = True


@asynccontextmanager
async def draining(*, within: float = SECONDS, stop: anyio.Event | None = None) -> AsyncIterator[Draining]:
    """It runs when the block begins, and must have ended soon after it."""
    state, started = Draining(), anyio.Event()
    with anyio.fail_after(2 * SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(state.run, within, stop, started)
            await started.wait()
            yield state


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_is_hidden_from_sse_starlette(number: signal.Signals) -> None:
    """What sse-starlette puts in the place of uvicorn's handler would tell it to end every stream."""
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    async with draining() as state:
        signal.raise_signal(number)
        await state.changed.wait()
        assert not state.ended
        assert not AppStatus.should_exit
        state.drained.set()
    assert (state.status, state.begun, state.app.stopped) == (0, 1, True)
    assert not AppStatus.should_exit
    assert handlers == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_second_signal_does_not_wait_for_the_drain(number: signal.Signals) -> None:
    async with draining() as state:
        signal.raise_signal(signal.SIGTERM)
        await state.changed.wait()
        signal.raise_signal(number)
    assert (state.status, state.begun) == (128 + number, 1)
    assert not state.drained.is_set()


async def test_a_stop_from_inside_drains_once() -> None:
    stop = anyio.Event()
    async with draining(stop=stop) as state:
        assert state.begun == 0
        stop.set()
        await state.changed.wait()
        state.drained.set()
    assert (state.status, state.begun) == (0, 1)


@pytest.mark.parametrize("first", ["stop", "signal"])
async def test_a_signal_beside_a_stop_is_not_the_second(first: str) -> None:
    """A supervisor that signals a whole group reaches a worker twice over: by its parent, and itself."""
    stop = anyio.Event()
    async with draining(stop=stop) as state:
        if first == "signal":
            signal.raise_signal(signal.SIGTERM)
            await state.changed.wait()
        stop.set()
        await state.changed.wait()
        if first == "stop":
            signal.raise_signal(signal.SIGTERM)
        await anyio.sleep(0.3)  # not for order: three times what the server takes to see that it shall exit
        assert not state.ended
        state.drained.set()
    assert (state.status, state.begun) == (0, 1)


async def test_an_app_that_does_not_end_is_left_behind() -> None:
    async with draining(within=0.1) as state:
        state.app.hangs = True
        state.drained.set()
        began = anyio.current_time()
        signal.raise_signal(signal.SIGTERM)
    assert (state.status, state.app.stopped) == (0, False)
    assert anyio.current_time() - began < SECONDS
    state.app.released.set()


ACCEPTED = {
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): 30_000,
    (socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT): 128 * 1024,
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 30,
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 10,
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 3,
}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connections_inherit_the_sockets_options(host: str) -> None:
    try:
        sock = listen(host, 0)
    except ConfigurationError:
        pytest.skip("no IPv6 loopback")
    with sock, socket.create_connection(sock.getsockname()[:2]):
        accepted, _ = sock.accept()
        with accepted:
            assert {option: accepted.getsockopt(*option) for option in ACCEPTED} == ACCEPTED


async def test_a_served_connection_has_them_too() -> None:
    """Asked of the transport that uvicorn's protocol has: whatever the event loop sets itself, these stay."""
    found: list[dict[tuple[int, int], int]] = []

    class Asking(guard.GuardedProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            sock = transport.get_extra_info("socket")
            found.append({option: sock.getsockopt(*option) for option in ACCEPTED})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "GuardedProtocol", Asking)
        async with serving(App()) as connect:
            await exchange(connect, LAST)
    assert found == [ACCEPTED]


def test_a_busy_port_is_a_configuration_error() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(ConfigurationError) as caught:
        listen("127.0.0.1", taken.getsockname()[1])
    [problem] = caught.value.problems
    assert (problem.setting, problem.env) == ("port", "STREAMPROXY_PORT")
    assert "already in use" in problem.happened
    assert "--port" in problem.fix


@pytest.mark.parametrize("host", ["192.0.2.1", "host.invalid"])
def test_a_foreign_host_is_a_configuration_error(host: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        listen(host, 0)
    [problem] = caught.value.problems
    assert (problem.setting, "--host" in problem.fix) == ("host", True)


def test_a_port_is_free_again_at_once() -> None:
    """Connections in TIME_WAIT do not keep a restarted proxy from its port."""
    sock = listen("127.0.0.1", 0)
    port = sock.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)):
        accepted, _ = sock.accept()
        accepted.close()
    sock.close()
    listen("127.0.0.1", port).close()


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_ipv6_addresses_are_written_in_brackets() -> None:
    try:
        sock = listen("::1", 0)
    except ConfigurationError:
        pytest.skip("no IPv6 loopback")
    with sock:
        assert url_of(sock) == f"http://[::1]:{sock.getsockname()[1]}"


def test_every_interface_is_reached_through_loopback() -> None:
    with listen("0.0.0.0", 0) as sock:
        assert url_of(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}"


FAULTS = """
import resource, sys
from streamproxy.server.memory import tune_allocator
if sys.argv[1] == "tuned":
    assert tune_allocator()
piece = bytes(65536)
held = []
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    held += [b"".join([piece] * 64), b"".join([piece] * 128)]
    del held[:-8]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_a_tuned_allocator_has_fewer_page_faults() -> None:
    def faults(mode: str) -> int:
        run = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, timeout=60, check=True)
        return int(run.stdout)

    assert faults("tuned") < 0.7 * faults("untuned")  # 0.2 was measured


def test_what_a_process_starts_with_is_not_collected_again() -> None:
    before = gc.get_freeze_count()
    try:
        settle()
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()
