"""`python -m tests.bench`: JSON lines as cells are done, then a table and the targets.

    --quick            few and small rounds, under 75 s instead of 8 min; numbers only roughly right
    --kinds flow,slow  these kinds of cell: flow, hold and idle of the relay beside its peers (see `cells`);
                       fanout, slow, resume, viewers and previews of retained streams on each store (see `viewers`);
                       parser, the CPU of client.js (see `client`)
    --streams 1,8      these concurrencies of the relay instead of 1, 8 and 64 (quick: 1 and 8)
    --only a,b         these peers; viewers are streamproxy's alone
    --stores memory    these stores instead of memory and valkey
    --idle 100         this many idle streams, and viewers, instead of 1000 (quick: 200)

Exit status 1 where a cell is void or a target missed. A peer or a store that is not installed is no reason.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import uvloop

from tests.bench.cells import OURS, Cell, Place, flow, hold, idle
from tests.bench.client import client_parser
from tests.bench.origin import IN_STEP
from tests.bench.peers import PEERS, SHARED, Peer, shared, started
from tests.bench.report import COLUMNS, status, table
from tests.bench.stamps import Stamps
from tests.bench.viewers import KINDS as VIEWED
from tests.bench.viewers import STORES, Store, watched
from tests.bench.wire import Answer

KINDS: Final = tuple(COLUMNS)
VIEWERS: Final = (1, 50, 200)
FULL_SECONDS: Final = 480.0
QUICK_SECONDS: Final = 70.0
FILES: Final = 8192
"""Open files that a peer and the load may have: two sockets per idle stream, and room."""

MOST_IDLE: Final = 3000
"""Idle streams or viewers: as many as every peer's configuration, and FILES, have room for."""


@contextmanager
def place(answer: Answer, seconds: float, *, pinned: bool) -> Iterator[Place]:
    """The provider, running, and where everything else goes. `pinned`: the peers have a CPU of their own."""
    cpus = sorted(os.sched_getaffinity(0)) if pinned else []
    ends_at = time.monotonic() + seconds
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        socket.create_server(("127.0.0.1", 0), backlog=1024) as listening,
    ):
        directory = Path(name)
        stamps = Stamps(directory / "stamps")
        command = [sys.executable, "-m", "tests.bench.origin", str(listening.fileno()), str(directory / "stamps")]
        theirs = cpus[1] if len(cpus) > 1 else None
        with (
            (directory / "origin.log").open("wb") as log,
            started([*command, str(answer.scale)], log.fileno(), theirs, (listening.fileno(),)),
        ):
            port: int = listening.getsockname()[1]
            cpu = cpus[0] if len(cpus) > 1 else None
            yield Place(directory, port, cpu, answer, stamps, itertools.count(), ends_at)


async def relayed(
    where: Place, peers: Sequence[Peer], kinds: Sequence[str], streams: Sequence[int], idles: int, quick: bool
) -> list[Cell]:
    """Every cell of the relay that was asked for; each is printed when it is done."""
    cells: list[Cell] = []
    rounds, gigabytes = (1, 0.2) if quick else (5, 0.4)
    if "idle" in kinds:
        cells += _said(await idle(where, peers, idles))
    for number in streams[: 1 if quick else None] if "hold" in kinds else ():
        if number <= IN_STEP:  # more would wait for a CPU, not for the peer
            cells += _said(await hold(where, peers, number, min(rounds, 3)))
    for number in streams if "flow" in kinds else ():
        cells += _said(await flow(where, peers, number, rounds, gigabytes))
    return cells


async def followed(where: Place, stores: Sequence[Store], kinds: Sequence[str], idles: int, quick: bool) -> list[Cell]:
    """Every cell of viewers that was asked for; each is printed when it is done."""
    numbers = {"fanout": VIEWERS[: 2 if quick else None], "viewers": (idles,)}
    cells: list[Cell] = []
    for kind in VIEWED:
        for store in stores if kind in kinds else ():
            cells += _said(await watched(where, store, kind, numbers.get(kind, (1,)), 1 if quick else 3))
    return cells


@contextmanager
def _shared(wanted: bool) -> Iterator[list[Peer]]:
    """Ourselves on a Valkey store, where that is asked for: what is stored is to cost little beside the relay."""
    (store,) = (store for store in STORES if store.name == "valkey")
    if not wanted:
        yield []
    elif why := store.missing():
        yield [shared("", why)]
    else:
        with store.running() as url:
            yield [shared(url)]


def _said(cells: list[Cell]) -> list[Cell]:
    for cell in cells:
        print(json.dumps(cell.summary()), flush=True)
    return cells


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    names, held = [*(peer.name for peer in PEERS), SHARED], [store.name for store in STORES]
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="What the proxy costs, beside others.")
    parser.add_argument("--quick", action="store_true", help="under 75 s instead of 8 min, only roughly right")
    parser.add_argument("--streams", help="concurrent streams [1,8,64; quick: 1,8]")
    parser.add_argument("--only", default=",".join(names), help=f"peers [{','.join(names)}]")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"kinds of cell [{','.join(KINDS)}]")
    parser.add_argument("--stores", default=",".join(held), help=f"stores [{','.join(held)}]")
    parser.add_argument("--idle", type=int, help="idle streams and viewers [1000; quick: 200]")
    chosen = parser.parse_args(arguments)
    streams = [int(number) for number in (chosen.streams or ("1,8" if chosen.quick else "1,8,64")).split(",")]
    idles = chosen.idle or (200 if chosen.quick else 1000)
    only, kinds, stores = chosen.only.split(","), chosen.kinds.split(","), chosen.stores.split(",")
    if not set(only) <= set(names) or not set(kinds) <= set(KINDS) or not set(stores) <= set(held):
        parser.error("no such peer, kind of cell or store")
    if not all(0 < number <= 256 for number in streams) or not 0 < idles <= MOST_IDLE:
        parser.error(f"streams outside 1 to 256, or idle ones outside 1 to {MOST_IDLE}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends what was started
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, most), most))
    with place(Answer(), QUICK_SECONDS if chosen.quick else FULL_SECONDS, pinned=True) as where:
        if where.cpu is not None:
            os.sched_setaffinity(0, os.sched_getaffinity(0) - {where.cpu})
        peers = [peer for peer in PEERS if peer.name in only]
        with _shared(SHARED in only) as more:
            cells = uvloop.run(relayed(where, peers + more, kinds, streams, idles, chosen.quick))
        viewed = [store for store in STORES if store.name in stores and OURS in only]
        cells += uvloop.run(followed(where, viewed, kinds, idles, chosen.quick))
        cells += _said(client_parser(where) if "parser" in kinds else [])
    print("\n" + table(cells))
    return status(cells)


if __name__ == "__main__":
    sys.exit(main())
