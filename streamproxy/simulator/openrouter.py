"""OpenRouter, simulated: images and chats. Base URL: {server}/openrouter/api/v1; any key, but none is an error.

Models with `gpt` in their names stream, with two previews. Those with `chat` exist for chat completions only.
`sim/fault-<name>` plays a row of FAULTS.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

import anyio
import msgspec
import orjson
from anyio.to_thread import run_sync

from streamproxy.simulator import pictures
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, event, json_answer, sse

PREFIX: Final = "/openrouter/api/v1/"
FAULT: Final = "sim/fault-"
PREVIEWS: Final = 2
PREVIEW_SECONDS: Final = 3.0  # times `pace`
CENTS: Final = 0.04
BUSY: Final = b": OPENROUTER PROCESSING\n\n"


class _Url(msgspec.Struct):
    url: str


class _Part(msgspec.Struct):
    type: str
    text: str = ""
    image_url: _Url | None = None


class _Message(msgspec.Struct):
    content: list[_Part]


class _Order(msgspec.Struct):
    model: str
    prompt: str = ""
    n: int = 1
    size: str = "512x512"
    output_format: str = "png"
    stream: bool = False
    partial_images: int = 0
    input_references: list[_Part] = []
    messages: list[_Message] = []
    modalities: list[str] = []

    @property
    def edges(self) -> tuple[int, int]:
        width, _, height = self.size.partition("x")
        return (int(width), int(height)) if width.isdecimal() and height.isdecimal() else (512, 512)

    @property
    def words(self) -> str:
        return self.prompt or " ".join(part.text for message in self.messages for part in message.content)

    @property
    def sources(self) -> list[bytes]:
        parts = [*self.input_references, *(part for message in self.messages for part in message.content)]
        return [pictures.from_data_url(part.image_url.url) for part in parts if part.image_url is not None]


class OpenRouter:
    """The handler: see `simulator.Form`."""

    prefix = PREFIX

    def __init__(self, pace: float) -> None:
        self._pace = pace
        self._drawing = anyio.CapacityLimiter(4)

    async def __call__(self, received: Received) -> Script:
        path = received.target.removeprefix(PREFIX)
        if received.header("authorization") is None:
            return _error(401, "No auth credentials found")
        try:
            order = msgspec.json.decode(received.body, type=_Order)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _error(400, str(error))
        fault = order.model.removeprefix(FAULT)
        if fault in REFUSALS:
            return REFUSALS[fault]
        if path == "images" and "chat" not in order.model:
            return await self._images(order)
        if path == "chat/completions" and "image" in order.modalities:
            return await self._chat(order, fault)
        return _error(404, f"No endpoints found for {order.model}.")

    async def _images(self, order: _Order) -> Script:
        usage: dict[str, object] = {
            "prompt_tokens": 9,
            "completion_tokens": 272 * order.n,
            "total_tokens": 9 + 272 * order.n,
            "cost": CENTS * order.n,
            "completion_tokens_details": {"image_tokens": 272 * order.n},
        }
        files = [await self._file(order, number) for number in range(order.n)]
        if not (order.stream and "gpt" in order.model):
            kind = f"image/{order.output_format}"
            data = [{"b64_json": file, "media_type": kind} for file in files]
            return json_answer(200, {"created": 1, "data": data, "usage": usage})
        frames = []
        for number in range(min(order.partial_images, PREVIEWS)):
            shown = await self._file(order, step=number)
            told = {"type": "image_generation.partial_image", "b64_json": shown, "partial_image_index": number}
            frames.append(event(None, orjson.dumps(told)))
        done = {"type": "image_generation.completed", "b64_json": files[0], "created": 1, "usage": usage}
        frames += [event(None, orjson.dumps(done)), event(None, b"[DONE]")]
        return sse([BUSY + frames[0], *frames[1:]], waits=[PREVIEW_SECONDS * self._pace] * len(frames))

    async def _chat(self, order: _Order, fault: str) -> Script:
        file = await self._file(order)
        usage = {"prompt_tokens": 2, "completion_tokens": 1295, "total_tokens": 1297, "cost": 0.0387131}
        images = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{file}"}, "index": 0}]
        message: dict[str, object] = {"role": "assistant", "content": "Here you go: ", "images": images}
        native = "STOP"
        if fault in ("chat-blocked", "chat-text"):
            native = "IMAGE_SAFETY" if fault == "chat-blocked" else "STOP"
            message = {"role": "assistant", "content": "I cannot draw that."}
        choice = {"index": 0, "finish_reason": "stop", "native_finish_reason": native}
        top = {"id": f"gen-{base64.b32encode(order.words.encode())[:12].decode()}", "model": order.model}
        if not order.stream:
            return json_answer(200, {**top, "choices": [{**choice, "message": message}], "usage": usage})
        return sse(list(_chunks(top, {**choice, "delta": message}, usage)))

    async def _file(self, order: _Order, number: int = 0, step: int | None = None) -> str:
        return await run_sync(partial(_drawn, order, number, step), limiter=self._drawing)


def _chunks(top: Mapping[str, object], choice: Mapping[str, object], usage: object) -> Iterator[bytes]:
    """As recorded: the picture comes with the finish reason, and the usage in a choice of its own."""
    last = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    yield BUSY
    yield event(None, orjson.dumps({**top, "choices": [choice]}))
    yield event(None, orjson.dumps({**top, "choices": [last], "usage": usage}))
    yield event(None, b"[DONE]")


def _drawn(order: _Order, number: int, step: int | None) -> str:
    words = f"{order.words} {number}" if number else order.words
    if order.sources:
        drawn = pictures.edit(words, *order.edges, order.sources[0])
    else:
        drawn = pictures.draw(words, *order.edges)
    shown = drawn if step is None else pictures.preview(drawn, step, PREVIEWS)
    form: pictures.Format = "jpeg" if order.output_format == "jpeg" else "png"
    if order.output_format == "webp":
        form = "webp"
    return base64.b64encode(pictures.encode(shown, form)).decode()


def _error(status: int, message: str, **metadata: object) -> Script:
    return json_answer(status, {"error": {"code": status, "message": message, "metadata": metadata}, "user_id": "sim"})


def _under_200(status: int, message: str) -> Script:
    return json_answer(200, {"error": {"code": status, "message": message}})


REFUSALS: Final[Mapping[str, Script]] = MappingProxyType(
    {
        "submit-429": _error(429, "Rate limit exceeded"),
        "no-credits": _error(402, "Insufficient credits"),
        "key": _error(401, "User not found."),
        "flagged": _error(403, "Your input was flagged.", reasons=["violence"]),
        "overloaded": _error(529, "Provider is overloaded."),
        "under-200": _under_200(402, "Insufficient credits"),
        "empty": json_answer(200, {"created": 1, "data": []}),
    }
)
"""By fault: the answer to a request."""

FAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "submit-429": "too many requests",
        "no-credits": "there is no credit left",
        "key": "the key is refused",
        "flagged": "the prompt is refused",
        "overloaded": "the model's provider is overloaded",
        "under-200": "an error comes as a success",
        "empty": "the answer holds no picture",
        "chat-blocked": "a chat's picture is refused",
        "chat-text": "a chat has text and no picture",
    }
)
