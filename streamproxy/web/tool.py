"""POST responses: a picture where the request is for one, else the provider's own answer."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial

from anyio import to_thread
from starlette.requests import Request
from starlette.types import ASGIApp

from streamproxy.core.catalogue import AUTO
from streamproxy.core.rawjson import JsonObject, parse
from streamproxy.core.requests import ImageRequest
from streamproxy.surfaces import responses as surface
from streamproxy.web.body import media_type, unsupported
from streamproxy.web.chat import with_model
from streamproxy.web.endpoint import Context
from streamproxy.web.generation import generate
from streamproxy.web.images import CHECKED_HERE
from streamproxy.web.relay import RESPONSES, relay


async def responses(request: Request, context: Context) -> ASGIApp:
    """One call of the `image_generation` tool, by the model that the tool names."""
    if media_type(request) != "application/json":
        raise unsupported("application/json")
    context.ask_for_key(request)
    with ExitStack() as room:
        held = await context.intake.read_json(request)
        room.callback(held.close)
        body = parse(held.raw)
        del held  # what is made of it holds what it needs
        if not surface.draws(body):
            named = with_model(body, context.settings.default_model)
            return await relay(request, context, named, RESPONSES, room)
        tool = surface.tool_of(body)
        model = surface.model_of(body, tool) or _default(request, body, context)
        if model != AUTO:
            context.router.plan(model, request.scope["headers"])  # refused before its pictures are looked at
        reading = partial(_read, body, tool, model, context.catalogue.max_prompt(model))
        wanted, answered = reading() if len(body.raw) <= CHECKED_HERE else await to_thread.run_sync(reading)
        del body, tool, reading
        return await generate(request, context, wanted, room, answered)


def _read(body: JsonObject, tool: surface.Tool, model: str, max_prompt: int) -> tuple[ImageRequest, surface.Response]:
    wanted = surface.request(body, tool, model, max_prompt)
    return wanted, surface.Response.of(body, tool, wanted)


def _default(request: Request, body: JsonObject, context: Context) -> str:
    """The model of a tool that names none: the request's own where it makes pictures, the setting's, or the first."""
    written = body.decode("model")
    if isinstance(written, str) and (written == AUTO or context.catalogue.find(written) is not None):
        return written
    listed = context.catalogue.listed(context.providers, datetime.now(UTC).date())
    allowed = partial(context.router.allows, headers=request.scope["headers"])
    return context.settings.default_model or next(filter(allowed, (id for _, id in listed)), "")
