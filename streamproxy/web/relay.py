"""Passes a request on to a provider, and its answer back: what is no image of ours to make.

The body goes as it came, but for `extra_headers`, which are judged as for images, and the model's name where the
provider has another for it. The answer comes back as it is: nothing of it is kept, parsed, priced or shared, so neither
an Idempotency-Key nor a preference applies. It is sent once, and ends with its caller.

An event stream is passed on line by line, so that a comment can stand between two lines in silence, and a failure ends
it with one event of its own instead of half a line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from functools import partial
from math import inf
from typing import Final

import anyio
import orjson
from anyio.streams.memory import MemoryObjectReceiveStream
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from streamproxy.core.catalogue import UNKNOWN, Provider
from streamproxy.core.events import error_body
from streamproxy.core.rawjson import JsonObject
from streamproxy.core.requests import Head
from streamproxy.core.schema import MAX_MODEL, Checklist, extra_headers
from streamproxy.core.sse import Piece
from streamproxy.errors import Failure, ProxyError
from streamproxy.generation.relaying import EVENTS, Exchange, Item, passed_on
from streamproxy.generation.tabs import Tab
from streamproxy.web import caller
from streamproxy.web.endpoint import Context
from streamproxy.web.outcome import note_failure
from streamproxy.web.responses import NOT_APPLIED, error_response
from streamproxy.web.slicing import sliced
from streamproxy.web.writing import HEARTBEAT

UNKEPT: Final = ("idempotency-key", "prefer", "streamproxy-webhook")
"""Request headers that mean something for what is kept, and nothing here."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What is passed on: its path at a provider, what is said where none has it, and how its stream says a failure."""

    missing: str
    path: Callable[[Provider], str]
    failed: Callable[[ProxyError], bytes]


def _chat_failed(error: ProxyError) -> bytes:
    said = {**_said(error), "status": error.status}
    return b"data: " + orjson.dumps({"error": said, "choices": []}) + b"\n\ndata: [DONE]\n\n"


def _responses_failed(error: ProxyError) -> bytes:
    said = {"type": "error", "code": error.code, "message": error.message, "param": error.param, "sequence_number": 0}
    return b"event: error\ndata: " + orjson.dumps(said) + b"\n\n"


def _said(error: ProxyError) -> dict[str, object]:
    return {"message": error.message, "type": error.type, "param": error.param, "code": error.code}


CHAT: Final = Endpoint(
    "No configured provider takes chats with this model. The setting is `chat` of its provider, a path.",
    lambda provider: provider.chat,
    _chat_failed,
)
RESPONSES: Final = Endpoint(
    "Without image_generation as its only tool, or the one that tool_choice asks for, a response is a provider's to "
    "make, and no configured one takes any with this model. The setting is `responses` of its provider, a path.",
    lambda provider: provider.responses,
    _responses_failed,
)


async def relay(request: Request, context: Context, body: JsonObject, endpoint: Endpoint, room: ExitStack) -> ASGIApp:
    """The response to a request that is passed on. Raises ProxyError for what is refused before anything is sent.

    `room` frees what the body takes. It is the response's.
    """
    plan = context.router.plan_relay(model_of(body), request.scope["headers"], endpoint.path, endpoint.missing)
    plan = plan.with_headers(extra_headers(body), request.state.trace)
    context.hub.admission.admit(context.hub.running)
    tab = await context.tabs.open(plan.caller, (plan.route,), 1)
    route = plan.route
    request.state.provider = route.provider.name
    request.state.model = None if route.model.family == UNKNOWN else route.model.id
    exchange = Exchange(plan, passed_on(body, plan, endpoint.path), context.observer, request.state.request_id)
    kind = _Kind.EVENTS if (body.value("stream") or b"") == b"true" else _Kind.JSON
    unkept = [name for name in UNKEPT if name in request.headers]
    noted = {NOT_APPLIED: ", ".join(unkept)} if unkept else {}
    return _Relay(context, exchange, endpoint, kind, noted, tab, room.pop_all().close)


def model_of(body: JsonObject) -> str:
    """The model's name. Raises ProxyError(INVALID_REQUEST) where there is none."""
    checks = Checklist()
    found = body.decode("model")
    if "model" not in body.members:
        checks.missing("model")
    elif not isinstance(found, str):
        checks.problem(("model",), "Input should be a valid string", "string_type")
    else:
        checks.length(("model",), len(found), 1, MAX_MODEL)
    checks.end()
    return str(found)


class _Kind(Enum):
    """What an answer is: events, which are passed on as they come, or one body, which is passed on once it is whole."""

    EVENTS = EVENTS
    JSON = "application/json"


@dataclass(frozen=True, slots=True)
class _Relay:
    """The response: an ASGI app. `kind` is what the caller asked for; `noted` are headers of our own.

    `tab` is settled, and `release` frees what the body takes, when it is over.
    """

    context: Context
    exchange: Exchange
    endpoint: Endpoint
    kind: _Kind
    noted: Mapping[str, str]
    tab: Tab
    release: Callable[[], None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = _Writer(self, send)
        account = self.exchange.account()
        try:
            await caller.unless_gone(receive, partial(self._pass_on, writer))
            await writer.end()
        except ProxyError as error:
            account.fail(error, abandoned=False)
            note_failure(scope, error)
            if error.failure is Failure.CALLER_GONE:
                return
            if writer.started:
                await writer.fail(error)
            else:
                await error_response(error, self.exchange.request_id)(scope, receive, send)
        finally:
            self.release()
            await self.tab.close(account)

    async def _pass_on(self, writer: _Writer) -> None:
        failure: ProxyError | None = None
        to, source = anyio.create_memory_object_stream[Item](0)
        async with source, anyio.create_task_group() as tasks:
            tasks.start_soon(self.exchange.read, to)
            failure = await self._write(source, writer)
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _write(self, source: MemoryObjectReceiveStream[Item], writer: _Writer) -> ProxyError | None:
        """Write what comes, and something in silence. The failure that it ended with, not raised in a task group.

        Silence is the caller's: bytes that are only held end none. The clock is asked each time, for a deadline misses
        a task that is always awake.
        """
        try:
            while True:
                item = None
                left = writer.filled_at() - anyio.current_time()
                if left > 0:
                    with anyio.move_on_after(left):
                        item = await source.receive()
                if isinstance(item, ProxyError):
                    return item
                await (writer.fill() if item is None else writer.take(item))
        except anyio.EndOfStream:
            return None
        except ProxyError as error:
            return error


class _Writer:
    """Writes an answer to the caller, whatever it turns out to be."""

    def __init__(self, relay: _Relay, send: Send) -> None:
        self._relay = relay
        self._send = send
        self._kind = relay.kind
        self._held: list[bytes] = []
        self._size = 0
        self._between = True
        self._headers: Mapping[str, str] = {}
        self._written = anyio.current_time()
        self.started = False

    @property
    def events(self) -> bool:
        """Whether it is an event stream."""
        return self._kind is _Kind.EVENTS

    def filled_at(self) -> float:
        """When the caller's silence is to be filled, by the loop's clock."""
        settings = self._relay.context.settings
        if not self.events:
            return self._written + (settings.json_heartbeat or inf)
        return self._written + (settings.heartbeat if self.started else settings.commit_after)

    async def take(self, item: Head | bytes) -> None:
        """The answer's head, or its next bytes. Raises ProxyError for what cannot be passed on."""
        if isinstance(item, bytes):
            await (self._take_lines(item) if self.events else self._gather(item))
            return
        kind = _Kind.EVENTS if item.media_type == EVENTS else _Kind.JSON
        if self.started and kind is not self._kind:
            message = "The provider answered in another form than was asked for, after this answer had begun."
            raise ProxyError(Failure.UNEXPECTED_CONTENT_TYPE, message)
        self._kind = kind
        headers = {"content-type": item.headers.get("content-type", kind.value), **self._relay.exchange.passed(item)}
        self._headers = headers
        if self.events and not self.started:
            await self._start(headers)

    async def _take_lines(self, chunk: bytes) -> None:
        end = chunk.rfind(b"\n") + 1
        if end:
            whole: list[Piece] = [*self._held, memoryview(chunk)[:end]]
            self._between = chunk[:end].endswith((b"\n\n", b"\r\n\r\n"))
            self._held.clear()
            self._size = 0
            await self._body(whole)
        if end < len(chunk):
            self._hold(chunk[end:], self._relay.context.settings.max_event_bytes, Failure.EVENT_TOO_LARGE)

    async def _gather(self, chunk: bytes) -> None:
        self._hold(chunk, self._relay.context.settings.max_response_bytes, Failure.RESPONSE_BODY_SIZE)

    def _hold(self, chunk: bytes, most: int, failure: Failure) -> None:
        self._held.append(chunk)
        self._size += len(chunk)
        if self._size > most:
            setting = "max_event_bytes" if failure is Failure.EVENT_TOO_LARGE else "max_response_bytes"
            raise ProxyError(failure, f"The provider sent over {most} bytes. The setting {setting} allows more.")

    async def fill(self) -> None:
        """Something that means nothing, in silence; the head as well, where it has not been sent."""
        if not self.started:
            await self._start({"content-type": self._kind.value})
        await self._body([HEARTBEAT if self.events else b"\n"])

    async def end(self) -> None:
        """The answer is whole."""
        if not self.started:
            await self._start({**self._headers, "content-length": str(self._size)})
        await self._body([*self._held], more=False)

    async def fail(self, error: ProxyError) -> None:
        """The answer breaks off, and its head has been sent."""
        if self.events:
            await self._body([b"" if self._between else b"\n", self._relay.endpoint.failed(error)], more=False)
        else:
            said = error_body(error, self._relay.exchange.request_id, status=True)
            await self._body([orjson.dumps(said)], more=False)

    async def _start(self, headers: Mapping[str, str]) -> None:
        self.started = True
        own = {"cache-control": "no-store, no-transform", "x-accel-buffering": "no"} if self.events else {}
        given = {**headers, **own, **self._relay.noted}
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in given.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": raw})
        self._written = anyio.current_time()

    async def _body(self, pieces: list[Piece], *, more: bool = True) -> None:
        for part in sliced(pieces):
            await self._send({"type": "http.response.body", "body": part.joined(), "more_body": True})
        self._written = anyio.current_time()
        if not more:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
