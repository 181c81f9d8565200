"""Stability AI's REST API: a form in, a picture's bytes out. Two of its routes answer with an id to poll.

Models are named `stability/<route>`, like `stability/core` or `stability/inpaint`; Stable Diffusion 3.5 has its models'
own names. ROUTES has the differences. A blurred picture (CONTENT_FILTERED under 200) is a refusal. A mask is white
where the picture changes. Work cannot be cancelled.

Sources: platform.stability.ai/docs/api-reference, v2beta, November 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

import msgspec

from streamproxy.core.catalogue import Route as Routed
from streamproxy.core.completion import finals
from streamproxy.core.conversation import (
    COMMON,
    SMALL,
    Accepted,
    Conversation,
    Job,
    JobId,
    Picture,
    Wait,
    body,
    decoded,
    inlined,
    look,
    mask,
    pauses,
    pixels,
    post_form,
    refusal_body,
    send,
    unapplied,
)
from streamproxy.core.images import base64_slices, media_type, probe, probe_base64
from streamproxy.core.rawjson import base64_text
from streamproxy.core.requests import Head, ImageRequest, Inline, Spooled, UpstreamRequest
from streamproxy.core.sizes import nearest_ratio
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.refusals import Refusal, lost, moderated, no_image, refused, said_instead

RATIOS: Final = ("21:9", "16:9", "3:2", "5:4", "1:1", "4:5", "2:3", "9:16", "9:21")
PICTURE: Final = "image/*"
FILTERED: Final = "CONTENT_FILTERED"
MODERATION: Final = "content_moderation"
STRENGTH: Final = "0.75"
"""The strength of an edit, from 0 (the input) to 1, for routes that require one."""


@dataclass(frozen=True, slots=True)
class Route:
    """The members of one route. `model`: the member `model`. `ratios`: an aspect ratio, if there is no input image.

    `image`: an input image; `strength`: the strength of the edit. `later`: the answer is an id to poll. `options`:
    further members.
    """

    path: str
    model: bool = False
    ratios: bool = False
    image: str = "image"
    strength: bool = False
    masks: bool = False
    later: bool = False
    formats: tuple[str, ...] = ("png", "jpeg", "webp")
    options: tuple[str, ...] = ()


ROUTES: Final[Mapping[str, Route]] = {
    "core": Route("generate/core", ratios=True, image="", options=("style_preset",)),
    "ultra": Route("generate/ultra", ratios=True, strength=True, options=("style_preset", "strength")),
    "inpaint": Route("edit/inpaint", masks=True, options=("grow_mask", "style_preset")),
    "erase": Route("edit/erase", masks=True, options=("grow_mask",)),
    "outpaint": Route("edit/outpaint", options=("left", "right", "up", "down", "creativity", "style_preset")),
    "search-and-replace": Route("edit/search-and-replace", options=("search_prompt", "grow_mask", "style_preset")),
    "search-and-recolor": Route("edit/search-and-recolor", options=("select_prompt", "grow_mask", "style_preset")),
    "remove-background": Route("edit/remove-background", formats=("png", "webp")),
    "replace-background-and-relight": Route(
        "edit/replace-background-and-relight", image="subject_image", later=True, options=("background_prompt",)
    ),
    "sketch": Route("control/sketch", options=("control_strength", "style_preset")),
    "structure": Route("control/structure", options=("control_strength", "style_preset")),
    "style": Route("control/style", options=("fidelity", "style_preset")),
    "fast": Route("upscale/fast"),
    "conservative": Route("upscale/conservative", options=("creativity",)),
    "creative": Route("upscale/creative", later=True, options=("creativity", "style_preset")),
}
SD3: Final = Route(
    "generate/sd3",
    model=True,
    ratios=True,
    strength=True,
    formats=("png", "jpeg"),
    options=("cfg_scale", "style_preset", "strength"),
)
"""For every other model."""

OPTIONS: Final = ("negative_prompt", "seed")
"""Members that every route takes under the same name."""


class _Said(msgspec.Struct):
    """A picture as JSON, the id of a later one, or a refusal."""

    image: msgspec.Raw = msgspec.Raw(b"null")
    finish_reason: str = ""
    id: str = ""
    name: str | None = None
    errors: list[str] | None = None


class Stability:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Routed) -> int:
        return 1

    def not_applied(self, job: Job) -> tuple[str, ...]:
        route, request = _route(job), job.request
        conditions = {
            "size": request.size in (None, "auto")
            or (route.ratios and not request.images and pixels(request.size) is not None),
            "output_format": request.output_format in (None, *route.formats),
            "mask": route.masks,
        }
        applied = {"image", "images", *OPTIONS, *route.options, *(name for name in conditions if conditions[name])}
        return unapplied(job, frozenset(applied))

    def converse(self, job: Job) -> Conversation[None]:
        route = _route(job)
        head = yield from send((yield from _request(job, route)))
        if head.status != 200:
            raise _refusal(job, head, (yield from refusal_body()))
        if not route.later:
            made = _made(job, head, (yield from body(job.limits.answer)))
            yield Accepted()
            yield from _named(head)
        else:
            raw = yield from body(SMALL)
            said = decoded(raw, _Said)
            if not said.id or said.errors:
                raise _refusal(job, said_instead(head), raw)
            yield Accepted()
            yield JobId(said.id)
            made = yield from _later(job, said.id)
        yield from finals(job, [made])


def _named(head: Head) -> Conversation[None]:
    if (id := head.headers.get("x-request-id")) is not None:
        yield JobId(id)


def _later(job: Job, id: str) -> Conversation[Picture]:
    """Poll until the result is there. It is kept for a day."""
    url = f"{job.provider.base_url}/results/{quote(id, safe='')}"
    asking = UpstreamRequest("GET", url, (*COMMON, ("accept", PICTURE)))
    for pause in pauses():
        yield Wait(pause)
        head, raw = yield from look(asking, job.limits.answer)
        if head.status == 200:
            return _made(job, head, raw)
        if head.status == 404:
            raise lost(job, head)
        if head.status != 202:
            raise _refusal(job, head, raw)
    raise AssertionError("the pauses have no end")


def _made(job: Job, head: Head, raw: bytes) -> Picture:
    """Read the picture, as bytes or as JSON. Raises ProxyError where it is missing, or was filtered."""
    if head.headers.get("finish-reason") == FILTERED:
        raise moderated(job, "The provider's filter has blurred the picture.", FILTERED)
    info = probe(raw)
    if info is not None:
        return Picture(tuple(base64_slices(raw)), media_type(info.format))
    said = decoded(raw, _Said)
    if said.finish_reason == FILTERED:
        raise moderated(job, "The provider's filter has blurred the picture.", FILTERED)
    if said.errors:
        raise _refusal(job, said_instead(head), raw)
    text = base64_text(said.image)
    found = probe_base64(text)
    if not text:
        raise no_image(job, "", said.finish_reason)
    return Picture((text,), media_type(found.format) if found else "")


def _route(job: Job) -> Route:
    return ROUTES.get(job.route.upstream_model.removeprefix("stable-image-"), SD3)


def _request(job: Job, route: Route) -> Conversation[UpstreamRequest]:
    """The request. Raises ProxyError(UNSUPPORTED_PARAMETER)."""
    request = job.request
    fields = {"prompt": request.prompt, "output_format": "png"}
    if request.output_format in route.formats:
        fields["output_format"] = str(request.output_format)
    if route.model:
        fields["model"] = job.route.upstream_model
    most = 1 if route.image else 0
    if len(request.images) > most:
        message = f"This model takes {'one input image' if most else 'no input images'}."
        raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param=f"images[{most}]")
    files: dict[str, Inline | Spooled] = {}
    if request.images:
        files[route.image] = yield from inlined(request.images[0], job, "images[0]")
        fields |= {"strength": STRENGTH} if route.strength else {}
        fields |= {"mode": "image-to-image"} if route.model else {}
        if route.masks and (drawn := (yield from mask(job, "white"))) is not None:
            files["mask"] = drawn
    elif route.ratios and (edges := pixels(request.size)) is not None:
        fields["aspect_ratio"] = nearest_ratio(RATIOS, *edges)
    for name in (*OPTIONS, *route.options):
        option = request.option(name)
        if option is not None and (name != "strength" or request.images):
            fields[name] = option if isinstance(option, str) else msgspec.json.encode(option).decode()
    accept = "application/json" if route.later else PICTURE
    return post_form(job, f"{job.provider.base_url}/stable-image/{route.path}", fields, files, accept)


def _refusal(job: Job, head: Head, raw: bytes) -> ProxyError:
    try:
        said = decoded(raw, _Said)
    except ProxyError:
        said = _Said()
    words = " ".join(said.errors or ())
    if said.name == MODERATION:
        return moderated(job, words, MODERATION)
    return refused(job, head, Refusal(words, said.name))
