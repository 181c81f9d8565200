"""fal, simulated. Base URL: {server}/queue.fal, and {server}/fal for one exchange. Any key is accepted.

A request waits in the queue for one poll, runs for another, and is then done, whatever the time. A path that ends in
`/stream` sends drafts before the result, as `data:` URLs. A path with `fault-<name>` plays a row of FAULTS.
"""

from __future__ import annotations

import base64
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final
from uuid import uuid4

import anyio
import msgspec
from anyio.to_thread import run_sync

from streamproxy.simulator import pictures
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Fin, Script, Send, Wait, event, head, json_answer, sse

QUEUE: Final = "/queue.fal/"
PREFIX: Final = "/fal/"
STREAM: Final = "/stream"
JOB: Final = re.compile(r"([^/]+/[^/]+)/requests/([0-9a-f]+)(/status|/cancel)?")
MAX_JOBS: Final = 100
SQUARE: Final = (512, 512)
DONE_AT: Final = 3
"""The poll at which a job has ended."""
LOOK_SECONDS: Final = 1.0  # times `pace`: the answer time of a poll before the job has ended
DRAFTS: Final = 3
DRAFT_SECONDS: Final = 2.0  # times `pace`
UNITS: Final = "x-fal-billable-units"

FLAGGED: Final = {
    "detail": [
        {
            "loc": ["body", "prompt"],
            "msg": "The content was flagged by a content checker.",
            "type": "content_policy_violation",
            "input": "the flagged input",
        }
    ]
}


class _Size(msgspec.Struct, forbid_unknown_fields=True):
    width: int
    height: int


class _Order(msgspec.Struct):
    prompt: str
    num_images: int = 1
    image_size: _Size | str | None = None
    image_url: str | None = None
    image_urls: list[str] | None = None
    mask_url: str | None = None


@dataclass(slots=True)
class _Job:
    path: str
    order: _Order
    looks: int = 0
    cancelled: bool = False


class Fal:
    """The handler: see `simulator.Form`."""

    prefix = (QUEUE, PREFIX)

    def __init__(self, pace: float) -> None:
        self._pace = pace
        self._jobs: OrderedDict[str, _Job] = OrderedDict()
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._drawing = anyio.CapacityLimiter(4)

    async def __call__(self, received: Received) -> Script:
        base = f"http://{received.header('host')}{QUEUE}"
        path = received.target.removeprefix(PREFIX).removeprefix(QUEUE).partition("?")[0]
        if path.startswith("files/"):
            return self._file(path.removeprefix("files/"))
        if received.target.startswith(PREFIX):
            return await self._direct(received, path, base)
        found = JOB.fullmatch(path)
        if found is None:
            return self._submit(received, path, base)
        job = self._jobs.get(found[2])
        if job is None:
            return json_answer(404, {"detail": "Request not found"})
        match received.method, found[3]:
            case "GET", "/status":
                return self._status(job)
            case "PUT", "/cancel":
                job.cancelled = True
                return json_answer(202, {"status": "CANCELLATION_REQUESTED"})
            case "GET", None:
                return await self._result(job, base)
        return json_answer(405, {"detail": "Method Not Allowed"})

    def _submit(self, received: Received, path: str, base: str) -> Script:
        order = _read(received, path)
        if not isinstance(order, _Order):
            return order
        id = uuid4().hex
        self._jobs[id] = _Job(path, order)
        if len(self._jobs) > MAX_JOBS:
            self._jobs.popitem(last=False)
        owner_and_app = "/".join(path.split("/")[:2])
        there = base if "fault-foreign" not in path else "http://foreign.example/"
        url = f"{there}{owner_and_app}/requests/{id}"
        urls = {"response_url": url, "status_url": f"{url}/status", "cancel_url": f"{url}/cancel"}
        return json_answer(200, {"request_id": id, "queue_position": 1, **urls}, (("x-fal-request-id", id),))

    def _status(self, job: _Job) -> Script:
        job.looks += 1
        if "fault-poll-503" in job.path and job.looks < DONE_AT:
            return json_answer(503, {"detail": "Unavailable"})
        if "fault-killed-poll" in job.path:
            return (Fin(),)
        if "fault-never" in job.path or job.looks < DONE_AT:
            state = "IN_QUEUE" if job.looks == 1 else "IN_PROGRESS"
            answer = json_answer(202, {"status": state, "queue_position": max(0, DONE_AT - job.looks), "logs": None})
            return (Wait(LOOK_SECONDS * self._pace), *answer)
        failed = {"error": "Out of memory", "error_type": "internal_error"} if "fault-failed" in job.path else {}
        return json_answer(200, {"status": "COMPLETED", "logs": None, "metrics": {"inference_time": 2.1}, **failed})

    async def _direct(self, received: Received, path: str, base: str) -> Script:
        """The answer in one exchange: the result, or, for a path that ends in STREAM, events with drafts of it."""
        order = _read(received, path)
        if not isinstance(order, _Order):
            return order
        job = _Job(path, order)
        if not path.endswith(STREAM):
            return await self._result(job, base)
        made = await run_sync(partial(_drawn, order), limiter=self._drawing)
        drafts = await run_sync(partial(_sketched, order), limiter=self._drawing)
        events = [{"images": [{"url": _data_url(file)}]} for file in drafts]
        last = {"images": [{"url": self._keep(job, file, base)} for file in made], "seed": 1}
        frames = [event(None, msgspec.json.encode(value)) for value in (*events, last)]
        waits = [0.0, *[DRAFT_SECONDS * self._pace] * len(events)]
        return sse(frames, waits=waits, headers=(("x-fal-request-id", uuid4().hex),))

    async def _result(self, job: _Job, base: str) -> Script:
        if "fault-flagged" in job.path:
            return json_answer(422, FLAGGED, (("X-Fal-Retryable", "false"),))
        made = await run_sync(partial(_drawn, job.order), limiter=self._drawing)
        images = [{"url": self._keep(job, file, base), "content_type": "image/jpeg"} for file in made]
        nsfw = ["fault-nsfw" in job.path, *["fault-nsfw-all" in job.path] * (len(images) - 1)]
        result = {"images": images, "seed": 1, "has_nsfw_concepts": nsfw, "prompt": job.order.prompt}
        return json_answer(200, result, ((UNITS, str(len(images))), ("x-fal-request-id", uuid4().hex)))

    def _keep(self, job: _Job, file: bytes, base: str) -> str:
        name = f"{'missing' if 'fault-gone' in job.path else uuid4().hex}.png"
        self._files[name] = file
        if len(self._files) > MAX_JOBS:
            self._files.popitem(last=False)
        there = "http://foreign.example/" if "fault-elsewhere" in job.path else base
        return f"{there}files/{name}"

    def _file(self, name: str) -> Script:
        if name not in self._files or name.startswith("missing"):
            return json_answer(404, {"detail": "Not Found"})
        file = self._files[name]
        # As recorded: a PNG by its name, but with JPEG as its content type.
        return (Send(head(200, (("Content-Type", "image/jpeg"),), length=len(file))), Send(file))


def _read(received: Received, path: str) -> _Order | Script:
    """Read a request, or the refusal of it."""
    try:
        order = msgspec.json.decode(received.body, type=_Order)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return json_answer(422, {"detail": [{"loc": ["body"], "msg": str(error), "type": "value_error"}]})
    if "fault-submit-429" in path:
        return json_answer(429, {"detail": "Rate limited"}, (("Retry-After", "1"),))
    if "fault-key" in path:
        return json_answer(401, {"detail": "Invalid key"}, (("x-fal-error-type", "unauthorized"),))
    if "fault-unknown" in path:
        return json_answer(404, {"detail": "Application not found"})
    return order


def _sketched(order: _Order) -> list[bytes]:
    picture = pictures.draw(order.prompt, *_size(order))
    return [pictures.encode(pictures.preview(picture, step, DRAFTS), "jpeg") for step in range(DRAFTS)]


def _data_url(file: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(file).decode()}"


def _size(order: _Order) -> tuple[int, int]:
    return (order.image_size.width, order.image_size.height) if isinstance(order.image_size, _Size) else SQUARE


def _drawn(order: _Order) -> list[bytes]:
    size = _size(order)
    prompts = [order.prompt, *(f"{order.prompt} #{number}" for number in range(1, order.num_images))]
    source = order.image_url or next(iter(order.image_urls or ()), None)
    if source is None:
        return [pictures.encode(pictures.draw(prompt, *size), "png") for prompt in prompts]
    shown, mask = pictures.from_data_url(source), pictures.from_data_url(order.mask_url or "") or None
    return [pictures.encode(pictures.edit(prompt, *size, shown, mask=mask), "png") for prompt in prompts]


FAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "submit-429": "the submission is refused for now",
        "key": "the key is refused",
        "foreign": "the URLs of the job are on a foreign host",
        "poll-503": "polls of the job fail before it is done",
        "killed-poll": "polls of the job are closed without an answer",
        "never": "the job never ends",
        "failed": "the job is completed and has failed",
        "flagged": "the result is a refusal of the prompt",
        "unknown": "there is no such app",
        "nsfw": "the first picture is made black",
        "nsfw-all": "all pictures are made black",
        "gone": "the picture's URL is a 404",
        "elsewhere": "the picture's URL is on a host that may not be fetched from",
    }
)
