"""Luma's Dream Machine, its images, simulated. Base URL: {server}/luma/dream-machine/v1.

Any key is accepted, but none is an error. A job is looked at twice before it is over. Input images are not fetched.
`fault-<name>` as the model plays a row of FAULTS.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Annotated, Final, Literal
from uuid import uuid4

import anyio
import msgspec
from anyio.to_thread import run_sync
from msgspec import Meta

from streamproxy.simulator import pictures
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Send, Wait, head, json_answer

PREFIX: Final = "/luma/dream-machine/v1/"
FAULT: Final = "fault-"
MAX_JOBS: Final = 100
READY_AT: Final = 3
"""The look at which a job is over."""
LOOK_SECONDS: Final = 1.0  # times `pace`: how long a look at a job that is not over is held
SIZES: Final = {
    **{"1:1": (512, 512), "16:9": (640, 360), "9:16": (360, 640), "4:3": (640, 480), "3:4": (480, 640)},
    **{"21:9": (672, 288), "9:21": (288, 672)},
}


class _Reference(msgspec.Struct, forbid_unknown_fields=True):
    url: Annotated[str, Meta(pattern="^https?://")]
    weight: float = 1.0


class _Order(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    prompt: str
    aspect_ratio: Literal["1:1", "16:9", "9:16", "4:3", "3:4", "21:9", "9:21"] = "16:9"
    format: Literal["jpg", "png"] = "jpg"
    image_ref: Annotated[list[_Reference], Meta(max_length=4)] | None = None
    style_ref: list[_Reference] | None = None
    character_ref: dict[str, dict[str, list[str]]] | None = None
    modify_image_ref: _Reference | None = None


@dataclass(slots=True)
class _Job:
    order: _Order
    looks: int = 0

    @property
    def fault(self) -> str:
        return self.order.model.removeprefix(FAULT)


class Luma:
    """The handler: see `simulator.Form`."""

    prefix = PREFIX

    def __init__(self, pace: float) -> None:
        self._pace = pace
        self._jobs: OrderedDict[str, _Job] = OrderedDict()
        self._files: OrderedDict[str, tuple[str, bytes]] = OrderedDict()
        self._drawing = anyio.CapacityLimiter(4)

    async def __call__(self, received: Received) -> Script:
        base = f"http://{received.header('host')}{PREFIX}"
        path = received.target.removeprefix(PREFIX)
        if path.startswith("files/"):
            return self._file(path.removeprefix("files/"))
        if received.header("authorization") is None:
            return json_answer(403, {"detail": "Not authenticated"})
        if received.method == "POST" and path == "generations/image":
            return self._submit(received)
        job = self._jobs.get(path.removeprefix("generations/"))
        if job is None or job.fault == "lost":
            return json_answer(404, {"detail": "Generation not found"})
        if received.method == "DELETE":
            return (Send(head(204, (), length=0)),)
        return await self._look(path.removeprefix("generations/"), job, base)

    def _submit(self, received: Received) -> Script:
        try:
            order = msgspec.json.decode(received.body, type=_Order)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return json_answer(422, {"detail": [{"loc": ["body"], "msg": str(error), "type": "value_error"}]})
        job = _Job(order)
        if job.fault in REFUSALS:
            return REFUSALS[job.fault]
        if not order.model.startswith(("photon-", FAULT)):
            return json_answer(400, {"detail": "Invalid model"})
        id = str(uuid4())
        self._jobs[id] = job
        if len(self._jobs) > MAX_JOBS:
            self._jobs.popitem(last=False)
        return json_answer(201, _told(id, job, "queued"))

    async def _look(self, id: str, job: _Job, base: str) -> Script:
        job.looks += 1
        if job.fault == "poll-503" and job.looks < READY_AT:
            return json_answer(503, {"detail": "Unavailable"})
        if job.fault == "never" or job.looks < READY_AT:
            return (Wait(LOOK_SECONDS * self._pace), *json_answer(200, _told(id, job, "dreaming")))
        if job.fault in ENDS:
            return json_answer(200, {**_told(id, job, "failed"), "failure_reason": ENDS[job.fault]})
        if job.fault == "no-result":
            return json_answer(200, _told(id, job, "completed"))
        file = await run_sync(partial(_drawn, job.order), limiter=self._drawing)
        name = f"{'missing' if job.fault == 'gone' else uuid4().hex}.{job.order.format}"
        self._files[name] = ("image/png" if job.order.format == "png" else "image/jpeg"), file
        if len(self._files) > MAX_JOBS:
            self._files.popitem(last=False)
        return json_answer(200, {**_told(id, job, "completed"), "assets": {"image": f"{base}files/{name}"}})

    def _file(self, name: str) -> Script:
        if name not in self._files or name.startswith("missing"):
            return json_answer(404, {"detail": "Not Found"})
        kind, file = self._files[name]
        return (Send(head(200, (("Content-Type", kind),), length=len(file))), Send(file))


def _told(id: str, job: _Job, state: str) -> dict[str, object]:
    told: dict[str, object] = {"id": id, "generation_type": "image", "state": state, "failure_reason": None}
    return {**told, "created_at": "2026-11-27T00:00:00Z", "assets": None, "model": job.order.model}


def _drawn(order: _Order) -> bytes:
    drawn = pictures.draw(order.prompt, *SIZES[order.aspect_ratio])
    return pictures.encode(drawn, "png" if order.format == "png" else "jpeg")


ENDS: Final[Mapping[str, str]] = {
    "failed": "The generation failed.",
    "moderated": "400: prompt not allowed because advanced moderation failed",
}
"""By fault: why a job ends without a picture."""

REFUSALS: Final[Mapping[str, Script]] = MappingProxyType(
    {
        "submit-429": json_answer(429, {"detail": "Too many requests"}),
        "no-credits": json_answer(402, {"detail": "Insufficient credits"}),
        "key": json_answer(403, {"detail": "Not authenticated"}),
        "blocked": json_answer(400, {"detail": "prompt not allowed because advanced moderation failed"}),
    }
)
"""By fault: the answer to a submission."""

FAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "submit-429": "too many requests",
        "no-credits": "there is no credit left",
        "key": "the key is refused",
        "blocked": "the prompt is refused",
        "lost": "looks do not find the job",
        "poll-503": "two looks fail",
        "never": "the job does not end",
        "failed": "the job fails",
        "moderated": "the job fails by moderation",
        "no-result": "the job is over without a picture",
        "gone": "the picture is not there any more",
    }
)
