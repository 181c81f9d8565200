"""The request of an image job, for every host of OpenAI's wire.

    request = yield from build(job, streams=True)
    not_applied(job, streams=True)                     names of the caller's members that it leaves out

Strategy: the host's `Quirks` and the model decide which of the caller's members change (`_Changes`). The caller's body
is then cut there and the pieces are joined, so a member that does not change keeps its bytes, and a body in which
nothing changes is sent as it came. Only an edit for a host that takes the other form, a form instead of JSON or JSON
instead of a form, is written member by member.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeGuard
from urllib.parse import quote

import msgspec

from streamproxy.core.catalogue import EVERYTHING
from streamproxy.core.conversation import COMMON, Conversation, Job, inlined, pixels
from streamproxy.core.events import Operation
from streamproxy.core.forms import is_image_part
from streamproxy.core.images import media_type, probe_base64
from streamproxy.core.rawjson import JsonObject, Member, Pieces, elements, members
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
    as_bytes,
    json_segments,
    size_of,
    url_of,
)
from streamproxy.core.schema import CHOICE, MAX_IMAGE_URL, MAX_IMAGES
from streamproxy.core.sizes import nearest_ratio
from streamproxy.errors import Failure, ProxyError

Segments = tuple[Segment, ...]

STREAMING: Final = frozenset({"stream", "partial_images"})
OURS: Final = frozenset({"extra_headers", *CHOICE})
"""Members that are meant for this proxy and never sent upstream."""

HONOURED: Final = frozenset({"response_format"})
"""Members that the proxy applies itself, whether they go upstream or not."""

IMAGES: Final = frozenset({"image", "images"})
"""Members of a JSON body that carry input images."""

APART: Final = frozenset({"model", "prompt", "n", "size", "mask"}) | IMAGES | STREAMING | OURS
"""Members to which `Quirks.takes` does not apply: every host is asked for them in its own way."""


@dataclass(frozen=True, slots=True)
class _Changes:
    """Differences between the caller's members and the host's, input images apart.

    `drop`: names that are left out. `put`: JSON values, in the place of the caller's or, without one, in addition.
    """

    drop: frozenset[str]
    put: Mapping[str, object]


def build(job: Job, *, streams: bool) -> Conversation[UpstreamRequest]:
    """The request as the host takes it. Raises ProxyError: UNSUPPORTED_PARAMETER, MODEL_NOT_FOUND."""
    _check_images(job)
    changes, body, edit = _changes(job, streams=streams), job.request.body, job.provider.quirks.edit
    if edit == "written" and _is_too_large_for_json(job):
        edit = "form"
    boundary = f"streamproxy-{job.token}"
    content_type = f"multipart/form-data; boundary={boundary}"
    content: Segments
    if isinstance(body, JsonObject) and job.request.images and edit == "form":
        content = tuple((yield from _form_from_json(job, body, changes, boundary.encode())))
    elif isinstance(body, JsonObject):
        content_type, content = "application/json", _json_from_json(job, body, changes)
    elif job.request.images and edit == "json":
        content_type, content = "application/json", _json_from_form(job, body, changes)
    else:
        content = tuple(_form_from_form(job, body, changes, boundary.encode()))
    accept = "text/event-stream, application/json" if streams else "application/json"
    return UpstreamRequest("POST", url_for(job), (("content-type", content_type), ("accept", accept), *COMMON), content)


def not_applied(job: Job, *, streams: bool) -> tuple[str, ...]:
    """The caller's members that the host is not asked for and that the proxy does not apply itself, sorted."""
    names = _untaken(job) | (set(job.model.refuses) - HONOURED)
    if job.request.stream and not streams:
        names.add("partial_images")
    return tuple(sorted(names & job.request.given))


def url_for(job: Job) -> str:
    """The address of the job's operation."""
    provider = job.provider
    path = provider.edits if job.request.operation is Operation.EDIT else provider.generations
    path = provider.variations if job.request.variation is Variation.ROUTE else path
    query = f"?{provider.query}" if provider.query else ""
    return provider.base_url + path.replace("{model}", segment(job.route.upstream_model)) + query


def segment(model: str) -> str:
    """Quote the caller-supplied model name as exactly one path segment."""
    if model in (".", ".."):
        raise ProxyError(Failure.MODEL_NOT_FOUND, "No provider serves a model of this name.", param="model")
    return quote(model, safe="")


# -------------------------------------------------------------------------------------------- members other than images


def _changes(job: Job, *, streams: bool) -> _Changes:
    asked, quirks = job.request, job.provider.quirks
    drop = _untaken(job) | OURS | set(job.model.refuses) | (set() if streams else STREAMING)
    put: dict[str, object] = {"model": job.route.upstream_model}
    if quirks.max_n == 1:
        drop.add("n")
    elif job.n < asked.n:
        put["n"] = job.n
    sized = _size(job)
    if quirks.size != "written" and "size" not in sized:
        drop.add("size")
    put |= sized
    for name in {member for member, _, _ in quirks.values} & asked.given - drop:
        put[name] = _translated(job, name)
    if EVERYTHING not in quirks.takes and not asked.images:
        drop |= IMAGES  # null
    for name, value in (*quirks.adds, *(quirks.edit_adds if asked.images else ())):
        if name not in asked.given - drop:
            put[name] = value
    return _Changes(frozenset(drop), put)


def _untaken(job: Job) -> set[str]:
    """The caller's members, or values of them, that the host does not take."""
    asked, quirks = job.request, job.provider.quirks
    mapped = {member for member, _, _ in quirks.values}
    names = {name for name in mapped & asked.given if _translated(job, name) is None}
    if EVERYTHING not in quirks.takes:
        others = asked.given - APART - mapped - set(quirks.takes)
        names |= {name for name in others if not is_image_part(name)}
    if quirks.size != "written" and asked.size not in (None, "auto") and not _size(job):
        names.add("size")
    if not quirks.masks:
        names.add("mask")
    return names


def _translated(job: Job, name: str) -> str | None:
    """The host's word for the value of a member in `Quirks.values`; None where it has none."""
    words = {caller: host for member, caller, host in job.provider.quirks.values if member == name}
    return words.get(str(job.request.option(name)))


def _size(job: Job) -> dict[str, object]:
    """The members that say the size to the host, as far as they differ from the caller's; {} for no size."""
    asked, quirks = job.request, job.provider.quirks
    edges = pixels(asked.size)
    match quirks.size:
        case "written":  # a chat's `image_config` has a size too, which is no member of the body
            absent = "image_config" in asked.options and "size" not in asked.given
            return {"size": asked.size} if absent and asked.size is not None else {}
        case "size":
            return {} if asked.size in (None, "auto") else {"size": asked.size}
        case "edges":
            both = {} if edges is None else {"width": edges[0], "height": edges[1]}
            return {name: edge for name, edge in both.items() if name not in asked.given}
        case "ratio":
            if edges is not None:
                return {"size": nearest_ratio(quirks.ratios, *edges)}
            return {"size": asked.size} if asked.size in quirks.ratios else {}


# --------------------------------------------------------------------------------------------------------- input images


def _check_images(job: Job) -> None:
    images, quirks = job.request.images, job.provider.quirks
    if images and quirks.edit == "none":
        message = "This provider takes no input images."
        raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param="image")
    most = quirks.max_images
    if len(images) > most:
        message = f"The most input images of one request to this provider: {most}."
        raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param=f"images[{most}]")


def _image_name(job: Job) -> str:
    """The host's own name for the member or part of an input image; "" where it takes OpenAI's."""
    quirks = job.provider.quirks
    return quirks.several or quirks.image if len(job.request.images) > 1 else quirks.image


def _image_member(job: Job) -> str:
    """The member of the input images in JSON."""
    return _image_name(job) or job.provider.edit_input


def _refuse_remote(job: Job) -> None:
    """Refuse a remote image URL for a model that takes none, before the request is paid for."""
    if job.model.remote_image_urls:
        return
    request = job.request
    for index, image in enumerate(request.images):
        if isinstance(image, Remote):
            raise _remote(place(request, index))
    if isinstance(request.mask, Remote):
        raise _remote(mask_place(request))


def place(request: ImageRequest, index: int) -> str:
    """The member of the caller's body that has the URL of an input image."""
    if not request.via_generations:
        return request.told(f"images[{index}].image_url")
    return "image" if len(request.images) == 1 else f"image[{index}]"


def mask_place(request: ImageRequest) -> str:
    """The member of the caller's body that has the URL of the mask."""
    return "mask" if request.via_generations else request.told("mask.image_url")


def _remote(param: str) -> ProxyError:
    return ProxyError(
        Failure.UNSUPPORTED_PARAMETER,
        "This model takes no remote image URLs: send the image as a data: URL, or upload it as a file. The setting "
        "fetch_images lets the proxy fetch them.",
        param=param,
    )


# ----------------------------------------------------------------------------------------- JSON, from the caller's JSON


def _json_from_json(job: Job, body: JsonObject, changes: _Changes) -> Segments:
    converted = _converted_images(job, body)
    drop = changes.drop | (IMAGES if converted else frozenset())
    converted |= _converted_mask(job, body, changes)
    drop |= converted.keys()
    values = {name: msgspec.json.encode(value) for name, value in changes.put.items()}
    kept = body.members.keys() - drop
    pieces = body.pieces(
        replace={name: value for name, value in values.items() if name in kept}, drop=drop & body.members.keys()
    )
    return _extended(pieces, {name: (value,) for name, value in values.items() if name not in kept} | converted)


def _extended(body: Pieces, members: Mapping[str, Segments]) -> Segments:
    """A JSON object, which is not empty, with more members at its end."""
    if not members:
        return body
    *before, last = body
    text = memoryview(last)
    segments: list[Segment] = [*before, text[: bytes(last).rindex(b"}")]]
    for name, value in members.items():
        segments += (b',"%b":' % name.encode(), *value)
    return (*segments, b"}")


def _converted_images(job: Job, body: JsonObject) -> dict[str, Segments]:
    """The member of the input images as the host takes them; {} where it takes them as they came."""
    if job.request.operation is not Operation.EDIT:
        return {}
    _refuse_remote(job)
    given, name = _given(job), _image_member(job)
    if given != name and (others := (IMAGES - {given}) & body.members.keys()):
        raise ProxyError(
            Failure.UNSUPPORTED_PARAMETER, f"Send the input images as {given} only.", param=", ".join(others)
        )
    if given == name and not any(_is_apart(image) for image in job.request.images):
        return {}
    images = list(_images(job, body))
    return {name: images[0] if _image_name(job) and len(images) == 1 else _array(images)}


def _converted_mask(job: Job, body: JsonObject, changes: _Changes) -> dict[str, Segments]:
    """The same for the mask."""
    request, mask = job.request, body.members.get("mask")
    renamed = _given(job) != _image_member(job)
    if request.operation is not Operation.EDIT or mask is None or "mask" in changes.drop:
        return {}
    if body.raw.startswith(b"null", mask.value) or not (renamed or _is_apart(request.mask)):
        return {}
    if request.via_generations:
        return {"mask": _from_string(job, request.mask, memoryview(body.raw)[mask.value : mask.end])}
    return {"mask": _from_reference(job, body, request.mask, mask)}


def _given(job: Job) -> str:
    """The member in which the caller's JSON has the input images: `image`, strings, or `images`, references."""
    return "image" if job.request.via_generations else "images"


def _takes_strings(job: Job) -> bool:
    return job.provider.edit_input == "image" or _image_name(job) != ""


def _images(job: Job, body: JsonObject) -> Iterator[Segments]:
    """Each input image as the host takes it: a reference, or a string."""
    if job.request.via_generations:
        for image, string in zip(job.request.images, _strings(body, "image"), strict=True):
            yield _from_string(job, image, string)
        return
    for index, (start, end) in enumerate(spans(body, "images")):
        shown = job.request.images[index] if index < len(job.request.images) else None
        yield _from_reference(job, body, shown, Member(f"images[{index}]", start, start, end))


def _from_reference(job: Job, body: JsonObject, image: Input | None, where: Member) -> Segments:
    """A reference, `{"image_url": ...}`, as the host takes it. Files of ours and fetched images go with their bytes."""
    if _is_apart(image):
        return _written(job, image)
    if _takes_strings(job):
        return (_needed_url(body, where.value, where.key),)
    return (memoryview(body.raw)[where.value : where.end],)


def _from_string(job: Job, image: Input | None, string: memoryview) -> Segments:
    """A raw JSON string, a URL or base64, as the host takes it."""
    if _is_apart(image):
        return _written(job, image)
    url: Segments = (string,)
    if bytes(string[1:6]).lower() != b"data:" and not _is_remote(string):
        info = probe_base64(string[1:-1])
        kind = media_type(info.format) if info else "image/png"
        url = (b'"data:' + kind.encode() + b";base64,", string[1:])
    return url if _takes_strings(job) else (b'{"image_url":', *url, b"}")


def _is_apart(image: Input | None) -> TypeGuard[Inline | Spooled]:
    """Whether its bytes are here, and not in the caller's body."""
    return isinstance(image, Spooled) or (isinstance(image, Inline) and not image.in_body)


def _written(job: Job, image: Inline | Spooled) -> Segments:
    url = (b'"' + _data_url(image), as_base64(image), b'"')
    return url if _takes_strings(job) else (b'{"image_url":', *url, b"}")


def _data_url(image: Inline | Spooled) -> bytes:
    """The beginning of an image's data URL."""
    return b"data:%b;base64," % image.media_type.encode()


def _is_too_large_for_json(job: Job) -> bool:
    """Whether an image is longer, as a data URL, than `image_url` may be. Files of a form may have 50 MB."""
    if job.provider.edit_input != "images":
        return False
    here = [image for image in (*job.request.images, job.request.mask) if isinstance(image, Inline | Spooled)]
    return any(len(_data_url(image)) + size_of(as_base64(image)) > MAX_IMAGE_URL for image in here)


def _is_remote(image: memoryview) -> bool:
    """Whether a raw JSON string is an http or https URL; base64 has no colon."""
    return bytes(image[1:7]).lower().startswith((b"http:", b"https:"))


def spans(body: JsonObject, name: str) -> tuple[tuple[int, int], ...]:
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
    return [view[start:end] for start, end in ([(member.value, member.end)] if lone else spans(body, name))]


def _needed_url(body: JsonObject, start: int, where: str) -> memoryview:
    """The URL of the reference at `start`, as a raw JSON string, for hosts that take strings: they have no file ids."""
    url = members(body, start, where=where).get("image_url")
    if url is None or not body.raw.startswith(b'"', url.value):
        raise ProxyError(
            Failure.UNSUPPORTED_PARAMETER,
            "This provider takes images by image_url, not by file_id.",
            param=f"{where}.file_id",
        )
    return memoryview(body.raw)[url.value : url.end]


def _array(items: Iterable[Segments]) -> Segments:
    segments: list[Segment] = []
    for item in items:
        segments += (b",", *item)
    return (b"[", *segments[1:], b"]")


# ----------------------------------------------------------------------------------------- JSON, from the caller's form


def _json_from_form(job: Job, parts: tuple[Part, ...], changes: _Changes) -> Segments:
    names = dict.fromkeys(part.name for part in parts if part.filename is None and part.name not in changes.drop)
    values = {name: _typed(job.request.option(name)) for name in names}
    if "prompt" in values:
        values["prompt"] = job.request.prompt
    images = [url_of(image) for image in job.request.images]
    shown = {_image_member(job): images[0] if len(images) == 1 else images}
    return json_segments(values | dict(changes.put) | shown, job.token)


def _typed(text: object) -> object:
    """A form's text as the number or boolean that it is."""
    try:
        value = msgspec.json.decode(str(text))
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return text
    return value if isinstance(value, int | float | bool) else text


# --------------------------------------------------------------------------------------------------------------- a form


def _form_from_form(job: Job, parts: tuple[Part, ...], changes: _Changes, boundary: bytes) -> Iterator[Segment]:
    """The caller's parts in their order, with a new boundary. Files stay on disk until they are sent."""
    kept = job.request.given - changes.drop
    yield from _texts({name: value for name, value in changes.put.items() if name not in kept}, boundary)
    for part in parts:
        image = part.filename is not None and is_image_part(part.name)
        if part.name in changes.drop and not image:
            continue
        name = (_image_name(job) if image else "") or part.name
        yield b"--" + boundary + b"\r\n" + _part_head(name, part.filename, part.content_type)
        yield part.value if part.filename is not None or name not in changes.put else _text(changes.put[name])
        yield b"\r\n"
    yield b"--" + boundary + b"--\r\n"


def _form_from_json(job: Job, body: JsonObject, changes: _Changes, boundary: bytes) -> Conversation[Iterator[Segment]]:
    """The caller's members as texts, then the input images and the mask as files."""
    names = [name for name in body.members if name not in changes.drop | IMAGES | {"mask"}]
    values = {name: body.decode(name) for name in names} | dict(changes.put)
    name = _image_name(job) or ("image" if len(job.request.images) == 1 else "image[]")
    files = []
    for index, image in enumerate(job.request.images):
        files.append((name, (yield from inlined(image, job, place(job.request, index)))))
    if job.request.mask is not None and job.provider.quirks.masks:
        files.append(("mask", (yield from inlined(job.request.mask, job, mask_place(job.request)))))
    return _form(values, files, boundary)


def _form(
    values: Mapping[str, object], files: Iterable[tuple[str, Inline | Spooled]], boundary: bytes
) -> Iterator[Segment]:
    yield from _texts({name: value for name, value in values.items() if value is not None}, boundary)
    for name, image in files:
        filename = f"{name}.{image.media_type.removeprefix('image/')}"
        yield b"--" + boundary + b"\r\n" + _part_head(name, filename, image.media_type)
        yield as_bytes(image)
        yield b"\r\n"
    yield b"--" + boundary + b"--\r\n"


def _texts(values: Mapping[str, object], boundary: bytes) -> Iterator[Segment]:
    for name, value in values.items():
        yield b"--" + boundary + b"\r\n" + _part_head(name, None, None) + _text(value) + b"\r\n"


def _text(value: object) -> bytes:
    return value.encode() if isinstance(value, str) else msgspec.json.encode(value)


def _part_head(name: str, filename: str | None, content_type: str | None) -> bytes:
    head = f'Content-Disposition: form-data; name="{_quoted(name)}"'
    if filename is not None:
        head += f'; filename="{_quoted(filename)}"'
    if content_type and content_type.isprintable():  # a line break would start another header
        head += f"\r\nContent-Type: {content_type}"
    return head.encode() + b"\r\n\r\n"


def _quoted(value: str) -> str:
    """Escape a name or file name as WHATWG's multipart/form-data encoding does."""
    return value.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
