"""Fireworks: FLUX.1 in one exchange, whose answer is the picture's bytes, and FLUX.1 Kontext as a job that is polled.

Models are named `fireworks/<name>`, like `fireworks/flux-1-schnell-fp8`. Kontext's jobs are those of Black Forest Labs
(see `bfl`), with another name of their id. Their polls are POSTs, which change nothing and may be repeated. There are
no previews, only a progress. A job cannot be cancelled, and there is no mask.

Sources: docs.fireworks.ai/api-reference, generate-a-new-image-from-a-text-prompt and flux-kontext, November 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal
from urllib.parse import quote, urlsplit

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
    body,
    decoded,
    fetch,
    inlined,
    pixels,
    post_json,
    refusal_body,
    send,
    unapplied,
)
from streamproxy.core.images import base64_slices, media_type, probe, probe_base64
from streamproxy.core.rawjson import base64_text
from streamproxy.core.requests import Embedded, Head, ImageRequest, Remote
from streamproxy.core.sizes import nearest_ratio
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.bfl import finished
from streamproxy.providers.openai.errors import refusal
from streamproxy.providers.refusals import moderated, no_image, said_instead

RATIOS: Final = ("21:9", "16:9", "3:2", "5:4", "4:3", "1:1", "3:4", "4:5", "2:3", "9:16", "9:21")
FORMATS: Final[Mapping[str, Literal["png", "jpeg"]]] = {"png": "png", "jpeg": "jpeg"}
FILTERED: Final = "CONTENT_FILTERED"

KONTEXT: Final = "flux-kontext"
"""The beginning of the names of models with jobs, which take an input image."""

OPTIONS: Final = ("aspect_ratio", "seed")
"""Members that every model takes under the same name."""

PLAIN: Final = (*OPTIONS, "guidance_scale", "num_inference_steps")
LATER: Final = (*OPTIONS, "prompt_upsampling", "safety_tolerance")


class _Said(msgspec.Struct):
    """A picture as JSON, or the id of a job."""

    base64: list[msgspec.Raw] | None = None
    finish_reason: str | None = msgspec.field(name="finishReason", default=None)
    request_id: str = ""
    id: str = ""


class Fireworks:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        return 1

    def not_applied(self, job: Job) -> tuple[str, ...]:
        request = job.request
        applied = {"image", "images", *(LATER if _is_later(job) else PLAIN)}
        if request.size in (None, "auto") or pixels(request.size):
            applied.add("size")
        if request.output_format in (None, *FORMATS):
            applied.add("output_format")
        return unapplied(job, frozenset(applied))

    def converse(self, job: Job) -> Conversation[None]:
        most = 1 if _is_later(job) else 0
        if len(job.request.images) > most:
            message = f"This model takes {'one input image' if most else 'no input images'}."
            raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param=f"images[{most}]")
        made = yield from (_later if _is_later(job) else _at_once)(job)
        yield from finals(job, [made])


def _is_later(job: Job) -> bool:
    return job.route.upstream_model.startswith(KONTEXT)


def _url(job: Job) -> str:
    return f"{job.provider.base_url}/{quote(job.route.upstream_model)}"


def _value(job: Job, options: tuple[str, ...]) -> dict[str, object]:
    request = job.request
    value: dict[str, object] = {"prompt": request.prompt}
    if (edges := pixels(request.size)) is not None:
        value["aspect_ratio"] = nearest_ratio(RATIOS, *edges)
    return value | {name: option for name in options if (option := request.option(name)) is not None}


def _at_once(job: Job) -> Conversation[Picture]:
    form = FORMATS.get(job.request.output_format or "", "jpeg")
    asking = post_json(job, f"{_url(job)}/text_to_image", _value(job, PLAIN), (("accept", f"image/{form}"),))
    head = yield from send(asking)
    if head.status != 200:
        raise _refusal(job, head, (yield from refusal_body()))
    made = _made(job, head, (yield from body(job.limits.answer)))
    yield Accepted()
    if (id := head.headers.get("x-request-id")) is not None:
        yield JobId(id)
    return made


def _made(job: Job, head: Head, raw: bytes) -> Picture:
    """Read the picture, as bytes or in JSON. Raises ProxyError where it is missing, or was filtered."""
    info = probe(raw)
    said = _Said() if info is not None else decoded(raw, _Said)
    if FILTERED in (head.headers.get("finish-reason"), said.finish_reason):
        raise moderated(job, "The provider's filter has removed the picture.", FILTERED)
    if info is not None:
        return Picture(tuple(base64_slices(raw)), media_type(info.format))
    text = base64_text(said.base64[0]) if said.base64 else b""
    if not text:
        raise _refusal(job, said_instead(head), raw)
    found = probe_base64(text)
    return Picture((text,), media_type(found.format) if found else "")


def _later(job: Job) -> Conversation[Picture]:
    """Submit a job, poll it until it has ended, fetch its picture."""
    request = job.request
    value = {**_value(job, LATER), "output_format": FORMATS.get(request.output_format or "", "png")}
    for image in request.images:
        if isinstance(image, Remote):
            value["input_image"] = image.url
        else:
            value["input_image"] = Embedded((yield from inlined(image, job, "images[0]")))
    head = yield from send(post_json(job, _url(job), value))
    if head.status not in (200, 201, 202):
        raise _refusal(job, head, (yield from refusal_body()))
    raw = yield from body(SMALL)
    said = decoded(raw, _Said)
    id = said.request_id or said.id
    if not id:
        raise _refusal(job, said_instead(head), raw)
    yield Accepted()
    yield JobId(id)
    done = yield from finished(job, post_json(job, f"{_url(job)}/get_result", {"id": id}))
    if done.result is None or not done.result.sample:
        raise no_image(job, "", done.status)
    return (yield from fetch(done.result.sample))


def _refusal(job: Job, head: Head, raw: bytes) -> ProxyError:
    path = urlsplit(_url(job)).path
    return refusal(head, raw, path=path, callers_credential=job.callers_key, scrub=job.scrub)
