"""A checked JSON body -> its Fields, or every problem at once.

Strategy: look at the raw slice of each value. Its first byte says its type (the body is valid JSON by now), its length
bounds its number of characters, and only short strings and numbers are ever decoded: an image of 20 MB is measured
where it lies.

Sources: OpenAI's CreateImageRequest and EditImageBodyJsonParam; Eden AI's ImageGenerationBody and ImageEditJsonBody;
Octen AI's `image` and `mask` on generations.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

import msgspec

from streamproxy.core.dataurl import is_readable
from streamproxy.core.fields import (
    MAX_EXTRA_HEADERS,
    MAX_IMAGE_URL,
    MAX_IMAGES,
    MAX_PROMPT,
    MAX_TEXT,
    RULES,
    Checklist,
    Fields,
    FieldType,
    Loc,
    Rule,
    extra_headers_too_large,
    lax_boolean,
    lax_integer,
)
from streamproxy.core.forms import form
from streamproxy.core.jsonbody import JsonObject, elements, members
from streamproxy.core.jsonwalk import shown

__all__ = ["Fields", "edit", "form", "generation"]

_SOURCES: Final = {"file_id": MAX_TEXT, "image_url": MAX_IMAGE_URL}
"""What an image reference may hold, and how many characters of it."""
_ANY_LENGTH: Final = 1 << 62
"""For inline images, which only the body's own limit bounds."""
_LONGEST_ESCAPE: Final = 12
"""Bytes of JSON per character, at most: a surrogate pair, written as two `\\uXXXX`."""
_LONGEST_SCALAR: Final = 32
"""Bytes of an integer or boolean in another spelling."""
_INTEGER: Final = re.compile(rb"-?[0-9]++\Z")


def generation(body: JsonObject, *, max_prompt: int = MAX_PROMPT) -> Fields:
    """Check a generation body; one with a non-null `image` is an edit.

    Raises ProxyError: INVALID_REQUEST with every problem in field order; before that DUPLICATE_KEY,
    EXTRA_HEADERS_TOO_LARGE or INVALID_JSON for an `extra_headers` that cannot be read.
    """
    reading = _Reading(body)
    reading.table(max_prompt)
    if is_edit := reading.given("image"):
        reading.inline_images()
    return reading.fields(edit=is_edit)


def edit(body: JsonObject, *, max_prompt: int = MAX_PROMPT) -> Fields:
    """Check an edit's JSON body, whose `images` and `mask` are references: `{"image_url": ...}` or `{"file_id": ...}`.

    Raises as `generation`, and DUPLICATE_KEY for a reference with the same key twice.
    """
    reading = _Reading(body)
    reading.table(max_prompt)
    reading.references()
    return reading.fields(edit=True)


class _Reading:
    """The checks of one body; a span is the offsets (from, to) of a value in it."""

    __slots__ = ("body", "checks", "raw")

    def __init__(self, body: JsonObject) -> None:
        self.body = body
        self.raw = body.raw
        self.checks = Checklist()

    def given(self, key: str) -> bool:
        member = self.body.members.get(key)
        return member is not None and not self.raw.startswith(b"null", member.value)

    def span(self, key: str) -> tuple[int, int]:
        member = self.body.members[key]
        return member.value, member.end

    def table(self, max_prompt: int) -> None:
        for rule in RULES:
            if rule.name == "prompt":
                rule = replace(rule, high=max_prompt)
            if rule.name not in self.body.members:
                if rule.required:
                    self.checks.missing(rule.name)
            elif rule.required or self.given(rule.name):
                self.field(rule, self.span(rule.name))

    def field(self, rule: Rule, span: tuple[int, int]) -> None:
        start, end = span
        loc = (rule.name,)
        match rule.kind:
            case FieldType.STRING:
                if not self.string(loc, span, rule.low, rule.high):
                    return
                if rule.name == "prompt":
                    self.checks.present(rule.name)
                else:
                    self.checks.text(rule.name, msgspec.json.decode(self.raw[start:end], type=str))
            case FieldType.INTEGER:
                if _INTEGER.match(self.raw, start, end):
                    self.checks.number(rule, self.raw[start : min(end, start + 32)].decode())
                elif (digits := self.integer(span)) is not None:
                    self.checks.number(rule, digits)
                    self.checks.spelt(rule.name, digits)
                else:
                    self.checks.problem(loc, "Input should be a valid integer", "int_type")
            case FieldType.BOOLEAN:
                if self.raw.startswith((b"true", b"false"), start):
                    self.checks.flag(rule.name, self.raw.startswith(b"true", start))
                elif (flag := self.boolean(span)) is not None:
                    self.checks.flag(rule.name, flag)
                    self.checks.spelt(rule.name, "true" if flag else "false")
                else:
                    self.checks.problem(loc, "Input should be a valid boolean", "bool_type")
            case FieldType.OBJECT:
                if not self.raw.startswith(b"{", start):
                    self.checks.problem(loc, "Input should be a valid dictionary", "dict_type")

    def integer(self, span: tuple[int, int]) -> str | None:
        """An integer that is written as a text, a boolean or a float without a fraction."""
        value = self.scalar(span)
        if isinstance(value, str):
            return lax_integer(value)
        return str(int(value)) if isinstance(value, bool | float) and value == int(value) else None

    def boolean(self, span: tuple[int, int]) -> bool | None:
        """A boolean that is written as a text, or as 1 or 0."""
        value = self.scalar(span)
        if isinstance(value, str):
            return lax_boolean(value)
        return bool(value) if isinstance(value, int | float) and value in (0, 1) else None

    def scalar(self, span: tuple[int, int]) -> str | float | bool | None:
        """A short text, number or boolean; None for all else."""
        start, end = span
        if end - start > _LONGEST_SCALAR or self.raw.startswith((b"{", b"["), start):
            return None
        value = msgspec.json.decode(self.raw[start:end])
        return value if isinstance(value, str | int | float) else None

    def string(self, loc: Loc, span: tuple[int, int], low: int, high: int) -> bool:
        if not self.raw.startswith(b'"', span[0]):
            self.checks.problem(loc, "Input should be a valid string", "string_type")
            return False
        return self.checks.length(loc, self.characters(span, high), low, high)

    def characters(self, span: tuple[int, int], high: int) -> int:
        """A string's length, exact only where it matters: on either side of `high` a bound is enough."""
        start, end = span[0] + 1, span[1] - 1
        size = end - start
        if size <= high or size > high * _LONGEST_ESCAPE:
            return size
        if self.raw.find(b"\\", start, end) < 0 and self.raw.isascii():
            return size
        return len(msgspec.json.decode(memoryview(self.raw)[span[0] : span[1]], type=str))

    def inline_images(self) -> None:
        """`image`: a string or an array of strings, data URLs or bare base64; `mask`: one string."""
        span = self.span("image")
        if self.raw.startswith(b"[", span[0]):
            spans = elements(self.body, span[0], limit=MAX_IMAGES + 1, where="image")
            if self.checks.items(("image",), len(spans), 1, MAX_IMAGES):
                for index, item in enumerate(spans):
                    self.inline_image(("image", index), item)
        elif self.raw.startswith(b'"', span[0]):
            self.inline_image(("image",), span)
        else:
            msg = "Input should be a valid string or a list of strings"
            self.checks.problem(("image",), msg, "string_type")
        if self.given("mask") and not self.raw.startswith(b'""', self.span("mask")[0]):
            self.inline_image(("mask",), self.span("mask"))

    def inline_image(self, loc: Loc, span: tuple[int, int]) -> None:
        if self.string(loc, span, 1, _ANY_LENGTH):
            self.readable(loc, span, bare=True)

    def readable(self, loc: Loc, span: tuple[int, int], *, bare: bool = False) -> None:
        if not is_readable(self.raw, span[0] + 1, span[1] - 1, bare=bare):
            self.checks.problem(loc, "Value error, the image is not valid base64", "value_error")

    def references(self) -> None:
        """`images`: an array of references; `mask`: one."""
        if "images" not in self.body.members:
            self.checks.missing("images")
        else:
            start = self.span("images")[0]
            if not self.raw.startswith(b"[", start):
                self.checks.problem(("images",), "Input should be a valid list", "list_type")
            else:
                spans = elements(self.body, start, limit=MAX_IMAGES + 1, where="images")
                if self.checks.items(("images",), len(spans), 1, MAX_IMAGES):
                    for index, (at, _) in enumerate(spans):
                        self.reference(("images", index), at)
        if self.given("mask"):
            self.reference(("mask",), self.span("mask")[0])

    def reference(self, loc: Loc, start: int) -> None:
        """An object with exactly one non-null of `file_id` and `image_url`, and nothing else."""
        if not self.raw.startswith(b"{", start):
            self.checks.problem(loc, "Input should be a valid dictionary", "dict_type")
            return
        where = str(loc[0]) if len(loc) == 1 else f"{loc[0]}[{loc[1]}]"
        sources = 0
        for place, (key, member) in enumerate(members(self.body, start, where=where).items(), 1):
            if key not in _SOURCES:
                self.checks.problem((*loc, shown(key, place)), "Extra inputs are not permitted", "extra_forbidden")
            elif not self.raw.startswith(b"null", member.value):
                sources += 1
                source, span = (*loc, key), (member.value, member.end)
                if self.string(source, span, 1, _SOURCES[key]) and key == "image_url":
                    self.readable(source, span)
        if sources != 1:
            self.checks.problem(loc, "Value error, exactly one of file_id and image_url is required", "value_error")

    def fields(self, *, edit: bool) -> Fields:
        return self.checks.fields(edit=edit, extra_headers=self.extra_headers())

    def extra_headers(self) -> object:
        if not self.given("extra_headers"):
            return None
        start, end = self.span("extra_headers")
        if end - start > MAX_EXTRA_HEADERS:
            raise extra_headers_too_large()
        if self.raw.startswith(b"{", start):
            members(self.body, start, where="extra_headers")  # refuses duplicate keys
        return self.body.decode("extra_headers")
