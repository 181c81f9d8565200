"""Overload in two steps, before the kernel kills the process: refuse new generations, then give up streams.

The oldest finished streams go first, then the largest that run.

The two shares of the limit are those of Envoy's example for edges (overload manager, 85 and 95 percent).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn

import anyio
from anyio import to_thread

from streamproxy.hub.hub import Hub
from streamproxy.memory import Usage, give_back, usage
from streamproxy.observe import Observer

LOOK_SECONDS: Final = 1.0
"""Between two looks. A thousand streams take in about 100 MB in it at 1 Gbit/s."""

Measure = Callable[[int | None], Usage | None]

REFUSE: Final = 0.85
RESET: Final = 0.95


class Pressure:
    """Watches the memory of one app. `limit`: bytes of this process; None for the limit of its control group.

    `measure` returns what is in use under such a limit.
    """

    def __init__(self, hub: Hub, limit: int | None, observer: Observer, measure: Measure = usage) -> None:
        self._hub = hub
        self._observer = observer
        self._measure = measure
        self.limit = limit

    async def watch(self) -> NoReturn:
        """Look once a second."""
        while True:
            await self.look()
            await anyio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Take the step that today's use asks for, or take back an earlier one."""
        now = self._measure(self.limit)
        if now is not None and now.used >= REFUSE * now.limit:
            await to_thread.run_sync(give_back)  # the allocator keeps some of what has been freed
            now = self._measure(self.limit)
        short = now is not None and now.used >= REFUSE * now.limit
        if short is not self._hub.admission.short_of_memory:
            self._hub.admission.short_of_memory = short
            self._observer.overload(short, *(now or Usage(0, 0)))
        if now is not None and now.used >= RESET * now.limit:
            ended = self._hub.shed(int(now.used - RESET * now.limit) + 1)
            if ended:
                self._observer.shed(ended)
