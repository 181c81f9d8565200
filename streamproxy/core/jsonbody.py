"""A JSON object kept as its bytes, with the spans of its top-level members.

Members nobody here knows must reach the provider byte for byte: `1E2`, `0.1000`, thirty-digit integers, escapes, the
order of keys. So a body is never decoded and encoded again; it is cut, and the pieces are joined.

Strategy: three passes, each at C speed over the long parts, none of which holds more than a slice of the body.

1. `core/jsonwalk.py` finds the members and refuses bombs and duplicate keys.
2. UTF-8 is checked in slices, unless the body is plain ASCII.
3. msgspec checks the whole grammar (RFC 8259) and skips every value as `msgspec.Raw`.

Together they cost about 0.4 ms per MiB of base64. The dearest body that passes is one string of nothing but escapes,
at about 1.4 ms per MiB, all of it in pass 3.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import msgspec

from streamproxy.core.jsonwalk import MAX_DEPTH, MAX_MEMBERS, MAX_NODES, Member, Walk, invalid, shown
from streamproxy.errors import Failure, ProxyError

__all__ = ["JsonObject", "Member", "Pieces", "elements", "members", "object_at", "parse"]

_UTF8_SLICE: Final = 1 << 14
"""Bytes decoded at a time: the widest text it can become, 64 KiB, stays in the processor's cache."""

Pieces = tuple[bytes | memoryview, ...]
"""A value in pieces, so that large ones are copied once, into the new body."""

_SURROGATE: Final = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)
"""A high half that no low half follows, or a low one that follows no high one (RFC 8259, 8.2)."""

_NOTHING: Final[Mapping[str, bytes]] = MappingProxyType({})
_grammar: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


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
        """The same as `edited`, in pieces: what is kept are views of the body, so that nothing large is copied."""
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

    @classmethod
    def of(cls, raw: bytes) -> JsonObject:
        """As `parse`."""
        return parse(raw)


def parse(
    raw: bytes,
    *,
    max_members: int = MAX_MEMBERS,
    max_nodes: int = MAX_NODES,
    max_depth: int = MAX_DEPTH,
    where: str = "body",
) -> JsonObject:
    """Check a whole JSON object and find its members.

    `where` names the object in messages. Raises ProxyError: INVALID_JSON for what is not RFC 8259 (a byte order mark,
    NaN, invalid UTF-8), for lone surrogates, for what is not an object or is over a cap; DUPLICATE_KEY, with the key as
    `param`, where two keys are equal after unescaping.
    """
    walk = Walk(raw, where, members=max_members, nodes=max_nodes, depth=max_depth)
    found, end = walk.members(0)
    walk.finish(end)
    if not _is_utf8(raw):
        raise invalid(where, "is not UTF-8")
    try:
        _grammar.decode(raw)
    except msgspec.ValidationError:
        raise invalid(where, "must be a JSON object") from None
    except msgspec.DecodeError as error:
        if _SURROGATE.search(raw):
            raise invalid(where, "has half of a surrogate pair (\\\\ud800 to \\\\udfff) in a string") from None
        raise invalid(where, f"is not valid JSON: {error}") from None  # msgspec names a byte, never the text
    except RecursionError:
        raise invalid(where, "is nested too deeply") from None
    return JsonObject(raw, MappingProxyType(found))


def object_at(raw_value: bytes, where: str) -> JsonObject:
    """A value that is an object with duplicate rules of its own, such as `extra_headers`. Raises as `parse`."""
    return parse(raw_value, where=where)


def members(body: JsonObject, start: int, *, where: str) -> Mapping[str, Member]:
    """The members of the object at offset `start` of a body, without copying it. Raises ProxyError(DUPLICATE_KEY)."""
    return MappingProxyType(Walk.checked(body.raw, where).members(start)[0])


def elements(body: JsonObject, start: int, *, limit: int, where: str) -> tuple[tuple[int, int], ...]:
    """The spans (from, to) of the first `limit` elements of the array at offset `start` of a body."""
    return Walk.checked(body.raw, where).elements(start, limit)


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
