"""OpenAI's images API, as callers speak it.

    generation(body), edit(body), form(parts)    a checked body -> what is wanted
    layout(frame)                                 an event's bytes in the answer to a POST
    linked(answer, url)                           a JSON answer with images by URL: `response_format` url
    linked_event(frame, url)                      a `completed` event with the URL of its image
    filled(answer)                                a JSON answer whose images have every member that programs read

Input images stay where they are: as spans of the JSON body, or in their files. Their first bytes are looked at once.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

import msgspec

from streamproxy.core import forms, schema
from streamproxy.core.completion import appended
from streamproxy.core.eventdata import outline
from streamproxy.core.events import KINDS, Frame, Operation, Role
from streamproxy.core.images import SNIFFED, sniff
from streamproxy.core.rawjson import MAX_NODES, JsonObject, Member, elements, members, parse
from streamproxy.core.requests import FileId, ImageRequest, Inline, Input, Part, Remote, Spooled, Variation
from streamproxy.core.schema import MAX_IMAGES, Fields
from streamproxy.core.sse import Piece
from streamproxy.errors import ProxyError

_SCHEME: Final = 16
_PREFIX: Final = 512
"""Characters of `data:<media type>[;parameter]*;base64,`."""

_SPACE: Final = b" \t\r\n\f"

ITEM: Final = ("b64_json", "url", "revised_prompt")
"""Members of every image in a JSON answer: Eden AI's guide reads them without asking whether they are there."""


def generation(body: JsonObject, *, max_prompt: int) -> ImageRequest:
    """Images from a prompt; with a non-null `image` it is an edit. Raises ProxyError as `core.schema.generation`."""
    fields = schema.generation(body, max_prompt=max_prompt)
    images = tuple(_strings(body, "image")) if fields.edit else ()
    masks = tuple(_strings(body, "mask")) if fields.edit else ()
    return _request(fields, _canonical(body, fields), images, masks, prompt=_prompt(body), via_generations=fields.edit)


def edit(body: JsonObject, *, max_prompt: int) -> ImageRequest:
    """An edit as JSON, whose images are references. Raises ProxyError as `core.schema.edit`."""
    fields = schema.edit(body, max_prompt=max_prompt)
    spans = elements(body, body.members["images"].value, limit=MAX_IMAGES, where="images")
    images = tuple(_reference(body, start) for start, _ in spans)
    mask = body.members.get("mask")
    given = mask is not None and not body.raw.startswith(b"null", mask.value)
    masks = (_reference(body, mask.value),) if mask is not None and given else ()
    return _request(fields, _canonical(body, fields), images, masks, prompt=_prompt(body))


def form(parts: tuple[Part, ...], *, max_prompt: int, variation: Variation | None = None) -> ImageRequest:
    """An edit, or a variation, as a multipart form. Raises ProxyError as `core.forms.form`."""
    text = _text(parts)
    fields = forms.form(text, _files(parts), max_prompt=max_prompt, variation=variation is not None)
    found = fields.canonical
    sent = tuple(
        Part(part.name, found[part.name].encode()) if part.name in found and part.filename is None else part
        for part in parts
    )
    images = tuple(_spooled(part) for part in parts if part.filename is not None and forms.is_image_part(part.name))
    masks = tuple(_spooled(part) for part in parts if part.filename is not None and part.name == "mask")
    wanted = _request(fields, sent, images, masks, prompt=text["prompt"][0] if "prompt" in text else "")
    return replace(wanted, variation=variation)


def layout(frame: Frame) -> tuple[Piece, ...]:
    """A frame's bytes: `event` line, one `data` line, blank line, LF only, never an id."""
    return (b"event: " + frame.type.encode() + b"\ndata: ", *frame.data, b"\n\n")


def linked(answer: tuple[Piece, ...], url: Callable[[int], str]) -> tuple[Piece, ...]:
    """A JSON answer with `url(position)` in the place of each image's base64. An item without base64 stays as it is."""

    def link(body: JsonObject, image: Mapping[str, Member], number: int) -> Iterable[Piece] | None:
        b64 = image.get("b64_json")
        if b64 is None or not body.raw.startswith(b'"', b64.value) or b64.end - b64.value <= len('""'):
            return None
        made = msgspec.json.encode(url(number))
        return JsonObject(body.raw, image).pieces(drop=("b64_json", "url"), append={"url": made})

    return _with_items(answer, link)


def _with_items(
    answer: tuple[Piece, ...], change: Callable[[JsonObject, Mapping[str, Member], int], Iterable[Piece] | None]
) -> tuple[Piece, ...]:
    """A JSON answer with each object in `data` changed, where `change` gives it anew."""
    body = parse(b"".join(answer))
    data = body.members.get("data")
    if data is None or not body.raw.startswith(b"[", data.value):
        return answer
    view = memoryview(body.raw)
    pieces: list[Piece] = []
    for number, (start, end) in enumerate(elements(body, data.value, limit=MAX_NODES, where="data")):
        image = members(body, start, where="data") if body.raw.startswith(b"{", start) else {}
        changed = change(body, image, number) if image else None
        pieces += (b",", *((view[start:end],) if changed is None else changed))
    return (view[: data.value], b"[", *pieces[1:], b"]", view[data.end :])


def filled(answer: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """A JSON answer whose images have every member of ITEM, null where the provider says nothing of it.

    An answer that cannot be read stays as it is.
    """
    try:
        return _with_items(answer, _filled)
    except ProxyError:
        return answer


def _filled(body: JsonObject, image: Mapping[str, Member], number: int) -> Iterable[Piece] | None:
    absent = {name: b"null" for name in ITEM if name not in image}
    return JsonObject(body.raw, image).pieces(append=absent) if absent else None


def linked_event(frame: Frame, url: str) -> Frame:
    """A `completed` event with `url`, where it has an image and no URL yet. Its base64 stays: SDKs' types need it."""
    said = outline(frame.data) if frame.type in KINDS and KINDS[frame.type].role is Role.COMPLETED else None
    if said is None or not said.has_b64 or said.has_url:
        return frame
    return replace(frame, data=appended(frame.data, {"url": url}))


class Images:
    """The surface of the images API, whose events are those that adapters make."""

    def layout(self, stream: str, created: int) -> Images:
        return self

    def opening(self) -> tuple[Piece, ...]:
        return ()

    def event(self, frame: Frame) -> tuple[Piece, ...]:
        return layout(frame)

    def answer(self, answer: tuple[Piece, ...]) -> tuple[Piece, ...]:
        return filled(answer)


def _request(
    fields: Fields,
    body: JsonObject | tuple[Part, ...],
    images: tuple[Input, ...],
    masks: tuple[Input, ...],
    *,
    prompt: str,
    via_generations: bool = False,
) -> ImageRequest:
    return ImageRequest(
        operation=Operation.EDIT if fields.edit else Operation.GENERATION,
        model=fields.model,
        prompt=prompt,
        n=fields.n,
        stream=fields.stream,
        partial_images=fields.partial_images,
        size=fields.size,
        quality=fields.quality,
        background=fields.background,
        output_format=fields.output_format,
        response_format=fields.response_format,
        images=images,
        mask=masks[0] if masks else None,
        extra_headers=fields.extra_headers,
        body=body,
        via_generations=via_generations,
        fallbacks=fields.fallbacks,
        fallback_after_charge=fields.fallback_after_charge,
    )


def _prompt(body: JsonObject) -> str:
    found = body.decode("prompt")
    return found if isinstance(found, str) else ""


def _canonical(body: JsonObject, fields: Fields) -> JsonObject:
    """The body, with what came in another spelling than the API's as it is to be sent on."""
    if not fields.canonical:
        return body
    replace = {name: value.encode() for name, value in fields.canonical.items()}
    return parse(body.edited(replace=replace))


def _strings(body: JsonObject, name: str) -> Iterator[Input]:
    """A member that is a string or an array of strings: data URLs, other URLs, or bare base64."""
    member = body.members.get(name)
    if member is None or body.raw.startswith((b"null", b'""'), member.value):
        return
    if body.raw.startswith(b'"', member.value):
        yield _image(body.raw, member.value, member.end)
        return
    for start, end in elements(body, member.value, limit=MAX_IMAGES, where=name):
        yield _image(body.raw, start, end)


def _reference(body: JsonObject, start: int) -> Input:
    """`{"image_url": ...}` or `{"file_id": ...}`."""
    found = members(body, start, where="images")
    url = found.get("image_url")
    if url is not None and body.raw.startswith(b'"', url.value):
        return _image(body.raw, url.value, url.end)
    return FileId(_decoded(body.raw, found["file_id"]))


def _decoded(raw: bytes, member: Member) -> str:
    return str(msgspec.json.decode(memoryview(raw)[member.value : member.end]))


def _image(raw: bytes, start: int, end: int) -> Input:
    """The image that the JSON string raw[start:end] is."""
    scheme = raw[start + 1 : start + 1 + _SCHEME].lower()
    if scheme.startswith((b"http:", b"https:")):
        return Remote(str(msgspec.json.decode(memoryview(raw)[start:end])))
    text = memoryview(raw)[start + 1 : end - 1]
    if raw.find(b"\\", start, end) >= 0:  # some encoders escape the slash
        text = memoryview(str(msgspec.json.decode(memoryview(raw)[start:end])).encode().translate(None, _SPACE))
    declared = ""
    if scheme.startswith(b"data:"):
        prefix, _, _ = bytes(text[:_PREFIX]).partition(b",")
        declared = prefix[5:].partition(b";")[0].decode("ascii", "replace").lower()
        text = text[len(prefix) + 1 :]
    return Inline(text, _sniffed(text) or declared or "image/png")


def _sniffed(text: memoryview) -> str | None:
    try:
        return sniff(binascii.a2b_base64(bytes(text[: (SNIFFED + 2) // 3 * 4])))
    except binascii.Error:
        return None


def _spooled(part: Part) -> Spooled:
    if isinstance(part.value, bytes):
        raise TypeError("a file part is spooled")
    return Spooled(part.value, part.content_type or "image/png")


def _text(parts: tuple[Part, ...]) -> Mapping[str, list[str]]:
    text: dict[str, list[str]] = {}
    for part in parts:
        if part.filename is None and isinstance(part.value, bytes):
            text.setdefault(part.name, []).append(part.value.decode())
    return text


def _files(parts: tuple[Part, ...]) -> Mapping[str, list[int]]:
    """The sizes of each name's files."""
    files: dict[str, list[int]] = {}
    for part in parts:
        if part.filename is not None:
            size = len(part.value) if isinstance(part.value, bytes) else part.value.size
            files.setdefault(part.name, []).append(size)
    return files
