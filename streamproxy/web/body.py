"""Request bodies within limits: JSON in memory, multipart files on disk. The only module that parses multipart.

    intake = Intake(...)                 one for the app: what it may hold at a time is counted over all callers
    body = await intake.read_json(request)
    form = await intake.read_form(request)

Starlette's parser spools files; ours is that parser with what it leaves open closed: a body without its closing
boundary is refused (it would otherwise arrive as a form without fields), text is UTF-8 or refused, the total is
bounded, a file leaves memory at 64 KiB, and what programs send as a file is one: with or without a name, in base64 or
quoted-printable, whatever type it is said to have.
"""

from __future__ import annotations

import binascii
import io
import threading
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import BinaryIO, Final

import anyio
import anyio.lowlevel
from anyio import to_thread
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from streamproxy.core.forms import is_image_part
from streamproxy.core.images import SNIFFED, sniff
from streamproxy.core.requests import Part
from streamproxy.errors import Failure, ProxyError, descriptors_exhausted

MAX_PARTS: Final = 100
"""Fields, and files, of one form: images need 17, the request schema has 20 fields."""

MAX_TEXT: Final = 1024 * 1024
"""Bytes of one text field: eight times a 32 000 character prompt of four bytes each."""

SAYS_NOTHING: Final = (None, "", "application/octet-stream", "binary/octet-stream")
"""Content types of a file part that leave it to the bytes. curl, axios, aiohttp and Go's clients send them."""

LARGE: Final = 1024 * 1024
"""Bytes from which on a body takes milliseconds, so that one is handled in a turn of the event loop. Fewer have to come
before room is made for the rest: a head alone costs nothing."""

IDENTITY: Final = ("", "identity")


@dataclass(slots=True)
class Budget:
    """Bytes of request bodies that may be in memory at a time, over all callers."""

    limit: int
    held: int = 0

    def take(self, size: int) -> None:
        """Raises ProxyError(OVERLOADED) where there is no room for so many more."""
        if self.held + size > self.limit:
            raise ProxyError(
                Failure.OVERLOADED,
                "Too many bytes of request bodies are in memory. The setting is max_body_memory; files of a multipart "
                "body are kept on disk.",
                retry_after="2",
            )
        self.held += size


@dataclass(slots=True)
class Share:
    """One body's part of the budget, until `close`."""

    budget: Budget
    size: int = 0

    def grow(self, size: int) -> None:
        """Take `size` bytes in all. Raises ProxyError(OVERLOADED) where there is no room for them."""
        if size > self.size:
            self.budget.take(size - self.size)
            self.size = size

    def close(self) -> None:
        self.budget.held -= self.size
        self.size = 0


@dataclass(slots=True)
class JsonBody:
    """A whole JSON body. `close` gives back what it takes of the budget."""

    raw: bytes = field(repr=False)
    close: Callable[[], None]


def media_type(request: Request) -> str:
    """The request's content type without parameters, lower-case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def unsupported(expected: str) -> ProxyError:
    """415, naming what is accepted."""
    return ProxyError(Failure.UNSUPPORTED_MEDIA_TYPE, f"Send the request with Content-Type: {expected}.")


@dataclass(frozen=True, slots=True)
class Intake:
    """Reads bodies. `json` and `upload` bound one body in bytes.

    A caller may pause for `pause` seconds, and beyond these has to send `rate` bytes a second on the average, so that
    the time a body may take follows from its size.
    """

    json: int
    upload: int
    pause: float
    rate: float
    budget: Budget
    large: anyio.Lock = field(default_factory=anyio.Lock)

    async def read_json(self, request: Request) -> JsonBody:
        """The whole body.

        Raises ProxyError: BODY_TOO_LARGE over the limit and OVERLOADED over the budget, both at once where
        Content-Length says so; BODY_TIMEOUT; UNSUPPORTED_MEDIA_TYPE for one that is compressed.
        """
        announced = _announced(request)
        share = Share(self.budget)
        share.grow(announced if announced is not None and announced <= self.json else 0)
        body = io.BytesIO()  # getvalue hands over what it holds: joined chunks would be there twice
        try:
            async for chunk in self._chunks(request, self.json, "max_json_bytes"):
                size = body.tell() + len(chunk)
                share.grow(size)
                if body.tell() < LARGE <= size < share.size:
                    await self._reserve(body, share.size)
                body.write(chunk)
            if body.tell() >= LARGE:
                await self._turn()
            body.truncate()
        except BaseException:
            share.close()
            raise
        return JsonBody(body.getvalue(), share.close)

    async def _turn(self) -> None:
        """Wait for a turn of the event loop in which no other large body is reserved or parsed."""
        async with self.large:
            await anyio.lowlevel.checkpoint()

    async def _reserve(self, body: io.BytesIO, size: int) -> None:
        """Room for all that has been announced: a body that grows to 24 MB is copied some ten times on its way."""
        await self._turn()
        at = body.tell()
        body.seek(size - 1)
        body.write(b"\0")
        body.seek(at)

    async def read_form(self, request: Request) -> Form:
        """Parse a multipart body.

        Keeps no file where it raises: ProxyError(INVALID_MULTIPART, BODY_TOO_LARGE, BODY_TIMEOUT, UPLOAD_CUT,
        UPLOAD_SPOOL or UNSUPPORTED_MEDIA_TYPE).
        """
        chunks = self._chunks(request, self.upload, "max_upload_bytes")
        parser = _Parser(request.headers, chunks, max_files=MAX_PARTS, max_fields=MAX_PARTS, max_part_size=MAX_TEXT)
        try:
            await parser.parse()
            if not parser.ended:
                raise MultiPartException("The closing boundary is missing.")
            return Form(await to_thread.run_sync(parser.parts))
        except MultiPartException as error:
            parser.close()
            message = f"The multipart body is not valid: {error.message}"
            raise ProxyError(Failure.INVALID_MULTIPART, message) from None
        except OSError as error:
            parser.close()
            raise descriptors_exhausted(error) or ProxyError(
                Failure.UPLOAD_SPOOL,
                f"The upload could not be stored ({error.strerror}). Free space in the temporary directory (TMPDIR).",
            ) from None
        except ClientDisconnect:
            parser.close()
            raise ProxyError(Failure.UPLOAD_CUT, "The caller left in the middle of its upload.") from None
        except BaseException:
            parser.close()
            raise

    async def _chunks(self, request: Request, limit: int, setting: str) -> AsyncGenerator[bytes, None]:
        if request.headers.get("content-encoding", "").strip().lower() not in IDENTITY:
            raise ProxyError(
                Failure.UNSUPPORTED_MEDIA_TYPE,
                "Compressed request bodies are not taken: send the body as it is, without Content-Encoding (identity).",
            )
        too_large = ProxyError(
            Failure.BODY_TOO_LARGE, f"The request body is over {limit} bytes. The setting is {setting}."
        )
        if (_announced(request) or 0) > limit:
            raise too_large
        size = 0
        began = anyio.current_time()
        more = True
        while more:
            with anyio.move_on_after(self.pause) as waiting:
                message = await request.receive()
            if waiting.cancelled_caught:
                raise _too_slow(f"paused for {self.pause:g} s. The setting is receive_timeout.")
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            more = message.get("more_body", False)
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > limit:
                raise too_large
            if anyio.current_time() > began + self.pause + size / self.rate:
                raise _too_slow(f"came at less than {self.rate:g} bytes a second. The setting is receive_rate.")
            yield chunk


def _announced(request: Request) -> int | None:
    length = request.headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdecimal() and len(length) < 19 else None


def _too_slow(how: str) -> ProxyError:
    return ProxyError(Failure.BODY_TIMEOUT, f"The request body {how}")


@dataclass(frozen=True, slots=True)
class SpooledUpload:
    """An uploaded file in its temporary file: `core.requests.Upload`."""

    size: int
    file: BinaryIO = field(repr=False)
    lock: threading.Lock = field(repr=False, default_factory=threading.Lock)

    def read(self, offset: int, length: int) -> bytes:
        """`core.requests.Upload.read`; raises OSError once it is closed."""
        with self.lock:
            if self.file.closed:
                raise OSError("the upload is closed")
            self.file.seek(offset)
            return self.file.read(length)

    def close(self) -> None:
        """Give the file back. A read that runs in another thread is waited for: it has one piece to copy."""
        with self.lock:
            self.file.close()


@dataclass(slots=True)
class Form:
    """A multipart body's parts in order. `close` gives its files back; the request is over then."""

    parts: tuple[Part, ...]

    def close(self) -> None:
        for part in self.parts:
            if isinstance(part.value, SpooledUpload):
                part.value.close()


class _Parser(MultiPartParser):
    """Starlette's parser; see the module's text for what it adds."""

    spool_max_size = 64 * 1024
    ended = False
    _decoder: _Base64 | _QuotedPrintable | None = None

    def close(self) -> None:
        for file in self._files_to_close_on_error:
            file.close()

    def on_part_begin(self) -> None:
        # RFC 7578, 5.1.2: there is no charset for a form. Starlette honours one, and 1 MB of punycode takes minutes.
        self._charset = "utf-8"
        super().on_part_begin()

    def on_headers_finished(self) -> None:
        headers = dict(self._current_part.item_headers)
        encoding = headers.get(b"content-transfer-encoding", b"").strip().lower()
        if encoding not in _ENCODINGS:
            raise MultiPartException(
                "A part has a Content-Transfer-Encoding that is none of 7bit, 8bit, binary, base64, quoted-printable."
            )
        made = _ENCODINGS[encoding]
        self._decoder = None if made is None else made()
        disposition = self._current_part.content_disposition or b""
        if not _has_filename(disposition) and self._is_file(headers.get(b"content-type", b""), disposition):
            # Starlette knows a file by its name alone.
            self._current_part.content_disposition = disposition + b'; filename="' + NAMELESS + b'"'
        super().on_headers_finished()

    def _is_file(self, content_type: bytes, disposition: bytes) -> bool:
        _, options = parse_options_header(disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        return content_type.strip().lower().startswith(b"image/") or is_image_part(name) or name == "mask"

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._decoder is not None:
            data = self._decoder.feed(data[start:end])
            start, end = 0, len(data)
        super().on_part_data(data, start, end)

    def on_part_end(self) -> None:
        if self._decoder is not None:
            rest = self._decoder.finish()
            super().on_part_data(rest, 0, len(rest))
        if self._current_part.file is None:
            try:
                self._current_part.data.decode()
            except UnicodeDecodeError:
                raise MultiPartException("A text field is not UTF-8.") from None
        super().on_part_end()

    def on_end(self) -> None:
        self.ended = True

    def parts(self) -> tuple[Part, ...]:
        """The parts in order. Reads the files' first bytes, so it is a worker thread's to call."""
        made = (_part(name, value) for name, value in self.items)
        return tuple(part for part in made if part is not None)


NAMELESS: Final = b"-nameless-"
"""The file name of a part that came without one, until its bytes give it another."""


def _has_filename(disposition: bytes) -> bool:
    return b"filename" in parse_options_header(disposition)[1]


def _part(name: str, value: str | UploadFile) -> Part | None:
    """A part as it goes on; None for the empty file of a form whose file input was left alone."""
    if isinstance(value, str):
        return Part(name, value.encode())
    upload = SpooledUpload(value.size or 0, value.file)
    named = value.filename != NAMELESS.decode()
    if not upload.size and not value.filename:
        upload.close()
        return None
    head = upload.read(0, SNIFFED)
    kind = sniff(head)
    if not named and value.content_type is None and kind is None and (text := _text(upload)) is not None:
        upload.close()
        return Part(name, text)
    content_type = kind if kind is not None and value.content_type in SAYS_NOTHING else value.content_type
    filename = value.filename or "" if named else f"{name.partition('[')[0]}.{_extension(kind)}"
    return Part(name, upload, filename=filename, content_type=content_type)


def _extension(kind: str | None) -> str:
    return (kind or "image/png").removeprefix("image/")


def _text(upload: SpooledUpload) -> bytes | None:
    """The content of a part without a file name, if that is text."""
    if upload.size > MAX_TEXT:
        return None
    raw = upload.read(0, upload.size)
    try:
        raw.decode()
    except UnicodeDecodeError:
        return None
    return raw


class _Base64:
    """Decodes base64 with line breaks, piece by piece (RFC 2045, 6.8)."""

    def __init__(self) -> None:
        self._left = b""

    def feed(self, data: bytes) -> bytes:
        text = self._left + data.translate(None, b" \t\r\n")
        whole = len(text) & ~3
        self._left = text[whole:]
        try:
            return binascii.a2b_base64(text[:whole], strict_mode=True) if whole else b""
        except binascii.Error:
            raise MultiPartException("A part is said to be base64 and is not.") from None

    def finish(self) -> bytes:
        if self._left:
            raise MultiPartException("A part is said to be base64 and breaks off.")
        return b""


class _QuotedPrintable:
    """Decodes quoted-printable, line by line (RFC 2045, 6.7)."""

    LINE: Final = 1024
    """Bytes held for the end of a line, which the standard puts at 76 at the latest."""

    def __init__(self) -> None:
        self._left = b""

    def feed(self, data: bytes) -> bytes:
        text = self._left + data
        end = text.rfind(b"\n") + 1
        if len(text) - end > self.LINE:
            raise MultiPartException("A part is said to be quoted-printable and has a line that is too long.")
        self._left = text[end:]
        return binascii.a2b_qp(text[:end])

    def finish(self) -> bytes:
        return binascii.a2b_qp(self._left)


_ENCODINGS: Final[dict[bytes, type[_Base64 | _QuotedPrintable] | None]] = {
    **dict.fromkeys((b"", b"7bit", b"8bit", b"binary")),
    b"base64": _Base64,
    b"quoted-printable": _QuotedPrintable,
}
