"""The builders write well-formed HTTP and SSE; httptools is the judge of the first."""

from __future__ import annotations

import httptools
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproxy.simulator.script import (
    CHUNK_BYTES,
    Fin,
    Script,
    Send,
    Wait,
    chunk,
    chunks,
    error_answer,
    event,
    head,
    json_answer,
    sse,
)


class Parsed:
    """A response read by httptools."""

    def __init__(self, data: bytes) -> None:
        self.headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self.complete = False
        parser = httptools.HttpResponseParser(self)
        parser.feed_data(data)
        self.status = parser.get_status_code()
        self.body = b"".join(self._body)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        self.complete = True


def wire(script: Script) -> bytes:
    """All bytes that a script sends."""
    return b"".join(step.data for step in script if isinstance(step, Send))


@pytest.mark.parametrize("status", [200, 404, 429, 599])
def test_a_head_parses_and_names_the_simulator(status: int) -> None:
    parsed = Parsed(head(status, (("X-One", "1"),), length=0))
    assert (parsed.status, parsed.complete, parsed.headers["x-one"]) == (status, True, "1")
    assert parsed.headers["server"] == "streamproxy-simulator"


@given(st.binary(min_size=1, max_size=3 * CHUNK_BYTES))
def test_chunks_are_bounded_and_lose_nothing(data: bytes) -> None:
    steps = list(chunks(data))
    assert max(len(step.data) for step in steps) <= CHUNK_BYTES + 9
    assert Parsed(head(200, chunked=True) + wire(tuple(steps))).body == data


def test_an_empty_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match="end the body"):
        chunk(b"")


def test_a_json_answer_sends_bytes_as_they_are() -> None:
    assert Parsed(wire(json_answer(200, b"{not json"))).body == b"{not json"
    assert Parsed(wire(json_answer(201, {"a": 1}))).body == b'{"a":1}'


def test_an_error_answer_has_all_four_keys() -> None:
    parsed = Parsed(wire(error_answer(429, "slow down", code="rate_limit_exceeded", headers=(("Retry-After", "3"),))))
    assert (parsed.status, parsed.headers["retry-after"]) == (429, "3")
    assert orjson.loads(parsed.body) == {
        "error": {
            "message": "slow down",
            "type": "invalid_request_error",
            "param": None,
            "code": "rate_limit_exceeded",
        }
    }


def test_an_event_has_openais_layout() -> None:
    assert event("a.b", b"{}") == b"event: a.b\ndata: {}\n\n"
    assert event(None, b"{}") == b"data: {}\n\n"


@given(st.lists(st.binary(min_size=1, max_size=2 * CHUNK_BYTES), max_size=4))
def test_a_stream_holds_its_frames_and_ends(frames: list[bytes]) -> None:
    parsed = Parsed(wire(sse(frames)))
    assert (parsed.body, parsed.complete) == (b"".join(frames), True)
    assert parsed.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert not Parsed(wire(sse(frames, end=(Fin(),)))).complete


def test_waits_stand_before_their_frames() -> None:
    steps = sse([b"a", b"b", b"c", b"d"], waits=(1.0, 0.0, 2.0))[1:]
    assert steps[:5] == (Wait(1.0), Send(chunk(b"a")), Send(chunk(b"b")), Wait(2.0), Send(chunk(b"c")))


def test_a_step_keeps_its_bytes_out_of_its_repr() -> None:
    assert "secret" not in repr(Send(b"secret"))
