"""A JSON object kept as its bytes, with the spans of its top-level members.

Unknown members must reach the provider byte for byte: `1E2`, `0.1000`, thirty-digit integers, escapes, the order of
keys. A body is therefore never decoded and encoded again. It is cut, and the pieces are joined.

Strategy: three passes, each at C speed over the long parts, none of which holds more than a slice of the body.

1. `Walk` finds the members, and refuses duplicate keys and JSON bombs. It looks only at what could be a bomb. Strings
   are crossed with one-byte `bytes.find`, which is memchr. Everything else is charged to an allowance: members, depth,
   nodes (brackets and strings inside values, escaped quotes anywhere) and plain bytes (everything outside strings).
   This bounds the work done in Python, and the work of any full parser afterwards, whatever the size of the body.
2. UTF-8 is checked in slices, unless the body is plain ASCII.
3. msgspec checks the whole grammar (RFC 8259) and skips every value as `msgspec.Raw`. The walk does not: its spans are
   exact for valid JSON only.

Together they cost about 0.4 ms per MiB of base64. The slowest body that passes is one string of nothing but escapes, at
about 1.4 ms per MiB, all of it in pass 3.

The functions at the end read single members that msgspec has left raw.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import msgspec

from streamproxy.errors import ErrorDetails, Failure, Problem, ProxyError

MAX_MEMBERS: Final = 256
"""Members of one object. OpenAI's generation body documents 19. Unknown ones are forwarded and need room."""
MAX_NODES: Final = 32_768
"""Each costs about half a microsecond, so at most 20 ms. A chat of a thousand messages has about ten thousand."""
MAX_DEPTH: Final = 64
"""Open brackets, the object's own included. msgspec itself raises RecursionError near 1000."""
MAX_PLAIN: Final = 1 << 20
"""Bytes outside strings. Images and prompts are strings; no real request has a megabyte of digits or blanks."""
MAX_KEY: Final = 1024
"""Bytes of one member's key: keys are the only text that the walk decodes."""

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

_SHORT_WORD: Final = re.compile(r"[A-Za-z_-]{1,12}")
"""Names too short for a provider's key: the shortest shape in `headers.json` has 15 characters (`xoxb-` and ten)."""
_LONG_NAMES: Final = frozenset(
    {"extra_headers", "input_fidelity", "output_compression", "output_format", "partial_images", "response_format"}
    | {"frequency_penalty", "max_completion_tokens", "parallel_tool_calls", "presence_penalty", "reasoning_effort"}
    | {"max_output_tokens", "previous_response_id", "prompt_cache_key", "safety_identifier"}
    | {
        "fallback_after_charge",
        "service_tier",
        "top_logprobs",
        "max_tool_calls",
        "stream_options",
        "image_config",
        "aspect_ratio",
        "image_size",
    }
)
"""Documented names of members that are longer than a short word."""

_UTF8_SLICE: Final = 1 << 14
"""Bytes decoded at a time. The widest text they can become, 64 KiB, stays in the processor's cache."""

Pieces = tuple[bytes | memoryview, ...]
"""A value in pieces, so that large ones are copied once, into the new body."""

_SURROGATE: Final = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)
"""A high half without a low half after it, or a low half without a high half before it (RFC 8259, 8.2)."""

_NOTHING: Final[Mapping[str, bytes]] = MappingProxyType({})
_GRAMMAR: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Member:
    """One `"key": value`. Offsets into the body: `start` of the key's quote, `value` of the value, `end` after it."""

    key: str
    start: int
    value: int
    end: int


@dataclass(frozen=True, slots=True)
class JsonObject:
    """A checked JSON object: its bytes as they came, and its members in their order. Made by `parse`."""

    raw: bytes = field(repr=False)  # prompts and images
    members: Mapping[str, Member]

    def value(self, key: str) -> bytes | None:
        """The value's exact bytes (a copy), or None where the key is absent."""
        member = self.members.get(key)
        return None if member is None else self.raw[member.value : member.end]

    def decode(self, key: str) -> object:
        """The value as Python objects; None where the key is absent or its value is null.

        Costs memory in proportion to the value, so not for images. Raises ProxyError(INVALID_JSON) where Python has no
        such value: a float beyond 1e308, an integer of more than 4300 digits.
        """
        member = self.members.get(key)
        if member is None:
            return None
        try:
            return msgspec.json.decode(memoryview(self.raw)[member.value : member.end])
        except (ValueError, RecursionError):  # msgspec.DecodeError and UnicodeDecodeError are ValueErrors
            name = shown(key, [*self.members].index(key) + 1)
            raise ProxyError(Failure.INVALID_JSON, f"The value of {name} cannot be read", param=name) from None

    def edited(
        self,
        *,
        replace: Mapping[str, bytes] = _NOTHING,
        drop: Collection[str] = (),
        append: Mapping[str, bytes | Pieces] = _NOTHING,
    ) -> bytes:
        """The body with other values (JSON, as bytes) for some members, without some, and with some more at its end.

        Kept members are the exact bytes they were; where nothing changes the answer is `raw` itself. `drop` may name
        absent keys. Raises KeyError for a `replace` of an absent or dropped key and for an `append` of a kept one: the
        first would be lost silently, the second would send one key twice.
        """
        pieces = self.pieces(replace=replace, drop=drop, append=append)
        return self.raw if pieces[0] is self.raw else b"".join(pieces)

    def pieces(
        self,
        *,
        replace: Mapping[str, bytes] = _NOTHING,
        drop: Collection[str] = (),
        append: Mapping[str, bytes | Pieces] = _NOTHING,
    ) -> Pieces:
        """The same as `edited`, in pieces. Unchanged parts are views of the body, so that nothing large is copied."""
        kept = [member for key, member in self.members.items() if key not in drop]
        names = {member.key for member in kept}
        if misplaced := (replace.keys() - names) | (append.keys() & names):
            raise KeyError(*sorted(misplaced))
        view = memoryview(self.raw)
        changed = {m.key for m in kept if m.key in replace and view[m.value : m.end] != replace[m.key]}
        if len(kept) == len(self.members) and not changed and not append:
            return (self.raw,)
        pieces: list[bytes | memoryview] = []
        for member in kept:
            if member.key in changed:
                pieces += (b",", view[member.start : member.value], replace[member.key])
            else:
                pieces += (b",", view[member.start : member.end])
        for key, value in append.items():
            pieces += (b",", msgspec.json.encode(key), b":", *(value if isinstance(value, tuple) else (value,)))
        return (b"{", *pieces[1:], b"}")


def parse(raw: bytes, *, where: str = "body") -> JsonObject:
    """Check a whole JSON object and find its members.

    `where` names the object in messages. Raises ProxyError: DUPLICATE_KEY, with the key as `param`, where two keys are
    equal after unescaping; INVALID_JSON for everything else: bytes that are not RFC 8259 (a byte order mark, NaN,
    invalid UTF-8), lone surrogates, a value that is not an object, an object over a limit.
    """
    walk = Walk(raw, where)
    found, end = walk.members(0)
    walk.finish(end)
    if not _is_utf8(raw):
        raise _invalid(where, "is not UTF-8")
    try:
        _GRAMMAR.decode(raw)
    except msgspec.ValidationError:
        raise _invalid(where, "must be a JSON object") from None
    except msgspec.DecodeError as error:
        if _SURROGATE.search(raw):
            raise _invalid(where, "has half of a surrogate pair (\\ud800 to \\udfff) in a string") from None
        raise _invalid(where, f"is not valid JSON: {error}") from None  # msgspec names a byte, never the text
    except RecursionError:
        raise _invalid(where, "is nested too deeply") from None
    return JsonObject(raw, MappingProxyType(found))


def members(body: JsonObject, start: int, *, where: str) -> Mapping[str, Member]:
    """Find the members of the object at offset `start` of a body, in place. Raises ProxyError(DUPLICATE_KEY)."""
    return MappingProxyType(Walk(body.raw, where, trusted=True).members(start)[0])


def elements(body: JsonObject, start: int, *, limit: int, where: str) -> tuple[tuple[int, int], ...]:
    """Find the spans (from, to) of the first `limit` elements of the array at offset `start` of a body."""
    return Walk(body.raw, where, trusted=True).elements(start, limit)


def _is_utf8(raw: bytes) -> bool:
    if raw.isascii():
        return True
    view, at = memoryview(raw), 0
    try:
        while at < len(raw):
            at += codecs.utf_8_decode(view[at : at + _UTF8_SLICE], "strict", at + _UTF8_SLICE >= len(raw))[1]
    except UnicodeDecodeError:
        return False
    return True


class Walk:
    """One pass over one body, with its remaining allowances. Methods take an offset and return one.

    `where` names the object in messages. `trusted`: the bytes have passed a walk before, so nothing is limited. Raises
    ProxyError: INVALID_JSON, or DUPLICATE_KEY with the key (as `shown`) as `param`.
    """

    __slots__ = ("depth", "most_members", "nodes", "plain", "raw", "where")

    def __init__(self, raw: bytes, where: str, *, trusted: bool = False) -> None:
        size = len(raw)
        self.raw = raw
        self.where = where
        self.most_members = size if trusted else MAX_MEMBERS
        self.nodes = size if trusted else MAX_NODES
        self.depth = size if trusted else MAX_DEPTH
        self.plain = size if trusted else MAX_PLAIN

    def members(self, at: int) -> tuple[dict[str, Member], int]:
        """The members of the object at `at`, in order, and the offset behind its bracket."""
        found: dict[str, Member] = {}
        if self.raw.startswith(codecs.BOM_UTF8, at):
            raise _invalid(self.where, "starts with a byte order mark")
        if _OPEN.match(self.raw, at, at + self.plain) is None:
            raise _invalid(self.where, "must be a JSON object")
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
                raise _invalid(self.where, f"has more than {self.most_members} members")
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
                        raise _invalid(self.where, f"is nested more than {self.depth} deep")
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
            raise _invalid(self.where, f"has a key of more than {MAX_KEY} bytes")
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
            raise _invalid(self.where, f"has too many parts (at byte {at})")

    def _duplicate(self, key: str, place: int) -> ProxyError:
        inside = () if self.where == "body" else (self.where,)
        problem = Problem(("body", *inside, shown(key, place)), "Duplicate key", Failure.DUPLICATE_KEY.value.code)
        message = f"{self.where} has the key {problem.param} twice"
        return ProxyError(
            Failure.DUPLICATE_KEY, message, param=problem.param, details=ErrorDetails(problems=(problem,))
        )

    def _malformed(self, at: int) -> ProxyError:
        return _invalid(self.where, f"is not valid JSON, or not within the limits (after byte {at})")


def shown(key: str, place: int) -> str:
    """A key as messages may show it: a documented name or a short word, otherwise its place among the members.

    Any other key may be a secret, or a text in the place of a name.
    """
    return key if key in _LONG_NAMES or _SHORT_WORD.fullmatch(key) else f"#{place}"


def _invalid(where: str, what: str) -> ProxyError:
    """An INVALID_JSON about the object called `where`."""
    return ProxyError(Failure.INVALID_JSON, f"{where} {what}", param=None if where == "body" else where)


# -------------------------------------------------------------------------------------------------- raw members of JSON

NULLS: Final = (b"", b"null")
"""Raw members that are absent or null."""

_ERROR: Final = 64 * 1024
"""Bytes of an `error` that are decoded to see whether it is empty. A larger one is not."""


def holds_text(raw: msgspec.Raw) -> bool:
    """Whether a member is a string, and not an empty one."""
    start = bytes(memoryview(raw)[:2])
    return start[:1] == b'"' and start != b'""'


def text(raw: msgspec.Raw) -> str:
    """A member's string; "" where it is not one."""
    if not holds_text(raw):
        return ""
    try:
        return str(msgspec.json.decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def base64_text(raw: msgspec.Raw) -> bytes:
    """A copy of a string of base64 without its quotes, so that the rest can be freed; b"" where it is not a string."""
    if not holds_text(raw):
        return b""
    inside = bytes(memoryview(raw)[1:-1])
    return inside if b"\\" not in inside else str(msgspec.json.decode(raw)).encode("ascii", "replace")


def whole_number(raw: msgspec.Raw, digits: int = 12) -> int | None:
    """A member's non-negative integer of at most so many digits; a timestamp has ten."""
    value = bytes(memoryview(raw)[: digits + 1])
    return int(value) if value.isdigit() and len(value) <= digits else None


def present(raw: msgspec.Raw) -> bytes | None:
    """A member's bytes; None where it is absent or null."""
    value = bytes(raw)
    return None if value in NULLS else value


def says_error(raw: msgspec.Raw) -> bool:
    """Whether an `error` member reports one, which means for the SDKs that its value is true in Python's sense."""
    value = present(raw)
    if value is None or len(value) > _ERROR:
        return value is not None
    try:
        return bool(msgspec.json.decode(value))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return True
