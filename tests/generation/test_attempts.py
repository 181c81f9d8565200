"""A request's jobs side by side: the members of each, and failures of one that leave the others alone."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Final

import anyio
import pytest
from structlog.testing import capture_logs

from streamproxy.account import Attempt
from streamproxy.auth import CredentialSource
from streamproxy.core.catalogue import Route
from streamproxy.core.conversation import Accepted, Conversation, Job, Wait, fetch
from streamproxy.core.events import Frame
from streamproxy.core.headers import HeaderPolicy
from streamproxy.core.requests import ImageRequest
from streamproxy.errors import Failure, ProxyError
from streamproxy.generation.attempts import Attempts
from streamproxy.generation.router import Plan, Service
from streamproxy.observe import Observer
from streamproxy.providers import ADAPTERS
from streamproxy.simulator.script import Fin, Stall, error_answer, json_answer, sse
from streamproxy.upstream import Deadlines, Upstream, default_ssl_context
from streamproxy.upstream.breaker import FLOOR
from streamproxy.upstream.signing import KeySigner
from tests.contract.scenarios import KEY, Scenario
from tests.generation.test_driver import BOUND, Outcome, World, peer
from tests.golden.shapes import PICTURE, C, P
from tests.support.proxy import PROMPT

pytestmark = pytest.mark.anyio

COMPLETED: Final = "image_generation.completed"
GOOD: Final = sse((P, C))
CUT: Final = sse((P,), end=(Fin(),))
LIMITED: Final = error_answer(429, "Slow down.", headers=(("retry-after", "1"),))
REFUSED: Final = error_answer(400, "No.")


class Told(Outcome):
    """An outcome that also notes whose attempts it is of."""

    def __init__(self) -> None:
        super().__init__()
        self.tries: list[Attempt] = []
        self.fallen: list[bool] = []

    def begin(self, plan: Plan) -> Told:
        return self

    def tried(self, attempt: Attempt, before: Attempt | None = None) -> None:
        self.tries.append(attempt)

    def fell_over(self, provider: str, *, taken: bool) -> None:
        self.fallen.append(taken)

    async def complete(self) -> None:
        self.said.append("complete")


def attempts(world: World, *, adapters: object = ADAPTERS, side_by_side: bool = True) -> Attempts:
    return Attempts(adapters, world.outside, side_by_side)  # type: ignore[arg-type]


def plan(world: World, row: Scenario) -> Plan:
    route = world.route(row)
    service = Service(route.provider, world.upstream, CredentialSource("none", "", ""), False, ())
    return Plan(route, service, KeySigner((("authorization", f"Bearer {KEY}"),)), HeaderPolicy.load())


def one_each(n: int) -> Scenario:
    """A streamed request for n images to a host that streams one at a time."""
    return Scenario("openai", "previews", n=n)


async def run(world: World, row: Scenario) -> Told:
    """All jobs of the row's request, side by side."""
    outcome = Told()
    chosen = plan(world, row)
    single = replace(chosen.route, model=replace(chosen.route.model, max_stream_n=1))
    with anyio.fail_after(BOUND):
        try:
            await attempts(world).run(row.request, (replace(chosen, route=single),), outcome)
        except ProxyError as error:
            outcome.error = error
    return outcome


def images(outcome: Outcome) -> list[int]:
    """Indices of the completed images."""
    return sorted(frame.image for frame in outcome.frames if frame.final)


async def test_each_job_asks_for_its_own_image_once() -> None:
    async with peer(GOOD) as world:
        outcome = await run(world, one_each(3))
        assert (images(outcome), outcome.error) == ([0, 1, 2], None)
        assert (world.server.calls, outcome.requests) == (3, 3)
        assert all(b'"n":1' in received.body for received in world.server.received)


FAILURES: Final = {
    "one": ((GOOD, CUT, GOOD), 2, Failure.UPSTREAM_INCOMPLETE),
    "the charged one": ((LIMITED, CUT, REFUSED), 0, Failure.UPSTREAM_INCOMPLETE),
    "the charged one, last": ((REFUSED, REFUSED, CUT), 0, Failure.UPSTREAM_INCOMPLETE),
    "none charged": ((LIMITED, GOOD, LIMITED), 1, Failure.PROVIDER_LIMIT),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_a_failure_takes_no_other_image_with_it(name: str) -> None:
    scripts, made, failure = FAILURES[name]
    async with peer(*scripts) as world:
        outcome = await run(world, one_each(3))
        assert len(images(outcome)) == made
        assert len(set(images(outcome))) == made
        assert outcome.error is not None
        assert outcome.error.failure is failure
        assert world.server.calls == 3


async def test_a_failure_waits_for_the_images_beside_it() -> None:
    """The first job is refused at once, the second one still has its picture to come."""
    left = [sse((P, C), waits=(0, 0.2)), REFUSED]
    async with peer(handler=lambda _: left.pop()) as world:
        outcome = await run(world, one_each(2))
        assert len(images(outcome)) == 1
        assert outcome.error is not None
        assert outcome.error.failure is Failure.PROVIDER_REFUSED


async def test_a_cancellation_ends_all_jobs() -> None:
    async with peer((Stall(),)) as world, anyio.create_task_group() as tasks:
        tasks.start_soon(run, world, one_each(3))
        await world.server.wait_until(lambda server: server.calls == 3, BOUND)
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await world.server.wait_closed_connections(BOUND)
        assert world.server.calls == 3


async def test_one_job_makes_all_where_the_provider_does() -> None:
    answer = json_answer(200, b'{"created":1,"data":[{"b64_json":"%b"},{"b64_json":"%b"}]}' % (PICTURE, PICTURE))
    async with peer(answer) as world:
        row = replace(one_each(2), stream=False)
        outcome = await run(world, row)
        assert (outcome.error, world.server.calls) == (None, 1)
        assert outcome.said[-1] == "complete"


@pytest.mark.parametrize("stream", [True, False])
async def test_several_jobs_are_refused_unless_allowed(stream: bool) -> None:
    row = replace(one_each(2), adapter="openai" if stream else "gemini", stream=stream)
    async with peer(GOOD) as world:
        chosen = plan(world, row)
        single = replace(chosen, route=replace(chosen.route, model=replace(chosen.route.model, max_stream_n=1)))
        with pytest.raises(ProxyError) as refused:
            attempts(world, side_by_side=False).check(row.request, single)
        assert (refused.value.failure, refused.value.param) == (Failure.UNSUPPORTED_PARAMETER, "n")
        assert "stream_n" in refused.value.message
        attempts(world).check(row.request, single)
        attempts(world, side_by_side=False).check(replace(row.request, n=1), single)
        assert world.server.calls == 0


@dataclass(slots=True)
class Noting:
    """An adapter that makes two images a job, and notes the jobs that it is given."""

    jobs: list[Job] = field(default_factory=list)

    def at_once(self, request: ImageRequest, route: Route) -> int:
        return min(request.n, 2)

    def not_applied(self, job: Job) -> tuple[str, ...]:
        return ()

    def converse(self, job: Job) -> Conversation[None]:
        self.jobs.append(job)
        yield Accepted()
        yield Wait(0)
        for number in range(job.n):
            yield Frame(COMPLETED, (b"{}",), image=job.first + number, final=True)


async def test_jobs_cover_every_image_and_have_own_tokens() -> None:
    async with peer(GOOD) as world:
        adapter, row, outcome = Noting(), one_each(5), Told()
        await attempts(world, adapters={"openai": adapter}).run(row.request, (plan(world, row),), outcome)
        assert sorted((job.first, job.n, job.several) for job in adapter.jobs) == [
            (0, 2, True),
            (2, 2, True),
            (4, 1, True),
        ]
        assert len({job.token for job in adapter.jobs}) == 3
        assert images(outcome) == [0, 1, 2, 3, 4]
        assert world.server.calls == 0


class Broken(Noting):
    """An adapter with a mistake in some of its jobs."""

    def converse(self, job: Job) -> Conversation[None]:
        yield from Noting.converse(self, job)
        if job.first < 4:
            raise ZeroDivisionError(job.request.prompt)


async def test_a_mistake_takes_no_other_image_with_it() -> None:
    async with peer(GOOD) as world:
        row, outcome = one_each(5), Told()
        with pytest.raises(ExceptionGroup) as caught:
            await attempts(world, adapters={"openai": Broken()}).run(row.request, (plan(world, row),), outcome)
        assert images(outcome) == [0, 1, 2, 3, 4]
        with capture_logs() as logs:
            Observer().unexpected(caught.value, "req_1")
        assert [line["exception"] for line in logs] == ["ZeroDivisionError"] * 2
        line = inspect.getsourcelines(Broken.converse)[1] + 3
        assert {line["where"].rpartition("/")[2] for line in logs} == {f"test_attempts.py:{line}"}
        assert PROMPT not in repr(logs)


@asynccontextmanager
async def second(world: World) -> AsyncIterator[World]:
    """Another provider at the same server."""
    limits = Deadlines(connect=BOUND, first_byte=BOUND, idle=BOUND, total=BOUND, pool=BOUND)
    trust = default_ssl_context()
    other = Upstream(deadlines=limits, max_connections=4, ssl_context=trust, tolerated=lambda _: None)
    yield replace(world, upstream=other)
    await other.aclose()


async def fall_over(world: World, other: World, stage: Told) -> None:
    """One request with a plan at each of two providers."""
    row = one_each(1)
    with anyio.fail_after(BOUND):
        await attempts(world).run(row.request, (plan(world, row), plan(other, row)), stage)


async def test_a_spent_budget_leaves_the_failure() -> None:
    async with peer(LIMITED) as world, second(world) as other:
        while world.upstream.retries.take():
            pass
        stage = Told()
        with pytest.raises(ProxyError) as failed:
            await fall_over(world, other, stage)
        assert failed.value.failure is Failure.PROVIDER_LIMIT
        assert (stage.fallen, len(stage.tries), world.server.calls) == ([False], 1, 1)


async def test_a_fallback_adds_nothing_to_the_budget_there() -> None:
    """Otherwise a chain of providers that fail would send more at each of them."""
    async with peer(*[LIMITED, GOOD] * 6 * FLOOR) as world, second(world) as other:
        for _ in range(1000):
            world.upstream.retries.sent()
        for _ in range(6 * FLOOR):
            stage = Told()
            await fall_over(world, other, stage)
            assert [attempt.failure for attempt in stage.tries] == ["rate_limit_exceeded", None]
        assert [other.upstream.retries.take() for _ in range(FLOOR + 1)] == [True] * FLOOR + [False]


def _fetching(urls: Sequence[str]) -> Conversation[None]:
    yield Accepted()
    for url in urls:
        yield from fetch(url)


async def test_fetches_wait_for_each_other_within_bounds() -> None:
    """As many as there is room for are under way; the rest begin as these end."""
    async with peer((Stall(),)) as world, anyio.create_task_group() as tasks:
        room = anyio.CapacityLimiter(2)
        tight = replace(world, outside=replace(world.outside, fetching=room))
        for number in range(3):
            tasks.start_soon(tight.drive, _fetching([f"{world.server.url}/{number}.png"]))
        await world.server.wait_until(lambda server: server.calls == 2, BOUND)
        with anyio.fail_after(BOUND):
            while room.statistics().tasks_waiting < 1:  # noqa: ASYNC110 - a limiter has no event for it
                await anyio.sleep(0.005)
        assert world.server.calls == 2
        tasks.cancel_scope.cancel()
    assert room.borrowed_tokens == 0
