"""One POST for images, from its checked fields to its answer.

plan, and all refusals that need no provider
a request that comes again: the stream that answers it already, else
a stream, a producer for it, and this caller as its first subscriber
answer: events, one JSON object, or 202 with where the stream is
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter

import anyio
from starlette.requests import Request
from starlette.types import ASGIApp

from streamproxy.auth import Right, owner_of
from streamproxy.core.catalogue import UNKNOWN
from streamproxy.core.completion import collected
from streamproxy.core.events import ANSWER, ERROR, read_error
from streamproxy.core.requests import ImageRequest
from streamproxy.core.sse import Piece
from streamproxy.errors import Failure, ProxyError
from streamproxy.generation.router import Plan
from streamproxy.hub.generation import OnDisconnect
from streamproxy.hub.log import Record
from streamproxy.hub.stream import Ending, Stream, Subscriber
from streamproxy.web.context import Context
from streamproxy.web.idempotency import fingerprint, idempotency_key, is_retry, names
from streamproxy.web.outcome import note_failure
from streamproxy.web.prefer import preferences
from streamproxy.web.responses import (
    NO_REFERRER,
    NOT_APPLIED,
    Answer,
    Delivery,
    EventStream,
    PaddedAnswer,
    Reader,
    json_response,
    posted,
    unfollowed,
    unless_gone,
)
from streamproxy.web.streams import status_of, urls


@dataclass(slots=True)
class Asked:
    """What a caller asks for. `release` frees the body's files: the producer's to call once it is `handed_over`."""

    wanted: ImageRequest
    release: Callable[[], None] = lambda: None
    handed_over: bool = False


@dataclass(frozen=True, slots=True)
class _Wish:
    """How the caller wants it: its Prefer header, whether this is a retry, its Idempotency-Key, and who it is."""

    owner: str | None
    key: str | None
    retry: bool
    later: bool
    policy: OnDisconnect
    applied: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Order:
    """One request, checked: what is wanted, how, and where it would go."""

    request: Request
    context: Context
    wanted: ImageRequest
    wish: _Wish
    plan: Plan


@dataclass(frozen=True, slots=True)
class _Reading:
    """A stream, and this caller's place in it until `leave`, which is told whether the caller has had all of it."""

    stream: Stream
    subscriber: Subscriber
    leave: Callable[[bool], None]


async def generate(request: Request, context: Context, asked: Asked) -> ASGIApp:
    """Answer the POST; raises ProxyError for all that is refused."""
    plan = context.router.plan(asked.wanted.model, request.scope["headers"])
    plan = plan.with_headers(asked.wanted.extra_headers, request.state.trace)
    request.state.provider = plan.route.provider.name
    request.state.model = None if plan.route.model.family == UNKNOWN else plan.route.model.id  # else it is their words
    wish = _wish(request, context, asked.wanted.model, plan)
    wanted = replace(asked.wanted, later=wish.later)
    context.attempts.check(asked.wanted, plan)
    order = _Order(request, context, wanted, wish, plan)
    record = Record(f"str_{uuid.uuid4().hex}", wish.owner, int(time.time()), order.wanted.n)
    called = names(wish.owner, wish.key, await fingerprint(request, wanted.body))
    if called.key is not None:
        earlier = await context.hub.keys.find(called.key, called.body, record.id)
    elif called.mark is not None:
        earlier = await context.hub.repeats.find(called.mark, record.id, retry=wish.retry)
    if earlier is not None:
        return await _attached(order, earlier, called.mark)
    try:
        context.hub.admission.admit(context.hub.running)
    except ProxyError:
        await context.hub.withdraw(record.id, called)
        raise
    generation = context.hub.prepare(record, request_id=request.state.request_id, policy=wish.policy, names=called)
    stream = generation.stream
    subscriber = stream.subscribe(asker=not wish.later)  # first: a request with the same key may come and leave soon
    await context.hub.register(generation)
    context.producer.start(order.wanted, plan, generation, asked.release)
    asked.handed_over = True
    unknown = called.key is None and not order.wanted.as_events

    def leave(had_all: bool) -> None:
        subscriber.leave()
        context.hub.repeats.leave(called.mark, stream.id, own=True, had_all=had_all)
        if had_all and unknown:
            context.hub.discard(stream)

    return await _respond(order, _Reading(stream, subscriber, leave))


def _wish(request: Request, context: Context, model: str, plan: Plan) -> _Wish:
    owner = owner_of(request.scope["headers"], context.settings.caller_keys)
    prefer = preferences(request)
    later = "respond-async" in prefer
    names = (plan.route.model.id, model)
    finish = later or any(name in context.settings.finish_models for name in names)
    applied = ["respond-async"] if later else []
    asked_policy = prefer.get("on-disconnect")
    if asked_policy in ("finish", "cancel"):
        finish = asked_policy == "finish"
        applied.append(f"on-disconnect={asked_policy}")
    policy = OnDisconnect.FINISH if finish else OnDisconnect.CANCEL
    return _Wish(owner, idempotency_key(request), is_retry(request), later, policy, tuple(applied))


async def _attached(order: _Order, stream: Stream, mark: str | None) -> ASGIApp:
    """The answer from the stream of an earlier request, with the same key or with the same mark."""
    hub = order.context.hub
    try:
        done = [entry for entry in stream.log.retained() if entry.critical]
        if stream.finished and all(entry.frame.type == ERROR for entry in done):
            raise read_error(done[-1].frame) if done else ProxyError(Failure.NO_IMAGE, "The provider sent no image.")
        subscriber = stream.subscribe()
        hub.admission.watch(stream, subscriber)
    except ProxyError:
        hub.repeats.leave(mark, stream.id, own=False, had_all=False)
        raise

    def leave(had_all: bool) -> None:
        hub.admission.unwatch(stream, subscriber)
        hub.repeats.leave(mark, stream.id, own=False, had_all=had_all)

    return await _respond(order, _Reading(stream, subscriber, leave))


async def _respond(order: _Order, reading: _Reading) -> ASGIApp:
    """The answer; `reading` is left with it, however it ends."""
    context, stream, subscriber = order.context, reading.stream, reading.subscriber
    left = partial(note_failure, order.request.scope)
    try:
        if not order.wanted.as_events:
            whole = await _whole(order, reading)
            return Delivery(whole, over=lambda sent: reading.leave(sent and subscriber.at_end), left=left)
        await _accepted(order, stream)
        if order.wish.later:
            return Delivery(_where(order, stream), over=reading.leave, left=left)
        headers = {**_headers(order, stream), "stream-id": stream.id, **_locations(order, stream)}
    except ProxyError as error:  # the stream's end, unless the caller is gone or it cannot be followed here any more
        reading.leave(error.failure not in (Failure.CALLER_GONE, Failure.OVERLOADED))
        raise
    except BaseException:
        reading.leave(False)
        raise
    reader = Reader(
        at_end=lambda: subscriber.at_end or stream.ending is Ending.LOST_CONTACT,
        left=partial(note_failure, order.request.scope),
        close=lambda: _closed(order, reading),
    )
    return EventStream(posted(subscriber, context.settings.heartbeat), headers, context.pace, reader)


def _closed(order: _Order, reading: _Reading) -> None:
    """The stream has been written to its caller, as far as it was."""
    if reading.stream.error is not None:
        note_failure(order.request.scope, reading.stream.error)
    reading.leave(reading.subscriber.at_end)


async def _whole(order: _Order, reading: _Reading) -> ASGIApp:
    """The JSON answer once it is there; after `json_heartbeat` one that begins without it."""
    gathering = _Gathering(reading.subscriber)
    interval = order.context.settings.json_heartbeat
    body = None
    with anyio.move_on_after(interval or None):
        body = await unless_gone(order.request.receive, gathering.result())
    headers = _headers(order, reading.stream)
    if body is not None:
        return Answer(200, "application/json", body, headers)
    reading.stream.commit()
    return PaddedAnswer(gathering.result, headers, interval=interval, request_id=order.request.state.request_id)


async def _accepted(order: _Order, stream: Stream) -> None:
    """Wait for the provider's head while a refusal can still be an HTTP status; raises that refusal."""
    if not stream.acceptance.committed:
        await unless_gone(order.request.receive, stream.opened(within=order.context.settings.commit_after))
        if stream.error is not None and not stream.acceptance.committed:
            raise stream.error
    stream.commit()


def _where(order: _Order, stream: Stream) -> Answer:
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
    applied = {"preference-applied": ", ".join(order.wish.applied)}
    return json_response(body, status=202, headers={**locations, **applied, "cache-control": "no-store"})


def _locations(order: _Order, stream: Stream) -> dict[str, str]:
    """Headers: the URL that follows the stream, and the one whose token also ends it."""
    places = urls(order.request, order.context, stream.id)
    ending = order.context.tokens.mint(stream.id, Right.ALL)
    return {"location": places.stream, "cancel-location": f"{places.base}?token={ending}", **NO_REFERRER}


class _Gathering:
    """The JSON answer of a stream: as the provider gave it, or what the stream's images amount to."""

    def __init__(self, subscriber: Subscriber) -> None:
        self._subscriber = subscriber
        self._images: list[tuple[int, bytes]] = []
        self._answer: tuple[Piece, ...] | None = None

    async def result(self) -> tuple[Piece, ...]:
        """Wait for it. Nothing is lost where a wait is given up and begun again."""
        stream = self._subscriber.stream
        while (entry := await self._subscriber.next()) is not None:
            if entry.frame.type == ERROR:
                raise stream.error or read_error(entry.frame)
            if entry.frame.type == ANSWER:
                self._answer = entry.frame.data
            elif entry.critical:
                self._images.append((entry.frame.image, b"".join(entry.frame.data)))
        if not self._subscriber.at_end:
            raise unfollowed()
        if self._answer is not None:
            return self._answer
        if not self._images:
            raise stream.error or ProxyError(Failure.NO_IMAGE, "The provider sent no image.")
        self._images.sort(key=itemgetter(0))
        return (collected([image for _, image in self._images], int(time.time())),)


def _headers(order: _Order, stream: Stream) -> dict[str, str]:
    """The provider's headers that pass, and what of the caller's wishes was applied and what not."""
    headers = dict(stream.acceptance.headers)
    if stream.acceptance.not_applied:
        headers[NOT_APPLIED] = ", ".join(stream.acceptance.not_applied)
    if order.wish.applied:
        headers["preference-applied"] = ", ".join(order.wish.applied)
    return headers
