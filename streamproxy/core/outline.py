"""What an event's JSON says besides its image: read without copying, scanning or parsing the image.

A GPT image event is a few hundred bytes of JSON round one base64 string of megabytes. The string is cut out where it
stands in the chunks (two memchr), and what is left is parsed. Base64 has neither quotes nor backslashes, so the first
quote after the opening one ends it; where that does not hold, the whole event is parsed instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import msgspec

from streamproxy.core.sse import Piece

_IMAGE: Final = re.compile(rb'"b64_json"\s*:\s*"')
_HEAD: Final = 4096
"""How far from the event's start the image may begin for the short way."""


class _Fields(msgspec.Struct):
    """The members that we read; every other one is only checked to be JSON."""

    type: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()
    message: msgspec.Raw = msgspec.Raw()
    b64_json: msgspec.Raw = msgspec.Raw()
    url: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    cost: msgspec.Raw = msgspec.Raw()
    provider: msgspec.Raw = msgspec.Raw()
    image_index: msgspec.Raw = msgspec.Raw()


_DECODER: Final = msgspec.json.Decoder(_Fields)
_ABSENT: Final = (b"", b"null")


@dataclass(frozen=True, slots=True)
class Outline:
    """The small members of one event. `error`, `usage` are raw JSON; `type` is "" when absent or not a string."""

    type: str
    error: bytes | None
    usage: bytes | None
    has_image: bool
    has_cost: bool
    has_provider: bool
    image_index: int | None


def outline(data: tuple[Piece, ...]) -> Outline | None:
    """Read one event's data; None when it is not a JSON object."""
    without = _without_image(data)
    raw = b"".join(data) if without is None else without
    try:
        fields = _DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return Outline(
        type=_text(fields.type),
        error=_present(fields.error),
        usage=_present(fields.usage),
        has_image=without is not None
        or bytes(memoryview(fields.b64_json)[:3]) not in (b"", b'""', b"nul")
        or bool(_text(fields.url)),
        has_cost=bytes(fields.cost) != b"",
        has_provider=bytes(fields.provider) != b"",
        image_index=_index(fields.image_index),
    )


def _without_image(data: tuple[Piece, ...]) -> bytes | None:
    """The event's JSON with its base64 string emptied; None where the short way is not certain."""
    if not data:
        return None
    first = bytes(data[0][:_HEAD])
    found = _IMAGE.search(first)
    if found is None:
        return None
    start = found.end()
    for number, piece in enumerate(data):
        whole = piece if isinstance(piece, bytes) else bytes(piece)
        end = whole.find(b'"', start)
        if end < 0:
            start = 0
            continue
        if (number == 0 and end == found.end()) or whole[end - 1 : end] == b"\\":
            return None
        return b"".join((first[: found.end()], whole[end:], *data[number + 1 :]))
    return None


def _present(raw: msgspec.Raw) -> bytes | None:
    value = bytes(raw)
    return None if value in _ABSENT else value


def _text(raw: msgspec.Raw) -> str:
    value = bytes(raw)
    if not value.startswith(b'"'):
        return ""
    try:
        return str(msgspec.json.decode(value))
    except msgspec.DecodeError:
        return ""


def _index(raw: msgspec.Raw) -> int | None:
    value = bytes(raw)
    return int(value) if value.isdigit() and len(value) < 4 else None
