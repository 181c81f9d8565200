"""Black Forest Labs' API, simulated. Base URL: {server}/bfl/v1; any key is accepted, but none is an error.

A task is ready at its third poll, whatever the time. Pictures are JPEG unless PNG is asked for. The endpoint
`fault-<name>` plays a row of FAULTS.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final, Literal
from uuid import uuid4

import anyio
import msgspec
from anyio.to_thread import run_sync

from streamproxy.simulator import pictures
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Send, Wait, head, json_answer

PREFIX: Final = "/bfl/v1/"
FAULT: Final = "fault-"
MAX_TASKS: Final = 100
READY_AT: Final = 3
"""The poll at which a task has ended."""
LOOK_SECONDS: Final = 1.0  # times `pace`: the answer time of a poll before the task has ended
CREDITS: Final = 3.0
RATIOS: Final = {"21:9": (672, 288), "16:9": (640, 360), "1:1": (512, 512), "9:16": (360, 640), "9:21": (288, 672)}


class _Order(msgspec.Struct, forbid_unknown_fields=True):
    prompt: str
    width: int | None = None
    height: int | None = None
    aspect_ratio: str | None = None
    input_image: str | None = None
    input_image_2: str | None = None
    input_image_3: str | None = None
    input_image_4: str | None = None
    image_prompt: str | None = None
    image: str | None = None
    mask: str | None = None
    top: int | None = None
    bottom: int | None = None
    left: int | None = None
    right: int | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    safety_tolerance: int | None = None
    prompt_upsampling: bool | None = None
    output_format: Literal["jpeg", "png"] = "jpeg"

    @property
    def size(self) -> tuple[int, int]:
        ratio = RATIOS.get(self.aspect_ratio or "1:1", (512, 512))
        return self.width or ratio[0], self.height or ratio[1]


@dataclass(slots=True)
class _Task:
    endpoint: str
    order: _Order
    looks: int = 0


class Bfl:
    """The handler: see `simulator.Form`."""

    prefix = PREFIX

    def __init__(self, pace: float) -> None:
        self._pace = pace
        self._tasks: OrderedDict[str, _Task] = OrderedDict()
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._drawing = anyio.CapacityLimiter(4)

    async def __call__(self, received: Received) -> Script:
        base = f"http://{received.header('host')}{PREFIX}"
        path, _, query = received.target.removeprefix(PREFIX).partition("?")
        if path.startswith("files/"):
            return self._file(path.removeprefix("files/"))
        if received.header("x-key") is None:
            return json_answer(403, {"detail": "Not authenticated"})
        if path == "get_result":
            return await self._look(query.removeprefix("id="), base)
        return self._submit(received, path, base)

    def _submit(self, received: Received, endpoint: str, base: str) -> Script:
        refusal = REFUSALS.get(endpoint.removeprefix(FAULT))
        if refusal is not None:
            return refusal
        if not endpoint.startswith(("flux-", FAULT)):
            return json_answer(404, {"detail": "Not Found"})
        try:
            order = msgspec.json.decode(received.body, type=_Order)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return json_answer(422, {"detail": [{"loc": ["body"], "msg": str(error), "type": "value_error"}]})
        step = 16 if endpoint.startswith("flux-2") else 32
        if any(edge % step for edge in (order.width or 0, order.height or 0)):
            problem = {"loc": ["body", "width"], "msg": f"should be a multiple of {step}", "type": "multiple_of"}
            return json_answer(422, {"detail": [problem]})
        id = str(uuid4())
        self._tasks[id] = _Task(endpoint, order)
        if len(self._tasks) > MAX_TASKS:
            self._tasks.popitem(last=False)
        there = base if endpoint != f"{FAULT}foreign" else "http://foreign.example/"
        return json_answer(200, {"id": id, "polling_url": f"{there}get_result?id={id}", "cost": CREDITS})

    async def _look(self, id: str, base: str) -> Script:
        task = self._tasks.get(id)
        if task is None:
            return json_answer(404, {"detail": "Task not found"})
        task.looks += 1
        fault = task.endpoint.removeprefix(FAULT)
        if fault == "lost" or (fault == "late" and task.looks < READY_AT):
            return json_answer(200, {"id": id, "status": "Task not found", "result": None})
        if fault == "poll-503" and task.looks < READY_AT:
            return json_answer(503, {"detail": "Unavailable"})
        if fault == "never" or task.looks < READY_AT:
            progress = min(1.0, task.looks / READY_AT)
            answer = json_answer(200, {"id": id, "status": "Pending", "result": None, "progress": progress})
            return (Wait(LOOK_SECONDS * self._pace), *answer)
        if fault in ENDS:
            status, details = ENDS[fault]
            return json_answer(200, {"id": id, "status": status, "result": None, "details": details})
        made = await run_sync(partial(_drawn, task.order), limiter=self._drawing)
        sample = {"sample": self._keep(fault, made, base), "prompt": task.order.prompt, "seed": 1, "duration": 3.5}
        return json_answer(200, {"id": id, "status": "Ready", "result": sample, "progress": None})

    def _keep(self, fault: str, file: bytes, base: str) -> str:
        name = f"{'missing' if fault == 'gone' else uuid4().hex}.jpeg?sig=simulated"
        self._files[name] = file
        if len(self._files) > MAX_TASKS:
            self._files.popitem(last=False)
        return f"{base}files/{name}"

    def _file(self, name: str) -> Script:
        file = next((file for kept, file in self._files.items() if kept.partition("?")[0] == name), None)
        if file is None or name.startswith("missing"):
            return json_answer(404, {"detail": "Not Found"})
        return (Send(head(200, (("Content-Type", "image/jpeg"),), length=len(file))), Send(file))


def _drawn(order: _Order) -> bytes:
    source = order.input_image or order.image_prompt or order.image
    if source is None:
        drawn = pictures.draw(order.prompt, *order.size)
    else:
        keep = base64.b64decode(order.mask) if order.mask else None
        drawn = pictures.edit(order.prompt, *order.size, base64.b64decode(source), mask=keep)
    return pictures.encode(drawn, order.output_format)


ENDS: Final[Mapping[str, tuple[str, object]]] = MappingProxyType(
    {
        "request-moderated": ("Request Moderated", {"Moderation Reasons": ["Safety Filter"]}),
        "content-moderated": ("Content Moderated", {"Moderation Reasons": ["Derivative Works Filter"]}),
        "error": ("Error", {"error": "The worker failed."}),
        "no-result": ("Ready", None),
    }
)
"""By fault: the status of a task that ends without a picture, and its details."""

REFUSALS: Final[Mapping[str, Script]] = MappingProxyType(
    {
        "submit-429": json_answer(429, {"detail": "Too many active tasks"}, (("Retry-After", "1"),)),
        "no-credits": json_answer(402, {"detail": "Insufficient credits"}),
        "key": json_answer(403, {"detail": "Not authenticated - Invalid API Key"}),
        "unknown": json_answer(404, {"detail": "Not Found"}),
    }
)
"""By fault: the answer to a submission."""

FAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "submit-429": "too many tasks run",
        "no-credits": "there is no credit left",
        "key": "the key is refused",
        "unknown": "there is no such model",
        "foreign": "the polling URL is on a foreign host",
        "poll-503": "polls of the task fail before it is done",
        "late": "the first polls do not find the task",
        "lost": "no poll finds the task",
        "never": "the task never ends",
        "request-moderated": "the prompt is refused",
        "content-moderated": "the picture is refused",
        "error": "the task has failed",
        "no-result": "the task is ready and has no picture",
        "gone": "the picture's URL is a 404",
    }
)
