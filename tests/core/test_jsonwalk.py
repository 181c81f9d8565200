"""The walk's promises: exact spans, allowances that end where they say, work and memory bounded on bombs."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproxy.core.jsonwalk import MAX_DEPTH, MAX_KEY, MAX_MEMBERS, MAX_NODES, MAX_PLAIN, Walk, shown
from streamproxy.errors import Failure, ProxyError

MEBI = 1 << 20


def refusal(raw: bytes) -> Failure | None:
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
    assert refusal(fits) is None
    assert refusal(over) is Failure.INVALID_JSON


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
    assert refusal(raw) in (Failure.INVALID_JSON, Failure.DUPLICATE_KEY)
    assert time.process_time() - started < 2  # tens of milliseconds; a second pass over each token would be minutes
    tracemalloc.start()
    try:
        refusal(raw)
        assert tracemalloc.get_traced_memory()[1] < MEBI
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("rest", [b"x", b"}", b" x", b" {}", b","])
def test_nothing_may_follow_the_object(rest: bytes) -> None:
    for raw in (b"{}", b'{"a":1}', b'{"a":{}}'):
        assert refusal(raw + b" \r\n\t") is None
        assert refusal(raw + rest) is Failure.INVALID_JSON


@pytest.mark.parametrize("run", [*range(131), 4095, 4096, 65_535, 65_536, 131_071, 131_072, 200_001])
def test_a_quote_is_escaped_by_an_odd_run_of_backslashes(run: int) -> None:
    raw = b'{"a":"x' + b"\\" * run + b'","b":1}'
    if run % 2:
        assert refusal(raw) is Failure.INVALID_JSON  # the string goes on to the quote of "b", and b follows
    else:
        member = Walk(raw, "body").members(0)[0]["a"]
        assert raw[member.value : member.end] == b'"x' + b"\\" * run + b'"'


def test_a_run_of_backslashes_does_not_reach_behind_the_string() -> None:
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
    spans = Walk.checked(raw, "body").elements(0, limit)
    assert [raw[start:end] for start, end in spans] == pieces[:limit]


@pytest.mark.parametrize("key", ["n", "X-A", "x_odd_name", "output_compression", "extra_headers", "image_url"])
def test_a_field_or_a_short_word_is_shown(key: str) -> None:
    assert shown(key, 3) == key


@pytest.mark.parametrize(
    "key", ["", "hunter2", "xoxb-abcdefghij", "sk-abcdefghijklmnop", "a word", "\u00e9", "thirteen_char", "model\n"]
)
def test_any_other_key_may_be_a_secret_and_only_its_place_is_shown(key: str) -> None:
    assert shown(key, 3) == "#3"
