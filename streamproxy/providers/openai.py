"""OpenAI's images wire, as OpenAI, Azure and every compatible host speak it.

A caller's body goes on as it came: only the members named here are replaced or left out. Hosts differ in rows of the
catalogue (paths, credential header, how they name models and take input images), never in branches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import quote

import orjson

from streamproxy.core.catalogue import Provider
from streamproxy.core.events import Operation
from streamproxy.core.fields import MAX_IMAGES
from streamproxy.core.imagefile import media_type, probe_base64
from streamproxy.core.jsonbody import JsonObject, Member, Pieces, elements, members
from streamproxy.core.requests import Exchange, Head, ImageRequest, Part, Segment, UpstreamRequest
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers import openai_errors
from streamproxy.providers.openai_answers import Answer
from streamproxy.providers.openai_errors import Scrub

STREAMING: Final = ("stream", "partial_images")
OURS: Final = ("extra_headers",)
"""Members that are addressed to this proxy and never go upstream."""


class OpenAI:
    """The adapter: see `providers.Adapter`."""

    def build(
        self, request: ImageRequest, provider: Provider, credential: tuple[tuple[str, str], ...], boundary: str
    ) -> UpstreamRequest:
        body: tuple[Segment, ...]
        if isinstance(request.body, JsonObject):
            content_type = "application/json"
            body = (_json_body(request, request.body, provider),)
        else:
            content_type = f"multipart/form-data; boundary={boundary}"
            body = tuple(_form_body(request, request.body, boundary.encode()))
        path = provider.edits if request.operation is Operation.EDIT else provider.generations
        query = f"?{provider.query}" if provider.query else ""
        own = (
            ("content-type", content_type),
            ("accept", "text/event-stream, application/json" if request.ask_stream else "application/json"),
            ("accept-encoding", "identity"),
            ("user-agent", "streamproxy"),
            *credential,
        )
        url = provider.base_url + path.replace("{model}", _segment(request.upstream_model)) + query
        return UpstreamRequest("POST", url, own, body)

    def not_applied(self, request: ImageRequest) -> tuple[str, ...]:
        given = _names(request)
        unasked = () if request.ask_stream or not request.stream else ("partial_images",)
        return tuple(name for name in (*request.model.refuses, *unasked) if name in given)

    def decoder(self, exchange: Exchange) -> Answer:
        return Answer(exchange)

    def refusal(self, head: Head, body: bytes, *, path: str, callers_credential: bool, scrub: Scrub) -> ProxyError:
        return openai_errors.refusal(head, body, path=path, callers_credential=callers_credential, scrub=scrub)

    def refuses_streaming(self, head: Head, body: bytes) -> bool:
        return openai_errors.refuses_streaming(head, body)


def _segment(model: str) -> str:
    """A model name as one segment of a path: never more of the path than that, for it is the caller's text."""
    if model in (".", ".."):
        raise ProxyError(Failure.MODEL_NOT_FOUND, "No provider serves a model of this name.", param="model")
    return quote(model, safe="")


def _left_out(request: ImageRequest) -> tuple[str, ...]:
    return (*OURS, *request.model.refuses, *(() if request.ask_stream else STREAMING))


def _names(request: ImageRequest) -> frozenset[str]:
    if isinstance(request.body, JsonObject):
        return frozenset(request.body.members)
    return frozenset(part.name for part in request.body)


def _json_body(request: ImageRequest, body: JsonObject, provider: Provider) -> bytes:
    drop = set(_left_out(request))
    replace: dict[str, bytes] = {}
    append: dict[str, Pieces] = {}
    model = orjson.dumps(request.upstream_model)
    if body.value("model") != model:
        replace["model"] = model
    if request.image_index is not None:
        replace["n"] = b"1"
    if request.operation is Operation.EDIT:
        _refuse_remote(request, body)
        given = "image" if request.via_generations else "images"
        if given != provider.edit_input:
            if provider.edit_input in body.members:
                raise ProxyError(
                    Failure.UNSUPPORTED_PARAMETER,
                    f"Send the input images as {given} only.",
                    param=provider.edit_input,
                )
            drop.add(given)
            append[provider.edit_input] = _array(_translated(request, body))
            mask = body.members.get("mask")
            if mask is not None and not body.raw.startswith(b"null", mask.value):
                replace["mask"] = b"".join(_mask(request, body, mask))
    return body.edited(replace=replace, drop=drop & body.members.keys(), append=append)


def _translated(request: ImageRequest, body: JsonObject) -> Iterator[Pieces]:
    """The input images in the other form: strings as references, references as strings."""
    if request.via_generations:
        yield from map(_reference, _strings(body, "image"))
    else:
        for index, (start, _) in enumerate(_spans(body, "images")):
            yield (_needed_url(body, start, f"images[{index}]"),)


def _mask(request: ImageRequest, body: JsonObject, mask: Member) -> Pieces:
    if request.via_generations:
        return _reference(memoryview(body.raw)[mask.value : mask.end])
    return (_needed_url(body, mask.value, "mask"),)


def _refuse_remote(request: ImageRequest, body: JsonObject) -> None:
    """Models that take no remote image URLs would be asked, and paid perhaps, for nothing."""
    if request.model.remote_image_urls:
        return
    given: list[tuple[str, memoryview]] = []
    if request.via_generations:
        images = _strings(body, "image")
        lone = body.raw.startswith(b'"', body.members["image"].value)
        given += [("image" if lone else f"image[{index}]", image) for index, image in enumerate(images)]
        given += [("mask", mask) for mask in _strings(body, "mask")]
    else:
        references = [(f"images[{index}]", start) for index, (start, _) in enumerate(_spans(body, "images"))]
        mask = body.members.get("mask")
        if mask is not None and not body.raw.startswith(b"null", mask.value):
            references.append(("mask", mask.value))
        given += [(f"{where}.image_url", _url(body, start, where)) for where, start in references]
    for param, image in given:
        if _is_remote(image):
            raise ProxyError(
                Failure.UNSUPPORTED_PARAMETER,
                "This model takes no remote image URLs: send the image as a data: URL, or upload it as a file.",
                param=param,
            )


def _is_remote(image: memoryview) -> bool:
    """Whether a raw JSON string is a URL with a scheme of HTTP's; base64 has no colon."""
    return bytes(image[1:7]).lower().startswith((b"http:", b"https:"))


def _spans(body: JsonObject, name: str) -> tuple[tuple[int, int], ...]:
    """Where the elements of an array member lie: images have megabytes, and are copied once, into the request."""
    member = body.members.get(name)
    return () if member is None else elements(body, member.value, limit=MAX_IMAGES, where=name)


def _strings(body: JsonObject, name: str) -> list[memoryview]:
    """The raw JSON strings of a member that is a string or an array of strings; [] for null."""
    member = body.members.get(name)
    if member is None or body.raw.startswith(b"null", member.value):
        return []
    lone = body.raw.startswith(b'"', member.value)
    view = memoryview(body.raw)
    return [view[start:end] for start, end in ([(member.value, member.end)] if lone else _spans(body, name))]


def _reference(image: memoryview) -> Pieces:
    """A raw JSON string of base64, or of a URL, as OpenAI's `{"image_url": ...}`."""
    if bytes(image[1:6]).lower() == b"data:" or _is_remote(image):
        return b'{"image_url":', image, b"}"
    info = probe_base64(image[1:-1])
    kind = media_type(info.format) if info else "image/png"
    return b'{"image_url":"data:' + kind.encode() + b";base64,", image[1:], b"}"


def _url(body: JsonObject, start: int, where: str) -> memoryview:
    """The URL of the reference at `start`, as a raw JSON string; empty where it has none."""
    url = members(body, start, where=where).get("image_url")
    return memoryview(body.raw)[url.value : url.end] if url is not None else memoryview(b"")


def _needed_url(body: JsonObject, start: int, where: str) -> memoryview:
    """The same for hosts that take strings: they know no file ids."""
    url = _url(body, start, where)
    if bytes(url[:1]) != b'"':
        raise ProxyError(
            Failure.UNSUPPORTED_PARAMETER,
            "This provider takes images by image_url, not by file_id.",
            param=f"{where}.file_id",
        )
    return url


def _array(items: Iterator[Pieces]) -> Pieces:
    pieces: list[bytes | memoryview] = []
    for item in items:
        pieces += (b",", *item)
    return (b"[", *pieces[1:], b"]")


def _form_body(request: ImageRequest, parts: tuple[Part, ...], boundary: bytes) -> Iterator[Segment]:
    """The caller's parts in the caller's order, under our boundary. Files stay on disk."""
    drop = _left_out(request)
    for part in parts:
        if part.name in (drop if part.filename is None else OURS):
            continue
        value: Segment = part.value
        if part.filename is None and part.name == "model":
            value = request.upstream_model.encode()
        if part.filename is None and part.name == "n" and request.image_index is not None:
            value = b"1"
        yield b"--" + boundary + b"\r\n" + _part_head(part)
        yield value
        yield b"\r\n"
    yield b"--" + boundary + b"--\r\n"


def _part_head(part: Part) -> bytes:
    head = f'Content-Disposition: form-data; name="{_quoted(part.name)}"'
    if part.filename is not None:
        head += f'; filename="{_quoted(part.filename)}"'
    if part.content_type and part.content_type.isprintable():  # a line break would begin another header
        head += f"\r\nContent-Type: {part.content_type}"
    return head.encode() + b"\r\n\r\n"


def _quoted(value: str) -> str:
    """As WHATWG's multipart/form-data encoding escapes names and file names."""
    return value.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
