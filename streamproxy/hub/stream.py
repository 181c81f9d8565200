"""One generation as this process holds it: what is retained of it, who reads it, and how it ended.

What is retained is already conflated: every critical frame, and of each image that is not completed the newest preview.
A reader is only a cursor into that, so one that lags skips previews by itself, and a stuck one costs nobody memory.

The caller who asked is the first subscriber. It alone paces the producer: `append` returns when it has taken a preview,
so a provider faster than its caller is held back at its own socket and that caller misses none. Everybody else follows
at their own speed. Critical frames wait for nobody: they are retained anyway, and a slow or leaving caller must not
make a failure of a generation whose last image is there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final

import anyio

from streamproxy.core.conversation import Progress
from streamproxy.core.cursor import Cursor
from streamproxy.core.events import ANSWER, Frame, error_frame
from streamproxy.errors import ProxyError

EPOCH: Final = 1
"""A generation is paid for once, so it has one producer; a later epoch only ever says that this one was lost."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One frame at its position."""

    cursor: Cursor
    frame: Frame

    @property
    def critical(self) -> bool:
        """Never dropped, whoever lags: the outcome of an image, or of the stream."""
        return self.frame.final


class Retained:
    """What is kept of one stream, conflated as entries come. `epoch` and `last` are those of the newest entry."""

    def __init__(self) -> None:
        self.epoch = EPOCH
        self.last = 0
        self.bytes = 0
        self._entries: dict[int, Entry] = {}
        self._previews: dict[int, int] = {}
        self._outcomes: set[int] = set()

    def add(self, entry: Entry) -> None:
        """Take an entry at its place, and let go of what it supersedes."""
        frame = entry.frame
        self.epoch = entry.cursor.epoch
        self.last = entry.cursor.seq
        self.drop(self._previews.pop(frame.image, 0))
        self._entries[self.last] = entry
        self.bytes += frame.size
        if entry.critical:
            self._outcomes.add(frame.image)
        else:
            self._previews[frame.image] = self.last

    def drop(self, seq: int) -> None:
        """Let go of an entry; whoever has not had it will not."""
        entry = self._entries.pop(seq, None)
        if entry is not None:
            self.bytes -= entry.frame.size

    def finish(self) -> None:
        """No entry will follow; previews are of no more use to anybody."""
        for seq in self._previews.values():
            self.drop(seq)
        self._previews.clear()

    def retained(self) -> Iterator[Entry]:
        """What is retained, in order."""
        return iter(list(self._entries.values()))

    def after(self, seq: int) -> Entry | None:
        """The first retained entry behind this position."""
        return next((entry for number, entry in self._entries.items() if number > seq), None)


class Stream(Retained):
    """See the module's text. `owner` is whose key asked, None for nobody's; `created` in Unix seconds.

    `scope` is the local producer's: cancelling it closes the upstream connection; `shutdown` says that the process's
    end did, `asked_to_end` that somebody did. `broken`: what followed it from elsewhere is over, with the stream's end
    still to come. `headers` are the provider's that may be passed on, `not_applied` the members that it is not asked
    for. `sink` keeps entries, `spare` lets go of one without room, `on_idle` hears of the last reader.
    """

    def __init__(
        self, id: str, *, request_id: str = "", owner: str | None = None, created: int = 0, n: int = 1
    ) -> None:
        super().__init__()
        self.id = id
        self.request_id = request_id or id
        self.owner = owner
        self.created = created
        self.n = n
        self.scope = anyio.CancelScope()
        self.accepted = False
        self.headers: tuple[tuple[str, str], ...] = ()
        self.not_applied: tuple[str, ...] = ()
        self.progress: Progress | None = None
        self.error: ProxyError | None = None
        self.finished = False
        self.committed = False
        self.subscribers: set[Subscriber] = set()
        self.visits = 0
        self._asker: Subscriber | None = None
        self._changed = anyio.Event()
        self._paced = anyio.Event()
        self._appending = anyio.Lock(fast_acquire=True)
        self._released = False
        self.broken = False
        self.shutdown = False
        self.asked_to_end = False
        self.on_idle: Callable[[Stream], None] | None = None
        self.sink: Callable[[str, Entry], Awaitable[None]] | None = None
        self.spare: Callable[[str, Entry], bool] | None = None

    # The producer's side.

    @property
    def asked(self) -> bool:
        """Whether the caller who asked for it is still there."""
        return self._asker is not None

    @property
    def complete(self) -> bool:
        """Whether every image has its outcome: what ends the generation now is no failure any more."""
        return len(self._outcomes) >= self.n or any(entry.frame.type == ANSWER for entry in self._entries.values())

    def accept(self) -> None:
        """The provider works on it."""
        self.accepted = True
        self.wake()

    def commit(self) -> None:
        """A head is about to be sent: a failure can no longer be an HTTP status."""
        self.committed = True

    async def append(self, frame: Frame) -> None:
        """Add one whole frame; returns when the caller who asked has taken it, or has left.

        A preview that comes after its image's outcome is nobody's. A stream's several producers take turns.
        """
        async with self._appending:
            if not frame.final and frame.image in self._outcomes:
                return
            entry = Entry(Cursor(self.epoch, self.last + 1), frame)
            if self.sink is not None and entry.critical:
                # Kept before it is delivered: what a reader has seen, nobody loses. Both or none: a seq is given once.
                with anyio.CancelScope(shield=True):
                    await self.sink(self.id, entry)
            self.add(entry)
            if self.sink is not None and not entry.critical:
                await self.sink(self.id, entry)
        while not entry.critical and self._asker is not None and self._asker.taken < entry.cursor.seq:
            await self._paced.wait()
        if self.spare is None or entry.critical or any(reader.seq < entry.cursor.seq for reader in self.subscribers):
            return
        if self.spare(self.id, entry):
            self.drop(entry.cursor.seq)

    def add(self, entry: Entry) -> None:
        """As any retained entry; who waits hears of it."""
        super().add(entry)
        self.wake()

    async def fail(self, error: ProxyError) -> None:
        """The generation failed, at most once: readers learn it from the final frame added here."""
        self._asker = None  # nothing waits for anybody any more
        self._pace()
        self.error = error
        try:
            await self.append(error_frame(error, self.request_id))
        except ProxyError as lost:  # the store has another end already, and takes nothing more
            self.error = lost
            await self.append(error_frame(lost, self.request_id))

    def finish(self) -> None:
        """No frame will follow."""
        super().finish()
        self.finished = True
        self.wake()

    def release(self) -> None:
        """Nobody can join any more: what the last reader has been given is nobody's but that reader's."""
        self._released = True
        self._let_go()

    def _let_go(self) -> None:
        if len(self.subscribers) == 1:
            [reader] = self.subscribers
            for seq in [seq for seq in self._entries if seq <= reader.seq]:
                self.drop(seq)

    def give_up(self) -> None:
        """What followed this stream from elsewhere is over: readers end here, and may come back for the rest."""
        self.broken = True
        self.wake()

    def wake(self) -> None:
        """Something changed: everybody who waits looks again."""
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def _pace(self) -> None:
        """The producer may go on. Not `wake`: with v readers, each frame's v steps would wake v readers each."""
        paced, self._paced = self._paced, anyio.Event()
        paced.set()

    # The readers' side.

    def subscribe(self, after: Cursor | None = None, *, asker: bool = False) -> Subscriber:
        """Follow from behind `after`; a cursor that this stream cannot have given starts anew."""
        known = after is not None and 0 < after.epoch <= self.epoch and after.seq <= self.last
        subscriber = Subscriber(self, after.seq if known and after is not None else 0)
        self.subscribers.add(subscriber)
        self.visits += 1
        if asker:
            self._asker = subscriber
        return subscriber

    async def opened(self, within: float) -> None:
        """Return when the provider has accepted, or the stream has ended, or after `within` seconds."""
        with anyio.move_on_after(within):
            while not self.accepted and self.error is None and not self.finished:
                await self._changed.wait()

    async def ended(self, within: float) -> None:
        """Return when no frame will follow here, or after `within` seconds."""
        with anyio.move_on_after(within):
            while not self.finished and not self.broken:
                await self._changed.wait()

    def superseded(self, entry: Entry) -> bool:
        """Whether a half-written preview is of no more use because its image's outcome, or the stream's, is waiting."""
        return not entry.critical and (self.finished or entry.frame.image in self._outcomes)

    def took(self, subscriber: Subscriber) -> None:
        """A reader has taken what it was given."""
        if self._asker is subscriber:
            self._pace()

    def left(self, subscriber: Subscriber) -> None:
        """A reader is gone; saying it twice changes nothing."""
        if subscriber not in self.subscribers:
            return
        self.subscribers.remove(subscriber)
        if self._asker is subscriber:
            self._asker = None
            self._pace()
        if not self.subscribers and self.on_idle is not None:
            self.on_idle(self)


class Subscriber:
    """A reader's position in one stream; `at_end` once it has had all. `leave` when done, however it ends."""

    def __init__(self, stream: Stream, seq: int) -> None:
        self.stream = stream
        self.seq = seq
        self.taken = seq
        self.at_end = False

    async def next(self, within: float | None = None) -> Entry | None:
        """The next entry, None at the end; raises TimeoutError after `within` seconds of silence.

        Asking for the next says that the one before has been sent.
        """
        stream = self.stream
        if self.taken != self.seq:
            self.taken = self.seq
            stream.took(self)
        entry = stream.after(self.seq)
        if entry is None and not stream.finished and not stream.broken:
            with anyio.fail_after(within):
                while entry is None and not stream.finished and not stream.broken:
                    await stream._changed.wait()
                    entry = stream.after(self.seq)
        if entry is None:
            self.at_end = stream.finished
            return None
        self.seq = entry.cursor.seq
        if stream._released:
            stream._let_go()
        return entry

    @property
    def ready(self) -> bool:
        """Whether `next` returns at once."""
        return self.stream.finished or self.stream.broken or self.stream.after(self.seq) is not None

    async def readied(self) -> None:
        """Return when `next` would return at once. It takes nothing, so that what waits longer is still conflated."""
        while not self.ready:
            await self.stream._changed.wait()

    def leave(self) -> None:
        """This reader is gone."""
        self.stream.left(self)
