"""Pictures drawn from a prompt. The same words always give the same landscape.

The simulator's only module that imports Pillow. A picture is drawn at most 1024 px large and then resized once. Pillow
holds the interpreter lock while it draws and blurs, so each operation must be short: the event loop runs on while a
worker thread draws. All functions are synchronous.
"""

from __future__ import annotations

import base64
import binascii
import colorsys
import io
import math
import random
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Literal, TypeAlias

from PIL import Image, ImageChops, ImageDraw, ImageFilter, UnidentifiedImageError

Format: TypeAlias = Literal["png", "jpeg", "webp"]
Colour: TypeAlias = tuple[int, int, int]

# OpenAI's size rules: longest edge 3840, 8 294 400 pixels in total (3840x2160). Its lower bounds are left out, because
# small pictures make fast tests.
MAX_EDGE: Final = 3840
MAX_PIXELS: Final = 8_294_400
# The largest edge that is drawn. Larger pictures are resized.
WORK_EDGE: Final = 1024
PREVIEW_EDGE: Final = 256
# Blur radius of the first and the last preview, in pixels of PREVIEW_EDGE.
FIRST_BLUR: Final = 16.0
LAST_BLUR: Final = 1.5
# Film grain, of 255. It also makes a 1024x1024 PNG as large as providers' PNGs, 1 to 2 MB.
GRAIN: Final = 5
# zlib's fastest: level 6 takes four times as long for a tenth less.
PNG_LEVEL: Final = 1
# Share of the prompt's picture in an edited one.
TINT: Final = 0.4


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn picture, RGB or RGBA."""

    image: Image.Image

    @property
    def width(self) -> int:
        return self.image.width

    @property
    def height(self) -> int:
        return self.image.height


def draw(prompt: str, width: int, height: int, *, transparent: bool = False) -> Picture:
    """The landscape of a prompt. `transparent`: a round picture on a transparent background.

    Raises ValueError for a size outside 1..MAX_EDGE or above MAX_PIXELS.
    """
    if not (0 < width <= MAX_EDGE and 0 < height <= MAX_EDGE and width * height <= MAX_PIXELS):
        raise ValueError("size out of range")
    scale = min(1.0, WORK_EDGE / max(width, height))
    wide, high = max(1, round(width * scale)), max(1, round(height * scale))
    chance = random.Random(sha256(prompt.encode("utf-8", "surrogatepass")).digest())
    image = _sky(chance, wide, high)
    if transparent:
        disc = Image.new("L", (wide * 2, high * 2))
        ImageDraw.Draw(disc).ellipse((wide * 0.08, high * 0.08, wide * 1.92, high * 1.92), fill=255)
        image.putalpha(disc.resize((wide, high), Image.Resampling.BOX))
    return Picture(_resized(image, width, height))


def edit(
    prompt: str, width: int, height: int, source: bytes, *, mask: bytes | None = None, transparent: bool = False
) -> Picture:
    """`source` tinted with the prompt's landscape; with a `mask`, replaced by it where the mask is transparent.

    In a mask without transparency, white is the part to replace. Where `source` is not a readable picture, the result
    is that of `draw`. Raises ValueError as `draw`.
    """
    drawn = draw(prompt, width, height, transparent=transparent)
    below = _decoded(source, width, height)
    if below is None:
        return drawn
    above = drawn.image.convert("RGBA")
    keep = None if mask is None else _decoded(mask, width, height)
    mixed = Image.blend(below, above, TINT) if keep is None else Image.composite(below, above, _kept(keep))
    return Picture(mixed if transparent else mixed.convert("RGB"))


def inverted(mask: bytes) -> bytes:
    """A mask in black and white with the two exchanged. Raises ValueError for no picture."""
    decoded = _decoded(mask, 512, 512)
    if decoded is None:
        raise ValueError("the mask is no picture")
    return encode(Picture(ImageChops.invert(decoded.convert("L"))), "png")


def _kept(mask: Image.Image) -> Image.Image:
    """A mask in which 255 keeps the source."""
    alpha = mask.getchannel("A")
    return alpha if alpha.getextrema()[0] != 255 else ImageChops.invert(mask.convert("L"))


def preview(picture: Picture, step: int, steps: int) -> Picture:
    """Preview `step` (from 0) of `steps`: the whole picture at full size, sharper with each step."""
    if not 0 <= step < steps:
        raise ValueError("step out of range")
    radius = FIRST_BLUR * (LAST_BLUR / FIRST_BLUR) ** (step / max(steps - 1, 1))
    scale = min(1.0, PREVIEW_EDGE / max(picture.width, picture.height))
    mode = picture.image.mode
    # RGBa: with premultiplied alpha, the colour of transparent pixels does not bleed into the edge.
    small = picture.image.convert("RGBa") if mode == "RGBA" else picture.image
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    # A picture below PREVIEW_EDGE is blurred by the same share of itself.
    blur = ImageFilter.GaussianBlur(radius * max(size) / PREVIEW_EDGE)
    small = small.resize(size, Image.Resampling.BOX).filter(blur).convert(mode)
    return Picture(_resized(small, picture.width, picture.height))


def encode(picture: Picture, format: Format, compression: int = 100) -> bytes:
    """The picture as a file. `compression`: OpenAI's output_compression, 0 to 100 (best quality), not for png."""
    out = io.BytesIO()
    match format:
        case "png":
            picture.image.save(out, "PNG", compress_level=PNG_LEVEL)
        case "jpeg":
            # 95 is Pillow's documented maximum: above, JPEG grows without looking better.
            picture.image.convert("RGB").save(out, "JPEG", quality=min(compression, 95))
        case "webp":
            # method 0 is the fastest of 0..6.
            picture.image.save(out, "WEBP", quality=compression, method=0)
    return out.getvalue()


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


def _decoded(data: bytes, width: int, height: int) -> Image.Image | None:
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            # A file of a few kB can have gigapixels, so its size is checked before any pixel is decoded.
            if image.width * image.height > MAX_PIXELS * 4:
                return None
            return image.convert("RGBA").resize((width, height), Image.Resampling.BICUBIC)
    except (UnidentifiedImageError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
    except (OSError, SyntaxError, ValueError):  # raised by Pillow's decoders for broken files
        return None


def _colour(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _mixed(near: Colour, far: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(near, far, strict=True))
    return red, green, blue


def _sky(chance: random.Random, width: int, height: int) -> Image.Image:
    """Draw a sky, a sun with a glow, hazy hills, and grain."""
    hue = chance.uniform(0.5, 0.97)  # from teal over blue and violet to rose: no green skies
    warm = hue + chance.choice((0.08, -0.1, 0.32))
    top, middle, haze = _colour(hue, 0.65, 0.45), _colour(warm, 0.45, 0.85), _colour(warm + 0.04, 0.25, 1.0)
    column = Image.new("RGB", (1, 4))
    for row, colour in enumerate((top, middle, haze, haze)):
        column.putpixel((0, row), colour)
    image = column.resize((width, height), Image.Resampling.BICUBIC)

    x, y = width * chance.uniform(0.2, 0.8), height * chance.uniform(0.2, 0.5)
    size = min(width, height) * chance.uniform(0.07, 0.16)
    light = _colour(warm + 0.05, 0.12, 1.0)
    for reach, strength in ((6.0, 0.55), (2.6, 0.5)):
        _glow(image, light, x, y, size * reach, strength)
    _disc(image, light, x, y, size)
    for _ in range(chance.randint(3, 7)):  # clouds, as flat, faint glows
        where = width * chance.random(), height * chance.uniform(0.05, 0.5)
        _glow(image, haze, *where, width * chance.uniform(0.1, 0.25), 0.35, flat=chance.uniform(0.12, 0.3))

    ground = _colour(hue + chance.uniform(-0.1, 0.1), 0.7, 0.16)
    hills = chance.randint(4, 6)
    for hill in range(hills):
        near = (hill + 1) / hills
        level = height * (0.5 + 0.42 * (hill / hills) ** 1.2)
        _hill(image, chance, _mixed(haze, ground, near**0.8), level, height * (0.04 + 0.07 * near))
    return _grained(image, chance)


def _glow(
    image: Image.Image, colour: Colour, x: float, y: float, reach: float, strength: float, *, flat: float = 1.0
) -> None:
    size = max(1, round(reach * 2)), max(1, round(reach * 2 * flat))
    # Pillow's radial gradient is 0 in the middle and 255 at the corners. Squared, it looks like light.
    fade = Image.radial_gradient("L").point([round(255 * strength * (1 - min(v / 180, 1)) ** 2) for v in range(256)])
    image.paste(colour, (round(x - size[0] / 2), round(y - size[1] / 2)), fade.resize(size, Image.Resampling.BICUBIC))


def _disc(image: Image.Image, colour: Colour, x: float, y: float, radius: float) -> None:
    size = max(2, round(radius * 2))
    mask = Image.new("L", (size * 3, size * 3))  # three times as large: the resize smooths the edge
    ImageDraw.Draw(mask).ellipse((0, 0, size * 3 - 1, size * 3 - 1), fill=255)
    image.paste(colour, (round(x - size / 2), round(y - size / 2)), mask.resize((size, size), Image.Resampling.BOX))


def _hill(image: Image.Image, chance: random.Random, colour: Colour, level: float, swing: float) -> None:
    waves = [(chance.uniform(0.6, 1.4) * 1.9**octave, chance.uniform(0, math.tau)) for octave in range(5)]
    width, height = image.size
    # Every second pixel is enough. The polygon is drawn at twice the height, so that its edge becomes smooth.
    line = [
        (x, 2 * (level + swing * sum(math.sin(math.tau * f * x / width + p) / f for f, p in waves)))
        for x in range(0, width + 2, 2)
    ]
    mask = Image.new("L", (width, height * 2))
    ImageDraw.Draw(mask).polygon([(0, height * 2), *line, (width + 2, height * 2)], fill=255)
    image.paste(colour, (0, 0), mask.resize((width, height), Image.Resampling.BOX))


def _grained(image: Image.Image, chance: random.Random) -> Image.Image:
    noise = Image.frombytes("L", image.size, chance.randbytes(image.width * image.height))
    grain = noise.point([value * 2 * GRAIN // 255 for value in range(256)])
    return ImageChops.add(image, Image.merge("RGB", (grain, grain, grain)), offset=-GRAIN)


def from_data_url(url: str) -> bytes:
    """The bytes of a base64 data URL; b"" for any other."""
    head, comma, text = url.partition(",")
    if not comma or not head.startswith("data:"):
        return b""
    try:
        return base64.b64decode(text)
    except (binascii.Error, ValueError):
        return b""
