"""Fireworks' image workflows, simulated. Base URL: {server}/fireworks; any key is accepted, but none is an error.

Kontext's job is looked at twice before it is ready. `fault-<name>` as the model plays a row of FAULTS, and
`flux-kontext-fault-<name>` one of ENDS.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Final, Literal, TypeVar
from uuid import uuid4

import anyio
import msgspec
from anyio.to_thread import run_sync

from streamproxy.simulator import pictures
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Send, head, json_answer

PREFIX: Final = "/fireworks/"
KONTEXT: Final = "flux-kontext-"
FAULT: Final = "fault-"
MAX_KEPT: Final = 100
READY_AT: Final = 3
"""The look at which a job is over."""

Value = TypeVar("Value")

SIZES: Final = {"1:1": (512, 512), "16:9": (640, 360), "3:2": (600, 400), "2:3": (400, 600), "9:16": (360, 640)}


class _Order(msgspec.Struct, forbid_unknown_fields=True):
    prompt: str
    aspect_ratio: str = "1:1"
    seed: int | None = None
    guidance_scale: float | None = None
    num_inference_steps: int | None = None
    prompt_upsampling: bool | None = None
    safety_tolerance: int | None = None
    input_image: str | None = None
    output_format: Literal["png", "jpeg"] = "jpeg"


class _Look(msgspec.Struct):
    id: str


class Fireworks:
    """The handler: see `simulator.Form`."""

    prefix = PREFIX

    def __init__(self, pace: float) -> None:
        self._jobs: OrderedDict[str, tuple[str, _Order, int]] = OrderedDict()
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._drawing = anyio.CapacityLimiter(4)

    async def __call__(self, received: Received) -> Script:
        path = received.target.removeprefix(PREFIX)
        if path.startswith("files/"):
            return _file(self._files.get(path.removeprefix("files/")))
        if received.header("authorization") is None:
            return _error(401, "unauthorized", "The API key you provided is invalid.")
        model, _, action = path.partition("/")
        fault = model.removeprefix(FAULT)
        if fault in REFUSALS:
            return REFUSALS[fault]
        try:
            if action == "get_result":
                return await self._look(msgspec.json.decode(received.body, type=_Look).id, received)
            order = msgspec.json.decode(received.body, type=_Order)
        except msgspec.DecodeError as error:
            return _error(400, "invalid_request_error", str(error))
        if model.startswith(KONTEXT) and not action:
            id = uuid4().hex
            _keep(self._jobs, id, (model.removeprefix(KONTEXT), order, 0))
            return json_answer(200, {"request_id": id})
        if action != "text_to_image" or order.input_image is not None:
            return _error(404, "NOT_FOUND", "Not found.")
        form: pictures.Format = "png" if received.header("accept") == "image/png" else "jpeg"
        return await self._at_once(order, form, fault)

    async def _at_once(self, order: _Order, form: pictures.Format, fault: str) -> Script:
        file = await run_sync(partial(_drawn, order, form), limiter=self._drawing)
        reason = "CONTENT_FILTERED" if fault == "filtered" else "SUCCESS"
        if fault == "json":
            text = base64.b64encode(file).decode()
            return json_answer(200, {"id": uuid4().hex, "base64": [text], "finishReason": reason, "seed": 1})
        told = (("Content-Type", f"image/{form}"), ("finish-reason", reason), ("x-request-id", uuid4().hex))
        return (Send(head(200, told, length=len(file))), Send(file))

    async def _look(self, id: str, received: Received) -> Script:
        if id not in self._jobs:
            return json_answer(200, {"id": id, "status": "Task not found", "result": None})
        model, order, looks = self._jobs[id]
        self._jobs[id] = (model, order, looks + 1)
        if looks + 1 < READY_AT or model == f"{FAULT}never":
            return json_answer(200, {"id": id, "status": "Pending", "result": None, "progress": (looks + 1) / READY_AT})
        if (end := ENDS.get(model.removeprefix(FAULT))) is not None:
            return json_answer(200, {"id": id, "status": end, "result": None})
        name = f"{uuid4().hex}.{order.output_format}"
        _keep(self._files, name, await run_sync(partial(_drawn, order, order.output_format), limiter=self._drawing))
        url = f"http://{received.header('host')}{PREFIX}files/{name}"
        return json_answer(200, {"id": id, "status": "Ready", "result": {"sample": url}, "progress": None})


def _keep(kept: OrderedDict[str, Value], name: str, value: Value) -> None:
    kept[name] = value
    if len(kept) > MAX_KEPT:
        kept.popitem(last=False)


def _file(file: bytes | None) -> Script:
    if file is None:
        return json_answer(404, {"detail": "Not Found"})
    return (Send(head(200, (("Content-Type", "image/png"),), length=len(file))), Send(file))


def _drawn(order: _Order, form: pictures.Format) -> bytes:
    size = SIZES.get(order.aspect_ratio, (512, 512))
    if order.input_image is None:
        return pictures.encode(pictures.draw(order.prompt, *size), form)
    return pictures.encode(pictures.edit(order.prompt, *size, base64.b64decode(order.input_image)), form)


def _error(status: int, code: str, message: str) -> Script:
    error = {"object": "error", "type": "invalid_request_error", "code": code, "message": message}
    return json_answer(status, {"error": error})


ENDS: Final[Mapping[str, str]] = MappingProxyType(
    {"moderated": "Content Moderated", "error": "Error", "no-result": "Ready"}
)
"""By fault: the status in which a job ends instead of with its picture."""

REFUSALS: Final[Mapping[str, Script]] = MappingProxyType(
    {
        "submit-429": _error(429, "rate_limit_exceeded", "Too many requests."),
        "no-credits": _error(412, "PRECONDITION_FAILED", "Account is suspended."),
        "key": _error(401, "UNAUTHORIZED", "The API key you provided is invalid."),
        "unknown": _error(404, "NOT_FOUND", "Model not found."),
    }
)
"""By fault: the answer to a request."""

FAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "submit-429": "too many requests",
        "no-credits": "the account is suspended",
        "key": "the key is refused",
        "unknown": "there is no such model",
        "filtered": "the picture is taken out",
        "json": "the picture comes as JSON though bytes were asked for",
        "moderated": "the picture of a job is refused",
        "error": "a job has failed",
        "no-result": "a job is ready and has no picture",
        "never": "a job never ends",
    }
)
