"""ByteDance's Seedream models on Ark, by BytePlus and by Volcengine: one path for generations and edits.

Several pictures of one request are a group of related pictures. The model makes as many as the prompt calls for, up to
`n`. With `"sequential_image_generation": "disabled"`, and for models without groups, `n` requests are sent instead.
There is no mask, quality or seed. The watermark, on by default, is switched off unless the caller asks for it. SHAPES
has the differences between the models; `groups` reads their answers.

Sources: BytePlus's image generation API, 8 October 2026; docs.apiyi.com's comparison of the versions, 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from streamproxy.core.catalogue import Route
from streamproxy.core.conversation import Conversation, Job, pixels, post_json, unapplied
from streamproxy.core.requests import ImageRequest, url_of
from streamproxy.core.sizes import resized
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.groups import made

GROUP: Final = 15
"""Most pictures of a group, input images included."""

SEQUENTIAL: Final = "sequential_image_generation"
OPTIONS: Final = ("watermark", "optimize_prompt_options")
"""Members that every model takes under the same name."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The limits of one version: areas from `least` to `most` pixels, sizes by name, input images, further members.

    `groups`: one request makes several pictures, and answers with events. `formats`: it takes the file's format.
    """

    least: int
    most: int
    tiers: tuple[str, ...]
    inputs: int = 14
    groups: bool = True
    formats: tuple[str, ...] = ("png", "jpeg")
    options: tuple[str, ...] = ()


LARGE: Final = 4096 * 4096
SHAPES: Final[Mapping[str, Shape]] = {
    "seedream-5-0-pro": Shape(921_600, 4_624_220, ("1K", "1.5K", "2K"), 10, groups=False, options=("background",)),
    "seedream-5-0-flash": Shape(921_600, 4_624_220, ("1K", "1.5K", "2K"), 10, groups=False),
    "seedream-5-0": Shape(3_686_400, LARGE, ("2K", "3K", "4K"), options=("tools",)),
    "seedream-4-5": Shape(3_686_400, LARGE, ("2K", "4K"), formats=()),
    "seedream-4-0": Shape(921_600, LARGE, ("1K", "2K", "4K"), formats=()),
}
"""Shapes by a part of the model's name. The first match counts."""

ENDPOINT: Final = Shape(1, LARGE * 4, ("1K", "1.5K", "2K", "3K", "4K"), groups=False, options=("tools", "seed"))
"""For an endpoint, whose name does not tell its model."""


class Ark:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        if not _shape(route).groups or request.option(SEQUENTIAL) == "disabled":
            return 1
        return max(1, min(request.n, route.model.max_n, GROUP - len(request.images)))

    def not_applied(self, job: Job) -> tuple[str, ...]:
        shape, request = _shape(job.route), job.request
        applied = {"image", "images", *OPTIONS, *shape.options}
        applied |= {SEQUENTIAL} if shape.groups else set()
        if request.size in (None, "auto") or _size(shape, request):
            applied.add("size")
        if request.output_format in (None, *shape.formats) or (not shape.formats and request.output_format == "jpeg"):
            applied.add("output_format")
        return unapplied(job, frozenset(applied))

    def converse(self, job: Job) -> Conversation[None]:
        shape, request = _shape(job.route), job.request
        if len(request.images) > shape.inputs:
            message = f"This model takes {shape.inputs} input images."
            raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param=f"images[{shape.inputs}]")
        yield from made(job, post_json(job, job.provider.base_url + job.provider.generations, _value(job, shape)))


def _value(job: Job, shape: Shape) -> dict[str, object]:
    request = job.request
    streams = shape.groups and request.stream and job.provider.streams
    value: dict[str, object] = {
        "model": job.route.upstream_model,
        "prompt": request.prompt,
        "watermark": False,
        # A URL is fetched picture by picture; base64 of a whole group would be one answer of up to 400 MB.
        "response_format": "url" if streams or job.n > 1 else "b64_json",
        **_size(shape, request),
    }
    if shape.groups:
        value[SEQUENTIAL] = "auto" if job.n > 1 else "disabled"
    if job.n > 1:
        value[f"{SEQUENTIAL}_options"] = {"max_images": job.n}
    if streams:
        value["stream"] = True
    if request.output_format in shape.formats:
        value["output_format"] = request.output_format
    given = ((name, request.option(name)) for name in (*OPTIONS, *shape.options))
    value |= {name: option for name, option in given if option is not None}
    shown = [url_of(image) for image in request.images]
    if shown:
        value["image"] = shown if len(shown) > 1 else shown[0]
    return value


def _shape(route: Route) -> Shape:
    return next((shape for part, shape in SHAPES.items() if part in route.upstream_model), ENDPOINT)


def _size(shape: Shape, request: ImageRequest) -> dict[str, object]:
    """The nearest size that the model makes, with the same ratio. Most models begin above 1024x1024."""
    edges = pixels(request.size)
    if edges is not None:
        width, height = resized(*edges, shape.least, shape.most)
        return {"size": f"{width}x{height}"}
    named = (request.size or "").upper()
    return {"size": named} if named in shape.tiers else {}
