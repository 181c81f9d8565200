"""Each rule at both sides of its bounds, all problems at once, in order and bounded, never a value in a message."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from streamproxy.core.rawjson import parse, shown
from streamproxy.core.schema import (
    FALSE,
    MAX_IMAGE_URL,
    MAX_PROBLEMS,
    RULES,
    TRUE,
    Checklist,
    Fields,
    FieldType,
    Rule,
    edit,
    generation,
    lax_boolean,
    lax_integer,
)
from streamproxy.errors import Failure, ProxyError

Check = Callable[[dict[str, Any]], Fields]
Found = list[tuple[str, str]]

CANARY = "hunter2-canary"
GENERATION = {"model": "openai/gpt-image-2", "prompt": "a cat"}
EDIT = {**GENERATION, "images": [{"image_url": "data:image/png;base64,AAAA"}]}
STRINGS = ["size", "user", "quality", "response_format", "background", "output_format", "moderation", "input_fidelity"]


def generated(body: dict[str, Any]) -> Fields:
    return generation(parse(json.dumps(body).encode()))


def edited(body: dict[str, Any]) -> Fields:
    return edit(parse(json.dumps(body).encode()))


def problems(check: Check, body: dict[str, Any]) -> Found:
    try:
        check(body)
    except ProxyError as caught:
        error = caught
    else:
        return []
    assert error.failure is Failure.INVALID_REQUEST
    assert error.param == error.details.problems[0].param
    assert error.message.startswith(f"{error.param}: {error.details.problems[0].msg}")
    assert all(problem.loc[0] == "body" for problem in error.details.problems)
    return [(problem.param, problem.type) for problem in error.details.problems]


def rows(name: str, type: str | None, *values: Any) -> list[tuple[str, Any, str | None]]:
    return [(name, value, type) for value in values]


CASES = [
    *rows("model", "string_type", None, 1, True, [], {}),
    *rows("model", None, "m", "m" * 256, "é" * 256, "😀" * 256),
    *rows("model", "string_too_short", ""),
    *rows("model", "string_too_long", "m" * 257, "é" * 257, "m" * 100_000),
    *rows("prompt", "string_type", None, 1, False, ["a"], {"a": 1}),
    *rows("prompt", None, "p", " ", "p" * 32_000, "\n" * 32_000, "é" * 32_000, "😀" * 32_000),
    *rows("prompt", "string_too_short", ""),
    *rows("prompt", "string_too_long", "p" * 32_001, "\n" * 32_001, "é" * 32_001, "😀" * 32_001, "p" * 1_000_000),
    *rows("n", None, None, 1, 10),
    *rows("n", "int_type", [], {}, 1.5, "one", "1.5", "1" * 40),
    *rows("n", "greater_than_equal", 0, -1, -(10**30)),
    *rows("n", "less_than_equal", 11, 10**30),
    *(row for name in STRINGS for row in rows(name, None, None, "", "auto", "never seen before", "x" * 1024)),
    *(row for name in STRINGS for row in rows(name, "string_type", 1, True, [], {}, 0.5)),
    *(row for name in STRINGS for row in rows(name, "string_too_long", "x" * 1025)),
    *rows("metadata", None, None, {}, {"a": [1]}),
    *rows("metadata", "dict_type", "{}", [], 1, True),
    *rows("stream", None, None, True, False),
    *rows("stream", "bool_type", "maybe", 2, -1, 0.5, [], {}),
    *rows("partial_images", None, None, 0, 1, 2, 3),
    *rows("partial_images", "int_type", "three", [0]),
    *rows("partial_images", "greater_than_equal", -1),
    *rows("partial_images", "less_than_equal", 4),
    *rows("output_compression", None, None, 0, 100),
    *rows("output_compression", "int_type", "50%"),
    *rows("output_compression", "greater_than_equal", -1),
    *rows("output_compression", "less_than_equal", 101),
]


@pytest.mark.parametrize(("check", "base"), [(generated, GENERATION), (edited, EDIT)], ids=["generation", "edit"])
@pytest.mark.parametrize(("name", "value", "type"), CASES, ids=lambda value: str(value)[:20])
def test_each_rule_at_both_sides_of_its_bounds(
    check: Check, base: dict[str, Any], name: str, value: Any, type: str | None
) -> None:
    assert problems(check, {**base, name: value}) == ([] if type is None else [(name, type)])


REF = {"file_id": "f"}
REFERENCES: list[tuple[Any, Found]] = [
    ({"image_url": "https://example.com/a.png"}, []),
    ({"image_url": "https://a.test/x", "file_id": None}, []),
    ({"file_id": "x", "image_url": None}, []),
    ({"image_url": "https://a.test/x", "file_id": "f"}, [("", "value_error")]),
    ({"image_url": None, "file_id": None}, [("", "value_error")]),
    ({}, [("", "value_error")]),
    ({"image_url": ""}, [(".image_url", "string_too_short")]),
    ({"file_id": ""}, [(".file_id", "string_too_short")]),
    ({"image_url": 1}, [(".image_url", "string_type")]),
    ({"image_url": "data:image/png;base64,AAAA"}, []),
    ({"image_url": "data:image/png;base64,A-_A"}, [(".image_url", "value_error")]),
    ({"image_url": "data:image/png,AAAA"}, [(".image_url", "value_error")]),
    ({"image_url": "ftp://a.test/x"}, [(".image_url", "value_error")]),
    ({"file_id": "data:image/png;base64,%"}, []),
    ({"file_id": ["f"]}, [(".file_id", "string_type")]),
    ({"file_id": "f" * 1025}, [(".file_id", "string_too_long")]),
    ({**REF, "detail": "high"}, [(".detail", "extra_forbidden")]),
    ({"url": "u"}, [(".url", "extra_forbidden"), ("", "value_error")]),
    ("data:image/png;base64,AAAA", [("", "dict_type")]),
    (["u"], [("", "dict_type")]),
    (1, [("", "dict_type")]),
]


@pytest.mark.parametrize(("reference", "found"), REFERENCES)
def test_an_image_reference_has_exactly_one_source(reference: Any, found: Found) -> None:
    images = [REF, reference, REF]
    assert problems(edited, {**EDIT, "images": images}) == [(f"images[1]{at}", type) for at, type in found]
    assert problems(edited, {**EDIT, "mask": reference}) == [(f"mask{at}", type) for at, type in found]


@pytest.mark.parametrize(
    ("images", "found"),
    [
        ([REF], []),
        ([REF] * 16, []),
        ([REF] * 17, [("images", "too_long")]),
        ([REF] * 5000, [("images", "too_long")]),
        ([], [("images", "too_short")]),
        (None, [("images", "list_type")]),
        (REF, [("images", "list_type")]),
        ("x", [("images", "list_type")]),
        ([None], [("images[0]", "dict_type")]),
    ],
)
def test_an_edit_has_one_to_sixteen_images(images: Any, found: Found) -> None:
    assert problems(edited, {**EDIT, "images": images}) == found


def test_images_are_required_and_a_null_mask_is_none() -> None:
    assert problems(edited, GENERATION) == [("images", "missing")]
    assert problems(edited, {**EDIT, "mask": None}) == []


def test_a_reference_with_a_key_twice_is_refused() -> None:
    raw = b'{"model":"m","prompt":"p","images":[{"file_id":"a","file_\\u0069d":"b"}]}'
    with pytest.raises(ProxyError) as caught:
        edit(parse(raw))
    assert (caught.value.failure, caught.value.param) == (Failure.DUPLICATE_KEY, "images[0].file_id")


@pytest.mark.parametrize(
    ("image", "found"),
    [
        ("iVBORw0KGgo=", []),
        (["AA"] * 16, []),
        (["AA"] * 17, [("image", "too_long")]),
        ([], [("image", "too_short")]),
        ("", [("image", "string_too_short")]),
        (["AA", "", 1], [("image[1]", "string_too_short"), ("image[2]", "string_type")]),
        ("a file", [("image", "value_error")]),
        (
            ["AA", "https://example.com/a.png", "A", "data:image/png;base64,A", "data:image/png,AA"],
            [("image[2]", "value_error"), ("image[3]", "value_error"), ("image[4]", "value_error")],
        ),
        (1, [("image", "string_type")]),
        ({}, [("image", "string_type")]),
        (False, [("image", "string_type")]),
    ],
)
def test_an_image_makes_a_generation_an_edit(image: Any, found: Found) -> None:
    assert problems(generated, {**GENERATION, "image": image}) == found
    if not found:
        assert generated({**GENERATION, "image": image}).edit
        assert problems(generated, {**GENERATION, "image": image, "mask": 1}) == [("mask", "string_type")]
        for mask in ("AAAA", "", None):
            assert problems(generated, {**GENERATION, "image": image, "mask": mask}) == []
        assert problems(generated, {**GENERATION, "image": image, "mask": "%%%"}) == [("mask", "value_error")]


def test_a_generation_without_an_image_is_none() -> None:
    assert not generated({**GENERATION, "image": None, "mask": 1}).edit
    assert not generated(GENERATION).edit
    assert edited(EDIT).edit


def test_all_problems_come_at_once_in_field_order() -> None:
    body = {"mask": 1, "image": [], "stream": "perhaps", "n": 0, "size": 1, "background": [], "output_compression": 101}
    assert problems(generated, body) == [
        ("model", "missing"),
        ("prompt", "missing"),
        ("n", "greater_than_equal"),
        ("size", "string_type"),
        ("stream", "bool_type"),
        ("output_compression", "less_than_equal"),
        ("background", "string_type"),
        ("image", "too_short"),
        ("mask", "string_type"),
    ]
    with pytest.raises(ProxyError) as caught:
        generated(body)
    assert caught.value.message == (
        "model: Field required (and 8 more). The setting default_model gives one to requests without."
    )


def test_what_is_read() -> None:
    assert generated(
        {**GENERATION, "n": 3, "stream": True, "partial_images": 0, "size": "1x1", "quality": "q", "background": "b"}
        | {"output_format": "o", "response_format": "r", "user": "é\n", "new": {"x": [1]}, "extra_headers": {"A": "b"}}
    ) == Fields(GENERATION["model"], 3, True, 0, "1x1", "q", "b", "o", "r", False, {"A": "b"}, {})
    nulls = dict.fromkeys(["n", "stream", "partial_images", *STRINGS, "metadata", "extra_headers", "image", "mask"])
    assert generated({**GENERATION, **nulls}) == generated(GENERATION)


@pytest.mark.parametrize("value", [[], "x", 1, {}, {"a": 1}, {"a": {"b": None}}])
def test_extra_headers_are_handed_on_as_they_are(value: Any) -> None:
    assert generated({**GENERATION, "extra_headers": value}).extra_headers == value


@pytest.mark.parametrize(
    ("value", "failure"),
    [
        (b'{"X-A":"1","X\\u002dA":"2"}', Failure.DUPLICATE_KEY),
        (b'{"X-A":"' + b"x" * (1 << 17) + b'"}', Failure.EXTRA_HEADERS_TOO_LARGE),
        (b'{"X-A":1e999}', Failure.INVALID_JSON),
    ],
)
def test_extra_headers_that_cannot_be_read(value: bytes, failure: Failure) -> None:
    with pytest.raises(ProxyError) as caught:
        generation(parse(b'{"model":"m","prompt":"p","extra_headers":' + value + b"}"))
    assert caught.value.failure is failure
    assert (caught.value.param or "").startswith("extra_headers")


@pytest.mark.parametrize("filler", [b"A", b"\\/", "é".encode(), b"\\u002B"])
@pytest.mark.parametrize("beyond", [0, 1])
def test_an_image_url_is_measured_in_characters(filler: bytes, beyond: int) -> None:
    url = b"https://example.com/a?" + filler
    url += b"A" * (MAX_IMAGE_URL - 23 + beyond)
    body = parse(b'{"model":"m","prompt":"p","images":[{"image_url":"' + url + b'"}]}')
    if beyond:
        with pytest.raises(ProxyError) as caught:
            edit(body)
        assert [(p.param, p.type) for p in caught.value.details.problems] == [
            ("images[0].image_url", "string_too_long")
        ]
    else:
        assert edit(body).edit


def test_large_images_are_measured_where_they_lie() -> None:
    url = b'"data:image/png;base64,' + b"A" * (19 << 20) + b'"'
    forms = (edit, b'"images":[{"image_url":' + url + b"}]"), (generation, b'"image":[' + url + b"," + url + b"]")
    for check, images in forms:
        body = parse(b'{"model":"m","prompt":"p",' + images + b"}")
        tracemalloc.start()
        try:
            assert check(body).edit
            assert tracemalloc.get_traced_memory()[1] < 1 << 18
        finally:
            tracemalloc.stop()


SPOILT = st.recursive(
    st.just(CANARY) | st.just(CANARY * 3000) | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["file_id", "image_url"]), inner),
    max_leaves=6,
)
NAMES = st.sampled_from(
    [*dict.fromkeys(rule[0] for rule in CASES), "image", "images", "mask", "extra_headers", "other"]
)


@given(st.dictionaries(NAMES, SPOILT, max_size=8), st.sampled_from([generated, edited]))
def test_nothing_but_a_proxy_error_and_never_a_value(body: dict[str, Any], check: Check) -> None:
    body = json.loads(json.dumps(body).replace("Infinity", "1"))
    try:
        check({**GENERATION, **body})
    except ProxyError as error:
        shown = f"{error} {error.message} {error.param} {error.details.problems} {error.args}"
    else:
        shown = ""
    assert CANARY not in shown


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), SPOILT, max_size=4))
def test_unknown_fields_are_not_looked_at(unknown: dict[str, Any]) -> None:
    known = {rule[0] for rule in CASES} | {"image", "images", "mask", "extra_headers"}
    body = {key: value for key, value in unknown.items() if key not in known} | GENERATION
    assert generated(json.loads(json.dumps(body).replace("Infinity", "1"))) == generated(GENERATION)


NUMBER = Rule("n", FieldType.INTEGER, -3, 10)


def refusal(checks: Checklist) -> ProxyError:
    with pytest.raises(ProxyError) as caught:
        checks.fields(edit=False, extra_headers=None)
    return caught.value


def test_a_field_has_one_row_and_may_be_named() -> None:
    names = [rule.name for rule in RULES]
    assert [shown(name, 1) for name in (*names, "extra_headers")] == [*names, "extra_headers"]
    assert len(names) == len(set(names))
    assert all(rule.low <= rule.high for rule in RULES)


@pytest.mark.parametrize(
    ("digits", "type"),
    [
        ("-4", "greater_than_equal"),
        ("11", "less_than_equal"),
        ("-" + "9" * 18, "greater_than_equal"),
        ("-" + "9" * 19, "greater_than_equal"),
        ("-1" + "0" * 400_000, "greater_than_equal"),
        ("9" * 19, "less_than_equal"),
        ("9" * 20, "less_than_equal"),
        ("1" + "0" * 400_000, "less_than_equal"),
    ],
)
def test_a_number_out_of_its_bounds_however_long(digits: str, type: str) -> None:
    checks = Checklist()
    checks.number(NUMBER, digits)
    assert [(p.loc, p.type) for p in refusal(checks).details.problems] == [(("body", "n"), type)]


@pytest.mark.parametrize("digits", ["-3", "-0", "0", "10"])
def test_a_number_within_its_bounds_is_kept(digits: str) -> None:
    checks = Checklist()
    checks.text("model", "m")
    checks.number(NUMBER, digits)
    assert checks.fields(edit=False, extra_headers=None).n == int(digits)


def test_the_first_problem_is_said_others_are_counted() -> None:
    checks = Checklist()
    checks.missing("images", 0, "image_url")
    error = refusal(checks)
    assert (error.failure, error.status, error.param) == (Failure.INVALID_REQUEST, 422, "images[0].image_url")
    assert error.message == "images[0].image_url: Field required"
    checks.length(("prompt",), 0, 1, 5)
    checks.items(("image",), 3, 0, 1)
    error = refusal(checks)
    assert error.message == "images[0].image_url: Field required (and 2 more)"
    assert [problem.msg for problem in error.details.problems] == [
        "Field required",
        "String should have at least 1 character",
        "List should have at most 1 item",
    ]


def test_a_flood_of_problems_is_cut() -> None:
    checks = Checklist()
    for index in range(MAX_PROBLEMS + 5):
        checks.missing("images", index)
    error = refusal(checks)
    assert [problem.loc[-1] for problem in error.details.problems] == list(range(MAX_PROBLEMS))


def test_what_was_not_given_has_its_default() -> None:
    checks = Checklist()
    checks.text("model", "m")
    fields = checks.fields(edit=True, extra_headers={"a": "b"})
    assert (fields.model, fields.n, fields.stream, fields.edit) == ("m", 1, False, True)
    assert fields.extra_headers == {"a": "b"}
    assert fields.partial_images is None
    assert {fields.size, fields.quality, fields.background} == {None}
    assert {fields.output_format, fields.response_format} == {None}


LAX: Final = st.text(alphabet="0123456789+-_. eyYnNtTrRuUfFaAlLsSoO\n", max_size=8)


@given(LAX | st.text(max_size=5))
@example("1_0.00")
@example("-01")
@example(" 1\n")
def test_integers_are_read_as_pydantic_reads_them(text: str) -> None:
    try:
        expected = TypeAdapter(int).validate_python(text)
    except ValidationError:
        expected = None
    found = lax_integer(text)
    assert (None if found is None else int(found)) == expected


@given(LAX | st.sampled_from(sorted(TRUE | FALSE)).map(str.upper))
def test_booleans_are_read_as_pydantic_reads_them(text: str) -> None:
    try:
        expected = TypeAdapter(bool).validate_python(text)
    except ValidationError:
        expected = None
    assert lax_boolean(text) is expected


NAMED: Final = {
    "names": (["a", "b/c"], []),
    "none": ([], []),
    "null": (None, []),
    "a text": ("a", [("fallbacks", "list_type")]),
    "an object": ({"a": 1}, [("fallbacks", "list_type")]),
    "six": (["a"] * 6, [("fallbacks", "too_long")]),
    "no texts": ([1, None], [("fallbacks[0]", "string_type"), ("fallbacks[1]", "string_type")]),
    "lengths": (
        ["", "x" * 256, "x" * 257],
        [("fallbacks[0]", "string_too_short"), ("fallbacks[2]", "string_too_long")],
    ),
}


@pytest.mark.parametrize("how", NAMED)
def test_fallbacks_are_up_to_five_names(how: str) -> None:
    given, found = NAMED[how]
    for check, body in ((generated, GENERATION), (edited, EDIT)):
        assert problems(check, {**body, "fallbacks": given}) == found
    if not found:
        expected = None if given is None else tuple(given)
        assert generated({**GENERATION, "fallbacks": given}).fallbacks == expected
