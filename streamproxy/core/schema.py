"""The fields of an image request that the proxy itself reads, and the checks of a JSON body.

    generation(body), edit(body)     a checked JSON body -> its Fields, or one error with every problem

RULES is the one table, in the order in which problems are reported. This module applies it to JSON, `core/forms.py` to
multipart parts. Both collect into a Checklist, which ends in Fields or in one error that names every problem.

Choices (size, quality, background ...) accept any string; the provider validates them. Fields without a row are not
checked. Messages never contain a value. Their types and texts are pydantic's, which FastAPI's callers know.

Strategy for JSON: look at the raw slice of each value. Its first byte gives its type (the body is valid JSON by now),
its length bounds its number of characters, and only short strings and numbers are ever decoded. An image of 20 MB is
measured where it lies.

Sources: OpenAI's CreateImageRequest and EditImageBodyJsonParam; Eden AI's ImageGenerationBody and ImageEditJsonBody;
Octen AI's `image` and `mask` on generations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

import msgspec

from streamproxy.core.images import is_readable
from streamproxy.core.rawjson import JsonObject, elements, members, shown
from streamproxy.errors import ErrorDetails, Failure, Problem, ProxyError

MAX_IMAGES: Final = 16
"""Input images of one edit, in all three forms (OpenAI's EditImageBodyJsonParam: maxItems 16)."""
MAX_IMAGE_URL: Final = 20_971_520
"""Characters of one `image_url` (OpenAI's ImageRef: maxLength)."""
MAX_PROMPT: Final = 32_000
"""Characters, for GPT image models and for Eden AI alike. A model's row in the catalogue may allow more."""
MAX_TEXT: Final = 1024
"""Characters of a string without a documented limit. Such a string is copied and may be logged."""
MAX_MODEL: Final = 256
MAX_FALLBACKS: Final = 5
MAX_EXTRA_HEADERS: Final = 1 << 17
"""Bytes of JSON. The header policy allows 16 KiB of names and values, which escapes can make six times longer."""
MAX_PROBLEMS: Final = 64
"""Problems listed in one answer. A body can have a few thousand, too many to read."""

_SOURCES: Final = {"file_id": MAX_TEXT, "image_url": MAX_IMAGE_URL}
"""The members of an image reference, and how many characters each may have."""
_ANY_LENGTH: Final = 1 << 62
"""For inline images, which only the body's own limit bounds."""
_LONGEST_ESCAPE: Final = 12
"""Bytes of JSON per character, at most: a surrogate pair, written as two `\\uXXXX`."""
_LONGEST_SCALAR: Final = 32
"""Bytes of an integer or boolean in another spelling."""
_DIGITS: Final = re.compile(rb"-?[0-9]++\Z")

Loc = tuple[str | int, ...]


class FieldType(Enum):
    """The JSON type of a field. In multipart every part is text."""

    STRING = "string"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    OBJECT = "object"
    NAMES = "names"  # an array of models' names; in multipart a part for each


@dataclass(frozen=True, slots=True)
class Rule:
    """One field. `low` and `high` bound an integer's value, a string's characters, or the items of names, included."""

    name: str
    kind: FieldType
    low: int = 0
    high: int = MAX_TEXT
    required: bool = False


RULES: Final = (
    Rule("model", FieldType.STRING, 1, MAX_MODEL, required=True),
    Rule("prompt", FieldType.STRING, 1, MAX_PROMPT, required=True),
    Rule("n", FieldType.INTEGER, 1, 10),
    Rule("size", FieldType.STRING),
    Rule("user", FieldType.STRING),
    Rule("metadata", FieldType.OBJECT),
    Rule("quality", FieldType.STRING),
    Rule("response_format", FieldType.STRING),
    Rule("stream", FieldType.BOOLEAN),
    Rule("partial_images", FieldType.INTEGER, 0, 3),
    Rule("output_compression", FieldType.INTEGER, 0, 100),
    Rule("background", FieldType.STRING),
    Rule("output_format", FieldType.STRING),
    Rule("moderation", FieldType.STRING),
    Rule("input_fidelity", FieldType.STRING),
    Rule("fallbacks", FieldType.NAMES, 0, MAX_FALLBACKS),
    Rule("fallback_after_charge", FieldType.BOOLEAN),
)

CHOICE: Final = ("fallbacks", "fallbacks[]", "fallback_after_charge")
"""Members about the choice of a model, which are for this proxy and never sent on. SDKs write a form's list as `[]`."""


@dataclass(frozen=True, slots=True)
class Fields:
    """A valid request, as far as the proxy reads it; null and absent are the same.

    `edit`: the answer's events are `image_edit.*`. `extra_headers`: decoded JSON as the caller sent it, None if absent;
    the header policy checks it. `canonical`: members that came in another spelling than the API's, like `"n": "1"`, by
    name as they are to be sent on.
    """

    model: str
    n: int
    stream: bool
    partial_images: int | None
    size: str | None
    quality: str | None
    background: str | None
    output_format: str | None
    response_format: str | None
    edit: bool
    extra_headers: object
    canonical: Mapping[str, str]
    fallbacks: tuple[str, ...] | None = None
    fallback_after_charge: bool = False


TRUE: Final = frozenset({"true", "t", "yes", "y", "on", "1"})
FALSE: Final = frozenset({"false", "f", "no", "n", "off", "0"})
"""Texts that pydantic's lax mode, and so a FastAPI service, reads as a boolean, in upper or lower case."""

_INTEGER: Final = re.compile(r"\s*+([+-]?)([0-9]++(?:_[0-9]++)*)(?:\.0++)?\s*+", re.ASCII)


def lax_boolean(text: str) -> bool | None:
    """A text as a boolean, as pydantic's lax mode reads it; None where it refuses."""
    word = text.lower()
    return True if word in TRUE else False if word in FALSE else None


def lax_integer(text: str) -> str | None:
    """The digits of a text as an integer, with a minus where it has one, as pydantic's lax mode reads it; or None.

    `1.0` is an integer, `1.5` is not.
    """
    found = _INTEGER.fullmatch(text)
    return found[1].replace("+", "") + (found[2].replace("_", "").lstrip("0") or "0") if found else None


class Checklist:
    """The valid fields of one request so far, and its problems."""

    __slots__ = ("_canonical", "_flags", "_names", "_numbers", "_problems", "_texts")

    def __init__(self) -> None:
        self._canonical: dict[str, str] = {}
        self._names: dict[str, tuple[str, ...]] = {}
        self._texts: dict[str, str] = {}
        self._numbers: dict[str, int] = {}
        self._flags: dict[str, bool] = {}
        self._problems: list[Problem] = []

    def problem(self, loc: Loc, msg: str, type: str) -> None:
        """Note a problem at `loc`, which starts below the body. `msg` must not contain the value."""
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(Problem(("body", *loc), msg, type))

    def missing(self, *loc: str | int) -> None:
        """Note that a required field is absent."""
        self.problem(loc, "Field required", "missing")

    def length(self, loc: Loc, length: int, low: int, high: int) -> bool:
        """Check a string's number of characters."""
        if length < low:
            self.problem(loc, f"String should have at least {_count(low, 'character')}", "string_too_short")
        elif length > high:
            self.problem(loc, f"String should have at most {_count(high, 'character')}", "string_too_long")
        return low <= length <= high

    def items(self, loc: Loc, length: int, low: int, high: int) -> bool:
        """Check an array's number of items."""
        if length < low:
            self.problem(loc, f"List should have at least {_count(low, 'item')}", "too_short")
        elif length > high:
            self.problem(loc, f"List should have at most {_count(high, 'item')}", "too_long")
        return low <= length <= high

    def text(self, name: str, value: str) -> None:
        """Keep a string whose length has been checked."""
        self._texts[name] = value

    def number(self, rule: Rule, digits: str) -> None:
        """Check and keep an integer given as decimal digits with an optional minus."""
        # Nineteen digits are beyond every bound here, and int() of a megabyte of them is quadratic.
        sign, size = digits.startswith("-"), len(digits)
        value = int(digits) if size <= 19 else -(10**19) if sign else 10**19
        if value < rule.low:
            msg = f"Input should be greater than or equal to {rule.low}"
            self.problem((rule.name,), msg, "greater_than_equal")
        elif value > rule.high:
            self.problem((rule.name,), f"Input should be less than or equal to {rule.high}", "less_than_equal")
        else:
            self._numbers[rule.name] = value

    def flag(self, name: str, value: bool) -> None:
        """Keep a boolean."""
        self._flags[name] = value

    def names(self, name: str, value: Sequence[str]) -> None:
        """Keep models' names that have been checked."""
        self._names[name] = tuple(value)

    def spelt(self, name: str, canonical: str) -> None:
        """Keep the API's spelling of a member that came in another one."""
        self._canonical[name] = canonical

    def end(self) -> None:
        """Raises ProxyError(INVALID_REQUEST) with all problems where there are any."""
        if self._problems:
            raise invalid(self._problems)

    def fields(self, *, edit: bool, extra_headers: object) -> Fields:
        """The valid request. Raises ProxyError(INVALID_REQUEST) with all problems where there are any."""
        self.end()
        texts = self._texts
        return Fields(
            model=texts["model"],
            n=self._numbers.get("n", 1),
            stream=self._flags.get("stream", False),
            partial_images=self._numbers.get("partial_images"),
            size=texts.get("size"),
            quality=texts.get("quality"),
            background=texts.get("background"),
            output_format=texts.get("output_format"),
            response_format=texts.get("response_format"),
            edit=edit,
            extra_headers=extra_headers,
            canonical=self._canonical,
            fallbacks=self._names.get("fallbacks"),
            fallback_after_charge=self._flags.get("fallback_after_charge", False),
        )


def invalid(problems: Sequence[Problem], failure: Failure = Failure.INVALID_REQUEST) -> ProxyError:
    """The error that names these problems, the first in its message."""
    first, more = problems[0], len(problems) - 1
    message = f"{first.param}: {first.msg}" + (f" (and {more} more)" if more else "")
    if (first.param, first.type) == ("model", "missing"):
        message += ". The setting default_model gives one to requests without."
    return ProxyError(failure, message, param=first.param, details=ErrorDetails(problems=tuple(problems)))


def generation(body: JsonObject, *, max_prompt: int = MAX_PROMPT) -> Fields:
    """Check a generation body; one with a non-null `image` is an edit.

    Raises ProxyError: INVALID_REQUEST with every problem in field order; before that DUPLICATE_KEY,
    EXTRA_HEADERS_TOO_LARGE or INVALID_JSON for an `extra_headers` that cannot be read.
    """
    reading = _JsonReader(body)
    reading.table(max_prompt)
    if is_edit := reading.given("image"):
        reading.inline_images()
    return reading.fields(edit=is_edit)


def edit(body: JsonObject, *, max_prompt: int = MAX_PROMPT) -> Fields:
    """Check an edit's JSON body, whose `images` and `mask` are references: `{"image_url": ...}` or `{"file_id": ...}`.

    Raises as `generation`, and DUPLICATE_KEY for a reference with the same key twice.
    """
    reading = _JsonReader(body)
    reading.table(max_prompt)
    reading.references()
    return reading.fields(edit=True)


class _JsonReader:
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
                if self.string(loc, span, rule.low, rule.high) and rule.name != "prompt":  # a prompt may be large
                    self.checks.text(rule.name, msgspec.json.decode(self.raw[start:end], type=str))
            case FieldType.INTEGER:
                if _DIGITS.match(self.raw, start, end):
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
            case FieldType.NAMES:
                self.names(rule, start)

    def names(self, rule: Rule, start: int) -> None:
        """An array of strings, each a model's name."""
        if not self.raw.startswith(b"[", start):
            return self.checks.problem((rule.name,), "Input should be a valid list", "list_type")
        spans = elements(self.body, start, limit=rule.high + 1, where=rule.name)
        if self.checks.items((rule.name,), len(spans), rule.low, rule.high):
            sound = [span for index, span in enumerate(spans) if self.string((rule.name, index), span, 1, MAX_MODEL)]
            self.checks.names(rule.name, [msgspec.json.decode(self.raw[at:end], type=str) for at, end in sound])
        return None

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
        """A short text, number or boolean; None for anything else."""
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
            self.readable(loc, span)

    def readable(self, loc: Loc, span: tuple[int, int]) -> None:
        if not is_readable(self.raw, span[0] + 1, span[1] - 1):
            msg = "Value error, the image is not valid base64, nor an https URL"
            self.checks.problem(loc, msg, "value_error")

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
        return self.checks.fields(edit=edit, extra_headers=extra_headers(self.body))


def extra_headers(body: JsonObject) -> object:
    """The caller's `extra_headers`, not judged yet; None where there are none.

    Raises ProxyError(EXTRA_HEADERS_TOO_LARGE, DUPLICATE_KEY or INVALID_JSON) for what cannot be read.
    """
    member = body.members.get("extra_headers")
    if member is None or body.raw.startswith(b"null", member.value):
        return None
    if member.end - member.value > MAX_EXTRA_HEADERS:
        raise extra_headers_too_large()
    if body.raw.startswith(b"{", member.value):
        members(body, member.value, where="extra_headers")  # refuses duplicate keys
    return body.decode("extra_headers")


def extra_headers_too_large() -> ProxyError:
    """The error for an `extra_headers` that is too large to be decoded."""
    msg = f"At most {MAX_EXTRA_HEADERS} bytes of JSON"
    problem = Problem(("body", "extra_headers"), msg, Failure.EXTRA_HEADERS_TOO_LARGE.value.code)
    message = f"extra_headers: {msg}"
    return ProxyError(
        Failure.EXTRA_HEADERS_TOO_LARGE, message, param=problem.param, details=ErrorDetails(problems=(problem,))
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
