"""fal.ai: a queue in front of many apps. Submit a job, poll it until it is done, read the result, fetch its pictures.

Models are named `fal/<path>`, like `fal/fal-ai/flux/dev`. By default fal runs a failed request up to ten times, and may
run it in another app. Both are switched off, since each run may be charged. The URLs of the job come from the answer to
its submission. After a disconnect the job is cancelled.

    the queue      every app
    fal.run        an app that is `fast` in the catalogue: one exchange, which cannot be cancelled
    /stream        an app that `streams` in the catalogue, if the caller wants previews: each event has a better
                   version of the result, and the last one has the result

APPS has the differences between the apps' members, by words in their paths. A picture that the safety checker has made
black is a refusal, although it comes as a success; the other pictures of the job count. The format of a picture is read
from its bytes, since apps have labelled PNG as JPEG.

Sources: fal-client 1.0.3; fal.ai/docs, queue API and error reference, November 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from typing import Final, Literal
from urllib.parse import quote

import msgspec

from streamproxy.core.catalogue import UNKNOWN, Route
from streamproxy.core.completion import Spread, finals, preview
from streamproxy.core.conversation import (
    COMMON,
    SMALL,
    Accepted,
    Conversation,
    Job,
    JobId,
    Picture,
    Progress,
    Tolerated,
    Undo,
    Wait,
    body,
    decoded,
    fetch,
    first_of,
    get,
    look,
    mask,
    next_event,
    pauses,
    pixels,
    post_json,
    refusal_body,
    send,
    unapplied,
)
from streamproxy.core.cost import Work
from streamproxy.core.requests import Embedded, Head, ImageRequest, Input, Remote, UpstreamRequest
from streamproxy.core.sizes import nearest_ratio, tier
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.refusals import detailed, failed, lost, moderated, no_image, refused, said_instead

OWN: Final = (("x-fal-no-retry", "1"), ("x-app-fal-disable-fallback", "1"))
QUEUE: Final = "queue."
"""The prefix of the queue's host, before the name of the host of `fal.run`."""

MOST_PICTURES: Final = 4
"""Most `num_images` of an app outside the catalogue. Few apps take more."""

APPLIED: Final = frozenset({"size", "image", "images", "output_format"})
OPTIONS: Final = (
    *("seed", "guidance_scale", "num_inference_steps", "negative_prompt", "strength", "safety_tolerance"),
    *("enable_safety_checker", "aspect_ratio", "resolution"),
)
"""Members that apps take under the same name."""

POLICY: Final = "content_policy_violation"

NINE: Final = ("21:9", "16:9", "4:3", "3:2", "1:1", "2:3", "3:4", "9:16", "9:21")
TEN: Final = ("21:9", "16:9", "3:2", "4:3", "5:4", "1:1", "4:5", "3:4", "2:3", "9:16")
TIERS: Final = {"1K": 1.0, "2K": 4.0, "4K": 16.0}


@dataclass(frozen=True, slots=True)
class App:
    """The members of an app. `ratios`: it takes an aspect ratio instead of a size; `tiers`: and a resolution.

    `written`: it takes a size as OpenAI writes it. `several`: it takes a list of input images. `mask`: the member of
    the mask, "" without one; `marks`: the mask's colour for the area to edit, "" for OpenAI's own masks. `options`:
    further members under the same name; `always`: members that are always sent, since the app's defaults may cost more.
    """

    ratios: tuple[str, ...] = ()
    tiers: bool = False
    written: bool = False
    several: bool = False
    mask: str = ""
    marks: Literal["", "white", "black"] = "white"
    options: tuple[str, ...] = ()
    always: Mapping[str, object] = field(default_factory=dict)


APPS: Final[Mapping[str, App]] = {
    "gpt-image": App(
        written=True,
        several=True,
        mask="mask_image_url",
        marks="",
        options=("quality", "background", "input_fidelity"),
    ),
    "nano-banana-pro": App(ratios=TEN, tiers=True, several=True),
    "nano-banana-2": App(ratios=TEN, tiers=True, several=True),
    "nano-banana": App(ratios=TEN, several=True),
    "gemini-3": App(ratios=TEN, tiers=True, several=True),
    "gemini": App(ratios=TEN, several=True),
    "imagen": App(ratios=("1:1", "16:9", "9:16", "4:3", "3:4")),
    "seedream": App(several=True, always={"max_images": 1}),
    "kontext/max/multi": App(ratios=NINE, several=True),
    "kontext/multi": App(ratios=NINE, several=True),
    "pro/kontext": App(ratios=NINE),
    "v1.1-ultra": App(ratios=NINE),
    "flux-2": App(several=True),
    "qwen-image-edit-plus": App(several=True),
    "ideogram": App(mask="mask_url", marks="black"),
    "flux/schnell": App(),
    "flux/dev": App(),
}
"""Apps by a word in the path. The first match counts. Source: the apps' pages on fal.ai, November 2026."""

ANY: Final = App(mask="mask_url")


class _Queued(msgspec.Struct):
    request_id: str
    status_url: str
    response_url: str
    cancel_url: str | None = None


class _Metrics(msgspec.Struct):
    inference_time: float | None = None


class _Status(msgspec.Struct):
    status: str = ""
    queue_position: int | None = None
    error: str | None = None
    error_type: str | None = None
    metrics: _Metrics | None = None


class _File(msgspec.Struct):
    url: str


class _Result(msgspec.Struct):
    images: list[_File] | None = None
    image: _File | None = None
    has_nsfw_concepts: list[bool] | None = None
    detail: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def files(self) -> list[_File]:
        return self.images or ([self.image] if self.image is not None else [])

    def is_flagged(self, index: int) -> bool:
        flags = self.has_nsfw_concepts or []
        return index < len(flags) and flags[index]


class Fal:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        most = MOST_PICTURES if route.model.family == UNKNOWN else route.model.max_n
        return min(request.n, most)

    def not_applied(self, job: Job) -> tuple[str, ...]:
        app = _app(job)
        applied = APPLIED.union(OPTIONS, app.options, {"mask"} if app.mask else ())
        odd = not app.written and job.request.size not in (None, "auto") and pixels(job.request.size) is None
        return unapplied(job, applied - {"size"} if odd else applied)

    def converse(self, job: Job) -> Conversation[None]:
        value = yield from _input(job)
        direct = job.provider.base_url.replace(QUEUE, "", 1)
        known = job.model.family != UNKNOWN and direct != job.provider.base_url
        if known and job.model.streams and job.provider.streams and job.request.stream and job.request.partial_images:
            yield from _streamed(job, f"{direct}/{_path(job)}/stream", value)
        elif known and job.model.fast:
            yield from _at_once(job, f"{direct}/{_path(job)}", value)
        else:
            yield from _queued(job, f"{job.provider.base_url}/{_path(job)}", value)


def _queued(job: Job, url: str, value: object) -> Conversation[None]:
    head = yield from send(post_json(job, url, value, OWN))
    if head.status not in (200, 201, 202):
        raise _refusal(job, head, (yield from refusal_body()))
    raw = yield from body(SMALL)
    if detailed(raw).message:
        raise _refusal(job, said_instead(head), raw)
    queued = decoded(raw, _Queued)
    yield Accepted()
    yield JobId(queued.request_id)
    if queued.cancel_url is not None:
        yield Undo(UpstreamRequest("PUT", queued.cancel_url, COMMON))
    metrics = yield from _finished(job, queued.status_url)
    yield Undo(None)  # nothing is left to cancel
    head, raw = yield from look(get(queued.response_url), job.limits.answer)
    if head.status != 200:
        raise _refusal(job, head, raw, taken=True)
    yield from _made(job, head, decoded(raw, _Result), metrics)


def _finished(job: Job, status_url: str) -> Conversation[_Metrics]:
    """Poll until the job has ended."""
    for pause in pauses():
        yield Wait(pause)
        head, raw = yield from look(get(status_url))
        if head.status not in (200, 202):
            raise _refusal(job, head, raw, taken=True)
        status = decoded(raw, _Status)
        if status.status == "COMPLETED":
            if status.error is not None:
                raise _failure(job, status.error, status.error_type or "")
            return status.metrics or _Metrics()
        yield Progress(queue=status.queue_position)
    raise AssertionError("the pauses have no end")


def _at_once(job: Job, url: str, value: object) -> Conversation[None]:
    head = yield from send(post_json(job, url, value, OWN))
    if head.status != 200:
        raise _refusal(job, head, (yield from refusal_body()))
    raw = yield from body(job.limits.answer)
    result = decoded(raw, _Result)
    if bytes(result.detail) != b"null":
        raise _refusal(job, said_instead(head), raw)
    yield Accepted()
    yield from _named(head)
    yield from _made(job, head, result, _Metrics())


def _named(head: Head) -> Conversation[None]:
    if (id := head.headers.get("x-fal-request-id")) is not None:
        yield JobId(id)


def _streamed(job: Job, url: str, value: object) -> Conversation[None]:
    """Read events with better and better results: the last one is the result, and the others are drafts."""
    head = yield from send(post_json(job, url, value, (("accept", "text/event-stream"), *OWN)))
    if head.status != 200:
        raise _refusal(job, head, (yield from refusal_body()))
    held: _Result | None = None
    spread = Spread(job)
    accepted = False
    while (event := (yield from next_event())) is not None:
        try:
            found = decoded(event.joined(), _Result)
        except ProxyError:
            yield Tolerated("sse_noise")
            continue
        if bytes(found.detail) != b"null":
            raise _refusal(job, said_instead(head), event.joined())
        if not accepted:
            accepted = True
            yield Accepted()
            yield from _named(head)
        if found.files:
            if held is not None:
                yield from _drafts(job, held, spread)
            held = found
    yield from _made(job, head, held or _Result(), _Metrics())


def _drafts(job: Job, result: _Result, spread: Spread) -> Conversation[None]:
    number = spread.take()
    for index, file in enumerate(result.files[: job.n] if number is not None else ()):
        shown = yield from fetch(file.url)
        if shown.base64:
            yield preview(job, shown, number or 0, image=index)


def _made(job: Job, head: Head, result: _Result, metrics: _Metrics) -> Conversation[None]:
    """The result's pictures, at most as many as the job is for. Raises ProxyError where some are missing."""
    pictures: list[Picture | None] = []
    for index, file in enumerate((yield from first_of(result.files, job))):
        pictures.append(None if result.is_flagged(index) else (yield from fetch(file.url)))
    yield from finals(job, pictures, work=Work(seconds=metrics.inference_time, paid=_billed(job, head)))
    if None in pictures:
        raise moderated(job, "The safety checker has made the picture black.", "has_nsfw_concepts")
    if len(pictures) < job.n:
        raise no_image(job, f"The provider made {len(pictures)} of {job.n} pictures.", "")


def _billed(job: Job, head: Head) -> float | None:
    """The cost in USD, by the units that fal reports: pictures or megapixels, as the model's price has it."""
    price = job.model.price
    if price is None or price.first_megapixel is not None:
        return None
    rate = price.per_image or price.per_megapixel
    try:
        units = Decimal(head.headers.get("x-fal-billable-units", "none"))
    except InvalidOperation:
        return None
    return float(rate * units) if rate is not None and 0 < units < MOST_UNITS else None


MOST_UNITS: Final = 10_000


def _path(job: Job) -> str:
    return quote(job.route.upstream_model.strip("/"))


def _app(job: Job) -> App:
    path = job.route.upstream_model
    return next((app for word, app in APPS.items() if word in path), ANY)


def _input(job: Job) -> Conversation[dict[str, object]]:
    """The app's input. Raises ProxyError(UNSUPPORTED_PARAMETER)."""
    app, request = _app(job), job.request
    value: dict[str, object] = {"prompt": request.prompt, "num_images": job.n, **app.always, **_shape(app, request)}
    given = ((name, request.option(name)) for name in (*OPTIONS, *app.options))
    value |= {name: option for name, option in given if option is not None}
    if request.output_format is not None:
        value["output_format"] = request.output_format
    shown = [_url(image) for image in request.images]
    if shown and not job.model.edits:
        raise ProxyError(Failure.UNSUPPORTED_PARAMETER, "This model takes no input images.", param="images[0]")
    if shown and app.several:
        value["image_urls"] = shown
    elif len(shown) > 1:
        message = "This model takes one input image."
        raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param="images[1]")
    elif shown:
        value["image_url"] = shown[0]
    if request.mask is not None and app.mask:
        drawn: Input | None = request.mask if app.marks == "" else (yield from mask(job, app.marks))
        value[app.mask] = None if drawn is None else _url(drawn)
    return value


def _shape(app: App, request: ImageRequest) -> dict[str, object]:
    edges = pixels(request.size)
    if app.written:
        return {"image_size": request.size} if request.size is not None else {}
    if not app.ratios:
        return {} if edges is None else {"image_size": {"width": edges[0], "height": edges[1]}}
    found: dict[str, object] = {} if edges is None else {"aspect_ratio": nearest_ratio(app.ratios, *edges)}
    if app.tiers:
        found["resolution"] = "1K" if edges is None else tier(TIERS, *edges)
    return found


def _url(image: Input) -> object:
    return image.url if isinstance(image, Remote) else Embedded(image, data_url=True)


def _refusal(job: Job, head: Head, raw: bytes, *, taken: bool = False) -> ProxyError:
    """Read `{"detail": "..."}`, or FastAPI's list of problems. A flagged prompt is known by its `type`, not its text.

    `taken`: fal has taken the job, so a 404 is not about the model.
    """
    if taken and head.status in (404, 410):
        return lost(job, head)
    said = detailed(raw, POLICY)
    code = said.code or head.headers.get("x-fal-error-type")
    if code == POLICY:
        return moderated(job, said.message, POLICY)
    return refused(job, head, replace(said, code=code))


def _failure(job: Job, message: str, code: str) -> ProxyError:
    return moderated(job, message, code) if code == POLICY else failed(job, message, code)
