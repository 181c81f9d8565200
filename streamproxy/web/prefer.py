"""How a caller would like its answer: the Prefer header (RFC 7240), and what it accepts (RFC 9110, 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from starlette.requests import Request

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
