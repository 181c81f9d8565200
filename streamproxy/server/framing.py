"""Where one request ends and the next begins: HTTP/1.1's framing of requests, read strictly and without I/O.

    framing.receive(data)      bytes as the network gave them
    framing.next_event()       Head | bytes of a body | END | None where more bytes are needed

Two readers of one connection who disagree about this are how one caller's body becomes another caller's request. So
nothing is guessed here: a head has one form (RFC 9112, 2 to 6), its body one length, and what is not that is Refused,
after which nothing more is read. A head is handed on in a canonical form, without what framed its body and without an
upgrade that nobody takes (RFC 9110, 7.8): whatever parses it has nothing left to disagree about. Fields behind a
chunked body are counted and dropped (RFC 9110, 6.5.1): as headers they would walk round whoever checks those.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from streamproxy.errors import INVALID, Failure, FailureRow

HEAD_BYTES: Final = 32 * 1024
"""Request line and headers, as nginx: large_client_header_buffers 4 of 8 KiB."""

TRAILER_BYTES: Final = 8 * 1024
"""Fields behind a chunked body; nobody reads them."""

CHUNK_LINE_BYTES: Final = 256
"""A chunk's size with its extensions, which nobody reads either."""

BAD_REQUEST: Final = FailureRow("invalid_http", 400, INVALID, "bad_request")

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_LINE: Final = re.compile(rb"(%b) ([\x21-\x7e]+) HTTP/1\.([01])" % _TOKEN)
_FIELD: Final = re.compile(rb"(%b):[ \t]*([\x20-\x7e\x80-\xff\t]*)" % _TOKEN)
_HOST: Final = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]*)?")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\x20-\x7e\x80-\xff\t]*)?")
_STARTS: Final = re.compile(rb"\r?\Z|%b(?: |\Z)" % _TOKEN)
_ONLY_CRLF: Final = re.compile(rb"(?<!\r)\n|\r(?!\n)")

FRAMED: Final = frozenset({b"content-length", b"transfer-encoding", b"upgrade", b"http2-settings", b"connection"})
"""Fields that are read here and not handed on as they came."""

HOP: Final = frozenset({b"upgrade", b"http2-settings"})


class Refused(Exception):
    """The connection does not carry HTTP/1.1 any more, as far as can be known. Nothing after this is read."""

    def __init__(self, row: FailureRow, message: str) -> None:
        super().__init__(message)
        self.row = row
        self.message = message


@dataclass(frozen=True, slots=True)
class Head:
    """One request's head. `canonical`: request line, fields and blank line, to be parsed; `framing`: the one field that
    says its body's length, in our own spelling, or None.
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
        """Whether anything of the next head has come; empty lines are nothing."""
        return bool(self._buffer.lstrip(b"\r\n"))

    @property
    def held(self) -> int:
        """Bytes that have come and are not handed on."""
        return len(self._buffer)

    def receive(self, data: bytes) -> None:
        """Take the next bytes."""
        self._buffer += data

    def next_event(self) -> Head | bytes | End | None:
        """What the bytes so far amount to next. Raises Refused."""
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
            raise Refused(Failure.HEAD_TOO_LARGE.value, f"The request head has more than {HEAD_BYTES} bytes.")
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
        """What can become no head is refused now: it may never end."""
        if self._buffer and not _STARTS.match(self._buffer):
            raise _bad("it does not begin with a method")
        if _ONLY_CRLF.search(self._buffer, max(0, start - 1), self._whole_lines()):
            raise _bad("it has a line that ends with something else than CRLF")

    def _whole_lines(self) -> int:
        """Where what can be judged ends: a CR at the very end may yet be followed by LF."""
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
                raise _bad("the fields behind its body are broken or too many")
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
        raise _bad("its first line is no request line of HTTP/1.1 or 1.0")
    if line[1] == b"CONNECT":
        raise _bad("CONNECT is not served")
    fields: dict[bytes, list[bytes]] = {}
    kept = [first]
    for text in rest:
        field = _FIELD.fullmatch(text)
        if field is None:
            raise _bad("it has a line that is no header field")
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
    """The Connection field without an upgrade that is not taken."""
    options = [option.strip(b" \t").lower() for value in values for option in value.split(b",")]
    return b", ".join(option for option in options if option and option not in HOP)


def _check_host(values: list[bytes], minor: bytes) -> None:
    """RFC 9112, 3.2: exactly one in HTTP/1.1, and a host."""
    if len(values) > 1 or (not values and minor == b"1"):
        raise _bad("it must have exactly one Host field")
    if values and not _HOST.fullmatch(values[0]):
        raise _bad("its Host field is no host")


def _framing(fields: dict[bytes, list[bytes]], minor: bytes) -> tuple[tuple[bytes, bytes] | None, _State, int]:
    """RFC 9112, 6.1 to 6.3, without the choices that it leaves to a server."""
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
    return Refused(BAD_REQUEST, f"The request is not valid HTTP/1.1: {what}.")
