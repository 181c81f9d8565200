"""Answers hold every key of the wire, usage adds up, a sample is a good answer in small."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproxy.simulator.answers import SAMPLE_EDGE, frames, json_body, sample
from streamproxy.simulator.order import Order, read_order

ORDER = read_order(b'{"prompt":"a fox","size":"64x64"}', "application/json", edit=False)


def data(frame: bytes) -> dict[str, object]:
    name, line, *rest = frame.split(b"\n")
    assert rest == [b"", b""]
    found = cast(dict[str, object], orjson.loads(line.removeprefix(b"data: ")))
    assert name == f"event: {found['type']}".encode()
    return found


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 3), st.sampled_from(["low", "medium", "high", "xhigh", "max"]), st.text(min_size=1, max_size=99))
def test_usage_adds_up_and_counts_previews(previews: int, quality: str, prompt: str) -> None:
    order = replace(ORDER, partial_images=previews, quality=quality, prompt=prompt)
    usage = cast(dict[str, int], data(frames(order, (1,) * 4)[-1])["usage"])
    details = cast(dict[str, dict[str, int]], usage)["input_tokens_details"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert sum(details.values()) == usage["input_tokens"]
    bare = cast(dict[str, int], orjson.loads(json_body(order, [], 1))["usage"])
    assert usage["output_tokens"] == bare["output_tokens"] + 100 * previews


def test_a_medium_square_costs_1056_tokens_a_picture() -> None:
    order = replace(ORDER, width=1024, height=1024, n=3)
    assert orjson.loads(json_body(order, [], 1))["usage"]["output_tokens"] == 3 * 1056


def test_each_frame_says_when_it_will_be_sent() -> None:
    made = frames(replace(ORDER, partial_images=2), (11, 22, 33))
    assert [data(frame)["created_at"] for frame in made] == [11, 22, 33]


def test_the_safety_identifier_is_echoed_at_the_end() -> None:
    order = replace(ORDER, partial_images=1, safety_identifier="who")
    assert [data(frame).get("safety_identifier") for frame in frames(order, (1, 1))] == [None, "who"]
    assert orjson.loads(json_body(order, [], 1))["safety_identifier"] == "who"


@pytest.mark.parametrize("order", [ORDER, replace(ORDER, n=5, width=3840, height=2160, output_format="webp")])
@pytest.mark.parametrize("edit", [False, True])
def test_a_sample_is_one_small_answer(order: Order, edit: bool) -> None:
    good = sample(replace(order, edit=edit), 7)
    kinds = [data(frame) for frame in good.frames]
    family = "image_edit" if edit else "image_generation"
    assert [kind["type"] for kind in kinds] == [f"{family}.partial_image"] * 2 + [f"{family}.completed"]
    assert {kind["size"] for kind in kinds} == {f"{SAMPLE_EDGE}x{SAMPLE_EDGE}"}
    assert {kind["output_format"] for kind in kinds} == {order.output_format}
    assert [item["b64_json"] for item in orjson.loads(good.json)["data"]] == [kinds[-1]["b64_json"]]
