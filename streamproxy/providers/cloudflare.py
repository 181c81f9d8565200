"""Cloudflare's Workers AI: one exchange for each picture, in JSON, or as a form for FLUX.2.

The account is in `base_url`: https://api.cloudflare.com/client/v4/accounts/<account>/ai/run. Models have Cloudflare's
names, like `cloudflare/@cf/black-forest-labs/flux-1-schnell`. SHAPES has the differences between them. An answer is
JSON with base64, or the picture's bytes; its first bytes tell which. A mask is not sent, because the models that take
one want it as a list of numbers, which would be ten times the size of the picture.

Sources: developers.cloudflare.com/workers-ai/models and its changelog of 2026-01-28 (FLUX.2); the code of a refusal for
what is shown is from third parties.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    post_form,
    post_json,
    refusal_body,
    send,
    unapplied,
)
from streamproxy.core.images import base64_slices, media_type, probe, probe_base64
from streamproxy.core.rawjson import base64_text
from streamproxy.core.requests import Embedded, Head, ImageRequest, UpstreamRequest
from streamproxy.core.sizes import Grid
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.refusals import Refusal, moderated, no_image, refused, said_instead

FLUX_2: Final = Grid(step=16, least=256, most=1920, area=1920 * 1920)
DIFFUSION: Final = Grid(step=8, least=256, most=2048, area=2048 * 2048)
SQUARE: Final = (1024, 1024)
FORMATS: Final[Mapping[str, Literal["png", "jpeg"]]] = {"png": "png", "jpeg": "jpeg"}
"""A model makes one kind of file. The proxy converts it to the other one on request."""

BLOCKED: Final = 3030
RAY: Final = "cf-ray"
"""The header with which Cloudflare's support finds a request."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The members of one family of models.

    `grid`: of width and height. `form`: the request is a form. `inputs`: the most input images; `image`: their member.
    `options`: further members under the same name.
    """

    grid: Grid | None = None
    form: bool = False
    inputs: int = 0
    options: tuple[str, ...] = ()


SHAPES: Final[Mapping[str, Shape]] = {
    "flux-1-schnell": Shape(options=("steps", "seed")),
    "flux-2-klein": Shape(FLUX_2, form=True, inputs=4, options=("seed",)),
    "flux-2": Shape(FLUX_2, form=True, inputs=4, options=("steps", "seed")),
    "lucid-origin": Shape(DIFFUSION, options=("num_steps", "seed", "guidance")),
    "phoenix": Shape(DIFFUSION, options=("num_steps", "seed", "guidance", "negative_prompt")),
}
"""Shapes by the beginning of the name's last part. The first match counts."""

OTHERS: Final = Shape(DIFFUSION, inputs=1, options=("num_steps", "seed", "guidance", "negative_prompt", "strength"))
"""Stable Diffusion and its kin."""


class _Error(msgspec.Struct):
    code: int | str | None = None
    message: str = ""


class _Result(msgspec.Struct):
    image: msgspec.Raw = msgspec.Raw(b"null")


class _Said(msgspec.Struct):
    result: _Result | None = None
    success: bool = True
    errors: list[_Error] | None = None


class Cloudflare:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        return 1

    def not_applied(self, job: Job) -> tuple[str, ...]:
        shape, request = _shape(job), job.request
        conditions = {
            "size": request.size in (None, "auto") or (shape.grid is not None and pixels(request.size) is not None),
            "output_format": request.output_format in (None, *FORMATS),
        }
        applied = {"image", "images", *shape.options, *(name for name in conditions if conditions[name])}
        return unapplied(job, frozenset(applied))

    def converse(self, job: Job) -> Conversation[None]:
        head = yield from send((yield from _request(job)))
        if head.status != 200:
            raise _refusal(job, head, (yield from refusal_body()))
        made = _made(job, head, (yield from body(job.limits.answer)))
        yield Accepted()
        if (ray := head.headers.get(RAY)) is not None:
            yield JobId(ray)
        if (form := FORMATS.get(job.request.output_format or "")) is not None:
            made = yield from converted(made, form)
        yield from finals(job, [made])


def _shape(job: Job) -> Shape:
    name = job.route.upstream_model.rpartition("/")[2]
    return next((shape for start, shape in SHAPES.items() if name.startswith(start)), OTHERS)


def _request(job: Job) -> Conversation[UpstreamRequest]:
    """The request. Raises ProxyError(UNSUPPORTED_PARAMETER)."""
    shape, request = _shape(job), job.request
    url = f"{job.provider.base_url}/{quote(job.route.upstream_model, safe='@/')}"
    if len(request.images) > shape.inputs:
        message = f"This model takes {shape.inputs or 'no'} input image{'s' if shape.inputs != 1 else ''}."
        raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param=f"images[{shape.inputs}]")
    value: dict[str, object] = {"prompt": request.prompt}
    if shape.grid is not None:
        value["width"], value["height"] = shape.grid.fitted(*(pixels(request.size) or SQUARE))
    value |= {name: option for name in shape.options if (option := request.option(name)) is not None}
    shown = []
    for index, image in enumerate(request.images):
        shown.append((yield from inlined(image, job, f"images[{index}]")))
    if shape.form:
        texts = {name: said if isinstance(said, str) else f"{said}" for name, said in value.items()}
        return post_form(job, url, texts, {f"input_image_{index}": image for index, image in enumerate(shown)})
    return post_json(job, url, value | ({"image_b64": Embedded(shown[0])} if shown else {}))


def _made(job: Job, head: Head, raw: bytes) -> Picture:
    """Read the picture, as bytes or in JSON. Raises ProxyError where there is none."""
    if (info := probe(raw)) is not None:
        return Picture(tuple(base64_slices(raw)), media_type(info.format))
    said = decoded(raw, _Said)
    if said.errors or not said.success:
        raise _refusal(job, said_instead(head), raw)
    text = base64_text(said.result.image) if said.result is not None else b""
    if not text:
        raise no_image(job, "", "")
    found = probe_base64(text)
    return Picture((text,), media_type(found.format) if found else "")


def _refusal(job: Job, head: Head, raw: bytes) -> ProxyError:
    """Read `{"success": false, "errors": [{"code": 5006, "message": "..."}], "result": null}`"""
    try:
        errors = decoded(raw, _Said).errors or [_Error()]
    except ProxyError:
        errors = [_Error()]
    code = "" if errors[0].code is None else str(errors[0].code)
    words = " ".join(error.message for error in errors)
    if code == str(BLOCKED):
        return moderated(job, words, code)
    return refused(job, head, Refusal(words, code or None))
