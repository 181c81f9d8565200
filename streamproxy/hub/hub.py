"""The registry of all streams that this process produces or follows.

    prepare, register, conclude    a generation begins, and has ended
    find                           a stream by its id: local, from the store, or followed from another process
    end                            ends a stream for all its readers, from any process
    ended                          how a stream ended, without following it
    keys, repeats                  streams by what asked for them
    outbox                         webhooks to be delivered
    admission                      what is taken, and who may watch

When the last reader leaves, the generation's policy decides: `finish` runs to the end and keeps the images, `cancel`
closes the upstream connection after a grace.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import anyio
from anyio.abc import TaskGroup

from streamproxy.core.events import Frame
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.generation import Generation, OnDisconnect, StoreKeeper
from streamproxy.hub.health import StoreHealth, unreachable
from streamproxy.hub.keys import Keys, Names
from streamproxy.hub.limits import Admission, Grace, HubLimits
from streamproxy.hub.log import Entry, Record
from streamproxy.hub.mirrors import Mirrors
from streamproxy.hub.outbox import NoticeStore, Outbox
from streamproxy.hub.repeats import Repeats
from streamproxy.hub.store import Gone, Shared, StoreBackend, Stored, StoreError, Summary
from streamproxy.hub.stream import Ending, Stream
from streamproxy.observe import Observer
from streamproxy.signals import Signal

SWEEP_SECONDS: Final = 5.0
CONCLUDE_SECONDS: Final = 5.0
"""What storing the end of a stream may cost, also while the process is being stopped."""

DRAINED_SECONDS: Final = 1.0
"""For streams to be gone that are over at the drain's deadline."""


class Hub:
    """See the module's text. `tasks` is the app's task group; `notices` keep webhooks, where there are any."""

    def __init__(
        self,
        *,
        backend: StoreBackend,
        tasks: TaskGroup,
        limits: HubLimits,
        observer: Observer,
        notices: NoticeStore | None = None,
    ) -> None:
        self._backend = backend
        self._tasks = tasks
        self._generations: dict[str, Generation] = {}
        self._concluded = Signal()
        self.health = StoreHealth(observer)
        self.admission = Admission(limits)
        self.outbox = None if notices is None else Outbox(notices, self.health, limits.webhooks)
        self.keys = Keys(backend.claims, self.health, self.find)
        self.repeats = Repeats(backend.marks, health=self.health, find=self.find, tasks=tasks, hold=limits.hold)
        self._keeper = StoreKeeper(backend.store, backend.previews, self.health, self.repeats)
        self._mirrors = None if backend.shared is None else Mirrors(backend.shared, tasks, self.health)
        self._grace = Grace(limits.grace, tasks=tasks, viewed=self._viewed_elsewhere, forget=self._unlist)

    # Generations of this process.

    @property
    def running(self) -> int:
        """Generations of this process that have not ended."""
        return len(self._generations)

    def prepare(self, record: Record, *, request_id: str = "", policy: OnDisconnect, names: Names) -> Generation:
        """A generation that `find` does not give yet, so that its caller can be the first to subscribe."""
        stream = Stream(record, request_id=request_id, on_idle=self._on_idle)
        return Generation(stream, keeper=self._keeper, policy=policy, names=names)

    async def register(self, generation: Generation) -> None:
        """Let the generation be found, here at once and elsewhere by the store."""
        self._generations[generation.stream.id] = generation
        await self.health.attempt(self._backend.store.create(generation.stream.record))

    async def conclude(self, generation: Generation) -> None:
        """End a generation's stream, however it ended, and store its end; a second time changes nothing."""
        stream = generation.stream
        if stream.finished:
            return
        stream.finish()
        try:
            with anyio.move_on_after(CONCLUDE_SECONDS, shield=True):
                await self.health.attempt(self._backend.store.finish(stream.id))
                if self.outbox is not None:
                    await self.outbox.ended(stream.id)
        finally:
            self._generations.pop(stream.id, None)
            stream.release()
            self._concluded.set()

    async def withdraw(self, id: str, names: Names) -> None:
        """Let a request be made anew: nothing of it was processed. To be called before its failure is told."""
        if names.key is not None:
            await self.keys.release(names.key)
        if names.mark is not None:
            await self.repeats.over(names.mark, id)

    def discard(self, stream: Stream) -> None:
        """Forget a stream once its end is stored: the one caller who could know it has had all of it."""
        self._tasks.start_soon(self._discard, stream.id)

    async def _discard(self, id: str) -> None:
        await self.health.attempt(self._forget(id))

    async def _forget(self, id: str) -> None:
        while id in self._generations:  # its end is being stored now
            await self._concluded.wait()
        await self._backend.store.forget(id)

    def _on_idle(self, stream: Stream) -> None:
        generation = self._generations.get(stream.id)
        if generation is not None and not stream.finished and generation.policy is OnDisconnect.CANCEL:
            self._grace.begin(generation)

    def _unlist(self, generation: Generation) -> None:
        """Let a later retry begin a new generation."""
        if generation.names.mark is not None:
            self.repeats.finished(generation.names.mark, generation.stream.id)

    async def _viewed_elsewhere(self, id: str) -> bool:
        return self._backend.shared is not None and bool(await self.health.attempt(self._backend.shared.viewed(id)))

    # Streams of any process.

    async def find(self, id: str) -> Stream:
        """The stream; raises ProxyError(NOT_FOUND), or (GONE) when it was purged."""
        local = self._generations.get(id)
        if local is not None:
            return local.stream
        if self._mirrors is not None and (followed := self._mirrors.get(id)) is not None:
            return followed
        stored = await self._load(id)
        if stored.finished or self._mirrors is None:
            return stored.mirror()
        return self._mirrors.get(id) or self._mirrors.start(stored)  # another request may have been as quick

    async def ended(self, id: str) -> tuple[Record, tuple[Frame, ...]] | None:
        """A stream's record and critical frames, None while it runs; raises ProxyError as `find` does."""
        local = self._generations.get(id)
        if local is not None:
            stream = local.stream
            return (stream.record, _outcomes(stream.log.retained())) if stream.finished else None
        stored = await self._load(id)
        return (stored.record, _outcomes(stored.entries)) if stored.finished else None

    async def _load(self, id: str) -> Stored:
        stored = await self.health.attempt(self._backend.store.load(id))
        if stored is None and self.health.failed:
            raise unreachable()
        if isinstance(stored, Gone):
            raise ProxyError(Failure.GONE, "This stream has ended and is no longer kept. The setting is linger.")
        if stored is None:
            raise ProxyError(Failure.NOT_FOUND, "No such stream.")
        return stored

    async def owned(self, owner: str, after: str | None, limit: int) -> list[Summary] | None:
        """An owner's streams, as `Listing.owned`. Raises ProxyError(OVERLOADED) where the store cannot say."""
        if self._backend.listing is None:
            return []
        listed = await self.health.attempt(self._backend.listing.owned(owner, after, limit))
        if listed is None and self.health.failed:
            raise unreachable()
        return listed

    async def end(self, stream: Stream) -> bool:
        """Cancel a stream for all its readers, or forget it where it has finished; whether it had.

        Raises ProxyError(OVERLOADED) where the store, or its process, cannot be told.
        """
        generation = self._generations.get(stream.id)
        finished = stream.finished
        try:
            if finished:
                await self._forget(stream.id)
            elif generation is not None:
                generation.stop(Ending.CANCELLED)
            elif self._backend.shared is not None:
                await self._backend.shared.cancel(stream.id)
        except StoreError as error:  # to say that it ends would be a lie that costs money
            self.health.note(error)
            raise unreachable() from None
        return finished

    # As long as the app runs.

    async def tend(self) -> None:
        """Purge what has lingered, and stop what other processes cancel."""
        async with anyio.create_task_group() as tasks:
            if self._backend.shared is not None:
                tasks.start_soon(self._obey, self._backend.shared)
            while True:
                await anyio.sleep(SWEEP_SECONDS)
                await self.health.attempt(self._backend.store.sweep())

    async def _obey(self, shared: Shared) -> None:
        while True:
            try:
                async for id in shared.cancelled():
                    if (generation := self._generations.get(id)) is not None:
                        generation.stop(Ending.CANCELLED)
            except StoreError as error:
                self.health.note(error)
                await anyio.sleep(SWEEP_SECONDS)

    async def drain(self, timeout: float) -> None:
        """Take no new work and let what runs end; at the deadline end it with `server_shutdown`."""
        self.admission.draining = True
        with anyio.move_on_after(timeout):
            await self._ended()
        for generation in list(self._generations.values()):
            generation.stop(Ending.SHUTDOWN)
        if self._mirrors is not None:
            self._mirrors.give_up()
        with anyio.move_on_after(DRAINED_SECONDS):
            await self._ended()
            if self._mirrors is not None:
                await self._mirrors.gone()

    async def _ended(self) -> None:
        """Return when no generation runs here."""
        while self._generations:
            await self._concluded.wait()


def _outcomes(entries: Iterable[Entry]) -> tuple[Frame, ...]:
    return tuple(entry.frame for entry in entries if entry.critical)
