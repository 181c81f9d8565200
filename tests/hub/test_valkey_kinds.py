"""Servers that cannot be the store, real ones: a cluster's node, a Sentinel, a replica."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from click.testing import CliRunner

from streamproxy.cli import cli
from streamproxy.hub.store import StoreError
from streamproxy.hub.valkey.client import ValkeyClient, parse_address, unsuitable
from tests.support.valkey import ValkeyServer, binary, valkey_server

pytestmark = pytest.mark.anyio

START_SECONDS = 10.0


@contextmanager
def sentinel(folder: Path) -> Iterator[str]:
    """A running Sentinel; its URL."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    config = folder / "sentinel.conf"
    config.write_text(f"port {port}\nbind 127.0.0.1\ndir {folder}\n")
    process = subprocess.Popen([binary(), config, "--sentinel"], stdout=subprocess.DEVNULL)
    try:
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(START_SECONDS)


async def answers(url: str) -> None:
    """Wait until the server at this URL answers."""
    client = ValkeyClient(parse_address(url))
    with anyio.fail_after(START_SECONDS):
        while True:
            with contextlib.suppress(StoreError):
                await client.ask("PING")
                break
            await anyio.sleep(0.02)
    await client.aclose()


def served(url: str) -> str:
    """What `serve` says with this store. It ends before it listens."""
    environ = {"STREAMPROXY_SECRET": "0123456789abcdef", "STREAMPROXY_STORE": url}
    done = CliRunner().invoke(cli, ["serve", "--upstream", "http://127.0.0.1:1", "--port", "0"], env=environ)
    assert done.exit_code == 1
    return done.output


async def test_a_node_of_a_cluster_is_refused() -> None:
    with valkey_server("--cluster-enabled", "yes") as server:
        assert await unsuitable(server.url) == "a node of a cluster"
        said = await anyio.to_thread.run_sync(served, server.url)
        assert "store (STREAMPROXY_STORE): its server is a node of a cluster" in said
        assert "single Valkey or Redis server" in said


async def test_a_sentinel_is_refused(tmp_path: Path) -> None:
    with sentinel(tmp_path) as url:
        await answers(url)
        assert await unsuitable(url) == "a Sentinel"
        assert "its server is a Sentinel" in await anyio.to_thread.run_sync(served, url)


async def test_any_other_server_is_none_of_them(server: ValkeyServer) -> None:
    assert await unsuitable(server.url) is None
    server.command("ACL", "SETUSER", "proxy", "reset", "on", ">password", "~*", "+@all", "-info")
    try:
        assert await unsuitable(f"redis://proxy:password@127.0.0.1:{server.port}") is None
    finally:
        server.command("ACL", "DELUSER", "proxy")
    assert await unsuitable("redis://127.0.0.1:1") is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--cluster-enabled", "yes"), "it is a node of a cluster; the setting store"),
        (("--replicaof", "127.0.0.1 1"), "it is a replica; the setting store"),
    ],
    ids=["cluster", "replica"],
)
async def test_a_later_failure_says_the_same(options: tuple[str, ...], said: str) -> None:
    with valkey_server(*options) as server:
        client = ValkeyClient(parse_address(server.url))
        try:
            with pytest.raises(StoreError, match=said):
                await client.ask("SET", "key", "value")
        finally:
            await client.aclose()
