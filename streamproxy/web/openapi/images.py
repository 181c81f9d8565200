"""Images as JSON Schema: requests, answers, events and errors.

What the proxy checks itself is made from its own tables: the fields of requests (core/schema.py), the events
(core/events.py) and the failures (errors.py). The other members are written here, and tests compare them with real
answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from streamproxy.core.events import ERROR, KINDS, Role
from streamproxy.core.schema import MAX_IMAGE_URL, MAX_IMAGES, MAX_MODEL, MAX_TEXT, RULES, FieldType, Rule
from streamproxy.errors import Failure
from streamproxy.web.openapi.json_schema import Schema, array, constant, maybe, record, ref, text, typed, whole

MEANINGS: Final[Mapping[str, str]] = {
    "model": "Name of the model, like `openai/gpt-image-2`. GET /v1/models lists the names.",
    "prompt": "The picture in words. Some models take more characters.",
    "n": "Number of images.",
    "size": "Pixels like `1024x1024`, an aspect ratio, or `auto`. The provider checks it.",
    "user": "An identifier of the end user, for the provider.",
    "metadata": "Passed on to the provider.",
    "quality": "Like `low`, `medium`, `high` or `auto`. The provider checks it.",
    "response_format": "`b64_json` or `url`. It holds for every model.",
    "stream": "Whether the answer is an event stream.",
    "partial_images": "Number of previews of each image. Events have them only with `stream`.",
    "output_compression": "Percent, for JPEG and WebP.",
    "background": "`transparent`, `opaque` or `auto`. The provider checks it.",
    "output_format": "Like `png`, `jpeg` or `webp`. The provider checks it.",
    "moderation": "`low` or `auto`. The provider checks it.",
    "input_fidelity": "`low` or `high`. The provider checks it.",
    "fallbacks": "Models to ask instead, in order, where nothing can have been charged: /docs/api.",
    "fallback_after_charge": "Whether fallbacks are asked where the provider may have charged too.",
}
"""Of each row of RULES."""

_BOUNDS: Final = {FieldType.STRING: ("minLength", "maxLength"), FieldType.INTEGER: ("minimum", "maximum")}


def field(rule: Rule) -> Schema:
    """A row of RULES. A field that is not required may be null, which is the same as absent."""
    limits: dict[str, object] = {}
    if rule.kind in _BOUNDS:
        low, high = _BOUNDS[rule.kind]
        limits = {low: rule.low, high: rule.high}
    if rule.kind is FieldType.OBJECT:
        limits = {"additionalProperties": True}
    if rule.kind is FieldType.NAMES:
        names = text(minLength=1, maxLength=MAX_MODEL)
        schema = array(names, MEANINGS[rule.name], minItems=rule.low, maxItems=rule.high)
    else:
        schema = typed(rule.kind.value, MEANINGS[rule.name], **limits)
    return schema if rule.required else maybe(schema)


FIELDS: Final[Mapping[str, Schema]] = {rule.name: field(rule) for rule in RULES}
REQUIRED: Final = tuple(rule.name for rule in RULES if rule.required)

EXTRA_HEADERS: Final = maybe(
    typed(
        "object",
        "Further HTTP headers for the provider. Those that could carry a credential are refused: /docs/extra_headers.",
        additionalProperties={"type": "string"},
    )
)

INLINE: Final = text("A data URL, bare base64, or an http or https URL.", minLength=1)


def _part(rule: Rule) -> Schema:
    """A row of RULES as a form's text part, in the type that its text stands for."""
    schema = FIELDS[rule.name]
    alternatives = schema.get("anyOf")
    found = alternatives[0] if isinstance(alternatives, list) else schema
    return {**found, "description": MEANINGS[rule.name]}


def _form(most: int, *required: str) -> Schema:
    parts = {rule.name: _part(rule) for rule in RULES}
    file = text(contentMediaType="application/octet-stream")
    files = array(file, "The input images. One may also be named `image`.", minItems=1, maxItems=most)
    own = {
        "image[]": files,
        "image": {**file, "description": "The input image."},
        "mask": {**file, "description": "A PNG. Its transparent pixels are to be drawn anew."},
        "extra_headers": text("A JSON object, as in a JSON body."),
    }
    if most == 1:
        del own["image[]"], own["mask"]
        return record({**parts, **own}, *required, "image")
    one_of = [{"required": ["image"]}, {"required": ["image[]"]}]
    return record({**parts, **own}, *required, anyOf=one_of)


_BODY_EXAMPLE: Final[Mapping[str, object]] = {"model": "openai/gpt-image-2", "prompt": "a lighthouse at dusk"}
_DATA_URL: Final = "data:image/png;base64,iVBORw0KGgo="

REQUESTS: Final[Mapping[str, Schema]] = {
    "ImageGenerationBody": record(
        {
            **FIELDS,
            "extra_headers": EXTRA_HEADERS,
            "image": {
                "anyOf": [INLINE, array(INLINE, minItems=1, maxItems=MAX_IMAGES), {"type": "null"}],
                "description": "Input images. With them the request is an edit.",
            },
            "mask": maybe(text("A PNG. Its transparent pixels are to be drawn anew. It counts with `image` only.")),
        },
        *REQUIRED,
        meaning="OpenAI's request. Unknown members reach an OpenAI-compatible provider byte for byte.",
        examples=[{**_BODY_EXAMPLE, "stream": True, "partial_images": 3}, {**_BODY_EXAMPLE, "image": _DATA_URL}],
    ),
    "ImageEditJsonBody": record(
        {
            **FIELDS,
            "extra_headers": EXTRA_HEADERS,
            "images": array(ref("ImageRef"), "The first one is edited.", minItems=1, maxItems=MAX_IMAGES),
            "mask": {
                "anyOf": [ref("ImageRef"), {"type": "null"}],
                "description": "A PNG. Its transparent pixels are to be drawn anew.",
            },
        },
        *REQUIRED,
        "images",
        meaning="OpenAI's edit as JSON.",
        examples=[
            {**_BODY_EXAMPLE, "images": [{"image_url": _DATA_URL}]},
            {**_BODY_EXAMPLE, "images": [{"file_id": "upl_1"}]},
        ],
    ),
    "ImageRef": record(
        {
            "file_id": maybe(text("The id of an uploaded file.", minLength=1, maxLength=MAX_TEXT)),
            "image_url": maybe(text("A data URL, or an http or https URL.", minLength=1, maxLength=MAX_IMAGE_URL)),
        },
        meaning="An image by exactly one of its members.",
        additionalProperties=False,
        oneOf=[
            {"required": [name], "properties": {name: {"type": "string"}, other: {"type": "null"}}}
            for name, other in (("file_id", "image_url"), ("image_url", "file_id"))
        ],
    ),
    "ImageEditForm": _form(MAX_IMAGES, *REQUIRED),
    "ImageVariationForm": _form(1, "model"),
}

# ----------------------------------------------------------------------------------------------------- images, answered

COST: Final = maybe(typed("number", "USD: as the provider says, else computed from `usage`. Null if it is unknown."))
PROVIDER: Final = maybe(text("The name of the provider."))
_COST_UNKNOWN: Final = text("Why `cost` is null, for providers with a wire of their own.")

ABOUT: Final[Mapping[str, Schema]] = {
    "size": text("Like `1024x1024`."),
    "quality": text(),
    "background": text(),
    "output_format": text("Like `png`."),
}
LINKS: Final[Mapping[str, Schema]] = {
    "url": maybe(text("Where the picture is: the provider's own URL, or with `response_format` url one of the proxy.")),
    "b64_json": maybe(text("The picture in base64.")),
    "revised_prompt": maybe(text("The prompt as the provider changed it.")),
}
_WARNING: Final = text("Why the picture has a `url` only: it could not be fetched.")

ANSWERS: Final[Mapping[str, Schema]] = {
    "ImageResponse": record(
        {
            "created": maybe(whole("Seconds since 1970.")),
            "data": array(ref("ImageDataItem")),
            **ABOUT,
            "usage": maybe({**ref("Usage")}),
            "cost": COST,
            "cost_unknown": _COST_UNKNOWN,
            "provider": PROVIDER,
            "streamproxy_unread": typed("boolean", "The provider's JSON as it is, because no image was found in it."),
        },
        examples=[{"created": 1764200000, "data": [{"b64_json": "iVBORw0KGgo="}], "cost": 0.04, "provider": "openai"}],
    ),
    "ImageDataItem": record({**LINKS, "warning": _WARNING}),
    "Usage": record(
        {
            "total_tokens": whole(),
            "input_tokens": whole(),
            "output_tokens": whole(),
            "input_tokens_details": record({"text_tokens": whole(), "image_tokens": whole()}),
        },
        meaning="The provider's `usage`. Required members that it lacks are zeros.",
    ),
}

# --------------------------------------------------------------------------------------------------------------- events

_INDEX: Final[Mapping[str, Schema]] = {"image_index": whole("Which of the images, from 0, where there are several.")}
_COSTS: Final[Mapping[str, Schema]] = {
    "usage": ref("Usage"),
    "cost": COST,
    "cost_unknown": _COST_UNKNOWN,
    "provider": PROVIDER,
}
_PICTURE: Final[Mapping[str, Schema]] = {
    "b64_json": maybe(text("The picture in base64.")),
    "image_url": text("With `payload=ref`, the URL of the picture in the place of `b64_json`."),
    "url": maybe(text("Where the picture is, if its provider gave a URL.")),
    "warning": _WARNING,
    "created_at": whole("Seconds since 1970."),
    **ABOUT,
    **_INDEX,
}

_OF_ROLE: Final[Mapping[Role, tuple[str, Mapping[str, Schema], tuple[str, ...]]]] = {
    Role.PREVIEW: (
        "A preview.",
        {**_PICTURE, "partial_image_index": whole("Which preview of this image, from 0.")},
        ("partial_image_index",),
    ),
    Role.COMPLETED: (
        "A whole image. `usage` and `cost` of several images are in the event of the last one.",
        {**_PICTURE, "revised_prompt": LINKS["revised_prompt"], **_COSTS},
        (),
    ),
    Role.USAGE: (
        "What a request has cost whose provider made fewer images than were asked for.",
        {"created_at": whole(), **_INDEX, "missing": whole("Number of images that are missing.", minimum=1), **_COSTS},
        ("missing",),
    ),
}


_PICTURE_EXAMPLE: Final[Mapping[str, object]] = {
    **{"b64_json": "iVBORw0KGgo=", "created_at": 1764200000, "size": "1024x1024", "quality": "high"},
    **{"background": "opaque", "output_format": "png"},
}
_DETAILS_EXAMPLE: Final = {"text_tokens": 10, "image_tokens": 0}
_COST_EXAMPLE: Final[Mapping[str, object]] = {
    "usage": {"total_tokens": 60, "input_tokens": 10, "output_tokens": 50, "input_tokens_details": _DETAILS_EXAMPLE},
    **{"cost": 0.04, "provider": "openai"},
}
_EXAMPLES: Final[Mapping[Role, Mapping[str, object]]] = {
    Role.PREVIEW: {**_PICTURE_EXAMPLE, "partial_image_index": 0},
    Role.COMPLETED: {**_PICTURE_EXAMPLE, **_COST_EXAMPLE},
    Role.USAGE: {"created_at": 1764200000, "missing": 1, **_COST_EXAMPLE},
}


def event_name(kind: str) -> str:
    """The name of an event's schema: `image_edit.completed` is ImageEditCompletedEvent."""
    return "".join(word.capitalize() for word in kind.replace(".", "_").split("_")) + "Event"


def _event(kind: str, role: Role) -> Schema:
    meaning, members, required = _OF_ROLE[role]
    example = {"type": kind, **_EXAMPLES[role]}
    return record({"type": constant(kind), **members}, "type", *required, meaning=meaning, examples=[example])


_ERROR_EXAMPLE: Final[Mapping[str, object]] = {"message": "No response head within 180 s.", "type": "upstream_error"}

SENT_EVENTS: Final = tuple(kind.type for kind in KINDS.values() if kind.role is not Role.FAILED)
"""The events that callers get. One that failed becomes the final `error` event."""

EVENTS: Final[Mapping[str, Schema]] = {
    **{event_name(kind): _event(kind, KINDS[kind].role) for kind in SENT_EVENTS},
    event_name(ERROR): record(
        {
            "type": constant(ERROR),
            "error": {"allOf": [ref("ErrorObject")], "description": "With `status` and `charged`."},
            "request_id": text(),
        },
        "type",
        "error",
        meaning="The last event of a stream that failed.",
        examples=[
            {
                "type": ERROR,
                "error": {
                    **_ERROR_EXAMPLE,
                    "param": None,
                    "code": "first_byte_timeout",
                    "status": 504,
                    "charged": True,
                },
                "request_id": "req_1",
            }
        ],
    ),
    "ImageEvent": {
        "description": "The data of one event. Its `type` is also the name of the event.",
        "oneOf": [ref(event_name(kind)) for kind in (*SENT_EVENTS, ERROR)],
    },
    "ManyImageEvent": {
        "description": "An event of one of several streams.",
        "allOf": [ref("ImageEvent"), record({"stream": text("The id of its stream.")}, "stream")],
    },
}

ERRORS: Final[Mapping[str, Schema]] = {
    "Error": record(
        {"error": ref("ErrorObject"), "request_id": text("As in `X-Request-Id`, and in the log.")},
        "error",
        meaning="OpenAI's error. /docs/errors has every code.",
    ),
    "ErrorObject": record(
        {
            "message": text("What happened, and how to put it right. It never has the value."),
            "type": text(),
            "param": maybe(text("The field, like `images[0].image_url`.")),
            "code": {
                "anyOf": [ref("ErrorCode"), {"type": "string"}, {"type": "null"}],
                "description": "A code of the proxy, or the provider's own.",
            },
            "status": whole("The HTTP status, in events and in answers whose head had another one."),
            "charged": typed("boolean", "Whether the provider may have charged."),
        },
        "message",
        "code",
    ),
    "HTTPValidationError": record(
        {
            "detail": array(ref("ValidationError")),
            "error": ref("ErrorObject"),
            "request_id": text(),
        },
        meaning="FastAPI's `detail` beside OpenAI's `error`. `detail` is there where single fields are wrong.",
    ),
    "ValidationError": record(
        {
            "loc": array({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "Where the field is."),
            "msg": text(),
            "type": text(),
        },
        "loc",
        "msg",
        "type",
    ),
    "ErrorCode": text("The codes of the proxy.", enum=[failure.value.code for failure in Failure]),
}
