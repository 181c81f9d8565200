"""Leonardo's API, simulated. Base URL: {server}/leonardo/v1; any key is accepted, but none is an error.

A generation is looked at twice before it is complete. `fault-<name>` as the model plays a row of FAULTS.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Annotated, Final
from uuid import uuid4

import anyio
import msgspec
from anyio.to_thread import run_sync
from msgspec import Meta

from streamproxy.simulator import pictures
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Send, head, json_answer

PREFIX: Final = "/leonardo/v1/"
GENERATIONS: Final = "generations"
FAULT: Final = "fault-"
MAX_KEPT: Final = 100
READY_AT: Final = 3
"""The look at which a generation is over."""

Edge = Annotated[int, Meta(ge=32, le=1536, multiple_of=8)]


class _Order(msgspec.Struct, forbid_unknown_fields=True):
    prompt: str
    model: str = msgspec.field(name="modelId")
    width: Edge = 1024
    height: Edge = 768
    count: Annotated[int, Meta(ge=1, le=8)] = msgspec.field(name="num_images", default=4)
    alchemy: bool = True
    public: bool = True
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    num_inference_steps: int | None = None
    seed: int | None = None
    contrast: float | None = None
    style: str | None = msgspec.field(name="styleUUID", default=None)

    @property
    def fault(self) -> str:
        return self.model.removeprefix(FAULT)


class Leonardo:
    """The handler: see `simulator.Form`."""

    prefix = PREFIX

    def __init__(self, pace: float) -> None:
        self._jobs: OrderedDict[str, tuple[_Order, int]] = OrderedDict()
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._drawing = anyio.CapacityLimiter(4)

    async def __call__(self, received: Received) -> Script:
        path = received.target.removeprefix(PREFIX)
        if path.startswith("files/"):
            return self._file(path.removeprefix("files/"))
        if received.header("authorization") is None:
            return _error(401, "access-denied", "Authentication hook unauthorized this request")
        if received.method == "GET":
            return await self._look(path.removeprefix(f"{GENERATIONS}/"), received)
        try:
            order = msgspec.json.decode(received.body, type=_Order)
        except msgspec.DecodeError as error:
            return _error(400, "bad-request", str(error))
        if order.fault in REFUSALS:
            return REFUSALS[order.fault]
        id = str(uuid4())
        self._jobs[id] = (order, 0)
        if len(self._jobs) > MAX_KEPT:
            self._jobs.popitem(last=False)
        return json_answer(200, {"sdGenerationJob": {"generationId": id, "apiCreditCost": 9}})

    async def _look(self, id: str, received: Received) -> Script:
        order, looks = self._jobs.get(id, (None, 0))
        if order is None or order.fault == "lost":
            return json_answer(200, {"generations_by_pk": None})
        self._jobs[id] = (order, looks + 1)
        if order.fault == "poll-503" and looks + 1 < READY_AT:
            return _error(503, "unavailable", "Unavailable")
        if looks + 1 < READY_AT or order.fault == "never":
            return _told("PENDING", [])
        if order.fault == "failed":
            return _told("FAILED", [])
        made = await run_sync(partial(_drawn, order), limiter=self._drawing)
        return _told("COMPLETE", [self._url(file, order, received) for file in made])

    def _url(self, file: bytes, order: _Order, received: Received) -> str:
        name = f"{'missing' if order.fault == 'gone' else uuid4().hex}.jpeg"
        if order.fault != "gone":
            self._files[name] = file
        if len(self._files) > MAX_KEPT:
            self._files.popitem(last=False)
        return f"http://{received.header('host')}{PREFIX}files/{name}"

    def _file(self, name: str) -> Script:
        file = self._files.get(name)
        if file is None:
            return _error(404, "not-found", "There is no such file.")
        return (Send(head(200, (("Content-Type", "image/jpeg"),), length=len(file))), Send(file))


def _told(status: str, urls: list[str]) -> Script:
    images = [{"id": uuid4().hex, "url": url, "nsfw": False} for url in urls]
    return json_answer(200, {"generations_by_pk": {"status": status, "generated_images": images}})


def _drawn(order: _Order) -> list[bytes]:
    prompts = [order.prompt, *(f"{order.prompt} #{number}" for number in range(1, order.count))]
    return [pictures.encode(pictures.draw(prompt, order.width, order.height), "jpeg", 90) for prompt in prompts]


def _error(status: int, code: str, message: str) -> Script:
    return json_answer(status, {"error": message, "code": code, "path": "$"})


REFUSALS: Final[Mapping[str, Script]] = MappingProxyType(
    {
        "submit-429": _error(429, "too-many-requests", "Too many requests."),
        "no-credits": _error(402, "insufficient-credits", "Not enough API tokens."),
        "key": _error(401, "access-denied", "Authentication hook unauthorized this request"),
        "unknown": _error(400, "unexpected", "Invalid modelId."),
        "blocked": _error(403, "content-moderation", "Content moderation filter: nsfw."),
    }
)
"""By fault: the answer to a submission."""

FAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "submit-429": "too many requests",
        "no-credits": "there is no credit left",
        "key": "the key is refused",
        "unknown": "there is no such model",
        "blocked": "the prompt is refused",
        "poll-503": "looks at the work fail before it is done",
        "lost": "no look finds the work",
        "never": "the work never ends",
        "failed": "the work has failed",
        "gone": "the picture's URL is a 404",
    }
)
