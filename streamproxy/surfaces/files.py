"""Uploaded files as callers speak of them: OpenAI's files API, and Eden AI's upload.

    uploaded(parts), uploaded_to_eden(parts)      a form's parts -> the file, and what of the form is not applied
    described(record), described_by_eden(record)  a file as each of them describes it
    page(query), listing(records, page)           OpenAI's list, in pages

Only images are taken: nothing else can be used here. Their first bytes say what they are, whatever their name.

Sources: OpenAI's CreateFileRequest, FileExpirationAfter and ListFilesResponse; Eden AI's guide to POST /v3/upload.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from streamproxy.core.files import FileRecord, NewFile
from streamproxy.core.images import SNIFFED, sniff
from streamproxy.core.rawjson import shown
from streamproxy.core.requests import Part
from streamproxy.errors import ErrorDetails, Failure, Problem, ProxyError

PURPOSES: Final = ("vision", "user_data")
"""OpenAI's purposes that images have as inputs."""

MAX_NAME: Final = 255
"""Characters of a file's name, as most file systems have it."""

MAX_EDEN_PURPOSE: Final = 50
EDEN_PURPOSE: Final = "general"
DAY: Final = 86_400
SECONDS: Final = (3600, 2_592_000)
DAYS: Final = (1, 30)
MAX_PAGE: Final = 10_000

_ANCHOR: Final = "expires_after[anchor]"
_SECONDS: Final = "expires_after[seconds]"
_DAYS: Final = "expires_in_days"


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A form with a file. `unknown`: names of its other parts, which mean nothing here. `lifetime`: that of its part
    that says how long the file is to be kept."""

    file: NewFile
    unknown: tuple[str, ...]
    lifetime: str

    def not_applied(self, record: FileRecord) -> tuple[str, ...]:
        """Names of the parts that were not applied to the file that is kept now."""
        shortened = self.file.seconds is not None and record.expires - record.created < self.file.seconds
        return (*self.unknown, *((self.lifetime,) if shortened else ()))


def uploaded(parts: tuple[Part, ...]) -> Uploaded:
    """OpenAI's form: `file`, `purpose`, `expires_after[...]`. Reads the file's first bytes, so in a worker thread.

    Raises ProxyError: INVALID_REQUEST with the field, UNREADABLE_IMAGE for a file that is no image.
    """
    text = _texts(parts)
    purpose = text.pop("purpose", None)
    if purpose is None:
        raise _invalid("purpose", "Field required", "missing")
    if purpose not in PURPOSES:
        raise _invalid("purpose", f"Input should be one of {', '.join(PURPOSES)}: only images are kept here", "enum")
    if text.pop(_ANCHOR, "created_at") != "created_at":
        raise _invalid(_ANCHOR, "Input should be 'created_at'", "literal_error")
    given = text.pop(_SECONDS, None)
    seconds = None if given is None else _integer(_SECONDS, given, SECONDS)
    return _uploaded(parts, purpose, seconds, _shown(text), "expires_after")


def uploaded_to_eden(parts: tuple[Part, ...]) -> Uploaded:
    """Eden AI's form: `file`, `purpose` in any words, `expires_in_days`. Reads and raises as `uploaded`."""
    text = _texts(parts)
    purpose = text.pop("purpose", EDEN_PURPOSE)
    if not 1 <= len(purpose) <= MAX_EDEN_PURPOSE:
        raise _invalid("purpose", f"String should have 1 to {MAX_EDEN_PURPOSE} characters", "string_length")
    given = text.pop(_DAYS, None)
    seconds = None if given is None else DAY * _integer(_DAYS, given, DAYS)
    return _uploaded(parts, purpose, seconds, _shown(text), _DAYS)


def _uploaded(
    parts: tuple[Part, ...], purpose: str, seconds: int | None, unknown: tuple[str, ...], lifetime: str
) -> Uploaded:
    files = [part for part in parts if part.filename is not None]
    other = next((place for place, part in enumerate(parts, 1) if part in files and part.name != "file"), None)
    if other is not None:
        raise _invalid(
            shown(parts[other - 1].name, other),
            "Extra inputs are not permitted: the file's part is named file",
            "extra_forbidden",
        )
    if not files:
        raise _invalid("file", "Field required, as a file", "missing")
    if len(files) > 1:
        raise _invalid("file", "Value error, one file at a time", "value_error")
    return Uploaded(_file(files[0], purpose, seconds), unknown, lifetime)


def _file(part: Part, purpose: str, seconds: int | None) -> NewFile:
    name = part.filename or "file"
    if len(name) > MAX_NAME:
        raise _invalid("file", f"Value error, its name has more than {MAX_NAME} characters", "value_error")
    if isinstance(part.value, bytes):
        raise TypeError("a file part is spooled")
    if not part.value.size:
        raise _invalid("file", "Value error, the file is empty", "value_error")
    kind = sniff(part.value.read(0, SNIFFED))
    if kind is None:
        raise ProxyError(
            Failure.UNREADABLE_IMAGE,
            "The file is no image by its first bytes: upload a PNG, JPEG, WebP, GIF, AVIF or HEIC file.",
            param="file",
        )
    return NewFile(part.value, name, kind, purpose, seconds)


def described(record: FileRecord) -> dict[str, object]:
    """OpenAI's file object."""
    return {
        "id": record.id,
        "object": "file",
        "bytes": record.size,
        "created_at": record.created,
        "expires_at": record.expires,
        "filename": record.name,
        "purpose": record.purpose,
        "status": "processed",
        "status_details": None,
    }


def described_by_eden(record: FileRecord) -> dict[str, object]:
    """Eden AI's answer to an upload."""
    return {
        "file_id": record.id,
        "file_name": record.name,
        "file_size": record.size,
        "file_mimetype": record.media_type,
        "purpose": record.purpose,
        "created_at": datetime.fromtimestamp(record.created, UTC).isoformat(),
        "expires_at": datetime.fromtimestamp(record.expires, UTC).isoformat(),
        "metadata": {},
    }


def deleted(id: str) -> dict[str, object]:
    """OpenAI's answer to a deletion."""
    return {"id": id, "object": "file", "deleted": True}


@dataclass(frozen=True, slots=True)
class Page:
    """What of a list is asked for: at most `limit` files behind the one with the id `after`."""

    limit: int
    newest_first: bool
    after: str | None
    purpose: str | None


def page(query: Mapping[str, str]) -> Page:
    """The query of a list. Raises ProxyError(INVALID_REQUEST)."""
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise _invalid("order", "Input should be 'asc' or 'desc'", "enum")
    limit = _integer("limit", query.get("limit", str(MAX_PAGE)), (1, MAX_PAGE))
    return Page(limit, order == "desc", query.get("after"), query.get("purpose"))


def listing(records: Sequence[FileRecord], asked: Page) -> dict[str, object]:
    """OpenAI's list of these files, which are in the order of their creation.

    Raises ProxyError(FILE_NOT_FOUND) where `after` is none of them.
    """
    found = [record for record in records if asked.purpose in (None, record.purpose)]
    if asked.newest_first:
        found.reverse()
    begin = 0
    if asked.after is not None:
        places = [place for place, record in enumerate(found, 1) if record.id == asked.after]
        if not places:
            raise ProxyError(Failure.FILE_NOT_FOUND, "No such file in this list, or no longer.", param="after")
        begin = places[0]
    part = found[begin : begin + asked.limit]
    return {
        "object": "list",
        "data": [described(record) for record in part],
        "first_id": part[0].id if part else None,
        "last_id": part[-1].id if part else None,
        "has_more": begin + len(part) < len(found),
    }


def _texts(parts: tuple[Part, ...]) -> dict[str, str]:
    """The text parts by name. Raises ProxyError(INVALID_REQUEST) for one that comes twice."""
    text: dict[str, str] = {}
    for place, part in enumerate(parts, 1):
        if part.filename is None and isinstance(part.value, bytes):
            if part.name in text:
                raise _invalid(shown(part.name, place), "Value error, the part was sent more than once", "value_error")
            text[part.name] = part.value.decode()
    if "file" in text:
        raise _invalid("file", "Value error, expected a file", "value_error")
    return text


def _shown(text: Mapping[str, str]) -> tuple[str, ...]:
    """Names of parts as an answer may show them: they are the caller's words."""
    return tuple(shown(name, place) for place, name in enumerate(text, 1))


def _integer(name: str, text: str, bounds: tuple[int, int]) -> int:
    low, high = bounds
    value = int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else -1
    if not low <= value <= high:
        raise _invalid(name, f"Input should be an integer from {low} to {high}", "int_parsing")
    return value


def _invalid(name: str, msg: str, type: str) -> ProxyError:
    problem = Problem(("body", name), msg, type)
    details = ErrorDetails(problems=(problem,))
    return ProxyError(Failure.INVALID_REQUEST, f"{name}: {msg}", param=name, details=details)
