"""What one caller asks for, and what one provider is sent: plain values between surfaces, providers and upstream."""

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
    """One uploaded file, spooled: its size in bytes is known, its bytes stay where they are until they are sent."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; blocking, so called from a worker thread."""
        ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """An upload as base64 text, which is made while it is sent."""

    upload: Upload

    @property
    def size(self) -> int:
        """Characters: four for each three bytes begun (RFC 4648, section 4)."""
        return (self.upload.size + 2) // 3 * 4


@dataclass(frozen=True, slots=True)
class Decoded:
    """The bytes of base64 text, padded and without white space, which are decoded while they are sent."""

    base64: memoryview = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes: three for each four characters, less the padding."""
        return len(self.base64) // 4 * 3 - bytes(self.base64[-2:]).count(b"=")


Segment = bytes | memoryview | Upload | Encoded | Decoded
"""A run of a request's body: the bytes themselves, or what makes them while they are sent."""


def size_of(segment: Segment) -> int:
    """Bytes that a segment has on the wire."""
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
    """An input image as base64 text in the caller's JSON body. `media_type` is what its bytes say."""

    base64: memoryview = field(repr=False)
    media_type: str


@dataclass(frozen=True, slots=True)
class Spooled:
    """An input image as an uploaded file. `media_type` is what its bytes say."""

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
"""One input image or mask: where its bytes are, and what they are. The bytes are looked at once."""


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
    """What a caller wants, the same for every provider that might make it.

    `model` is the name as the caller wrote it. `body` is as it was sent: a JSON object as raw bytes with member spans,
    or the parts of a form. `extra_headers` are not judged yet: that depends on the provider. `via_generations`: an edit
    that came as a generation with an `image` member. `later`: its readers come later, and follow events in any case.
    `variation`: an edit that came as a variation.
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

    @property
    def as_events(self) -> bool:
        """Whether what is made is read as events; without `stream` the model is asked for one whole answer."""
        return self.stream or self.later

    @property
    def given(self) -> frozenset[str]:
        """Names of the members that the body has."""
        if isinstance(self.body, JsonObject):
            return frozenset(self.body.members)
        return frozenset(part.name for part in self.body)

    def option(self, name: str) -> object:
        """A member that no field holds, decoded; a form's text as it is. None where it is absent or null."""
        if isinstance(self.body, JsonObject):
            return self.body.decode(name)
        values = (part.value for part in self.body if part.name == name and part.filename is None)
        value = next(values, None)
        return value.decode() if isinstance(value, bytes) else None


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """One request to a provider but for its credential and the caller's headers, which the driver adds.

    `headers` are in order, names lower-case. The body is sent segment by segment with a Content-Length.
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

    Not a dataclass, which msgspec would encode as an object. Raises ProxyError(UNSUPPORTED_PARAMETER) where the image's
    bytes are elsewhere.
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


def json_segments(value: object, token: str) -> tuple[Segment, ...]:
    """`value` as JSON, with each Embedded image as a segment of its own.

    `token`: random hexadecimal digits. They mark the images' places, and a caller's text cannot hold them.
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
    """A provider's response head: status, and headers as they came. Names in `items` are lower-case."""

    status: int
    items: tuple[tuple[str, str], ...]

    @property
    def headers(self) -> Mapping[str, str]:
        """By name, the last of equal names winning."""
        return dict(self.items)

    @property
    def media_type(self) -> str:
        """The content type without its parameters, lower-case; "" when there is none."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()
