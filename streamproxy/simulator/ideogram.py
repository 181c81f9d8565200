"""Ideogram's API, simulated. Base URL: {server}/ideogram; any key is accepted, but none is an error.

Pictures are at URLs of this server. `fault-<name>` as the tier of quality, like ideogram-v3-fault-unsafe, plays a row
of FAULTS.
"""

from __future__ import annotations

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

PREFIX: Final = "/ideogram/"
FAULT: Final = "fault-"
MAX_FILES: Final = 100
RATIOS: Final = {"1x1": (512, 512), "16x9": (640, 360), "3x2": (600, 400), "2x3": (400, 600), "9x16": (360, 640)}
COMMON: Final = frozenset({"prompt", "num_images", "seed", "magic_prompt"})
V3: Final = COMMON | {"rendering_speed", "negative_prompt", "style_type", "style_preset", "aspect_ratio"}
ROUTES: Final[Mapping[str, frozenset[str]]] = {
    "v1/ideogram-v3/generate": V3,
    "v1/ideogram-v3/remix": V3 | {"image", "image_weight"},
    "v1/ideogram-v3/inpaint": (V3 - {"aspect_ratio"}) | {"image", "mask"},
    "v2/image/generate/ideogram-4-5": COMMON | {"quality", "size", "images", "mask", "enable_copyright_detection"},
}
"""The members that each route takes."""

TIERS: Final = frozenset({"FLASH", "TURBO", "DEFAULT", "QUALITY", "low", "medium", "high"})

Form = Mapping[str, bytes]


class Ideogram:
    """The handler: see `simulator.Form`."""

    prefix = PREFIX

    def __init__(self, pace: float) -> None:
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._drawing = anyio.CapacityLimiter(4)

    async def __call__(self, received: Received) -> Script:
        base = f"http://{received.header('host')}{PREFIX}"
        path = received.target.removeprefix(PREFIX)
        if path.startswith("files/"):
            return self._file(path.removeprefix("files/"))
        if received.header("api-key") is None:
            return json_answer(401, {"error": "Unauthorized"})
        try:
            form = {part.name: part.data for part in parts(received.body, received.header("content-type") or "")}
        except ProxyError:
            return json_answer(400, {"error": "The body must be multipart/form-data."})
        strange = sorted(form.keys() - ROUTES.get(path, frozenset()))
        if path not in ROUTES or strange:
            return json_answer(400, {"error": f"There is no such path, or no such member: {strange}."})
        tier = (form.get("rendering_speed") or form.get("quality") or b"").decode()
        fault = tier.lower().removeprefix(FAULT)
        if fault in REFUSALS:
            return REFUSALS[fault]
        if tier not in TIERS and fault not in FAULTS:
            return json_answer(400, {"error": "Invalid rendering_speed."})
        try:
            made = await run_sync(partial(_drawn, form), limiter=self._drawing)
        except ValueError as error:
            return json_answer(400, {"error": str(error)})
        data = [self._item(form, index, file, fault, base) for index, file in enumerate(made)]
        named = {"generation_id": uuid4().hex} if path.startswith("v2/") else {"created": "2026-11-27T00:00:00Z"}
        return json_answer(200, {**named, "data": data})

    def _item(self, form: Form, index: int, file: bytes, fault: str, base: str) -> dict[str, object]:
        item: dict[str, object] = {"prompt": form["prompt"].decode(), "resolution": "1024x1024", "seed": 1}
        if fault == "unsafe" or (fault == "half-unsafe" and index == 0):
            return {**item, "is_image_safe": False, "url": None}
        if fault == "rewritten":
            item["prompt"] = "A lighthouse, in other words."
        name = f"{'missing' if fault == 'gone' else uuid4().hex}.png"
        self._files[name] = file
        if len(self._files) > MAX_FILES:
            self._files.popitem(last=False)
        return {**item, "is_image_safe": True, "url": f"{base}files/{name}?exp=1&sig=simulated"}

    def _file(self, name: str) -> Script:
        file = self._files.get(name.partition("?")[0])
        if file is None or name.startswith("missing"):
            return json_answer(404, {"error": "Not Found"})
        return (Send(head(200, (("Content-Type", "image/png"),), length=len(file))), Send(file))


def _drawn(form: Form) -> list[bytes]:
    size = RATIOS.get(form.get("aspect_ratio", b"1x1").decode(), (512, 512))
    wide, _, high = form.get("size", b"").decode().partition("x")
    if wide.isdecimal() and high.isdecimal():
        size = int(wide) // 4, int(high) // 4  # the shape is what counts
    source = form.get("image") or form.get("images")
    mask = form.get("mask")
    files = []
    for number in range(int(form.get("num_images", b"1"))):
        words = f"{form['prompt'].decode()} {number}"
        drawn = pictures.draw(words, *size)
        if source is not None:
            white = None if mask is None else pictures.inverted(mask)
            drawn = pictures.edit(words, 512, 512, source, mask=white)
        files.append(pictures.encode(drawn, "png"))
    return files


REFUSALS: Final[Mapping[str, Script]] = MappingProxyType(
    {
        "submit-429": json_answer(429, {"error": "Too many requests."}),
        "no-credits": json_answer(402, {"error": "Payment required.", "reject_reason": "insufficient_funds"}),
        "key": json_answer(401, {"error": "Unauthorized"}),
        "blocked": json_answer(422, {"error": "Prompt or provided image failed the safety checks."}),
        "empty": json_answer(200, {"created": "2026-11-27T00:00:00Z", "data": []}),
    }
)
"""By fault: the answer to a request."""

FAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "submit-429": "too many requests",
        "no-credits": "there is no credit left",
        "key": "the key is refused",
        "blocked": "the prompt is refused",
        "empty": "the answer holds no picture",
        "unsafe": "the picture is withheld, and charged",
        "half-unsafe": "the first of several pictures is withheld",
        "rewritten": "the prompt is put in other words",
        "gone": "the picture is not there any more",
    }
)
