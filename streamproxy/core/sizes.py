"""OpenAI's sizes in other providers' terms: the nearest aspect ratio, a tier, or edges that a model can make.

What was made is told by the picture itself: a `completed` event has the size that its bytes have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log, sqrt
from typing import Final

MEGAPIXEL: Final = 1024 * 1024
"""What providers charge as one: a picture of 1024x1024."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Sizes that a model can make: edges are multiples of `step`, from `least` to `most`; `area` in pixels at most."""

    step: int
    least: int
    most: int
    area: int

    def fitted(self, width: int, height: int) -> tuple[int, int]:
        """The size nearest to this one, in the same shape as far as the grid has it."""
        shrink = min(1.0, sqrt(self.area / (width * height)), self.most / max(width, height))
        wide, high = self._edge(width * shrink), self._edge(height * shrink)
        while wide * high > self.area:  # both were rounded up
            wide, high = (wide - self.step, high) if wide >= high else (wide, high - self.step)
        return wide, high

    def _edge(self, length: float) -> int:
        most = self.most // self.step * self.step
        least = -(-self.least // self.step) * self.step
        return min(most, max(least, round(length / self.step) * self.step))


def resized(width: int, height: int, least: int, most: int, step: int = 16) -> tuple[int, int]:
    """The size in the same shape whose area is in these bounds, as it is where it has that already."""
    area = width * height
    if least <= area <= most:
        return width, height
    scale = sqrt((least if area < least else most) / area)
    rounded = ceil if area < least else floor
    wide, high = (max(step, rounded(round(edge * scale / step, 6)) * step) for edge in (width, height))
    return wide, high


def nearest_ratio(ratios: Sequence[str], width: int, height: int) -> str:
    """Of aspect ratios like `16:9`, the one nearest to the size."""

    def distance(ratio: str) -> float:
        wide, _, high = ratio.partition(":")
        return abs(log(float(wide) * height / (float(high) * width)))

    return min(ratios, key=distance)


def tier(tiers: Mapping[str, float], width: int, height: int) -> str:
    """Of size tiers, by the megapixels of their square, the one nearest to the size in area."""
    return min(tiers, key=lambda name: abs(log(tiers[name] * MEGAPIXEL / (width * height))))
