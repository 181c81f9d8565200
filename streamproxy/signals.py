"""A wake-up for all tasks that wait for a change."""

from __future__ import annotations

import anyio


class Signal:
    """Wakes the tasks that wait now. A later wait is for the next `set`."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        """Wake all that wait."""
        event, self._event = self._event, anyio.Event()
        event.set()

    async def wait(self) -> None:
        """Return at the next `set`."""
        await self._event.wait()
