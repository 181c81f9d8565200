"""A request's attempts at its providers: one job, or one for each image where a provider makes one at a time.

    run(request, plans, stage)      every image, by the first plan that makes it

A job that fails falls over to the next plan if the request is not to blame (errors.Blame), nothing of the job can have
been charged, and the failed provider's budget for what is sent again is not spent. A caller may allow it where the job
may have been charged, as long as none of its images is complete. A provider whose breaker is open is passed over, and
one that has just answered 429 is asked last. Of several jobs each falls over by itself.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import anyio

from streamproxy.account import Attempt
from streamproxy.core.catalogue import Model
from streamproxy.core.conversation import Adapter, Job, Progress
from streamproxy.core.events import Frame
from streamproxy.core.images import NAMES
from streamproxy.core.requests import ImageRequest, Inline, Spooled
from streamproxy.errors import Blame, Failure, ProxyError
from streamproxy.generation.driver import Driver, Outside, Sink
from streamproxy.generation.router import Plan
from streamproxy.upstream.breaker import Turn


class Stage(Protocol):
    """Where a request's attempts are told of, and their frames go."""

    def begin(self, plan: Plan) -> Sink:
        """An attempt by this plan begins, and writes there."""
        ...

    def tried(self, attempt: Attempt, before: Attempt | None = None) -> None:
        """An attempt is accepted, or has failed. `before`: what has been told of it earlier."""
        ...

    def fell_over(self, provider: str, *, taken: bool) -> None:
        """A failure at this provider is one for the next plan, which is asked if the budget allows it (`taken`)."""
        ...

    async def complete(self) -> None:
        """Every image has its final frame."""
        ...


class _Watched:
    """An attempt's sink, and how far the attempt has come: `accepted`, and whether a picture is `given`."""

    def __init__(self, stage: Stage, plan: Plan, turn: Turn) -> None:
        self._stage = stage
        self._sink = stage.begin(plan)
        self._turn = turn
        self.attempt = Attempt(plan.route.provider.name, plan.model)
        self.is_accepted = False
        self.given = False

    def accepted(self) -> None:
        if not self.is_accepted:
            self.is_accepted = True
            self._turn.accepted()
            self._stage.tried(self.attempt)
        self._sink.accepted()

    async def frame(self, frame: Frame) -> None:
        self.given = self.given or frame.final
        await self._sink.frame(frame)

    def sent(self) -> None:
        self._sink.sent()

    def answered(self, headers: tuple[tuple[str, str], ...]) -> None:
        self._sink.answered(headers)

    def not_applied(self, names: tuple[str, ...]) -> None:
        self._sink.not_applied(names)

    def job(self, id: str) -> None:
        self._sink.job(id)

    def progress(self, step: Progress) -> None:
        self._sink.progress(step)

    def tolerated(self, label: str) -> None:
        self._sink.tolerated(label)


@dataclass(frozen=True, slots=True)
class _Work:
    """What all jobs of one request share."""

    request: ImageRequest
    stage: Stage


@dataclass(frozen=True, slots=True)
class _Failed:
    """How an attempt failed. `asked`: the provider was sent something; `given`: the caller has a picture of it."""

    error: ProxyError
    asked: bool
    given: bool


@dataclass(frozen=True, slots=True)
class Attempts:
    """Makes a request's jobs and carries them out. `adapters`: by the `adapter` of a provider's row."""

    adapters: Mapping[str, Adapter]
    outside: Outside
    side_by_side: bool
    """Whether a request for more images than one job makes becomes several jobs, each of which is charged."""

    def check(self, request: ImageRequest, plan: Plan) -> None:
        """Raise ProxyError where no job can be made, or where one job does not make all images and several may not."""
        self.not_applied(request, plan)  # it may raise, which must be before there is a stream
        if self.at_once(request, plan) < request.n and not self.side_by_side:
            what = "Streaming" if request.stream else "This model"
            raise ProxyError(
                Failure.UNSUPPORTED_PARAMETER,
                f"{what} is only supported with n=1. The setting stream_n sends n requests instead, each charged.",
                param="n",
            )

    def rehearse(self, request: ImageRequest, plan: Plan) -> None:
        """Raises ProxyError for what the adapter refuses before it sends anything."""
        conversation = self._adapter(plan).converse(self.job(request, plan, n=self.at_once(request, plan)))
        try:
            next(conversation, None)
        finally:
            conversation.close()

    def at_once(self, request: ImageRequest, plan: Plan) -> int:
        """How many of the request's images one job makes."""
        return self._adapter(plan).at_once(request, plan.route)

    def _adapter(self, plan: Plan) -> Adapter:
        return self.adapters[plan.route.provider.adapter]

    def job(self, request: ImageRequest, plan: Plan, *, n: int, first: int = 0) -> Job:
        """A job for `n` images of the request, the first of which has the index `first`."""
        return Job(
            request=request,
            route=plan.route,
            n=n,
            now=int(time.time()),
            token=secrets.token_hex(16),
            limits=self.outside.limits,
            scrub=plan.scrub,
            first=first,
            several=request.n > 1,
            callers_key=plan.service.credential.kind == "caller",
        )

    def not_applied(self, request: ImageRequest, plan: Plan) -> tuple[str, ...]:
        """The request's members that are not sent to this provider, as far as is known before it answers."""
        return (*request.unheard, *self._adapter(plan).not_applied(self.job(request, plan, n=request.n)))

    async def run(self, request: ImageRequest, plans: Sequence[Plan], stage: Stage) -> None:
        """Make all images. Raises ProxyError, with all attempts that it comes from."""
        await self._make(_Work(request, stage), range(request.n), sorted(plans, key=_rests))

    async def _make(self, work: _Work, images: range, plans: Sequence[Plan], *, again: bool = False) -> None:
        """Make the images of these indices. `again`: a provider has been asked for them before. Raises ProxyError."""
        charged = False
        for place, plan in enumerate(plans):
            at_once = self.at_once(work.request, plan)
            if at_once < len(images):
                shares = [images[first : first + at_once] for first in range(0, len(images), at_once)]
                await self._side_by_side(work, shares, plans[place:], again=again)
                return
            failed = await self._attempt(work, images, plan, again=again)
            if failed is None:
                return
            failed.error.charged = charged = charged or failed.error.charged
            if place + 1 == len(plans) or not _falls_over(work, plan, failed):
                raise failed.error
            again = again or failed.asked

    async def _side_by_side(self, work: _Work, shares: Sequence[range], plans: Sequence[Plan], *, again: bool) -> None:
        """Make the images by a job for each share. Raises ProxyError; an ExceptionGroup where jobs met anything else.

        One failure takes no other image with it. One that may have been charged decides about retries.
        """
        failures: list[ProxyError] = []
        unforeseen: list[Exception] = []

        async def one(share: range) -> None:
            try:
                await self._make(work, share, plans, again=again)
            except ProxyError as error:
                failures.append(error)
            except Exception as error:
                unforeseen.append(error)

        async with anyio.create_task_group() as tasks:
            for share in shares:
                tasks.start_soon(one, share)
        if unforeseen:
            raise ExceptionGroup("jobs of one request", unforeseen)
        if failures:  # the other images stay; if one failure may have been charged, the request must not be repeated
            raise next((error for error in failures if not error.retryable), failures[0])

    async def _attempt(self, work: _Work, images: range, plan: Plan, *, again: bool) -> _Failed | None:
        """One job by one plan; how it failed, if it did."""
        sink: _Watched | None = None
        try:
            with plan.service.breaker.attempt() as turn:
                sink = _Watched(work.stage, plan, turn)
                if not again:
                    plan.service.upstream.retries.sent()
                job = self.job(work.request, plan, n=len(images), first=images.start)
                async with Driver(plan, self.outside, sink) as driver:
                    await driver.carry_out(self._adapter(plan).converse(job))
                    if len(images) == work.request.n:
                        await work.stage.complete()  # while the connection is made ready for the next request
            return None
        except ProxyError as error:
            attempt = Attempt(plan.route.provider.name, plan.model, error.failure.value.code)
            work.stage.tried(attempt, sink.attempt if sink is not None and sink.is_accepted else None)
            return _Failed(error, asked=sink is not None, given=sink is not None and sink.given)


def _rests(plan: Plan) -> bool:
    """Whether the plan is the last to try. A limit of one caller's own key is no other caller's."""
    return plan.service.credential.kind != "caller" and plan.service.breaker.rests


def _falls_over(work: _Work, plan: Plan, failed: _Failed) -> bool:
    """Whether the next plan is asked."""
    error = failed.error
    after_charge = work.request.fallback_after_charge and not failed.given
    if error.blame is Blame.REQUEST or (error.charged and not after_charge):
        return False
    taken = not failed.asked or plan.service.upstream.retries.take()
    work.stage.fell_over(plan.route.provider.name, taken=taken)
    return taken


def check_inputs(request: ImageRequest, model: Model) -> None:
    """Raises ProxyError(UNREADABLE_IMAGE), with the kind's name, for an image of a kind that the model does not take.

    Images that are not here yet are not looked at.
    """
    takes = {f"image/{kind}" for kind in model.inputs}
    masks = [("mask", request.mask)] if request.mask is not None else []
    for param, image in [*(("image", image) for image in request.images), *masks]:
        kind = image.media_type if isinstance(image, Inline | Spooled) else ""
        if takes and kind in NAMES and kind not in takes:
            names = ", ".join(model.inputs)
            message = f"The {param} is {NAMES[kind]}, which {model.id} does not take. Send one of {names}."
            raise ProxyError(Failure.UNREADABLE_IMAGE, message, param=param)
