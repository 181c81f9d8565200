"""The rows of faults before the first byte of a body. test_faults plays each of them to its end."""

from __future__ import annotations

import gzip

import httptools
import orjson
import pytest

from streamproxy.simulator.refusals import REFUSALS
from streamproxy.simulator.script import Send
from tests.simulator.test_faults import body, good
from tests.simulator.test_script import wire


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("refused-400", 400),
        ("not-streaming-400", 400),
        ("refused-401", 401),
        ("refused-403", 403),
        ("refused-429", 429),
        ("refused-500", 500),
        ("refused-503", 503),
        ("html-200", 200),
        ("redirect", 302),
        ("gzip", 200),
    ],
)
def test_a_refusal_has_its_status(name: str, status: int) -> None:
    parsed = body(name)
    assert (parsed.status, parsed.complete) == (status, True)


@pytest.mark.parametrize("name", [name for name in REFUSALS if name[-4:] in {"-400", "-401", "-403", "-429", "-503"}])
def test_a_refusal_has_an_error_in_openais_shape(name: str) -> None:
    assert set(orjson.loads(body(name).body)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("name", ["refused-429", "refused-503"])
def test_a_limit_says_when_to_come_back(name: str) -> None:
    assert int(body(name).headers["retry-after"]) > 0


@pytest.mark.parametrize("name", ["bad-status-line", "not-http", "status-1000", "conflicting-content-length"])
def test_a_broken_head_is_refused_by_a_strict_parser(name: str) -> None:
    with pytest.raises((httptools.HttpParserError, httptools.HttpParserUpgrade)):
        body(name)


def test_heads_are_as_large_as_their_names_say() -> None:
    assert wire(REFUSALS["many-headers"](good())).count(b"\r\nX-") == 10_000
    assert wire(REFUSALS["huge-head"](good())).index(b"\r\n\r\n") > 256 * 1024
    assert wire(REFUSALS["many-100-continue"](good())).count(b" 100 Continue") == 1000
    framing = wire(REFUSALS["content-length-and-chunked"](good())).partition(b"\r\n\r\n")[0].lower()
    assert b"\r\ncontent-length: " in framing
    assert b"\r\ntransfer-encoding: chunked" in framing


def test_content_codings_are_what_they_claim_or_not() -> None:
    assert gzip.decompress(body("gzip").body) == good().json
    with pytest.raises(gzip.BadGzipFile):
        gzip.decompress(body("gzip-corrupt").body)
    bomb = body("gzip-bomb").body
    assert len(bomb) * 500 < len(gzip.decompress(bomb))


def test_a_json_too_large_shares_its_bytes() -> None:
    sends = [step.data for step in REFUSALS["json-too-large"](good()) if isinstance(step, Send)]
    assert sum(map(len, sends)) > 80 * 1024 * 1024
    assert sum({id(data): len(data) for data in sends}.values()) < 1024 * 1024
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(body("invalid-json").body)


def test_extra_bytes_are_a_second_whole_answer() -> None:
    assert wire(REFUSALS["extra-bytes"](good())).count(b"HTTP/1.1 200 OK\r\n") == 2
