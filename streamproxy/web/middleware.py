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
from streamproxy.surfaces.variations import SERVED_AS
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


TAKEN: Final = {
    "x-request-id": re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,127}"),
    "traceparent": re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"),  # W3C Trace Context, 3.2
}
"""A caller's own ids, which are logged and passed on to the provider. What has another form is not taken."""


class RequestContext:
    """Gives each request an id, refuses what comes by another name, and writes the one log line when it is over."""

    def __init__(self, app: ASGIApp, observer: Observer, origins: Origins, policy: HeaderPolicy) -> None:
        self._app = app
        self._observer = observer
        self._origins = origins
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # A state of its own: the server's is shared by all requests.
        state = scope["state"] = dict(scope.get("state") or {})
        headers = Headers(scope=scope)
        trace = self._trace(headers)
        state["trace"] = tuple(trace.items())
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
            self._origins.check_host(headers)
        except ProxyError as error:
            note_failure(scope, error)
            await error_response(error, scope["state"]["request_id"])(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class Cors(CORSMiddleware):
    """Starlette's, with a refusal that says what to change."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        self._origins = origins
        super().__init__(
            app,
            allow_origins=origins.allowed,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=EXPOSED,
            max_age=600,
        )

    def is_allowed_origin(self, origin: str) -> bool:
        """Starlette's question, answered where all that concerns origins is."""
        return self._origins.allows(origin)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" and scope["method"] == "OPTIONS" else Headers()
        preflight = "origin" in headers and "access-control-request-method" in headers
        if not preflight or self.is_allowed_origin(headers["origin"]):
            await super().__call__(scope, receive, send)
            return
        error = refused_origin()
        note_failure(scope, error)
        await error_response(error, scope["state"]["request_id"])(scope, receive, send)
