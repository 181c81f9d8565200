"""`python -m tests.bench.strain`: what hostile loads cost everybody else, as one table with targets.

    --bodies 50    bodies, and then bombs, that are sent at once
    --body-mb 23   megabytes of each body; a bomb has just as many as max_json_bytes lets through
    --rest 30      seconds after such a burst until resident memory is read
    --seconds 3    for which a provider floods four streams with each kind of noise
    --callers 40   that leave at once
    --rounds 5     of leaving

    burst     peak of resident memory, what of it is still there after the rest, and the slowest GET /livez meanwhile
    flood     the slowest GET /livez while streams carry comments, blank lines or unknown events and no image
    leaving   from a caller's leaving to the end of the provider's connection

The proxy, the flooding provider and the process that asks for /livez are processes of their own. Exit status 1 where a
target is missed; on a machine that does something else meanwhile, milliseconds are its milliseconds too.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import re
import socket
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Final

import anyio
import orjson
import uvloop
from anyio import to_thread
from anyio.abc import SocketAttribute, SocketStream

from streamproxy.signals import Signal
from tests.e2e.test_bodies import BOMBS
from tests.support.caller import calling, generation, post
from tests.support.process import Process, configuration, serving_process
from tests.support.provider import preview
from tests.support.sink import sinking

MB: Final = 1e6
STEP_SECONDS: Final = 120.0
"""Of one burst, flood or round; each takes a few."""

PROBE_SECONDS: Final = 0.005
"""Between two questions for /livez."""

FLOODED: Final = 4
"""Streams that are flooded at a time."""

NOISE: Final = {
    "comments": b":\n" * 32_768,
    "blank lines": b"\n" * 65_536,
    "unknown events": b"event: x\ndata: y\n\n" * 4096,
}
EVENTS: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"

_SPAWN: Final = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class Load:
    """How much of everything; the defaults are those of the command."""

    bodies: int = 50
    body_mb: float = 23
    rest: float = 30
    seconds: float = 3
    callers: int = 40
    rounds: int = 5


@dataclass(frozen=True, slots=True)
class Reading:
    """One line of the table. Without `most` it has no target."""

    load: str
    text: str
    value: float
    most: float | None = None

    @property
    def missed(self) -> bool:
        """Whether it is over its target."""
        return self.most is not None and self.value > self.most


# Targets, and where they come from.

LIVEZ_MS: Final = 100.0
"""Kubernetes' probes wait for one second by default; a tenth of it leaves room for a machine that is busy."""

TIMES_IDLE: Final = 2.0
"""Of resident memory after the rest: what a burst has left must not be what a container's limit is made for."""

PEAK_MB: Final = 400.0
"""max_body_memory (268 MB), the process itself (62 MB), and what is on its way through 50 sockets."""

LEAVING_MS: Final = 50.0
"""A provider that is cancelled at once need not charge for the rest; a caller's own round trip takes as long."""


# The process that asks for /livez.


def ask(port: int, pipe: Connection) -> None:
    """Ask again and again until the other end of the pipe says so; then send the milliseconds of each answer."""
    took: list[float] = []
    with socket.create_connection(("127.0.0.1", port), STEP_SECONDS) as sock:
        pipe.send(None)
        asked = True
        while asked:
            began = time.perf_counter()
            sock.sendall(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            answer = b""
            while not (found := re.search(rb"(?i)content-length: (\d+)\r\n[^$]*?\r\n\r\n", answer)) or (
                len(answer) < found.end() + int(found[1])
            ):
                if not (data := sock.recv(4096)):
                    raise ConnectionError("the proxy closed the connection that asks for /livez")
                answer += data
            took.append((time.perf_counter() - began) * 1000)
            asked = not pipe.poll(PROBE_SECONDS)
    pipe.send(took)


@asynccontextmanager
async def asking(port: int) -> AsyncIterator[list[float]]:
    """Milliseconds of every GET /livez that was asked during the block; filled when it ends."""
    took: list[float] = []
    ours, theirs = _SPAWN.Pipe()
    child = _SPAWN.Process(target=ask, args=(port, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        await to_thread.run_sync(ours.recv)
        yield took
        ours.send(None)
        took += await to_thread.run_sync(ours.recv)
    finally:
        _ended(child)


def _ended(child: multiprocessing.process.BaseProcess) -> None:
    child.join(5)
    if child.is_alive():
        child.kill()
        child.join()


# Bursts of bodies.


async def burst(name: str, requests: Sequence[bytes], rest: float) -> list[Reading]:
    """Send all of them at once, each on a connection of its own."""
    statuses: Counter[int] = Counter()

    async def send(request: bytes, port: int) -> None:
        async with calling(port) as caller:
            with contextlib.suppress(OSError):  # what is refused early may end before it is sent, and has its answer
                await caller.send(request)
            with contextlib.suppress(OSError):
                statuses[await caller.head()] += 1

    async with sinking() as sink, serving_process(configuration(sink.url)) as process:
        await send(generation(), process.port)
        idle = process.reset_peak()
        with anyio.fail_after(STEP_SECONDS):
            async with asking(process.port) as took, anyio.create_task_group() as tasks:
                for request in requests:
                    tasks.start_soon(send, request, process.port)
        peak = process.peak()
        await anyio.sleep(rest)
        left = process.resident()
    unanswered = len(requests) + 1 - statuses.total()
    return [
        Reading(name, "without an answer", unanswered, 0),
        *(Reading(name, f"answered {status}", count) for status, count in sorted(statuses.items())),
        Reading(name, "slowest livez, ms", max(took), LIVEZ_MS),
        Reading(name, "idle memory, MB", idle / MB),
        Reading(name, "peak memory, MB", peak / MB, PEAK_MB),
        Reading(name, f"memory {rest:g} s later, times idle", left / idle, TIMES_IDLE),
    ]


def bodies(load: Load) -> list[bytes]:
    """Sound requests of this size."""
    request = generation(x="A" * int(load.body_mb * MB))
    return [request] * load.bodies


def bombs(load: Load) -> list[bytes]:
    """Each kind of bomb in turn."""
    requests = [post(make()) for make in list(BOMBS.values())[: load.bodies]]
    return [requests[number % len(requests)] for number in range(load.bodies)]


# Floods.


def flood(piece: bytes, pipe: Connection) -> None:
    """A provider that answers every request with `piece`, again and again."""

    def answer(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.recv(65_536)
            client.sendall(EVENTS)
            while True:
                client.sendall(piece)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        pipe.send(listener.getsockname()[1])
        while True:
            client, _ = listener.accept()
            threading.Thread(target=answer, args=(client,), daemon=True).start()


@contextmanager
def flooding(piece: bytes) -> Iterator[str]:
    """The origin of a provider that floods."""
    ours, theirs = _SPAWN.Pipe()
    child = _SPAWN.Process(target=flood, args=(piece, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        child.terminate()
        _ended(child)


async def flooded(name: str, piece: bytes, seconds: float) -> list[Reading]:
    """Four streams of it at a time; each ends when the proxy has had enough, and makes way for the next."""
    streams = 0

    async def follow(port: int) -> None:
        nonlocal streams
        while time.monotonic() < until:
            async with calling(port) as caller:
                await caller.send(generation(stream=True, prompt=f"{streams}"))
                await caller.head()
                await caller.rest()
            streams += 1

    with flooding(piece) as origin, anyio.fail_after(STEP_SECONDS):
        async with (
            serving_process(configuration(origin, settings="failure_hold = 0\n")) as process,
            asking(process.port) as took,
            anyio.create_task_group() as tasks,
        ):
            until = time.monotonic() + seconds
            for _ in range(FLOODED):
                tasks.start_soon(follow, process.port)
    return [Reading(name, "streams", streams), Reading(name, "slowest livez, ms", max(took), LIVEZ_MS)]


# Leaving.


@dataclass(slots=True)
class Watched:
    """A provider that sends one preview and waits. When each caller's connection to it has ended, by prompt."""

    begun: int = 0
    ended: dict[str, float] = field(default_factory=dict)
    changed: Signal = field(default_factory=Signal)

    async def serve(self, stream: SocketStream) -> None:
        async with stream:
            data = b""
            while b"\r\n\r\n{" not in data or not data.endswith(b"}"):
                data += await stream.receive()
            prompt = orjson.loads(data.partition(b"\r\n\r\n")[2])["prompt"]
            await stream.send(EVENTS + preview(0))
            self.begun += 1
            self.changed.set()
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                await stream.receive()
            self.ended[prompt] = time.perf_counter()
            self.changed.set()

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait for this to be true."""
        while not reached():
            await self.changed.wait()


async def leaving(callers: int, rounds: int) -> list[Reading]:
    """All callers of a round leave at once, when each has its preview."""
    watched = Watched()
    took: list[float] = []
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    origin = f"http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, watched.serve)
        async with serving_process(configuration(origin, settings="disconnect_grace = 0\n")) as process:
            for number in range(rounds):
                with anyio.fail_after(STEP_SECONDS):
                    took += await _leave(process, watched, [f"{number}.{caller}" for caller in range(callers)])
        tasks.cancel_scope.cancel()
    worst = max(took) if len(took) < 2 else statistics.quantiles(took, n=100, method="inclusive")[98]
    return [
        Reading("leaving", "callers", len(took)),
        Reading("leaving", "median, ms", statistics.median(took)),
        Reading("leaving", "99th percentile, ms", worst, LEAVING_MS),
    ]


async def _leave(process: Process, watched: Watched, prompts: Sequence[str]) -> list[float]:
    """Milliseconds from each one's leaving to the end of its connection at the provider."""
    left: dict[str, float] = {}
    async with contextlib.AsyncExitStack() as connections:
        callers = [await connections.enter_async_context(calling(process.port)) for _ in prompts]
        for caller, prompt in zip(callers, prompts, strict=True):
            await caller.send(generation(stream=True, prompt=prompt))
        for caller in callers:
            await caller.head()
            while b"\n\n" not in await caller.chunk():
                pass
        for caller, prompt in zip(callers, prompts, strict=True):
            left[prompt] = time.perf_counter()
            caller.close()
        await watched.until(lambda: left.keys() <= watched.ended.keys())
    return [(watched.ended[prompt] - at) * 1000 for prompt, at in left.items()]


# The command.


async def strain(load: Load) -> list[Reading]:
    """Every reading, one load after the other."""
    readings = await burst("bodies", bodies(load), load.rest)
    readings += await burst("bombs", bombs(load), load.rest)
    for name, piece in NOISE.items():
        readings += await flooded(name, piece, load.seconds)
    return readings + await leaving(load.callers, load.rounds)


def table(readings: Sequence[Reading]) -> str:
    """One line each."""
    lines: list[str] = []
    for reading in readings:
        said = "    " if reading.most is None else "FAIL" if reading.missed else "pass"
        most = "" if reading.most is None else f"  at most {reading.most:g}"
        lines.append(f"{said}  {reading.load:16}{reading.text:32}{reading.value:10.4g}{most}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    least = Load()
    parser = argparse.ArgumentParser(prog="python -m tests.bench.strain", description="What hostile loads cost.")
    parser.add_argument("--bodies", type=int, default=least.bodies, help="bodies, and bombs, sent at once [50]")
    parser.add_argument("--body-mb", type=float, default=least.body_mb, help="megabytes of each body [23]")
    parser.add_argument("--rest", type=float, default=least.rest, help="seconds from a burst to the reading [30]")
    parser.add_argument("--seconds", type=float, default=least.seconds, help="seconds of each flood [3]")
    parser.add_argument("--callers", type=int, default=least.callers, help="callers who leave at once [40]")
    parser.add_argument("--rounds", type=int, default=least.rounds, help="rounds of leaving [5]")
    chosen = parser.parse_args(arguments)
    readings = uvloop.run(strain(Load(**vars(chosen))))
    print(table(readings))
    return int(any(reading.missed for reading in readings))


if __name__ == "__main__":
    sys.exit(main())
