"""Webhooks of replicas that share a Valkey: a receiver that is down for a while, and replicas that are killed."""

from __future__ import annotations

import os
import signal
import socket
from typing import Any, Final

import anyio
import pytest

from streamproxy.core.webhooks import HEADER
from tests.support.proxy import BOUND
from tests.support.receiver import PATH, SECRET, receiving
from tests.support.replicas import USER, replicas
from tests.support.valkey import ValkeyServer, valkey_server

pytestmark = pytest.mark.anyio

DUE: Final = "sp:{outbox}:due"
NOTICES: Final = "sp:{outbox}:notices"


@pytest.fixture
def down() -> socket.socket:
    """A port that refuses connections until something listens there."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


def settings(down: socket.socket) -> dict[str, Any]:
    port = down.getsockname()[1]
    return {"webhook_origins": f'["http://127.0.0.1:{port} internal"]', "webhook_secret": f'"{SECRET}"'}


def asked(down: socket.socket) -> dict[str, str]:
    return {HEADER: f"http://127.0.0.1:{down.getsockname()[1]}{PATH}"}


def stream_id(location: str) -> str:
    return location.rpartition("/")[2].partition("?")[0]


def hasten(valkey: ValkeyServer, id: str) -> None:
    """Make a notice due now, so that the test need not wait as long as a receiver may be down."""
    assert valkey.command("ZADD", DUE, "XX", "0", id) == b":0\r\n"


async def attempted(valkey: ValkeyServer) -> None:
    """Wait until an attempt has failed."""
    with anyio.fail_after(BOUND):
        while b'"attempts": 1' not in valkey.command("HVALS", NOTICES):  # noqa: ASYNC110
            await anyio.sleep(0.02)


async def empty(valkey: ValkeyServer) -> None:
    """Wait until nothing is kept of any webhook."""
    with anyio.fail_after(BOUND):
        while any("outbox" in name for name in valkey.lifetimes()):  # noqa: ASYNC110
            await anyio.sleep(0.02)


async def test_another_replica_delivers_for_a_killed_one(down: socket.socket) -> None:
    with valkey_server(*USER) as valkey:
        async with replicas(valkey, status=-signal.SIGKILL, **settings(down)) as cluster:
            scene = cluster.scene()
            scene.go.set()
            location = await cluster.later(cluster.a, scene, **asked(down))
            await attempted(valkey)
            os.kill(cluster.a.pid, signal.SIGKILL)
            assert min(valkey.lifetimes().values()) > 0
            async with receiving(sock=down) as receiver:
                hasten(valkey, stream_id(location))
                said = await receiver.message()
                assert said["type"] == "image.stream.completed"
                assert said["data"]["id"] == stream_id(location)
                assert said["data"]["stream_url"].startswith(cluster.a.url)  # what its caller knows the proxy by
                await empty(valkey)
                assert len(receiver.messages) == 1
            assert scene.calls == 1


async def test_a_killed_generation_is_told_as_lost(down: socket.socket) -> None:
    with valkey_server(*USER) as valkey:
        async with replicas(valkey, status=-signal.SIGKILL, **settings(down)) as cluster:
            scene = cluster.scene()
            location = await cluster.later(cluster.a, scene, **asked(down))
            await scene.asked()
            os.kill(cluster.a.pid, signal.SIGKILL)
            await cluster.until(cluster.b, location, "failed")
            async with receiving(sock=down) as receiver:
                hasten(valkey, stream_id(location))
                said = await receiver.message()
                assert said["type"] == "image.stream.failed"
                error = said["data"]["error"]
                assert (error["code"], error["charged"]) == ("producer_lost", True)
                await empty(valkey)
            assert scene.calls == 1


async def test_two_replicas_deliver_once(down: socket.socket) -> None:
    async with receiving(sock=down) as receiver:
        with valkey_server(*USER) as valkey:
            async with replicas(valkey, **settings(down)) as cluster:
                scenes = [cluster.scene() for _ in range(6)]
                for number, scene in enumerate(scenes):
                    scene.go.set()
                    await cluster.later((cluster.a, cluster.b)[number % 2], scene, **asked(down))
                await receiver.message(len(scenes))
                await empty(valkey)
                assert len(set(receiver.ids)) == len(receiver.ids) == len(scenes)
