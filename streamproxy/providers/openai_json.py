"""A whole JSON answer (OpenAI's `ImagesResponse` and what others make of it) as frames.

The images stay where they are in the answer: a frame holds a view of the base64 string between two small pieces of JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from streamproxy.core.completion import (
    ZERO_USAGE,
    Image,
    Stated,
    completed,
    decoded_usage,
    ending,
    full_usage,
)
from streamproxy.core.events import ANSWER, Frame
from streamproxy.core.jsonbody import JsonObject, parse
from streamproxy.core.requests import Exchange
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.openai_errors import error_in_answer


class _Item(msgspec.Struct):
    b64_json: msgspec.Raw = msgspec.Raw()
    url: str | None = None
    revised_prompt: str | None = None

    @property
    def holds_image(self) -> bool:
        return bytes(memoryview(self.b64_json)[:3]) not in (b"", b"nul", b'""') or bool(self.url)


class _Answer(msgspec.Struct):
    data: list[_Item] | None = None
    error: msgspec.Raw = msgspec.Raw()
    created: int | None = None
    size: str | None = None
    quality: str | None = None
    background: str | None = None
    output_format: str | None = None
    usage: msgspec.Raw = msgspec.Raw()
    cost: msgspec.Raw = msgspec.Raw()
    provider: msgspec.Raw = msgspec.Raw()


_DECODER: Final = msgspec.json.Decoder(_Answer)
_BACKSLASH: Final = re.compile(rb"\\")
_IN_EVENTS: Final = frozenset(
    {"data", "created", "size", "quality", "background", "output_format", "usage", "cost", "provider"}
)
"""Members of an answer that have their own place in an event; every other one goes along with the last image."""


def answer_frame(raw: bytes, exchange: Exchange) -> Iterator[Frame]:
    """The answer for a caller who wants JSON: the provider's bytes, with usage filled up, cost and provider added."""
    answer = _decoded(raw, exchange)
    body = _members(raw)
    usage = bytes(answer.usage) or None
    replace: dict[str, bytes] = {}
    if usage is not None and (said := decoded_usage(usage)) and (full := full_usage(usage)) != said:
        replace["usage"] = msgspec.json.encode(full)
    more = _ending(answer, exchange)
    edited = body.edited(replace=replace, append={name: msgspec.json.encode(value) for name, value in more.items()})
    yield Frame(ANSWER, (edited,), final=True)


def image_frames(raw: bytes, exchange: Exchange) -> Iterator[Frame]:
    """One synthesized `completed` event per image; usage and cost are the whole request's, so the last one has them."""
    answer = _decoded(raw, exchange)
    request = exchange.request
    items = [item for item in answer.data or () if item.holds_image]
    stated = Stated(
        created_at=answer.created or exchange.now,
        size=answer.size or request.size or "",
        quality=_concrete(answer.quality) or _concrete(request.quality),
        background=_concrete(answer.background),
        output_format=answer.output_format or "",
    )
    last: dict[str, object] = {"usage": full_usage(bytes(answer.usage) or None)}
    last |= _further(raw)
    last |= _ending(answer, exchange)
    for name in ("cost", "provider"):
        said: msgspec.Raw = getattr(answer, name)
        if bytes(said):
            last[name] = msgspec.json.decode(said)
    for index, item in enumerate(items):
        members = last if index == len(items) - 1 else {"usage": ZERO_USAGE, "cost": None, "provider": last["provider"]}
        extra: dict[str, object] = {"revised_prompt": item.revised_prompt} if item.revised_prompt else {}
        yield completed(
            request.operation,
            Image(_base64(item.b64_json), item.url, extra),
            stated,
            index=index,
            several=len(items) > 1,
            ending=members,
        )


def _decoded(raw: bytes, exchange: Exchange) -> _Answer:
    """The answer's members; raises ProxyError unless it holds an image."""
    try:
        answer = _DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ProxyError(Failure.BAD_JSON, "The provider's answer is not the JSON of an images answer.") from None
    if bytes(answer.error) not in (b"", b"null"):
        raise error_in_answer(raw, exchange.scrub)
    if not any(item.holds_image for item in answer.data or ()):
        raise ProxyError(Failure.NO_IMAGE, "The provider's answer holds no image.")
    return answer


def _members(raw: bytes) -> JsonObject:
    try:
        return parse(raw)
    except ProxyError:
        raise ProxyError(Failure.BAD_JSON, "The provider's answer is not the JSON of an images answer.") from None


def _ending(answer: _Answer, exchange: Exchange) -> dict[str, object]:
    return ending(
        bytes(answer.usage) or None,
        price=exchange.request.model.price,
        images=len(answer.data or ()),
        provider=exchange.provider.name,
        has_cost=bytes(answer.cost) != b"",
        has_provider=bytes(answer.provider) != b"",
    )


def _further(raw: bytes) -> Mapping[str, object]:
    body = _members(raw)
    return {name: body.decode(name) for name in body.members if name not in _IN_EVENTS}


def _base64(raw: msgspec.Raw) -> bytes | memoryview:
    """The base64 between the quotes, as a view; only where it holds escapes (`\\/`) is it decoded."""
    view = memoryview(raw)
    if bytes(view[:1]) != b'"':
        return b""
    escaped = _BACKSLASH.search(view) is not None
    return str(msgspec.json.decode(raw)).encode() if escaped else view[1:-1]


def _concrete(value: str | None) -> str:
    return "" if value in (None, "auto") else str(value)
