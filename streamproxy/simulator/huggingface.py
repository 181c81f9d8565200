"""Hugging Face's inference, simulated. Base URL: {server}/huggingface; any key is accepted, but none is an error.

`sim/fault-<name>` as the model plays a row of FAULTS.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Final
from uuid import uuid4

import anyio
import msgspec
from anyio.to_thread import run_sync

from streamproxy.simulator import pictures
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Send, head, json_answer

PREFIX: Final = "/huggingface/"
MODELS: Final = "hf-inference/models/"
FAULT: Final = "sim/fault-"


class _Size(msgspec.Struct, forbid_unknown_fields=True):
    width: int
    height: int


class _Parameters(msgspec.Struct, forbid_unknown_fields=True):
    prompt: str | None = None
    width: int = 1024
    height: int = 1024
    target_size: _Size | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    negative_prompt: str | None = None


class _Order(msgspec.Struct, forbid_unknown_fields=True):
    inputs: str
    parameters: _Parameters


class HuggingFace:
    """The handler: see `simulator.Form`."""

    prefix = PREFIX

    def __init__(self, pace: float) -> None:
        self._drawing = anyio.CapacityLimiter(4)

    async def __call__(self, received: Received) -> Script:
        path = received.target.removeprefix(PREFIX)
        model = path.removeprefix(MODELS)
        if received.header("authorization") is None:
            return json_answer(401, {"error": "Invalid username or password."})
        if model == path:
            return json_answer(404, {"error": "Not Found"})
        if model.startswith(FAULT):
            return REFUSALS.get(model.removeprefix(FAULT), REFUSALS["unknown"])
        try:
            order = msgspec.json.decode(received.body, type=_Order)
        except msgspec.DecodeError as error:
            return json_answer(422, {"error": [str(error)]})
        kind = (received.header("accept") or "").removeprefix("image/")
        file = await run_sync(partial(_drawn, order, "png" if kind == "png" else "jpeg"), limiter=self._drawing)
        told = (("Content-Type", f"image/{kind}"), ("x-request-id", uuid4().hex))
        return (Send(head(200, told, length=len(file))), Send(file))


def _drawn(order: _Order, form: pictures.Format) -> bytes:
    asked = order.parameters
    size = asked.target_size or _Size(asked.width, asked.height)
    if asked.prompt is None:
        return pictures.encode(pictures.draw(order.inputs, size.width, size.height), form)
    shown = base64.b64decode(order.inputs)
    return pictures.encode(pictures.edit(asked.prompt, size.width, size.height, shown), form)


REFUSALS: Final[Mapping[str, Script]] = MappingProxyType(
    {
        "submit-429": json_answer(429, {"error": "Too many requests."}),
        "no-credits": json_answer(402, {"error": "You have exceeded your monthly included credits."}),
        "key": json_answer(401, {"error": "Invalid username or password."}),
        "unknown": json_answer(404, {"error": "Model does not exist."}),
        "loading": json_answer(503, {"error": "Model is currently loading", "estimated_time": 19.5}),
        "under-200": json_answer(200, {"error": "CUDA out of memory"}),
    }
)
"""By fault: the answer to a request."""

FAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "submit-429": "too many requests",
        "no-credits": "there is no credit left",
        "key": "the key is refused",
        "unknown": "there is no such model",
        "loading": "the model is being loaded",
        "under-200": "the request is refused under 200",
    }
)
