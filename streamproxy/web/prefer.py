"""The Prefer header (RFC 7240): how a caller would like its answer."""

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
