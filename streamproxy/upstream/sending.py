"""A request's body in pieces of at most PIECE bytes. Files are read, and base64 is made, while it is sent."""

from __future__ import annotations

import binascii
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Final

from anyio import to_thread

from streamproxy.core.requests import Decoded, Encoded, Segment, Upload
from streamproxy.errors import Failure, ProxyError

PIECE: Final = 64 * 1024
"""Bytes of a body that are in memory at a time while it is sent."""

_ENCODED: Final = PIECE // 4 * 3
"""Bytes of a file whose base64 is one piece. A multiple of three, so that only the last piece is padded."""


def pieces(body: tuple[Segment, ...]) -> Pieces:
    """The body, piece by piece. Raises ProxyError(UPLOAD_SPOOL) where a file cannot be read, or is too short."""
    return Pieces(body)


class Pieces:
    """See `pieces`. It is not an asynchronous generator, which would have to be closed."""

    def __init__(self, body: tuple[Segment, ...]) -> None:
        self._spans = _spans(body)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for piece in self._spans:
            if isinstance(piece, bytes):
                return piece
            raw = await _read(piece.upload, piece.offset, piece.length)
            return binascii.b2a_base64(raw, newline=False) if piece.as_base64 else raw
        raise StopAsyncIteration


@dataclass(frozen=True, slots=True)
class _Span:
    """A part of a file that is one piece."""

    upload: Upload
    offset: int
    length: int
    as_base64: bool


def _spans(body: tuple[Segment, ...]) -> Iterator[bytes | _Span]:
    """The body in pieces. Short segments are joined, because each piece is a write, and often a packet."""
    short = bytearray()
    for segment in body:
        if isinstance(segment, bytes | memoryview) and len(short) + len(segment) <= PIECE:
            short += segment
            continue
        if short:
            yield bytes(short)
            short.clear()
        match segment:
            case bytes() | memoryview() | Decoded():
                yield from _at_hand(segment)
            case Encoded(upload):
                yield from _of_file(upload, _ENCODED, as_base64=True)
            case _:
                yield from _of_file(segment, PIECE, as_base64=False)
    if short:
        yield bytes(short)


def _at_hand(segment: bytes | memoryview | Decoded) -> Iterator[bytes]:
    if isinstance(segment, bytes) and len(segment) <= PIECE:
        yield segment
        return
    view = segment.base64 if isinstance(segment, Decoded) else memoryview(segment)
    for offset in range(0, len(view), PIECE):
        piece = view[offset : offset + PIECE]
        yield binascii.a2b_base64(piece) if isinstance(segment, Decoded) else bytes(piece)


def _of_file(upload: Upload, length: int, *, as_base64: bool) -> Iterator[_Span]:
    for offset in range(0, upload.size, length):
        yield _Span(upload, offset, min(length, upload.size - offset), as_base64)


async def _read(upload: Upload, offset: int, length: int) -> bytes:
    """Read exactly these bytes of a file. With fewer, the provider would wait for the rest until a deadline."""
    try:
        piece = await to_thread.run_sync(upload.read, offset, length)
    except Exception:  # an error of the disk, or a closed file
        piece = b""
    if len(piece) != length:
        raise ProxyError(Failure.UPLOAD_SPOOL, "The stored upload could not be read.")
    return piece
