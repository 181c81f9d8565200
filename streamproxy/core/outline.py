"""What an event's JSON says besides its image: read without copying, scanning or parsing the image.

A GPT image event is a few hundred bytes of JSON round one base64 string of megabytes. The string is cut out where it
stands in the chunks (two memchr), a mark takes its place, and what is left is parsed. Base64 has neither quotes nor
backslashes, so the first quote after the opening one ends it. Where that does not hold, what is left is no JSON, and
where the string was another member's, the mark is not where it should be: then the whole event is parsed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import msgspec

from streamproxy.core.sse import Piece

_IMAGE: Final = re.compile(rb'"b64_json"\s*:\s*"')
MARK: Final = b'"="'
"""Stands for the image; no image is written so."""

_HEAD: Final = 4096
"""How far from the event's start the image may begin for the short way."""


_ERROR: Final = 64 * 1024
"""Bytes of an `error` that are decoded to see whether it is an empty one; what is larger is none."""

_DATA_URL: Final = b"data:"


class _Fields(msgspec.Struct):
    """The members that we read; every other one is only checked to be JSON."""

    type: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()
    b64_json: msgspec.Raw = msgspec.Raw()
    url: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    cost: msgspec.Raw = msgspec.Raw()
    provider: msgspec.Raw = msgspec.Raw()
    image_index: msgspec.Raw = msgspec.Raw()


_DECODER: Final = msgspec.json.Decoder(_Fields)
_ABSENT: Final = (b"", b"null")

APPENDED: Final = ("b64_json", "usage", "cost", "provider", "image_index")
"""Members that callers count on and providers may leave out."""


@dataclass(frozen=True, slots=True)
class Outline:
    """The small members of one event. `type` is "" when absent or not a string, `usage` raw JSON, None for null.

    `error`: the raw member, None when absent, and `failed` whether it says anything; some providers send `null` or `{}`
    with every event. `has_b64`: an image as base64; `has_url`: as a URL; `wrapped`: either is a `data:` URL. `has` are
    those of the members that we may append which are there, even if null. `utf8`: all but the image is valid UTF-8.
    """

    type: str
    error: bytes | None
    failed: bool
    usage: bytes | None
    has_b64: bool
    has_url: bool
    wrapped: bool
    has: frozenset[str]
    image_index: int | None
    utf8: bool

    @property
    def has_image(self) -> bool:
        """Whether the event shows a picture at all."""
        return self.has_b64 or self.has_url


def outline(data: tuple[Piece, ...]) -> Outline | None:
    """Read one event's data; None when it is not a JSON object."""
    raw = without_image(data)
    fields = _fields(raw)
    if raw is None or fields is None or bytes(memoryview(fields.b64_json)[:3]) != MARK:
        raw = b"".join(data)  # another member's string was cut out: all of them count as they are
        fields = _fields(raw)
        if fields is None:
            return None
        wrapped = _is_data_url(fields.b64_json)
    else:
        wrapped = _image_is_data_url(data)
    return Outline(
        type=text(fields.type),
        error=bytes(fields.error) or None,
        failed=says_error(fields.error),
        usage=_present(fields.usage),
        has_b64=holds_text(fields.b64_json),
        has_url=holds_text(fields.url),
        wrapped=wrapped or _is_data_url(fields.url),
        has=frozenset(name for name in APPENDED if bytes(memoryview(getattr(fields, name))[:1])),
        image_index=_index(fields.image_index),
        utf8=_is_utf8(raw),
    )


def _fields(raw: bytes | None) -> _Fields | None:
    try:
        return None if raw is None else _DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def holds_text(raw: msgspec.Raw) -> bool:
    """Whether a member is a string, and not an empty one."""
    start = bytes(memoryview(raw)[:2])
    return start[:1] == b'"' and start != b'""'


def says_error(raw: msgspec.Raw) -> bool:
    """Whether an `error` member reports one: the SDKs ask whether it is truthy."""
    value = bytes(raw)
    if value in _ABSENT:
        return False
    if len(value) > _ERROR:
        return True
    try:
        return bool(msgspec.json.decode(value))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return True


def _is_data_url(raw: msgspec.Raw) -> bool:
    return bytes(memoryview(raw)[1 : 1 + len(_DATA_URL)]) == _DATA_URL


def _image_is_data_url(data: tuple[Piece, ...]) -> bool:
    """The same of the string that `without_image` cuts out: it may begin at the very end of a piece."""
    found = _IMAGE.search(bytes(data[0][:_HEAD]))
    start = b"" if found is None else bytes(data[0][found.end() : found.end() + len(_DATA_URL)])
    for piece in data[1:]:
        if len(start) == len(_DATA_URL):
            break
        start += bytes(piece[: len(_DATA_URL) - len(start)])
    return start == _DATA_URL


def without_image(data: tuple[Piece, ...]) -> bytes | None:
    """The event's JSON with MARK for its base64 string; None where the short way is not certain."""
    if not data:
        return None
    first = bytes(data[0][:_HEAD])
    found = _IMAGE.search(first)
    if found is None:
        return None
    start = found.end()
    before = b""
    for number, piece in enumerate(data):
        whole = piece if isinstance(piece, bytes) else bytes(piece)
        end = whole.find(b'"', start)
        if end < 0:
            start, before = 0, whole[-1:]
            continue
        if (whole[end - 1 : end] if end else before) == b'"':
            return None  # empty
        return b"".join((first[: found.end() - 1], MARK[:-1], whole[end:], *data[number + 1 :]))
    return None


def _is_utf8(raw: bytes) -> bool:
    if raw.isascii():
        return True
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _present(raw: msgspec.Raw) -> bytes | None:
    value = bytes(raw)
    return None if value in _ABSENT else value


def text(raw: msgspec.Raw) -> str:
    """A member's string, "" where it is none."""
    if not holds_text(raw):
        return ""
    try:
        return str(msgspec.json.decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def _index(raw: msgspec.Raw) -> int | None:
    value = bytes(raw)
    return int(value) if value.isdigit() and len(value) < 4 else None
