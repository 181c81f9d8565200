"""Hooks for all tests: production's event loop, and measures that keep thousands of tests cheap."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
from pathlib import Path

import pytest
import structlog


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
    _HOOKS.append((sys.excepthook, threading.excepthook, sys.unraisablehook))


_HOOKS: list[tuple[object, object, object]] = []


def pytest_runtest_teardown() -> None:
    """Undo what a command that ran in this process did to its log: later tests read lines of every level."""
    if not structlog.is_configured():
        return
    structlog.reset_defaults()
    root = logging.getLogger()
    formatter = structlog.stdlib.ProcessorFormatter
    root.handlers[:] = [handler for handler in root.handlers if not isinstance(handler.formatter, formatter)]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(False)
    sys.excepthook, threading.excepthook, sys.unraisablehook = _HOOKS[-1]  # type: ignore[assignment]
