"""Multipart edits: numbers and booleans as text, image parts under every name in use, all problems at once."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproxy.core.forms import form, is_image_part
from streamproxy.core.schema import RULES, Fields, FieldType
from streamproxy.errors import Failure, ProxyError

CANARY = "hunter2-canary"
TEXT = {"model": ["m"], "prompt": ["a cat"]}
FILES = {"image": [1]}


def problems(text: dict[str, list[str]], files: dict[str, list[int]]) -> list[tuple[str, str]]:
    try:
        form(text, files)
    except ProxyError as caught:
        error = caught
    else:
        return []
    assert error.failure is Failure.INVALID_REQUEST
    return [(problem.param, problem.type) for problem in error.details.problems]


@pytest.mark.parametrize(
    ("name", "value", "type"),
    [
        ("model", "", "string_too_short"),
        ("model", "m" * 256, None),
        ("model", "m" * 257, "string_too_long"),
        ("prompt", "", "string_too_short"),
        ("prompt", "😀" * 32_000, None),
        ("prompt", "😀" * 32_001, "string_too_long"),
        ("n", "1", None),
        ("n", "10", None),
        ("n", "0", "greater_than_equal"),
        ("n", "11", "less_than_equal"),
        ("n", "9" * 5000, "less_than_equal"),
        *(("n", value, "int_parsing") for value in ("", "1.5", "1 0", "٣", "1e0", "true", "--1", "1.")),
        ("partial_images", "-1", "greater_than_equal"),
        ("partial_images", "0", None),
        ("partial_images", "3", None),
        ("partial_images", "4", "less_than_equal"),
        ("output_compression", "100", None),
        ("output_compression", "101", "less_than_equal"),
        ("stream", "true", None),
        ("stream", "false", None),
        *(("stream", value, "bool_parsing") for value in ("", "2", "null", "true ", "tru")),
        ("size", "", None),
        ("size", "x" * 1024, None),
        ("size", "x" * 1025, "string_too_long"),
        ("metadata", '{"a":1}', None),
        ("metadata", "a", "dict_type"),
        ("unknown", "x" * 100_000, None),
    ],
)
def test_each_rule_at_both_sides_of_its_bounds(name: str, value: str, type: str | None) -> None:
    assert problems({**TEXT, name: [value]}, FILES) == ([] if type is None else [(name, type)])


@pytest.mark.parametrize("name", [rule.name for rule in RULES if rule.kind is not FieldType.NAMES])
def test_a_part_sent_twice_or_as_a_file_is_refused(name: str) -> None:
    assert problems({**TEXT, name: ["1", "1"]}, FILES) == [(name, "value_error")]
    assert problems({**TEXT, name: []}, {**FILES, name: [1]}) == [(name, "string_type")]


GIVEN_NAMES: Final[dict[str, tuple[dict[str, list[str]], tuple[str, ...] | None]]] = {
    "repeated": ({"fallbacks": ["a", "b"]}, ("a", "b")),
    "bracketed": ({"fallbacks[]": ["a", "b"]}, ("a", "b")),
    "none": ({}, None),
}


@pytest.mark.parametrize("how", GIVEN_NAMES)
def test_fallbacks_are_a_part_each(how: str) -> None:
    text, names = GIVEN_NAMES[how]
    assert form({**TEXT, **text}, FILES).fallbacks == names


def test_fallbacks_of_a_form_are_five_names() -> None:
    assert problems({**TEXT, "fallbacks": ["a"] * 6}, FILES) == [("fallbacks", "too_long")]
    assert problems({**TEXT, "fallbacks": ["a", ""]}, FILES) == [("fallbacks[1]", "string_too_short")]
    assert problems({**TEXT, "fallbacks[]": ["x" * 257]}, FILES) == [("fallbacks[0]", "string_too_long")]
    assert problems(TEXT, {**FILES, "fallbacks": [1]}) == [("fallbacks", "string_type")]
    assert problems({**TEXT, "fallback_after_charge": ["maybe"]}, FILES) == [("fallback_after_charge", "bool_parsing")]


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"image": [9]}, []),
        ({"image": [9] * 16}, []),
        ({"image": [9] * 17}, [("image", "too_long")]),
        ({"image[]": [9]}, []),
        ({"image[]": [9] * 17}, [("image", "too_long")]),
        ({"images": [9] * 2}, []),
        ({"images[]": [9] * 2}, []),
        ({f"image[{i}]": [9] for i in range(16)}, []),
        ({f"image[{i}]": [9] for i in range(17)}, [("image", "too_long")]),
        ({"image[16]": [9]}, [("image", "too_long")]),
        ({"image[15]": [9]}, []),
        ({"image": [9], "image[]": [9] * 7, "images": [9] * 4, "images[]": [9] * 3, "image[0]": [9]}, []),
        (
            {"image": [9], "image[]": [9] * 7, "images": [9] * 4, "images[]": [9] * 3, "image[0]": [9] * 2},
            [("image", "too_long")],
        ),
        ({}, [("image", "missing")]),
        ({"image": [9] * 0}, [("image", "missing")]),
        ({"picture": [9]}, [("image", "missing")]),
        ({"image": [9], "mask": [9]}, []),
        ({"image": [9], "mask": [9] * 2}, [("mask", "too_long")]),
        ({"mask": [9]}, [("image", "missing")]),
        ({"image": [9], "markup": [9]}, []),
    ],
)
def test_one_to_sixteen_images_and_at_most_one_mask(files: dict[str, list[int]], found: list[tuple[str, str]]) -> None:
    assert problems(TEXT, files) == found


@pytest.mark.parametrize("name", ["image", "image[]", "image[3]", "mask"])
def test_an_empty_file_is_refused_by_name(name: str) -> None:
    assert (name, "value_error") in problems(TEXT, {**FILES, name: [0]})


@pytest.mark.parametrize("name", ["image", "image[]", "images", "images[]", "image[3]", "mask"])
def test_an_image_as_text_is_refused(name: str) -> None:
    param = "mask" if name == "mask" else "image"
    assert problems({**TEXT, name: ["data:image/png;base64,AAAA"]}, FILES) == [(param, "value_error")]


@pytest.mark.parametrize(
    "name", ["image[", "image[a]", "images[0]", "image[][]", "Image", "image ", "image[٣]", "mask"]
)
def test_names_that_are_no_image(name: str) -> None:
    assert not is_image_part(name)


def test_all_problems_come_at_once_in_field_order() -> None:
    text = {"stream": ["2"], "n": ["x"], "mask": ["m"]}
    assert problems(text, {}) == [
        ("model", "missing"),
        ("prompt", "missing"),
        ("n", "int_parsing"),
        ("stream", "bool_parsing"),
        ("image", "missing"),
        ("mask", "value_error"),
    ]


def test_what_is_read() -> None:
    text = TEXT | {"n": ["3"], "stream": ["true"], "partial_images": ["2"], "size": ["1x1"], "quality": ["q"]}
    text |= {"background": ["b"], "output_format": ["o"], "response_format": ["r"], "user": ["u"]}
    text |= {"extra_headers": ['{"X-A": "\\u0062"}'], "new": ["1", "2"]}
    assert form(text, FILES) == Fields("m", 3, True, 2, "1x1", "q", "b", "o", "r", True, {"X-A": "b"}, {})


@pytest.mark.parametrize(("part", "value"), [("null", None), (" {} ", {}), ("[1]", [1]), ('"x"', "x")])
def test_extra_headers_are_json(part: str, value: object) -> None:
    assert form({**TEXT, "extra_headers": [part]}, FILES).extra_headers == value


@pytest.mark.parametrize(
    ("parts", "failure"),
    [
        (["X-A: b"], Failure.INVALID_REQUEST),
        ([""], Failure.INVALID_REQUEST),
        (["[" * 100_000], Failure.INVALID_REQUEST),
        (["{}", "{}"], Failure.INVALID_REQUEST),
        (['{"a":"1","a":"2"}'], Failure.DUPLICATE_KEY),
        (['{"a":'], Failure.INVALID_JSON),
        (['{"a":"\ud800"}'], Failure.INVALID_JSON),
        (['{"a":"' + "x" * (1 << 17) + '"}'], Failure.EXTRA_HEADERS_TOO_LARGE),
    ],
)
def test_extra_headers_that_cannot_be_read(parts: list[str], failure: Failure) -> None:
    with pytest.raises(ProxyError) as caught:
        form({**TEXT, "extra_headers": parts}, FILES)
    assert caught.value.failure is failure
    assert (caught.value.param or "").startswith("extra_headers")


NAMES = st.sampled_from([*(rule.name for rule in RULES), "image", "image[]", "mask", "extra_headers", "other"])
VALUES = st.just(CANARY) | st.just(CANARY * 3000) | st.text() | st.just("{" + CANARY) | st.just(f'"{CANARY}"')


@given(
    st.dictionaries(NAMES, st.lists(VALUES, max_size=2)),
    st.dictionaries(NAMES, st.lists(st.integers(0, 20), max_size=20)),
)
def test_nothing_but_a_proxy_error_and_never_a_value(text: dict[str, list[str]], files: dict[str, list[int]]) -> None:
    try:
        form(text, files)
    except ProxyError as error:
        shown = f"{error} {error.message} {error.param} {error.details.problems} {error.args}"
    else:
        shown = ""
    assert CANARY not in shown
