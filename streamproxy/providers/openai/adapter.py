"""OpenAI's images wire, as OpenAI, Azure and every compatible host speak it.

Hosts differ in their rows of the catalogue, never in branches: paths, credential header, names of models, and `quirks`.
`request.py` writes the request by them, `events.py` reads the answer, `errors.py` a refusal.
"""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import urlsplit

from streamproxy.core.catalogue import Route
from streamproxy.core.conversation import Conversation, Job, NotApplied, inlined, pour, refusal_body, send
from streamproxy.core.requests import ImageRequest, Input, Remote, Variation
from streamproxy.providers.openai import errors
from streamproxy.providers.openai.events import Answer
from streamproxy.providers.openai.request import build, mask_place, not_applied, place


class OpenAI:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        most = route.model.max_stream_n if asks_to_stream(request, route) else 0
        return min(request.n, most or request.n, route.provider.quirks.max_n)

    def not_applied(self, job: Job) -> tuple[str, ...]:
        return not_applied(job, streams=asks_to_stream(job.request, job.route))

    def converse(self, job: Job) -> Conversation[None]:
        streams = asks_to_stream(job.request, job.route)
        job = yield from _with_fetched(job)
        while True:
            request = yield from build(job, streams=streams)
            head = yield from send(request)
            if head.status in (200, 201):
                break
            raw = yield from refusal_body()
            if not (streams and errors.refuses_streaming(head, raw)):
                path = urlsplit(request.url).path
                error = errors.refusal(head, raw, path=path, callers_credential=job.callers_key, scrub=job.scrub)
                raise errors.blocked(job, error)
            streams = False  # the provider has processed nothing
            yield NotApplied(not_applied(job, streams=False))
        yield from pour(Answer(job, head))


def _with_fetched(job: Job) -> Conversation[Job]:
    """The job with the images that are at URLs, where the model takes none and they may be fetched."""
    request = job.request
    if job.model.remote_image_urls or not job.limits.fetch_images:
        return job
    images: list[Input] = []
    for index, image in enumerate(request.images):
        images.append((yield from inlined(image, job, place(request, index))) if isinstance(image, Remote) else image)
    mask = request.mask
    masked = (yield from inlined(mask, job, mask_place(request))) if isinstance(mask, Remote) else mask
    return replace(job, request=replace(request, images=tuple(images), mask=masked))


def asks_to_stream(request: ImageRequest, route: Route) -> bool:
    """Whether the provider is asked for events: if the caller wants them, and both model and host can stream."""
    model, host = route.model, route.provider
    able = model.streams and host.streams and request.output_format not in model.unstreamed_formats
    return request.stream and able and request.variation is not Variation.ROUTE
