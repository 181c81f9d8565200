"""Google's generateContent and its stream, simulated. Base URL: {server}/v1beta, or {server} and VERTEX; any key is
accepted.

Models have the real names. Those from 3 on answer with JPEG, unless the request to Vertex AI says otherwise. One with
`pro` in its name thinks: two drafts come before the picture, without a mark, as sometimes from the real one. The model
`fault-<name>` plays a row of FAULTS.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final, Literal

import anyio
import msgspec
from anyio.to_thread import run_sync

from streamproxy.simulator import pictures
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Send, Stall, Wait, chunk, event, head, json_answer, sse

PREFIX: Final = "/v1beta/models/"
VERTEX: Final = "/v1/projects/sim/locations/global/publishers/google"
METHODS: Final = ("generateContent", "streamGenerateContent")
FAULT: Final = "fault-"
DRAFTS: Final = 2
DRAFT_AT: Final = (4.0, 8.0)  # seconds, times `pace`
PICTURE_AT: Final = 12.0

# Pixels of a 1K picture. The other tiers are multiples of its edges.
PIXELS: Final = {
    **{"1:1": (1024, 1024), "2:3": (848, 1264), "3:2": (1264, 848), "3:4": (896, 1200), "4:3": (1200, 896)},
    **{"4:5": (928, 1152), "5:4": (1152, 928), "9:16": (768, 1376), "16:9": (1376, 768), "21:9": (1584, 672)},
    **{"1:4": (512, 2048), "4:1": (2048, 512), "1:8": (384, 3072), "8:1": (3072, 384)},
}
TIERS: Final = {"512": 0.5, "1K": 1.0, "2K": 2.0, "4K": 4.0}


class _Blob(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    mime_type: str
    data: str


class _Part(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    text: str | None = None
    inline_data: _Blob | None = None
    thought_signature: str | None = None


class _Content(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    parts: list[_Part]
    role: Literal["user", "model"] = "user"


class _Output(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    mime_type: Literal["image/png", "image/jpeg"] | None = None
    compression_quality: int | None = None


class _ImageConfig(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    aspect_ratio: str | None = None
    image_size: str | None = None
    image_output_options: _Output | None = None


class _Thinking(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    thinking_level: Literal["MINIMAL", "LOW", "MEDIUM", "HIGH", "XHIGH"] | None = None


class _Config(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    response_modalities: list[Literal["TEXT", "IMAGE"]] = []
    image_config: _ImageConfig | None = None
    thinking_config: _Thinking | None = None
    media_resolution: Literal["MEDIA_RESOLUTION_LOW", "MEDIA_RESOLUTION_MEDIUM", "MEDIA_RESOLUTION_HIGH"] | None = None


class _Request(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    contents: list[_Content]
    generation_config: _Config


class Gemini:
    """The handler: see `simulator.Form`."""

    prefix = (PREFIX, f"{VERTEX}/models/")

    def __init__(self, pace: float) -> None:
        self._pace = pace
        self._drawing = anyio.CapacityLimiter(4)

    async def __call__(self, received: Received) -> Script:
        model, _, method = received.target.rpartition("/")[2].partition(":")
        name, _, query = method.partition("?")
        if name not in METHODS:
            return _error(404, "NOT_FOUND", f"No such method: {name}.")
        try:
            request = msgspec.json.decode(received.body, type=_Request)
        except msgspec.DecodeError as error:
            return _error(400, "INVALID_ARGUMENT", f"Invalid JSON payload received. {error}")
        if (unsigned := _unsigned(request)) is not None:
            return unsigned
        if model.startswith(FAULT):
            return FAULTS[model.removeprefix(FAULT)](name == METHODS[1])
        config = request.generation_config.image_config or _ImageConfig()
        if _invalid(model, config, vertex=received.target.startswith(VERTEX)):
            return _error(400, "INVALID_ARGUMENT", "Invalid value at 'generation_config.image_config'.")
        drafts = DRAFTS if "pro" in model else 0
        made = await run_sync(partial(_pictures, request, config, model, drafts), limiter=self._drawing)
        stream = name == METHODS[1] and query == "alt=sse"
        return self._events(made) if stream else self._json(made)

    def _json(self, made: list[bytes]) -> Script:
        return (Wait(PICTURE_AT * self._pace), *json_answer(200, _answer([_inline(file) for file in made])))

    def _events(self, made: list[bytes]) -> Script:
        moments = [0.0, *DRAFT_AT[: len(made) - 1], PICTURE_AT, PICTURE_AT]
        waits = [(at - before) * self._pace for before, at in zip((0.0, *moments), moments, strict=False)]
        chunks = [_candidate([{"text": "Let me draw that."}]), *(_candidate([_inline(file)]) for file in made)]
        last = {**_answer([]), "usageMetadata": _usage(len(made))}
        return sse((_event(value) for value in (*chunks, last)), waits=waits)


def _invalid(model: str, config: _ImageConfig, *, vertex: bool) -> bool:
    if (config.aspect_ratio or "1:1") not in PIXELS or (config.image_size or "1K") not in TIERS:
        return True
    one_size = "2.5" in model and config.image_size is not None
    return one_size or (config.image_output_options is not None and not vertex)


def _pictures(request: _Request, config: _ImageConfig, model: str, drafts: int) -> list[bytes]:
    """The drafts and the picture, as files."""
    wide, high = PIXELS[config.aspect_ratio or "1:1"]
    scale = TIERS[config.image_size or "1K"]
    size = round(wide * scale), round(high * scale)
    if size[0] * size[1] > pictures.MAX_PIXELS:  # 4K is too large to be drawn here
        size = wide, high
    parts = [part for content in request.contents for part in content.parts]
    prompt = " ".join(part.text for part in parts if part.text)
    source = next((part.inline_data for part in parts if part.inline_data), None)
    if source is None:
        picture = pictures.draw(prompt, *size)
    else:
        picture = pictures.edit(prompt, *size, base64.b64decode(source.data))
    output = config.image_output_options or _Output()
    kind: pictures.Format = "png" if output.mime_type == "image/png" or "2.5" in model else "jpeg"
    sketches = [pictures.encode(pictures.preview(picture, step, drafts), kind) for step in range(drafts)]
    return [*sketches, pictures.encode(picture, kind, output.compression_quality or 95)]


def _unsigned(request: _Request) -> Script | None:
    """The 400 for a picture in an earlier turn of the model without its signature."""
    for at, content in enumerate(request.contents):
        for number, part in enumerate(content.parts):
            if content.role == "model" and part.inline_data is not None and part.thought_signature is None:
                where = f"content position {at + 1}, part position {number + 1}"
                return _error(400, "INVALID_ARGUMENT", f"Image part is missing a thought_signature in {where}.")
    return None


def _inline(file: bytes) -> dict[str, object]:
    kind = "image/png" if file.startswith(b"\x89PNG") else "image/jpeg"
    return {
        "inlineData": {"mimeType": kind, "data": base64.b64encode(file).decode()},
        "thoughtSignature": "c2ln",
    }


def _candidate(parts: list[dict[str, object]]) -> dict[str, list[dict[str, object]]]:
    return {"candidates": [{"content": {"role": "model", "parts": parts}, "index": 0}]}


def _answer(parts: list[dict[str, object]]) -> dict[str, object]:
    candidate = {"content": {"role": "model", "parts": parts}, "finishReason": "STOP", "index": 0}
    return {"candidates": [candidate], "usageMetadata": _usage(len(parts)), "modelVersion": "simulated"}


def _usage(drawn: int) -> dict[str, object]:
    made = 1120 * drawn
    return {
        "promptTokenCount": 14,
        "candidatesTokenCount": made,
        "totalTokenCount": 14 + made,
        "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": made}],
    }


def _event(value: object) -> bytes:
    return event(None, msgspec.json.encode(value))


def _error(status: int, code: str, message: str, **details: object) -> Script:
    error: dict[str, object] = {"code": status, "message": message, "status": code}
    if details:
        error["details"] = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", **details}]
    return json_answer(status, {"error": error})


def _said(value: Mapping[str, object]) -> Callable[[bool], Script]:
    """A 200 with this answer, as a stream or as one JSON."""
    return lambda stream: sse([_event(value)]) if stream else json_answer(200, value)


def _refused(status: int, code: str, message: str, **details: object) -> Callable[[bool], Script]:
    return lambda _: _error(status, code, message, **details)


def _finished(reason: str, **members: object) -> dict[str, object]:
    return {"candidates": [{"content": {"role": "model"}, "finishReason": reason, **members}]}


def _cut(stream: bool) -> Script:
    begun = _event(_candidate([{"text": "Let me"}]))
    kind = ("Content-Type", "text/event-stream" if stream else "application/json")
    return (Send(head(200, (kind,), chunked=True)), Send(chunk(begun if stream else b'{"candidates": [')))


FAULTS: Final = MappingProxyType[str, Callable[[bool], Script]](
    {
        "blocked": _said({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {}}),
        "image-safety": _said(_finished("IMAGE_SAFETY", finishMessage="Unable to show the generated image.")),
        "no-image": _said(_finished("NO_IMAGE")),
        "new-reason": _said(_finished("SOMETHING_NEW")),
        "null-parts": _said({"candidates": [{"content": {"role": "model", "parts": None}, "finishReason": "STOP"}]}),
        "null-candidates": _said({"candidates": None, "usageMetadata": {"candidatesTokenCount": 0}}),
        "words": _said({"candidates": [{"content": {"parts": [{"text": "I cannot draw."}]}, "finishReason": "STOP"}]}),
        "bare-error": lambda _: (
            Send(head(200, (("Content-Type", "text/event-stream"),), chunked=True)),
            Send(chunk(b'{"error":{"code":400,"message":"Invalid argument.","status":"INVALID_ARGUMENT"}}')),
            Send(b"0\r\n\r\n"),
        ),
        "429": _refused(429, "RESOURCE_EXHAUSTED", "Quota exceeded.", retryDelay="12s"),
        "bad-key": _refused(400, "INVALID_ARGUMENT", "API key not valid.", reason="API_KEY_INVALID"),
        "503": _refused(503, "UNAVAILABLE", "The model is overloaded."),
        "cut": _cut,
        "stall": lambda stream: (*_cut(stream), Stall()),
    }
)
