"""Hooks for all tests: production's event loop, and measures that keep thousands of tests cheap."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


def pytest_configure() -> None:
    """Let processes that tests start share one compiled package, and one authority without certificates.

    With all public authorities, each of thousands of TLS contexts would parse them again. No test calls out.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["SSL_CERT_FILE"] = str(Path(__file__).parent / "support" / "authority.pem")


def pytest_collection_finish() -> None:
    """Freeze the collected tests: otherwise each `gc.collect()` of a test for leaks takes half a second longer."""
    gc.collect()
    gc.freeze()
