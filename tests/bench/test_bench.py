"""The bench measures what it says: small runs of it, and peers that deliver something else."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import anyio
import pytest

from tests.bench.__main__ import place
from tests.bench.cells import OURS, Cell, Place, flow, idle
from tests.bench.load import Load
from tests.bench.peers import PEERS, ROOT, Peer
from tests.bench.report import COLUMNS, status, table, verdicts
from tests.bench.stamps import Stamps
from tests.bench.viewers import KINDS, STORES, Store, image, watched
from tests.bench.wire import HEAD, LAST_CHUNK, Answer, Void
from tests.support.caller import calling

pytestmark = pytest.mark.anyio
linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are measured through Linux' kernel interfaces")

SMALL = Answer(scale=0.02)
OVER = "the run's time was over"


def _place(directory: Path, seconds: float = 60) -> Place:
    """A place without a provider."""
    directory.mkdir(exist_ok=True)
    ends_at = time.monotonic() + seconds
    return Place(directory, 0, None, SMALL, Stamps(directory / "stamps"), itertools.count(), ends_at)


def _shown(cell: Cell) -> set[str]:
    return {name for _, name in COLUMNS[cell.kind]}


@linux
async def test_a_small_run_measures_streamproxy_beside_a_peer() -> None:
    peers = [peer for peer in PEERS if peer.name in (OURS, "tutorial")]
    with anyio.fail_after(90), place(SMALL, 90, pinned=False) as where:
        cells = await flow(where, peers, 2, 1, 0.005)
        cells += await idle(where, peers[:1], 20)
    assert [cell.void for cell in cells] == [""] * 3
    ours, theirs, idled = cells
    assert all(_shown(cell) <= cell.values.keys() for cell in cells)
    assert (ours.median("cpu_s_per_gb") or 0) > 0
    assert (theirs.median("cpu_s_per_gb") or 0) > 0
    assert ours.values["gb"][0] == pytest.approx(0.005, rel=0.1)
    assert 20 < (ours.median("peak_mb") or 0) < 500
    assert 1 < (idled.median("kb_per_stream") or 0) < 1000
    assert OURS in table(cells)


@pytest.mark.soak
@linux
async def test_a_small_run_measures_what_viewers_cost(tmp_path: Path) -> None:
    with anyio.fail_after(60):
        (fanned,), (slowed, waited), (idled,) = await asyncio.gather(
            watched(_place(tmp_path / "fanout"), STORES[0], "fanout", [3], 1),
            watched(_place(tmp_path / "slow"), replace(STORES[0], name="other"), "slow", [1], 2),
            watched(_place(tmp_path / "viewers"), STORES[0], "viewers", [20], 1),
        )
    cells = [fanned, slowed, waited, idled]
    assert [(cell.void, cell.missing) for cell in cells] == [("", False)] * 4
    assert all(_shown(cell) == cell.values.keys() for cell in cells)
    assert [(cell.store, cell.query) for cell in cells[:3]] == [("memory", ""), ("other", ""), ("other", "preempt=0")]
    assert 0 < (fanned.median("cpu_ms_per_viewer") or 0) < 1000
    assert 0 < (fanned.median("last_s") or 0) < 10
    assert 0 < slowed.values["image_s"][0] < waited.values["image_s"][0] < 10
    assert slowed.values["behind_s"][0] > 0
    assert 1 < (idled.median("kb_per_viewer") or 0) < 1000


@pytest.mark.soak
@linux
def test_one_command_measures_relay_and_viewers() -> None:
    chosen = ["--quick", "--kinds", "hold,resume", "--streams", "1", "--only", OURS, "--stores", "memory"]
    command = [sys.executable, "-m", "tests.bench", *chosen]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=45, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines, _, printed = done.stdout.partition("\n\n")
    held, resumed = map(json.loads, lines.splitlines())
    assert held["hold_ms"]["count"] == len(Answer().events)
    assert 0 < held["hold_ms"]["median"] < 1000
    assert 0 < resumed["resume_ms"]["min"] <= resumed["resume_ms"]["median"] <= resumed["resume_ms"]["max"]
    assert [cell["kind"] for cell in (held, resumed)] == ["hold", "resume"]
    assert [cell["store"] for cell in (held, resumed)] == [None, "memory"]
    assert held.keys() - {"hold_ms"} == resumed.keys() - {"resume_ms", "cpu_ms_per_resume"}
    assert [line.split()[0] for line in printed.splitlines() if line] == ["hold", "1", "resume", "1"]


def _refused(*_: object) -> NoReturn:
    raise AssertionError("it is started")


async def test_a_missing_peer_is_void_and_no_failure(tmp_path: Path) -> None:
    absent = Store("absent", _refused, lambda: "it is not installed")
    cells = [cell for kind in KINDS for cell in await watched(_place(tmp_path), absent, kind, [50], 1)]
    cells += await flow(_place(tmp_path), [Peer("nginx", _refused, binary="no such binary")], 1, 1, 1.0)
    assert [cell.kind for cell in cells] == ["fanout", "slow", "slow", "resume", "viewers", "previews", "flow"]
    assert all("is not installed" in cell.void for cell in cells)
    assert {verdict.met for verdict in verdicts(cells)} == {None}
    assert table(cells).count("void: ") == 7
    assert status(cells) == 0


async def test_what_does_not_start_is_void(tmp_path: Path) -> None:
    silent = Peer(OURS, lambda *_: [sys.executable, "-c", "raise SystemExit('no port for me')"])
    with anyio.fail_after(20):
        cells = await flow(_place(tmp_path), [silent], 1, 1, 1.0)
        cells += await watched(_place(tmp_path), Store("wrong", lambda: nullcontext("no such store")), "resume", [1], 1)
    assert [cell.void.startswith("it does not listen: ") for cell in cells] == [True, True]
    assert "no port for me" in cells[0].void
    assert status(cells) == 1


async def test_when_the_time_is_over_nothing_more_is_started(tmp_path: Path) -> None:
    over = _place(tmp_path, 0)
    cells = await flow(over, [Peer(OURS, _refused)], 1, 1, 1.0)
    cells += await watched(over, Store("memory", _refused), "fanout", [1, 50], 1)
    assert [OVER in cell.void for cell in cells] == [True] * 3


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


async def test_a_stream_that_is_given_up_ends_its_connection() -> None:
    loop = asyncio.get_running_loop()
    with anyio.fail_after(5), socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        stream = asyncio.ensure_future(Load(listening.getsockname()[1], SMALL).stream())
        connection, _ = await loop.sock_accept(listening)
        with connection:
            connection.setblocking(False)
            while b"prompt" not in await loop.sock_recv(connection, 65536):
                pass
            await loop.sock_sendall(connection, HEAD)
            stream.cancel()
            await asyncio.wait([stream])
            with suppress(ConnectionError):
                assert await loop.sock_recv(connection, 65536) == b""
    assert stream.cancelled()


IMAGE = b"data: 0123456789\nevent: image_generation.completed\nid: 1.2\n\n"


@pytest.mark.parametrize(
    ("body", "right"),
    [(IMAGE, True), (IMAGE[1:], False), (IMAGE + b"data: {}\nevent: error\nid: 1.3\n\n", False)],
    ids=["whole", "short", "then an error"],
)
async def test_a_viewer_who_does_not_get_the_image_is_void(body: bytes, right: bool) -> None:
    with anyio.fail_after(5), socket.create_server(("127.0.0.1", 0)) as listening:
        async with calling(listening.getsockname()[1]) as caller:
            connection, _ = listening.accept()
            with connection:
                connection.sendall(b"%x\r\n%b\r\n%b" % (len(body), body, LAST_CHUNK))
            with nullcontext() if right else pytest.raises(Void):
                await image(caller, len(IMAGE))
