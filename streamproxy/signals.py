"""A wake-up for all tasks that wait for a change."""

from __future__ import annotations

import asyncio


class Signal:
    """Wakes the tasks that wait now. A later wait is for the next `set`.

    On asyncio's futures: every event of a stream wakes its readers, and a cancel scope for each wait with a deadline
    cost more than all else that is done for the event.
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[bool], None] = {}

    def set(self) -> None:
        """Wake all that wait."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting:
            _settle(waiter, True)

    async def wait(self, until: float | None = None) -> bool:
        """Return at the next `set`; False where none came before this time of the loop's clock, which is anyio's.

        A cancel scope round a loop of waits would end it late: a cancellation misses a task that is always awake.
        """
        loop = asyncio.get_running_loop()
        if until is not None and loop.time() >= until:
            return False
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiting[waiter] = None
        timer = None if until is None else loop.call_at(until, _settle, waiter, False)
        try:
            return await waiter
        finally:
            self._waiting.pop(waiter, None)
            if timer is not None:
                timer.cancel()


def _settle(waiter: asyncio.Future[bool], changed: bool) -> None:
    if not waiter.done():
        waiter.set_result(changed)
