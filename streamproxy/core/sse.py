"""Cuts a provider's byte stream into events by WHATWG's rules, in linear time and with at most one copy.

    Cutter.feed(chunk)   -> the events that this chunk ends
    Cutter.finish()      -> the event that is unfinished when the stream ends, if it has data

Three things make it fast.

* A line end is found with one-byte searches (memchr), each position at most once.
* An event's data are pieces of GATHERED bytes, the writer's slices. All readers of an event share them without joining
  any. A chunk of that size inside a data line is kept as the same object, or as a view. Smaller chunks are gathered, so
  a provider that sends byte by byte costs neither a list entry per byte nor the memory of each byte's chunk.
* A run of short lines is matched, searched and joined as a whole. 64 KiB of line ends or of two-byte lines cost a few
  milliseconds; one step of Python for each line would take forty.

Source: WHATWG HTML, "Server-sent events", section "Interpreting an event stream".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from streamproxy.errors import Failure, ProxyError

Piece = bytes | memoryview

SMALL: Final = 16 * 1024
"""Bytes below which a piece is gathered: a copy of them costs what one more object to handle and send would."""

GATHERED: Final = 64 * 1024
"""Bytes of a gathered piece: one slice of the writer. With pieces of any size, as they arrive, 200 stuck readers held
190 kB each, in joins of their own and in holes of the heap. With equal pieces they hold under 128 kB."""

FIELD_LIMIT: Final = 1024
"""Bytes kept of an `event` line, the only other field that is read. Event names in use have under 40 bytes."""

# A run: whole lines of at most 255 bytes. Possessive quantifiers make each pattern linear. Groups have none: with them,
# Python before 3.11.5 ends a match behind an alternative that failed (python/cpython#106052). Nothing follows the outer
# loops, so they are never tried in a second way.
_NO_DATA: Final = re.compile(rb"(?:[\r\n]++|(?!data[:\r\n])[^\r\n]{1,255}+(?:\r\n?+|\n))+")
"""Lines without data, blank ones included."""

_FIELDS: Final = re.compile(rb"(?:[^\r\n]{1,255}+(?:\r\n?+|\n))+")
"""Lines of one event: no blank one."""

# Within a run with LFs as line ends and a CR before each value.
_EMPTY_VALUE: Final = re.compile(rb"\ndata(?![^\r\n])")
_OTHER_FIELDS: Final = re.compile(rb"(?:\n[^\r\n]*+)+")

_BOM: Final = b"\xef\xbb\xbf"
_LF: Final = 0x0A
_SPACE: Final = 0x20


@dataclass(frozen=True, slots=True)
class Event:
    """One event as the provider sent it. `name`: "" without an `event` line. `data`: the pieces of its data.

    Several data lines are joined with a space instead of WHATWG's LF: inside JSON both are white space, and a space
    lets the data go out again as one line.

    `quoted`: the numbers of the pieces that may hold a quote, None where that is not known. In JSON, a string that
    spans pieces ends in one of these. Pieces are searched as they come, while they are in the processor's cache: at the
    end of an event of 2 MB it would take five times as long.
    """

    name: str
    data: tuple[Piece, ...]
    quoted: tuple[int, ...] | None = field(default=None, compare=False, repr=False)

    @property
    def size(self) -> int:
        """Bytes of data."""
        return sum(map(len, self.data))

    def joined(self) -> bytes:
        """The data as one object: a copy, for the few events that must be parsed whole."""
        return b"".join(self.data)


class _Line(Enum):
    """The kind of the current line, as far as its bytes show."""

    START = 1  # not enough bytes yet
    DATA = 2
    FIELD = 3  # kept up to FIELD_LIMIT, read when it ends
    IGNORED = 4  # a comment


class _Data:
    """The data of the event that has not ended yet: its pieces, and which of them may hold a quote."""

    __slots__ = ("pieces", "quoted")

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.quoted: list[int] = []

    def add(self, piece: Piece) -> None:
        """Add a piece. A view is not searched: that would copy it."""
        if not isinstance(piece, bytes) or b'"' in piece:
            self.quoted.append(len(self.pieces))
        self.pieces.append(piece)


class Cutter:
    """The incremental parser of one stream. `feed` raises ProxyError for an event over `max_event_bytes`."""

    def __init__(self, max_event_bytes: int) -> None:
        self._max = max_event_bytes
        self._line = _Line.START
        self._head = bytearray()
        self._name = ""
        self._data = _Data()
        self._small = bytearray()
        self._size = 0
        self._has_data = False
        self._strip_space = False
        self._after_cr = False
        self._bom: bytes | None = b""
        self.lone_cr = False
        """Whether a line has ended with a CR and no LF. The standard allows it, but no known sender does it."""

    @property
    def held(self) -> int:
        """Bytes of data of the event that has not ended yet."""
        return self._size

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Take the next bytes, cut anywhere, and yield the events that they end. Raises ProxyError(EVENT_TOO_LARGE)."""
        if self._bom is not None:
            chunk = self._without_bom(chunk)
        size = len(chunk)
        start = 0
        lf = cr = -1
        if self._after_cr and size:
            self._after_cr = False
            start = 1 if chunk[0] == _LF else 0
            self.lone_cr = self.lone_cr or not start
        while start < size:
            if self._line is _Line.START and not self._head:
                start = self._run(chunk, start)
                if start == size:
                    break
            if lf < start:
                lf = chunk.find(b"\n", start)
                lf = size if lf < 0 else lf
            if cr < start:
                cr = chunk.find(b"\r", start)
                cr = size if cr < 0 else cr
            end = min(lf, cr)
            if end > start:
                self._take(chunk, start, end)
            if end == size:
                break
            event = self._end_line()
            if event is not None:
                yield event
            start = end + 1
            if end == cr:
                if start == size:
                    self._after_cr = True
                elif chunk[start] == _LF:
                    start += 1
                else:
                    self.lone_cr = True

    def gather(self, chunk: bytes) -> bool:
        """Take a chunk that lies within one line of data, as nearly all of an image does; whether it does.

        Raises as `feed`, which has to be given every other chunk.
        """
        if self._line is not _Line.DATA or not chunk or b"\n" in chunk or b"\r" in chunk:
            return False
        size = len(chunk)
        if size < SMALL or self._small or self._strip_space or self._size + size > self._max:
            self._keep(chunk, 0, size)
        else:  # the same without the calls, which take longer than all else
            self._size += size
            self._data.add(chunk)
        return True

    def finish(self) -> Event | None:
        """Take the stream's end. The rest is an event only if its data is whole, which the caller must check."""
        if self._line is not _Line.START or self._head:
            self._end_line()
        return self._dispatch()

    def _run(self, chunk: bytes, start: int) -> int:
        """Take the whole short lines at `start`, a line's start, that end no event. Returns the offset after them."""
        end = start
        if not self._has_data and (found := _NO_DATA.match(chunk, start)):
            end = found.end()
            self._pass_over(self._with_lf(chunk, start, end))
        if found := _FIELDS.match(chunk, end):
            start, end = end, found.end()
            self._gather(self._with_lf(chunk, start, end))
        return end

    def _with_lf(self, chunk: bytes, start: int, end: int) -> bytes:
        """The lines chunk[start:end] with an LF before each and after the last, and no CR."""
        lines = chunk[start:end]
        if crs := lines.count(b"\r"):
            self._after_cr = end == len(chunk) and lines.endswith(b"\r")
            self.lone_cr = self.lone_cr or crs > lines.count(b"\r\n") + self._after_cr
            lines = lines.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return b"\n" + lines

    def _pass_over(self, lines: bytes) -> None:
        """Read a run between events. It can only leave an event's name."""
        blank = lines.rfind(b"\n\n")
        if blank >= 0:
            self._name = ""
        self._find_name(lines, max(blank, 0))

    def _gather(self, lines: bytes) -> None:
        """Read a run inside an event: its name, and the values of its data lines with a space before each."""
        self._find_name(lines, 0)
        values = lines[:-1].replace(b"\ndata: ", b"\r").replace(b"\ndata:", b"\r")
        if b"\n" in values:
            values = _OTHER_FIELDS.sub(b"", _EMPTY_VALUE.sub(b"\r", values))
        if not values:
            return
        values = values.replace(b"\r", b" ")
        if not self._has_data:
            self._has_data = True
            values = values[1:]
        self._grow(len(values))
        self._small += values
        if len(self._small) >= GATHERED:
            self._flush()

    def _find_name(self, lines: bytes, start: int) -> None:
        """Read the last `event` line after `start`, if there is one."""
        at = max(lines.rfind(b"\nevent:", start), lines.rfind(b"\nevent\n", start))
        if at >= 0:
            self._name = _name(lines[at + 1 : lines.index(b"\n", at + 1)].partition(b":")[2])

    def _without_bom(self, chunk: bytes) -> bytes:
        """Strip one byte order mark from the start of the stream, however it is cut."""
        start = (self._bom or b"") + chunk
        if len(start) < len(_BOM) and _BOM.startswith(start):
            self._bom = start
            return b""
        self._bom = None
        return start[len(_BOM) :] if start.startswith(_BOM) else start

    def _take(self, chunk: bytes, start: int, end: int) -> None:
        """Add chunk[start:end], which has no line end, to the current line."""
        if self._line is _Line.DATA:
            self._keep(chunk, start, end)
        elif self._line is _Line.FIELD:
            self._head += chunk[start : min(end, start + FIELD_LIMIT - len(self._head))]
        elif self._line is _Line.START:
            need = 5 - len(self._head)
            self._head += chunk[start : min(end, start + need)]
            start = min(end, start + need)
            if self._head == b"data:":
                self._head.clear()
                self._begin_data()
            elif self._head[:1] == b":":
                self._line = _Line.IGNORED
            elif len(self._head) == 5:
                self._line = _Line.FIELD
            if start < end:
                self._take(chunk, start, end)

    def _begin_data(self) -> None:
        if self._has_data:
            self._grow(1)
            self._small += b" "
        self._line = _Line.DATA
        self._has_data = True
        self._strip_space = True

    def _keep(self, chunk: bytes, start: int, end: int) -> None:
        """Keep chunk[start:end] as data: the object itself, a view of it, or a copy."""
        if self._strip_space:
            self._strip_space = False
            if chunk[start] == _SPACE:
                start += 1
        length = end - start
        self._grow(length)
        if length < SMALL:
            self._small += memoryview(chunk)[start:end]
            if len(self._small) >= GATHERED:
                self._data.add(bytes(memoryview(self._small)[:GATHERED]))
                del self._small[:GATHERED]
            return
        if self._small:
            self._flush()
        self._data.add(chunk if length == len(chunk) else memoryview(chunk)[start:end])

    def _grow(self, by: int) -> None:
        self._size += by
        if self._size > self._max:
            raise ProxyError(
                Failure.EVENT_TOO_LARGE,
                f"The provider sent an event over {self._max} bytes. The setting max_event_bytes allows larger ones.",
            )

    def _flush(self) -> None:
        if self._small:
            self._data.add(bytes(self._small))
            self._small.clear()

    def _end_line(self) -> Event | None:
        """End the current line. A blank one ends the event."""
        line, self._line = self._line, _Line.START
        if line is _Line.START and not self._head:
            return self._dispatch()
        if line in (_Line.START, _Line.FIELD):
            field, _, value = bytes(self._head).partition(b":")
            if field == b"event":
                self._name = _name(value)
            elif field == b"data":  # a data line without a colon: an empty value
                self._begin_data()
                self._line = _Line.START
        self._head.clear()
        return None

    def _dispatch(self) -> Event | None:
        self._flush()
        data = self._data
        event = Event(self._name, tuple(data.pieces), tuple(data.quoted)) if self._has_data else None
        self._name = ""
        self._data = _Data()
        self._size = 0
        self._has_data = False
        return event


def _name(value: bytes) -> str:
    return value.removeprefix(b" ").decode("utf-8", "replace")
