"""Where the members of a JSON object lie, found without decoding it and within fixed allowances.

Strategy: one pass that looks only at what could be a bomb. Strings are crossed with one-byte `bytes.find`, which is
memchr: 20 MB of base64 cost what memchr costs. All else is charged to an allowance: members, depth, nodes (brackets and
strings inside values, escaped quotes anywhere) and plain bytes (everything outside strings). What Python does is
therefore bounded whatever the size of the body, and so is what a full parser could be made to do with it afterwards.

The walk finds the right spans in valid JSON and some spans or an error in anything else: the grammar inside values is
not proven here. `core/jsonbody.py` has msgspec prove it.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import Final

import msgspec

from streamproxy.core.fields import KNOWN
from streamproxy.errors import ErrorDetails, Failure, Problem, ProxyError

MAX_MEMBERS: Final = 256
"""Members of one object. OpenAI's generation body documents 19; forwarded unknown ones need room, floods do not."""
MAX_NODES: Final = 32_768
"""Each costs about half a microsecond here, so at most 20 ms; a chat of a thousand messages has some ten thousand."""
MAX_DEPTH: Final = 64
"""Open brackets, the object's own included. msgspec itself raises RecursionError near 1000."""
MAX_PLAIN: Final = 1 << 20
"""Bytes outside strings. Images and prompts are strings; a megabyte of digits or blanks is nobody's request."""
MAX_KEY: Final = 1024
"""Bytes of one member's key: keys are the only text the walk decodes."""

_BACKSLASH: Final = 0x5C
_NEAR: Final = 64
_RUNS: Final = tuple(b"\\" * (1 << power) for power in range(17))

# Possessive (`*+`): a match that fails does not try again with less, so each pattern is linear.
_OPEN: Final = re.compile(rb"[ \t\n\r]*+\{[ \t\n\r]*+")
_COLON: Final = re.compile(rb"[ \t\n\r]*+:[ \t\n\r]*+")
_NEXT: Final = re.compile(rb"[ \t\n\r]*+([,}])[ \t\n\r]*+")
_OPEN_ARRAY: Final = re.compile(rb"\[[ \t\n\r]*+")
_NEXT_ELEMENT: Final = re.compile(rb"[ \t\n\r]*+([,\]])[ \t\n\r]*+")
_BLANKS: Final = re.compile(rb"[ \t\n\r]*+")
_SCALAR: Final = re.compile(rb"true|false|null|-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?")
_NODE: Final = re.compile(rb'[^"\[\]{}]*+["\[\]{}]')
_PLAIN: Final = re.compile(r"[A-Za-z_-]{1,12}")
"""Names too short for a provider's key: the shortest shape in `headers.json` has 15 characters (`xoxb-` and ten)."""


@dataclass(frozen=True, slots=True)
class Member:
    """One `"key": value`. Offsets into the body: `start` of the key's quote, `value` of the value, `end` behind it."""

    key: str
    start: int
    value: int
    end: int


class Walk:
    """One pass over one body, and what is left of its allowances. Methods take an offset and return one.

    `where` names the object in messages. Raises ProxyError: INVALID_JSON, or DUPLICATE_KEY with the key as
    `param`, as `shown`.
    """

    __slots__ = ("depth", "most_members", "nodes", "plain", "raw", "where")

    def __init__(
        self,
        raw: bytes,
        where: str,
        *,
        members: int = MAX_MEMBERS,
        nodes: int = MAX_NODES,
        depth: int = MAX_DEPTH,
        plain: int = MAX_PLAIN,
    ) -> None:
        self.raw = raw
        self.where = where
        self.most_members = members
        self.nodes = nodes
        self.depth = depth
        self.plain = plain

    @classmethod
    def checked(cls, raw: bytes, where: str) -> Walk:
        """A walk inside bytes that were walked before, and kept the allowances then."""
        size = len(raw)
        return cls(raw, where, members=size, nodes=size, depth=size, plain=size)

    def members(self, at: int) -> tuple[dict[str, Member], int]:
        """The members of the object at `at`, in order, and the offset behind its bracket."""
        found: dict[str, Member] = {}
        if self.raw.startswith(codecs.BOM_UTF8, at):
            raise invalid(self.where, "starts with a byte order mark")
        if _OPEN.match(self.raw, at, at + self.plain) is None:
            raise invalid(self.where, "must be a JSON object")
        at = self._match(_OPEN, at).end()
        if self.raw.startswith(b"}", at):
            return found, at + 1
        while True:
            if not self.raw.startswith(b'"', at):
                raise self._malformed(at)
            behind_key = self._string(at)
            value = self._match(_COLON, behind_key).end()
            end = self._value(value)
            key = self._key(at, behind_key)
            if key in found:
                raise self._duplicate(key, len(found) + 1)
            if len(found) >= self.most_members:
                raise invalid(self.where, f"has more than {self.most_members} members")
            found[key] = Member(key, at, value, end)
            following = self._match(_NEXT, end)
            if following[1] == b"}":
                return found, following.end(1)
            at = following.end()

    def elements(self, at: int, limit: int) -> tuple[tuple[int, int], ...]:
        """The spans (from, to) of the first `limit` elements of the array at `at`."""
        spans: list[tuple[int, int]] = []
        at = self._match(_OPEN_ARRAY, at).end()
        while not self.raw.startswith(b"]", at) and len(spans) < limit:
            end = self._value(at)
            spans.append((at, end))
            following = self._match(_NEXT_ELEMENT, end)
            at = following.end() if following[1] == b"," else following.start(1)
        return tuple(spans)

    def finish(self, at: int) -> None:
        """Nothing but blanks may follow the object."""
        at = self._match(_BLANKS, at).end()
        if at != len(self.raw):
            raise self._malformed(at)

    def _value(self, at: int) -> int:
        if self.raw.startswith(b'"', at):
            return self._string(at)
        if self.raw.startswith((b"{", b"["), at):
            return self._nested(at)
        return self._match(_SCALAR, at).end()

    def _nested(self, at: int) -> int:
        raw, node, depth = self.raw, _NODE.match, 1
        while True:
            found = node(raw, at, at + self.plain)
            if found is None:
                raise self._malformed(at)
            end = found.end()
            self.plain -= end - at
            self._spend(end)
            match raw[end - 1]:
                case 0x22:  # '"'
                    at = self._string(end - 1)
                case 0x5B | 0x7B:  # "[" "{"
                    at, depth = end, depth + 1
                    if depth > self.depth:
                        raise invalid(self.where, f"is nested more than {self.depth} deep")
                case _:  # "]" "}": that each closes its own kind is part of the grammar, and msgspec's to prove
                    at, depth = end, depth - 1
                    if depth == 1:
                        return at

    def _string(self, at: int) -> int:
        start = at = at + 1
        while (quote := self.raw.find(b'"', at)) >= 0:
            if self.raw[quote - 1] != _BACKSLASH or self._backslashes(start, quote) % 2 == 0:
                return quote + 1
            self._spend(quote)
            at = quote + 1
        raise self._malformed(start)

    def _backslashes(self, start: int, end: int) -> int:
        """How many stand right before `end`: the last few counted, a longer run galloped over by memcmp and charged."""
        near = self.raw[max(start, end - _NEAR) : end]
        run = len(near) - len(near.rstrip(b"\\"))
        power = 0 if run == _NEAR else -1
        while power >= 0:
            self._spend(end)
            if self.raw.endswith(_RUNS[power], start, end - run):
                run += 1 << power
                power = min(power + 1, len(_RUNS) - 1)
            else:
                power -= 1
        return run

    def _key(self, at: int, end: int) -> str:
        if end - at > MAX_KEY + 2:
            raise invalid(self.where, f"has a key of more than {MAX_KEY} bytes")
        try:
            return msgspec.json.decode(self.raw[at:end], type=str)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._malformed(at) from None

    def _match(self, pattern: re.Pattern[bytes], at: int) -> re.Match[bytes]:
        found = pattern.match(self.raw, at, at + self.plain)
        if found is None:
            raise self._malformed(at)
        self.plain -= found.end() - at
        return found

    def _spend(self, at: int) -> None:
        self.nodes -= 1
        if self.nodes < 0:
            raise invalid(self.where, f"has too many parts (at byte {at})")

    def _duplicate(self, key: str, place: int) -> ProxyError:
        inside = () if self.where == "body" else (self.where,)
        problem = Problem(("body", *inside, shown(key, place)), "Duplicate key", Failure.DUPLICATE_KEY.value.code)
        message = f"{self.where} has the key {problem.param} twice"
        return ProxyError(
            Failure.DUPLICATE_KEY, message, param=problem.param, details=ErrorDetails(problems=(problem,))
        )

    def _malformed(self, at: int) -> ProxyError:
        return invalid(self.where, f"is not valid JSON, or not within the limits (after byte {at})")


def shown(key: str, place: int) -> str:
    """A caller's or a provider's key as messages may show it: a field's name that we know, or a short word.

    Anything else may be a secret or a text in the place of a name: of it only the place among the members is told.
    """
    return key if key in KNOWN or _PLAIN.fullmatch(key) else f"#{place}"


def invalid(where: str, what: str) -> ProxyError:
    """An INVALID_JSON about the object called `where`."""
    return ProxyError(Failure.INVALID_JSON, f"{where} {what}", param=None if where == "body" else where)
