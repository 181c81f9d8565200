"""A request's body as it goes out: pieces that are neither too large nor needlessly small."""

from __future__ import annotations

import pytest

from streamproxy.core.requests import Segment
from streamproxy.upstream.sending import PIECE, pieces

pytestmark = pytest.mark.anyio

A, B = b"a" * (PIECE - 1), b"b" * (PIECE + 1)


@pytest.mark.parametrize(
    ("body", "sizes"),
    [
        ((b"a", b"bc", b"def"), [6]),
        ((A, b"b", b"c"), [PIECE, 1]),
        ((b"a", B, b"c", b"d"), [1, PIECE, 1, 2]),
        ((b"a", memoryview(b"b"), b"c"), [3]),
        ((b"a", memoryview(B), b"c"), [1, PIECE, 1, 1]),
        ((), []),
    ],
    ids=["short ones", "up to a piece", "round a long one", "with a view", "round a long view", "none"],
)
async def test_short_segments_in_a_row_are_one_piece(body: tuple[Segment, ...], sizes: list[int]) -> None:
    sent = [piece async for piece in pieces(body)]
    assert list(map(len, sent)) == sizes
    assert b"".join(sent) == b"".join(bytes(segment) for segment in body if isinstance(segment, bytes | memoryview))
