"""OpenAI's images wire, as OpenAI, Azure and every compatible host speak it.

A caller's body goes on as it came: only the members named here are replaced or left out. Hosts differ in rows of the
catalogue (paths, credential header, how they name models and take input images), never in branches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import quote

import msgspec
import orjson

from streamproxy.core.catalogue import Provider
from streamproxy.core.events import Operation
from streamproxy.core.imagefile import media_type, probe_base64
from streamproxy.core.jsonbody import JsonObject
from streamproxy.core.requests import Exchange, Head, ImageRequest, Part, Segment, UpstreamRequest
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers import openai_errors
from streamproxy.providers.openai_answers import Answer
from streamproxy.providers.openai_errors import Scrub

STREAMING: Final = ("stream", "partial_images")
OURS: Final = ("extra_headers",)
"""Members that are addressed to this proxy and never go upstream."""

_ANSWERS: Final = ("text/event-stream", "application/json", "")


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
        kind = exchange.head.media_type
        if kind not in _ANSWERS:
            raise ProxyError(
                Failure.UNEXPECTED_CONTENT_TYPE,
                "The provider answered with neither JSON nor an event stream. Check the provider's base_url.",
            )
        return Answer(exchange)

    def refusal(self, head: Head, body: bytes, *, callers_credential: bool, scrub: Scrub) -> ProxyError:
        return openai_errors.refusal(head, body, callers_credential=callers_credential, scrub=scrub)

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
    append: dict[str, bytes] = {}
    model = orjson.dumps(request.upstream_model)
    if body.value("model") != model:
        replace["model"] = model
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
            if body.value("mask") not in (None, b"null"):
                replace["mask"] = _mask(request, body)
    return body.edited(replace=replace, drop=drop & body.members.keys(), append=append)


def _translated(request: ImageRequest, body: JsonObject) -> Iterator[bytes]:
    """The input images in the other form: strings as references, references as strings."""
    if request.via_generations:
        yield from map(_reference, _strings(body, "image"))
    else:
        yield from _references(body)


def _mask(request: ImageRequest, body: JsonObject) -> bytes:
    mask = body.value("mask") or b""
    return _reference(mask) if request.via_generations else _url(mask, "mask.file_id")


def _refuse_remote(request: ImageRequest, body: JsonObject) -> None:
    """Models that take no remote image URLs would be asked, and paid perhaps, for nothing."""
    if request.model.remote_image_urls:
        return
    given: list[tuple[str, bytes]] = []
    if request.via_generations:
        images = _strings(body, "image")
        lone = images[:1] == [body.value("image")]
        given += [("image" if lone else f"image[{index}]", image) for index, image in enumerate(images)]
        given += [("mask", mask) for mask in _strings(body, "mask")]
    else:
        references = msgspec.json.decode(body.value("images") or b"[]", type=list[_Reference])
        given += [(f"images[{index}].image_url", bytes(image.image_url)) for index, image in enumerate(references)]
        if body.value("mask") not in (None, b"null"):
            mask = msgspec.json.decode(body.value("mask") or b"{}", type=_Reference)
            given.append(("mask.image_url", bytes(mask.image_url)))
    for param, image in given:
        if _is_remote(image):
            raise ProxyError(
                Failure.UNSUPPORTED_PARAMETER,
                "This model takes no remote image URLs: send the image as a data: URL, or upload it as a file.",
                param=param,
            )


def _is_remote(image: bytes) -> bool:
    """Whether a raw JSON string is a URL with a scheme of HTTP's; base64 has no colon."""
    return image[1:7].lower().startswith((b"http:", b"https:"))


class _Reference(msgspec.Struct):
    image_url: msgspec.Raw = msgspec.Raw()


def _strings(body: JsonObject, name: str) -> list[bytes]:
    """The raw JSON strings of a member that is a string or an array of strings; [] for null."""
    raw = body.value(name)
    if raw is None or raw == b"null":
        return []
    if raw[:1] == b'"':
        return [raw]
    return [bytes(item) for item in msgspec.json.decode(raw, type=list[msgspec.Raw])]


def _reference(image: bytes) -> bytes:
    """A raw JSON string of base64, or of a URL, as OpenAI's `{"image_url": ...}`."""
    if image[1:6].lower() == b"data:" or _is_remote(image):
        return b'{"image_url":' + image + b"}"
    info = probe_base64(memoryview(image)[1:-1])
    kind = media_type(info.format) if info else "image/png"
    return b'{"image_url":"data:' + kind.encode() + b";base64," + image[1:] + b"}"


def _references(body: JsonObject) -> Iterator[bytes]:
    raw = body.value("images") or b"[]"
    for index, item in enumerate(msgspec.json.decode(raw, type=list[msgspec.Raw])):
        yield _url(bytes(item), f"images[{index}].file_id")


def _url(reference: bytes, param: str) -> bytes:
    """The URL of an `{"image_url"}`, as a raw JSON string; hosts that take strings know no file ids."""
    url = bytes(msgspec.json.decode(reference, type=_Reference).image_url)
    if url[:1] != b'"':
        raise ProxyError(
            Failure.UNSUPPORTED_PARAMETER, "This provider takes images by image_url, not by file_id.", param=param
        )
    return url


def _array(items: Iterator[bytes]) -> bytes:
    return b"[" + b",".join(items) + b"]"


def _form_body(request: ImageRequest, parts: tuple[Part, ...], boundary: bytes) -> Iterator[Segment]:
    """The caller's parts in the caller's order, under our boundary. Files stay on disk."""
    drop = _left_out(request)
    for part in parts:
        if part.name in (drop if part.filename is None else OURS):
            continue
        value: Segment = part.value
        if part.filename is None and part.name == "model":
            value = request.upstream_model.encode()
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
