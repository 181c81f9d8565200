"""Requests that are written anew, for OpenAI-shaped hosts whose row in the catalogue has `quirks`.

size           -> size, width and height, or an aspect ratio
input images   -> JSON with URLs, or a form with files, whichever the caller sent
other members  -> those that the host takes; the rest is named as not applied
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import quote

import msgspec

from streamproxy.core.catalogue import EVERYTHING, Quirks
from streamproxy.core.conversation import COMMON, Conversation, Job, inlined, pixels, post_json
from streamproxy.core.events import Operation
from streamproxy.core.requests import Inline, Segment, Spooled, UpstreamRequest, Variation, as_bytes, url_of
from streamproxy.core.schema import CHOICE
from streamproxy.core.sizes import nearest_ratio
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.refusals import moderated

ALWAYS: Final = frozenset({"model", "prompt", "n", "image", "images", "image[]", "images[]", "extra_headers", *CHOICE})
"""Members that every host is asked for in its own way, and the one that is addressed to this proxy."""

APART: Final = frozenset({"size", "mask", "stream", "partial_images"})
"""Members that are looked at one by one."""


def request(job: Job, quirks: Quirks) -> Conversation[UpstreamRequest]:
    """The request as the host takes it. Raises ProxyError(UNSUPPORTED_PARAMETER)."""
    asked, value = job.request, _members(job, quirks)
    _check_images(job, quirks)
    if not asked.images or quirks.edit == "json":
        shown = [url_of(image) for image in asked.images]
        if shown:
            value[quirks.image if len(shown) == 1 else quirks.several] = shown[0] if len(shown) == 1 else shown
        return post_json(job, url_for(job), value, (("accept", "application/json"),))
    files: list[tuple[str, Inline | Spooled]] = []
    for index, image in enumerate(asked.images):
        name = quirks.image if len(asked.images) == 1 else quirks.several
        files.append((name, (yield from inlined(image, job, f"images[{index}]"))))
    if asked.mask is not None and quirks.masks:
        files.append(("mask", (yield from inlined(asked.mask, job, "mask"))))
    boundary = f"streamproxy-{job.token}"
    headers = (("content-type", f"multipart/form-data; boundary={boundary}"), ("accept", "application/json"), *COMMON)
    return UpstreamRequest("POST", url_for(job), headers, tuple(_form(boundary.encode(), value, files)))


def not_applied(job: Job, quirks: Quirks) -> tuple[str, ...]:
    """The caller's members that the host is not asked for."""
    asked = job.request
    names = {name for name in asked.given - ALWAYS - APART if _translated(job, quirks, name) is None}
    if asked.size not in (None, "auto") and not _size(job, quirks):
        names.add("size")
    if "mask" in asked.given and not (quirks.masks and quirks.edit == "form"):
        names.add("mask")
    return tuple(sorted(names))


def blocked(job: Job, error: ProxyError) -> ProxyError:
    """The same error; moderation's, where its code is one of the host's for what is shown."""
    quirks, code = job.provider.quirks, error.details.code
    if quirks is None or code is None or code not in quirks.blocked:
        return error
    return moderated(job, error.message, code)


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


def _check_images(job: Job, quirks: Quirks) -> None:
    images = job.request.images
    if images and quirks.edit == "none":
        message = "This provider takes no input images."
        raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param="image")
    if len(images) > 1 and not quirks.several:
        raise ProxyError(Failure.UNSUPPORTED_PARAMETER, "This provider takes one input image.", param="images[1]")


def _members(job: Job, quirks: Quirks) -> dict[str, object]:
    asked = job.request
    value: dict[str, object] = {"model": job.route.upstream_model, "prompt": asked.prompt}
    if job.n > 1:
        value["n"] = job.n
    value |= _size(job, quirks)
    for name in sorted(asked.given - ALWAYS - APART):
        translated = _translated(job, quirks, name)
        if translated is not None:
            value[name] = translated
    return dict(quirks.adds) | dict(quirks.edit_adds if asked.images else ()) | value


def _size(job: Job, quirks: Quirks) -> dict[str, object]:
    size = job.request.size
    edges = pixels(size)
    match quirks.size:
        case "size":
            return {} if size in (None, "auto") else {"size": size}
        case "edges":
            return {} if edges is None else {"width": edges[0], "height": edges[1]}
        case "ratio":
            if edges is not None:
                return {"size": nearest_ratio(quirks.ratios, *edges)}
            return {"size": size} if size in quirks.ratios else {}


def _translated(job: Job, quirks: Quirks, name: str) -> object:
    """A member's value as the host says it, None where it does not take it."""
    if name in job.model.refuses:
        return None
    value = job.request.option(name)
    known = {caller: host for member, caller, host in quirks.values if member == name}
    if known:
        return known.get(str(value))
    if EVERYTHING not in quirks.takes and name not in quirks.takes:
        return None
    return value if not isinstance(job.request.body, tuple) else _typed(value)


def _typed(text: object) -> object:
    """A form's text as the number or truth that it is."""
    try:
        value = msgspec.json.decode(str(text))
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return text
    return value if isinstance(value, int | float | bool) else text


def _form(boundary: bytes, value: Mapping[str, object], files: list[tuple[str, Inline | Spooled]]) -> Iterator[Segment]:
    for name, member in value.items():
        text = member.encode() if isinstance(member, str) else msgspec.json.encode(member)
        yield b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (boundary, _name(name), text)
    for name, image in files:
        kind = image.media_type.encode()
        end = kind.removeprefix(b"image/")
        head = b'--%b\r\nContent-Disposition: form-data; name="%b"; filename="%b.%b"\r\nContent-Type: %b\r\n\r\n'
        yield head % (boundary, _name(name), _name(name), end, kind)
        yield as_bytes(image)
        yield b"\r\n"
    yield b"--" + boundary + b"--\r\n"


def _name(name: str) -> bytes:
    """As WHATWG's multipart/form-data encoding escapes names."""
    return name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A").encode()
