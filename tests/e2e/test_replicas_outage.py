"""An outage of the store of two replicas: each serves its own streams, and refuses the others with a reason."""

from __future__ import annotations

import anyio
import orjson
import pytest

from streamproxy.hub.hub import SWEEP_SECONDS
from streamproxy.simulator.script import sse
from streamproxy.simulator.server import serve
from tests.support.process import Process, caller, configuration, serving_process
from tests.support.provider import COMPLETED, completed, passed_on, preview
from tests.support.proxy import PROMPT, events
from tests.support.replicas import USER, replicas
from tests.support.streams import EVENTS, followed, holds, retry_of
from tests.support.valkey import valkey_server

pytestmark = pytest.mark.anyio

STRICT = {**EVENTS, "prefer": "handling=strict"}


def said_of_the_store(replica: Process) -> list[dict[str, object]]:
    """What a replica has logged about its store."""
    lines = [orjson.loads(line) for line in replica.log if line.startswith("{")]
    return [line for line in lines if line["event"] == "store"]


async def test_a_store_that_goes_away_and_comes_back() -> None:
    with valkey_server(*USER, disk=True) as valkey:
        async with replicas(valkey) as cluster:
            shared, apart, after = cluster.scene(), cluster.scene(), cluster.scene()
            location = await cluster.later(cluster.a, shared)
            async with cluster.following(cluster.a, location) as here, cluster.following(cluster.b, location) as there:
                for reading in (here, there):
                    await reading.until(holds(b"\nid: 1.1\n\n"))
                valkey.kill()
                cut = followed(await there.rest())
                assert [event.id for event in cut] == ["1.1"]  # the reader comes back by itself
                await cluster.store_is("failed", cluster.a, cluster.b)
                elsewhere = await cluster.get(cluster.b, location, EVENTS)
                assert elsewhere.status_code == 200
                assert 2000 <= retry_of(elsewhere.content) <= 8000
                assert followed(elsewhere.content) == []
                refused = await cluster.get(cluster.b, location, STRICT)
                assert refused.status_code == 503
                assert refused.headers["retry-after"]
                several = "/v3/streams?stream=" + location.rpartition("/")[2].replace("?token=", ":")
                away = await cluster.get(cluster.b, several, EVENTS)
                assert followed(away.content) == []
                assert (await cluster.get(cluster.b, several, STRICT)).status_code == 503
                shared.go.set()
                local = followed(await here.rest())
            assert [(event.event, event.id) for event in local] == [
                ("image_generation.partial_image", "1.1"),
                (COMPLETED, "1.2"),
            ]
            await anyio.sleep(SWEEP_SECONDS + 1)  # each replica has looked again, and says the same
            apart.go.set()
            for at in (cluster.a, cluster.b):
                answer = await cluster.post(at, apart, stream=True)
                assert events(answer.content) == passed_on(preview(0), completed())
                assert (await cluster.get(at, "/readyz")).json()["store"] == "failed"
            for replica in (cluster.a, cluster.b):
                [line] = said_of_the_store(replica)  # one for the outage, however often it is tried
                assert line["level"] == "error"
                assert str(valkey.port) in str(line["failure"])

            valkey.start()
            await cluster.store_is("ok", cluster.a, cluster.b)
            await cluster.until(cluster.b, location, "completed")  # what could not be kept is kept now
            assert followed((await cluster.get(cluster.b, location, EVENTS)).content) == local[-1:]
            location = await cluster.later(cluster.a, after)
            async with cluster.following(cluster.b, location) as there:
                await there.until(holds(b"\nid: 1.1\n\n"))
                after.go.set()
                assert [event.event for event in followed(await there.rest())][-1] == COMPLETED
            assert (shared.calls, apart.calls, after.calls) == (1, 2, 1)
            await cluster.tailed(2)
            for replica in (cluster.a, cluster.b):
                assert [line.get("recovered") for line in said_of_the_store(replica)] == [None, True]
            assert min(valkey.lifetimes().values()) > 0


async def test_a_store_that_takes_no_writes_is_done_without() -> None:
    """It is a replica, as after a failover. Streams are served here, and the log says what is wrong."""
    with valkey_server("--replicaof", "127.0.0.1 1") as valkey:
        async with serve(lambda received: sse((preview(0), completed()))) as server:
            settings = f'store = "{valkey.url}"\nsecret = "0123456789abcdef"'
            async with serving_process(configuration(server.url, settings=settings)) as proxy, caller() as client:
                body = {"model": "sim/gpt-image", "prompt": PROMPT, "stream": True}
                answer = await client.post(f"{proxy.url}/v1/images/generations", json=body)
                assert events(answer.content) == passed_on(preview(0), completed())
                assert "it is a replica; the setting store" in await proxy.line('"event":"store"')
                assert server.calls == 1
