"""A reader's position as the event id that carries it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproxy.core.cursor import Cursor, parse_cursor

NUMBERS = st.integers(0, 10**10 - 1)


@given(NUMBERS, NUMBERS)
def test_an_id_is_read_as_it_was_written(epoch: int, seq: int) -> None:
    assert parse_cursor(str(Cursor(epoch, seq))) == Cursor(epoch, seq)


@given(st.text(max_size=24))
def test_whatever_comes_is_a_position_or_none(text: str) -> None:
    cursor = parse_cursor(text)
    assert cursor is None or (0 <= cursor.epoch < 10**10 and 0 <= cursor.seq < 10**10)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "1",
        "1.",
        ".1",
        "1.1.1",
        "-1.1",
        "+1.1",
        "1.1 ",
        " 1.1",
        "1.1\n",
        "1,1",
        "1_0.1",
        "a.1",
        "1.1e3",
        "12345678901.1",
        "1.12345678901",
        "١.١",
        "１.１",
    ],
)
def test_an_id_that_is_none_of_ours_is_no_position(text: str | None) -> None:
    assert parse_cursor(text) is None


def test_positions_are_ordered_by_epoch_then_seq() -> None:
    assert sorted([Cursor(2, 1), Cursor(1, 9), Cursor(1, 2)]) == [Cursor(1, 2), Cursor(1, 9), Cursor(2, 1)]
