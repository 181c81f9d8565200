"""Images as their first bytes and their base64: format, pixel size, transparency, and whether the text can be decoded.

    sniff(start)                        the media type that a file's first bytes say
    probe(data), probe_base64(text)     its header: format, size, transparency
    is_readable(raw, start, end)        whether the base64 of an input image can be decoded, without decoding it
    base64_slices(raw)                  bytes as base64
    decoded(text)                       base64 as bytes

Labels can be wrong (a JPEG announced as PNG, a size that was asked for but not made), so facts come from the bytes.
Only headers are read: no image is decoded, so no decoder's memory or flaws are at stake. A header that is cut off or
makes no sense is None, never an exception.

Strategy: base64 stands inside JSON strings, which may escape it (PHP writes `\\/`, .NET `\\u002B`, MIME encoders
`\\n`). One reader, `_characters`, yields the text slice by slice and decodes only slices with escapes. `probe_base64`
decodes as many slices as the header needs, up to PROBE_LIMIT bytes of image, and gives the same answer as `probe`.
`is_readable` removes the alphabet from each slice with bytes.translate, at half the cost of decoding, and looks at what
is left.

`is_readable` follows WHATWG's forgiving-base64 (Infra Standard), which browsers use for `data:` URLs: the standard
alphabet, white space anywhere, padding present or not. OpenAI's ImageRef takes a URL or a data URL, Octen's `image` a
data URL or bare base64, and neither documents how strictly it reads. Rejected here: only what no decoder could read. A
stricter provider rejects more itself. The media type that a URL names is for the provider to check.

Sources: PNG 3rd edition 5.2, 11.2.1, 11.3.1.1; GIF89a 18, 23; RFC 9649 (WebP) 2.5 to 2.7, RFC 6386 9.1;
ITU-T T.81 B.1.1, B.2.2 (JPEG).
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final, Literal

import msgspec

Format = Literal["png", "jpeg", "webp", "gif"]

PROBE_LIMIT: Final = 1 << 20
"""Bytes of image looked at. A JPEG may carry a colour profile before its size; profiles for print have some 550 KiB."""

SNIFFED: Final = 12
"""First bytes of a file that show which kind of image it is."""

SLICE: Final = 64 * 1024
"""Characters that `is_readable` looks at in one step. Another thread waits at most a tenth of a millisecond for it."""

_WINDOW: Final = 1 << 14
"""Bytes or characters that a probe takes at a time. Most headers are in the first."""
_MOST_PARTS: Final = 1024
"""Segments, chunks or blocks before the size. This bounds a file of nothing but two-byte segments."""
_LONGEST_TEXT: Final = PROBE_LIMIT * 3 // 2
"""Characters of base64 looked at: four for three bytes, and some for line breaks and escapes."""
_ENCODED: Final = 48 * 1024
"""Bytes encoded at a time. The text of each slice is 64 KiB."""

_DECODED: Final = 256 * 1024
"""Characters decoded at a time, a multiple of four."""

_PREFIX: Final = re.compile(rb"data:[^,]{0,256}; {0,9}base64 {0,9},", re.IGNORECASE)
"""Fetch Standard, "data: URL processor". Real prefixes have under 40 bytes."""
_LONGEST_ESCAPE: Final = 6
_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_SPACE: Final = b" \t\n\f\r"


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Stored width and height in pixels (no EXIF rotation); `alpha`: the header allows transparent pixels."""

    format: Format
    width: int
    height: int
    alpha: bool


def media_type(format: Format) -> str:
    """`image/png` for `png`, and so on (RFC 2046, RFC 9649 8.1)."""
    return f"image/{format}"


def sniff(start: bytes) -> str | None:
    """The media type of the image that begins with these SNIFFED bytes; None where they begin no image.

    AVIF and HEIC are recognised too, which `probe` does not measure. SVG is not: it has no magic bytes, and may carry
    scripts.
    """
    return next((found for found, magic in _MAGIC.items() if magic.match(start)), None)


def probe(data: bytes | memoryview) -> ImageInfo | None:
    """Read an image's header; None where it is in another format, or cut off before its size."""
    view = memoryview(data)[:PROBE_LIMIT]
    return _probe(bytes(view[at : at + _WINDOW]) for at in range(0, len(view), _WINDOW))


def probe_base64(text: bytes | memoryview) -> ImageInfo | None:
    """Read the header of an image that stands as base64 (RFC 4648 4) between the quotes of a JSON string.

    Accepts a `data:...;base64,` prefix, white space and JSON escapes.
    """
    start = _base64_start(text, 0, len(text))
    return None if start is None else _probe(_decoded(text, start))


def is_readable(raw: bytes, start: int, end: int) -> bool:
    """Whether raw[start:end], the inside of a JSON string, may be an image as far as its text shows.

    True for http and https URLs. Text without a scheme is base64 itself. No other scheme is fetched by anything here.
    """
    if raw[start : min(end, start + len("https:"))].lower().startswith((b"http:", b"https:")):
        return True
    begin = _base64_start(raw, start, end)
    return begin is not None and _is_base64(raw, begin, end)


def decoded(text: bytes) -> bytes:
    """The bytes of base64 without white space, which may lack its padding. Raises binascii.Error.

    Slice by slice: one call keeps the GIL, and so blocks the event loop even from a thread (8 MB: 29 ms).
    """
    slices = (text[at : at + _DECODED] for at in range(0, len(text), _DECODED))
    return b"".join(binascii.a2b_base64(piece + b"=" * (-len(piece) % 4)) for piece in slices)


def base64_slices(raw: bytes | memoryview) -> Iterator[bytes]:
    """Bytes as base64 text, in slices."""
    view = memoryview(raw)
    for start in range(0, len(view), _ENCODED):
        yield binascii.b2a_base64(view[start : start + _ENCODED], newline=False)


# ----------------------------------------------------------------------------------------- base64 inside a JSON string


def _base64_start(text: bytes | memoryview, start: int, end: int) -> int | None:
    """Where the base64 begins: after the prefix of a `data:` URL. None for a `data:` URL of another encoding."""
    if bytes(text[start : min(end, start + 5)]).lower() != b"data:":
        return start
    prefix = _PREFIX.match(text, start, end)
    return None if prefix is None else prefix.end()


def _characters(text: bytes | memoryview, start: int, end: int, size: int) -> Iterator[bytes]:
    """The characters of text[start:end] in slices of about `size`, with JSON escapes decoded.

    No slice ends within an escape that base64 may have. Raises msgspec.DecodeError or UnicodeError for escapes and
    characters that it may not have.
    """
    while start < end:
        piece = bytes(text[start : min(end, start + size)])
        if start + len(piece) < end and (cut := piece.rfind(b"\\", -_LONGEST_ESCAPE)) > 0:
            piece = piece[:cut]
        start += len(piece)
        yield msgspec.json.decode(b'"' + piece + b'"', type=str).encode("ascii") if b"\\" in piece else piece


def _is_base64(raw: bytes, start: int, end: int) -> bool:
    size = padding = 0
    try:
        for piece in _characters(raw, start, end, SLICE):
            left = piece.translate(None, _ALPHABET)
            size += len(piece) - len(left)
            if not left and not padding:
                continue
            if left.translate(None, _SPACE + b"="):
                return False
            padding += left.count(b"=")
            if padding and piece[piece.find(b"=") if b"=" in left else 0 :].translate(None, _SPACE + b"="):
                return False  # there are characters after the padding
    except (msgspec.DecodeError, UnicodeError):
        return False
    if padding:
        return size > 0 and padding <= 2 and (size + padding) % 4 == 0
    return size > 0 and size % 4 != 1


def _decoded(text: bytes | memoryview, start: int) -> Iterator[bytes]:
    """The image's bytes, window by window. Characters that make no whole group of four go into the next window.

    Ends at the first error.
    """
    left, total = b"", 0
    try:
        for piece in _characters(text, start, min(len(text), start + _LONGEST_TEXT), _WINDOW):
            left += piece.translate(None, _SPACE)
            whole = len(left) & ~3
            chunk = binascii.a2b_base64(left[:whole])[: PROBE_LIMIT - total]
            left, total = left[whole:], total + len(chunk)
            yield chunk
        yield binascii.a2b_base64(left + b"=" * (-len(left) % 4))[: PROBE_LIMIT - total]
    except (binascii.Error, msgspec.DecodeError, UnicodeError):
        return


# -------------------------------------------------------------------------------------------------------------- headers


class _Reader:
    """Reads forward; EOFError where the chunks end first."""

    __slots__ = ("at", "chunk", "chunks")

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks = chunks
        self.chunk = b""
        self.at = 0

    def take(self, size: int) -> bytes:
        piece = self.chunk[self.at : self.at + size]
        self.at += len(piece)
        while len(piece) < size:
            self._next()
            more = self.chunk[: size - len(piece)]
            self.at = len(more)
            piece += more
        return piece

    def skip(self, size: int) -> None:
        while (have := len(self.chunk) - self.at) < size:
            size -= have
            self._next()
        self.at += size

    def _next(self) -> None:
        chunk = next(self.chunks, None)
        if chunk is None:
            raise EOFError
        self.chunk, self.at = chunk, 0


def _probe(chunks: Iterator[bytes]) -> ImageInfo | None:
    reader = _Reader(chunks)
    try:
        start = reader.take(_LONGEST_MAGIC)
        reader = _Reader(chain((start, reader.chunk[reader.at :]), chunks))
        for magic, read in _READERS.items():
            if start.startswith(magic):
                info = read(reader)
                return info if info is not None and info.width and info.height else None
    except EOFError:
        pass
    return None


def _png(reader: _Reader) -> ImageInfo | None:
    reader.skip(8)
    header = reader.take(25)  # length, "IHDR", its 13 bytes, check sum
    if header[:8] != b"\0\0\0\rIHDR":
        return None
    width, height = int.from_bytes(header[8:12]), int.from_bytes(header[12:16])
    alpha = header[17] in (4, 6)  # grey or colour, each with an alpha channel
    return ImageInfo("png", width, height, alpha or _has_trns(reader))


def _has_trns(reader: _Reader) -> bool:
    """Whether a transparency chunk comes before the first image data; False where the file ends before either."""
    try:
        for _ in range(_MOST_PARTS):
            head = reader.take(8)
            if head[4:] in (b"tRNS", b"IDAT", b"IEND"):
                return head[4:] == b"tRNS"
            reader.skip(int.from_bytes(head[:4]) + 4)
    except EOFError:
        pass
    return False


def _gif(reader: _Reader) -> ImageInfo | None:
    screen = reader.take(13)
    if screen[:6] not in (b"GIF87a", b"GIF89a"):
        return None
    width, height = int.from_bytes(screen[6:8], "little"), int.from_bytes(screen[8:10], "little")
    return ImageInfo("gif", width, height, _gif_is_transparent(reader, screen[10]))


def _gif_is_transparent(reader: _Reader, flags: int) -> bool:
    """Whether the first frame's Graphic Control Extension names a transparent colour."""
    try:
        if flags & 0x80:  # a global colour table comes first
            reader.skip(3 << (1 + (flags & 7)))
        label = size = 0
        for _ in range(_MOST_PARTS):
            if size:
                block = reader.take(size)
                if label == 0xF9:
                    return bool(block[0] & 1)
                size = reader.take(1)[0]
            elif reader.take(1) == b"!":
                label, size = reader.take(2)
            else:
                return False
    except EOFError:
        pass
    return False


def _webp(reader: _Reader) -> ImageInfo | None:
    head = reader.take(20)  # "RIFF", size, "WEBP", the first chunk's name and size
    if head[8:12] != b"WEBP":
        return None
    kind = head[12:16]
    if kind == b"VP8X":
        body = reader.take(10)
        width, height = 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
        return ImageInfo("webp", width, height, bool(body[0] & 0x10))
    if kind == b"VP8L":
        body = reader.take(5)
        bits = int.from_bytes(body[1:], "little")
        size = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        return ImageInfo("webp", *size, bool(bits >> 28 & 1)) if body[0] == 0x2F else None
    if kind == b"VP8 ":
        body = reader.take(10)
        size = int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
        key_frame = not body[0] & 1 and body[3:6] == b"\x9d\x01\x2a"
        return ImageInfo("webp", *size, False) if key_frame else None
    return None


def _jpeg(reader: _Reader) -> ImageInfo | None:
    reader.skip(2)
    marker = reader.take(2)
    for _ in range(_MOST_PARTS):
        prefix, code = marker
        if prefix != 0xFF or code in _JPEG_NO_SIZE:
            return None
        if code in _JPEG_FRAMES:
            frame = reader.take(7)  # length, bits per sample, height, width
            return ImageInfo("jpeg", int.from_bytes(frame[5:7]), int.from_bytes(frame[3:5]), False)
        if code == 0xFF:  # any marker may follow fill bytes
            marker = marker[1:] + reader.take(1)
            continue
        if code not in _JPEG_BARE:
            reader.skip(max(0, int.from_bytes(reader.take(2)) - 2))
        marker = reader.take(2)
    return None


_JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""SOF0 to SOF15, without three codes that are tables or reserved."""
_JPEG_BARE: Final = frozenset((0x01, *range(0xD0, 0xD8)))
"""Markers without a length."""
_JPEG_NO_SIZE: Final = frozenset((0x00, 0xD8, 0xD9, 0xDA))
"""Stuffing, a second start, the end, and the scan. A frame header must come before the scan."""

_READERS: Final[dict[bytes, Callable[[_Reader], ImageInfo | None]]] = {
    b"\x89PNG\r\n\x1a\n": _png,
    b"\xff\xd8\xff": _jpeg,
    b"RIFF": _webp,
    b"GIF8": _gif,
}
_LONGEST_MAGIC: Final = 8

_MAGIC: Final = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/webp": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/heic": re.compile(rb".{4}ftyp(?:hei[cxms]|hev[cx]|mif1|msf1)", re.DOTALL),  # ISO/IEC 23008-12, annex B
    "image/avif": re.compile(rb".{4}ftypavi[fs]", re.DOTALL),  # ISO/IEC 14496-12 4.3, AVIF 1.1 section 4
}
"""The first bytes of a file by its media type (WHATWG MIME Sniffing 6.1)."""

NAMES: Final = {"image/heic": "HEIC", "image/avif": "AVIF"}
"""Kinds that are named to a caller because it may not know that it sends them: cameras and browsers choose them."""
