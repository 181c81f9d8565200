"""What viewers of retained streams cost on one store, a row of KINDS per kind of cell. Each kind has a fresh process.

    fanout    `number` viewers of one stream: CPU of the proxy per viewer and 5 MB event, and when the last had it whole
    slow      one viewer at 1 MB/s of a 2 MB preview per second: how old what it shows gets, how long the image takes
    resume    a viewer who comes back to a finished stream: until it has the 2 MB image
    viewers   viewers of a stream that is silent: memory per viewer
    previews  one viewer, with previews of 512 pixels and then as they come: bytes of one, CPU to make it, added delay

The proxy is started, watched and ended as a peer is; provider and viewers are in this process.
"""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio
import orjson
import pytest

from streamproxy.simulator import pictures
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Step, Wait, event, sse
from streamproxy.simulator.server import serve
from tests.bench.cells import OURS, Cell, Place, bounded, voiding
from tests.bench.peers import Peer, Running, running, serving
from tests.bench.wire import Void
from tests.support.caller import Caller, calling
from tests.support.process import configuration
from tests.support.provider import PREVIEW, completed, preview
from tests.support.streams import chunks_until, generation_with
from tests.support.valkey import binary, valkey_server

MB: Final = 1_000_000
EVENT: Final = 5 * MB
IMAGE: Final = 2 * MB
RATE: Final = 1.0 * MB
SMALL_BUFFER: Final = 64 * 1024
RESUMES: Final = 30
PICTURES: Final = ("a lighthouse", "a red boat", "a forest", "a street", "a cat", "a mountain")
FIRST: Final = 50
"""Idle viewers before the measured ones: what the first ones make a process take once."""

SECRET: Final = "bench-" * 8


@dataclass(frozen=True, slots=True)
class Store:
    """A row: `running` gives the setting `store` of a store of our own; `missing` says why there can be none, or ""."""

    name: str
    running: Callable[[], AbstractContextManager[str]]
    missing: Callable[[], str] = lambda: ""


@contextmanager
def _valkey() -> Iterator[str]:
    with valkey_server() as server:
        yield server.url


def _no_valkey() -> str:
    try:
        binary()
    except pytest.skip.Exception as skipped:
        return str(skipped)
    return "" if importlib.util.find_spec("redis") else "redis is not installed"


STORES: Final = (Store("memory", lambda: nullcontext("memory")), Store("valkey", _valkey, _no_valkey))


@dataclass(frozen=True, slots=True)
class Scene:
    """What the provider sends for one stream: `first`, then when `go` is set `rest`, each after its wait.

    `sent` has when each of the rest was sent.
    """

    first: bytes
    rest: Sequence[bytes]
    waits: Sequence[float] = ()
    go: anyio.Event = field(default_factory=anyio.Event)
    sent: list[float] = field(default_factory=list)


class _Played(tuple[Step, ...]):
    """A scene as a script: it goes on when told so, and notes when each frame has been sent."""

    scene: Scene

    def __new__(cls, scene: Scene) -> _Played:
        played = super().__new__(cls, (Wait(0),))  # for an empty one would be none
        played.scene = scene
        return played

    def __iter__(self) -> Iterator[Step]:
        scene = self.scene
        yield from sse((scene.first,), end=())
        while not scene.go.is_set():
            yield Wait(0.005)
        for frame, wait in zip(scene.rest, scene.waits or [0.0] * len(scene.rest), strict=True):
            yield Wait(wait)
            yield from sse((frame,), end=())[1:]
            scene.sent.append(time.monotonic())
        yield sse(())[-1]


@dataclass(slots=True)
class Stage:
    """A proxy, and what its provider plays: a request's prompt says which of the scenes."""

    proxy: Running
    scenes: list[Scene]

    async def stream(self, scene: Scene) -> str:
        """Begin a stream without readers, and return its path."""
        self.scenes.append(scene)
        prompt = f"scene {len(self.scenes) - 1}"
        async with calling(self.proxy.port) as caller:
            await caller.send(generation_with({"Prefer": "respond-async"}, prompt=prompt, stream=True))
            if await caller.head() != 202:
                raise Void(f"a generation is answered with {caller.status}")
            return caller.headers["location"]


async def _watch(caller: Caller, location: str, *headers: str) -> None:
    lines = [f"GET {location} HTTP/1.1", "Host: bench", "Accept: text/event-stream", *headers, "", ""]
    await caller.send("\r\n".join(lines).encode())
    if await caller.head() != 200:
        raise Void(f"a viewer is answered with {caller.status}")


@asynccontextmanager
async def _viewers(stage: Stage, location: str, number: int) -> AsyncIterator[list[Caller]]:
    """So many that have had the stream's first event."""
    async with AsyncExitStack() as stack:
        callers: list[Caller] = []
        for _ in range(number):  # each asks at once: a connection that says nothing for 10 s is closed
            callers.append(await stack.enter_async_context(calling(stage.proxy.port)))
            await _watch(callers[-1], location)
            await chunks_until(callers[-1], b"id: 1.1\n\n")
        yield callers


async def image(caller: Caller, size: int) -> None:
    """Read a viewer's stream to its end, which has to be an image of that size and nothing else."""
    taken, last = 0, b""
    while chunk := await caller.chunk():
        taken += len(chunk)
        last = (last + chunk)[-20:]
    if taken < size or not last.endswith(b"\nid: 1.2\n\n"):
        raise Void(f"a viewer has {taken} bytes of an image of {size}, or another event after it")


async def fanout(stage: Stage, cell: Cell) -> None:
    scene = Scene(preview(0), (completed(size=EVENT),))
    ends: list[float] = []

    async def read(caller: Caller) -> None:
        await image(caller, EVENT)
        ends.append(time.monotonic())

    async with _viewers(stage, await stage.stream(scene), cell.number) as callers:
        before = stage.proxy.cpu()
        async with anyio.create_task_group() as tasks:
            for caller in callers:
                tasks.start_soon(read, caller)
            scene.go.set()
        spent = stage.proxy.cpu() - before
    cell.add("cpu_ms_per_viewer", spent / cell.number * 1000)
    cell.add("last_s", max(ends) - scene.sent[-1])


async def slow(stage: Stage, cell: Cell) -> None:
    previews = [preview(number, size=IMAGE) for number in range(5)]
    waits = [0.0, *(1.0 for _ in previews[1:]), 0.7]
    scene = Scene(preview(0), (*previews, completed(size=50_000)), waits)
    location = await stage.stream(scene)
    whole: list[tuple[int, float]] = []
    async with calling(stage.proxy.port, receive_buffer=SMALL_BUFFER) as caller:
        await _watch(caller, f"{location}&{cell.query}" if cell.query else location)
        scene.go.set()
        body, taken, began = b"", 0, time.monotonic()
        while chunk := await caller.chunk():
            taken += len(chunk)
            await anyio.sleep(max(0.0, began + taken / RATE - time.monotonic()))
            body = (body + chunk)[-200:]
            if body.endswith(b"\n\n") and b"\nid: 1." in body:
                whole.append((int(body.rpartition(b"\nid: 1.")[2]), time.monotonic()))
    if len(whole) < 3 or whole[-1][0] != len(scene.rest) + 1:
        raise Void("the slow viewer has no preview between the first and the image, or no image")
    # Event n was sent at sent[n - 2]: it is as old as the first newer preview.
    newer = [(at, [sent for sent in scene.sent[seq - 1 : -1] if sent < at]) for seq, at in whole[1:-1]]
    cell.add("behind_s", max(at - min(sent, default=at) for at, sent in newer))
    cell.add("image_s", whole[-1][1] - scene.sent[-1])


async def resume(stage: Stage, cell: Cell) -> None:
    scene = Scene(preview(0), (completed(size=IMAGE),))
    location = await stage.stream(scene)
    async with _viewers(stage, location, 1) as (caller,):
        scene.go.set()
        await image(caller, IMAGE)
    before = stage.proxy.cpu()
    for _ in range(RESUMES):
        began = time.monotonic()
        async with calling(stage.proxy.port) as caller:
            await _watch(caller, location, "Last-Event-ID: 1.1")
            await image(caller, IMAGE)
        cell.add("resume_ms", (time.monotonic() - began) * 1000)
    cell.add("cpu_ms_per_resume", (stage.proxy.cpu() - before) / RESUMES * 1000)


async def silent(stage: Stage, cell: Cell) -> None:
    location = await stage.stream(Scene(preview(0), ()))
    async with _viewers(stage, location, FIRST):
        before = stage.proxy.memory()
        async with _viewers(stage, location, cell.number):
            cell.add("kb_per_viewer", (stage.proxy.memory() - before) / 1000 / cell.number)


async def small(stage: Stage, cell: Cell) -> None:
    b64 = [base64.b64encode(pictures.encode(pictures.draw(words, 1024, 1024), "png")).decode() for words in PICTURES]
    frames = [event(PREVIEW, orjson.dumps({"type": PREVIEW, "b64_json": text})) for text in b64]
    cpu = await _previews(stage, cell, "small", frames)
    cpu -= await _previews(stage, cell, "whole", frames)
    cell.add("cpu_ms_each", cpu / len(frames) * 1000)
    cell.add("later_ms", statistics.median(cell.values["small_ms"]) - statistics.median(cell.values["whole_ms"]))


async def _previews(stage: Stage, cell: Cell, name: str, frames: Sequence[bytes]) -> float:
    """Follow these previews, `small` or `whole`: kB of each, milliseconds until it is there, and the CPU of all."""
    query = "&preview=512" if name == "small" else ""
    scene = Scene(preview(0), (*frames, completed()), [0.2] * (len(frames) + 1))
    location = await stage.stream(scene)
    async with calling(stage.proxy.port) as caller:
        await _watch(caller, location + query)
        await chunks_until(caller, b"id: 1.1\n\n")
        spent = stage.proxy.cpu()
        scene.go.set()
        for number in range(len(frames)):
            size = len(await chunks_until(caller, b"id: 1.%d\n\n" % (number + 2)))
            cell.add(f"{name}_ms", (time.monotonic() - scene.sent[number]) * 1000)
            cell.add(f"{name}_kb", size / 1000)
        return stage.proxy.cpu() - spent


@dataclass(frozen=True, slots=True)
class Kind:
    """A row: how a cell of it is measured, and with which queries at the same time. `once`: in one round."""

    measure: Callable[[Stage, Cell], Awaitable[None]]
    queries: tuple[str, ...] = ("",)
    once: bool = True


KINDS: Final[Mapping[str, Kind]] = {
    "fanout": Kind(fanout, once=False),
    "slow": Kind(slow, queries=("", "preempt=0")),
    "resume": Kind(resume),
    "viewers": Kind(silent),
    "previews": Kind(small),
}


async def watched(place: Place, store: Store, name: str, numbers: Sequence[int], rounds: int) -> list[Cell]:
    """One kind's cells, with each number of viewers."""
    kind = KINDS[name]
    some = [[Cell(name, number, OURS, store=store.name, query=query) for query in kind.queries] for number in numbers]
    cells = [cell for same in some for cell in same]
    if why := store.missing():
        for cell in cells:
            cell.void, cell.missing = why, True
        return cells
    with voiding(*cells):
        place.has_time()
        with store.running() as url:
            async with _staged(place, url) as stage:
                for same in some:
                    for _ in range(1 if kind.once else rounds):
                        steps = [bounded(kind.measure(stage, cell), place, cell) for cell in same if not cell.void]
                        await asyncio.gather(*steps)
    return cells


@asynccontextmanager
async def _staged(place: Place, store: str) -> AsyncIterator[Stage]:
    """A proxy on this store, and its provider."""
    scenes: list[Scene] = []

    def play(received: Received) -> Script:
        number: str = orjson.loads(received.body)["prompt"].removeprefix("scene ")
        return _Played(scenes[int(number)])

    def command(directory: Path, port: int, origin: int) -> list[str]:
        settings = f'store = "{store}"\nsecret = "{SECRET}"\nmax_viewers = 5000\nmax_viewers_per_caller = 5000'
        return serving(directory, port, configuration(f"http://127.0.0.1:{origin}", settings=settings))

    async with serve(play) as server:
        with running(Peer(OURS, command), place.directory, server.port, place.cpu) as proxy:
            yield Stage(proxy, scenes)
