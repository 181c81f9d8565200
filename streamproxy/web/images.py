"""POST images/generations and images/edits: the body in, checked; what happens then is web/generation.py's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from anyio import to_thread
from starlette.requests import Request
from starlette.types import ASGIApp

from streamproxy.core import validate
from streamproxy.core.fields import Fields
from streamproxy.core.jsonbody import JsonObject, parse
from streamproxy.core.requests import Part
from streamproxy.web.body import media_type, read_form, read_json, unsupported
from streamproxy.web.context import Context
from streamproxy.web.generation import Asked, generate

CHECKED_HERE: Final = 4 * 1024 * 1024
"""Bytes of a body that is checked at once: at 0.5 to 3 ms per MiB, by how much of it is escapes, at most 12 ms."""


async def generations(request: Request, context: Context) -> ASGIApp:
    """Images from a prompt; with an `image` in the body it is an edit."""
    if media_type(request) != "application/json":
        raise unsupported("application/json")
    body = parse(await read_json(request, context.settings.max_json_bytes, context.settings.receive_timeout))
    fields = await _checked(validate.generation, body)
    return await generate(request, context, Asked(fields, body, via_generations=fields.edit))


async def edits(request: Request, context: Context) -> ASGIApp:
    """Images from images: JSON with `images`, or multipart with files."""
    kind = media_type(request)
    if kind == "application/json":
        body = parse(await read_json(request, context.settings.max_json_bytes, context.settings.receive_timeout))
        return await generate(request, context, Asked(await _checked(validate.edit, body), body))
    if kind != "multipart/form-data":
        raise unsupported("application/json or multipart/form-data")
    form = await read_form(request, context.settings.max_upload_bytes, context.settings.receive_timeout)
    asked: Asked | None = None
    try:
        fields = validate.form(_text(form.parts), _files(form.parts))
        asked = Asked(fields, form.parts, release=form.close)
        return await generate(request, context, asked)
    finally:
        if asked is None or not asked.handed_over:
            form.close()


async def _checked(check: Callable[[JsonObject], Fields], body: JsonObject) -> Fields:
    """`check` of a body, off the event loop where images in it make that take a while."""
    return check(body) if len(body.raw) <= CHECKED_HERE else await to_thread.run_sync(check, body)


def _text(parts: tuple[Part, ...]) -> Mapping[str, list[str]]:
    text: dict[str, list[str]] = {}
    for part in parts:
        if part.filename is None and isinstance(part.value, bytes):
            text.setdefault(part.name, []).append(part.value.decode())
    return text


def _files(parts: tuple[Part, ...]) -> Mapping[str, int]:
    files: dict[str, int] = {}
    for part in parts:
        if part.filename is not None:
            files[part.name] = files.get(part.name, 0) + 1
    return files
