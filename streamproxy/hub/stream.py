"""The readers' side of one generation in this process: its log, its readers, and its ending.

The requesting caller is the first subscriber, and the only one that paces the producer: after each preview the producer
waits until that subscriber has taken it. So a provider that is faster than its caller is held back at its socket, and
that caller misses no preview. All other subscribers follow at their own speed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from streamproxy.account import Attempt
from streamproxy.core.conversation import Progress
from streamproxy.core.cursor import Cursor
from streamproxy.errors import ProxyError
from streamproxy.hub.log import Entry, Log, Record, Unmade, Version
from streamproxy.signals import Signal

Versions = Callable[["Stream", Entry], Version]
"""Gives a preview as one kind of reader wants it. One that is being made wakes the readers when it is there."""


class Ending(Enum):
    """How a stream ended for its readers (the first two), or the reason why its producer was stopped."""

    FINISHED = "no frame will follow"
    LOST_CONTACT = "it runs in another process, which this one can no longer follow"
    CANCELLED = "a caller ended it"
    ABANDONED = "no reader came back within the grace"
    SHUTDOWN = "the process stops"
    SHED = "the process is short of memory"


@dataclass(slots=True)
class Acceptance:
    """What is known before the first frame. `accepted`: the provider works on it.

    `committed`: a head is about to be sent, so that a failure can no longer be an HTTP status. `headers` are the
    provider's that are passed on, `not_applied` the members that it is not asked for, `tried` the attempts so far.
    """

    accepted: bool = False
    committed: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    not_applied: tuple[str, ...] = ()
    tried: tuple[Attempt, ...] = ()
    progress: Progress | None = None


class Pace:
    """Holds the producer back until the requesting caller has taken a preview.

    It has a signal of its own: with the stream's, each step of a reader would wake all readers (O(v^2) per frame).
    """

    def __init__(self) -> None:
        self._asker: Subscriber | None = None
        self._moved = Signal()

    @property
    def asked(self) -> bool:
        """Whether the requesting caller is still there."""
        return self._asker is not None

    def keep_to(self, subscriber: Subscriber) -> None:
        """Make this subscriber the one that the producer waits for."""
        self._asker = subscriber

    def on_taken(self, subscriber: Subscriber) -> None:
        """Note that a subscriber has taken its last entry."""
        if self._asker is subscriber:
            self._moved.set()

    def release(self, subscriber: Subscriber | None = None) -> None:
        """Stop waiting for this subscriber, or for any."""
        if subscriber is None or self._asker is subscriber:
            self._asker = None
            self._moved.set()

    async def taken(self, seq: int) -> None:
        """Return when the requesting caller has taken this entry, or has left."""
        while self._asker is not None and self._asker.taken < seq:
            await self._moved.wait()


def _stay(_: Stream) -> None:
    """Do nothing for a stream that ends by itself, or has ended."""


class Stream:
    """See the module's text. `on_idle` is called when the last reader has left.

    `error`: the failure of its error event. `visits` counts all subscribers so far.
    """

    def __init__(self, record: Record, *, request_id: str = "", on_idle: Callable[[Stream], None] = _stay) -> None:
        self.record = record
        self.request_id = request_id or record.id
        self.log = Log()
        self.acceptance = Acceptance()
        self.pace = Pace()
        self.changed = Signal()
        self.error: ProxyError | None = None
        self.ending: Ending | None = None
        self.subscribers: set[Subscriber] = set()
        self.visits = 0
        self._on_idle = on_idle
        self._released = False

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def finished(self) -> bool:
        """Whether no frame will follow."""
        return self.ending is Ending.FINISHED

    def accept(self) -> None:
        """Note that the provider works on the request."""
        self.acceptance.accepted = True
        self.changed.set()

    def commit(self) -> None:
        """Note that a head is about to be sent."""
        self.acceptance.committed = True

    def add(self, entry: Entry) -> None:
        """Put an entry into the log, and wake the readers."""
        self.log.add(entry)
        self.changed.set()

    def finish(self) -> None:
        """Note that no frame will follow. Readers end once they have received all."""
        self.log.finish()
        self.ending = Ending.FINISHED
        self.changed.set()

    def give_up(self) -> None:
        """End the readers here. The stream goes on in its own process, and they may come back for the rest."""
        self.ending = Ending.LOST_CONTACT
        self.changed.set()

    def release(self) -> None:
        """From now on, free entries that the last reader has received. No new reader can join."""
        self._released = True
        self._free()

    def subscribe(
        self, after: Cursor | None = None, *, asker: bool = False, versions: Versions | None = None
    ) -> Subscriber:
        """Follow after the cursor `after`, or from the start where this stream cannot have given that cursor.

        `asker`: this is the requesting caller, for which the producer waits. `versions`: the reader's form of previews.
        """
        seq = after.seq if after is not None and self.log.gave(after) else 0
        subscriber = Subscriber(self, seq) if versions is None else VersionSubscriber(self, seq, versions)
        self.subscribers.add(subscriber)
        self.visits += 1
        if asker:
            self.pace.keep_to(subscriber)
        return subscriber

    async def opened(self, within: float) -> None:
        """Return when the provider has accepted, or the stream has ended, or after `within` seconds."""
        until = asyncio.get_running_loop().time() + within
        while not self.acceptance.accepted and self.error is None and not self.finished:
            if not await self.changed.wait(until):
                return

    async def ended(self, within: float) -> None:
        """Return when no frame will follow here, or after `within` seconds."""
        until = asyncio.get_running_loop().time() + within
        while self.ending is None and await self.changed.wait(until):
            pass

    def superseded(self, entry: Entry) -> bool:
        """Whether a half-written preview is out of date: the outcome of its image, or of the stream, is there."""
        return not entry.critical and (self.finished or self.log.has_outcome(entry.frame.image))

    def on_given(self) -> None:
        """Note that a reader has received an entry."""
        if self._released:
            self._free()

    def remove_reader(self, subscriber: Subscriber) -> None:
        """Remove a reader that has left. Repeated calls do nothing."""
        if subscriber not in self.subscribers:
            return
        self.subscribers.remove(subscriber)
        self.pace.release(subscriber)
        if not self.subscribers:
            self._on_idle(self)

    def _free(self) -> None:
        if len(self.subscribers) == 1:
            [reader] = self.subscribers
            self.log.drop_until(reader.seq)


class Subscriber:
    """A reader's position in one stream. Call `leave` at the end in any case.

    `at_end`: it has received all. `joined`: when it came, by the monotonic clock.
    """

    def __init__(self, stream: Stream, seq: int) -> None:
        self.stream = stream
        self.seq = seq
        self.taken = seq
        self.at_end = False
        self.joined = time.monotonic()

    async def next(self, within: float | None = None) -> Entry | None:
        """The next entry; None at the end. Raises TimeoutError after `within` seconds of silence.

        The call also says that the entry before has been sent.
        """
        stream = self.stream
        if self.taken != self.seq:
            self.taken = self.seq
            stream.pace.on_taken(self)
        entry = self._available()
        if entry is None and stream.ending is None:
            until = None if within is None else asyncio.get_running_loop().time() + within
            while entry is None and stream.ending is None:
                if not await stream.changed.wait(until):
                    raise TimeoutError
                entry = self._available()
        if entry is None:
            self.at_end = stream.finished
            return None
        self.seq = entry.cursor.seq
        stream.on_given()
        return entry

    @property
    def ready(self) -> bool:
        """Whether `next` returns at once."""
        return self.stream.ending is not None or self._available() is not None

    async def readied(self) -> None:
        """Return when `next` would return at once. No entry is taken, so that entries are still conflated meanwhile."""
        while not self.ready:
            await self.stream.changed.wait()

    def leave(self) -> None:
        """Stop following."""
        self.stream.remove_reader(self)

    def _available(self) -> Entry | None:
        """The next entry, None where there is none yet."""
        return self.stream.log.after(self.seq)


class VersionSubscriber(Subscriber):
    """A reader that wants previews in another form. One that is not made yet is not there yet.

    So a preview that is late is conflated as for any reader: the next one, or its image's outcome, takes its place.
    """

    def __init__(self, stream: Stream, seq: int, versions: Versions) -> None:
        super().__init__(stream, seq)
        self._versions = versions

    def _available(self) -> Entry | None:
        log = self.stream.log
        while (entry := log.after(self.seq)) is not None and not entry.critical:
            version = self._versions(self.stream, entry)
            if isinstance(version, Entry):
                return version
            self._take(entry)
            if version is Unmade.MAKING:
                return None
            self.seq = self.taken
        return entry

    def _take(self, entry: Entry) -> None:
        """Let the producer go on: this reader is not slow, it waits for us."""
        self.taken = entry.cursor.seq
        self.stream.pace.on_taken(self)
