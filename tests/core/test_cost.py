"""core/cost: figures that providers billed come out to the last digit, and nothing odd ever gets a figure."""

from __future__ import annotations

import math
import statistics
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproxy.core.cost import (
    MAX_IMAGES,
    MAX_SECONDS,
    MAX_TOKENS,
    TYPICAL_USD,
    Price,
    Work,
    amount,
    cost,
    typical,
    why_unknown,
)
from streamproxy.settings.providers import read_catalogue

GPT_IMAGE_1 = Price(text_input=Decimal(5), image_input=Decimal(10), image_output=Decimal(40))
EVERY_KIND = Price(Decimal("1.5"), Decimal(2), Decimal("7.5"), Decimal(30))
PER_IMAGE = Price(per_image=Decimal("0.04"))
NOTHING_KNOWN = Price()
Usage = dict[str, object]


def usage(text: int = 0, image: int = 0, out: int = 0) -> Usage:
    details = {"text_tokens": text, "image_tokens": image}
    return {"input_tokens": text + image, "input_tokens_details": details, "output_tokens": out}


@pytest.mark.parametrize(
    ("counts", "price", "images", "usd"),
    [
        # The sample of Eden AI's guide, which has no details.
        ({"total_tokens": 291, "input_tokens": 19, "output_tokens": 272}, GPT_IMAGE_1, 1, 0.010975),
        (usage(text=50, out=1056), GPT_IMAGE_1, 1, 0.04249),
        (usage(text=10, image=194, out=1056), GPT_IMAGE_1, 1, 0.04423),
        # 83 in, of which the details explain ten: the rest is the prompt.
        (
            {"input_tokens": 83, "input_tokens_details": {"image_tokens": 10}, "output_tokens": 0},
            EVERY_KIND,
            1,
            0.00013,
        ),
        # Gemini's answer with words and a picture: 163 text tokens out, 1120 picture tokens.
        (
            {
                "input_tokens": 14,
                "output_tokens": 1283,
                "output_tokens_details": {"text_tokens": 163, "image_tokens": 1120},
            },
            Price(text_input=Decimal(2), text_output=Decimal(12), image_output=Decimal(120)),
            1,
            0.136384,
        ),
        # Details that count only the pictures: the rest of what came out is picture too, as without details.
        ({"input_tokens": 0, "output_tokens": 10, "output_tokens_details": {"image_tokens": 4}}, EVERY_KIND, 1, 0.0003),
        ({"input_tokens": 1, "input_tokens_details": None, "output_tokens": 0}, EVERY_KIND, 1, 0.000002),
        (
            {"input_tokens": 2, "input_tokens_details": {"text_tokens": None}, "output_tokens": 0},
            EVERY_KIND,
            1,
            0.000003,
        ),
        ({}, PER_IMAGE, 3, 0.12),
        ({"input_tokens": "many"}, PER_IMAGE, 1, 0.04),
        ({}, PER_IMAGE, 0, 0.0),
        # Prompt by token, picture by piece.
        (usage(text=1_000_000, out=7), Price(text_input=Decimal(1), per_image=Decimal(2)), 2, 5.0),
    ],
)
def test_known(counts: Usage, price: Price, images: int, usd: float) -> None:
    assert cost(counts, price, images) == usd


@pytest.mark.parametrize(
    ("counts", "price", "images"),
    [
        (usage(text=19, out=272), None, 1),
        (usage(text=19, out=272), NOTHING_KNOWN, 1),
        (None, GPT_IMAGE_1, 1),
        ({}, GPT_IMAGE_1, 1),
        (usage(), GPT_IMAGE_1, 1),  # zeros stand for "unknown"
        ({"input_tokens": 19}, GPT_IMAGE_1, 1),
        ({"output_tokens": 272}, GPT_IMAGE_1, 1),
        ({"input_tokens": "19", "output_tokens": 272}, GPT_IMAGE_1, 1),
        ({"input_tokens": 19.0, "output_tokens": 272}, GPT_IMAGE_1, 1),
        ({"input_tokens": True, "output_tokens": 272}, GPT_IMAGE_1, 1),
        ({"input_tokens": -1, "output_tokens": 272}, GPT_IMAGE_1, 1),
        ({"input_tokens": 1, "output_tokens": MAX_TOKENS + 1}, GPT_IMAGE_1, 1),
        ({"input_tokens": 1, "output_tokens": 10**400}, GPT_IMAGE_1, 1),
        ({"input_tokens": 5, "input_tokens_details": {"text_tokens": 6}, "output_tokens": 1}, GPT_IMAGE_1, 1),
        ({"input_tokens": 5, "input_tokens_details": {"text_tokens": -6}, "output_tokens": 1}, GPT_IMAGE_1, 1),
        ({"input_tokens": 5, "input_tokens_details": {"image_tokens": "5"}, "output_tokens": 1}, GPT_IMAGE_1, 1),
        # Words came out, and what they cost is not in the list.
        ({"input_tokens": 5, "output_tokens": 9, "output_tokens_details": {"text_tokens": 1}}, GPT_IMAGE_1, 1),
        (usage(image=1, out=1), Price(text_input=Decimal(1), image_output=Decimal(1)), 1),
        (usage(text=1, out=1), Price(text_input=Decimal(1)), 1),
        ({}, PER_IMAGE, -1),
        ({}, PER_IMAGE, MAX_IMAGES + 1),
    ],
)
def test_unknown(counts: Usage | None, price: Price | None, images: int) -> None:
    assert cost(counts, price, images) is None


rates = st.none() | st.decimals(0, 1000, places=3)
prices = st.builds(Price, rates, rates, rates, rates, rates)
odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(0, 5000) | st.floats() | st.sampled_from(["", "7", "-1"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text_tokens", "image_tokens"]), inner)
    ),
)
KEYS = ["input_tokens", "output_tokens", "input_tokens_details", "output_tokens_details", "total_tokens"]


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), odd), prices, st.integers(-1, 4) | st.integers())
def test_never_raises_and_says_only_what_json_can(counts: Usage, price: Price, images: int) -> None:
    found = cost(counts, price, images)
    assert found is None or (math.isfinite(found) and found >= 0)


tokens = st.integers(0, MAX_TOKENS // 4)


@settings(deadline=None)
@given(tokens, tokens, tokens, tokens, st.sampled_from(["text", "image", "out"]))
def test_more_tokens_never_cost_less(text: int, image: int, out: int, more: int, kind: str) -> None:
    counts = {"text": text, "image": image, "out": out}
    less = cost(usage(**counts), EVERY_KIND, 1)
    counts[kind] += more
    after = cost(usage(**counts), EVERY_KIND, 1)
    assert after is None or after >= (less or 0)


@settings(deadline=None)
@given(st.integers(0, MAX_IMAGES - 1))
def test_one_more_picture_costs_its_price(images: int) -> None:
    one_more, before = cost({}, PER_IMAGE, images + 1), cost({}, PER_IMAGE, images)
    assert one_more is not None
    assert before is not None
    assert one_more - before == pytest.approx(0.04)


BY_SIZE = Price(first_megapixel=Decimal("0.03"), per_megapixel=Decimal("0.015"))
SQUARE = 1024 * 1024


@pytest.mark.parametrize(
    ("price", "work", "usd"),
    [
        (BY_SIZE, Work(pixels=(SQUARE,)), 0.03),
        (BY_SIZE, Work(pixels=(SQUARE + 1,)), 0.045),
        (BY_SIZE, Work(pixels=(4 * SQUARE, 1)), 0.105),
        (BY_SIZE, Work(pixels=(SQUARE,), inputs=2), 0.06),
        (BY_SIZE, Work(pixels=None), None),
        (BY_SIZE, Work(pixels=(SQUARE,), inputs=None), None),
        (BY_SIZE, Work(pixels=(SQUARE,), inputs=-1), None),
        (BY_SIZE, Work(pixels=(SQUARE,), inputs=10**40), None),
        (Price(per_megapixel=Decimal("0.025")), Work(pixels=(1, SQUARE)), 0.05),
        (Price(per_second=Decimal("0.001")), Work(seconds=2.5), 0.0025),
        (Price(per_second=Decimal("0.001")), Work(), None),
        (Price(per_second=Decimal("0.001")), Work(seconds=-1.0), None),
        (Price(per_second=Decimal("0.001")), Work(seconds=MAX_SECONDS + 1.0), None),
        (Price(per_image=Decimal("0.01"), per_second=Decimal("0.001")), Work(seconds=1.0), 0.011),
        (PER_IMAGE, Work(), 0.04),
    ],
)
def test_what_is_charged_by_size_or_time(price: Price, work: Work, usd: float | None) -> None:
    assert cost({}, price, 1, work) == usd
    assert why_unknown(price) != why_unknown(None)


@pytest.mark.parametrize(
    ("said", "usd"),
    [
        (0.25, 0.25),
        (0, 0.0),
        (msgspec.Raw(b"0.25"), 0.25),
        (msgspec.Raw(b""), None),
        (msgspec.Raw(b'"0.25"'), None),
        (msgspec.Raw(b"1e400"), None),
        (math.inf, None),
        (math.nan, None),
        (-1, None),
        (True, None),
        (None, None),
    ],
)
def test_a_stated_cost_is_money_or_nothing(said: object, usd: float | None) -> None:
    assert amount(said) == usd


@pytest.mark.parametrize(
    ("price", "usd"),
    [
        (None, "0.04"),
        (Price(), "0.04"),
        (Price(text_input=Decimal(5)), "0.04"),
        (PER_IMAGE, "0.04"),
        (Price(text_input=Decimal(2), image_output=Decimal(120)), "0.1344"),
        (Price(per_image=Decimal("0.01"), image_output=Decimal(10)), "0.0212"),
        (Price(per_megapixel=Decimal("0.025")), "0.025"),
        (Price(first_megapixel=Decimal("0.07"), per_megapixel=Decimal("0.03")), "0.07"),
        (Price(per_second=Decimal("0.001")), "0.04"),
    ],
)
def test_a_typical_picture(price: Price | None, usd: str) -> None:
    assert typical(price) == Decimal(usd)


def test_the_typical_price_is_the_catalogues_median() -> None:
    prices = [model.price.per_image for model in read_catalogue().models.values() if model.price is not None]
    assert statistics.median(price for price in prices if price is not None) == TYPICAL_USD
