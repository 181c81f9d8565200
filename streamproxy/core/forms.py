"""The checks of a multipart edit: its text parts and file parts become Fields, or one error with every problem.

Only the names and sizes of files are needed here. The official SDKs send `image` for one file and `image[]` for a list;
other clients send `images`, `images[]` and `image[0]` with the same meaning.

Sources: OpenAI's CreateImageEditRequest; the requests of openai-python 3.52 and openai-node 7.55.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import msgspec

from streamproxy.core.rawjson import parse
from streamproxy.core.schema import (
    MAX_EXTRA_HEADERS,
    MAX_IMAGES,
    MAX_MODEL,
    MAX_PROMPT,
    RULES,
    Checklist,
    Fields,
    FieldType,
    Rule,
    extra_headers_too_large,
    lax_boolean,
    lax_integer,
)

VARIATION: Final = tuple(replace(rule, low=0, required=False) if rule.name == "prompt" else rule for rule in RULES)
"""The rules of a variation, which needs no prompt."""

_IMAGE: Final = re.compile(r"images?(?:\[\])?|image\[([0-9]{1,4})\]")


def is_image_part(name: str) -> bool:
    """Whether a part of this name is an input image."""
    return _IMAGE.fullmatch(name) is not None


def form(
    text: Mapping[str, Sequence[str]],
    files: Mapping[str, Sequence[int]],
    *,
    max_prompt: int = MAX_PROMPT,
    variation: bool = False,
) -> Fields:
    """Check a multipart edit. `text`: the values of each text part in order; `files`: the sizes of each name's files.

    A variation has one image, and needs no prompt.

    Raises ProxyError: INVALID_REQUEST with every problem in field order; INVALID_JSON or DUPLICATE_KEY for an
    `extra_headers` part that starts like an object and cannot be read.
    """
    checks = Checklist()
    rules, most = (VARIATION, 1) if variation else (RULES, MAX_IMAGES)
    for rule in rules:
        values = text.get(rule.name, ())
        if files.get(rule.name):
            checks.problem((rule.name,), "Input should be a valid string", "string_type")
        elif rule.kind is FieldType.NAMES:
            _names(checks, rule, (*values, *text.get(f"{rule.name}[]", ())))
        elif len(values) > 1:
            checks.problem((rule.name,), "Value error, the part was sent more than once", "value_error")
        elif values:
            _field(checks, rule if rule.name != "prompt" else replace(rule, high=max_prompt), values[0])
        elif rule.required:
            checks.missing(rule.name)
    _images(checks, text, files, most)
    extra_headers = _extra_headers(checks, text.get("extra_headers", ()))
    return checks.fields(edit=True, extra_headers=extra_headers)


def _field(checks: Checklist, rule: Rule, value: str) -> None:
    loc = (rule.name,)
    match rule.kind:
        case FieldType.STRING:
            if checks.length(loc, len(value), rule.low, rule.high) and rule.name != "prompt":  # a prompt may be large
                checks.text(rule.name, value)
        case FieldType.INTEGER:
            if (digits := lax_integer(value)) is not None:
                checks.number(rule, digits)
                if digits != value:
                    checks.spelt(rule.name, digits)
            else:
                checks.problem(
                    loc, "Input should be a valid integer, unable to parse string as an integer", "int_parsing"
                )
        case FieldType.BOOLEAN:
            if (flag := lax_boolean(value)) is not None:
                checks.flag(rule.name, flag)
                if value not in ("true", "false"):
                    checks.spelt(rule.name, "true" if flag else "false")
            else:
                checks.problem(loc, "Input should be a valid boolean, unable to interpret input", "bool_parsing")
        case FieldType.OBJECT:
            if not value.lstrip(" \t\r\n").startswith("{"):
                checks.problem(loc, "Input should be a valid dictionary", "dict_type")
        case FieldType.NAMES:
            raise AssertionError("it comes in several parts")


def _names(checks: Checklist, rule: Rule, values: Sequence[str]) -> None:
    """One part for each name, `fallbacks` or `fallbacks[]`; none is the same as no member."""
    if not checks.items((rule.name,), len(values), rule.low, rule.high):
        return
    for index, value in enumerate(values):
        checks.length((rule.name, index), len(value), 1, MAX_MODEL)
    if values:
        checks.names(rule.name, values)


def _images(
    checks: Checklist, text: Mapping[str, Sequence[str]], files: Mapping[str, Sequence[int]], most: int
) -> None:
    total = sum(len(sizes) for name, sizes in files.items() if is_image_part(name))
    for name, sizes in files.items():
        if 0 in sizes and (is_image_part(name) or name == "mask"):
            checks.problem((name,), "Value error, the file is empty", "value_error")
    if any(int(found[1]) >= MAX_IMAGES for name in files if (found := _IMAGE.fullmatch(name)) and found[1]):
        total = MAX_IMAGES + 1  # a gap in the numbers does not make `image[16]` one of sixteen
    if any(is_image_part(name) for name in text):
        checks.problem(("image",), "Value error, expected a file", "value_error")
    elif not total:
        checks.missing("image")
    else:
        checks.items(("image",), total, 1, most)
    if "mask" in text:
        checks.problem(("mask",), "Value error, expected a file", "value_error")
    checks.items(("mask",), len(files.get("mask", ())), 0, 1)


def _extra_headers(checks: Checklist, values: Sequence[str]) -> object:
    """The part as decoded JSON. The header policy checks that it is an object, as for a JSON body."""
    if not values:
        return None
    if len(values) > 1:
        checks.problem(("extra_headers",), "Value error, the part was sent more than once", "value_error")
        return None
    raw = values[0].encode("utf-8", "surrogatepass").strip(b" \t\r\n")
    if len(raw) > MAX_EXTRA_HEADERS:
        raise extra_headers_too_large()
    if raw.startswith(b"{"):
        headers = parse(raw, where="extra_headers")
        return {key: headers.decode(key) for key in headers.members}
    try:
        return msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        checks.problem(("extra_headers",), "Input should be valid JSON", "json_invalid")
        return None
