"""Framing of requests: one reading of the bytes, wherever they are cut, and no guess."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproxy.errors import Failure
from streamproxy.server.framing import CHUNK_LINE_BYTES, END, HEAD_BYTES, TRAILER_BYTES, Framing, Head, Refused

Request = tuple[bytes, tuple[bytes, bytes] | None, bytes]


def read(chunks: Iterable[bytes]) -> tuple[list[Request], bool]:
    """Whole requests as (canonical head, framing field, body), and whether what follows was refused."""
    framing = Framing()
    requests: list[Request] = []
    head: Head | None = None
    body = b""
    try:
        for chunk in chunks:
            framing.receive(chunk)
            while (event := framing.next_event()) is not None:
                if isinstance(event, Head):
                    head, body = event, b""
                elif isinstance(event, bytes):
                    body += event
                else:
                    assert event is END
                    assert head is not None
                    requests.append((head.canonical, head.framing, body))
    except Refused:
        return requests, True
    return requests, False


GET = b"GET /a?b HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n"
    b'3;ext="1"\r\nhel\r\n00002 \r\nlo\r\n0\r\nAuthorization: Bearer x\r\nPrefer: a\r\n\r\n'
)
UPGRADE = (
    b"POST /u HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\nContent-Length: 2\r\n\r\nhi"
)
WHOLE = b"\r\n" + GET + POST + CHUNKED + b"\r\n\r\n" + UPGRADE + GET
REQUESTS = [
    (GET, None, b""),
    (b"POST /p HTTP/1.1\r\nHost: h\r\n\r\n", (b"content-length", b"5"), b"hello"),
    (b"POST /c HTTP/1.1\r\nHost: h\r\n\r\n", (b"transfer-encoding", b"chunked"), b"hello"),
    (b"POST /u HTTP/1.1\r\nHost: h\r\n\r\n", (b"content-length", b"2"), b"hi"),
    (GET, None, b""),
]


def test_where_requests_are_cut_changes_nothing() -> None:
    for cut in range(len(WHOLE) + 1):
        assert read([WHOLE[:cut], WHOLE[cut:]]) == (REQUESTS, False), cut


def test_requests_may_come_byte_by_byte() -> None:
    assert read(WHOLE[at : at + 1] for at in range(len(WHOLE))) == (REQUESTS, False)


@given(st.lists(st.integers(0, len(WHOLE)), max_size=8))
def test_many_cuts_change_nothing(cuts: list[int]) -> None:
    ends = [0, *sorted(cuts), len(WHOLE)]
    assert read(WHOLE[a:b] for a, b in pairwise(ends)) == (REQUESTS, False)


def head(*fields: bytes, line: bytes = b"POST / HTTP/1.1") -> bytes:
    return b"\r\n".join((line, b"Host: h", *fields, b"", b""))


BAD = {
    "http/0.9": b"GET /\r\n\r\n",
    "http/2.0": b"GET / HTTP/2.0\r\nHost: h\r\n\r\n",
    "http/1.2": b"GET / HTTP/1.2\r\nHost: h\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
    "a tab": b"GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n",
    "a space in front": b" GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01",
    "connect": head(line=b"CONNECT h:1 HTTP/1.1"),
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": head(b"Host: h"),
    "a host with a path": b"GET / HTTP/1.1\r\nHost: a/b@c\r\n\r\n",
    "a host with a user": b"GET / HTTP/1.1\r\nHost: a@c\r\n\r\n",
    "a host with a space": b"GET / HTTP/1.1\r\nHost: a c\r\n\r\n",
    "folding": head(b"X: a", b" b"),
    "space before the colon": head(b"X : a"),
    "no colon": head(b"X"),
    "no name": head(b": a"),
    "a control character": head(b"X: \x00"),
    "a bare LF": b"GET / HTTP/1.1\nHost: h\n\n",
    "a bare LF in a head": head(b"X: a\nY: b"),
    "a bare CR in a head": head(b"X: a\rY: b"),
    "length and chunks": head(b"Content-Length: 3", b"Transfer-Encoding: chunked"),
    "two lengths": head(b"Content-Length: 3", b"Content-Length: 3"),
    "a list of lengths": head(b"Content-Length: 3, 3"),
    "a signed length": head(b"Content-Length: +3"),
    "a negative length": head(b"Content-Length: -3"),
    "a hexadecimal length": head(b"Content-Length: 0x3"),
    "an empty length": head(b"Content-Length:"),
    "a length beyond all": head(b"Content-Length: " + b"9" * 19),
    "gzip, chunked": head(b"Transfer-Encoding: gzip, chunked"),
    "chunked twice": head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "identity": head(b"Transfer-Encoding: identity"),
    "xchunked": head(b"Transfer-Encoding: xchunked"),
    "chunked with a parameter": head(b"Transfer-Encoding: chunked;q=1"),
    "chunked, quoted": head(b'Transfer-Encoding: "chunked"'),
    "chunks in 1.0": head(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.0"),
    "vertical tab": head(b"Transfer-Encoding: \x0bchunked"),
    "size without digits": head(b"Transfer-Encoding: chunked") + b"\r\n",
    "size with a sign": head(b"Transfer-Encoding: chunked") + b"+1\r\na\r\n",
    "size with a prefix": head(b"Transfer-Encoding: chunked") + b"0x1\r\na\r\n",
    "size beyond all": head(b"Transfer-Encoding: chunked") + b"f" * 17 + b"\r\n",
    "size with a bare LF": head(b"Transfer-Encoding: chunked") + b"1\na\r\n",
    "an endless extension": head(b"Transfer-Encoding: chunked") + b"1;" + b"x" * CHUNK_LINE_BYTES,
    "a chunk longer than it says": head(b"Transfer-Encoding: chunked") + b"1\r\nab\r\n",
    "a trailer that is none": head(b"Transfer-Encoding: chunked") + b"0\r\nx\r\n\r\n",
    "endless trailers": head(b"Transfer-Encoding: chunked") + b"0\r\n" + b"a: b\r\n" * TRAILER_BYTES,
    "an endless trailer": head(b"Transfer-Encoding: chunked") + b"0\r\na:" + b"b" * (TRAILER_BYTES + 2),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_http_is_refused_wherever_it_is_cut(name: str) -> None:
    raw = GET + BAD[name]
    for size in (1, 7, len(raw)):
        requests, refused = read(raw[at : at + size] for at in range(0, len(raw), size))
        assert refused
        assert requests == [(GET, None, b"")]


GOOD = {
    "1.0 without a host": b"GET / HTTP/1.0\r\n\r\n",
    "an empty host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "ipv6": b"GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n",
    "absolute form": b"GET http://h/a HTTP/1.1\r\nHost: h\r\n\r\n",
    "an odd method": b"M-SEARCH * HTTP/1.1\r\nHost: h\r\n\r\n",
    "latin-1": b"GET / HTTP/1.1\r\nHost: h\r\nX: \xe9\t\xff\r\n\r\n",
    "an empty value": b"GET / HTTP/1.1\r\nHost: h\r\nX:\r\n\r\n",
    "length zero": b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
    "the last allowed byte": b"GET / HTTP/1.1\r\nHost: h\r\nX: ".ljust(HEAD_BYTES, b"x") + b"\r\n\r\n",
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_http_passes(name: str) -> None:
    requests, refused = read([GOOD[name], GET])
    assert (len(requests), refused) == (2, False)


def test_one_byte_more_is_too_large() -> None:
    framing = Framing()
    framing.receive(b"GET / HTTP/1.1\r\nHost: h\r\nX: ".ljust(HEAD_BYTES + 1, b"x") + b"\r\n\r\n")
    with pytest.raises(Refused) as refused:
        framing.next_event()
    assert refused.value.failure is Failure.HEAD_TOO_LARGE


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (b"close", b"connection: close\r\n"),
        (b"Keep-Alive, Upgrade", b"connection: keep-alive\r\n"),
        (b"Upgrade", b""),
        (b"upgrade,close,,", b"connection: close\r\n"),
    ],
)
def test_the_connection_field_is_kept_without_its_upgrade(given: bytes, kept: bytes) -> None:
    [(canonical, _, _)], _ = read([b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: foo\r\nConnection: " + given + b"\r\n\r\n"])
    assert canonical == b"GET / HTTP/1.1\r\nHost: h\r\n" + kept + b"\r\n"
