"""Limits of generations and viewers, and the grace for which a generation runs without readers.

The grace is longer than a reconnect takes. A reader that comes back within it keeps the generation; when it leaves,
another grace begins. Viewers in other processes keep it too: their processes note them in the store every few seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup

from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.generation import Generation
from streamproxy.hub.mirrors import PRESENCE_SECONDS
from streamproxy.hub.outbox import OutboxLimits
from streamproxy.hub.stream import Ending, Stream, Subscriber


@dataclass(frozen=True, slots=True)
class HubLimits:
    """`grace` and `hold` (of a failure) in seconds. Others: the most viewers of one stream, the most of all streams of
    one owner, the most generations that run, and the most pending webhooks."""

    grace: float
    hold: float
    viewers: int
    viewers_of_owner: int
    streams: int
    webhooks: OutboxLimits = field(default_factory=lambda: OutboxLimits(10_000, 1000))


class Admission:
    """Counts viewers, and refuses requests over the limits.

    `draining` or `short_of_memory`: no new generation is admitted.
    """

    def __init__(self, limits: HubLimits) -> None:
        self.limits = limits
        self._viewers_of = Counter[str | None]()
        self.draining = False
        self.short_of_memory = False

    def admit(self, running: int) -> None:
        """Admit one more generation. Raises ProxyError: DRAINING, MEMORY_SHORT; OVERLOADED at the most `running`."""
        if self.draining:
            raise ProxyError(Failure.DRAINING, "The proxy is shutting down and takes no new requests.", retry_after="2")
        if self.short_of_memory:
            raise ProxyError(
                Failure.MEMORY_SHORT, "The proxy is short of memory. The setting is memory_limit.", retry_after="2"
            )
        if running >= self.limits.streams:
            raise ProxyError(
                Failure.OVERLOADED, "Too many generations are running. The setting is max_streams.", retry_after="2"
            )

    def watch(self, stream: Stream, subscriber: Subscriber) -> None:
        """Count a viewer. Raises ProxyError(TOO_MANY_VIEWERS) where the stream or its owner has too many."""
        owner = stream.record.owner
        if len(stream.subscribers) > self.limits.viewers or self._viewers_of[owner] >= self.limits.viewers_of_owner:
            subscriber.leave()
            raise ProxyError(
                Failure.TOO_MANY_VIEWERS,
                "This stream has too many viewers. The settings are max_viewers and max_viewers_per_caller.",
            )
        self._viewers_of[owner] += 1

    def unwatch(self, stream: Stream, subscriber: Subscriber) -> None:
        """Remove a viewer."""
        subscriber.leave()
        owner = stream.record.owner
        self._viewers_of[owner] -= 1
        if not self._viewers_of[owner]:
            del self._viewers_of[owner]


class Grace:
    """Stops generations that have no reader for the grace.

    `viewed` returns whether another process has viewers of a stream; `forget` hides a generation from retries.
    """

    def __init__(
        self,
        seconds: float,
        *,
        tasks: TaskGroup,
        viewed: Callable[[str], Awaitable[bool]],
        forget: Callable[[Generation], None],
    ) -> None:
        self.seconds = seconds
        self._tasks = tasks
        self._viewed = viewed
        self._forget = forget

    def begin(self, generation: Generation) -> None:
        """Stop the generation after the grace, unless a reader comes back, or another process has viewers."""
        if self.seconds == 0:
            self._abandon(generation)
        else:
            self._tasks.start_soon(self._wait, generation, generation.stream.visits)

    async def _wait(self, generation: Generation, visits: int) -> None:
        stream = generation.stream
        pause = self.seconds
        while True:
            await anyio.sleep(pause)
            if stream.finished or stream.visits != visits:
                return
            if not await self._viewed(stream.id):
                break
            pause = PRESENCE_SECONDS  # other processes send no message when their viewers leave
        if not stream.finished and stream.visits == visits:
            self._abandon(generation)

    def _abandon(self, generation: Generation) -> None:
        generation.stop(Ending.ABANDONED)
        self._forget(generation)
