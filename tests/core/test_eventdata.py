"""An event without its image, against a full json.loads with the event cut at every point; and the image itself."""

from __future__ import annotations

import base64
import json
import tracemalloc
from collections.abc import Mapping
from itertools import pairwise

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproxy.core.eventdata import APPENDED, Outline, image_bytes, nth_image, outline, referenced
from streamproxy.core.sse import Piece

BASE64 = "iVBORw0KGgo="


def expected(raw: bytes) -> Outline | None:
    """What a reader of the whole event says."""
    try:
        value = json.loads(raw.decode("utf-8", "replace"))
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    index = value.get("image_index")
    return Outline(
        type=value["type"] if isinstance(value.get("type"), str) else "",
        error=json.dumps(value["error"]).encode() if "error" in value else None,
        failed=bool(value.get("error")),
        usage=None if value.get("usage") is None else json.dumps(value["usage"]).encode(),
        cost=msgspec.Raw(json.dumps(value["cost"]).encode() if "cost" in value else b""),
        has_b64=isinstance(value.get("b64_json"), str) and value["b64_json"] != "",
        has_url=isinstance(value.get("url"), str) and value["url"] != "",
        wrapped=any(str(value.get(name)).startswith("data:") for name in ("b64_json", "url")),
        has=frozenset(value.keys() & set(APPENDED)),
        image_index=index if type(index) is int and 0 <= index < 1000 else None,
        model=value["model"] if isinstance(value.get("model"), str) else "",
        utf8=True,
    )


def found(data: tuple[Piece, ...]) -> Outline | None:
    """outline, with its raw members in json.dumps's layout; the same whether or not it is told where quotes are."""
    said = outline(data)
    quoted = [number for number, piece in enumerate(data) if not isinstance(piece, bytes) or b'"' in piece]
    assert outline(data, quoted) == said
    if said is None:
        return None

    def laid_out(raw: bytes | None) -> bytes | None:
        return None if raw is None else json.dumps(json.loads(raw)).encode()

    return Outline(
        said.type,
        laid_out(said.error),
        said.failed,
        laid_out(said.usage),
        msgspec.Raw(laid_out(bytes(said.cost) or None) or b""),
        said.has_b64,
        said.has_url,
        said.wrapped,
        said.has,
        said.image_index,
        said.model,
        said.utf8,
    )


EVENTS: tuple[Mapping[str, object] | str, ...] = (
    {"type": "image_generation.completed", "b64_json": BASE64, "usage": {"total_tokens": 1}, "cost": None},
    {"b64_json": BASE64, "type": "image_edit.partial_image", "image_index": 3},
    {"type": "t", "usage": None, "error": None, "b64_json": BASE64},
    {"type": "t", "b64_json": ""},
    {"type": "t", "b64_json": None, "url": "https://host/picture"},
    {"type": "t", "b64_json": 5, "url": ""},
    {"type": "t", "b64_json": ["x"]},
    {"type": 7, "error": {"message": "m"}, "image_index": -1},
    {"type": "t", "error": "boom", "image_index": 12.0},
    {"type": "t", "error": {}, "b64_json": BASE64},
    {"type": "t", "note": 'say "b64_json": "AAAA" twice', "b64_json": BASE64, "provider": "p"},
    {"type": "t", "note": 'say "b64_json": "AAAA" twice'},
    {'ends in "b64_json': "x", "type": "t"},
    {'ends in "b64_json': "x", "type": "t", "b64_json": "", "url": "u"},
    {"type": "t", "nested": {"b64_json": BASE64}},
    {"type": "t", "usage": {"b64_json": BASE64, "total_tokens": 1}, "b64_json": BASE64},
    {"type": "t", "error": {"b64_json": BASE64}},
    {"type": "t", "b64_json": BASE64, "model": "m"},
    {"type": "t", "model": 1},
    {"type": "t", "nested": {"b64_json": BASE64}, "b64_json": ""},
    {"type": "t", "nested": {"b64_json": BASE64}, "b64_json": BASE64},
    {"type": "t", "b64_json": 'with "quotes" and \\'},
    {"type": "t", "b64_json": '\\", "type": "error", "x": "'},
    {"type": "t", "b64_json": "iVBO/w0K\n"},
    {"type": "t\u00e4\U0001f600", "b64_json": BASE64, "text": "\u00fc"},
    {"b64_json": BASE64},
    {"type": "t", "b64_json": "data:image/png;base64," + BASE64},
    {"type": "t", "b64_json": "data"},
    {"type": "t", "b64_json": BASE64, "url": "data:,"},
    {"type": "t", "nested": {"b64_json": BASE64}, "b64_json": "data:," + BASE64},
    {},
    '{"type":"t","b64_json"  :\n "AAAA" , "cost" : 1 }',
    '{"type":"t","b64_json":"a\\/b=","url":"http:\\/\\/x"}',
    '{"type":"a","type":"b","b64_json":"AAAA","b64_json":""}',
    '{"type":"t","b64_json":"AAAA"',
    '{"type":"t","b64_json":"AAAA',
    '{"type":"t","b64_json":',
    '[{"b64_json":"AAAA"}]',
    '"b64_json":"AAAA"',
    "null",
    "",
    "{oops",
)


@pytest.mark.parametrize("event", EVENTS, ids=str)
@pytest.mark.parametrize("escaped", [True, False])
def test_it_agrees_with_a_full_reader_wherever_cut(event: object, escaped: bool) -> None:
    text = event if isinstance(event, str) else json.dumps(event, ensure_ascii=escaped)
    raw = text.encode()
    whole = expected(raw)
    assert found((raw,)) == whole
    for at in range(1, len(raw)):
        assert found((raw[:at], memoryview(raw)[at:])) == whole, at
    assert found(tuple(raw[at : at + 1] for at in range(len(raw)))) == whole


NAMES = st.sampled_from(
    ("type", "b64_json", "url", "usage", "error", "cost", "provider", "image_index", "x", 'q"b64_json', "b64_json\\")
)
TEXT = st.one_of(
    st.text(alphabet='b64_json":,\\ {}A\u00e4', max_size=12), st.sampled_from((BASE64 * 20, "data:," + BASE64))
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 2000), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(event=st.dictionaries(NAMES, VALUES, max_size=8), cuts=st.lists(st.integers(1, 2000), max_size=5))
def test_any_event(event: dict[str, object], cuts: list[int]) -> None:
    raw = json.dumps(event, ensure_ascii=False).encode()
    edges = [0, *sorted({min(at, len(raw)) for at in cuts}), len(raw)]
    pieces = tuple(raw[a:b] for a, b in pairwise(edges) if a < b)
    assert found(pieces) == expected(raw)


def test_a_large_image_is_neither_joined_nor_parsed() -> None:
    """The image's characters are not looked at, so even a control character in it does not show."""
    image = b"A" * 1000 + b"\x01" + b"A" * 1000
    said = outline((b'{"type":"t","b64_json":"' + image, image, image + b'","usage":{}}'))
    assert said is not None
    assert said.has_b64
    assert said.usage == b"{}"


def test_an_image_far_behind_other_members_is_found() -> None:
    raw = json.dumps({"type": "t", "revised_prompt": "p" * 100_000, "b64_json": BASE64, "cost": 1}).encode()
    said = outline((raw[:70_000], raw[70_000:]))
    assert said is not None
    assert said.has_b64
    assert said.has == {"b64_json", "cost"}


@pytest.mark.parametrize("text", [b"\xff", b"\xc3", b"\xed\xa0\x80"])
def test_invalid_utf8_is_told(text: bytes) -> None:
    for raw in (b'{"type":"t","text":"%b"}' % text, b'{"type":"t","b64_json":"AAAA","text":"%b"}' % text):
        said = outline((raw,))
        assert said is not None
        assert not said.utf8


@pytest.mark.parametrize(
    "raw", [b'{"type":"a\x00"}', b'{"x":"\n"}', b'{"x":NaN}', b'{"x":"\\ud83d"}', b"\xff", b"[" * 5000]
)
def test_what_is_not_a_json_object_of_unicode_is_none(raw: bytes) -> None:
    assert outline((raw,)) is None


def test_an_error_of_a_million_parts_is_not_decoded() -> None:
    raw = b'{"type":"t","error":[' + b"{}," * 1_000_000 + b"{}]}"
    tracemalloc.start()
    try:
        said = outline((raw,))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert said is not None
    assert said.failed
    assert peak < 6 * len(raw)


URL = "/v3/streams/str_1/images/0?v=1.2&token=a.b"
IMAGE = base64.b64encode(bytes(range(256)) * 40)
EVENT = b'{"type":"image_edit.completed","b64_json":"' + IMAGE + b'","created_at":1e2,"usage":{"total_tokens":7}}'


@given(st.lists(st.integers(0, len(EVENT)), max_size=4))
def test_the_image_becomes_its_url_wherever_cut(cuts: list[int]) -> None:
    ends = [0, *sorted(cuts), len(EVENT)]
    pieces = tuple(memoryview(EVENT)[a:b] for a, b in pairwise(ends) if a < b)
    expected = b'{"type":"image_edit.completed","created_at":1e2,"usage":{"total_tokens":7},"image_url":'
    assert referenced(pieces, URL) == expected + orjson.dumps(URL) + b"}"
    assert image_bytes(pieces) == base64.b64decode(IMAGE)


@pytest.mark.parametrize(
    "event",
    [
        b'{"prompt":"' + b"p" * 9000 + b'","b64_json":"' + IMAGE + b'"}',
        b'{"b64_json" : "' + IMAGE + b'" , "image_url":null}',
        b'{"note":{"b64_json":"QUJD"},"b64_json":"' + IMAGE + b'"}',
        b'{"b64\\u005fjson":"' + IMAGE + b'"}',
        b'{"b64_json":"' + IMAGE.replace(b"/", b"\\/") + b'"}',
        b'{"b64_json":"' + IMAGE + b'","b64_json_of":"\\"b64_json\\": \\"x"}',
    ],
    ids=["far in", "spaces and a url", "another before", "escaped name", "escaped slashes", "a text like it"],
)
def test_no_image_is_left_in_a_reference(event: bytes) -> None:
    without = orjson.loads(referenced((event,), URL))
    whole = orjson.loads(event)
    del whole["b64_json"]
    assert without == {**whole, "image_url": URL}
    assert image_bytes((event,)) == base64.b64decode(IMAGE)


@pytest.mark.parametrize(
    "event",
    [
        b"{}",
        b'{"b64_json":null,"url":"https://x.test/1.png"}',
        b'{"b64_json":""}',
        b'{"b64_json":7}',
        b'{"note":{"b64_json":"QUJD"}}',
        b"[]",
        b"not JSON",
        b'{"b64_json":"QUJD","b64_json":"QUJE"}',
        b'{"b64_json":"QUJD',
        b"",
        b"[" * 5000,
    ],
)
def test_an_event_without_its_own_image_is_unchanged(event: bytes) -> None:
    assert referenced((event,), URL) == event


@pytest.mark.parametrize(
    "event",
    [
        b"{}",
        b'{"b64_json":null}',
        b'{"b64_json":""}',
        b'{"b64_json":7}',
        b'{"b64_json":"QUJDR"}',
        b'{"b64_json":"%%%"}',
        b'{"b64_json":"\xc3\xa4\xc3\xa4"}',
        b'{"b64_json":"\xff"}',
        b'{"b64_json":"\\ud800"}',
        b"[]",
        b"not JSON",
        b"",
        b'{"x":' + b"[" * 5000,
    ],
)
def test_what_is_no_picture_is_none(event: bytes) -> None:
    assert image_bytes((event,)) is None


def test_the_images_of_an_answer_by_their_places() -> None:
    answer = (b'{"data":[{"b64_json":"QQ=="},{"url":"u"},5,{"b64_json":"', memoryview(b"Qg=="), b'"}]}')
    assert [nth_image(answer, number) for number in range(5)] == [b"A", None, None, b"B", None]


@pytest.mark.parametrize("answer", [b"", b"{", b"[]", b"{}", b'{"data":null}', b'{"data":{}}', b'{"data":[]}', b"\xff"])
def test_an_answer_without_images_has_none(answer: bytes) -> None:
    assert nth_image((answer,), 0) is None
