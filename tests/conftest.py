"""What every test shares: the event loop that production runs on, and what keeps thousands of tests cheap."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


def pytest_configure() -> None:
    """Processes that tests start compile the package once, not each anew.

    One authority that has signed nothing is trusted, instead of all public ones: no test calls out, and each of
    thousands of TLS contexts would parse them again.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["SSL_CERT_FILE"] = str(Path(__file__).parent / "support" / "authority.pem")


def pytest_collection_finish() -> None:
    """Leave what has been collected to itself: half a second for each `gc.collect()` of a test for leaks."""
    gc.collect()
    gc.freeze()
