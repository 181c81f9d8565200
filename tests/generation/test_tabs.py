"""What a generation is taken to cost, which day it counts for, and what happens while the ledger is away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

import anyio
import pytest

from streamproxy.account import Account, Order
from streamproxy.auth import Caller
from streamproxy.core.catalogue import Route
from streamproxy.errors import Failure, ProxyError
from streamproxy.generation.tabs import MICRO, Tab, Tabs
from streamproxy.hub.health import StoreHealth
from streamproxy.hub.ledger import CallerLimits, Entry, Ledger, MemoryLedger, Verdict
from streamproxy.hub.valkey.ledger import ValkeyLedger
from streamproxy.observe import Observer
from streamproxy.settings.providers import read_catalogue
from tests.support.proxy import until
from tests.support.valkey import ValkeyServer, valkey_server

pytestmark = pytest.mark.anyio

BOUND: Final = 20.0
CATALOGUE: Final = read_catalogue()
NOON: Final = 1_795_780_800.0
"""2026-11-27 at 12:00 UTC."""


def route(name: str) -> Route:
    provider = CATALOGUE.providers["upstream"]
    return CATALOGUE.resolve(name, [provider])


TOKENS, PICTURES, UNKNOWN = route("openai/gpt-image-2"), route("google/imagen-4.0-generate-001"), route("new/model")


@dataclass(slots=True)
class Desk:
    """Tabs with a clock that is set by hand."""

    ledger: Ledger = field(default_factory=MemoryLedger)
    clock: float = NOON
    observer: Observer = field(default_factory=Observer)

    def __post_init__(self) -> None:
        self.health = StoreHealth(self.observer)
        self.tabs = Tabs(self.ledger, health=self.health, observer=self.observer, now=lambda: self.clock)

    health: StoreHealth = field(init=False)
    tabs: Tabs = field(init=False)

    async def fits(self, usd: float, to: Route, n: int = 1, caller: str = "fits") -> bool:
        """Whether a caller that may spend so much may order `n` pictures; nothing is left of it."""
        try:
            tab = await self.tabs.open(Caller(caller, usd_per_day=usd), (to,), n)
        except ProxyError as error:
            if error.failure is not Failure.BUDGET_EXHAUSTED:
                raise
            return False
        await tab.close(account(to, attempts=0))
        return True

    async def paid(self, to: Route, cost: float | None, images: int = 1, caller: Caller | None = None) -> None:
        """One generation, from its order to its end."""
        tab = await self.tabs.open(caller or Caller("paid"), (to,), images)
        await tab.close(account(to, cost=cost, images=images))


def account(to: Route, *, attempts: int = 1, cost: float | None = None, images: int = 0) -> Account:
    known = to.model.family != "unknown"
    order = Order(
        stream_id="s",
        request_id="r",
        traceparent=None,
        caller=None,
        provider=to.provider.name,
        model=to.model.id if known else None,
        n=1,
    )
    return Account(order, attempts=attempts, cost=cost, images=images)


@pytest.mark.parametrize(
    ("to", "usd"), [(TOKENS, 1120 * 30 / 1e6), (PICTURES, 0.04), (UNKNOWN, 0.04)], ids=["tokens", "pictures", "unknown"]
)
async def test_the_first_estimate(to: Route, usd: float) -> None:
    desk = Desk()
    for n in (1, 3):
        assert await desk.fits(n * usd, to, n)
        assert not await desk.fits(n * usd - 1e-6, to, n)


@pytest.mark.parametrize("to", [TOKENS, UNKNOWN], ids=["tokens", "unknown"])
async def test_the_largest_cost_is_the_estimate(to: Route) -> None:
    desk = Desk()
    for cost, images in ((0.001, 1), (0.6, 3), (0.1, 1)):
        await desk.paid(to, cost, images)
    assert await desk.fits(0.2, to)
    assert not await desk.fits(0.199999, to)
    assert await desk.fits(0.04, PICTURES)  # another model's


async def test_a_price_by_picture_is_the_estimate() -> None:
    desk = Desk()
    await desk.paid(PICTURES, 0.5)
    assert await desk.fits(0.04, PICTURES)


async def test_the_dearest_route_is_the_estimate() -> None:
    desk = Desk()
    with pytest.raises(ProxyError):
        await desk.tabs.open(Caller("a", usd_per_day=0.039), (TOKENS, PICTURES), 1)
    await desk.tabs.open(Caller("a", usd_per_day=0.04), (TOKENS, PICTURES), 1)


async def test_nothing_is_free() -> None:
    """A model that has cost nothing so far is not estimated at nothing: the budget ends all the same."""
    desk = Desk()
    await desk.paid(TOKENS, 0.0)
    assert not await desk.fits(0.0, TOKENS)


async def test_the_day_turns_at_midnight_utc() -> None:
    desk = Desk()
    caller = Caller("app", usd_per_day=0.05)
    desk.clock = NOON + 12 * 3600 - 0.5
    await desk.paid(PICTURES, 0.05, caller=caller)
    with pytest.raises(ProxyError) as refused:
        await desk.tabs.open(caller, (PICTURES,), 1)
    assert (refused.value.failure, refused.value.retry_after) == (Failure.BUDGET_EXHAUSTED, "1")
    desk.clock += 0.5
    tab = await desk.tabs.open(caller, (PICTURES,), 1)
    desk.clock += 86_400
    await tab.close(account(PICTURES, cost=0.05, images=1))
    spent = await desk.tabs.usage(["2026-11-27", "2026-11-28", "2026-11-29"], "app")
    assert [(row.day, row.cost) for row in spent] == [("2026-11-27", 50_000), ("2026-11-28", 50_000)]
    assert desk.tabs.day(1) == "2026-11-28"


async def test_a_tab_is_closed_once() -> None:
    desk = Desk()
    tab = await desk.tabs.open(Caller("app"), (PICTURES,), 1)
    for _ in range(2):
        await tab.close(account(PICTURES, cost=0.05, images=1))
    [spent] = await desk.tabs.usage(["2026-11-27"], None)
    assert (spent.requests, spent.cost) == (1, 0.05 * MICRO)
    labels = {"caller": "app", "model": "google/imagen-4.0-generate-001"}
    assert desk.observer.registry.get_sample_value("streamproxy_cost_usd_total", labels) == 0.05


@pytest.fixture
async def away() -> AsyncIterator[tuple[ValkeyServer, Desk]]:
    """Tabs whose ledger's server is not there; it can be started."""
    with valkey_server(disk=True) as server:
        async with ValkeyLedger(server.url).open() as ledger:
            server.kill()
            yield server, Desk(ledger)


async def settled(desk: Desk) -> int:
    """How many callers have spent something, as far as the ledger knows."""
    return 0 if desk.health.failed else len(await desk.tabs.usage(["2026-11-27"], None))


async def test_what_was_spent_meanwhile_is_settled(away: tuple[ValkeyServer, Desk]) -> None:
    server, desk = away
    with anyio.fail_after(BOUND):
        await desk.paid(PICTURES, 0.05, caller=Caller("free"))
        await desk.paid(PICTURES, 0.05, caller=Caller("few", streams=1))
        with pytest.raises(ProxyError) as refused:
            await desk.tabs.open(Caller("app", usd_per_day=1), (PICTURES,), 1)
        assert (refused.value.failure, refused.value.charged) == (Failure.OVERLOADED, False)
        assert desk.health.failed
        with pytest.raises(ProxyError):
            await desk.tabs.usage(["2026-11-27"], None)
        server.start()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(desk.tabs.tend, 0.02)
            while await settled(desk) < 2:  # noqa: ASYNC110  it looks again now and then
                await anyio.sleep(0.02)
            tasks.cancel_scope.cancel()
        spent = await desk.tabs.usage(["2026-11-27"], None)
        assert {(row.caller, row.cost) for row in spent} == {("free", 50_000), ("few", 50_000)}


async def test_a_server_that_hung_is_found_again() -> None:
    """It holds up the end of a stream for a moment only; nothing is lost."""
    with valkey_server() as server, anyio.fail_after(BOUND):
        async with ValkeyLedger(server.url).open() as ledger, anyio.create_task_group() as tasks:
            desk = Desk(ledger)
            tasks.start_soon(desk.tabs.tend, 0.02)
            with server.hung():
                for _ in range(3):
                    await desk.paid(PICTURES, 0.05)
                await until(lambda: desk.health.failed)
            await until(lambda: not desk.health.failed)
            while await settled(desk) < 1 or await requests(desk) < 3:  # noqa: ASYNC110  no event says it
                await anyio.sleep(0.02)
            tasks.cancel_scope.cancel()


async def requests(desk: Desk) -> int:
    """How many are in the usage."""
    return sum(row.requests for row in await desk.tabs.usage(["2026-11-27"], None))


async def test_what_is_open_is_settled_at_the_end(away: tuple[ValkeyServer, Desk]) -> None:
    server, desk = away
    with anyio.fail_after(BOUND):
        for _ in range(2):
            await desk.paid(PICTURES, 0.05)
        await desk.tabs.settle_all()  # and comes to an end
        server.start()
        await desk.tabs.settle_all()
        assert await requests(desk) == 2


async def test_what_runs_is_renewed() -> None:
    """And no more once it has ended."""
    limits = CallerLimits(1, None)
    with valkey_server() as server, anyio.fail_after(BOUND):
        async with ValkeyLedger(server.url, lease=0.5).open() as ledger, anyio.create_task_group() as tasks:
            desk = Desk(ledger)
            tasks.start_soon(desk.tabs.tend, 0.05)
            tab: Tab = await desk.tabs.open(Caller("app", streams=1), (PICTURES,), 1)
            await anyio.sleep(1.5)
            other = Entry("other", "app", "2026-11-27", 1)
            assert await ledger.reserve(other, limits) is Verdict.STREAMS
            await tab.close(account(PICTURES, cost=0.05, images=1))
            assert await ledger.reserve(other, limits) is Verdict.RESERVED
            tasks.cancel_scope.cancel()
