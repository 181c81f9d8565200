"""The cost of a generation in US dollars: the provider's token counts times the catalogue's prices.

Strategy: a wrong figure is worse than none. Counts that are missing, negative, not integers, absurd or all zero (the
filling for unknown usage, which clients require) give None, and so do tokens without a price. Arithmetic is decimal:
19 x 5 and 272 x 40 millionths are exactly 0.010975, as billed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

import msgspec

from streamproxy.core.sizes import MEGAPIXEL

MILLION: Final = Decimal(1_000_000)
MICRODOLLAR: Final = Decimal("0.000001")  # six places, as Eden AI's `cost` has them
# Ten pictures of 4096x4096 (2520 tokens each) from sixteen input images stay under a million tokens. More is a mistake
# or an attack: as a float, 10**400 is infinity, which JSON cannot carry.
MAX_TOKENS: Final = 1_000_000_000
MAX_IMAGES: Final = 1_000
MAX_SECONDS: Final = 86_400
MAX_USD: Final = 10_000


TYPICAL_TOKENS: Final = 1120  # of a picture of 1 megapixel: Gemini's at 1K; 1056 at OpenAI's, quality medium
TYPICAL_USD: Final = Decimal("0.04")  # the median of the catalogue's prices by picture


@dataclass(frozen=True, slots=True)
class Price:
    """One model's prices in USD. None: not known.

    By million tokens of each kind, by picture, or both. By size: `first_megapixel` of a picture and `per_megapixel` of
    the rest, each megapixel begun; without a price of its own the first costs the same, and input pictures cost
    `per_megapixel`. Or `per_second`.
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
    """The measures of a job that is not charged by tokens. None: not known.

    `pixels`: of each picture made; `inputs`: megapixels of the input pictures; `seconds`: the job's run time; `paid`:
    the provider's own figure in USD; `images`: the number made, where some have had their frames before.
    """

    pixels: tuple[int, ...] | None = None
    inputs: int | None = 0
    seconds: float | None = None
    paid: float | None = None
    images: int = 0


UNKNOWN: Final = Work(inputs=None)


def cost(usage: Mapping[str, object] | None, price: Price | None, images: int, work: Work = UNKNOWN) -> float | None:
    """The cost of `images` completed pictures in USD, to six places, or None where that is unknown. Never raises.

    `usage` has OpenAI's shape: `input_tokens`, `output_tokens`, and per direction optional `*_tokens_details` with
    `text_tokens` and `image_tokens`. Tokens without details are text on the way in (a generation has no other) and
    picture on the way out (OpenAI's `completed` event has no output details).
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


def typical(price: Price | None) -> Decimal:
    """The cost in USD of a picture of one megapixel; the median of all prices where this one does not say it."""
    if price is None:
        return TYPICAL_USD
    total = price.per_image or Decimal(0)
    if price.per_megapixel is not None:
        total += price.per_megapixel if price.first_megapixel is None else price.first_megapixel
    if price.image_output is not None:
        total += price.image_output * TYPICAL_TOKENS / MILLION
    return total or TYPICAL_USD


def amount(value: object) -> float | None:
    """The cost in a `cost` member, decoded or raw JSON: USD; None where it is no amount of money."""
    if isinstance(value, msgspec.Raw):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_USD:
        return None
    return float(value)


def why_unknown(price: Price | None) -> str:
    """The reason, as a sentence for the caller, why `cost` is None."""
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
    """Text and image tokens of one direction; (None, None) where the usage has none or is inconsistent."""
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
