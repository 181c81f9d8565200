"""Runware's API, simulated. Base URL: {server}/runware/v1; any key is accepted, but none is an error.

`sim:fault-<name>@1` as the model plays a row of FAULTS.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
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
from streamproxy.simulator.script import Script, json_answer

PREFIX: Final = "/runware/v1"
FAULT: Final = "sim:fault-"
COST: Final = 0.0013
FORMATS: Final[Mapping[str, pictures.Format]] = {"PNG": "png", "JPG": "jpeg", "WEBP": "webp"}

Edge = Annotated[int, Meta(ge=128, le=2048, multiple_of=64)]
UUID: Final = r"^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"


class _Task(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    task_type: Literal["imageInference"]
    uuid: Annotated[str, Meta(pattern=UUID)] = msgspec.field(name="taskUUID")
    positive_prompt: Annotated[str, Meta(min_length=2)]
    model: str
    width: Edge
    height: Edge
    number_results: Annotated[int, Meta(ge=1, le=20)] = 1
    output_type: Literal["URL", "base64Data", "dataURI"] = "URL"
    output_format: Literal["PNG", "JPG", "WEBP"] = "JPG"
    delivery_method: Literal["sync", "async"] = "sync"
    include_cost: bool = False
    negative_prompt: str | None = None
    seed: int | None = None
    steps: int | None = None
    cfg: float | None = msgspec.field(name="CFGScale", default=None)
    scheduler: str | None = None
    strength: float | None = None
    seed_image: str | None = None
    mask_image: str | None = None
    reference_images: list[str] | None = None

    @property
    def fault(self) -> str:
        return self.model.removeprefix(FAULT).partition("@")[0]


class Runware:
    """The handler: see `simulator.Form`."""

    prefix = PREFIX

    def __init__(self, pace: float) -> None:
        self._drawing = anyio.CapacityLimiter(4)

    async def __call__(self, received: Received) -> Script:
        if received.header("authorization") is None:
            return _error(401, "invalidApiKey", "Invalid API key.")
        try:
            [task] = msgspec.json.decode(received.body, type=list[_Task])
        except (msgspec.DecodeError, ValueError) as error:
            return _error(400, "invalidParameter", str(error))
        if task.fault in REFUSALS:
            return REFUSALS[task.fault]
        made = await run_sync(partial(_drawn, task), limiter=self._drawing)
        lost = 1 if task.fault == "partly" else 0
        told = {"taskType": task.task_type, "taskUUID": task.uuid, "cost": COST}
        data = [
            {**told, "imageUUID": str(uuid4()), "imageBase64Data": base64.b64encode(file).decode(), "seed": 1}
            for file in made[: len(made) - lost]
        ]
        errors = [{"code": "timeoutProvider", "message": "A picture timed out.", "taskUUID": task.uuid}] * lost
        return json_answer(200, {"data": data, **({"errors": errors} if errors else {})})


def _drawn(task: _Task) -> list[bytes]:
    words, size = task.positive_prompt, (task.width, task.height)
    shown = task.seed_image or next(iter(task.reference_images or ()), None)
    keep = None if task.mask_image is None else pictures.from_data_url(task.mask_image)
    prompts = [words, *(f"{words} #{number}" for number in range(1, task.number_results))]
    drawn = (
        pictures.draw(prompt, *size)
        if shown is None
        else pictures.edit(prompt, *size, pictures.from_data_url(shown), mask=keep)
        for prompt in prompts
    )
    return [pictures.encode(picture, FORMATS[task.output_format]) for picture in drawn]


def _error(status: int, code: str, message: str) -> Script:
    return json_answer(status, {"errors": [{"code": code, "message": message, "taskType": "imageInference"}]})


REFUSALS: Final[Mapping[str, Script]] = MappingProxyType(
    {
        "submit-429": _error(429, "rateLimitExceeded", "Too many requests."),
        "no-credits": _error(402, "insufficientCredits", "Insufficient credits."),
        "key": _error(401, "invalidApiKey", "Invalid API key."),
        "unknown": _error(400, "invalidModel", "Invalid value for 'model'."),
        "blocked": _error(400, "providerContentModeration", "The content is blocked."),
        "under-200": _error(200, "invalidParameter", "Invalid value for 'width'."),
    }
)
"""By fault: the answer to a task."""

FAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "submit-429": "too many requests",
        "no-credits": "there is no credit left",
        "key": "the key is refused",
        "unknown": "there is no such model",
        "blocked": "the prompt is refused",
        "under-200": "the task is refused under 200",
        "partly": "the last picture is an error beside the others",
    }
)
