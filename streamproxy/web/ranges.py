"""Conditional and partial answers for bytes that never change (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from streamproxy.web.responses import Answer

_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)
"""One range of bytes; several, or longer numbers, are answered as if none had been asked for."""


def partial(request: Request, body: bytes, content_type: str, headers: Mapping[str, str]) -> ASGIApp:
    """200, 304 where the caller has it, 206 for one range, 416 for one beyond the end. `headers` hold the etag."""
    etag = headers["etag"]
    given = ",".join(request.headers.getlist("if-none-match"))
    has = {tag.strip().removeprefix("W/") for tag in given.split(",")}  # compared weakly: edges weaken what they zip
    if etag in has or "*" in has:
        return Response(status_code=304, headers=headers)  # without a length, which would be the picture's
    size = len(body)
    ranged = {**headers, "accept-ranges": "bytes"}
    span = _span(request, size, etag)
    if span is None:
        return Answer(200, content_type, (body,), ranged)
    start, end = span
    if start >= end:
        return Answer(416, content_type, (), {**ranged, "content-range": f"bytes */{size}"})
    view = memoryview(body)[start:end]
    return Answer(206, content_type, (view,), {**ranged, "content-range": f"bytes {start}-{end - 1}/{size}"})


def _span(request: Request, size: int, etag: str) -> tuple[int, int] | None:
    """The bytes asked for as [start, end); None for all of them, which a server may always send."""
    found = _RANGE.fullmatch(request.headers.get("range", ""))
    if found is None or request.headers.get("if-range", etag) != etag:
        return None
    first, last = found.groups()
    if first:
        end = min(int(last) + 1, size) if last else size
        return None if last and int(last) < int(first) else (int(first), end)
    if not last:
        return None
    return max(0, size - int(last)), size if int(last) else 0
