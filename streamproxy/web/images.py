"""POST images/generations, edits and variations: the body in, checked; what happens then is web/generation.py's."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Final, Protocol

import orjson
from anyio import to_thread
from starlette.requests import Request
from starlette.types import ASGIApp

from streamproxy.core.rawjson import JsonObject, parse
from streamproxy.core.requests import ImageRequest, Part
from streamproxy.surfaces import images as surface
from streamproxy.surfaces import variations as variation
from streamproxy.web.body import media_type, unsupported
from streamproxy.web.endpoint import Context
from streamproxy.web.generation import generate

CHECKED_HERE: Final = 4 * 1024 * 1024
"""Bytes of a body that is checked at once: at 0.5 to 3 ms per MiB, by how much of it is escapes, at most 12 ms."""


async def generations(request: Request, context: Context) -> ASGIApp:
    """Images from a prompt; with an `image` in the body it is an edit."""
    if media_type(request) != "application/json":
        raise unsupported("application/json")
    return await _json(request, context, surface.generation)


async def edits(request: Request, context: Context) -> ASGIApp:
    """Images from images: JSON with `images`, or multipart with files."""
    kind = media_type(request)
    if kind == "application/json":
        return await _json(request, context, surface.edit)
    if kind != "multipart/form-data":
        raise unsupported("application/json or multipart/form-data")
    return await _form(request, context, surface.form)


async def variations(request: Request, context: Context) -> ASGIApp:
    """Images like another one: multipart with one file."""
    if media_type(request) != "multipart/form-data":
        raise unsupported("multipart/form-data")

    def read(parts: tuple[Part, ...], *, max_prompt: int) -> ImageRequest:
        route = context.router.plan(_named(parts), request.scope["headers"]).route
        return variation.form(parts, variation.way(route), max_prompt=max_prompt)

    return await _form(request, context, read)


class _Read(Protocol):
    def __call__(self, body: JsonObject, *, max_prompt: int) -> ImageRequest: ...


class _ReadForm(Protocol):
    def __call__(self, parts: tuple[Part, ...], *, max_prompt: int) -> ImageRequest: ...


async def _form(request: Request, context: Context, read: _ReadForm) -> ASGIApp:
    context.ask_for_key(request)
    with ExitStack() as files:
        form = await context.intake.read_form(request)
        files.callback(form.close)
        parts = _with_model(form.parts, _model(request, context))
        limit = context.catalogue.max_prompt(_named(parts))
        return await generate(request, context, read(parts, max_prompt=limit), files, surface.Images())


def _named(parts: tuple[Part, ...]) -> str:
    """The model that a form names, "" where it names none."""
    named = (part.value for part in parts if part.name == "model" and isinstance(part.value, bytes))
    return next(named, b"").decode()


async def _json(request: Request, context: Context, read: _Read) -> ASGIApp:
    context.ask_for_key(request)
    with ExitStack() as room:
        held = await context.intake.read_json(request)
        room.callback(held.close)
        body = parse(held.raw)
        model = _model(request, context)
        if model and (body.value("model") or b"null") == b"null":
            body = parse(body.edited(drop=("model",), append={"model": orjson.dumps(model)}))
        reading = partial(read, body, max_prompt=context.catalogue.max_prompt(body.decode("model")))
        wanted = reading() if len(body.raw) <= CHECKED_HERE else await to_thread.run_sync(reading)
        return await generate(request, context, wanted, room, surface.Images())


def _model(request: Request, context: Context) -> str | None:
    """The model of a request that names none: that of the path, as Azure's clients write it, or the setting's."""
    found: str | None = request.path_params.get("model")
    return found or context.settings.default_model


def _with_model(parts: tuple[Part, ...], model: str | None) -> tuple[Part, ...]:
    if model is None or any(part.name == "model" for part in parts):
        return parts
    return (*parts, Part("model", model.encode()))
