"""The driver against a real peer on the loopback: its requests, the ends of conversations, and that nothing is left.

Conversations are the adapters' own where the wire matters, and a few steps written here otherwise.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import anyio
import pytest

from streamproxy.auth import CredentialSource
from streamproxy.core.catalogue import Route
from streamproxy.core.conversation import (
    Accepted,
    Conversation,
    Job,
    Launch,
    Limits,
    Picture,
    Progress,
    Undo,
    Wait,
    body,
    fetch,
    get,
    join,
    next_event,
    send,
)
from streamproxy.core.events import Frame
from streamproxy.core.headers import HeaderPolicy
from streamproxy.core.requests import UpstreamRequest
from streamproxy.errors import Failure, ProxyError
from streamproxy.generation.driver import Driver, Outside
from streamproxy.generation.router import Plan, Service
from streamproxy.providers import ADAPTERS
from streamproxy.simulator.received import Handler, Received
from streamproxy.simulator.script import Fin, Script, Send, Stall, chunk, error_answer, head, json_answer, sse
from streamproxy.simulator.script import Wait as Delay
from streamproxy.simulator.server import Server, serve
from streamproxy.upstream import Deadlines, Upstream, default_ssl_context
from streamproxy.upstream.fetch import Fetcher, FetchLimits
from streamproxy.upstream.signing import KeySigner
from tests.contract.scenarios import KEY, SCENARIOS, Scenario
from tests.golden.shapes import PICTURE, C, P
from tests.support.proxy import no_leaks

pytestmark = pytest.mark.anyio

BOUND = 10.0
LONG = 2 * BOUND
SHORT = 0.2
PREVIEW, COMPLETED = "image_generation.partial_image", "image_generation.completed"
PLAIN = Scenario("openai", "previews")
REFUSES_STREAM = error_answer(400, "Unknown parameter: 'stream'.", param="stream", code="unknown_parameter")
JSON_ANSWER = json_answer(200, b'{"created":1,"data":[{"b64_json":"' + PICTURE + b'"}]}')
STEP = Frame(PREVIEW, (b"{}",))


@dataclass(slots=True)
class Outcome:
    """A sink that notes everything, and wakes tasks that wait for the first frame."""

    frames: list[Frame] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    headers: tuple[tuple[str, str], ...] = ()
    error: ProxyError | None = None
    requests: int = 0
    begun: anyio.Event = field(default_factory=anyio.Event)

    @property
    def types(self) -> list[str]:
        return [frame.type for frame in self.frames]

    def sent(self) -> None:
        self.requests += 1

    def answered(self, headers: tuple[tuple[str, str], ...]) -> None:
        self.headers = headers

    def accepted(self) -> None:
        self.said.append("accepted")

    def not_applied(self, names: tuple[str, ...]) -> None:
        self.said.append(f"not applied: {', '.join(names)}")

    async def frame(self, frame: Frame) -> None:
        self.frames.append(frame)
        self.begun.set()

    def job(self, id: str) -> None:
        self.said.append(f"job {id}")

    def progress(self, step: Progress) -> None:
        self.said.append(f"progress {step.fraction}")

    def tolerated(self, label: str) -> None:
        self.said.append(label)


@dataclass(frozen=True, slots=True)
class World:
    """One provider on the loopback, and what drives conversations with it."""

    server: Server
    upstream: Upstream
    outside: Outside

    def route(self, scenario: Scenario) -> Route:
        """The scenario's route, but to this provider."""
        route = scenario.route
        path = route.provider.base_url.split("/", 3)[3:]
        return replace(route, provider=replace(route.provider, base_url="/".join((self.server.url, *path))))

    def job(self, scenario: Scenario) -> Job:
        return replace(scenario.job, route=self.route(scenario))

    def request(self, path: str, method: str = "GET") -> UpstreamRequest:
        return replace(get(f"{self.server.url}{path}"), method=method)

    async def drive(
        self, conversation: Conversation[None], scenario: Scenario = PLAIN, outcome: Outcome | None = None
    ) -> Outcome:
        """Perform a conversation, and note its end."""
        outcome = outcome or Outcome()
        route = self.route(scenario)
        service = Service(route.provider, self.upstream, CredentialSource("none", "", ""), False, ())
        plan = Plan(route, service, KeySigner((("authorization", f"Bearer {KEY}"),)), HeaderPolicy.load())
        with anyio.fail_after(BOUND):
            try:
                async with Driver(plan, self.outside, outcome) as driver:
                    await driver.carry_out(conversation)
            except ProxyError as error:
                outcome.error = error
        return outcome

    async def generate(self, scenario: Scenario = PLAIN) -> Outcome:
        """Carry out what the scenario's adapter does."""
        return await self.drive(ADAPTERS[scenario.adapter].converse(self.job(scenario)), scenario)


@asynccontextmanager
async def peer(
    *scripts: Script,
    handler: Handler | None = None,
    first_byte: float = BOUND,
    idle: float = BOUND,
    total: float = LONG,
) -> AsyncIterator[World]:
    """A provider that plays these scripts in order, the last one for good; nothing is left of it afterwards."""
    left = list(scripts)
    play = handler or (lambda _: left.pop(0) if len(left) > 1 else left[0])
    trust = default_ssl_context()
    async with no_leaks(), serve(play) as server:
        deadlines = Deadlines(connect=BOUND, first_byte=first_byte, idle=idle, total=total, pool=BOUND)
        upstream = Upstream(deadlines=deadlines, max_connections=4, ssl_context=trust, tolerated=lambda _: None)
        fetcher = Fetcher(hosts=("127.0.0.1",), ssl_context=trust, limits=FetchLimits(pause=SHORT / 10))
        yield World(server, upstream, Outside(fetcher, Limits(1_000_000, 1_000_000), total, BOUND, trust))
        await fetcher.aclose()
        await upstream.aclose()


def keys(server: Server) -> list[str | None]:
    """The credential of each request, in order."""
    return [received.header("authorization") for received in server.received]


def asked(server: Server) -> list[str]:
    return [f"{received.method} {received.target}" for received in server.received]


async def test_a_generation_is_one_call_with_the_credential_once() -> None:
    async with peer(sse((P, C))) as world:
        outcome = await world.generate()
        assert (outcome.types, outcome.error) == ([PREVIEW, COMPLETED], None)
        assert outcome.said == ["accepted"]
        assert (world.server.calls, outcome.requests) == (1, 1)
        names = [name.lower() for name, _ in world.server.received[0].headers]
        assert (keys(world.server), names.count("authorization")) == ([f"Bearer {KEY}"], 1)
        assert dict(outcome.headers)["server"] == "streamproxy-simulator"


async def test_the_connection_of_a_whole_answer_is_used_again() -> None:
    async with peer(sse((P, C))) as world:
        for _ in range(3):
            assert (await world.generate()).error is None
        assert (world.server.calls, world.server.connections) == (3, 1)


@pytest.mark.parametrize("end", [(Stall(),), (Send(chunk(b": bye" * 100)), Stall())], ids=["silence", "more"])
async def test_what_follows_the_last_image_costs_no_image(end: Script) -> None:
    async with peer(sse((P, C), end=end)) as world:
        outcome = await world.generate()
        assert (outcome.types, outcome.error) == ([PREVIEW, COMPLETED], None)
        assert outcome.said == ["accepted", "stream_trailing"]
        await world.server.wait_closed_connections(BOUND)


async def test_a_refusal_is_neither_accepted_nor_charged() -> None:
    async with peer(error_answer(400, "No.")) as world:
        outcome = await world.generate()
        assert outcome.error is not None
        assert (outcome.error.failure, outcome.error.status) == (Failure.PROVIDER_REFUSED, 400)
        assert (outcome.error.charged, outcome.said, outcome.headers) == (False, [], ())
        assert world.server.calls == 1


async def test_a_failure_after_acceptance_may_have_been_charged() -> None:
    """Even where its own row says that it cannot: the job was submitted, a look at it is refused."""

    def submitted(world: World) -> Conversation[None]:
        yield from send(world.request("/jobs", "POST"))
        yield Accepted()
        raise ProxyError(Failure.PROVIDER_REFUSED, "No such job.")

    async with peer(sse((P,), end=(Fin(),)), json_answer(200, {})) as world:
        outcome = await world.generate()
        assert outcome.error is not None
        assert (outcome.types, outcome.error.failure) == ([PREVIEW], Failure.UPSTREAM_INCOMPLETE)
        outcome = await world.drive(submitted(world))
        assert outcome.error is not None
        assert (outcome.error.failure, outcome.error.charged) == (Failure.PROVIDER_REFUSED, True)
        assert world.server.calls == 2


async def test_only_a_refusal_of_streaming_is_tried_again() -> None:
    async with peer(REFUSES_STREAM, JSON_ANSWER) as world:
        outcome = await world.generate()
        assert (outcome.types, outcome.error) == ([COMPLETED], None)
        assert [b'"stream"' in received.body for received in world.server.received] == [True, False]
        assert outcome.said == ["not applied: partial_images", "accepted"]
    async with peer(REFUSES_STREAM) as world:
        outcome = await world.generate()
        assert outcome.error is not None
        assert (outcome.error.failure, world.server.calls) == (Failure.PROVIDER_REFUSED, 2)


REFUSALS = [
    row for row in SCENARIOS if row.failure and row.proof is None and len(row.exchanges) == 1 and "cut" not in row.name
]


def _refusal(scenario: Scenario, *, pause: float) -> Script:
    """The recorded refusal, with time between its head and its body, or in one packet."""
    [exchange] = scenario.exchanges
    top = head(exchange.head.status, exchange.head.items, length=len(exchange.body))
    return (Send(top), Delay(pause), Send(exchange.body)) if pause else (Send(top + exchange.body),)


@pytest.mark.parametrize("scenario", REFUSALS, ids=str)
async def test_a_refusal_is_the_same_in_one_packet_and_in_two(scenario: Scenario) -> None:
    errors: list[object] = []
    for pause in (0.0, 0.05):
        async with peer(_refusal(scenario, pause=pause)) as world:
            outcome = await world.generate(scenario)
            assert outcome.error is not None
            assert (outcome.frames, outcome.said, world.server.calls) == ([], [], 1)
            error = outcome.error
            errors.append((error.failure, error.status, error.code, error.message, error.charged, error.retry_after))
    assert errors[0] == errors[1]
    assert errors[0][0] is scenario.failure  # type: ignore[index]


async def test_each_deadline_ends_in_its_own_failure() -> None:
    started = sse((P,), end=(Stall(),))
    trickle = sse((P,), end=tuple(step for _ in range(500) for step in (Delay(SHORT / 8), Send(chunk(b": ping\n\n")))))
    cases: tuple[tuple[Script, float, float, float, Failure], ...] = (
        ((Stall(),), SHORT, BOUND, LONG, Failure.FIRST_BYTE_TIMEOUT),
        (started, BOUND, SHORT, LONG, Failure.IDLE_TIMEOUT),
        (started, BOUND, BOUND, SHORT, Failure.DEADLINE),
        (trickle, BOUND, BOUND, 2 * SHORT, Failure.DEADLINE),
    )
    for script, first_byte, idle, total, failure in cases:
        async with peer(script, first_byte=first_byte, idle=idle, total=total) as world:
            outcome = await world.generate()
            assert outcome.error is not None
            assert (outcome.error.failure, outcome.error.charged, world.server.calls) == (failure, True, 1)
            await world.server.wait_closed_connections(BOUND)


async def test_a_pause_beyond_the_deadline_is_not_begun() -> None:
    def waiting(world: World) -> Conversation[None]:
        yield from send(world.request("/jobs", "POST"))
        yield Accepted()
        yield Undo(world.request("/jobs/1/cancel", "PUT"))
        yield Wait(BOUND)

    async with peer(json_answer(200, {}), total=BOUND / 2) as world:
        started = anyio.current_time()
        outcome = await world.drive(waiting(world))
        assert anyio.current_time() - started < BOUND / 4
        assert outcome.error is not None
        assert outcome.error.failure is Failure.DEADLINE
        assert asked(world.server) == ["POST /jobs", "PUT /jobs/1/cancel"]


@dataclass(slots=True)
class Closed:
    """Whether a conversation was closed, rather than left to the garbage collector."""

    said: bool = False


def _working(world: World, closed: Closed, undo: UpstreamRequest | None) -> Conversation[None]:
    """One answer is open and does not end; earlier an Undo was given, and perhaps taken back."""
    try:
        yield from send(world.request("/jobs", "POST"))
        yield from body(1000)
        yield Accepted()
        yield Undo(world.request("/jobs/1/cancel", "PUT"))
        if undo is None:
            yield Undo(None)
        yield from send(world.request("/jobs/1/events"))
        yield STEP
        while (yield from next_event()) is not None:
            pass
    finally:
        closed.said = True


def _jobs(received: Received) -> Script:
    return sse((P,), end=(Stall(),)) if received.target.endswith("events") else json_answer(200, {})


@pytest.mark.parametrize("undone", [True, False])
async def test_a_cancellation_closes_and_tells_the_provider_once(undone: bool) -> None:
    async with peer(handler=_jobs) as world, anyio.create_task_group() as tasks:
        closed, outcome = Closed(), Outcome()
        conversation = _working(world, closed, world.request("/") if undone else None)
        tasks.start_soon(world.drive, conversation, PLAIN, outcome)
        with anyio.fail_after(BOUND):
            await outcome.begun.wait()
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await world.server.wait_until(lambda server: server.calls == 2 + undone, BOUND)
            await world.server.wait_until(lambda server: server.open_connections <= undone, BOUND)
        assert asked(world.server)[2:] == (["PUT /jobs/1/cancel"] if undone else [])
        assert set(keys(world.server)) == {f"Bearer {KEY}"}
    assert closed.said


@pytest.mark.parametrize("script", [(Stall(),), sse((P,), end=(Stall(),)), sse((P,), end=(Delay(BOUND),))])
async def test_a_cancellation_at_any_moment_closes_the_connection(script: Script) -> None:
    async with peer(script) as world, anyio.create_task_group() as tasks:
        tasks.start_soon(world.generate)
        await world.server.wait_until(lambda server: server.calls == 1, BOUND)
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await world.server.wait_closed_connections(BOUND)
        assert world.server.calls == 1


async def test_a_silent_provider_cannot_delay_a_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamproxy.generation.driver.UNDO_SECONDS", SHORT)

    def deaf(received: Received) -> Script:
        return (Stall(),) if received.method == "PUT" else _jobs(received)

    async with peer(handler=deaf) as world:
        outcome = Outcome()
        with anyio.fail_after(BOUND / 2):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(world.drive, _working(world, Closed(), world.request("/")), PLAIN, outcome)
                await outcome.begun.wait()
                tasks.cancel_scope.cancel()
        await world.server.wait_closed_connections(BOUND)
        assert asked(world.server)[-1] == "PUT /jobs/1/cancel"


async def test_a_credential_goes_to_no_other_host() -> None:
    def elsewhere(url: str) -> Conversation[None]:
        yield from send(get(url))

    def fetching(world: World, found: list[Picture]) -> Conversation[None]:
        yield Accepted()
        found.append((yield from fetch(f"{world.server.url}/missing.png")))
        found.append((yield from fetch("http://10.0.0.1/a.png")))

    async with peer(json_answer(410, {})) as world:
        for url in (world.server.url.replace("127.0.0.1", "localhost"), "https://foreign.test", "http://127.0.0.1:1"):
            outcome = await world.drive(elsewhere(f"{url}/a"))
            assert outcome.error is not None
            assert outcome.error.failure is Failure.FOREIGN_HOST
        assert world.server.calls == 0
        found: list[Picture] = []
        outcome = await world.drive(fetching(world, found))
        assert (outcome.error, set(keys(world.server))) == (None, {None})
        assert outcome.said == ["accepted", "fetch_fail", "ssrf_block"]
        assert [picture.url for picture in found] == [f"{world.server.url}/missing.png", "http://10.0.0.1/a.png"]


async def test_each_exchange_closes_the_one_before() -> None:
    def two(world: World) -> Conversation[None]:
        for path in ("/1/events", "/2/events"):
            yield from send(world.request(path))
            yield from next_event()
        yield STEP
        yield Wait(BOUND)

    async with peer(handler=_jobs) as world, anyio.create_task_group() as tasks:
        outcome = Outcome()
        tasks.start_soon(world.drive, two(world), PLAIN, outcome)
        with anyio.fail_after(BOUND):
            await outcome.begun.wait()
        await world.server.wait_until(lambda server: server.open_connections == 1, BOUND)
        assert asked(world.server) == ["GET /1/events", "GET /2/events"]
        tasks.cancel_scope.cancel()


def _misused() -> Iterator[Conversation[None]]:
    def unsent() -> Conversation[None]:
        yield from body(1)

    def early() -> Conversation[None]:
        yield from next_event()

    yield from (unsent(), early())


async def test_an_unexpected_answer_is_an_internal_error() -> None:
    async with peer(json_answer(200, {})) as world:
        for conversation in _misused():
            outcome = await world.drive(conversation)
            assert outcome.error is not None
            assert outcome.error.failure is Failure.INTERNAL


def _launched(world: World, looks: list[int]) -> Conversation[None]:
    yield Launch(world.request("/long", "POST"))
    while (head := (yield from join(0.01))) is None:
        yield from send(world.request("/look"))
        yield from body(1 << 20)
        looks.append(len(looks))
    yield Accepted()
    assert head.status == 200
    assert (yield from body(1 << 20)) == b"made"
    yield STEP


async def test_others_are_asked_while_a_launched_request_runs() -> None:
    """Its answer comes once three others have been given."""
    looked = anyio.Event()

    async def handler(received: Received) -> Script:
        if received.target == "/long":
            await looked.wait()
            return (Send(head(200, length=4)), Send(b"made"))
        if sum(got.target == "/look" for got in world.server.received) == 3:
            looked.set()
        return json_answer(200, {})

    async with peer(handler=handler) as world:
        looks: list[int] = []
        outcome = await world.drive(_launched(world, looks))
        assert (outcome.error, outcome.frames, len(looks) >= 3) == (None, [STEP], True)
        assert [target for target in asked(world.server) if "long" in target] == ["POST /long"]


@pytest.mark.parametrize("end", [Fin(), Stall()])
async def test_a_launched_request_that_fails_or_is_left(end: Fin | Stall) -> None:
    def handler(received: Received) -> Script:
        return (end,) if received.target == "/long" else json_answer(200, {})

    async with peer(handler=handler) as world, anyio.create_task_group() as tasks:
        looks: list[int] = []
        if isinstance(end, Fin):
            outcome = await world.drive(_launched(world, looks))
            assert outcome.error is not None
            assert (outcome.error.failure, outcome.frames) == (Failure.CONNECTION_TERMINATED, [])
        else:
            tasks.start_soon(world.drive, _launched(world, looks))
            await world.server.wait_until(lambda server: server.calls >= 3, BOUND)
            tasks.cancel_scope.cancel()
    assert world.server.calls >= 1
