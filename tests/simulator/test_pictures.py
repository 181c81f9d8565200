"""Pictures have the asked size and format, the same prompt gives the same one, previews get sharper."""

from __future__ import annotations

import io
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageStat

from streamproxy.simulator.pictures import Format, Picture, draw, edit, encode, preview

SIZES = [(1, 1), (16, 3840), (64, 64), (333, 257), (1024, 1024), (3840, 2160)]


def seen(image: Image.Image) -> Image.Image:
    """The picture as an eye sees it: what is transparent is black."""
    return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA")).convert("RGB")


def edges(picture: Picture) -> float:
    """Sum of the squared differences of diagonal neighbours: what a blur takes away."""
    grey, (right, low) = seen(picture.image).convert("L"), (picture.width - 1, picture.height - 1)
    moved = ImageChops.difference(grey.crop((0, 0, right, low)), grey.crop((1, 1, right + 1, low + 1)))
    return float(ImageStat.Stat(moved).sum2[0])


def distance(one: Image.Image, two: Image.Image) -> float:
    """Mean difference of two pictures, summed over the colours."""
    return float(sum(ImageStat.Stat(ImageChops.difference(seen(one), seen(two))).mean))


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_files_open_with_the_asked_size_and_format(width: int, height: int, format: Format) -> None:
    with Image.open(io.BytesIO(encode(draw("a fox", width, height), format, 80))) as image:
        image.load()
        assert (image.size, image.format) == ((width, height), format.upper())


@settings(max_examples=20, deadline=None)
@given(st.text(max_size=50))
def test_a_prompt_decides_its_picture(prompt: str) -> None:
    first = encode(draw(prompt, 32, 24), "png")
    assert encode(draw(prompt, 32, 24), "png") == first
    assert encode(draw(prompt + "!", 32, 24), "png") != first


@pytest.mark.parametrize(("width", "height"), [(0, 5), (3841, 16), (3840, 3840), (-1, 1)])
def test_a_size_out_of_range_is_refused(width: int, height: int) -> None:
    with pytest.raises(ValueError, match="size"):
        draw("x", width, height)


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("size", [64, 512])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_each_preview_is_sharper_than_the_one_before(steps: int, size: int, transparent: bool) -> None:
    picture = draw("hills", size, size, transparent=transparent)
    row = [*(preview(picture, step, steps) for step in range(steps)), picture]
    assert {(each.width, each.height, each.image.mode) for each in row} == {(size, size, picture.image.mode)}
    assert all(edges(before) < edges(after) for before, after in pairwise(row))
    far = [distance(each.image, picture.image) for each in row]
    assert all(before > after for before, after in pairwise(far))


def test_a_preview_out_of_the_row_is_refused() -> None:
    with pytest.raises(ValueError, match="step"):
        preview(draw("x", 8, 8), 2, 2)


@pytest.mark.parametrize("format", ["png", "webp"])
def test_a_transparent_picture_is_empty_in_the_corner(format: Format) -> None:
    with Image.open(io.BytesIO(encode(draw("x", 96, 96, transparent=True), format))) as image:
        alpha = image.convert("RGBA").getchannel("A")
        assert (alpha.getpixel((0, 0)), alpha.getpixel((48, 48))) == (0, 255)


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_more_compression_quality_makes_larger_files(format: Format) -> None:
    picture = draw("x", 256, 256)
    assert len(encode(picture, format, 10)) < len(encode(picture, format, 90))


def test_an_edit_lies_between_its_source_and_its_prompt() -> None:
    source = Image.new("RGB", (50, 40), (250, 10, 10))
    edited = edit("sea", 64, 64, encode(Picture(source), "png"))
    red = source.resize((64, 64))
    drawn = draw("sea", 64, 64).image
    assert 0 < distance(edited.image, red) < distance(drawn, red)
    assert 0 < distance(edited.image, drawn) < distance(drawn, red)


def test_a_mask_keeps_what_is_opaque() -> None:
    source = encode(Picture(Image.new("RGB", (64, 64), (250, 10, 10))), "png")
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (32, 0, 64, 64))
    edited = edit("sea", 64, 64, source, mask=encode(Picture(mask), "png")).image
    assert edited.getpixel((5, 32)) == (250, 10, 10)
    assert edited.getpixel((60, 32)) == draw("sea", 64, 64).image.getpixel((60, 32))


@pytest.mark.parametrize("cut", [0, 8, 30, 60])
def test_an_input_that_does_not_decode_is_drawn(cut: int) -> None:
    source = encode(draw("source", 64, 64), "png")[:cut]
    assert encode(edit("sea", 64, 64, source), "png") == encode(draw("sea", 64, 64), "png")


def test_an_input_that_claims_gigapixels_is_drawn() -> None:
    png = bytearray(encode(draw("source", 8, 8), "png"))
    png[16:24] = (9000).to_bytes(4, "big") * 2
    assert encode(edit("sea", 64, 64, bytes(png)), "png") == encode(draw("sea", 64, 64), "png")
