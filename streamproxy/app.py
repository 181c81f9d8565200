"""The composition root: settings -> one wired Starlette app. Nothing is shared between two apps of a process.

create_app    the app; from_environment: the same by the environment's settings, for other servers
_Wiring       what settings decide alone: providers, credentials, origins
_Running      what runs from the app's start to its end: connections, store, hub, tasks
_Served       both, for one app. A reload replaces the wiring, and with it the context that handlers see, as a whole

A request keeps the context that it began with, so that a reload touches no running stream.
"""

from __future__ import annotations

import os
import secrets
import ssl
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Final

import anyio
import orjson
from anyio import to_thread
from anyio.abc import TaskGroup
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from streamproxy.auth import StreamTokens, callers_of
from streamproxy.core.catalogue import Catalogue, Provider
from streamproxy.core.conversation import Adapter, Limits
from streamproxy.core.events import error_body
from streamproxy.core.headers import HeaderPolicy
from streamproxy.core.webhooks import signing_key
from streamproxy.errors import Failure, ProxyError
from streamproxy.extensions import adapters, surfaces
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
from streamproxy.hub.limits import HubLimits
from streamproxy.hub.outbox import OutboxLimits
from streamproxy.hub.pressure import Pressure
from streamproxy.observe import Observer
from streamproxy.observe.log import configure_logging
from streamproxy.settings import ConfigurationError, ProviderSettings, Settings
from streamproxy.settings.providers import Providers, configure, read_catalogue
from streamproxy.settings.reloading import reloaded
from streamproxy.settings.sources import CONFIG_ENV, load
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
from streamproxy.web.info import METRICS
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
    `app.state.reload(settings)` is to be awaited to serve by other settings: see `_Served.reload`. `app.state.observer`
    has the metrics.
    `environ` is where credentials and the receiver of traces are looked up (the process's by default). `ssl_context`
    replaces the trust towards providers, `resolver` the resolution of their names.
    """
    policy = HeaderPolicy.load()
    catalogue = read_catalogue()
    environ = os.environ if environ is None else environ
    known = adapters()
    configured = configure(settings, catalogue, environ, policy, adapters=known)
    wiring = _Wiring(
        settings=settings,
        catalogue=catalogue,
        configured=configured,
        environ=environ,
        adapters=known,
        policy=policy,
        observer=Observer(),
        secret=settings.secret or secrets.token_urlsafe(32),
        ssl_context=ssl_context,
        resolver=resolver,
        files=read_files(),
    )
    served = _Served(wiring)
    app = Starlette(
        routes=routes(page=settings.playground, metrics=settings.metrics_port is None, more=surfaces()),
        middleware=[Middleware(RequestContext, wiring.observer, policy), Middleware(Cors)],
        lifespan=served.lifespan,
        exception_handlers={HTTPException: _not_routed},
    )
    app.router.redirect_slashes = False  # a redirect would name whatever host the caller said, and lose a POST's body
    app.state.context = None
    app.state.drain = served.drain
    app.state.reload = partial(served.reload, app)
    app.state.observer = wiring.observer
    return app


class _Served:
    """One app: its wiring, and what runs between its start and its end."""

    def __init__(self, wiring: _Wiring) -> None:
        self._wiring = wiring
        self._running: _Running | None = None

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """All that runs, from the app's start to its end."""
        observer = self._wiring.observer
        async with AsyncExitStack() as stack:
            observer.open_traces(self._wiring.environ)
            stack.push_async_callback(partial(to_thread.run_sync, observer.traces.close, abandon_on_cancel=True))
            self._running = await self._wiring.start(stack)
            # On the app, not in the lifespan's state: that is lost where a parent app's lifespan does not hand it on.
            app.state.context = self._wiring.context(self._running)
            try:
                yield
            finally:
                app.state.context = self._running = None

    async def drain(self) -> None:
        if self._running is not None:
            await self._running.hub.drain(self._wiring.settings.drain_timeout)
            if self._running.results is not None:
                await self._running.results.settled(SETTLE_SECONDS)

    async def reload(self, app: Starlette, settings: Settings) -> tuple[str, ...]:
        """Serve new requests by these settings. Returns the names of those that need a restart, which stay as they are.

        Raises ConfigurationError with all that is wrong; then nothing has changed.
        """
        settings, left = reloaded(self._wiring.settings, settings)
        wiring = await to_thread.run_sync(self._wiring.anew, settings)  # it reads files
        if (running := self._running) is not None:
            app.state.context = wiring.context(running)
            wiring.limit(running)
            running.connections.keep(wiring.terms())
        self._wiring = wiring
        return left


@dataclass(frozen=True, slots=True)
class _Terms:
    """What the connections to a provider depend on."""

    provider: Provider
    deadlines: Deadlines
    most: int
    trust_env: bool
    breaks: bool


@dataclass(frozen=True, slots=True)
class _Connected:
    """The connections to one provider, and the breaker in front of them."""

    upstream: Upstream
    breaker: Breaker


class _Connections:
    """The connections to all providers. `connect` opens those to one; they are kept while their terms do not change."""

    def __init__(self, connect: Callable[[_Terms], _Connected]) -> None:
        self._connect = connect
        self._open: dict[_Terms, _Connected] = {}

    def by(self, terms: _Terms) -> _Connected:
        """The connections on these terms."""
        if terms not in self._open:
            self._open[terms] = self._connect(terms)
        return self._open[terms]

    def keep(self, wanted: Collection[_Terms]) -> None:
        """Close all others, those in use after their exchanges."""
        for terms in self._open.keys() - wanted:
            self._open.pop(terms).upstream.retire()

    async def aclose(self) -> None:
        for connected in self._open.values():
            await connected.upstream.aclose()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    """The parts of an app that run from its start to its end, whatever is reloaded."""

    trust: ssl.SSLContext
    connections: _Connections
    tasks: TaskGroup
    hub: Hub
    tabs: Tabs
    uploads: Files
    threads: anyio.CapacityLimiter
    previews: PreviewMaker
    cutoff: Cutoff
    budget: Budget
    pressure: Pressure
    results: Results | None
    notifier: Notifier | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wiring:
    """The parts of an app that exist before it runs. `start` starts the others, `context` joins both."""

    settings: Settings
    catalogue: Catalogue
    configured: Providers
    environ: Mapping[str, str]
    adapters: Mapping[str, Adapter]
    policy: HeaderPolicy
    observer: Observer
    secret: str
    ssl_context: ssl.SSLContext | None
    resolver: Resolver | None
    files: Mapping[str, StaticFile]

    def anew(self, settings: Settings) -> _Wiring:
        """The same app by other settings. Raises ConfigurationError with all that is wrong."""
        configured = configure(settings, self.catalogue, self.environ, self.policy, adapters=self.adapters)
        return replace(self, settings=settings, configured=configured)

    async def start(self, stack: AsyncExitStack) -> _Running:
        """Start everything. What has to be ended is on `stack`."""
        trust = self.ssl_context or default_ssl_context()
        connections = _Connections(partial(self._connect, trust))
        stack.push_async_callback(connections.aclose)
        open_ledger = LEDGERS[self.settings.store.partition(":")[0]]
        ledger = await stack.enter_async_context(open_ledger(self.settings.store))
        settling = await stack.enter_async_context(AsyncExitStack())  # once all tasks have ended
        tasks = await stack.enter_async_context(anyio.create_task_group())
        hub = await self._start_hub(stack, tasks)
        results = self._results(tasks)
        tabs = Tabs(ledger, health=hub.health, observer=self.observer)
        tasks.start_soon(tabs.tend)
        settling.push_async_callback(tabs.settle_all)
        threads = anyio.CapacityLimiter(CONVERSIONS)
        pressure = Pressure(hub, self.settings.memory_limit, self.observer)
        tasks.start_soon(pressure.watch)
        notifier = self._start_notifier(stack, tasks, trust, hub, results)
        stack.callback(tasks.cancel_scope.cancel)
        return _Running(
            trust=trust,
            connections=connections,
            tasks=tasks,
            hub=hub,
            tabs=tabs,
            uploads=await self._open_files(stack, hub),
            threads=threads,
            previews=PreviewMaker(tasks, threads),
            cutoff=Cutoff(tasks, self.settings.drain_timeout),
            budget=Budget(self.settings.max_body_memory),
            pressure=pressure,
            results=results,
            notifier=notifier,
        )

    def limit(self, running: _Running) -> None:
        """Apply the limits that running parts keep."""
        running.hub.limit(_limits(self.settings))
        running.budget.limit = self.settings.max_body_memory
        running.pressure.limit = self.settings.memory_limit

    def context(self, running: _Running) -> Context:
        """What requests are served by, from now on."""
        settings = self.settings
        services = self._services(running)
        callers = callers_of(settings)
        attempts = self._attempts(running)
        router = Router(self.catalogue, services, self.policy, callers)
        return Context(
            settings=settings,
            catalogue=self.catalogue,
            providers=self.configured.providers,
            router=router,
            chooser=Chooser(router, attempts, settings.auto, settings.fallbacks),
            attempts=attempts,
            producer=Producer(
                attempts=attempts,
                hub=running.hub,
                observer=self.observer,
                tasks=running.tasks,
                results=running.results,
            ),
            previews=running.previews,
            observer=self.observer,
            hub=running.hub,
            uploads=replace(running.uploads, seconds=settings.file_seconds, tenants=settings.has_callers),
            tokens=self._tokens(),
            callers=callers,
            tabs=running.tabs,
            origins=_origins(settings, self.configured),
            intake=_intake(settings, running.budget),
            cutoff=running.cutoff,
            keyed=_keyed(self.configured),
            models=ModelLists(services),
            notifier=running.notifier,
            results=running.results,
            files=self.files,
            openapi=cache(self._openapi),
        )

    def _tokens(self) -> StreamTokens:
        return StreamTokens(self.secret, self.settings.token_seconds)

    def terms(self) -> list[_Terms]:
        """The terms of the connections to each provider."""
        settings = self.settings
        deadlines = _deadlines(settings)
        return [
            _Terms(
                provider,
                deadlines,
                settings.max_connections,
                settings.trust_env_proxies,
                settings.providers.get(provider.name, ProviderSettings()).breaker,
            )
            for provider in self.configured.providers
        ]

    def _connect(self, trust: ssl.SSLContext, terms: _Terms) -> _Connected:
        name = terms.provider.name
        upstream = Upstream(
            deadlines=terms.deadlines,
            max_connections=terms.most,
            ssl_context=trust,
            tolerated=partial(self.observer.tolerated, name),
            trust_env=terms.trust_env,
            resolver=self.resolver,
        )
        return _Connected(upstream, Breaker(changed=partial(_breaker, self.observer, name), opens=terms.breaks))

    def _services(self, running: _Running) -> dict[str, Service]:
        """Each provider with its connections, by its name."""
        services: dict[str, Service] = {}
        for terms in self.terms():
            provider = terms.provider
            row = self.settings.providers.get(provider.name, ProviderSettings())
            credential = self.configured.credentials[provider.name]
            signer = self._signer(provider, credential.signing_key, running.trust)
            connected = running.connections.by(terms)
            services[provider.name] = Service(
                provider,
                connected.upstream,
                credential,
                row.strict_headers,
                tuple(row.allow_headers),
                signer,
                connected.breaker,
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
        keyed = settings.has_callers or _keyed(self.configured)
        installation = Installation(settings.public_url, keyed, settings.max_json_bytes, settings.max_upload_bytes)
        rows = tuple(row for row in ROUTES if row.path != METRICS or self.settings.metrics_port is None)
        return static_file(".json", orjson.dumps(document(rows, PREFIXES, installation)), ANY_PAGE)

    async def _start_hub(self, stack: AsyncExitStack, tasks: TaskGroup) -> Hub:
        settings = self.settings
        open_store = STORES[settings.store.partition(":")[0]]
        backend = await stack.enter_async_context(open_store(settings.store, settings.store_bytes, settings.linger))
        notices = None
        if settings.webhook_origins:
            open_notices = NOTICE_STORES[settings.store.partition(":")[0]]
            notices = await stack.enter_async_context(open_notices(settings.store))
        hub = Hub(backend=backend, tasks=tasks, limits=_limits(settings), observer=self.observer, notices=notices)
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
        self, stack: AsyncExitStack, tasks: TaskGroup, trust: ssl.SSLContext, hub: Hub, results: Results | None
    ) -> Notifier | None:
        settings = self.settings
        if hub.outbox is None or settings.webhook_secret is None:
            return None
        resolver = None if self.resolver is None else self.resolver.resolve
        poster = Poster(origins=settings.webhook_origins, ssl_context=trust, resolver=resolver)
        stack.push_async_callback(poster.aclose)
        notifier = Notifier(
            outbox=hub.outbox,
            poster=poster,
            hub=hub,
            tokens=self._tokens(),
            observer=self.observer,
            results=results,
            key=signing_key(settings.webhook_secret),
        )
        tasks.start_soon(notifier.run)
        return notifier

    async def _open_files(self, stack: AsyncExitStack, hub: Hub) -> Files:
        settings = self.settings
        room = Room(settings.file_bytes, settings.file_bytes_per_caller)
        open_store = FILE_STORES[settings.store.partition(":")[0]]
        store = await stack.enter_async_context(open_store(settings.store, room))
        return Files(store, hub.health, room, settings.file_seconds, tenants=settings.has_callers)

    def _attempts(self, running: _Running) -> Attempts:
        settings = self.settings
        fetcher = Fetcher(hosts=settings.fetch_hosts, ssl_context=running.trust)  # it keeps no connection
        limits = Limits(
            settings.max_event_bytes, settings.max_response_bytes, settings.fetch_images, settings.inline_urls
        )
        outside = Outside(
            fetcher,
            limits,
            settings.total_timeout,
            settings.connect_timeout,
            running.trust,
            self.observer.traces,
            converting=running.threads,
        )
        return Attempts(self.adapters, outside, settings.stream_n)


def _limits(settings: Settings) -> HubLimits:
    return HubLimits(
        grace=settings.disconnect_grace,
        hold=settings.failure_hold,
        viewers=settings.max_viewers,
        viewers_of_owner=settings.max_viewers_per_caller,
        streams=settings.max_streams,
        webhooks=OutboxLimits(settings.max_webhooks, settings.max_webhooks_per_caller),
    )


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


def _intake(settings: Settings, budget: Budget) -> Intake:
    return Intake(
        json=settings.max_json_bytes,
        upload=settings.max_upload_bytes,
        pause=settings.receive_timeout,
        rate=settings.receive_rate,
        budget=budget,
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


def from_environment() -> Starlette:
    """The app by the settings of the environment, for other servers.

    It configures the log too. Raises ConfigurationError.
    """
    config = os.environ.get(CONFIG_ENV)
    settings, problems = load({}, os.environ, Path(config) if config else None)
    if problems:
        raise ConfigurationError(problems)
    configure_logging(settings.log_level, settings.log_format, pid=True)
    return create_app(settings)


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
