"""Retries without an Idempotency-Key: the generation that they follow, or the failure that is held for them.

A request that says it is a retry follows the generation of the same request that its caller has left. An edge that
gives up answers its caller before it closes its connection to us. So the retry may arrive while the generation still
seems to be followed, and waits a moment for that caller to leave.
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
"""Seconds that a retry waits for the earlier caller to leave: a thousand times what nginx and HAProxy take to close."""

LOOK_SECONDS: Final = 0.05


class Repeats:
    """See the module's text. `find` returns a stream by its id; `held`: seconds for which a failure is held."""

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
        self.held = hold

    async def find(self, mark: str, id: str, *, retry: bool) -> Stream | None:
        """The stream for a request to follow; None where it begins a new generation, `id`.

        Raises ProxyError: a failure that is held, or OVERLOADED for a retry where the store fails.
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
            " The same request failed like this before, and was not sent again, because the provider may have charged "
            "for it. To send it again, use a new Idempotency-Key, or wait. The setting is failure_hold."
        )
        return error

    def leave(self, mark: str | None, id: str, *, own: bool, had_all: bool) -> None:
        """Note that a follower has left: the requesting caller (`own`), or a retry. No mark: there can be no retry."""
        if mark is None:
            return
        if had_all:
            self.finished(mark, id)
        else:
            self._tasks.start_soon(self._leave, mark, id, OWN if own else 1)

    async def _leave(self, mark: str, id: str, followers: int) -> None:
        await self._health.attempt(self._marks.left(mark, id, followers))

    def finished(self, mark: str, id: str) -> None:
        """Note that a caller has received all of the stream, or that it was abandoned."""
        if (rest := self._marks.over(mark, id)) is not None:
            self._tasks.start_soon(self._health.attempt, rest)

    async def over(self, mark: str, id: str) -> None:
        """Hide the generation from retries."""
        if (rest := self._marks.over(mark, id)) is not None:
            await self._health.attempt(rest)

    async def hold(self, mark: str, error: ProxyError, frame: Frame) -> None:
        """Hold a failure for retries, before it is reported. A cancellation, or a failure without cost, is not held."""
        if self.held and not error.retryable and error.failure is not Failure.CANCELLED:
            await self._health.attempt(self._marks.failed(mark, b"".join(frame.data), self.held))
