"""Runware: a list of tasks in one POST, the pictures as base64 in its answer.

A model is an AIR, like `runware/runware:101@1` or `runware/civitai:4201@130072`. The task's UUID is made here, and is
the job's id. An answer may have pictures and errors; its pictures are delivered. One input image is the start of Stable
Diffusion (`seedImage`). Several images, and those of models in REFERRING, are references (`referenceImages`). A mask
goes with the seed image, white where the picture changes. The answer has the cost, as requested. Over HTTP there are no
previews, and a task cannot be cancelled.

Sources: runware.ai/docs, image inference and platform errors; runware 0.5.24. Which models refer is from memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from streamproxy.core.catalogue import Route
from streamproxy.core.completion import finals
from streamproxy.core.conversation import (
    Accepted,
    Conversation,
    Job,
    JobId,
    Picture,
    body,
    decoded,
    fetch,
    first_of,
    inlined,
    mask,
    pixels,
    post_json,
    refusal_body,
    send,
    unapplied,
)
from streamproxy.core.cost import Work
from streamproxy.core.images import media_type, probe_base64
from streamproxy.core.rawjson import base64_text, holds_text
from streamproxy.core.requests import FileId, Head, ImageRequest, url_of
from streamproxy.core.sizes import Grid
from streamproxy.errors import ProxyError
from streamproxy.providers.refusals import Refusal, failed, moderated, no_image, refused, said_instead

GRID: Final = Grid(step=64, least=128, most=2048, area=2048 * 2048)
SQUARE: Final = (1024, 1024)
FORMATS: Final[Mapping[str, str]] = {"png": "PNG", "jpeg": "JPG", "webp": "WEBP"}
OPTIONS: Final = ("negativePrompt", "seed", "steps", "CFGScale", "scheduler", "strength")
MOST: Final = 20
"""Most pictures of one task."""

REFERRING: Final = ("runware:106@", "runware:400@", "bfl:", "google:", "openai:", "bytedance:")
"""The beginning of the names of models that take an input image as a reference."""

BLOCKED: Final = ("moderation", "nsfw", "safety")
"""Parts of the codes of refusals by moderation, in lower case."""


class _Item(msgspec.Struct):
    text: msgspec.Raw = msgspec.field(name="imageBase64Data", default=msgspec.Raw(b"null"))
    url: str | None = msgspec.field(name="imageURL", default=None)
    cost: float | None = None


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""
    parameter: str | list[str] | None = None


class _Said(msgspec.Struct):
    data: list[_Item] | None = None
    errors: list[_Error] | None = None


class Runware:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        return min(request.n, route.model.max_n, MOST)

    def not_applied(self, job: Job) -> tuple[str, ...]:
        request = job.request
        applied = {"image", "images", *OPTIONS}
        if request.size in (None, "auto") or pixels(request.size):
            applied.add("size")
        if request.output_format in (None, *FORMATS):
            applied.add("output_format")
        if request.images and not _refers(job):
            applied.add("mask")
        return unapplied(job, frozenset(applied))

    def converse(self, job: Job) -> Conversation[None]:
        head = yield from send(post_json(job, job.provider.base_url, [(yield from _task(job))]))
        if head.status != 200:
            raise _refusal(job, head, (yield from refusal_body()))
        raw = yield from body(job.limits.answer)
        said = decoded(raw, _Said)
        if said.errors and not said.data:
            raise _refusal(job, said_instead(head), raw)
        made = [item for item in said.data or () if holds_text(item.text) or item.url]
        if not made:
            raise no_image(job, "", "")
        yield Accepted()
        yield JobId(_uuid(job))
        del raw
        pictures: list[Picture | None] = []
        for item in (yield from first_of(made, job)):
            pictures.append((yield from _shown(item)))
        costs = [item.cost for item in made if item.cost is not None]
        yield from finals(job, pictures, work=Work(paid=round(sum(costs), 6) if costs else None))
        if len(pictures) < job.n:
            raise _failure(job, said.errors or [], len(pictures))


def _uuid(job: Job) -> str:
    """The task's id: a UUID of version 4 (RFC 9562, 5.4) made from the job's random token."""
    token = job.token
    return "-".join((token[:8], token[8:12], f"4{token[13:16]}", f"8{token[17:20]}", token[20:]))


def _refers(job: Job) -> bool:
    return len(job.request.images) > 1 or job.route.upstream_model.startswith(REFERRING)


def _shown(item: _Item) -> Conversation[Picture]:
    text = base64_text(item.text)
    if not text and item.url:
        return (yield from fetch(item.url))
    info = probe_base64(text)
    return Picture((text,), media_type(info.format) if info else "")


def _task(job: Job) -> Conversation[dict[str, object]]:
    """The task. Raises ProxyError(UNSUPPORTED_PARAMETER)."""
    request = job.request
    width, height = GRID.fitted(*(pixels(request.size) or SQUARE))
    task: dict[str, object] = {
        "taskType": "imageInference",
        "taskUUID": _uuid(job),
        "positivePrompt": request.prompt,
        "model": job.route.upstream_model,
        "width": width,
        "height": height,
        "numberResults": job.n,
        "outputType": "base64Data",
        "outputFormat": FORMATS.get(request.output_format or "", "PNG"),
        "deliveryMethod": "sync",
        "includeCost": True,
    }
    task |= {name: option for name in OPTIONS if (option := request.option(name)) is not None}
    shown = []
    for index, image in enumerate(request.images):
        if isinstance(image, FileId):
            yield from inlined(image, job, f"images[{index}]")  # refuses it
        shown.append(url_of(image))
    if shown and _refers(job):
        return task | {"referenceImages": shown}
    if shown:
        task["seedImage"] = shown[0]
        drawn = yield from mask(job, "white")
        task |= {} if drawn is None else {"maskImage": url_of(drawn)}
    return task


def _refusal(job: Job, head: Head, raw: bytes) -> ProxyError:
    try:
        found = decoded(raw, _Said).errors or [_Error()]
    except ProxyError:
        found = [_Error()]
    error = found[0]
    if _is_blocked(error):
        return moderated(job, error.message, error.code)
    param = error.parameter if isinstance(error.parameter, str) else None
    return refused(job, head, Refusal(error.message, error.code or None, param))


def _failure(job: Job, errors: list[_Error], made: int) -> ProxyError:
    """The error for pictures that are missing beside others."""
    if not errors:
        return no_image(job, f"The provider made {made} of {job.n} pictures.", "")
    error = errors[0]
    return (moderated if _is_blocked(error) else failed)(job, error.message, error.code)


def _is_blocked(error: _Error) -> bool:
    return any(word in error.code.lower() for word in BLOCKED)
