"""The account of one generation: counted while it runs, and told once, at its end.

It has names, numbers and times, but neither prompts nor images, so that logs, metrics and budgets can use it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import Enum

from streamproxy.core.events import ANSWER, ERROR, Frame
from streamproxy.errors import Failure, ProxyError


class Outcome(Enum):
    """How a generation ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    ABANDONED = "abandoned"
    """Its last reader left, whose own request says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The request of a generation.

    `caller`: the caller's name, or a short hash of its key; `model`: its name in the catalogue.
    """

    stream_id: str
    request_id: str
    traceparent: str | None
    caller: str | None
    provider: str
    model: str | None
    n: int


@dataclass(slots=True)
class Account:
    """One generation's figures.

    `attempts`: requests that were sent to providers for it. `first_preview`: seconds from the beginning. `bytes`: event
    data of all frames. `cost`: USD of all that stated one, None where none did. `provider_request_id`: the provider's.
    """

    order: Order
    attempts: int = 0
    previews: int = 0
    images: int = 0
    bytes: int = 0
    first_preview: float | None = None
    cost: float | None = None
    provider_request_id: str | None = None
    outcome: Outcome = Outcome.COMPLETED
    failure: ProxyError | None = None
    _began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return time.monotonic() - self._began

    @property
    def charged(self) -> bool:
        """Whether a provider may have charged for it."""
        return self.attempts > 0 and (self.failure is None or self.failure.charged)

    def fail(self, error: ProxyError | None, *, abandoned: bool) -> None:
        """Note how it ended, if not by its last image."""
        if abandoned:
            self.outcome = Outcome.ABANDONED
        elif error is not None:
            self.outcome = Outcome.CANCELLED if error.failure is Failure.CANCELLED else Outcome.FAILED
            self.failure = error

    def take(self, frame: Frame) -> None:
        """Count one frame."""
        self.bytes += frame.size
        if not frame.final:
            self.previews += 1
            if self.first_preview is None:
                self.first_preview = self.seconds
        elif frame.type != ERROR and not frame.sums:
            self.images += self.order.n if frame.type == ANSWER else 1
        if frame.cost is not None:
            self.cost = round((self.cost or 0.0) + frame.cost, 6)
