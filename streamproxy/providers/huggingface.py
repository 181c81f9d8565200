"""Hugging Face's own inference: one exchange for each picture, whose answer is the picture's bytes.

Models are named `huggingface/<owner>/<name>`, as on the Hub. `generations` is the path below `base_url`. An Inference
Endpoint has the same wire with another `base_url` or path. An edit sends its input image in place of the prompt, which
is then a parameter. While a model is loaded, the answer is a 503 with the seconds left. Other companies behind the
router have their own wires, and so their own rows with its address.

Sources: huggingface_hub 2.4.0 and @huggingface/tasks 0.19, text-to-image and image-to-image.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Final, Literal
from urllib.parse import quote

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
    converted,
    decoded,
    inlined,
    pixels,
    post_json,
    refusal_body,
    send,
    unapplied,
)
from streamproxy.core.images import base64_slices, media_type, probe
from streamproxy.core.requests import Embedded, Head, ImageRequest
from streamproxy.core.sizes import Grid
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.refusals import Refusal, no_image, refused, said_instead

GRID: Final = Grid(step=16, least=256, most=2048, area=2048 * 2048)
OPTIONS: Final = ("num_inference_steps", "guidance_scale", "seed", "negative_prompt")
FORMATS: Final[Mapping[str, Literal["png", "jpeg"]]] = {"png": "png", "jpeg": "jpeg"}
REQUEST_ID: Final = "x-request-id"


class _Said(msgspec.Struct):
    """An error. `estimated_time`: seconds until the model is loaded."""

    error: str | list[str] | None = None
    estimated_time: float | None = None


class HuggingFace:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        return 1

    def not_applied(self, job: Job) -> tuple[str, ...]:
        request = job.request
        applied = {"image", "images", *OPTIONS}
        if request.size in (None, "auto") or pixels(request.size):
            applied.add("size")
        if request.output_format in (None, *FORMATS):
            applied.add("output_format")
        return unapplied(job, frozenset(applied))

    def converse(self, job: Job) -> Conversation[None]:
        value = yield from _value(job)
        path = job.provider.generations.replace("{model}", quote(job.route.upstream_model))
        form = FORMATS.get(job.request.output_format or "")
        accept = (("accept", f"image/{form or 'png'}"),)
        head = yield from send(post_json(job, job.provider.base_url + path, value, accept))
        if head.status != 200:
            raise _refusal(job, head, (yield from refusal_body()))
        raw = yield from body(job.limits.answer)
        info = probe(raw)
        if info is None:
            raise _refusal(job, said_instead(head), raw) if _said(raw).error else no_image(job, "", "")
        yield Accepted()
        if (id := head.headers.get(REQUEST_ID)) is not None:
            yield JobId(id)
        made = Picture(tuple(base64_slices(raw)), media_type(info.format))
        del raw
        yield from finals(job, [made if form is None else (yield from converted(made, form))])


def _value(job: Job) -> Conversation[dict[str, object]]:
    """The request's body. Raises ProxyError(UNSUPPORTED_PARAMETER)."""
    request, edges = job.request, pixels(job.request.size)
    if len(request.images) > 1:
        raise ProxyError(Failure.UNSUPPORTED_PARAMETER, "This model takes one input image.", param="images[1]")
    parameters = {name: option for name in OPTIONS if (option := request.option(name)) is not None}
    size = {} if edges is None else dict(zip(("width", "height"), GRID.fitted(*edges), strict=True))
    if not request.images:
        return {"inputs": request.prompt, "parameters": {**parameters, **size}}
    shown = yield from inlined(request.images[0], job, "images[0]")
    if size:
        parameters["target_size"] = size
    return {"inputs": Embedded(shown), "parameters": {"prompt": request.prompt, **parameters}}


def _said(raw: bytes) -> _Said:
    try:
        return decoded(raw, _Said)
    except ProxyError:
        return _Said()


def _refusal(job: Job, head: Head, raw: bytes) -> ProxyError:
    said = _said(raw)
    words = said.error if isinstance(said.error, str) else " ".join(said.error or ())
    after = said.estimated_time
    seconds = str(ceil(after)) if after is not None and 0 <= after < MOST_SECONDS else None
    return refused(job, head, Refusal(words, retry_after=seconds))


MOST_SECONDS: Final = 3600
