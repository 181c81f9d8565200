"""Alibaba's DashScope (Model Studio): Qwen-Image in one exchange, Wan as a task that is polled.

Models are named `dashscope/<model>`. SHAPES has the differences: the path, whether the answer is a task, the form of
prompt and size, the most pictures of one request. Number and size are always sent, because Wan's own defaults are four
pictures of 2048x2048. `watermark` is always sent as false, unless the caller asks for one.

Refusals come as 4xx, under 200 with a `code` at the top level, and as a failed task. A task can be cancelled only while
it waits. Pictures are URLs that hold for a day.

Sources: dashscope 2.0.2; Alibaba Cloud's Model Studio reference, November 2026.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log, sqrt
from typing import Final, Literal
from urllib.parse import quote

import msgspec

from streamproxy.core.catalogue import Route
from streamproxy.core.completion import finals
from streamproxy.core.conversation import (
    COMMON,
    SMALL,
    TRIES,
    Accepted,
    Conversation,
    Job,
    JobId,
    Picture,
    Undo,
    Wait,
    body,
    converted,
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
from streamproxy.core.sizes import Grid
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.refusals import Refusal, failed, lost, moderated, no_image, refused, said_instead

MESSAGES: Final = "/services/aigc/multimodal-generation/generation"
TASKS: Final = "/services/aigc/image-generation/generation"
SYNTHESIS: Final = "/services/aigc/text2image/image-synthesis"
ASYNC: Final = (("x-dashscope-async", "enable"),)

QWEN_2: Final = Grid(step=16, least=256, most=4096, area=2048 * 2048)
WAN_27: Final = Grid(step=16, least=256, most=4096, area=2048 * 2048)
WAN_27_PRO: Final = Grid(step=16, least=256, most=8192, area=4096 * 4096)
WAN: Final = Grid(step=16, least=512, most=1440, area=1440 * 1440)
FIVE: Final = ((1328, 1328), (1664, 928), (928, 1664), (1472, 1104), (1104, 1472))
SQUARE: Final = (1024, 1024)

OPTIONS: Final = ("negative_prompt", "seed", "prompt_extend", "watermark")
"""Members that every model takes under the same name."""

FORMATS: Final[Mapping[str, Literal["png", "jpeg"]]] = {"png": "png", "jpeg": "jpeg"}


@dataclass(frozen=True, slots=True)
class Shape:
    """The members of one family of models.

    `task`: the answer is a task. `grid`: sizes with at least `area` pixels; `sizes`: the only ones. `edit_size`: the
    size of an edit without one, "" for none. `most` pictures and `inputs` of one request. `options`: further members
    under the same name.
    """

    path: str = MESSAGES
    task: bool = False
    grid: Grid | None = None
    area: int = 512 * 512
    sizes: Sequence[tuple[int, int]] = ()
    edit_size: str = ""
    most: int = 1
    inputs: int = 0
    options: tuple[str, ...] = ()


THINKS: Final = ("thinking_mode",)
SHAPES: Final[Mapping[str, Shape]] = {
    "qwen-image-edit-plus": Shape(grid=QWEN_2, most=6, inputs=3),
    "qwen-image-edit-max": Shape(grid=QWEN_2, most=6, inputs=3),
    "qwen-image-edit": Shape(inputs=3),
    "qwen-image-2.1-pro": Shape(grid=QWEN_2, most=6, inputs=10),
    "qwen-image-2": Shape(grid=QWEN_2, most=6, inputs=3),
    "qwen-image-3": Shape(grid=QWEN_2, most=6, inputs=4),
    "qwen-image-max": Shape(sizes=FIVE),
    "qwen-image-plus": Shape(SYNTHESIS, task=True, sizes=FIVE),
    "qwen-image": Shape(SYNTHESIS, task=True, sizes=FIVE),
    "wan2.7-image-pro": Shape(
        TASKS, task=True, grid=WAN_27_PRO, area=768 * 768, edit_size="1K", most=4, inputs=9, options=THINKS
    ),
    "wan2.7": Shape(TASKS, task=True, grid=WAN_27, area=768 * 768, edit_size="1K", most=4, inputs=9, options=THINKS),
    "wan2.6": Shape(TASKS, task=True, grid=WAN, area=768 * 768, edit_size="1K", most=4, inputs=4),
    "wan": Shape(SYNTHESIS, task=True, grid=WAN, most=4),
    "z-image": Shape(grid=QWEN_2),
}
"""Shapes by the beginning of the model's name. The first match counts."""

LIKELY: Final = Shape(grid=QWEN_2, inputs=3)
"""For a model outside the table."""

BLOCKED: Final = "DataInspectionFailed"
WAITING: Final = "PENDING"
GOING: Final = frozenset({WAITING, "RUNNING", "SUSPENDED"})
UNKNOWN: Final = "UNKNOWN"


class _Item(msgspec.Struct):
    """A part of a message, or a result of an older task."""

    image: str | None = None
    url: str | None = None
    text: str | None = None
    code: str | None = None
    message: str | None = None


class _Message(msgspec.Struct):
    content: list[_Item] | str | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None


class _Output(msgspec.Struct):
    task_id: str | None = None
    task_status: str = ""
    choices: list[_Choice] | None = None
    results: list[_Item] | None = None
    code: str | None = None
    message: str | None = None

    @property
    def items(self) -> list[_Item]:
        parts = [choice.message.content for choice in self.choices or () if choice.message is not None]
        return [*(part for content in parts if isinstance(content, list) for part in content), *(self.results or ())]


class _Answer(msgspec.Struct):
    request_id: str = ""
    output: _Output | None = None
    code: str | None = None
    message: str | None = None


class DashScope:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        return min(request.n, _shape(route.upstream_model).most)

    def not_applied(self, job: Job) -> tuple[str, ...]:
        shape, request = _shape(job.route.upstream_model), job.request
        applied = {"image", "images", *OPTIONS, *shape.options}
        sized = shape.grid is not None or shape.sizes
        if request.size in (None, "auto") or (sized and pixels(request.size) is not None):
            applied.add("size")
        if request.output_format in (None, *FORMATS):
            applied.add("output_format")
        return unapplied(job, frozenset(applied))

    def converse(self, job: Job) -> Conversation[None]:
        shape = _shape(job.route.upstream_model)
        headers = ASYNC if shape.task else ()
        head = yield from send(post_json(job, f"{job.provider.base_url}{shape.path}", _input(job, shape), headers))
        if head.status != 200:
            raise _refusal(job, head, (yield from refusal_body()))
        answer = decoded((yield from body(SMALL)), _Answer)
        output = answer.output or _Output()
        if answer.code or not (output.task_id or output.items):
            raise _said(job, said_instead(head), answer)
        if not (output.task_id or any(_url(item) for item in output.items)):
            raise _nothing(job, output.items)
        yield Accepted()
        yield JobId(output.task_id or answer.request_id)
        if output.task_id is not None:
            output = yield from _finished(job, output.task_id)
        yield from _made(job, output.items)


def _finished(job: Job, id: str) -> Conversation[_Output]:
    """Poll until the task has ended. It can be cancelled while it waits, but not once it runs."""
    url = f"{job.provider.base_url}/tasks/{quote(id, safe='')}"
    yield Undo(UpstreamRequest("POST", f"{url}/cancel", COMMON))
    waiting, misses = True, 0
    for pause in pauses():
        yield Wait(pause)
        head, raw = yield from look(get(url))
        if head.status != 200:
            raise lost(job, head) if head.status == 404 else _refusal(job, head, raw)
        answer = decoded(raw, _Answer)
        output = answer.output or _Output(code=answer.code, message=answer.message)
        misses = misses + 1 if output.task_status == UNKNOWN else 0
        if misses == TRIES:
            raise lost(job, Head(404, head.items))
        if waiting and output.task_status not in (WAITING, UNKNOWN):
            waiting = False
            yield Undo(None)
        if output.task_status == "SUCCEEDED":
            return output
        if not (misses or output.task_status in GOING):
            raise _failure(job, output.code or output.task_status, output.message or "")
    raise AssertionError("the pauses have no end")


def _made(job: Job, items: Sequence[_Item]) -> Conversation[None]:
    """The pictures, at most as many as the job is for. Raises ProxyError where some are missing."""
    found = [url for item in items if (url := _url(item))]
    pictures: list[Picture | None] = []
    for url in (yield from first_of(found, job)):
        shown = yield from fetch(url)
        form = FORMATS.get(job.request.output_format or "")
        pictures.append(shown if form is None or not shown.base64 else (yield from converted(shown, form)))
    if pictures:
        yield from finals(job, pictures)
    if len(pictures) < job.n:
        raise _nothing(job, items) if not pictures or any(item.code for item in items) else _short(job, len(pictures))


def _url(item: _Item) -> str:
    return item.image or item.url or ""


def _short(job: Job, made: int) -> ProxyError:
    return no_image(job, f"The provider made {made} of {job.n} pictures.", "")


def _nothing(job: Job, items: Sequence[_Item]) -> ProxyError:
    """The error for an answer without pictures: a failed picture's code, or the text in place of pictures."""
    failure = next((item for item in items if item.code), None)
    if failure is not None:
        return _failure(job, failure.code or "", failure.message or "")
    return no_image(job, " ".join(item.text for item in items if item.text), "")


def _shape(model: str) -> Shape:
    return next((shape for start, shape in SHAPES.items() if model.startswith(start)), LIKELY)


def _input(job: Job, shape: Shape) -> dict[str, object]:
    """The request's body. Raises ProxyError(UNSUPPORTED_PARAMETER)."""
    request = job.request
    parameters: dict[str, object] = {"n": job.n, "watermark": False, **_size(shape, request)}
    given = ((name, request.option(name)) for name in (*OPTIONS, *shape.options))
    parameters |= {name: option for name, option in given if option is not None}
    if len(request.images) > shape.inputs:
        message = f"This model takes {shape.inputs or 'no'} input image{'s' if shape.inputs != 1 else ''}."
        raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param=f"images[{shape.inputs}]")
    asked: dict[str, object] = {"prompt": request.prompt}
    if shape.path != SYNTHESIS:
        content = [*({"image": _shown(image)} for image in request.images), {"text": request.prompt}]
        asked = {"messages": [{"role": "user", "content": content}]}
    return {"model": job.route.upstream_model, "input": asked, "parameters": parameters}


def _shown(image: Input) -> object:
    return image.url if isinstance(image, Remote) else Embedded(image, data_url=True)


def _size(shape: Shape, request: ImageRequest) -> dict[str, object]:
    edges = pixels(request.size)
    if edges is None and request.images:
        return {"size": shape.edit_size} if shape.edit_size else {}
    wide, high = edges or SQUARE
    if shape.sizes:
        width, height = min(shape.sizes, key=lambda size: abs(log(size[0] * high / (size[1] * wide))))
    elif shape.grid is not None:
        scale = max(1.0, sqrt(shape.area / (wide * high)))
        width, height = shape.grid.fitted(round(wide * scale), round(high * scale))
    else:
        return {}
    return {"size": f"{width}*{height}"}


def _refusal(job: Job, head: Head, raw: bytes) -> ProxyError:
    try:
        said = decoded(raw, _Answer)
    except ProxyError:
        said = _Answer()
    return _said(job, head, said)


def _said(job: Job, head: Head, said: _Answer) -> ProxyError:
    """Read an error. Throttling and a wrong key have their own codes, under any status."""
    code = said.code or ""
    if code.startswith(BLOCKED):
        return moderated(job, said.message or "", code)
    for start, status in STATUSES.items():
        if code.startswith(start):
            head = Head(status, head.items)
    return refused(job, head, Refusal(said.message or "", said.code))


STATUSES: Final[Mapping[str, int]] = {"InvalidApiKey": 401, "Arrearage": 402, "Throttling": 429, "InternalError": 500}
"""The HTTP status of an error by the beginning of its code, also where it comes under 200."""


def _failure(job: Job, code: str, message: str) -> ProxyError:
    return moderated(job, message, code) if code.startswith(BLOCKED) else failed(job, message, code)
