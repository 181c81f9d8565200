"""Answers: what a frame's bytes become, slice by slice, and the heads of errors."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Sequence
from functools import cached_property

import anyio
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sse_starlette.sse import EventSourceResponse
from starlette.types import Message, Receive, Scope, Send

from streamproxy.core.events import Frame
from streamproxy.core.sse import Piece
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.stream import Stream, Subscriber
from streamproxy.surfaces.images import Images, layout
from streamproxy.web.outcome import failure_of
from streamproxy.web.responses import (
    ABORT,
    SLICE,
    Delivery,
    EventStream,
    Reader,
    Response,
    deliver,
    error_response,
    json_response,
    posted,
    sliced,
)

SIZES = st.integers(0, 3).map(lambda n: n * SLICE) | st.integers(0, 3 * SLICE)
MADE = bytes(range(256)) * (SLICE // 32)


@given(st.lists(st.tuples(SIZES, st.booleans()), max_size=8))
def test_slices_are_the_same_bytes_in_order_none_over_the_limit(given_: list[tuple[int, bool]]) -> None:
    pieces: Sequence[Piece] = [memoryview(MADE)[:n] if view else MADE[:n] for n, view in given_]
    slices = list(sliced([*pieces]))
    assert b"".join(slices) == b"".join(pieces)
    assert all(0 < len(each) <= SLICE for each in slices)
    assert len(slices) <= sum(n for n, _ in given_) // SLICE + len(given_) + 1


@pytest.mark.anyio
async def test_what_has_been_sent_is_freed_before_the_rest_is() -> None:
    stream = Stream("s")
    subscriber = stream.subscribe(asker=True)
    alive: list[weakref.ref[memoryview]] = []

    async def produce() -> None:
        pieces = [memoryview(bytes(SLICE)) for _ in range(8)]
        alive.extend(map(weakref.ref, pieces))
        await stream.append(Frame("image_generation.completed", tuple(pieces), final=True))

    await produce()
    stream.finish()
    stream.release()
    content = posted(subscriber, Images(), 15)
    left: list[int] = []
    async for piece in content:
        del piece
        left.append(sum(view() is not None for view in alive))
    assert left[0] == 8  # nothing of it is sent with the first comment
    assert left[-1] <= 1
    assert left == sorted(left, reverse=True)
    assert len(set(left)) >= 8


def test_a_large_piece_is_cut_into_views_of_itself() -> None:
    large = bytes(10 * SLICE)
    views = [each for each in sliced([b"head", large, b"tail"]) if isinstance(each, memoryview)]
    assert sum(len(view) for view in views) >= 9 * SLICE
    assert all(view.obj is large for view in views)


def test_small_pieces_travel_together() -> None:
    assert list(sliced([b"a", b"b", memoryview(b"c")])) == [b"abc"]
    assert list(sliced([])) == []


def test_the_layout_is_one_event_line_one_data_line_and_a_blank_line() -> None:
    frame = Frame("image_edit.completed", (b'{"a":', memoryview(b"1"), b"}"))
    assert b"".join(layout(frame)) == b'event: image_edit.completed\ndata: {"a":1}\n\n'


class Sending:
    """The server's side of one answer: what was sent, and a caller who takes nothing after `takes` messages."""

    def __init__(self, takes: int = 1000) -> None:
        self.sent: list[Message] = []
        self.aborted = anyio.Event()
        self._takes = takes

    async def send(self, message: Message) -> None:
        if len(self.sent) == self._takes:
            await anyio.sleep_forever()
        self.sent.append(message)

    async def receive(self) -> Message:
        if not self.aborted.is_set():  # else at once, as uvicorn
            await self.aborted.wait()
        return {"type": "http.disconnect"}

    @cached_property
    def scope(self) -> Scope:
        return {"type": "http", "method": "POST", "state": {}, "extensions": {ABORT: self.aborted.set}}

    @property
    def head(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])


class Following(Reader):
    """A reader that notes what it is told."""

    def __init__(self, subscriber: Subscriber) -> None:
        self.subscriber = subscriber
        self.told: list[ProxyError] = []
        self.sent: list[bool] = []

    @property
    def at_end(self) -> bool:
        return self.subscriber.at_end

    def left(self, error: ProxyError) -> None:
        self.told.append(error)

    def close(self, *, sent: bool) -> None:
        self.subscriber.leave()
        self.sent.append(sent)


@pytest.mark.anyio
async def test_an_answer_says_its_length_and_comes_in_slices() -> None:
    sending = Sending()
    body = (bytes(SLICE), memoryview(b"x" * (2 * SLICE)), b"end")
    await Response(201, "application/json", body, {"X-Extra": "1"})(sending.scope, sending.receive, sending.send)
    assert sending.sent[0]["status"] == 201
    assert sending.head == {
        "content-type": "application/json",
        "content-length": str(3 * SLICE + 3),
        "x-extra": "1",
    }
    assert sending.body == b"".join(body)
    assert all(len(message["body"]) <= SLICE for message in sending.sent[1:])
    assert [message["more_body"] for message in sending.sent[1:]] == [True, True, True, False]


def _error(failure: Failure, **more: object) -> tuple[int, dict[str, str], dict[str, object]]:
    error = ProxyError(failure, "What happened.", retry_after=str(more["retry_after"]) if more else None)
    sending = Sending()

    async def answer() -> None:
        await error_response(error, "req_1")(sending.scope, sending.receive, sending.send)

    anyio.run(answer)
    return sending.sent[0]["status"], sending.head, orjson.loads(sending.body)


@pytest.mark.parametrize("failure", Failure, ids=lambda failure: failure.name.lower())
def test_an_error_is_a_status_a_body_and_what_a_client_may_do_next(failure: Failure) -> None:
    row = failure.value
    status, head, body = _error(failure)
    assert status == row.status
    assert body == {
        "error": {"message": "What happened.", "type": row.type, "param": None, "code": row.code},
        "request_id": "req_1",
    }
    assert head["cache-control"] == "no-store"
    assert (head.get("x-should-retry") == "false") is row.charged
    assert ("proxy-status" in head) is (row.status >= 500)
    assert ("www-authenticate" in head) is (row.status == 401)


@pytest.mark.parametrize(
    "failure", [Failure.BODY_TOO_LARGE, Failure.BODY_TIMEOUT, Failure.CALLER_GONE, Failure.UPLOAD_CUT]
)
def test_what_is_left_of_such_a_request_is_not_waited_for(failure: Failure) -> None:
    assert _error(failure)[1]["connection"] == "close"


@pytest.mark.parametrize(("said", "passed"), [("7", "7"), ("7\r\nx: y", None), ("später", None)])
def test_retry_after_is_passed_where_it_is_a_header_value(said: str, passed: str | None) -> None:
    assert _error(Failure.PROVIDER_LIMIT, retry_after=said)[1].get("retry-after") == passed


@pytest.mark.anyio
@pytest.mark.parametrize("takes", [0, 1, 2], ids=["no head", "head", "all but the end"])
async def test_a_caller_who_takes_nothing_is_aborted_whichever_message_it_is(takes: int) -> None:
    sending = Sending(takes)
    answer = Response(200, "application/json", (bytes(SLICE), bytes(SLICE)), {})
    with anyio.fail_after(5):
        await deliver(answer, sending.scope, sending.receive, sending.send, 0.05)
    assert sending.aborted.is_set()
    noted = failure_of(sending.scope)
    assert noted is not None
    assert noted.failure is Failure.CALLER_STALLED


@pytest.mark.anyio
async def test_a_caller_who_stops_at_the_end_of_a_stream_is_aborted_too() -> None:
    """The last message has no frame: it is the one that ends the body."""
    stream = Stream("s")
    subscriber = stream.subscribe()
    stream.commit()
    stream.finish()
    sending = Sending(takes=2)  # the head and the first heartbeat
    reader = Following(subscriber)
    answer = EventStream(posted(subscriber, Images(), 15), {}, 1, reader)
    with anyio.fail_after(5):
        await deliver(answer, sending.scope, sending.receive, sending.send, 0.05)
    assert (reader.told, reader.sent) == ([], [False])  # it has been given all, and has not taken it
    assert sending.aborted.is_set()
    noted = failure_of(sending.scope)
    assert noted is not None
    assert noted.failure is Failure.CALLER_STALLED


@pytest.mark.anyio
async def test_the_reader_of_a_delivery_is_told_how_it_went() -> None:
    sending = Sending()
    sent, left = (Following(Stream("s").subscribe()) for _ in range(2))
    with anyio.fail_after(5):
        await Delivery(json_response({}), sent)(sending.scope, sending.receive, sending.send)
        sending.aborted.set()
        await Delivery(json_response({}), left)(sending.scope, sending.receive, sending.send)
    assert (sent.told, sent.sent) == ([], [True])
    assert ([error.failure for error in left.told], left.sent) == ([Failure.CALLER_GONE], [False])
    assert len(sending.sent) == 2  # nothing is sent to a caller who has left


@pytest.mark.anyio
async def test_our_headers_of_a_stream_win_over_the_providers() -> None:
    stream = Stream("s")
    subscriber = stream.subscribe()
    stream.finish()
    sending = Sending()
    theirs = {"cache-control": "public", "x-accel-buffering": "yes", "openai-version": "2020-10-01"}
    reader = Following(subscriber)
    answer = EventStream(posted(subscriber, Images(), 15), theirs, 1, reader)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(scope, receive, send)

    with anyio.fail_after(5):
        await deliver(app, sending.scope, sending.receive, sending.send, 1)
    assert sending.head["cache-control"] == "no-store, no-transform"
    assert sending.head["x-accel-buffering"] == "no"
    assert sending.head["openai-version"] == "2020-10-01"
    assert sending.head["content-type"] == "text/event-stream; charset=utf-8"
    assert "content-length" not in sending.head
    assert sending.body == b":\n"
    assert (reader.told, reader.sent) == ([], [True])
    assert failure_of(sending.scope) is None


def test_the_private_method_that_we_replace_is_still_the_one_that_sends() -> None:
    assert "self._stream_response(send)" in inspect.getsource(EventSourceResponse.__call__)


@pytest.mark.anyio
async def test_a_stream_that_cannot_be_followed_any_more_ends_with_an_error_and_not_silently() -> None:
    stream = Stream("s", n=2)
    subscriber = stream.subscribe()
    await stream.append(Frame("image_edit.completed", (b'{"a":1}',), final=True))
    stream.give_up()
    with anyio.fail_after(5):
        body = b"".join([bytes(piece) async for piece in posted(subscriber, Images(), 15)])
    first, last = body.split(b"\n\n")[:2]
    assert first == b':\nevent: image_edit.completed\ndata: {"a":1}'
    assert last.startswith(b"event: error\ndata: ")
    assert orjson.loads(last.partition(b"data: ")[2])["error"]["code"] == "overloaded"
