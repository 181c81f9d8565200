"""Bodies as bytes: members byte for byte, the standard library's verdict on JSON, edits, bombs in bounded time."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from typing import NoReturn

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamproxy.core.rawjson import (
    MAX_DEPTH,
    MAX_KEY,
    MAX_MEMBERS,
    MAX_NODES,
    MAX_PLAIN,
    Walk,
    elements,
    holds_text,
    members,
    parse,
    shown,
)
from streamproxy.errors import Failure, ProxyError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=15,
)
DOCUMENT = st.dictionaries(TEXT, VALUE, max_size=8)
LAYOUT = st.sampled_from([(None, None), (None, (",", ":")), (2, (" ,", "\t:\r\n ")), (1, None)])

ODD = [
    b"1E2",
    b"0.1000",
    b"-0",
    b"-0.0e-0",
    b"123456789012345678901234567890",
    b"1.000000000000000000000000000000001",
    b'"\\u0041\\/\\ud83d\\ude00\\n"',
    '"é漢😀"'.encode(),
    b'{"b" : 1.0,\n "a":[ 1E400 ] , "b":2}',
    b"[ ]",
    b'""',
    b"null",
]


class Refused(Exception):
    pass


def reference(raw: bytes) -> dict[str, object]:
    """The standard library's verdict, as strict as ours: no constants, lone surrogates, duplicates on top."""

    def no_constant(_: str) -> NoReturn:
        raise Refused

    last: list[list[tuple[str, object]]] = []

    def pairs(found: list[tuple[str, object]]) -> dict[str, object]:
        last[:] = [found]
        return dict(found)

    try:
        document = json.loads(raw.decode(), parse_constant=no_constant, object_pairs_hook=pairs)
        json.dumps(document, ensure_ascii=False).encode()
    except ValueError:  # JSON, decoding and surrogates
        raise Refused from None
    if not isinstance(document, dict) or len(last[0]) != len(document):
        raise Refused
    return document


def refusal(raw: bytes) -> ProxyError:
    with pytest.raises(ProxyError) as caught:
        parse(raw)
    return caught.value


def test_a_body_is_never_shown_in_its_repr() -> None:
    assert "hunter2" not in repr(parse(b'{"prompt":"hunter2"}'))


@given(DOCUMENT, LAYOUT, st.booleans())
def test_every_member_is_its_own_slice(
    document: dict[str, object], layout: tuple[int | None, tuple[str, str] | None], ascii: bool
) -> None:
    raw = json.dumps(document, indent=layout[0], separators=layout[1], ensure_ascii=ascii).encode()
    body = parse(raw)
    assert list(body.members) == list(document)
    for key, value in document.items():
        slice = body.value(key)
        assert slice is not None
        assert slice.strip() == slice
        assert json.loads(slice) == value
        member = body.members[key]
        assert raw[member.value : member.end] == slice
        assert json.loads(raw[member.start : member.value].strip().removesuffix(b":")) == key
    assert body.edited() is raw


@given(DOCUMENT, LAYOUT, st.data())
def test_an_edit_changes_what_it_names_and_nothing_else(
    document: dict[str, object], layout: tuple[int | None, tuple[str, str] | None], data: st.DataObject
) -> None:
    body = parse(json.dumps(document, indent=layout[0], separators=layout[1]).encode())
    keys = sorted(document)
    drop = data.draw(st.lists(st.sampled_from(keys), unique=True) if keys else st.just([]))
    kept = [key for key in keys if key not in drop]
    replace = {key: data.draw(VALUE) for key in data.draw(st.lists(st.sampled_from(kept)) if kept else st.just([]))}
    append = data.draw(st.dictionaries(TEXT.filter(lambda key: key not in kept), VALUE, max_size=3))
    after = parse(
        body.edited(
            replace={key: json.dumps(value).encode() for key, value in replace.items()},
            drop=drop,
            append={key: json.dumps(value).encode() for key, value in append.items()},
        )
    )
    assert list(after.members) == [key for key in document if key in kept] + list(append)
    for key in after.members:
        if key in replace or key in append:
            assert after.decode(key) == {**append, **replace}[key]
        else:
            assert after.value(key) == body.value(key)


@pytest.mark.parametrize("value", ODD)
def test_odd_values_keep_their_bytes(value: bytes) -> None:
    raw = b' {\t"a" :' + value + b' , "m\\u006fdel":"x","b":' + value + b"\n} "
    body = parse(raw)
    assert body.value("a") == value
    assert body.edited(replace={"model": b'"y"'}) == b'{"a" :' + value + b',"m\\u006fdel":"y","b":' + value + b"}"
    assert (
        body.edited(drop=["model"], append={"z": value})
        == b'{"a" :' + value + b',"b":' + value + b',"z":' + value + b"}"
    )


def test_an_edit_that_changes_nothing_is_the_same_object() -> None:
    raw = b'{ "n" : 1 }'
    body = parse(raw)
    assert body.edited(replace={"n": b"1"}, drop=["absent"]) is raw
    assert body.edited(drop=["n"]) == b"{}"


@pytest.mark.parametrize(
    "change", [{"replace": {"absent": b"1"}}, {"replace": {"n": b"1"}, "drop": ["n"]}, {"append": {"n": b"1"}}]
)
def test_an_edit_that_would_be_lost_or_doubled_is_an_error(change: dict[str, dict[str, bytes]]) -> None:
    with pytest.raises(KeyError):
        parse(b'{"n":2}').edited(**change)


SEEDS = [
    b'{"model":"x/y","prompt":"a \\"cat\\" \\u00e9\\ud83d\\ude00","n":1,"x":[1.5e3,-0,{"y":null}]}',
    '{"a": "é漢😀", "b": [true, false], "c": {"d": {}}, "e": -1.25E-7}'.encode(),
    b'[{"a":1}]',
]
EDIT = st.tuples(
    st.integers(0, 200),
    st.sampled_from(["put", "set", "cut"]),
    st.sampled_from(
        list(b'{}[]",:\\/ \t\n\r\x0b\x00\x1f\x7f-+.0123456789eEtrufalsn\xc3\xa9\xed\xa0\x80\xef\xbb\xbf\xff')
    ),
)


@given(st.sampled_from(SEEDS), st.lists(EDIT, max_size=4))
@example(b'{"a":"\xed\xa0\x80"}', [])
@example(b'{"a":"\\ud800"}', [])
@example(b'{"a":NaN}', [])
@example(b'{"a":-Infinity}', [])
@example(b'{"a":[1]}}', [])
@example(b'{"a":[}]}', [])
@example(b'{"a":1,}', [])
@example(b'{,"a":1}', [])
@example(b'{"a":"\x1f"}', [])
@example(b'\xef\xbb\xbf{"a":1}', [])
@example(b'{"a":1}\x00', [])
@example(b"", [])
def test_the_verdict_is_the_standard_librarys(seed: bytes, edits: list[tuple[int, str, int]]) -> None:
    raw = bytearray(seed)
    for at, kind, byte in edits:
        at = min(at, max(len(raw) - 1, 0))
        raw[at : at + (kind != "put")] = b"" if kind == "cut" else bytes([byte])
    try:
        expected = reference(bytes(raw))
    except Refused:
        assert refusal(bytes(raw)).failure in (Failure.INVALID_JSON, Failure.DUPLICATE_KEY)
    else:
        body = parse(bytes(raw))
        assert {key: json.loads(body.value(key) or b"") for key in body.members} == expected


@pytest.mark.parametrize("seed", SEEDS[:2])
def test_every_cut_body_is_refused(seed: bytes) -> None:
    for end in range(len(seed)):
        assert refusal(seed[:end]).failure is Failure.INVALID_JSON


@given(st.sampled_from(SEEDS[:2]), st.data())
def test_blanks_may_stand_between_any_two_tokens(seed: bytes, data: st.DataObject) -> None:
    spaced = json.dumps(json.loads(seed), indent=1).encode()
    blank = data.draw(st.text(" \t\r\n", min_size=1, max_size=3)).encode()
    assert parse(blank + spaced.replace(b"\n", b"\n" + blank) + blank).members.keys() == json.loads(seed).keys()


@pytest.mark.parametrize("first", ["model", "mod\\u0065l", "\\u006dodel", "\\u006D\\u006F\\u0064\\u0065\\u006C"])
@pytest.mark.parametrize("second", ["model", "m\\u006fdel"])
def test_a_key_twice_is_refused_however_it_is_written(first: str, second: str) -> None:
    error = refusal(f'{{"{first}":"a","n":1,"{second}":"b"}}'.encode())
    assert error.failure is Failure.DUPLICATE_KEY
    assert error.param == "model"


@pytest.mark.parametrize(
    "key", ["sk-proj-0123456789", "correct.horse.battery", "hunter2", "\u00e9<script>" + "k" * 100]
)
def test_a_duplicate_key_that_may_be_a_secret_is_hidden(key: str) -> None:
    error = refusal(f'{{"model":"m","{key}":1,"{key}":2}}'.encode())
    assert (error.failure, error.param) == (Failure.DUPLICATE_KEY, "#3")
    assert key not in repr((error.message, error.details.problems))


def test_a_key_twice_in_an_object_of_its_own() -> None:
    with pytest.raises(ProxyError) as caught:
        parse(b'{"X-A":"1","X-A":"2"}', where="extra_headers")
    assert (caught.value.failure, caught.value.param) == (Failure.DUPLICATE_KEY, "extra_headers.X-A")
    assert parse(b'{"metadata":{"a":1,"a":2}}').value("metadata") == b'{"a":1,"a":2}'


@pytest.mark.parametrize("position", ["a", "é", "漢", "😀"])
@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf"])
@pytest.mark.parametrize("before", [0, 1, 16_382, 16_383, 16_384, 40_000])
def test_invalid_utf8_is_found_wherever_it_stands(position: str, bad: bytes, before: int) -> None:
    good = b'{"a":"' + position.encode() * 5 + b"x" * before
    assert parse(good + b'"}').value("a")
    assert refusal(good + bad + b'"}').failure is Failure.INVALID_JSON
    assert refusal(good + bad + b"y" * 40_000 + b'"}').failure is Failure.INVALID_JSON


@pytest.mark.parametrize("character", "é漢😀")
@pytest.mark.parametrize("border", [1 << 14, 1 << 15, 1 << 16])
def test_characters_may_lie_across_slices(border: int, character: str) -> None:
    for before in range(border - 12, border):
        text = "x" * before + character * 9
        assert parse(f'{{"a":"{text}"}}'.encode()).decode("a") == text


@pytest.mark.parametrize("value", [b"1e999", b"1" * 5000])
def test_a_number_too_large_for_python_is_forwarded(value: bytes) -> None:
    body = parse(b'{"x y":' + value + b"}")
    assert body.value("x y") == value
    with pytest.raises(ProxyError) as caught:
        body.decode("x y")
    assert (caught.value.failure, caught.value.param) == (Failure.INVALID_JSON, "#1")


def test_absent_and_null() -> None:
    body = parse(b'{"a":null}')
    assert (body.value("a"), body.value("b")) == (b"null", None)
    assert (body.decode("a"), body.decode("b")) == (None, None)


def test_blanks_behind_the_body_count_too() -> None:
    assert refusal(b'{"a":1}' + b" " * (1 << 20)).failure is Failure.INVALID_JSON


@given(st.dictionaries(TEXT, VALUE, max_size=4), st.lists(VALUE, max_size=5))
def test_inner_objects_and_arrays_are_found_in_place(inner: dict[str, object], array: list[object]) -> None:
    body = parse(json.dumps({"o": inner, "a": array}).encode())
    found = members(body, body.members["o"].value, where="o")
    assert {key: json.loads(body.raw[m.value : m.end]) for key, m in found.items()} == inner
    spans = elements(body, body.members["a"].value, limit=5, where="a")
    assert [json.loads(body.raw[start:end]) for start, end in spans] == array


@pytest.mark.parametrize(
    "raw", [b'{"a":"' + b"A" * (20 << 20) + b'"}', '{"p":"é","a":"'.encode() + b"A" * (20 << 20) + b'"}']
)
def test_a_large_image_is_parsed_without_copying_it(raw: bytes) -> None:
    tracemalloc.start()
    try:
        body = parse(raw)
        assert tracemalloc.get_traced_memory()[1] < 1 << 19
    finally:
        tracemalloc.stop()
    assert body.members["a"].end == len(raw) - 1


@given(st.binary(max_size=60) | st.text('{}[]",:\\ 0123456789eE+-.truefalsn', max_size=60).map(str.encode))
def test_garbage_is_refused_like_anything_else(raw: bytes) -> None:
    try:
        expected = reference(raw)
    except Refused:
        assert refusal(raw).failure in (Failure.INVALID_JSON, Failure.DUPLICATE_KEY)
    else:
        assert parse(raw).members.keys() == expected.keys()


MEBI = 1 << 20


def walked(raw: bytes) -> Failure | None:
    walk = Walk(raw, "body")
    try:
        walk.finish(walk.members(0)[1])
    except ProxyError as error:
        return error.failure
    return None


def numbered(count: int) -> bytes:
    return b"{" + b",".join(b'"k%d":0' % i for i in range(count)) + b"}"


@pytest.mark.parametrize(
    ("fits", "over"),
    [
        pytest.param(numbered(MAX_MEMBERS), numbered(MAX_MEMBERS + 1), id="members"),
        pytest.param(
            b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}",
            b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
            id="depth",
        ),
        pytest.param(
            b'{"a":[' + b"{}" * (MAX_NODES // 2 - 1) + b"]}", b'{"a":[' + b"{}" * (MAX_NODES // 2) + b"]}", id="nodes"
        ),
        pytest.param(b'{"a":"' + b'\\"' * MAX_NODES + b'"}', b'{"a":"' + b'\\"' * (MAX_NODES + 1) + b'"}', id="quotes"),
        pytest.param(b"{" + b" " * (MAX_PLAIN - 2) + b"}", b"{" + b" " * MAX_PLAIN + b"}", id="plain"),
        pytest.param(b'{"' + b"k" * MAX_KEY + b'":1}', b'{"' + b"k" * (MAX_KEY + 1) + b'":1}', id="key"),
    ],
)
def test_each_allowance_ends_exactly_where_it_says(fits: bytes, over: bytes) -> None:
    assert walked(fits) is None
    assert walked(over) is Failure.INVALID_JSON


HOSTILE: dict[str, Callable[[int], bytes]] = {
    "empty objects": lambda size: b'{"a":[' + b"{}," * (size // 3) + b"{}]}",
    "open brackets": lambda size: b'{"a":' + b"[" * size,
    "numbers": lambda size: b'{"a":[' + b"1," * (size // 2) + b"1]}",
    "empty strings": lambda size: b'{"a":[' + b'"",' * (size // 3) + b'""]}',
    "strings without commas": lambda size: b'{"a":[' + b'""' * (size // 2) + b"]}",
    "duplicates": lambda size: b"{" + b'"a":1,"b":1,' * (size // 12) + b'"c":1}',
    "members": lambda size: numbered(size // 12),
    "blanks": lambda size: b'{"a":' + b" " * size + b"1}",
    "blanks behind it": lambda size: b'{"a":1}' + b" " * size,
    "digits": lambda size: b'{"a":' + b"1" * size + b"}",
    "a key": lambda size: b'{"' + b"k" * size + b'":1}',
    "escaped quotes": lambda size: b'{"a":"' + b'\\"' * (size // 2) + b'"}',
    "backslashes before quotes": lambda size: b'{"a":"' + (b"\\" * 999 + b'"') * (size // 1000) + b'"}',
    "short runs of backslashes": lambda size: b'{"a":"' + b'\\\\\\"' * (size // 4) + b'"}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bomb_is_refused_in_bounded_memory_and_time(name: str) -> None:
    raw = HOSTILE[name](16 * MEBI)
    started = time.process_time()
    assert walked(raw) in (Failure.INVALID_JSON, Failure.DUPLICATE_KEY)
    assert time.process_time() - started < 2  # tens of milliseconds; a second pass over each token would be minutes
    tracemalloc.start()
    try:
        walked(raw)
        assert tracemalloc.get_traced_memory()[1] < MEBI
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("rest", [b"x", b"}", b" x", b" {}", b","])
def test_nothing_may_follow_the_object(rest: bytes) -> None:
    for raw in (b"{}", b'{"a":1}', b'{"a":{}}'):
        assert walked(raw + b" \r\n\t") is None
        assert walked(raw + rest) is Failure.INVALID_JSON


@pytest.mark.parametrize("run", [*range(131), 4095, 4096, 65_535, 65_536, 131_071, 131_072, 200_001])
def test_a_quote_is_escaped_by_an_odd_run_of_backslashes(run: int) -> None:
    raw = b'{"a":"x' + b"\\" * run + b'","b":1}'
    if run % 2:
        assert walked(raw) is Failure.INVALID_JSON  # the string goes on to the quote of "b", and b follows
    else:
        member = Walk(raw, "body").members(0)[0]["a"]
        assert raw[member.value : member.end] == b'"x' + b"\\" * run + b'"'


def test_a_run_of_backslashes_ends_with_the_string() -> None:
    raw = b'{"\\\\":"\\\\","":""}'
    assert list(Walk(raw, "body").members(0)[0]) == ["\\", ""]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=20), st.integers(1, 24), st.booleans(), st.integers(0, 5))
def test_elements_are_exact_and_stop_at_the_limit(values: list[object], limit: int, ascii: bool, blanks: int) -> None:
    try:
        pieces = [json.dumps(value, ensure_ascii=ascii).encode() for value in values]
    except UnicodeEncodeError:  # lone surrogates
        return
    blank = b" \n\t\r "[:blanks]
    raw = b"[" + blank + (blank + b"," + blank).join(pieces) + blank + b"]"
    spans = Walk(raw, "body", trusted=True).elements(0, limit)
    assert [raw[start:end] for start, end in spans] == pieces[:limit]


@pytest.mark.parametrize("key", ["n", "X-A", "x_odd_name", "output_compression", "extra_headers", "image_url"])
def test_a_field_or_a_short_word_is_shown(key: str) -> None:
    assert shown(key, 3) == key


@pytest.mark.parametrize(
    "key", ["", "hunter2", "xoxb-abcdefghij", "sk-abcdefghijklmnop", "a word", "\u00e9", "thirteen_char", "model\n"]
)
def test_of_any_other_key_only_its_place_is_shown(key: str) -> None:
    assert shown(key, 3) == "#3"


@pytest.mark.parametrize("raw", [b"null", b'""', b"1", b"{}", b"", b"[]"])
def test_holds_text_asks_for_a_string_with_something_in_it(raw: bytes) -> None:
    assert not holds_text(msgspec.Raw(raw))
    assert holds_text(msgspec.Raw(b'"x"'))
