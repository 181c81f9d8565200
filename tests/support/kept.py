"""Stores of several processes on one server, entries for them, and waits for their state."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Final

import anyio

from streamproxy.core.cursor import Cursor
from streamproxy.core.events import Frame, Operation, Role, type_of
from streamproxy.hub.log import EPOCH, Entry, Record
from streamproxy.hub.valkey.store import ValkeyStore
from tests.support.valkey import ValkeyServer

BOUND: Final = 20.0
LEASE: Final = 0.6

PREVIEW: Final = type_of(Operation.EDIT, Role.PREVIEW)
COMPLETED: Final = type_of(Operation.EDIT, Role.COMPLETED)


@asynccontextmanager
async def store(
    server: ValkeyServer, replica: str = "one", *, linger: float = 60.0, lease: float = LEASE
) -> AsyncIterator[ValkeyStore]:
    with anyio.fail_after(BOUND):
        async with ValkeyStore(server.url, linger=linger, replica=replica, lease=lease).open() as opened:
            yield opened


def record(id: str) -> Record:
    return Record(id, "owner", 1_700_000_000, 4)


def preview(seq: int, image: int = 0, data: bytes = b"sketch") -> Entry:
    return Entry(Cursor(EPOCH, seq), Frame(PREVIEW, (data,), image))


def completed(seq: int, image: int = 0, data: bytes = b"picture") -> Entry:
    return Entry(Cursor(EPOCH, seq), Frame(COMPLETED, (data,), image, final=True))


async def following(store: ValkeyStore, id: str, after: int, into: list[Entry]) -> None:
    async with aclosing(store.follow(id, after)) as entries:
        async for entry in entries:
            into.append(entry)


async def until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds. The test's own bound ends the wait."""
    while not condition():  # noqa: ASYNC110  # it comes true in another process
        await anyio.sleep(0.005)


async def in_touch(store: ValkeyStore, lease: float = LEASE) -> None:
    """Return when this store may end streams of dead producers."""
    await store.load("nothing")
    await anyio.sleep(lease + 0.05)
