"""The use case: one request, wire in to wire out.

    plan      a model name and a caller's headers -> who serves it, with which credential      (may refuse)
    start     runs the generation in the app's task group, as the producer of a stream

The producer is not the request's task: a caller who leaves does not by that end it, the stream's policy does. It sends
the provider one request. A second one follows only where the first was refused for asking to stream, so that nothing of
it can have been processed.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import anyio
from anyio.abc import TaskGroup

from streamproxy.auth import CredentialSource
from streamproxy.core.catalogue import Catalogue, Provider, Route
from streamproxy.core.headers import REDACTED, HeaderPolicy
from streamproxy.core.requests import Exchange, Head, ImageRequest, UpstreamRequest
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.hub import Hub
from streamproxy.hub.stream import Opening, Stream
from streamproxy.observe import Observer
from streamproxy.providers import ADAPTERS, Decoder
from streamproxy.upstream import Upstream, UpstreamResponse

REFUSAL_LIMIT = 256 * 1024
"""Bytes read of a provider's error body; the largest recorded one has under 1 KiB."""

SHORT_SECRET = 8
"""Characters; a shorter one is no provider's key, but a word like `none` that a caller sends for want of one."""

REFUSAL_SECONDS = 5.0
FAIL_SECONDS = 2.0
"""What telling a stream's end may take while the app is being stopped."""

TRAILING_SECONDS = 0.25
TRAILING_BYTES = 64
"""What a provider may still send after the last image, and how long that may take, before its connection is closed:
room for an end marker and some blank lines, discarded unread.
"""


@dataclass(frozen=True, slots=True)
class Service:
    """One configured provider, ready to be used."""

    provider: Provider
    upstream: Upstream
    credential: CredentialSource
    strict_headers: bool
    allow_headers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes: of one event, and of a whole buffered answer."""

    event: int
    answer: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Where one request goes. `credential` is at most one header."""

    route: Route
    service: Service
    credential: tuple[tuple[str, str], ...]


class Relay:
    """Runs generations. `tasks` is the app's task group: it outlives every request."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        services: Mapping[str, Service],
        policy: HeaderPolicy,
        observer: Observer,
        limits: Limits,
        hub: Hub,
        tasks: TaskGroup,
    ) -> None:
        self._catalogue = catalogue
        self._services = services
        self._policy = policy
        self._observer = observer
        self._limits = limits
        self._hub = hub
        self._tasks = tasks
        self._providers = tuple(service.provider for service in services.values())

    def plan(self, model: str, headers: Sequence[tuple[bytes, bytes]]) -> Plan:
        """Who serves `model`; raises ProxyError(MODEL_NOT_FOUND, PROVIDER_NOT_CONFIGURED or INVALID_API_KEY)."""
        if not self._services:
            raise ProxyError(
                Failure.PROVIDER_NOT_CONFIGURED,
                "No provider is configured. Set OPENAI_API_KEY, or [providers] in the configuration, or --upstream.",
            )
        route = self._catalogue.resolve(model, self._providers)
        service = self._services[route.provider.name]
        credential = service.credential.present(headers)
        return Plan(route, service, () if credential is None else ((credential.header, credential.value),))

    def extra_headers(self, extra: object, plan: Plan) -> tuple[tuple[str, str], ...]:
        """The caller's `extra_headers`, checked for this provider; raises ProxyError by the header policy."""
        return self._policy.check(
            extra,
            strict=plan.service.strict_headers,
            allow=plan.service.allow_headers,
            reserved=[name for name, _ in plan.credential],
        )

    def not_applied(self, request: ImageRequest, plan: Plan) -> tuple[str, ...]:
        """The request's members that this provider is not asked for, as far as is known before it answers."""
        return ADAPTERS[plan.route.provider.adapter].not_applied(request)

    def start(self, request: ImageRequest, plan: Plan, stream: Stream, release: Callable[[], None]) -> None:
        """Begin the generation; its frames appear in `stream`. `release` frees the request's files."""
        self._tasks.start_soon(self._produce, stream, request, plan, release)

    async def _produce(self, stream: Stream, request: ImageRequest, plan: Plan, release: Callable[[], None]) -> None:
        self._observer.streams(1)
        try:
            with stream.scope:
                if request.ask_stream and 0 < request.model.max_stream_n < request.n:
                    await self._each(stream, request, plan)
                else:
                    await self._generate(stream, request, plan)
            if stream.scope.cancelled_caught:
                await self._fail(stream, _ended(stream))
        except ProxyError as error:
            await self._fail(stream, error)
        except Exception as error:
            await self._fail(stream, self._observer.unexpected(error, stream.request_id))
        except BaseException:  # the app ends without having drained
            stream.shutdown = True
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + FAIL_SECONDS):
                await self._fail(stream, _ended(stream))
            raise
        finally:
            release()
            await self._hub.conclude(stream)
            self._observer.streams(-1)

    async def _fail(self, stream: Stream, error: ProxyError) -> None:
        if stream.finished or stream.complete:
            return  # nothing may follow the last image
        unfollowed = error.failure is Failure.CANCELLED and not stream.asked_to_end  # counted when the reader left
        if stream.committed and not stream.asked and not unfollowed:  # otherwise its caller's request tells
            self._observer.failure(error, stream.request_id)
        if error.retryable and stream.opening is None:
            await self._hub.refused(stream)
        await stream.fail(error)

    async def _each(self, stream: Stream, request: ImageRequest, plan: Plan) -> None:
        """One request per image, side by side. One that fails takes no other's image with it: it is told at the end."""
        failures: list[ProxyError] = []

        async def one(index: int) -> None:
            try:
                await self._generate(stream, replace(request, n=1, image_index=index), plan)
            except ProxyError as error:
                failures.append(error)

        async with anyio.create_task_group() as tasks:
            for index in range(request.n):
                tasks.start_soon(one, index)
        if failures:  # one that may have been paid decides whether anybody may send the request again
            raise next((error for error in failures if not error.retryable), failures[0])

    async def _generate(self, stream: Stream, request: ImageRequest, plan: Plan) -> None:
        adapter = ADAPTERS[plan.route.provider.adapter]
        while True:
            built = self._built(request, plan)
            async with plan.service.upstream.open(built) as response:
                head = response.head
                if head.status in (200, 201):
                    opening = Opening(self._relayable(response, plan), adapter.not_applied(request))
                    decoder = adapter.decoder(self._exchange(request, plan, head))
                    try:
                        await self._relay(stream, opening, response, decoder)
                    finally:
                        for fault in decoder.tolerated:
                            self._observer.tolerated(plan.route.provider.name, fault)
                    if request.image_index is None:
                        await self._hub.conclude(stream)  # no other request adds to it
                    if (label := await _trailing(response)) is not None:
                        self._observer.tolerated(plan.route.provider.name, label)
                    return
                body = await _refusal_body(response)
                if not (request.ask_stream and adapter.refuses_streaming(head, body)):
                    callers = plan.service.credential.kind == "caller"
                    path = urlsplit(built.url).path
                    raise adapter.refusal(head, body, path=path, callers_credential=callers, scrub=self._scrub(plan))
            request = replace(request, ask_stream=False)

    def _built(self, request: ImageRequest, plan: Plan) -> UpstreamRequest:
        """The request with the caller's headers in it, and the credential proven to be there exactly once."""
        provider = plan.route.provider
        boundary = f"streamproxy-{secrets.token_hex(16)}"
        built = ADAPTERS[provider.adapter].build(request, provider, plan.credential, boundary)
        names = [name for name, _ in plan.credential]
        self._observer.upstream(provider.name)
        given = {name for name, _ in request.extra_headers}
        traced = tuple((name, value) for name, value in request.trace if name not in given)
        headers = self._policy.merge(request.extra_headers, (*built.headers, *traced), names)
        return replace(built, headers=tuple(headers))

    def _exchange(self, request: ImageRequest, plan: Plan, head: Head) -> Exchange:
        return Exchange(
            request=request,
            provider=plan.route.provider,
            head=head,
            now=int(time.time()),
            max_event_bytes=self._limits.event,
            max_answer_bytes=self._limits.answer,
            scrub=self._scrub(plan),
        )

    def _relayable(self, response: UpstreamResponse, plan: Plan) -> tuple[tuple[str, str], ...]:
        """The headers that pass, but for those in which the provider repeats the credential."""
        scrub = self._scrub(plan)
        passed = self._policy.relayable(response.header_items)
        return tuple((name, value) for name, value in passed if scrub(value) == value)

    def _scrub(self, plan: Plan) -> Callable[[str], str]:
        """Takes secrets out of a provider's text: whatever looks like one, and the very credential it was sent."""
        known = [value.rpartition(" ")[2] for _, value in plan.credential]

        def scrub(text: str) -> str:
            for secret in known:
                text = _without(secret, text)
            return self._policy.scrub(text)

        return scrub

    async def _relay(self, stream: Stream, opening: Opening, response: UpstreamResponse, decoder: Decoder) -> None:
        """Frames as they become whole. Where the answer breaks off, what was whole still counts before the failure."""
        broken: ProxyError | None = None
        if decoder.accepted:
            stream.open(opening)
        while not decoder.done:
            try:
                chunk = await response.chunk()
            except ProxyError as error:
                broken = error
                break
            if chunk is None:
                break
            frame = None
            for frame in decoder.feed(chunk):
                if stream.opening is None:
                    stream.open(opening)
                if frame is not None:
                    self._observer.frame(frame.type)
                    await stream.append(frame)
                await response.turn()
            if decoder.accepted and stream.opening is None:
                stream.open(opening)
            del chunk, frame  # a name that lives on while the next event gathers would hold two of them
        if not decoder.done:
            try:
                for frame in decoder.finish():
                    self._observer.frame(frame.type)
                    await stream.append(frame)
            except ProxyError as error:
                raise broken or error from None


def _without(secret: str, text: str) -> str:
    """The text without this secret. A short one is one only as a whole word: `k` is no part of `moderation_blocked`."""
    if len(secret) >= SHORT_SECRET:
        return text.replace(secret, REDACTED)
    return re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", REDACTED, text)


def _ended(stream: Stream) -> ProxyError:
    """Why a generation was cancelled: the process stops, somebody asked for it, or nobody follows it."""
    if stream.shutdown:
        return ProxyError(Failure.SERVER_SHUTDOWN, "The proxy stopped before the generation had ended.")
    return ProxyError(Failure.CANCELLED, "The generation was cancelled.")


async def _refusal_body(response: UpstreamResponse) -> bytes:
    """What an error answer says, b"" where it cannot be read: its status is enough for an error."""
    try:
        with anyio.move_on_after(REFUSAL_SECONDS):
            return await response.body(REFUSAL_LIMIT)
    except ProxyError:
        pass
    return b""


async def _trailing(response: UpstreamResponse) -> str | None:
    """Let an answer that is over end, so that its connection can be used again; the label of what it did instead."""
    room = TRAILING_BYTES
    try:
        with anyio.move_on_after(TRAILING_SECONDS):
            while (chunk := await response.chunk()) is not None:
                room -= len(chunk)
                if room < 0:
                    return "stream_trailing"
            return None
    except ProxyError as error:
        return error.failure.value.label
    return "stream_trailing"
