"""Ark and MiniMax, simulated: pictures that come one by one. Base URLs: {server}/ark/api/v3 and {server}/minimax/v1.

Any key is accepted, but none is an error. Large pictures are drawn with half the edges, to save time, since both
providers usually make large ones. A model that ends in `fault-<name>` plays a row of FAULTS.
"""

from __future__ import annotations

import base64
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Annotated, Final, Literal
from uuid import uuid4

import anyio
import msgspec
import orjson
from anyio.to_thread import run_sync
from msgspec import Meta

from streamproxy.simulator import pictures
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Fin, Script, Send, event, head, json_answer, sse

FAULT: Final = "fault-"
MAX_FILES: Final = 100
FIRST_SECONDS: Final = 9.0
NEXT_SECONDS: Final = 6.0  # times `pace`
LEAST: Final = 3_686_400
LARGE: Final = 2 * 1024 * 1024
TIERS: Final = {"1K": 1024, "1.5K": 1536, "2K": 2048, "3K": 3072, "4K": 4096}
SENSITIVE: Final = "OutputImageSensitiveContentDetected"
FORMATS: Final = {"jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp"}

Format = Literal["png", "jpeg", "webp"]
Count = Annotated[int, Meta(ge=1, le=15)]


class _Most(msgspec.Struct, forbid_unknown_fields=True):
    max_images: Count = 15


class _ArkOrder(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    prompt: str
    size: str = "2048x2048"
    response_format: Literal["url", "b64_json"] = "url"
    watermark: bool = True
    stream: bool = False
    sequential_image_generation: Literal["auto", "disabled"] = "disabled"
    sequential_image_generation_options: _Most = msgspec.field(default_factory=_Most)
    output_format: Format = "jpeg"
    image: str | list[str] | None = None
    optimize_prompt_options: dict[str, str] | None = None
    tools: list[dict[str, str]] | None = None
    background: str | None = None


class _Reference(msgspec.Struct, forbid_unknown_fields=True):
    image_url: str


class _MiniMaxOrder(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    prompt: str
    n: Annotated[int, Meta(ge=1, le=10)] = 1
    size: str = "auto"
    area: Literal["1K", "2K", "4K"] = "1K"
    aspect_ratio: str = "auto"
    response_format: Literal["url", "b64_json"] = "url"
    stream: bool = False
    output_format: Format = "png"
    images: Annotated[list[_Reference], Meta(max_length=16)] = []


@dataclass(frozen=True, slots=True)
class _Work:
    """A group on either wire. `events`: the prefix of its event names. `reversed`: the last picture comes first."""

    model: str
    prompt: str
    n: int
    width: int
    height: int
    format: Format
    source: str | None
    url: bool
    stream: bool
    events: str = "image_generation"
    reversed: bool = False

    @property
    def fault(self) -> str:
        return self.model.partition(FAULT)[2]


class RefusedError(Exception):
    """A refusal: status, and the members of `error`."""

    def __init__(self, status: int, code: str, message: str, param: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.error = {"code": code, "message": f"{message} Request id: simulated", "param": param, "type": "BadRequest"}


@dataclass(slots=True)
class _Groups(ABC):
    """The handler: see `simulator.Form`."""

    pace: float
    _files: OrderedDict[str, tuple[str, bytes]] = field(default_factory=OrderedDict)
    _drawing: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(4))

    prefix = "/"

    async def __call__(self, received: Received) -> Script:
        base = f"http://{received.header('host')}{self.prefix}"
        path = received.target.removeprefix(self.prefix).partition("?")[0]
        if path.startswith("files/"):
            return self._file(path.removeprefix("files/"))
        try:
            if received.header("authorization") is None:
                raise RefusedError(401, "AuthenticationError", "the API key in the request is missing or invalid.")
            work = self.order(path, received.body)
            if work.fault in REFUSALS:
                raise RefusedError(*REFUSALS[work.fault])
        except msgspec.DecodeError as error:
            return json_answer(400, {"error": RefusedError(400, "InvalidParameter", str(error)).error})
        except RefusedError as refused:
            return json_answer(refused.status, {"error": refused.error})
        made = await run_sync(partial(_drawn, work), limiter=self._drawing)
        items = [self._item(work, index, file, base) for index, file in enumerate(made)]
        return self._events(work, items) if work.stream else _answer(work, items)

    @abstractmethod
    def order(self, path: str, body: bytes) -> _Work:
        """Read a request. Raises RefusedError, msgspec.DecodeError."""

    def _item(self, work: _Work, index: int, file: bytes, base: str) -> dict[str, object]:
        if work.fault == "all-failed" or (work.fault == "one-failed" and index == 1):
            return {"error": {"code": SENSITIVE, "message": "The output image may contain sensitive information."}}
        size = {"size": f"{work.width}x{work.height}"}
        if not work.url:
            return {"b64_json": base64.b64encode(file).decode(), **size}
        name = f"{'missing' if work.fault == 'gone' else uuid4().hex}.{work.format}"
        self._files[name] = FORMATS[work.format], file
        if len(self._files) > MAX_FILES:
            self._files.popitem(last=False)
        return {"url": f"{base}files/{name}", **size}

    def _events(self, work: _Work, items: Sequence[dict[str, object]]) -> Script:
        order = list(enumerate(items))
        frames = [
            _frame(work, "partial_" + ("failed" if "error" in item else "succeeded"), index, item)
            for index, item in (reversed(order) if work.reversed else order)
        ]
        frames.append(_frame(work, "completed", None, {"usage": _usage(work, items)}))
        waits = [FIRST_SECONDS * self.pace, *([NEXT_SECONDS * self.pace] * (len(items) - 1))]
        match work.fault:
            case "cut":
                return sse(frames[:1], waits=waits, end=(Fin(),))
            case "mid-error":
                broken = {"error": {"code": "InternalServiceError", "message": "The service failed."}}
                return sse([frames[0], event(None, orjson.dumps(broken))], waits=waits)
        return sse([*frames, event(None, b"[DONE]")], waits=waits)

    def _file(self, name: str) -> Script:
        if name not in self._files or name.startswith("missing"):
            return json_answer(404, {"error": {"code": "NoSuchKey", "message": "There is no such file."}})
        kind, file = self._files[name]
        return (Send(head(200, (("Content-Type", kind),), length=len(file))), Send(file))


class Ark(_Groups):
    """Seedream: groups of as many pictures as the prompt has, up to the limit."""

    prefix = "/ark/api/v3/"

    def order(self, path: str, body: bytes) -> _Work:
        if path != "images/generations":
            raise RefusedError(404, "NotFound", "There is no such path.")
        order = msgspec.json.decode(body, type=_ArkOrder)
        if "seedream" not in order.model and not order.model.startswith("ep-"):
            raise RefusedError(404, "InvalidEndpointOrModel.NotFound", "The model does not exist.")
        if order.stream and "-pro-" in order.model:
            raise RefusedError(400, "InvalidParameter", "The parameter `stream` is not supported.", "stream")
        width, height = _edges(order.size)
        if "seedream-4-5" in order.model and width * height < LEAST:
            raise RefusedError(400, "InvalidParameter", f"image size must be at least {LEAST} pixels.", "size")
        group = order.sequential_image_generation == "auto"
        n = order.sequential_image_generation_options.max_images if group else 1
        shown = order.image if isinstance(order.image, str) else next(iter(order.image or ()), None)
        url = order.response_format == "url"
        return _Work(order.model, order.prompt, n, width, height, order.output_format, shown, url, order.stream)


class MiniMax(_Groups):
    """H3-Image: `n` pictures, the last of them first."""

    prefix = "/minimax/v1/"

    def order(self, path: str, body: bytes) -> _Work:
        order = msgspec.json.decode(body, type=_MiniMaxOrder)
        events = {"images/generations": "image_generation", "images/edits": "image_edit"}.get(path)
        if events is None or (events == "image_edit") is not bool(order.images):
            raise RefusedError(404, "404", "There is no such path.")
        if order.stream and order.response_format != "url":
            raise RefusedError(400, "2013", "stream needs response_format url", "response_format")
        width, height = _edges(order.area if order.size == "auto" else order.size)
        shown = next((reference.image_url for reference in order.images), None)
        url = order.response_format == "url"
        return _Work(
            order.model,
            order.prompt,
            order.n,
            width,
            height,
            order.output_format,
            shown,
            url,
            order.stream,
            events,
            True,
        )


def _edges(size: str) -> tuple[int, int]:
    if size in TIERS:
        return TIERS[size], TIERS[size]
    width, _, height = size.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise RefusedError(400, "InvalidParameter", "size is neither a tier nor WxH.", "size")
    return int(width), int(height)


def _answer(work: _Work, items: Sequence[dict[str, object]]) -> Script:
    body = {"model": work.model, "created": int(time.time()), "data": items, "usage": _usage(work, items)}
    return json_answer(200, body)


def _usage(work: _Work, items: Sequence[dict[str, object]]) -> dict[str, int]:
    made = sum("error" not in item for item in items)
    tokens = made * work.width * work.height // 256
    return {"generated_images": made, "output_tokens": tokens, "total_tokens": tokens}


def _frame(work: _Work, kind: str, index: int | None, members: Mapping[str, object]) -> bytes:
    name = f"{work.events}.{kind}"
    place = {} if index is None else {"image_index": index}
    data = {"type": name, "model": work.model, "created": int(time.time()), **place, **members}
    return event(name, orjson.dumps(data))


def _drawn(work: _Work) -> list[bytes]:
    half = 2 if work.width * work.height > LARGE else 1
    size = max(1, work.width // half), max(1, work.height // half)
    prompts = [work.prompt, *(f"{work.prompt} #{number}" for number in range(1, work.n))]
    shown = pictures.from_data_url(work.source) if work.source else None
    drawn = (
        pictures.draw(prompt, *size) if shown is None else pictures.edit(prompt, *size, shown) for prompt in prompts
    )
    return [pictures.encode(picture, work.format, 90) for picture in drawn]


REFUSALS: Final[Mapping[str, tuple[int, str, str]]] = MappingProxyType(
    {
        "submit-429": (429, "ModelAccountRpmRateLimitExceeded", "The requests per minute are used up."),
        "key": (401, "AuthenticationError", "the API key in the request is missing or invalid."),
        "unknown": (404, "InvalidEndpointOrModel.NotFound", "The model does not exist."),
        "sensitive": (400, "InputTextSensitiveContentDetected", "The input text may contain sensitive information."),
    }
)
"""By fault: status, code and message of a refusal."""

FAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "submit-429": "the request is refused for now",
        "key": "the key is refused",
        "unknown": "there is no such model",
        "sensitive": "the prompt is refused",
        "one-failed": "the second picture is refused",
        "all-failed": "every picture is refused",
        "mid-error": "an error follows the first picture",
        "cut": "the events break off after the first picture",
        "gone": "the pictures' URLs are 404s",
    }
)
