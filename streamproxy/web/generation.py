"""One POST for images, from its checked fields to its response.

order         plan, and all refusals that need no provider
reading       the stream of an earlier request that this one repeats, else a new stream and a producer for it
response      events, one JSON object, or 202 with where the stream is
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Final

import anyio
from anyio import to_thread
from starlette.requests import Request
from starlette.types import ASGIApp

from streamproxy.account import told
from streamproxy.auth import Right, owner_of
from streamproxy.core.completion import collected
from streamproxy.core.events import ANSWER, ERROR, read_error
from streamproxy.core.requests import ImageRequest, Variation
from streamproxy.core.sse import Piece
from streamproxy.errors import Failure, ProxyError
from streamproxy.generation.router import Plan
from streamproxy.generation.tabs import Tab
from streamproxy.hub.generation import OnDisconnect
from streamproxy.hub.keys import Names
from streamproxy.hub.log import Record
from streamproxy.hub.outbox import Notice
from streamproxy.hub.stream import Ending, Stream, Subscriber, Versions
from streamproxy.surfaces.images import linked
from streamproxy.surfaces.variations import SERVED_AS
from streamproxy.surfaces.wire import Layout, Surface
from streamproxy.web.caller import unless_gone
from streamproxy.web.endpoint import Context
from streamproxy.web.headers import idempotency_key, is_retry, preferences, wait_seconds
from streamproxy.web.idempotency import fingerprint, names
from streamproxy.web.outcome import note_failure, note_generation
from streamproxy.web.previews import AS_THEY_COME, PreviewChoice, preview_choice
from streamproxy.web.responses import (
    ATTEMPTS,
    NO_REFERRER,
    NOT_APPLIED,
    Delivery,
    PaddedResponse,
    Reader,
    Response,
    json_response,
)
from streamproxy.web.streams import LOOK_AGAIN, absolute_base, image_urls, result_urls, status_of, urls
from streamproxy.web.uploads import at_hand
from streamproxy.web.webhooks import destination_of
from streamproxy.web.writing import EventStream, Posted, unfollowed, written

READ_HERE: Final = 4 * 1024 * 1024
"""Bytes of an answer that is read again at once, for its images' members: at 0.5 to 3 ms per MiB at most 12 ms."""


@dataclass(frozen=True, slots=True)
class _Preferences:
    """The caller's Prefer header, applied. `later`: the response is 202, unless the stream ends within `wait` seconds.

    `applied`: for Preference-Applied. `previews`: of the events, if it is events that are wanted.
    """

    later: bool
    wait: int
    policy: OnDisconnect
    applied: tuple[str, ...]
    previews: PreviewChoice


@dataclass(frozen=True, slots=True)
class _Order:
    """One request, checked: what is wanted, how, where it would go, and what it is known by.

    `webhook`: the URL that is told of its end. `missing`: an input image that is not there, or that the model does not
    take. An earlier stream answers the same request without it.
    """

    request: Request
    context: Context
    wanted: ImageRequest
    plans: tuple[Plan, ...]
    preferences: _Preferences
    owner: str | None
    names: Names
    webhook: str | None
    missing: ProxyError | None
    surface: Surface


async def generate(
    request: Request, context: Context, wanted: ImageRequest, files: ExitStack, surface: Surface
) -> ASGIApp:
    """The response to the POST, in its surface's wire. Raises ProxyError for all that is refused.

    `files` free what the body takes. They are the producer's as soon as there is one.
    """
    order = await _order(request, context, wanted, files, surface)
    record = Record(f"str_{uuid.uuid4().hex}", order.owner, int(time.time()), order.wanted.n)
    earlier = await _find_earlier(order, record.id)
    reading = await _begin(order, record, files) if earlier is None else _attach(order, earlier)
    return await _respond(order, reading)


async def _order(
    request: Request, context: Context, wanted: ImageRequest, files: ExitStack, surface: Surface
) -> _Order:
    choice = context.chooser.choose(wanted, request.scope["headers"], request.state.trace)
    plan = choice.first
    request.state.provider = plan.route.provider.name
    request.state.model = plan.model
    owner = owner_of(request.scope["headers"], context.callers)
    named = (plan.route.model.id, wanted.model)
    previews = preview_choice(request, context.settings, named) if wanted.stream else AS_THEY_COME
    key = idempotency_key(request)
    webhook = await destination_of(request, context.notifier, partial(absolute_base, request, context))
    finish = webhook is not None or any(name in context.settings.finish_models for name in named)
    preferred = _preferences(request, finish, previews)
    called = names(owner, key, await fingerprint(request, wanted.body))
    missing = None
    try:
        wanted = await at_hand(wanted, context, plan.route.provider, owner, files)
        choice = context.chooser.fitting(choice, wanted)
    except ProxyError as error:
        missing = error
    wanted = replace(wanted, later=preferred.later, names_model=choice.is_open)
    return _Order(request, context, wanted, choice.plans, preferred, owner, called, webhook, missing, surface)


def _preferences(request: Request, finish: bool, previews: PreviewChoice) -> _Preferences:
    """`finish`: the generation goes on without its caller, where the header does not say otherwise."""
    prefer = preferences(request)
    later = "respond-async" in prefer
    wait = wait_seconds(request) if later else None
    applied = ["respond-async"] if later else []
    if wait is not None:
        applied.append(f"wait={wait}")
    asked = prefer.get("on-disconnect")
    if asked in ("finish", "cancel"):
        applied.append(f"on-disconnect={asked}")
        finish = asked == "finish"
    else:
        finish = finish or later
    policy = OnDisconnect.FINISH if finish else OnDisconnect.CANCEL
    return _Preferences(later, wait or 0, policy, (*applied, *previews.applied), previews)


# The stream.


async def _find_earlier(order: _Order, id: str) -> Stream | None:
    """The stream of an earlier request that this one repeats. None: `id` is this request's own."""
    called, hub = order.names, order.context.hub
    if called.key is not None:
        return await hub.keys.find(called.key, called.body, id)
    if called.mark is not None:
        return await hub.repeats.find(called.mark, id, retry=is_retry(order.request))
    return None


async def _begin(order: _Order, record: Record, files: ExitStack) -> _Reading:
    """A new generation and its producer, and its caller as the first reader."""
    hub, preferred = order.context.hub, order.preferences
    try:
        tab = await _admitted(order, record)
    except ProxyError:
        await hub.withdraw(record.id, order.names)
        raise
    request_id: str = order.request.state.request_id
    generation = hub.prepare(record, request_id=request_id, policy=preferred.policy, names=order.names)
    # First: a repeated request may come and leave.
    subscriber = generation.stream.subscribe(asker=not preferred.later, versions=_versions(order))
    await hub.register(generation)
    note_generation(order.request.scope, generation.stream)
    order.context.producer.start(order.wanted, order.plans, generation, tab, files.pop_all().close)
    return _FirstReading(order, subscriber)


async def _admitted(order: _Order, record: Record) -> Tab:
    """What the generation is charged to; its webhook is promised. Raises ProxyError where it may not begin."""
    if order.missing is not None:
        raise order.missing
    hub, notice = order.context.hub, _notice(order, record)
    tab = await order.context.tabs.open(order.plans[0].caller, [plan.route for plan in order.plans], order.wanted.n)
    try:
        if notice is not None and hub.outbox is not None:
            await hub.outbox.put(notice)
        hub.admission.admit(hub.running)  # nothing is awaited from here to where it runs
    except ProxyError:
        await tab.withdraw()
        if notice is not None and hub.outbox is not None:
            await hub.outbox.drop(notice)
        raise
    return tab


def _notice(order: _Order, record: Record) -> Notice | None:
    """The order's webhook, if it has one."""
    if order.webhook is None:
        return None
    base, state = absolute_base(order.request, order.context, record.id), order.request.state
    return Notice(record.id, order.owner, order.webhook, base, state.provider, state.model)


def _attach(order: _Order, stream: Stream) -> _Reading:
    """This caller as a reader of the stream of an earlier request, with the same key or with the same mark."""
    hub = order.context.hub
    try:
        done = [entry for entry in stream.log.retained() if entry.critical]
        if stream.finished and all(entry.frame.type == ERROR for entry in done):
            raise read_error(done[-1].frame) if done else ProxyError(Failure.NO_IMAGE, "The provider sent no image.")
        subscriber = stream.subscribe(versions=_versions(order))
        hub.admission.watch(stream, subscriber)
    except ProxyError:
        hub.repeats.leave(order.names.mark, stream.id, own=False, had_all=False)
        raise
    return _RepeatReading(order, subscriber)


def _versions(order: _Order) -> Versions | None:
    return order.context.previews.versions(order.preferences.previews.form)


class _Reading(Reader, ABC):
    """The caller's place in the stream that answers it, until `leave`.

    It holds nothing of the order but what it needs: a response lasts longer than the request's body is needed.
    """

    def __init__(self, order: _Order, subscriber: Subscriber) -> None:
        self.stream = subscriber.stream
        self.subscriber = subscriber
        self._hub = order.context.hub
        self._mark = order.names.mark
        self._later = order.preferences.later
        self._scope = order.request.scope

    @property
    def at_end(self) -> bool:
        return self.subscriber.at_end or self.stream.ending is Ending.LOST_CONTACT

    def left(self, error: ProxyError) -> None:
        note_failure(self._scope, error)

    def close(self, *, sent: bool) -> None:
        """As Reader.close. A 202 is all that its caller waits for; others have all once they are at the end."""
        if self.stream.error is not None and not self._later:
            note_failure(self._scope, self.stream.error)
        self.leave(had_all=sent and (self._later or self.subscriber.at_end))

    @abstractmethod
    def leave(self, *, had_all: bool) -> None:
        """Leave the stream. `had_all`: the caller has its answer, and did not disconnect before."""


class _FirstReading(_Reading):
    """The place of the caller whose request began the stream."""

    def __init__(self, order: _Order, subscriber: Subscriber) -> None:
        super().__init__(order, subscriber)
        wanted = order.wanted
        known = order.names.key is not None or order.webhook is not None
        self._unknown = not known and not wanted.as_events and wanted.response_format != "url"

    def leave(self, *, had_all: bool) -> None:
        """As _Reading.leave. Where no other caller can know the stream, it is not kept."""
        self.subscriber.leave()
        self._hub.repeats.leave(self._mark, self.stream.id, own=True, had_all=had_all)
        if had_all and self._unknown:
            self._hub.discard(self.stream)


class _RepeatReading(_Reading):
    """The place of a caller whose request came again."""

    def leave(self, *, had_all: bool) -> None:
        self._hub.admission.unwatch(self.stream, self.subscriber)
        self._hub.repeats.leave(self._mark, self.stream.id, own=False, had_all=had_all)


# The response.


async def _respond(order: _Order, reading: _Reading) -> ASGIApp:
    """The response. `reading` is left with it, however it ends."""
    try:
        if not order.wanted.as_events:
            return Delivery(await _whole(order, reading), reading)
        await _accepted(order, reading.stream)
        if order.preferences.later and not await _ended(order, reading.stream):
            return Delivery(_where(order, reading.stream), reading)
        if not order.wanted.stream:
            return Delivery(await _whole(order, reading), reading)
        return _events(order, reading)
    except ProxyError as error:  # the stream's end, unless the caller is gone or it cannot be followed here any more
        reading.leave(had_all=error.failure not in (Failure.CALLER_GONE, Failure.OVERLOADED))
        raise
    except BaseException:
        reading.leave(had_all=False)
        raise


def _events(order: _Order, reading: _Reading) -> ASGIApp:
    """200: the stream, as it comes."""
    stream = reading.stream
    headers = {**_headers(order, stream), "stream-id": stream.id, **_locations(order, stream)}
    wire = _layout(order, stream)
    context = order.context
    layout = Posted(wire, _links(order, stream))
    content = written(reading.subscriber, layout, context.settings.heartbeat, context.observer)
    return EventStream(content, headers, order.context.cutoff, reading)


def _layout(order: _Order, stream: Stream) -> Layout:
    return order.surface.layout(stream.id, stream.record.created)


async def _whole(order: _Order, reading: _Reading) -> ASGIApp:
    """The JSON response once it is there; after `json_heartbeat` one that begins without it."""
    stream = reading.stream
    link = None
    if order.wanted.response_format == "url":
        link = partial(result_urls, order.request, order.context, stream)
    gathering = Gathering(reading.subscriber, _layout(order, stream), link)
    interval = order.context.settings.json_heartbeat
    body = None
    with suppress(TimeoutError):
        body = await unless_gone(order.request.receive, partial(gathering.result, interval or None))
    headers = _headers(order, reading.stream)
    if body is not None:
        return Response(200, "application/json", body, headers)
    reading.stream.commit()
    return PaddedResponse(gathering.result, headers, interval=interval, request_id=order.request.state.request_id)


async def _accepted(order: _Order, stream: Stream) -> None:
    """Wait for the provider's head while a refusal can still be an HTTP status; raises that refusal.

    A failure behind a completed picture is an event like any other: the picture has been paid for.
    """
    if not stream.acceptance.committed:
        opened = partial(stream.opened, within=order.context.settings.commit_after)
        await unless_gone(order.request.receive, opened)
        made = any(entry.critical and entry.frame.type not in (ERROR, ANSWER) for entry in stream.log.retained())
        if stream.error is not None and not stream.acceptance.committed and not made:
            raise stream.error
    stream.commit()


async def _ended(order: _Order, stream: Stream) -> bool:
    """Whether all images are there within the time that the caller prefers to wait."""
    await unless_gone(order.request.receive, partial(stream.ended, within=order.preferences.wait))
    return order.preferences.wait > 0 and stream.finished and stream.error is None


def _where(order: _Order, stream: Stream) -> Response:
    """202: where the stream is, in what forms, and what cancels it."""
    locations = _locations(order, stream)
    body = {
        "id": stream.id,
        "object": "image.stream",
        "status": status_of(stream),
        "stream_url": locations["location"],
        "status_url": urls(order.request, order.context, stream.id).status,
        "cancel_url": locations["cancel-location"],
        "expires_at": int(time.time() + order.context.settings.token_seconds),
    }
    applied = {"preference-applied": ", ".join(order.preferences.applied)}
    again = {"retry-after": LOOK_AGAIN, "cache-control": "no-store"}
    return json_response(body, status=202, headers={**locations, **applied, **again})


def _locations(order: _Order, stream: Stream) -> dict[str, str]:
    """Headers: the URL that follows the stream, and the one whose token also ends it."""
    places = urls(order.request, order.context, stream.id, previews=order.preferences.previews)
    ending = order.context.tokens.mint(stream.id, Right.ALL)
    return {"location": places.stream, "cancel-location": f"{places.base}?token={ending}", **NO_REFERRER}


def _links(order: _Order, stream: Stream) -> Callable[[int], str] | None:
    """The URL of each image, where the caller wants URLs."""
    if order.wanted.response_format != "url":
        return None
    return image_urls(order.request, order.context, stream.id)


class Gathering:
    """The JSON answer of a stream: as the provider gave it, or what the stream's images amount to.

    `layout` is the surface's; `link` gives the URLs of the images, where URLs are wanted.
    """

    def __init__(
        self, subscriber: Subscriber, layout: Layout, link: Callable[[], Awaitable[Callable[[int], str]]] | None
    ) -> None:
        self._subscriber = subscriber
        self._layout = layout
        self._link = link
        self._images: list[tuple[int, bytes]] = []
        self._sums: list[bytes] = []
        self._answer: tuple[Piece, ...] | None = None

    async def result(self, within: float | None = None) -> tuple[Piece, ...]:
        """Wait for it; raises TimeoutError after `within` seconds. Nothing is lost where it is waited for again.

        The clock is asked at each preview: a cancellation would not end a loop of waits that events keep awake.
        """
        stream = self._subscriber.stream
        until = None if within is None else anyio.current_time() + within
        while (entry := await self._subscriber.next(_left(until))) is not None:
            if entry.frame.type == ERROR:
                raise stream.error or read_error(entry.frame)
            if entry.frame.type == ANSWER:
                self._answer = entry.frame.data
            elif entry.frame.sums:
                self._sums.append(b"".join(entry.frame.data))
            elif entry.critical:
                self._images.append((entry.frame.image, b"".join(entry.frame.data)))
            if not entry.critical and _left(until) == 0:
                raise TimeoutError
        if not self._subscriber.at_end:
            raise unfollowed()
        if self._answer is not None:
            return await self._laid_out(await self._linked(self._answer, None))
        if not self._images:
            raise stream.error or ProxyError(Failure.NO_IMAGE, "The provider sent no image.")
        self._images.sort(key=itemgetter(0))
        answer = collected([image for _, image in self._images], int(time.time()), self._sums)
        return await self._laid_out(await self._linked((answer,), [index for index, _ in self._images]))

    async def _laid_out(self, answer: tuple[Piece, ...]) -> tuple[Piece, ...]:
        laying = partial(self._layout.answer, answer)
        return laying() if sum(map(len, answer)) <= READ_HERE else await to_thread.run_sync(laying)

    async def _linked(self, answer: tuple[Piece, ...], indices: Sequence[int] | None) -> tuple[Piece, ...]:
        """The answer as it is, or with URLs. `indices`: of its images; else they are what the provider listed."""
        if self._link is None:
            return answer
        link = await self._link()
        linking = partial(linked, answer, link if indices is None else lambda place: link(indices[place]))
        return linking() if sum(map(len, answer)) <= READ_HERE else await to_thread.run_sync(linking)


def _left(until: float | None) -> float | None:
    """Seconds until this time of the loop's clock."""
    return None if until is None else max(0.0, until - anyio.current_time())


def _headers(order: _Order, stream: Stream) -> dict[str, str]:
    """The provider's headers that pass, and what of the caller's preferences was applied and what not."""
    headers = dict(stream.acceptance.headers)
    if stream.acceptance.not_applied:
        headers[NOT_APPLIED] = ", ".join(stream.acceptance.not_applied)
    if stream.acceptance.tried:
        headers[ATTEMPTS] = told(stream.acceptance.tried)
    if order.wanted.variation is Variation.EDIT:
        headers[SERVED_AS] = Variation.EDIT.value
    if order.preferences.applied:
        headers["preference-applied"] = ", ".join(order.preferences.applied)
    return headers
