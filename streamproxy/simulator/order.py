"""Requests of OpenAI's images API: JSON or multipart in, an Order or a refusal in OpenAI's words out. Pure.

One Struct holds every field with its limits (the Images types of openai-python 3.57). msgspec checks it strictly
for JSON, and converts the texts of a multipart form by the same types.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from streamproxy.errors import ErrorDetails, Failure, ProxyError
from streamproxy.simulator.multipart import parts
from streamproxy.simulator.pictures import MAX_EDGE, MAX_PIXELS, Format

PREFIX: Final = "sim/"
MAX_IMAGES: Final = 16
IMAGE_NAMES: Final = frozenset({"image", "image[]", "images", "images[]"})
VARIATION: Final = frozenset({"image", "model", "n", "response_format", "size", "user"})
# Fields that not every model takes, or only together with others.
CONDITIONAL: Final = ("style", "frame_count", "frame_duration_ms", "svg", "markup")
# `a[b][c]`, at most three levels: the form in which SDKs write objects into forms.
NESTED_NAME: Final = re.compile(r"\w+(\[\w+\]){1,2}")
NESTED: Final = re.compile(r"\w+")
SIZE: Final = re.compile(r"([1-9]\d{0,3})x([1-9]\d{0,3})")
DATA_URL: Final = re.compile(r"data:[^,]*;base64,", re.ASCII)
# msgspec ends its messages with " - at `$.n`" or " - at `$.images[0]`".
AT: Final = re.compile(r" - at `\$\.?(.*)`$")


class ImageRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input image in a JSON edit. Data URLs are decoded; other URLs and file ids count as no picture."""

    image_url: Annotated[str, Meta(max_length=20_971_520)] | None = None
    file_id: str | None = None


class Reasoning(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The reasoning of the model that writes an SVG."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None


class Svg(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model that writes an SVG."""

    model: str | None = None
    reasoning: Reasoning | None = None


Image: TypeAlias = ImageRef | str
Images: TypeAlias = Image | Annotated[list[Image], Meta(min_length=1, max_length=MAX_IMAGES)]


class Fields(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a request as they are sent; null means the default."""

    prompt: Annotated[str, Meta(min_length=1, max_length=32_000)]
    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=10)] | None = None
    size: str | None = None
    quality: Literal["low", "medium", "high", "xhigh", "max", "auto"] | None = None
    background: Literal["transparent", "opaque", "auto"] | None = None
    output_format: Format | None = None
    output_compression: Annotated[int, Meta(ge=0, le=100)] | None = None
    stream: bool | UnsetType | None = UNSET
    partial_images: Annotated[int, Meta(ge=0, le=3)] | UnsetType | None = UNSET
    response_format: Literal["url", "b64_json"] | UnsetType | None = UNSET
    safety_identifier: str | None = None
    # Accepted as by the provider, without an effect on a simulated picture.
    moderation: Literal["low", "auto"] | None = None
    complexity: Literal["low", "medium", "high"] | None = None
    style: Literal["vivid", "natural"] | None = None
    frame_count: Annotated[int, Meta(ge=2, le=16)] | None = None
    frame_duration_ms: Annotated[int, Meta(ge=1)] | None = None
    svg: Svg | None = None
    user: str | None = None


class EditFields(Fields, frozen=True, kw_only=True):
    """The fields of an edit."""

    image: Images | None = None
    images: Images | None = None
    mask: Image | None = None
    markup: Image | None = None
    input_fidelity: Literal["high", "low"] | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """One request, with its defaults resolved: pixels, never `auto`. `given`: the optional fields that were sent."""

    edit: bool
    model: str
    prompt: str = field(repr=False)
    n: int
    width: int
    height: int
    quality: str
    transparent: bool
    output_format: Format
    compression: int
    stream: bool
    partial_images: int
    url: bool
    safety_identifier: str | None
    given: frozenset[str]
    images: tuple[bytes, ...] = field(default=(), repr=False)
    mask: bytes | None = field(default=None, repr=False)


def refusal(message: str, param: str | None, code: str = "invalid_value") -> ProxyError:
    """A 400 in OpenAI's words."""
    return ProxyError(Failure.INVALID_REQUEST, message, param=param, details=ErrorDetails(code=code, status=400))


def unknown(name: str) -> ProxyError:
    """OpenAI's answer to an unknown parameter."""
    return refusal(f"Unknown parameter: '{name}'.", name, "unknown_parameter")


def read_variation(body: bytes, content_type: str) -> Order:
    """The order in the body of a variation: a form without a prompt, drawn as an edit."""
    if not content_type.lower().startswith("multipart/form-data"):
        raise refusal("Send a variation as multipart/form-data.", None, "unsupported_media_type")
    if surplus := {part.name for part in parts(body, content_type)} - VARIATION:
        raise unknown(min(surplus))
    return read_order(body, content_type, edit=True, prompt="a variation")


def read_order(body: bytes, content_type: str, *, edit: bool, prompt: str | None = None) -> Order:
    """The order in a request's body. Raises ProxyError with the status and words of a refusal.

    `prompt`: the prompt of a form without one.
    """
    shape = EditFields if edit else Fields
    images: list[bytes] = []
    mask: bytes | None = None
    raw: object
    form = edit and content_type.lower().startswith("multipart/form-data")
    if form:
        texts: dict[str, object] = {} if prompt is None else {"prompt": prompt}
        for part in parts(body, content_type):
            if part.name in IMAGE_NAMES:
                images.append(part.data)
            elif part.name == "mask":
                mask = part.data
            elif part.name == "markup":
                texts[part.name] = ""  # given, but like a picture by URL it is not drawn
            else:
                _put(texts, part.name, part.data.decode("utf-8", "replace"))
        raw = texts
    else:
        try:
            raw = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise refusal("We could not parse the JSON body of your request.", None, "invalid_json") from error
    if isinstance(raw, dict) and (surplus := set(raw) - set(shape.__struct_fields__)):
        raise unknown(min(surplus))
    try:
        fields = msgspec.convert(raw, shape, strict=not form)
    except msgspec.ValidationError as error:
        at = AT.search(str(error))
        raise refusal(AT.sub("", str(error)) + ".", at[1] if at else None) from error
    if isinstance(fields, EditFields):
        images += [_picture(image) for image in (*_listed(fields.image), *_listed(fields.images))]
        mask = _picture(fields.mask) if fields.mask is not None else mask
        if not images:
            raise refusal("Missing required parameter: 'image'.", "image", "missing_required_parameter")
        if len(images) > MAX_IMAGES:
            raise refusal(f"At most {MAX_IMAGES} images are allowed.", "image")
    return _resolved(fields, edit, tuple(images), mask)


def _put(texts: dict[str, object], name: str, text: str) -> None:
    """Put a form's text into nested members, by a name like `svg[reasoning][effort]`."""
    table = texts
    *outer, last = NESTED.findall(name) if NESTED_NAME.fullmatch(name) else [name]
    for key in outer:
        inner = table.setdefault(key, {})
        if not isinstance(inner, dict):
            raise refusal(f"Invalid type for '{key}'.", key)
        table = inner
    table[last] = text


def _resolved(fields: Fields, edit: bool, images: tuple[bytes, ...], mask: bytes | None) -> Order:
    output_format: Format = fields.output_format or "png"
    if fields.background == "transparent" and output_format == "jpeg":
        raise refusal("Transparent background is not supported for jpeg.", "background")
    width, height = _size(fields.size or "auto")
    given = {name for name in ("stream", "partial_images", "response_format") if getattr(fields, name) is not UNSET}
    given |= {name for name in CONDITIONAL if getattr(fields, name, None) is not None}
    return Order(
        edit=edit,
        model=(fields.model or "gpt-image").removeprefix(PREFIX),
        prompt=fields.prompt,
        n=fields.n or 1,
        width=width,
        height=height,
        quality="medium" if fields.quality in (None, "auto") else fields.quality,
        transparent=fields.background == "transparent",
        output_format=output_format,
        compression=100 if fields.output_compression is None else fields.output_compression,
        stream=fields.stream is True,
        partial_images=fields.partial_images or 0,
        url=fields.response_format == "url",
        safety_identifier=fields.safety_identifier,
        given=frozenset(given),
        images=images,
        mask=mask,
    )


def _size(size: str) -> tuple[int, int]:
    if size == "auto":
        return 1024, 1024
    found = SIZE.fullmatch(size)
    if found is not None:
        width, height = int(found[1]), int(found[2])
        if max(width, height) <= MAX_EDGE and width * height <= MAX_PIXELS:
            return width, height
    raise refusal("Invalid value for 'size'.", "size")


def _listed(images: Images | None) -> list[Image]:
    if images is None:
        return []
    return images if isinstance(images, list) else [images]


def _picture(image: Image) -> bytes:
    """The bytes of a data URL; b"" for any other. The edit is then drawn from its prompt."""
    url = image if isinstance(image, str) else image.image_url or ""
    found = DATA_URL.match(url)
    try:
        return base64.b64decode(url[found.end() :]) if found else b""
    except (binascii.Error, ValueError):
        return b""
