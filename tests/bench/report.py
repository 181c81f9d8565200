"""The bench's targets, each a ratio to a peer of the same run or a limit, the table and the exit status."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tests.bench.cells import OURS, Cell
from tests.bench.peers import SHARED


@dataclass(frozen=True, slots=True)
class Target:
    """`name` of `ours` in cells of this kind is at most `most`: times the `peer`'s where one is named.

    `streams`: only with so many. `least`: only with so many, or more. A `query` shows a difference and has no target.
    """

    text: str
    kind: str
    name: str
    most: float
    peer: str = ""
    streams: int | None = None
    least: int = 1
    ours: str = OURS

    def about(self, cell: Cell) -> bool:
        """Whether the cell has to meet it."""
        ours = (cell.kind, cell.peer, cell.query) == (self.kind, self.ours, "")
        return ours and self.streams in (None, cell.number) and cell.number >= self.least


MANY: Final = 50
"""Viewers among whom what a stream, or the first of them, costs once no longer counts."""

TARGETS: Final[tuple[Target, ...]] = (
    Target("CPU per GB, times that of nginx with 64 KB buffers", "flow", "cpu_s_per_gb", 2.5, peer="nginx-64k"),
    Target("CPU per GB, times nginx's", "flow", "cpu_s_per_gb", 2, peer="nginx"),
    Target("CPU per GB, times the tutorial's", "flow", "cpu_s_per_gb", 1 / 3, peer="tutorial"),
    Target("CPU per GB on Valkey, times on memory", "flow", "cpu_s_per_gb", 1.3, peer=OURS, ours=SHARED),
    Target("peak memory, MB", "flow", "peak_mb", 150, streams=64),
    Target("a whole event is held, times HAProxy's", "hold", "hold_ms", 1.5, peer="haproxy", streams=8),
    Target("memory per idle stream, kB", "idle", "kb_per_stream", 60),
    Target("memory of the idle process, MB", "idle", "process_mb", 50),
    Target("CPU per viewer and 5 MB event, ms", "fanout", "cpu_ms_per_viewer", 4, least=MANY),
    Target("a slow viewer is behind, s", "slow", "behind_s", 2.5),
    Target("a slow viewer has the image after, s", "slow", "image_s", 0.75),
    Target("memory per idle viewer, kB", "viewers", "kb_per_viewer", 90, least=MANY),
    Target("a small preview of a picture of 1024 pixels, kB", "previews", "small_kb", 40),
    Target("a small preview is later, ms", "previews", "later_ms", 150),
    Target("client.js, CPU of an event, times eventsource-parser's", "parser", "ratio", 0.5),
)

COLUMNS: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "idle": (("kB/stream", "kb_per_stream"), ("process MB", "process_mb")),
    "hold": (("hold ms", "hold_ms"),),
    "flow": (("CPU s/GB", "cpu_s_per_gb"), ("GB/s", "gb_per_s"), ("peak MB", "peak_mb")),
    "fanout": (("CPU ms/viewer", "cpu_ms_per_viewer"), ("last has it, s", "last_s")),
    "slow": (("behind s", "behind_s"), ("image after, s", "image_s")),
    "resume": (("CPU ms/resume", "cpu_ms_per_resume"), ("has it, ms", "resume_ms")),
    "viewers": (("kB/viewer", "kb_per_viewer"),),
    "previews": (("kB", "small_kb"), ("of kB", "whole_kb"), ("CPU ms each", "cpu_ms_each"), ("later, ms", "later_ms")),
    "parser": (("client.js ms", "ours_ms"), ("eventsource-parser ms", "theirs_ms"), ("ratio", "ratio")),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target in one cell; `met` is None where the cell, or the peer's, has no number."""

    text: str
    cell: Cell
    value: float | None
    most: float
    met: bool | None


def verdicts(cells: Sequence[Cell]) -> list[Verdict]:
    """Every target in every cell it is about."""
    found: list[Verdict] = []
    for target in TARGETS:
        for cell in filter(target.about, cells):
            value = cell.median(target.name)
            if target.peer:
                theirs = _of(cells, cell, target.peer, target.name)
                value = value / theirs if value is not None and theirs else None
            met = None if value is None else value <= target.most
            found.append(Verdict(target.text, cell, value, target.most, met))
    return found


def status(cells: Sequence[Cell]) -> int:
    """1 where a target is missed or a cell is void, unless what it is about is not installed; else 0."""
    void = any(cell.void and not cell.missing for cell in cells)
    return int(void or any(verdict.met is False for verdict in verdicts(cells)))


def _of(cells: Iterable[Cell], cell: Cell, peer: str, name: str) -> float | None:
    same = (c for c in cells if (c.kind, c.number, c.peer) == (cell.kind, cell.number, peer))
    return next((c.median(name) for c in same), None)


def table(cells: Sequence[Cell]) -> str:
    """Medians with their spread, one line per cell and a head per kind, then the targets."""
    lines: list[str] = []
    for kind, columns in COLUMNS.items():
        same = [cell for cell in cells if cell.kind == kind]
        if same:
            lines.append(f"{kind:14}{'peer':30}" + "".join(f"{title:>24}" for title, _ in columns))
        for cell in same:
            row = f"{_number(cell):14}{', '.join(filter(None, (cell.peer, cell.store, cell.query))):30}"
            row += f"  void: {cell.void}" if cell.void else "".join(f"{_shown(cell, name):>24}" for _, name in columns)
            lines.append(row.rstrip())
    lines.append("")
    for verdict in verdicts(cells):
        said = {True: "pass", False: "FAIL", None: "void"}[verdict.met]
        value = "-" if verdict.value is None else f"{verdict.value:.3g}"
        at = ", ".join(filter(None, (_number(verdict.cell), verdict.cell.store)))
        lines.append(f"{said}  {verdict.text} at {at}: {value}, at most {verdict.most:.3g}")
    return "\n".join(lines)


def _number(cell: Cell) -> str:
    return f"{cell.number} {'viewer' if cell.store else 'stream'}{'s' if cell.number > 1 else ''}"


def _shown(cell: Cell, name: str) -> str:
    values = cell.values.get(name, [])
    if not values:
        return ""
    middle = cell.median(name)
    return f"{middle:.3g}" if len(values) == 1 else f"{middle:.3g} ({min(values):.3g}-{max(values):.3g})"
