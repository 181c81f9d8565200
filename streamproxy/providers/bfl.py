"""Black Forest Labs' FLUX models: submit a task, poll it until it is done, fetch its one picture.

Models are named `bfl/<endpoint>`, like `bfl/flux-2-pro`. Polls go to the URL in the answer, on a regional host. The
picture is fetched at once and without the key, since its URL holds for ten minutes. There are no previews, only a
progress, and a task cannot be cancelled.

SHAPES has the differences between the models: the form of a size, and the members of input images. Only the fill model
takes a mask, white where the picture changes. Refusals come under 200, as a status of the task.

Sources: api.bfl.ai/openapi.json and Black Forest Labs' own integration guide, November 2026; a recorded exchange.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

import msgspec

from streamproxy.core.catalogue import Route
from streamproxy.core.completion import finals
from streamproxy.core.conversation import (
    SMALL,
    TRIES,
    Accepted,
    Conversation,
    Job,
    JobId,
    Progress,
    Wait,
    asked_pause,
    body,
    decoded,
    fetch,
    get,
    inlined,
    look,
    mask,
    pauses,
    pixels,
    post_json,
    refusal_body,
    send,
    unapplied,
)
from streamproxy.core.cost import Work
from streamproxy.core.requests import Embedded, Head, ImageRequest, Remote, UpstreamRequest
from streamproxy.core.sizes import Grid, nearest_ratio
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.refusals import detailed, failed, lost, moderated, no_image, refused, said_instead

MEGA: Final = 1024 * 1024
FLUX_2: Final = Grid(step=16, least=64, most=2048, area=4 * MEGA)
FLUX_1: Final = Grid(step=32, least=256, most=1440, area=1440 * 1440)
RATIOS: Final = ("21:9", "16:9", "4:3", "3:2", "1:1", "2:3", "3:4", "9:16", "9:21")
SQUARE: Final = (1024, 1024)

OPTIONS: Final = ("seed", "safety_tolerance", "prompt_upsampling")
"""Members that every model takes under the same name."""

FORMATS: Final = ("jpeg", "png")
CREDIT: Final = 0.01
"""USD."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The members of one family of models.

    `grid`: it takes width and height; `ratios`: it takes one of these; neither: the input image decides. `inputs`: the
    most input images, the first as `image`, the second as `image_2`. `urls`: it takes them as URLs too. `masks`: it
    takes a mask. `options`: further members under the same name.
    """

    grid: Grid | None = None
    ratios: bool = False
    inputs: int = 0
    image: str = "input_image"
    urls: bool = True
    masks: bool = False
    options: tuple[str, ...] = ()


TUNED: Final = ("steps", "guidance")
SHAPES: Final[Mapping[str, Shape]] = {
    "flux-2-klein": Shape(FLUX_2, inputs=4),
    "flux-2-flex": Shape(FLUX_2, inputs=8, options=TUNED),
    "flux-2": Shape(FLUX_2, inputs=8),
    "flux-kontext": Shape(ratios=True, inputs=4, options=("aspect_ratio",)),
    "flux-pro-1.1-ultra": Shape(
        ratios=True, inputs=1, image="image_prompt", options=("aspect_ratio", "raw", "image_prompt_strength")
    ),
    "flux-pro-1.1": Shape(FLUX_1, inputs=1, image="image_prompt"),
    "flux-dev": Shape(FLUX_1, inputs=1, image="image_prompt", options=TUNED),
    "flux-pro-1.0-fill": Shape(inputs=1, image="image", urls=False, masks=True, options=TUNED),
    "flux-pro-1.0-expand": Shape(
        inputs=1, image="image", urls=False, options=(*TUNED, "top", "bottom", "left", "right")
    ),
}
"""Shapes by the beginning of the endpoint. The first match counts."""

UNKNOWN: Final = Shape()

READY: Final = "Ready"
MISSING: Final = "Task not found"
MODERATED: Final = frozenset({"Request Moderated", "Content Moderated"})
FAILED: Final = frozenset({"Error", "Failed"})
"""Any other status means that the task runs: Pending, Queued, Processing, and unknown ones."""


class _Sample(msgspec.Struct):
    sample: str | None = None


class Task(msgspec.Struct):
    """The answer to a submission, or to a poll."""

    id: str = ""
    polling_url: str | None = None
    status: str = ""
    result: _Sample | None = None
    progress: float | None = None
    details: msgspec.Raw = msgspec.Raw(b"null")
    cost: float | None = None
    input_mp: float | None = None


class Bfl:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        return 1

    def not_applied(self, job: Job) -> tuple[str, ...]:
        shape, request = _shape(job), job.request
        applied = {"image", "images", *OPTIONS, *shape.options}
        if (shape.grid or shape.ratios) and (request.size in (None, "auto") or pixels(request.size)):
            applied.add("size")
        if request.output_format in (None, *FORMATS):
            applied.add("output_format")
        if shape.masks:
            applied.add("mask")
        return unapplied(job, frozenset(applied))

    def converse(self, job: Job) -> Conversation[None]:
        value = yield from _input(job)
        url = f"{job.provider.base_url}/{quote(job.route.upstream_model)}"
        head = yield from send(post_json(job, url, value))
        if head.status not in (200, 201, 202):
            raise refused(job, head, detailed((yield from refusal_body())))
        raw = yield from body(SMALL)
        task = decoded(raw, Task)
        check(job, task)
        if not task.id:
            raise refused(job, said_instead(head), detailed(raw))
        yield Accepted()
        yield JobId(task.id)
        url = task.polling_url or f"{job.provider.base_url}/get_result?id={quote(task.id)}"
        done = yield from finished(job, get(url))
        if done.result is None or not done.result.sample:
            raise no_image(job, "", done.status)
        picture = yield from fetch(done.result.sample)
        credit = task.cost if done.cost is None else done.cost
        paid = None if credit is None else round(credit * CREDIT, 6)
        yield from finals(job, [picture], work=Work(inputs=_inputs(job, task), paid=paid))


def finished(job: Job, asking: UpstreamRequest) -> Conversation[Task]:
    """Poll until the task has ended. If it is not found, it may not be known in every region yet."""
    asked = 0.0
    misses = 0
    for pause in pauses():
        yield Wait(max(pause, asked))
        head, raw = yield from look(asking)
        if head.status not in (200, 404):
            raise refused(job, head, detailed(raw))
        asked = asked_pause(head)
        task = decoded(raw, Task)
        if head.status == 404 or task.status == MISSING:
            misses += 1
            if misses == TRIES:
                raise lost(job, Head(404, head.items))
            continue
        check(job, task)
        if task.status == READY:
            return task
        if task.progress is not None:
            yield Progress(fraction=min(1.0, max(0.0, task.progress)))
    raise AssertionError("the pauses have no end")


def check(job: Job, task: Task) -> None:
    """Raise ProxyError where the status is a refusal, or a failure."""
    if task.status in MODERATED:
        reasons = ", ".join(_texts(task.details))
        words = f"The provider's moderation blocked the {task.status.partition(' ')[0].lower()}"
        raise moderated(job, f"{words}: {reasons}." if reasons else f"{words}.", task.status)
    if task.status in FAILED:
        raise failed(job, " ".join(_texts(task.details)), task.status)


def _texts(details: msgspec.Raw) -> list[str]:
    """The strings of a task's `details`, like {"Moderation Reasons": ["Safety Filter"]}."""
    found = msgspec.json.decode(details)
    values = found.values() if isinstance(found, dict) else [found]
    return [
        text for value in values for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)
    ]


def _inputs(job: Job, task: Task) -> int | None:
    """Megapixels of the input images, which are charged."""
    if task.input_mp is not None:
        return int(-(-task.input_mp // 1)) if 0 <= task.input_mp < MOST_MEGAPIXELS else None
    return None if job.request.images else 0


MOST_MEGAPIXELS: Final = 1_000


def _shape(job: Job) -> Shape:
    model = job.route.upstream_model
    return next((shape for start, shape in SHAPES.items() if model.startswith(start)), UNKNOWN)


def _input(job: Job) -> Conversation[dict[str, object]]:
    """The model's input. Raises ProxyError(UNSUPPORTED_PARAMETER)."""
    shape, request = _shape(job), job.request
    value: dict[str, object] = {"prompt": request.prompt, **_size(shape, request)}
    given = ((name, request.option(name)) for name in (*OPTIONS, *shape.options))
    value |= {name: option for name, option in given if option is not None}
    if request.output_format in FORMATS:
        value["output_format"] = request.output_format
    for index, image in enumerate(request.images):
        if index >= shape.inputs:
            message = f"This model takes {shape.inputs or 'no'} input image{'s' if shape.inputs != 1 else ''}."
            raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param=f"images[{index}]")
        name = shape.image if not index else f"{shape.image}_{index + 1}"
        if shape.urls and isinstance(image, Remote):
            value[name] = image.url
        else:
            value[name] = Embedded((yield from inlined(image, job, f"images[{index}]")))
    if shape.masks and (drawn := (yield from mask(job, "white"))) is not None:
        value["mask"] = Embedded(drawn)
    return value


def _size(shape: Shape, request: ImageRequest) -> dict[str, object]:
    """The size. It is always sent, since the price depends on it, but for edits, which have the input image's size."""
    edges = pixels(request.size)
    if shape.grid is not None and (edges is not None or not request.images):
        width, height = shape.grid.fitted(*(edges or SQUARE))
        return {"width": width, "height": height}
    if shape.ratios and edges is not None:
        return {"aspect_ratio": nearest_ratio(RATIOS, *edges)}
    return {}
