"""The account of one generation: counted while it runs, and told once, at its end.

It has names, numbers and times, but neither prompts nor images, so that logs, metrics and budgets can use it.

    Account     the figures
    Attempt     one try at a provider
    told        attempts as a header
    shown       attempts as JSON
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

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


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a provider. `model`: None for an unknown one. `failure`: its code, None for success."""

    provider: str
    model: str | None
    failure: str | None = None


def told(attempts: Iterable[Attempt]) -> str:
    """Attempts as a structured field (RFC 9651, a list of items with parameters), equal ones once.

    `openai/gpt-image-2;provider=azure;failure=connection_refused, google/gemini-3-pro-image;provider=gemini;ok`
    """
    return ", ".join(dict.fromkeys(map(_item, attempts)))


def shown(attempts: Iterable[Attempt]) -> list[dict[str, str | None]]:
    """Attempts as a JSON array, equal ones once."""
    return [
        {"provider": attempt.provider, "model": attempt.model, "failure": attempt.failure}
        for attempt in dict.fromkeys(attempts)
    ]


def _item(attempt: Attempt) -> str:
    provider, how = _bare(attempt.provider), f"failure={attempt.failure}" if attempt.failure else "ok"
    return f"{provider};{how}" if attempt.model is None else f"{_bare(attempt.model)};provider={provider};{how}"


def _bare(name: str) -> str:
    """A token, or a string where the name is none. No name of the catalogue or the settings has a quotation mark."""
    return name if _TOKEN.fullmatch(name) else f'"{name}"'


_TOKEN: Final = re.compile(r"[A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:/-]*")


@dataclass(slots=True)
class Previews:
    """A generation's previews. `first`: seconds from its beginning; `gaps`: seconds between two of the same image."""

    count: int = 0
    first: float | None = None
    gaps: list[float] = field(default_factory=list)
    _newest: dict[int, float] = field(default_factory=dict)

    def take(self, image: int, at: float) -> None:
        """Count one, which came so many seconds after the beginning."""
        self.count += 1
        if self.first is None:
            self.first = at
        if (before := self._newest.get(image)) is not None:
            self.gaps.append(at - before)
        self._newest[image] = at


@dataclass(slots=True)
class Account:
    """One generation's figures. `tried`: the attempts, in order. `order` names the last provider and model.

    `attempts`: requests that were sent to providers for it. `bytes`: event data of all frames. `cost`: USD of all
    that stated one, None where none did. `provider_request_id`: the provider's.
    """

    order: Order
    tried: tuple[Attempt, ...] = ()
    attempts: int = 0
    images: int = 0
    bytes: int = 0
    previews: Previews = field(default_factory=Previews)
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
            self.previews.take(frame.image, self.seconds)
        elif frame.type != ERROR and not frame.sums:
            self.images += self.order.n if frame.type == ANSWER else 1
        if frame.cost is not None:
            self.cost = round((self.cost or 0.0) + frame.cost, 6)
