"""Valkey servers for tests: one per module, emptied for each test, or one of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.valkey import ValkeyServer, valkey_server


@pytest.fixture(scope="module")
def shared_server() -> Iterator[ValkeyServer]:
    with valkey_server() as server:
        yield server


@pytest.fixture
def server(shared_server: ValkeyServer) -> ValkeyServer:
    """An empty server."""
    shared_server.command("FLUSHALL")
    return shared_server


@pytest.fixture
def own_server() -> Iterator[ValkeyServer]:
    """One that may be killed; what it keeps survives that."""
    with valkey_server(disk=True) as server:
        yield server
