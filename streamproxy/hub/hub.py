"""The registry of all streams that this process produces or follows.

    prepare, register, conclude    the begin and the end of a generation
    find                           a stream by its id: local, from the store, or followed from another process
    end                            ends a stream for all its readers, from any process
    ended                          the end of a stream, without following it
    keys, repeats                  streams by the requests for them
    outbox                         pending webhooks
    admission                      limits of generations and viewers

When the last reader leaves, the generation's policy decides. `finish`: it runs to its end and keeps the images.
`cancel`: the upstream connection is closed after a grace.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
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
"""Seconds to store the end of a stream, also while the process stops."""

DRAINED_SECONDS: Final = 1.0
"""Seconds for the streams that are ended at the drain's deadline."""


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
        self._keeper = StoreKeeper(backend, self.health, self.repeats)
        self._mirrors = None if backend.shared is None else Mirrors(backend.shared, tasks, self.health)
        self._grace = Grace(limits.grace, tasks=tasks, viewed=self._viewed_elsewhere, forget=self._unlist)

    def limit(self, limits: HubLimits) -> None:
        """Replace the limits. They hold for requests and readers from now on."""
        self.admission.limits = limits
        self.repeats.held = limits.hold
        self._grace.seconds = limits.grace

    # Generations of this process.

    @property
    def running(self) -> int:
        """Generations of this process that have not ended."""
        return len(self._generations)

    def prepare(self, record: Record, *, request_id: str = "", policy: OnDisconnect, names: Names) -> Generation:
        """Make a generation that `find` does not return yet, so that its caller can subscribe first."""
        stream = Stream(record, request_id=request_id, on_idle=self._on_idle)
        return Generation(stream, keeper=self._keeper, policy=policy, names=names)

    async def register(self, generation: Generation) -> None:
        """Make the generation known to `find`, here at once and elsewhere through the store."""
        self._generations[generation.stream.id] = generation
        await self.health.attempt(self._backend.store.create(generation.stream.record))

    async def conclude(self, generation: Generation) -> None:
        """Finish the stream of a generation that has ended in any way, and store that. Repeated calls do nothing."""
        stream = generation.stream
        if stream.finished:
            return
        stream.finish()
        try:
            with anyio.move_on_after(CONCLUDE_SECONDS, shield=True) if self._backend.waits else nullcontext():
                await self.health.attempt(self._backend.store.finish(stream.id))
                if self.outbox is not None:
                    await self.outbox.ended(stream.id)
        finally:
            self._generations.pop(stream.id, None)
            stream.release()
            self._concluded.set()

    async def withdraw(self, id: str, names: Names) -> None:
        """Let the same request begin anew: nothing of it was processed. To be called before its failure is reported."""
        if names.key is not None:
            await self.keys.release(names.key)
        if names.mark is not None:
            await self.repeats.over(names.mark, id)

    def discard(self, stream: Stream) -> None:
        """Forget a stream once its end is stored. Its only possible reader has received all of it."""
        self._tasks.start_soon(self._discard, stream.id)

    async def _discard(self, id: str) -> None:
        await self.health.attempt(self._forget(id))

    async def _forget(self, id: str) -> None:
        while id in self._generations:  # `conclude` is storing its end
            await self._concluded.wait()
        await self._backend.store.forget(id)

    def _on_idle(self, stream: Stream) -> None:
        generation = self._generations.get(stream.id)
        if generation is not None and not stream.finished and generation.policy is OnDisconnect.CANCEL:
            self._grace.begin(generation)

    def _unlist(self, generation: Generation) -> None:
        """Hide the generation from retries, so that a later one begins a new generation."""
        if generation.names.mark is not None:
            self.repeats.finished(generation.names.mark, generation.stream.id)

    async def _viewed_elsewhere(self, id: str) -> bool:
        return self._backend.shared is not None and bool(await self.health.attempt(self._backend.shared.viewed(id)))

    # Streams of any process.

    async def find(self, id: str) -> Stream:
        """The stream with this id. Raises ProxyError: NOT_FOUND; GONE after a purge; OVERLOADED if the store fails."""
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
        """An owner's streams, as `Listing.owned`. Raises ProxyError(OVERLOADED) where the store fails."""
        if self._backend.listing is None:
            return []
        listed = await self.health.attempt(self._backend.listing.owned(owner, after, limit))
        if listed is None and self.health.failed:
            raise unreachable()
        return listed

    async def end(self, stream: Stream) -> bool:
        """Cancel a running stream for all its readers, or forget a finished one. Returns whether it had finished.

        Raises ProxyError(OVERLOADED) where the store, and so the producer's process, cannot be reached.
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
        except StoreError as error:  # a success would be wrong: the generation goes on, and costs money
            self.health.note(error)
            raise unreachable() from None
        return finished

    # As long as the app runs.

    async def tend(self) -> None:
        """Purge finished streams after their linger, and stop generations that other processes cancel."""
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
        """Take no new generations and wait for those that run; after `timeout` s end them with `server_shutdown`."""
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

    def shed(self, size: int) -> int:
        """Free so many bytes: of finished streams first, then end the generations that hold most.

        Returns how many generations have ended.
        """
        if self._backend.shedding is not None:
            size -= self._backend.shedding.shed(size)
        largest = sorted(self._generations.values(), key=lambda one: one.stream.log.bytes, reverse=True)
        ended = 0
        for generation in largest:
            if size <= 0 or not generation.stream.log.bytes:
                break
            size -= generation.stream.log.bytes
            generation.stop(Ending.SHED)
            ended += 1
        return ended

    async def _ended(self) -> None:
        """Return when no generation runs here."""
        while self._generations:
            await self._concluded.wait()


def _outcomes(entries: Iterable[Entry]) -> tuple[Frame, ...]:
    return tuple(entry.frame for entry in entries if entry.critical)
