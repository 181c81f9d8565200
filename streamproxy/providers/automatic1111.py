"""AUTOMATIC1111's API, as Forge, SD.Next, sd.cpp's server and Draw Things speak it too: one request, one late answer.

Models are named `automatic1111/<checkpoint>`; `automatic1111/default` is the one that is loaded. The server runs one
job at a time, and others wait. The request gets a task id of ours (`force_task_id`). While it is under way, the web
UI's own route is polled for the task's progress and drafts, of which at most `partial_images` are shown. The API's
`/progress` reports whatever task runs, so it is never used. Without the web UI's route, or if the server does not know
our task, there are no previews.

`/interrupt` stops the running job, which may be another user's. After a disconnect it is sent only while our task runs:
a poll has seen it active, and its request has not been answered.

Sources: the published schemas of AUTOMATIC1111's modules/api/models.py and modules/progress.py, November 2026.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Final, Literal

import msgspec

from streamproxy.core.catalogue import Route
from streamproxy.core.completion import Spread, finals, preview
from streamproxy.core.conversation import (
    TRIES,
    Accepted,
    Conversation,
    Convert,
    Job,
    JobId,
    Launch,
    Picture,
    Progress,
    Tolerated,
    Undo,
    body,
    converted,
    decoded,
    inlined,
    join,
    mask,
    pauses,
    pixels,
    post_json,
    refusal_body,
    send,
    unapplied,
)
from streamproxy.core.images import media_type, probe_base64
from streamproxy.core.rawjson import base64_text
from streamproxy.core.requests import Embedded, Head, ImageRequest, Inline, Spooled
from streamproxy.core.sizes import Grid
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.refusals import Refusal, detailed, no_image, refused, said_instead

DEFAULT: Final = "default"
"""The model that stands for the loaded checkpoint."""

GRID: Final = Grid(step=8, least=64, most=2048, area=2048 * 2048)
"""A latent pixel has 8x8 pixels; 2048 is the end of the web UI's sliders."""

SQUARE: Final = (1024, 1024)
PREVIEW_STEPS: Final = 5
"""Sampling steps between two drafts, from AUTOMATIC1111's pull request 3722."""

OPTIONS: Final = (
    *("negative_prompt", "seed", "subseed", "subseed_strength", "steps", "cfg_scale", "sampler_name", "scheduler"),
    *("styles", "clip_skip", "restore_faces", "tiling"),
)
"""Members that the server takes under the same name."""

EDIT_OPTIONS: Final = ("denoising_strength", "mask_blur", "inpainting_fill", "inpaint_full_res", "resize_mode")
INPAINTING: Final = {"mask_blur": 4, "inpainting_fill": 1, "inpaint_full_res": False, "inpainting_mask_invert": 0}
"""The web UI's defaults. With the API's, the masked area is blanked out and painted at full size."""

FORMATS: Final[Mapping[str, Literal["png", "jpeg"]]] = {"png": "png", "jpeg": "jpeg"}


class _Task(msgspec.Struct):
    """The progress of a task."""

    active: bool = False
    progress: float | None = None
    live_preview: msgspec.Raw = msgspec.Raw(b"null")
    id_live_preview: int | None = None


class _Answer(msgspec.Struct):
    images: list[msgspec.Raw] | None = None
    info: msgspec.Raw = msgspec.Raw(b"null")


class _Info(msgspec.Struct):
    index_of_first_image: int = 0


class _Problem(msgspec.Struct):
    error: str = ""
    detail: msgspec.Raw = msgspec.Raw(b"null")
    errors: str = ""


class Automatic1111:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        """One: pictures of one job are made in turn, and a draft does not say to which picture it belongs."""
        return 1 if request.stream and request.partial_images else min(request.n, route.model.max_n)

    def not_applied(self, job: Job) -> tuple[str, ...]:
        request = job.request
        conditions = {
            "size": request.size in (None, "auto") or pixels(request.size) is not None,
            "output_format": request.output_format in (None, *FORMATS),
            "mask": bool(request.images),
        }
        options = (*OPTIONS, *(EDIT_OPTIONS if request.images else ()))
        return unapplied(
            job, frozenset({"image", "images", *options, *(name for name in conditions if conditions[name])})
        )

    def converse(self, job: Job) -> Conversation[None]:
        task = f"task({job.token})"
        path = "img2img" if job.request.images else "txt2img"
        value = yield from _input(job)
        yield Launch(post_json(job, f"{job.provider.base_url}/sdapi/v1/{path}", {**value, "force_task_id": task}))
        watch = _Watch(job, task)
        waits = pauses()
        while (head := (yield from join(next(waits)))) is None:
            yield from watch.look()
        if watch.active:
            yield Undo(None)  # from here on, the running task is another's
        if head.status != 200:
            raise _refusal(job, head, (yield from refusal_body()))
        raw = yield from body(job.limits.answer)
        pictures = _pictures(decoded(raw, _Answer), job.n)
        if not pictures and _said(raw).message:
            raise _refusal(job, said_instead(head), raw)
        if not pictures:
            raise no_image(job, "", "")
        if not watch.active:
            yield Accepted()
            yield JobId(task)
        if (form := FORMATS.get(job.request.output_format or "")) is not None:
            for index, picture in enumerate(pictures):
                pictures[index] = yield from converted(picture, form)
        yield from finals(job, pictures)
        if len(pictures) < job.n:
            raise no_image(job, f"The provider made {len(pictures)} of {job.n} pictures.", "")


class _Watch:
    """Polls the progress of one task. `active`: a poll has seen it run."""

    def __init__(self, job: Job, task: str) -> None:
        self.active = False
        self._job = job
        self._task = task
        self._spread = Spread(job)
        self._shown = -1
        self._misses = 0

    def look(self) -> Conversation[None]:
        """Poll once, and yield the news. A failed poll is ignored; after TRIES in a row there are no more polls."""
        if self._misses == TRIES:
            return
        try:
            task = yield from self._asked()
        except ProxyError as error:
            self._misses += 1
            yield Tolerated(error.failure.value.label)
            return
        if task is None:
            self._misses = TRIES
            return
        self._misses = 0
        if task.active and not self.active:
            self.active = True
            yield Accepted()
            yield JobId(self._task)
            yield Undo(post_json(self._job, f"{self._job.provider.base_url}/sdapi/v1/interrupt", {}))
        if task.active and task.progress is not None:
            yield Progress(fraction=min(1.0, max(0.0, task.progress)))
        if task.active:
            yield from self._draft(task)

    def _asked(self) -> Conversation[_Task | None]:
        """One poll's answer; None where there is no such route."""
        job = self._job
        previews = bool(job.request.stream and job.request.partial_images)
        value = {"id_task": self._task, "id_live_preview": self._shown, "live_preview": previews}
        head = yield from send(post_json(job, f"{job.provider.base_url}/internal/progress", value))
        if head.status in (401, 403, 404, 405):
            return None
        raw = yield from body(job.limits.event)
        return decoded(raw, _Task) if head.status == 200 else _Task()

    def _draft(self, task: _Task) -> Conversation[None]:
        """Yield a new draft, if one is to be shown."""
        _, _, text = base64_text(task.live_preview).rpartition(b",")
        if not text or task.id_live_preview == self._shown:
            return
        self._shown = self._shown if task.id_live_preview is None else task.id_live_preview
        number = self._spread.take()
        if number is not None:
            yield preview(self._job, _picture(text), number)


def _picture(text: bytes) -> Picture:
    info = probe_base64(text)
    return Picture((text,), media_type(info.format) if info else "")


def _pictures(answer: _Answer, most: int) -> list[Picture]:
    """The answer's pictures, without a grid of all before them, and without the pictures of extensions after them."""
    texts = [text for raw in answer.images or () if (text := base64_text(raw).rpartition(b",")[2])]
    first = _first(answer.info)
    return [_picture(text) for text in texts[first : first + most]]


def _first(info: msgspec.Raw) -> int:
    """The index of the first picture, from `info`, a JSON string with JSON. SD.Next's has another form: 0."""
    try:
        text = msgspec.json.decode(info, type=str | None)
        return max(0, msgspec.json.decode(text or "{}", type=_Info).index_of_first_image)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0


def _input(job: Job) -> Conversation[dict[str, object]]:
    """The request's members. Raises ProxyError(UNSUPPORTED_PARAMETER)."""
    request = job.request
    settings: dict[str, object] = {"show_progress_every_n_steps": PREVIEW_STEPS, "return_grid": False}
    if job.route.upstream_model != DEFAULT:
        settings["sd_model_checkpoint"] = job.route.upstream_model
    value: dict[str, object] = {
        "prompt": request.prompt,
        "batch_size": 1,
        "n_iter": job.n,
        "send_images": True,
        "save_images": False,
        "override_settings": settings,
    }
    edges = pixels(request.size)
    if request.images:
        if len(request.images) > 1:
            message = "This model takes one input image."
            raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param="images[1]")
        shown = yield from inlined(request.images[0], job, "images[0]")
        edges = edges or (yield from _edges(shown))
        value["init_images"] = [Embedded(shown)]
        if (marked := (yield from mask(job, "white"))) is not None:
            value |= {"mask": Embedded(marked), **INPAINTING}
    value["width"], value["height"] = GRID.fitted(*(edges or SQUARE))
    return {**value, **dict(_options(request))}


def _options(request: ImageRequest) -> Iterator[tuple[str, object]]:
    for name in chain(OPTIONS, EDIT_OPTIONS if request.images else ()):
        if (option := request.option(name)) is not None:
            yield name, option


def _edges(image: Inline | Spooled) -> Conversation[tuple[int, int]]:
    """The size of an input image. An upload is on disk, so it is read outside the event loop."""
    start = image.base64 if isinstance(image, Inline) else None
    info = None if start is None else probe_base64(start)
    if info is None:
        made = yield Convert(image, "png")
        info = probe_base64(made.base64[0]) if isinstance(made, Picture) and made.base64 else None
    return (info.width, info.height) if info is not None else SQUARE


def _said(raw: bytes) -> Refusal:
    """Read FastAPI's error, or the server's own: an exception's name and message."""
    try:
        said = decoded(raw, _Problem)
    except ProxyError:
        return Refusal()
    if not said.error:
        return detailed(raw)
    words = detailed(raw).message or said.errors
    return Refusal(f"{said.error}: {words}" if words else said.error, said.error)


def _refusal(job: Job, head: Head, raw: bytes) -> ProxyError:
    return refused(job, head, _said(raw))
