"""Responses: a known body in slices, the heads of errors, and callers who leave or stop reading."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import orjson
import pytest

from streamproxy.core.cursor import Cursor
from streamproxy.core.events import ANSWER, Frame
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.log import Entry, Record
from streamproxy.hub.stream import Stream
from streamproxy.surfaces.images import Images
from streamproxy.web.generation import Gathering
from streamproxy.web.outcome import failure_of
from streamproxy.web.responses import Delivery, PaddedResponse, Response, deliver, error_response, json_response
from streamproxy.web.slicing import SLICE
from tests.support.sending import Following, Sending


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
def test_an_error_has_status_body_and_retry_headers(failure: Failure) -> None:
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
async def test_a_caller_that_takes_nothing_is_aborted(takes: int) -> None:
    sending = Sending(takes)
    answer = Response(200, "application/json", (bytes(SLICE), bytes(SLICE)), {})
    with anyio.fail_after(5):
        await deliver(answer, sending.scope, sending.receive, sending.send, 0.05)
    assert sending.aborted.is_set()
    noted = failure_of(sending.scope)
    assert noted is not None
    assert noted.failure is Failure.CALLER_STALLED


@pytest.mark.anyio
async def test_white_space_in_a_flood_of_previews() -> None:
    """Each preview wakes the task that gathers, so that a cancellation never finds it asleep."""
    stream, sending = Stream(Record("s")), Sending()
    gathering = Gathering(stream.subscribe(), Images(), None)
    filled = PaddedResponse(gathering.result, {}, interval=0.05, request_id="req_1")
    preview = Frame("image_generation.partial_image", (b"{}",))

    async def flood() -> None:
        until = anyio.current_time() + 5
        while sending.body.count(b"\n") < 4 and anyio.current_time() < until:
            stream.add(Entry(Cursor(1, stream.log.last + 1), preview))
            await anyio.lowlevel.checkpoint()
        stream.add(Entry(Cursor(1, stream.log.last + 1), Frame(ANSWER, (b'{"data":[]}',), final=True)))
        stream.finish()

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flood)
            await filled(sending.scope, sending.receive, sending.send)
    assert sending.body.startswith(b"\n" * 4)
    assert sending.body.endswith(b'{"data":[]}')


@pytest.mark.anyio
async def test_the_reader_of_a_delivery_is_told_how_it_went() -> None:
    sending = Sending()
    sent, left = (Following(Stream(Record("s")).subscribe()) for _ in range(2))
    with anyio.fail_after(5):
        await Delivery(json_response({}), sent)(sending.scope, sending.receive, sending.send)
        sending.aborted.set()
        await Delivery(json_response({}), left)(sending.scope, sending.receive, sending.send)
    assert (sent.told, sent.sent) == ([], [True])
    assert ([error.failure for error in left.told], left.sent) == ([Failure.CALLER_GONE], [False])
    assert len(sending.sent) == 2  # nothing is sent to a caller who has left
