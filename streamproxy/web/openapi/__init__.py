"""/openapi.json: every route and its schemas, as OpenAPI 3.1.

    document(rows, prefixes, installation)    the whole document, made of tables

Paths come from the rows of web/routes.py, operations from those of `operations`, errors from errors.py. The settings
decide the server and the keys that are asked for. The schemas are in `images`, `streams` and `chats`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final, Protocol

from streamproxy.errors import Failure
from streamproxy.web.endpoint import Handler
from streamproxy.web.openapi import chats, images, streams
from streamproxy.web.openapi.json_schema import Schema, ref, text
from streamproxy.web.openapi.operations import FORM, HEADERS, JSON, OPERATIONS, PARAMETERS, Operation, Reply

Json = Mapping[str, object]

SCHEMAS: Final[Mapping[str, Schema]] = {
    **images.REQUESTS,
    **images.ANSWERS,
    **images.EVENTS,
    **images.ERRORS,
    **streams.STREAMS,
    **streams.LISTS,
    **chats.SURFACES,
}

EVERYWHERE: Final = (403, 405, 421, 431, 500, 503)
"""Statuses of every route: foreign pages, other host names, a head that is too large, and the process itself."""

KEYS: Final[Json] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
}
TOKEN: Final[Json] = {"token": {"type": "apiKey", "in": "query", "name": "token"}}

CALLER_LEFT: Final = Failure.CALLER_GONE.value.status
"""No answer has it: it is for the log."""

_PLACE: Final = re.compile(r"\{(\w+)(?::path)?\}")
_MESSAGE: Final = "What happened, and how to put it right."


class Row(Protocol):
    """A row of web/routes.py."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def handler(self) -> Handler: ...
    @property
    def meaning(self) -> str: ...
    @property
    def surface(self) -> bool: ...
    @property
    def keys(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Installation:
    """What of the settings the document depends on. `keyed`: whether a request needs a caller's key.

    `json` and `upload`: the most bytes of a body in JSON, and of a form.
    """

    public_url: str | None
    keyed: bool
    json: int
    upload: int


def document(rows: Sequence[Row], prefixes: Sequence[str], installation: Installation) -> Json:
    """The document. Raises KeyError for a row whose handler has no operation."""
    paths: dict[str, dict[str, object]] = {}
    for prefix, row in _places(rows, prefixes):
        path = prefix + _PLACE.sub(r"{\1}", row.path)
        paths.setdefault(path, {})[row.method.lower()] = _operation(prefix, row, installation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "streamproxy",
            "version": version("streamproxy"),
            "license": {"name": "MIT", "identifier": "MIT"},
            "description": "Makes every image model stream, to every client. /docs has more in words.",
        },
        **({"servers": [{"url": installation.public_url}]} if installation.public_url else {}),
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "responses": dict(_failures()),
            "parameters": {name: _parameter(name) for name in PARAMETERS},
            "headers": {name: {"description": meaning, "schema": text()} for name, meaning in HEADERS.items()},
            "securitySchemes": {**KEYS, **TOKEN},
        },
    }


def _places(rows: Iterable[Row], prefixes: Sequence[str]) -> Iterator[tuple[str, Row]]:
    for row in rows:
        for prefix in prefixes if row.surface else ("",):
            yield prefix, row


def _operation(prefix: str, row: Row, installation: Installation) -> Json:
    operation = OPERATIONS[row.handler]
    statuses = {*operation.failures, *EVERYWHERE, *((401,) if row.keys else ())} - operation.replies.keys()
    names = (*_PLACE.findall(row.path), *operation.parameters)
    return {
        "tags": [operation.tag],
        "summary": row.meaning,
        "operationId": _id(prefix, row),
        "security": _security(row, operation, installation),
        **({"parameters": [{"$ref": f"#/components/parameters/{name}"} for name in names]} if names else {}),
        **({"requestBody": _body(operation, installation)} if operation.bodies else {}),
        "responses": {
            **{str(status): _reply(reply) for status, reply in operation.replies.items()},
            **{str(status): {"$ref": f"#/components/responses/Error{status}"} for status in sorted(statuses)},
        },
    }


def _body(operation: Operation, installation: Installation) -> Json:
    most = {JSON: f"max_json_bytes: {installation.json}", FORM: f"max_upload_bytes: {installation.upload}"}
    return {
        "required": True,
        "description": f"Bytes at most, as {' and '.join(most[media] for media in operation.bodies)}.",
        "content": {media: {"schema": schema} for media, schema in operation.bodies.items()},
    }


def _id(prefix: str, row: Row) -> str:
    words = re.findall(r"[a-z0-9]+", f"{row.method} {prefix}{row.path.replace(':path', '')}".lower())
    return "_".join(words)


def _security(row: Row, operation: Operation, installation: Installation) -> list[Json]:
    """The keys, any of which will do. {}: none is needed."""
    keys: list[Json] = [{name: []} for name in KEYS]
    if "token" in operation.parameters:
        return [{name: []} for name in TOKEN] + keys
    if "stream" in operation.parameters:
        return [*keys, {}]  # a token is in the value
    if not row.keys:
        return []
    return keys if installation.keyed else [*keys, {}]


def _reply(reply: Reply) -> Json:
    content = {media: {"schema": schema} for media, schema in reply.body.items()}
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in (*reply.headers, "X-Request-Id")}
    return {"description": reply.meaning, "headers": headers, **({"content": content} if content else {})}


def _failures() -> Iterator[tuple[str, Json]]:
    """One response a status, with an example of each failure that has it."""
    rows = [failure.value for failure in Failure if failure.value.status != CALLER_LEFT]
    for status in sorted({row.status for row in rows}):
        examples = {
            row.code: {
                "summary": "may have been charged" if row.charged else "not charged",
                "value": {
                    "error": {"message": _MESSAGE, "type": row.type, "param": None, "code": row.code},
                    "request_id": "req_1",
                },
            }
            for row in rows
            if row.status == status
        }
        schema = ref("HTTPValidationError" if status == Failure.INVALID_REQUEST.value.status else "Error")
        said = Reply(", ".join(examples), {}, ("Retry-After", "X-Should-Retry", "Proxy-Status"))
        yield f"Error{status}", {**_reply(said), "content": {JSON: {"schema": schema, "examples": examples}}}


def _parameter(name: str) -> Json:
    found = PARAMETERS[name]
    repeated = (
        {"schema": {"type": "array", "items": found.schema}} if found.name == "stream" else {"schema": found.schema}
    )
    needed = {"required": True} if found.place == "path" else {}
    return {"name": found.name, "in": found.place, "description": found.meaning, **needed, **repeated}
