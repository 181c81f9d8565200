"""A request's body as it goes out: pieces of at most PIECE bytes, files read and base64 made on the way."""

from __future__ import annotations

import binascii
from collections.abc import AsyncIterator, Iterator
from typing import Final

from anyio import to_thread

from streamproxy.core.requests import Decoded, Encoded, Segment, Upload
from streamproxy.errors import Failure, ProxyError

PIECE: Final = 64 * 1024
"""Bytes of a body that are in memory at a time while it is sent."""

_ENCODED: Final = PIECE // 4 * 3
"""Bytes of a file whose base64 is one piece; a multiple of three, so that only the last piece is padded."""


async def pieces(body: tuple[Segment, ...]) -> AsyncIterator[bytes]:
    """The body, piece by piece. Raises ProxyError(UPLOAD_SPOOL) where a file is not what it was."""
    for segment in body:
        match segment:
            case bytes() | memoryview() | Decoded():
                for piece in _at_hand(segment):
                    yield piece
            case Encoded(upload):
                for offset in range(0, upload.size, _ENCODED):
                    raw = await _read(upload, offset, min(_ENCODED, upload.size - offset))
                    yield binascii.b2a_base64(raw, newline=False)
            case _:
                for offset in range(0, segment.size, PIECE):
                    yield await _read(segment, offset, min(PIECE, segment.size - offset))


def _at_hand(segment: bytes | memoryview | Decoded) -> Iterator[bytes]:
    if isinstance(segment, bytes) and len(segment) <= PIECE:
        yield segment
        return
    view = segment.base64 if isinstance(segment, Decoded) else memoryview(segment)
    for offset in range(0, len(view), PIECE):
        piece = view[offset : offset + PIECE]
        yield binascii.a2b_base64(piece) if isinstance(segment, Decoded) else bytes(piece)


async def _read(upload: Upload, offset: int, length: int) -> bytes:
    """Exactly these bytes of a file: with fewer, the provider would wait for the rest until a deadline passes."""
    try:
        piece = await to_thread.run_sync(upload.read, offset, length)
    except Exception:  # the disk's error, or the file has been closed
        piece = b""
    if len(piece) != length:
        raise ProxyError(Failure.UPLOAD_SPOOL, "The stored upload could not be read.")
    return piece
