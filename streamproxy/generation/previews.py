"""Previews in the form that readers want: each is made once per stream, event and form, whatever number of readers.

It is made in a worker thread, for the first reader that comes to it, and lies in the stream's log beside the preview
until that is dropped. Every process makes its own: a store keeps previews as they came.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from streamproxy.core.events import Frame
from streamproxy.core.previews import PreviewForm
from streamproxy.hub.log import Entry, Log, Unmade, Version
from streamproxy.hub.stream import Stream, Versions

MOST_FORMS: Final = 4
"""Forms of one preview. For a reader that wants a fifth it stays as it is: each costs memory, and 35 ms of CPU."""

MOST_WAITING: Final = 32
"""Previews that are made or wait for it: about 0.6 s of work. One more is skipped, and nothing waits longer for it."""


class PreviewMaker:
    """See the module's text. `threads` are shared with all other work on pictures."""

    def __init__(self, tasks: TaskGroup, threads: anyio.CapacityLimiter) -> None:
        self._tasks = tasks
        self._threads = threads
        self._waiting = 0

    def versions(self, form: PreviewForm | None) -> Versions | None:
        """For readers that want this form; None for those that want previews as they come."""
        return None if form is None else partial(self.version, form)

    def version(self, form: PreviewForm, stream: Stream, entry: Entry) -> Version:
        """The preview in this form. The first time this begins to make it."""
        seq = entry.cursor.seq
        known = stream.log.versions(seq)
        if form in known:
            return known[form]
        if len(known) >= MOST_FORMS:
            return entry
        if self._waiting >= MOST_WAITING:
            stream.log.put_version(seq, form, Unmade.SKIPPED)
            return Unmade.SKIPPED
        stream.log.put_version(seq, form, Unmade.MAKING)
        self._waiting += 1
        self._tasks.start_soon(self._make, form, stream, seq)
        return Unmade.MAKING

    async def _make(self, form: PreviewForm, stream: Stream, seq: int) -> None:
        try:
            made = await to_thread.run_sync(_made, form, stream.log, seq, abandon_on_cancel=True, limiter=self._threads)
        finally:
            self._waiting -= 1
        entry = stream.log.at(seq)
        if made is not None and entry is not None:
            stream.log.put_version(seq, form, Entry(entry.cursor, made) if made is not entry.frame else entry)
        stream.changed.set()


def _made(form: PreviewForm, log: Log, seq: int) -> Frame | None:
    """The preview in this form; None where it was dropped before its turn."""
    entry = log.at(seq)
    if entry is None:
        return None
    from streamproxy.generation.converting import shrink  # Pillow: 2.5 MB that few installations need

    return shrink(entry.frame, form)
