"""Where streams are kept: the protocol that every store fulfils, and the values it deals in.

A store outlives the readers of a stream, and, where it is shared, the process that produces it. It keeps what a stream
retains and nothing more. Every method may raise StoreError, after which the generation goes on in this process alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol

from streamproxy.hub.log import Entry, Record
from streamproxy.hub.stream import Stream


class StoreError(Exception):
    """The store cannot be reached, or is broken. The message names what failed, never a payload."""


class Fenced(Exception):
    """Somebody else has ended this stream: its producer was taken for dead and must not write any more."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A stream as it is kept: its entries in order, already conflated."""

    record: Record
    entries: tuple[Entry, ...]
    finished: bool

    def mirror(self, on_idle: Callable[[Stream], None] = lambda _: None) -> Stream:
        """The stream as readers follow it: its head has been sent long ago. `on_idle`: as of Stream."""
        stream = Stream(self.record, on_idle=on_idle)
        stream.commit()
        for entry in self.entries:
            stream.add(entry)
        if self.finished:
            stream.finish()
        return stream


@dataclass(frozen=True, slots=True)
class Claim:
    """An Idempotency-Key's meaning: the request it stood for, as a hash, and the stream that answers it."""

    fingerprint: str
    stream_id: str


class Gone:
    """The answer for a stream that was kept and no longer is."""


class Store(Protocol):
    """See the module's text. One contract suite holds every store to this."""

    async def create(self, record: Record) -> None:
        """A generation begins; this process is its producer."""
        ...

    async def append(self, id: str, entry: Entry) -> None:
        """Keep an entry, and let go of what it supersedes. Raises Fenced."""
        ...

    def spare(self, id: str, entry: Entry) -> bool:
        """Let go of a preview that all readers here have been given, if there is no room for it; whether it went."""
        ...

    async def finish(self, id: str) -> None:
        """No entry will follow: keep the critical ones for as long as streams linger."""
        ...

    async def load(self, id: str) -> Stored | Gone | None:
        """The stream, Gone after it has been purged, None where there never was one."""
        ...

    async def forget(self, id: str) -> None:
        """Let go of a finished stream now, as if it had been kept long enough."""
        ...

    async def sweep(self) -> None:
        """Let go of what has been kept long enough; called every few seconds."""
        ...


@dataclass(frozen=True, slots=True)
class Summary:
    """A stream without its images. `error`: the data of its error event, b"" without one."""

    record: Record
    finished: bool
    error: bytes = field(default=b"", repr=False)


class Listing(Protocol):
    """Stores that know whose streams they keep."""

    async def owned(self, owner: str, after: str | None, limit: int) -> list[Summary] | None:
        """An owner's streams, newest first, those behind `after`; None where that is none of them, or no longer."""
        ...


class Claims(Protocol):
    """What Idempotency-Keys stand for. A key is already a hash of the owner and the caller's key."""

    async def claim(self, key: str, claim: Claim) -> Claim:
        """The claim that holds for `key` for 24 h: this one where it is the first, else the earlier one."""
        ...

    async def disclaim(self, key: str) -> None:
        """Forget the claim: its request was refused without being processed."""
        ...


OWN: Final = 100
"""What the caller who asked counts as a follower: more than the repeated requests that may follow beside it."""

SPAN: Final = 10_000_000_000
"""More than any Unix time in seconds: a generation's place is its followers in these, less its time."""

MARK_SECONDS: Final = 3600.0
"""How long it is known who follows what was asked for; no generation takes longer, no SDK waits so long."""

SAME: Final = 1000
"""Generations of one mark that are known at a time; those with the most followers are forgotten first."""


class Asking(Enum):
    """How a request comes: for the first time, as a retry that can wait a little, or as one that has waited."""

    FIRST = "first"
    RETRY = "retry"
    LAST = "last"


class Standing(Enum):
    """What a request is to do: begin a generation, follow one, wait for one's caller to leave, or fail as one did."""

    NEW = "new"
    ADOPTED = "adopted"
    FOLLOWED = "followed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to `Marks.ask`: `id` of the generation that is ADOPTED, `failure` is the data of an error event."""

    standing: Standing
    id: str = ""
    failure: bytes = field(default=b"", repr=False)


class Marks(Protocol):
    """Generations by what was asked for: a mark is a hash of the caller, the path and the body.

    A generation is known here until its caller has had all of it. One that its caller has left is there to be adopted
    by a retry: one that is not followed before one that other retries follow, a newer one before an older one. One
    that its own caller still follows is never adopted.
    """

    async def ask(self, mark: str, id: str, asked: float, asking: Asking) -> Found:
        """What to do about a request made at `asked` (Unix seconds), all at once; where it is NEW, `id` is followed."""
        ...

    async def left(self, mark: str, id: str, followers: int) -> None:
        """OWN for the caller who asked, 1 for a retry: it has left before it had all."""
        ...

    def over(self, mark: str, id: str) -> Awaitable[None] | None:
        """The generation is not there to be adopted: its caller has had all, or nothing of it was processed.

        Returns what is left to wait for, None where it is done.
        """
        ...

    async def failed(self, mark: str, failure: bytes, seconds: float) -> None:
        """Every request of this mark is to fail like this for so long."""
        ...


class Shared(Protocol):
    """Stores that several processes use. All waiting happens here, one connection per stream that is followed."""

    def follow(self, id: str, after: int) -> AsyncIterator[Entry]:
        """Entries behind seq `after`, past then live, until the stream has finished; ends it for a dead producer."""
        ...

    async def cancel(self, id: str) -> None:
        """Ask whoever produces the stream to end it."""
        ...

    def cancelled(self) -> AsyncIterator[str]:
        """Ids of this process's streams that somebody asked to cancel."""
        ...

    async def viewing(self, id: str) -> None:
        """This process has viewers of the stream; to be said again every few seconds."""
        ...

    async def viewed(self, id: str) -> bool:
        """Whether any process has said so lately."""
        ...


class Previews(Protocol):
    """Stores in which a preview costs more than it is worth while no other process asks for it."""

    def defer(self, id: str, entry: Entry) -> bool:
        """Hold a preview until another process asks for it, or a newer one supersedes it; False: append it now."""
        ...


@dataclass(frozen=True, slots=True)
class StoreBackend:
    """A store's abilities; `shared` where several processes use it, `listing` where it can list an owner's streams.

    `waits`: whether its operations may wait. Where none does, no cancellation can meet one.
    """

    store: Store
    claims: Claims
    marks: Marks
    shared: Shared | None = None
    previews: Previews | None = None
    listing: Listing | None = None
    waits: bool = True
