"""POST images/generations and images/edits: the body in, checked; what happens then is web/generation.py's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Final, Protocol

import orjson
from anyio import to_thread
from starlette.requests import Request
from starlette.types import ASGIApp

from streamproxy.core import validate
from streamproxy.core.fields import Fields
from streamproxy.core.jsonbody import JsonObject, parse
from streamproxy.core.requests import Part
from streamproxy.web.body import media_type, unsupported
from streamproxy.web.context import Context
from streamproxy.web.generation import Asked, generate

CHECKED_HERE: Final = 4 * 1024 * 1024
"""Bytes of a body that is checked at once: at 0.5 to 3 ms per MiB, by how much of it is escapes, at most 12 ms."""


async def generations(request: Request, context: Context) -> ASGIApp:
    """Images from a prompt; with an `image` in the body it is an edit."""
    if media_type(request) != "application/json":
        raise unsupported("application/json")
    return await _json(request, context, validate.generation, via_generations=True)


async def edits(request: Request, context: Context) -> ASGIApp:
    """Images from images: JSON with `images`, or multipart with files."""
    kind = media_type(request)
    if kind == "application/json":
        return await _json(request, context, validate.edit, via_generations=False)
    if kind != "multipart/form-data":
        raise unsupported("application/json or multipart/form-data")
    context.ask_for_key(request)
    form = await context.intake.read_form(request)
    asked: Asked | None = None
    try:
        parts = _with_model(form.parts, _model(request, context))
        text, files = _text(parts), _files(parts)
        fields = validate.form(text, files, max_prompt=context.catalogue.max_prompt(*text.get("model", ())[:1]))
        asked = Asked(fields, _canonical(parts, fields), release=form.close)
        return await generate(request, context, asked)
    finally:
        if asked is None or not asked.handed_over:
            form.close()


class _Check(Protocol):
    def __call__(self, body: JsonObject, *, max_prompt: int) -> Fields: ...


async def _json(request: Request, context: Context, check: _Check, *, via_generations: bool) -> ASGIApp:
    context.ask_for_key(request)
    read = await context.intake.read_json(request)
    asked: Asked | None = None
    try:
        body = parse(read.raw)
        model = _model(request, context)
        if model and (body.value("model") or b"null") == b"null":
            body = parse(body.edited(drop=("model",), append={"model": orjson.dumps(model)}))
        named = body.decode("model")
        checked = partial(check, body, max_prompt=context.catalogue.max_prompt(named))
        fields = checked() if len(body.raw) <= CHECKED_HERE else await to_thread.run_sync(checked)
        if fields.canonical:
            replace = {name: value.encode() for name, value in fields.canonical.items()}
            body = parse(body.edited(replace=replace))
        asked = Asked(fields, body, via_generations=via_generations and fields.edit, release=read.close)
        return await generate(request, context, asked)
    finally:
        if asked is None or not asked.handed_over:
            read.close()


def _model(request: Request, context: Context) -> str | None:
    """The model of a request that names none: that of the path, as Azure's clients write it, or the setting's."""
    found: str | None = request.path_params.get("model")
    return found or context.settings.default_model


def _with_model(parts: tuple[Part, ...], model: str | None) -> tuple[Part, ...]:
    if model is None or any(part.name == "model" for part in parts):
        return parts
    return (*parts, Part("model", model.encode()))


def _canonical(parts: tuple[Part, ...], fields: Fields) -> tuple[Part, ...]:
    """The parts, with what came in another spelling than the API's as it is to be sent on."""
    found = fields.canonical
    return tuple(replace(part, value=found[part.name].encode()) if part.name in found else part for part in parts)


def _text(parts: tuple[Part, ...]) -> Mapping[str, list[str]]:
    text: dict[str, list[str]] = {}
    for part in parts:
        if part.filename is None and isinstance(part.value, bytes):
            text.setdefault(part.name, []).append(part.value.decode())
    return text


def _files(parts: tuple[Part, ...]) -> Mapping[str, list[int]]:
    """The sizes of each name's files."""
    files: dict[str, list[int]] = {}
    for part in parts:
        if part.filename is not None:
            files.setdefault(part.name, []).append(
                len(part.value) if isinstance(part.value, bytes) else part.value.size
            )
    return files
