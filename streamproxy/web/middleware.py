"""Round every request: its id, its log line and metric, and CORS. Plain ASGI: nothing here touches a body."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamproxy.errors import Failure, ProxyError
from streamproxy.observe import Observer
from streamproxy.web.responses import NOT_APPLIED, error_response

EXPOSED = (
    "x-request-id",
    "retry-after",
    "x-should-retry",
    "openai-processing-ms",
    "proxy-status",
    NOT_APPLIED,
    "stream-id",
    "location",
    "cancel-location",
    "preference-applied",
)
"""Response headers that a page of another origin may read."""


class RequestContext:
    """Gives each request an id, and writes its one log line when it is over."""

    def __init__(self, app: ASGIApp, observer: Observer) -> None:
        self._app = app
        self._observer = observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = request_id = f"req_{uuid.uuid4().hex}"
        began = time.perf_counter()
        status = 499
        size = 0

        async def counted(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message["headers"])
                headers.setdefault("x-request-id", request_id)
                message["headers"] = headers.raw
            else:
                size += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            route = scope.get("route")
            self._observer.request(
                getattr(route, "path", "none"),
                status,
                method=scope["method"],
                bytes=size,
                ms=round((time.perf_counter() - began) * 1000, 1),
                request_id=request_id,
                caller=state.get("caller"),
            )


class Cors(CORSMiddleware):
    """Starlette's, with a refusal that says what to change."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
            max_age=600,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" and scope["method"] == "OPTIONS" else Headers()
        preflight = "origin" in headers and "access-control-request-method" in headers
        if not preflight or self.is_allowed_origin(headers["origin"]):
            await super().__call__(scope, receive, send)
            return
        error = ProxyError(
            Failure.ORIGIN_NOT_ALLOWED, "This origin may not call the proxy. Add it to the setting cors_origins."
        )
        await error_response(error, scope["state"]["request_id"])(scope, receive, send)
