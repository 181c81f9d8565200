"""An event without its image, and the image without its event."""

from __future__ import annotations

import base64
from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproxy.core.reference import image_bytes, referenced

URL = "/v3/streams/str_1/images/0?v=1.2&token=a.b"
IMAGE = base64.b64encode(bytes(range(256)) * 40)
EVENT = b'{"type":"image_edit.completed","b64_json":"' + IMAGE + b'","created_at":1e2,"usage":{"total_tokens":7}}'


@given(st.lists(st.integers(0, len(EVENT)), max_size=4))
def test_the_image_becomes_its_url_wherever_the_event_is_cut(cuts: list[int]) -> None:
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
def test_no_image_is_left_in_a_reference_however_the_event_is_written(event: bytes) -> None:
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
def test_an_event_without_an_image_of_its_own_stays_as_it_is(event: bytes) -> None:
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
