"""Amazon Nova Canvas on Bedrock: InvokeModel with a task and its parameters, up to five pictures each time.

    TEXT_IMAGE         a generation
    IMAGE_VARIATION    an edit, of one picture or by up to five; without words a variation
    INPAINTING         an edit with a mask, which is black where the picture is to change

What the filter has left of several pictures is delivered, and the `warning` of the last says that some are missing.
Amazon has announced the model's end for 30 September 2026: the row is for those who still have it.

Sources: Amazon Nova's user guide, "Image generation and editing", November 2026.
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
    Picture,
    body,
    decoded,
    first_of,
    inlined,
    mask,
    pixels,
    refusal_body,
    send,
    unapplied,
)
from streamproxy.core.images import media_type, probe_base64
from streamproxy.core.rawjson import base64_text
from streamproxy.core.requests import Embedded, ImageRequest
from streamproxy.core.sizes import MEGAPIXEL, Grid
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.aws import invoke, named, plain, refusal
from streamproxy.providers.refusals import MESSAGE_LIMIT, moderated, no_image, said_instead

GRID: Final = Grid(step=16, least=320, most=4096, area=4 * MEGAPIXEL)
STEEPEST: Final = 4
"""The longer edge is at most so many times the other."""

SQUARE: Final = (1024, 1024)
AT_ONCE: Final = 5
INPUTS: Final = 5
QUALITIES: Final[Mapping[str | None, str]] = {
    **dict.fromkeys((None, "auto", "low", "medium", "standard"), "standard"),
    **dict.fromkeys(("high", "hd", "premium"), "premium"),
}
"""Always said, for `premium` costs more."""

CONFIGURED: Final[Mapping[str, str]] = {"cfg_scale": "cfgScale", "seed": "seed"}
BLOCKED: Final = "content_filters"
"""Our code for its filter, which has none."""


class _Answer(msgspec.Struct):
    images: list[msgspec.Raw] | None = None
    error: str | None = None
    message: str | None = None


class Nova:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        return min(request.n, route.model.max_n, AT_ONCE)

    def not_applied(self, job: Job) -> tuple[str, ...]:
        request = job.request
        conditions = {
            "size": request.size in (None, "auto") or (pixels(request.size) is not None and not _paints(request)),
            "quality": request.quality in QUALITIES,
            "output_format": request.output_format in (None, "png"),
            "mask": bool(request.images),
            "similarity_strength": bool(request.images) and not _paints(request),
        }
        names = ("image", "images", "negative_prompt", *CONFIGURED, *(name for name in conditions if conditions[name]))
        return unapplied(job, frozenset(names))

    def converse(self, job: Job) -> Conversation[None]:
        task = yield from _task(job)
        head = yield from send(invoke(job, {**task, "imageGenerationConfig": _config(job)}))
        if head.status != 200:
            raise refusal(job, head, (yield from refusal_body()))
        raw = yield from body(job.limits.answer)
        answer = decoded(raw, _Answer)
        if answer.message is not None:
            raise refusal(job, said_instead(head), raw)
        pictures = [picture for item in answer.images or () if (picture := _picture(item)) is not None]
        if not pictures and answer.error:
            raise moderated(job, answer.error, BLOCKED)
        if not pictures:
            raise no_image(job, "", "")
        yield Accepted()
        yield from named(head)
        told = {"warning": job.scrub(answer.error)[:MESSAGE_LIMIT]} if answer.error else None
        yield from finals(job, (yield from first_of(pictures, job)), said=told)


def _paints(request: ImageRequest) -> bool:
    return bool(request.images) and request.mask is not None


def _task(job: Job) -> Conversation[dict[str, object]]:
    """The task and its parameters. Raises ProxyError(UNSUPPORTED_PARAMETER)."""
    request = job.request
    words = {"text": request.prompt} if request.prompt else {}
    if (avoided := request.option("negative_prompt")) is not None:
        words |= {"negativeText": str(avoided)}
    if not request.images:
        return {"taskType": "TEXT_IMAGE", "textToImageParams": words}
    most = 1 if _paints(request) else INPUTS
    if len(request.images) > most:
        message = f"This model takes {most} input image{'s' if most > 1 else ' with a mask'}."
        raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param=f"images[{most}]")
    shown: list[object] = []
    for index, image in enumerate(request.images):
        shown.append(Embedded((yield from inlined(image, job, f"images[{index}]"))))
    if (drawn := (yield from mask(job, "black"))) is not None:
        painted = {**words, "image": shown[0], "maskImage": Embedded(drawn)}
        return {"taskType": "INPAINTING", "inPaintingParams": painted}
    varied: dict[str, object] = {**words, "images": shown}
    if (strength := request.option("similarity_strength")) is not None:
        varied["similarityStrength"] = plain("similarity_strength", strength)
    return {"taskType": "IMAGE_VARIATION", "imageVariationParams": varied}


def _config(job: Job) -> dict[str, object]:
    request = job.request
    config: dict[str, object] = {"numberOfImages": job.n, "quality": QUALITIES.get(request.quality, "standard")}
    if not _paints(request):
        config["width"], config["height"] = _size(request)
    given = ((name, wire, request.option(name)) for name, wire in CONFIGURED.items())
    return config | {wire: plain(name, option) for name, wire, option in given if option is not None}


def _size(request: ImageRequest) -> tuple[int, int]:
    """The nearest size that the model makes; one that is longer than it can be is made wider."""
    width, height = GRID.fitted(*(pixels(request.size) or SQUARE))
    least = -(-max(width, height) // STEEPEST)
    least += -least % GRID.step
    return max(width, least), max(height, least)


def _picture(item: msgspec.Raw) -> Picture | None:
    text = base64_text(item)
    info = probe_base64(text) if text else None
    return Picture((text,), media_type(info.format) if info else "") if text else None
