"""An image event without its image, and the image without its event.

referenced(data, url)   the event with `image_url` in the place of `b64_json`: `?payload=ref`
image_bytes(data)       the picture itself, decoded
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence

import msgspec
import orjson

from streamproxy.core.jsonbody import JsonObject, parse
from streamproxy.core.outline import MARK, without_image
from streamproxy.core.sse import Piece
from streamproxy.errors import ProxyError


def referenced(data: tuple[Piece, ...], url: str) -> bytes:
    """The event's JSON with `image_url` instead of its image; unchanged where it holds none."""
    found = _with_image(data)
    if found is None:
        return b"".join(data)
    return found.edited(drop=("b64_json", "image_url"), append={"image_url": orjson.dumps(url)})


def _with_image(data: tuple[Piece, ...]) -> JsonObject | None:
    """The event with its image or with the mark for it; None where it holds none, or is not JSON that we can edit."""
    try:
        short = without_image(data)
        if short is not None and (body := parse(short)).value("b64_json") == MARK:
            return body
    except ProxyError:
        pass  # what was cut out was not the image
    try:
        body = parse(b"".join(data))
    except ProxyError:
        return None
    value = body.value("b64_json")
    return body if value is not None and value[:1] == b'"' and value != b'""' else None


class _Image(msgspec.Struct):
    b64_json: str | None = None


def image_bytes(data: Sequence[Piece]) -> bytes | None:
    """The decoded picture of an event or of one item of an answer; None where it holds none."""
    try:
        text = msgspec.json.decode(b"".join(data), type=_Image).b64_json
        return (binascii.a2b_base64(text) or None) if text else None
    except (msgspec.MsgspecError, ValueError, RecursionError):  # binascii.Error is a ValueError
        return None
