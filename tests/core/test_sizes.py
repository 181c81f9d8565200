"""core/sizes: whatever is asked for, what is told to a provider is a size that it can make, and near."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproxy.core.sizes import Grid, nearest_ratio, resized, tier

FLUX_2 = Grid(step=16, least=64, most=2048, area=4 * 1024 * 1024)
EDGES = st.integers(1, 99_999)


@pytest.mark.parametrize(
    ("asked", "fitted"),
    [
        ((1024, 1024), (1024, 1024)),
        ((1536, 1024), (1536, 1024)),
        ((1000, 777), (992, 784)),
        ((1, 1), (64, 64)),
        ((4096, 4096), (2048, 2048)),
        ((3840, 2160), (2048, 1152)),
    ],
)
def test_sizes_of_a_grid(asked: tuple[int, int], fitted: tuple[int, int]) -> None:
    assert FLUX_2.fitted(*asked) == fitted


@given(EDGES, EDGES, st.sampled_from([FLUX_2, Grid(32, 256, 1440, 1440 * 1440), Grid(16, 64, 4096, 1 << 20)]))
def test_every_size_is_on_the_grid(width: int, height: int, grid: Grid) -> None:
    made = grid.fitted(width, height)
    assert all(edge % grid.step == 0 and grid.least <= edge <= grid.most for edge in made)
    assert made[0] * made[1] <= grid.area


def test_ratios_and_tiers() -> None:
    ratios = ("1:1", "3:2", "2:3", "21:9")
    assert [nearest_ratio(ratios, *size) for size in ((1536, 1024), (1024, 1536), (900, 1000), (5000, 100))] == [
        *("3:2", "2:3", "1:1", "21:9")
    ]
    tiers = {"1K": 1.0, "2K": 4.0}
    assert [tier(tiers, *size) for size in ((512, 512), (1536, 1024), (2048, 2048), (9000, 9000))] == [
        *("1K", "1K", "2K", "2K")
    ]


@pytest.mark.parametrize(
    ("size", "bounds", "made"),
    [
        ((1024, 1024), (3_686_400, 16_777_216), (1920, 1920)),
        ((1920, 1920), (3_686_400, 16_777_216), (1920, 1920)),
        ((1001, 3000), (921_600, 16_777_216), (1001, 3000)),
        ((8192, 8192), (921_600, 16_777_216), (4096, 4096)),
        ((1, 100), (921_600, 16_777_216), (96, 9600)),
    ],
)
def test_resized(size: tuple[int, int], bounds: tuple[int, int], made: tuple[int, int]) -> None:
    width, height = resized(*size, *bounds)
    assert (width, height) == made
    assert bounds[0] <= width * height <= bounds[1]
