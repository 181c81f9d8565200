"""Fills a stream with a generation's frames, from its start to its end.

The producer runs in the app's task group. If the caller disconnects, the stream's policy decides whether it goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import anyio
from anyio.abc import TaskGroup

from streamproxy.account import Account, Attempt, Order, shown, told
from streamproxy.auth import ID_DIGITS
from streamproxy.core.completion import appended
from streamproxy.core.conversation import Progress
from streamproxy.core.events import Frame
from streamproxy.core.requests import ImageRequest
from streamproxy.errors import Failure, ProxyError
from streamproxy.generation.attempts import Attempts
from streamproxy.generation.results import Results
from streamproxy.generation.router import Plan
from streamproxy.generation.tabs import Tab
from streamproxy.hub.generation import Generation
from streamproxy.hub.hub import Hub
from streamproxy.hub.stream import Acceptance, Ending, Stream
from streamproxy.observe import Observer

FAIL_SECONDS: Final = 2.0
"""Seconds to store and deliver a stream's error event while the app stops."""


class Producer:
    """Starts generations. `tasks` is the app's task group: it outlives every request. `results` keep the pictures."""

    def __init__(
        self, *, attempts: Attempts, hub: Hub, observer: Observer, tasks: TaskGroup, results: Results | None = None
    ) -> None:
        self._attempts = attempts
        self._hub = hub
        self._observer = observer
        self._tasks = tasks
        self._results = results

    def start(
        self,
        request: ImageRequest,
        plans: Sequence[Plan],
        generation: Generation,
        tab: Tab,
        release: Callable[[], None],
    ) -> None:
        """Start the generation in the task group. Its frames go to its stream. `release` frees the request's files."""
        generation.stream.acceptance.not_applied = self._attempts.not_applied(request, plans[0])
        running = _Generating(
            request=request,
            plans=plans,
            generation=generation,
            account=Account(_order(generation.stream, plans[0])),
            tab=tab,
            hub=self._hub,
            observer=self._observer,
            attempts=self._attempts,
            results=self._results,
        )
        self._tasks.start_soon(self._produce, running, release)

    async def _produce(self, running: _Generating, release: Callable[[], None]) -> None:
        self._observer.streams(1)
        generation = running.generation
        try:
            with generation.scope:
                await self._attempts.run(running.request, running.plans, running)
            if generation.scope.cancelled_caught:
                await self._fail(generation, _stopped(generation))
        except ProxyError as error:
            _tell_attempts(error, running.account.tried)
            await self._fail(generation, error)
        except Exception as error:
            await self._fail(generation, self._observer.unexpected(error, generation.stream.request_id))
        except BaseException:  # the app has ended without a drain
            generation.stop(Ending.SHUTDOWN)
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + FAIL_SECONDS):
                await self._fail(generation, _stopped(generation))
            raise
        finally:
            release()
            running.account.fail(generation.stream.error, abandoned=generation.ending is Ending.ABANDONED)
            await running.complete()
            self._observer.generation(running.account)
            self._observer.streams(-1)

    async def _fail(self, generation: Generation, error: ProxyError) -> None:
        stream, acceptance = generation.stream, generation.stream.acceptance
        if stream.finished or generation.complete:
            return  # no frame may follow the last image's
        # A generation without readers was counted when its last reader left.
        unfollowed = error.failure is Failure.CANCELLED and generation.ending is not Ending.CANCELLED
        if acceptance.committed and not stream.pace.asked and not unfollowed:  # otherwise its caller's request tells
            self._observer.failure(error)
        if error.retryable and not acceptance.accepted:
            await self._hub.withdraw(stream.id, generation.names)
        await generation.fail(error)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Generating:
    """One generation while it runs, as its attempts see it, and what is counted of it."""

    request: ImageRequest
    plans: Sequence[Plan]
    generation: Generation
    account: Account
    tab: Tab
    hub: Hub
    observer: Observer
    attempts: Attempts
    results: Results | None

    @property
    def acceptance(self) -> Acceptance:
        return self.generation.stream.acceptance

    def begin(self, plan: Plan) -> _StreamSink:
        order = self.account.order
        if (order.provider, order.model) != (plan.route.provider.name, plan.model):
            self.account.order = replace(order, provider=plan.route.provider.name, model=plan.model)
            self.acceptance.not_applied = self.attempts.not_applied(self.request, plan)
        return _StreamSink(
            generation=self.generation,
            plan=plan,
            account=self.account,
            observer=self.observer,
            results=self.results,
            unheard=self.request.unheard,
        )

    def tried(self, attempt: Attempt, before: Attempt | None = None) -> None:
        tried = list(self.account.tried)
        if before is not None:
            tried.remove(before)
        self.account.tried = self.acceptance.tried = (*tried, attempt)

    def fell_over(self, provider: str, *, taken: bool) -> None:
        self.observer.fallback(provider, taken=taken)

    async def complete(self) -> None:
        await self.tab.close(self.account)  # before its caller has all, and may ask for the next one
        await self.hub.conclude(self.generation)


@dataclass(frozen=True, slots=True, kw_only=True)
class _StreamSink:
    """One generation's stream as the driver of one attempt sees it."""

    generation: Generation
    plan: Plan
    account: Account
    observer: Observer
    results: Results | None
    unheard: tuple[str, ...]

    @property
    def provider(self) -> str:
        return self.plan.route.provider.name

    @property
    def stream(self) -> Stream:
        return self.generation.stream

    def sent(self) -> None:
        self.account.attempts += 1
        self.observer.upstream(self.provider)

    def answered(self, headers: tuple[tuple[str, str], ...]) -> None:
        passed = self.plan.policy.relayable(headers)
        headers = tuple((name, value) for name, value in passed if self.plan.scrub(value) == value)
        self.stream.acceptance.headers = headers
        self.account.provider_request_id = dict(headers).get("x-request-id") or self.account.provider_request_id

    def accepted(self) -> None:
        self.stream.accept()

    def not_applied(self, names: tuple[str, ...]) -> None:
        self.stream.acceptance.not_applied = (*self.unheard, *names)

    async def frame(self, frame: Frame) -> None:
        self.observer.frame(frame.type)
        if frame.final and any(attempt.failure for attempt in self.account.tried):
            said = {"attempts": shown(self.account.tried)}  # for readers whose head was sent before
            frame = replace(frame, data=appended(frame.data, said))
        self.account.take(frame)
        if self.results is not None:  # first: a reader that is given the frame may ask for the picture's URL
            self.results.keep(self.stream.record, frame)
        await self.generation.append(frame)

    def job(self, id: str) -> None:
        self.observer.job(self.provider, self.plan.scrub(id), self.stream.request_id)

    def progress(self, step: Progress) -> None:
        before, self.stream.acceptance.progress = self.stream.acceptance.progress, step
        if step.known and (before is None or before.stage != step.stage):
            self.observer.progress(self.provider, step.known, self.stream.request_id)

    def tolerated(self, label: str) -> None:
        self.observer.tolerated(self.provider, label)


def _tell_attempts(error: ProxyError, tried: Sequence[Attempt]) -> None:
    """Put what led to the failure into its header, and if there were several attempts into its body too."""
    members = {**error.details.members, "attempts": shown(tried)} if len(tried) > 1 else error.details.members
    error.details = replace(error.details, attempts=told(tried), members=members)


def _order(stream: Stream, plan: Plan) -> Order:
    """What the account is of, without the name of an unknown model: that is in the caller's words."""
    return Order(
        stream_id=stream.id,
        request_id=stream.request_id,
        caller=plan.caller.label or (stream.record.owner and stream.record.owner[:ID_DIGITS]),
        provider=plan.route.provider.name,
        model=plan.model,
        n=stream.record.n,
        traceparent=dict(plan.trace).get("traceparent"),
    )


def _stopped(generation: Generation) -> ProxyError:
    """The failure of a cancelled generation, by the reason."""
    if generation.ending is Ending.SHUTDOWN:
        return ProxyError(Failure.SERVER_SHUTDOWN, "The proxy stopped before the generation had ended.")
    if generation.ending is Ending.SHED:
        return ProxyError(Failure.STREAM_SHED, "The proxy ran out of memory. The setting is memory_limit.")
    return ProxyError(Failure.CANCELLED, "The generation was cancelled.")
