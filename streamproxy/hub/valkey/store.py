"""The store that any number of processes and machines share, in a Valkey or Redis (7 or later) server.

Lease. A stream has one producer, whose process holds a lease and renews it. A process that finds the lease expired ends
the stream with `producer_lost` under the next epoch, once, by script. Writes of the old producer are refused from then
on. Only a process that has been connected to the server for a whole lease may end a stream like this: after an outage
of the server every lease has expired, and producers need time to renew theirs.

Previews. A completed image is stored before it is delivered. A preview is not stored while no other process asks for
it: most streams are read in the process that produces them, and a preview is 1 MB or more that a newer one replaces.
The newest one is held in this process instead. A process that loads or follows a live stream asks the producer's
process for previews, through that process's control stream. The producer's process then writes the newest previews and
sets the key `shown`. It writes every preview at once until it has not been asked for SHOWN_SECONDS. So a reader in
another process begins with the newest preview, one round trip later. It begins with the critical frames alone if the
producer's process does not answer in time, or has stored an outcome of another image since. A preview in the memory of
a dead process is lost, and so is its generation.

Expiry. All keys expire, those of live streams after hours, even if every process dies. Entries that could not be stored
while the server was away are stored when it is back, as long as their stream is produced here.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import Any, Final, Self

import anyio

from streamproxy.core.cursor import Cursor
from streamproxy.core.events import ANSWER, ERROR, Frame, error_frame
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.log import EPOCH, Entry, Record
from streamproxy.hub.store import (
    MARK_SECONDS,
    OWN,
    SAME,
    SPAN,
    Asking,
    Claim,
    Fenced,
    Found,
    Gone,
    Standing,
    Stored,
    StoreError,
    Summary,
)
from streamproxy.hub.valkey.client import Argument, LogEntry, Script, ValkeyClient, entry_of, parse_address
from streamproxy.hub.valkey.scripts import APPEND, ASK, BURY, CREATE, FINISH, FORGET, LOOK, TELL

LEASE_SECONDS: Final = 5.0
"""A process renews its leases three times in this. Its streams count as lost once a lease has expired."""

LIVE_SECONDS: Final = 6 * 3600.0
"""Expiry of a live stream's keys, counted from its last entry: far longer than a generation takes."""

GONE_SECONDS: Final = 24 * 3600.0
"""How long the id of a purged stream is remembered, about 100 bytes each."""

CLAIM_SECONDS: Final = 24 * 3600.0

CONTROL_SECONDS: Final = 3600.0
"""How long a message to a process is kept. No generation takes longer."""

VIEWED_SECONDS: Final = 15.0
"""How long a note of viewers holds. Processes repeat it every 5 s, and two notes may be lost."""

LISTED: Final = 1000
"""Most streams in one owner's list, about 100 bytes each. The oldest are removed first."""

SHOWN_SECONDS: Final = 15.0
"""How long a process writes previews after a request for them. Followers ask every 5 s, and two may be lost."""

SHOW_SECONDS: Final = 1.0
"""How long a reader waits for previews to be written. A healthy process takes a few milliseconds."""

LOOK_SECONDS: Final = 0.005

HELD_BYTES: Final = 256 * 1024 * 1024
"""Most bytes of ended streams that could not be stored yet. The oldest streams are given up first."""


class Wanted(Enum):
    """A request of one process to the process that produces a stream."""

    END = "end"
    PREVIEWS = "previews"


class Lost(StoreError):
    """The server has lost keys: it was emptied, or evicted them for lack of memory."""


@dataclass(slots=True)
class Unwritten:
    """The state of a stream of this process that is not in the server yet.

    `created`: whether CREATE has run. `lacking`: critical entries to be written. `ended`: the stream has ended, and the
    server is still to be told. `previews`: deferred ones, by image. `shown_until`: on anyio's clock, the time until
    which previews are written at once.
    """

    record: Record
    created: bool = False
    lacking: deque[Entry] = field(default_factory=deque)
    ended: bool = False
    previews: dict[int, Entry] = field(default_factory=dict)
    shown_until: float = -inf


class ValkeyStore:
    """See the module's text. `replica`: a unique name of this process; `linger` and `lease` are in seconds.

    Raises ValueError for a URL that `client.parse_address` does not take.
    """

    def __init__(self, url: str, *, linger: float, replica: str, lease: float = LEASE_SECONDS) -> None:
        self._client = ValkeyClient(parse_address(url))
        self._replica = replica
        self._lease = lease
        self._spans = tuple(int(span * 1000) for span in (lease, LIVE_SECONDS, linger, GONE_SECONDS))
        self._produced: dict[str, Unwritten] = {}
        self._asked: dict[str, anyio.Event] = {}
        self._heard = b"0-0"

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Self]:
        """Renew leases until the block ends, then close. The server need not be reachable yet."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._renew)
                yield self
                tasks.cancel_scope.cancel()
        finally:
            await self._client.aclose()

    async def _renew(self) -> None:
        while True:
            renewals: list[tuple[Argument, ...]] = [
                ("SET", _key(id, "lease"), self._replica, "PX", self._spans[0]) for id in self._produced
            ]
            with suppress(StoreError):  # the next operation reports it
                await self._client.ask_all(renewals or [("PING",)], probe=True)
            await anyio.sleep(self._lease / 3)

    # Store.

    async def create(self, record: Record) -> None:
        produced = self._produced[record.id] = Unwritten(record)
        await self._catch_up(produced)

    async def append(self, id: str, entry: Entry) -> None:
        produced = self._produced.get(id)
        if produced is None:
            raise StoreError("The store takes no entries of this stream from this process.")
        produced.previews.pop(entry.frame.image, None)
        if entry.critical:
            produced.lacking.append(entry)
        await self._catch_up(produced)
        if not entry.critical:
            await self._append(id, entry)

    def spare(self, id: str, entry: Entry) -> bool:
        return False

    def defer(self, id: str, entry: Entry) -> bool:
        produced = self._produced.get(id)
        if produced is None or anyio.current_time() < produced.shown_until:
            return False
        produced.previews[entry.frame.image] = entry
        return True

    async def finish(self, id: str) -> None:
        produced = self._produced.get(id)
        if produced is None:
            return
        produced.previews.clear()
        try:
            await self._finish(produced)
        except BaseException:
            produced.ended = True  # for `sweep`
            raise

    async def load(self, id: str) -> Stored | Gone | None:
        looked = await self._look(id, previews=True)
        if not isinstance(looked, list):
            return Gone() if looked else None
        record, finished, log = _read(id, looked)
        entries: list[Entry] = []
        for row in map(entry_of, log):
            if b"end" in row[1]:
                continue
            entry = await self._entry(id, row)
            if entry is not None:
                entries.append(entry)
            elif row[1].get(b"final") == b"1":
                return Gone()  # just expired, or evicted
        return Stored(record, tuple(entries), finished)

    async def _look(self, id: str, *, previews: bool = False) -> object:
        """The result of LOOK. Ends a stream whose producer is dead first; `previews`: asks for those of a live one."""
        looked = await self._run(LOOK, id)
        if isinstance(looked, list) and not looked[2]:
            ended = not looked[4] and await self._bury(id)
            if ended or (previews and await self._ask_previews(id)):
                looked = await self._run(LOOK, id)
        return looked

    async def forget(self, id: str) -> None:
        if (produced := self._produced.get(id)) is not None and produced.ended:
            del self._produced[id]  # its end is not written yet, and need not be
        owner = await self._run(FORGET, id)
        if isinstance(owner, bytes) and owner:
            await self._client.ask("ZREM", _key(owner.decode(), "owned"), id)

    async def sweep(self) -> None:
        """End streams whose end could not be written while the server was away. Keys expire by themselves."""
        await self._client.ask("PING")
        ended = [produced for produced in self._produced.values() if produced.ended]
        held = sum(entry.frame.size for produced in ended for entry in produced.lacking)
        for produced in ended:
            if held > HELD_BYTES:
                held -= sum(entry.frame.size for entry in produced.lacking)
                del self._produced[produced.record.id]
            else:
                await self._finish(produced)

    async def _catch_up(self, produced: Unwritten) -> None:
        """Write what could not be written before."""
        record = produced.record
        if not produced.created:
            owner = () if record.owner is None else (record.owner,)
            await self._run(CREATE, record.id, record.created, record.n, self._replica, EPOCH, *owner)
            await self._list(record)
            produced.created = True
        while produced.lacking:
            await self._append(record.id, produced.lacking[0])
            produced.lacking.popleft()

    async def _append(self, id: str, entry: Entry) -> None:
        frame = entry.frame
        where = (entry.cursor.epoch, entry.cursor.seq, frame.type, frame.image, int(frame.final))
        _judge(await self._run(APPEND, id, *where, frame.data))

    async def _finish(self, produced: Unwritten) -> None:
        id = produced.record.id
        try:
            await self._catch_up(produced)
            _judge(await self._run(FINISH, id))
        except Fenced:
            pass  # another process has ended it
        except Lost:
            del self._produced[id]
            raise
        del self._produced[id]

    async def show(self, id: str) -> None:
        """Write the newest previews of a stream of this process, and every one for SHOWN_SECONDS from now."""
        produced = self._produced.get(id)
        now = anyio.current_time()
        if produced is None or produced.shown_until > now + SHOWN_SECONDS:
            return  # asked a moment ago: many readers may come at once
        produced.shown_until = now + SHOWN_SECONDS + 1
        deferred = sorted(produced.previews.values(), key=lambda entry: entry.cursor.seq)
        produced.previews.clear()
        with suppress(StoreError, Fenced):  # the stream's next entry reports it
            for entry in deferred:
                await self._append(id, entry)
            await self._client.ask("SET", _key(id, "shown"), self._replica, "PX", int(SHOWN_SECONDS * 1000))

    async def _ask_previews(self, id: str) -> bool:
        """Ask the producer's process to write previews, and wait until it has, at most SHOW_SECONDS.

        Returns False where there is nothing to ask: it writes them already, or it is this process.
        """
        shown = _key(id, "shown")
        if id in self._produced or await self._client.ask("EXISTS", shown):
            return False
        if (asked := self._asked.get(id)) is not None:  # one request for all readers that come at once
            await asked.wait()
            return True
        self._asked[id] = anyio.Event()
        try:
            await self._tell(id, Wanted.PREVIEWS)
            with anyio.move_on_after(SHOW_SECONDS):
                while not await self._client.ask("EXISTS", shown):  # noqa: ASYNC110  # only the server knows
                    await anyio.sleep(LOOK_SECONDS)
        finally:
            self._asked.pop(id).set()
        return True

    async def _tell(self, id: str, wanted: Wanted) -> None:
        """Send a request to the process that produces this stream, if there is one."""
        replica = await self._client.ask("HGET", _key(id, "meta"), "replica")
        if replica is not None:
            span = int(CONTROL_SECONDS * 1000)
            await self._client.run(TELL, [_control(replica.decode())], id, wanted.value, span)

    async def _entry(self, id: str, row: LogEntry) -> Entry | None:
        """The entry of a log's row, with its bytes; None where these are superseded or have expired meanwhile."""
        position, fields = row
        seq = int(position.partition(b"-")[0])
        data = await self._client.ask("GET", _key(id, f"data:{seq}"))
        with _readable():
            if data is None or len(data) != int(fields[b"size"]):
                return None
            frame = Frame(fields[b"type"].decode(), (data,), int(fields[b"image"]), fields[b"final"] == b"1")
            return Entry(Cursor(int(fields[b"epoch"]), seq), frame)

    async def _bury(self, id: str) -> bool:
        """End the stream if its producer is dead and this process may do so. Returns whether the stream has ended."""
        since = self._client.since
        if since is None or anyio.current_time() - since < self._lease:
            return False
        lost = ProxyError(
            Failure.PRODUCER_LOST,
            "The process that ran this generation was lost. It is not run again by itself, because the provider may "
            "have charged for it.",
        )
        frame = error_frame(lost, id)
        verdict = await self._run(BURY, id, frame.type, b"".join(frame.data), ANSWER)
        if verdict == b"unknown":
            raise Lost("The store has lost this stream.")
        return verdict == b"ended"

    # Listing.

    async def owned(self, owner: str, after: str | None, limit: int) -> list[Summary] | None:
        key, start = _key(owner, "owned"), 0
        if after is not None:
            rank = await self._client.ask("ZREVRANK", key, after)
            if rank is None:
                return None
            start = int(rank) + 1
        found: list[Summary] = []
        gone: list[bytes] = []
        while ids := await self._client.ask("ZREVRANGE", key, start, start + limit - len(found) - 1):
            start += len(ids)
            for id in ids:
                looked = await self._look(id.decode())
                if isinstance(looked, list):
                    found.append(await self._summary(id.decode(), looked))
                else:
                    gone.append(id)
            if len(found) == limit:
                break
        if gone:
            await self._client.ask("ZREM", key, *gone)
        return found

    async def _summary(self, id: str, looked: list[Any]) -> Summary:
        record, finished, log = _read(id, looked)
        failed = next((row for row in map(entry_of, log) if row[1].get(b"type") == ERROR.encode()), None)
        entry = None if failed is None else await self._entry(id, failed)
        return Summary(record, finished, b"" if entry is None else b"".join(entry.frame.data))

    async def _list(self, record: Record) -> None:
        """Add a new stream to its owner's list. Scores are in microseconds: one second may have several streams."""
        if record.owner is None:
            return
        key = _key(record.owner, "owned")
        await self._client.ask_all(
            [
                ("ZADD", key, "NX", time.time_ns() // 1000, record.id),
                ("ZREMRANGEBYRANK", key, 0, -LISTED - 1),
                ("PEXPIRE", key, self._spans[1] + self._spans[2]),
            ]
        )

    # Claims.

    async def claim(self, key: str, claim: Claim) -> Claim:
        value = f"{claim.fingerprint} {claim.stream_id}"
        span = int(CLAIM_SECONDS * 1000)
        held = await self._client.ask("SET", f"sp:claim:{key}", value, "NX", "GET", "PX", span)
        if held is None:
            return claim
        fingerprint, _, stream_id = held.decode().rpartition(" ")
        return Claim(fingerprint, stream_id)

    async def disclaim(self, key: str) -> None:
        await self._client.ask("UNLINK", f"sp:claim:{key}")

    # Marks.

    async def ask(self, mark: str, id: str, asked: float, asking: Asking) -> Found:
        keys = [_key(mark, "asked"), _key(mark, "failed")]
        span = int(MARK_SECONDS * 1000)
        standing, said = await self._client.run(ASK, keys, id, repr(asked), asking.value, OWN, SPAN, SAME, span)
        found = Standing(standing.decode())
        if found is Standing.FAILED:
            return Found(found, failure=said)
        return Found(found, said.decode())

    async def left(self, mark: str, id: str, followers: int) -> None:
        await self._client.ask("ZADD", _key(mark, "asked"), "XX", "INCR", -followers * SPAN, id)

    async def over(self, mark: str, id: str) -> None:
        await self._client.ask("ZREM", _key(mark, "asked"), id)

    async def failed(self, mark: str, failure: bytes, seconds: float) -> None:
        await self._client.ask("SET", _key(mark, "failed"), failure, "PX", int(seconds * 1000))

    # Shared.

    async def follow(self, id: str, after: int) -> AsyncGenerator[Entry, None]:
        position = b"%d-0" % after
        async with self._client.line() as line:
            while True:
                rows = await line.read(_key(id, "log"), position)
                if not rows:
                    await self._bury(id)
                for row in rows:
                    position, fields = row
                    if b"end" in fields:
                        return
                    entry = await self._entry(id, row)
                    if entry is not None:
                        yield entry
                    elif fields.get(b"final") == b"1":
                        raise Lost("The store has lost entries of this stream.")

    async def cancel(self, id: str) -> None:
        await self._tell(id, Wanted.END)

    async def cancelled(self) -> AsyncGenerator[str, None]:
        """Ids to cancel. Continues after the last message of an earlier iteration, so that none is missed."""
        async with self._client.line() as line:
            while True:
                for position, fields in await line.read(_control(self._replica), self._heard):
                    self._heard = position
                    id = fields[b"id"].decode()
                    if fields[b"what"] == Wanted.PREVIEWS.value.encode():
                        await self.show(id)
                    elif id in self._produced:
                        yield id

    async def viewing(self, id: str) -> None:
        await self._client.ask("SET", _key(id, "viewed"), self._replica, "PX", int(VIEWED_SECONDS * 1000))
        await self._tell(id, Wanted.PREVIEWS)

    async def viewed(self, id: str) -> bool:
        return bool(await self._client.ask("EXISTS", _key(id, "viewed")))

    async def _run(self, script: Script, id: str, *arguments: Argument) -> object:
        keys = [_key(id, name) for name in ("meta", "log", "lease", "gone")]
        return await self._client.run(script, keys, _key(id, "data:"), *self._spans, *arguments)


def _read(id: str, looked: list[Any]) -> tuple[Record, bool, list[Any]]:
    """Read LOOK's result for a stream: its record, whether it has finished, and its log."""
    created, n, finished, owner, _, log = looked
    with _readable():
        record = Record(id, None if owner is None else owner.decode(), int(created), int(n))
    return record, bool(finished), log


def _judge(verdict: object) -> None:
    if verdict == b"fenced":
        raise Fenced
    if verdict != b"kept":
        raise Lost("The store has lost this stream.")


@contextmanager
def _readable() -> Iterator[None]:
    """Raise StoreError for values of another version: during an upgrade, processes of both versions share the store."""
    try:
        yield
    except (KeyError, ValueError, TypeError):
        raise StoreError("The store has data of this stream that this version cannot read.") from None


def _key(id: str, name: str) -> str:
    return f"sp:{{{id}}}:{name}"


def _control(replica: str) -> str:
    """The key of a process's control stream: requests of other processes to it."""
    return f"sp:r:{replica}"
