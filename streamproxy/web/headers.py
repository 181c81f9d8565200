"""A caller's headers about its request, and about the response it prefers.

preferences        Prefer (RFC 7240)
wait_seconds       its `wait` (4.3)
wants_events       Accept (RFC 9110, 12.5.1)
has_version        If-None-Match (13.1.2)
byte_range         Range and If-Range (14.2, 13.1.5), for bytes that never change
idempotency_key    Idempotency-Key (draft-ietf-httpapi-idempotency-key-header)
is_retry           x-stainless-retry-count: OpenAI's SDKs number their retries
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from starlette.requests import Request

from streamproxy.errors import Failure, ProxyError

_ELEMENT: Final = re.compile(r'(?:"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[^",])++', re.DOTALL)
"""One element of the list. A comma inside a quoted string does not end it; a string without an end has all the rest.

Nothing here may be tried in a second way (`++`): a caller chooses the line, and it may have 32 KiB.
"""

_PREFERENCE: Final = re.compile(
    r"""\s*+ ([!#$%&'*+.^_`|~0-9A-Za-z-]++) \s*+                                  # token
        (?: = \s*+ (?: "((?:[^"\\]|\\.)*+)" | ([^\s;,"]*+) ) \s*+ )?+ (?: ; | \Z )  # BWS "=" BWS word; parameters""",
    re.VERBOSE | re.DOTALL,
)

_WEIGHT: Final = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")

_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)
"""One range of bytes; several, or longer numbers, are answered as if none had been asked for."""

WAIT_MOST: Final = 50
"""Seconds that an answer may be waited for: nginx and HAProxy cut silence at 60 (`proxy_read_timeout`)."""

_KEY: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")
_RETRIES: Final = re.compile(r"0*[1-9][0-9]{0,5}")


def preferences(request: Request) -> Mapping[str, str]:
    """Preference names with their values, both lower-case; "" for one without. Of equal names the first counts."""
    found: dict[str, str] = {}
    for line in request.headers.getlist("prefer"):
        for element in _ELEMENT.findall(line):
            preference = _PREFERENCE.match(element)
            if preference is not None:
                name, quoted, token = preference.groups()
                found.setdefault(name.lower(), (quoted or token or "").lower())
    return found


def wait_seconds(request: Request) -> int | None:
    """How long the caller would rather wait than get an answer without a result, at most WAIT_MOST."""
    value = preferences(request).get("wait", "")
    return min(int(value[:9]), WAIT_MOST) if value.isascii() and value.isdecimal() else None


def wants_events(request: Request) -> bool:
    """Whether a stream is to be sent as events: unless JSON is accepted rather, or events are not accepted at all.

    At the same weight what is named counts before what a wildcard covers, and events before JSON.
    """
    ranges = [_range(part) for line in request.headers.getlist("accept") for part in line.split(",") if part.strip()]
    events = _weight(ranges, "text/event-stream")
    return events[0] > 0 and events >= _weight(ranges, "application/json")


def _range(text: str) -> tuple[str, float]:
    """A media range and its weight; one that is no number counts as 1."""
    kind, *parameters = (part.strip().lower() for part in text.split(";"))
    weight = next((value[2:] for value in parameters if value.startswith("q=")), "1")
    return kind, float(weight) if _WEIGHT.fullmatch(weight) else 1.0


def _weight(ranges: list[tuple[str, float]], kind: str) -> tuple[float, int]:
    """The weight of a media type, and how exactly it is named: as itself, by its family, as anything, or not at all."""
    if not ranges:
        return 1.0, 0
    for exactness, name in ((2, kind), (1, kind.partition("/")[0] + "/*"), (0, "*/*")):
        found = [weight for given, weight in ranges if given == name]
        if found:
            return max(found), exactness
    return 0.0, 0


def has_version(request: Request, etag: str) -> bool:
    """Whether the caller has this version already. Compared weakly: edges weaken the tag of what they compress."""
    given = ",".join(request.headers.getlist("if-none-match"))
    has = {tag.strip().removeprefix("W/") for tag in given.split(",")}
    return etag in has or "*" in has


def byte_range(request: Request, size: int, etag: str) -> tuple[int, int] | None:
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


def idempotency_key(request: Request) -> str | None:
    """The caller's Idempotency-Key. Raises ProxyError(INVALID_REQUEST) for one that cannot be a key."""
    given = request.headers.getlist("idempotency-key")
    if not given:
        return None
    if len(given) > 1 or not _KEY.fullmatch(given[0]):
        raise ProxyError(
            Failure.INVALID_REQUEST,
            "Idempotency-Key must be one header of 1 to 255 visible ASCII characters.",
            param="Idempotency-Key",
        )
    return given[0]


def is_retry(request: Request) -> bool:
    """Whether the caller's SDK says that it sends this request again."""
    return _RETRIES.fullmatch(request.headers.get("x-stainless-retry-count", "")) is not None
