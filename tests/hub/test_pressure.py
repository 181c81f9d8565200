"""Memory that runs short: first no more generations, then the largest ones end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import pytest
from structlog.testing import capture_logs

from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.generation import Generation, OnDisconnect
from streamproxy.hub.hub import Hub
from streamproxy.hub.keys import Names
from streamproxy.hub.limits import HubLimits
from streamproxy.hub.log import Record
from streamproxy.hub.memory import MemoryMarks, MemoryStore
from streamproxy.hub.pressure import Pressure
from streamproxy.hub.store import StoreBackend
from streamproxy.hub.stream import Ending
from streamproxy.memory import Usage
from streamproxy.observe import Observer
from tests.hub.test_hub import completed, preview

pytestmark = pytest.mark.anyio

LIMITS = HubLimits(grace=60, hold=0, viewers=9, viewers_of_owner=9, streams=9)


@dataclass(slots=True)
class Stage:
    """A hub whose process uses `used` bytes of 1000; `used` falls by what is ended."""

    hub: Hub
    pressure: Pressure
    used: int = 0

    async def stream(self, id: str, size: int) -> Generation:
        generation = self.hub.prepare(Record(id, "owner", n=1), policy=OnDisconnect.CANCEL, names=Names("body"))
        await self.hub.register(generation)
        if size:
            await generation.append(preview("A" * size))
        return generation

    async def at(self, used: int) -> None:
        self.used = used
        await self.pressure.look()

    def refusal(self) -> Failure | None:
        try:
            self.hub.admission.admit(0)
        except ProxyError as error:
            return error.failure
        return None


@asynccontextmanager
async def staged() -> AsyncIterator[Stage]:
    store = MemoryStore(max_bytes=10**6, linger=60.0, now=anyio.current_time)
    backend = StoreBackend(store, store, MemoryMarks(now=anyio.current_time), shedding=store, waits=False)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            hub = Hub(backend=backend, tasks=tasks, limits=LIMITS, observer=Observer())
            pressure = Pressure(hub, 1000, Observer(), lambda limit: Usage(stage.used, limit or 0))
            stage = Stage(hub, pressure)
            yield stage
            tasks.cancel_scope.cancel()


async def test_from_85_percent_on_new_ones_are_refused() -> None:
    async with staged() as stage:
        running = await stage.stream("a", 100)
        with capture_logs() as logs:
            await stage.at(849)
            assert stage.refusal() is None
            for _ in range(2):
                await stage.at(850)
                assert stage.refusal() is Failure.MEMORY_SHORT
            await stage.at(949)
            assert running.ending is None
            await stage.at(849)
            assert stage.refusal() is None
        assert [(line.get("label"), line.get("recovered")) for line in logs] == [("overload", None), (None, True)]


@pytest.mark.parametrize(("used", "ended"), [(950, "c"), (1049, "c"), (1050, "bc"), (2000, "abc")])
async def test_from_95_percent_on_the_largest_end(used: int, ended: str) -> None:
    """As many as hold what is over it; one that holds nothing is left."""
    async with staged() as stage:
        sizes = {"a": 20, "b": 50, "c": 100, "d": 0}
        running = {id: await stage.stream(id, size) for id, size in sizes.items()}
        await stage.at(used)
        assert stage.refusal() is Failure.MEMORY_SHORT
        assert "".join(id for id, one in running.items() if one.ending is Ending.SHED) == ended


async def test_finished_streams_go_first() -> None:
    async with staged() as stage:
        for id in ("old", "new"):
            await (kept := await stage.stream(id, 0)).append(completed("A" * 60))
            await stage.hub.conclude(kept)
        running = await stage.stream("a", 100)
        await stage.at(950 + 59)
        assert running.ending is None
        with pytest.raises(ProxyError):
            await stage.hub.find("old")
        assert (await stage.hub.find("new")).finished
        await stage.at(950 + 120)
        assert running.ending is Ending.SHED


async def test_without_a_limit_nothing_is_refused() -> None:
    async with staged() as stage:
        stage.pressure = Pressure(stage.hub, None, Observer(), lambda limit: None)
        await stage.at(2000)
        assert stage.refusal() is None
