"""A reader's position in a stream, as the event id that carries it: `<epoch>.<seq>`.

The epoch is the producer's incarnation, seq the position, given once and the same on every replica. Ids hold digits and
one dot: other characters in Last-Event-ID can make a browser ask for permission first (Fetch, CORS-safelisted headers).
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
    """The cursor that a Last-Event-ID says; None for what is none of ours, which resynchronises instead of failing."""
    if text is None or not _ID.fullmatch(text):
        return None
    epoch, _, seq = text.partition(".")
    return Cursor(int(epoch), int(seq))
