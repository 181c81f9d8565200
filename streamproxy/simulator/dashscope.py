"""Alibaba's DashScope, simulated. Base URL: {server}/dashscope/api/v1; any key is accepted, but none is an error.

A task has ended at its third poll, whatever the time. The model `fault-<name>` plays a row of FAULTS in one exchange,
`wan-fault-<name>` as a task.
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
from streamproxy.simulator.script import Script, Send, Wait, head, json_answer

PREFIX: Final = "/dashscope/"
API: Final = "api/v1/"
MAX_KEPT: Final = 100
READY_AT: Final = 3
"""The poll at which a task has ended. It runs from the second poll on."""
LOOK_SECONDS: Final = 1.0  # times `pace`: the answer time of a poll before the task has ended


class _Part(msgspec.Struct):
    text: str = ""
    image: str | None = None


class _Message(msgspec.Struct):
    content: list[_Part]


class _Input(msgspec.Struct):
    prompt: str = ""
    messages: list[_Message] = []


class _Parameters(msgspec.Struct):
    size: str = "2048*2048"
    n: int = 4  # Wan's own default: a request without n is charged for four


class _Order(msgspec.Struct):
    model: str
    input: _Input
    parameters: _Parameters = msgspec.field(default_factory=_Parameters)

    @property
    def parts(self) -> list[_Part]:
        return [part for message in self.input.messages for part in message.content]

    @property
    def words(self) -> str:
        return self.input.prompt or " ".join(part.text for part in self.parts)

    @property
    def edges(self) -> tuple[int, int]:
        wide, _, high = self.parameters.size.partition("*")
        return (int(wide), int(high)) if wide.isdecimal() and high.isdecimal() else (1024, 1024)

    @property
    def fault(self) -> str:
        return self.model.removeprefix("wan-").removeprefix("fault-") if "fault-" in self.model else ""


@dataclass(slots=True)
class _Task:
    order: _Order
    looks: int = 0
    status: str = ""
    urls: list[str] = field(default_factory=list)


class DashScope:
    """The handler: see `simulator.Form`."""

    prefix = PREFIX

    def __init__(self, pace: float) -> None:
        self._pace = pace
        self._tasks: OrderedDict[str, _Task] = OrderedDict()
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._drawing = anyio.CapacityLimiter(4)

    async def __call__(self, received: Received) -> Script:
        base = f"http://{received.header('host')}{PREFIX}"
        path = received.target.removeprefix(PREFIX)
        if path.startswith("files/"):
            return self._file(path.removeprefix("files/").partition("?")[0])
        if received.header("authorization") is None:
            return _error(401, "InvalidApiKey", "No API-key provided.")
        match received.method, path.removeprefix(API).split("/"):
            case "GET", ["tasks", id]:
                return await self._look(id, base)
            case "POST", ["tasks", id, "cancel"] if id in self._tasks:
                self._tasks[id].status = "CANCELED"
                return json_answer(200, {"request_id": "1"})
            case "POST", ["services", "aigc", *_]:
                return await self._submit(received, base)
        return _error(404, "InvalidParameter", "url error")

    async def _submit(self, received: Received, base: str) -> Script:
        try:
            order = msgspec.json.decode(received.body, type=_Order)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _error(400, "InvalidParameter", str(error))
        if order.fault in REFUSALS:
            return REFUSALS[order.fault]
        if received.header("x-dashscope-async") == "enable":
            id = str(uuid4())
            self._tasks[id] = _Task(order)
            if len(self._tasks) > MAX_KEPT:
                self._tasks.popitem(last=False)
            return json_answer(200, {"request_id": "1", "output": {"task_id": id, "task_status": "PENDING"}})
        if order.fault == "text":
            output: object = {"choices": [{"message": {"role": "assistant", "content": [{"text": "I cannot."}]}}]}
        else:
            output = _choices([await self._made(order, number, base) for number in range(order.parameters.n)])
        usage = {"image_count": order.parameters.n, "width": order.edges[0], "height": order.edges[1]}
        return json_answer(200, {"request_id": str(uuid4()), "output": output, "usage": usage})

    async def _look(self, id: str, base: str) -> Script:
        task = self._tasks.get(id)
        fault = "lost" if task is None else task.order.fault
        if task is None or fault == "lost":
            return json_answer(200, {"request_id": "1", "output": {"task_id": id, "task_status": "UNKNOWN"}})
        task.looks += 1
        if fault == "poll-503" and task.looks < READY_AT:
            return _error(503, "ServiceUnavailable", "Try again.")
        known = {"task_id": id, "task_status": task.status or ("PENDING" if task.looks < READY_AT - 1 else "RUNNING")}
        if not task.status and (fault in ("never", "waits") or task.looks < READY_AT):
            status = "PENDING" if fault == "waits" else known["task_status"]
            answer = json_answer(200, {"request_id": "1", "output": {**known, "task_status": status}})
            return (Wait(LOOK_SECONDS * self._pace), *answer)
        if fault in ENDS:
            return json_answer(200, {"request_id": "1", "output": {"task_id": id, **ENDS[fault]}})
        urls = [await self._made(task.order, number, base) for number in range(task.order.parameters.n)]
        output = {**known, "task_status": "SUCCEEDED", **self._result(task.order, urls)}
        return json_answer(200, {"request_id": "1", "output": output, "usage": {"image_count": len(urls)}})

    def _result(self, order: _Order, urls: list[str]) -> dict[str, object]:
        if order.fault == "partly":
            return {"results": [{"url": urls[0]}, {"code": "DataInspectionFailed", "message": "Output data."}]}
        if order.input.prompt:
            return {"results": [{"url": url} for url in urls]}
        return _choices(urls)

    async def _made(self, order: _Order, number: int, base: str) -> str:
        file = await run_sync(partial(_drawn, order, number), limiter=self._drawing)
        name = f"{'missing' if order.fault == 'gone' else uuid4().hex}.png"
        self._files[name] = file
        if len(self._files) > MAX_KEPT:
            self._files.popitem(last=False)
        return f"{base}files/{name}?Expires=1&Signature=simulated"

    def _file(self, name: str) -> Script:
        file = self._files.get(name)
        if file is None or name.startswith("missing"):
            return json_answer(404, {"code": "NoSuchKey"})
        return (Send(head(200, (("Content-Type", "image/png"),), length=len(file))), Send(file))


def _choices(urls: list[str]) -> dict[str, object]:
    parts = [{"image": url, "type": "image"} for url in urls]
    return {"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": parts}}]}


def _drawn(order: _Order, number: int) -> bytes:
    words = f"{order.words} {number}" if number else order.words
    source = next((part.image for part in order.parts if part.image is not None), None)
    if source is None:
        drawn = pictures.draw(words, *order.edges)
    else:
        drawn = pictures.edit(words, *order.edges, pictures.from_data_url(source))
    return pictures.encode(drawn, "png")


def _error(status: int, code: str, message: str) -> Script:
    return json_answer(status, {"code": code, "message": message, "request_id": "1"})


REFUSALS: Final[Mapping[str, Script]] = MappingProxyType(
    {
        "submit-429": _error(429, "Throttling.RateQuota", "Requests rate limit exceeded."),
        "no-credits": _error(400, "Arrearage", "Access denied, the account is overdue."),
        "key": _error(401, "InvalidApiKey", "Invalid API-key provided."),
        "unknown": _error(404, "ModelNotFound", "Model not exist."),
        "blocked": _error(400, "DataInspectionFailed", "Input data may contain inappropriate content."),
        "under-200": _error(200, "InvalidParameter", "The size is not supported."),
    }
)
"""By fault: the answer to a request."""

ENDS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "failed": {"task_status": "FAILED", "code": "InternalError", "message": "The worker failed."},
        "flagged": {"task_status": "FAILED", "code": "DataInspectionFailed", "message": "Output data."},
        "cancelled": {"task_status": "CANCELED"},
    }
)
"""By fault: the end of a task without its pictures."""

FAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "submit-429": "too many requests",
        "no-credits": "the account is overdue",
        "key": "the key is refused",
        "unknown": "there is no such model",
        "blocked": "the prompt is refused",
        "under-200": "a refusal comes as a success",
        "text": "there is text instead of a picture",
        "poll-503": "polls of the task fail before it is done",
        "lost": "no poll finds the task",
        "never": "the task runs and never ends",
        "waits": "the task never begins",
        "failed": "the task has failed",
        "flagged": "the picture is refused",
        "cancelled": "the task is cancelled by another",
        "partly": "one of the pictures is refused",
        "gone": "the picture's URL is a 404",
    }
)
