"""What an image's own first bytes say: format, pixel size, whether it can be transparent.

Labels can be wrong (a JPEG announced as PNG, a size that was asked for and not made), so they are taken from the bytes.
Headers only: no picture is decoded, so no decoder's memory or flaws are at stake.

Strategy: one forward reader over chunks, the same for bytes and for base64 text. Text is decoded in windows as far as
the header needs and never twice; both forms give the same answer, and both end after PROBE_LIMIT. What is cut off or
nonsense is None, never an exception.

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
"""Bytes of image looked at. Before its size a JPEG may carry a colour profile; those for print have some 550 KiB."""

SNIFFED: Final = 12
"""First bytes of a file that say which kind of image it is."""

_WINDOW: Final = 1 << 14
_MOST_PARTS: Final = 1024
"""Segments, chunks or blocks before the size: bounds a file that is nothing but two-byte segments."""
_LONGEST_PREFIX: Final = 1024
"""Characters of `data:<media type>[;parameter]*;base64,`."""
_LONGEST_TEXT: Final = PROBE_LIMIT * 3 // 2 + _LONGEST_PREFIX
"""Characters of base64 looked at: four for three bytes, and some for line breaks and escapes."""


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

    AVIF is told too, which `probe` does not measure. SVG is not: it has no magic bytes, and may carry scripts.
    """
    return next((found for found, magic in _MAGIC.items() if magic.match(start)), None)


def probe(data: bytes | memoryview) -> ImageInfo | None:
    """Read an image's header; None where it is none of the four formats, or cut off before its size."""
    view = memoryview(data)[:PROBE_LIMIT]
    return _probe(bytes(view[at : at + _WINDOW]) for at in range(0, len(view), _WINDOW))


def probe_base64(text: bytes | memoryview) -> ImageInfo | None:
    """The same for base64 text (RFC 4648 4), as a JSON string may hold it.

    Accepts a `data:...;base64,` prefix, quotes, line breaks and JSON escapes (PHP writes `\\/`, .NET `\\u002B`).
    """
    head = bytes(memoryview(text)[:_LONGEST_TEXT]).lstrip(b' \t\r\n"')
    if head[:5].lower() == b"data:":
        comma = head.find(b",", 0, _LONGEST_PREFIX)
        if comma < 0 or not head[:comma].rstrip().lower().endswith(b";base64"):
            return None
        head = head[comma + 1 :]
    if b"\\" in head:
        head = head.split(b'"', 1)[0]
        if len(text) > _LONGEST_TEXT and (last := head.rfind(b"\\", -6)) >= 0:
            head = head[:last]  # an escape has up to six characters, and the cut may have gone through it
        try:
            head = msgspec.json.decode(b'"' + head + b'"', type=str).encode()
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
    return _probe(_decoded(head))


def _decoded(text: bytes) -> Iterator[bytes]:
    """Base64 by windows; what is left over from fours goes into the next. Ends at the first error."""
    left, total = b"", 0
    try:
        for at in range(0, len(text), _WINDOW):
            left += text[at : at + _WINDOW].translate(None, b' \t\r\n"')
            whole = len(left) & ~3
            chunk = binascii.a2b_base64(left[:whole])[: PROBE_LIMIT - total]
            left, total = left[whole:], total + len(chunk)
            yield chunk
        yield binascii.a2b_base64(left + b"=" * (-len(left) % 4))[: PROBE_LIMIT - total]
    except binascii.Error:
        return


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
    """Whether a transparency chunk stands before the first image data; False where the file ends before either."""
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
        if code == 0xFF:  # fill bytes may stand before any marker
            marker = marker[1:] + reader.take(1)
            continue
        if code not in _JPEG_BARE:
            reader.skip(max(0, int.from_bytes(reader.take(2)) - 2))
        marker = reader.take(2)
    return None


_JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""SOF0 to SOF15: the other three are tables and a reserved code."""
_JPEG_BARE: Final = frozenset((0x01, *range(0xD0, 0xD8)))
"""Markers without a length."""
_JPEG_NO_SIZE: Final = frozenset((0x00, 0xD8, 0xD9, 0xDA))
"""Stuffing, a second start, the end, and the scan, which nothing but a frame may precede."""

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
"""By media type, what a file of it begins with (WHATWG MIME Sniffing 6.1)."""
