"""An answer's body through a decoder: fed in the callback, taken frame by frame, bounded, and with its end."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator, Iterator
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import pytest

from streamproxy.errors import Failure, ProxyError
from streamproxy.simulator.script import Fin, Reset, Script, Send, Stall, Step, Wait
from streamproxy.upstream.answer import Intake
from streamproxy.upstream.connection import READ
from streamproxy.upstream.parsing import PIECE
from tests.support.proxy import BOUND
from tests.upstream.test_upstream import connected, post

pytestmark = pytest.mark.anyio

MIB = 1 << 20
HEAD = Send(b"HTTP/1.1 200 OK\r\n\r\n")
T = TypeVar("T")


class Lines:
    """Each line is a frame, by its size; one that begins with x cannot be decoded, one with e is the last."""

    def __init__(self) -> None:
        self.done = False
        self.fed = 0
        self.in_tasks = 0
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[int]:
        self.fed += len(chunk)
        self.in_tasks += asyncio.current_task() is not None
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            if line.startswith(b"x"):
                raise ZeroDivisionError
            size, self._size = self._size + len(line), 0
            self.done = line.startswith(b"e")
            yield size
            if self.done:
                return
        self._size += len(rest)

    def finish(self) -> Iterator[int]:
        if self._size:
            yield self._size
        self.done = True


class Strict(Lines):
    """A last line without its end is none."""

    def finish(self) -> Iterator[int]:
        yield from ()
        raise ProxyError(Failure.MISSING_TERMINAL_EVENT, "no end")


class Counted(tuple[Step, ...]):
    """A script that counts the bytes it could send so far."""

    sent = 0

    def __iter__(self) -> Iterator[Step]:
        for step in super().__iter__():
            yield step
            self.sent += len(step.data) if isinstance(step, Send) else 0


class Endless(tuple[Step, ...]):
    """A script that never ends, but for that of the test."""

    def __iter__(self) -> Iterator[Step]:
        yield HEAD
        while True:
            yield Send(bytes(MIB))
            yield Wait(0)  # a turn for the others


async def settled(script: Counted, size: int) -> None:
    """Return when the script has sent so many bytes, and who reads them has had turns enough."""
    with anyio.fail_after(BOUND):
        while script.sent < size:
            await anyio.lowlevel.checkpoint()
    for _ in range(100):
        await anyio.lowlevel.checkpoint()


@types.coroutine
def counted(coroutine: Coroutine[Any, None, T]) -> Generator[Any, None, tuple[T, int]]:
    """What the coroutine returns, and how often it had to wait."""
    waits = 0
    while True:
        try:
            waited = coroutine.send(None)
        except StopIteration as stop:
            return stop.value, waits
        waits += 1
        yield waited


async def test_a_task_waits_once_per_frame() -> None:
    script: Script = (HEAD, *(Send(b"a" * MIB) for _ in range(5)), Send(b"\n"), Wait(0.5), Send(b"b\n"), Fin())
    async with connected(script) as (server, upstream), upstream.open(post(server)) as answer:
        lines = Lines()
        frames = answer.frames(lines)
        for expected in (5 * MIB, 1):
            size, waits = await counted(anext(frames))
            assert size == expected
            assert 1 <= waits <= 2  # once, and once more where a busy machine made it give others a turn
        assert await anext(frames, None) is None
        assert lines.in_tasks <= READ // PIECE + 1 < 5 * MIB // PIECE  # what had come with the head


class Gathering(Lines):
    """Takes what has no line end at once; an x among it cannot be decoded."""

    def gather(self, chunk: bytes) -> bool:
        if b"\n" in chunk:
            return False
        if b"x" in chunk:
            raise ZeroDivisionError
        self._size += len(chunk)
        return True


async def test_chunks_inside_a_frame_are_gathered() -> None:
    intake, lines = Intake(), Gathering()
    intake.feed(b"first\nse")
    intake.decode_with(lines)
    for chunk in (b"co", b"nd", b"\nthi", b"rd", b"\n"):
        intake.feed(chunk)
    assert list(intake.frames) == [5, 6, 5]
    assert lines.fed == len(b"first\nse\nthi\n")
    intake.feed(b"x")
    assert isinstance(intake.undecodable, ZeroDivisionError)
    intake.feed(b"y\n")
    assert list(intake.frames) == [5, 6, 5], "after a failure nothing is decoded"


async def test_nothing_is_gathered_before_what_came_earlier() -> None:
    class Both(Gathering, Polite):
        pass

    intake = Intake()
    intake.decode_with(Both())
    intake.feed(b"a\nbb\nc")
    intake.feed(b"c")
    for _ in range(3):
        intake.decode()
    intake.feed(b"c\n")
    assert list(intake.frames) == [1, 2, 3]


class Polite(Lines):
    """Wants others to have a turn after each line."""

    def feed(self, chunk: bytes) -> Iterator[int | None]:  # type: ignore[override]
        for size in super().feed(chunk):
            yield size
            yield None


async def test_a_decoder_is_interrupted_where_it_wants_it() -> None:
    intake = Intake()
    intake.decode_with(Polite())
    intake.feed(b"a\nbb\n")
    assert (list(intake.frames), intake.interrupted, intake.full) == ([1], True, True)
    intake.feed(b"ccc\nd")
    assert list(intake.frames) == [1], "what comes meanwhile waits"
    for size in (2, 3):
        intake.decode()
        assert intake.frames.pop() == size
    intake.decode()
    assert not intake.interrupted
    intake.feed(b"d\n")
    assert intake.frames.pop() == 2


async def test_others_have_a_turn_for_each_that_a_decoder_wants() -> None:
    turns = 0

    async def turning() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    script = (HEAD, Send(b"\n" * 500 + b"end\n"), Stall())
    async with (
        connected(script) as (server, upstream),
        upstream.open(post(server)) as answer,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(turning)
        assert [size async for size in answer.frames(Polite())] == [*[0] * 500, 3]
        tasks.cancel_scope.cancel()
    assert turns >= 500


async def test_over_one_frame_the_connection_stops_reading() -> None:
    frame = b"a" * MIB + b"\n"
    script = Counted((HEAD, *(Send(frame),) * 3, Fin()))
    async with connected(script) as (server, upstream), upstream.open(post(server)) as answer:
        lines = Lines()
        frames = answer.frames(lines)
        assert await anext(frames) == MIB
        await settled(script, 3 * len(frame))  # the kernel takes as much
        assert lines.fed <= len(frame) + READ
        assert [size async for size in frames] == [MIB, MIB]


async def test_frames_that_came_before_a_reset_are_all_taken() -> None:
    script = (HEAD, *(Send(b"a" * 100 + b"\n"),) * 100, Wait(0.05), Reset())
    async with connected(script) as (server, upstream), upstream.open(post(server)) as answer:
        frames = answer.frames(Strict())
        assert await anext(frames) == 100
        await server.wait_closed_connections(BOUND)
        for _ in range(99):
            assert await anext(frames) == 100
        with pytest.raises(ProxyError) as raised:
            await anext(frames)
        assert raised.value.failure is Failure.STREAM_RESET


async def test_a_decoders_failure_comes_after_whole_frames() -> None:
    script = (HEAD, Send(b"a\nbb\n"), Wait(0.05), Send(b"ccc\nxx\nd\n"), Stall())
    async with connected(script, idle=BOUND, total=BOUND) as (server, upstream), upstream.open(post(server)) as answer:
        frames = answer.frames(Lines())
        assert [await anext(frames) for _ in range(3)] == [1, 2, 3]
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                await anext(frames)
        await server.wait_closed_connections(BOUND / 6)


@pytest.mark.parametrize("size", [10, 64 * 1024, 3 * MIB])
async def test_a_body_that_comes_before_its_decoder_is_decoded(size: int) -> None:
    script = Counted((HEAD, Send(b"a" * size + b"\nbb"), Fin()))
    async with connected(script) as (server, upstream), upstream.open(post(server)) as answer:
        await settled(script, size)
        assert [size async for size in answer.frames(Lines())] == [size, 2]


async def test_a_body_is_read_whole_however_late() -> None:
    script = Counted((HEAD, Send(bytes(3 * MIB)), Fin()))
    async with connected(script) as (server, upstream), upstream.open(post(server)) as answer:
        await settled(script, 3 * MIB)
        assert await answer.body(3 * MIB) == bytes(3 * MIB)


async def test_a_body_over_its_limit_is_a_failure() -> None:
    script = (HEAD, Send(bytes(3 * MIB)), Fin())
    async with connected(script) as (server, upstream), upstream.open(post(server)) as answer:
        with pytest.raises(ProxyError) as raised:
            await answer.body(3 * MIB - 1)
        assert raised.value.failure is Failure.RESPONSE_BODY_SIZE


async def test_bytes_behind_the_last_frame_stay_chunks() -> None:
    script = (HEAD, Send(b"a\ne\n"), Wait(0.05), Send(b"rest"), Fin())
    async with connected(script) as (server, upstream), upstream.open(post(server)) as answer:
        assert [size async for size in answer.frames(Lines())] == [1, 1]
        assert await answer.body(10) == b"rest"


async def test_no_silence_is_counted_while_the_task_does_not_take() -> None:
    script = (HEAD, *(Send(b"a" * MIB + b"\n"),) * 2, Fin())
    async with connected(script, idle=0.2) as (server, upstream), upstream.open(post(server)) as answer:
        frames = answer.frames(Lines())
        assert await anext(frames) == MIB
        await anyio.sleep(0.5)
        assert [size async for size in frames] == [MIB]


async def test_silence_inside_a_frame_is_counted() -> None:
    script = (HEAD, Send(b"a\nb"), Stall())
    async with connected(script, idle=0.2) as (server, upstream), upstream.open(post(server)) as answer:
        frames = answer.frames(Strict())
        assert await anext(frames) == 1
        with pytest.raises(ProxyError) as raised:
            await anext(frames)
        assert raised.value.failure is Failure.IDLE_TIMEOUT


async def test_the_total_ends_a_provider_that_sends_without_end() -> None:
    script = Endless((Stall(),))
    async with connected(script, total=0.3) as (server, upstream), upstream.open(post(server)) as answer:
        with pytest.raises(ProxyError) as raised:
            await anext(answer.frames(Strict()))
        assert raised.value.failure is Failure.DEADLINE
        await server.wait_closed_connections(BOUND)


async def test_cancelling_ends_a_provider_that_sends_without_end() -> None:
    async with connected(Endless((Stall(),))) as (server, upstream):
        with anyio.move_on_after(0.2):
            async with upstream.open(post(server)) as answer:
                await anext(answer.frames(Strict()))
        await server.wait_closed_connections(BOUND)
