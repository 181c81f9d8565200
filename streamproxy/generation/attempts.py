"""A request's attempt at a provider: one job, or one for each image where the provider makes one at a time."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass

import anyio

from streamproxy.core.catalogue import Model
from streamproxy.core.conversation import Adapter, Job
from streamproxy.core.images import NAMES
from streamproxy.core.requests import ImageRequest, Inline, Spooled
from streamproxy.errors import Failure, ProxyError
from streamproxy.generation.driver import Driver, Outside, Sink
from streamproxy.generation.router import Plan


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
        if self._at_once(request, plan) < request.n and not self.side_by_side:
            what = "Streaming" if request.stream else "This model"
            raise ProxyError(
                Failure.UNSUPPORTED_PARAMETER,
                f"{what} is only supported with n=1. The setting stream_n sends n requests instead, each charged.",
                param="n",
            )

    def _at_once(self, request: ImageRequest, plan: Plan) -> int:
        return self.adapters[plan.route.provider.adapter].at_once(request, plan.route)

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
        adapter = self.adapters[plan.route.provider.adapter]
        return (*request.unheard, *adapter.not_applied(self.job(request, plan, n=request.n)))

    async def run(self, request: ImageRequest, plan: Plan, sink: Sink) -> None:
        """Make all images. Raises ProxyError; an ExceptionGroup where several jobs met anything else."""
        at_once = self._at_once(request, plan)
        if at_once >= request.n:
            async with Driver(plan, self.outside, sink) as driver:
                await self._carry_out(driver, self.job(request, plan, n=request.n))
                await sink.complete()  # while the connection is made ready for the next request
            return
        failures: list[ProxyError] = []
        unforeseen: list[Exception] = []

        async def one(first: int) -> None:
            try:
                job = self.job(request, plan, n=min(at_once, request.n - first), first=first)
                async with Driver(plan, self.outside, sink) as driver:
                    await self._carry_out(driver, job)
            except ProxyError as error:
                failures.append(error)
            except Exception as error:
                unforeseen.append(error)

        async with anyio.create_task_group() as tasks:
            for first in range(0, request.n, at_once):
                tasks.start_soon(one, first)
        if unforeseen:
            raise ExceptionGroup("jobs of one request", unforeseen)
        if failures:  # the other images stay; if one failure may have been charged, the request must not be repeated
            raise next((error for error in failures if not error.retryable), failures[0])

    async def _carry_out(self, driver: Driver, job: Job) -> None:
        await driver.carry_out(self.adapters[job.provider.adapter].converse(job))


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
