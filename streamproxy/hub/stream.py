"""One stream in memory.

The producer is paced by the subscriber that asked: `append` returns when that one has taken the frame, so a provider
faster than its caller is held back at its own socket and the stream holds one frame. Without that subscriber nobody
waits for anybody.

How it ends is decided by the head. Until `commit` a failure is kept in `error`, to become an HTTP status; from then on
`fail` appends it as the final `error` frame.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import anyio

from streamproxy.core.events import Frame, error_frame
from streamproxy.errors import ProxyError


@dataclass(frozen=True, slots=True)
class Opening:
    """What the provider's 2xx head means for our own: headers to pass on, and request members not applied."""

    headers: tuple[tuple[str, str], ...]
    not_applied: tuple[str, ...]


class Stream:
    """One generation. `scope` is the producer's: cancelling it closes the upstream connection."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.scope = anyio.CancelScope()
        self.opening: Opening | None = None
        self.error: ProxyError | None = None
        self.finished = False
        self.frames = 0
        self.bytes = 0
        self._committed = False
        self._held: deque[Frame] = deque()
        self._subscriber: Subscriber | None = None
        self._changed = anyio.Event()

    def open(self, opening: Opening) -> None:
        """The provider accepted the request."""
        self.opening = opening
        self._wake()

    def commit(self) -> None:
        """Our head is about to be sent: from now on failures are frames."""
        self._committed = True

    async def append(self, frame: Frame) -> None:
        """Add one whole frame; returns when the subscriber that asked has taken it, or has left."""
        self._held.append(frame)
        self.frames += 1
        self.bytes += frame.size
        self._wake()
        while self._held and self._subscriber is not None:
            await self._changed.wait()

    def fail(self, error: ProxyError) -> bool:
        """The generation failed. At most once; nothing may follow but `finish`. Whether a reader gets it as a frame."""
        self.error = error
        if self._committed and self._subscriber is not None:
            self._held.append(error_frame(error, self.id))
        self._wake()
        return self._committed

    def finish(self) -> None:
        """No frame will follow."""
        self.finished = True
        self._wake()

    def subscribe(self) -> Subscriber:
        """Follow from position 0, as the caller who asked."""
        self._subscriber = Subscriber(self)
        return self._subscriber

    async def opened(self, within: float) -> None:
        """Return when the provider has accepted, or the stream has ended, or after `within` seconds."""
        with anyio.move_on_after(within):
            while self.opening is None and self.error is None and not self.finished:
                await self._changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()


class Subscriber:
    """A reader's position in one stream; `at_end` once it has had all. `leave` when done, however it ends."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._taking = False
        self.at_end = False

    async def next(self, within: float | None = None) -> Frame | None:
        """The next frame, None at the end; raises TimeoutError after `within` seconds of silence.

        Asking for the next frame says that the one before has been sent: only then is it let go of.
        """
        stream = self._stream
        if self._taking:
            self._taking = False
            stream._held.popleft()
            stream._wake()
        if not stream._held and not stream.finished:
            with anyio.fail_after(within):
                while not stream._held and not stream.finished:
                    await stream._changed.wait()
        if not stream._held:
            self.at_end = True
            return None
        self._taking = True
        return stream._held[0]

    def leave(self) -> None:
        """This reader is gone. Nobody else follows, so an unfinished generation is cancelled."""
        stream = self._stream
        if stream._subscriber is not self:
            return
        stream._subscriber = None
        if not stream.finished:
            stream.scope.cancel()
        stream._held.clear()
        stream._wake()
