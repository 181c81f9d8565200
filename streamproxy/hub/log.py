"""The log of one stream: its entries in order, conflated as they come.

A log holds every critical frame, and the newest preview of each image without an outcome. A reader is a cursor into
the log. So a reader that lags skips previews by itself, and a stuck reader costs no memory.

A preview may have versions: the same preview in other forms, for readers that want it small. They come and go with it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from streamproxy.core.cursor import Cursor
from streamproxy.core.events import ANSWER, Frame
from streamproxy.core.previews import PreviewForm

EPOCH: Final = 1
"""The epoch of a producer. A generation is paid for once, so a later epoch only says that its producer was lost."""


@dataclass(frozen=True, slots=True)
class Record:
    """Facts of a stream besides its frames. `owner`: the hash of the caller's key, if any; `created`: Unix seconds."""

    id: str
    owner: str | None = None
    created: int = 0
    n: int = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One frame at its position. `arrived`: when it came to this process, by the monotonic clock."""

    cursor: Cursor
    frame: Frame
    arrived: float = field(default_factory=time.monotonic, compare=False, repr=False)

    @property
    def critical(self) -> bool:
        """Whether it is the outcome of an image, or of the stream. It is kept for every reader, however late."""
        return self.frame.final


class Unmade(Enum):
    """Why a version of a preview is not there."""

    MAKING = "it is being made"
    SKIPPED = "it would come too late"


Version = Entry | Unmade


class Log:
    """See the module's text. `epoch` and `last` (seq) are the newest entry's; `bytes`: the size of all entries."""

    def __init__(self) -> None:
        self.epoch = EPOCH
        self.last = 0
        self.bytes = 0
        self._entries: dict[int, Entry] = {}
        self._previews: dict[int, int] = {}
        self._outcomes: set[int] = set()
        self._versions: dict[int, dict[PreviewForm, Version]] = {}

    def add(self, entry: Entry) -> None:
        """Append an entry, and drop the preview that it supersedes."""
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
        """Drop an entry. A reader that has not reached it skips it."""
        entry = self._entries.pop(seq, None)
        if entry is not None:
            self.bytes -= entry.frame.size
        for version in self._versions.pop(seq, {}).values():
            self.bytes -= _size(version, entry)

    def drop_until(self, seq: int) -> None:
        """Drop all entries up to this position."""
        for number in [number for number in self._entries if number <= seq]:
            self.drop(number)

    def finish(self) -> None:
        """Drop the previews: no entry will follow."""
        for seq in self._previews.values():
            self.drop(seq)
        self._previews.clear()

    def retained(self) -> Iterator[Entry]:
        """The entries, in order."""
        return iter(list(self._entries.values()))

    def at(self, seq: int) -> Entry | None:
        """The entry at this position, None where it was dropped."""
        return self._entries.get(seq)

    def versions(self, seq: int) -> dict[PreviewForm, Version]:
        """The versions of the preview at this position."""
        return self._versions.get(seq, {})

    def put_version(self, seq: int, form: PreviewForm, version: Version) -> None:
        """Put a version of a preview, or why there is none, beside it. Nothing where the preview was dropped."""
        entry = self._entries.get(seq)
        if entry is not None:
            self._versions.setdefault(seq, {})[form] = version
            self.bytes += _size(version, entry)

    def after(self, seq: int) -> Entry | None:
        """The first entry after this position."""
        return next((entry for number, entry in self._entries.items() if number > seq), None)

    def gave(self, cursor: Cursor) -> bool:
        """Whether this log can have given a reader this cursor."""
        return 0 < cursor.epoch <= self.epoch and cursor.seq <= self.last

    def has_outcome(self, image: int) -> bool:
        """Whether the image's final frame has been added."""
        return image in self._outcomes

    def is_complete(self, n: int) -> bool:
        """Whether each of `n` images has its outcome. From then on, no end of the generation is a failure."""
        return len(self._outcomes) >= n or any(entry.frame.type == ANSWER for entry in self._entries.values())


def _size(version: Version, entry: Entry | None) -> int:
    """Bytes that a version takes beside its preview. It may be the very preview."""
    return version.frame.size if isinstance(version, Entry) and version is not entry else 0
