"""Conversion of images to other kinds of files: the only place where pictures are decoded.

    convert(image, form)     a picture of a request, or a result
    shrink(frame, form)      an event's preview, small

Both block, for seconds with the largest pictures, so they run in worker threads. Memory is bounded by MAX_PIXELS, which
is checked in the file's header before anything is decoded, times the driver's CONVERSIONS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from io import BytesIO
from typing import Final

from PIL import Image, ImageOps

from streamproxy.core.conversation import Picture
from streamproxy.core.eventdata import put_together, taken_apart
from streamproxy.core.events import Frame
from streamproxy.core.images import NAMES, SNIFFED, Format, base64_slices, decoded, media_type, probe, sniff
from streamproxy.core.previews import PreviewForm
from streamproxy.core.requests import Inline, Spooled
from streamproxy.errors import Failure, ProxyError

MAX_PIXELS: Final = 24_000_000
"""The largest picture that a known model makes has 18.9 million (Gemini's 1536x12288)."""

JPEG_QUALITY: Final = 95
"""The highest that Pillow's documentation recommends."""

OPAQUE: Final = 128
"""Least alpha of a mask's pixel that keeps the image's pixel."""

_SPACE: Final = b" \t\n\f\r"

MEASURED: Final = ("PNG", "JPEG", "WEBP", "GIF")
"""Formats that `core.images` measures. AVIF is measured by Pillow, which reads its boxes before it decodes anything."""


def convert(image: Inline | Spooled | Picture, form: str) -> Picture:
    """The image in a form of `Convert`. Raises ProxyError(UNREADABLE_IMAGE)."""
    try:
        raw = _bytes(image)
    except ValueError:
        raise _unreadable(b"") from None
    file = BytesIO()
    try:
        with _opened(raw) as opened:
            format = _FORMS[form](opened, file)
    except (OSError, ValueError, SyntaxError, EOFError, RuntimeError, Image.DecompressionBombError):
        raise _unreadable(raw) from None
    return Picture(tuple(base64_slices(file.getbuffer())), media_type(format))


def shrink(frame: Frame, form: PreviewForm) -> Frame:
    """A preview in this form, and an event that says so.

    It stays as it is where it has the form, has over MAX_PIXELS, or cannot be read: what there is is shown.
    """
    file = BytesIO()
    try:
        members, base64 = taken_apart(frame.data)
        raw = _decoded(memoryview(b"".join(base64)))
        with _opened(raw) as opened:
            if opened.format == form.format.upper() and max(opened.size) <= form.edge:
                return frame
            size = _save_small(opened, file, form)
    except Exception:  # Pillow's readers raise whatever they trip over
        return frame
    said = {"size": f"{size[0]}x{size[1]}", "output_format": form.format}
    return replace(frame, data=put_together(members, base64_slices(file.getbuffer()), said))


def _save_small(image: Image.Image, file: BytesIO, form: PreviewForm) -> tuple[int, int]:
    """Save the image in this form; its size."""
    clear = image.has_transparency_data
    shown = image if image.mode == "RGB" and not clear else image.convert("RGBA" if clear else "RGB")
    shown.thumbnail((form.edge, form.edge), reducing_gap=2.0)
    if form.format == "jpeg":
        shown = _opaque(shown)
    shown.save(file, form.format, **_PREVIEW_OPTIONS[form.format])
    return shown.size


_PREVIEW_OPTIONS: Final[Mapping[str, Mapping[str, int]]] = {
    "webp": {"quality": 80, "method": 2},
    "jpeg": {"quality": 80},
    "avif": {"quality": 60, "speed": 9},
    "png": {"compress_level": 1},
}
"""A preview is seen for seconds. Of 512 pixels: WebP 7 ms (17 with Pillow's own method 4, for 3 % fewer bytes), JPEG 1,
AVIF 11 (26 with speed 8), PNG 18 (79 with level 6). Decoding a PNG of 1024 pixels takes 26 ms."""


def _opened(raw: bytes) -> Image.Image:
    """The image, not decoded yet. Raises ValueError where it has over MAX_PIXELS or another format."""
    if sniff(raw[:SNIFFED]) == "image/avif":
        image = Image.open(BytesIO(raw), formats=("AVIF",))
        pixels = image.width * image.height
    elif (info := probe(raw)) is not None:
        image, pixels = Image.open(BytesIO(raw), formats=MEASURED), info.width * info.height
    else:
        raise ValueError("its header says no size")
    if pixels > MAX_PIXELS:
        image.close()
        raise ValueError("it has too many pixels")
    return image


def _bytes(image: Inline | Spooled | Picture) -> bytes:
    match image:
        case Spooled(upload):
            return upload.read(0, upload.size)
        case Inline(base64):
            return _decoded(base64)
        case Picture(base64=pieces):
            return _decoded(memoryview(b"".join(pieces)))


def _decoded(text: memoryview) -> bytes:
    """Decode a caller's base64, which may have line breaks."""
    return decoded(bytes(text).translate(None, _SPACE))


def _png(image: Image.Image, file: BytesIO) -> Format:
    shown = image if image.mode in ("RGB", "RGBA", "L", "LA", "P", "1") else image.convert("RGB")
    # Level 1: a quarter of the time of the default for a tenth more bytes.
    shown.save(file, "PNG", compress_level=1)
    return "png"


def _jpeg(image: Image.Image, file: BytesIO) -> Format:
    shown = _opaque(image)
    shown.save(file, "JPEG", quality=JPEG_QUALITY, icc_profile=image.info.get("icc_profile"))
    return "jpeg"


def _opaque(image: Image.Image) -> Image.Image:
    """The image for JPEG, which has no transparency: transparent pixels become white."""
    shown = image if image.mode == "RGB" else image.convert("RGB")
    if image.has_transparency_data:
        shown = Image.new("RGB", image.size, "white")
        shown.paste(image, mask=image.convert("RGBA").getchannel("A"))
    return shown


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


def _unreadable(raw: bytes) -> ProxyError:
    kind = sniff(raw[:SNIFFED])
    known = f"The image is {NAMES[kind]}. It" if kind in NAMES else "The image"
    message = f"{known} is not a readable PNG, JPEG, WebP, GIF or AVIF, or has over {MAX_PIXELS} pixels."
    return ProxyError(Failure.UNREADABLE_IMAGE, message)


_FORMS: Final[Mapping[str, Callable[[Image.Image, BytesIO], Format]]] = {
    "png": _png,
    "jpeg": _jpeg,
    "white mask": _white_mask,
    "black mask": _black_mask,
}
