"""A body on its way to the server: cut into slices, each of them pieces that are written without being joined.

The server waits until a slice has left before it takes the next one, so a stuck reader holds one slice. Its pieces are
the very objects that the provider's bytes arrived in, shared by all readers of an event.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import monotonic
from typing import Final

from streamproxy.core.sse import Piece

SLICE: Final = 64 * 1024
"""Bytes of a slice for a slow reader, and of the first one where no larger one is allowed."""

LARGEST: Final = 4 * SLICE
"""What slices grow to, by doubling, while they are taken at once: fewer of them cost less CPU per byte. It bounds what
a reader that stops holds, and how long half a preview delays the image behind it."""

AT_ONCE: Final = 0.005
"""Seconds. A slice that the kernel has room for takes under 1 ms."""

WHOLE: Final = 1024
"""Bytes of a piece that is not cut, so that words of a layout, such as an event's end, go out whole."""

PIECES: Final = "streamproxy.pieces"
"""ASGI extension of our server: the body of a message may be `Pieces`."""


class Pieces:
    """A slice: bytes in pieces. Its length is that of the bytes."""

    __slots__ = ("_size", "pieces")

    def __init__(self, pieces: Sequence[Piece], size: int) -> None:
        self.pieces = pieces
        self._size = size

    def __len__(self) -> int:
        return self._size

    def joined(self) -> Piece:
        """The same bytes as one object."""
        return self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)


def sliced(pieces: list[Piece], largest: int = SLICE) -> Iterator[Pieces]:
    """The same bytes in slices of SLICE, which double up to `largest` as long as they are taken at once.

    The list is emptied on the way, so that sent pieces without another owner are freed. How long the reader
    takes is how long it is until the next slice is asked for.
    """
    most = SLICE
    pieces.reverse()
    while pieces:
        part, size = _next_slice(pieces, most)
        if not size:
            continue
        whole = Pieces(part, size)
        began = monotonic()
        del part
        yield whole
        del whole
        most = min(2 * most, largest) if monotonic() - began < AT_ONCE else SLICE


def _next_slice(pieces: list[Piece], most: int) -> tuple[list[Piece], int]:
    """Take at most so many bytes from the end of `pieces`."""
    part: list[Piece] = []
    size = 0
    while pieces and size < most:
        piece = pieces.pop()
        room = most - size
        if len(piece) > room:
            if len(piece) <= WHOLE and part:
                pieces.append(piece)
                break
            view = memoryview(piece)
            pieces.append(view[room:])
            piece = view[:room]
        if piece:
            part.append(piece)
            size += len(piece)
    return part, size
