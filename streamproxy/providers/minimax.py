"""MiniMax's H3-Image models: OpenAI's request in JSON, also for edits, and answers that come picture by picture.

A size is sent as it is, or as `area` (1K, 2K, 4K) and `aspect_ratio`, which callers may send themselves. There is no
mask and no quality. A request cannot be cancelled, so it is charged after a disconnect too.

Source: platform.minimax.io/docs/api-reference, image-generation-h3-generations, -edits and -streaming, November 2026.
"""

from __future__ import annotations

from typing import Final

from streamproxy.core.catalogue import Route
from streamproxy.core.conversation import Conversation, Job, pixels, post_json, unapplied
from streamproxy.core.requests import ImageRequest, url_of
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.groups import made

AREAS: Final = ("1K", "2K", "4K")
FORMATS: Final = ("png", "jpeg", "webp")
OPTIONS: Final = ("area", "aspect_ratio")
INPUTS: Final = 16


class MiniMax:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        return min(request.n, route.model.max_n)

    def not_applied(self, job: Job) -> tuple[str, ...]:
        applied = {"image", "images", *OPTIONS}
        if job.request.size in (None, "auto") or _size(job.request):
            applied.add("size")
        if job.request.output_format in (None, *FORMATS):
            applied.add("output_format")
        return unapplied(job, frozenset(applied))

    def converse(self, job: Job) -> Conversation[None]:
        request, provider = job.request, job.provider
        if len(request.images) > INPUTS:
            message = f"This model takes {INPUTS} input images."
            raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param=f"images[{INPUTS}]")
        path = provider.edits if request.images else provider.generations
        yield from made(job, post_json(job, provider.base_url + path, _value(job)))


def _value(job: Job) -> dict[str, object]:
    request = job.request
    streams = request.stream and job.provider.streams
    value: dict[str, object] = {
        "model": job.route.upstream_model,
        "prompt": request.prompt,
        "n": job.n,
        "response_format": "url" if streams or job.n > 1 else "b64_json",  # events have URLs only
        **_size(request),
    }
    given = ((name, request.option(name)) for name in OPTIONS)
    value |= {name: option for name, option in given if option is not None}
    if streams:
        value["stream"] = True
    if request.output_format in FORMATS:
        value["output_format"] = request.output_format
    if request.images:
        value["images"] = [{"image_url": url_of(image)} for image in request.images]
    return value


def _size(request: ImageRequest) -> dict[str, object]:
    if pixels(request.size) is not None:
        return {"size": request.size}
    named = (request.size or "").upper()
    return {"area": named} if named in AREAS else {}
