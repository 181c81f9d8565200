"""OpenAI's images wire, as OpenAI, Azure and every compatible host speak it.

A caller's body is forwarded unchanged, except for the members named in this module. Hosts differ in their rows of the
catalogue (paths, credential header, names of models, form of input images), never in branches. For a row with `quirks`
the body is written anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final
from urllib.parse import urlsplit

import msgspec

from streamproxy.core.catalogue import Route
from streamproxy.core.conversation import (
    COMMON,
    Conversation,
    Job,
    NotApplied,
    inlined,
    pour,
    refusal_body,
    send,
)
from streamproxy.core.events import Operation
from streamproxy.core.images import media_type, probe_base64
from streamproxy.core.rawjson import JsonObject, Member, Pieces, elements, members, parse
from streamproxy.core.requests import (
    ImageRequest,
    Inline,
    Input,
    Part,
    Remote,
    Segment,
    Spooled,
    UpstreamRequest,
    Variation,
    as_base64,
)
from streamproxy.core.schema import CHOICE, MAX_IMAGES
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.openai import errors, rewriting
from streamproxy.providers.openai.events import Answer

Segments = tuple[Segment, ...]

STREAMING: Final = ("stream", "partial_images")
OURS: Final = ("extra_headers", *CHOICE)
"""Members that are meant for this proxy and never sent upstream."""

HONOURED: Final = ("response_format",)
"""Members that the proxy applies itself, whether they go upstream or not."""


class OpenAI:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        most = route.model.max_stream_n if asks_to_stream(request, route) else 0
        quirks = route.provider.quirks
        return min(request.n, most or request.n, request.n if quirks is None else quirks.max_n)

    def not_applied(self, job: Job) -> tuple[str, ...]:
        return _not_applied(job, streams=asks_to_stream(job.request, job.route))

    def converse(self, job: Job) -> Conversation[None]:
        streams = asks_to_stream(job.request, job.route)
        job = yield from _with_fetched(job)
        while True:
            if job.provider.quirks is not None:
                request = yield from rewriting.request(job, job.provider.quirks)
            else:
                request = _request(job, streams=streams)
            head = yield from send(request)
            if head.status in (200, 201):
                break
            raw = yield from refusal_body()
            if not (streams and errors.refuses_streaming(head, raw)):
                path = urlsplit(request.url).path
                error = errors.refusal(head, raw, path=path, callers_credential=job.callers_key, scrub=job.scrub)
                raise rewriting.blocked(job, error)
            streams = False  # the provider has processed nothing
            yield NotApplied(_not_applied(job, streams=False))
        yield from pour(Answer(job, head))


def _with_fetched(job: Job) -> Conversation[Job]:
    """The job with its images as data URLs that are at URLs, where the model takes none and they may be fetched."""
    request, body = job.request, job.request.body
    allowed = job.limits.fetch_images or request.fetches
    remote = any(isinstance(image, Remote) for image in request.images)
    if job.model.remote_image_urls or not allowed or not remote or "images" not in request.given:
        return job
    if not isinstance(body, JsonObject):
        return job
    items: list[bytes | memoryview] = []
    images: list[Input] = []
    for index, (image, (start, end)) in enumerate(zip(request.images, _spans(body, "images"), strict=True)):
        shown = image if not isinstance(image, Remote) else (yield from inlined(image, job, f"images[{index}]"))
        images.append(shown)
        if shown is not image and isinstance(shown, Inline):
            prefix = b'{"image_url":"data:' + shown.media_type.encode() + b";base64,"
            items += (b",", prefix, shown.base64, b'"}')
        else:
            items += (b",", memoryview(body.raw)[start:end])
    whole = parse(body.edited(drop=("images",), append={"images": (b"[", *items[1:], b"]")}))
    return replace(job, request=replace(request, body=whole, images=tuple(images)))


def asks_to_stream(request: ImageRequest, route: Route) -> bool:
    """Whether the provider is asked for events: if the caller wants them, and both model and host can stream."""
    model, host = route.model, route.provider
    able = model.streams and host.streams and request.output_format not in model.unstreamed_formats
    return request.stream and able and request.variation is not Variation.ROUTE


def _not_applied(job: Job, *, streams: bool) -> tuple[str, ...]:
    unasked = () if streams or not job.request.stream else ("partial_images",)
    if job.provider.quirks is not None:
        return tuple(sorted({*rewriting.not_applied(job, job.provider.quirks), *unasked} & job.request.given))
    refused = tuple(name for name in job.model.refuses if name not in HONOURED)
    return tuple(name for name in (*refused, *unasked) if name in job.request.given)


def _request(job: Job, *, streams: bool) -> UpstreamRequest:
    request = job.request
    body: tuple[Segment, ...]
    if isinstance(request.body, JsonObject):
        content_type = "application/json"
        body = _json_body(job, request.body, streams=streams)
    else:
        boundary = f"streamproxy-{job.token}"
        content_type = f"multipart/form-data; boundary={boundary}"
        body = tuple(_form_body(job, request.body, boundary.encode(), streams=streams))
    accept = "text/event-stream, application/json" if streams else "application/json"
    return UpstreamRequest(
        "POST", rewriting.url_for(job), (("content-type", content_type), ("accept", accept), *COMMON), body
    )


def _left_out(job: Job, *, streams: bool) -> tuple[str, ...]:
    return (*OURS, *job.model.refuses, *(() if streams else STREAMING))


def _json_body(job: Job, body: JsonObject, *, streams: bool) -> tuple[Segment, ...]:
    request, provider = job.request, job.provider
    drop = set(_left_out(job, streams=streams))
    changed: dict[str, bytes] = {}
    append: dict[str, Segments] = {}
    model = msgspec.json.encode(job.route.upstream_model)  # orjson keeps 4 kB for it, as long as the stream lasts
    if body.value("model") != model:
        changed["model"] = model
    if job.n < request.n:
        changed["n"] = b"%d" % job.n
    if "image_config" in request.options and request.size is not None and "size" not in body.members:
        append["size"] = (msgspec.json.encode(request.size),)
    if request.operation is Operation.EDIT:
        _refuse_remote(job)
        given = "image" if request.via_generations else "images"
        if given != provider.edit_input and provider.edit_input in body.members:
            raise ProxyError(
                Failure.UNSUPPORTED_PARAMETER,
                f"Send the input images as {given} only.",
                param=provider.edit_input,
            )
        if given != provider.edit_input or any(isinstance(image, Spooled) for image in request.images):
            drop.add(given)
            append[provider.edit_input] = _array(_translated(job, body))
        mask = body.members.get("mask")
        masked = mask is not None and not body.raw.startswith(b"null", mask.value)
        if mask is not None and masked and (given != provider.edit_input or isinstance(request.mask, Spooled)):
            drop.add("mask")
            append["mask"] = _mask(job, body, mask)
    pieces = body.pieces(replace=changed, drop=drop & body.members.keys())
    return _extended(pieces, append) if append else pieces


def _extended(body: Pieces, members: Mapping[str, Segments]) -> Segments:
    """A JSON object, which is not empty, with more members at its end."""
    *before, last = body
    segments: list[Segment] = [*before, memoryview(last)[:-1]]
    for name, value in members.items():
        segments += (b',"%b":' % name.encode(), *value)
    return (*segments, b"}")


def _translated(job: Job, body: JsonObject) -> Iterator[Segments]:
    """Convert the input images to what the provider takes: references, or strings."""
    if job.request.via_generations:
        yield from map(_reference, _strings(body, "image"))
    else:
        for index, (start, end) in enumerate(_spans(body, "images")):
            image = job.request.images[index] if index < len(job.request.images) else None
            yield _sent(job, body, image, Member(f"images[{index}]", start, start, end))


def _mask(job: Job, body: JsonObject, mask: Member) -> Segments:
    if job.request.via_generations:
        return _reference(memoryview(body.raw)[mask.value : mask.end])
    return _sent(job, body, job.request.mask, mask)


def _sent(job: Job, body: JsonObject, image: Input | None, where: Member) -> Segments:
    """One reference as the provider takes it. An uploaded file of ours goes with its bytes."""
    strings = job.provider.edit_input == "image"
    if isinstance(image, Spooled):
        url = (b'"data:%b;base64,' % image.media_type.encode(), as_base64(image), b'"')
        return url if strings else (b'{"image_url":', *url, b"}")
    if strings:
        return (_needed_url(body, where.value, where.key),)
    return (memoryview(body.raw)[where.value : where.end],)


def _refuse_remote(job: Job) -> None:
    """Refuse a remote image URL for a model that takes none, before the request is paid for."""
    if job.model.remote_image_urls:
        return
    request = job.request
    lone = len(request.images) == 1 and request.via_generations
    for index, image in enumerate(request.images):
        if isinstance(image, Remote):
            where = "image" if lone else f"image[{index}]" if request.via_generations else f"images[{index}].image_url"
            raise _remote(where)
    if isinstance(request.mask, Remote):
        raise _remote("mask" if request.via_generations else "mask.image_url")


def _remote(param: str) -> ProxyError:
    return ProxyError(
        Failure.UNSUPPORTED_PARAMETER,
        "This model takes no remote image URLs: send the image as a data: URL, or upload it as a file.",
        param=param,
    )


def _is_remote(image: memoryview) -> bool:
    """Whether a raw JSON string is an http or https URL; base64 has no colon."""
    return bytes(image[1:7]).lower().startswith((b"http:", b"https:"))


def _spans(body: JsonObject, name: str) -> tuple[tuple[int, int], ...]:
    """The spans of an array member's elements. Images have megabytes, and are copied once, into the request."""
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
    """Convert a raw JSON string of base64, or a URL, to OpenAI's `{"image_url": ...}`."""
    if bytes(image[1:6]).lower() == b"data:" or _is_remote(image):
        return b'{"image_url":', image, b"}"
    info = probe_base64(image[1:-1])
    kind = media_type(info.format) if info else "image/png"
    return b'{"image_url":"data:' + kind.encode() + b";base64,", image[1:], b"}"


def _url(body: JsonObject, start: int, where: str) -> memoryview:
    """The URL of the reference at `start`, as a raw JSON string; empty where there is none."""
    url = members(body, start, where=where).get("image_url")
    return memoryview(body.raw)[url.value : url.end] if url is not None else memoryview(b"")


def _needed_url(body: JsonObject, start: int, where: str) -> memoryview:
    """The same for hosts that take strings. They have no file ids."""
    url = _url(body, start, where)
    if bytes(url[:1]) != b'"':
        raise ProxyError(
            Failure.UNSUPPORTED_PARAMETER,
            "This provider takes images by image_url, not by file_id.",
            param=f"{where}.file_id",
        )
    return url


def _array(items: Iterator[Segments]) -> Segments:
    segments: list[Segment] = []
    for item in items:
        segments += (b",", *item)
    return (b"[", *segments[1:], b"]")


def _form_body(job: Job, parts: tuple[Part, ...], boundary: bytes, *, streams: bool) -> Iterator[Segment]:
    """The caller's parts in their order, with a new boundary. Files stay on disk until they are sent."""
    drop = _left_out(job, streams=streams)
    for part in parts:
        if part.name in (drop if part.filename is None else OURS):
            continue
        value: Segment = part.value
        if part.filename is None and part.name == "model":
            value = job.route.upstream_model.encode()
        if part.filename is None and part.name == "n" and job.n < job.request.n:
            value = b"%d" % job.n
        yield b"--" + boundary + b"\r\n" + _part_head(part)
        yield value
        yield b"\r\n"
    yield b"--" + boundary + b"--\r\n"


def _part_head(part: Part) -> bytes:
    head = f'Content-Disposition: form-data; name="{_quoted(part.name)}"'
    if part.filename is not None:
        head += f'; filename="{_quoted(part.filename)}"'
    if part.content_type and part.content_type.isprintable():  # a line break would start another header
        head += f"\r\nContent-Type: {part.content_type}"
    return head.encode() + b"\r\n\r\n"


def _quoted(value: str) -> str:
    """Escape a name or file name as WHATWG's multipart/form-data encoding does."""
    return value.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
