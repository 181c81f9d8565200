"""What every handler may touch, and how it is called.

A handler is `async (Request, Context) -> ASGI response`. `Endpoint` is what Starlette routes to: it knows the caller
before the handler runs, and turns every failure into an answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamproxy.auth import Caller, StreamTokens, authenticate
from streamproxy.core.catalogue import Catalogue, Provider
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.hub import Hub
from streamproxy.observe import Observer
from streamproxy.relay import Relay
from streamproxy.settings import Settings
from streamproxy.web.model_lists import ModelLists
from streamproxy.web.responses import Pace, deliver, error_response

LINGER_SECONDS: Final = 2.0
"""How long a caller who sends too much is read from, unheard, after its answer; nginx's lingering_timeout has 5."""


@dataclass(frozen=True, slots=True)
class Context:
    """The wired app, as handlers see it. `ready` says whether new work is taken."""

    settings: Settings
    catalogue: Catalogue
    providers: tuple[Provider, ...]
    relay: Relay
    observer: Observer
    hub: Hub
    tokens: StreamTokens
    pace: Pace
    models: ModelLists


Handler = Callable[[Request, Context], Awaitable[ASGIApp]]
Contextual = Callable[[], Context]


class Endpoint:
    """One path's handlers by method, as an ASGI app. `keys`: whether they need a caller key where there are any."""

    def __init__(self, handlers: Mapping[str, Handler], context: Contextual, *, keys: bool) -> None:
        self._handlers = handlers
        self._context = context
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = self._context()
        request = Request(scope, receive)
        request_id: str = request.state.request_id
        try:
            _refuse_foreign(request, context.settings.cors_origins)
            if self._keys:
                caller: Caller = authenticate(scope["headers"], context.settings.caller_keys)
                request.state.caller = caller.key_id
            handler = self._handlers["GET" if request.method == "HEAD" else request.method]
            response = await handler(request, context)
        except ProxyError as error:
            context.observer.failure(error, request_id)
            response = error_response(error, request_id)
            if error.failure is Failure.BODY_TOO_LARGE:
                response = _lingering(response)
        except ClientDisconnect:
            gone = ProxyError(Failure.CALLER_GONE, "The caller left before its request was complete.")
            context.observer.failure(gone, request_id)
            response = error_response(gone, request_id)
        except Exception as error:
            failed = context.observer.unexpected(error, request_id)
            context.observer.failure(failed, request_id)
            response = error_response(failed, request_id)
        await deliver(
            response,
            scope,
            receive,
            send,
            send_timeout=context.settings.send_timeout,
            stalled=lambda error: context.observer.failure(error, request_id),
        )


def _refuse_foreign(request: Request, allowed: tuple[str, ...]) -> None:
    """Refuse to do anything for a page of an origin that is not allowed.

    CORS only keeps the answer from it: a form, or a body without a type, is sent without asking first, and would spend
    the credential of a proxy on the reader's own machine. Browsers say which site a request comes from (Fetch
    Metadata), and unlike Host no proxy between rewrites it.
    """
    foreign = request.headers.get("sec-fetch-site") in ("cross-site", "same-site")
    origin = request.headers.get("origin")
    if foreign and request.method not in ("GET", "HEAD") and origin not in allowed and "*" not in allowed:
        raise ProxyError(
            Failure.ORIGIN_NOT_ALLOWED, "This origin may not call the proxy. Add it to the setting cors_origins."
        )


def _lingering(answer: ASGIApp) -> ASGIApp:
    """The answer, whose connection is closed only when the caller has stopped sending, or after LINGER_SECONDS.

    Closing at once would make the kernel reset the connection, and the caller lose the answer that says what is wrong.
    """

    async def lingering(scope: Scope, receive: Receive, send: Send) -> None:
        async def held(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                with anyio.move_on_after(LINGER_SECONDS):
                    while (await receive()).get("more_body", False):
                        pass
            await send(message)

        await answer(scope, receive, held)

    return lingering
