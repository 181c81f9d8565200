"""The OpenAPI document: valid, complete by the tables, and of one mind with the checks of requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Final

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from streamproxy.core.conversation import Progress
from streamproxy.core.events import ERROR, KINDS, Role
from streamproxy.core.rawjson import parse
from streamproxy.core.schema import RULES, FieldType, Rule, edit, generation
from streamproxy.errors import Failure, ProxyError
from streamproxy.web.openapi import Installation, document
from streamproxy.web.openapi.images import event_name
from streamproxy.web.routes import PREFIXES, ROUTES
from tests.support.openapi import DOCUMENT, named, problems, resolved
from tests.support.proxy import running_proxy

Json = dict[str, Any]
SCHEMAS: Final[Json] = DOCUMENT["components"]["schemas"]


def test_it_is_openapi() -> None:
    assert [str(error) for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()] == []


def test_every_route_is_there_and_no_other() -> None:
    routes = {
        (row.method.lower(), prefix + row.path.replace(":path}", "}"))
        for row in ROUTES
        for prefix in (PREFIXES if row.surface else ("",))
    }
    assert {(method, path) for path, item in DOCUMENT["paths"].items() for method in item} == routes


@pytest.mark.parametrize("kind", ["schemas", "parameters", "headers", "responses"])
def test_every_component_is_used(kind: str) -> None:
    text = json.dumps(DOCUMENT)
    assert [name for name in DOCUMENT["components"][kind] if f'"#/components/{kind}/{name}"' not in text] == []


def members(schema: Json) -> dict[str, str]:
    """The type of each member of an object; of one that may be null with a question mark behind it."""
    found = {}
    for name, member in schema["properties"].items():
        kinds = [one for one in member.get("anyOf", [member]) if one.get("type") != "null"]
        types = {one.get("type") or one["$ref"].rpartition("/")[2] for one in kinds}
        found[name] = "|".join(sorted(types)) + ("?" if len(kinds) < len(member.get("anyOf", [member])) else "")
    return found


EDEN: Final[dict[str, dict[str, str]]] = {
    "ImageGenerationBody": {
        **{"model": "string", "prompt": "string", "n": "integer?", "size": "string?", "user": "string?"},
        **{"metadata": "object?", "extra_headers": "object?", "quality": "string?", "response_format": "string?"},
    },
    "ImageEditJsonBody": {
        **{"model": "string", "prompt": "string", "n": "integer?", "size": "string?", "user": "string?"},
        **{"metadata": "object?", "extra_headers": "object?", "images": "array", "mask": "ImageRef?"},
    },
    "ImageRef": {"file_id": "string?", "image_url": "string?"},
    "ImageDataItem": {"url": "string?", "b64_json": "string?", "revised_prompt": "string?"},
    "ValidationError": {"loc": "array", "msg": "string", "type": "string"},
}
"""The members that Eden AI's document names, with their types."""


@pytest.mark.parametrize("name", EDEN)
def test_eden_ais_members(name: str) -> None:
    found = members(SCHEMAS[name])
    assert {member: found.get(member) for member in EDEN[name]} == EDEN[name]


def test_eden_ais_answers() -> None:
    found = members(SCHEMAS["ImageResponse"])
    wanted = {"cost": "number?", "provider": "string?", "created": "integer?", "data": "array", "usage": "Usage?"}
    assert {member: found[member] for member in wanted} == wanted
    assert SCHEMAS["HTTPValidationError"]["properties"]["detail"]["items"] == named("ValidationError")
    for path in ("/v3/images/generations", "/v3/images/edits"):
        answers = DOCUMENT["paths"][path]["post"]["responses"]
        assert answers["200"]["content"]["application/json"]["schema"] == named("ImageResponse")
        refused = resolved(answers["422"])["content"]["application/json"]["schema"]
        assert refused == named("HTTPValidationError")


def test_eden_ais_bounds() -> None:
    body, refs = SCHEMAS["ImageGenerationBody"], SCHEMAS["ImageEditJsonBody"]
    assert (body["required"], refs["required"]) == (["model", "prompt"], ["model", "prompt", "images"])
    assert body["additionalProperties"] is refs["additionalProperties"] is True
    assert SCHEMAS["ImageRef"]["additionalProperties"] is False
    prompt, n, images = (part["properties"] for part in (body, body, refs))
    assert (prompt["prompt"]["minLength"], prompt["prompt"]["maxLength"]) == (1, 32_000)
    assert (n["n"]["anyOf"][0]["minimum"], n["n"]["anyOf"][0]["maximum"]) == (1, 10)
    assert (images["images"]["minItems"], images["images"]["maxItems"]) == (1, 16)


def values(rule: Rule) -> Iterator[object]:
    """Values at both sides of a rule's bounds, and of other types."""
    yield from (None, [], {}, 1.5)
    match rule.kind:
        case FieldType.STRING:
            yield from ("a" * length for length in (0, 1, rule.high, rule.high + 1))
        case FieldType.INTEGER:
            yield from (rule.low - 1, rule.low, rule.high, rule.high + 1)
        case FieldType.BOOLEAN:
            yield from (True, False)
        case FieldType.OBJECT:
            yield from ({"a": 1}, "a")


PNG: Final = "data:image/png;base64,AAAA"
REFERENCE: Final = {"image_url": PNG}
REFERENCES: Final[list[object]] = [
    *([], {}, [{}], [{"file_id": "f"}], [{"file_id": "f", "image_url": PNG}], [{"file_id": "f", "image_url": None}]),
    *([REFERENCE] * 16, [REFERENCE] * 17, [{"file_id": ""}], [{"file_id": "f", "more": 1}], [{"file_id": 1}]),
    *([{"file_id": "f" * 1024}], [{"file_id": "f" * 1025}]),
]
MASKS: Final[list[object]] = [None, {"file_id": "f"}, {}, "f", {"image_url": PNG, "more": 1}]
INLINE: Final[list[object]] = [None, PNG, [PNG], [], [PNG] * 16, [PNG] * 17, 1, [1], {}]

BODIES: Final = [
    *((rule.name, value, "ImageGenerationBody") for rule in RULES for value in values(rule)),
    *(("image", value, "ImageGenerationBody") for value in INLINE),
    *(("images", value, "ImageEditJsonBody") for value in REFERENCES),
    *(("mask", value, "ImageEditJsonBody") for value in MASKS),
]


def refused(name: str, body: Json) -> bool:
    check = generation if name == "ImageGenerationBody" else edit
    try:
        check(parse(json.dumps(body).encode()))
    except ProxyError:
        return True
    return False


@pytest.mark.parametrize(("member", "value", "name"), BODIES, ids=lambda value: str(value)[:24])
def test_it_refuses_what_the_proxy_refuses(member: str, value: object, name: str) -> None:
    body = {"model": "m", "prompt": "p", **({"images": [{"file_id": "f"}]} if "Edit" in name else {}), member: value}
    assert bool(problems(named(name), body)) is refused(name, body)


@pytest.mark.parametrize("member", ["model", "prompt", "images"])
def test_it_requires_what_the_proxy_requires(member: str) -> None:
    body: Json = {"model": "m", "prompt": "p", "images": [{"file_id": "f"}]}
    del body[member]
    assert problems(named("ImageEditJsonBody"), body)
    assert refused("ImageEditJsonBody", body)


def test_progress_is_described() -> None:
    [progress, _] = SCHEMAS["Stream"]["properties"]["progress"]["anyOf"]
    assert [*progress["properties"]] == [member.name for member in fields(Progress)]


def test_every_event_that_is_sent() -> None:
    sent = [event_name(kind.type) for kind in KINDS.values() if kind.role is not Role.FAILED] + [event_name(ERROR)]
    assert SCHEMAS["ImageEvent"]["oneOf"] == [named(name) for name in sent]
    for kind in KINDS.values():
        if kind.role is not Role.FAILED:
            assert SCHEMAS[event_name(kind.type)]["properties"]["type"]["const"] == kind.type


def test_every_failure_is_an_example() -> None:
    found = {
        (code, int(name.removeprefix("Error")), example["value"]["error"]["type"], example["summary"])
        for name, response in DOCUMENT["components"]["responses"].items()
        for code, example in response["content"]["application/json"]["examples"].items()
    }
    rows = [failure.value for failure in Failure if failure.value.status != 499]
    said = {True: "may have been charged", False: "not charged"}
    assert found == {(row.code, row.status, row.type, said[row.charged]) for row in rows}


def test_examples_are_valid() -> None:
    checked = 0
    for name, schema in SCHEMAS.items():
        for example in schema.get("examples", ()):
            assert problems(named(name), example) == [], name
            checked += 1
    for response in DOCUMENT["components"]["responses"].values():
        [content] = response["content"].values()
        for example in content["examples"].values():
            assert problems(content["schema"], example["value"]) == []
    assert checked >= 7


@pytest.mark.parametrize("keyed", [False, True])
def test_an_installation(keyed: bool) -> None:
    made: Any = document(ROUTES, PREFIXES, Installation("https://images.example", keyed, json=65_536, upload=65_537))
    assert made["servers"] == [{"url": "https://images.example"}]
    edits = made["paths"]["/v1/images/edits"]["post"]
    assert ({} in edits["security"]) is not keyed
    assert edits["requestBody"]["description"] == "Bytes at most, as max_json_bytes: 65536 and max_upload_bytes: 65537."
    assert made["paths"]["/livez"]["get"]["security"] == []
    assert {} in made["paths"]["/v1/streams"]["get"]["security"]
    assert {"token": []} in made["paths"]["/v1/streams/{id}"]["get"]["security"]
    assert {} not in made["paths"]["/v1/streams/{id}"]["get"]["security"]


@pytest.mark.anyio
async def test_it_is_served() -> None:
    settings: Json = {"caller_keys": (f"sha256:{'0' * 64}",), "public_url": "https://images.example"}
    settings |= {"max_json_bytes": 65_536, "max_upload_bytes": 65_537}
    async with running_proxy("http://127.0.0.1:9", **settings) as proxy:
        answer = await proxy.client.get(f"{proxy.url}/openapi.json", headers={"origin": "https://any.test"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["access-control-allow-origin"] == "*"
    made = document(ROUTES, PREFIXES, Installation("https://images.example", keyed=True, json=65_536, upload=65_537))
    assert answer.json() == json.loads(json.dumps(made))
