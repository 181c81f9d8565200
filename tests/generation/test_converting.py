"""An image as another kind of file: what stays, what is refused, and that the event loop goes on meanwhile."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO

import anyio
import anyio.lowlevel
import pytest
from PIL import AvifImagePlugin, Image

from streamproxy.core.conversation import (
    Conversation,
    Convert,
    Picture,
    Tolerated,
    converted,
    mask,
)
from streamproxy.core.images import base64_slices
from streamproxy.core.requests import Inline, Spooled
from streamproxy.errors import Failure, ProxyError
from streamproxy.generation import converting
from streamproxy.generation.converting import MAX_PIXELS, convert
from tests.contract.scenarios import Scenario

BOUND = 60.0


def picture(image: Image.Image, format: str, **options: object) -> Picture:
    file = BytesIO()
    image.save(file, format, **options)
    return Picture(tuple(base64_slices(file.getvalue())), f"image/{format.lower()}")


def read(made: Picture) -> Image.Image:
    image = Image.open(BytesIO(base64.b64decode(b"".join(made.base64))))
    image.load()
    return image


COLOURS = Image.effect_noise((64, 48), 50).convert("RGB")


@pytest.mark.parametrize("source", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("form", ["png", "jpeg"])
def test_every_kind_becomes_every_other(source: str, form: str) -> None:
    made = convert(picture(COLOURS, source), form)
    image = read(made)
    assert (made.media_type, image.format, image.size) == (f"image/{form}", form.upper(), (64, 48))


def test_a_png_has_the_very_pixels() -> None:
    source = picture(COLOURS, "WEBP", lossless=True)
    assert read(convert(source, "png")).tobytes() == COLOURS.tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK", "I;16"])
def test_every_mode_has_a_form(mode: str) -> None:
    image = Image.new("L", (8, 8), 200).convert("I").convert("I;16") if mode == "I;16" else COLOURS.convert(mode)
    source = picture(image, "JPEG" if mode == "CMYK" else "PNG")
    assert read(convert(source, "png")).size == image.size
    assert read(convert(source, "jpeg")).mode == "RGB"


def test_what_was_transparent_is_white_in_a_jpeg() -> None:
    assert read(convert(picture(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG"), "jpeg")).getpixel((4, 4)) == (
        (255,) * 3
    )


def test_a_profile_of_colours_stays() -> None:
    source = picture(COLOURS, "JPEG", icc_profile=b"a profile")
    assert read(convert(source, "png")).info["icc_profile"] == b"a profile"
    source = picture(COLOURS.convert("RGBA"), "PNG", icc_profile=b"a profile")
    assert read(convert(source, "jpeg")).info["icc_profile"] == b"a profile"


@dataclass(frozen=True)
class File:
    """An upload that lies in memory."""

    content: bytes

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self, offset: int, length: int) -> bytes:
        return self.content[offset : offset + length]


@pytest.mark.parametrize("spooled", [False, True])
def test_a_mask_is_white_where_the_image_is_to_change(spooled: bool) -> None:
    mask = Image.new("RGBA", (4, 1), (9, 9, 9, 255))
    for at, alpha in ((0, 0), (1, 127), (2, 128)):
        mask.putpixel((at, 0), (9, 9, 9, alpha))
    text = b"".join(picture(mask, "PNG").base64)
    given = Spooled(File(base64.b64decode(text)), "image/png") if spooled else Inline(memoryview(text), "image/png")
    made = read(convert(given, "white mask"))
    assert (made.mode, list(made.tobytes())) == ("L", [255, 255, 0, 0])


@pytest.mark.parametrize(("form", "pixels"), [("white mask", b"\x00\xff"), ("black mask", b"\xff\x00")])
@pytest.mark.parametrize("transparent", [True, False])
def test_a_mask_by_its_transparency_or_its_colours(form: str, pixels: bytes, transparent: bool) -> None:
    given = Image.frombytes("L", (2, 1), b"\x00\xff").convert("RGB")
    if transparent:
        given = Image.frombytes("RGBA", (2, 1), b"\x09\x09\x09\xff\x09\x09\x09\x00")
    assert read(convert(picture(given, "PNG"), form)).tobytes() == pixels


@pytest.mark.parametrize("spoil", [lambda text: text.rstrip(b"="), lambda text: b" ".join((text[:9], text[9:]))])
def test_base64_as_callers_write_it(spoil: Callable[[bytes], bytes]) -> None:
    data = base64.b64decode(b"".join(picture(Image.new("RGB", (5, 1), "red"), "PNG").base64))
    text = spoil(base64.b64encode(data + bytes(1 + -len(data) % 3)))
    assert read(convert(Inline(memoryview(text), "image/png"), "png")).size == (5, 1)


def test_a_mask_without_transparency_is_refused() -> None:
    with pytest.raises(ProxyError, match="no transparent pixels") as caught:
        convert(picture(COLOURS, "PNG"), "white mask")
    assert caught.value.failure is Failure.UNREADABLE_IMAGE


def large() -> bytes:
    """A sound PNG with more pixels than are decoded."""
    return base64.b64decode(b"".join(picture(Image.new("1", (6000, MAX_PIXELS // 6000 + 1)), "PNG").base64))


WHOLE = base64.b64decode(b"".join(picture(COLOURS, "PNG").base64))


@pytest.mark.parametrize(
    "raw", [b"", b"no image", large(), WHOLE[:200], WHOLE[:60] + b"x" + WHOLE[61:], b"<svg/>"], ids=len
)
def test_what_cannot_be_read_is_refused(raw: bytes) -> None:
    with pytest.raises(ProxyError) as caught:
        convert(Picture(tuple(base64_slices(raw)), "image/png"), "jpeg")
    assert caught.value.failure is Failure.UNREADABLE_IMAGE


@pytest.mark.parametrize("form", ["png", "jpeg"])
def test_avif_is_read(form: str) -> None:
    assert read(convert(picture(COLOURS, "AVIF"), form)).size == (64, 48)


def test_a_large_avif_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converting, "MAX_PIXELS", 64 * 48 - 1)
    monkeypatch.setattr(AvifImagePlugin.AvifImageFile, "load", lambda *_: pytest.fail("it is decoded"))
    with pytest.raises(ProxyError, match="The image is AVIF"):
        convert(picture(COLOURS, "AVIF"), "png")


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"hevc"])
def test_heic_is_refused_by_its_name(brand: bytes) -> None:
    with pytest.raises(ProxyError, match="The image is HEIC"):
        convert(Picture(tuple(base64_slices(b"\0\0\0\x1cftyp" + brand + bytes(40))), "image/png"), "jpeg")


def test_text_that_is_no_base64_is_refused() -> None:
    with pytest.raises(ProxyError):
        convert(Picture((b"iVBORw0KGgo==A",), "image/png"), "jpeg")


def ended(conversation: Conversation[Picture] | Conversation[Inline | None], reply: object) -> object:
    """What a conversation of one Convert ends in, and whether it told of a fault."""
    step = next(conversation)
    assert isinstance(step, Convert)
    try:
        step = conversation.throw(reply) if isinstance(reply, ProxyError) else conversation.send(reply)
        assert isinstance(step, Tolerated)
        next(conversation)
    except StopIteration as end:
        return end.value
    raise AssertionError("one step too many")


def test_a_result_that_cannot_be_converted_stays() -> None:
    source = picture(COLOURS, "JPEG")
    assert ended(converted(source, "png"), ProxyError(Failure.UNREADABLE_IMAGE, "no")) is source
    other = replace(source, media_type="image/png")
    assert ended(converted(source, "png"), other) is other


def test_a_result_that_has_the_form_is_left_alone() -> None:
    source = picture(COLOURS, "JPEG")
    with pytest.raises(StopIteration) as end:
        next(converted(source, "jpeg"))
    assert end.value.value is source


def test_a_mask_that_cannot_be_converted_is_named() -> None:
    given = Inline(memoryview(b"".join(picture(COLOURS, "PNG").base64)), "image/png")
    with pytest.raises(ProxyError) as caught:
        ended(
            mask(Scenario("fal", "one", images=(given,), mask=given).job, "white"),
            ProxyError(Failure.UNREADABLE_IMAGE, "no"),
        )
    assert caught.value.param == "mask"


@pytest.mark.anyio
async def test_the_event_loop_goes_on_meanwhile() -> None:
    source = picture(Image.effect_noise((2048, 2048), 40).convert("RGB"), "JPEG")
    turns = 0
    with anyio.fail_after(BOUND):
        async with anyio.create_task_group() as tasks:

            async def count() -> None:
                nonlocal turns
                while True:
                    await anyio.lowlevel.checkpoint()
                    turns += 1

            tasks.start_soon(count)
            await anyio.to_thread.run_sync(convert, source, "png")
            tasks.cancel_scope.cancel()
    assert turns > 20
