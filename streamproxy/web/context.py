"""What every handler may touch, and how it is called.

A handler is `async (Request, Context) -> ASGI response`. `Endpoint` is what Starlette routes to: it knows the caller
before the handler runs, and turns every failure into an answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamproxy.auth import Caller, authenticate
from streamproxy.core.catalogue import Catalogue, Provider
from streamproxy.errors import Failure, ProxyError
from streamproxy.observe import Observer
from streamproxy.relay import Relay
from streamproxy.settings import Settings
from streamproxy.web.responses import deliver, error_response

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


Handler = Callable[[Request, Context], Awaitable[ASGIApp]]
Contextual = Callable[[], Context]


class Endpoint:
    """One handler as an ASGI app. `keys`: whether it needs a caller key where keys are configured."""

    def __init__(self, handler: Handler, context: Contextual, *, keys: bool) -> None:
        self._handler = handler
        self._context = context
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = self._context()
        request = Request(scope, receive)
        request_id: str = request.state.request_id
        try:
            if self._keys:
                caller: Caller = authenticate(scope["headers"], context.settings.caller_keys)
                request.state.caller = caller.key_id
            response = await self._handler(request, context)
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
