"""The deadlines of a request, and an alarm whose time can be moved without a new timer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from streamproxy.errors import Failure, ProxyError


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds: connect, first byte, idle, total, and the wait for a free connection."""

    connect: float
    first_byte: float
    idle: float
    total: float
    pool: float


class Alarm:
    """Calls `ring` at its time. Moving the time back costs no timer: the old one fires, and is set again."""

    __slots__ = ("_at", "_loop", "_ring", "_rings_at", "_timer")

    def __init__(self, ring: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._ring = ring
        self._at = math.inf
        self._rings_at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def set(self, at: float) -> None:
        """Ring at this time of the loop's clock, instead of the one set before."""
        self._at = at
        if at < self._rings_at:
            if self._timer is not None:
                self._timer.cancel()
            self._rings_at = at
            self._timer = self._loop.call_at(at, self._look)

    def rest(self) -> None:
        """Do not ring until the next `set`. The loop's timer stays, since removing it costs as much as setting it."""
        self._at = math.inf

    def cancel(self) -> None:
        """Never ring."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._rings_at = -math.inf

    def _look(self) -> None:
        self._rings_at = math.inf
        if self._at <= self._loop.time():
            self._ring()
        elif self._at < math.inf:
            self.set(self._at)


def took_too_long(total: float) -> ProxyError:
    """The error for an exchange over its total time."""
    return ProxyError(Failure.DEADLINE, f"The request took over {total:g} s in all. The setting is total_timeout.")


def fell_silent(idle: float) -> ProxyError:
    """The error for a body without new bytes."""
    return ProxyError(Failure.IDLE_TIMEOUT, f"The provider fell silent for {idle:g} s. The setting is idle_timeout.")


def did_not_answer(first_byte: float) -> ProxyError:
    """The error for a request that was sent and has no head."""
    return ProxyError(
        Failure.FIRST_BYTE_TIMEOUT,
        f"The provider did not answer within {first_byte:g} s. The setting is first_byte_timeout.",
    )
