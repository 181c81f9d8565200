"""The checklist's promises: all problems, in order, within a bound; numbers judged however long."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from streamproxy.core.fields import (
    FALSE,
    MAX_PROBLEMS,
    RULES,
    TRUE,
    Checklist,
    FieldType,
    Rule,
    lax_boolean,
    lax_integer,
)
from streamproxy.errors import Failure, ProxyError

NUMBER = Rule("n", FieldType.INTEGER, -3, 10)


def refusal(checks: Checklist) -> ProxyError:
    with pytest.raises(ProxyError) as caught:
        checks.fields(edit=False, extra_headers=None)
    return caught.value


def test_every_field_has_one_row() -> None:
    names = [rule.name for rule in RULES]
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


def test_the_first_problem_speaks_and_the_others_are_counted() -> None:
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
    checks.present("prompt")
    fields = checks.fields(edit=True, extra_headers={"a": "b"})
    assert (fields.model, fields.prompt_given, fields.n, fields.stream, fields.edit) == ("m", True, 1, False, True)
    assert fields.extra_headers == {"a": "b"}
    assert fields.partial_images is None
    assert {fields.size, fields.quality, fields.background, fields.user} == {None}
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
