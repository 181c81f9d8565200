"""The parser of one answer, without a connection: the same whatever is cut where, exact at the end, bounded."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from streamproxy.errors import Failure, ProxyError
from streamproxy.upstream.parsing import MAX_HEAD_BYTES, PIECE, Header, Parser

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@dataclass(slots=True)
class Got:
    """What a parser has told."""

    status: int = 0
    headers: tuple[Header, ...] = ()
    pieces: list[bytes] = field(default_factory=list)
    ended: int = 0

    def on_head(self, status: int, headers: tuple[Header, ...]) -> None:
        assert not self.status
        self.status, self.headers = status, headers

    def on_body(self, data: bytes) -> None:
        assert self.status
        assert not self.ended
        self.pieces.append(data)

    def on_end(self) -> None:
        self.ended += 1

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


def parsed(*pieces: bytes, end: bool = False) -> tuple[Got, Parser, bool]:
    """What comes of these pieces, and whether all of it was the answer's. `end`: the connection ends behind them."""
    got = Got()
    parser = Parser(got)
    whole = [parser.receive(memoryview(piece)) for piece in pieces]
    if end:
        parser.end()
    return got, parser, all(whole)


SOUND: dict[str, tuple[bytes, bytes, bool]] = {
    "length": (OK + b"Content-Length: 5\r\n\r\nhello", b"hello", True),
    "empty": (OK + b"Content-Length: 0\r\n\r\n", b"", True),
    "chunked": (CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", b"hello", True),
    "extensions and trailers": (CHUNKED + b"5;a=b\r\nhello\r\n0\r\nx: 1\r\ny: 2\r\n\r\n", b"hello", True),
    "a space behind the chunk's size": (CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n", b"hello", True),
    "interim": (b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" + OK + b"content-length: 1\r\n\r\nx", b"x", True),
    "LF only": (b"HTTP/1.1 200 OK\ncontent-length: 1\n\nx", b"x", True),
    "blank lines before": (b"\r\n\r\n" + OK + b"content-length: 1\r\n\r\nx", b"x", True),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", b"", True),
    "close": (OK + b"connection: close\r\ncontent-length: 1\r\n\r\nx", b"x", False),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\nx", b"x", False),
}


@pytest.mark.parametrize("name", SOUND)
def test_where_bytes_are_cut_changes_nothing(name: str) -> None:
    data, body, keeps = SOUND[name]
    cuts = [[data], [data[at : at + 1] for at in range(len(data))]]
    cuts += [[data[:at], data[at:]] for at in range(1, len(data))]
    for pieces in cuts:
        got, parser, whole = parsed(*pieces)
        assert (got.body, got.ended, parser.over, parser.keeps_alive, whole) == (body, 1, True, keeps, True)
        assert b"link" not in dict(got.headers)
        parser.end()  # which changes nothing any more
        assert got.ended == 1


@pytest.mark.parametrize("extra", [b"H", b"HTTP/1.1 200 OK\r\n\r\n", b"\0\1 garbage\r\n\r\n"])
@pytest.mark.parametrize("name", SOUND)
def test_bytes_after_the_end_are_told_apart(name: str, extra: bytes) -> None:
    data, body, _ = SOUND[name]
    both = data + extra
    for pieces in [[both], *([both[:at], both[at:]] for at in range(1, len(both)))]:
        got, _, whole = parsed(*pieces)
        assert (got.body, got.ended, whole) == (body, 1, False)


def test_a_body_without_a_length_ends_with_its_connection() -> None:
    got, parser, whole = parsed(OK + b"\r\nhel", b"lo", end=True)
    assert (got.body, got.ended, parser.keeps_alive, whole) == (b"hello", 1, False, True)


@pytest.mark.parametrize("data", [OK, OK + b"content-length: 9\r\n\r\nhello", CHUNKED + b"5\r\nhello\r\n0\r\n"])
def test_an_end_before_the_end_is_incomplete(data: bytes) -> None:
    with pytest.raises(ProxyError) as raised:
        parsed(data, end=True)
    assert raised.value.failure is Failure.UPSTREAM_INCOMPLETE


UNSOUND = {
    "another coding": OK + b"transfer-encoding: gzip, chunked\r\n\r\n",
    "a coding alone": OK + b"transfer-encoding: gzip\r\n\r\n",
    "two lengths": OK + b"content-length: 1, 1\r\n\r\n",
    "length and chunked": OK + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\n\r\n",
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\n\r\n",
    "status 099": b"HTTP/1.1 099 Odd\r\n\r\n",
    "status 600": b"HTTP/1.1 600 Odd\r\n\r\n",
    "101": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    "101 without an upgrade": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "a folded header": OK + b"x: a\r\n b\r\n\r\n",
    "a space before the colon": OK + b"x : a\r\n\r\n",
}


@pytest.mark.parametrize("name", UNSOUND)
def test_a_head_with_two_meanings_is_refused(name: str) -> None:
    for pieces in ([UNSOUND[name]], [UNSOUND[name][at : at + 1] for at in range(len(UNSOUND[name]))]):
        with pytest.raises(ProxyError) as raised:
            parsed(*pieces)
        assert raised.value.failure is Failure.HTTP_PROTOCOL_ERROR


FLOODS = {
    "a chunk's extension": CHUNKED + b"5;" + b"a" * 2 * MAX_HEAD_BYTES,
    "one trailer": CHUNKED + b"1\r\nx\r\n0\r\nx: " + b"a" * 2 * MAX_HEAD_BYTES,
    "many trailers": CHUNKED + b"1\r\nx\r\n0\r\n" + b"x: 1\r\n" * MAX_HEAD_BYTES,
}


@pytest.mark.parametrize("name", FLOODS)
def test_what_stands_beside_a_body_is_bounded(name: str) -> None:
    flood = FLOODS[name]
    got = Got()
    parser = Parser(got)
    for at in range(0, MAX_HEAD_BYTES - 1024, 1024):
        assert parser.receive(memoryview(flood[at : at + 1024]))
    with pytest.raises(ProxyError) as raised:
        parser.receive(memoryview(flood[MAX_HEAD_BYTES - 1024 :]))
    assert raised.value.failure is Failure.STREAM_PROTOCOL


def test_a_body_in_many_small_chunks_is_not_beside_itself() -> None:
    got, _, whole = parsed(CHUNKED + b"1;abcdefgh\r\nx\r\n" * MAX_HEAD_BYTES + b"0\r\n\r\n")
    assert (len(got.body), got.ended, whole) == (MAX_HEAD_BYTES, 1, True)


def test_a_body_with_a_length_has_pieces_of_one_size() -> None:
    got, _, _ = parsed(OK + b"content-length: 200000\r\n\r\n" + bytes(200_000))
    assert [len(piece) for piece in got.pieces] == [PIECE, PIECE, PIECE, 200_000 - 3 * PIECE]
