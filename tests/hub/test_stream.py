"""One stream: order, pace, the head's division of failure, and who may leave when."""

from __future__ import annotations

import anyio
import orjson
import pytest
from anyio.lowlevel import checkpoint

from streamproxy.core.events import ERROR, Frame
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub import Opening, Stream

pytestmark = pytest.mark.anyio

BOUND = 5.0
OPENING = Opening((("x-request-id", "r"),), ())
BROKEN = ProxyError(Failure.UPSTREAM_INCOMPLETE, "It broke.")


def frame(number: int) -> Frame:
    return Frame("t", (b"%d" % number,))


async def _settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(10):
        await checkpoint()


async def test_a_subscriber_gets_every_frame_in_order_and_then_the_end() -> None:
    stream = Stream("s")
    subscriber = stream.subscribe()
    frames = [frame(number) for number in range(20)]

    async def produce() -> None:
        for each in frames:
            await stream.append(each)
        stream.finish()

    with anyio.fail_after(BOUND):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(produce)
            got = []
            while (each := await subscriber.next()) is not None:
                assert not subscriber.at_end
                got.append(each)
    assert got == frames
    assert all(each is made for each, made in zip(got, frames, strict=True))
    assert subscriber.at_end
    assert (stream.frames, stream.bytes) == (20, 30)
    assert await subscriber.next() is None


async def test_the_producer_waits_until_a_frame_has_been_sent_and_not_only_taken() -> None:
    stream = Stream("s")
    subscriber = stream.subscribe()
    appended: list[int] = []

    async def produce() -> None:
        for number in range(3):
            await stream.append(frame(number))
            appended.append(number)

    with anyio.fail_after(BOUND):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(produce)
            for sent in range(3):
                assert await subscriber.next() == frame(sent)
                await _settle()
                assert appended == list(range(sent))
            stream.finish()
            assert await subscriber.next() is None
    assert appended == [0, 1, 2]


async def test_without_its_subscriber_nobody_waits() -> None:
    stream = Stream("s")
    with anyio.fail_after(BOUND):
        for number in range(100):
            await stream.append(frame(number))


async def test_silence_is_a_timeout_and_costs_nothing() -> None:
    stream = Stream("s")
    subscriber = stream.subscribe()
    with anyio.fail_after(BOUND):
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await subscriber.next(within=0.01)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.append, frame(1))
            assert await subscriber.next(within=BOUND) == frame(1)
            with pytest.raises(TimeoutError):
                await subscriber.next(within=0.01)
        stream.finish()
        assert await subscriber.next(within=0.01) is None


async def test_before_the_head_a_failure_is_kept_for_the_status() -> None:
    stream = Stream("s")
    subscriber = stream.subscribe()
    assert stream.fail(BROKEN) is False
    stream.finish()
    assert await subscriber.next() is None
    assert stream.error is BROKEN


async def test_after_the_head_a_failure_is_the_last_frame() -> None:
    stream = Stream("s")
    subscriber = stream.subscribe()
    stream.open(OPENING)
    stream.commit()
    assert stream.fail(BROKEN) is True
    stream.finish()
    last = await subscriber.next()
    assert last is not None
    assert (last.type, last.final) == (ERROR, True)
    said = orjson.loads(b"".join(last.data))
    assert said["request_id"] == "s"
    assert said["error"] == {
        "message": "It broke.",
        "type": "upstream_error",
        "param": None,
        "code": "upstream_incomplete",
        "status": 502,
    }
    assert await subscriber.next() is None


async def test_a_failure_comes_after_the_frames_that_wait() -> None:
    stream = Stream("s")
    subscriber = stream.subscribe()
    stream.commit()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stream.append, frame(1))
        await _settle()
        stream.fail(BROKEN)
        stream.finish()
        assert await subscriber.next() == frame(1)
        last = await subscriber.next()
        assert last is not None
        assert last.type == ERROR
        assert await subscriber.next() is None


async def test_leaving_cancels_an_unfinished_generation_and_frees_what_waited() -> None:
    stream = Stream("s")
    subscriber = stream.subscribe()
    ended: list[str] = []

    async def produce() -> None:
        with stream.scope:
            await stream.append(frame(1))
            ended.append("went on")
            await anyio.sleep(BOUND)
        ended.append("ended")

    with anyio.fail_after(BOUND / 2):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(produce)
            await subscriber.next()
            subscriber.leave()
    assert ended[-1] == "ended"
    assert not stream.fail(BROKEN)  # nobody is there to get it
    subscriber.leave()


async def test_leaving_a_finished_stream_cancels_nothing() -> None:
    stream = Stream("s")
    subscriber = stream.subscribe()
    stream.finish()
    assert await subscriber.next() is None
    subscriber.leave()
    assert not stream.scope.cancel_called


@pytest.mark.parametrize("how", ["open", "fail", "finish"])
async def test_opened_returns_at_the_first_news(how: str) -> None:
    stream = Stream("s")
    news = {"open": lambda: stream.open(OPENING), "fail": lambda: stream.fail(BROKEN), "finish": stream.finish}
    with anyio.fail_after(BOUND / 2):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.opened, BOUND)
            await _settle()
            news[how]()
        await stream.opened(BOUND)


async def test_opened_waits_no_longer_than_asked() -> None:
    stream = Stream("s")
    with anyio.fail_after(BOUND / 2):
        await stream.opened(0.01)
    assert stream.opening is None
