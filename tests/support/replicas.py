"""Two replicas of the proxy as operators run them: processes that share a Valkey server, before one provider.

The provider is in the test's own process, so that paid calls can be counted. Each scene has its own prompt, by which
the provider finds its frames.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Final

import anyio
import httpx
import orjson

from streamproxy.simulator.received import Received, Server
from streamproxy.simulator.script import Script, json_answer
from streamproxy.simulator.server import serve
from tests.support.faults import IMAGE_BODY, Held
from tests.support.process import Process, configuration, serving_process
from tests.support.provider import completed, preview
from tests.support.proxy import BOUND, NO_TRUST
from tests.support.streams import EVENTS, JSON, LATER, Reading, held
from tests.support.valkey import ValkeyServer

HIDDEN: Final = ("hidden-user", "hidden-word")
USER: Final = ("--user", HIDDEN[0], "on", f">{HIDDEN[1]}", "~sp:*", "+@all", "-@dangerous")
"""Options of a server with a user that can access our keys only."""

SECRET: Final = "one-secret-for-all-of-the-replicas"
GRACE: Final = 1.0
_NUMBERS: Final[Iterator[int]] = count()


@dataclass(frozen=True, slots=True)
class Scene:
    """One generation: the provider sends the first frames at once, the rest when `go` is set."""

    server: Server
    prompt: str
    go: anyio.Event

    @property
    def calls(self) -> int:
        """How often the provider was called, and paid, for it."""
        return sum(_prompt(received) == self.prompt for received in self.server.received)

    async def asked(self) -> None:
        """Wait until the provider has been asked."""
        await self.server.wait_until(lambda _: self.calls, BOUND)


@dataclass(slots=True)
class Cluster:
    """Replicas `a` and `b`, by their URLs; `client` has no limit on connections."""

    server: Server
    valkey: ValkeyServer
    a: Process
    b: Process
    client: httpx.AsyncClient
    scripts: dict[str, Script] = field(default_factory=dict)

    def scene(self, first: tuple[bytes, ...] = (preview(0),), rest: tuple[bytes, ...] = (completed(),)) -> Scene:
        """A new one."""
        scene = Scene(self.server, f"scene {next(_NUMBERS)}", anyio.Event())
        self.scripts[scene.prompt] = held(first, scene.go, rest)
        return scene

    def plain(self) -> Scene:
        """A new one whose provider answers with JSON."""
        scene = self.scene()
        self.scripts[scene.prompt] = Held((), scene.go, json_answer(200, IMAGE_BODY))
        return scene

    async def post(
        self, at: Process, scene: Scene, *, headers: Mapping[str, str] | None = None, **members: object
    ) -> httpx.Response:
        """POST a generation and read the whole answer."""
        url, body = _generation(at, scene, members)
        return await self.client.post(url, json=body, headers=headers)

    async def later(self, at: Process, scene: Scene, **headers: str) -> str:
        """POST a generation with `Prefer: respond-async`. Returns the path of its stream."""
        return (await self.ordered(at, scene, **headers))["location"]

    async def ordered(self, at: Process, scene: Scene, **headers: str) -> httpx.Headers:
        """The same; all headers of the answer."""
        answer = await self.post(at, scene, headers={**LATER, **headers}, stream=True)
        assert answer.status_code == 202, answer.text
        return answer.headers

    @asynccontextmanager
    async def posting(self, at: Process, scene: Scene) -> AsyncIterator[Reading]:
        """POST a generation with `"stream": true`; the caller leaves with the block."""
        url, body = _generation(at, scene, {"stream": True})
        async with self.client.stream("POST", url, json=body) as response:
            assert response.status_code == 200
            yield Reading(response)

    @asynccontextmanager
    async def following(self, at: Process, location: str, last_event_id: str = "") -> AsyncIterator[Reading]:
        """Follow a stream as events; the reader leaves with the block."""
        headers = {**EVENTS, **({"last-event-id": last_event_id} if last_event_id else {})}
        async with self.client.stream("GET", at.url + location, headers=headers) as response:
            yield Reading(response)

    async def get(self, at: Process, location: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """GET and read the whole answer."""
        return await self.client.get(at.url + location, headers=headers)

    async def state(self, at: Process, location: str) -> dict[str, object]:
        """The stream as JSON."""
        answer = await self.get(at, location, JSON)
        assert answer.status_code == 200, answer.text
        value = orjson.loads(answer.content)
        assert isinstance(value, dict)
        return value

    async def store_is(self, state: str, *replicas: Process) -> None:
        """Wait until these replicas report this state of their store. They take new work meanwhile."""
        with anyio.fail_after(BOUND):
            for replica in replicas:
                while (answer := await self.get(replica, "/readyz")).json()["store"] != state:
                    assert answer.status_code == 200
                    await anyio.sleep(0.05)

    async def until(self, at: Process, location: str, status: str) -> None:
        """Wait until a replica reports this status of the stream."""
        with anyio.fail_after(BOUND):
            while True:
                answer = await self.get(at, location, JSON)
                if answer.status_code == 200 and answer.json()["status"] == status:
                    return
                await anyio.sleep(0.05)

    async def drains(self, replica: Process) -> None:
        """Wait until a replica reports that it takes no new work."""
        with anyio.fail_after(BOUND):
            while (answer := await self.get(replica, "/readyz")).status_code == 200:  # noqa: ASYNC110
                await anyio.sleep(0.02)
        assert answer.json()["status"] == "draining"

    def tails(self) -> int:
        """Connections that wait for entries: one per replica, and one per stream that a replica follows."""
        clients = self.valkey.command("CLIENT", "LIST").decode()
        return sum("cmd=xread" in line for line in clients.splitlines())

    async def tailed(self, times: int) -> None:
        """Wait until there are so many of them."""
        with anyio.fail_after(BOUND):
            while self.tails() != times:  # noqa: ASYNC110  another process opens and closes them
                await anyio.sleep(0.02)


def _generation(at: Process, scene: Scene, members: Mapping[str, object]) -> tuple[str, dict[str, object]]:
    body = {"model": "sim/gpt-image", "prompt": scene.prompt, **members}
    return f"{at.url}/v1/images/generations", body


def _prompt(received: Received) -> str:
    value = orjson.loads(received.body)["prompt"]
    assert isinstance(value, str)
    return value


@asynccontextmanager
async def replicas(valkey: ValkeyServer, *, status: int = 0, **settings: float | str) -> AsyncIterator[Cluster]:
    """Two replicas on this server, whose options hold USER. `status`: the exit status of `a`. Logs are checked.

    `settings` are TOML values.
    """
    chosen = {"disconnect_grace": GRACE, "drain_timeout": 5.0, "heartbeat": 60.0, **settings}
    lines = [f"{name} = {value}" for name, value in chosen.items()]
    lines += [f'secret = "{SECRET}"', f'store = "redis://{":".join(HIDDEN)}@127.0.0.1:{valkey.port}/0"']
    lines += ['log_level = "debug"']
    scripts: dict[str, Script] = {}
    async with serve(lambda received: scripts[_prompt(received)]) as server:
        config = configuration(server.url, settings="\n".join(lines))
        async with (
            serving_process(config, status=status) as a,
            serving_process(config) as b,
            httpx.AsyncClient(
                timeout=BOUND,
                trust_env=False,
                verify=NO_TRUST,
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
            ) as client,
        ):
            yield Cluster(server, valkey, a, b, client, scripts)
        for replica in (a, b):
            assert not [line for line in replica.log for word in HIDDEN if word in line]
