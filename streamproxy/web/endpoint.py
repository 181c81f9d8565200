"""How a route's handler is called, and what it may touch.

A handler is `async (Request, Context) -> ASGI response`. `Endpoint` is what Starlette routes to: it knows the caller
before the handler runs, and turns every failure into a response.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from streamproxy.auth import Callers, StreamTokens, authenticate, has_key
from streamproxy.core.catalogue import Catalogue, Provider
from streamproxy.errors import Failure, ProxyError
from streamproxy.generation.attempts import Attempts
from streamproxy.generation.choosing import Chooser
from streamproxy.generation.previews import PreviewMaker
from streamproxy.generation.producer import Producer
from streamproxy.generation.results import Results
from streamproxy.generation.router import Router
from streamproxy.generation.tabs import Tabs
from streamproxy.hub.files import Files
from streamproxy.hub.hub import Hub
from streamproxy.observe import Observer
from streamproxy.settings import Settings
from streamproxy.web.body import Intake
from streamproxy.web.model_lists import ModelLists
from streamproxy.web.origins import Origins
from streamproxy.web.outcome import note_failure
from streamproxy.web.responses import deliver, error_response
from streamproxy.web.static import StaticFile
from streamproxy.web.webhooks import Notifier
from streamproxy.web.writing import Cutoff


@dataclass(frozen=True, slots=True)
class Context:
    """The wired app, as handlers see it."""

    settings: Settings
    catalogue: Catalogue
    providers: tuple[Provider, ...]
    router: Router
    chooser: Chooser
    attempts: Attempts
    producer: Producer
    previews: PreviewMaker
    observer: Observer
    hub: Hub
    uploads: Files
    tokens: StreamTokens
    callers: Callers
    tabs: Tabs
    origins: Origins
    intake: Intake
    cutoff: Cutoff
    keyed: bool
    """Whether every provider needs the caller's own key, so that a request without one cannot succeed."""
    models: ModelLists
    notifier: Notifier | None
    results: Results | None
    files: Mapping[str, StaticFile]
    openapi: Callable[[], StaticFile]

    def ask_for_key(self, request: Request) -> None:
        """Raises ProxyError(INVALID_API_KEY) for a request that brings no key where it cannot do without."""
        if self.keyed and not has_key(request.scope["headers"]):
            raise ProxyError(
                Failure.INVALID_API_KEY,
                "No API key: send the provider's own one as `Authorization: Bearer <key>`; it is passed on.",
            )


Handler = Callable[[Request, Context], Awaitable[ASGIApp]]


def context_of(scope: Scope) -> Context:
    """The wired app that a request came to. Raises RuntimeError where its lifespan has not run."""
    context: Context | None = scope["app"].state.context
    if context is None:
        raise RuntimeError(
            "streamproxy has not been started: its lifespan must run. An app that mounts it runs it in its own, with "
            "`async with proxy.router.lifespan_context(proxy): yield`; a server does with lifespan on."
        )
    return context


class Endpoint:
    """One path's handlers by method, as an ASGI app.

    `keys`: whether they need a caller key where there are any; `follows`: whether they show a stream.
    """

    def __init__(self, handlers: Mapping[str, Handler], *, keys: bool, follows: bool) -> None:
        self._handlers = handlers
        self._keys = keys
        self._follows = follows

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        context = context_of(scope)
        try:
            response = await self._handled(request, context)
        except Exception as error:
            request_id: str = request.state.request_id
            failure = _failure(error, context.observer, request_id)
            note_failure(scope, failure)
            response = error_response(failure, request_id)
        await deliver(response, scope, receive, send, context.settings.send_timeout)

    async def _handled(self, request: Request, context: Context) -> ASGIApp:
        context.origins.check_origin(request.method, request.headers, follows=self._follows)
        if self._keys:
            request.state.caller = authenticate(request.scope["headers"], context.callers).label
        return await self._handlers["GET" if request.method == "HEAD" else request.method](request, context)


def _failure(error: Exception, observer: Observer, request_id: str) -> ProxyError:
    match error:
        case ProxyError():
            return error
        case ClientDisconnect():
            return ProxyError(Failure.CALLER_GONE, "The caller left before its request was complete.")
        case _:
            return observer.unexpected(error, request_id)
