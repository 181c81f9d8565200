"""The header policy against unlisted input: generated names, evasions, any JSON, hostile texts."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from itertools import islice
from random import Random
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproxy.core.headers import REDACTED, REFUSAL, SECRET, HeaderPolicy, canonical
from streamproxy.errors import Failure, ProxyError

POLICY: Final = HeaderPolicy.load()
RULES: Final = POLICY.rules
HARMLESS: Final = (
    *("x", "my", "zebra", "provider", "stability", "openai", "v1", "image", "gateway", "prod", "eu"),
    *("fal", "hf", "acme", "app", "user", "corp", "dev", "internal", "custom", "new", "id", "value", "header", "cloud"),
)

SEGMENTS: Final = [word for kind, words in RULES.segment.items() if kind in SECRET for word in words]
GLUED: Final = [word for rule in (RULES.glued, RULES.glued_at_an_end) for kind in SECRET for word in rule.get(kind, ())]
JOINED: Final = [word for kind, words in RULES.joined_substring.items() if kind in SECRET for word in words]
EXACT: Final = [name for kind, names in RULES.exact.items() if kind in SECRET for name in names]
LONG: Final = [name for name in EXACT if len(name.replace("-", "")) > 4]
BY_NAME: Final = {failure for failure, _ in REFUSAL.values()} | {Failure.INVALID_EXTRA_HEADERS}
EVASIVE: Final = " \t\r\n\0_.:%\xa0\u200b\u212a\u017f\uff41"


def surrounded(random: Random, core: str) -> str:
    before = random.choices(HARMLESS, k=random.randrange(3))
    after = random.choices(HARMLESS, k=random.randrange(3))
    return random.choice(("-", "--", "---")).join([*before, core, *after])


def of_a_segment(random: Random) -> str:
    word = random.choice(SEGMENTS)
    plural = "" if word.endswith("s") else random.choice(("", "s"))
    return surrounded(random, word + plural + random.choice(("", "", "1", "2", "42")))


def of_a_glued_word(random: Random) -> str:
    word, other = random.choice(GLUED), random.choice(HARMLESS)
    return surrounded(random, random.choice((other + word, word + other)) + random.choice(("", "7")))


def of_joined_text(random: Random) -> str:
    core = "".join(letter + random.choice(("", "", "", "-", "--")) for letter in random.choice(JOINED)).strip("-")
    return surrounded(random, random.choice(("", "zebra", "v1")) + core + random.choice(("", "zebra", "2")))


def of_an_exact_name(random: Random) -> str:
    return random.choice(EXACT).replace("-", random.choice(("", "-", "--")))


def of_a_name_within(random: Random) -> str:
    return surrounded(random, random.choice(LONG).replace("-", random.choice(("", "-"))))


def of_an_evasion(random: Random) -> str:
    name = random.choice(EXACT)
    at = random.randrange(len(name) + 1)
    return name[:at] + random.choice(EVASIVE) + name[at:]


BUILDERS: Final[tuple[Callable[[Random], str], ...]] = (
    of_a_segment,
    of_a_glued_word,
    of_joined_text,
    of_an_exact_name,
    of_a_name_within,
    of_an_evasion,
)


def refused(extra: object, strict: bool = False) -> ProxyError | None:
    try:
        POLICY.check(extra, strict=strict)
    except ProxyError as error:
        return error
    return None


def in_any_case(random: Random, name: str) -> str:
    coins = random.getrandbits(len(name))
    # Only ASCII: `upper` would turn a long s into a plain S, and undo the evasion.
    return "".join(c.upper() if coins >> i & 1 and c.isascii() else c for i, c in enumerate(name))


def forbidden_names(random: Random) -> Iterator[str]:
    while True:
        name = in_any_case(random, random.choice(BUILDERS)(random))
        if len(name.encode()) <= RULES.max_name_bytes and canonical(name) not in RULES.allow:
            yield name


@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.soak)])
def test_every_generated_name_is_refused(count: int) -> None:
    names = list(islice(forbidden_names(Random(20261121)), count))
    started = time.process_time()
    passed = []
    for name in names:
        error = refused({name: "v"})
        # A route or an identity may be what decides first, as in `x-litellm-token`; refused it is all the same.
        if error is None or error.failure not in BY_NAME:
            passed.append(name)
    assert passed == []
    assert time.process_time() - started < count / 10_000  # seconds; half of that was seen


EVASIONS: Final[list[Callable[[str], str]]] = [
    *(lambda name, c=c: name + c for c in " \t\r\n\0_.:;,/=\"'()\x7f\xa0\u200b\u200d\u2028\ufeff\u00ad"),
    *(lambda name, c=c: c + name for c in " \t\r\n\0_.:\xa0\u200b\ufeff-"),
    *(lambda name, c=c: name[:2] + c + name[2:] for c in " \t\r\n\0_.:%\xa0\u200b\u0301"),
    *(lambda name, c=c: name.replace("-", c) + c for c in " _.:\u2010\u2011\u2212"),
    lambda name: name + "-",
    lambda name: name.replace("k", "\u212a") + "\u212a",  # the Kelvin sign: lower() makes it `k`
    lambda name: name.replace("s", "\u017f") + "\u017f",  # the long s: upper() makes it `S`
    lambda name: name.replace("i", "\u0131") + "\u0130",
    lambda name: "".join(chr(ord(c) + 0xFEE0) if c.isalnum() else c for c in name),
    lambda name: "".join(f"%{ord(c):02x}" for c in name),
    lambda name: name.replace("a", "%61") + "%20",
    lambda name: name.replace("a", "\u0430") + "\u0430",  # Cyrillic a
    lambda name: f"x-fine\r\n{name}: v\r\nx",
    lambda name: f"{name}\ud800",
]


@pytest.mark.parametrize("evade", EVASIONS)
def test_no_evasion_gets_a_name_past_the_charset(evade: Callable[[str], str]) -> None:
    for name in EXACT:
        error = refused({evade(name): "v"})
        assert error is not None, name
        assert error.failure in {Failure.INVALID_EXTRA_HEADERS, Failure.EXTRA_HEADERS_TOO_LARGE}
        assert re.fullmatch(r"extra_headers(\.[a-z0-9-]{0,64})?", error.param or "")
        assert error.message.isascii()
        assert error.message.isprintable()


JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=80),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(), max_size=70), inner),
    max_leaves=40,
)
NAMES: Final = st.sampled_from(["x-zebra", "x-title", "authorization", "x y", "host"])


@given(JSON | st.dictionaries(NAMES | st.from_regex("[a-zA-Z-]{1,8}", fullmatch=True), st.text() | JSON), st.booleans())
def test_any_json_is_passed_or_refused(extra: object, strict: bool) -> None:
    error = refused(extra, strict)
    if error is None:
        passed = POLICY.check(extra, strict=strict)
        assert POLICY.check(dict(passed), strict=strict) == passed
        assert all(canonical(name) == name for name, _ in passed)
    else:
        assert error.status == 400
        assert (error.param or "").startswith("extra_headers")


@given(st.text(st.characters(), max_size=5000), NAMES)
def test_no_message_holds_the_value(noise: str, name: str) -> None:
    error = refused({name: f"<{noise}hunter22>"})
    assert error is None or "hunter22" not in repr((error.message, error.param, error.details.problems, error.args))


@given(st.text(st.characters(), max_size=300), st.sampled_from(["", "Bearer a1b2c3d4e5", "?key=", "sk-**"]))
def test_scrubbing_hides_or_changes_nothing(text: str, word: str) -> None:
    once = POLICY.scrub(text + word)
    assert once == text + word or REDACTED in once


HOSTILE: Final = {
    "many beginnings of a JWT": "-eyJa" * 900,
    "long beginnings of a JWT": ("-eyJ" + "a" * 600) * 8,
    "JWTs without an end": ("-eyJ" + "a" * 12) * 50 + "." + "b-eyJ" * 800,
    "many beginnings of a key": "sk-" * 1500,
    "masked keys without a mask": "sk-a*" * 900,
    "armour without an end": "-----BEGIN " * 400,
    "armour of words": "-----BEGIN " + "PRIVATE KEY" * 400,
    "many authorities": "://a:b" * 750,
    "long authorities": ("://" + "a" * 120 + ":" + "b" * 240) * 12,
    "many schemes": "bearer " * 650,
    "a scheme and blanks": "bearer" + " " * 4400,
    "a scheme and tabs": "basic\t" * 750,
    "many assignments": "password=" * 500,
    "many queries": "?key=" * 900,
    "many cookies": "cookie:" * 650,
    "hexadecimal": "0" * 4400,
    "many uuids": "01234567-89ab-cdef-0123-456789abcdef-" * 120,
    "many prefixes": "key-xai-gsk_" * 370,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_text_makes_a_pattern_backtrack_without_end(text: str) -> None:
    """A bound of 0.5 s against the 10 ms that were seen: a catastrophic pattern takes minutes at this length."""
    started = time.process_time()
    POLICY.scrub(text)
    refused({f"x-zebra-{i}": text[:4000].strip() for i in range(4)})
    assert time.process_time() - started < 0.5
