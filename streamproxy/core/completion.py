"""The `completed` event: synthesized for providers that answer JSON, and what is added to everybody's.

`cost` (USD) and `provider` stand in every `completed` event and every JSON answer: the provider's where it says them,
else computed from `usage` and the catalogue's prices, else null. They are appended to the provider's bytes, which stay
as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from streamproxy.core.cost import Price, cost
from streamproxy.core.events import Frame, Operation, Role, type_of
from streamproxy.core.imagefile import probe_base64
from streamproxy.core.sse import Piece

_ZERO_DETAILS: Final = {"text_tokens": 0, "image_tokens": 0}
ZERO_USAGE: Final[Mapping[str, object]] = {
    "total_tokens": 0,
    "input_tokens": 0,
    "output_tokens": 0,
    "input_tokens_details": _ZERO_DETAILS,
}
"""What SDK types require of `usage`; consumers read `event.usage.total_tokens` unasked."""


USAGE_BYTES: Final = 16 * 1024
"""Bytes of a `usage` that is read; real ones have under 1 KiB. A larger one is no usage, and replaced by zeros."""

_NULL: Final = b"null"
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Image:
    """One image of a JSON answer: base64 as raw JSON string content, or a URL, or both; `extra` are further members.

    Values in `extra`, and wherever members are given below, may be msgspec.Raw: the provider's bytes, which stay exact.
    """

    b64: Piece
    url: str | None
    extra: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Stated:
    """What an answer says of all its images, or else the request: empty strings where nobody says anything concrete."""

    created_at: int
    size: str = ""
    quality: str = ""
    background: str = ""
    output_format: str = ""


def completed(
    operation: Operation, image: Image, stated: Stated, *, index: int, several: bool, ending: Mapping[str, object]
) -> Frame:
    """One synthesized `completed` event. Format, size and transparency are read from the image's own bytes.

    `several`: the request yields more than one image, so each event names its `image_index`. `ending` are the last
    members: usage, cost, provider and whatever else the provider said.
    """
    info = probe_base64(image.b64)
    values: dict[str, object] = {
        "created_at": stated.created_at,
        "size": f"{info.width}x{info.height}" if info else stated.size or "auto",
        "quality": stated.quality or "auto",
        "background": stated.background or ("transparent" if info and info.alpha else "opaque"),
        "output_format": info.format if info else stated.output_format or "png",
    }
    if several:
        values["image_index"] = index
    if image.url:
        values["url"] = image.url
    values |= image.extra
    values |= ending
    kind = type_of(operation, Role.COMPLETED)
    head = b'{"type":"' + kind.encode() + (b'","b64_json":"' if image.b64 else b'","b64_json":null,')
    tail = msgspec.json.encode(values)
    if image.b64:
        return Frame(kind, (head, image.b64, b'",' + tail[1:]), image=index, final=True)
    return Frame(kind, (head + tail[1:],), image=index, final=True)


def full_usage(raw: bytes | None) -> bytes:
    """`usage` as the provider says it, with zeros for what SDK types require and it leaves out or calls null."""
    said = _members(raw)
    details = _members(bytes(said.get("input_tokens_details", b"")))
    if raw is not None and said.keys() >= ZERO_USAGE.keys() and details.keys() >= _ZERO_DETAILS.keys():
        return raw
    return msgspec.json.encode({**ZERO_USAGE, **said, "input_tokens_details": {**_ZERO_DETAILS, **details}})


def _members(raw: bytes | None) -> dict[str, msgspec.Raw]:
    """A JSON object's members that are not null; {} where it is no object, or far too large for a usage."""
    try:
        found = _OBJECT.decode(raw if raw and len(raw) <= USAGE_BYTES else b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return {name: value for name, value in found.items() if bytes(value) != _NULL}


def decoded_usage(raw: bytes | None) -> dict[str, object]:
    """The `usage` object, {} where there is none."""
    if raw is None or len(raw) > USAGE_BYTES:
        return {}
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def ending(
    usage: bytes | None, *, price: Price | None, images: int, provider: str, has: Collection[str]
) -> dict[str, object]:
    """The members to append: `cost` and `provider`, each only where the provider has not said it (`has`)."""
    members: dict[str, object] = {}
    if "cost" not in has:
        members["cost"] = cost(decoded_usage(usage), price, images)
    if "provider" not in has:
        members["provider"] = provider
    return members


def appended(data: tuple[Piece, ...], members: Mapping[str, object]) -> tuple[Piece, ...]:
    """`data`, a JSON object with at least one member, with `members` before its closing brace; nothing else changes."""
    if not members:
        return data
    pieces = list(data)
    while pieces:
        last = bytes(pieces.pop()).rstrip()
        if last:
            return (*pieces, last[:-1] + b"," + msgspec.json.encode(members)[1:])
    return data
