"""Requests that are sent again: which generation they find, and which failure is held for them.

A request that says it is a retry and finds a generation that its caller has left follows that one. The edge that cut
the caller off may answer it before it closes its connection to us, so a retry waits a moment for such a caller to leave
before it takes the generation for one that is still followed.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
from anyio.abc import TaskGroup

from streamproxy.core.events import ERROR, Frame, read_error
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.health import StoreHealth, unreachable
from streamproxy.hub.store import OWN, Asking, Marks, Standing
from streamproxy.hub.stream import Stream

LEAVING_SECONDS: Final = 1.0
"""How long a retry waits for its earlier caller to leave: a thousand times what nginx and HAProxy take to close."""

LOOK_SECONDS: Final = 0.05


class Repeats:
    """See the module's text. `find` gives a stream by its id; `hold` is for how many seconds a failure is held."""

    def __init__(
        self,
        marks: Marks,
        *,
        health: StoreHealth,
        find: Callable[[str], Awaitable[Stream]],
        tasks: TaskGroup,
        hold: float,
    ) -> None:
        self._marks = marks
        self._health = health
        self._find = find
        self._tasks = tasks
        self._hold = hold

    async def find(self, mark: str, id: str, *, retry: bool) -> Stream | None:
        """The stream that a request is to follow, None where `id` is a new generation.

        Raises ProxyError: a failure that is held, or (OVERLOADED) for a retry where the store cannot say.
        """
        asked = time.time()
        ends_at = anyio.current_time() + LEAVING_SECONDS
        asking = Asking.RETRY if retry else Asking.FIRST
        while True:
            found = await self._health.attempt(self._marks.ask(mark, id, asked, asking))
            if found is None and retry:
                raise unreachable()
            if found is None or found.standing is Standing.NEW:
                return None
            if found.standing is Standing.FAILED:
                raise self._again(found.failure)
            if found.standing is Standing.ADOPTED:
                try:
                    return await self._find(found.id)
                except ProxyError as error:
                    if error.failure not in (Failure.GONE, Failure.NOT_FOUND):
                        self.leave(mark, found.id, own=False, had_all=False)
                        raise
                    await self.over(mark, found.id)
                    continue
            if anyio.current_time() > ends_at:
                asking = Asking.LAST
            await anyio.sleep(LOOK_SECONDS)

    def _again(self, failure: bytes) -> ProxyError:
        error = read_error(Frame(ERROR, (failure,), final=True))
        error.message += (
            " This is how the same request failed just now; nothing was sent to the provider again, because it may "
            "have charged. To ask anew, send a new Idempotency-Key, or wait. The setting is failure_hold."
        )
        return error

    def leave(self, mark: str | None, id: str, *, own: bool, had_all: bool) -> None:
        """Note that a follower is gone: the caller who asked (`own`), or a retry. Without a mark no retry can come."""
        if mark is None:
            return
        if had_all:
            self.finished(mark, id)
        else:
            self._tasks.start_soon(self._leave, mark, id, OWN if own else 1)

    async def _leave(self, mark: str, id: str, followers: int) -> None:
        await self._health.attempt(self._marks.left(mark, id, followers))

    def finished(self, mark: str, id: str) -> None:
        """Note that a caller has had all of it, or that it was abandoned."""
        if (rest := self._marks.over(mark, id)) is not None:
            self._tasks.start_soon(self._health.attempt, rest)

    async def over(self, mark: str, id: str) -> None:
        """Take the generation from retries' sight: nothing of it was processed, or it was abandoned."""
        if (rest := self._marks.over(mark, id)) is not None:
            await self._health.attempt(rest)

    async def hold(self, mark: str, error: ProxyError, frame: Frame) -> None:
        """Hold a failure, before it is told. One that was wished for, or cost nothing, is not held."""
        if self._hold and not error.retryable and error.failure is not Failure.CANCELLED:
            await self._health.attempt(self._marks.failed(mark, b"".join(frame.data), self._hold))
