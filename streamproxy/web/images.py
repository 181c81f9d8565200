"""POST images/generations and images/edits: body in, frames or JSON out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import anyio
from starlette.requests import Request
from starlette.types import ASGIApp

from streamproxy.core import validate
from streamproxy.core.events import Frame, Operation
from streamproxy.core.fields import Fields
from streamproxy.core.jsonbody import JsonObject, parse
from streamproxy.core.requests import ImageRequest, Part
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub import Stream, Subscriber
from streamproxy.relay import Plan
from streamproxy.web.body import media_type, read_form, read_json, unsupported
from streamproxy.web.context import Context
from streamproxy.web.responses import NOT_APPLIED, Answer, EventStream

Result = TypeVar("Result")

_UNSTREAMED_FORMATS = ("gif", "svg")
"""Output formats that the GPT image models refuse to stream (openai-python 3.52, ImageGenerateParams)."""


async def generations(request: Request, context: Context) -> ASGIApp:
    """Images from a prompt; with an `image` in the body it is an edit."""
    if media_type(request) != "application/json":
        raise unsupported("application/json")
    body = parse(await read_json(request, context.settings.max_json_bytes, context.settings.receive_timeout))
    fields = validate.generation(body)
    return await _run(request, context, fields, body, via_generations=fields.edit)


async def edits(request: Request, context: Context) -> ASGIApp:
    """Images from images: JSON with `images`, or multipart with files."""
    kind = media_type(request)
    if kind == "application/json":
        body = parse(await read_json(request, context.settings.max_json_bytes, context.settings.receive_timeout))
        return await _run(request, context, validate.edit(body), body)
    if kind != "multipart/form-data":
        raise unsupported("application/json or multipart/form-data")
    form = await read_form(request, context.settings.max_upload_bytes, context.settings.receive_timeout)
    handed_over = False

    def release() -> None:
        form.close()

    try:
        fields = validate.form(_text(form.parts), _files(form.parts))
        started = await _begin(request, context, fields, form.parts, release)
        handed_over = True
    finally:
        if not handed_over:
            release()
    return await _respond(request, context, *started)


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


Started = tuple[ImageRequest, Plan, Stream, Subscriber]


async def _run(
    request: Request, context: Context, fields: Fields, body: JsonObject, *, via_generations: bool = False
) -> ASGIApp:
    started = await _begin(request, context, fields, body, lambda: None, via_generations=via_generations)
    return await _respond(request, context, *started)


async def _begin(
    request: Request,
    context: Context,
    fields: Fields,
    body: JsonObject | tuple[Part, ...],
    release: Callable[[], None],
    *,
    via_generations: bool = False,
) -> Started:
    """All that can be refused without the provider; then the generation runs."""
    plan = context.relay.plan(fields.model, request.scope["headers"])
    model, provider = plan.route.model, plan.route.provider
    asks = fields.stream and model.streams and provider.streams and fields.output_format not in _UNSTREAMED_FORMATS
    if asks and 0 < model.max_stream_n < fields.n:
        raise ProxyError(Failure.UNSUPPORTED_PARAMETER, "Streaming is only supported with n=1.", param="n")
    wanted = ImageRequest(
        operation=Operation.EDIT if fields.edit else Operation.GENERATION,
        model=model,
        upstream_model=plan.route.upstream_model,
        body=body,
        extra_headers=context.relay.extra_headers(fields.extra_headers, plan),
        n=fields.n,
        stream=fields.stream,
        ask_stream=asks,
        size=fields.size,
        quality=fields.quality,
        background=fields.background,
        via_generations=via_generations,
    )
    stream = context.relay.start(wanted, plan, request.state.request_id, release)
    return wanted, plan, stream, stream.subscribe()


async def _respond(
    request: Request, context: Context, wanted: ImageRequest, plan: Plan, stream: Stream, subscriber: Subscriber
) -> ASGIApp:
    if not wanted.stream:
        try:
            frame = await _unless_gone(request, _only(subscriber))
            if frame is None:
                raise stream.error or ProxyError(Failure.NO_IMAGE, "The provider sent no image.")
            return Answer(200, "application/json", frame.data, _headers(context, wanted, plan, stream))
        finally:
            subscriber.leave()
    try:
        await _unless_gone(request, stream.opened(within=context.settings.commit_after))
        if stream.error is not None:
            raise stream.error
    except BaseException:
        subscriber.leave()
        raise
    stream.commit()
    return EventStream(
        subscriber,
        _headers(context, wanted, plan, stream),
        heartbeat=context.settings.heartbeat,
        drain_timeout=context.settings.drain_timeout,
        left=lambda error: context.observer.failure(error, stream.id),
    )


async def _only(subscriber: Subscriber) -> Frame | None:
    """The one frame of a JSON answer, taken: so the producer ends by itself and its connection can be used again."""
    frame = await subscriber.next()
    if frame is not None:
        await subscriber.next()
    return frame


def _headers(context: Context, wanted: ImageRequest, plan: Plan, stream: Stream) -> dict[str, str]:
    """The provider's headers that pass, and which of the caller's members were not applied."""
    opening = stream.opening
    headers = dict(opening.headers) if opening is not None else {}
    not_applied = opening.not_applied if opening is not None else context.relay.not_applied(wanted, plan)
    if not_applied:
        headers[NOT_APPLIED] = ", ".join(not_applied)
    return headers


async def _unless_gone(request: Request, result: Awaitable[Result]) -> Result:
    """Wait for `result` while the caller is there; raises ProxyError(CALLER_GONE) as soon as it is not."""
    outcome: list[Result] = []
    failure: list[ProxyError] = []

    async with anyio.create_task_group() as tasks:

        async def wait() -> None:
            try:
                outcome.append(await result)
            except ProxyError as error:
                failure.append(error)
            tasks.cancel_scope.cancel()

        tasks.start_soon(wait)
        while (await request.receive())["type"] != "http.disconnect":
            pass
        tasks.cancel_scope.cancel()
    if failure:
        raise failure[0]
    if not outcome:
        raise ProxyError(Failure.CALLER_GONE, "The caller left before its answer.")
    return outcome[0]
