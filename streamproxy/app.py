"""The composition root: settings -> one wired Starlette app. Nothing is shared between two apps of a process."""

from __future__ import annotations

import os
import secrets
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import anyio
import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from streamproxy.auth import StreamTokens
from streamproxy.configuration import Configured, configure, read_catalogue
from streamproxy.core.catalogue import Provider
from streamproxy.core.conversation import Limits
from streamproxy.core.events import error_body
from streamproxy.core.headers import HeaderPolicy
from streamproxy.errors import Failure, ProxyError
from streamproxy.generation.attempts import Attempts
from streamproxy.generation.driver import Outside
from streamproxy.generation.producer import Producer
from streamproxy.generation.router import Router, Service
from streamproxy.hub import STORES
from streamproxy.hub.hub import Hub, HubLimits
from streamproxy.observe import Observer
from streamproxy.providers import ADAPTERS
from streamproxy.settings import ProviderSettings, Settings
from streamproxy.upstream import Deadlines, Resolver, Upstream, default_ssl_context
from streamproxy.upstream.fetch import Fetcher
from streamproxy.upstream.signing import GoogleSigner, TokenTransport, google_credentials
from streamproxy.web.body import Budget, Intake
from streamproxy.web.context import Context
from streamproxy.web.middleware import Cors, RequestContext
from streamproxy.web.model_lists import ModelLists
from streamproxy.web.origins import Origins, hosts_of
from streamproxy.web.outcome import note_failure
from streamproxy.web.responses import Pace
from streamproxy.web.routes import PREFIXES, ROUTES, routes


def create_app(
    settings: Settings,
    *,
    environ: Mapping[str, str] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    resolver: Resolver | None = None,
) -> Starlette:
    """The app that serves `settings`. Raises ConfigurationError with all that is wrong.

    `app.state.drain` is to be awaited when the process is asked to stop: it ends with the last stream, or in time.
    `environ` is where credentials are looked up (the process's by default). `ssl_context` replaces the trust towards
    providers, `resolver` the resolution of their names.
    """
    policy = HeaderPolicy.load()
    catalogue = read_catalogue()
    found = os.environ if environ is None else environ
    configured = configure(settings, catalogue, found, policy, adapters=ADAPTERS)
    observer = Observer()
    tokens = StreamTokens(settings.secret or secrets.token_urlsafe(32), settings.token_seconds)
    origins = _origins(settings, configured)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            services: dict[str, Service] = {}
            trust = ssl_context or default_ssl_context()
            for provider in configured.providers:
                services[provider.name] = _service(settings, provider, configured, trust, resolver, observer)
                stack.push_async_callback(services[provider.name].upstream.aclose)
            tasks = await stack.enter_async_context(anyio.create_task_group())
            kept = await stack.enter_async_context(
                STORES[settings.store.partition(":")[0]](settings.store, settings.store_bytes, settings.linger)
            )
            hub_limits = HubLimits(
                grace=settings.disconnect_grace,
                hold=settings.failure_hold,
                viewers=settings.max_viewers,
                viewers_of_owner=settings.max_viewers_per_caller,
                streams=settings.max_streams,
            )
            hub = Hub(kept=kept, tasks=tasks, limits=hub_limits, observer=observer)
            tasks.start_soon(hub.tend)
            fetcher = Fetcher(hosts=settings.fetch_hosts, ssl_context=trust)
            stack.push_async_callback(fetcher.aclose)
            limits = Limits(settings.max_event_bytes, settings.max_response_bytes, settings.fetch_images)
            attempts = Attempts(
                ADAPTERS,
                Outside(fetcher, limits, settings.total_timeout, settings.connect_timeout, trust),
                settings.stream_n,
            )
            producer = Producer(attempts=attempts, hub=hub, observer=observer, policy=policy, tasks=tasks)
            pace = Pace(settings.heartbeat, settings.drain_timeout)
            # On the app, not in the lifespan's state: that is lost where a parent app's lifespan does not hand it on.
            app.state.context = Context(
                settings,
                catalogue,
                configured.providers,
                Router(catalogue, services, policy),
                attempts,
                producer,
                observer,
                hub,
                tokens,
                pace,
                origins,
                _intake(settings),
                _keyed(configured),
                ModelLists(services),
            )
            try:
                yield
            finally:
                app.state.context = None
                tasks.cancel_scope.cancel()

    app = Starlette(
        routes=routes(),
        middleware=[Middleware(RequestContext, observer, origins, policy), Middleware(Cors, origins)],
        lifespan=lifespan,
        exception_handlers={HTTPException: _not_routed},
    )
    app.router.redirect_slashes = False  # a redirect would name whatever host the caller said, and lose a POST's body
    app.state.context = None

    async def drain() -> None:
        context: Context | None = app.state.context
        if context is not None:
            await context.hub.drain(settings.drain_timeout)

    app.state.drain = drain
    return app


def _intake(settings: Settings) -> Intake:
    return Intake(
        json=settings.max_json_bytes,
        upload=settings.max_upload_bytes,
        pause=settings.receive_timeout,
        rate=settings.receive_rate,
        budget=Budget(settings.max_body_memory),
    )


def _keyed(configured: Configured) -> bool:
    """A key goes to every provider, and each is beyond this machine's networks: over plain HTTP some need none."""
    sources = configured.credentials
    return bool(configured.providers) and all(
        sources[provider.name].kind == "caller" and provider.base_url.startswith("https:")
        for provider in configured.providers
    )


def _origins(settings: Settings, configured: Configured) -> Origins:
    """Any host name will do unless a configured key can be spent by it without a caller's."""
    exposed = not settings.caller_keys and any(source.configured for source in configured.credentials.values())
    hosts = hosts_of(settings.host, settings.allowed_hosts) if exposed else None
    return Origins(frozenset(settings.cors_origins), hosts)


def _service(
    settings: Settings,
    provider: Provider,
    configured: Configured,
    trust: ssl.SSLContext,
    resolver: Resolver | None,
    observer: Observer,
) -> Service:
    row = settings.providers.get(provider.name, ProviderSettings())
    upstream = Upstream(
        deadlines=Deadlines(
            connect=settings.connect_timeout,
            first_byte=settings.first_byte_timeout,
            idle=settings.idle_timeout,
            total=settings.total_timeout,
            pool=settings.pool_timeout,
        ),
        max_connections=settings.max_connections,
        ssl_context=trust,
        tolerated=partial(observer.tolerated, provider.name),
        trust_env=settings.trust_env_proxies,
        resolver=resolver,
    )
    source = configured.credentials[provider.name]
    signer = None
    if source.signing_key is not None:
        load = partial(google_credentials, source.signing_key)
        signer = GoogleSigner(load, TokenTransport(trust, settings.trust_env_proxies))
    return Service(provider, upstream, source, row.strict_headers, tuple(row.allow_headers), signer)


async def _not_routed(request: Request, exception: Exception) -> Response:
    """404 and 405 in the shape of every other error."""
    status = exception.status_code if isinstance(exception, HTTPException) else 500
    if status == Failure.METHOD_NOT_ALLOWED.value.status:
        error = ProxyError(Failure.METHOD_NOT_ALLOWED, "This path does not take this method.")
    else:
        served = ", ".join(f"{row.method} {PREFIXES[0]}{row.path}" for row in ROUTES if row.surface)
        error = ProxyError(Failure.NOT_FOUND, f"No such path. Served are, under {' and '.join(PREFIXES)}: {served}.")
    note_failure(request.scope, error)
    headers = dict(exception.headers or {}) if isinstance(exception, HTTPException) else {}
    return Response(
        orjson.dumps(error_body(error, request.state.request_id)),
        error.status,
        headers=headers,
        media_type="application/json",
    )
