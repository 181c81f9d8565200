"""Stability AI's REST API, simulated. Base URL: {server}/stability/v2beta; any key is accepted, but none is an error.

A later result is there at the third poll. The model `fault-<name>` plays a row of FAULTS.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Final
from uuid import uuid4

import anyio
from anyio.to_thread import run_sync

from streamproxy.errors import ProxyError
from streamproxy.simulator import pictures
from streamproxy.simulator.multipart import parts
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Send, head, json_answer

PREFIX: Final = "/stability/v2beta/"
FAULT: Final = "fault-"
MAX_KEPT: Final = 100
READY_AT: Final = 3
LATER: Final = ("upscale/creative", "edit/replace-background-and-relight")
SIZES: Final = {"1:1": (512, 512), "16:9": (640, 360), "3:2": (600, 400), "2:3": (400, 600), "9:16": (360, 640)}
FORMATS: Final[Mapping[str, pictures.Format]] = {"png": "png", "jpeg": "jpeg", "webp": "webp"}

Form = Mapping[str, bytes]


class Stability:
    """The handler: see `simulator.Form`."""

    prefix = PREFIX

    def __init__(self, pace: float) -> None:
        self._looks: OrderedDict[str, tuple[Form, int]] = OrderedDict()
        self._drawing = anyio.CapacityLimiter(4)

    async def __call__(self, received: Received) -> Script:
        path = received.target.removeprefix(PREFIX)
        if received.header("authorization") is None:
            return _error(401, "unauthorized", "authorization: missing or invalid API key")
        if path.startswith("results/"):
            return await self._look(path.removeprefix("results/"))
        try:
            form = {part.name: part.data for part in parts(received.body, received.header("content-type") or "")}
        except ProxyError:
            return _error(400, "bad_request", "content-type: must be multipart/form-data")
        route, fault = path.removeprefix("stable-image/"), form.get("model", b"").decode().removeprefix(FAULT)
        if fault in REFUSALS:
            return REFUSALS[fault]
        if route in LATER:
            id = uuid4().hex * 2
            self._looks[id] = (form, 0)
            if len(self._looks) > MAX_KEPT:
                self._looks.popitem(last=False)
            return json_answer(200, {"id": id})
        reason = "CONTENT_FILTERED" if fault == "filtered" else "SUCCESS"
        return await self._picture(form, reason, as_json=fault == "json")

    async def _look(self, id: str) -> Script:
        if id not in self._looks:
            return _error(404, "not_found", "id: not found")
        form, looks = self._looks[id]
        self._looks[id] = (form, looks + 1)
        if looks + 1 < READY_AT:
            return json_answer(202, {"id": id, "status": "in-progress"})
        return await self._picture(form, "SUCCESS", as_json=False)

    async def _picture(self, form: Form, reason: str, *, as_json: bool) -> Script:
        file = await run_sync(partial(_drawn, form), limiter=self._drawing)
        if as_json:
            return json_answer(200, {"image": base64.b64encode(file).decode(), "finish_reason": reason, "seed": 1})
        kind = f"image/{form.get('output_format', b'png').decode()}"
        told = (("Content-Type", kind), ("finish-reason", reason), ("seed", "1"), ("x-request-id", uuid4().hex))
        return (Send(head(200, told, length=len(file))), Send(file))


def _drawn(form: Form) -> bytes:
    words = form.get("prompt", b"").decode()
    size = SIZES.get(form.get("aspect_ratio", b"1:1").decode(), (512, 512))
    source = form.get("image") or form.get("subject_image")
    drawn = pictures.draw(words, *size)
    if source is not None:
        drawn = pictures.edit(words, *size, source, mask=form.get("mask"))
    return pictures.encode(drawn, FORMATS.get(form.get("output_format", b"png").decode(), "png"))


def _error(status: int, name: str, words: str) -> Script:
    return json_answer(status, {"id": uuid4().hex, "name": name, "errors": [words]})


REFUSALS: Final[Mapping[str, Script]] = MappingProxyType(
    {
        "submit-429": _error(429, "rate_limit_exceeded", "Too many requests."),
        "no-credits": _error(402, "payment_required", "You lack sufficient credits."),
        "key": _error(401, "unauthorized", "authorization: invalid API key"),
        "blocked": _error(403, "content_moderation", "Your request was flagged by our moderation system."),
    }
)
"""By fault: the answer to a request."""

FAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "submit-429": "too many requests",
        "no-credits": "there is no credit left",
        "key": "the key is refused",
        "blocked": "the prompt is refused",
        "filtered": "the picture is blurred",
        "json": "the picture comes as JSON although bytes were asked for",
    }
)
