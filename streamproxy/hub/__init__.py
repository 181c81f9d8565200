"""Streams: one generation's ordered frames, kept between the producer that writes them and the readers that follow.

log                    a stream's entries, conflated
stream, generation     the readers' side of one generation in this process, and the producer's
hub                    the registry of all of them
limits, keys, repeats  what is admitted; streams by Idempotency-Key; requests that are sent again
mirrors                streams of other processes that are followed here
store, memory, valkey  where streams are kept; `STORES` says which stores there are
files, disk            uploaded files, and where they are kept; `FILE_STORES` says which stores there are
outbox                 webhooks to be delivered, and where they are kept; `NOTICE_STORES` says which stores there are
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Final

from streamproxy.hub.disk import DiskFiles
from streamproxy.hub.files import FileStore
from streamproxy.hub.memory import MemoryMarks, MemoryStore
from streamproxy.hub.outbox import MemoryNotices, NoticeStore
from streamproxy.hub.store import StoreBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def _memory(url: str, max_bytes: int, linger: float) -> AsyncIterator[StoreBackend]:
    store = MemoryStore(max_bytes=max_bytes, linger=linger, now=time.monotonic)
    yield StoreBackend(store, store, MemoryMarks(now=time.monotonic), listing=store)


@asynccontextmanager
async def _valkey(url: str, max_bytes: int, linger: float) -> AsyncIterator[StoreBackend]:
    from streamproxy.hub.valkey.store import ValkeyStore  # needs the extra `valkey`

    async with ValkeyStore(url, linger=linger, replica=uuid.uuid4().hex).open() as store:
        yield StoreBackend(store, store, store, store, store, store)


@asynccontextmanager
async def _disk_files(url: str, max_bytes: int) -> AsyncIterator[FileStore]:
    async with DiskFiles(max_bytes=max_bytes, now=time.time).open() as files:
        yield files


@asynccontextmanager
async def _valkey_files(url: str, max_bytes: int) -> AsyncIterator[FileStore]:
    from streamproxy.hub.valkey.files import ValkeyFiles  # needs the extra `valkey`

    async with ValkeyFiles(url, max_bytes=max_bytes).open() as files:
        yield files


@asynccontextmanager
async def _memory_notices(url: str) -> AsyncIterator[NoticeStore]:
    yield MemoryNotices()


@asynccontextmanager
async def _valkey_notices(url: str) -> AsyncIterator[NoticeStore]:
    from streamproxy.hub.valkey.outbox import ValkeyNotices  # needs the extra `valkey`

    async with ValkeyNotices(url).open() as notices:
        yield notices


StoreFactory = Callable[[str, int, float], AbstractAsyncContextManager[StoreBackend]]

STORES: Final[dict[str, StoreFactory]] = {
    "memory": _memory,
    **dict.fromkeys(("redis", "rediss", "valkey", "valkeys"), _valkey),
}
"""By the scheme of the setting `store`: opens it for the URL, the bytes and the seconds that streams may take."""

FileStoreFactory = Callable[[str, int], AbstractAsyncContextManager[FileStore]]

FILE_STORES: Final[dict[str, FileStoreFactory]] = {
    "memory": _disk_files,
    **dict.fromkeys(("redis", "rediss", "valkey", "valkeys"), _valkey_files),
}
"""By the same scheme: opens the store of files for the URL, and the bytes that all of them may take."""

NoticeStoreFactory = Callable[[str], AbstractAsyncContextManager[NoticeStore]]

NOTICE_STORES: Final[dict[str, NoticeStoreFactory]] = {
    "memory": _memory_notices,
    **dict.fromkeys(("redis", "rediss", "valkey", "valkeys"), _valkey_notices),
}
"""By the same scheme: opens the store of webhooks for the URL."""
