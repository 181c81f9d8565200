"""An event's JSON without its image.

    outline(data)           the members of the event besides its image
    referenced(data, url)   the event with `image_url` in the place of `b64_json`: `?payload=ref`
    image_bytes(data)       the image itself, decoded
    nth_image(data, n)      the image of one item of a whole JSON answer
    answer_items(data)      all its items, raw
    taken_apart(data)       the event's members, and its image as it lies in the pieces
    put_together(...)       an event of such members and another image

A GPT image event is a few hundred bytes of JSON around one base64 string of megabytes, which is neither copied, scanned
nor parsed here. It is cut out where it lies in the chunks (two memchr), a mark takes its place, and the rest is parsed.
Base64 has neither quotes nor backslashes, so the first quote after the opening one ends it.

If the shortcut guessed wrong, the rest is not JSON or the mark is in another member. Then the whole event is parsed.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from streamproxy.core.rawjson import JsonObject, Pieces, holds_text, parse, present, says_error, text, whole_number
from streamproxy.core.sse import Piece
from streamproxy.errors import ProxyError

_IMAGE: Final = re.compile(rb'"b64_json"\s*:\s*"')
_MARK: Final = b'"="'
"""Stands for the image. No image is written like this."""

_HEAD: Final = 4096
"""How far from the event's start the image may begin for the shortcut."""

_DATA_URL: Final = b"data:"

APPENDED: Final = ("b64_json", "usage", "cost", "provider", "model", "image_index")
"""Members that callers rely on and providers may leave out."""


class _Members(msgspec.Struct):
    """The members that are read. Every other one is only checked to be JSON."""

    type: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()
    b64_json: msgspec.Raw = msgspec.Raw()
    url: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    cost: msgspec.Raw = msgspec.Raw()
    provider: msgspec.Raw = msgspec.Raw()
    model: msgspec.Raw = msgspec.Raw()
    image_index: msgspec.Raw = msgspec.Raw()


_DECODER: Final = msgspec.json.Decoder(_Members)


@dataclass(frozen=True, slots=True)
class Outline:
    """The small members of one event. `type`, `model`: "" when absent or not a string. `usage`: raw JSON or None.

    `error`, `cost`: the raw members, None and empty when absent. `failed`: whether it reports an error, since some
    providers send `null` or `{}` with every event. `has_b64`, `has_url`: an image as base64, as a URL. `wrapped`: one
    of them is a `data:` URL. `has`: the members of APPENDED that the event has, even if null. `utf8`: all but the image
    is valid UTF-8.
    """

    type: str
    error: bytes | None
    failed: bool
    usage: bytes | None
    cost: msgspec.Raw
    has_b64: bool
    has_url: bool
    wrapped: bool
    has: frozenset[str]
    image_index: int | None
    model: str
    utf8: bool

    @property
    def has_image(self) -> bool:
        """Whether the event shows an image at all."""
        return self.has_b64 or self.has_url


def outline(data: tuple[Piece, ...], quoted: Sequence[int] | None = None) -> Outline | None:
    """Read one event's data; None when it is not a JSON object. `quoted`: see Event."""
    raw = _without_image(data, quoted)
    found = _members(raw)
    if raw is None or found is None or bytes(memoryview(found.b64_json)[:3]) != _MARK:
        raw = b"".join(data)  # another member's string was cut out
        found = _members(raw)
        if found is None:
            return None
        wrapped = _is_data_url(found.b64_json)
    else:
        wrapped = _image_is_data_url(data)
    return Outline(
        type=text(found.type),
        error=bytes(found.error) or None,
        failed=says_error(found.error),
        usage=present(found.usage),
        cost=found.cost,
        has_b64=holds_text(found.b64_json),
        has_url=holds_text(found.url),
        wrapped=wrapped or _is_data_url(found.url),
        has=frozenset(name for name in APPENDED if bytes(memoryview(getattr(found, name))[:1])),
        image_index=whole_number(found.image_index, digits=3),
        model=text(found.model),
        utf8=_is_utf8(raw),
    )


class Tokens(NamedTuple):
    """A job's tokens."""

    input: int = 0
    output: int = 0


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None


def tokens(usage: bytes | None) -> Tokens:
    """The counts in an outline's `usage`; 0 where it does not say."""
    try:
        said = msgspec.json.decode(usage or b"{}", type=_Usage)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Tokens()
    return Tokens(said.input_tokens or 0, said.output_tokens or 0)


def referenced(data: tuple[Piece, ...], url: str) -> bytes:
    """The event's JSON with `image_url` instead of its image; unchanged where it holds none."""
    found = _with_image(data)
    if found is None:
        return b"".join(data)
    return found.edited(drop=("b64_json", "image_url"), append={"image_url": msgspec.json.encode(url)})


_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def taken_apart(data: tuple[Piece, ...]) -> tuple[Mapping[str, msgspec.Raw], tuple[Piece, ...]]:
    """An event's members, raw, and its image: what stands between the quotes of `b64_json`, where it lies.

    Both are empty where the event is no JSON object. `b64_json` is among the members only where it is not the image.
    """
    span = _image_span(data)
    try:
        if span is not None:
            members = _OBJECT.decode(_marked(data, span))
            if bytes(members.get("b64_json", b"")) == _MARK:
                del members["b64_json"]
                return members, tuple(_between(data, span))
        members = _OBJECT.decode(b"".join(data))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}, ()
    if not holds_text(members.get("b64_json", msgspec.Raw())):
        return members, ()
    return members, (memoryview(members.pop("b64_json"))[1:-1],)


_ONE_LINE: Final = bytes.maketrans(b"\r\n", b"  ")
"""A provider may indent its JSON, and an event is one line. Inside of strings there are no line ends."""


def put_together(members: Mapping[str, msgspec.Raw], base64: Iterable[Piece], said: Mapping[str, str]) -> Pieces:
    """An event's data: these members, those that are `said` in their place, and an image as `b64_json`."""
    rest = {name: value for name, value in members.items() if name not in ("type", "b64_json")}
    tail = msgspec.json.encode({**rest, **said})[1:].translate(_ONE_LINE)
    head = b'{"type":' + bytes(members.get("type", b'""')) + b',"b64_json":"'
    return (head, *base64, b'",' + tail if len(tail) > 1 else b'"}')


class _Image(msgspec.Struct):
    b64_json: str | None = None


def image_bytes(data: Sequence[Piece]) -> bytes | None:
    """The decoded image of an event, or of one item of an answer; None where it holds none."""
    try:
        base64 = msgspec.json.decode(b"".join(data), type=_Image).b64_json
        return (binascii.a2b_base64(base64) or None) if base64 else None
    except (msgspec.MsgspecError, ValueError, RecursionError):  # binascii.Error is a ValueError
        return None


class _Images(msgspec.Struct):
    data: list[msgspec.Raw] = []  # msgspec copies it


def nth_image(data: Sequence[Piece], number: int) -> bytes | None:
    """The decoded image of an answer's item, from 0; None where it holds none."""
    try:
        items = msgspec.json.decode(b"".join(data), type=_Images).data
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return image_bytes((items[number],)) if number < len(items) else None


def answer_items(data: Sequence[Piece]) -> list[bytes]:
    """The items of an answer, each as JSON; none where it is no answer."""
    try:
        items = msgspec.json.decode(b"".join(data), type=_Images).data
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return []
    return [bytes(item) for item in items]


def _with_image(data: tuple[Piece, ...]) -> JsonObject | None:
    """The event, with its image or with the mark for it; None where it has none, or is not JSON that can be edited."""
    try:
        short = _without_image(data)
        if short is not None and (body := parse(short)).value("b64_json") == _MARK:
            return body
    except ProxyError:
        pass  # the string that was cut out was not the image
    try:
        body = parse(b"".join(data))
    except ProxyError:
        return None
    return body if holds_text(msgspec.Raw(body.value("b64_json") or b"")) else None


@dataclass(frozen=True, slots=True)
class _Span:
    """Where an image lies, without its quotes: from `start` in the first piece to `end` in piece `last`."""

    start: int
    last: int
    end: int


def _without_image(data: tuple[Piece, ...], quoted: Sequence[int] | None = None) -> bytes | None:
    """The event's JSON with _MARK for its base64 string; None where the shortcut is not certain."""
    span = _image_span(data, quoted)
    return None if span is None else _marked(data, span)


def _marked(data: tuple[Piece, ...], span: _Span) -> bytes:
    last = memoryview(data[span.last])
    return b"".join((data[0][: span.start - 1], _MARK[:-1], last[span.end :], *data[span.last + 1 :]))


def _between(data: tuple[Piece, ...], span: _Span) -> Iterator[Piece]:
    """The image, in views of the pieces that hold it."""
    for number in range(span.last + 1):
        piece = memoryview(data[number])
        start = span.start if number == 0 else 0
        end = span.end if number == span.last else len(piece)
        yield piece[start:end]


def _image_span(data: tuple[Piece, ...], quoted: Sequence[int] | None = None) -> _Span | None:
    """Where the image lies; None where the shortcut is not certain."""
    if not data:
        return None
    first = bytes(data[0][:_HEAD])
    found = _IMAGE.search(first)
    if found is None:
        return None
    start = found.end()
    for number in range(len(data)) if quoted is None else quoted:
        whole = bytes(data[number])
        end = whole.find(b'"', start if number == 0 else 0)
        if end < 0:
            continue
        before = whole[end - 1 : end] if end else bytes(data[number - 1][-1:])
        return None if before == b'"' else _Span(start, number, end)  # None: it is empty
    return None


def _is_utf8(raw: bytes) -> bool:
    if raw.isascii():
        return True
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _members(raw: bytes | None) -> _Members | None:
    try:
        return None if raw is None else _DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _is_data_url(raw: msgspec.Raw) -> bool:
    return bytes(memoryview(raw)[1 : 1 + len(_DATA_URL)]) == _DATA_URL


def _image_is_data_url(data: tuple[Piece, ...]) -> bool:
    """The same for the string that `_without_image` cuts out. It may begin at the very end of a piece."""
    found = _IMAGE.search(bytes(data[0][:_HEAD]))
    start = b"" if found is None else bytes(data[0][found.end() : found.end() + len(_DATA_URL)])
    for piece in data[1:]:
        if len(start) == len(_DATA_URL):
            break
        start += bytes(piece[: len(_DATA_URL) - len(start)])
    return start == _DATA_URL
