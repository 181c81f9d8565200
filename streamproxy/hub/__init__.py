"""Streams: one generation's ordered frames, kept between the producer that writes them and the readers that follow.

log                    a stream's entries, conflated
stream, generation     the readers' side of one generation in this process, and the producer's
hub                    the registry of all of them
limits, keys, repeats  admission; streams by Idempotency-Key; retries of the same request
mirrors                streams of other processes that are followed here
store, memory, valkey  the stores of streams, listed in `STORES`
files, disk            uploaded files and their stores, listed in `FILE_STORES`
outbox                 pending webhooks and their stores, listed in `NOTICE_STORES`
ledger                 spending and running generations of callers; the ledgers are listed in `LEDGERS`
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Final

from streamproxy.hub.disk import DiskFiles
from streamproxy.hub.files import FileStore, Room
from streamproxy.hub.ledger import Ledger, MemoryLedger
from streamproxy.hub.memory import MemoryMarks, MemoryStore
from streamproxy.hub.outbox import MemoryNotices, NoticeStore
from streamproxy.hub.store import StoreBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def _memory(url: str, max_bytes: int, linger: float) -> AsyncIterator[StoreBackend]:
    store = MemoryStore(max_bytes=max_bytes, linger=linger, now=time.monotonic)
    yield StoreBackend(store, store, MemoryMarks(now=time.monotonic), listing=store, shedding=store, waits=False)


@asynccontextmanager
async def _valkey(url: str, max_bytes: int, linger: float) -> AsyncIterator[StoreBackend]:
    from streamproxy.hub.valkey.store import ValkeyStore  # needs the extra `valkey`

    async with ValkeyStore(url, linger=linger, replica=uuid.uuid4().hex).open() as store:
        yield StoreBackend(store, store, store, store, store, store)


@asynccontextmanager
async def _disk_files(url: str, room: Room) -> AsyncIterator[FileStore]:
    async with DiskFiles(room=room, now=time.time).open() as files:
        yield files


@asynccontextmanager
async def _valkey_files(url: str, room: Room) -> AsyncIterator[FileStore]:
    from streamproxy.hub.valkey.files import ValkeyFiles  # needs the extra `valkey`

    async with ValkeyFiles(url, room=room).open() as files:
        yield files


@asynccontextmanager
async def _memory_notices(url: str) -> AsyncIterator[NoticeStore]:
    yield MemoryNotices()


@asynccontextmanager
async def _valkey_notices(url: str) -> AsyncIterator[NoticeStore]:
    from streamproxy.hub.valkey.outbox import ValkeyNotices  # needs the extra `valkey`

    async with ValkeyNotices(url).open() as notices:
        yield notices


@asynccontextmanager
async def _memory_ledger(url: str) -> AsyncIterator[Ledger]:
    yield MemoryLedger()


@asynccontextmanager
async def _valkey_ledger(url: str) -> AsyncIterator[Ledger]:
    from streamproxy.hub.valkey.ledger import ValkeyLedger  # needs the extra `valkey`

    async with ValkeyLedger(url).open() as ledger:
        yield ledger


StoreFactory = Callable[[str, int, float], AbstractAsyncContextManager[StoreBackend]]

STORES: Final[dict[str, StoreFactory]] = {
    "memory": _memory,
    **dict.fromkeys(("redis", "rediss", "valkey", "valkeys"), _valkey),
}
"""Opens the store of the setting `store`, by the URL's scheme. Arguments: URL, most bytes, seconds of linger."""

FileStoreFactory = Callable[[str, Room], AbstractAsyncContextManager[FileStore]]

FILE_STORES: Final[dict[str, FileStoreFactory]] = {
    "memory": _disk_files,
    **dict.fromkeys(("redis", "rediss", "valkey", "valkeys"), _valkey_files),
}
"""Opens the store of files, by the same scheme. Arguments: URL, and the room that the files may take."""

NoticeStoreFactory = Callable[[str], AbstractAsyncContextManager[NoticeStore]]

NOTICE_STORES: Final[dict[str, NoticeStoreFactory]] = {
    "memory": _memory_notices,
    **dict.fromkeys(("redis", "rediss", "valkey", "valkeys"), _valkey_notices),
}
"""Opens the store of webhooks, by the same scheme. Argument: URL."""

LedgerFactory = Callable[[str], AbstractAsyncContextManager[Ledger]]

LEDGERS: Final[dict[str, LedgerFactory]] = {
    "memory": _memory_ledger,
    **dict.fromkeys(("redis", "rediss", "valkey", "valkeys"), _valkey_ledger),
}
"""Opens the ledger, by the same scheme. Argument: URL."""
