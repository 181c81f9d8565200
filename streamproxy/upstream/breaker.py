"""What spares a provider that fails, and its callers: a breaker, and a budget for what is sent again.

    Breaker         closed, it lets every attempt in; open, none until a pause is over; then, half-open, one, whose
                    outcome closes it, or opens it for a longer pause
                    It also knows for how long a provider said not to ask it: such a one is the last to be asked
    RetryBudget     keeps what is sent again a small part of what is sent

An attempt is a whole conversation, not one of its requests: a job that a provider has accepted is polled to its end.
Both count by whole seconds of a clock, so their size does not grow with the traffic. The clock is an argument.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from math import ceil
from typing import Final

import anyio

from streamproxy.errors import Blame, Failure, ProxyError

SPAN: Final = 10
"""Seconds that are looked back on (Resilience4j and Envoy look back on as much)."""

IN_A_ROW: Final = 5
"""Failures without a success between them that open a breaker (Envoy's `consecutive_5xx`)."""

LEAST: Final = 10
SHARE: Final = 0.5
"""The share of failures that opens a breaker, of at least LEAST outcomes: fewer say little."""

PAUSE: Final = 5.0
LONGEST_PAUSE: Final = 60.0
"""Seconds from an opening to the next attempt: PAUSE times the openings in a row, at most LONGEST_PAUSE."""

REST: Final = 1.0
"""Seconds that a provider rests after a 429 that does not say how long, or a refused key."""

AGAIN: Final = 0.2
FLOOR: Final = 10
"""The share of requests that may be sent again, and how many may in any case within SPAN (Linkerd's share is 0.2)."""

Clock = Callable[[], float]
"""Seconds, never less than before: the event loop's."""


class _Kind(Enum):
    """What is counted."""

    FAILED = auto()
    WORKED = auto()
    FIRST = auto()
    AGAIN = auto()


class _Window:
    """Counts of the last SPAN seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seconds: dict[int, Counter[_Kind]] = {}

    def add(self, kind: _Kind) -> None:
        """One more, now."""
        self._forget()
        self._seconds.setdefault(int(self._clock()), Counter())[kind] += 1

    def count(self, kind: _Kind) -> int:
        """How many there were."""
        self._forget()
        return sum(counts[kind] for counts in self._seconds.values())

    def clear(self) -> None:
        """Count anew."""
        self._seconds.clear()

    def _forget(self) -> None:
        oldest = int(self._clock()) - SPAN
        while self._seconds and (first := next(iter(self._seconds))) <= oldest:
            del self._seconds[first]


class State(Enum):
    """What a breaker lets in. The value is the word of the log."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Turn:
    """An attempt that was let in."""

    def __init__(self, breaker: Breaker, *, probe: bool) -> None:
        self._breaker = breaker
        self.probe = probe

    def accepted(self) -> None:
        """The provider works on it. A picture takes a minute, so a breaker does not wait for it."""
        if self.probe:
            self.probe = False
            self._breaker.close()


def _unheard(_: State) -> None:
    """Most tests do not listen."""


class Breaker:
    """One provider's. `changed` is told each new state.

    Only what says that the provider does not work counts as a failure, see `errors.Blame`. A refusal counts as nothing.
    `opens` false: it stays closed.
    """

    def __init__(
        self, clock: Clock = anyio.current_time, changed: Callable[[State], None] = _unheard, *, opens: bool = True
    ) -> None:
        self._clock = clock
        self._changed = changed
        self._opens = opens
        self._window = _Window(clock)
        self._in_a_row = 0
        self._openings = 0
        self._until = 0.0
        self._rests_until = 0.0
        self.state = State.CLOSED

    @property
    def rests(self) -> bool:
        """Whether the provider has said just now that it does not take requests: another one is asked before it."""
        return self._clock() < self._rests_until

    @contextmanager
    def attempt(self) -> Iterator[Turn]:
        """An attempt, for a block, whose outcome counts. Raises ProxyError(BREAKER_OPEN) where none is let in."""
        turn = self._let_in()
        try:
            yield turn
        except ProxyError as error:
            if error.failure in (Failure.PROVIDER_LIMIT, Failure.PROVIDER_AUTH):
                self._rests_until = self._clock() + _seconds(error.retry_after)
            self._ended(turn, worked=False if error.blame is Blame.PROVIDER else None)
            raise
        except BaseException:
            self._ended(turn, worked=None)
            raise
        else:
            self._ended(turn, worked=True)

    def close(self) -> None:
        """Let every attempt in."""
        self._openings = self._in_a_row = 0
        self._window.clear()
        self._become(State.CLOSED)

    def _let_in(self) -> Turn:
        if self.state is State.CLOSED:
            return Turn(self, probe=False)
        left = self._until - self._clock()
        if left > 0:
            message = "The provider has failed repeatedly and is not asked for a while."
            raise ProxyError(Failure.BREAKER_OPEN, message, retry_after=str(ceil(left)))
        # The next one, where nothing becomes of this one for as long as a pause.
        self._until = self._clock() + self._pause
        self._become(State.HALF_OPEN)
        return Turn(self, probe=True)

    @property
    def _pause(self) -> float:
        return min(PAUSE * self._openings, LONGEST_PAUSE)

    def _ended(self, turn: Turn, *, worked: bool | None) -> None:
        """`worked` None: the outcome says nothing of the provider."""
        if turn.probe and self.state is not State.CLOSED:
            if worked is None:
                self._until = self._clock()
            elif worked:
                self.close()
            else:
                self._open()
        elif self.state is State.CLOSED and worked is not None:  # else the attempt began before the breaker opened
            self._count(worked=worked)

    def _count(self, *, worked: bool) -> None:
        self._in_a_row = 0 if worked else self._in_a_row + 1
        self._window.add(_Kind.WORKED if worked else _Kind.FAILED)
        if worked:
            return
        failed = self._window.count(_Kind.FAILED)
        total = failed + self._window.count(_Kind.WORKED)
        if self._opens and (self._in_a_row >= IN_A_ROW or (total >= LEAST and failed >= SHARE * total)):
            self._open()

    def _open(self) -> None:
        self._openings += 1
        self._until = self._clock() + self._pause
        self._become(State.OPEN)

    def _become(self, state: State) -> None:
        if state is not self.state:
            self.state = state
            self._changed(state)


def _seconds(retry_after: str | None) -> float:
    """How long to rest. A date is not read: the clocks of two machines differ."""
    said = retry_after or ""
    return min(float(said), LONGEST_PAUSE) if said.isascii() and said.isdigit() else REST


class RetryBudget:
    """How much may be sent again because of one provider, whatever the reason: in all at most AGAIN of its requests."""

    def __init__(self, clock: Clock = anyio.current_time) -> None:
        self._window = _Window(clock)

    def sent(self) -> None:
        """Note a request that is sent for the first time."""
        self._window.add(_Kind.FIRST)

    def take(self) -> bool:
        """Whether one more may be sent again; it counts as sent."""
        if self._window.count(_Kind.AGAIN) >= max(FLOOR, AGAIN * self._window.count(_Kind.FIRST)):
            return False
        self._window.add(_Kind.AGAIN)
        return True
