"""The writer of an event stream: two layouts, opening words, slices, and how a half-written preview ends."""

from __future__ import annotations

import re
import weakref
from collections.abc import AsyncGenerator

import anyio
import orjson
import pytest
from sse_starlette.sse import AppStatus

from streamproxy.core.events import ANSWER, ERROR, Frame
from streamproxy.core.sse import Piece
from streamproxy.errors import Failure
from streamproxy.hub.generation import Generation
from streamproxy.hub.log import Entry, Record
from streamproxy.hub.stream import Stream, Subscriber
from streamproxy.observe import Observer
from streamproxy.surfaces.images import Images, layout
from streamproxy.web.outcome import failure_of
from streamproxy.web.responses import Reader, deliver
from streamproxy.web.slicing import LARGEST, PIECES, SLICE, Pieces
from streamproxy.web.writing import (
    RETRY,
    RETRY_OVERLOADED,
    EventStream,
    Followed,
    Posted,
    come_back,
    opening_words,
    written,
)
from tests.support.sending import Following, Sending, cutting

pytestmark = pytest.mark.anyio

PREVIEW = "image_edit.partial_image"
COMPLETED = "image_edit.completed"
COUNT = 32


def inline(entry: Entry) -> tuple[Piece, ...]:
    return entry.frame.data


async def joined(slices: AsyncGenerator[Pieces, None]) -> AsyncGenerator[bytes, None]:
    """Each slice as bytes."""
    async for part in slices:
        yield bytes(part.joined())


def followed(subscriber: Subscriber, *, heartbeat: float = 15, preempt: bool = True) -> AsyncGenerator[bytes, None]:
    """What an EventSource is sent, slice by slice."""
    return joined(written(subscriber, Followed(inline, preempt), heartbeat, Observer()))


def posted(subscriber: Subscriber) -> AsyncGenerator[Pieces, None]:
    """What the caller who asked is sent, slice by slice."""
    return written(subscriber, Posted(Images()), 15, Observer())


def preview(data: bytes, image: int = 0) -> Frame:
    return Frame(PREVIEW, (data,), image)


def final(data: bytes, image: int = 0) -> Frame:
    return Frame(COMPLETED, (data,), image, final=True)


async def whole(stream: Stream, *, preempt: bool = True) -> bytes:
    """All bytes of a finished stream but the opening words."""
    pieces = [piece async for piece in followed(stream.subscribe(), preempt=preempt)]
    return b"".join(pieces[1:])


async def test_the_layout_is_data_event_id_and_a_blank_line() -> None:
    stream = Stream(Record("s"))
    await Generation(stream).append(preview(b'{"a":1}', 1))
    await Generation(stream).append(Frame(COMPLETED, (b'{"b"', memoryview(b":2}")), 0, final=True))
    expected = b'data: {"a":1}\nevent: image_edit.partial_image\nid: 1.1\n\n'
    expected += b'data: {"b":2}\nevent: image_edit.completed\nid: 1.2\n\n'
    reader = followed(stream.subscribe())
    await anext(reader)
    got = b""
    while len(got) < len(expected):
        got += await anext(reader)
    assert got == expected


async def test_a_frame_is_sent_in_slices() -> None:
    stream = Stream(Record("s"))
    await Generation(stream).append(final(b"x" * (3 * SLICE)))
    stream.finish()
    pieces = [piece async for piece in followed(stream.subscribe())]
    assert len(pieces[1]) == SLICE
    assert max(map(len, pieces)) <= LARGEST


async def test_a_json_answer_is_no_event() -> None:
    stream = Stream(Record("s"))
    await Generation(stream).append(Frame(ANSWER, (b"{}",), final=True))
    stream.finish()
    assert await whole(stream) == b""


@pytest.mark.parametrize(("bounds", "least", "most"), [(RETRY, 1500, 4000), (RETRY_OVERLOADED, 2000, 8000)])
async def test_when_to_come_back_is_drawn_anew(bounds: tuple[int, int], least: int, most: int) -> None:
    drawn = set()
    for _ in range(200):
        found = re.fullmatch(rb"retry: ([0-9]+)\n:\n", opening_words(bounds))
        assert found is not None
        drawn.add(int(found[1]))
    assert least <= min(drawn) < max(drawn) <= most
    assert len(drawn) > 50


async def test_an_overloaded_proxy_only_sends_retry() -> None:
    said = [piece async for piece in joined(come_back())]
    assert re.fullmatch(rb"retry: [2-8][0-9]{3}\n:\n", b"".join(said))


async def test_a_preview_whose_image_is_there_ends_as_superseded() -> None:
    stream = Stream(Record("s"))
    await Generation(stream).append(preview(b"p" * (8 * SLICE)))
    subscriber = stream.subscribe()
    reader = followed(subscriber)
    await anext(reader)
    body = bytes(await anext(reader)) + bytes(await anext(reader))
    await Generation(stream).append(final(b"done"))
    stream.finish()
    rest = b"".join([piece async for piece in reader])
    body += rest
    superseded, _, outcome = body.partition(b"\nevent: superseded\n\n")
    assert superseded.startswith(b"data: ppp")
    assert b"\n" not in superseded
    assert len(superseded) < 8 * SLICE
    assert outcome == b"data: done\nevent: image_edit.completed\nid: 1.2\n\n"
    assert subscriber.at_end


@pytest.mark.parametrize("how", ["opted out", "a newer preview", "another image's outcome"])
async def test_otherwise_a_preview_is_written_to_its_end(how: str) -> None:
    stream = Stream(Record("s"))
    await Generation(stream).append(preview(b"p" * (8 * SLICE)))
    reader = followed(stream.subscribe(), preempt=how != "opted out")
    await anext(reader)
    body = bytes(await anext(reader))
    await Generation(stream).append(
        preview(b"newer") if how == "a newer preview" else final(b"done", 0 if how == "opted out" else 1)
    )
    whole = b"data: " + b"p" * (8 * SLICE) + b"\nevent: image_edit.partial_image\nid: 1.1\n\n"
    with anyio.fail_after(5):
        while len(body) < len(whole):
            body += await anext(reader)
    assert body == whole


async def test_a_preview_behind_another_end_is_superseded() -> None:
    stream = Stream(Record("s"))
    await Generation(stream).append(preview(b"p" * (8 * SLICE)))
    reader = followed(stream.subscribe())
    await anext(reader)
    await anext(reader)
    await Generation(stream).append(Frame(ERROR, (b"{}",), final=True))
    stream.finish()
    rest = b"".join([piece async for piece in reader])
    assert rest.endswith(b"\nevent: superseded\n\ndata: {}\nevent: error\nid: 1.2\n\n")


async def test_silence_is_filled_with_comments() -> None:
    stream = Stream(Record("s"))
    reader = followed(stream.subscribe(), heartbeat=0.01)
    await anext(reader)
    with anyio.fail_after(5):
        assert [await anext(reader) for _ in range(2)] == [b":\n", b":\n"]
        await Generation(stream).append(final(b"done"))
        while (piece := await anext(reader)) == b":\n":
            pass
    assert bytes(piece).startswith(b"data: done")


async def test_what_has_been_sent_is_freed_before_the_rest_is() -> None:
    stream = Stream(Record("s"))
    subscriber = stream.subscribe(asker=True)
    alive: list[weakref.ref[memoryview]] = []

    async def produce() -> None:
        pieces = [memoryview(bytes(SLICE)) for _ in range(COUNT)]
        alive.extend(map(weakref.ref, pieces))
        await Generation(stream).append(Frame("image_generation.completed", tuple(pieces), final=True))

    await produce()
    stream.finish()
    stream.release()
    content = posted(subscriber)
    left: list[int] = []
    async for piece in content:
        del piece
        left.append(sum(view() is not None for view in alive))
    assert left[0] == COUNT  # nothing of it is sent with the first comment
    assert left[-1] <= LARGEST // SLICE
    assert left == sorted(left, reverse=True)
    assert len(set(left)) >= COUNT * SLICE // LARGEST


def test_the_layout_of_an_event() -> None:
    frame = Frame("image_edit.completed", (b'{"a":', memoryview(b"1"), b"}"))
    assert b"".join(layout(frame)) == b'event: image_edit.completed\ndata: {"a":1}\n\n'


async def test_a_caller_stuck_at_the_end_is_aborted() -> None:
    """The last message has no frame: it is the one that ends the body."""
    stream = Stream(Record("s"))
    subscriber = stream.subscribe()
    stream.commit()
    stream.finish()
    sending = Sending(takes=2)  # the head and the first heartbeat
    reader = Following(subscriber)
    with anyio.fail_after(5):
        async with cutting(1) as cutoff:
            answer = EventStream(posted(subscriber), {}, cutoff, reader)
            await deliver(answer, sending.scope, sending.receive, sending.send, 0.05)
    assert (reader.told, reader.sent) == ([], [False])  # it has been given all, and has not taken it
    assert sending.aborted.is_set()
    noted = failure_of(sending.scope)
    assert noted is not None
    assert noted.failure is Failure.CALLER_STALLED


@pytest.mark.parametrize("takes_pieces", [True, False])
async def test_pieces_are_joined_only_if_needed(takes_pieces: bool) -> None:
    data = (bytes(SLICE), memoryview(bytes(2 * SLICE)))
    stream = Stream(Record("s"))
    await Generation(stream).append(Frame(COMPLETED, data, final=True))
    stream.finish()
    sending = Sending()
    scope = {**sending.scope, "extensions": {PIECES: {}} if takes_pieces else {}}
    with anyio.fail_after(5):
        async with cutting(1) as cutoff:
            answer = EventStream(posted(stream.subscribe()), {}, cutoff, Reader())
            await answer(scope, sending.receive, sending.send)
    bodies = [message["body"] for message in sending.sent[2:-1]]
    assert {isinstance(body, Pieces) for body in bodies} == {takes_pieces}
    if takes_pieces:
        sent = [piece for body in bodies for piece in body.pieces]
        assert all(
            any(getattr(piece, "obj", piece) is getattr(each, "obj", each) for each in data) for piece in sent[1:-1]
        )


async def test_our_headers_of_a_stream_win_over_the_providers() -> None:
    stream = Stream(Record("s"))
    subscriber = stream.subscribe()
    stream.finish()
    sending = Sending()
    theirs = {"cache-control": "public", "x-accel-buffering": "yes", "openai-version": "2020-10-01"}
    reader = Following(subscriber)
    with anyio.fail_after(5):
        async with cutting(1) as cutoff:
            answer = EventStream(posted(subscriber), theirs, cutoff, reader)
            await deliver(answer, sending.scope, sending.receive, sending.send, 1)
    assert sending.head["cache-control"] == "no-store, no-transform"
    assert sending.head["x-accel-buffering"] == "no"
    assert sending.head["openai-version"] == "2020-10-01"
    assert sending.head["content-type"] == "text/event-stream; charset=utf-8"
    assert "content-length" not in sending.head
    assert sending.body == b":\n"
    assert (reader.told, reader.sent) == ([], [True])
    assert failure_of(sending.scope) is None


async def test_a_stream_ends_a_grace_after_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """An app that is mounted in another one has no drain: sse-starlette knows that the process is asked to stop."""
    monkeypatch.setattr(AppStatus, "should_exit", True)
    sending = Sending()
    subscriber = Stream(Record("s")).subscribe()
    reader = Following(subscriber)
    with anyio.fail_after(5):
        async with cutting(0.05) as cutoff:
            for streams in (1, 2):  # each has a grace of its own
                stream = EventStream(posted(subscriber), {}, cutoff, reader)
                await stream(sending.scope, sending.receive, sending.send)
                assert len(reader.sent) == streams
    assert [error.failure for error in reader.told] == [Failure.CALLER_GONE] * 2
    assert reader.sent == [False] * 2


async def test_a_stream_that_is_lost_ends_with_an_error() -> None:
    stream = Stream(Record("s", n=2))
    subscriber = stream.subscribe()
    await Generation(stream).append(Frame("image_edit.completed", (b'{"a":1}',), final=True))
    stream.give_up()
    with anyio.fail_after(5):
        body = b"".join([piece async for piece in joined(posted(subscriber))])
    first, last = body.split(b"\n\n")[:2]
    assert first == b':\nevent: image_edit.completed\ndata: {"a":1}'
    assert last.startswith(b"event: error\ndata: ")
    assert orjson.loads(last.partition(b"data: ")[2])["error"]["code"] == "overloaded"
