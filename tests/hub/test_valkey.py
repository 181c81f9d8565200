"""A shared store, beyond the contract: it follows, fences, cancels, and leaves no key behind."""

from __future__ import annotations

import random
from contextlib import aclosing
from typing import Final

import anyio
import anyio.lowlevel
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamproxy.core.cursor import Cursor
from streamproxy.hub.log import EPOCH, Entry
from streamproxy.hub.store import Claim, Fenced, Gone, Stored, StoreError
from streamproxy.hub.valkey.client import BLOCK_SECONDS
from streamproxy.hub.valkey.store import ValkeyStore
from tests.support.kept import LEASE, completed, following, in_touch, preview, record, store, until
from tests.support.valkey import ValkeyServer

pytestmark = pytest.mark.anyio

ids: Final = iter(range(1_000_000))
"""Streams of their own for every example."""


async def abandoned(server: ValkeyServer, id: str) -> None:
    """A live stream, with a preview and one of two images, whose producer's process is no more."""
    async with store(server, "dead") as dead:
        await dead.create(record(id))
        await dead.append(id, completed(1, 1))
        await dead.append(id, preview(2, 0))


def is_producer_lost(entry: Entry) -> bool:
    error = orjson.loads(b"".join(entry.frame.data))["error"]
    return entry.frame.final and entry.frame.type == "error" and error["code"] == "producer_lost"


# Following.


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    plan=st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=25),
    joins=st.lists(st.integers(0, 25), min_size=1, max_size=3),
    seed=st.integers(0, 2**16),
)
async def test_followers_elsewhere_get_entries_once_in_order(
    server: ValkeyServer, plan: list[tuple[int, bool]], joins: list[int], seed: int
) -> None:
    pace = random.Random(seed)
    id = f"followed-{next(ids)}"
    entries = [
        completed(seq, image, b"%d" % seq) if final else preview(seq, image, b"%d" % seq)
        for seq, (image, final) in enumerate(plan, 1)
    ]
    got: list[tuple[int, list[Entry]]] = []
    async with (
        store(server, "one", lease=5.0) as producer,
        store(server, "two", lease=5.0) as other,
        anyio.create_task_group() as tasks,
    ):
        await producer.create(record(id))

        async def join() -> None:
            found = await other.load(id)
            assert isinstance(found, Stored)
            after = found.entries[-1].cursor.seq if found.entries else 0
            live: list[Entry] = []
            got.append((after, live))
            past = list(found.entries)
            await following(other, id, after, live)
            numbers = [entry.cursor.seq for entry in (*past, *live)]
            assert numbers == sorted(set(numbers))
            critical = [entry for entry in (*past, *live) if entry.critical]
            assert critical == [entry for entry in entries if entry.critical]
            assert all(entry in entries for entry in (*past, *live))

        for number, entry in enumerate(entries):
            for _ in range(joins.count(number)):
                tasks.start_soon(join)
            for _ in range(pace.randrange(6)):
                await anyio.lowlevel.checkpoint()
            await producer.append(id, entry)
        for _ in range(max(1, sum(join >= len(entries) for join in joins))):
            tasks.start_soon(join)
        await producer.finish(id)
    assert got


async def test_a_follower_that_keeps_up_misses_no_preview(server: ValkeyServer) -> None:
    got: list[Entry] = []
    async with store(server, "one") as producer, store(server, "two") as other:
        await producer.create(record("live"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(following, other, "live", 0, got)
            for seq in range(1, 6):
                await producer.append("live", preview(seq))
                await until(lambda: len(got) == seq)  # noqa: B023
            await producer.append("live", completed(6))
            await producer.finish("live")
    assert got == [*(preview(seq) for seq in range(1, 6)), completed(6)]


async def test_a_follower_skips_previews_whose_bytes_are_gone(server: ValkeyServer) -> None:
    got: list[Entry] = []
    async with store(server, "one") as producer, store(server, "two") as other:
        await producer.create(record("skipped"))
        await producer.append("skipped", preview(1, 0))
        await producer.append("skipped", preview(2, 1))
        server.command("DEL", "sp:{skipped}:data:1")  # as between reading the log and asking for the bytes
        await producer.append("skipped", completed(3, 1))
        await producer.finish("skipped")
        await following(other, "skipped", 0, got)
        assert got == [completed(3, 1)]


async def test_a_lost_preview_is_skipped_a_lost_image_raises(server: ValkeyServer) -> None:
    got: list[Entry] = []
    async with store(server, "one", lease=5.0) as producer, store(server, "two", lease=5.0) as other:
        await producer.create(record("torn"))
        await producer.append("torn", preview(1, 0))
        await producer.append("torn", completed(2, 1))
        server.command("DEL", "sp:{torn}:data:1")
        found = await other.load("torn")
        assert isinstance(found, Stored)
        assert found.entries == (completed(2, 1),)
        server.command("DEL", "sp:{torn}:data:2")
        assert isinstance(await other.load("torn"), Gone)
        with pytest.raises(StoreError):
            await following(other, "torn", 0, got)
        assert got == []


async def test_data_of_another_version_is_an_error(server: ValkeyServer) -> None:
    async with store(server) as one:
        for id, command in (
            ("newer", ("HSET", "sp:{newer}:meta", "created", "yesterday")),
            ("stranger", ("XADD", "sp:{stranger}:log", "2-0", "kind", "unheard of")),
        ):
            await one.create(record(id))
            await one.append(id, completed(1))
            server.command(*command)
            server.command("SET", f"sp:{{{id}}}:data:2", "bytes")
            with pytest.raises(StoreError, match="cannot read"):
                await one.load(id)
        with pytest.raises(StoreError, match="cannot read"):
            await following(one, "stranger", 0, [])


async def test_following_begins_behind_what_the_reader_has(server: ValkeyServer) -> None:
    async with store(server) as producer:
        await producer.create(record("behind"))
        for seq in (1, 2, 3):
            await producer.append("behind", completed(seq, seq))
        await producer.finish("behind")
        for after in range(4):
            got: list[Entry] = []
            await following(producer, "behind", after, got)
            assert [entry.cursor.seq for entry in got] == list(range(after + 1, 4))


async def test_following_what_the_store_does_not_know_is_an_error(server: ValkeyServer) -> None:
    async with store(server) as one:
        await in_touch(one)
        with pytest.raises(StoreError, match="lost this stream"):
            await following(one, "unknown", 0, [])


async def test_each_follower_has_one_connection_and_gives_it_back(server: ValkeyServer) -> None:
    async with store(server, "one") as producer, store(server, "two") as other:
        await producer.create(record("counted"))
        await other.load("counted")
        before = server.clients()
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(following, other, "counted", 0, [])
            await until(lambda: server.clients() == before + 4)
            tasks.cancel_scope.cancel()
        await until(lambda: server.clients() == before)


# Producers that die.


async def test_two_followers_get_one_lost_producer_event(server: ValkeyServer) -> None:
    await abandoned(server, "lost")
    first: list[Entry] = []
    second: list[Entry] = []
    async with store(server, "two") as two, store(server, "three") as three:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(following, two, "lost", 0, first)
            tasks.start_soon(following, three, "lost", 0, second)
        assert first == second
        assert first[:2] == [completed(1, 1), preview(2, 0)]
        (last,) = first[2:]
        assert is_producer_lost(last)
        assert last.cursor == Cursor(EPOCH + 1, 3)
        found = await two.load("lost")
        assert isinstance(found, Stored)
        assert found.finished
        assert found.entries == (completed(1, 1), last)


async def test_load_finds_a_lost_producer(server: ValkeyServer) -> None:
    await abandoned(server, "unseen")
    async with store(server, "two") as two, store(server, "three") as three:
        await in_touch(two)
        await in_touch(three)
        found: list[object] = []

        async def look(at: ValkeyStore) -> None:
            found.append(await at.load("unseen"))

        async with anyio.create_task_group() as tasks:
            for at in (two, three, two, three):
                tasks.start_soon(look, at)
        for each in found:
            assert isinstance(each, Stored)
            assert each.finished
            assert [entry.cursor.seq for entry in each.entries] == [1, 3]
            assert is_producer_lost(each.entries[-1])


async def test_a_process_judges_after_a_whole_lease_only(server: ValkeyServer) -> None:
    await abandoned(server, "doubtful")
    await anyio.sleep(LEASE + 0.05)
    async with store(server, "two", lease=30.0) as newcomer:
        found = await newcomer.load("doubtful")
        assert isinstance(found, Stored)
        assert not found.finished


async def test_leases_are_renewed_while_the_provider_is_silent(server: ValkeyServer) -> None:
    got: list[Entry] = []
    async with store(server, "one") as producer, store(server, "two") as other:
        await producer.create(record("silent"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(following, other, "silent", 0, got)
            await anyio.sleep(LEASE + 2 * BLOCK_SECONDS)
            assert got == []
            await producer.append("silent", completed(1))
            await producer.finish("silent")
    assert got == [completed(1)]


async def test_a_producer_that_was_taken_for_dead_is_refused(server: ValkeyServer) -> None:
    async with store(server, "zombie", lease=30.0) as zombie, store(server, "two") as two:
        await zombie.create(record("fenced"))
        await zombie.append("fenced", completed(1, 1))
        await in_touch(two)
        server.command("DEL", "sp:{fenced}:lease")  # as when its process was stopped for longer than a lease
        found = await two.load("fenced")
        assert isinstance(found, Stored)
        assert found.finished
        for entry in (preview(2), completed(3)):
            with pytest.raises(Fenced):
                await zombie.append("fenced", entry)
        await zombie.finish("fenced")
        assert await two.load("fenced") == found


async def test_an_entry_with_another_epoch_is_refused(server: ValkeyServer) -> None:
    async with store(server) as producer:
        await producer.create(record("epochs"))
        with pytest.raises(Fenced):
            await producer.append("epochs", Entry(Cursor(EPOCH + 1, 1), completed(1).frame))
        found = await producer.load("epochs")
        assert isinstance(found, Stored)
        assert found.entries == ()


# Between processes.


async def test_cancel_reaches_the_process_that_produces(server: ValkeyServer) -> None:
    heard: dict[str, list[str]] = {"one": [], "two": []}

    async def listen(at: ValkeyStore, name: str) -> None:
        async with aclosing(at.cancelled()) as cancelled:
            async for id in cancelled:
                heard[name].append(id)

    async with store(server, "one") as one, store(server, "two") as two:
        await one.create(record("early"))
        await one.create(record("late"))
        await two.create(record("other"))
        await two.cancel("early")  # before anybody listens
        await two.cancel("unknown")
        await one.create(record("over"))
        await one.finish("over")
        await two.cancel("over")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen, one, "one")
            tasks.start_soon(listen, two, "two")
            await until(lambda: heard["one"] == ["early"])
            await two.cancel("late")
            await one.cancel("other")
            await until(lambda: heard == {"one": ["early", "late"], "two": ["other"]})
            tasks.cancel_scope.cancel()
        await two.cancel("late")  # without a listener, as after an outage
        async with aclosing(one.cancelled()) as again:
            assert await anext(again) == "late"


async def test_one_claim_holds_among_processes(server: ValkeyServer) -> None:
    answers: set[Claim] = set()
    async with store(server, "one") as one, store(server, "two") as two, anyio.create_task_group() as tasks:

        async def ask(at: ValkeyStore, number: int) -> None:
            answers.add(await at.claim("key", Claim("print", f"{number}")))

        for number in range(40):
            tasks.start_soon(ask, (one, two)[number % 2], number)
    assert len(answers) == 1


async def test_viewers_are_seen_from_elsewhere_for_a_while(server: ValkeyServer) -> None:
    async with store(server, "one") as one, store(server, "two") as two:
        assert not await one.viewed("watched")
        await two.viewing("watched")
        assert await one.viewed("watched")
        assert not await one.viewed("another")
        assert 10_000 < server.lifetimes()["sp:{watched}:viewed"] <= 15_000
        server.command("PEXPIRE", "sp:{watched}:viewed", "1")
        await until(lambda: not server.lifetimes())
        assert not await one.viewed("watched")


# Nothing is left.


async def test_every_key_expires(server: ValkeyServer) -> None:
    async with store(server, "one", linger=30.0) as one, store(server, "two") as two:
        await one.create(record("left"))
        await one.append("left", preview(1))
        await one.append("left", completed(2, 1))
        await one.claim("key", Claim("print", "left"))
        await two.viewing("left")
        await two.cancel("left")
        live = server.lifetimes()
        assert set(live) == {
            *(f"sp:{{left}}:{name}" for name in ("meta", "log", "lease", "gone", "data:1", "data:2", "viewed")),
            "sp:{owner}:owned",
            "sp:claim:key",
            "sp:r:one",
        }
        assert min(live.values()) > 0
        await one.finish("left")
        finished = {name: span for name, span in server.lifetimes().items() if name.startswith("sp:{left}:")}
        assert set(finished) == {f"sp:{{left}}:{name}" for name in ("meta", "log", "gone", "data:2", "viewed")}
        for name in ("meta", "log", "data:2"):
            assert 20_000 < finished[f"sp:{{left}}:{name}"] <= 30_000
        assert finished["sp:{left}:gone"] > 3_600_000
    await abandoned(server, "orphan")
    assert min(server.lifetimes().values()) > 0


async def test_superseded_bytes_go_at_once(server: ValkeyServer) -> None:
    async with store(server) as one:
        await one.create(record("thin"))
        for seq in range(1, 9):
            await one.append("thin", preview(seq, seq % 2))
        kept = {name for name in server.lifetimes() if ":data:" in name}
        assert kept == {"sp:{thin}:data:7", "sp:{thin}:data:8"}
        await one.append("thin", completed(9, 0))
        kept = {name for name in server.lifetimes() if ":data:" in name}
        assert kept == {"sp:{thin}:data:7", "sp:{thin}:data:9"}
        assert server.command("XLEN", "sp:{thin}:log") == b":2\r\n"
        await one.finish("thin")
        assert server.command("XLEN", "sp:{thin}:log") == b":2\r\n", "the completed image, and the end"


async def test_an_entry_that_is_sent_again_is_kept_once(server: ValkeyServer) -> None:
    async with store(server) as one:  # as when the reply to the first got lost
        await one.create(record("twice"))
        await one.append("twice", preview(1))
        for _ in range(2):
            await one.append("twice", completed(2))
        await one.finish("twice")
        await one.create(record("twice"))
        await one.finish("twice")
        found = await one.load("twice")
        assert isinstance(found, Stored)
        assert found.entries == (completed(2),)
