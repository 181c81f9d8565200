"""The fields of an image request that the proxy itself reads, and the rules they keep.

One table, RULES, in the order problems are reported in; `core/validate.py` applies it to JSON, `core/forms.py` to
multipart parts. Both collect into a Checklist, which ends in Fields or in one error that names every problem.

Choices (size, quality, background ...) accept any string; the provider validates them. Fields without a row are not
checked. Messages never contain a value; types and texts are pydantic's, which FastAPI's callers know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from streamproxy.errors import ErrorDetails, Failure, Problem, ProxyError

MAX_IMAGES: Final = 16
"""Input images of one edit, in all three forms (OpenAI's EditImageBodyJsonParam: maxItems 16)."""
MAX_IMAGE_URL: Final = 20_971_520
"""Characters of one `image_url` (OpenAI's ImageRef: maxLength)."""
MAX_PROMPT: Final = 32_000
"""Characters, for GPT image models and for Eden AI alike; a model's row in the catalogue may say more."""
MAX_TEXT: Final = 1024
"""Characters of a string nobody documents a limit for. Such a string is copied and may be logged, so it has one."""
MAX_MODEL: Final = 256
MAX_EXTRA_HEADERS: Final = 1 << 17
"""Bytes of JSON. The header policy allows 16 KiB of names and values, which escapes can make six times longer."""
MAX_PROBLEMS: Final = 64
"""Problems listed in one answer: a body can have a few thousand, a reader cannot."""

Loc = tuple[str | int, ...]


class FieldType(Enum):
    """The JSON type of a field. In multipart every part is text."""

    STRING = "string"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    OBJECT = "object"


@dataclass(frozen=True, slots=True)
class Rule:
    """One field. `low` and `high` bound an integer's value, or a string's length in characters, both included."""

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
)

KNOWN: Final = frozenset(rule.name for rule in RULES) | {
    "extra_headers",
    "image",
    "images",
    "mask",
    "image_url",
    "file_id",
}
"""Names that callers' members have by the documents. Others may hold anything."""


@dataclass(frozen=True, slots=True)
class Fields:
    """A valid request, as far as the proxy reads it; null and absent are the same.

    `edit`: the answer's events are `image_edit.*`. `extra_headers` is as the caller sent it (decoded JSON, None if
    absent): its rules are the header policy's.
    """

    model: str
    prompt_given: bool
    n: int
    stream: bool
    partial_images: int | None
    size: str | None
    quality: str | None
    background: str | None
    output_format: str | None
    response_format: str | None
    user: str | None
    edit: bool
    extra_headers: object
    canonical: Mapping[str, str]
    """Members that came in another spelling than the API's, like `"n": "1"`, as they are to be sent on."""


TRUE: Final = frozenset({"true", "t", "yes", "y", "on", "1"})
FALSE: Final = frozenset({"false", "f", "no", "n", "off", "0"})
"""What pydantic's lax mode reads as a boolean, in any case, and so what FastAPI services take."""

_INTEGER: Final = re.compile(r"\s*+([+-]?)([0-9]++(?:_[0-9]++)*+)(?:\.0++)?\s*+", re.ASCII)


def lax_boolean(text: str) -> bool | None:
    """What pydantic's lax mode makes of a text as a boolean; None for what it refuses."""
    word = text.lower()
    return True if word in TRUE else False if word in FALSE else None


def lax_integer(text: str) -> str | None:
    """The same for an integer: its digits, with a minus where it has one. `1.0` is one, `1.5` is none."""
    found = _INTEGER.fullmatch(text)
    return found[1].replace("+", "") + (found[2].replace("_", "").lstrip("0") or "0") if found else None


class Checklist:
    """What has been read of one request so far, and what was wrong with it."""

    __slots__ = ("_canonical", "_flags", "_given", "_numbers", "_problems", "_texts")

    def __init__(self) -> None:
        self._canonical: dict[str, str] = {}
        self._given: set[str] = set()
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
        self._given.add(name)
        self._texts[name] = value

    def present(self, name: str) -> None:
        """Note a valid field whose value is not kept: it may be large, and the body has it."""
        self._given.add(name)

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

    def spelt(self, name: str, canonical: str) -> None:
        """Note how a member is to be sent on that came in another spelling."""
        self._canonical[name] = canonical

    def fields(self, *, edit: bool, extra_headers: object) -> Fields:
        """Everything that was kept. Raises ProxyError(INVALID_REQUEST) with all problems where there are any."""
        if self._problems:
            first, more = self._problems[0], len(self._problems) - 1
            message = f"{first.param}: {first.msg}" + (f" (and {more} more)" if more else "")
            if (first.param, first.type) == ("model", "missing"):
                message += ". The setting default_model gives one to requests without."
            details = ErrorDetails(problems=tuple(self._problems))
            raise ProxyError(Failure.INVALID_REQUEST, message, param=first.param, details=details)
        texts = self._texts
        return Fields(
            model=texts["model"],
            prompt_given="prompt" in self._given,
            n=self._numbers.get("n", 1),
            stream=self._flags.get("stream", False),
            partial_images=self._numbers.get("partial_images"),
            size=texts.get("size"),
            quality=texts.get("quality"),
            background=texts.get("background"),
            output_format=texts.get("output_format"),
            response_format=texts.get("response_format"),
            user=texts.get("user"),
            edit=edit,
            extra_headers=extra_headers,
            canonical=self._canonical,
        )


def extra_headers_too_large() -> ProxyError:
    """For an `extra_headers` that is too large even to be decoded."""
    msg = f"At most {MAX_EXTRA_HEADERS} bytes of JSON"
    problem = Problem(("body", "extra_headers"), msg, Failure.EXTRA_HEADERS_TOO_LARGE.value.code)
    message = f"extra_headers: {msg}"
    return ProxyError(
        Failure.EXTRA_HEADERS_TOO_LARGE, message, param=problem.param, details=ErrorDetails(problems=(problem,))
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
