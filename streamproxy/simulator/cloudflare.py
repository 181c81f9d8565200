"""Cloudflare's Workers AI, simulated. Base URL: {server}/cloudflare/ai/run; any key is accepted, but none is an error.

FLUX.2 takes a form, all others JSON. Stable Diffusion answers with a picture's bytes, all others with JSON. A model
named `@cf/fault-<name>` plays a row of FAULTS.
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

from streamproxy.errors import ProxyError
from streamproxy.simulator import pictures
from streamproxy.simulator.multipart import parts
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Send, head, json_answer

PREFIX: Final = "/cloudflare/ai/run/"
FAULT: Final = "@cf/fault-"
FORM: Final = "flux-2"
BYTES: Final = "stable-diffusion"
INPUTS: Final = ("image_b64", "input_image_0")


class Cloudflare:
    """The handler: see `simulator.Form`."""

    prefix = PREFIX

    def __init__(self, pace: float) -> None:
        self._drawing = anyio.CapacityLimiter(4)

    async def __call__(self, received: Received) -> Script:
        model = received.target.removeprefix(PREFIX)
        if received.header("authorization") is None:
            return _error(401, 10000, "Authentication error")
        if model.startswith(FAULT):
            return REFUSALS.get(model.removeprefix(FAULT), REFUSALS["unknown"])
        try:
            order = _form(received) if FORM in model else msgspec.json.decode(received.body, type=dict[str, object])
        except (msgspec.DecodeError, ProxyError):
            return _error(400, 5006, "Error: oneOf at '/' not met")
        file = await run_sync(partial(_drawn, order), limiter=self._drawing)
        told = (("cf-ray", uuid4().hex[:16]),)
        if BYTES in model:
            return (Send(head(200, (("Content-Type", "image/png"), *told), length=len(file))), Send(file))
        text = base64.b64encode(file).decode()
        return json_answer(200, {"result": {"image": text}, "success": True, "errors": [], "messages": []}, told)


def _form(received: Received) -> dict[str, object]:
    """A form's members, files as base64."""
    found = parts(received.body, received.header("content-type") or "")
    files = {part.name: base64.b64encode(part.data).decode() for part in found if part.name in INPUTS}
    return {**{part.name: part.data.decode("utf-8", "replace") for part in found}, **files}


def _drawn(order: Mapping[str, object]) -> bytes:
    wide, high = (int(str(order.get(name) or 1024)) for name in ("width", "height"))
    words, shown = str(order["prompt"]), next((str(order[name]) for name in INPUTS if name in order), None)
    if shown is None:
        return pictures.encode(pictures.draw(words, wide, high), "jpeg", 90)
    return pictures.encode(pictures.edit(words, wide, high, base64.b64decode(shown)), "jpeg", 90)


def _error(status: int, code: int, message: str) -> Script:
    return json_answer(
        status, {"result": None, "success": False, "errors": [{"code": code, "message": message}], "messages": []}
    )


REFUSALS: Final[Mapping[str, Script]] = MappingProxyType(
    {
        "submit-429": _error(429, 3036, "You have used up your daily free allocation of 10,000 neurons."),
        "key": _error(403, 10000, "Authentication error"),
        "unknown": _error(404, 7003, "No such model."),
        "blocked": _error(400, 3030, "AiError: Input prompt contains NSFW content."),
        "under-200": _error(200, 5006, "Error: required properties at '/' are 'prompt'"),
    }
)
"""By fault: the answer to a request."""

FAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "submit-429": "the allocation is used up",
        "key": "the key is refused",
        "unknown": "there is no such model",
        "blocked": "the prompt is refused",
        "under-200": "the request is refused under 200",
    }
)
