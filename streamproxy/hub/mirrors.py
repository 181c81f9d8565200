"""Streams of other processes as this one follows them: one connection for each, however many read it here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio
from anyio.abc import TaskGroup

from streamproxy.hub.store import Shared, Stored, StoreError
from streamproxy.hub.stream import Stream

PRESENCE_SECONDS: Final = 5.0


class Mirrors:
    """See the module's text. `tasks` is the app's task group; `failed` is told of a store that fails."""

    def __init__(self, shared: Shared, tasks: TaskGroup, failed: Callable[[StoreError], None]) -> None:
        self._shared = shared
        self._tasks = tasks
        self._failed = failed
        self._followed: dict[str, Stream] = {}
        self._none = anyio.Event()

    def get(self, id: str) -> Stream | None:
        """The stream, where it is followed already."""
        return self._followed.get(id)

    def start(self, stored: Stored) -> Stream:
        """Follow a live stream, for those who subscribe before they wait for anything else."""
        stream = stored.mirror()
        stream.on_idle = self._idle
        self._followed[stream.id] = stream
        self._tasks.start_soon(self._follow, stream)
        return stream

    def give_up(self) -> None:
        """The process stops: readers end here, and go on at another one."""
        for stream in list(self._followed.values()):
            stream.give_up()

    async def gone(self) -> None:
        """Return when no stream is followed."""
        while self._followed:
            await self._none.wait()

    def _idle(self, stream: Stream) -> None:
        """The last reader of a stream has left."""
        self._drop(stream)
        stream.scope.cancel()

    def _drop(self, stream: Stream) -> None:
        if self._followed.get(stream.id) is stream:
            del self._followed[stream.id]
        if not self._followed:
            none, self._none = self._none, anyio.Event()
            none.set()

    async def _follow(self, stream: Stream) -> None:
        """Until it ends, or until nobody reads it here; not for who only looked: that one must not seem a viewer."""
        try:
            with stream.scope:
                async with anyio.create_task_group() as tasks:
                    if stream.subscribers:
                        tasks.start_soon(self._present, stream.id)
                        await self._copy(stream)
                    tasks.cancel_scope.cancel()
        finally:
            self._drop(stream)

    async def _copy(self, stream: Stream) -> None:
        try:
            async for entry in self._shared.follow(stream.id, stream.last):
                stream.add(entry)
        except StoreError as error:
            self._failed(error)
            self._drop(stream)
            stream.give_up()
        else:
            stream.finish()

    async def _present(self, id: str) -> None:
        """Say that there are viewers here, so that the producer's process does not take the stream for forsaken."""
        while True:
            try:
                await self._shared.viewing(id)
            except StoreError as error:
                self._failed(error)
            await anyio.sleep(PRESENCE_SECONDS)
