"""All streams that this process produces or follows, and what becomes of them.

    create / conclude      the producer's side: a stream begins, a stream has ended
    find                   a stream by its id: local, kept by the store, or followed from another process
    claim                  what an Idempotency-Key stands for
    repeats                what a request that is sent again finds
    end                    an explicit end, from any process

When the last reader leaves, the stream's policy decides: `finish` runs to the end and keeps the images, `cancel` closes
the upstream connection after a grace that is longer than any reconnect takes. A store that fails does not stop what
runs here: local readers are served, and readyz says it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeVar

import anyio
from anyio.abc import TaskGroup

from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.mirrors import PRESENCE_SECONDS, Mirrors
from streamproxy.hub.repeats import Repeats
from streamproxy.hub.store import Claim, Fenced, Gone, Kept, Record, Shared, StoreError, Summary
from streamproxy.hub.stream import Entry, Stream, Subscriber
from streamproxy.observe import Observer

Result = TypeVar("Result")

SWEEP_SECONDS: Final = 5.0
CONCLUDE_SECONDS: Final = 5.0
"""What keeping the end of a stream may cost, also while the process is being stopped."""

DRAINED_SECONDS: Final = 1.0
"""For streams to be gone that are over at the drain's deadline."""


UNREACHABLE: Final = "The store of streams cannot be reached now."


class OnDisconnect(Enum):
    """What happens to a generation that nobody follows any more."""

    CANCEL = "cancel"
    FINISH = "finish"


@dataclass(frozen=True, slots=True)
class HubLimits:
    """`grace`, and for how long a failure is held, in seconds; how many may read one stream, and all of one owner's;
    how many generations may run."""

    grace: float
    hold: float
    viewers: int
    viewers_of_owner: int
    streams: int


@dataclass(frozen=True, slots=True)
class Produced:
    """A generation of this process: `key` and `mark` are how its request may come again, `over` when all is kept."""

    stream: Stream
    policy: OnDisconnect
    key: str | None
    mark: str | None
    over: anyio.Event


class Hub:
    """See the module's text. `tasks` is the app's task group."""

    def __init__(self, *, kept: Kept, tasks: TaskGroup, limits: HubLimits, observer: Observer) -> None:
        self._store = kept.store
        self._claims = kept.claims
        self._shared = kept.shared
        self._listing = kept.listing
        self._tasks = tasks
        self._limits = limits
        self._observer = observer
        self._produced: dict[str, Produced] = {}
        self._mirrors = None if kept.shared is None else Mirrors(kept.shared, tasks, self._failed)
        self.repeats = Repeats(kept.marks, stored=self._stored, find=self.find, tasks=tasks, hold=limits.hold)
        self._none = anyio.Event()
        self._viewers_of = Counter[str | None]()
        self.draining = False
        self.store_failed = False

    # The producer's side.

    @property
    def running(self) -> int:
        """Generations of this process that have not ended."""
        return len(self._produced)

    def admit(self) -> None:
        """Raises ProxyError where no new generation is taken."""
        if self.draining:
            raise ProxyError(Failure.DRAINING, "The proxy is shutting down and takes no new requests.", retry_after="2")
        if self.running >= self._limits.streams:
            raise ProxyError(
                Failure.OVERLOADED, "Too many generations are running. The setting is max_streams.", retry_after="2"
            )

    async def create(
        self, stream: Stream, *, policy: OnDisconnect, key: str | None = None, mark: str | None = None
    ) -> None:
        """A generation begins; its request may come again with `key`, or as a retry with `mark`."""
        id = stream.id
        stream.on_idle = self._idle
        self._produced[id] = Produced(stream, policy, key, mark, anyio.Event())
        await self._stored(self._store.create(Record(id, stream.owner, stream.created, stream.n)))
        stream.sink = self._keep
        stream.spare = self._store.spare

    async def _keep(self, id: str, entry: Entry) -> None:
        produced = self._produced[id]
        stream = produced.stream
        try:
            with anyio.move_on_after(DRAINED_SECONDS / 2 if stream.shutdown else None):  # its readers must learn it too
                if stream.error is not None and produced.mark is not None:
                    await self.repeats.failed(produced.mark, stream.error, entry.frame)
                await self._stored(self._store.append(id, entry))
        except Fenced:
            stream.sink = None  # the store has an end already; the readers here need one too
            raise ProxyError(Failure.PRODUCER_LOST, "This stream was ended because its producer was lost.") from None

    async def conclude(self, stream: Stream) -> None:
        """The stream has ended, however: what it retains is kept for those who come back."""
        if stream.finished:
            return
        stream.finish()
        produced = self._produced.get(stream.id)
        try:
            if produced is not None:
                with anyio.move_on_after(CONCLUDE_SECONDS, shield=True):
                    await self._stored(self._store.finish(stream.id))
        finally:
            self._produced.pop(stream.id, None)
            if produced is not None:
                produced.over.set()
            stream.release()
            if not self._produced:
                none, self._none = self._none, anyio.Event()
                none.set()

    def _idle(self, stream: Stream) -> None:
        """The last reader of a stream has left."""
        produced = self._produced.get(stream.id)
        if produced is not None and not stream.finished and produced.policy is OnDisconnect.CANCEL:
            if self._limits.grace == 0:
                self._forsake(produced)
            else:
                self._tasks.start_soon(self._after_grace, produced, stream.visits)

    def _forsake(self, produced: Produced) -> None:
        """End a generation that nobody came back for; a retry that comes later still asks anew."""
        produced.stream.scope.cancel()
        if produced.mark is not None:
            self.repeats.finished(produced.mark, produced.stream.id)

    async def _after_grace(self, produced: Produced, visits: int) -> None:
        stream = produced.stream
        await anyio.sleep(self._limits.grace)
        while not stream.finished and stream.visits == visits and await self._viewed_elsewhere(stream.id):  # noqa: ASYNC110
            await anyio.sleep(PRESENCE_SECONDS)  # nobody tells this process when other processes' viewers leave
        if not stream.finished and stream.visits == visits:  # else: when who came back leaves, another grace begins
            self._forsake(produced)

    async def _viewed_elsewhere(self, id: str) -> bool:
        return self._shared is not None and bool(await self._stored(self._shared.viewed(id)))

    # The readers' side.

    async def find(self, id: str) -> Stream:
        """The stream; raises ProxyError(NOT_FOUND), or (GONE) when it was purged."""
        local = self._produced.get(id)
        if local is not None:
            return local.stream
        if self._mirrors is not None and (followed := self._mirrors.get(id)) is not None:
            return followed
        stored = await self._stored(self._store.load(id))
        if stored is None and self.store_failed:
            raise ProxyError(Failure.OVERLOADED, UNREACHABLE, retry_after="2")
        if isinstance(stored, Gone):
            raise ProxyError(Failure.GONE, "This stream has ended and is no longer kept. The setting is linger.")
        if stored is None:
            raise ProxyError(Failure.NOT_FOUND, "No such stream.")
        if stored.finished or self._mirrors is None:
            return stored.mirror()
        return self._mirrors.get(id) or self._mirrors.start(stored)  # somebody else may have been as quick

    async def owned(self, owner: str, after: str | None, limit: int) -> list[Summary] | None:
        """An owner's streams, as `Listing.owned`. Raises ProxyError(OVERLOADED) where the store cannot say."""
        if self._listing is None:
            return []
        listed = await self._stored(self._listing.owned(owner, after, limit))
        if listed is None and self.store_failed:
            raise ProxyError(Failure.OVERLOADED, UNREACHABLE, retry_after="2")
        return listed

    def watch(self, stream: Stream, subscriber: Subscriber) -> None:
        """Count a viewer; raises ProxyError(TOO_MANY_VIEWERS) where the stream or its owner has too many."""
        of_owner = self._viewers_of[stream.owner]
        if len(stream.subscribers) > self._limits.viewers or of_owner >= self._limits.viewers_of_owner:
            subscriber.leave()
            raise ProxyError(
                Failure.TOO_MANY_VIEWERS,
                "This stream has too many viewers. The settings are max_viewers and max_viewers_per_caller.",
            )
        self._viewers_of[stream.owner] += 1

    def unwatch(self, stream: Stream, subscriber: Subscriber) -> None:
        """A counted viewer is gone."""
        subscriber.leave()
        self._viewers_of[stream.owner] -= 1
        if not self._viewers_of[stream.owner]:
            del self._viewers_of[stream.owner]

    async def end(self, stream: Stream) -> bool:
        """End a stream for everybody, from any process: cancel it, or forget it where it has finished; whether it had.

        Raises ProxyError(OVERLOADED) where the store, or its process, cannot be told.
        """
        produced = self._produced.get(stream.id)
        finished = stream.finished
        try:
            if finished:
                await self._forget(stream.id)
            elif produced is not None:
                self._cancel(produced.stream)
            elif self._shared is not None:
                await self._shared.cancel(stream.id)
        except StoreError as error:  # to say that it ends would be a lie that costs money
            self._failed(error)
            raise ProxyError(Failure.OVERLOADED, UNREACHABLE, retry_after="2") from None
        return finished

    def _cancel(self, stream: Stream) -> None:
        stream.asked_to_end = True
        stream.scope.cancel()

    async def _forget(self, id: str) -> None:
        produced = self._produced.get(id)
        if produced is not None:  # its end is being kept now
            await produced.over.wait()
        await self._store.forget(id)

    def left(self, stream: Stream, mark: str | None, *, own: bool, had_all: bool) -> None:
        """A caller who asked for this stream, or asked again, has been answered, or has left before."""
        if mark is None:
            return
        if had_all:
            self.repeats.finished(mark, stream.id)
        else:
            self.repeats.left(mark, stream.id, own=own)

    def discard(self, stream: Stream) -> None:
        """The one caller who could know this stream has had all of it: it need not be kept."""
        self._tasks.start_soon(self._discard, stream.id)

    async def _discard(self, id: str) -> None:
        await self._stored(self._forget(id))

    # Idempotency.

    async def claim(self, key: str, fingerprint: str, id: str) -> str | None:
        """The id of the stream that answers this key already, None where this request is the first.

        Raises ProxyError(IDEMPOTENCY_MISMATCH) where the key stands for another request, and (OVERLOADED) where the
        store cannot say: who sends a key would rather wait than pay twice.
        """
        held = await self._stored(self._claims.claim(key, Claim(fingerprint, id)))
        if held is None:
            raise ProxyError(Failure.OVERLOADED, UNREACHABLE, retry_after="2")
        if held.stream_id == id:
            return None
        if held.fingerprint != fingerprint:
            raise ProxyError(
                Failure.IDEMPOTENCY_MISMATCH,
                "This Idempotency-Key was used for another request. Send a new key, or the same body.",
            )
        return held.stream_id

    async def disclaim(self, key: str) -> None:
        """The request was refused with nothing processed, so the same key may be tried again."""
        await self._stored(self._claims.disclaim(key))

    async def withdraw(self, id: str, key: str | None, mark: str | None) -> None:
        """Nothing of this request was processed: its key may be tried again, and no retry looks for it."""
        if key is not None:
            await self.disclaim(key)
        if mark is not None:
            await self.repeats.over(mark, id)

    async def refused(self, stream: Stream) -> None:
        """As `withdraw`, for a generation; to be said before anybody hears of the failure."""
        produced = self._produced.get(stream.id)
        if produced is not None:
            await self.withdraw(stream.id, produced.key, produced.mark)

    # Around.

    async def tend(self) -> None:
        """Runs as long as the app: purges what has lingered, and ends what other processes cancel."""
        async with anyio.create_task_group() as tasks:
            if self._shared is not None:
                tasks.start_soon(self._cancelled, self._shared)
            while True:
                await anyio.sleep(SWEEP_SECONDS)
                await self._stored(self._store.sweep())

    async def _cancelled(self, shared: Shared) -> None:
        while True:
            try:
                async for id in shared.cancelled():
                    if id in self._produced:
                        self._cancel(self._produced[id].stream)
            except StoreError as error:
                self._failed(error)
                await anyio.sleep(SWEEP_SECONDS)

    async def drain(self, timeout: float) -> None:
        """Take no new work and let what runs end; at the deadline end it with `server_shutdown`."""
        self.draining = True
        with anyio.move_on_after(timeout):
            await self._ended()
        for produced in list(self._produced.values()):
            produced.stream.shutdown = True
            produced.stream.scope.cancel()
        if self._mirrors is not None:
            self._mirrors.give_up()
        with anyio.move_on_after(DRAINED_SECONDS):
            await self._ended()
            if self._mirrors is not None:
                await self._mirrors.gone()

    async def _ended(self) -> None:
        """Return when no generation runs here."""
        while self._produced:
            await self._none.wait()

    async def _stored(self, operation: Awaitable[Result]) -> Result | None:
        """The store's answer, or None and a degraded hub where it fails."""
        try:
            result = await operation
        except StoreError as error:
            self._failed(error)
            return None
        if self.store_failed:
            self.store_failed = False
            self._observer.store_recovered()
        return result

    def _failed(self, error: StoreError) -> None:
        if not self.store_failed:
            self._observer.store_failed(str(error))
        self.store_failed = True
