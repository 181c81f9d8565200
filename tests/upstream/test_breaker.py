"""When a breaker opens and closes, what it lets in meanwhile, and how much a budget allows. The clock is a number."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Final

import pytest

from streamproxy.errors import Blame, Failure, ProxyError
from streamproxy.upstream.breaker import (
    AGAIN,
    FLOOR,
    IN_A_ROW,
    LEAST,
    LONGEST_PAUSE,
    PAUSE,
    SPAN,
    Breaker,
    RetryBudget,
    State,
)

DEAD: Final = Failure.CONNECTION_REFUSED
NO: Final = Failure.PROVIDER_REFUSED


@dataclass(slots=True)
class World:
    """A breaker, its clock, and each state that it has told of."""

    now: float = 1000.0
    states: list[State] = field(default_factory=list)
    breaker: Breaker = field(init=False)

    def __post_init__(self) -> None:
        self.breaker = Breaker(lambda: self.now, self.states.append)

    def attempt(self, *failures: Failure | None) -> list[str | None]:
        """Make attempts that end so; what each of them is told before it begins."""
        told: list[str | None] = []
        for failure in failures:
            begun = False
            try:
                with self.breaker.attempt():
                    begun = True
                    if failure is not None:
                        raise ProxyError(failure, "It failed.")
            except ProxyError as error:
                told.append(None if begun else error.retry_after)
            else:
                told.append(None)
        return told


def test_failures_in_a_row_open_it() -> None:
    world = World()
    assert world.attempt(*[DEAD] * (IN_A_ROW - 1), None, *[DEAD] * (IN_A_ROW - 1)) == [None] * 9
    assert world.attempt(DEAD, DEAD) == [None, "5"]
    assert world.states == [State.OPEN]


def test_half_of_ten_opens_it() -> None:
    world = World()
    world.attempt(*[None, DEAD] * (LEAST // 2 - 1), None)
    assert world.states == []
    world.attempt(DEAD)
    assert world.states == [State.OPEN]


def test_less_than_half_does_not_open_it() -> None:
    world = World()
    world.attempt(*[None, None, DEAD] * 50)
    assert world.states == []


def test_what_is_long_ago_does_not_count() -> None:
    world = World()
    for _ in range(20):
        world.attempt(None, DEAD, None, DEAD)
        world.now += SPAN / 2 + 1  # never ten within the span
    assert world.states == []


def test_refusals_count_as_nothing() -> None:
    world = World()
    world.attempt(*[NO] * 50, *[DEAD] * (IN_A_ROW - 1), *[Failure.PROVIDER_LIMIT] * 50)
    assert world.states == []
    world.attempt(DEAD)
    assert world.states == [State.OPEN]


def test_a_cancelled_attempt_counts_as_nothing() -> None:
    world = World()
    for _ in range(50):
        with contextlib.suppress(KeyboardInterrupt), world.breaker.attempt():
            raise KeyboardInterrupt
    assert world.states == []


def test_one_attempt_after_each_pause_and_pauses_grow() -> None:
    world = World()
    world.attempt(*[DEAD] * IN_A_ROW)
    pauses: list[float] = []
    for _ in range(15):
        began = world.now
        while world.attempt(DEAD) != [None]:
            world.now += 1
        pauses.append(world.now - began)
    assert pauses[:3] == [PAUSE, 2 * PAUSE, 3 * PAUSE]
    assert pauses[-1] == LONGEST_PAUSE
    assert world.states[:4] == [State.OPEN, State.HALF_OPEN, State.OPEN, State.HALF_OPEN]


def test_the_probe_closes_it() -> None:
    world = World()
    world.attempt(*[DEAD] * IN_A_ROW)
    world.now += PAUSE
    assert world.attempt(None, None) == [None, None]
    assert world.states == [State.OPEN, State.HALF_OPEN, State.CLOSED]
    world.attempt(*[DEAD] * IN_A_ROW)
    assert world.attempt(None) == ["5"]  # it begins anew


def test_an_accepted_probe_closes_it_before_its_end() -> None:
    world = World()
    world.attempt(*[DEAD] * IN_A_ROW)
    world.now += PAUSE
    with world.breaker.attempt() as turn:
        assert world.attempt(None) == ["5"]
        turn.accepted()
        assert world.attempt(None) == [None]
    assert world.states[-1] is State.CLOSED


def test_a_probe_that_hangs_holds_up_one_pause() -> None:
    world = World()
    world.attempt(*[DEAD] * IN_A_ROW)
    world.now += PAUSE
    with world.breaker.attempt():
        world.now += PAUSE
        assert world.attempt(None) == [None]
        assert world.states[-1] is State.CLOSED


def test_a_probe_that_says_nothing_leaves_it_to_the_next() -> None:
    world = World()
    world.attempt(*[DEAD] * IN_A_ROW)
    world.now += PAUSE
    assert world.attempt(NO, DEAD, DEAD) == [None, None, "10"]


def test_an_attempt_from_before_changes_nothing() -> None:
    world = World()
    with world.breaker.attempt():
        world.attempt(*[DEAD] * IN_A_ROW)
    assert world.states == [State.OPEN]
    assert world.attempt(None) == ["5"]


@pytest.mark.parametrize(("said", "rests"), [(None, 1), ("7", 7), ("3600", 60), ("Wed, 21 Oct 2026 07:28:00 GMT", 1)])
def test_a_provider_rests_as_long_as_it_says(said: str | None, rests: int) -> None:
    world = World()
    with contextlib.suppress(ProxyError), world.breaker.attempt():
        raise ProxyError(Failure.PROVIDER_LIMIT, "Slow down.", retry_after=said)
    world.now += rests - 0.1
    assert world.breaker.rests
    world.now += 0.2
    assert not world.breaker.rests


@pytest.mark.parametrize("failure", Failure)
def test_only_a_providers_failure_is_blamed_on_it(failure: Failure) -> None:
    """What the caller sent and what this process lacks say nothing of a provider."""
    blame = ProxyError(failure, "").blame
    if failure.value.type != "upstream_error":
        assert blame is Blame.REQUEST
    if failure.value.status < 500:
        assert blame is not Blame.PROVIDER


@pytest.mark.parametrize(("first", "again"), [(0, FLOOR), (50, FLOOR), (1000, 200)])
def test_a_fifth_may_be_sent_again(first: int, again: int) -> None:
    now = 0.0
    budget = RetryBudget(lambda: now)
    for _ in range(first):
        budget.sent()
    assert [budget.take() for _ in range(again + 5)] == [True] * again + [False] * 5
    assert again <= max(FLOOR, AGAIN * first)
    now += SPAN + 1
    assert budget.take()
