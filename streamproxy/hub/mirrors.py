"""Copies of other processes' streams: one connection for each stream, however many readers it has here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import anyio
from anyio.abc import TaskGroup

from streamproxy.hub.health import StoreHealth
from streamproxy.hub.store import Shared, Stored, StoreError
from streamproxy.hub.stream import Stream
from streamproxy.signals import Signal

PRESENCE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Following:
    """A stream that is followed; cancelling `scope` stops that."""

    stream: Stream
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)


class Mirrors:
    """See the module's text. `tasks` is the app's task group."""

    def __init__(self, shared: Shared, tasks: TaskGroup, health: StoreHealth) -> None:
        self._shared = shared
        self._tasks = tasks
        self._health = health
        self._followed: dict[str, _Following] = {}
        self._dropped = Signal()

    def get(self, id: str) -> Stream | None:
        """The stream, where it is followed already."""
        following = self._followed.get(id)
        return None if following is None else following.stream

    def start(self, stored: Stored) -> Stream:
        """Follow a live stream. Its readers must subscribe before they wait for anything else."""
        stream = stored.mirror(self._on_idle)
        following = self._followed[stream.id] = _Following(stream)
        self._tasks.start_soon(self._follow, following)
        return stream

    def give_up(self) -> None:
        """End the readers here: this process stops, and they resume at another one."""
        for following in list(self._followed.values()):
            following.stream.give_up()

    async def gone(self) -> None:
        """Return when no stream is followed."""
        while self._followed:
            await self._dropped.wait()

    def _on_idle(self, stream: Stream) -> None:
        following = self._followed.get(stream.id)
        if following is not None and following.stream is stream:
            self._drop(stream)
            following.scope.cancel()

    def _drop(self, stream: Stream) -> None:
        if self.get(stream.id) is stream:
            del self._followed[stream.id]
            self._dropped.set()

    async def _follow(self, following: _Following) -> None:
        """Follow until the stream ends or has no reader here. A request without a reader must not count as a viewer."""
        stream = following.stream
        try:
            with following.scope:
                async with anyio.create_task_group() as tasks:
                    if stream.subscribers:
                        tasks.start_soon(self._present, stream.id)
                        await self._copy(stream)
                    tasks.cancel_scope.cancel()
        finally:
            self._drop(stream)

    async def _copy(self, stream: Stream) -> None:
        try:
            async for entry in self._shared.follow(stream.id, stream.log.last):
                stream.add(entry)
        except StoreError as error:
            self._health.note(error)
            self._drop(stream)
            stream.give_up()
        else:
            stream.finish()

    async def _present(self, id: str) -> None:
        """Note in the store that there are viewers here, so that the producer's process does not stop the stream."""
        while True:
            try:
                await self._shared.viewing(id)
            except StoreError as error:
                self._health.note(error)
            await anyio.sleep(PRESENCE_SECONDS)
