"""fal.ai: a queue in front of many apps. Submit, look until the work is done, read the result, fetch its pictures.

Models are named `fal/<path>`, like `fal/fal-ai/flux/dev`. fal itself would run a request that failed up to ten times,
and in another app of its choice: both are switched off, for each run may be paid. Once submitted, the URLs that the
answer names are followed, and the work is cancelled where the caller is gone.

A picture that the safety checker has blackened is a refusal, though it comes as a success. What a picture is, its bytes
say: apps have announced PNG as JPEG.

Sources: fal-client 1.0.3; fal.ai/docs, queue API and error reference, November 2026.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

import msgspec

from streamproxy.core.catalogue import Route
from streamproxy.core.completion import finals
from streamproxy.core.conversation import (
    COMMON,
    SMALL,
    Accepted,
    Conversation,
    Job,
    Progress,
    Undo,
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
from streamproxy.core.requests import Embedded, Head, ImageRequest, Input, Remote, UpstreamRequest
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.refusals import Refusal, failed, moderated, no_image, refused

OWN: Final = (("x-fal-no-retry", "1"), ("x-app-fal-disable-fallback", "1"))
APPLIED: Final = frozenset({"size", "image", "images", "mask", "output_format", "seed"})
OPTIONS: Final = ("seed", "guidance_scale", "num_inference_steps", "negative_prompt", "strength", "safety_tolerance")
"""Members that apps have under the very same name."""

POLICY: Final = "content_policy_violation"
SEVERAL_INPUTS: Final = ("nano-banana", "gemini", "seedream", "gpt-image", "flux-2", "qwen-image-edit-plus")
"""Words in the paths of apps that take `image_urls`; the others take one `image_url`."""

BY_RATIO: Final = ("nano-banana", "gemini")
"""Words in the paths of apps that take an aspect ratio and a resolution instead of `image_size`."""


class _Queued(msgspec.Struct):
    request_id: str
    status_url: str
    response_url: str
    cancel_url: str | None = None


class _Status(msgspec.Struct):
    status: str = ""
    queue_position: int | None = None
    error: str | None = None
    error_type: str | None = None


class _File(msgspec.Struct):
    url: str


class _Result(msgspec.Struct):
    images: list[_File] | None = None
    image: _File | None = None
    has_nsfw_concepts: list[bool] | None = None

    @property
    def files(self) -> list[_File]:
        return self.images or ([self.image] if self.image is not None else [])


class _Problem(msgspec.Struct):
    msg: str = ""
    type: str = ""
    loc: list[str | int] | None = None


class _Refused(msgspec.Struct):
    detail: str | list[_Problem] = ""
    error_type: str | None = None


class Fal:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        return min(request.n, route.model.max_n)

    def not_applied(self, job: Job) -> tuple[str, ...]:
        by_ratio = any(word in job.route.upstream_model for word in BY_RATIO)
        return unapplied(job, APPLIED.union(OPTIONS) - ({"size"} if by_ratio else set()))

    def converse(self, job: Job) -> Conversation[None]:
        head = yield from send(_submission(job))
        if head.status not in (200, 201, 202):
            raise _refusal(job, head, (yield from refusal_body()))
        queued = decoded((yield from body(SMALL)), _Queued)
        yield Accepted()
        if queued.cancel_url is not None:
            yield Undo(UpstreamRequest("PUT", queued.cancel_url, COMMON))
        yield from _finished(job, queued.status_url)
        yield Undo(None)  # there is nothing left to cancel
        head, raw = yield from look(get(queued.response_url), job.limits.answer)
        if head.status != 200:
            raise _refusal(job, head, raw)
        result = decoded(raw, _Result)
        if any(result.has_nsfw_concepts or ()):
            raise moderated(job, "The safety checker has blackened the picture.", "has_nsfw_concepts")
        if not result.files:
            raise no_image(job, "", "")
        pictures = []
        for file in (yield from first_of(result.files, job)):
            pictures.append((yield from fetch(file.url)))
        yield from finals(job, pictures)


def _finished(job: Job, status_url: str) -> Conversation[None]:
    """Look until the work is over."""
    for pause in pauses():
        yield Wait(pause)
        head, raw = yield from look(get(status_url))
        if head.status not in (200, 202):
            raise _refusal(job, head, raw)
        status = decoded(raw, _Status)
        if status.status == "COMPLETED":
            if status.error is not None:
                raise _failure(job, status.error, status.error_type or "")
            return
        yield Progress(queue=status.queue_position)


def _submission(job: Job) -> UpstreamRequest:
    path = job.route.upstream_model.strip("/")
    value: dict[str, object] = {"prompt": job.request.prompt, "num_images": job.n, **_shape(job, path)}
    given = ((name, job.request.option(name)) for name in OPTIONS)
    value |= {name: option for name, option in given if option is not None}
    if job.request.output_format is not None:
        value["output_format"] = job.request.output_format
    shown = [_url(image) for image in job.request.images]
    if shown and any(word in path for word in SEVERAL_INPUTS):
        value["image_urls"] = shown
    elif len(shown) > 1:
        message = "This model takes one input image."
        raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param="images[1]")
    elif shown:
        value["image_url"] = shown[0]
    if job.request.mask is not None:
        value["mask_url"] = _url(job.request.mask)
    return post_json(job, f"{job.provider.base_url}/{quote(path)}", value, OWN)


def _shape(job: Job, path: str) -> dict[str, object]:
    edges = pixels(job.request.size)
    if edges is None or any(word in path for word in BY_RATIO):
        return {}
    return {"image_size": {"width": edges[0], "height": edges[1]}}


def _url(image: Input) -> object:
    return image.url if isinstance(image, Remote) else Embedded(image, data_url=True)


def _refusal(job: Job, head: Head, raw: bytes) -> ProxyError:
    """`{"detail": "..."}`, or FastAPI's list of problems; a flagged prompt is known by its `type`, not by words."""
    try:
        said = decoded(raw, _Refused)
    except ProxyError:
        said = _Refused()
    code = said.error_type or head.headers.get("x-fal-error-type", "")
    if isinstance(said.detail, str):
        return _worded(job, head, said.detail, code)
    flagged = next((problem for problem in said.detail if problem.type == POLICY), None)
    if flagged is not None:
        return moderated(job, flagged.msg, POLICY)
    first = said.detail[0] if said.detail else _Problem()
    param = ".".join(map(str, (first.loc or ())[1:])) or None
    return refused(job, head, Refusal(first.msg, first.type or code or None, param))


def _worded(job: Job, head: Head, message: str, code: str) -> ProxyError:
    return moderated(job, message, code) if code == POLICY else refused(job, head, Refusal(message, code or None))


def _failure(job: Job, message: str, code: str) -> ProxyError:
    return moderated(job, message, code) if code == POLICY else failed(job, message, code)
