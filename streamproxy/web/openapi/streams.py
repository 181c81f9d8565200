"""Streams, models, files and health as JSON Schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from streamproxy.surfaces.files import DAYS, MAX_EDEN_PURPOSE, PURPOSES, SECONDS
from streamproxy.web.openapi.json_schema import (
    ANY_OBJECT,
    Schema,
    array,
    constant,
    listing,
    maybe,
    record,
    ref,
    text,
    typed,
    whole,
)

_STATUS: Final = text(enum=["in_progress", "completed", "failed", "cancelled"])
_STREAM: Final[Mapping[str, Schema]] = {"id": text(), "object": constant("image.stream")}
_URLS: Final[Mapping[str, Schema]] = {
    "stream_url": text("Its events. The token in it only reads this one stream."),
    "status_url": text("Its status and results as JSON."),
}

STREAMS: Final[Mapping[str, Schema]] = {
    "StreamAccepted": record(
        {
            **_STREAM,
            "status": _STATUS,
            **_URLS,
            "cancel_url": text("DELETE cancels it, and GET reads it."),
            "expires_at": whole("When these URLs expire, in seconds since 1970."),
        },
        *("id", "object", "status", "stream_url", "status_url", "cancel_url", "expires_at"),
        examples=[
            {
                **{"id": "str_1", "object": "image.stream", "status": "in_progress", "expires_at": 1764286400},
                "stream_url": "/v1/streams/str_1?token=READ",
                "status_url": "/v1/streams/str_1/status?token=READ",
                "cancel_url": "/v1/streams/str_1?token=ALL",
            }
        ],
    ),
    "Stream": record(
        {
            **_STREAM,
            "status": _STATUS,
            "created_at": whole(),
            **_URLS,
            "progress": maybe(
                record(
                    {
                        "fraction": typed("number", "From 0 to 1."),
                        "queue": whole("Its place in the provider's queue."),
                    },
                    meaning="What the provider says of itself, if anything.",
                )
            ),
            "data": array(ref("ImageEvent"), "The `completed` events so far."),
            "error": {"anyOf": [ref("ErrorObject"), {"type": "null"}]},
            "response": {
                "anyOf": [ref("ImageResponse"), {"type": "null"}],
                "description": "The JSON answer of a request without `stream`.",
            },
        },
        *("id", "object", "status", "created_at", "stream_url", "status_url", "data", "error", "response"),
    ),
    "StreamSummary": record(
        {**_STREAM, "status": _STATUS, "created_at": whole(), "n": whole(), **_URLS},
        *("id", "object", "status", "created_at", "n", "stream_url", "status_url"),
    ),
    "StreamDeleted": record(
        {
            **_STREAM,
            "deleted": typed("boolean", "It had ended, and is forgotten."),
            "cancelled": typed("boolean", "It ran, and is cancelled."),
        },
        *("id", "object", "deleted", "cancelled"),
    ),
}

_FILE: Final = text(contentMediaType="application/octet-stream")

LISTS: Final[Mapping[str, Schema]] = {
    "Model": record(
        {
            "id": text(),
            "object": constant("model"),
            "created": whole(),
            "owned_by": text(),
            "retired": text("Its owner's last day.", format="date"),
            "streams": typed("boolean", "Whether it can be asked to stream."),
            "partial_images": whole("The most previews of an image."),
            "edits": typed("boolean", "Whether it takes input images."),
            "masks": typed("boolean", "Whether it takes a mask."),
            "sizes": typed("boolean", "Whether `size` is applied."),
            "formats": array(text(), "Values of `output_format` that are applied."),
            "inputs": array(text(), "Media types of input images."),
            "n": whole("The most images of a request."),
            "surfaces": array(text(), "The wires by which it can be asked."),
            "image_sizes": array(text(), "Values of a chat's `image_size`."),
            "price": maybe(typed("object", "USD by unit.", additionalProperties={"type": "number"})),
        },
        *("id", "object", "created", "owned_by"),
        meaning="What the model can do where it is served. A model that is not in the catalogue has the first four.",
    ),
    "ModelList": record(
        {
            "object": constant("list"),
            "data": array(ref("Model")),
            "notes": array({"type": "string"}, "Where the catalogue stands in for a provider's own list."),
        },
        "object",
        "data",
    ),
    "FileForm": record(
        {
            "file": _FILE,
            "purpose": text(enum=[*PURPOSES]),
            "expires_after[anchor]": constant("created_at"),
            "expires_after[seconds]": whole(minimum=SECONDS[0], maximum=SECONDS[1]),
        },
        "file",
        "purpose",
    ),
    "File": record(
        {
            "id": text(),
            "object": constant("file"),
            "bytes": whole(),
            "created_at": whole(),
            "expires_at": whole(),
            "filename": text(),
            "purpose": text(),
            "status": text(),
            "status_details": maybe(text()),
        },
        *("id", "object", "bytes", "created_at", "expires_at", "filename", "purpose", "status"),
    ),
    "FileList": listing("File"),
    "FileDeleted": record(
        {"id": text(), "object": constant("file"), "deleted": typed("boolean")}, "id", "object", "deleted"
    ),
    "EdenFileForm": record(
        {
            "file": _FILE,
            "purpose": text(minLength=1, maxLength=MAX_EDEN_PURPOSE),
            "expires_in_days": whole(minimum=DAYS[0], maximum=DAYS[1]),
        },
        "file",
    ),
    "EdenFile": record(
        {
            "file_id": text(),
            "file_name": text(),
            "file_size": whole(),
            "file_mimetype": text(),
            "purpose": text(),
            "created_at": text(format="date-time"),
            "expires_at": text(format="date-time"),
            "metadata": ANY_OBJECT,
        },
        *("file_id", "file_name", "file_size", "file_mimetype", "created_at", "expires_at"),
    ),
    "StreamList": listing("StreamSummary", "Newest first."),
    "UsageList": record({"object": text(enum=["list"]), "data": array(ref("Spending"))}, *("object", "data")),
    "Spending": record(
        {
            **{name: maybe(text()) for name in ("date", "caller", "model", "provider")},
            "requests": whole(),
            "images": whole(),
            "cost": typed("number", "USD that answers stated."),
            "cost_unknown": whole("Requests without a stated cost."),
            "estimated": typed("number", "USD that these count as in a budget."),
        },
        *("requests", "images", "cost", "cost_unknown", "estimated"),
    ),
    "Health": record({"status": text(enum=["ok", "draining"]), "store": text(enum=["ok", "failed"])}, "status"),
}
