"""Generations and their callers' limits: admission before anything is paid, settlement at the end.

    tab = await tabs.open(caller, routes, n)    raises ProxyError where the caller's limits forbid it
    await tab.close(account)                    the account's cost in place of the estimate

The estimate of a picture is the catalogue's price for it. For a model that is priced by tokens it is the largest cost
of a picture of that model so far; before there is one, it is the price of a typical picture. So requests at the same
time exceed the budget only by the difference between their costs and their estimates. A generation of unknown cost
counts as its estimate, unless nothing of it can have been charged.

While the store cannot be reached, callers with a budget are refused, and all others are served. Their bills are settled
when the store is back.
"""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from math import ceil
from typing import Final

import anyio

from streamproxy.account import Account, Outcome
from streamproxy.auth import Caller
from streamproxy.core.catalogue import UNKNOWN, Route
from streamproxy.core.cost import typical
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.health import StoreHealth
from streamproxy.hub.ledger import Bill, CallerLimits, Entry, Ledger, Spent, Verdict
from streamproxy.hub.store import StoreError
from streamproxy.observe import Observer

MICRO: Final = 1_000_000
DAY: Final = 86_400

RENEW_SECONDS: Final = 3.0
"""A third of the lease of the ledgers that processes share."""

CLOSE_SECONDS: Final = 0.25
"""Settling may hold up the end of a stream for so long. A store that is well takes a millisecond. A bill that needs
longer is settled later."""

UNSETTLED: Final = 10_000
"""Bills that wait for the store, some 500 bytes each; the oldest are given up first."""


class Tabs:
    """See the module's text. `now` gives Unix seconds."""

    def __init__(
        self, ledger: Ledger, *, health: StoreHealth, observer: Observer, now: Callable[[], float] = time.time
    ) -> None:
        self._ledger = ledger
        self._health = health
        self._observer = observer
        self._now = now
        self._estimates = _Estimates()
        self._running: dict[str, Entry] = {}
        self._unsettled: OrderedDict[str, Bill] = OrderedDict()

    async def open(self, caller: Caller, routes: Sequence[Route], n: int) -> Tab:
        """Admit a generation of `n` images by one of these routes.

        Raises ProxyError(CALLER_STREAMS, BUDGET_EXHAUSTED or OVERLOADED).
        """
        estimate = max(self._estimates.of(route, n) for route in routes)
        first = routes[0]
        model = "" if first.model.family == UNKNOWN else first.model.id
        entry = Entry(uuid.uuid4().hex, caller.label or "", self.day(), estimate, first.provider.name, model)
        if caller.streams is not None or caller.usd_per_day is not None:
            budget = None if caller.usd_per_day is None else round(caller.usd_per_day * MICRO)
            await self._admit(entry, CallerLimits(caller.streams, budget))
        return Tab(self, entry)

    async def _admit(self, entry: Entry, limits: CallerLimits) -> None:
        try:
            verdict = await self._ledger.reserve(entry, limits)
        except StoreError as error:
            self._health.note(error)
            if limits.budget is None:
                return
            self._owe(Bill(entry, requests=0))  # it may have been reserved, and the reply lost
            raise _unreachable() from None
        match verdict:
            case Verdict.STREAMS:
                raise _too_many(limits.streams or 0)
            case Verdict.BUDGET:
                raise _exhausted(limits.budget or 0, until=DAY - self._now() % DAY)
        self._running[entry.id] = entry

    async def settle(self, entry: Entry, account: Account) -> None:
        """Count the cost of a generation, now or when the store is back."""
        order = account.order
        if account.cost is not None:
            self._observer.paid(entry.caller, order.model or "", account.cost)
            self._estimates.learn(account)
        cost = round((account.cost or 0.0) * MICRO)
        whole = account.outcome is Outcome.COMPLETED or account.images >= order.n
        known = not account.charged or (account.cost is not None and whole)
        bill = Bill(
            entry,
            provider=order.provider,
            model=order.model or "",
            images=account.images,
            cost=cost,
            estimated=None if known else max(entry.estimate - cost, 0),
        )
        await self.pay(bill)

    async def pay(self, bill: Bill) -> None:
        """Settle, now or when the store is back: the generation runs no more."""
        self._running.pop(bill.entry.id, None)
        self._owe(bill)
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            await self._pay(bill)

    def _owe(self, bill: Bill) -> None:
        self._unsettled[bill.entry.id] = bill
        if len(self._unsettled) > UNSETTLED:
            self._unsettled.popitem(last=False)

    async def _pay(self, bill: Bill) -> None:
        try:
            await self._ledger.settle(bill)
        except StoreError as error:
            self._health.note(error)
        else:
            self._unsettled.pop(bill.entry.id, None)

    async def tend(self, every: float = RENEW_SECONDS) -> None:
        """Renew the leases of running generations, and settle bills that are still open, as long as the app runs."""
        while True:
            await anyio.sleep(every)
            await self._health.attempt(self._ledger.renew(list(self._running.values())))
            await self.settle_all()

    async def settle_all(self) -> None:
        """Settle the bills that are still open, unless the store fails."""
        for bill in list(self._unsettled.values()):
            await self._pay(bill)
            if bill.entry.id in self._unsettled:
                return

    # Usage.

    def day(self, back: int = 0) -> str:
        """Today, or so many days before it, in UTC."""
        return datetime.fromtimestamp(self._now() - back * DAY, UTC).date().isoformat()

    async def usage(self, days: Sequence[str], caller: str | None) -> list[Spent]:
        """The spending on these days of the caller with this label, or of all. Raises ProxyError(OVERLOADED)."""
        try:
            return await self._ledger.usage(days, caller)
        except StoreError as error:
            self._health.note(error)
            raise _unreachable() from None


class Tab:
    """The tab of one generation, from its admission to its end."""

    def __init__(self, tabs: Tabs, entry: Entry) -> None:
        self._tabs = tabs
        self._entry = entry
        self._closed = False

    async def close(self, account: Account) -> None:
        """The generation has ended: it takes none of its caller's `streams` any more. The first time counts."""
        if not self._closed:
            self._closed = True
            await self._tabs.settle(self._entry, account)

    async def withdraw(self) -> None:
        """The generation never began."""
        await self._tabs.pay(Bill(self._entry, requests=0))


class _Estimates:
    """The largest costs of a picture so far in microdollars, by model, or by provider where the model is not known."""

    def __init__(self) -> None:
        self._largest: dict[str, int] = {}

    def of(self, route: Route, n: int) -> int:
        """The estimate for `n` pictures."""
        price, known = route.model.price, route.model.family != UNKNOWN
        by_picture = price is not None and price.per_image is not None and not price.by_token
        largest = None if by_picture else self._largest.get(route.model.id if known else route.provider.name)
        return n * (ceil(typical(price) * MICRO) if largest is None else largest)

    def learn(self, account: Account) -> None:
        """Keep the cost of a picture if it is the largest of its model: at least a microdollar, nothing is free."""
        if account.cost is not None and account.images:
            name = account.order.model or account.order.provider
            each = ceil(account.cost * MICRO / account.images)
            self._largest[name] = max(each, self._largest.get(name, 1))


def _too_many(streams: int) -> ProxyError:
    message = f"This caller has {streams} generations running, which is its limit. The setting is streams."
    return ProxyError(Failure.CALLER_STREAMS, message, param="streams", retry_after="1")


def _exhausted(budget: int, *, until: float) -> ProxyError:
    message = (
        f"The rest of this caller's budget of {budget / MICRO:g} USD a day is less than this request may cost. The "
        "budget begins anew at midnight UTC. The setting is usd_per_day."
    )
    return ProxyError(Failure.BUDGET_EXHAUSTED, message, param="usd_per_day", retry_after=str(ceil(until)))


def _unreachable() -> ProxyError:
    message = "Budgets are kept in the store, which cannot be reached now. The setting is store."
    return ProxyError(Failure.OVERLOADED, message, retry_after="2")
