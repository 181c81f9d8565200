"""What every ledger must do, one row per ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

import anyio
import pytest

from streamproxy.hub.ledger import KEPT_DAYS, Bill, CallerLimits, Entry, Ledger, MemoryLedger, Spent, Verdict
from streamproxy.hub.store import StoreError
from streamproxy.hub.valkey.ledger import ValkeyLedger
from tests.support.valkey import ValkeyServer

pytestmark = pytest.mark.anyio

BOUND: Final = 20.0
DAY: Final = "2026-11-27"
MODEL: Final = "openai/gpt-image-2"
FREE: Final = CallerLimits(None, None)
LARGE: Final = 9_000_000_000_000
"""Microdollars: more than 32 bits, and more digits than Lua writes of a number by itself."""

Open = Callable[[], AbstractAsyncContextManager[Ledger]]


@pytest.fixture(params=["memory", "valkey"])
def opened(request: pytest.FixtureRequest) -> Open:
    @asynccontextmanager
    async def memory() -> AsyncIterator[Ledger]:
        yield MemoryLedger()

    @asynccontextmanager
    async def valkey() -> AsyncIterator[Ledger]:
        server: ValkeyServer = request.getfixturevalue("server")
        with anyio.fail_after(BOUND):
            async with ValkeyLedger(server.url).open() as ledger:
                yield ledger

    return memory if request.param == "memory" else valkey


def entry(id: str, estimate: int = 100, *, caller: str = "app", day: str = DAY) -> Entry:
    return Entry(id, caller, day, estimate, "openai", MODEL)


def bill(of: Entry, cost: int = 0, estimated: int | None = None, images: int = 1, model: str = MODEL) -> Bill:
    return Bill(of, "openai", model, images, cost, estimated)


def budget(most: int) -> CallerLimits:
    return CallerLimits(None, most)


async def test_streams_are_counted_until_settled(opened: Open) -> None:
    limits = CallerLimits(2, None)
    async with opened() as ledger:
        assert await ledger.reserve(entry("a"), limits) is Verdict.RESERVED
        assert await ledger.reserve(entry("b"), limits) is Verdict.RESERVED
        assert await ledger.reserve(entry("c"), limits) is Verdict.STREAMS
        assert await ledger.reserve(entry("d", caller="other"), limits) is Verdict.RESERVED
        await ledger.settle(bill(entry("a")))
        assert await ledger.reserve(entry("c"), limits) is Verdict.RESERVED
        assert await ledger.reserve(entry("e"), limits) is Verdict.STREAMS


async def test_the_estimate_counts_then_the_cost(opened: Open) -> None:
    async with opened() as ledger:
        assert await ledger.reserve(entry("a", 600), budget(1000)) is Verdict.RESERVED
        assert await ledger.reserve(entry("b", 401), budget(1000)) is Verdict.BUDGET
        assert await ledger.reserve(entry("c", 400), budget(1000)) is Verdict.RESERVED
        await ledger.settle(bill(entry("a", 600), 150))
        await ledger.settle(bill(entry("c", 400), 0, 400))
        assert await ledger.reserve(entry("d", 451), budget(1000)) is Verdict.BUDGET
        assert await ledger.reserve(entry("d", 450), budget(1000)) is Verdict.RESERVED


async def test_what_had_no_room_leaves_nothing(opened: Open) -> None:
    async with opened() as ledger:
        for number in range(3):
            assert await ledger.reserve(entry(f"big {number}", 2000), CallerLimits(1, 1000)) is Verdict.BUDGET
        assert await ledger.reserve(entry("a", 1000), CallerLimits(1, 1000)) is Verdict.RESERVED


async def test_the_budget_is_a_days(opened: Open) -> None:
    async with opened() as ledger:
        assert await ledger.reserve(entry("a", 1000), budget(1000)) is Verdict.RESERVED
        assert await ledger.reserve(entry("b", 1), budget(1000)) is Verdict.BUDGET
        tomorrow = entry("b", 1000, day="2026-11-28")
        assert await ledger.reserve(tomorrow, budget(1000)) is Verdict.RESERVED
        await ledger.settle(bill(entry("a", 1000), 7))  # it began yesterday
        assert await ledger.reserve(entry("c", 1, day="2026-11-28"), budget(1000)) is Verdict.BUDGET
        assert await ledger.reserve(entry("c", 993), budget(1000)) is Verdict.RESERVED


async def test_each_call_counts_once(opened: Open) -> None:
    async with opened() as ledger:
        for _ in range(2):
            assert await ledger.reserve(entry("a", 600), CallerLimits(1, 1000)) is Verdict.RESERVED
        for _ in range(2):
            await ledger.settle(bill(entry("a", 600), 500))
        assert await ledger.reserve(entry("b", 500), CallerLimits(1, 1000)) is Verdict.RESERVED
        [spent] = await ledger.usage([DAY], None)
        assert (spent.requests, spent.cost) == (1, 500)


async def test_many_at_once_stay_in_the_budget(opened: Open) -> None:
    verdicts: list[Verdict] = []

    async def one(number: int) -> None:
        verdicts.append(await ledger.reserve(entry(str(number), 40_000), budget(400_000)))

    async with opened() as ledger:
        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(one, number)
        assert verdicts.count(Verdict.RESERVED) == 10
        assert verdicts.count(Verdict.BUDGET) == 40


async def test_what_was_not_reserved_is_settled_too(opened: Open) -> None:
    async with opened() as ledger:
        await ledger.settle(bill(entry("a"), 600))
        assert await ledger.reserve(entry("b", 401), budget(1000)) is Verdict.BUDGET


async def test_a_refusal_is_taken_back(opened: Open) -> None:
    """Its reply was lost: whether it had been reserved is not known."""
    async with opened() as ledger:
        await ledger.reserve(entry("a", 1000), CallerLimits(1, 1000))
        for id in ("a", "b"):
            await ledger.settle(Bill(entry(id, 1000), requests=0))
        assert await ledger.reserve(entry("c", 1000), CallerLimits(1, 1000)) is Verdict.RESERVED
        assert await ledger.usage([DAY], None) == []


async def test_large_sums_are_exact(opened: Open) -> None:
    async with opened() as ledger:
        assert await ledger.reserve(entry("a", LARGE + 1), budget(2 * LARGE)) is Verdict.RESERVED
        await ledger.settle(bill(entry("a", LARGE + 1), LARGE - 1))
        assert await ledger.reserve(entry("b", LARGE + 2), budget(2 * LARGE)) is Verdict.BUDGET
        assert await ledger.reserve(entry("b", LARGE + 1), budget(2 * LARGE)) is Verdict.RESERVED
        await ledger.settle(bill(entry("c"), LARGE))
        [spent] = await ledger.usage([DAY], None)
        assert spent.cost == 2 * LARGE - 1
        assert await ledger.reserve(entry("d", 1), budget(3 * LARGE)) is Verdict.BUDGET
        assert await ledger.reserve(entry("d", 1), budget(3 * LARGE + 1)) is Verdict.RESERVED


async def test_usage_is_the_sum_of_all_bills(opened: Open) -> None:
    async with opened() as ledger:
        await ledger.settle(bill(entry("a"), 100, images=2))
        await ledger.settle(bill(entry("b"), 50, images=1))
        await ledger.settle(bill(entry("c"), 20, 80, images=0))
        await ledger.settle(bill(entry("d"), 7, model=""))
        await ledger.settle(bill(entry("e", caller="other"), 9))
        await ledger.settle(bill(entry("f", caller=""), 9))
        await ledger.settle(bill(entry("g", day="2026-11-26"), 3))
        own = await ledger.usage([DAY], "app")
        assert sorted(own, key=lambda spent: spent.model) == [
            Spent(DAY, "app", "", "openai", 1, 1, 7, 0, 0),
            Spent(DAY, "app", MODEL, "openai", 3, 3, 170, 1, 80),
        ]
        everyone = await ledger.usage(["2026-11-26", DAY], None)
        assert sorted((spent.day, spent.caller, spent.cost) for spent in everyone) == [
            ("2026-11-26", "app", 3),
            (DAY, "", 9),
            (DAY, "app", 7),
            (DAY, "app", 170),
            (DAY, "other", 9),
        ]
        assert await ledger.usage([], None) == []
        assert await ledger.usage(["2026-01-01"], "app") == []


async def test_memory_keeps_so_many_days() -> None:
    ledger = MemoryLedger()
    days = [f"2026-{month:02}-{day:02}" for month in (1, 2, 3) for day in range(1, 29)]
    for day in days:
        await ledger.settle(bill(entry(day, day=day), 1))
    assert [spent.day for spent in await ledger.usage(days, None)] == days[-KEPT_DAYS:]


async def test_processes_share_limits(server: ValkeyServer) -> None:
    verdicts: list[Verdict] = []

    async def reserve(ledger: Ledger, id: str) -> None:
        verdicts.append(await ledger.reserve(entry(id, 100), CallerLimits(None, 1000)))

    async with ValkeyLedger(server.url).open() as one, ValkeyLedger(server.url).open() as other:
        async with anyio.create_task_group() as tasks:
            for number in range(25):
                tasks.start_soon(reserve, one, f"one {number}")
                tasks.start_soon(reserve, other, f"other {number}")
        assert verdicts.count(Verdict.RESERVED) == 10
        await other.settle(bill(entry("x", caller="b"), 5))
        assert [spent.cost for spent in await one.usage([DAY], None)] == [5]


async def test_the_dead_free_streams_and_lose_no_money(server: ValkeyServer) -> None:
    limits = CallerLimits(1, 1000)
    async with ValkeyLedger(server.url, lease=0.2).open() as dead, ValkeyLedger(server.url, lease=0.2).open() as other:
        assert await dead.reserve(entry("a", 600), limits) is Verdict.RESERVED
        assert await other.reserve(entry("b", 300), limits) is Verdict.STREAMS
        with anyio.fail_after(BOUND):
            while await other.reserve(entry("b", 300), limits) is Verdict.STREAMS:  # noqa: ASYNC110  only time helps
                await anyio.sleep(0.02)
        assert await other.reserve(entry("c", 101), CallerLimits(None, 1000)) is Verdict.BUDGET
        [spent] = await other.usage([DAY], None)
        assert spent == Spent(DAY, "app", MODEL, "openai", 1, 0, 0, 1, 600)
        await dead.settle(bill(entry("a", 600), 100))  # it was not dead, only away
        [spent] = await other.usage([DAY], None)
        assert spent == Spent(DAY, "app", MODEL, "openai", 1, 1, 100, 0, 0)
        assert await other.reserve(entry("c", 600), CallerLimits(None, 1000)) is Verdict.RESERVED


async def test_a_lease_is_each_generations(server: ValkeyServer) -> None:
    limits = CallerLimits(2, None)
    async with ValkeyLedger(server.url, lease=0.3).open() as ledger:
        for id in ("a", "b"):
            assert await ledger.reserve(entry(id), limits) is Verdict.RESERVED
        with anyio.fail_after(BOUND):
            while await ledger.reserve(entry("c"), limits) is Verdict.STREAMS:
                await ledger.renew([entry("b")])
                await anyio.sleep(0.02)
        assert await ledger.reserve(entry("d"), limits) is Verdict.STREAMS


async def test_a_lease_holds_while_renewed(server: ValkeyServer) -> None:
    async with ValkeyLedger(server.url, lease=1.0).open() as ledger, ValkeyLedger(server.url).open() as other:
        assert await ledger.reserve(entry("a"), CallerLimits(1, None)) is Verdict.RESERVED
        for _ in range(8):
            await anyio.sleep(0.2)
            await ledger.renew([entry("a")])
        assert await other.reserve(entry("b"), CallerLimits(1, None)) is Verdict.STREAMS
        await ledger.settle(bill(entry("a")))
        await ledger.renew([entry("a")])  # on its way when it was settled
        assert await other.reserve(entry("b"), CallerLimits(1, None)) is Verdict.RESERVED


async def test_everything_expires(server: ValkeyServer) -> None:
    async with ValkeyLedger(server.url).open() as ledger:
        await ledger.reserve(entry("a"), FREE)
        await ledger.reserve(entry("b"), FREE)
        await ledger.settle(bill(entry("a"), 1))
    lifetimes = server.lifetimes()
    assert len(lifetimes) == 4
    assert all(0 < left <= (KEPT_DAYS + 1) * 86_400_000 for left in lifetimes.values())
    assert lifetimes[f"sp:{{caller:app}}:day:{DAY}"] > KEPT_DAYS * 86_400_000


async def test_a_restart_forgets_nothing(own_server: ValkeyServer) -> None:
    async with ValkeyLedger(own_server.url).open() as ledger:
        await ledger.reserve(entry("a", 600), budget(1000))
        await ledger.settle(bill(entry("a", 600), 500))
        own_server.kill()
        with pytest.raises(StoreError):
            await ledger.reserve(entry("b", 501), budget(1000))
        own_server.start()
    async with ValkeyLedger(own_server.url).open() as ledger:
        assert await ledger.reserve(entry("b", 501), budget(1000)) is Verdict.BUDGET
        assert [spent.cost for spent in await ledger.usage([DAY], "app")] == [500]
