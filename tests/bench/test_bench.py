"""The bench measures what it says: a small run of it, and peers that deliver something else."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest

from tests.bench.__main__ import place
from tests.bench.cells import Cell, flow, hold, idle
from tests.bench.load import Load
from tests.bench.peers import PEERS
from tests.bench.report import table, verdicts
from tests.bench.viewers import fanout, resume, slow, staged
from tests.bench.viewers import idle as idle_viewers
from tests.bench.wire import HEAD, LAST_CHUNK, Answer, Void

pytestmark = pytest.mark.anyio

SMALL = Answer(scale=0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="other processes are measured through Linux' kernel interfaces")
async def test_a_small_run_measures_streamproxy_beside_a_peer() -> None:
    peers = [peer for peer in PEERS if peer.name in ("streamproxy", "tutorial")]
    with anyio.fail_after(30), place(SMALL, 30, pinned=False) as where:
        cells = await flow(where, peers, 2, 1, 0.005)
        cells += await hold(where, peers[:1], 2, 1)
        cells += await idle(where, peers[:1], 20)
    assert [cell.void for cell in cells] == [""] * 4
    ours, theirs, held, idled = cells
    assert (ours.median("cpu_s_per_gb") or 0) > 0
    assert (theirs.median("cpu_s_per_gb") or 0) > 0
    assert ours.values["gb"][0] == pytest.approx(0.005, rel=0.1)
    assert 20 < (ours.median("peak_mb") or 0) < 500
    assert len(held.values["hold_ms"]) == 2 * len(SMALL.events)
    assert 0 < (held.median("hold_ms") or 0) < 1000
    assert 1 < (idled.median("kb_per_stream") or 0) < 1000
    assert "streamproxy" in table(cells)


@pytest.mark.skipif(sys.platform != "linux", reason="other processes are measured through Linux' kernel interfaces")
async def test_a_small_run_measures_what_readers_cost() -> None:
    with anyio.fail_after(60):
        async with staged("memory") as stage:
            fanned, resumed = await fanout(stage, 3), await resume(stage)
            idled, slowed = await idle_viewers(stage, 20), await slow(stage, "1")
    assert 0 < fanned["cpu_ms_per_viewer"] < 1000
    assert 0 < fanned["last_s"] < 10
    assert 0 < resumed["resume_ms"] < 5000
    assert 1 < idled["kb_per_viewer"] < 1000
    assert 0 < slowed["image_s"] < 10
    assert slowed["behind_s"] > 0


@asynccontextmanager
async def _peer(*answers: Sequence[bytes]) -> AsyncIterator[Load]:
    """A peer that writes these answers, one per connection, and then closes it; the load on it."""
    left = iter(answers)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.writelines(next(left))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        with anyio.fail_after(10):
            yield Load(server.sockets[0].getsockname()[1], SMALL)


WHOLE = (HEAD, *SMALL.writes, LAST_CHUNK)


def _changed(write: bytes) -> bytes:
    middle = len(write) // 2
    return write[:middle] + bytes([write[middle] ^ 1]) + write[middle + 1 :]


async def test_whole_answers_are_counted_and_timed() -> None:
    async with _peer(WHOLE, WHOLE) as load:
        assert await load.stream() == (0, [])  # the first is read, and tells where events end
        number, arrived = await load.stream()
    assert number == 1
    assert len(arrived) == len(SMALL.events)
    assert arrived == sorted(arrived)


@pytest.mark.parametrize(
    "answers",
    [
        [(HEAD, *map(_changed, SMALL.writes[:1]), *SMALL.writes[1:], LAST_CHUNK)],
        [(HEAD, *SMALL.writes[:-1], LAST_CHUNK)],
        [(HEAD, *SMALL.writes, SMALL.writes[0], LAST_CHUNK)],
        [(HEAD, *SMALL.writes)],
        [(HEAD.replace(b"200 OK", b"503 No"),)],
        [WHOLE, (HEAD, SMALL.writes[0], _changed(SMALL.writes[1]), *SMALL.writes[2:], LAST_CHUNK)],
        [WHOLE, (HEAD, *SMALL.writes[:-1], LAST_CHUNK)],
        [WHOLE, (HEAD, *SMALL.writes, SMALL.writes[0], LAST_CHUNK)],
        [WHOLE, (HEAD, *SMALL.writes)],
    ],
    ids=[
        "a byte changed",
        "an event missing",
        "an event more",
        "cut",
        "refused",
        "then a byte changed",
        "then an event missing",
        "then an event more",
        "then cut",
    ],
)
async def test_an_answer_that_is_not_the_one_sent_is_void(answers: list[Sequence[bytes]]) -> None:
    async with _peer(*answers) as load:
        for _ in answers[1:]:
            await load.stream()
        with pytest.raises(Void):
            await load.stream()


def test_the_completed_event_may_only_gain_members() -> None:
    *previews, completed = SMALL.frames
    gained = completed.replace(b"}}}\n\n", b'}},"cost":0.1}\n\n')
    assert gained != completed
    assert len(SMALL.frame_ends(b"".join([b":\n", *previews, gained]))) == len(SMALL.events)
    with pytest.raises(Void):
        SMALL.frame_ends(b"".join([*previews, completed.replace(b'"quality":"low",', b"")]))


def test_a_target_is_met_missed_or_void() -> None:
    def cell(peer: str, cpu: float, void: str = "") -> Cell:
        return Cell("flow", 1, peer, {"cpu_s_per_gb": [cpu]}, void)

    cells = [cell("streamproxy", 2.0), cell("nginx", 1.0), cell("tutorial", 3.0)]
    assert [verdict.met for verdict in verdicts(cells)] == [True, False]
    cells[1].void = "it closed the connection"
    assert [verdict.met for verdict in verdicts(cells)] == [None, False]
    assert "FAIL" in table(cells)
