"""Replicate, simulated. Base URL: {server}/replicate/v1; any token is accepted, but none is an error.

A prediction has ended at its third poll, whatever the time. With `Prefer: wait` the answer has the output at once, and
a status as if the prediction went on, as recorded. `sim/sketcher` sends drafts in its stream. `sim/fault-<name>` plays
a row of FAULTS.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Final
from uuid import uuid4

import anyio
import msgspec
from anyio.to_thread import run_sync

from streamproxy.simulator import pictures
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Send, Wait, event, head, json_answer, sse

PREFIX: Final = "/replicate/"
FAULT: Final = "sim/fault-"
SKETCHER: Final = "sim/sketcher"
MAX_KEPT: Final = 100
OVER_AT: Final = 3
"""The poll at which a prediction has ended."""
LOOK_SECONDS: Final = 1.0  # times `pace`: the answer time of a poll before the prediction has ended
DRAFTS: Final = 3
DRAFT_SECONDS: Final = 2.0  # times `pace`
LARGEST_DATA_URL: Final = 256 * 1024
RATIOS: Final = {"1:1": (512, 512), "16:9": (640, 360), "3:2": (600, 400), "2:3": (400, 600), "9:16": (360, 640)}


class _Input(msgspec.Struct):
    prompt: str
    aspect_ratio: str = "1:1"
    width: int | None = None
    height: int | None = None
    num_outputs: int = 1
    image: str | None = None
    mask: str | None = None
    input_images: list[str] = []
    output_format: str = "webp"

    @property
    def size(self) -> tuple[int, int]:
        ratio = RATIOS.get(self.aspect_ratio, (512, 512))
        return self.width or ratio[0], self.height or ratio[1]

    @property
    def given(self) -> list[str]:
        return [url for url in (self.image, self.mask, *self.input_images) if url is not None]


class _Order(msgspec.Struct):
    input: _Input
    version: str | None = None


@dataclass(slots=True)
class _Prediction:
    id: str
    model: str
    order: _Order
    looks: int = 0
    status: str = "starting"
    output: list[str] = field(default_factory=list)


class Replicate:
    """The handler: see `simulator.Form`."""

    prefix = PREFIX

    def __init__(self, pace: float) -> None:
        self._pace = pace
        self._predictions: OrderedDict[str, _Prediction] = OrderedDict()
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._drawing = anyio.CapacityLimiter(4)

    async def __call__(self, received: Received) -> Script:
        base = f"http://{received.header('host')}{PREFIX}"
        path = received.target.removeprefix(PREFIX).partition("?")[0]
        if path.startswith("files/"):
            return self._file(path.removeprefix("files/"))
        if received.header("authorization") is None:
            return _error(401, "Unauthenticated", "You did not pass an authentication token")
        match received.method, path.removeprefix("v1/").split("/"):
            case "POST", ["models", owner, name, "predictions"]:
                return await self._submit(received, f"{owner}/{name}", base)
            case "POST", ["predictions"]:
                return await self._submit(received, "by/version", base)
            case "POST", ["files"]:
                name = self._keep(_content(received.body))
                return json_answer(201, {"id": name, "urls": {"get": f"{base}v1/files/{name}"}})
            case method, ["predictions", id, *rest] if id in self._predictions:
                return await self._known(method, self._predictions[id], rest, base)
        return _error(404, "Not found", "The requested resource could not be found.")

    async def _submit(self, received: Received, model: str, base: str) -> Script:
        refusal = REFUSALS.get(model.removeprefix(FAULT))
        if refusal is not None:
            return refusal
        try:
            order = msgspec.json.decode(received.body, type=_Order)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _error(422, "Input validation failed", str(error), invalid_fields=[{"field": "input.prompt"}])
        if any(url.startswith("data:") and len(url) > LARGEST_DATA_URL * 4 / 3 for url in order.input.given):
            return _error(422, "Input validation failed", "A data URL is too large.")
        prediction = _Prediction(uuid4().hex[:26], model, order)
        self._predictions[prediction.id] = prediction
        if len(self._predictions) > MAX_KEPT:
            self._predictions.popitem(last=False)
        if (received.header("prefer") or "").startswith("wait"):
            await self._make(prediction, base)
            prediction.status = "processing"
        return json_answer(201, self._told(prediction, base))

    async def _known(self, method: str, prediction: _Prediction, rest: list[str], base: str) -> Script:
        match method, rest:
            case "POST", ["cancel"]:
                prediction.status = "canceled"
                return json_answer(200, self._told(prediction, base))
            case "GET", ["stream"]:
                return await self._stream(prediction, base)
            case "GET", []:
                return await self._look(prediction, base)
        return _error(405, "Method not allowed", "Method not allowed.")

    async def _look(self, prediction: _Prediction, base: str) -> Script:
        prediction.looks += 1
        fault = prediction.model.removeprefix(FAULT)
        if fault == "poll-503" and prediction.looks < OVER_AT:
            return _error(503, "Unavailable", "Try again.")
        if fault == "lost":
            return _error(404, "Not found", "The requested resource could not be found.")
        if fault == "never" or (prediction.looks < OVER_AT and prediction.status != "succeeded"):
            prediction.status = "processing"
            return (Wait(LOOK_SECONDS * self._pace), *json_answer(200, self._told(prediction, base)))
        if fault in ENDS:
            prediction.status = ENDS[fault][0]
        elif prediction.status != "canceled":
            await self._make(prediction, base)
        return json_answer(200, self._told(prediction, base))

    async def _make(self, prediction: _Prediction, base: str) -> None:
        if not prediction.output and prediction.model != f"{FAULT}no-output":
            made = await run_sync(partial(self._drawn, prediction.order.input), limiter=self._drawing)
            gone = prediction.model == f"{FAULT}gone"
            prediction.output = [f"{base}files/{self._keep(file, gone=gone)}" for file in made]
        prediction.status = "succeeded"

    async def _stream(self, prediction: _Prediction, base: str) -> Script:
        """The stream of outputs. A sketcher's drafts are outputs too."""
        await self._make(prediction, base)
        drafts: list[str] = []
        if prediction.model == SKETCHER:
            sketches = await run_sync(partial(_sketched, prediction.order.input), limiter=self._drawing)
            drafts = [f"{base}files/{self._keep(file)}" for file in sketches]
            prediction.output = [*drafts, *prediction.output]
        frames = [b"id: %d:0\n" % n + event("output", url.encode()) for n, url in enumerate(prediction.output)]
        waits = [0.0, *[DRAFT_SECONDS * self._pace] * len(drafts)]
        return sse((*frames, event("done", b"{}")), waits=waits)

    def _told(self, prediction: _Prediction, base: str) -> dict[str, object]:
        there = base if prediction.model != f"{FAULT}foreign" else "http://foreign.example/"
        url = f"{there}v1/predictions/{prediction.id}"
        output: object = prediction.output or None
        if prediction.order.input.num_outputs == 1 and len(prediction.output) == 1:
            output = prediction.output[0]
        status, error = ENDS.get(prediction.model.removeprefix(FAULT), ("", None))
        return {
            "id": prediction.id,
            "model": prediction.model,
            "version": prediction.order.version or "hidden",
            "input": {"prompt": prediction.order.input.prompt},
            "logs": "".join(f" {look * 100 // OVER_AT}%|##\n" for look in range(min(prediction.looks, OVER_AT))),
            "created_at": "2026-11-27T15:49:24.1Z",
            "output": output,
            "error": error if prediction.status == status else None,
            "status": prediction.status,
            "metrics": {"predict_time": 2.5} if prediction.status == "succeeded" else {},
            "urls": {"get": url, "cancel": f"{url}/cancel", "stream": f"{url}/stream"},
        }

    def _drawn(self, order: _Input) -> list[bytes]:
        source = self._read(next(iter((*([order.image] if order.image else ()), *order.input_images)), None))
        mask = self._read(order.mask) or None
        form: pictures.Format = "jpeg" if order.output_format == "jpg" else "png"
        made = []
        for number in range(order.num_outputs):
            prompt = order.prompt if not number else f"{order.prompt} #{number}"
            drawn = (
                pictures.edit(prompt, *order.size, source, mask=mask) if source else pictures.draw(prompt, *order.size)
            )
            made.append(pictures.encode(drawn, form))
        return made

    def _read(self, url: str | None) -> bytes:
        """An input image, from a `data:` URL or an uploaded file."""
        if url is None or url.startswith("data:"):
            return pictures.from_data_url(url or "")
        return self._files.get(url.rpartition("/")[2], b"")

    def _keep(self, file: bytes, *, gone: bool = False) -> str:
        name = f"{'missing' if gone else uuid4().hex}.png"
        self._files[name] = file
        if len(self._files) > MAX_KEPT:
            self._files.popitem(last=False)
        return name

    def _file(self, name: str) -> Script:
        if name not in self._files or name.startswith("missing"):
            return json_answer(404, {"detail": "Not Found"})
        file = self._files[name]
        return (Send(head(200, (("Content-Type", "image/png"),), length=len(file))), Send(file))


def _sketched(order: _Input) -> list[bytes]:
    picture = pictures.draw(order.prompt, *order.size)
    return [pictures.encode(pictures.preview(picture, step, DRAFTS), "png") for step in range(DRAFTS)]


def _content(form: bytes) -> bytes:
    """The file in a form of one."""
    return form.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]


def _error(status: int, title: str, detail: str, **members: object) -> Script:
    return json_answer(status, {"title": title, "detail": detail, "status": status, **members})


ENDS: Final[Mapping[str, tuple[str, str | None]]] = MappingProxyType(
    {
        "nsfw": ("failed", "NSFW content detected. Try running it again, or try a different prompt."),
        "sensitive": ("failed", "The input or output was flagged as sensitive. Please try again. (E005)"),
        "failed": ("failed", "Prediction interrupted; please retry (code: PA)"),
        "aborted": ("aborted", None),
        "canceled": ("canceled", None),
    }
)
"""By fault: the status in which a prediction ends, and its error."""

REFUSALS: Final[Mapping[str, Script]] = MappingProxyType(
    {
        "submit-429": json_answer(
            429,
            {"detail": "Request was throttled. Expected available in 1 second.", "status": 429, "retry_after": 1},
        ),
        "no-credits": _error(402, "Insufficient credit", "You have insufficient credit to run this model."),
        "key": _error(401, "Unauthenticated", "You did not pass a valid authentication token"),
        "unknown": _error(404, "Not found", "The requested resource could not be found."),
    }
)
"""By fault: the answer to a submission."""

FAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "submit-429": "the submission is refused for now",
        "no-credits": "there is no credit left",
        "key": "the token is refused",
        "unknown": "there is no such official model",
        "foreign": "the URLs of the prediction are on a foreign host",
        "poll-503": "polls of the prediction fail before it has ended",
        "lost": "no poll finds the prediction",
        "never": "the prediction never ends",
        "nsfw": "the picture is refused, with a text",
        "sensitive": "input or output is refused, with a code",
        "failed": "the prediction has failed",
        "aborted": "the prediction did not begin in time",
        "canceled": "the prediction was cancelled from outside",
        "no-output": "the prediction has succeeded and has no output",
        "gone": "the picture's URL is a 404",
    }
)
