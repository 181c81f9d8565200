"""Google's Imagen, simulated: `predict` below Gemini's base URLs, for models whose names begin with `imagen`.

Below the Gemini API's URL, members that it does not take are refused. `imagen-fault-<name>` plays a row of FAULTS.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial
from typing import Final, Literal

import anyio
import msgspec
from anyio.to_thread import run_sync

from streamproxy.simulator import pictures
from streamproxy.simulator.gemini import PREFIX, VERTEX
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Send, Wait, chunk, head, json_answer

FAULT: Final = "imagen-fault-"
PICTURE_AT: Final = 9.0  # seconds, times `pace`

# Pixels of a 1K picture.
PIXELS: Final = {
    **{"1:1": (1024, 1024), "3:4": (896, 1280), "4:3": (1280, 896)},
    **{"9:16": (768, 1408), "16:9": (1408, 768)},
}
SOME: Final = "Your current safety filter threshold filtered out 1 generated images. You will not be charged for them."
ALL: Final = "Unable to show generated images. All images were filtered out. Support codes: 39322892, 29310472"
BLOCKED: Final = "The prompt could not be submitted. This prompt contains sensitive words. Support codes: 42876398"


class _File(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    bytes_base64_encoded: str


class _MaskConfig(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    mask_mode: Literal["MASK_MODE_USER_PROVIDED"]


class _Reference(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    reference_type: Literal["REFERENCE_TYPE_RAW", "REFERENCE_TYPE_MASK"]
    reference_id: int
    reference_image: _File
    mask_image_config: _MaskConfig | None = None


class _Instance(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    prompt: str
    reference_images: list[_Reference] = []


class _Output(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    mime_type: Literal["image/png", "image/jpeg"] = "image/png"
    compression_quality: int = 75


class _Parameters(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    sample_count: int = 1
    aspect_ratio: Literal["1:1", "3:4", "4:3", "9:16", "16:9"] = "1:1"
    sample_image_size: Literal["1K", "2K"] = "1K"
    include_rai_reason: bool = False
    output_options: _Output | None = None
    edit_mode: Literal["EDIT_MODE_DEFAULT", "EDIT_MODE_INPAINT_INSERTION"] | None = None
    guidance_scale: float | None = None
    person_generation: str | None = None
    language: str | None = None
    negative_prompt: str | None = None
    seed: int | None = None
    add_watermark: bool = True
    enhance_prompt: bool | None = None


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    instances: list[_Instance]
    parameters: _Parameters


class Imagen:
    """The handler: see `simulator.Form`."""

    prefix = (f"{PREFIX}imagen", f"{VERTEX}/models/imagen")

    def __init__(self, pace: float) -> None:
        self._pace = pace
        self._drawing = anyio.CapacityLimiter(4)

    async def __call__(self, received: Received) -> Script:
        model, _, method = received.target.rpartition("/")[2].partition(":")
        if method != "predict":
            return _error(404, "NOT_FOUND", f"No such method: {method}.")
        try:
            request = msgspec.json.decode(received.body, type=_Request)
        except msgspec.DecodeError as error:
            return _error(400, "INVALID_ARGUMENT", f"Invalid JSON payload received. {error}")
        if (problem := _problem(request, vertex=received.target.startswith(VERTEX))) is not None:
            return _error(400, "INVALID_ARGUMENT", problem)
        if model.startswith(FAULT):
            return FAULTS[model.removeprefix(FAULT)]()
        files = await run_sync(partial(_pictures, request), limiter=self._drawing)
        return (Wait(PICTURE_AT * self._pace), *json_answer(200, {"predictions": [_item(file) for file in files]}))


def _problem(request: _Request, *, vertex: bool) -> str | None:
    parameters = request.parameters
    if not 1 <= parameters.sample_count <= 4:
        return "sampleCount must be between 1 and 4."
    if parameters.seed is not None and parameters.add_watermark:
        return "Seed is not supported when watermark is enabled."
    only = (parameters.negative_prompt, parameters.seed, parameters.enhance_prompt, parameters.edit_mode)
    if not vertex and (any(value is not None for value in only) or request.instances[0].reference_images):
        return "Unknown name in 'parameters'."
    return None


def _pictures(request: _Request) -> list[bytes]:
    [instance], parameters = request.instances, request.parameters
    output = parameters.output_options or _Output()
    kind: pictures.Format = "jpeg" if output.mime_type == "image/jpeg" else "png"
    size = PIXELS[parameters.aspect_ratio]
    made = []
    for number in range(parameters.sample_count):
        prompt = f"{instance.prompt} {number}"
        if instance.reference_images:
            source = base64.b64decode(instance.reference_images[0].reference_image.bytes_base64_encoded)
            picture = pictures.edit(prompt, *size, source)
        else:
            picture = pictures.draw(prompt, *size)
        made.append(pictures.encode(picture, kind, output.compression_quality))
    return made


def _item(file: bytes) -> dict[str, object]:
    kind = "image/png" if file.startswith(b"\x89PNG") else "image/jpeg"
    return {"mimeType": kind, "bytesBase64Encoded": base64.b64encode(file).decode()}


def _error(status: int, code: str, message: str) -> Script:
    return json_answer(status, {"error": {"code": status, "message": message, "status": code}})


def _small() -> dict[str, object]:
    return _item(pictures.encode(pictures.draw("a fault", 64, 64), "png"))


FAULTS: Final[dict[str, Callable[[], Script]]] = {
    "blocked": lambda: _error(400, "INVALID_ARGUMENT", BLOCKED),
    "filtered": lambda: json_answer(200, {"predictions": [{"raiFilteredReason": ALL}]}),
    "some-filtered": lambda: json_answer(200, {"predictions": [_small(), {"raiFilteredReason": SOME}]}),
    "nothing": lambda: json_answer(200, {}),
    "429": lambda: _error(429, "RESOURCE_EXHAUSTED", "Quota exceeded."),
    "cut": lambda: (
        Send(head(200, (("Content-Type", "application/json"),), chunked=True)),
        Send(chunk(b'{"predictions": [{"bytesBase64')),
    ),
}
