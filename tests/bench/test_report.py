"""Which cells have a target, and what a missed one and a void one mean for the exit status."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.bench.cells import OURS, Cell
from tests.bench.peers import SHARED
from tests.bench.report import COLUMNS, TARGETS, status, table, verdicts
from tests.bench.viewers import KINDS


def test_a_target_is_met_missed_or_void() -> None:
    def cell(peer: str, cpu: float, void: str = "") -> Cell:
        return Cell("flow", 1, peer, {"cpu_s_per_gb": [cpu]}, void)

    cells = [cell("streamproxy", 2.0), cell("nginx", 1.0), cell("tutorial", 3.0)]
    assert [verdict.met for verdict in verdicts(cells)] == [None, True, False]
    cells[1].void = "it closed the connection"
    assert [verdict.met for verdict in verdicts(cells)] == [None, None, False]
    assert "FAIL" in table(cells)
    assert status(cells) == 1
    assert status(cells[:1]) == 0  # a peer that was not asked for does not fail the run
    assert status(cells[:2]) == 1  # one that is void is


@pytest.mark.parametrize(
    ("kind", "name", "most", "number"),
    [
        ("fanout", "cpu_ms_per_viewer", 4, 50),
        ("slow", "behind_s", 2.5, 1),
        ("slow", "image_s", 0.75, 1),
        ("viewers", "kb_per_viewer", 90, 1000),
    ],
)
def test_the_targets_of_viewers(kind: str, name: str, most: float, number: int) -> None:
    cell = Cell(kind, number, OURS, {name: [most]}, store="valkey")
    assert [verdict.met for verdict in verdicts([cell])].count(True) == 1
    assert status([cell]) == 0
    missed = replace(cell, values={name: [most * 1.01]})
    assert [verdict.met for verdict in verdicts([missed])].count(False) == 1
    assert status([missed]) == 1
    assert f"FAIL  {next(t.text for t in TARGETS if t.name == name)} at {number} viewer" in table([cell, missed])
    assert verdicts([replace(missed, query="preempt=0")]) == []
    assert bool(verdicts([replace(missed, number=49)])) == (number < 50)


def test_the_target_of_a_shared_store() -> None:
    def cell(peer: str, cpu: float) -> Cell:
        return Cell("flow", 8, peer, {"cpu_s_per_gb": [cpu]})

    for cpu, met in ((2.6, True), (2.61, False)):
        cells = [cell(SHARED, cpu), cell(OURS, 2.0)]
        assert [verdict.met for verdict in verdicts(cells) if verdict.cell.peer == SHARED] == [met]


def test_every_target_is_about_a_column_of_its_kind() -> None:
    assert {(target.kind, target.name) for target in TARGETS} <= {
        (kind, name) for kind, columns in COLUMNS.items() for _, name in columns
    }
    assert KINDS.keys() < COLUMNS.keys()
