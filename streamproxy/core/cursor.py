"""A reader's position in a stream, as an event id: `<epoch>.<seq>`.

The epoch counts the producer's starts. seq is the position, assigned once and the same on every replica. Ids have only
digits and one dot: other characters in Last-Event-ID can cause a preflight request (Fetch, CORS-safelisted headers).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_ID: Final = re.compile(r"[0-9]{1,10}\.[0-9]{1,10}")


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """The last event a reader has: seq counts from 1, so 0 is the position before the first."""

    epoch: int
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.seq}"


def parse_cursor(text: str | None) -> Cursor | None:
    """The cursor of a Last-Event-ID; None for a foreign id, whose reader starts over instead of failing."""
    if text is None or not _ID.fullmatch(text):
        return None
    epoch, _, seq = text.partition(".")
    return Cursor(int(epoch), int(seq))
