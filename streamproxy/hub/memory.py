"""The store of one process: the logs of its streams, under a byte cap.

Finished streams linger. Over the cap, the oldest finished streams are purged first, and live ones never. The ids of
purged streams are remembered for a while, so that a late reader gets GONE and not NOT_FOUND.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import dropwhile, islice
from math import ceil
from typing import Final

from streamproxy.core.events import ERROR
from streamproxy.hub.log import Entry, Log, Record
from streamproxy.hub.store import (
    MARK_SECONDS,
    OWN,
    SAME,
    SPAN,
    Asking,
    Claim,
    Found,
    Gone,
    Standing,
    Stored,
    Summary,
)

REMEMBERED: Final = 10_000
"""Most ids of purged streams, about 100 bytes each, and most failures held. The oldest are forgotten first."""

CLAIM_SECONDS: Final = 24 * 3600.0
CLAIMS: Final = 100_000
"""Most Idempotency-Keys held, about 300 bytes each. The oldest are forgotten first."""


class MemoryStore:
    """See the module's text. `now` returns monotonic seconds."""

    def __init__(self, *, max_bytes: int, linger: float, now: Callable[[], float]) -> None:
        self._max_bytes = max_bytes
        self._linger = linger
        self._now = now
        self._live: dict[str, tuple[Record, Log]] = {}
        self._finished: OrderedDict[str, tuple[float, Record, Log]] = OrderedDict()
        self._owned: dict[str, dict[str, None]] = {}
        self._purged: OrderedDict[str, None] = OrderedDict()
        self._claims: OrderedDict[str, tuple[float, Claim]] = OrderedDict()
        self.bytes = 0

    async def create(self, record: Record) -> None:
        self._live[record.id] = record, Log()
        if record.owner is not None:
            self._owned.setdefault(record.owner, {})[record.id] = None

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

    async def owned(self, owner: str, after: str | None, limit: int) -> list[Summary] | None:
        self._purge()
        ids = self._owned.get(owner, {})
        if after is None:
            return [self._summary(id) for id in islice(reversed(ids), limit)]
        if after not in ids:
            return None
        behind = dropwhile(lambda id: id != after, reversed(ids))
        return [self._summary(id) for id in islice(behind, 1, limit + 1)]

    def _summary(self, id: str) -> Summary:
        record, kept = self._live[id] if id in self._live else self._finished[id][1:]
        error = next((entry.frame for entry in kept.retained() if entry.frame.type == ERROR), None)
        return Summary(record, id in self._finished, b"" if error is None else b"".join(error.data))

    async def claim(self, key: str, claim: Claim) -> Claim:
        now = self._now()
        while self._claims and next(iter(self._claims.values()))[0] <= now:
            self._claims.popitem(last=False)
        if key not in self._claims and len(self._claims) >= CLAIMS:
            self._claims.popitem(last=False)
        return self._claims.setdefault(key, (now + CLAIM_SECONDS, claim))[1]

    async def disclaim(self, key: str) -> None:
        self._claims.pop(key, None)

    async def forget(self, id: str) -> None:
        found = self._finished.pop(id, None)
        if found is not None:
            self._gone(*found[1:])

    def shed(self, size: int) -> int:
        before = self.bytes
        while self._finished and before - self.bytes < size:
            _, (_, record, kept) = self._finished.popitem(last=False)
            self._gone(record, kept)
        return before - self.bytes

    async def sweep(self) -> None:
        """Purge streams whose linger is over."""
        self._purge()

    def _purge(self) -> None:
        """Purge streams whose linger is over, and the oldest while the cap is exceeded."""
        now = self._now()
        while self._finished:
            id, (ends, record, kept) = next(iter(self._finished.items()))
            if ends > now and self.bytes <= self._max_bytes:
                return
            del self._finished[id]
            self._gone(record, kept)

    def _gone(self, record: Record, kept: Log) -> None:
        self.bytes -= kept.bytes
        if record.owner is not None:
            ids = self._owned[record.owner]
            del ids[record.id]
            if not ids:
                del self._owned[record.owner]
        self._purged[record.id] = None
        if len(self._purged) > REMEMBERED:
            self._purged.popitem(last=False)


class MemoryMarks:
    """The marks of one process: `hub.store.Marks`. `now` returns monotonic seconds."""

    def __init__(self, *, now: Callable[[], float]) -> None:
        self._now = now
        self._places: OrderedDict[str, tuple[float, dict[str, float]]] = OrderedDict()
        self._failures: OrderedDict[str, tuple[float, bytes]] = OrderedDict()

    async def ask(self, mark: str, id: str, asked: float, asking: Asking) -> Found:
        self._purge()
        places = self._places.get(mark, (0.0, {}))[1]
        nearest = min(places, key=places.__getitem__, default=None) if asking is not Asking.FIRST else None
        followers = 0 if nearest is None else ceil(places[nearest] / SPAN)
        if nearest is not None and followers == 0:
            return self._adopted(mark, nearest)
        if mark in self._failures:
            return Found(Standing.FAILED, failure=self._failures[mark][1])
        if nearest is not None:
            if asking is Asking.RETRY and max(places.values()) > (OWN - 1) * SPAN:
                return Found(Standing.FOLLOWED)
            if followers < OWN:
                return self._adopted(mark, nearest)
        places[id] = OWN * SPAN - asked
        if len(places) > SAME:
            del places[max(places, key=places.__getitem__)]
        self._touch(mark, places)
        return Found(Standing.NEW)

    def _adopted(self, mark: str, id: str) -> Found:
        places = self._places[mark][1]
        places[id] += SPAN
        self._touch(mark, places)
        return Found(Standing.ADOPTED, id)

    def _touch(self, mark: str, places: dict[str, float]) -> None:
        self._places[mark] = self._now() + MARK_SECONDS, places
        self._places.move_to_end(mark)

    async def left(self, mark: str, id: str, followers: int) -> None:
        places = self._places.get(mark, (0.0, {}))[1]
        if id in places:
            places[id] -= followers * SPAN

    def over(self, mark: str, id: str) -> None:
        places = self._places.get(mark, (0.0, {}))[1]
        places.pop(id, None)
        if not places:
            self._places.pop(mark, None)

    async def failed(self, mark: str, failure: bytes, seconds: float) -> None:
        self._failures[mark] = self._now() + seconds, failure
        self._failures.move_to_end(mark)

    def _purge(self) -> None:
        """Forget marks that have expired, and the oldest while there are too many."""
        now = self._now()
        while self._places and (next(iter(self._places.values()))[0] <= now or len(self._places) > CLAIMS):
            self._places.popitem(last=False)
        while self._failures and (next(iter(self._failures.values()))[0] <= now or len(self._failures) > REMEMBERED):
            self._failures.popitem(last=False)
