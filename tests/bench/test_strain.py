"""Small strains: every reading is there, and what does not depend on the machine's speed is within its target."""

from __future__ import annotations

import sys

import anyio
import pytest

from tests.bench.strain import NOISE, Load, Reading, asking, bodies, bombs, burst, flooded, leaving, main, table
from tests.support.process import configuration, serving_process
from tests.support.proxy import BOUND
from tests.support.sink import sinking

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="memory is read through Linux' /proc"),
]

SMALL = Load(bodies=6, body_mb=5, rest=6, callers=4, rounds=2)
"""Memory is given back after five seconds of nothing."""


def value(readings: list[Reading], text: str) -> float:
    [found] = [reading.value for reading in readings if text in reading.text]
    return found


def within(readings: list[Reading]) -> None:
    """Every target but those in milliseconds."""
    assert [reading for reading in readings if reading.missed and "ms" not in reading.text] == []


@pytest.mark.soak
async def test_a_burst_of_bodies_leaves_no_memory_behind() -> None:
    with anyio.fail_after(2 * BOUND):
        readings = await burst("bodies", bodies(SMALL), SMALL.rest)
    within(readings)
    assert value(readings, "answered 200") == SMALL.bodies + 1
    assert value(readings, "peak") > value(readings, "idle memory") + SMALL.body_mb
    assert value(readings, "livez") > 0


@pytest.mark.soak
async def test_a_burst_of_bombs_leaves_no_memory_behind() -> None:
    with anyio.fail_after(2 * BOUND):
        readings = await burst("bombs", bombs(SMALL), SMALL.rest)
    within(readings)
    assert value(readings, "answered 200") == 1
    assert value(readings, "answered 400") == SMALL.bodies


@pytest.mark.soak
@pytest.mark.parametrize("name", NOISE)
async def test_a_flooding_provider_leaves_others_their_turns(name: str) -> None:
    with anyio.fail_after(2 * BOUND):
        readings = await flooded(name, NOISE[name], 0.2)
    assert value(readings, "streams") >= 4
    assert value(readings, "livez") < 1000 * BOUND


async def test_leaving_is_timed_for_every_caller() -> None:
    with anyio.fail_after(2 * BOUND):
        readings = await leaving(SMALL.callers, SMALL.rounds)
    assert value(readings, "callers") == SMALL.callers * SMALL.rounds
    assert 0 < value(readings, "median") <= value(readings, "99th") < 1000 * BOUND


async def test_asking_for_livez_shows_when_the_process_is_busy() -> None:
    async with sinking() as sink, serving_process(configuration(sink.url)) as process, asking(process.port) as took:
        await anyio.sleep(0.1)
    assert len(took) > 1


def test_a_missed_target_is_shown_and_is_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readings = [Reading("a", "b", 2, 1), Reading("a", "c", 1, 1), Reading("a", "d", 3)]
    shown = table(readings).splitlines()
    assert [line[:4].strip() for line in shown] == ["FAIL", "pass", ""]

    async def strained(load: Load) -> list[Reading]:
        assert load == Load(callers=7)
        return readings[1:] if missed == 0 else readings

    monkeypatch.setattr("tests.bench.strain.strain", strained)
    for missed in (0, 1):
        assert main(["--callers", "7"]) == missed
    assert capsys.readouterr().out.count("FAIL") == 1
