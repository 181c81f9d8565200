"""Microsoft's MAI models on Azure, simulated. Base URL: {server}/azure; any key is accepted, but none is an error.

A request for several pictures is answered with one, as by Azure. The deployment `fault-<name>` plays a row of FAULTS.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

import anyio
import msgspec
from anyio.to_thread import run_sync

from streamproxy.errors import ProxyError
from streamproxy.simulator import pictures
from streamproxy.simulator.multipart import parts
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, json_answer

PREFIX: Final = "/azure/mai/v1/images/"
FAULT: Final = "fault-"
LEAST: Final = 768
MOST: Final = 1_048_576


class _Order(msgspec.Struct):
    model: str
    prompt: str
    width: int = 1024
    height: int = 1024


class Mai:
    """The handler: see `simulator.Form`."""

    prefix = PREFIX

    def __init__(self, pace: float) -> None:
        self._drawing = anyio.CapacityLimiter(4)

    async def __call__(self, received: Received) -> Script:
        if received.header("api-key") is None:
            return _error(401, "401", "Access denied due to invalid subscription key or wrong API endpoint.")
        path = received.target.removeprefix(PREFIX).partition("?")[0]
        source = None
        try:
            if path == "edits":
                form = {part.name: part.data for part in parts(received.body, received.header("content-type") or "")}
                source = form["image"]
                order = _Order(form["model"].decode(), form["prompt"].decode())
            else:
                order = msgspec.json.decode(received.body, type=_Order)
        except (msgspec.DecodeError, UnicodeDecodeError, ProxyError, KeyError) as error:
            return _error(400, "invalid_request", str(error))
        fault = order.model.removeprefix(FAULT)
        if fault in REFUSALS:
            return REFUSALS[fault]
        if min(order.width, order.height) < LEAST or order.width * order.height > MOST:
            return _error(400, "unsupported_request_value", "'width' must be at least 768 pixels.")
        file = await run_sync(partial(_drawn, order, source), limiter=self._drawing)
        usage = {"num_input_text_tokens": 12, "num_output_tokens": 1024}
        return json_answer(200, {"created": 1, "data": [{"b64_json": file}], "usage": usage})


def _drawn(order: _Order, source: bytes | None) -> str:
    size = order.width, order.height
    drawn = pictures.draw(order.prompt, *size) if source is None else pictures.edit(order.prompt, *size, source)
    return base64.b64encode(pictures.encode(drawn, "png")).decode()


def _error(status: int, code: str, message: str) -> Script:
    return json_answer(status, {"error": {"code": code, "message": message, "details": message}})


REFUSALS: Final[Mapping[str, Script]] = MappingProxyType(
    {
        "submit-429": _error(429, "RateLimitReached", "Try again later."),
        "key": _error(401, "401", "Access denied due to invalid subscription key."),
        "unknown": _error(404, "DeploymentNotFound", "The deployment does not exist."),
        "blocked": _error(400, "contentFilter", "Your request was rejected by the safety system."),
        "empty": json_answer(200, {"created": 1, "data": []}),
    }
)
"""By fault: the answer to a request."""

FAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "submit-429": "too many requests",
        "key": "the key is refused",
        "unknown": "there is no such deployment",
        "blocked": "the prompt is refused",
        "empty": "the answer holds no picture",
    }
)
