"""The OpenAPI document, and real answers held against it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import httpx
import orjson
from openapi_schema_validator import OAS31Validator

from streamproxy.web.openapi import Installation, document
from streamproxy.web.routes import PREFIXES, ROUTES
from tests.support.proxy import Proxy

Json = dict[str, Any]

INSTALLATION: Final = Installation(None, keyed=False, json=1, upload=2)
DOCUMENT: Final[Json] = orjson.loads(orjson.dumps(document(ROUTES, PREFIXES, INSTALLATION)))


def closed(found: Any) -> Any:
    """The same with objects that have no further members: what the proxy itself and the simulator send is all named."""
    if isinstance(found, list):
        return [closed(one) for one in found]
    if not isinstance(found, dict):
        return found
    inner = {name: closed(value) for name, value in found.items()}
    return {**inner, "additionalProperties": False} if "properties" in found else inner


OPEN: Final[Json] = DOCUMENT["components"]
CLOSED: Final[Json] = closed(OPEN)
DONE: Final = b"[DONE]"
MANY: Final = "ManyImageEvent"
"""An event with a member more."""


def resolved(found: Json) -> Json:
    """What a `$ref` names, or the object itself."""
    while "$ref" in found:
        here: Any = DOCUMENT
        for name in found["$ref"].removeprefix("#/").split("/"):
            here = here[name]
        found = here
    return found


def problems(schema: Json, value: object, components: Json = OPEN) -> list[str]:
    """What is wrong with a value, by the schema; a `$ref` is one of the components."""
    found = OAS31Validator({"allOf": [schema], "components": components}).iter_errors(value)
    return [f"{'/'.join(map(str, error.path))}: {error.message[:200]}" for error in found]


def named(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


class Checker:
    """Sends requests to a proxy, and holds each answer against the operation. `seen`: the operations so far."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self.seen: set[tuple[str, str]] = set()

    async def ask(
        self, method: str, path: str, status: int = 200, *, accept: str | None = None, **request: Any
    ) -> httpx.Response:
        """The answer, which must have this status and be as described."""
        headers = {**(request.pop("headers", None) or {}), **({"accept": accept} if accept else {})}
        answer = await self._proxy.client.request(method, self._proxy.url + path, headers=headers, **request)
        assert answer.status_code == status, (path, answer.status_code, answer.text[:500])
        template = place(path.partition("?")[0])
        self.seen.add((method, template))
        operation = DOCUMENT["paths"][template][method.lower()]
        check(operation, answer, f"{method} {template}")
        return answer


def place(path: str) -> str:
    """The path of the document that a request's path is of: the most particular one."""
    patterns = {template: re.sub(r"\{\w+\}", ".+", template) for template in DOCUMENT["paths"]}
    found = [template for template, pattern in patterns.items() if re.fullmatch(pattern, path)]
    return str(max(found, key=lambda template: len(patterns[template])))


def check(operation: Json, answer: httpx.Response, where: str) -> None:
    """Status, content type, headers and body are described."""
    described = resolved(operation["responses"][str(answer.status_code)])
    content: Mapping[str, Json] = described.get("content", {})
    if not answer.content:
        assert not content or answer.status_code in (204, 304, 416), where
        return
    media = answer.headers["content-type"].partition(";")[0]
    kind = next(kind for kind in (media, f"{media.partition('/')[0]}/*", "*/*") if kind in content)
    schema = content[kind]["schema"]
    if kind == "application/json":
        wrong = problems(schema, answer.json(), CLOSED)
        assert not wrong, (where, wrong)
    elif kind == "text/event-stream":
        found = told(answer.content)
        assert found, where
        for event in found:
            wrong = problems(schema, event, OPEN if schema == named(MANY) else CLOSED)
            assert not wrong, (where, wrong, event.get("type"))


def told(body: bytes) -> list[Json]:
    """The data of each event, which is one line, without a chat's last word."""
    lines = [line.removeprefix(b"data: ") for line in body.split(b"\n") if line.startswith(b"data: ")]
    return [orjson.loads(line) for line in lines if line != DONE]
