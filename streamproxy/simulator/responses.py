"""OpenAI's Responses with the image_generation tool, simulated. Base URL: {server}/responses/v1; any key is accepted.

A text model that thinks first, the tool's call with its previews, the picture, and words behind it. `fault-<name>` as
the tool's model plays a row of FAULTS.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import repeat
from types import MappingProxyType
from typing import Annotated, Final, Literal
from uuid import uuid4

import anyio
import msgspec
from anyio.to_thread import run_sync
from msgspec import Meta

from streamproxy.simulator import pictures
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Wait, error_answer, event, json_answer, sse

PREFIX: Final = "/responses/v1/"
FAULT: Final = "fault-"
SECONDS: Final = 0.7  # times `pace`, before each event
USAGE: Final = {"input_tokens": 50, "output_tokens": 1056, "total_tokens": 1106}

Event = dict[str, object]


class _Source(msgspec.Struct, forbid_unknown_fields=True):
    image_url: str | None = None
    file_id: str | None = None


class _Tool(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["image_generation"]
    model: str
    size: str | None = None
    quality: str | None = None
    background: str | None = None
    output_format: pictures.Format | None = None
    output_compression: int | None = None
    moderation: str | None = None
    input_fidelity: str | None = None
    action: str | None = None
    partial_images: Annotated[int, Meta(ge=0, le=3)] = 0
    input_image_mask: _Source | None = None


class _Part(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["input_text", "input_image"]
    text: str = ""
    image_url: str | None = None
    file_id: str | None = None


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    role: str
    content: list[_Part]


class _Order(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    input: list[_Message]
    tools: Annotated[list[_Tool], Meta(min_length=1, max_length=1)]
    tool_choice: dict[str, str]
    store: bool = True
    stream: bool = False
    user: str | None = None

    @property
    def fault(self) -> str:
        return self.tools[0].model.removeprefix(FAULT)


class Responses:
    """The handler: see `simulator.Form`."""

    prefix = PREFIX

    def __init__(self, pace: float) -> None:
        self._pace = pace
        self._drawing = anyio.CapacityLimiter(4)

    async def __call__(self, received: Received) -> Script:
        if received.header("authorization") is None:
            return error_answer(401, "Missing bearer authentication.", code="invalid_api_key")
        try:
            order = msgspec.json.decode(received.body, type=_Order)
        except msgspec.DecodeError as error:
            return error_answer(400, str(error), code="invalid_value")
        if order.fault in REFUSALS:
            return REFUSALS[order.fault]
        response: Event = {"id": f"resp_{uuid4().hex}", "object": "response", "status": "in_progress", "output": []}
        drafts, made = await run_sync(partial(_drawn, order), limiter=self._drawing)
        if not order.stream:
            return (Wait(SECONDS * self._pace), *json_answer(200, _ended(order, response, made)))
        return sse(_numbered(_events(order, response, drafts, made)), waits=repeat(SECONDS * self._pace))


def _events(order: _Order, response: Event, drafts: list[str], made: str) -> Iterator[Event]:
    call = {"output_index": 1, "item_id": "ig_1"}
    yield {"type": "response.created", "response": response}
    yield {"type": "response.in_progress", "response": response}
    yield {"type": "response.output_item.done", "output_index": 0, "item": {"type": "reasoning", "summary": []}}
    if order.fault in ENDS and order.fault != "late":
        yield from _last(_ended(order, response, made))
        return
    yield {"type": "response.output_item.added", "output_index": 1, "item": _call(status="in_progress")}
    yield {"type": "response.image_generation_call.in_progress", **call}
    yield {"type": "response.image_generation_call.generating", **call}
    for index, draft in enumerate(drafts):
        shown = {"partial_image_index": index, "partial_image_b64": draft}
        yield {"type": "response.image_generation_call.partial_image", **call, **shown}
    if order.fault == "late":
        yield from _last(_ended(order, response, made))
        return
    yield {"type": "response.image_generation_call.completed", **call}
    yield {"type": "response.output_item.done", "output_index": 1, "item": _call(status="completed", result=made)}
    yield from _last(_ended(order, response, made))


def _last(response: Event) -> Iterator[Event]:
    yield {"type": f"response.{response['status']}", "response": response}


def _call(**members: str) -> Event:
    return {"id": "ig_1", "type": "image_generation_call", **members}


def _ended(order: _Order, response: Event, made: str) -> Event:
    if order.fault in ENDS:
        return {**response, **ENDS[order.fault]}
    output = [_call(status="completed", result=made), _words("output_text", "text", "")]
    usage = {"usage": {**USAGE, "input_tokens": 2941}, "tool_usage": {"image_gen": USAGE}}
    return {**response, "status": "completed", "output": output, **usage}


def _words(kind: str, member: str, text: str) -> Event:
    content = [{"type": kind, member: text}]
    return {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant", "content": content}


def _numbered(events: Iterator[Event]) -> Iterator[bytes]:
    for number, one in enumerate(events):
        yield event(str(one["type"]), msgspec.json.encode({**one, "sequence_number": number}))


def _drawn(order: _Order) -> tuple[list[str], str]:
    """The previews and the picture."""
    [tool], parts = order.tools, order.input[-1].content
    words = next(part.text for part in parts if part.type == "input_text")
    wide, _, high = (tool.size or "auto").partition("x")
    size = (int(wide), int(high)) if high else (1024, 1024)
    shown = next((part.image_url for part in parts if part.image_url is not None), None)
    keep = tool.input_image_mask.image_url if tool.input_image_mask is not None else None
    drawn = pictures.draw(words, *size)
    if shown is not None:
        mask = None if keep is None else pictures.from_data_url(keep)
        drawn = pictures.edit(words, *size, pictures.from_data_url(shown), mask=mask)
    form = tool.output_format or "png"
    steps = tool.partial_images if order.stream else 0
    drafts = [_text(pictures.preview(drawn, step, steps), form) for step in range(steps)]
    return drafts, _text(drawn, form)


def _text(picture: pictures.Picture, form: pictures.Format) -> str:
    return base64.b64encode(pictures.encode(picture, form)).decode()


ENDS: Final[Mapping[str, Event]] = MappingProxyType(
    {
        "refusal": {"status": "completed", "output": [_words("refusal", "refusal", "I cannot draw that.")]},
        "text": {"status": "completed", "output": [_words("output_text", "text", "I would rather not draw.")]},
        "incomplete": {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
        "filtered": {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}},
        "failed": {"status": "failed", "error": {"code": "server_error", "message": "The server had an error."}},
        "late": {"status": "failed", "error": {"code": "moderation_blocked", "message": "The picture is blocked."}},
    }
)
"""By fault: how a response ends without its picture; `late` after its previews."""

REFUSALS: Final[Mapping[str, Script]] = MappingProxyType(
    {
        "submit-429": error_answer(429, "Too many requests.", code="rate_limit_exceeded"),
        "key": error_answer(401, "Incorrect API key provided.", code="invalid_api_key"),
        "unknown": error_answer(404, "The model does not exist.", code="model_not_found"),
        "blocked": error_answer(400, "The prompt is blocked.", code="moderation_blocked"),
    }
)
"""By fault: the answer to a request."""

FAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "submit-429": "too many requests",
        "key": "the key is refused",
        "unknown": "there is no such model",
        "blocked": "the prompt is refused",
        "refusal": "the text model refuses",
        "text": "the text model answers with words",
        "incomplete": "the response ends before the picture",
        "filtered": "the response is filtered",
        "failed": "the response fails",
        "late": "the picture is refused after its previews",
    }
)
