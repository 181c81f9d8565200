"""Slices: the same bytes in order, without copies, in sizes that suit the reader."""

from __future__ import annotations

import time
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from streamproxy.core.sse import Piece
from streamproxy.web.slicing import AT_ONCE, LARGEST, SLICE, WHOLE, sliced

SIZES = st.integers(0, 3).map(lambda n: n * SLICE) | st.integers(0, 3 * SLICE) | st.integers(0, 2 * WHOLE)
MADE = bytes(range(256)) * (SLICE // 32)


@given(st.lists(st.tuples(SIZES, st.booleans()), max_size=8), st.sampled_from([SLICE, LARGEST]))
def test_slices_are_the_same_bytes_in_order(given_: list[tuple[int, bool]], largest: int) -> None:
    pieces: Sequence[Piece] = [memoryview(MADE)[:n] if view else MADE[:n] for n, view in given_]
    slices = list(sliced([*pieces], largest))
    assert b"".join(part.joined() for part in slices) == b"".join(pieces)
    assert all(0 < len(part) == sum(map(len, part.pieces)) <= largest for part in slices)
    assert all(part.pieces and all(part.pieces) for part in slices)
    assert len(slices) <= sum(n for n, _ in given_) // SLICE + len(given_) + 1


@given(st.lists(SIZES, min_size=1, max_size=8), st.integers(1, WHOLE))
def test_a_small_piece_is_never_cut(sizes: list[int], small: int) -> None:
    words = b"w" * small
    pieces: list[Piece] = []
    for size in sizes:
        pieces += [MADE[:size], words]
    sent = [piece for part in sliced(pieces) for piece in part.pieces]
    assert sum(piece is words for piece in sent) == len(sizes)


def test_slices_double_for_a_reader_who_takes_them_at_once() -> None:
    slices = sliced([bytes(SLICE) for _ in range(20)], LARGEST)
    assert [len(next(slices)) // SLICE for _ in range(5)] == [1, 2, 4, 4, 4]
    time.sleep(2 * AT_ONCE)  # the reader takes its time
    assert len(next(slices)) == SLICE


def test_a_large_piece_is_cut_into_views_of_itself() -> None:
    large = bytes(10 * SLICE)
    sent = [piece for part in sliced([b"head", large, b"tail"]) for piece in part.pieces]
    views = [piece for piece in sent if isinstance(piece, memoryview)]
    assert sum(len(view) for view in views) == len(large)
    assert all(view.obj is large for view in views)


def test_small_pieces_travel_together() -> None:
    assert [part.joined() for part in sliced([b"a", b"b", memoryview(b"c")])] == [b"abc"]
    assert list(sliced([])) == []
    assert list(sliced([b"", memoryview(b"")])) == []
