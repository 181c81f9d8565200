"""What every test shares: the event loop that production runs on, and what keeps thousands of tests cheap."""

from __future__ import annotations

import gc
import os

import pytest


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


def pytest_configure() -> None:
    """Processes that tests start compile the package once, not each anew."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_collection_finish() -> None:
    """Leave what has been collected to itself: half a second for each `gc.collect()` of a test for leaks."""
    gc.collect()
    gc.freeze()
