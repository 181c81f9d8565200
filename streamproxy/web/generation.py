"""One POST for images, from its checked fields to its answer.

plan, and all refusals that need no provider
Idempotency-Key: the stream that answers this request already, else
a stream, a producer for it, and this caller as its first subscriber
answer: events, one JSON object, or 202 with where the stream is
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import anyio
from starlette.requests import Request
from starlette.types import ASGIApp

from streamproxy.auth import owner_of
from streamproxy.core.events import ANSWER, ERROR, Operation, read_error
from streamproxy.core.fields import Fields
from streamproxy.core.jsonbody import JsonObject
from streamproxy.core.requests import ImageRequest, Part
from streamproxy.core.sse import Piece
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.hub import OnDisconnect
from streamproxy.hub.stream import Stream, Subscriber
from streamproxy.providers.openai_answers import collected
from streamproxy.relay import Plan
from streamproxy.web.context import Context
from streamproxy.web.idempotency import fingerprint, idempotency_key
from streamproxy.web.outcome import note_failure
from streamproxy.web.prefer import preferences
from streamproxy.web.responses import NOT_APPLIED, Answer, EventStream, Reader, json_response, posted, unfollowed
from streamproxy.web.streams import status_of

Result = TypeVar("Result")

_UNSTREAMED_FORMATS = ("gif", "svg")
"""Output formats that the GPT image models refuse to stream (openai-python 3.52, ImageGenerateParams)."""

CLAIM_SECONDS = 2.0
"""How long a repeated request waits for the stream of the first to appear: another replica may be creating it."""


@dataclass(slots=True)
class Asked:
    """What a caller asks for. `release` frees the body's files: the producer's to call once it is `handed_over`."""

    fields: Fields
    body: JsonObject | tuple[Part, ...]
    via_generations: bool = False
    release: Callable[[], None] = lambda: None
    handed_over: bool = False


@dataclass(frozen=True, slots=True)
class _Wish:
    """How the caller wants it: its Prefer header, its key, and who it is."""

    owner: str | None
    key: str | None
    later: bool
    policy: OnDisconnect
    applied: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Reading:
    """A stream, and this caller's place in it until `leave`."""

    stream: Stream
    subscriber: Subscriber
    leave: Callable[[], None]


async def generate(request: Request, context: Context, asked: Asked) -> ASGIApp:
    """Answer the POST; raises ProxyError for all that is refused."""
    plan = context.relay.plan(asked.fields.model, request.scope["headers"])
    wish = _wish(request, context, asked, plan)
    wanted = _request(context, asked, plan, wish, request.state.trace)
    stream = Stream(
        f"str_{uuid.uuid4().hex}",
        request_id=request.state.request_id,
        owner=wish.owner,
        created=int(time.time()),
        n=wanted.n,
    )
    if wish.key is not None:
        earlier = await _earlier(context, wish.key, await fingerprint(request, asked.body), stream.id)
        if earlier is not None:
            return await _attached(request, context, wanted, wish, plan, earlier)
    try:
        context.hub.admit()
    except ProxyError:
        if wish.key is not None:
            await context.hub.disclaim(wish.key)
        raise
    known = wish.key is not None or wish.later
    subscriber = stream.subscribe(asker=not wish.later)  # first: who has the same key may come and leave meanwhile
    await context.hub.create(stream, policy=wish.policy, kept=wanted.stream or known, known=known, key=wish.key)
    context.relay.start(wanted, plan, stream, asked.release)
    asked.handed_over = True
    return await _respond(request, context, wanted, wish, plan, _Reading(stream, subscriber, subscriber.leave))


def _wish(request: Request, context: Context, asked: Asked, plan: Plan) -> _Wish:
    owner = owner_of(request.scope["headers"], context.settings.caller_keys)
    prefer = preferences(request)
    later = "respond-async" in prefer
    names = (plan.route.model.id, asked.fields.model)
    finish = later or any(name in context.settings.finish_models for name in names)
    applied = ["respond-async"] if later else []
    asked_policy = prefer.get("on-disconnect")
    if asked_policy in ("finish", "cancel"):
        finish = asked_policy == "finish"
        applied.append(f"on-disconnect={asked_policy}")
    policy = OnDisconnect.FINISH if finish else OnDisconnect.CANCEL
    return _Wish(owner, idempotency_key(request, owner), later, policy, tuple(applied))


def _request(
    context: Context, asked: Asked, plan: Plan, wish: _Wish, trace: tuple[tuple[str, str], ...]
) -> ImageRequest:
    fields = asked.fields
    model, provider = plan.route.model, plan.route.provider
    asks = fields.stream and model.streams and provider.streams and fields.output_format not in _UNSTREAMED_FORMATS
    if asks and 0 < model.max_stream_n < fields.n and not context.settings.stream_n:
        raise ProxyError(
            Failure.UNSUPPORTED_PARAMETER,
            "Streaming is only supported with n=1. The setting stream_n sends n requests instead, each of them paid.",
            param="n",
        )
    return ImageRequest(
        operation=Operation.EDIT if fields.edit else Operation.GENERATION,
        model=model,
        upstream_model=plan.route.upstream_model,
        body=asked.body,
        extra_headers=context.relay.extra_headers(fields.extra_headers, plan),
        n=fields.n,
        stream=fields.stream or wish.later,
        ask_stream=asks,
        size=fields.size,
        quality=fields.quality,
        background=fields.background,
        trace=trace,
        via_generations=asked.via_generations,
    )


async def _earlier(context: Context, key: str, mark: str, id: str) -> Stream | None:
    """The stream that answers this key already. None: this request is the first, or the first one was refused."""
    ends_at = anyio.current_time() + CLAIM_SECONDS  # never within a claim: what it then had claimed nobody would know
    while (claimed := await context.hub.claim(key, mark, id)) is not None:
        try:
            return await context.hub.find(claimed)
        except ProxyError as error:
            if error.failure is not Failure.NOT_FOUND:
                raise
        if anyio.current_time() > ends_at:
            message = "The generation of this Idempotency-Key is not known any more; use a new key."
            raise ProxyError(Failure.GONE, message)
        await anyio.sleep(0.05)
    return None


async def _attached(
    request: Request, context: Context, wanted: ImageRequest, wish: _Wish, plan: Plan, stream: Stream
) -> ASGIApp:
    """The answer from the stream of an earlier request with the same key."""
    done = [entry for entry in stream.retained() if entry.critical]
    if stream.finished and all(entry.frame.type == ERROR for entry in done):
        raise read_error(done[-1].frame) if done else ProxyError(Failure.NO_IMAGE, "The provider sent no image.")
    subscriber = stream.subscribe()
    context.hub.watch(stream, subscriber)
    reading = _Reading(stream, subscriber, lambda: context.hub.unwatch(stream, subscriber))
    return await _respond(request, context, wanted, wish, plan, reading)


async def _respond(
    request: Request,
    context: Context,
    wanted: ImageRequest,
    wish: _Wish,
    plan: Plan,
    reading: _Reading,
) -> ASGIApp:
    """The answer; `reading` is left with it, or at once where the caller reads nothing of it now."""
    stream, subscriber = reading.stream, reading.subscriber
    location = _stream_url(request, context, stream)
    answer: Answer | None = None
    try:
        if wish.later:
            await _accepted(request, context, stream)
            answer = _where(context, wish, stream, location)
        elif wanted.stream:
            await _accepted(request, context, stream)
        else:
            body = await _unless_gone(request, _answer(subscriber))
            answer = Answer(200, "application/json", body, _headers(context, wanted, wish, plan, stream))
    except BaseException:
        reading.leave()
        raise
    if answer is not None:
        reading.leave()
        return answer
    headers = _headers(context, wanted, wish, plan, stream)
    reader = Reader(
        at_end=lambda: subscriber.at_end or stream.broken,
        left=lambda error: note_failure(request.scope, error),
        close=lambda: _closed(request, reading),
    )
    content = posted(subscriber, context.settings.heartbeat)
    return EventStream(content, {**headers, "stream-id": stream.id, "location": location}, context.pace, reader)


def _closed(request: Request, reading: _Reading) -> None:
    """The stream has been written to its caller, as far as it was."""
    if reading.stream.error is not None:
        note_failure(request.scope, reading.stream.error)
    reading.leave()


async def _accepted(request: Request, context: Context, stream: Stream) -> None:
    """Wait for the provider's head while a refusal can still be an HTTP status; raises that refusal."""
    if not stream.committed:
        await _unless_gone(request, stream.opened(within=context.settings.commit_after))
        if stream.error is not None and not stream.committed:
            raise stream.error
    stream.commit()


def _where(context: Context, wish: _Wish, stream: Stream, url: str) -> Answer:
    """202: where the stream is."""
    body = {
        "id": stream.id,
        "object": "image.stream",
        "status": status_of(stream),
        "stream_url": url,
        "expires_at": int(time.time() + context.settings.token_seconds),
    }
    headers = {"location": url, "preference-applied": ", ".join(wish.applied), "cache-control": "no-store"}
    return json_response(body, status=202, headers=headers)


def _stream_url(request: Request, context: Context, stream: Stream) -> str:
    prefix = request.url.path.split("/images/")[0]
    return f"{prefix}/streams/{stream.id}?token={context.tokens.mint(stream.id)}"


async def _answer(subscriber: Subscriber) -> tuple[Piece, ...]:
    """The JSON answer: as the provider gave it, or what the stream's images amount to."""
    images: list[bytes] = []
    answer: tuple[Piece, ...] | None = None
    while (entry := await subscriber.next()) is not None:
        if entry.frame.type == ERROR:
            raise subscriber.stream.error or read_error(entry.frame)
        if entry.frame.type == ANSWER:
            answer = entry.frame.data
        elif entry.critical:
            images.append(b"".join(entry.frame.data))
    if not subscriber.at_end:
        raise unfollowed()
    if answer is not None:
        return answer
    if not images:
        raise subscriber.stream.error or ProxyError(Failure.NO_IMAGE, "The provider sent no image.")
    return collected(images, int(time.time())).data


def _headers(context: Context, wanted: ImageRequest, wish: _Wish, plan: Plan, stream: Stream) -> dict[str, str]:
    """The provider's headers that pass, and what of the caller's wishes was applied and what not."""
    opening = stream.opening
    headers = dict(opening.headers) if opening is not None else {}
    not_applied = opening.not_applied if opening is not None else context.relay.not_applied(wanted, plan)
    if not_applied:
        headers[NOT_APPLIED] = ", ".join(not_applied)
    if wish.applied:
        headers["preference-applied"] = ", ".join(wish.applied)
    return headers


async def _unless_gone(request: Request, result: Awaitable[Result]) -> Result:
    """Wait for `result` while the caller is there; raises ProxyError(CALLER_GONE) as soon as it is not."""
    outcome: list[Result] = []
    failure: list[ProxyError] = []

    async with anyio.create_task_group() as tasks:

        async def wait() -> None:
            try:
                outcome.append(await result)
            except ProxyError as error:
                failure.append(error)
            tasks.cancel_scope.cancel()

        tasks.start_soon(wait)
        while (await request.receive())["type"] != "http.disconnect":
            pass
        tasks.cancel_scope.cancel()
    if failure:
        raise failure[0]
    if not outcome:
        raise ProxyError(Failure.CALLER_GONE, "The caller left before its answer.")
    return outcome[0]
