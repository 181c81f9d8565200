"""A stream's bytes for an EventSource: the layout, the opening words, and how a half-written preview ends."""

from __future__ import annotations

import re

import anyio
import pytest

from streamproxy.core.events import ANSWER, ERROR, Frame
from streamproxy.core.sse import Piece
from streamproxy.hub.generation import Generation
from streamproxy.hub.log import Entry, Record
from streamproxy.hub.stream import Stream
from streamproxy.web.following import RETRY, RETRY_OVERLOADED, come_back, followed, opening_words
from streamproxy.web.responses import SLICE

pytestmark = pytest.mark.anyio

PREVIEW = "image_edit.partial_image"
COMPLETED = "image_edit.completed"


def inline(entry: Entry) -> tuple[Piece, ...]:
    return entry.frame.data


def preview(data: bytes, image: int = 0) -> Frame:
    return Frame(PREVIEW, (data,), image)


def final(data: bytes, image: int = 0) -> Frame:
    return Frame(COMPLETED, (data,), image, final=True)


async def whole(stream: Stream, *, preempt: bool = True) -> bytes:
    """All bytes of a finished stream but the opening words."""
    pieces = [piece async for piece in followed(stream.subscribe(), inline, heartbeat=15, preempt=preempt)]
    return b"".join(pieces[1:])


async def test_the_layout_is_data_event_id_and_a_blank_line() -> None:
    stream = Stream(Record("s"))
    await Generation(stream).append(preview(b'{"a":1}', 1))
    await Generation(stream).append(Frame(COMPLETED, (b'{"b"', memoryview(b":2}")), 0, final=True))
    expected = b'data: {"a":1}\nevent: image_edit.partial_image\nid: 1.1\n\n'
    expected += b'data: {"b":2}\nevent: image_edit.completed\nid: 1.2\n\n'
    reader = followed(stream.subscribe(), inline, heartbeat=15, preempt=True)
    await anext(reader)
    got = b""
    while len(got) < len(expected):
        got += await anext(reader)
    assert got == expected


async def test_a_frame_is_sent_in_slices() -> None:
    stream = Stream(Record("s"))
    await Generation(stream).append(final(b"x" * (3 * SLICE)))
    stream.finish()
    pieces = [piece async for piece in followed(stream.subscribe(), inline, heartbeat=15, preempt=True)]
    assert max(map(len, pieces)) == SLICE


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


async def test_to_come_back_later_is_all_that_an_overloaded_proxy_says() -> None:
    said = [piece async for piece in come_back()]
    assert re.fullmatch(rb"retry: [2-8][0-9]{3}\n:\n", b"".join(said))


async def test_a_preview_whose_image_is_there_ends_as_superseded() -> None:
    stream = Stream(Record("s"))
    await Generation(stream).append(preview(b"p" * (4 * SLICE)))
    subscriber = stream.subscribe()
    reader = followed(subscriber, inline, heartbeat=15, preempt=True)
    await anext(reader)
    body = bytes(await anext(reader)) + bytes(await anext(reader))
    await Generation(stream).append(final(b"done"))
    stream.finish()
    rest = b"".join([piece async for piece in reader])
    body += rest
    superseded, _, outcome = body.partition(b"\nevent: superseded\n\n")
    assert superseded.startswith(b"data: ppp")
    assert b"\n" not in superseded
    assert len(superseded) < 4 * SLICE
    assert outcome == b"data: done\nevent: image_edit.completed\nid: 1.2\n\n"
    assert subscriber.at_end


@pytest.mark.parametrize("how", ["opted out", "a newer preview", "another image's outcome"])
async def test_otherwise_a_preview_is_written_to_its_end(how: str) -> None:
    stream = Stream(Record("s"))
    await Generation(stream).append(preview(b"p" * (4 * SLICE)))
    reader = followed(stream.subscribe(), inline, heartbeat=15, preempt=how != "opted out")
    await anext(reader)
    body = bytes(await anext(reader))
    await Generation(stream).append(
        preview(b"newer") if how == "a newer preview" else final(b"done", 0 if how == "opted out" else 1)
    )
    whole = b"data: " + b"p" * (4 * SLICE) + b"\nevent: image_edit.partial_image\nid: 1.1\n\n"
    with anyio.fail_after(5):
        while len(body) < len(whole):
            body += await anext(reader)
    assert body == whole


async def test_a_preview_behind_another_end_is_superseded() -> None:
    stream = Stream(Record("s"))
    await Generation(stream).append(preview(b"p" * (4 * SLICE)))
    reader = followed(stream.subscribe(), inline, heartbeat=15, preempt=True)
    await anext(reader)
    await anext(reader)
    await Generation(stream).append(Frame(ERROR, (b"{}",), final=True))
    stream.finish()
    rest = b"".join([piece async for piece in reader])
    assert rest.endswith(b"\nevent: superseded\n\ndata: {}\nevent: error\nid: 1.2\n\n")


async def test_silence_is_filled_with_a_comment_line_between_frames() -> None:
    stream = Stream(Record("s"))
    reader = followed(stream.subscribe(), inline, heartbeat=0.01, preempt=True)
    await anext(reader)
    with anyio.fail_after(5):
        assert [await anext(reader) for _ in range(2)] == [b":\n", b":\n"]
        await Generation(stream).append(final(b"done"))
        while (piece := await anext(reader)) == b":\n":
            pass
    assert bytes(piece).startswith(b"data: done")
