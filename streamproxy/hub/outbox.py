"""The outbox: webhooks that are to be delivered, from the order until they are, or are given up.

    put                       with the order, before anything is paid
    ended, renew              by the process that makes the stream
    claim, postpone, drop     by any process, which delivers what is due

A notice is put with the order, and is due in LOOK_SECONDS. The process that makes the stream pushes that back for as
long as it lives, and makes it due when the stream has ended. So a notice whose process was lost comes due by itself,
and another process tells how the stream ended. A claim makes a notice due again after LEASE_SECONDS, so that one
process delivers it at a time.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.health import StoreHealth, unreachable
from streamproxy.signals import Signal

LOOK_SECONDS: Final = 15.0
"""Until a stream whose process says nothing more is looked at."""

RENEW_SECONDS: Final = 5.0
"""Two renewals may get lost."""

LEASE_SECONDS: Final = 60.0
"""What one attempt may take at most, the reading of the stream included."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One stream's webhook. `base`: the stream's absolute URL; `body`: the message, "" until it has been written."""

    id: str
    owner: str | None
    url: str = field(repr=False)
    base: str = field(repr=False)
    provider: str = ""
    model: str | None = None
    body: str = field(default="", repr=False)
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """A notice that one process has claimed, `until` this Unix time."""

    notice: Notice
    until: float


@dataclass(frozen=True, slots=True)
class OutboxLimits:
    """Notices that may be pending: of all callers, and of one."""

    total: int
    caller: int


class NoticeStore(Protocol):
    """Where notices are kept. Every method may raise StoreError. One contract suite holds every store to this."""

    async def put(self, notice: Notice, due: float, room: OutboxLimits) -> bool:
        """Keep a notice; False where there is no room for it."""
        ...

    async def set_due(self, ids: Sequence[str], due: float) -> None:
        """Make those that are kept due at this time."""
        ...

    async def claim(self, now: float, until: float, most: int) -> list[Lease]:
        """Some notices that are due, which are due again at `until`."""
        ...

    async def replace(self, lease: Lease, notice: Notice, due: float) -> None:
        """Keep `notice` in the place of the claimed one. Where `set_due` came meanwhile, that time stays."""
        ...

    async def drop(self, notice: Notice) -> None:
        """Let go of a notice."""
        ...


class Outbox:
    """See the module's text. `changed`: something may be due."""

    def __init__(self, store: NoticeStore, health: StoreHealth, room: OutboxLimits) -> None:
        self._store = store
        self._health = health
        self._room = room
        self._running: set[str] = set()
        self.changed = Signal()

    async def put(self, notice: Notice) -> None:
        """Keep a notice for a stream that this process makes. Raises ProxyError(OVERLOADED)."""
        kept = await self._health.attempt(self._store.put(notice, time.time() + LOOK_SECONDS, self._room))
        if kept is None:
            raise unreachable()
        if not kept:
            raise ProxyError(
                Failure.OVERLOADED,
                "Too many webhooks wait to be delivered. The settings are max_webhooks and max_webhooks_per_caller.",
                retry_after="30",
            )
        self._running.add(notice.id)

    async def ended(self, id: str) -> None:
        """Make the notice due of a stream of this process that has ended, if it has one."""
        if id in self._running:
            self._running.discard(id)
            await self._health.attempt(self._store.set_due((id,), time.time()))
            self.changed.set()

    async def renew(self) -> None:
        """Say that the streams of this process still run."""
        if self._running:
            await self._health.attempt(self._store.set_due(tuple(self._running), time.time() + LOOK_SECONDS))

    async def claim(self, most: int) -> list[Lease]:
        """Some notices that are due now; none where the store does not answer."""
        now = time.time()
        return await self._health.attempt(self._store.claim(now, now + LEASE_SECONDS, most)) or []

    async def postpone(self, lease: Lease, notice: Notice, seconds: float) -> None:
        """Keep a claimed notice as it is now, due in so many seconds."""
        await self._health.attempt(self._store.replace(lease, notice, time.time() + seconds))

    async def drop(self, notice: Notice) -> None:
        """Let go of a notice that is delivered, or given up, or whose stream has not begun."""
        self._running.discard(notice.id)
        await self._health.attempt(self._store.drop(notice))


class MemoryNotices:
    """The notices of one process. They end with it."""

    def __init__(self) -> None:
        self._notices: dict[str, Lease] = {}
        self._owners: Counter[str | None] = Counter()
        self._queue: list[tuple[float, str]] = []  # of those in `_notices`, and some that are not due then any more

    @property
    def kept(self) -> int:
        """How many there are."""
        return len(self._notices)

    async def put(self, notice: Notice, due: float, room: OutboxLimits) -> bool:
        if len(self._notices) >= room.total or self._owners[notice.owner] >= room.caller:
            return False
        self._owners[notice.owner] += 1
        self._keep(notice, due)
        return True

    async def set_due(self, ids: Sequence[str], due: float) -> None:
        for id in ids:
            if (kept := self._notices.get(id)) is not None:
                self._keep(kept.notice, due)

    async def claim(self, now: float, until: float, most: int) -> list[Lease]:
        found: list[Lease] = []
        while self._queue and self._queue[0][0] <= now and len(found) < most:
            due, id = heapq.heappop(self._queue)
            kept = self._notices.get(id)
            if kept is not None and kept.until == due:
                self._keep(kept.notice, until)
                found.append(self._notices[id])
        return found

    async def replace(self, lease: Lease, notice: Notice, due: float) -> None:
        kept = self._notices.get(notice.id)
        if kept is not None:
            self._keep(notice, due if kept.until == lease.until else kept.until)

    async def drop(self, notice: Notice) -> None:
        if self._notices.pop(notice.id, None) is not None:
            self._owners[notice.owner] -= 1
            if not self._owners[notice.owner]:
                del self._owners[notice.owner]
        if not self._notices:
            self._queue.clear()

    def _keep(self, notice: Notice, due: float) -> None:
        self._notices[notice.id] = Lease(notice, due)
        heapq.heappush(self._queue, (due, notice.id))
        if len(self._queue) > 64 + 4 * len(self._notices):  # renewals leave old places behind
            self._queue = [(kept.until, id) for id, kept in self._notices.items()]
            heapq.heapify(self._queue)
