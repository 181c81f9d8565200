"""core/completion.py: synthesized events, and what is added to everybody's."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from decimal import Decimal
from itertools import pairwise

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Picture

from streamproxy.core.completion import (
    USAGE_BYTES,
    ZERO_USAGE,
    AnswerFacts,
    Image,
    appended,
    collected,
    completed,
    decoded_usage,
    ending,
    full_usage,
)
from streamproxy.core.cost import Price
from streamproxy.core.events import Frame, Operation

COMPLETE = (
    b'{"input_tokens":1E2,"input_tokens_details":{"text_tokens":1,"image_tokens":0},"output_tokens":1,"total_tokens":1}'
)


def encoded(format: str, mode: str = "RGB") -> bytes:
    made = io.BytesIO()
    Picture.new(mode, (48, 32)).save(made, format)
    return base64.b64encode(made.getvalue())


def parsed(frame: Frame) -> dict[str, object]:
    value = orjson.loads(b"".join(frame.data))
    assert isinstance(value, dict)
    return value


def make(
    b64: bytes | memoryview = b"",
    *,
    url: str | None = None,
    stated: AnswerFacts | None = None,
    several: bool = False,
    **ending: object,
) -> Frame:
    image = Image((b64,) if b64 else (), url, {"revised_prompt": "r"})
    stated = stated or AnswerFacts(created_at=7)
    return completed(Operation.GENERATION, image, stated, index=2, several=several, ending=ending)


@pytest.mark.parametrize(
    ("format", "mode", "name", "background"),
    [
        ("PNG", "RGB", "png", "opaque"),
        ("PNG", "RGBA", "png", "transparent"),
        ("JPEG", "RGB", "jpeg", "opaque"),
        ("WEBP", "RGB", "webp", "opaque"),
        ("WEBP", "RGBA", "webp", "transparent"),
    ],
)
def test_a_synthesized_event_is_labelled_by_its_own_bytes(format: str, mode: str, name: str, background: str) -> None:
    b64 = encoded(format, mode)
    wrong = AnswerFacts(created_at=7, size="1024x1024", quality="high", output_format="gif")
    frame = make(b64, stated=wrong, usage=ZERO_USAGE)
    assert parsed(frame) == {
        "type": "image_generation.completed",
        "b64_json": b64.decode(),
        "created_at": 7,
        "size": "48x32",
        "quality": "high",
        "background": background,
        "output_format": name,
        "revised_prompt": "r",
        "usage": ZERO_USAGE,
    }
    assert (frame.type, frame.image, frame.final) == ("image_generation.completed", 2, True)
    assert frame.size == len(b"".join(frame.data))


def test_the_image_is_not_copied() -> None:
    view = memoryview(encoded("PNG"))
    assert make(view).data[1] is view


def test_what_nobody_says() -> None:
    said = parsed(make(b"bm90IGFuIGltYWdl"))
    assert (said["size"], said["quality"], said["output_format"]) == ("auto", "auto", "png")
    assert "image_index" not in said


def test_an_image_at_a_url() -> None:
    said = parsed(make(url="https://host/p", stated=AnswerFacts(7, size="8x8", output_format="webp"), several=True))
    assert said["b64_json"] is None
    assert (said["url"], said["size"], said["output_format"]) == ("https://host/p", "8x8", "webp")
    assert said["image_index"] == 2


def test_raw_members_stay_exact() -> None:
    raw = b'{"seed":123456789012345678901234567890,"x":1E2,"y":0.1000}'
    assert b'"more":' + raw in b"".join(make(encoded("PNG"), more=msgspec.Raw(raw)).data)


def test_edits_have_their_own_type() -> None:
    frame = completed(Operation.EDIT, Image((), "u", {}), AnswerFacts(1), index=0, several=False, ending={})
    assert frame.type == parsed(frame)["type"] == "image_edit.completed"


@pytest.mark.parametrize("raw", [None, b"null", b"5", b"[]", b"{oops", b"\xff", b"{}"])
def test_usage_that_says_nothing_is_zeros(raw: bytes | None) -> None:
    assert orjson.loads(full_usage(raw)) == ZERO_USAGE


def test_usage_is_filled_up_and_otherwise_exact() -> None:
    assert full_usage(COMPLETE) is COMPLETE
    said = full_usage(b'{"output_tokens":1E2,"x":{"big":123456789012345678901234567890},"input_tokens":null}')
    assert b'"output_tokens":1E2' in said
    assert b'"x":{"big":123456789012345678901234567890}' in said
    assert orjson.loads(said.replace(b"123456789012345678901234567890", b"1")) == {
        **ZERO_USAGE,
        "output_tokens": 100.0,
        "x": {"big": 1},
    }
    details = orjson.loads(full_usage(b'{"input_tokens_details":{"text_tokens":4,"cached_tokens":1}}'))
    assert details["input_tokens_details"] == {"text_tokens": 4, "image_tokens": 0, "cached_tokens": 1}


def test_decoded_usage() -> None:
    assert decoded_usage(b'{"total_tokens":1}') == {"total_tokens": 1}
    for raw in (None, b"null", b"[1]", b"{oops", b'{"a":"\xff"}'):
        assert decoded_usage(raw) == {}


def test_the_ending_says_only_what_the_provider_has_not() -> None:
    price = Price(per_image=Decimal("0.04"))

    def end(*has: str) -> dict[str, object]:
        return ending(None, price=price, images=2, provider="sim", has=has)

    assert end() == {"cost": 0.08, "provider": "sim"}
    assert end("cost") == {"provider": "sim"}
    assert end("provider", "usage") == {"cost": 0.08}
    assert end("cost", "provider") == {}
    assert ending(None, price=None, images=1, provider="p", has=())["cost"] is None


OBJECT = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=20) | st.none(), min_size=1, max_size=5)


@given(
    value=OBJECT, cuts=st.lists(st.integers(0, 200), max_size=4), space=st.sampled_from((b"", b" ", b"\r\n", b"\t "))
)
def test_appending_changes_only_the_end(value: Mapping[str, object], cuts: list[int], space: bytes) -> None:
    raw = json.dumps(value).encode()
    edges = [0, *sorted(min(at, len(raw)) for at in cuts), len(raw)]
    pieces = [raw[a:b] for a, b in pairwise(edges)]
    got = b"".join(appended((*pieces, space), {"cost": None, "provider": "p"}))
    assert got == raw[:-1] + b',"cost":null,"provider":"p"}'


def test_appending_copies_only_the_last_piece() -> None:
    first, middle = b'{"b64_json":"' + b"A" * 100, memoryview(b"A" * 100)
    got = appended((first, middle, b'"}'), {"cost": 1})
    assert got[0] is first
    assert got[1] is middle
    assert got[2:] == (b'","cost":1}',)
    whole = (b'{"a":1}',)
    assert appended(whole, {}) is whole


def test_a_usage_that_is_far_too_large_is_none() -> None:
    members = b",".join(b'"%d":1' % number for number in range(USAGE_BYTES))
    raw = b'{"total_tokens":7,' + members + b"}"
    assert msgspec.json.decode(full_usage(raw)) == ZERO_USAGE
    assert decoded_usage(raw) == {}


@pytest.mark.parametrize(
    ("costs", "expected"),
    [([0.1, 0.2], 0.3), ([None, 0.2], None), ([None, None], None)],
)
def test_jobs_of_one_request_are_summed(costs: list[float | None], expected: float | None) -> None:
    usage = {"total_tokens": 3, "input_tokens": 1, "output_tokens": 2, "input_tokens_details": {"text_tokens": 1}}
    said = [{"b64_json": "", "usage": usage, "cost": cost, "text": "a", "parts": [{"n": 1}]} for cost in costs]
    answer = msgspec.json.decode(collected([msgspec.json.encode(event) for event in said], 1))
    assert answer["usage"] == {**dict.fromkeys(usage, 0), "total_tokens": 6, "input_tokens": 2, "output_tokens": 4} | {
        "input_tokens_details": {"text_tokens": 2}
    }
    assert (answer["cost"], answer["text"], answer["parts"]) == (expected, "a\na", [{"n": 1}, {"n": 1}])


def test_images_of_one_job_cost_what_the_last_says() -> None:
    zero = {"total_tokens": 0}
    said = [{"b64_json": "", "usage": zero, "cost": None}, {"b64_json": "", "usage": zero, "cost": 0.08}]
    answer = msgspec.json.decode(collected([msgspec.json.encode(event) for event in said], 1))
    assert (answer["cost"], answer["usage"]) == (0.08, zero)


def test_the_sum_of_a_job_that_fell_short_is_in_the_answer() -> None:
    pictures = [b'{"type":"t","b64_json":"AA==","usage":{"total_tokens":0},"cost":null,"size":"1x1"}'] * 2
    told = b'{"type":"t","missing":2,"usage":{"total_tokens":7},"cost":0.08,"provider":"ark"}'
    answer = json.loads(collected(pictures, 1, [told]))
    assert (len(answer["data"]), answer["usage"], answer["cost"]) == (2, {"total_tokens": 7}, 0.08)
    assert (answer["size"], "missing" in answer) == ("1x1", False)
    assert json.loads(collected(pictures[:1], 1, [told]))["cost"] == 0.08
