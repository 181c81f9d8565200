"""Spending and running generations of callers: the protocol of ledgers, and the ledger of one process.

    reserve     before a generation is paid for: it runs from now on, and its estimate counts as spent
    settle      when it has ended: it runs no more, and its cost counts in place of the estimate
    renew       the process that runs it lives

Money is in whole microdollars, so that sums are exact. A generation counts for the day of UTC on which it was reserved.
The estimate of one that is never settled, because its process died, stays spent: the provider may have charged for it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol

KEPT_DAYS: Final = 62
"""Days whose usage is known: two whole months."""

SETTLED: Final = 10_000
"""Ids of generations that have been settled, some 100 bytes each. A settlement is repeated within seconds."""


class Verdict(Enum):
    """Whether a generation may run, and which limit of its caller forbids it."""

    RESERVED = "reserved"
    STREAMS = "streams"
    BUDGET = "budget"


@dataclass(frozen=True, slots=True)
class Entry:
    """One generation of a caller ("" for one without a label). `day`: as 2026-11-27. `estimate`: in microdollars.

    `provider` and `model` ("" where it is not known): as far as they are known when it begins.
    """

    id: str
    caller: str
    day: str
    estimate: int
    provider: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """The most generations at a time, and microdollars in a day. None: any number."""

    streams: int | None
    budget: int | None


FIGURES: Final = ("requests", "images", "cost", "cost_unknown", "estimated")


@dataclass(frozen=True, slots=True)
class Bill:
    """The costs of a generation that has ended, in microdollars. `model`: "" for one that is not known.

    `cost`: as far as answers stated it; `estimated`: counts as spent besides, None where the cost is known. `requests`:
    0 for a generation that never began.
    """

    entry: Entry
    provider: str = ""
    model: str = ""
    images: int = 0
    cost: int = 0
    estimated: int | None = None
    requests: int = 1

    @property
    def figures(self) -> dict[str, int]:
        """The values that are added to FIGURES, without zeros."""
        values = self.requests, self.images, self.cost, int(self.estimated is not None), self.estimated or 0
        return {figure: value for figure, value in zip(FIGURES, values, strict=True) if value}

    @property
    def spent(self) -> int:
        """Microdollars that count in the caller's budget."""
        return self.cost + (self.estimated or 0)


@dataclass(frozen=True, slots=True)
class Spent:
    """The sums of one caller, model and provider on one day: requests, images, microdollars that answers stated,
    requests whose cost is not known, and the microdollars that these count as."""

    day: str
    caller: str
    model: str
    provider: str
    requests: int
    images: int
    cost: int
    cost_unknown: int
    estimated: int


class Ledger(Protocol):
    """See the module's text. Every method may raise StoreError, and may be called again then: it counts once."""

    async def reserve(self, entry: Entry, limits: CallerLimits) -> Verdict:
        """Let a generation run unless that exceeds a limit. Check and reservation are one step for all processes."""
        ...

    async def settle(self, bill: Bill) -> None:
        """Count a generation that has ended, whether or not it was reserved."""
        ...

    async def renew(self, running: Iterable[Entry]) -> None:
        """Keep these generations, which run here, for one more lease. To be called every few seconds."""
        ...

    async def usage(self, days: Sequence[str], caller: str | None) -> list[Spent]:
        """The spending on these days of this caller, or of all."""
        ...


@dataclass(slots=True)
class _Day:
    """One caller's day. `held`: estimates by the generation's id; `spent` counts them too."""

    spent: int = 0
    held: dict[str, int] = field(default_factory=dict)
    sums: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)


class MemoryLedger:
    """The ledger of one process, which forgets all with it."""

    def __init__(self) -> None:
        self._days: dict[str, dict[str, _Day]] = {}
        self._running: dict[str, set[str]] = {}
        self._settled: OrderedDict[str, None] = OrderedDict()

    async def reserve(self, entry: Entry, limits: CallerLimits) -> Verdict:
        running = self._running.setdefault(entry.caller, set())
        day = self._day(entry)
        if entry.id in running:
            return Verdict.RESERVED
        if limits.streams is not None and len(running) >= limits.streams:
            return Verdict.STREAMS
        if limits.budget is not None and day.spent + entry.estimate > limits.budget:
            return Verdict.BUDGET
        running.add(entry.id)
        day.held[entry.id] = entry.estimate
        day.spent += entry.estimate
        return Verdict.RESERVED

    async def settle(self, bill: Bill) -> None:
        entry = bill.entry
        if entry.id in self._settled:
            return
        self._settled[entry.id] = None
        if len(self._settled) > SETTLED:
            self._settled.popitem(last=False)
        running = self._running.get(entry.caller, set())
        running.discard(entry.id)
        if not running:
            self._running.pop(entry.caller, None)
        day = self._day(entry)
        day.spent += bill.spent - day.held.pop(entry.id, 0)
        if bill.figures:
            day.sums.setdefault((bill.model, bill.provider), Counter()).update(bill.figures)

    async def renew(self, running: Iterable[Entry]) -> None:
        pass

    async def usage(self, days: Sequence[str], caller: str | None) -> list[Spent]:
        return [
            Spent(day, name, model, provider, **{figure: sums[figure] for figure in FIGURES})
            for day in days
            for name, found in self._days.get(day, {}).items()
            if caller in (None, name)
            for (model, provider), sums in found.sums.items()
        ]

    def _day(self, entry: Entry) -> _Day:
        if entry.day not in self._days:
            self._days[entry.day] = {}
            for old in sorted(self._days)[:-KEPT_DAYS]:
                del self._days[old]
        return self._days.setdefault(entry.day, {}).setdefault(entry.caller, _Day())
