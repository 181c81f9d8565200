"""A whole JSON answer (OpenAI's `ImagesResponse` and what others make of it) as frames.

The images stay where they are in the answer: a frame holds a view of the base64 string between two pieces of JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from streamproxy.core.completion import ZERO_USAGE, Image, Stated, completed, ending, full_usage
from streamproxy.core.events import ANSWER, ERROR, Frame
from streamproxy.core.jsonbody import JsonObject, parse
from streamproxy.core.outline import holds_text, says_error, text
from streamproxy.core.requests import Exchange
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.openai_errors import error_in_answer

_Item = dict[str, msgspec.Raw]
_ABSENT: Final = msgspec.Raw()


class _Answer(msgspec.Struct):
    """The members that we read. Raw, because a paid image must not be lost to a timestamp that is a string."""

    data: list[_Item] | None = None
    error: msgspec.Raw = _ABSENT
    type: msgspec.Raw = _ABSENT
    created: msgspec.Raw = _ABSENT
    size: msgspec.Raw = _ABSENT
    quality: msgspec.Raw = _ABSENT
    background: msgspec.Raw = _ABSENT
    output_format: msgspec.Raw = _ABSENT
    usage: msgspec.Raw = _ABSENT
    cost: msgspec.Raw = _ABSENT
    provider: msgspec.Raw = _ABSENT

    @property
    def items(self) -> list[_Item]:
        """What shows a picture."""
        return [item for item in self.data or () if any(holds_text(item.get(key, _ABSENT)) for key in _PICTURE)]

    @property
    def said_usage(self) -> bytes | None:
        value = bytes(self.usage)
        return None if value in (b"", b"null") else value

    def ending(self, exchange: Exchange) -> dict[str, object]:
        """`cost` and `provider`, where the provider has not said them."""
        return ending(
            self.said_usage,
            price=exchange.request.model.price,
            images=len(self.items),
            provider=exchange.provider.name,
            has=[name for name in ("cost", "provider") if bytes(getattr(self, name))],
        )


_PICTURE: Final = ("b64_json", "url")
_DECODER: Final = msgspec.json.Decoder(_Answer)
_BACKSLASH: Final = re.compile(rb"\\")
_DATA_URL: Final = re.compile(rb"data:[^,]{0,256},")
_DIGITS: Final = 12
_IN_EVENTS: Final = frozenset(
    {"type", "b64_json", "url", "created_at", "size", "quality", "background", "output_format", "image_index"}
    | {"partial_image_index", "usage", "cost", "provider", "error", "data", "created"}
)
"""Members with their own place in an event. Every other one goes along: an item's with its image, an answer's with the
last."""


def answer_frame(raw: bytes, exchange: Exchange) -> Iterator[Frame]:
    """The answer for a caller who wants JSON: the provider's bytes, with usage filled up, cost and provider added."""
    answer = _decoded(raw, exchange)
    usage = answer.said_usage
    replace = {} if usage is None else {"usage": full_usage(usage)}
    append = {name: msgspec.json.encode(value) for name, value in answer.ending(exchange).items()}
    yield Frame(ANSWER, (read_object(raw).edited(replace=replace, append=append),), final=True)


def image_frames(raw: bytes, exchange: Exchange) -> Iterator[Frame]:
    """One synthesized `completed` event per image; usage and cost are the whole request's, so the last one has them."""
    answer = _decoded(raw, exchange)
    request = exchange.request
    items = answer.items
    stated = Stated(
        created_at=whole_number(answer.created) or exchange.now,
        size=text(answer.size) or request.size or "",
        quality=_concrete(text(answer.quality)) or _concrete(request.quality),
        background=_concrete(text(answer.background)),
        output_format=text(answer.output_format),
    )
    body = read_object(raw)
    last: dict[str, object] = {name: msgspec.Raw(body.value(name) or b"") for name in body.members.keys() - _IN_EVENTS}
    last |= {"usage": msgspec.Raw(full_usage(answer.said_usage))}
    last |= {name: getattr(answer, name) for name in ("cost", "provider")} | answer.ending(exchange)
    for index, item in enumerate(items):
        members = last if index == len(items) - 1 else {"usage": ZERO_USAGE, "cost": None, "provider": last["provider"]}
        yield completed(
            request.operation,
            Image(_base64(item.get("b64_json", _ABSENT)), text(item.get("url", _ABSENT)) or None, _extra(item)),
            stated,
            index=index,
            several=len(items) > 1,
            ending=members,
        )


def read_object(raw: bytes) -> JsonObject:
    """A provider's JSON object, checked whole; raises ProxyError(BAD_JSON)."""
    try:
        return parse(raw)
    except ProxyError:
        raise ProxyError(Failure.BAD_JSON, "The provider's answer is not the JSON of an images answer.") from None


def whole_number(raw: msgspec.Raw) -> int | None:
    """A member's integer, as a timestamp is one."""
    value = bytes(memoryview(raw)[: _DIGITS + 1])
    return int(value) if value.isdigit() and len(value) <= _DIGITS else None


def _decoded(raw: bytes, exchange: Exchange) -> _Answer:
    """The answer's members; raises ProxyError unless it holds an image."""
    try:
        answer = _DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ProxyError(Failure.BAD_JSON, "The provider's answer is not the JSON of an images answer.") from None
    if says_error(answer.error):
        raise error_in_answer(raw, exchange.scrub)
    if not answer.items:
        if text(answer.type) == ERROR:
            raise error_in_answer(raw, exchange.scrub)
        raise ProxyError(Failure.NO_IMAGE, "The provider's answer holds no image.")
    return answer


def _extra(item: _Item) -> Mapping[str, object]:
    return {name: value for name, value in item.items() if name not in _IN_EVENTS and bytes(value) != b"null"}


def _base64(raw: msgspec.Raw) -> bytes | memoryview:
    """The base64 between the quotes, as a view; only where it holds escapes (`\\/`) is it written anew."""
    if not holds_text(raw):
        return b""
    view = memoryview(raw)
    if _BACKSLASH.search(view) is not None:
        view = memoryview(msgspec.json.encode(msgspec.json.decode(raw)))
    view = view[1:-1]
    prefix = _DATA_URL.match(view)
    return view[prefix.end() :] if prefix else view


def _concrete(value: str | None) -> str:
    return "" if value in (None, "auto") else str(value)
