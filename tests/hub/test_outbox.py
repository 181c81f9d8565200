"""What every store of webhooks must do, one row per store; and the outbox above it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Final

import pytest

from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.health import StoreHealth
from streamproxy.hub.outbox import LOOK_SECONDS, Lease, MemoryNotices, Notice, NoticeStore, Outbox, OutboxLimits
from streamproxy.hub.valkey.outbox import ValkeyNotices
from streamproxy.observe import Observer
from tests.support.valkey import ValkeyServer, valkey_server

pytestmark = pytest.mark.anyio

NOW: Final = 1_700_000_000.0
ROOM: Final = OutboxLimits(4, 2)
MANY: Final = OutboxLimits(10_000, 10_000)

Open = Callable[[], AbstractAsyncContextManager[NoticeStore]]


@pytest.fixture(params=["memory", "valkey"])
def opened(request: pytest.FixtureRequest) -> Open:
    @asynccontextmanager
    async def memory() -> AsyncIterator[NoticeStore]:
        yield MemoryNotices()

    @asynccontextmanager
    async def valkey() -> AsyncIterator[NoticeStore]:
        server: ValkeyServer = request.getfixturevalue("server")
        async with ValkeyNotices(server.url).open() as store:
            yield store

    return memory if request.param == "memory" else valkey


def notice(id: str, owner: str | None = "a") -> Notice:
    return Notice(id, owner, "https://hooks.example.com/ä?secret", f"https://p.example.com/v1/streams/{id}", "sim", "m")


def ids(leases: list[Lease]) -> list[str]:
    return [lease.notice.id for lease in leases]


async def test_what_is_due_is_claimed_in_order(opened: Open) -> None:
    async with opened() as store:
        for number, due in enumerate((3.0, 1.0, 2.0)):
            assert await store.put(notice(f"s{number}", None), NOW + due, MANY)
        assert await store.claim(NOW, NOW + 60, 10) == []
        [first] = await store.claim(NOW + 1, NOW + 60, 10)
        assert first == Lease(notice("s1", None), NOW + 60)
        assert ids(await store.claim(NOW + 10, NOW + 60, 1)) == ["s2"]
        assert ids(await store.claim(NOW + 10, NOW + 60, 10)) == ["s0"]
        assert await store.claim(NOW + 10, NOW + 70, 10) == []


async def test_a_claim_ends_with_its_time(opened: Open) -> None:
    async with opened() as store:
        await store.put(notice("s"), NOW, ROOM)
        assert ids(await store.claim(NOW, NOW + 60, 10)) == ["s"]
        assert ids(await store.claim(NOW + 60, NOW + 120, 10)) == ["s"]


async def test_what_replaces_a_notice_is_kept(opened: Open) -> None:
    async with opened() as store:
        await store.put(notice("s"), NOW, ROOM)
        [lease] = await store.claim(NOW, NOW + 60, 10)
        later = replace(lease.notice, body='{"ä":1}', attempts=3)
        await store.replace(lease, later, NOW + 5)
        assert await store.claim(NOW + 4, NOW + 60, 10) == []
        assert await store.claim(NOW + 5, NOW + 65, 10) == [Lease(later, NOW + 65)]


async def test_what_was_made_due_meanwhile_stays_due(opened: Open) -> None:
    """A stream ends while another process looks at it, and finds that it has not ended."""
    async with opened() as store:
        await store.put(notice("s"), NOW, ROOM)
        [lease] = await store.claim(NOW, NOW + 60, 10)
        await store.set_due(("s",), NOW + 1)
        await store.replace(lease, lease.notice, NOW + 1000)
        assert ids(await store.claim(NOW + 1, NOW + 60, 10)) == ["s"]


async def test_what_is_dropped_is_gone(opened: Open) -> None:
    async with opened() as store:
        await store.put(notice("s"), NOW, ROOM)
        [lease] = await store.claim(NOW, NOW + 60, 10)
        await store.drop(lease.notice)
        await store.replace(lease, lease.notice, NOW)
        await store.set_due(("s", "another"), NOW)
        await store.drop(lease.notice)
        assert await store.claim(NOW + 1000, NOW + 2000, 10) == []


async def test_room_is_bounded_for_one_and_for_all(opened: Open) -> None:
    async with opened() as store:
        assert [await store.put(notice(f"a{number}"), NOW, ROOM) for number in range(3)] == [True, True, False]
        assert [await store.put(notice(f"b{number}", None), NOW, ROOM) for number in range(3)] == [True, True, False]
        assert not await store.put(notice("c", "c"), NOW, ROOM)
        await store.drop(notice("a0"))
        assert not await store.put(notice("b2", None), NOW, ROOM)
        assert await store.put(notice("a2"), NOW, ROOM)


async def test_many_renewals_leave_nothing_behind(opened: Open) -> None:
    async with opened() as store:
        names = [f"s{number}" for number in range(20)]
        for name in names:
            await store.put(notice(name), NOW, MANY)
        for time_ in range(200):
            await store.set_due(names, NOW + time_)
        if isinstance(store, MemoryNotices):
            assert len(store._queue) <= 64 + 4 * len(names)
        assert sorted(ids(await store.claim(NOW + 1000, NOW + 2000, 100))) == sorted(names)


async def test_all_keys_expire(server: ValkeyServer) -> None:
    async with ValkeyNotices(server.url).open() as store:
        await store.put(notice("s"), NOW, ROOM)
        assert min(server.lifetimes().values()) > 0
        assert len(server.lifetimes()) == 3
        await store.drop(notice("s"))
        assert server.lifetimes() == {}


async def test_two_processes_never_claim_the_same(server: ValkeyServer) -> None:
    async with ValkeyNotices(server.url).open() as one, ValkeyNotices(server.url).open() as two:
        for number in range(10):
            await one.put(notice(f"s{number}"), NOW, MANY)
        claimed: list[str] = []
        for _ in range(5):
            claimed += ids(await one.claim(NOW, NOW + 60, 1)) + ids(await two.claim(NOW, NOW + 60, 1))
        assert sorted(claimed) == sorted(f"s{number}" for number in range(10))


# The outbox.


def outbox(store: NoticeStore, room: OutboxLimits = ROOM) -> Outbox:
    return Outbox(store, StoreHealth(Observer()), room)


async def test_a_notice_is_due_once_its_stream_has_ended(opened: Open) -> None:
    async with opened() as store:
        box = outbox(store)
        await box.put(notice("s"))
        assert await box.claim(10) == []
        await box.ended("another")
        assert await box.claim(10) == []
        await box.ended("s")
        assert ids(await box.claim(10)) == ["s"]


async def test_a_notice_whose_process_is_lost_comes_due(opened: Open) -> None:
    async with opened() as store:
        box = outbox(store)
        await box.put(notice("s"))
        until = time.time() + LOOK_SECONDS
        assert await store.claim(until - 1, until + 60, 10) == []
        await box.renew()
        assert ids(await store.claim(time.time() + LOOK_SECONDS, until + 60, 10)) == ["s"]


async def test_too_many_webhooks_are_refused(opened: Open) -> None:
    async with opened() as store:
        box = outbox(store, OutboxLimits(10, 1))
        await box.put(notice("one"))
        with pytest.raises(ProxyError) as raised:
            await box.put(notice("two"))
        assert raised.value.failure is Failure.OVERLOADED
        assert "max_webhooks_per_caller" in raised.value.message


async def test_without_its_store_a_webhook_is_refused() -> None:
    with valkey_server() as server:
        async with ValkeyNotices(server.url).open() as store:
            server.kill()
            with pytest.raises(ProxyError) as raised:
                await outbox(store).put(notice("s"))
            assert raised.value.failure is Failure.OVERLOADED
            assert await outbox(store).claim(10) == []
