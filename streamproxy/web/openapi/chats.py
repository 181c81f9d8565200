"""Chat completions and responses as JSON Schema, as far as they make pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from streamproxy.core.events import ERROR
from streamproxy.surfaces.chat import EDGES, RATIOS
from streamproxy.surfaces.responses import CALL, TOOL
from streamproxy.web.openapi.images import ABOUT, COST, EXTRA_HEADERS, FIELDS, LINKS, PROVIDER
from streamproxy.web.openapi.json_schema import (
    ANY_OBJECT,
    Schema,
    array,
    constant,
    maybe,
    record,
    ref,
    text,
    typed,
    whole,
)

_CHOICE: Final = ("fallbacks", "fallback_after_charge")

_PARTS: Final = array(
    record({"type": text(enum=["text", "image_url"]), "text": text(), "image_url": {}}, "type"),
    "Words and pictures.",
)
_SAID: Final = {"anyOf": [{"type": "string"}, _PARTS, {"type": "null"}]}
_FINISH: Final = maybe(text())
_TOKENS: Final = record({"prompt_tokens": whole(), "completion_tokens": whole(), "total_tokens": whole()})
_URL: Final = record({"url": text()}, "url")
_PICTURES: Final = array(record({"type": constant("image_url"), "image_url": _URL, "index": whole()}))
_MESSAGE: Final = record(
    {
        "role": text(),
        "content": maybe(text("A data URL; with `modalities` the words beside the picture.")),
        "images": {**_PICTURES, "description": "The picture, with `modalities`."},
    }
)


def _chat(kind: str, message: str, *required: str) -> Schema:
    choice = record({"index": whole(), message: _MESSAGE, "finish_reason": _FINISH}, "index", message)
    members = {"id": text(), "object": constant(kind), "created": whole(), "model": text(), "choices": array(choice)}
    more = {"usage": _TOKENS, "cost": COST, "provider": PROVIDER, "error": ref("ErrorObject")}
    return record({**members, **more}, "id", "object", "created", "model", "choices", *required)


_CALL_ITEM: Final = record(
    {
        "id": text(),
        "type": constant(CALL),
        "status": text(),
        "result": maybe(text("The picture in base64.")),
        "url": text("Where the picture is, if it could not be fetched."),
        "action": text(enum=["generate", "edit"]),
        "revised_prompt": LINKS["revised_prompt"],
        **ABOUT,
    },
    "id",
    "type",
    "status",
)

_RESPONSE_EVENTS: Final[Mapping[str, Mapping[str, Schema]]] = {
    **{f"response.{name}": {"response": ref("Response")} for name in ("created", "in_progress", "completed", "failed")},
    **{
        f"response.output_item.{name}": {"output_index": whole(), "item": ref("ImageGenerationCall")}
        for name in ("added", "done")
    },
    **{
        f"response.{CALL}.{name}": {"output_index": whole(), "item_id": text()}
        for name in ("in_progress", "generating", "completed")
    },
    f"response.{CALL}.partial_image": {
        "output_index": whole(),
        "item_id": text(),
        "partial_image_index": whole("Which preview, from 0."),
        "partial_image_b64": text("The preview in base64."),
        **ABOUT,
    },
    ERROR: {"code": maybe(text()), "message": text(), "param": maybe(text())},
}


def _response_event(kind: str, members: Mapping[str, Schema]) -> Schema:
    own = {"type": constant(kind), "sequence_number": whole("From 0.")}
    return record({**own, **members}, *own, *(name for name in members if name not in ABOUT))


SURFACES: Final[Mapping[str, Schema]] = {
    "ChatBody": record(
        {
            "model": FIELDS["model"],
            "messages": array(record({"role": text(), "content": _SAID}, "role"), minItems=1),
            "modalities": maybe(array({"type": "string"}, "With `image`, the picture is in `images`.")),
            "image_config": maybe(
                record(
                    {
                        "aspect_ratio": maybe(text(enum=[*RATIOS])),
                        "image_size": maybe(text("As far as the model has it.", enum=[*EDGES])),
                    }
                )
            ),
            **{name: FIELDS[name] for name in ("n", "stream", "size", "quality", "background", "user", *_CHOICE)},
            "extra_headers": EXTRA_HEADERS,
        },
        "model",
        "messages",
        meaning="A chat with a model that makes pictures. A chat with any other model goes to its provider as it is.",
        examples=[
            {
                "model": "google/gemini-3.1-flash-image",
                "messages": [{"role": "user", "content": "a lighthouse at dusk"}],
                "image_config": {"aspect_ratio": "16:9", "image_size": "2K"},
            }
        ],
    ),
    "ChatCompletion": _chat("chat.completion", "message", "usage", "cost", "provider"),
    "ChatCompletionChunk": _chat("chat.completion.chunk", "delta"),
    "ResponseBody": record(
        {
            "model": maybe(text()),
            "input": {"anyOf": [{"type": "string"}, array(ANY_OBJECT)]},
            "instructions": maybe(text()),
            "tools": array(
                record(
                    {
                        "type": text(f"`{TOOL}` makes the picture."),
                        "model": maybe(text("The model that draws, else `default_model`, else the first listed one.")),
                        "action": maybe(text(enum=["generate", "edit", "auto"])),
                        "input_image_mask": maybe(ANY_OBJECT),
                        **{
                            name: FIELDS[name]
                            for name in ("size", "quality", "background", "output_format", "partial_images")
                        },
                    },
                    "type",
                )
            ),
            "tool_choice": {},
            **{name: FIELDS[name] for name in ("stream", *_CHOICE)},
            "extra_headers": EXTRA_HEADERS,
        },
        meaning=f"A response with the tool `{TOOL}` alone is made here. Any other goes to its provider as it is.",
        examples=[
            {
                "input": "a lighthouse at dusk",
                "tools": [{"type": TOOL, "model": "openai/gpt-image-2", "partial_images": 3}],
                "stream": True,
            }
        ],
    ),
    "Response": record(
        {
            "id": text(),
            "object": constant("response"),
            "created_at": whole(),
            "status": text(enum=["in_progress", "completed", "failed"]),
            "model": text(),
            "output": array(ref("ImageGenerationCall")),
            "error": maybe(ANY_OBJECT),
            "usage": maybe(ANY_OBJECT),
            "tool_usage": record({"image_gen": ANY_OBJECT}),
            "cost": COST,
            "provider": PROVIDER,
            "tools": array(ANY_OBJECT),
            "tool_choice": {},
            "instructions": {},
            "metadata": ANY_OBJECT,
            **{name: typed("boolean") for name in ("background", "parallel_tool_calls", "store")},
            **{name: typed("null") for name in ("incomplete_details", "previous_response_id", "temperature", "top_p")},
        },
        *("id", "object", "created_at", "status", "model", "output", "error", "usage"),
        meaning="OpenAI's response. The members that nothing here decides are there for SDKs' types.",
    ),
    "ImageGenerationCall": _CALL_ITEM,
    "ResponseEvent": {
        "description": "The data of one event.",
        "oneOf": [_response_event(kind, members) for kind, members in _RESPONSE_EVENTS.items()],
    },
}
