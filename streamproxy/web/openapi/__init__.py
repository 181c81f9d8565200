"""/openapi.json: every route and its schemas, as OpenAPI 3.1.

    document(rows, prefixes, installed)    the whole document, made of tables

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
from streamproxy.web.openapi.operations import FORM, HEADERS, JSON, OPERATIONS, PARAMETERS, Given, Operation

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
class Installed:
    """What of the settings the document depends on. `keyed`: whether a request needs a caller's key.

    `json` and `upload`: the most bytes of a body in JSON, and of a form.
    """

    public_url: str | None
    keyed: bool
    json: int
    upload: int


def document(rows: Sequence[Row], prefixes: Sequence[str], installed: Installed) -> Json:
    """The document. Raises KeyError for a row whose handler has no operation."""
    paths: dict[str, dict[str, object]] = {}
    for prefix, row in _places(rows, prefixes):
        path = prefix + _PLACE.sub(r"{\1}", row.path)
        paths.setdefault(path, {})[row.method.lower()] = _operation(prefix, row, installed)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "streamproxy",
            "version": version("streamproxy"),
            "license": {"name": "MIT", "identifier": "MIT"},
            "description": "Makes every image model stream, to every client. /docs has more in words.",
        },
        **({"servers": [{"url": installed.public_url}]} if installed.public_url else {}),
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


def _operation(prefix: str, row: Row, installed: Installed) -> Json:
    found = OPERATIONS[row.handler]
    fails = {*found.fails, *EVERYWHERE, *((401,) if row.keys else ())} - found.gives.keys()
    asks = (*_PLACE.findall(row.path), *found.asks)
    return {
        "tags": [found.tag],
        "summary": row.meaning,
        "operationId": _id(prefix, row),
        "security": _security(row, found, installed),
        **({"parameters": [{"$ref": f"#/components/parameters/{name}"} for name in asks]} if asks else {}),
        **({"requestBody": _body(found, installed)} if found.takes else {}),
        "responses": {
            **{str(status): _given(given) for status, given in found.gives.items()},
            **{str(status): {"$ref": f"#/components/responses/Error{status}"} for status in sorted(fails)},
        },
    }


def _body(found: Operation, installed: Installed) -> Json:
    most = {JSON: f"max_json_bytes: {installed.json}", FORM: f"max_upload_bytes: {installed.upload}"}
    return {
        "required": True,
        "description": f"Bytes at most, as {' and '.join(most[media] for media in found.takes)}.",
        "content": {media: {"schema": schema} for media, schema in found.takes.items()},
    }


def _id(prefix: str, row: Row) -> str:
    words = re.findall(r"[a-z0-9]+", f"{row.method} {prefix}{row.path.replace(':path', '')}".lower())
    return "_".join(words)


def _security(row: Row, found: Operation, installed: Installed) -> list[Json]:
    """Any of the keys; none where a request may do without."""
    tokens: list[Json] = [{name: []} for name in TOKEN] if "token" in found.asks else []
    if not row.keys and not tokens:
        return []
    keys: list[Json] = [*tokens, *({name: []} for name in KEYS)]
    return keys if installed.keyed or tokens else [*keys, {}]


def _given(given: Given) -> Json:
    content = {media: {"schema": schema} for media, schema in given.body.items()}
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in (*given.headers, "X-Request-Id")}
    return {"description": given.meaning, "headers": headers, **({"content": content} if content else {})}


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
        said = Given(", ".join(examples), {}, ("Retry-After", "X-Should-Retry", "Proxy-Status"))
        yield f"Error{status}", {**_given(said), "content": {JSON: {"schema": schema, "examples": examples}}}


def _parameter(name: str) -> Json:
    found = PARAMETERS[name]
    repeated = {"schema": {"type": "array", "items": found.schema}} if name == "stream" else {"schema": found.schema}
    needed = {"required": True} if found.place == "path" else {}
    return {"name": name, "in": found.place, "description": found.meaning, **needed, **repeated}
