"""The producer's side of a stream in this process: its frames, its failure, and its cancellation.

`append` waits for the requesting caller after a preview only. A critical frame waits for no reader, because the log
keeps it anyway: a slow caller, or one that leaves, must not fail a generation whose last image is there.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from typing import Final, Protocol

import anyio

from streamproxy.core.cursor import Cursor
from streamproxy.core.events import Frame, error_frame
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.health import StoreHealth
from streamproxy.hub.keys import Names
from streamproxy.hub.log import Entry
from streamproxy.hub.repeats import Repeats
from streamproxy.hub.store import Fenced, StoreBackend
from streamproxy.hub.stream import Ending, Stream

KEEP_SECONDS: Final = 0.5
"""Seconds to store the last frame while the process stops. Its readers in other processes need it too."""


class OnDisconnect(Enum):
    """The policy for a generation without readers."""

    CANCEL = "cancel"
    FINISH = "finish"


class Keeper(Protocol):
    """Stores the entries of generations. `waits`: as StoreBackend's."""

    @property
    def waits(self) -> bool: ...

    async def keep(self, generation: Generation, entry: Entry) -> None:
        """Store an entry. Raises Fenced."""
        ...

    def spare(self, generation: Generation, entry: Entry) -> bool:
        """Drop a preview that all readers here have received, if there is no room for it. Returns whether it did."""
        ...


class Generation:
    """See the module's text. `scope` is the producer's: cancelling it closes the upstream connection.

    `names`: the names under which the same request may come again; `ending`: the reason why it was stopped.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        keeper: Keeper | None = None,
        policy: OnDisconnect = OnDisconnect.CANCEL,
        names: Names | None = None,
    ) -> None:
        self.stream = stream
        self.policy = policy
        self.names = names or Names(body="")
        self.scope = anyio.CancelScope()
        self.ending: Ending | None = None
        self._keeper = keeper
        self._turn = asyncio.Lock()  # anyio's takes 0.8 kB of each stream, for a queue that is rarely needed

    @property
    def complete(self) -> bool:
        """Whether every image has its outcome."""
        return self.stream.log.is_complete(self.stream.record.n)

    def stop(self, ending: Ending) -> None:
        """Cancel the producer. Only the first reason is reported."""
        self.ending = self.ending or ending
        self.scope.cancel()

    async def append(self, frame: Frame) -> None:
        """Add one whole frame. Returns when the requesting caller has taken it, or has left.

        A preview that comes after its image's outcome is dropped. Several producers of one stream take turns.
        """
        stream = self.stream
        async with self._turn:
            if not frame.final and stream.log.has_outcome(frame.image):
                return
            entry = Entry(Cursor(stream.log.epoch, stream.log.last + 1), frame)
            if entry.critical:
                # Stored before it is delivered, so that no frame is lost that a reader has seen. Shielded, so that both
                # happen or neither: a seq is given once.
                with self._shield():
                    await self._keep(entry)
                stream.add(entry)
            else:
                stream.add(entry)
                await self._keep(entry)
        if not entry.critical:
            await stream.pace.taken(entry.cursor.seq)
            self._spare(entry)

    async def fail(self, error: ProxyError) -> None:
        """End the stream with an error event. To be called at most once."""
        self.stream.pace.release()
        self.stream.error = error
        try:
            await self.append(error_frame(error, self.stream.request_id))
        except ProxyError as lost:  # the store has another end already
            self.stream.error = lost
            await self.append(error_frame(lost, self.stream.request_id))

    def _shield(self) -> AbstractContextManager[object]:
        """Keep cancellation out of the block, at the price of a scope only where one could come in."""
        waits = self._keeper is not None and self._keeper.waits
        return anyio.CancelScope(shield=True) if waits else nullcontext()

    async def _keep(self, entry: Entry) -> None:
        if self._keeper is None:
            return
        try:
            await self._keeper.keep(self, entry)
        except Fenced:
            self._keeper = None  # the store has ended this stream; the readers here still need an end
            raise ProxyError(Failure.PRODUCER_LOST, "This stream was ended because its producer was lost.") from None

    def _spare(self, entry: Entry) -> None:
        if self._keeper is None or any(reader.seq < entry.cursor.seq for reader in self.stream.subscribers):
            return
        if self._keeper.spare(self, entry):
            self.stream.log.drop(entry.cursor.seq)


class StoreKeeper:
    """Keeps entries in the hub's store, and failures in `Repeats`, for retries."""

    def __init__(self, backend: StoreBackend, health: StoreHealth, repeats: Repeats) -> None:
        self.waits = backend.waits
        self._store = backend.store
        self._previews = backend.previews
        self._health = health
        self._repeats = repeats

    async def keep(self, generation: Generation, entry: Entry) -> None:
        deferred = self._previews if not entry.critical else None
        if deferred is not None and deferred.defer(generation.stream.id, entry):
            return
        if generation.ending is Ending.SHUTDOWN:
            with anyio.move_on_after(KEEP_SECONDS):
                await self._put(generation, entry)
        else:
            await self._put(generation, entry)

    async def _put(self, generation: Generation, entry: Entry) -> None:
        error, mark = generation.stream.error, generation.names.mark
        if error is not None and mark is not None:
            await self._repeats.hold(mark, error, entry.frame)
        await self._health.attempt(self._store.append(generation.stream.id, entry))

    def spare(self, generation: Generation, entry: Entry) -> bool:
        return self._store.spare(generation.stream.id, entry)
