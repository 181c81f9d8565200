"""OpenAI's images endpoints, simulated: routes and models in, scripts out.

The table MODELS has each model's treatment of `stream`, and the form of its answers. `sim/fault-<name>` plays a row of
FAULTS, with `stream` or without. Any key is accepted. The prefix `sim/` of names can be left out.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum, auto
from functools import partial
from types import MappingProxyType
from typing import Final, TypeAlias, TypeVar
from uuid import uuid4

import anyio
from anyio.to_thread import run_sync

from streamproxy.errors import ProxyError
from streamproxy.simulator import answers
from streamproxy.simulator.faults import FAULTS
from streamproxy.simulator.order import PREFIX, Order, read_order, read_variation, refusal, unknown
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Headers, Script, Send, Wait, error_answer, head, json_answer, sse

Made = TypeVar("Made")

FAULT: Final = "fault-"
# Characters of a misspelt model that are compared: difflib's time grows with the square of the length.
SPELLING: Final = 64
# Seconds after the request, times `pace`, as of a GPT image model at medium quality: three previews, then the end.
PREVIEWS_AT: Final = (2.5, 4.5, 6.5)
COMPLETED_AT: Final = 9.0
# Pictures drawn at a time. One of 8 megapixels takes about 100 MB meanwhile.
MAX_DRAWING: Final = 4
# Pictures kept for `url` answers: three requests of ten pictures, of at most 6 MB each. The oldest are dropped first.
MAX_FILES: Final = 30


class Streams(Enum):
    """A model's treatment of `stream` and `partial_images`."""

    HONOURED = auto()
    REFUSED = auto()
    IGNORED = auto()


@dataclass(frozen=True, slots=True)
class Model:
    """One simulated model. `strict`: it refuses the members that GPT image models refuse; `url`: it answers with URLs.

    Other models take OpenAI's whole schema, as compatible hosts do, and ignore what they do not have.
    """

    streams: Streams
    strict: bool = False
    url: bool = False


MODELS: Final = MappingProxyType(
    {
        "gpt-image": Model(Streams.HONOURED, strict=True),
        "plain": Model(Streams.REFUSED),
        "plain-ignores-stream": Model(Streams.IGNORED),
        "url": Model(Streams.REFUSED, url=True),
        **{FAULT + name: Model(Streams.IGNORED) for name in FAULTS},
    }
)


class OpenAI:
    """The handler: returns the script of the answer to a request. `pace`: 1.0 is a real model's, 0 has no waits."""

    def __init__(self, pace: float) -> None:
        self._pace = pace
        self._drawing = anyio.CapacityLimiter(MAX_DRAWING)
        self._files: OrderedDict[str, tuple[str, bytes]] = OrderedDict()

    async def __call__(self, received: Received) -> Script:
        path = received.target.partition("?")[0]
        try:
            for prefix, methods in ROUTES.items():
                if path == prefix or (prefix.endswith("/") and path.startswith(prefix)):
                    if received.method not in methods:
                        allow = (("Allow", ", ".join(methods)),)
                        return error_answer(405, f"Not allowed: {received.method}.", headers=allow)
                    return await methods[received.method](self, received, path.removeprefix(prefix))
            return error_answer(404, f"Invalid URL ({received.method} {path}).", code="not_found")
        except ProxyError as error:
            return error_answer(error.status, error.message, type=error.type, param=error.param, code=error.code)

    async def live(self, received: Received, rest: str) -> Script:
        return json_answer(200, {"status": "ok", "simulator": True})

    async def models(self, received: Received, rest: str) -> Script:
        return json_answer(200, {"object": "list", "data": [_described(name) for name in MODELS]})

    async def model(self, received: Received, rest: str) -> Script:
        name = rest.removeprefix(PREFIX)
        return json_answer(200, _described(name)) if name in MODELS else _no_model(rest)

    async def file(self, received: Received, rest: str) -> Script:
        if rest not in self._files:
            return error_answer(404, "There is no such file, or it was dropped.", code="not_found")
        kind, data = self._files[rest]
        return (Send(head(200, (("Content-Type", kind),), length=len(data))), Send(data))

    async def generate(self, received: Received, rest: str) -> Script:
        return await self._images(received, partial(read_order, edit=False))

    async def edit(self, received: Received, rest: str) -> Script:
        return await self._images(received, partial(read_order, edit=True))

    async def vary(self, received: Received, rest: str) -> Script:
        return await self._images(received, read_variation)

    async def _images(self, received: Received, read: Callable[[bytes, str], Order]) -> Script:
        start = time.monotonic()
        kind = received.header("content-type") or ""
        # In a thread too: 16 data URLs of 20 MB take 200 ms to decode.
        order = await self._threaded(partial(read, received.body, kind))
        model = MODELS.get(order.model)
        if model is None:
            return _no_model(order.model)
        _check(order, model)
        if order.model.startswith(FAULT):
            return await self._threaded(partial(_fault, order))
        if order.stream and model.streams is Streams.HONOURED:
            return await self._stream(order, start)
        return await self._json(order, start, received, url=order.url or model.url)

    async def _stream(self, order: Order, start: float) -> Script:
        moments = [at * self._pace for at in (*PREVIEWS_AT[: order.partial_images], COMPLETED_AT)]
        now = time.time()
        made = await self._threaded(partial(answers.frames, order, tuple(int(now + at) for at in moments)))
        spent = time.monotonic() - start
        waits = [max(0.0, at - max(before, spent)) for before, at in zip((0.0, *moments), moments, strict=False)]
        return sse(made, waits=waits, headers=_tracing(spent))

    async def _json(self, order: Order, start: float, received: Received, *, url: bool) -> Script:
        made = await self._threaded(lambda: answers.files(order, answers.pictures(order)))
        data = [{"url": self._keep(file, order, received)} if url else answers.inline(file) for file in made]
        body = await self._threaded(partial(answers.json_body, order, data, int(time.time())))
        spent = time.monotonic() - start
        left = COMPLETED_AT * self._pace - spent
        answer = json_answer(200, body, _tracing(max(spent, COMPLETED_AT * self._pace)))
        return (Wait(left), *answer) if left > 0 else answer

    def _keep(self, file: bytes, order: Order, received: Received) -> str:
        name = f"{uuid4().hex}.{order.output_format}"
        self._files[name] = f"image/{order.output_format}", file
        if len(self._files) > MAX_FILES:
            self._files.popitem(last=False)
        return f"http://{received.header('host')}/files/{name}"

    async def _threaded(self, work: Callable[[], Made]) -> Made:
        return await run_sync(work, limiter=self._drawing)


Route: TypeAlias = Callable[[OpenAI, Received, str], Awaitable[Script]]

# A path that ends in a slash has the rest as its argument. The first match counts.
ROUTES: Final = MappingProxyType[str, dict[str, Route]](
    {
        "/v1/images/generations": {"POST": OpenAI.generate},
        "/v1/images/edits": {"POST": OpenAI.edit},
        "/v1/images/variations": {"POST": OpenAI.vary},
        "/v1/models": {"GET": OpenAI.models},
        "/v1/models/": {"GET": OpenAI.model},
        "/files/": {"GET": OpenAI.file},
        "/livez": {"GET": OpenAI.live},
    }
)


def _check(order: Order, model: Model) -> None:
    """Refuse members that the model does not take."""
    if model.strict:
        _check_strictly(order)
    if model.streams is Streams.REFUSED:
        for name in ("stream", "partial_images"):
            if name in order.given:
                raise unknown(name)
    if order.stream and order.n > 1 and model.streams is Streams.HONOURED:
        raise refusal("Streaming is only supported with n=1.", "n", "unsupported_parameter")


def _check_strictly(order: Order) -> None:
    """Refuse members that GPT image models do not take, or not with this output, by OpenAI's reference."""
    for name in ("response_format", "style"):
        if name in order.given:
            raise unknown(name)
    for name, output in ONLY_WITH.items():
        if name in order.given:
            raise refusal(f"'{name}' is only supported with output_format={output}.", name, "unsupported_parameter")
    if "markup" in order.given and order.mask is not None:
        raise refusal("'markup' cannot be combined with 'mask'.", "markup", "unsupported_parameter")


# No simulated model makes these outputs: at OpenAI they need access to a preview.
ONLY_WITH: Final = MappingProxyType({"frame_count": "gif", "frame_duration_ms": "gif", "svg": "svg"})


def _fault(order: Order) -> Script:
    return FAULTS[order.model.removeprefix(FAULT)](answers.sample(order, int(time.time())))


def _tracing(spent: float) -> Headers:
    return ("x-request-id", f"req_{uuid4().hex}"), ("openai-processing-ms", str(round(spent * 1000)))


def _described(name: str) -> dict[str, object]:
    owner = "streamproxy-simulator"
    return {
        "id": PREFIX + name,
        "object": "model",
        "created": 0,
        "owned_by": owner,
        "description": "A simulated model.",
    }


def _no_model(name: str) -> Script:
    near = get_close_matches(name.removeprefix(PREFIX)[:SPELLING], MODELS, n=1, cutoff=0.6)
    hint = f"Did you mean {PREFIX}{near[0]}?" if near else "`streamproxy simulate --list` lists all models."
    message = f"The model '{name}' does not exist in this simulator. {hint}"
    return error_answer(404, message, param="model", code="model_not_found")
