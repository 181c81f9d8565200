"""Request bodies within limits: JSON in memory, multipart files on disk. The only module that parses multipart.

Starlette's parser spools files; ours is that parser with what it leaves open closed: a body without its closing
boundary is refused (it would otherwise arrive as a form without fields), text is UTF-8 or refused, the total is
bounded, and a file leaves memory at 64 KiB.
"""

from __future__ import annotations

import io
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import BinaryIO, Final

import anyio
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from streamproxy.core.requests import Part
from streamproxy.errors import Failure, ProxyError

MAX_PARTS: Final = 100
"""Fields, and files, of one form: images need 17, the request schema has 20 fields."""

MAX_TEXT: Final = 1024 * 1024
"""Bytes of one text field: eight times a 32 000 character prompt of four bytes each."""


def media_type(request: Request) -> str:
    """The request's content type without parameters, lower-case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def unsupported(expected: str) -> ProxyError:
    """415, naming what is accepted."""
    return ProxyError(Failure.UNSUPPORTED_MEDIA_TYPE, f"Send the request with Content-Type: {expected}.")


async def read_json(request: Request, limit: int, pause: float | None = None) -> bytes:
    """The whole body; raises ProxyError(BODY_TOO_LARGE) over `limit` bytes, at once where Content-Length says so, and
    ProxyError(BODY_TIMEOUT) after `pause` seconds without any.
    """
    body = io.BytesIO()  # grows in place, and getvalue hands over what it holds: joined chunks would be there twice
    async for chunk in _bounded(request, limit, "max_json_bytes", pause):
        body.write(chunk)
    return body.getvalue()


async def _bounded(request: Request, limit: int, setting: str, pause: float | None) -> AsyncGenerator[bytes, None]:
    too_large = ProxyError(Failure.BODY_TOO_LARGE, f"The request body is over {limit} bytes. The setting is {setting}.")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise too_large
    size = 0
    chunks = request.stream()
    while True:
        with anyio.move_on_after(pause) as waiting:
            chunk = await anext(chunks, None)
        if waiting.cancelled_caught:
            raise ProxyError(
                Failure.BODY_TIMEOUT, f"The request body paused for {pause:g} s. The setting is receive_timeout."
            )
        if chunk is None:
            return
        size += len(chunk)
        if size > limit:
            raise too_large
        yield chunk


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


async def read_form(request: Request, limit: int, pause: float | None = None) -> Form:
    """Parse a multipart body.

    Keeps no file where it raises: ProxyError(INVALID_MULTIPART, BODY_TOO_LARGE, BODY_TIMEOUT, UPLOAD_CUT or
    UPLOAD_SPOOL).
    """
    parser = _Parser(
        request.headers,
        _bounded(request, limit, "max_upload_bytes", pause),
        max_files=MAX_PARTS,
        max_fields=MAX_PARTS,
        max_part_size=MAX_TEXT,
    )
    try:
        await parser.parse()
        if not parser.ended:
            raise MultiPartException("The closing boundary is missing.")
    except MultiPartException as error:
        parser.close()
        raise ProxyError(Failure.INVALID_MULTIPART, f"The multipart body is not valid: {error.message}") from None
    except OSError as error:
        parser.close()
        raise ProxyError(
            Failure.UPLOAD_SPOOL,
            f"The upload could not be stored ({error.strerror}). Free space in the temporary directory (TMPDIR).",
        ) from None
    except ClientDisconnect:
        parser.close()
        raise ProxyError(Failure.UPLOAD_CUT, "The caller left in the middle of its upload.") from None
    except BaseException:
        parser.close()
        raise
    return Form(tuple(map(_part, parser.items)))


def _part(item: tuple[str, str | UploadFile]) -> Part:
    name, value = item
    if isinstance(value, str):
        return Part(name, value.encode())
    upload = SpooledUpload(value.size or 0, value.file)
    return Part(name, upload, filename=value.filename or "", content_type=value.content_type)


class _Parser(MultiPartParser):
    """Starlette's parser; see the module's text for what it adds."""

    spool_max_size = 64 * 1024
    ended = False

    def close(self) -> None:
        for file in self._files_to_close_on_error:
            file.close()

    def on_part_begin(self) -> None:
        # RFC 7578, 5.1.2: there is no charset for a form. Starlette honours one, and 1 MB of punycode takes minutes.
        self._charset = "utf-8"
        super().on_part_begin()

    def on_part_end(self) -> None:
        if self._current_part.file is None:
            try:
                self._current_part.data.decode()
            except UnicodeDecodeError:
                raise MultiPartException("A text field is not UTF-8.") from None
        super().on_part_end()

    def on_end(self) -> None:
        self.ended = True
