"""What each handler takes and replies: the rows from which the document's operations are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from streamproxy.core.previews import FORMATS, FULL, LEAST, MOST
from streamproxy.core.webhooks import HEADER
from streamproxy.surfaces.files import MAX_PAGE
from streamproxy.web import chat, docs, images, info, many, streams, tool, uploads, usage
from streamproxy.web.endpoint import Handler
from streamproxy.web.openapi.json_schema import ANY_OBJECT, Schema, ref, text, whole

JSON: Final = "application/json"
FORM: Final = "multipart/form-data"
EVENTS: Final = "text/event-stream"
FILE: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: what it is, its body by media type, and its headers, which are names of HEADERS."""

    meaning: str
    body: Mapping[str, Schema] = field(default_factory=dict)
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One handler's row.

    `bodies`: its body by media type. `replies`: its answers by status. `failures`: statuses of its failures, besides
    those of every route. `parameters`: names of PARAMETERS.
    """

    tag: str
    replies: Mapping[int, Reply]
    bodies: Mapping[str, Schema] = field(default_factory=dict)
    failures: tuple[int, ...] = ()
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: `place` is query, header or path."""

    name: str
    place: str
    meaning: str
    schema: Schema


_TEXT: Final = text()
_CURSOR: Final = "The id of the last event that was read; the answer continues behind it."

PARAMETERS: Final[Mapping[str, Parameter]] = {
    parameter.name: parameter
    for parameter in (
        Parameter("id", "path", "The id of the model, the file or the stream.", _TEXT),
        Parameter("model", "path", "The name of the model, as a deployment.", _TEXT),
        Parameter("image_index", "path", "Which of the images, from 0.", whole(minimum=0)),
        Parameter("page", "path", "The name of the page.", _TEXT),
        Parameter("preview", "query", f"Pixels of a small preview's longer side, {LEAST} to {MOST}, or {FULL}.", _TEXT),
        Parameter("preview_format", "query", "The form of small previews.", text(enum=[*FORMATS])),
        Parameter("token", "query", "The token of a stream_url or a cancel_url, in the place of a key.", _TEXT),
        Parameter("stream", "query", "ID:TOKEN of each stream, up to 64 of them.", _TEXT),
        Parameter("last_event_id", "query", _CURSOR, _TEXT),
        Parameter("lastEventId", "query", _CURSOR, _TEXT),
        Parameter("from", "query", "Where to begin without an id.", text(enum=["latest", "start", "now"])),
        Parameter("payload", "query", "`ref`: URLs of pictures; `inline`: the pictures.", text(enum=["inline", "ref"])),
        Parameter("preempt", "query", "`0` sends a preview to its end if the image comes.", text(enum=["1", "0"])),
        Parameter("limit", "query", "The most entries of a page.", whole(minimum=1, maximum=MAX_PAGE)),
        Parameter("after", "query", "The last_id of the page before.", _TEXT),
        Parameter("order", "query", "By time of creation.", text(enum=["asc", "desc"])),
        Parameter("purpose", "query", "Files of this purpose only.", _TEXT),
        Parameter("Last-Event-ID", "header", _CURSOR, _TEXT),
        Parameter(
            HEADER, "header", "The URL that is told of the stream's end, of an origin of `webhook_origins`.", _TEXT
        ),
        Parameter("Idempotency-Key", "header", "Requests with one key are one generation, for 24 hours.", _TEXT),
        Parameter(
            "Prefer",
            "header",
            "RFC 7240: `respond-async`, `wait=SECONDS`, `on-disconnect=finish` or `cancel`, `preview=PIXELS`, "
            "`preview-format=FORMAT`, `handling=strict`.",
            _TEXT,
        ),
    )
} | {
    f"usage.{parameter.name}": parameter  # names that mean something else elsewhere
    for parameter in (
        Parameter("from", "query", "The first day of UTC, like 2026-11-27.", text(format="date")),
        Parameter("to", "query", "The last day of UTC.", text(format="date")),
        Parameter("caller", "query", "Of this caller only.", _TEXT),
        Parameter("model", "query", "Of this model only.", _TEXT),
        Parameter("group_by", "query", "A list of date, caller, model and provider; the rest is added up.", _TEXT),
    )
}

HEADERS: Final[Mapping[str, str]] = {
    "X-Request-Id": "The request's id, also in the log.",
    "Retry-After": "When to come again: seconds, or a date.",
    "X-Should-Retry": "`false` where the provider may have charged.",
    "Proxy-Status": "RFC 9209, where the failure is not the caller's.",
    "Streamproxy-Not-Applied": "Fields that this provider does not get.",
    "Streamproxy-Served-As": "`edit`, where a variation was made as one.",
    "Preference-Applied": "What of `Prefer` holds.",
    "Stream-Id": "The id of the stream.",
    "Location": "The URL that follows, or resumes, the stream; of a redirect the one where the picture is.",
    "Cancel-Location": "The URL whose DELETE cancels the stream.",
    "ETag": "For If-None-Match.",
    "Content-Range": "The part that is sent.",
}

_PREFERENCE_HEADERS: Final = ("Streamproxy-Not-Applied", "Preference-Applied")
_STREAM_HEADERS: Final = ("Stream-Id", "Location", "Cancel-Location")
_ORDER_FAILURES: Final = (400, 404, 408, 409, 410, 413, 415, 422, 429, 502, 504, 507)
_ORDER_PARAMETERS: Final = ("Idempotency-Key", "Prefer", HEADER, "preview", "preview_format")
_STREAM_FAILURES: Final = (400, 401, 404, 410, 422, 429)
_STREAM_PARAMETERS: Final = ("Last-Event-ID", "last_event_id", "lastEventId", "from", "payload", "preempt")
_PREVIEW_PARAMETERS: Final = ("Prefer", "preview", "preview_format")


def _order(answer: str, event: str, **takes: Schema) -> Operation:
    """A request for pictures: an answer, events or a job. `bodies`: json and form."""
    media = {"json": JSON, "form": FORM}
    return Operation(
        tag="Images",
        bodies={media[kind]: schema for kind, schema in takes.items()},
        replies={
            200: Reply(
                "The pictures; with `stream` the events until the last one is there.",
                {JSON: ref(answer), EVENTS: ref(event)},
                (*_PREFERENCE_HEADERS, *_STREAM_HEADERS, "Streamproxy-Served-As"),
            ),
            202: Reply(
                "With `Prefer: respond-async`, where the stream is.",
                {JSON: ref("StreamAccepted")},
                ("Location", "Cancel-Location", "Preference-Applied", "Retry-After"),
            ),
        },
        failures=_ORDER_FAILURES,
        parameters=_ORDER_PARAMETERS,
    )


def _object(tag: str, name: str, *failures: int, parameters: tuple[str, ...] = ()) -> Operation:
    return Operation(tag=tag, replies={200: Reply("It.", {JSON: ref(name)})}, failures=failures, parameters=parameters)


def _upload(form: str, file: str) -> Operation:
    return Operation(
        tag="Files",
        bodies={FORM: ref(form)},
        replies={200: Reply("The file.", {JSON: ref(file)}, ("Streamproxy-Not-Applied",))},
        failures=(400, 408, 413, 415, 422, 507),
    )


def _picture(*parameters: str) -> Operation:
    picture = {"image/*": text(contentMediaType=FILE)}
    return Operation(
        tag="Streams",
        replies={
            200: Reply("The picture.", picture, ("ETag",)),
            **({} if parameters else {302: Reply("It is in the bucket.", {}, ("Location",))}),
            206: Reply("A part of it.", picture, ("ETag", "Content-Range")),
            304: Reply("The caller has it."),
            416: Reply("The part is beyond its end.", {}, ("Content-Range",)),
        },
        failures=(401, 404, 410, 422),
        parameters=("token", *parameters),
    )


def _page(meaning: str, *media: str, schema: Schema = _TEXT, failures: tuple[int, ...] = ()) -> Operation:
    bodies = dict.fromkeys(media, schema)
    found = {200: Reply(meaning, bodies, ("ETag",)), 304: Reply("The caller has it.")}
    return Operation(tag="Documentation", replies=found, failures=failures)


_NOTHING: Final = Reply("This reader has everything.")

OPERATIONS: Final[Mapping[Handler, Operation]] = {
    images.generations: _order("ImageResponse", "ImageEvent", json=ref("ImageGenerationBody")),
    images.edits: _order("ImageResponse", "ImageEvent", json=ref("ImageEditJsonBody"), form=ref("ImageEditForm")),
    images.variations: _order("ImageResponse", "ImageEvent", form=ref("ImageVariationForm")),
    chat.completions: _order("ChatCompletion", "ChatCompletionChunk", json=ref("ChatBody")),
    tool.responses: _order("Response", "ResponseEvent", json=ref("ResponseBody")),
    info.models: _object("Models", "ModelList", 502, 504),
    info.model: _object("Models", "Model", 404, 502, 504),
    usage.usage: _object("Operation", "UsageList", 422, 503, parameters=tuple(f"usage.{name}" for name in usage.QUERY)),
    uploads.create: _upload("FileForm", "File"),
    uploads.create_as_eden: _upload("EdenFileForm", "EdenFile"),
    uploads.index: _object("Files", "FileList", 404, 422, parameters=("limit", "after", "order", "purpose")),
    uploads.describe: _object("Files", "File", 404, 410),
    uploads.delete: _object("Files", "FileDeleted", 404, 410),
    uploads.content: Operation(
        tag="Files", replies={200: Reply("The file.", {"image/*": text(contentMediaType=FILE)})}, failures=(404, 410)
    ),
    many.get_streams: Operation(
        tag="Streams",
        replies={
            200: Reply(
                "The events; without `stream` a list.", {EVENTS: ref("ManyImageEvent"), JSON: ref("StreamList")}
            ),
            204: _NOTHING,
        },
        failures=_STREAM_FAILURES,
        parameters=("stream", *_STREAM_PARAMETERS, *_PREVIEW_PARAMETERS, "limit", "after"),
    ),
    streams.get_stream: Operation(
        tag="Streams",
        replies={
            200: Reply("The events, or the stream as JSON.", {EVENTS: ref("ImageEvent"), JSON: ref("Stream")}),
            204: _NOTHING,
        },
        failures=_STREAM_FAILURES,
        parameters=("token", *_STREAM_PARAMETERS, *_PREVIEW_PARAMETERS),
    ),
    streams.get_status: Operation(
        tag="Streams",
        replies={200: Reply("The stream.", {JSON: ref("Stream")}, ("Retry-After", "Preference-Applied"))},
        failures=_STREAM_FAILURES,
        parameters=("token", "payload", *_PREVIEW_PARAMETERS),
    ),
    streams.delete_stream: _object("Streams", "StreamDeleted", 401, 404, 410, parameters=("token",)),
    streams.get_image: _picture(),
    streams.get_preview: _picture(*_PREVIEW_PARAMETERS),
    info.livez: _object("Operation", "Health"),
    info.readyz: Operation(
        tag="Operation",
        replies={
            200: Reply("New requests are taken.", {JSON: ref("Health")}),
            503: Reply("They are not.", {JSON: ref("Health")}),
        },
    ),
    info.metrics: Operation(tag="Operation", replies={200: Reply("Metrics.", {"text/plain": text()})}),
    docs.index: _page("The list of pages.", "text/html"),
    docs.page: _page("The page.", "text/html", "text/markdown", failures=(404,)),
    docs.llms: _page("The list of pages.", "text/plain"),
    docs.openapi: _page("This document.", JSON, schema=ANY_OBJECT),
    info.file: _page("The file.", "*/*"),
}
