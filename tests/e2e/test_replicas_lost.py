"""A replica that dies, or stops: readers at another one get the right end, and nothing is paid twice."""

from __future__ import annotations

import os
import signal
from typing import Final

import anyio
import pytest

from streamproxy.hub.valkey.store import LEASE_SECONDS
from tests.support.provider import COMPLETED
from tests.support.replicas import USER, replicas
from tests.support.streams import EVENTS, KEY, Followed, followed, holds
from tests.support.valkey import valkey_server

pytestmark = pytest.mark.anyio

DRAIN: Final = 3.0


def code(event: Followed) -> object:
    """What an error event says."""
    assert event.event == "error"
    error = event.json["error"]
    assert isinstance(error, dict)
    return error["code"]


async def test_a_killed_replica_takes_no_result_along() -> None:
    with valkey_server(*USER) as valkey:
        async with replicas(valkey, status=-signal.SIGKILL) as cluster:
            done, lost = cluster.scene(), cluster.scene()
            kept = await cluster.later(cluster.a, done)
            key = {KEY: "one key"}
            location = await cluster.later(cluster.a, lost, **key)
            async with cluster.following(cluster.b, location) as there:
                await there.until(holds(b"\nid: 1.1\n\n"))
                async with cluster.following(cluster.a, kept) as here:
                    await here.until(holds(b"\nid: 1.1\n\n"))
                    done.go.set()
                    await here.until(holds(b"\nid: 1.2\n\n"))
                    os.kill(cluster.a.pid, signal.SIGKILL)  # no process has its preview
                    began = anyio.current_time()
                    seen = followed(here.body)
                    assert (await cluster.get(cluster.b, kept, EVENTS)).content.endswith(seen[-1].data + TAIL)
                ended = followed(await there.rest())
                assert anyio.current_time() - began < LEASE_SECONDS + 3
            assert code(ended[-1]) == "producer_lost"
            assert ended[-1].id == "2.2"
            assert followed((await cluster.get(cluster.b, location, EVENTS)).content) == ended[-1:]
            assert (await cluster.get(cluster.b, location, {**EVENTS, "last-event-id": "2.2"})).status_code == 204
            assert (await cluster.state(cluster.b, location))["status"] == "failed"
            again = await cluster.post(cluster.b, lost, headers=key, stream=True)
            assert (again.status_code, again.json()["error"]["code"]) == (502, "producer_lost")
            assert again.headers["x-should-retry"] == "false"
            await anyio.sleep(max(0.0, began + LEASE_SECONDS + 1 - anyio.current_time()))
            assert followed((await cluster.get(cluster.b, kept, EVENTS)).content) == seen[-1:]  # it is no failure
            assert (await cluster.state(cluster.b, kept))["status"] == "completed"
            assert (done.calls, lost.calls) == (1, 1)
            assert min(valkey.lifetimes().values()) > 0


TAIL: Final = b"\nevent: %b\nid: 1.2\n\n" % COMPLETED.encode()


async def test_readers_elsewhere_see_a_stopping_replicas_ends() -> None:
    with valkey_server(*USER) as valkey:
        async with replicas(valkey, drain_timeout=DRAIN) as cluster:
            soon, never = cluster.scene(), cluster.scene()
            locations = [await cluster.later(cluster.a, scene) for scene in (soon, never)]
            async with (
                cluster.following(cluster.b, locations[0]) as of_soon,
                cluster.following(cluster.b, locations[1]) as of_never,
            ):
                for reading in (of_soon, of_never):
                    await reading.until(holds(b"\nid: 1.1\n\n"))
                cluster.a.stop()
                await cluster.drains(cluster.a)
                refused = await cluster.post(cluster.a, cluster.scene(), stream=True)
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
                soon.go.set()
                assert [event.event for event in followed(await of_soon.rest())][-1] == COMPLETED
                assert code(followed(await of_never.rest())[-1]) == "server_shutdown"
            for location, status in zip(locations, ("completed", "failed"), strict=True):
                assert (await cluster.state(cluster.b, location))["status"] == status
            assert (soon.calls, never.calls) == (1, 1)


async def test_readers_of_a_stopping_replica_go_on_at_another() -> None:
    with valkey_server(*USER) as valkey:
        async with replicas(valkey) as cluster:
            scene = cluster.scene()
            location = await cluster.later(cluster.a, scene)
            async with cluster.following(cluster.b, location) as there:
                await there.until(holds(b"\nid: 1.1\n\n"))
                cluster.b.stop()
                seen = followed(await there.rest())
            assert [event.id for event in seen] == ["1.1"]
            async with cluster.following(cluster.a, location, "1.1") as here:
                scene.go.set()
                assert [(event.event, event.id) for event in followed(await here.rest())] == [(COMPLETED, "1.2")]
            assert scene.calls == 1
