"""Stability AI's models on Amazon Bedrock: InvokeModel with JSON in and out, one picture each time.

Models are named `bedrock/<model id>`, like `bedrock/stability.sd3-5-large-v1:0`, or by an inference profile,
`us.stability.stable-image-inpaint-v1:0`, which the editing models are reached by. MODELS has what differs. A member
that a model does not have is an error there, so none is sent, the prompt included. A mask is white where the picture is
to change. What is filtered comes as a success with a reason, without a picture.

Sources: Amazon Bedrock's user guide, "Stability AI models" and "Stability AI Image Services", November 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    inlined,
    mask,
    pixels,
    refusal_body,
    send,
    unapplied,
)
from streamproxy.core.images import media_type, probe_base64
from streamproxy.core.rawjson import base64_text
from streamproxy.core.requests import Embedded, Head, ImageRequest
from streamproxy.core.sizes import nearest_ratio
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.aws import invoke, named, plain, refusal
from streamproxy.providers.refusals import failed, moderated, no_image, said_instead

RATIOS: Final = ("21:9", "16:9", "3:2", "5:4", "1:1", "4:5", "2:3", "9:16", "9:21")
FORMATS: Final = ("png", "jpeg", "webp")
STRENGTH: Final = 0.75
"""How far an edit may leave its input: Stable Diffusion wants to be told."""

BROKEN: Final = "Inference error"
"""The one reason for a missing picture that is no filter's."""


@dataclass(frozen=True, slots=True)
class Model:
    """What one model takes.

    `images`: the members of its input pictures, in order. `modes`: it makes pictures with an input and without one.
    `prompt`, `ratios`, `masks`, `seed`: whether it takes those. `options`: further members under the same name.
    """

    images: tuple[str, ...] = ("image",)
    modes: bool = False
    prompt: bool = True
    ratios: bool = False
    masks: bool = False
    formats: tuple[str, ...] = FORMATS
    options: tuple[str, ...] = ("seed",)


DRAWN: Final = ("seed", "negative_prompt")
STYLED: Final = (*DRAWN, "style_preset")
MODELS: Final[Mapping[str, Model]] = {
    "stable-image-core": Model((), ratios=True, formats=("png", "jpeg"), options=DRAWN),
    "stable-image-ultra": Model((), ratios=True, formats=("png", "jpeg"), options=DRAWN),
    "stable-image-inpaint": Model(masks=True, options=(*STYLED, "grow_mask")),
    "stable-image-erase-object": Model(prompt=False, masks=True, options=("seed", "grow_mask")),
    "stable-outpaint": Model(options=("seed", "style_preset", "left", "right", "up", "down", "creativity")),
    "stable-image-search-replace": Model(options=(*STYLED, "search_prompt", "grow_mask")),
    "stable-image-search-recolor": Model(options=(*STYLED, "select_prompt", "grow_mask")),
    "stable-image-remove-background": Model(prompt=False, options=()),
    "stable-image-control-sketch": Model(options=(*STYLED, "control_strength")),
    "stable-image-control-structure": Model(options=(*STYLED, "control_strength")),
    "stable-image-style-guide": Model(ratios=True, options=(*STYLED, "fidelity")),
    "stable-style-transfer": Model(
        ("init_image", "style_image"),
        options=(*DRAWN, "style_strength", "composition_fidelity", "change_strength"),
    ),
    "stable-conservative-upscale": Model(options=(*DRAWN, "creativity")),
    "stable-creative-upscale": Model(options=(*STYLED, "creativity")),
    "stable-fast-upscale": Model(prompt=False, options=()),
}
"""By what stands in the model's id."""

SD3: Final = Model(modes=True, ratios=True, formats=("png", "jpeg"), options=(*DRAWN, "strength"))
"""Every other one: Stable Diffusion 3.5 Large."""


class _Answer(msgspec.Struct):
    images: list[msgspec.Raw] | None = None
    finish_reasons: list[str | None] | None = None
    message: str | None = None


class Bedrock:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        return 1

    def not_applied(self, job: Job) -> tuple[str, ...]:
        model, request = _model(job), job.request
        applied = {"image", "images", *model.options}
        if request.size in (None, "auto") or _ratio(model, request):
            applied.add("size")
        if request.output_format in (None, *model.formats):
            applied.add("output_format")
        if model.masks and request.images:
            applied.add("mask")
        if not request.images:
            applied.discard("strength")
        names = unapplied(job, frozenset(applied))
        return names if model.prompt else tuple(sorted((*names, "prompt")))

    def converse(self, job: Job) -> Conversation[None]:
        head = yield from send(invoke(job, (yield from _input(job))))
        if head.status != 200:
            raise refusal(job, head, (yield from refusal_body()))
        picture = _made(job, head, (yield from body(job.limits.answer)))
        yield Accepted()
        yield from named(head)
        yield from finals(job, [picture])


def _model(job: Job) -> Model:
    return next((model for name, model in MODELS.items() if name in job.route.upstream_model), SD3)


def _input(job: Job) -> Conversation[dict[str, object]]:
    """What the model is asked. Raises ProxyError(UNSUPPORTED_PARAMETER)."""
    model, request = _model(job), job.request
    _check(model, request)
    value: dict[str, object] = {"prompt": request.prompt} if model.prompt else {}
    for index, image in enumerate(request.images):
        value[model.images[index]] = Embedded((yield from inlined(image, job, f"images[{index}]")))
    if model.modes:
        value |= {"mode": "image-to-image", "strength": STRENGTH} if request.images else {"mode": "text-to-image"}
    value |= _ratio(model, request)
    value["output_format"] = request.output_format if request.output_format in model.formats else "png"
    for name in model.options:
        if (option := request.option(name)) is not None and (name != "strength" or request.images):
            value[name] = plain(name, option)
    if model.masks and request.images and (drawn := (yield from mask(job, "white"))) is not None:
        value["mask"] = Embedded(drawn)
    return value


def _check(model: Model, request: ImageRequest) -> None:
    most = len(model.images)
    if len(request.images) > most:
        message = f"This model takes {most or 'no'} input image{'s' if most != 1 else ''}."
        raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param=f"images[{most}]")


def _ratio(model: Model, request: ImageRequest) -> dict[str, object]:
    """The nearest aspect ratio; an edit has its input's, but for one whose input is only a guide."""
    edges = pixels(request.size)
    if edges is None or not model.ratios or (model.modes and request.images):
        return {}
    return {"aspect_ratio": nearest_ratio(RATIOS, *edges)}


def _made(job: Job, head: Head, raw: bytes) -> Picture:
    """The picture of an answer. Raises ProxyError for one that holds none."""
    said = decoded(raw, _Answer)
    if said.message is not None:
        raise refusal(job, said_instead(head), raw)
    reason = next((reason for reason in said.finish_reasons or () if reason), None)
    if reason == BROKEN:
        raise failed(job, reason, reason)
    if reason is not None:
        raise moderated(job, f"The provider's filter has blocked the picture. {reason}.", reason)
    text = base64_text(said.images[0]) if said.images else b""
    if not text:
        raise no_image(job, "", "")
    info = probe_base64(text)
    return Picture((text,), media_type(info.format) if info else "")
