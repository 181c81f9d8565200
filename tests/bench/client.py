"""What client.js takes for an event of 3 MB, beside eventsource-parser: one process of Node, which does both."""

from __future__ import annotations

import shutil
import subprocess

import orjson

from tests.bench.cells import OURS, Cell, Place, voiding
from tests.bench.wire import Void
from tests.e2e.node.runner import HERE

SECONDS = 60.0


def client_parser(place: Place) -> list[Cell]:
    """The one cell."""
    cell = Cell("parser", 1, OURS)
    if shutil.which("node") is None or not (HERE / "node_modules" / "eventsource-parser").is_dir():
        cell.void, cell.missing = "node or eventsource-parser is not installed", True
        return [cell]
    with voiding(cell):
        place.has_time()
        command = ["node", str(HERE / "bench.mjs")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        if done.returncode:
            raise Void(f"bench.mjs ends with {done.returncode}: {done.stderr[-200:]}")
        found = orjson.loads(done.stdout)
        for name, value in (("ours_ms", "ours"), ("theirs_ms", "theirs"), ("ratio", "ratio")):
            cell.add(name, found[value])
    return [cell]
