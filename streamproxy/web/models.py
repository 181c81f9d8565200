"""GET models, models/{id} and images/models: what the catalogue has and the configured providers serve."""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.types import ASGIApp

from streamproxy.core.catalogue import model_object
from streamproxy.errors import Failure, ProxyError
from streamproxy.web.context import Context
from streamproxy.web.responses import json_response


def _listed(context: Context) -> list[dict[str, object]]:
    today = datetime.now(UTC).date()
    return [model_object(model, id) for model, id in context.catalogue.listed(context.providers, today)]


async def models(request: Request, context: Context) -> ASGIApp:
    """OpenAI's list shape."""
    return json_response({"object": "list", "data": _listed(context)})


async def model(request: Request, context: Context) -> ASGIApp:
    """One model; its id may contain slashes."""
    wanted: str = request.path_params["id"]
    route = context.catalogue.resolve(wanted, context.providers)
    known = [entry for entry in _listed(context) if entry["id"] in (wanted, route.model.id)]
    if not known:
        raise ProxyError(
            Failure.MODEL_NOT_FOUND,
            "This model is not in the catalogue. GET /v1/models lists those that are.",
            param="id",
        )
    return json_response(known[0])
