"""AUTOMATIC1111's API, simulated. Base URL: {server}/a1111; no key is needed.

A request with a task id is answered once its task has been polled READY_AT times, or after ANSWER_SECONDS without
polls. One without an id is answered at once. The checkpoint `fault-<name>` plays a row of FAULTS.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Final

import anyio
import msgspec
from anyio.to_thread import run_sync

from streamproxy.simulator import pictures
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Stall, json_answer

PREFIX: Final = "/a1111/"
FAULT: Final = "fault-"
READY_AT: Final = 3
"""The poll at which a task has ended. Each poll before it shows another draft."""
ANSWER_SECONDS: Final = 9.0
MAX_IMAGES: Final = 10
MAX_TASKS: Final = 100


class _Order(msgspec.Struct):
    prompt: str = ""
    width: int = 512
    height: int = 512
    batch_size: int = 1
    n_iter: int = 1
    force_task_id: str | None = None
    override_settings: dict[str, object] = {}
    init_images: list[str] = []
    mask: str | None = None

    @property
    def fault(self) -> str:
        return str(self.override_settings.get("sd_model_checkpoint", "")).removeprefix(FAULT)


@dataclass(slots=True)
class _Task:
    order: _Order
    looks: int = 0
    over: anyio.Event = field(default_factory=anyio.Event)


class _Look(msgspec.Struct):
    id_task: str
    id_live_preview: int = -1
    live_preview: bool = True


class Automatic1111:
    """The handler: see `simulator.Form`."""

    prefix = PREFIX

    def __init__(self, pace: float) -> None:
        self._pace = pace
        self._tasks: OrderedDict[str, _Task] = OrderedDict()
        self._drawing = anyio.CapacityLimiter(4)

    async def __call__(self, received: Received) -> Script:
        try:
            match received.target.removeprefix(PREFIX):
                case "sdapi/v1/txt2img" | "sdapi/v1/img2img":
                    return await self._make(msgspec.json.decode(received.body, type=_Order))
                case "internal/progress":
                    return await self._look(msgspec.json.decode(received.body, type=_Look))
                case "sdapi/v1/interrupt":
                    for task in self._tasks.values():
                        task.over.set()
                    return json_answer(200, {})
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return json_answer(422, {"detail": [{"loc": ["body"], "msg": str(error), "type": "value_error"}]})
        return json_answer(404, {"detail": "Not Found"})

    async def _make(self, order: _Order) -> Script:
        if order.fault in REFUSALS:
            return REFUSALS[order.fault]
        if order.force_task_id is not None:
            task = self._tasks[order.force_task_id] = _Task(order)
            if len(self._tasks) > MAX_TASKS:
                self._tasks.popitem(last=False)
            if order.fault in ("never", "queued"):
                return (Stall(),)
            if order.fault not in ("unwatched", "unknown-task"):
                with anyio.move_on_after(ANSWER_SECONDS):
                    await task.over.wait()
        count = min(order.batch_size * order.n_iter, MAX_IMAGES)
        prompts = [f"{order.prompt} {index}" if index else order.prompt for index in range(count)]
        files = [await self._drawn(order, prompt) for prompt in prompts]
        info = {"seed": 1, "all_seeds": list(range(1, count + 1)), "index_of_first_image": 0}
        return json_answer(200, {"images": files, "parameters": {}, "info": msgspec.json.encode(info).decode()})

    async def _look(self, look: _Look) -> Script:
        task = self._tasks.get(look.id_task)
        if task is None or task.order.fault in ("unwatched", "unknown-task"):
            if task is not None and task.order.fault == "unwatched":
                return json_answer(404, {"detail": "Not Found"})
            return json_answer(200, _told(active=False))
        if task.order.fault == "queued":
            return json_answer(200, _told(active=False, queued=True))
        task.looks += 1
        if task.looks >= READY_AT and task.order.fault != "never":
            task.over.set()
            return json_answer(200, _told(active=True, progress=1.0))
        told = _told(active=True, progress=min(0.9, task.looks / READY_AT))
        if look.live_preview and task.looks < READY_AT and task.order.fault != "no-drafts":
            text = await self._drawn(task.order, task.order.prompt, step=task.looks - 1)
            told |= {"live_preview": f"data:image/png;base64,{text}", "id_live_preview": task.looks}
        return json_answer(200, told)

    async def _drawn(self, order: _Order, prompt: str, step: int | None = None) -> str:
        return await run_sync(partial(_file, order, prompt, step), limiter=self._drawing)


def _told(**said: object) -> dict[str, object]:
    rest = {"paused": False, "completed": False, "eta": None, "live_preview": None, "id_live_preview": -1}
    return {"queued": False, "progress": None, "textinfo": None, **rest, **said}


def _file(order: _Order, prompt: str, step: int | None) -> str:
    if order.init_images:
        source = base64.b64decode(order.init_images[0].rpartition(",")[2])
        keep = base64.b64decode(order.mask) if order.mask else None
        drawn = pictures.edit(prompt, order.width, order.height, source, mask=keep)
    else:
        drawn = pictures.draw(prompt, order.width, order.height)
    shown = drawn if step is None else pictures.preview(drawn, step, READY_AT - 1)
    return base64.b64encode(pictures.encode(shown, "png")).decode()


def _raised(name: str, words: str) -> dict[str, str]:
    return {"error": name, "detail": "", "body": "", "errors": words}


REFUSALS: Final[Mapping[str, Script]] = MappingProxyType(
    {
        "sampler": json_answer(404, {"detail": "Sampler not found"}),
        "invalid": json_answer(422, {"detail": [{"loc": ["body", "steps"], "msg": "no", "type": "value_error"}]}),
        "memory": json_answer(500, _raised("OutOfMemoryError", "CUDA out of memory.")),
        "empty": json_answer(200, {"images": [], "parameters": {}, "info": "{}"}),
    }
)
"""By fault: the answer to a request for pictures."""

FAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "sampler": "there is no such sampler",
        "invalid": "a member is refused",
        "memory": "the GPU has too little memory",
        "empty": "the answer holds no picture",
        "unwatched": "there is no route for the progress of a task",
        "unknown-task": "the task's id is ignored",
        "no-drafts": "live previews are off",
        "never": "the task never ends",
        "queued": "the task waits for another's",
    }
)
