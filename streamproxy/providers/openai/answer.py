"""A whole JSON answer (OpenAI's `ImagesResponse` and other hosts' variants of it) as frames.

Images are not copied: a frame has a view of the base64 string between two pieces of JSON.

A picture is an item of `data` with `b64_json` or `url`. An answer without one may still have been paid for. If it does
not look like a refusal, and has any member that may be a picture, a caller that wants JSON gets it unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import msgspec

from streamproxy.core.completion import ZERO_USAGE, AnswerFacts, Image, completed, ending, full_usage, model_of
from streamproxy.core.conversation import Inlining, Job, Picture
from streamproxy.core.cost import amount
from streamproxy.core.events import ANSWER, Frame
from streamproxy.core.rawjson import (
    MAX_NODES,
    NULLS,
    JsonObject,
    elements,
    holds_text,
    members,
    parse,
    present,
    says_error,
    shown,
    text,
    whole_number,
)
from streamproxy.core.schema import MAX_IMAGES
from streamproxy.core.sse import Piece
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.openai.errors import Scrub, blocked, error_in_answer, error_of, verdict, words

UNREAD: Final = "streamproxy_unread"
"""The member, true, that marks an answer whose picture was not found."""

_Item = dict[str, msgspec.Raw]
_ABSENT: Final = msgspec.Raw()


class _Answer(msgspec.Struct):
    """The members that are read. Raw, because a timestamp that is a string must not lose a paid image."""

    data: msgspec.Raw = _ABSENT
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


@dataclass(frozen=True, slots=True)
class _Read:
    """An answer: its bytes with the spans of its members, the decoded members, and the items with a picture.

    `items` is empty where the answer is not an error, but its picture is in no known place.
    """

    body: JsonObject
    answer: _Answer
    items: tuple[_Item, ...]

    def ending(self, job: Job) -> dict[str, object]:
        """`cost` and `provider`, where the answer has none. An answer whose picture was not found has no price."""
        return ending(
            present(self.answer.usage),
            price=job.model.price if self.items else None,
            images=len(self.items),
            provider=job.provider.name,
            has=[name for name in ("cost", "provider") if bytes(getattr(self.answer, name))],
        ) | ({} if "model" in self.body.members else model_of(job))


_PICTURE: Final = ("b64_json", "url")
_DECODER: Final = msgspec.json.Decoder(_Answer)
_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])
_ITEM: Final = msgspec.json.Decoder(_Item)
_BACKSLASH: Final = re.compile(rb"\\")
_DATA_URL: Final = re.compile(rb'"data:[^,"]{0,256},')
_BASE64_URL: Final = re.compile(rb'"data:[^,"]{0,256};base64,')
_IN_EVENTS: Final = frozenset(
    {"type", "b64_json", "url", "created_at", "size", "quality", "background", "output_format", "image_index"}
    | {"partial_image_index", "usage", "cost", "provider", "error", "data", "created"}
)
"""Members with their own place in an event. Others are added as they are: an item's to its image, an answer's to the
last image."""

_NO_PICTURE: Final = frozenset(
    {"id", "object", "model", "created", "created_at", "status", "type", "code", "success", "usage", "cost", "provider"}
    | {"size", "quality", "background", "output_format", "prompt", "revised_prompt", "request_id", "base_resp"}
    | {"error", "errors", "message", "msg", "detail", "title"}
)
"""Members that are not searched for a picture, at any depth."""

_SMALL: Final = 64 * 1024
"""Bytes of a member that is decoded to search for an error's text. Pictures are larger, errors are smaller."""


_NAMES: Final = 512
"""Characters of an error's list of members."""


def answer_frame(raw: bytes, job: Job) -> Iterator[Frame | Inlining]:
    """The answer for a caller that wants JSON: the provider's bytes with full usage, cost and provider.

    An answer whose picture was not found is forwarded too, with UNREAD. An array becomes the `data` of an object.
    """
    read = _read(raw, job)
    body, usage = read.body, present(read.answer.usage)
    changed = {} if usage is None else {"usage": full_usage(usage)}
    data = _unwrapped_items(body) if read.items else None
    if data is not None:
        changed["data"] = data
    added = read.ending(job) | ({} if read.items else {UNREAD: True})
    if job.provider.quirks.undated and read.items and not bytes(read.answer.created):
        added["created"] = job.now  # SDK types require it
    append = {name: msgspec.json.encode(value) for name, value in added.items()}
    whole = body.edited(replace=changed, drop=(UNREAD,), append=append)
    paid = amount(added.get("cost", read.answer.cost))
    if job.inlines and any(url_of(item) for item in read.items):
        yield _inlined(whole, cost=paid, keep_url=keeps_url(job))
    else:
        yield Frame(ANSWER, (whole,), final=True, cost=paid)


def image_frames(raw: bytes, job: Job) -> Iterator[Frame | Inlining]:
    """One synthesized `completed` event per image. The last one has usage and cost, which are for the whole request."""
    read = _read(raw, job)
    if not read.items:
        raise _no_image(read.body, job.scrub)
    answer, items, request = read.answer, read.items, job.request
    stated = AnswerFacts(
        created_at=whole_number(answer.created) or job.now,
        size=text(answer.size) or request.size or "",
        quality=_concrete(text(answer.quality)) or _concrete(request.quality),
        background=_concrete(text(answer.background)),
        output_format=text(answer.output_format),
    )
    body = read.body
    last: dict[str, object] = {name: msgspec.Raw(body.value(name) or b"") for name in body.members.keys() - _IN_EVENTS}
    last |= {"usage": msgspec.Raw(full_usage(present(answer.usage)))}
    last |= {name: getattr(answer, name) for name in ("cost", "provider")} | read.ending(job)
    share = job.n < request.n
    items = items[: job.n]  # further indices are other jobs', or of images that were not asked for
    for index, item in enumerate(items):
        said = {"provider": last["provider"], **model_of(job)}
        ends = last if index == len(items) - 1 else {"usage": ZERO_USAGE, "cost": None, **said}
        several, place = share or len(items) > 1, job.first + index
        made = partial(completed, request.operation, stated=stated, index=place, several=several, ending=ends)
        image = _image(item)
        if job.inlines and (url := url_of(item)):
            yield Inlining((url,), partial(_fetched, made, image, keeps_url(job)))
        else:
            yield made(image)


def _fetched(made: Callable[[Image], Frame], image: Image, keep_url: bool, pictures: tuple[Picture, ...]) -> Frame:
    """The event of an image that was at a URL, and is here now, or could not be had."""
    [picture] = pictures
    if not picture.base64:
        return made(replace(image, extra={**image.extra, "warning": picture.problem}))
    return made(replace(image, b64=picture.base64, url=image.url if keep_url else None))


def read_object(raw: bytes) -> JsonObject:
    """Parse a provider's JSON object and check all of it. Raises ProxyError(BAD_JSON)."""
    try:
        return parse(raw)
    except ProxyError:
        raise _bad_json() from None


def unwrapped(image: JsonObject) -> bytes | None:
    """An object with a picture, without the `data:` prefix of its base64; None where there is no such prefix.

    A `data:` URL becomes `b64_json`, unless there is `b64_json` already.
    """
    raw, b64, url = image.raw, image.members.get("b64_json"), image.members.get("url")
    if b64 is not None and (prefix := _DATA_URL.match(raw, b64.value, b64.end)):
        return image.edited(replace={"b64_json": b'"' + raw[prefix.end() : b64.end]})
    if url is None or (b64 is not None and raw.startswith(b'"', b64.value) and b64.end - b64.value > 2):
        return None
    prefix = _BASE64_URL.match(raw, url.value, url.end)
    if prefix is None:
        return None
    picture = (b'"', memoryview(raw)[prefix.end() : url.end])
    return image.edited(drop=_PICTURE, append={"b64_json": picture})


def url_of(item: Mapping[str, msgspec.Raw]) -> str:
    """The URL of an item's picture, where it comes without its bytes; "" for every other item."""
    url = text(item.get("url", _ABSENT))
    return url if url[:6].lower() in ("http:/", "https:") and not holds_text(item.get("b64_json", _ABSENT)) else ""


def keeps_url(job: Job) -> bool:
    """Whether the provider's URL goes on beside the picture: where the caller has asked for neither form."""
    return job.request.response_format not in ("b64_json", "url")


def _inlined(whole: bytes, *, cost: float | None, keep_url: bool) -> Inlining:
    """An answer with the pictures of its items that are at URLs, the first MAX_IMAGES of them."""
    body = parse(whole)
    data = body.members["data"]
    spans = elements(body, data.value, limit=MAX_NODES, where="data")
    items = {start: members(body, start, where="data") for start, _ in spans if whole.startswith(b"{", start)}
    view = memoryview(whole)
    raw = {
        start: {name: msgspec.Raw(view[m.value : m.end]) for name, m in found.items() if name in _PICTURE}
        for start, found in items.items()
    }
    urls = {start: url for start, item in raw.items() if (url := url_of(item))}
    asked = dict([*urls.items()][:MAX_IMAGES])

    def frame(pictures: tuple[Picture, ...]) -> Frame:
        found = dict(zip(asked, pictures, strict=True))
        pieces: list[Piece] = []
        for start, end in spans:
            item = JsonObject(whole, items[start]) if start in found else None
            shown = (view[start:end],) if item is None else with_picture(item, found[start], keep_url=keep_url)
            pieces += (b",", *shown)
        whole_again = (view[: data.value], b"[", *pieces[1:], b"]", view[data.end :])
        return Frame(ANSWER, whole_again, final=True, cost=cost)

    return Inlining(tuple(asked.values()), frame)


def with_picture(image: JsonObject, picture: Picture, *, keep_url: bool) -> tuple[Piece, ...]:
    """An object that shows a picture by its URL, with the picture, or with a `warning` where it is not to be had."""
    if not picture.base64:
        warning = {"warning": msgspec.json.encode(picture.problem), "b64_json": b"null"}
        return image.pieces(drop=("b64_json", "warning"), append=warning)
    drop = ("b64_json",) if keep_url else ("b64_json", "url")
    head = b"".join(image.pieces(drop=drop, append={"b64_json": b'"'}))
    return (head[:-1], *picture.base64, b'"}')


def _unwrapped_items(body: JsonObject) -> bytes | None:
    """The array `data` with its pictures unwrapped; None where nothing changes."""
    view = memoryview(body.raw)
    items: list[bytes | memoryview] = []
    changed = False
    for start, end in elements(body, body.members["data"].value, limit=MAX_NODES, where="data"):
        plain = None
        if body.raw.startswith(b"{", start):
            plain = unwrapped(JsonObject(body.raw, members(body, start, where="data")))
        changed = changed or plain is not None
        items += (b",", view[start:end] if plain is None else plain)
    return b"".join((b"[", *items[1:], b"]")) if changed else None


def _read(raw: bytes, job: Job) -> _Read:
    """The answer's members. Raises ProxyError where it is an error, or has nothing that may be a picture."""
    # First, because its limits bound the cost of everything after it.
    body = read_object(b'{"data":' + raw + b"}" if raw.startswith(b"[") else raw)
    try:
        answer = _DECODER.decode(body.raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _bad_json() from None
    if says_error(answer.error):
        raise blocked(job, error_in_answer(raw, job.scrub))
    listed = _listed(answer.data)
    items = tuple(item for item in listed if item and any(holds_text(item.get(key, _ABSENT)) for key in _PICTURE))
    if not items:
        said, shows = _said(body), any(_may_show(body, name) for name in body.members.keys() - _NO_PICTURE)
        well = verdict(said)
        if well is False or (well is None and not shows and words(said, job.scrub)):
            raise error_of(said, job.scrub)
        if not shows:
            sound = raw.startswith(b"{") and (bytes(answer.data) in NULLS or bytes(answer.data).startswith(b"["))
            raise _no_image(body, job.scrub) if sound and None not in listed else _bad_json()
    return _Read(body, answer, items)


def _listed(data: msgspec.Raw) -> list[_Item | None]:
    """The items of `data`, None for each that is not an object; [] where it is not an array."""
    try:
        return [_item(one) for one in _LIST.decode(data)]
    except msgspec.DecodeError:
        return []


def _item(raw: msgspec.Raw) -> _Item | None:
    try:
        return _ITEM.decode(raw)
    except msgspec.DecodeError:
        return None


def _said(body: JsonObject) -> Mapping[str, object]:
    """The members that may be an error's text: all but large ones."""
    return {name: _value(body, name) for name, member in body.members.items() if member.end - member.value <= _SMALL}


def _may_show(body: JsonObject, name: str) -> bool:
    """Whether a member may be a picture: if there is any string in it, since its name differs by provider."""
    member = body.members[name]
    return member.end - member.value > _SMALL or _has_string(_value(body, name))


def _value(body: JsonObject, name: str) -> object:
    try:
        return body.decode(name)
    except ProxyError:  # a number that Python cannot represent
        return None


def _has_string(value: object) -> bool:
    if isinstance(value, dict):
        return any(_has_string(item) for name, item in value.items() if name not in _NO_PICTURE)
    return any(map(_has_string, value)) if isinstance(value, list) else isinstance(value, str) and bool(value.strip())


def _no_image(body: JsonObject, scrub: Scrub) -> ProxyError:
    """The error for an answer without a picture: the names of its members, and the provider's own text."""
    names = ", ".join(shown(name, place) for place, name in enumerate(body.members, 1))[:_NAMES]
    said = words(_said(body), scrub)
    message = f"The provider's answer has no image in a known place. Its members: {names or 'none'}."
    return ProxyError(Failure.NO_IMAGE, f"{message} It says: {said}" if said else message)


def _bad_json() -> ProxyError:
    return ProxyError(Failure.BAD_JSON, "The provider's answer is not the JSON of an images answer.")


def _extra(item: _Item) -> Mapping[str, object]:
    return {name: value for name, value in item.items() if name not in _IN_EVENTS and bytes(value) != b"null"}


def _image(item: _Item) -> Image:
    """One item's picture. A `data:` URL becomes base64, as in `unwrapped`."""
    b64, url = _base64(item.get("b64_json", _ABSENT)), item.get("url", _ABSENT)
    if not b64 and _BASE64_URL.match(memoryview(url)):
        return Image((_base64(url),), None, _extra(item))
    return Image((b64,) if b64 else (), text(url) or None, _extra(item))


def _base64(raw: msgspec.Raw) -> bytes | memoryview:
    """The base64 between the quotes, as a view. A string with escapes (`\\/`) is encoded again without them."""
    if not holds_text(raw):
        return b""
    view = memoryview(raw)
    if _BACKSLASH.search(view) is not None:
        view = memoryview(msgspec.json.encode(msgspec.json.decode(raw)))
    prefix = _DATA_URL.match(view)
    return view[prefix.end() if prefix else 1 : -1]


def _concrete(value: str | None) -> str:
    return "" if value in (None, "auto") else str(value)
