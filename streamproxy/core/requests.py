"""A caller's request and a provider's request: plain values between surfaces, providers and upstream."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import msgspec

from streamproxy.core.events import Operation
from streamproxy.core.rawjson import JsonObject
from streamproxy.errors import Failure, ProxyError


class Upload(Protocol):
    """One uploaded file, spooled. Its size in bytes is known; its bytes are read when they are sent."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; blocking, so called from a worker thread."""
        ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """An upload as base64 text, encoded while it is sent."""

    upload: Upload

    @property
    def size(self) -> int:
        """Characters: four for each three bytes begun (RFC 4648, section 4)."""
        return (self.upload.size + 2) // 3 * 4


@dataclass(frozen=True, slots=True)
class Decoded:
    """The bytes of base64 text (padded, without white space), decoded while they are sent."""

    base64: memoryview = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes: three for each four characters, less the padding."""
        return len(self.base64) // 4 * 3 - bytes(self.base64[-2:]).count(b"=")


Segment = bytes | memoryview | Upload | Encoded | Decoded
"""A part of a request's body: bytes, or a source that makes them while they are sent."""


def size_of(segment: Segment) -> int:
    """Bytes of a segment on the wire."""
    return len(segment) if isinstance(segment, bytes | memoryview) else segment.size


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a multipart form, in the caller's order. `filename` None: a text field, `value` its UTF-8 bytes."""

    name: str
    value: bytes | Upload
    filename: str | None = None
    content_type: str | None = None


@dataclass(frozen=True, slots=True)
class Inline:
    """An input image as base64 text. `media_type` comes from its bytes. `in_body`: it is part of the caller's JSON."""

    base64: memoryview = field(repr=False)
    media_type: str
    in_body: bool = True


@dataclass(frozen=True, slots=True)
class Spooled:
    """An input image as an uploaded file. `media_type` comes from its bytes."""

    upload: Upload
    media_type: str


@dataclass(frozen=True, slots=True)
class Remote:
    """An input image at an http or https URL."""

    url: str = field(repr=False)  # a signed URL is a secret


@dataclass(frozen=True, slots=True)
class FileId:
    """An input image by the id of an uploaded file."""

    id: str


Input = Inline | Spooled | Remote | FileId
"""One input image or mask: where its bytes are, and their media type."""


def as_base64(image: Inline | Spooled) -> Segment:
    """The image as base64 text."""
    return image.base64 if isinstance(image, Inline) else Encoded(image.upload)


def as_bytes(image: Inline | Spooled) -> Segment:
    """The image as the file it is."""
    return Decoded(image.base64) if isinstance(image, Inline) else image.upload


class Variation(Enum):
    """How a variation is made: by the provider's own route, or as an edit without an instruction."""

    ROUTE = "variation"
    EDIT = "edit"


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """A caller's request, the same for every provider that might serve it.

    `model`: the name as the caller wrote it. `body`: as it was sent, a JSON object as raw bytes with member spans, or
    the parts of a form. `extra_headers`: not checked yet, since the checks depend on the provider. `via_generations`:
    an edit that came as a generation with an `image` member. `later`: its readers come later, and always read events.
    `variation`: an edit that came as a variation.
    A surface of another wire writes `body` itself; then `options` are wishes that have no member in it, `unheard` the
    caller's members that no provider is asked for, and `places` says where the caller's body has an image.
    `fallbacks`: other models, in order; None where the caller says nothing of them. `fallback_after_charge`: also after
    a failure that may have been charged. `names_model`: its results say which model made them: there is a choice.
    """

    operation: Operation
    model: str
    prompt: str = field(repr=False)
    n: int
    stream: bool
    partial_images: int | None
    size: str | None
    quality: str | None
    background: str | None
    output_format: str | None
    response_format: str | None
    images: tuple[Input, ...]
    mask: Input | None
    extra_headers: object = field(repr=False)
    body: JsonObject | tuple[Part, ...] = field(repr=False)
    via_generations: bool = False
    later: bool = False
    variation: Variation | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    unheard: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] | None = None
    fallback_after_charge: bool = False
    names_model: bool = False
    places: Mapping[str, str] = field(default_factory=dict)

    def told(self, param: str) -> str:
        """A member of the images API's body, like `images[0].file_id`, as the caller's own body has it."""
        image, dot, rest = param.partition(".")
        place = self.places.get(image, image)
        return f"{place}{dot}{rest}" if place == image or image == "mask" else place

    @property
    def as_events(self) -> bool:
        """Whether the result is read as events. Without `stream` the model is asked for one whole answer."""
        return self.stream or self.later

    @property
    def given(self) -> frozenset[str]:
        """Names of the members that the body has."""
        if isinstance(self.body, JsonObject):
            return frozenset(self.body.members)
        return frozenset(part.name for part in self.body)

    def option(self, name: str) -> object:
        """A member without a field of its own: decoded JSON, or a form's text. None where it is absent or null."""
        if name in self.options:
            return self.options[name]
        if isinstance(self.body, JsonObject):
            return self.body.decode(name)
        values = (part.value for part in self.body if part.name == name and part.filename is None)
        value = next(values, None)
        return value.decode() if isinstance(value, bytes) else None


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """One request to a provider. The driver adds the credential and the caller's headers.

    `headers`: in order, names lower-case. The body is sent segment by segment with a Content-Length.
    """

    method: str
    url: str
    headers: tuple[tuple[str, str], ...] = ()
    body: tuple[Segment, ...] = field(default=(), repr=False)

    @property
    def content_length(self) -> int:
        """Bytes of the whole body."""
        return sum(map(size_of, self.body))


class Embedded:
    """An image inside a JSON value: a string of `prefix` and the image's base64.

    Not a dataclass, because msgspec would encode it as an object. Raises ProxyError(UNSUPPORTED_PARAMETER) for an image
    without its bytes: a URL or a file id.
    """

    __slots__ = ("prefix", "segment")

    def __init__(self, image: Input, *, data_url: bool = False) -> None:
        if not isinstance(image, Inline | Spooled):
            raise ProxyError(
                Failure.UNSUPPORTED_PARAMETER,
                "This provider takes input images only with their bytes: send a data: URL, or upload the file.",
                param="image",
            )
        self.prefix = f"data:{image.media_type};base64,".encode() if data_url else b""
        self.segment = as_base64(image)


def url_of(image: Input) -> object:
    """An input image as a URL inside a JSON value: its own, or one that holds the image."""
    return image.url if isinstance(image, Remote) else Embedded(image, data_url=True)


def json_segments(value: object, token: str) -> tuple[Segment, ...]:
    """`value` as JSON, with each Embedded image as a segment of its own.

    `token`: random hexadecimal digits that mark the images' places. A caller's text cannot contain them.
    """
    images: list[Embedded] = []

    def mark(found: object) -> str:
        if not isinstance(found, Embedded):
            raise TypeError(f"{type(found).__name__} has no JSON form")
        images.append(found)
        return f"{token}-{len(images) - 1}"

    raw = msgspec.json.encode(value, enc_hook=mark)
    if not images:
        return (raw,)
    before, *rest = re.split(rb'"%b-([0-9]+)"' % token.encode(), raw)
    segments: list[Segment] = [before]
    for number, text in zip(rest[::2], rest[1::2], strict=True):
        image = images[int(number)]
        segments += (b'"' + image.prefix, image.segment, b'"' + text)
    return tuple(segments)


@dataclass(frozen=True, slots=True)
class Head:
    """A provider's response head: status and headers in order. Names in `items` are lower-case."""

    status: int
    items: tuple[tuple[str, str], ...]

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers by name; of equal names the last counts."""
        return dict(self.items)

    @property
    def media_type(self) -> str:
        """The content type without its parameters, lower-case; "" when there is none."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()
