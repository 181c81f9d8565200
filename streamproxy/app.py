"""The composition root: settings -> one wired Starlette app. Nothing is shared between two apps of a process.

create_app    what settings decide alone: providers, credentials, origins, routes
_Wiring       what runs between the app's start and its end: connections, store, hub, producers
"""

from __future__ import annotations

import os
import secrets
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Final

import anyio
import orjson
from anyio.abc import TaskGroup
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from streamproxy.auth import StreamTokens, callers_of
from streamproxy.core.catalogue import Catalogue, Provider
from streamproxy.core.conversation import Limits
from streamproxy.core.events import error_body
from streamproxy.core.headers import HeaderPolicy
from streamproxy.core.webhooks import signing_key
from streamproxy.errors import Failure, ProxyError
from streamproxy.generation.attempts import Attempts
from streamproxy.generation.choosing import Chooser
from streamproxy.generation.driver import CONVERSIONS, Outside
from streamproxy.generation.previews import PreviewMaker
from streamproxy.generation.producer import Producer
from streamproxy.generation.results import Results
from streamproxy.generation.router import Router, Service
from streamproxy.generation.tabs import Tabs
from streamproxy.hub import FILE_STORES, LEDGERS, NOTICE_STORES, STORES
from streamproxy.hub.files import Files, Room
from streamproxy.hub.hub import Hub
from streamproxy.hub.ledger import Ledger
from streamproxy.hub.limits import HubLimits
from streamproxy.hub.outbox import OutboxLimits
from streamproxy.observe import Observer
from streamproxy.providers import ADAPTERS
from streamproxy.settings import ProviderSettings, Settings
from streamproxy.settings.providers import Providers, configure, read_catalogue
from streamproxy.upstream import Deadlines, Resolver, Upstream, default_ssl_context
from streamproxy.upstream.breaker import Breaker, State
from streamproxy.upstream.bucket import Bucket
from streamproxy.upstream.fetch import Fetcher
from streamproxy.upstream.posting import Poster
from streamproxy.upstream.signing import (
    BEDROCK,
    AwsSigner,
    GoogleSigner,
    Signer,
    TokenTransport,
    aws_credentials,
    google_credentials,
)
from streamproxy.web.body import Budget, Intake
from streamproxy.web.endpoint import Context
from streamproxy.web.middleware import Cors, RequestContext
from streamproxy.web.model_lists import ModelLists
from streamproxy.web.origins import Origins, hosts_of
from streamproxy.web.outcome import note_failure
from streamproxy.web.routes import PREFIXES, ROUTES, routes
from streamproxy.web.static import ANY_PAGE, StaticFile, read_files, static_file
from streamproxy.web.webhooks import Notifier
from streamproxy.web.writing import Cutoff

SETTLE_SECONDS: Final = 5.0
"""For pictures of the last streams to be in the bucket when the process is asked to stop."""


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
    configured = configure(settings, catalogue, os.environ if environ is None else environ, policy, adapters=ADAPTERS)
    wiring = _Wiring(
        settings=settings,
        catalogue=catalogue,
        configured=configured,
        policy=policy,
        observer=Observer(),
        tokens=StreamTokens(settings.secret or secrets.token_urlsafe(32), settings.token_seconds),
        origins=_origins(settings, configured),
        ssl_context=ssl_context,
        resolver=resolver,
        files=read_files(),
    )
    app = Starlette(
        routes=routes(page=settings.playground),
        middleware=[
            Middleware(RequestContext, wiring.observer, wiring.origins, policy),
            Middleware(Cors, wiring.origins),
        ],
        lifespan=wiring.lifespan,
        exception_handlers={HTTPException: _not_routed},
    )
    app.router.redirect_slashes = False  # a redirect would name whatever host the caller said, and lose a POST's body
    app.state.context = None
    app.state.drain = partial(_drain, app)
    return app


async def _drain(app: Starlette) -> None:
    context: Context | None = app.state.context
    if context is not None:
        await context.hub.drain(context.settings.drain_timeout)
        if context.results is not None:
            await context.results.settled(SETTLE_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wiring:
    """The parts of an app that exist before it runs. `lifespan` starts the others from them."""

    settings: Settings
    catalogue: Catalogue
    configured: Providers
    policy: HeaderPolicy
    observer: Observer
    tokens: StreamTokens
    origins: Origins
    ssl_context: ssl.SSLContext | None
    resolver: Resolver | None
    files: Mapping[str, StaticFile]

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """All that runs, from the app's start to its end."""
        async with AsyncExitStack() as running:
            # On the app, not in the lifespan's state: that is lost where a parent app's lifespan does not hand it on.
            app.state.context = await self._start(running)
            try:
                yield
            finally:
                app.state.context = None

    async def _start(self, running: AsyncExitStack) -> Context:
        """Start everything. What has to be ended is on `running`."""
        trust = self.ssl_context or default_ssl_context()
        services = self._connect(running, trust)
        ledger = await running.enter_async_context(LEDGERS[self.settings.store.partition(":")[0]](self.settings.store))
        settling = await running.enter_async_context(AsyncExitStack())  # once all tasks have ended
        tasks = await running.enter_async_context(anyio.create_task_group())
        hub = await self._start_hub(running, tasks)
        results = self._results(tasks)
        tabs = self._start_tabs(settling, tasks, ledger, hub)
        callers = callers_of(self.settings)
        threads = anyio.CapacityLimiter(CONVERSIONS)
        attempts = self._attempts(running, trust, threads)
        router = Router(self.catalogue, services, self.policy, callers)
        notifier = self._start_notifier(running, tasks, trust, hub, results)
        running.callback(tasks.cancel_scope.cancel)
        return Context(
            settings=self.settings,
            catalogue=self.catalogue,
            providers=self.configured.providers,
            router=router,
            chooser=Chooser(router, attempts, self.settings.auto, self.settings.fallbacks),
            attempts=attempts,
            producer=Producer(attempts=attempts, hub=hub, observer=self.observer, tasks=tasks, results=results),
            previews=PreviewMaker(tasks, threads),
            observer=self.observer,
            hub=hub,
            uploads=await self._open_files(running, hub),
            tokens=self.tokens,
            callers=callers,
            tabs=tabs,
            origins=self.origins,
            intake=_intake(self.settings),
            cutoff=Cutoff(tasks, self.settings.drain_timeout),
            keyed=_keyed(self.configured),
            models=ModelLists(services),
            notifier=notifier,
            results=results,
            files=self.files,
            openapi=cache(self._openapi),
        )

    def _start_tabs(self, settling: AsyncExitStack, tasks: TaskGroup, ledger: Ledger, hub: Hub) -> Tabs:
        """The callers' budgets. Bills that are still open are settled at the end of `settling`."""
        tabs = Tabs(ledger, health=hub.health, observer=self.observer)
        tasks.start_soon(tabs.tend)
        settling.push_async_callback(tabs.settle_all)
        return tabs

    def _connect(self, running: AsyncExitStack, trust: ssl.SSLContext) -> dict[str, Service]:
        """Each provider with its connections, by its name."""
        services: dict[str, Service] = {}
        for provider in self.configured.providers:
            row = self.settings.providers.get(provider.name, ProviderSettings())
            upstream = Upstream(
                deadlines=_deadlines(self.settings),
                max_connections=self.settings.max_connections,
                ssl_context=trust,
                tolerated=partial(self.observer.tolerated, provider.name),
                trust_env=self.settings.trust_env_proxies,
                resolver=self.resolver,
            )
            running.push_async_callback(upstream.aclose)
            credential = self.configured.credentials[provider.name]
            signer = self._signer(provider, credential.signing_key, trust)
            services[provider.name] = Service(
                provider,
                upstream,
                credential,
                row.strict_headers,
                tuple(row.allow_headers),
                signer,
                Breaker(changed=partial(_breaker, self.observer, provider.name), opens=row.breaker),
            )
        return services

    def _signer(self, provider: Provider, key: str | None, trust: ssl.SSLContext) -> Signer | None:
        """What authorizes a provider's requests from `key`; None where a header does."""
        if key is None:
            return None
        if provider.signing == "aws":
            return AwsSigner(partial(aws_credentials, key), BEDROCK, provider.location)
        return GoogleSigner(partial(google_credentials, key), TokenTransport(trust, self.settings.trust_env_proxies))

    def _openapi(self) -> StaticFile:
        """/openapi.json, made when it is first asked for."""
        from streamproxy.web.openapi import Installation, document  # most processes are never asked

        settings = self.settings
        keyed = bool(settings.caller_keys) or _keyed(self.configured)
        installation = Installation(settings.public_url, keyed, settings.max_json_bytes, settings.max_upload_bytes)
        return static_file(".json", orjson.dumps(document(ROUTES, PREFIXES, installation)), ANY_PAGE)

    async def _start_hub(self, running: AsyncExitStack, tasks: TaskGroup) -> Hub:
        settings = self.settings
        open_store = STORES[settings.store.partition(":")[0]]
        backend = await running.enter_async_context(open_store(settings.store, settings.store_bytes, settings.linger))
        limits = HubLimits(
            grace=settings.disconnect_grace,
            hold=settings.failure_hold,
            viewers=settings.max_viewers,
            viewers_of_owner=settings.max_viewers_per_caller,
            streams=settings.max_streams,
            webhooks=OutboxLimits(settings.max_webhooks, settings.max_webhooks_per_caller),
        )
        notices = None
        if settings.webhook_origins:
            open_notices = NOTICE_STORES[settings.store.partition(":")[0]]
            notices = await running.enter_async_context(open_notices(settings.store))
        hub = Hub(backend=backend, tasks=tasks, limits=limits, observer=self.observer, notices=notices)
        tasks.start_soon(hub.tend)
        return hub

    def _results(self, tasks: TaskGroup) -> Results | None:
        settings = self.settings
        if settings.results is None:
            return None
        lifetime = settings.results_seconds or settings.token_seconds
        bucket = Bucket(settings.results, endpoint=settings.results_endpoint, seconds=lifetime)
        return Results(bucket, tasks=tasks, observer=self.observer)

    def _start_notifier(
        self, running: AsyncExitStack, tasks: TaskGroup, trust: ssl.SSLContext, hub: Hub, results: Results | None
    ) -> Notifier | None:
        settings = self.settings
        if hub.outbox is None or settings.webhook_secret is None:
            return None
        resolver = None if self.resolver is None else self.resolver.resolve
        poster = Poster(origins=settings.webhook_origins, ssl_context=trust, resolver=resolver)
        running.push_async_callback(poster.aclose)
        notifier = Notifier(
            outbox=hub.outbox,
            poster=poster,
            hub=hub,
            tokens=self.tokens,
            observer=self.observer,
            results=results,
            key=signing_key(settings.webhook_secret),
        )
        tasks.start_soon(notifier.run)
        return notifier

    async def _open_files(self, running: AsyncExitStack, hub: Hub) -> Files:
        settings = self.settings
        room = Room(settings.file_bytes, settings.file_bytes_per_caller)
        open_store = FILE_STORES[settings.store.partition(":")[0]]
        store = await running.enter_async_context(open_store(settings.store, room))
        return Files(store, hub.health, room, settings.file_seconds, tenants=settings.has_callers)

    def _attempts(self, running: AsyncExitStack, trust: ssl.SSLContext, threads: anyio.CapacityLimiter) -> Attempts:
        settings = self.settings
        fetcher = Fetcher(hosts=settings.fetch_hosts, ssl_context=trust)
        running.push_async_callback(fetcher.aclose)
        limits = Limits(
            settings.max_event_bytes, settings.max_response_bytes, settings.fetch_images, settings.inline_urls
        )
        outside = Outside(fetcher, limits, settings.total_timeout, settings.connect_timeout, trust, converting=threads)
        return Attempts(ADAPTERS, outside, settings.stream_n)


def _breaker(observer: Observer, provider: str, state: State) -> None:
    observer.breaker(provider, state.value, closed=state is State.CLOSED)


def _deadlines(settings: Settings) -> Deadlines:
    return Deadlines(
        connect=settings.connect_timeout,
        first_byte=settings.first_byte_timeout,
        idle=settings.idle_timeout,
        total=settings.total_timeout,
        pool=settings.pool_timeout,
    )


def _intake(settings: Settings) -> Intake:
    return Intake(
        json=settings.max_json_bytes,
        upload=settings.max_upload_bytes,
        pause=settings.receive_timeout,
        rate=settings.receive_rate,
        budget=Budget(settings.max_body_memory),
    )


def _keyed(configured: Providers) -> bool:
    """Whether every provider needs the caller's key. One over plain HTTP is in our own network, and may need none."""
    sources = configured.credentials
    return bool(configured.providers) and all(
        sources[provider.name].kind == "caller" and provider.base_url.startswith("https:")
        for provider in configured.providers
    )


def _origins(settings: Settings, configured: Providers) -> Origins:
    """The rules for pages and host names. Any name will do unless a configured key can be spent without a caller's."""
    exposed = not settings.has_callers and any(source.configured for source in configured.credentials.values())
    known = hosts_of(settings.host, settings.allowed_hosts)
    return Origins(frozenset(settings.cors_origins), known if exposed else None, known)


async def _not_routed(request: Request, exception: Exception) -> Response:
    """404 and 405 in the shape of every other error."""
    status = exception.status_code if isinstance(exception, HTTPException) else 500
    if status == Failure.METHOD_NOT_ALLOWED.value.status:
        error = ProxyError(Failure.METHOD_NOT_ALLOWED, "This path does not take this method.")
    else:
        served = ", ".join(f"{row.method} {PREFIXES[0]}{row.path}" for row in ROUTES if row.surface)
        page = " The setting playground serves a page here." if request.url.path == "/" else ""
        where = f"Served are, under {' and '.join(PREFIXES)}: {served}."
        error = ProxyError(Failure.NOT_FOUND, f"No such path. {where}{page}")
    note_failure(request.scope, error)
    headers = dict(exception.headers or {}) if isinstance(exception, HTTPException) else {}
    return Response(
        orjson.dumps(error_body(error, request.state.request_id)),
        error.status,
        headers=headers,
        media_type="application/json",
    )
