"""Leonardo: submit a job, poll it until it is done, fetch its pictures.

A model is a UUID of Leonardo's, and `deployments` gives it a name. By default `num_images` is four, and Alchemy, which
costs more, is on; so both are always sent. Input images would first have to be uploaded to another company's host, so
they are refused. There are no previews and no mask, and a job cannot be cancelled. An answer has its cost in credits,
whose price depends on the account's plan.

Sources: docs.leonardo.ai/reference, creategeneration and getgenerationbyid; the defaults are from memory.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

import msgspec

from streamproxy.core.catalogue import Route
from streamproxy.core.completion import finals
from streamproxy.core.conversation import (
    SMALL,
    Accepted,
    Conversation,
    Job,
    JobId,
    Picture,
    Wait,
    body,
    decoded,
    fetch,
    first_of,
    get,
    look,
    pauses,
    pixels,
    post_json,
    refusal_body,
    send,
    unapplied,
)
from streamproxy.core.requests import Head, ImageRequest
from streamproxy.core.sizes import Grid
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.refusals import Refusal, failed, lost, moderated, no_image, refused, said_instead

GRID: Final = Grid(step=8, least=32, most=1536, area=1536 * 1536)
SQUARE: Final = (1024, 1024)
OPTIONS: Final = ("negative_prompt", "guidance_scale", "num_inference_steps", "seed", "contrast", "styleUUID")
BLOCKED: Final = "moderation"
"""A part of the code of a refusal by moderation."""

PENDING: Final = "PENDING"
COMPLETE: Final = "COMPLETE"


class _Job(msgspec.Struct):
    id: str = msgspec.field(name="generationId", default="")


class _Image(msgspec.Struct):
    url: str = ""


class _Generation(msgspec.Struct):
    status: str = ""
    images: list[_Image] = msgspec.field(name="generated_images", default_factory=list)


class _Said(msgspec.Struct):
    """The answer to a submission or to a poll, or an error."""

    job: _Job | None = msgspec.field(name="sdGenerationJob", default=None)
    generation: _Generation | None = msgspec.field(name="generations_by_pk", default=None)
    error: str | None = None
    code: str | None = None


class Leonardo:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        return min(request.n, route.model.max_n)

    def not_applied(self, job: Job) -> tuple[str, ...]:
        request = job.request
        applied = {"alchemy", *OPTIONS}
        if request.size in (None, "auto") or pixels(request.size):
            applied.add("size")
        return unapplied(job, frozenset(applied))

    def converse(self, job: Job) -> Conversation[None]:
        url = f"{job.provider.base_url}/generations"
        head = yield from send(post_json(job, url, _value(job)))
        if head.status not in (200, 201):
            raise _refusal(job, head, (yield from refusal_body()))
        raw = yield from body(SMALL)
        said = decoded(raw, _Said)
        if said.job is None or not said.job.id:
            raise _refusal(job, said_instead(head), raw)
        yield Accepted()
        yield JobId(said.job.id)
        done = yield from _finished(job, f"{url}/{quote(said.job.id, safe='')}")
        pictures: list[Picture | None] = []
        for image in (yield from first_of(done.images, job)):
            pictures.append((yield from fetch(image.url)))
        yield from finals(job, pictures)
        if len(pictures) < job.n:
            raise no_image(job, f"The provider made {len(pictures)} of {job.n} pictures.", done.status)


def _finished(job: Job, url: str) -> Conversation[_Generation]:
    """Poll until the job has ended."""
    for pause in pauses():
        yield Wait(pause)
        head, raw = yield from look(get(url))
        if head.status == 404:
            raise lost(job, head)
        if head.status != 200:
            raise _refusal(job, head, raw)
        found = decoded(raw, _Said).generation
        if found is None:
            raise lost(job, Head(404, head.items))
        if found.status == COMPLETE:
            return found
        if found.status != PENDING:
            raise failed(job, "", found.status)
    raise AssertionError("the pauses have no end")


def _value(job: Job) -> dict[str, object]:
    request = job.request
    if request.images:
        message = "This provider takes input images only where they have been uploaded to it before."
        raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param="images[0]")
    width, height = GRID.fitted(*(pixels(request.size) or SQUARE))
    value: dict[str, object] = {
        "prompt": request.prompt,
        "modelId": job.route.upstream_model,
        "width": width,
        "height": height,
        "num_images": job.n,
        "alchemy": request.option("alchemy") is True,
        "public": False,
    }
    return value | {name: option for name in OPTIONS if (option := request.option(name)) is not None}


def _refusal(job: Job, head: Head, raw: bytes) -> ProxyError:
    """Read `{"error": "...", "code": "...", "path": "$"}`."""
    try:
        said = decoded(raw, _Said)
    except ProxyError:
        said = _Said()
    if BLOCKED in (said.code or "").lower():
        return moderated(job, said.error or "", said.code or "")
    return refused(job, head, Refusal(said.error or "", said.code))
