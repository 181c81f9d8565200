"""Amazon Bedrock's InvokeModel, simulated, with Stability AI's models and Nova Canvas. Base URL: {server}/bedrock.

A bearer key or a signature is accepted, whatever it is, but none is an error. A member that a model does not have is an
error too. `stability.fault-<name>` and `amazon.fault-<name>` as the model play a row of FAULTS.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal
from urllib.parse import unquote
from uuid import uuid4

import anyio
import msgspec
from anyio.to_thread import run_sync
from msgspec import Meta

from streamproxy.simulator import pictures
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, json_answer

PREFIX: Final = "/bedrock/model/"
STABILITY: Final = "stability."
FAULT: Final = "fault-"
SIZES: Final = {"1:1": (512, 512), "16:9": (640, 360), "3:2": (600, 400), "2:3": (400, 600), "9:16": (360, 640)}
BLOCKED: Final = "This request has been blocked by our content filters. Please adjust your text prompt."
ALL: Final = "All of the generated images have been blocked by our content filters."
SOME: Final = "Some of the generated images have been blocked by our content filters."

Answer = dict[str, Any]
Ratio = Literal["21:9", "16:9", "3:2", "5:4", "1:1", "4:5", "2:3", "9:16", "9:21"]
Edge = Annotated[int, Meta(ge=320, le=4096, multiple_of=16)]


class _Order(msgspec.Struct, forbid_unknown_fields=True):
    """What every model of Stability AI's takes."""

    output_format: Literal["png", "jpeg", "webp"] = "png"
    seed: int = 0


class _Drawn(_Order, forbid_unknown_fields=True, kw_only=True):
    prompt: Annotated[str, Meta(max_length=10_000)]
    negative_prompt: str | None = None
    aspect_ratio: Ratio = "1:1"
    image: str | None = None
    mode: Literal["text-to-image", "image-to-image"] = "text-to-image"
    strength: float | None = None


class _Edited(_Order, forbid_unknown_fields=True, kw_only=True):
    image: str
    prompt: str
    negative_prompt: str | None = None
    mask: str | None = None
    grow_mask: int = 5
    style_preset: str | None = None
    search_prompt: str | None = None
    select_prompt: str | None = None
    left: int = 0
    right: int = 0
    up: int = 0
    down: int = 0
    creativity: float = 0.5


class _Erased(_Order, forbid_unknown_fields=True, kw_only=True):
    image: str
    mask: str | None = None
    grow_mask: int = 5


class _Words(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    text: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None
    negative_text: str | None = None


class _Varied(_Words, rename="camel", forbid_unknown_fields=True, kw_only=True):
    images: Annotated[list[str], Meta(min_length=1, max_length=5)]
    similarity_strength: float = 0.7


class _Painted(_Words, rename="camel", forbid_unknown_fields=True, kw_only=True):
    image: str
    mask_image: str


class _Config(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    number_of_images: Annotated[int, Meta(ge=1, le=5)] = 1
    quality: Literal["standard", "premium"] = "standard"
    width: Edge = 1024
    height: Edge = 1024
    cfg_scale: float = 6.5
    seed: int = 12


class _Task(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    task_type: Literal["TEXT_IMAGE", "IMAGE_VARIATION", "INPAINTING"]
    text_to_image_params: _Words | None = None
    image_variation_params: _Varied | None = None
    in_painting_params: _Painted | None = None
    image_generation_config: _Config = msgspec.field(default_factory=_Config)

    @property
    def parameters(self) -> _Words | _Varied | _Painted | None:
        named: Mapping[str, _Words | None] = {
            "TEXT_IMAGE": self.text_to_image_params,
            "IMAGE_VARIATION": self.image_variation_params,
            "INPAINTING": self.in_painting_params,
        }
        return named[self.task_type]


class Bedrock:
    """The handler: see `simulator.Form`."""

    prefix = PREFIX

    def __init__(self, pace: float) -> None:
        self._drawing = anyio.CapacityLimiter(4)

    async def __call__(self, received: Received) -> Script:
        model, _, method = received.target.removeprefix(PREFIX).partition("/")
        owner, _, name = unquote(model).removeprefix("us.").partition(".")
        if received.header("authorization") is None:
            return _error(403, "AccessDeniedException", "Missing Authentication Token")
        if method != "invoke" or owner not in ("stability", "amazon"):
            return _error(404, "ResourceNotFoundException", "The model is not found.")
        fault = name.removeprefix(FAULT)
        if fault in REFUSALS:
            return REFUSALS[fault]
        draw = self._stabilitys if owner == "stability" else self._novas
        try:
            answer = await draw(name, received.body)
        except (msgspec.DecodeError, ValueError) as error:
            return _error(400, "ValidationException", f"Malformed input request: {error}")
        if fault == "some-blocked":
            answer["images"] = answer["images"][:1]
            answer["error"] = SOME
        return json_answer(200, answer, (("x-amzn-RequestId", str(uuid4())),))

    async def _stabilitys(self, model: str, body: bytes) -> Answer:
        kind = next((kind for word, kind in KINDS.items() if word in model), _Drawn)
        order = msgspec.json.decode(body, type=kind)
        file = await run_sync(partial(_drawn, order), limiter=self._drawing)
        return {"seeds": [1], "finish_reasons": [None], "images": [file]}

    async def _novas(self, model: str, body: bytes) -> Answer:
        task = msgspec.json.decode(body, type=_Task)
        return {"images": list(await run_sync(partial(_made, task), limiter=self._drawing))}


KINDS: Final[Mapping[str, type[_Drawn | _Edited | _Erased]]] = {
    "sd3": _Drawn,
    "stable-image-core": _Drawn,
    "stable-image-ultra": _Drawn,
    "stable-image-erase-object": _Erased,
    "stable-image-remove-background": _Erased,
    "stable-fast-upscale": _Erased,
    "stable-": _Edited,
}
"""By what stands in the model's name; the first that fits."""


def _drawn(order: _Drawn | _Edited | _Erased) -> str:
    size = SIZES.get(getattr(order, "aspect_ratio", "1:1"), (512, 512))
    words = getattr(order, "prompt", "a thing that is gone")
    picture = pictures.draw(words, *size)
    if order.image is not None:
        mask = getattr(order, "mask", None)
        source = base64.b64decode(order.image, validate=True)
        picture = pictures.edit(words, *size, source, mask=None if mask is None else base64.b64decode(mask))
    return _text(pictures.encode(picture, order.output_format))


def _made(task: _Task) -> Sequence[str]:
    parameters, config = task.parameters, task.image_generation_config
    if parameters is None:
        raise ValueError("the parameters are not those of the task")
    size = config.width, config.height
    if max(size) > 4 * min(size) or config.width * config.height > 4 * 1024 * 1024:
        raise ValueError("the size is out of range")
    files = []
    for number in range(config.number_of_images):
        words = f"{parameters.text} {number}"
        match parameters:
            case _Varied(images=[source, *_]):
                picture = pictures.edit(words, *size, base64.b64decode(source, validate=True))
            case _Painted(image=source, mask_image=mask):
                picture = pictures.edit(words, 512, 512, base64.b64decode(source), mask=_white(mask))
            case _:
                picture = pictures.draw(words, *size)
        files.append(_text(pictures.encode(picture, "png")))
    return files


def _white(mask: str) -> bytes:
    """A mask that is black where the picture is to change as one that is white there."""
    return pictures.inverted(base64.b64decode(mask, validate=True))


def _text(file: bytes) -> str:
    return base64.b64encode(file).decode()


def _error(status: int, kind: str, message: str) -> Script:
    return json_answer(status, {"message": message}, (("x-amzn-ErrorType", f"{kind}:http://internal.amazon.com/"),))


def _filtered(reason: str) -> Script:
    return json_answer(200, {"seeds": [1], "finish_reasons": [reason], "images": []})


REFUSALS: Final[Mapping[str, Script]] = MappingProxyType(
    {
        "throttled": _error(429, "ThrottlingException", "Too many requests, please wait before trying again."),
        "key": _error(403, "UnrecognizedClientException", "The security token included in the request is invalid."),
        "unknown": _error(404, "ResourceNotFoundException", "Could not resolve the foundation model."),
        "timeout": _error(408, "ModelTimeoutException", "The request took too long to process."),
        "broken": _error(424, "ModelErrorException", "The model could not process the request."),
        "prompt": _filtered("Filter reason: prompt"),
        "output": _filtered("Filter reason: output image"),
        "inference": _filtered("Inference error"),
        "blocked": _error(400, "ValidationException", BLOCKED),
        "all-blocked": json_answer(200, {"images": [], "error": ALL}),
    }
)
"""By fault: the answer to a request."""

FAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "throttled": "too many requests",
        "key": "the key is refused",
        "unknown": "there is no such model",
        "timeout": "the model takes too long",
        "broken": "the model fails",
        "prompt": "Stability AI's filter refuses the prompt, under 200",
        "output": "Stability AI's filter refuses the picture, under 200",
        "inference": "Stability AI's model fails, under 200",
        "blocked": "Amazon's filter refuses the prompt",
        "all-blocked": "Amazon's filter refuses every picture, under 200",
        "some-blocked": "Amazon's filter refuses all pictures but one, under 200",
    }
)
