"""What a generation cost, in US dollars: the provider's token counts times the catalogue's prices.

Strategy: a figure that might be wrong is worse than none. Counts that are missing, negative, not integers, absurd or
all zero (which is how unknown usage is filled in for clients that require the object) give None, and so does a kind of
token that has no price. Decimal arithmetic: 19 x 5 and 272 x 40 millionths are 0.010975, as billed, nothing near it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from streamproxy.core.sizes import MEGAPIXEL

MILLION: Final = Decimal(1_000_000)
MICRODOLLAR: Final = Decimal("0.000001")  # six places, as Eden AI's `cost` has them
# Ten pictures of 4096x4096 (2520 tokens each) from sixteen input images stay under a million tokens. More is a mistake
# or an attack: as a float, 10**400 is infinity, which JSON cannot carry.
MAX_TOKENS: Final = 1_000_000_000
MAX_IMAGES: Final = 1_000
MAX_SECONDS: Final = 86_400


@dataclass(frozen=True, slots=True)
class Price:
    """One model's price list: USD per million tokens of each kind, and/or USD per picture. None: not known.

    Or USD by size: `first_megapixel` of a picture and `per_megapixel` of the rest, each megapixel that is begun; where
    the first has no price of its own it is as any other, and input pictures are charged as the rest. Or `per_second`.
    """

    text_input: Decimal | None = None
    image_input: Decimal | None = None
    text_output: Decimal | None = None
    image_output: Decimal | None = None
    per_image: Decimal | None = None
    first_megapixel: Decimal | None = None
    per_megapixel: Decimal | None = None
    per_second: Decimal | None = None

    @property
    def by_token(self) -> bool:
        """Whether tokens are charged at all; a model priced per picture alone needs no usage."""
        return any(
            rate is not None for rate in (self.text_input, self.image_input, self.text_output, self.image_output)
        )


@dataclass(frozen=True, slots=True)
class Work:
    """What a job is charged by where that is not tokens. None: not known.

    `pixels` of each picture made; `inputs`, megapixels of the input pictures; `seconds` that it ran; `paid`, USD where
    the provider says it.
    """

    pixels: tuple[int, ...] | None = None
    inputs: int | None = 0
    seconds: float | None = None
    paid: float | None = None


UNKNOWN: Final = Work(inputs=None)


def cost(usage: Mapping[str, object] | None, price: Price | None, images: int, work: Work = UNKNOWN) -> float | None:
    """The cost of `images` completed pictures in USD, to six places, or None where it cannot be known. Never raises.

    `usage` has OpenAI's shape: `input_tokens`, `output_tokens`, and per direction optional `*_tokens_details` with
    `text_tokens` and `image_tokens`. Tokens that the details leave unexplained are text on the way in (a generation
    has no other) and picture on the way out (OpenAI's `completed` event has no output details at all).
    """
    if price is None or not 0 <= images <= MAX_IMAGES:
        return None
    total = Decimal(0) if price.per_image is None else price.per_image * images
    if price.per_megapixel is not None or price.per_second is not None:
        measured = _work_cost(work, price)
        return None if measured is None else float((total + measured).quantize(MICRODOLLAR))
    if price.by_token:
        tokens = _token_cost(usage or {}, price)
        if tokens is None:
            return None
        total += tokens
    elif price.per_image is None:
        return None
    return float(total.quantize(MICRODOLLAR))


def why_unknown(price: Price | None) -> str:
    """Why `cost` gave None, in words for the caller."""
    if price is None:
        return "The catalogue has no price for this model."
    return "The provider's answer does not say what this model's price is counted by."


def _work_cost(work: Work, price: Price) -> Decimal | None:
    total = Decimal(0)
    if price.per_megapixel is not None:
        if work.pixels is None or work.inputs is None or not 0 <= work.inputs <= MAX_IMAGES:
            return None
        first = price.per_megapixel if price.first_megapixel is None else price.first_megapixel
        for pixels in work.pixels:
            begun = -(-pixels // MEGAPIXEL)
            total += first + price.per_megapixel * (begun - 1)
        total += price.per_megapixel * work.inputs
    if price.per_second is not None:
        if work.seconds is None or not 0 <= work.seconds <= MAX_SECONDS:
            return None
        total += price.per_second * Decimal(str(work.seconds))
    return total


def _token_cost(usage: Mapping[str, object], price: Price) -> Decimal | None:
    text_in, image_in = _kinds(usage, "input_tokens", rest_is_text=True)
    text_out, image_out = _kinds(usage, "output_tokens", rest_is_text=False)
    if text_in is None or image_in is None or text_out is None or image_out is None:
        return None
    if not text_in + image_in + text_out + image_out:
        return None  # zeros stand for "the provider did not say"
    # A price per picture covers the picture's own tokens.
    image_output = Decimal(0) if price.image_output is None and price.per_image is not None else price.image_output
    total = Decimal(0)
    for count, rate in (
        (text_in, price.text_input),
        (image_in, price.image_input),
        (text_out, price.text_output),
        (image_out, image_output),
    ):
        if count and rate is None:
            return None
        total += count * (rate or Decimal(0))
    return total / MILLION


def _kinds(usage: Mapping[str, object], key: str, *, rest_is_text: bool) -> tuple[int | None, int | None]:
    """Text and image tokens of one direction; (None, None) where the usage does not say or cannot be believed."""
    total = _count(usage.get(key))
    if total is None:
        return None, None
    details = usage.get(f"{key}_details")
    found = details if isinstance(details, Mapping) else {}
    text, image = _count(found.get("text_tokens") or 0), _count(found.get("image_tokens") or 0)
    if text is None or image is None or text + image > total:
        return None, None
    rest = total - text - image
    return (text + rest, image) if rest_is_text else (text, image + rest)


def _count(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_TOKENS:
        return None
    return value
