"""The driver of a conversation: performs each step that an adapter yields, and sends it the reply.

The only place that matches on steps. The ProxyError of a failed step is thrown into the conversation, which may handle
it. An error that leaves the conversation is the attempt's failure. Requests get the caller's `extra_headers` and the
credential here, at the moment of sending, and only for hosts of the provider's row.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Protocol, assert_never
from urllib.parse import urlsplit

import anyio
from anyio import to_thread

from streamproxy.core.catalogue import Provider
from streamproxy.core.conversation import (
    Accepted,
    Body,
    Connect,
    Conversation,
    Convert,
    Events,
    Fetch,
    Hear,
    Inlining,
    JobId,
    Join,
    Launch,
    Limits,
    NextEvent,
    NotApplied,
    Picture,
    Pour,
    Progress,
    Send,
    Step,
    Tell,
    Tolerated,
    Undo,
    Wait,
)
from streamproxy.core.events import Frame
from streamproxy.core.requests import Head, Inline, Spooled, UpstreamRequest
from streamproxy.core.sse import Event
from streamproxy.errors import Failure, ProxyError
from streamproxy.generation.router import Plan
from streamproxy.generation.tracing import AttemptSpan, attempt
from streamproxy.observe.traces import NO_SPAN, NO_TRACES, Traces
from streamproxy.upstream import Answer
from streamproxy.upstream.fetch import Fetcher

if TYPE_CHECKING:
    from streamproxy.upstream.websocket import Socket

UNDO_SECONDS: Final = 5.0
"""Seconds for the request that cancels a provider's work, also while the process stops."""

TRAILING_SECONDS: Final = 0.25
TRAILING_BYTES: Final = 64
"""Most bytes, and longest time, that a provider has for the rest of its answer after the last image, for the connection
to be kept: room for an end marker and some blank lines, which are discarded.
"""

MESSAGE_BYTES: Final = 64 * 1024 * 1024
"""Most bytes of one WebSocket message. ComfyUI's previews have about 100 kB, and a final picture has a few MB."""


FETCHES: Final = 8
"""Images fetched at a time. Each has up to 67 MB of base64, so together they have as much as two answers of the largest
size (max_response_bytes). A picture of 4 MB takes about a second at 32 Mbit/s.
"""


CONVERSIONS: Final = 2
"""Pictures converted at a time. The largest has 96 MB as RGBA, and JPEG needs a second copy."""


class Sink(Protocol):
    """The receiver of an attempt's events."""

    def sent(self) -> None:
        """A request to the provider is about to be sent."""
        ...

    def answered(self, headers: tuple[tuple[str, str], ...]) -> None:
        """A successful answer has begun, with these headers."""
        ...

    def accepted(self) -> None:
        """The provider works on it."""
        ...

    def not_applied(self, names: tuple[str, ...]) -> None:
        """These members are not sent to the provider."""
        ...

    async def frame(self, frame: Frame) -> None:
        """One event for the readers; returns when the next one is wanted."""
        ...

    def job(self, id: str) -> None:
        """The provider has this id for the work."""
        ...

    def progress(self, step: Progress) -> None:
        """The provider reports its progress."""
        ...

    def tolerated(self, label: str) -> None:
        """The provider made a fault that no caller noticed."""
        ...


@dataclass(frozen=True, slots=True)
class Outside:
    """A driver's means and limits besides the provider's own connections."""

    fetcher: Fetcher
    limits: Limits
    total: float
    """Seconds that one conversation may take."""
    connect: float
    """Seconds to open a WebSocket."""
    ssl_context: ssl.SSLContext
    traces: Traces = NO_TRACES
    fetching: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(FETCHES))
    converting: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(CONVERSIONS))


@dataclass(slots=True)
class _Launched:
    """A launched request, and its outcome so far."""

    arrived: anyio.Event = field(default_factory=anyio.Event)
    answer: Answer | None = None
    error: ProxyError | None = None


class Driver:
    """Performs one conversation. `async with` closes what it has opened."""

    def __init__(self, plan: Plan, outside: Outside, sink: Sink) -> None:
        self._plan = plan
        self._outside = outside
        self._sink = sink
        self._ends_at = anyio.current_time() + outside.total
        self._answer: Answer | None = None
        self._events: AsyncIterator[Event] | None = None
        self._socket: Socket | None = None
        self._beside: AsyncExitStack | None = None
        self._launched: _Launched | None = None
        self._undo: UpstreamRequest | None = None
        self._accepted = False
        self._span = AttemptSpan(plan, NO_SPAN)

    async def __aenter__(self) -> Driver:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._answer is not None and (label := await _trailing(self._answer)) is not None:
            self._sink.tolerated(label)
        try:
            await self._hang_up()
        finally:
            if self._beside is not None:
                await self._beside.aclose()

    async def _hang_up(self) -> None:
        if self._answer is not None:
            await self._answer.aclose()

    async def carry_out(self, conversation: Conversation[None]) -> None:
        """Perform the steps until the conversation ends. Raises ProxyError, which is `charged` after Accepted."""
        with attempt(self._outside.traces, self._plan) as self._span:
            self._plan = self._span.plan
            await self._carry_out(conversation)

    async def _carry_out(self, conversation: Conversation[None]) -> None:
        try:
            await self._steps(conversation)
        except ProxyError as error:
            if self._accepted:
                error.charged = True
            if error.failure is Failure.DEADLINE:
                await self._undone()
            raise
        except anyio.get_cancelled_exc_class():
            await self._undone()
            raise
        finally:
            conversation.close()

    async def _steps(self, conversation: Conversation[None]) -> None:
        reply: object = None
        error: ProxyError | None = None
        while True:
            try:
                step = conversation.send(reply) if error is None else conversation.throw(error)
            except StopIteration:
                return None
            reply = error = None
            if isinstance(step, Launch):
                return await self._accompanied(step.request, conversation)
            try:
                reply = await self._perform(step)
            except ProxyError as failed:
                error = failed
            del step  # else a frame stays in memory while the next one arrives

    async def _accompanied(self, request: UpstreamRequest, conversation: Conversation[None]) -> None:
        """Send a launched request, and perform the conversation's other steps meanwhile. Raises ProxyError."""
        failure: ProxyError | None = None
        launched = self._launched = _Launched()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._launch, request, launched)
                try:
                    await self._steps(conversation)
                except ProxyError as error:  # a task group would wrap it
                    failure = error
                tasks.cancel_scope.cancel()
        finally:
            if launched.answer is not None and launched.answer is not self._answer:
                await launched.answer.aclose()
        if failure is not None:
            raise failure

    async def _launch(self, request: UpstreamRequest, launched: _Launched) -> None:
        try:
            signed = await self._signed(request)
            launched.answer = await self._plan.service.upstream.send(signed, ends_at=self._ends_at)
        except ProxyError as error:
            launched.error = error
        launched.arrived.set()

    async def _join(self, seconds: float) -> Head | None:
        """Wait for the launched request's answer, and make it the open one."""
        launched = self._launched
        if launched is None:
            raise ProxyError(Failure.INTERNAL, "The adapter waited for a request that it has not launched.")
        with anyio.move_on_after(seconds):
            await launched.arrived.wait()
        if launched.error is not None:
            raise launched.error
        if launched.answer is None:
            return None
        await self._hang_up()
        self._events = self._launched = None
        return self._opened_with(launched.answer)

    async def _perform(self, step: Step) -> object:
        match step:
            case Frame():
                self._span.frame(step)
                await self._sink.frame(step)
            case Send(request):
                return await self._send(request)
            case Join(seconds):
                return await self._join(seconds)
            case Launch():
                raise AssertionError("a decoder launches nothing")
            case Pour(decoder):
                async for said in self._opened.frames(decoder):
                    await self._perform(said)
                    del said
            case Body(limit, within):
                return await self._opened.body(limit, within)
            case NextEvent():
                return await self._next_event()
            case Accepted():
                self._accepted = True
                self._span.accepted()
                self._sink.accepted()
            case Wait(seconds):
                await self._wait(seconds)
            case Inlining():
                await self._perform(step.frame(await self._fetch_all(step.urls)))
            case Fetch(url):
                return await self._fetch(url)
            case Convert(image, form):
                return await self._convert(image, form)
            case Undo(request):
                self._undo = request
            case NotApplied() | JobId() | Tolerated() | Progress():
                self._note(step)
            case Connect() | Tell() | Hear():
                return await self._on_socket(step)
            case _:
                assert_never(step)
        return None

    def _note(self, step: NotApplied | JobId | Tolerated | Progress) -> None:
        match step:
            case NotApplied(names):
                self._sink.not_applied(names)
            case JobId(id):
                self._sink.job(id)
            case Tolerated(label):
                self._sink.tolerated(label)
            case Progress():
                self._sink.progress(step)

    @property
    def _opened(self) -> Answer:
        if self._answer is None:
            raise ProxyError(Failure.INTERNAL, "The adapter read an answer before it sent a request.")
        return self._answer

    async def _send(self, request: UpstreamRequest) -> Head:
        await self._hang_up()
        self._events = None
        signed = await self._signed(request)
        return self._opened_with(await self._plan.service.upstream.send(signed, ends_at=self._ends_at))

    def _opened_with(self, answer: Answer) -> Head:
        self._answer, head = answer, answer.head
        if 200 <= head.status < 300:
            self._sink.answered(head.items)
        return head

    async def _signed(self, request: UpstreamRequest) -> UpstreamRequest:
        """Add the caller's headers and the credential to a request. Raises ProxyError for a foreign host."""
        if not is_own(self._plan.route.provider, request.url):
            raise ProxyError(
                Failure.FOREIGN_HOST,
                "The provider named an address on a host that is not its own, and a credential goes nowhere else. "
                "The setting is hosts of its provider.",
            )
        headers = await self._plan.headers(request)
        self._sink.sent()
        return replace(request, headers=headers)

    async def _next_event(self) -> Event | None:
        if self._events is None:
            self._events = self._opened.frames(Events(self._outside.limits))
        return await anext(self._events, None)

    async def _fetch(self, url: str) -> Picture:
        with anyio.CancelScope(deadline=self._ends_at):
            async with self._outside.fetching:
                return await self._outside.fetcher.fetch(url)
        raise self._late()

    async def _fetch_all(self, urls: Sequence[str]) -> tuple[Picture, ...]:
        """Fetch results. One that cannot be fetched, or would make the answer too large, keeps its URL."""
        room = self._outside.limits.answer
        pictures: list[Picture] = []
        for url in urls:
            try:
                picture = await self._fetch(url)
                room -= sum(map(len, picture.base64))
                if room < 0:
                    message = "Together, the pictures are larger than the setting max_response_bytes allows."
                    raise ProxyError(Failure.RESPONSE_BODY_SIZE, message)
            except ProxyError as error:
                self._sink.tolerated(error.failure.value.label)
                picture = Picture((), url=url, problem=error.message)
            pictures.append(picture)
        return tuple(pictures)

    async def _convert(self, image: Inline | Spooled | Picture, form: str) -> Picture:
        limiter = self._outside.converting
        with anyio.CancelScope(deadline=self._ends_at):
            return await to_thread.run_sync(_converted, image, form, abandon_on_cancel=True, limiter=limiter)
        raise self._late()

    async def _wait(self, seconds: float) -> None:
        if anyio.current_time() + seconds > self._ends_at:
            raise self._late()
        await anyio.sleep(seconds)

    def _late(self) -> ProxyError:
        total = self._outside.total
        return ProxyError(Failure.DEADLINE, f"The request took over {total:g} s in all. The setting is total_timeout.")

    async def _on_socket(self, step: Connect | Tell | Hear) -> str | bytes | None:
        if isinstance(step, Connect):
            from streamproxy.upstream.websocket import SocketLimits, connect  # 3 MB that few installations need

            signed = await self._signed(UpstreamRequest("GET", step.url))
            limits = SocketLimits(open=self._outside.connect, message=MESSAGE_BYTES)
            socket = connect(signed.url, signed.headers, limits=limits, ssl_context=self._outside.ssl_context)
            self._beside = self._beside or AsyncExitStack()
            self._socket = await self._beside.enter_async_context(socket)
            return None
        if self._socket is None:
            raise ProxyError(Failure.INTERNAL, "The adapter used a WebSocket before it opened one.")
        if isinstance(step, Tell):
            await self._socket.send(step.text)
            return None
        with anyio.CancelScope(deadline=self._ends_at):
            return await self._socket.receive()
        raise self._late()

    async def _undone(self) -> None:
        """Send the request that cancels the provider's work, once. Its answer does not matter."""
        request, self._undo = self._undo, None
        if request is None:
            return
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + UNDO_SECONDS):
            try:
                await self._hang_up()
                signed = await self._signed(request)
                async with self._plan.service.upstream.open(signed, ends_at=anyio.current_time() + UNDO_SECONDS):
                    pass
            except ProxyError as error:
                self._sink.tolerated(error.failure.value.label)


def _converted(image: Inline | Spooled | Picture, form: str) -> Picture:
    from streamproxy.generation.converting import convert  # Pillow: 2.5 MB that few installations need

    return convert(image, form)


async def _trailing(answer: Answer) -> str | None:
    """Read an answer to its end, so that its connection can be used again. Returns the label of a fault."""
    if answer.at_end:
        return None
    room = TRAILING_BYTES
    try:
        with anyio.move_on_after(TRAILING_SECONDS):
            while (chunk := await answer.chunk()) is not None:
                room -= len(chunk)
                if room < 0:
                    return "stream_trailing"
            return None
    except ProxyError as error:
        return error.failure.value.label
    return "stream_trailing"


def is_own(provider: Provider, url: str) -> bool:
    """Whether a URL is on the provider's own hosts: the base_url's origin, or https on one of `hosts`."""
    if url.startswith(f"{provider.base_url}/"):
        return True  # as nearly always, without taking it apart
    there, base = urlsplit(url), urlsplit(provider.base_url)
    websocket = {"ws": "http", "wss": "https"}
    origin = (websocket.get(there.scheme, there.scheme), there.hostname, there.port)
    if origin == (base.scheme, base.hostname, base.port):
        return True
    host = there.hostname or ""
    named = any(host == name or (name.startswith("*.") and host.endswith(name[1:])) for name in provider.hosts)
    return named and there.scheme == "https" and there.port in (None, 443)
