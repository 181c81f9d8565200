"""The form in which a reader wants its previews: at most so many pixels on the longer side, as one kind of file.

    ?preview=512&preview_format=webp            in a query, where a wrong value is refused
    Prefer: preview=512, preview-format=webp    in a header, where it is ignored (RFC 7240, 2)

A preview is a sketch of a picture that is still to come. At 512 pixels it has about 30 kB and not 2 MB.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

PreviewFormat = Literal["webp", "jpeg", "avif", "png"]

FORMATS: Final[tuple[PreviewFormat, ...]] = get_args(PreviewFormat)
"""The first one is the default: every browser has shown it since 2020, and it has transparency."""

LEAST: Final = 16
MOST: Final = 2048
"""Pixels. Most models make 1024: above twice that a preview is not small any more."""

FULL: Final = "full"
"""Previews as they come, for a caller that does not want what the settings say."""

_NUMBER: Final = re.compile(r"[0-9]{1,4}")


@dataclass(frozen=True, slots=True)
class PreviewForm:
    """At most `edge` pixels on the longer side."""

    edge: int
    format: PreviewFormat = FORMATS[0]

    @property
    def query(self) -> str:
        """The form as parameters of a URL that has others before them."""
        return f"&preview={self.edge}&preview_format={self.format}"


def edge_of(text: str) -> int | None:
    """The number of pixels that a text says, None where it says none from LEAST to MOST."""
    edge = int(text) if _NUMBER.fullmatch(text) else 0
    return edge if LEAST <= edge <= MOST else None


def format_of(text: str) -> PreviewFormat | None:
    """The format of that name."""
    return next((format for format in FORMATS if format == text), None)
