"""xAI's images API, simulated. Base URL: {server}/xai/v1; any key is accepted, but none is an error.

Members that xAI does not take are refused, as by xAI. The model `fault-<name>` plays a row of FAULTS.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
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
from streamproxy.simulator.script import Script, Send, Wait, head, json_answer

PREFIX: Final = "/xai/v1/"
FAULT: Final = "fault-"
MAX_FILES: Final = 100
SECONDS: Final = 9.0  # times `pace`
TICKS: Final = 400_000_000
EDGES: Final = {"1k": 1024, "1.5k": 1536, "2k": 2048}


class _Image(msgspec.Struct, forbid_unknown_fields=True):
    url: str
    type: Literal["image_url"] = "image_url"


class _Order(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    prompt: str
    n: Annotated[int, Meta(ge=1, le=10)] = 1
    aspect_ratio: str = "1:1"
    resolution: Literal["1k", "1.5k", "2k"] = "1k"
    quality: Literal["low", "medium", "auto"] = "medium"
    response_format: Literal["url", "b64_json"] = "url"
    user: str | None = None
    image: _Image | None = None
    images: Annotated[list[_Image], Meta(max_length=5)] = []

    @property
    def shown(self) -> list[_Image]:
        return [self.image] if self.image is not None else self.images

    @property
    def size(self) -> tuple[int, int]:
        """Edges in the ratio, with half the mean edge of the resolution, so that drawing is quick."""
        wide, _, high = ("1:1" if self.aspect_ratio == "auto" else self.aspect_ratio).partition(":")
        root = (float(wide) / float(high)) ** 0.5
        edge = EDGES[self.resolution] / 2
        return max(1, round(edge * root)), max(1, round(edge / root))


class XAI:
    """The handler: see `simulator.Form`."""

    prefix = PREFIX

    def __init__(self, pace: float) -> None:
        self._pace = pace
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._drawing = anyio.CapacityLimiter(4)

    async def __call__(self, received: Received) -> Script:
        path = received.target.removeprefix(PREFIX)
        if path.startswith("files/"):
            return self._file(path.removeprefix("files/"))
        if received.header("authorization") is None:
            return _error(401, "unauthenticated", "No credentials were given.")
        try:
            order = msgspec.json.decode(received.body, type=_Order)
        except msgspec.DecodeError as error:
            return _error(400, "400", f"Argument not supported: {error}")
        if path != ("images/edits" if order.shown else "images/generations"):
            return _error(404, "404", "There is no such path.")
        fault = order.model.removeprefix(FAULT)
        if fault in REFUSALS:
            return _error(*REFUSALS[fault])
        if not order.model.startswith(("grok-", FAULT)):
            return _error(404, "model_unavailable", "The model does not exist.")
        return (Wait(SECONDS * self._pace), *json_answer(200, await self._answer(order, fault, received)))

    async def _answer(self, order: _Order, fault: str, received: Received) -> dict[str, object]:
        made = await run_sync(partial(_drawn, order), limiter=self._drawing)
        items = [self._item(order, fault, index, file, received) for index, file in enumerate(made)]
        data = [] if fault == "all-blocked" else items
        return {"data": data, "usage": {"cost_in_usd_ticks": TICKS * len(data)}}

    def _item(self, order: _Order, fault: str, index: int, file: bytes, received: Received) -> dict[str, object]:
        item: dict[str, object] = {"mime_type": "image/jpeg", "revised_prompt": "", "respect_moderation": True}
        if fault == "blocked" and index == order.n - 1:
            return item | {"url": "", "respect_moderation": False}
        if order.response_format == "b64_json":
            return item | {"b64_json": base64.b64encode(file).decode()}
        name = f"{uuid4().hex}.jpeg"
        self._files[name] = file
        if len(self._files) > MAX_FILES:
            self._files.popitem(last=False)
        return item | {"url": f"http://{received.header('host')}{PREFIX}files/{name}"}

    def _file(self, name: str) -> Script:
        file = self._files.get(name)
        if file is None:
            return _error(404, "404", "There is no such file.")
        return (Send(head(200, (("Content-Type", "image/jpeg"),), length=len(file))), Send(file))


def _error(status: int, code: str, message: str) -> Script:
    return json_answer(status, {"code": code, "error": message})


def _drawn(order: _Order) -> list[bytes]:
    prompts = [order.prompt, *(f"{order.prompt} #{number}" for number in range(1, order.n))]
    shown = pictures.from_data_url(order.shown[0].url) if order.shown else None
    drawn = (
        pictures.draw(prompt, *order.size) if shown is None else pictures.edit(prompt, *order.size, shown)
        for prompt in prompts
    )
    return [pictures.encode(picture, "jpeg", 90) for picture in drawn]


REFUSALS: Final[Mapping[str, tuple[int, str, str]]] = MappingProxyType(
    {
        "submit-429": (429, "429", "Too many requests."),
        "key": (401, "unauthenticated", "The key is not valid."),
        "unknown": (404, "model_unavailable", "The model does not exist."),
        "moderated": (400, "invalid-argument", "Generated image rejected by content moderation."),
    }
)
"""By fault: status, code and words of a refusal."""

FAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "submit-429": "the request is refused for now",
        "key": "the key is refused",
        "unknown": "there is no such model",
        "moderated": "the request is refused by moderation",
        "blocked": "the last picture is removed",
        "all-blocked": "every picture is removed",
    }
)
