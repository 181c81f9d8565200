"""JSON Schema (2020-12) in few words. Objects are open, as those of OpenAI are: a provider's further members pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

Schema = Mapping[str, object]


def ref(name: str) -> Schema:
    """A schema of the document, by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def typed(kind: str, meaning: str = "", **more: object) -> Schema:
    """A value of one JSON type."""
    return {"type": kind, **more, **({"description": meaning} if meaning else {})}


def text(meaning: str = "", **more: object) -> Schema:
    """A string."""
    return typed("string", meaning, **more)


def whole(meaning: str = "", **more: object) -> Schema:
    """An integer."""
    return typed("integer", meaning, **more)


def array(items: Schema, meaning: str = "", **more: object) -> Schema:
    """An array of these."""
    return typed("array", meaning, items=items, **more)


def maybe(schema: Schema) -> Schema:
    """The schema or null; its description stays outside."""
    inner = {name: value for name, value in schema.items() if name != "description"}
    outer = {name: value for name, value in schema.items() if name == "description"}
    return {"anyOf": [inner, {"type": "null"}], **outer}


def record(members: Mapping[str, Schema], *required: str, meaning: str = "", **more: object) -> Schema:
    """An object that may have further members, unless `more` says otherwise."""
    described = {"description": meaning} if meaning else {}
    needed = {"required": [*required]} if required else {}
    return {"type": "object", **described, "properties": members, **needed, "additionalProperties": True, **more}


def constant(value: str) -> Schema:
    """One string."""
    return {"type": "string", "const": value}


ANY_OBJECT: Final[Schema] = {"type": "object", "additionalProperties": True}


def listing(item: str, meaning: str = "") -> Schema:
    """OpenAI's list of these, in pages."""
    id = maybe(text())
    pages: Mapping[str, Schema] = {"first_id": id, "last_id": id, "has_more": typed("boolean")}
    members = {"object": constant("list"), "data": array(ref(item)), **pages}
    return record(members, "object", "data", "has_more", meaning=meaning)
