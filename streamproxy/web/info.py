"""The proxy about itself: the models it serves, its files for browsers, and for operators its health and its metrics.

The catalogue says which models there are for the hosts it knows. An upstream that takes every name is asked itself.
Where it does not say, the catalogue's models stand in for its own, and the response's `notes` say so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Final

from anyio import to_thread
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from streamproxy.auth import Headers, authenticate
from streamproxy.core.catalogue import Model, Provider, model_object
from streamproxy.errors import Failure, ProxyError
from streamproxy.generation.abilities import abilities
from streamproxy.web.endpoint import Context
from streamproxy.web.model_lists import ListedModel
from streamproxy.web.responses import Response, empty_response, json_response
from streamproxy.web.static import file_response

METRICS: Final = "/metrics"
UNAUTHORIZED: Final = (401, 403)

Exposition = Callable[[], tuple[bytes, str]]
"""Gives all metrics in Prometheus' text form, and the content type."""


@dataclass(slots=True)
class _Listing:
    """The entries by their ids, in order, and where the catalogue had to stand in."""

    entries: dict[str, dict[str, object]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, context: Context, providers: list[Provider], today: date) -> None:
        """Add the catalogue's models of these providers."""
        for model, id in context.catalogue.listed(providers, today):
            self.entries.setdefault(id, _described(context, model, id))


async def _listed(request: Request, context: Context) -> _Listing:
    """The models that the caller may ask for."""
    headers = request.scope["headers"]
    caller = authenticate(headers, context.callers)
    usable = tuple(provider for provider in context.providers if caller.may_use(provider.name))
    found = await _served(replace(context, providers=usable), headers)
    found.entries = {id: entry for id, entry in found.entries.items() if context.router.allows(id, headers)}
    return found


async def _served(context: Context, headers: Headers) -> _Listing:
    today = datetime.now(UTC).date()
    found = _Listing()
    found.add(context, [provider.only_named() for provider in context.providers], today)
    for provider in (provider for provider in context.providers if provider.unlisted):
        try:
            for listed in await context.models.of(provider, headers):
                found.entries.setdefault(listed.id, _merged(listed, context))
        except ProxyError as error:
            if error.status in UNAUTHORIZED:
                raise  # by the caller's own key: another list would hide that
            found.notes.append(
                f"{provider.name} does not list its models, so these are the catalogue's. {error.message}"
            )
            found.add(context, [provider], today)
    return found


def _described(context: Context, model: Model, id: str) -> dict[str, object]:
    """One model of the catalogue, and what it can do where it is served by this name."""
    route = context.catalogue.resolve(id, context.providers)
    adapter = context.attempts.adapters[route.provider.adapter]
    return {**model_object(model, id), **abilities(adapter, route)}


def _merged(listed: ListedModel, context: Context) -> dict[str, object]:
    """One model in OpenAI's shape: the host's entry, completed from the catalogue."""
    known = context.catalogue.find(listed.id)
    entry: dict[str, object] = {"id": listed.id, "object": "model", "created": 0, "owned_by": ""}
    if known is not None:
        entry = _described(context, known, listed.id)
    if isinstance(listed.created, int):
        entry["created"] = listed.created
    if isinstance(listed.owned_by, str):
        entry["owned_by"] = listed.owned_by
    return entry


async def models(request: Request, context: Context) -> ASGIApp:
    """OpenAI's list shape."""
    found = await _listed(request, context)
    notes = {"notes": found.notes} if found.notes else {}
    return json_response({"object": "list", "data": [*found.entries.values()], **notes})


async def model(request: Request, context: Context) -> ASGIApp:
    """One model; its id may contain slashes."""
    wanted: str = request.path_params["id"]
    route = context.router.plan(wanted, request.scope["headers"]).route
    entries = (await _listed(request, context)).entries
    known = entries.get(wanted) or entries.get(route.model.id)
    if known is None:
        raise ProxyError(
            Failure.MODEL_NOT_FOUND,
            "No configured provider lists this model. GET /v1/models shows those that are listed.",
            param="id",
        )
    return json_response(known)


async def file(request: Request, context: Context) -> ASGIApp:
    """The browser's file of this route."""
    return file_response(request, context.files[request.scope["route"].path])


async def livez(request: Request, context: Context) -> ASGIApp:
    """200 while the event loop turns. Nothing else is asked."""
    return json_response({"status": "ok"})


async def readyz(request: Request, context: Context) -> ASGIApp:
    """200 while new requests are taken. A failed store is named, but streams of this process go on without it."""
    admission = context.hub.admission
    status = "draining" if admission.draining else "overloaded" if admission.short_of_memory else "ok"
    body = {
        "status": status,
        "store": "failed" if context.hub.health.failed else "ok",
    }
    return json_response(body, status=200 if status == "ok" else 503)


async def metrics(request: Request, context: Context) -> ASGIApp:
    """Prometheus' text format."""
    return await _exposed(context.observer.metrics.exposition)


async def _exposed(exposition: Exposition) -> Response:
    body, content_type = await to_thread.run_sync(exposition)  # many workers' numbers take over 50 ms to add
    return Response(200, content_type, (body,), {})


def metrics_app(exposition: Exposition) -> ASGIApp:
    """Metrics alone, for a listener that callers do not reach: it asks for no key."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        served = request.url.path == METRICS and request.method in ("GET", "HEAD")
        response = await _exposed(exposition) if served else empty_response(404, {})
        await response(scope, receive, send)

    return app
