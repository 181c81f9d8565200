"""Input images in another form: what a wire wants that the caller's file is not. Done by Pillow, in worker threads.

A file of a few kB can claim to be gigapixels, so the size is read before a pixel is decoded. One image at a time is
decoded in a process: MAX_PIXELS of it take 64 MiB.
"""

from __future__ import annotations

import binascii
import io
from functools import partial
from typing import Final

import anyio
from anyio.to_thread import run_sync
from PIL import Image, ImageOps, UnidentifiedImageError

from streamproxy.core.conversation import Convert, base64_slices
from streamproxy.core.requests import Inline, Spooled
from streamproxy.errors import Failure, ProxyError

MAX_PIXELS: Final = 4096 * 4096
"""The largest picture that a model here makes or takes; four bytes a pixel."""

READ: Final = ("PNG", "JPEG", "WEBP", "GIF")
SLICE: Final = 1 << 20
"""Characters of base64."""

_SPACE: Final = b" \t\n\f\r"


class Converter:
    """Converts images, one at a time."""

    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(1)

    async def convert(self, step: Convert) -> Inline:
        """The image in the form asked for. Raises ProxyError(UNSUPPORTED_PARAMETER)."""
        return await run_sync(partial(converted, step), limiter=self._limiter)


def converted(step: Convert) -> Inline:
    """The same, here and now. Blocks."""
    try:
        with Image.open(io.BytesIO(_bytes(step.image)), formats=READ) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _unreadable(step, f"has over {MAX_PIXELS} pixels")
            made = _marked(image, step.marks) if step.marks else image
            out = io.BytesIO()
            kept = made.convert("RGB") if step.format == "jpeg" else made
            kept.save(out, step.format, **({"compress_level": 1} if step.format == "png" else {}))
    except (UnidentifiedImageError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _unreadable(step, "is no PNG, JPEG, WebP or GIF image, or far too large") from None
    except (OSError, SyntaxError, ValueError):  # what Pillow's decoders raise on broken files
        raise _unreadable(step, "is broken") from None
    return Inline(memoryview(b"".join(base64_slices(out.getbuffer()))), f"image/{step.format}")


def _marked(image: Image.Image, colour: str) -> Image.Image:
    """A mask in black and white, `colour` where it says that the image is to be edited."""
    if not image.has_transparency_data:
        said = image.convert("L")
        return ImageOps.invert(said) if colour == "black" else said
    whole = image if "A" in image.getbands() else image.convert("RGBA")
    kept = whole.getchannel("A")
    return kept if colour == "black" else ImageOps.invert(kept)


def _bytes(image: Inline | Spooled) -> bytes:
    if isinstance(image, Spooled):
        return image.upload.read(0, image.upload.size)
    text = bytes(image.base64).translate(None, _SPACE)
    pieces = (
        text[at : at + SLICE] for at in range(0, len(text), SLICE)
    )  # each holds the interpreter while it is decoded
    return b"".join(binascii.a2b_base64(piece + b"=" * (-len(piece) % 4)) for piece in pieces)


def _unreadable(step: Convert, what: str) -> ProxyError:
    message = f"The {step.param} {what}. This provider takes it in another form, into which it has to be converted."
    return ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param=step.param)
