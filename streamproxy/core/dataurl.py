"""Input images inside JSON: whether their base64 can be decoded at all, told without decoding it.

OpenAI's ImageRef takes a URL or a data URL, Octen's `image` a data URL or bare base64, and neither says how strictly it
reads. What counts here is WHATWG's forgiving-base64 (Infra Standard), the rule browsers keep for `data:` URLs: the
standard alphabet, white space anywhere, padding right or left out. Who reads more strictly refuses by itself; what
fails here nobody can read. Which media type a URL names is the provider's matter.

Strategy: bytes.translate takes the alphabet out of slices, at half the cost of decoding, and what is left is looked at.
Only slices with escapes are decoded before that: encoders write `\\/` (PHP), `\\u002B` (.NET) and `\\n` (MIME).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

SLICE: Final = 64 * 1024
"""Bytes looked at in one step, so that another thread waits for a tenth of a millisecond at the most."""

_PREFIX: Final = re.compile(rb"data:[^,]{0,256}; {0,9}base64 {0,9},", re.IGNORECASE)
"""Fetch Standard, "data: URL processor"; real ones have under 40 bytes."""

_LONGEST_SCHEME: Final = 16
_LONGEST_ESCAPE: Final = 6
_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_SPACE: Final = b" \t\n\f\r"


def is_readable(raw: bytes, start: int, end: int, *, bare: bool = False) -> bool:
    """Whether raw[start:end], what a JSON string has between its quotes, may be an image for all that base64 says.

    True for every URL but `data:` ones. `bare`: text without a scheme is base64 itself.
    """
    scheme = raw[start : min(end, start + _LONGEST_SCHEME)]
    if scheme[:5].lower() == b"data:":
        prefix = _PREFIX.match(raw, start, end)
        return prefix is not None and _is_base64(raw, prefix.end(), end)
    return not bare or b":" in scheme or _is_base64(raw, start, end)


def _is_base64(raw: bytes, start: int, end: int) -> bool:
    size = padding = 0
    try:
        for piece in _unescaped(raw, start, end):
            left = piece.translate(None, _ALPHABET)
            size += len(piece) - len(left)
            if not left and not padding:
                continue
            if left.translate(None, _SPACE + b"="):
                return False
            padding += left.count(b"=")
            if padding and piece[piece.find(b"=") if b"=" in left else 0 :].translate(None, _SPACE + b"="):
                return False  # something stands behind the padding
    except (msgspec.DecodeError, UnicodeError):
        return False
    if padding:
        return size > 0 and padding <= 2 and (size + padding) % 4 == 0
    return size > 0 and size % 4 != 1


def _unescaped(raw: bytes, start: int, end: int) -> Iterator[bytes]:
    """The string's characters, slice by slice, none of which ends within an escape that base64 may have."""
    while start < end:
        piece = raw[start : min(end, start + SLICE)]
        if start + len(piece) < end and (cut := piece.rfind(b"\\", -_LONGEST_ESCAPE)) > 0:
            piece = piece[:cut]
        start += len(piece)
        yield msgspec.json.decode(b'"' + piece + b'"', type=str).encode("ascii") if b"\\" in piece else piece
