"""A parser for one HTTP/1.1 answer, without I/O. Its bytes may be cut anywhere.

    Parser(sink)
    parser.receive(data)   -> False where bytes follow the end of the answer; raises ProxyError
    parser.end()           the connection has ended; raises ProxyError inside a body with a length

httptools (llhttp) parses heads and chunks. This module adds the duties of an intermediary (RFC 9112, 6.3 and 11.2): a
head is bounded as a whole, its framing is unambiguous, and the end of an answer is exact, so that bytes after it can
never become the next answer. A head is parsed apart from the bytes after it, so that an error after an answer does not
spoil the answer.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final, Protocol

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from streamproxy.errors import Failure, ProxyError

MAX_INTERIM: Final = 8
"""1xx answers accepted before the real one; more than one is already unusual (RFC 9110, 15.2)."""

MAX_HEADERS: Final = 200
MAX_HEAD_BYTES: Final = 100 * 1024
"""As h11; real heads have 2 to 4 KiB. Above: header_section_size. Also the limit of a chunked body's extensions and
trailers.
"""

PIECE: Final = 64 * 1024
"""Most bytes of a body that are handed on as one object. Events keep their pieces, and objects of one size do not
fragment the heap.
"""

_BLANK_LINE: Final = re.compile(rb"\n\r?\n")
_END_OF_CHUNKED: Final = (b"\n\r\n", b"\n\n")

Header = tuple[bytes, bytes]


class Sink(Protocol):
    """The receiver of an answer: its head, pieces of its body, its end. Its methods must not raise."""

    def on_head(self, status: int, headers: tuple[Header, ...]) -> None: ...

    def on_body(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...


class _At(Enum):
    """The part of the answer to which the next byte belongs."""

    HEAD = 1
    LENGTH = 2  # a body with Content-Length
    CHUNKED = 3
    UNTIL_CLOSE = 4
    OVER = 5


class Parser:
    """The incremental parser of one answer. `keeps_alive`: whether the provider keeps the connection open."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._http = HttpResponseParser(self)
        self._http.set_dangerous_leniencies(
            lenient_optional_cr_before_lf=True,  # line ends of LF only, which RFC 9112, 2.2 lets a recipient take
            lenient_spaces_after_chunk_size=True,  # some old servers send them; harmless after the digits
        )
        self._at = _At.HEAD
        self._headers: list[Header] = []
        self._status = 0
        self._interim = 0
        self._beside = 0
        """Bytes of the head so far, or bytes since the last byte of the body."""
        self._left = 0
        """Bytes that are missing from a body with Content-Length."""
        self._tail = b""
        self.keeps_alive = False

    @property
    def over(self) -> bool:
        """Whether the answer is complete."""
        return self._at is _At.OVER

    def receive(self, data: memoryview) -> bool:
        """Take the next bytes. Returns False where some of them come after the end of the answer."""
        while self._at is _At.HEAD and data:
            end = self._end_of_head(data)
            self._read_head(data[:end])
            data = data[end:]
        if not data:
            return True
        match self._at:
            case _At.LENGTH:
                mine = data[: self._left]
                self._left -= len(mine)
                self._hand_on(mine)
                if not self._left:
                    self._end()
                return len(mine) == len(data)
            case _At.CHUNKED:
                return self._read_chunks(data)
            case _At.UNTIL_CLOSE:
                self._hand_on(data)
                return True
            case _:
                return False

    def end(self) -> None:
        """Take the connection's end. It ends a body that has no other end; else the answer is incomplete."""
        if self._at is _At.UNTIL_CLOSE:
            self._end()
        elif self._at is not _At.OVER:
            raise ProxyError(Failure.UPSTREAM_INCOMPLETE, "The provider's answer ended before it was complete.")

    # Heads.

    def _end_of_head(self, data: memoryview) -> int:
        """The offset in `data` after the blank line of a head; without one, the length of `data`."""
        seen = self._tail + data
        found = _BLANK_LINE.search(seen)
        self._tail = b"" if found else seen[-2:]
        return found.end() - len(seen) + len(data) if found else len(data)

    def _read_head(self, data: memoryview) -> None:
        """Parse the next bytes of a head, and none of the bytes after it."""
        self._beside += len(data)
        if self._beside > MAX_HEAD_BYTES:
            message = f"The provider's answer has a head of over {MAX_HEAD_BYTES} bytes."
            raise ProxyError(Failure.HEADER_SECTION_SIZE, message)
        try:
            self._http.feed_data(data)
        except HttpParserUpgrade:
            raise _not_http("The provider switched protocols.") from None
        except HttpParserError:
            raise _not_http("The provider's answer is not HTTP/1.1.") from None
        if not self._status:
            return  # the head goes on, or these were blank lines before it
        if 100 <= self._status <= 199 and self._status != 101:
            self._interim += 1
            if self._interim > MAX_INTERIM:
                raise _not_http(f"The provider sent over {MAX_INTERIM} interim answers.")
            self._status = self._beside = 0
            self._headers.clear()
            return
        self._frame()

    def _frame(self) -> None:
        """Set the framing of the body, from a complete head."""
        fields = [(name.lower(), value.strip()) for name, value in self._headers]
        lengths = [value for name, value in fields if name == b"content-length"]
        codings = [value.lower() for name, value in fields if name == b"transfer-encoding"]
        objection = _objection(self._status, self._http.get_http_version(), len(fields), lengths, codings)
        if objection is not None:
            raise _not_http(objection)
        self._left = int(lengths[0]) if lengths else 0
        bare = self._status in (204, 304) or (lengths and not self._left)
        self._at = _At.LENGTH if lengths else _At.CHUNKED if codings == [b"chunked"] else _At.UNTIL_CLOSE
        if self._at is _At.UNTIL_CLOSE and not bare:
            self.keeps_alive = False
        self._beside = 0
        self._sink.on_head(self._status, tuple(self._headers))
        if bare:
            self._end()

    # Bodies.

    def _hand_on(self, data: memoryview) -> None:
        for start in range(0, len(data), PIECE):
            self._sink.on_body(bytes(data[start : start + PIECE]))

    def _read_chunks(self, data: memoryview) -> bool:
        self._tail = bytes(data[-3:]) if len(data) > 2 else (self._tail + data)[-3:]
        self._beside += len(data)
        try:
            self._http.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            if not self.over:
                message = "The provider's answer breaks HTTP/1.1's chunked framing."
                raise ProxyError(Failure.STREAM_PROTOCOL, message) from None
        if self._beside > MAX_HEAD_BYTES and not self.over:
            message = f"The provider sent over {MAX_HEAD_BYTES} bytes of chunk extensions or trailers."
            raise ProxyError(Failure.STREAM_PROTOCOL, message)
        return not self.over or self._tail.endswith(_END_OF_CHUNKED)

    def _end(self) -> None:
        self._at = _At.OVER
        self._sink.on_end()

    # What httptools calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._at is _At.HEAD:  # else a trailer
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._at is _At.HEAD:
            self._status = self._http.get_status_code()
            self.keeps_alive = self._http.should_keep_alive()  # here, because llhttp resets it at the message's end

    def on_body(self, data: bytes) -> None:
        self._beside = 0
        self._sink.on_body(data)

    def on_message_complete(self) -> None:
        if self._at is _At.CHUNKED:
            self._end()

    def on_message_begin(self) -> None:
        if self._at is _At.OVER:
            self._tail = b""  # bytes follow the answer's end


def _not_http(message: str) -> ProxyError:
    return ProxyError(Failure.HTTP_PROTOCOL_ERROR, message)


def _objection(status: int, version: str, count: int, lengths: list[bytes], codings: list[bytes]) -> str | None:
    """The reason to refuse a head that llhttp accepts (RFC 9112, 6.1 and 6.3); None without one."""
    if status == 101:
        return "The provider switched protocols."
    if version not in ("1.0", "1.1") or not 200 <= status <= 599:
        return "The provider's answer is not HTTP/1.1."
    if count > MAX_HEADERS:
        return f"The provider's answer has over {MAX_HEADERS} headers."
    if len(lengths) + len(codings) > 1:
        return "The provider's answer has conflicting body lengths."
    if codings and codings[0] not in (b"chunked", b"identity"):
        return "The provider's answer has a transfer coding that was not asked for."
    return None
