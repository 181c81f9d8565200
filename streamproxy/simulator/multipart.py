"""The parts of a multipart/form-data body. The simulator's only use of python-multipart; everything stays in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from streamproxy.errors import Failure, ProxyError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

# 16 images, a mask and some fifteen fields.
MAX_PARTS: Final = 100


@dataclass(frozen=True, slots=True)
class Part:
    """One part: the name of its field and its content."""

    name: str
    data: bytes = field(repr=False)


def parts(body: bytes, content_type: str) -> list[Part]:
    """All parts in order. Raises ProxyError (400) for a form that is broken, unterminated or has too many parts."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise _broken("no boundary")
    collector = _Collector()
    try:
        parser = MultipartParser(boundary, collector.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise _broken("malformed") from error
    # The parser accepts a body that ends before the form does.
    if not collector.ended:
        raise _broken("no closing boundary")
    return collector.parts


def _broken(why: str) -> ProxyError:
    return ProxyError(Failure.INVALID_MULTIPART, f"Could not parse the multipart form: {why}.")


class _Collector:
    """Collects parts from the parser's callbacks, which get slices of the input."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._data = bytearray()
        self._field = b""
        self._value = b""
        self._headers: dict[bytes, bytes] = {}

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) >= MAX_PARTS:
            raise _broken("too many parts")
        self._data = bytearray()
        self._headers = {}

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += memoryview(data)[start:end]

    def _part_end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        self.parts.append(Part(name, bytes(self._data)))

    def _end(self) -> None:
        self.ended = True
