"""Replicate: predictions of many publishers' models. Submit a prediction, poll it until it has ended, fetch its output.

Models are named `replicate/<owner>/<name>`, or `replicate/<owner>/<name>:<version>`. Models that are not official ones
of Replicate need the version. A model that is `fast` in the catalogue is asked to answer in one exchange
(`Prefer: wait`). Others are polled, and cancelled after a disconnect. If the caller wants previews, the prediction's
stream of outputs is read: the last output is the result, and the others are drafts.

Every model has its own input schema. SHAPES has those of common families. Any other model is sent the prompt, and the
caller's `input`: an object whose members go into the model's input unchanged.

Sources: replicate 1.0.7 and Replicate's OpenAPI schema; a recorded exchange; the models' pages, November 2026.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal
from urllib.parse import quote

import msgspec

from streamproxy.core.catalogue import Route
from streamproxy.core.completion import Spread, finals, preview
from streamproxy.core.conversation import (
    COMMON,
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
    inlined,
    look,
    mask,
    next_event,
    pauses,
    picture,
    pixels,
    post_file,
    post_json,
    refusal_body,
    send,
    unapplied,
)
from streamproxy.core.cost import Work
from streamproxy.core.requests import Embedded, Head, ImageRequest, Input, Remote, UpstreamRequest, as_bytes, size_of
from streamproxy.core.sizes import MEGAPIXEL, Grid, nearest_ratio, tier
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.refusals import Refusal, detailed, failed, lost, moderated, no_image, refused, said_instead

WAIT: Final = (("prefer", "wait=30"), ("cancel-after", "60s"))
"""Headers for an answer in one exchange: within 30 s, while the prediction cannot be cancelled; it ends after 60 s."""

LARGE: Final = 256 * 1000
"""Bytes of an input image from which it is uploaded, since a larger `data:` URL is refused."""

FLUX: Final = ("21:9", "16:9", "3:2", "4:3", "5:4", "1:1", "4:5", "3:4", "2:3", "9:16", "9:21")
TEN: Final = tuple(ratio for ratio in FLUX if ratio != "9:21")
FIVE: Final = ("1:1", "16:9", "9:16", "4:3", "3:4")
TIERS: Final = {"1K": 1.0, "2K": 4.0, "4K": 16.0}
FORMATS: Final = MappingProxyType({"png": "png", "jpeg": "jpg", "webp": "webp"})
NO_WEBP: Final = MappingProxyType({"png": "png", "jpeg": "jpg"})
OPENAI: Final = MappingProxyType({"png": "png", "jpeg": "jpeg", "webp": "webp"})


@dataclass(frozen=True, slots=True)
class Shape:
    """The input of one family of models.

    `ratios`: it takes one of these aspect ratios; `tiers`: and a resolution. `grid`: it takes width and height, after
    `custom` as the ratio. `images`: the member of input images, a list where `several`. `mask`: the member of the mask,
    in black and white; `marks`: its colour for the area to edit. `count`: the member of the number of pictures.
    `formats`: by OpenAI's names. `options`: further members under the same name; `always`: members that are always
    sent.
    """

    ratios: tuple[str, ...] = ()
    tiers: bool = False
    grid: Grid | None = None
    custom: Mapping[str, str] = field(default_factory=dict)
    images: str = ""
    several: bool = False
    mask: str = ""
    marks: Literal["white", "black"] = "white"
    count: str = ""
    formats: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    always: Mapping[str, object] = field(default_factory=dict)


CUSTOM: Final = {"aspect_ratio": "custom"}
TUNED: Final = (
    "seed",
    "guidance",
    "num_inference_steps",
    "prompt_strength",
    "output_quality",
    "disable_safety_checker",
)
SAFE: Final = ("seed", "safety_tolerance", "output_quality", "prompt_upsampling")
SHAPES: Final[Mapping[str, Shape]] = {
    "black-forest-labs/flux-2": Shape(
        grid=Grid(32, 256, 2048, 4 * MEGAPIXEL),
        custom=CUSTOM,
        images="input_images",
        several=True,
        formats=FORMATS,
        options=SAFE,
    ),
    "black-forest-labs/flux-kontext": Shape(ratios=FLUX, images="input_image", formats=NO_WEBP, options=SAFE),
    "black-forest-labs/flux-fill": Shape(images="image", mask="mask", formats=NO_WEBP, options=(*TUNED, *SAFE)),
    "black-forest-labs/flux-1.1-pro-ultra": Shape(
        ratios=FLUX, images="image_prompt", formats=NO_WEBP, options=(*SAFE, "raw", "image_prompt_strength")
    ),
    "black-forest-labs/flux-1.1-pro": Shape(
        grid=Grid(32, 256, 1440, 1440 * 1440), custom=CUSTOM, images="image_prompt", formats=FORMATS, options=SAFE
    ),
    "black-forest-labs/flux-schnell": Shape(ratios=FLUX, count="num_outputs", formats=FORMATS, options=TUNED),
    "black-forest-labs/flux-dev": Shape(
        ratios=FLUX, images="image", count="num_outputs", formats=FORMATS, options=TUNED
    ),
    "google/nano-banana-": Shape(ratios=TEN, tiers=True, images="image_input", several=True, formats=NO_WEBP),
    "google/nano-banana": Shape(ratios=TEN, images="image_input", several=True, formats=NO_WEBP),
    "google/imagen-4": Shape(ratios=FIVE, formats=NO_WEBP, options=("safety_filter_level",)),
    "bytedance/seedream-4": Shape(
        grid=Grid(1, 1024, 4096, 16 * MEGAPIXEL),
        custom={"size": "custom"},
        images="image_input",
        several=True,
        always={"max_images": 1, "sequential_image_generation": "disabled"},
    ),
    "bytedance/sdxl-lightning": Shape(
        grid=Grid(8, 256, 1280, 1280 * 1280), count="num_outputs", options=("seed", "guidance_scale", "negative_prompt")
    ),
    "stability-ai/sdxl": Shape(
        grid=Grid(8, 256, 2048, 4 * MEGAPIXEL),
        images="image",
        mask="mask",
        count="num_outputs",
        options=("seed", "guidance_scale", "negative_prompt", "num_inference_steps", "prompt_strength"),
    ),
    "stability-ai/stable-diffusion-3.5": Shape(
        ratios=FLUX, images="image", formats=FORMATS, options=("seed", "cfg", "prompt_strength", "negative_prompt")
    ),
    "ideogram-ai/ideogram-v3": Shape(ratios=TEN, images="image", mask="mask", marks="black", options=("seed",)),
    "openai/gpt-image": Shape(
        ratios=("1:1", "3:2", "2:3"),
        images="input_images",
        several=True,
        count="number_of_images",
        formats=OPENAI,
        options=("quality", "background", "moderation", "output_compression", "input_fidelity"),
    ),
}
"""Shapes by the beginning of `<owner>/<name>`. The first match counts."""

ANY: Final = Shape()

OVER: Final = frozenset({"succeeded", "failed", "canceled", "aborted"})
_CODE: Final = re.compile(r"\((E[0-9]{3,4})\)\s*$")
SENSITIVE: Final = "E005"
"""The code, at the end of the error's text, for flagged input or output."""

NSFW: Final = "NSFW content detected"
"""The beginning of the error's text of a checker that many models share. It has no code."""


class _Urls(msgspec.Struct):
    get: str
    cancel: str | None = None
    stream: str | None = None


class _Metrics(msgspec.Struct):
    predict_time: float | None = None


PERCENT: Final = re.compile(r"(\d{1,3})%\|")
"""A step as tqdm writes it into a log, like `45%|████`."""

LOGS: Final = 4096
"""Characters of a log's end that are read; a line of tqdm's has about 80."""


class _Prediction(msgspec.Struct):
    id: str
    urls: _Urls
    status: str = ""
    output: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")
    metrics: _Metrics | None = None
    logs: str | None = None

    @property
    def progress(self) -> Progress | None:
        """The last step that its log tells; a log without steps is not read further back."""
        steps = PERCENT.findall((self.logs or "")[-LOGS:])
        return Progress(fraction=min(1.0, int(steps[-1]) / 100)) if steps else None

    @property
    def files(self) -> list[str]:
        """URLs of its output, which is a URL, a list of them, or an object with either."""
        return list(_links(msgspec.json.decode(self.output)))


class _Field(msgspec.Struct):
    type: str | None = None
    field: str | None = None


class _Refused(msgspec.Struct):
    detail: str | None = None
    title: str | None = None
    retry_after: int | None = None
    invalid_fields: list[_Field] | None = None


class _FileUrls(msgspec.Struct):
    get: str


class _File(msgspec.Struct):
    urls: _FileUrls


class Replicate:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        return min(request.n, route.model.max_n, MOST_PICTURES) if _shape(route.upstream_model).count else 1

    def not_applied(self, job: Job) -> tuple[str, ...]:
        shape, request = _shape(job.route.upstream_model), job.request
        applied = {"input", *shape.options}
        if (shape.ratios or shape.grid) and (request.size in (None, "auto") or pixels(request.size)):
            applied.add("size")
        if request.output_format in shape.formats:
            applied.add("output_format")
        if shape.images:
            applied |= {"image", "images"}
        if shape.mask:
            applied.add("mask")
        return unapplied(job, frozenset(applied))

    def converse(self, job: Job) -> Conversation[None]:
        request = _request(job, (yield from _input(job)))
        head = yield from send(request)
        if head.status not in (200, 201, 202):
            raise _refusal(job, head, (yield from refusal_body()))
        raw = yield from body(job.limits.answer)
        if detailed(raw).message:
            raise _refusal(job, said_instead(head), raw)
        prediction = decoded(raw, _Prediction)
        _check(job, prediction)
        yield Accepted()
        yield JobId(prediction.id)
        here = len(prediction.files) >= job.n  # with `Prefer: wait`, also if its status says that it runs
        if prediction.status not in OVER and not here:
            prediction = yield from _finished(job, prediction)
        yield from _made(job, prediction)


def _finished(job: Job, prediction: _Prediction) -> Conversation[_Prediction]:
    """Poll until it has ended, after its stream if previews are wanted."""
    if prediction.urls.cancel is not None:
        yield Undo(UpstreamRequest("POST", prediction.urls.cancel, COMMON))
    wanted = bool(job.request.stream and job.request.partial_images and job.n == 1)
    streamed = wanted and prediction.urls.stream is not None
    if wanted and prediction.urls.stream is not None:
        yield from _drafts(job, prediction.urls.stream)
    for pause in pauses():
        if not streamed:
            yield Wait(pause)
        streamed = False
        head, raw = yield from look(get(prediction.urls.get), job.limits.answer)
        if head.status in (404, 410):
            raise lost(job, head)
        if head.status != 200:
            raise _refusal(job, head, raw)
        found = decoded(raw, _Prediction)
        _check(job, found)
        if found.status in OVER:
            yield Undo(None)  # nothing is left to cancel
            return found
        if found.progress is not None:
            yield found.progress
    raise AssertionError("the pauses have no end")


def _drafts(job: Job, url: str) -> Conversation[None]:
    """Read the stream of outputs: all but the last are previews. A failure here costs only previews."""
    spread = Spread(job)
    held = ""
    try:
        head = yield from send(UpstreamRequest("GET", url, (("accept", "text/event-stream"), *COMMON)))
        if head.status != 200:
            yield Tolerated("no_previews")
            return
        while (event := (yield from next_event())) is not None and event.name not in ("done", "error"):
            if event.name != "output":
                continue
            number = spread.take() if held else None
            shown = Picture(()) if number is None else (yield from _picture(job, held))
            if shown.base64:
                yield preview(job, shown, number or 0)
            held = next(_links(event.joined().decode(errors="replace").strip()), "")
    except ProxyError as error:
        yield Tolerated(error.failure.value.label)


def _made(job: Job, prediction: _Prediction) -> Conversation[None]:
    """The output's pictures, at most as many as the job is for. For one picture the last: the others are drafts."""
    files = prediction.files
    pictures: list[Picture | None] = []
    for url in files[-1:] if job.n == 1 else (yield from first_of(files, job)):
        pictures.append((yield from _picture(job, url)))
    metrics = prediction.metrics or _Metrics()
    inputs = None if job.request.images else 0
    yield from finals(job, pictures, work=Work(inputs=inputs, seconds=metrics.predict_time))
    if len(pictures) < job.n:
        raise no_image(job, f"The provider made {len(pictures)} of {job.n} pictures.", prediction.status)


def _picture(job: Job, url: str) -> Conversation[Picture]:
    """Fetch an output. One among the account's files at Replicate needs the key."""
    if not url.startswith(f"{job.provider.base_url}/"):
        return (yield from fetch(url))
    try:
        head = yield from send(get(url))
        if head.status == 200:
            return (yield from picture(job.limits.answer))
        return Picture((), url=url, problem=f"The file could not be read: status {head.status}.")
    except ProxyError as error:
        yield Tolerated(error.failure.value.label)
        return Picture((), url=url, problem=error.message)


def _links(output: object) -> Iterator[str]:
    """The URLs in a model's output."""
    if isinstance(output, str) and output[:5].lower() in ("http:", "https", "data:"):
        yield output
    elif isinstance(output, list | dict):
        for value in output.values() if isinstance(output, dict) else output:
            yield from _links(value)


def _check(job: Job, prediction: _Prediction) -> None:
    """Raise ProxyError where a prediction has ended without success."""
    if prediction.status not in OVER or prediction.status == "succeeded":
        return
    said = msgspec.json.decode(prediction.error)
    text = said if isinstance(said, str) else f"The prediction was {prediction.status}."
    code = _CODE.search(text)
    if text.startswith(NSFW) or (code is not None and code[1] == SENSITIVE):
        raise moderated(job, text, SENSITIVE if code is not None else "nsfw")
    raise failed(job, text, prediction.status if code is None else code[1])


MOST_PICTURES: Final = 4
"""Most pictures of one request. Some models take a few more."""


def _shape(model: str) -> Shape:
    return next((shape for start, shape in SHAPES.items() if model.startswith(start)), ANY)


def _request(job: Job, given: Mapping[str, object]) -> UpstreamRequest:
    name, _, version = job.route.upstream_model.partition(":")
    headers = WAIT if job.model.fast else ()
    base = job.provider.base_url
    if version:
        return post_json(job, f"{base}/predictions", {"version": version, "input": given}, headers)
    owner, _, own = name.partition("/")
    if not owner or not own or "/" in own:
        message = "A model of Replicate's is named replicate/<owner>/<name> or replicate/<owner>/<name>:<version>."
        raise ProxyError(Failure.MODEL_NOT_FOUND, message, param="model")
    return post_json(job, f"{base}/models/{quote(name)}/predictions", {"input": given}, headers)


def _input(job: Job) -> Conversation[dict[str, object]]:
    """The model's input. Raises ProxyError(UNSUPPORTED_PARAMETER)."""
    shape, request = _shape(job.route.upstream_model), job.request
    value: dict[str, object] = {"prompt": request.prompt, **shape.always, **_size(shape, request)}
    if shape.count:
        value[shape.count] = job.n
    if (written := shape.formats.get(request.output_format or "")) is not None:
        value["output_format"] = written
    given = ((name, request.option(name)) for name in shape.options)
    value |= {name: option for name, option in given if option is not None}
    most = 0 if not shape.images else MOST_INPUTS if shape.several else 1
    if len(request.images) > most:
        message = f"This model takes at most {most} input images."
        if not most:
            message = "This model's member for input images is not known. Put the image into `input`, under its name."
        raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param=f"images[{most}]")
    shown = []
    for index, image in enumerate(request.images):
        shown.append((yield from _placed(job, image, f"images[{index}]")))
    if shown:
        value[shape.images] = shown if shape.several else shown[0]
    if shape.mask and (drawn := (yield from mask(job, shape.marks))) is not None:
        value[shape.mask] = yield from _placed(job, drawn, "mask")
    own = request.option("input")
    return value | own if isinstance(own, dict) else value


MOST_INPUTS: Final = 14


def _placed(job: Job, image: Input, param: str) -> Conversation[object]:
    """An input image as a model takes it: a URL, a `data:` URL, or the URL of an upload."""
    if isinstance(image, Remote):
        return image.url
    found = yield from inlined(image, job, param)
    if size_of(as_bytes(found)) < LARGE:
        return Embedded(found, data_url=True)
    head, raw = yield from look(post_file(job, f"{job.provider.base_url}/files", "content", found))
    if head.status not in (200, 201):
        raise _refusal(job, head, raw)
    return decoded(raw, _File).urls.get


def _size(shape: Shape, request: ImageRequest) -> dict[str, object]:
    edges = pixels(request.size)
    if shape.grid is not None and edges is not None:
        width, height = shape.grid.fitted(*edges)
        return {**shape.custom, "width": width, "height": height}
    found: dict[str, object] = {}
    if shape.ratios and edges is not None:
        found["aspect_ratio"] = nearest_ratio(shape.ratios, *edges)
    if shape.tiers:
        found["resolution"] = "1K" if edges is None else tier(TIERS, *edges)
    return found


def _refusal(job: Job, head: Head, raw: bytes) -> ProxyError:
    """Read a refusal: `{"title", "detail", "status", "invalid_fields"?}`."""
    try:
        said = decoded(raw, _Refused)
    except ProxyError:
        said = _Refused()
    message = said.detail or said.title or ""
    if head.status == 404:
        message += " A model that is not an official one needs its version: replicate/<owner>/<name>:<version>."
    wrong = (said.invalid_fields or [_Field()])[0]
    param = None if wrong.field is None else wrong.field.removeprefix("input.")
    after = None if said.retry_after is None else str(said.retry_after)
    return refused(job, head, Refusal(message.strip(), wrong.type, param, after))
