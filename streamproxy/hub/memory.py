"""The store of one process: what streams retain, under a byte cap.

Finished streams linger; over the cap the oldest finished ones go first, a live one never. What has gone leaves its id
behind for a while, so that a reader who comes late learns that it is gone, not that it never was.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from streamproxy.hub.store import Claim, Gone, Record, Stored
from streamproxy.hub.stream import Entry, Retained

REMEMBERED: Final = 10_000
"""Ids of purged streams, some 100 bytes each; the oldest are forgotten first."""

CLAIM_SECONDS: Final = 24 * 3600.0
CLAIMS: Final = 100_000
"""Idempotency keys held at most, some 300 bytes each; the oldest are forgotten first."""


class MemoryStore:
    """See the module's text. `now` gives monotonic seconds."""

    def __init__(self, *, max_bytes: int, linger: float, now: Callable[[], float]) -> None:
        self._max_bytes = max_bytes
        self._linger = linger
        self._now = now
        self._live: dict[str, tuple[Record, Retained]] = {}
        self._finished: OrderedDict[str, tuple[float, Record, Retained]] = OrderedDict()
        self._purged: OrderedDict[str, None] = OrderedDict()
        self._claims: OrderedDict[str, tuple[float, Claim]] = OrderedDict()
        self.bytes = 0

    async def create(self, record: Record) -> None:
        self._live[record.id] = record, Retained()

    async def append(self, id: str, entry: Entry) -> None:
        _, kept = self._live[id]
        before = kept.bytes
        kept.add(entry)
        self.bytes += kept.bytes - before
        self._purge()

    def spare(self, id: str, entry: Entry) -> bool:
        if self.bytes <= self._max_bytes:
            return False
        _, kept = self._live[id]
        before = kept.bytes
        kept.drop(entry.cursor.seq)
        self.bytes += kept.bytes - before
        return True

    async def finish(self, id: str) -> None:
        record, kept = self._live.pop(id)
        before = kept.bytes
        kept.finish()
        self.bytes += kept.bytes - before
        self._finished[id] = self._now() + self._linger, record, kept
        self._purge()

    async def load(self, id: str) -> Stored | Gone | None:
        self._purge()
        if id in self._live:
            record, kept = self._live[id]
            return Stored(record, tuple(kept.retained()), False)
        if id in self._finished:
            _, record, kept = self._finished[id]
            return Stored(record, tuple(kept.retained()), True)
        return Gone() if id in self._purged else None

    async def claim(self, key: str, claim: Claim) -> Claim:
        now = self._now()
        while self._claims and next(iter(self._claims.values()))[0] <= now:
            self._claims.popitem(last=False)
        if key not in self._claims and len(self._claims) >= CLAIMS:
            self._claims.popitem(last=False)
        return self._claims.setdefault(key, (now + CLAIM_SECONDS, claim))[1]

    async def disclaim(self, key: str) -> None:
        self._claims.pop(key, None)

    async def sweep(self) -> None:
        """Purge what has lingered long enough."""
        self._purge()

    def _purge(self) -> None:
        """Purge what has lingered long enough, and the oldest while the cap is exceeded."""
        now = self._now()
        while self._finished:
            id, (ends, _, kept) = next(iter(self._finished.items()))
            if ends > now and self.bytes <= self._max_bytes:
                return
            del self._finished[id]
            self.bytes -= kept.bytes
            self._purged[id] = None
            if len(self._purged) > REMEMBERED:
                self._purged.popitem(last=False)
