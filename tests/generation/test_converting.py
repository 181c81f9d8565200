"""Masks and other images in another form: pixel by pixel, and what cannot be read."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable
from typing import Literal

import pytest
from PIL import Image

from streamproxy.core.conversation import Convert
from streamproxy.core.requests import Inline, Spooled
from streamproxy.errors import Failure, ProxyError
from streamproxy.generation.converting import MAX_PIXELS, Converter, converted
from tests.support.proxy import no_leaks

Marks = Literal["", "white", "black"]
KEEP, EDIT = (9, 9, 9, 255), (9, 9, 9, 0)


def file(image: Image.Image, format: str = "png") -> bytes:
    out = io.BytesIO()
    image.save(out, format)
    return out.getvalue()


def inline(data: bytes) -> Inline:
    return Inline(memoryview(base64.b64encode(data)), "image/png")


def opened(found: Inline) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(found.base64)))
    image.load()
    return image


def openai_mask() -> Image.Image:
    image = Image.new("RGBA", (2, 1))
    image.putpixel((0, 0), KEEP)
    image.putpixel((1, 0), EDIT)
    return image


@pytest.mark.parametrize(("marks", "pixels"), [("white", b"\x00\xff"), ("black", b"\xff\x00")])
@pytest.mark.parametrize("format", ["png", "webp"])
def test_a_mask_by_its_transparency(marks: Marks, pixels: bytes, format: str) -> None:
    mask = file(openai_mask(), format) if format == "png" else _lossless(openai_mask())
    assert opened(converted(Convert(inline(mask), marks=marks))).tobytes() == pixels


@pytest.mark.parametrize(("marks", "pixels"), [("white", b"\x00\xff"), ("black", b"\xff\x00")])
def test_a_mask_in_black_and_white(marks: Marks, pixels: bytes) -> None:
    mask = Image.frombytes("L", (2, 1), b"\x00\xff").convert("RGB")
    assert opened(converted(Convert(inline(file(mask)), marks=marks))).tobytes() == pixels


@pytest.mark.parametrize("target", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("source", ["png", "webp", "gif"])
def test_another_format(source: str, target: Literal["png", "jpeg", "webp"]) -> None:
    found = converted(Convert(inline(file(Image.new("RGB", (8, 4), "red"), source)), format=target))
    image = opened(found)
    assert (image.format, image.size, found.media_type) == (target.upper(), (8, 4), f"image/{target}")


def _lossless(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "webp", lossless=True, exact=True)
    return out.getvalue()


def _claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says to be that large."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    head = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + head + struct.pack(">I", 99) + b"IDAT" + zlib.compress(b"")


@pytest.mark.parametrize(
    "data",
    [b"", b"GIF89a", b"text", file(openai_mask())[:50], _claims(20_000, 20_000)],
    ids=["empty", "cut", "text", "broken", "huge"],
)
def test_what_cannot_be_read(data: bytes) -> None:
    with pytest.raises(ProxyError) as raised:
        converted(Convert(inline(data), marks="white", param="mask"))
    assert (raised.value.failure, raised.value.param) == (Failure.UNSUPPORTED_PARAMETER, "mask")
    assert not raised.value.charged


@pytest.mark.parametrize(("width", "said"), [(4097, "pixels"), (4096, "broken")])
def test_the_size_is_known_before_a_pixel_is_decoded(width: int, said: str) -> None:
    with pytest.raises(ProxyError) as raised:
        converted(Convert(inline(_claims(width, MAX_PIXELS // 4096))))
    assert said in raised.value.message


class Held:
    """An upload."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


@pytest.mark.anyio
async def test_an_upload_is_converted_in_a_thread() -> None:
    async with no_leaks():
        step = Convert(Spooled(Held(file(openai_mask())), "image/png"), marks="white")
        assert opened(await Converter().convert(step)).tobytes() == b"\x00\xff"


@pytest.mark.parametrize("spoil", [lambda text: text.rstrip(b"="), lambda text: b" ".join((text[:9], text[9:]))])
def test_base64_as_callers_write_it(spoil: Callable[[bytes], bytes]) -> None:
    data = file(Image.new("RGB", (5, 1), "red"))
    text = spoil(base64.b64encode(data + bytes(1 + -len(data) % 3)))
    assert opened(converted(Convert(Inline(memoryview(text), "image/png")))).size == (5, 1)
