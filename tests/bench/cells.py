"""What is measured of the relay, one function per kind of cell. Rounds alternate between the peers, so that all of them
meet the same disturbances of the machine.

    flow    `concurrent` streams as fast as they go     CPU seconds per GB, GB per second, peak memory
    hold    streams whose provider pauses between events: from its last byte of an event to the caller's
    idle    open streams whose provider is silent: memory per stream, and of the process without any
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.bench.load import Load
from tests.bench.peers import Peer, Running, running
from tests.bench.stamps import Stamps
from tests.bench.wire import Answer, Void

OURS: Final = "streamproxy"
GB: Final = 1e9
FIRST: Final = 8
"""Streams that are opened, or relayed, before anything is measured: imports, caches and connections are then there."""

STEP_SECONDS: Final = 45.0
"""Of one round of one peer; the slowest takes under 15."""

IDLE_FIRST: Final = 50
"""Idle streams before the measured ones. No relayed ones: what those leave to the allocator would hold the idle."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run takes place: temporary directory, the provider's port, the peers' CPU, and until when it may last."""

    directory: Path
    origin: int
    cpu: int | None
    answer: Answer
    stamps: Stamps
    numbers: Iterator[int]
    ends_at: float

    def has_time(self) -> None:
        """Raises TimeoutError when the run's time is over: nothing more is to be started."""
        if time.monotonic() >= self.ends_at:
            raise TimeoutError


@dataclass(slots=True)
class Cell:
    """One peer's result. `values` are all measurements, by name; `void` says why there are none, or none to trust.

    `number`: of streams, or where there is a `store`, of viewers of one retained there, who ask with `query`.
    `missing`: it is void because what it is about is not installed here.
    """

    kind: str
    number: int
    peer: str
    values: dict[str, list[float]] = field(default_factory=dict)
    void: str = ""
    missing: bool = False
    store: str = ""
    query: str = ""

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)

    def median(self, name: str) -> float | None:
        """The middle of the measurements; None where the cell is void or has none of that name."""
        values = self.values.get(name)
        return statistics.median(values) if values and not self.void else None

    def summary(self) -> dict[str, object]:
        """Median, least and greatest of each measurement, for a JSON line."""
        rows = {
            name: {
                "median": _round(statistics.median(v)),
                "min": _round(min(v)),
                "max": _round(max(v)),
                "count": len(v),
            }
            for name, v in self.values.items()
        }
        about = {"kind": self.kind, "number": self.number, "peer": self.peer}
        return {**about, "store": self.store or None, "query": self.query or None, "void": self.void or None, **rows}


Measure = Callable[[Running, Load, Cell], Awaitable[None]]


async def flow(place: Place, peers: Sequence[Peer], concurrent: int, rounds: int, gigabytes: float) -> list[Cell]:
    """`rounds` times `gigabytes` through each fast peer, a fifth of it through a slow one."""

    async def warm(_: Running, load: Load, __: Cell) -> None:
        await load.streams(max(FIRST, concurrent), concurrent)

    async def measure(peer: Running, load: Load, cell: Cell) -> None:
        wanted = gigabytes * GB / load.sent * (1 if peer.peer.fast else 0.2)
        streams = max(1, round(wanted / concurrent)) * concurrent
        cpu, began = peer.cpu(), time.perf_counter()
        await load.streams(streams, concurrent)
        relayed = streams * load.sent / GB
        cell.add("cpu_s_per_gb", (peer.cpu() - cpu) / relayed)
        cell.add("gb_per_s", relayed / (time.perf_counter() - began))
        cell.add("gb", relayed)
        cell.values["peak_mb"] = [peer.peak() / 1e6]

    return await _alternate(place, peers, Cell("flow", concurrent, ""), rounds, warm, measure)


async def hold(place: Place, peers: Sequence[Peer], concurrent: int, rounds: int) -> list[Cell]:
    """Milliseconds for which each event is held. The provider's clock is read when its write returns, so that a peer
    which passes bytes on meanwhile can come out at, or a little below, zero."""

    async def warm(_: Running, load: Load, __: Cell) -> None:
        await load.streams(FIRST, concurrent)

    async def measure(_: Running, load: Load, cell: Cell) -> None:
        for number, arrived in await load.streams(concurrent, concurrent, "paced"):
            for event, at in enumerate(arrived):
                cell.add("hold_ms", (at - place.stamps.written(number, event)) / 1e6)

    return await _alternate(place, peers, Cell("hold", concurrent, ""), rounds, warm, measure)


async def idle(place: Place, peers: Sequence[Peer], streams: int) -> list[Cell]:
    """Megabytes of a process that has served one stream, and kilobytes per open one."""

    async def warm(peer: Running, load: Load, cell: Cell) -> None:
        async with load.idle(1):
            pass
        cell.add("process_mb", peer.memory() / 1e6)
        async with load.idle(IDLE_FIRST):
            pass

    async def measure(peer: Running, load: Load, cell: Cell) -> None:
        before = peer.memory()
        async with load.idle(streams):
            cell.add("kb_per_stream", (peer.memory() - before) / 1e3 / streams)

    cells: list[Cell] = []
    for peer in peers:  # one after the other: each needs two sockets per stream, and so does the load
        if peer.passes_head:
            cells += await _alternate(place, [peer], Cell("idle", streams, ""), 1, warm, measure)
    return cells


async def _alternate(
    place: Place, peers: Sequence[Peer], blank: Cell, rounds: int, warm: Measure, measure: Measure
) -> list[Cell]:
    """A fresh process of each peer; `warm` once and `measure` `rounds` times, every peer in turn."""
    cells = [Cell(blank.kind, blank.number, peer.name) for peer in peers]
    with ExitStack() as stack:
        ready: list[tuple[Running, Load, Cell]] = []
        for peer, cell in zip(peers, cells, strict=True):
            if peer.missing:
                cell.void, cell.missing = f"{peer.binary} is not installed", True
                continue
            with voiding(cell):
                place.has_time()
                process = stack.enter_context(running(peer, place.directory, place.origin, place.cpu))
                ready.append((process, Load(process.port, place.answer, place.numbers), cell))
        for step in (warm, *[measure] * rounds):
            for process, load, cell in ready:
                if not cell.void:
                    await bounded(step(process, load, cell), place, cell)
    return cells


async def bounded(step: Awaitable[None], place: Place, cell: Cell) -> None:
    """Run one step; what goes wrong with the peer voids its cell."""
    with voiding(cell):
        async with asyncio.timeout(min(STEP_SECONDS, place.ends_at - time.monotonic())):
            await step


@contextmanager
def voiding(*cells: Cell) -> Iterator[None]:
    """What goes wrong with the peer in this block voids its cells."""
    why = ""
    try:
        yield
    except* TimeoutError:
        why = "it took too long, or the run's time was over"
    except* (Void, OSError) as group:
        why = "; ".join(sorted({str(error) or type(error).__name__ for error in _leaves(group)}))
    for cell in cells:
        cell.void = cell.void or why


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _round(value: float) -> float:
    return float(f"{value:.4g}")
