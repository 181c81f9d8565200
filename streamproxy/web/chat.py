"""POST chat/completions: images from models that have them in chats; what is for other models is passed on."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import orjson
from anyio import to_thread
from starlette.requests import Request
from starlette.types import ASGIApp

from streamproxy.core.catalogue import AUTO, UNKNOWN, Model
from streamproxy.core.rawjson import JsonObject, parse
from streamproxy.errors import Failure, ProxyError
from streamproxy.surfaces import chat as surface
from streamproxy.surfaces.wire import unsupported
from streamproxy.web.body import media_type
from streamproxy.web.body import unsupported as unsupported_type
from streamproxy.web.endpoint import Context
from streamproxy.web.generation import generate
from streamproxy.web.images import CHECKED_HERE
from streamproxy.web.relay import CHAT, model_of, relay


async def completions(request: Request, context: Context) -> ASGIApp:
    """A picture where the model makes them in chats, else the provider's own answer."""
    if media_type(request) != "application/json":
        raise unsupported_type("application/json")
    context.ask_for_key(request)
    with ExitStack() as room:
        held = await context.intake.read_json(request)
        room.callback(held.close)
        body = with_model(parse(held.raw), context.settings.default_model)
        del held  # what is made of it holds what it needs
        name = model_of(body)
        model = _served(request, context, name)
        if model.family == UNKNOWN and name != AUTO:
            return await relay(request, context, body, CHAT, room)
        if "chat" not in model.surfaces and name != AUTO:
            raise unsupported("Model(s) do not support /chat/completions", "model")
        reading = partial(surface.request, body, model)
        wanted = reading() if len(body.raw) <= CHECKED_HERE else await to_thread.run_sync(reading)
        answered = surface.Chat(name, wanted.n, surface.wants_images(body))
        del body, reading
        return await generate(request, context, wanted, room, answered)


def _served(request: Request, context: Context, name: str) -> Model:
    """The model of this name; one that no provider serves is not ours to judge, unless it makes pictures in chats."""
    if name == AUTO:
        return Model.unknown(name)  # it is chosen by what the chat asks for
    try:
        return context.router.plan(name, request.scope["headers"]).route.model
    except ProxyError as error:
        known = context.catalogue.find(name)
        if error.failure is not Failure.MODEL_NOT_FOUND or (known is not None and "chat" in known.surfaces):
            raise
        return known or Model.unknown(name)


def with_model(body: JsonObject, default: str | None) -> JsonObject:
    """The body; one that names no model gets the setting's."""
    if default is None or (body.value("model") or b"null") != b"null":
        return body
    return parse(body.edited(drop=("model",), append={"model": orjson.dumps(default)}))
