"""HTTP/1.1's framing of requests: where one ends and the next begins. Strict, and without I/O.

    framing.receive(data)      bytes as the network gave them
    framing.next_event()       Head | bytes of a body | END | None where more bytes are needed

If two parsers of one connection disagree about the end of a request, one caller's body can become another caller's
request (request smuggling). So nothing is guessed here. A head has one form (RFC 9112, 2 to 6) and its body one length.
Anything else raises Refused, and nothing more is read. A head is handed on in a canonical form, without the fields that
framed its body and without an upgrade, which is never taken (RFC 9110, 7.8). So the next parser cannot disagree.
Trailer fields are counted and dropped (RFC 9110, 6.5.1): as headers, they would bypass the checks of headers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from streamproxy.errors import Failure

HEAD_BYTES: Final = 32 * 1024
"""Request line and headers, as nginx: large_client_header_buffers 4 of 8 KiB."""

TRAILER_BYTES: Final = 8 * 1024
"""Trailer fields of a chunked body. They are dropped."""

CHUNK_LINE_BYTES: Final = 256
"""A chunk's size line with its extensions, which are dropped too."""


_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_LINE: Final = re.compile(rb"(%b) ([\x21-\x7e]+) HTTP/1\.([01])" % _TOKEN)
_FIELD: Final = re.compile(rb"(%b):[ \t]*([\x20-\x7e\x80-\xff\t]*)" % _TOKEN)
_HOST: Final = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]*)?")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\x20-\x7e\x80-\xff\t]*)?")
_STARTS: Final = re.compile(rb"\r?\Z|%b(?: |\Z)" % _TOKEN)
_ONLY_CRLF: Final = re.compile(rb"(?<!\r)\n|\r(?!\n)")

FRAMED: Final = frozenset({b"content-length", b"transfer-encoding", b"upgrade", b"http2-settings", b"connection"})
"""Fields that are read here, and left out of the canonical head or rewritten."""

HOP: Final = frozenset({b"upgrade", b"http2-settings"})


class Refused(Exception):
    """The bytes are not HTTP/1.1. Nothing after them is read."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.failure = failure
        self.message = message


@dataclass(frozen=True, slots=True)
class Head:
    """One request's head. `canonical`: request line, fields and blank line, to be parsed. `framing`: the field with the
    length of its body, in canonical spelling, or None.
    """

    canonical: bytes
    framing: tuple[bytes, bytes] | None


class End(Enum):
    """A request is complete."""

    END = auto()


END: Final = End.END


class _State(Enum):
    HEAD = auto()  # of the next request, or nothing yet
    LENGTH = auto()  # a body of known length
    CHUNK_SIZE = auto()
    CHUNK = auto()
    CHUNK_END = auto()
    TRAILERS = auto()
    COMPLETE = auto()  # END is due


class Framing:
    """One connection's requests, in their order."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._state = _State.HEAD
        self._left = 0
        self._trailers = 0

    @property
    def between(self) -> bool:
        """Whether every request that has begun is complete."""
        return self._state is _State.HEAD

    @property
    def begun(self) -> bool:
        """Whether bytes of the next head have come, empty lines aside."""
        return bool(self._buffer.lstrip(b"\r\n"))

    @property
    def held(self) -> int:
        """Bytes received and not handed on yet."""
        return len(self._buffer)

    def receive(self, data: bytes) -> None:
        """Take the next bytes."""
        self._buffer += data

    def next_event(self) -> Head | bytes | End | None:
        """The next event of the bytes so far. Raises Refused."""
        match self._state:
            case _State.HEAD:
                return self._head()
            case _State.LENGTH | _State.CHUNK:
                return self._body()
            case _State.CHUNK_SIZE:
                return self._chunk_size()
            case _State.CHUNK_END:
                return self._chunk_end()
            case _State.TRAILERS:
                return self._trailer()
            case _State.COMPLETE:
                self._state = _State.HEAD
                return END

    def _head(self) -> Head | None:
        if not self._searched:  # RFC 9112, 2.2: empty lines before a request line are passed over
            while self._buffer.startswith(b"\r\n"):
                del self._buffer[:2]
        end = self._buffer.find(b"\r\n\r\n", max(0, self._searched - 3))
        if (end if end >= 0 else len(self._buffer)) > HEAD_BYTES:
            raise Refused(Failure.HEAD_TOO_LARGE, f"The request head has more than {HEAD_BYTES} bytes.")
        if end < 0:
            self._refuse_early(self._searched)
            self._searched = len(self._buffer) if self._buffer != b"\r" else 0
            return None
        raw = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        self._searched = 0
        head, self._state, self._left = _read_head(raw)
        return head

    def _refuse_early(self, start: int) -> None:
        """Refuse bytes that cannot become a head before the head is complete, since it may never be."""
        if self._buffer and not _STARTS.match(self._buffer):
            raise _bad("it does not begin with a method")
        if _ONLY_CRLF.search(self._buffer, max(0, start - 1), self._whole_lines()):
            raise _bad("it has a line that ends with something else than CRLF")

    def _whole_lines(self) -> int:
        """The end of the bytes that can be checked: LF may still follow a CR at the very end."""
        return len(self._buffer) - self._buffer.endswith(b"\r")

    def _body(self) -> bytes | None:
        if not self._buffer:
            return None
        with memoryview(self._buffer) as view:
            data = bytes(view[: self._left])
        del self._buffer[: len(data)]
        self._left -= len(data)
        if not self._left:
            self._state = _State.COMPLETE if self._state is _State.LENGTH else _State.CHUNK_END
        return data

    def _line(self, limit: int) -> bytes | None:
        end = self._buffer.find(b"\r\n", 0, limit + 2)
        if end < 0:
            if len(self._buffer) > limit or _ONLY_CRLF.search(self._buffer, 0, self._whole_lines()):
                raise _bad("its chunked body is broken")
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _chunk_size(self) -> bytes | None:
        line = self._line(CHUNK_LINE_BYTES)
        if line is None:
            return None
        found = _CHUNK.fullmatch(line)
        if found is None:
            raise _bad("its chunked body is broken")
        self._left = int(found[1], 16)
        self._state = _State.CHUNK if self._left else _State.TRAILERS
        return b""

    def _chunk_end(self) -> bytes | None:
        if len(self._buffer) < 2:
            return None
        if not self._buffer.startswith(b"\r\n"):
            raise _bad("its chunked body is broken")
        del self._buffer[:2]
        self._state = _State.CHUNK_SIZE
        return b""

    def _trailer(self) -> End | bytes | None:
        line = self._line(TRAILER_BYTES)
        if line is None:
            return None
        self._trailers += len(line)
        if line:
            if self._trailers > TRAILER_BYTES or not _FIELD.fullmatch(line):
                raise _bad("the trailer fields of its body are broken or too many")
            return b""
        self._trailers = 0
        self._state = _State.HEAD
        return END


def _read_head(raw: bytes) -> tuple[Head, _State, int]:
    """A head's canonical form, and how its body is framed. Raises Refused."""
    if _ONLY_CRLF.search(raw):
        raise _bad("it has a line that ends with something else than CRLF")
    first, *rest = raw.split(b"\r\n")
    line = _LINE.fullmatch(first)
    if line is None:
        raise _bad("its first line is not a request line of HTTP/1.1 or 1.0")
    if line[1] == b"CONNECT":
        raise _bad("CONNECT is not served")
    fields: dict[bytes, list[bytes]] = {}
    kept = [first]
    for text in rest:
        field = _FIELD.fullmatch(text)
        if field is None:
            raise _bad("it has a line that is not a header field")
        name = field[1].lower()
        fields.setdefault(name, []).append(field[2].strip(b" \t"))
        if name not in FRAMED:
            kept.append(text)
    _check_host(fields.get(b"host", []), line[3])
    if options := _options(fields.get(b"connection", [])):
        kept.append(b"connection: " + options)
    framing, state, left = _framing(fields, line[3])
    return Head(b"\r\n".join((*kept, b"", b"")), framing), state, left


def _options(values: list[bytes]) -> bytes:
    """The Connection field without the options of an upgrade."""
    options = [option.strip(b" \t").lower() for value in values for option in value.split(b",")]
    return b", ".join(option for option in options if option and option not in HOP)


def _check_host(values: list[bytes], minor: bytes) -> None:
    """Check the Host field: exactly one in HTTP/1.1, and a valid host (RFC 9112, 3.2). Raises Refused."""
    if len(values) > 1 or (not values and minor == b"1"):
        raise _bad("it must have exactly one Host field")
    if values and not _HOST.fullmatch(values[0]):
        raise _bad("its Host field is not a valid host")


def _framing(fields: dict[bytes, list[bytes]], minor: bytes) -> tuple[tuple[bytes, bytes] | None, _State, int]:
    """The framing of a body (RFC 9112, 6.1 to 6.3), without the choices left to servers. Raises Refused."""
    encodings, lengths = fields.get(b"transfer-encoding", []), fields.get(b"content-length", [])
    if encodings:
        if lengths or minor == b"0" or len(encodings) > 1 or encodings[0].lower() != b"chunked":
            raise _bad("it must have either Content-Length, or Transfer-Encoding: chunked")
        return (b"transfer-encoding", b"chunked"), _State.CHUNK_SIZE, 0
    if not lengths:
        return None, _State.COMPLETE, 0
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise _bad("its Content-Length is not one number")
    length = int(lengths[0])
    return (b"content-length", b"%d" % length), _State.LENGTH if length else _State.COMPLETE, length


def _bad(what: str) -> Refused:
    return Refused(Failure.INVALID_HTTP, f"The request is not valid HTTP/1.1: {what}.")
