"""The bench's targets, each a ratio to a peer of the same run or a limit, and the table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tests.bench.cells import Cell

OURS: Final = "streamproxy"


@dataclass(frozen=True, slots=True)
class Target:
    """`name` of ours in cells of this kind is at most `most`: times the `peer`'s where one is named."""

    text: str
    kind: str
    name: str
    most: float
    peer: str = ""
    streams: int | None = None


TARGETS: Final[tuple[Target, ...]] = (
    Target("CPU per GB, times nginx's", "flow", "cpu_s_per_gb", 4, peer="nginx"),
    Target("CPU per GB, times the tutorial's", "flow", "cpu_s_per_gb", 1 / 3, peer="tutorial"),
    Target("peak memory, MB", "flow", "peak_mb", 200, streams=64),
    Target("memory per idle stream, kB", "idle", "kb_per_stream", 90),
)

COLUMNS: Final = (
    ("CPU s/GB", "cpu_s_per_gb"),
    ("GB/s", "gb_per_s"),
    ("peak MB", "peak_mb"),
    ("hold ms", "hold_ms"),
    ("kB/stream", "kb_per_stream"),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target in one cell; `met` is None where the cell, or the peer's, has no number."""

    text: str
    streams: int
    value: float | None
    most: float
    met: bool | None


def verdicts(cells: Sequence[Cell]) -> list[Verdict]:
    """Every target in every cell it is about."""
    found: list[Verdict] = []
    for target in TARGETS:
        for cell in cells:
            about = cell.peer == OURS and cell.kind == target.kind and target.streams in (None, cell.streams)
            if not about:
                continue
            value = cell.median(target.name)
            if target.peer:
                theirs = _of(cells, cell, target.peer, target.name)
                value = value / theirs if value is not None and theirs else None
            met = None if value is None else value <= target.most
            found.append(Verdict(target.text, cell.streams, value, target.most, met))
    return found


def _of(cells: Iterable[Cell], cell: Cell, peer: str, name: str) -> float | None:
    same = (c for c in cells if (c.kind, c.streams, c.peer) == (cell.kind, cell.streams, peer))
    return next((c.median(name) for c in same), None)


def table(cells: Sequence[Cell]) -> str:
    """Medians with their spread, one line per cell, then the targets."""
    lines = [f"{'cell':10}{'peer':16}" + "".join(f"{title:>24}" for title, _ in COLUMNS)]
    for cell in cells:
        row = f"{f'{cell.kind} {cell.streams}':10}{cell.peer:16}"
        row += f"  void: {cell.void}" if cell.void else "".join(f"{_shown(cell, name):>24}" for _, name in COLUMNS)
        lines.append(row.rstrip())
    lines.append("")
    for verdict in verdicts(cells):
        said = {True: "pass", False: "FAIL", None: "void"}[verdict.met]
        value = "-" if verdict.value is None else f"{verdict.value:.3g}"
        lines.append(f"{said}  {verdict.text} at {verdict.streams} streams: {value}, at most {verdict.most:.3g}")
    return "\n".join(lines)


def _shown(cell: Cell, name: str) -> str:
    values = cell.values.get(name, [])
    if not values:
        return ""
    middle = cell.median(name)
    return f"{middle:.3g}" if len(values) == 1 else f"{middle:.3g} ({min(values):.3g}-{max(values):.3g})"
