"""Streams: one generation's ordered frames, kept between the producer that writes them and the readers that follow.

stream.Stream          one generation in this process, and a reader's position in it
hub.Hub                all of them: by id, by Idempotency-Key, with and without readers
mirrors.Mirrors        those of other processes that are followed here
store, memory, valkey  where they are kept; `STORES` says which there are
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Final

from streamproxy.hub.memory import MemoryMarks, MemoryStore
from streamproxy.hub.store import Kept

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def _memory(url: str, max_bytes: int, linger: float) -> AsyncIterator[Kept]:
    store = MemoryStore(max_bytes=max_bytes, linger=linger, now=time.monotonic)
    yield Kept(store, store, MemoryMarks(now=time.monotonic))


@asynccontextmanager
async def _valkey(url: str, max_bytes: int, linger: float) -> AsyncIterator[Kept]:
    from streamproxy.hub.valkey import ValkeyStore  # needs the extra `valkey`

    async with ValkeyStore(url, linger=linger, replica=uuid.uuid4().hex).open() as store:
        yield Kept(store, store, store, store)


StoreFactory = Callable[[str, int, float], AbstractAsyncContextManager[Kept]]

STORES: Final[dict[str, StoreFactory]] = {
    "memory": _memory,
    **dict.fromkeys(("redis", "rediss", "valkey", "valkeys"), _valkey),
}
"""By the scheme of the setting `store`: opens it for the URL, the bytes and the seconds that streams may take."""
