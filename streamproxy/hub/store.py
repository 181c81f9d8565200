"""The protocols that every store of streams fulfils, and their values.

A store outlives the readers of a stream. A shared one also outlives the producer's process. It keeps the entries that a
stream's log retains. Every method may raise StoreError; the generation then goes on in this process alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol

from streamproxy.hub.log import Entry, Record
from streamproxy.hub.stream import Stream


class StoreError(Exception):
    """The store cannot be reached, or has failed. The message names the operation, never a payload."""


class Fenced(Exception):
    """Another process has ended this stream, because its producer seemed dead. The producer must write no more."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A stream from the store: its entries in order, already conflated."""

    record: Record
    entries: tuple[Entry, ...]
    finished: bool

    def mirror(self, on_idle: Callable[[Stream], None] = lambda _: None) -> Stream:
        """The stream for readers. The first response's head was sent long ago. `on_idle`: see `Stream`."""
        stream = Stream(self.record, on_idle=on_idle)
        stream.commit()
        for entry in self.entries:
            stream.add(entry)
        if self.finished:
            stream.finish()
        return stream


@dataclass(frozen=True, slots=True)
class Claim:
    """The meaning of an Idempotency-Key: its request, as a hash, and the stream that answers it."""

    fingerprint: str
    stream_id: str


class Gone:
    """The answer for a stream that has been purged."""


class Store(Protocol):
    """See the module's text. One contract suite holds every store to this."""

    async def create(self, record: Record) -> None:
        """Begin a stream, of which this process is the producer."""
        ...

    async def append(self, id: str, entry: Entry) -> None:
        """Keep an entry, and drop the preview that it supersedes. Raises Fenced."""
        ...

    def spare(self, id: str, entry: Entry) -> bool:
        """Drop a preview that all readers here have received, if there is no room for it. Returns whether it did."""
        ...

    async def finish(self, id: str) -> None:
        """End the stream: no entry will follow. Critical entries are kept for as long as streams linger."""
        ...

    async def load(self, id: str) -> Stored | Gone | None:
        """The stream; Gone after it has been purged; None where there was none."""
        ...

    async def forget(self, id: str) -> None:
        """Purge a finished stream now."""
        ...

    async def sweep(self) -> None:
        """Purge streams whose linger is over. Called every few seconds."""
        ...


@dataclass(frozen=True, slots=True)
class Summary:
    """A stream without its images. `error`: the data of its error event, b"" without one."""

    record: Record
    finished: bool
    error: bytes = field(default=b"", repr=False)


class Listing(Protocol):
    """Stores that can list an owner's streams."""

    async def owned(self, owner: str, after: str | None, limit: int) -> list[Summary] | None:
        """An owner's streams after the one with id `after`, newest first; None where `after` is not among them."""
        ...


class Shedding(Protocol):
    """Stores in this process's memory."""

    def shed(self, size: int) -> int:
        """Purge the oldest finished streams, until they held `size` bytes. Returns how many bytes are freed."""
        ...


class Claims(Protocol):
    """Claims by Idempotency-Key. `key` is a hash of the owner and the caller's key."""

    async def claim(self, key: str, claim: Claim) -> Claim:
        """Claim `key` for 24 h, unless it is claimed. Returns the claim that holds: this one, or the earlier one."""
        ...

    async def disclaim(self, key: str) -> None:
        """Forget the claim: its request was refused, and nothing of it was processed."""
        ...


OWN: Final = 100
"""Followers for which the requesting caller counts: more than the retries that can follow beside it."""

SPAN: Final = 10_000_000_000
"""A generation's score is `followers * SPAN - time`, so SPAN is more than any Unix time in seconds."""

MARK_SECONDS: Final = 3600.0
"""How long a mark is known. No generation takes longer, and no SDK waits so long."""

SAME: Final = 1000
"""Most generations of one mark. Those with the most followers are forgotten first."""


class Asking(Enum):
    """The kind of a request: a first one, a retry that can still wait, or a retry that has waited."""

    FIRST = "first"
    RETRY = "retry"
    LAST = "last"


class Standing(Enum):
    """The answer for a request: begin a generation, follow one, wait until a caller leaves, or fail as one did."""

    NEW = "new"
    ADOPTED = "adopted"
    FOLLOWED = "followed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to `Marks.ask`. `id`: the generation that is ADOPTED; `failure`: the data of an error event."""

    standing: Standing
    id: str = ""
    failure: bytes = field(default=b"", repr=False)


class Marks(Protocol):
    """Generations by mark: a hash of the caller, the path and the body of their requests.

    A generation is known here until its caller has received all of it. Once its caller has left, a retry can adopt it.
    A generation without followers is adopted before one that other retries follow, and a newer one before an older
    one. A generation that its own caller still follows is never adopted.
    """

    async def ask(self, mark: str, id: str, asked: float, asking: Asking) -> Found:
        """Decide on a request of the time `asked` (Unix seconds), atomically. NEW makes its caller follow `id`."""
        ...

    async def left(self, mark: str, id: str, followers: int) -> None:
        """Note that a follower left before it had received all: `followers` is OWN for the caller, 1 for a retry."""
        ...

    def over(self, mark: str, id: str) -> Awaitable[None] | None:
        """Forget the generation: its caller has received all of it, or nothing of it was processed.

        Returns what is left to wait for, None where it is done.
        """
        ...

    async def failed(self, mark: str, failure: bytes, seconds: float) -> None:
        """Let every request of this mark fail with this error event for `seconds`."""
        ...


class Shared(Protocol):
    """Stores that several processes use. Following a stream takes a connection of its own."""

    def follow(self, id: str, after: int) -> AsyncIterator[Entry]:
        """Entries after seq `after`, past then live, until the stream has finished. Ends it if its producer is dead."""
        ...

    async def cancel(self, id: str) -> None:
        """Ask the producer's process to end the stream."""
        ...

    def cancelled(self) -> AsyncIterator[str]:
        """Ids of this process's streams that another process asks to cancel."""
        ...

    async def viewing(self, id: str) -> None:
        """Note that this process has viewers of the stream. To be repeated every few seconds."""
        ...

    async def viewed(self, id: str) -> bool:
        """Whether a process has noted viewers of the stream in the last seconds."""
        ...


class Previews(Protocol):
    """Stores to which a preview is written only while another process wants it, because of its size."""

    def defer(self, id: str, entry: Entry) -> bool:
        """Hold a preview until another process asks for it, or a newer one replaces it. False: append it now."""
        ...


@dataclass(frozen=True, slots=True)
class StoreBackend:
    """The abilities of one store. None: it does not have that one.

    `waits`: whether its operations may wait. Where none does, no cancellation can meet one.
    """

    store: Store
    claims: Claims
    marks: Marks
    shared: Shared | None = None
    previews: Previews | None = None
    listing: Listing | None = None
    shedding: Shedding | None = None
    waits: bool = True
