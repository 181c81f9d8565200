"""The header policy: which headers may pass between caller and provider, and which texts are secrets.

Credentials come from configuration only. A caller's `extra_headers` are therefore checked by name before anything is
sent, and nothing is forwarded unless every entry passes. Bad names are rejected, never rewritten (rewriting caused
netty GHSA-wx5j-54mm-rqqq). One data file, `headers.json`, drives the refusal of `extra_headers`, the scrubbing of texts
and the filter of response headers, so that the three stay consistent.

Some values may be a key or an identifier: a UUID, 32 hexadecimal digits. They pass only in headers that are named as
identifiers, like `x-job-id`, `x-content-sha256` and `x-trace`, and in headers with a known meaning.

Every pattern runs on bounded text, and each repetition in it is bounded or begins with a fixed word, so none can
backtrack without end.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import resources
from itertools import chain
from typing import Final

import msgspec

from streamproxy.errors import ErrorDetails, Failure, Problem, ProxyError

REDACTED: Final = "[redacted]"
SCRUB_CHARS: Final = 4096  # of a provider's text; their messages have a few hundred characters
SCRUB_OVERHANG: Final = 256  # read beyond it, to recognise a secret across the end

JUDGED: Final = 512
"""Names whose classes are remembered, some 100 kB; of the names that callers choose the first ones are."""

_TELLING: Final = 5  # characters of a name without hyphens; shorter ones occur in ordinary words by chance
_RUN_OF_HYPHENS: Final = re.compile("-{2,}")
_SHAPE: Final = "(?<![A-Za-z0-9])(?:{})"  # not \b, which takes an underscore or a foreign letter as part of the word
_UNSAFE: Final = re.compile("[^A-Za-z0-9-]")


class HeaderClass(StrEnum):
    """What a header would allow its sender to do."""

    CREDENTIAL = "credential"
    SESSION = "session"
    HOP_OR_FRAMING = "hop_or_framing"
    PROXY_OWNED = "proxy_owned"
    IDENTITY_SPOOF = "identity_spoof"
    ROUTE_CONTROL = "route_control"
    CLOUD_METADATA = "cloud_metadata"
    ACCOUNT_SELECTOR = "account_selector"


REFUSAL: Final[dict[HeaderClass, tuple[Failure, str]]] = {
    HeaderClass.CREDENTIAL: (Failure.CREDENTIAL_HEADER, "credentials come from configuration only"),
    HeaderClass.SESSION: (Failure.CREDENTIAL_HEADER, "sessions are never forwarded"),
    HeaderClass.HOP_OR_FRAMING: (Failure.RESERVED_HEADER, "it belongs to the connection"),
    HeaderClass.PROXY_OWNED: (Failure.RESERVED_HEADER, "the proxy sets it"),
    HeaderClass.IDENTITY_SPOOF: (Failure.FORBIDDEN_HEADER, "it claims who or where the sender is"),
    HeaderClass.ROUTE_CONTROL: (Failure.FORBIDDEN_HEADER, "configuration decides where a request goes"),
    HeaderClass.CLOUD_METADATA: (Failure.FORBIDDEN_HEADER, "it opens a cloud's metadata service"),
    HeaderClass.ACCOUNT_SELECTOR: (Failure.FORBIDDEN_HEADER, "configuration decides which account pays"),
}
SECRET: Final = frozenset({HeaderClass.CREDENTIAL, HeaderClass.SESSION})
OPERATORS_CHOICE: Final = frozenset({HeaderClass.ACCOUNT_SELECTOR, HeaderClass.ROUTE_CONTROL})


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The members of `headers.json`; names in canonical form."""

    about: str
    version: int
    name_charset: str
    value_charset: str
    max_headers: int
    max_name_bytes: int
    max_value_bytes: int
    max_total_bytes: int
    exact: dict[HeaderClass, tuple[str, ...]]
    prefix: dict[HeaderClass, tuple[str, ...]]
    segment: dict[HeaderClass, tuple[str, ...]]
    glued: dict[HeaderClass, tuple[str, ...]]
    glued_at_an_end: dict[HeaderClass, tuple[str, ...]]
    harmless: tuple[str, ...]
    followed: dict[str, tuple[str, ...]]
    preceded: dict[str, tuple[str, ...]]
    joined_substring: dict[HeaderClass, tuple[str, ...]]
    allow: tuple[str, ...]
    allow_prefix: tuple[str, ...]
    response_allow: tuple[str, ...]
    response_allow_prefix: tuple[str, ...]
    value_patterns: tuple[str, ...]
    value_shapes: tuple[str, ...]
    distinct_shapes: tuple[str, ...]
    opaque_shapes: tuple[str, ...]
    identifier: tuple[str, ...]
    text_patterns: tuple[str, ...]


def canonical(name: str) -> str:
    """The form in which names are compared and sent: lower-case, single hyphens. For names of the charset."""
    return _RUN_OF_HYPHENS.sub("-", name.lower())


@dataclass(frozen=True, slots=True, repr=False)
class Words:
    """The classes of a name's words: each by itself, by words glued into it, and by its neighbours.

    `x-hf-tokens` and `falkey` carry credentials; `tokenizer`, `max-tokens` and `key-frames` do not. A secret name is
    found inside a longer one too, and where its hyphens have been left out.
    """

    rules: Rules
    _alone: dict[str, HeaderClass]
    _harmless: frozenset[str]
    _glued: tuple[tuple[HeaderClass, re.Pattern[str]], ...]
    _names: re.Pattern[str]
    _bare: re.Pattern[str]

    @classmethod
    def of(cls, rules: Rules) -> Words:
        """The words of these rules."""
        glued = [(kind, "|".join(words)) for kind, words in rules.glued.items()]
        for kind, words in rules.glued_at_an_end.items():
            either = "|".join(words)
            glued.append((kind, f"^(?:{either})|(?:{either})s?$"))
        names = [name for kind, names in rules.exact.items() if kind in SECRET for name in names]
        prefixes = [prefix for kind, prefixes in rules.prefix.items() if kind in SECRET for prefix in prefixes]
        telling = [name for name in names if len(name.replace("-", "")) >= _TELLING]
        whole = "|".join(name for name in telling if "-" in name)  # the rules for words judge names of one word
        return cls(
            rules,
            {word: kind for kind, words in rules.segment.items() for word in words},
            frozenset(rules.harmless),
            tuple((kind, re.compile(pattern)) for kind, pattern in glued),
            re.compile(rf"(?:^|-)(?:(?:{whole})(?:-|$)|{'|'.join(prefixes)})"),
            re.compile("|".join(name.replace("-", "") for name in telling)),
        )

    def classes(self, name: str) -> list[HeaderClass]:
        """The class of each word of a canonical name that has one, in order; last, the class of a name inside it."""
        segments = name.split("-")
        found: list[HeaderClass] = []
        for segment, before, after in zip(segments, ("", *segments), (*segments[1:], ""), strict=False):
            word = segment.strip("0123456789")  # `x-key2` is a second `x-key`
            single = word.removesuffix("s")
            if not (word in self._harmless or single in self._harmless or self._qualified(segment, before, after)):
                kind = self._alone.get(segment) or self._alone.get(word) or self._alone.get(single)
                found += [kind] if kind else [kind for kind, pattern in self._glued if pattern.search(word)]
        inside = self._names.search(name) or self._bare.search(name.replace("-", ""))
        return [*found, HeaderClass.CREDENTIAL] if inside else found

    def _qualified(self, word: str, before: str, after: str) -> bool:
        """Whether a neighbour changes the word's meaning, as in `key-frames`. `preceded` covers plurals too."""
        singles = (word, word.removesuffix("s"), word.removesuffix("es"))
        return after in self.rules.followed.get(word, ()) or any(
            before in self.rules.preceded.get(single, ()) for single in singles
        )


@dataclass(frozen=True, slots=True, repr=False)
class HeaderPolicy:
    """The rules with their patterns compiled. Build it once, with `load`."""

    rules: Rules
    _name: re.Pattern[str]
    _value: re.Pattern[str]
    _in_value: tuple[re.Pattern[str], ...]
    _in_text: tuple[re.Pattern[str], ...]
    _opaque: re.Pattern[str]
    _exact: dict[str, HeaderClass]
    _words: Words
    _joined: re.Pattern[str]
    _allow: frozenset[str]
    _judged: dict[str, list[HeaderClass]] = field(default_factory=dict, compare=False)
    """What has been said of names: those that we send ourselves are judged with every request."""

    @classmethod
    def load(cls) -> HeaderPolicy:
        """The policy of `headers.json`. Raises `msgspec.ValidationError` or `re.error` if that file is damaged."""
        data = resources.files("streamproxy.core").joinpath("headers.json").read_bytes()
        rules = msgspec.json.decode(data, type=Rules)
        exact = {name: kind for kind, names in rules.exact.items() for name in names}
        free = [re.compile(pattern) for pattern in rules.value_patterns]
        shapes = [re.compile(_SHAPE.format(shape)) for shape in rules.value_shapes]
        shapes += [re.compile(shape) for shape in rules.distinct_shapes]
        texts = [re.compile(pattern) for pattern in rules.text_patterns]
        return cls(
            rules=rules,
            _name=re.compile(rules.name_charset),
            _value=re.compile(rules.value_charset),
            # A yes or no takes one alternation; finding every occurrence needs each pattern by itself.
            _in_value=(
                *free,
                re.compile(_SHAPE.format("|".join(rules.value_shapes))),
                re.compile("|".join(rules.distinct_shapes)),
            ),
            _in_text=(*free, *shapes, *texts),
            _opaque=re.compile("|".join(rules.opaque_shapes)),
            _exact=exact,
            _words=Words.of(rules),
            _joined=re.compile("|".join(chain.from_iterable(rules.joined_substring.values()))),
            _allow=frozenset(rules.allow),
        )

    def check(
        self, extra: object, *, strict: bool = False, allow: Collection[str] = (), reserved: Collection[str] = ()
    ) -> tuple[tuple[str, str], ...]:
        """The caller's decoded `extra_headers` as (canonical name, value), in their order.

        `strict`: only the allow list passes. `allow`: names that the operator adds to it, without effect on a name that
        is not `allowable`. `reserved`: names that the adapter sets itself for this provider.
        Raises ProxyError (400) with the name and class of the first bad header, never with its value.
        """
        if extra is None:
            return ()
        if not isinstance(extra, dict):
            raise self._refused(Failure.INVALID_EXTRA_HEADERS, "must be an object of header names and values.")
        self._within_limits(extra)
        permitted = self._allow.union(map(canonical, allow))
        own = set(map(canonical, reserved))
        passed: dict[str, str] = {}
        for given, value in extra.items():
            if not isinstance(given, str) or not self._name.fullmatch(given):
                problem = "a name has only ASCII letters, digits and inner hyphens; other characters are shown as '-'."
                raise self._refused(Failure.INVALID_EXTRA_HEADERS, problem, given)
            name = canonical(given)
            classes = self._classes(name)
            if classes and not (name in permitted and OPERATORS_CHOICE.issuperset(classes)):
                failure, reason = REFUSAL[classes[0]]
                raise self._refused(failure, f"refused ({classes[0]}): {reason}.", name)
            if name in own:
                raise self._refused(Failure.RESERVED_HEADER, "refused (proxy_owned): the proxy sets it.", name)
            if strict and name not in permitted and not name.startswith(self.rules.allow_prefix):
                raise self._refused(Failure.FORBIDDEN_HEADER, "refused (not_listed): only listed names pass.", name)
            if name in passed:
                raise self._refused(Failure.DUPLICATE_HEADER, "given twice, perhaps in another spelling.", name)
            if not isinstance(value, str) or not self._value.fullmatch(value):
                problem = "the value must be a string of visible ASCII, with spaces and tabs only inside."
                raise self._refused(Failure.INVALID_EXTRA_HEADERS, problem, name)
            if self._has_credential(value):
                raise self._refused(Failure.CREDENTIAL_VALUE, "the value has the shape of a credential.", name)
            if self._may_be_key(name, value):
                problem = "the value may be a key. An identifier passes in a header that is named one, like `x-job-id`."
                raise self._refused(Failure.CREDENTIAL_VALUE, problem, name)
            passed[name] = value
        return tuple(passed.items())

    def allowable(self, name: str) -> bool:
        """Whether an operator may put this name on a provider's `allow` list.

        Only a name whose classes are account or route: `x-litellm-token` is a credential too, so it is not allowable.
        """
        return bool(self._name.fullmatch(name)) and OPERATORS_CHOICE.issuperset(self._classes(canonical(name)))

    def merge(
        self, extra: Sequence[tuple[str, str]], own: Sequence[tuple[str, str]], credential_names: Collection[str]
    ) -> list[tuple[str, str]]:
        """The request's headers: the caller's checked entries first, the proxy's own last.

        `credential_names`: all names in `own` that carry the credential (SigV4 has several). Raises
        ProxyError(INTERNAL), with names only, unless each occurs exactly once, in `own`, and no other secret name does.
        """
        credentials = set(map(canonical, credential_names))
        names = [canonical(name) for name, _ in (*extra, *own)]
        wrong = {name for name in names if names.count(name) > 1}
        wrong |= credentials.difference(names[len(extra) :])
        wrong |= {name for name in names if name not in credentials and not SECRET.isdisjoint(self._classes(name)[:1])}
        for name, value in own:
            # HTTP libraries print a value that ends in a newline, whole, in their exceptions.
            clean = value.isascii() and value.isprintable() and value == value.strip()
            if not clean or (not value and canonical(name) in credentials):
                wrong.add(canonical(name))
        if wrong:
            shown = ", ".join(sorted(map(self._shown, wrong)))
            raise ProxyError(Failure.INTERNAL, f"The outgoing headers are inconsistent: {shown}.")
        return [*extra, *own]

    def scrub(self, text: str) -> str:
        """Free text, such as a provider's error message, with everything that looks like a credential `[redacted]`.

        Keeps the first 4096 characters. OpenAI's 401, for example, has the key in it: `Incorrect API key provided:
        sk-...`.
        """
        kept: list[str] = []
        end = 0
        for start, stop in sorted(self._spans(text[: SCRUB_CHARS + SCRUB_OVERHANG])):
            if start >= SCRUB_CHARS:
                break
            if start >= end:
                kept += text[end:start], REDACTED
            end = max(end, stop)
        return "".join([*kept, text[end:SCRUB_CHARS]])

    def relayable(self, headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """The provider's response headers for the caller: lower-case, the first of each name, within the limits."""
        passed: dict[str, str] = {}
        room = self.rules.max_total_bytes
        for given, value in headers:
            name = given.lower()
            known = name in self.rules.response_allow or name.startswith(self.rules.response_allow_prefix)
            valid = known and self._name.fullmatch(given) and self._value.fullmatch(value)
            if not valid or name in passed or self._has_credential(value) or self._may_be_key(name, value):
                continue
            room -= len(name) + len(value)
            if room < 0 or len(passed) == self.rules.max_headers:
                break
            passed[name] = value
        return list(passed.items())

    def _classes(self, name: str) -> list[HeaderClass]:
        """Every class of a canonical name, in the order of decision: exact, prefix, words, joined text."""
        found = self._judged.get(name)
        if found is None:
            found = self._judge(name)
            if len(self._judged) < JUDGED:
                self._judged[name] = found
        return found

    def _judge(self, name: str) -> list[HeaderClass]:
        if name in self._allow:
            return []
        rules = self.rules
        found = [self._exact[name]] if name in self._exact else []
        if not name.startswith(rules.allow_prefix):
            found += [kind for kind, prefixes in rules.prefix.items() if name.startswith(prefixes)]
        found += self._words.classes(name)
        joined = name.replace("-", "")
        if self._joined.search(joined):
            found += [kind for kind, words in rules.joined_substring.items() if any(word in joined for word in words)]
        return found

    def _within_limits(self, extra: dict[object, object]) -> None:
        most = self.rules
        names, values = [_size(name) for name in extra], [_size(value) for value in extra.values()]
        over = len(names) > most.max_headers or sum(names) + sum(values) > most.max_total_bytes
        if over or max(names, default=0) > most.max_name_bytes or max(values, default=0) > most.max_value_bytes:
            each = f"{most.max_name_bytes} bytes of name and {most.max_value_bytes} of value"
            problem = f"at most {most.max_headers} headers, each {each}, {most.max_total_bytes} bytes in all."
            raise self._refused(Failure.EXTRA_HEADERS_TOO_LARGE, problem)

    def _has_credential(self, value: str) -> bool:
        return any(pattern.search(value) for pattern in self._in_value)

    def _may_be_key(self, name: str, value: str) -> bool:
        """Whether a value is a UUID or a long run of letters and digits, in a header not named as an identifier.

        The keys of Azure, Together and fal look like this. So do identifiers of requests, and hashes.
        """
        if name in self._allow or name.startswith(self.rules.allow_prefix) or not self._opaque.search(value):
            return False
        return not any(segment in self.rules.identifier for segment in name.split("-"))

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Spans of credentials in bounded text; for a pattern with a group, the span of the group."""
        for pattern in self._in_text:
            for match in pattern.finditer(text):
                yield match.span(min(pattern.groups, 1))

    def _shown(self, name: object) -> str:
        """A name as messages show it: canonical, at most 64 safe characters, without a credential in it."""
        text = name if isinstance(name, str) else ""
        if not self._name.fullmatch(text) or self._has_credential(text):
            text = self.scrub(text)
        return _UNSAFE.sub("-", text).lower()[: self.rules.max_name_bytes]

    def _refused(self, failure: Failure, problem: str, name: object = None) -> ProxyError:
        loc = ("body", "extra_headers") if name is None else ("body", "extra_headers", self._shown(name))
        detail = Problem(loc, problem[0].upper() + problem[1:], failure.value.code)
        return ProxyError(
            failure, f"{detail.param}: {problem}", param=detail.param, details=ErrorDetails(problems=(detail,))
        )


def _size(value: object) -> int:
    """Bytes of a string in UTF-8 (JSON may have lone surrogates). Another type is refused later."""
    return len(value.encode("utf-8", "surrogatepass")) if isinstance(value, str) else 0
