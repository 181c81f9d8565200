"""Round every request: its id, its log line and metric, and CORS. Plain ASGI: nothing here touches a body."""

from __future__ import annotations

import re
import time
import uuid
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamproxy.core.headers import HeaderPolicy
from streamproxy.errors import Failure, ProxyError
from streamproxy.observe import Observer
from streamproxy.observe.traces import NO_SPAN, NO_TRACES, TRACEPARENT, Kind, Span, below
from streamproxy.surfaces.variations import SERVED_AS
from streamproxy.web.endpoint import context_of
from streamproxy.web.origins import Origins, refused_origin
from streamproxy.web.outcome import failure_of, note_failure, told
from streamproxy.web.responses import ATTEMPTS, NOT_APPLIED, error_response

CALLER_LEFT: Final = Failure.CALLER_GONE.value.status
"""The status in the log for a request without any response."""

EXPOSED = (
    "x-request-id",
    "retry-after",
    "x-should-retry",
    "openai-processing-ms",
    "proxy-status",
    NOT_APPLIED,
    ATTEMPTS,
    SERVED_AS,
    "stream-id",
    "location",
    "cancel-location",
    "preference-applied",
)
"""Response headers that a page of another origin may read."""


METHODS: Final = ("GET", "POST", "DELETE")
"""Methods of all routes, as a preflight asks for them."""

UNTRACED: Final = frozenset({"/livez", "/readyz", "/metrics"})
"""Paths that are asked for every few seconds."""

TAKEN: Final = {
    "x-request-id": re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,127}"),
    "traceparent": re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"),  # W3C Trace Context, 3.2
}
"""A caller's own ids, which are logged and passed on to the provider. What has another form is not taken."""


class RequestContext:
    """Gives each request an id, refuses what comes by another name, and writes the one log line when it is over."""

    def __init__(self, app: ASGIApp, observer: Observer, policy: HeaderPolicy) -> None:
        self._app = app
        self._observer = observer
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # A state of its own: the server's is shared by all requests.
        state = scope["state"] = dict(scope.get("state") or {})
        headers = Headers(scope=scope)
        trace = self._trace(headers)
        traces = self._observer.traces if scope["path"] not in UNTRACED else NO_TRACES
        span = traces.begin(Kind.REQUEST, trace.get(TRACEPARENT))
        state["trace"] = below(tuple(trace.items()), span)
        state["request_id"] = request_id = trace.get("x-request-id") or f"req_{uuid.uuid4().hex}"
        began = time.perf_counter()
        sent = size = 0

        async def counted(message: Message) -> None:
            nonlocal sent, size
            if message["type"] == "http.response.start":
                sent = message["status"]
                own = MutableHeaders(raw=message["headers"])
                own.setdefault("x-request-id", request_id)
                message["headers"] = own.raw
            else:
                size += len(message.get("body", b""))
            await send(message)

        try:
            await self._answer(scope, receive, counted, headers)
        finally:
            self._observe(scope, sent or CALLER_LEFT, bytes=size, ms=round((time.perf_counter() - began) * 1000, 1))
            _end(span, scope, sent or CALLER_LEFT)

    def _observe(self, scope: Scope, sent: int, **measured: float) -> None:
        """Count the request, and write its line."""
        route, failure, state = getattr(scope.get("route"), "path", "none"), failure_of(scope), scope["state"]
        self._observer.request(route, sent, failure)
        if not told(scope):
            self._observer.answered(
                route,
                sent,
                failure,
                method=scope["method"],
                **measured,
                request_id=state["request_id"],
                traceparent=dict(state["trace"]).get("traceparent"),
                caller=state.get("caller"),
                provider=state.get("provider"),
                model=state.get("model"),
                stream=state.get("stream"),
            )

    def _trace(self, headers: Headers) -> dict[str, str]:
        """The ids that the caller gave: once, in their form, and without the shape of a credential."""
        given = {name: headers.getlist(name) for name in TAKEN}
        return {
            name: values[0]
            for name, values in given.items()
            if len(values) == 1 and TAKEN[name].fullmatch(values[0]) and self._policy.scrub(values[0]) == values[0]
        }

    async def _answer(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        try:
            context_of(scope).origins.check_host(headers)
        except ProxyError as error:
            note_failure(scope, error)
            await error_response(error, scope["state"]["request_id"])(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _end(span: Span, scope: Scope, sent: int) -> None:
    """End a request's span. Its status is an error where it is the proxy's or the provider's (HTTP conventions)."""
    if span is NO_SPAN:
        return
    failure, method = failure_of(scope), scope["method"] if scope["method"] in METHODS else "_OTHER"
    route: str | None = getattr(scope.get("route"), "path", None)
    span.note(http__request__method=method, http__route=route, http__response__status_code=sent)
    failed = max(sent, failure.status if failure is not None else 0) >= 500
    error = failure.failure.value.code if failure is not None else None
    span.end(f"{method} {route}" if route else method, error, failed=failed)


class Cors:
    """CORS by the origins of the app's context, which a reload may replace."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._by = _Cors(app, Origins(frozenset(), None))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origins = context_of(scope).origins
        if self._by.origins is not origins:
            self._by = _Cors(self._app, origins)
        await self._by(scope, receive, send)


class _Cors(CORSMiddleware):
    """Starlette's, with a refusal that says what to change."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        self.origins = origins
        super().__init__(
            app,
            allow_origins=origins.allowed,
            allow_methods=METHODS,
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=EXPOSED,
            max_age=600,
        )

    def is_allowed_origin(self, origin: str) -> bool:
        """Starlette's question, answered where all that concerns origins is."""
        return self.origins.allows(origin)

    def _refusal(self, headers: Headers) -> ProxyError | None:
        """The failure of a preflight, in place of Starlette's text, which no metric counts."""
        if not self.is_allowed_origin(headers["origin"]):
            return refused_origin()
        if headers["access-control-request-method"] not in METHODS:
            return ProxyError(Failure.METHOD_NOT_ALLOWED, f"Pages may use {', '.join(METHODS)}.")
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["method"] == "OPTIONS" else Headers()
        preflight = "origin" in headers and "access-control-request-method" in headers
        error = self._refusal(headers) if preflight else None
        if error is None:
            await super().__call__(scope, receive, send)
            return
        note_failure(scope, error)
        await error_response(error, scope["state"]["request_id"])(scope, receive, send)
