"""The contract of stores of uploaded files, one row per store."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final

import anyio
import pytest

from streamproxy.core.files import FileRecord, file_id
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.disk import DiskFiles
from streamproxy.hub.files import LEAST, PIECE, FileStore, Room
from streamproxy.hub.store import StoreError
from streamproxy.hub.valkey.files import ValkeyFiles
from tests.support.valkey import ValkeyServer

pytestmark = pytest.mark.anyio

BOUND: Final = 20.0
CAP: Final = 4 * PIECE
ROOM: Final = Room(CAP, CAP)
SHARES: Final = Room(CAP, CAP // 2)
NUMBERS: Final[Iterator[int]] = count(1)


@dataclass(frozen=True, slots=True)
class Bytes:
    """An upload in memory; with `broken` it cannot be read to its end."""

    raw: bytes = field(repr=False)
    broken: bool = False

    @property
    def size(self) -> int:
        return len(self.raw)

    def read(self, offset: int, length: int) -> bytes:
        if self.broken and offset:
            raise OSError(5, "Input/output error")
        return self.raw[offset : offset + length]


@dataclass(frozen=True, slots=True)
class Row:
    """An open store; `left` says what of files there still is in it."""

    store: FileStore
    left: Callable[[], list[str]]


Open = Callable[..., AbstractAsyncContextManager[Row]]


@pytest.fixture(params=["disk", "valkey"])
def opened(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    @asynccontextmanager
    async def disk(room: Room = ROOM) -> AsyncIterator[Row]:
        async with DiskFiles(room=room, now=time.time).open() as store:
            yield Row(store, lambda: [path.name for path in tmp_path.rglob("upl_*")])

    @asynccontextmanager
    async def valkey(room: Room = ROOM) -> AsyncIterator[Row]:
        server: ValkeyServer = request.getfixturevalue("server")
        async with ValkeyFiles(server.url, room=room).open() as store:
            yield Row(store, lambda: [key for key in server.lifetimes() if key != "sp:files"])

    return disk if request.param == "disk" else valkey


def record(size: int, *, owner: str | None = "a", seconds: int = 600) -> FileRecord:
    created = int(time.time())
    id = file_id(created + seconds, f"{next(NUMBERS):032x}")
    return FileRecord(id, owner, 'ä "b"\n.png', size, "image/png", "vision", created=created, expires=created + seconds)


def block(size: int) -> bytes:
    return hashlib.shake_256(b"%d" % size).digest(size)


async def content(store: FileStore, of: FileRecord) -> bytes | None:
    file = await store.content(of)
    if file is None:
        return None
    with file:
        file.seek(0)
        return file.read()


async def until(reached: Callable[[], Awaitable[bool]]) -> None:
    with anyio.fail_after(BOUND):
        while not await reached():  # noqa: ASYNC110  only a clock says when something expires
            await anyio.sleep(0.02)


@pytest.mark.parametrize("size", [1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7])
async def test_a_file_comes_back(opened: Open, size: int) -> None:
    async with opened() as row:
        kept = record(size)
        await row.store.keep(kept, Bytes(block(size)))
        assert await row.store.find(kept.id) == kept
        assert await content(row.store, kept) == block(size)
        assert await row.store.find(record(1).id) is None
        assert await row.store.content(record(1)) is None


async def test_files_by_their_owner(opened: Open) -> None:
    async with opened() as row:
        records = [record(9, owner=owner, seconds=seconds) for owner, seconds in (("a", 90), ("b", 60), (None, 70))]
        records.append(record(9, owner="a", seconds=30))
        for one in records:
            await row.store.keep(one, Bytes(b"123456789"))
        assert await row.store.owned("a") == [records[3], records[0]]
        assert await row.store.owned("b") == [records[1]]
        assert await row.store.owned("-") == await row.store.owned("c") == []


async def test_a_removed_file_is_gone_and_its_room_free(opened: Open) -> None:
    async with opened() as row:
        first, second = record(CAP), record(CAP)
        await row.store.keep(first, Bytes(bytes(CAP)))
        with pytest.raises(ProxyError, match="file_bytes") as caught:
            await row.store.keep(second, Bytes(bytes(CAP)))
        assert caught.value.failure is Failure.FILES_FULL
        assert await row.store.find(second.id) is None
        assert await row.store.find(first.id) == first
        await row.store.remove(first)
        await row.store.remove(first)
        assert await row.store.find(first.id) is None
        assert await row.store.content(first) is None
        assert row.left() == []
        await row.store.keep(second, Bytes(bytes(CAP)))


async def test_an_expired_file_is_gone_and_its_room_free(opened: Open) -> None:
    async with opened() as row:
        first, second = record(CAP, seconds=1), record(CAP)
        await row.store.keep(first, Bytes(bytes(CAP)))

        async def gone() -> bool:
            return await row.store.find(first.id) is None

        await until(gone)
        assert await row.store.owned("a") == []
        await row.store.keep(second, Bytes(bytes(CAP)))
        assert not [name for name in row.left() if first.id in name]


@pytest.mark.parametrize("owner", ["a", None])
async def test_one_caller_leaves_room_for_others(opened: Open, owner: str | None) -> None:
    async with opened(SHARES) as row:
        first, second = record(PIECE, owner=owner), record(PIECE, owner=owner)
        for one in (first, second):
            await row.store.keep(one, Bytes(bytes(PIECE)))
        with pytest.raises(ProxyError, match="file_bytes_per_caller") as caught:
            await row.store.keep(record(1, owner=owner), Bytes(b"1"))
        assert (caught.value.failure, caught.value.status) == (Failure.FILES_OF_CALLER, 413)
        await row.store.keep(record(2 * PIECE, owner="b"), Bytes(bytes(2 * PIECE)))
        with pytest.raises(ProxyError, match="file_bytes") as caught:
            await row.store.keep(record(1, owner="c"), Bytes(b"1"))
        assert caught.value.failure is Failure.FILES_FULL
        await row.store.remove(first)
        await row.store.keep(record(PIECE, owner=owner), Bytes(bytes(PIECE)))


async def test_small_files_count_too(opened: Open) -> None:
    async with opened() as row:
        for _ in range(CAP // LEAST):
            await row.store.keep(record(1), Bytes(b"1"))
        with pytest.raises(ProxyError, match="file_bytes"):
            await row.store.keep(record(1), Bytes(b"1"))


async def test_an_open_file_outlives_its_removal(opened: Open) -> None:
    async with opened() as row:
        kept = record(PIECE + 1)
        await row.store.keep(kept, Bytes(block(PIECE + 1)))
        file = await row.store.content(kept)
        assert file is not None
        await row.store.remove(kept)
        with file:
            file.seek(0)
            assert file.read() == block(PIECE + 1)


async def test_an_upload_that_cannot_be_read_leaves_nothing(opened: Open) -> None:
    async with opened() as row:
        broken = record(CAP)
        with pytest.raises(ProxyError) as caught:
            await row.store.keep(broken, Bytes(bytes(CAP), broken=True))
        assert caught.value.failure is Failure.UPLOAD_SPOOL
        assert await row.store.find(broken.id) is None
        assert row.left() == []
        await row.store.keep(record(CAP), Bytes(bytes(CAP)))


async def test_the_folder_is_private_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    async with DiskFiles(room=ROOM, now=time.time).open() as store:
        assert os.listdir(tmp_path) == []
        await store.keep(record(9), Bytes(bytes(9)))
        [folder] = os.scandir(tmp_path)
        assert folder.stat().st_mode & 0o077 == 0
    assert os.listdir(tmp_path) == []


async def test_everything_in_valkey_expires(server: ValkeyServer) -> None:
    async with ValkeyFiles(server.url, room=ROOM).open() as store:
        await store.keep(record(PIECE + 1, seconds=60), Bytes(bytes(PIECE + 1)))
        await store.keep(record(1, seconds=30), Bytes(b"1"))
    lifetimes = server.lifetimes()
    assert len(lifetimes) == 6
    assert all(0 < left <= 60_000 for left in lifetimes.values())
    assert lifetimes["sp:files"] > 30_000


async def test_two_processes_share_one_cap(server: ValkeyServer) -> None:
    async with (
        ValkeyFiles(server.url, room=ROOM).open() as one,
        ValkeyFiles(server.url, room=ROOM).open() as other,
    ):
        kept = record(CAP)
        await one.keep(kept, Bytes(block(CAP)))
        with pytest.raises(ProxyError, match="file_bytes"):
            await other.keep(record(1), Bytes(b"1"))
        assert await content(other, kept) == block(CAP)


async def test_a_part_that_was_evicted_makes_no_file(server: ValkeyServer) -> None:
    async with ValkeyFiles(server.url, room=ROOM).open() as store:
        kept = record(PIECE + 1)
        await store.keep(kept, Bytes(bytes(PIECE + 1)))
        server.command("DEL", f"sp:{{{kept.id}}}:part:1")
        assert await store.content(kept) is None


async def test_a_store_that_is_away_says_so(own_server: ValkeyServer) -> None:
    async with ValkeyFiles(own_server.url, room=ROOM).open() as store:
        own_server.kill()
        with pytest.raises(StoreError):
            await store.keep(record(1), Bytes(b"1"))
