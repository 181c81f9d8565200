"""Conversion of images to other kinds of files: the only place where pictures of a request are decoded.

It blocks, for seconds with the largest, so the driver calls it in a worker thread. Its memory is bounded by MAX_PIXELS,
which is checked in the file's header before anything is decoded, times the driver's CONVERSIONS.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Final

from PIL import Image, ImageOps

from streamproxy.core.conversation import Picture
from streamproxy.core.images import Format, base64_slices, media_type, probe
from streamproxy.core.requests import Inline, Spooled
from streamproxy.errors import Failure, ProxyError

MAX_PIXELS: Final = 24_000_000
"""The largest picture that a known model makes has 18.9 million (Gemini's 1536x12288)."""

JPEG_QUALITY: Final = 95
"""The highest that Pillow's documentation recommends."""

OPAQUE: Final = 128
"""Least alpha of a mask's pixel that keeps the image's pixel."""

_SLICE: Final = 256 * 1024
"""Characters, a multiple of four."""

_SPACE: Final = b" \t\n\f\r"

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF")
"""Formats whose size `core.images` reads from the header."""


def convert(image: Inline | Spooled | Picture, form: str) -> Picture:
    """The image in a form of `Convert`. Raises ProxyError(UNREADABLE_IMAGE)."""
    try:
        raw = _bytes(image)
        info = probe(raw)
        if info is None or info.width * info.height > MAX_PIXELS:
            raise _unreadable()
        file = BytesIO()
        with Image.open(BytesIO(raw), formats=FORMATS) as opened:
            format = _FORMS[form](opened, file)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        raise _unreadable() from None
    return Picture(tuple(base64_slices(file.getbuffer())), media_type(format))


def _bytes(image: Inline | Spooled | Picture) -> bytes:
    match image:
        case Spooled(upload):
            return upload.read(0, upload.size)
        case Inline(base64):
            return _decoded(base64)
        case Picture(base64=pieces):
            return _decoded(memoryview(b"".join(pieces)))


def _decoded(text: memoryview) -> bytes:
    """Decode base64 slice by slice. One call would block the event loop even from a thread, since it keeps the GIL.

    Callers' base64 may lack its padding, and have line breaks.
    """
    dense = bytes(text).translate(None, _SPACE)
    slices = (dense[at : at + _SLICE] for at in range(0, len(dense), _SLICE))
    return b"".join(binascii.a2b_base64(piece + b"=" * (-len(piece) % 4)) for piece in slices)


def _png(image: Image.Image, file: BytesIO) -> Format:
    shown = image if image.mode in ("RGB", "RGBA", "L", "LA", "P", "1") else image.convert("RGB")
    # Level 1: a quarter of the time of the default for a tenth more bytes.
    shown.save(file, "PNG", compress_level=1)
    return "png"


def _jpeg(image: Image.Image, file: BytesIO) -> Format:
    """Encode as JPEG. It has no transparency, so transparent pixels become white."""
    shown = image if image.mode == "RGB" else image.convert("RGB")
    if image.has_transparency_data:
        shown = Image.new("RGB", image.size, "white")
        shown.paste(image, mask=image.convert("RGBA").getchannel("A"))
    shown.save(file, "JPEG", quality=JPEG_QUALITY, icc_profile=image.info.get("icc_profile"))
    return "jpeg"


def _white_mask(image: Image.Image, file: BytesIO) -> Format:
    return _png(_marks(image), file)


def _black_mask(image: Image.Image, file: BytesIO) -> Format:
    return _png(ImageOps.invert(_marks(image)), file)


def _marks(image: Image.Image) -> Image.Image:
    """The marks of a mask in white: its transparent pixels. A mask in black and white is returned as it is."""
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        white = alpha.point([255 if value < OPAQUE else 0 for value in range(256)])
    else:
        white = image.convert("L")
        colours = white.getcolors(2) or ()
        if {colour for _, colour in colours} != {0, 255}:
            white = Image.new("L", (1, 1))
    if white.getbbox() is None:
        message = "The mask has no transparent pixels: they mark where the image is to change."
        raise ProxyError(Failure.UNREADABLE_IMAGE, message)
    return white


def _unreadable() -> ProxyError:
    message = f"The image is not a readable PNG, JPEG, WebP or GIF, or has over {MAX_PIXELS} pixels."
    return ProxyError(Failure.UNREADABLE_IMAGE, message)


_FORMS: Final[Mapping[str, Callable[[Image.Image, BytesIO], Format]]] = {
    "png": _png,
    "jpeg": _jpeg,
    "white mask": _white_mask,
    "black mask": _black_mask,
}
