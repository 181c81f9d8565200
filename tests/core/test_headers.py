"""The header policy, rule by rule, over every row of its data."""

from __future__ import annotations

import re
from typing import Final

import pytest

from streamproxy.core.headers import REDACTED, REFUSAL, SCRUB_CHARS, SECRET, HeaderClass, HeaderPolicy, canonical
from streamproxy.errors import Failure, ProxyError

POLICY: Final = HeaderPolicy.load()
RULES: Final = POLICY.rules
EXACT: Final = [(kind, name) for kind, names in RULES.exact.items() for name in names]
PREFIXES: Final = [(kind, prefix) for kind, prefixes in RULES.prefix.items() for prefix in prefixes]
SEGMENTS: Final = [(kind, word) for kind, words in RULES.segment.items() for word in words]
GLUED: Final = [(kind, word) for kind, words in RULES.glued.items() for word in words]
AT_AN_END: Final = [(kind, word) for kind, words in RULES.glued_at_an_end.items() for word in words]
JOINED: Final = [(kind, word) for kind, words in RULES.joined_substring.items() for word in words]

# Names that resemble a forbidden one and must pass: a segment counts only whole, a joined text only as it is.
LOOKALIKES: Final = {
    "max-tokens": "the plural counts tokens",
    "x-max-tokens": "likewise",
    "author": "`auth` is not the whole segment, and is not its end",
    "x-author-name": "likewise",
    "x-photo-author": "`oauth` appears only where two segments meet",
    "x-monkey-business": "`key` is not the whole segment",
    "keyboard-layout": "likewise",
    "x-turkey": "likewise",
    "x-design-system": "`sign` is not the whole segment",
    "x-passage": "`pass` is not the whole segment",
    "x-bypass-cache": "likewise",
    "x-patent": "`pat` is not the whole segment",
    "x-side": "`sid` is not the whole segment",
    "x-compression-id": "`sessionid` does not appear in `compressionid`",
    "x-tokenizer": "`token` is not the segment's end",
    "x-secretary": "`secret` is not the segment's end",
    "x-content-hint": "only a leading `content-` frames the body",
    "x-if-you-like": "only a leading `if-` is a condition",
    "hostname": "`host` is exact",
    "x-trace-id": "an opaque identifier",
    "x-md5": "digits are stripped only to compare",
    "cache-control": "a hint to caches",
    "x-wait-for-model": "a provider's harmless option",
    "x-fal-queue-priority": "likewise",
}

# One credential per shape, made up here.
VALUES: Final = [
    "Bearer abcdefgh12345678",
    "basic dXNlcjpwYXNzd29yZDEy",
    "Key 0a1b2c3d:abcdefgh0123",
    "AWS4-HMAC-SHA256 Credential=AKIAABCDEFGHIJKLMNOP/20260101/us-east-1",
    "sk-" + "a1B2" * 8,
    "sk-proj-****************wxyz",
    "sk_" + "0a" * 20,
    "rk_live_" + "a1" * 10,
    "AKIA" + "A1B2" * 4,
    "ABSK" + "aB3+" * 11 + "==",
    "bedrock-api-key-" + "aB3d" * 8,
    "AIza" + "a1B-_" * 7,
    "AQ." + "aB3-" * 8,
    "ya29." + "aB3-" * 8,
    "1//0" + "aB3-" * 8,
    "GOCSPX-" + "aB3-" * 6,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJlMTIz",
    "eyJ" + "a1B2" * 200 + ".eyJ" + "c3D4" * 200 + ".c2lnbmF0dXJl",
    "ghp_" + "a1B2" * 9,
    "github_pat_" + "a1B2" * 9,
    "glpat-" + "a1B2" * 5,
    "xoxb-" + "1234-abcd-" * 2,
    "hf_" + "a1B2" * 8,
    "r8_" + "a1B2" * 8,
    "xai-" + "a1B2" * 8,
    "tgp_v1_" + "a1B2" * 8,
    "01234567-89ab-cdef-0123-456789abcdef:" + "0a" * 16,
    "dapi" + "0a" * 16,
    "Bearer:abcdefgh12345678",
    "api_key = a1b2c3d4e5f6a7b8",
    "01234567-89AB-CDEF-0123-456789ABCDEF:" + "0A" * 16,
    "xsk-" + "a1B2" * 8,
    "my_sk-proj-a1B2_c3D4-e5F6g7H8",
    "keyAKIA" + "A1B2" * 4,
    "tokenAIza" + "a1B-_" * 7,
    "thehf_" + "a1B2" * 8,
    "-----BEGIN RSA PRIVATE KEY-----MIIEabcd0123",
    "https://example.test/x?api_key=a1b2c3d4e5",
    "https://user:hunter22@example.test/",
]


def refusal(extra: object, strict: bool = False) -> ProxyError:
    with pytest.raises(ProxyError) as caught:
        POLICY.check(extra, strict=strict)
    return caught.value


def spellings(name: str) -> set[str]:
    doubled = name.replace("-", "--")
    spelt = {name, name.upper(), name.title(), name.swapcase(), doubled, doubled.upper(), name.replace("-", "---", 1)}
    return {spelling for spelling in spelt if len(spelling) <= RULES.max_name_bytes}


# The data.


def test_every_name_stands_in_canonical_form_and_once() -> None:
    names = [name for _, name in EXACT]
    assert len(names) == len(set(names))
    assert not set(names) & set(RULES.allow)
    words = [*names, *RULES.allow, *RULES.response_allow, *(word for _, word in SEGMENTS + GLUED + AT_AN_END)]
    assert [word for word in words if canonical(word) != word or not re.fullmatch(RULES.name_charset, word)] == []
    assert [word for _, word in JOINED if not re.fullmatch("[a-z]+", word)] == []
    parts = [prefix for _, prefix in PREFIXES]
    assert len(parts) == len(set(parts))


def test_the_data_has_every_name_that_must_never_pass() -> None:
    must = (
        "authorization proxy-authorization x-api-key api-key x-goog-api-key cookie set-cookie x-amz-security-token "
        "x-amz-date x-amz-anything ocp-apim-subscription-key x-auth-token x-stability-api-key host content-length "
        "transfer-encoding connection te trailer upgrade expect content-type accept-encoding proxy keep-alive"
    )
    for name in must.split():
        assert refusal({name: "v"}).failure in {Failure.CREDENTIAL_HEADER, Failure.RESERVED_HEADER}, name


def test_every_class_has_a_refusal_and_a_name() -> None:
    assert set(REFUSAL) == set(HeaderClass) == set(RULES.exact)


# Rules 1 and 2: shape and limits.


@pytest.mark.parametrize("nothing", [None, {}])
def test_nothing_is_nothing(nothing: object) -> None:
    assert POLICY.check(nothing) == POLICY.check(nothing, strict=True) == ()


@pytest.mark.parametrize("wrong", [[], "x-a: b", 1, True, 0.5, [["x-a", "b"]]])
def test_what_is_not_an_object_is_refused(wrong: object) -> None:
    error = refusal(wrong)
    assert (error.failure, error.param, error.status) == (Failure.INVALID_EXTRA_HEADERS, "extra_headers", 400)


def test_limits_hold_to_the_byte() -> None:
    assert len(POLICY.check({f"x-{i}": "v" for i in range(32)})) == 32
    assert refusal({f"x-{i}": "v" for i in range(33)}).failure is Failure.EXTRA_HEADERS_TOO_LARGE
    assert POLICY.check({"x" * 64: "v"})
    assert refusal({"x" * 65: "v"}).failure is Failure.EXTRA_HEADERS_TOO_LARGE
    assert POLICY.check({"x-a": "v" * 4096})
    assert refusal({"x-a": "v" * 4097}).failure is Failure.EXTRA_HEADERS_TOO_LARGE
    full = {f"x-{i}": "v" * 4093 for i in range(4)}
    assert len(POLICY.check(full)) == 4
    assert refusal({**full, "y": ""}).failure is Failure.EXTRA_HEADERS_TOO_LARGE


def test_bytes_are_counted_not_characters() -> None:
    assert refusal({"x-a": "\u20ac" * 1366}).failure is Failure.EXTRA_HEADERS_TOO_LARGE
    assert refusal({"x-a": "\u20ac" * 1365}).failure is Failure.INVALID_EXTRA_HEADERS


# Rules 3 to 5: names.


@pytest.mark.parametrize("strict", [False, True])
def test_each_exact_name_is_refused_with_its_classes_code(strict: bool) -> None:
    for kind, name in EXACT:
        for spelling in spellings(name):
            error = refusal({"x-title": "v", spelling: "v"}, strict=strict)
            assert error.failure is REFUSAL[kind][0], spelling
            assert f"({kind})" in error.message
            assert error.param == f"extra_headers.{name}"
            assert [(p.loc, p.type) for p in error.details.problems] == [(("body", "extra_headers", name), error.code)]


@pytest.mark.parametrize(("kind", "prefix"), PREFIXES)
def test_each_prefix_is_refused(kind: HeaderClass, prefix: str) -> None:
    for spelling in spellings(f"{prefix}zebra"):
        assert refusal({spelling: "v"}).failure is REFUSAL[kind][0]


@pytest.mark.parametrize(("kind", "word"), SEGMENTS)
def test_each_segment_is_refused_wherever_it_stands(kind: HeaderClass, word: str) -> None:
    for name in (word, f"x-{word}", f"zebra-{word}-zebra", f"{word}-zebra", f"zebra-{word}2"):
        for spelling in spellings(name):
            # An exact name or a prefix may decide before the segment; refused it is all the same.
            expected = {REFUSAL[kind][0]} if "zebra-" in name else {failure for failure, _ in REFUSAL.values()}
            assert refusal({spelling: "v"}).failure in expected


@pytest.mark.parametrize(("kind", "word"), GLUED + AT_AN_END)
def test_each_glued_word_is_refused(kind: HeaderClass, word: str) -> None:
    at_ends = (
        f"zebra{word}",
        f"x-zebra{word}-zebra",
        f"x-zebra{word}12",
        f"x-{word}zebra",
        f"zebra{word}s",
        f"7{word}7",
    )
    for name in (*at_ends, *([f"x-zebra{word}zebra"] if (kind, word) in GLUED else [])):
        assert refusal({name: "v"}).failure is REFUSAL[kind][0]


@pytest.mark.parametrize("word", RULES.harmless)
def test_each_harmless_word_passes_only_as_a_whole(word: str) -> None:
    """It would be refused for what it holds, and with anything glued to it still is."""
    inside = [found for _, found in GLUED if found in word]
    at_an_end = [found for _, found in AT_AN_END if word.startswith(found) or re.search(f"{found}s?$", word)]
    assert inside or at_an_end
    for name in (word, f"x-{word}", f"{word}-zebra", f"x-{word}s", f"x-{word}2"):
        assert POLICY.check({name: "v"}) == ((name, "v"),)
    for secret in ("token", "key"):
        assert refusal({f"x-{word}{secret}": "v"}).failure is Failure.CREDENTIAL_HEADER


NEIGHBOURS: Final = [
    *((word, after) for word, words in RULES.followed.items() for after in words),
    *((before, word) for word, words in RULES.preceded.items() for before in words),
]


@pytest.mark.parametrize(("first", "second"), NEIGHBOURS)
def test_only_its_neighbour_makes_a_word_harmless(first: str, second: str) -> None:
    assert POLICY.check({f"x-{first}-{second}": "v"})
    assert POLICY.check({f"x-{first}-{second}-zebra": "v"})
    both_ways = (second, first.removesuffix("s")) in NEIGHBOURS  # `tokens-used` and `used-tokens`
    for name in (f"zebra-{first}-zebra-{second}", *([] if both_ways else [f"zebra-{second}-{first}"])):
        assert refusal({name: "v"}).failure is Failure.CREDENTIAL_HEADER
    assert refusal({f"x-secret-{first}-{second}": "v"}).failure is Failure.CREDENTIAL_HEADER


@pytest.mark.parametrize("name", [name for kind, name in EXACT if kind in SECRET])
def test_a_secret_name_is_refused_inside_a_longer_one(name: str) -> None:
    bare = name.replace("-", "")
    for longer in (f"my-{name}", f"x-{name}-zebra", f"{name}-2", f"zebra{bare}", f"{bare}zebra"):
        if len(longer) <= RULES.max_name_bytes:
            with pytest.raises(ProxyError) as caught:
                POLICY.check({longer: "v"})
            assert caught.value.failure in {failure for failure, _ in REFUSAL.values()}, longer


@pytest.mark.parametrize(("kind", "word"), JOINED)
def test_each_joined_text_is_refused_with_any_hyphens(kind: HeaderClass, word: str) -> None:
    for cut in range(1, len(word)):
        name = f"zebra{word[:cut]}-{word[cut:]}zebra"
        assert refusal({name: "v"}).failure is REFUSAL[kind][0]


@pytest.mark.parametrize("name", [name for kind, name in EXACT if kind in SECRET])
def test_a_credential_name_without_its_hyphens_is_refused(name: str) -> None:
    assert refusal({name.replace("-", ""): "v"}).failure is Failure.CREDENTIAL_HEADER


@pytest.mark.parametrize("name", ["", "-", "--", "-x", "x-", "\u00e9", "x y"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    assert refusal({name: "v"}).failure is Failure.INVALID_EXTRA_HEADERS


@pytest.mark.parametrize("name", RULES.allow)
def test_the_allow_list_passes_strict_or_not(name: str) -> None:
    for spelling in spellings(name):
        assert POLICY.check({spelling: "v"}) == POLICY.check({spelling: "v"}, strict=True) == ((name, "v"),)


def test_an_allowed_prefix_lifts_the_prefix_rule_only() -> None:
    for prefix in RULES.allow_prefix:
        assert POLICY.check({f"{prefix}zebra": "v"}, strict=True) == ((f"{prefix}zebra", "v"),)
        assert refusal({f"{prefix}api-key": "v"}).failure is Failure.CREDENTIAL_HEADER
        assert refusal({f"{prefix}token": "v"}, strict=True).failure is Failure.CREDENTIAL_HEADER


@pytest.mark.parametrize("name", LOOKALIKES)
def test_lookalikes_pass(name: str) -> None:
    assert POLICY.check({name: "v"}) == ((name, "v"),), LOOKALIKES[name]


# Rules 6 to 9: duplicates, values, messages.


@pytest.mark.parametrize(("one", "two"), [("X--A", "x-a"), ("x-a", "X-A"), ("x---b-c", "x-b--C")])
def test_two_spellings_of_a_name_are_a_duplicate(one: str, two: str) -> None:
    assert refusal({one: "1", two: "2"}).failure is Failure.DUPLICATE_HEADER


def test_values_pass_as_given_and_names_in_canonical_form() -> None:
    assert POLICY.check({"X--Zebra": "a \t b", "x-b": "!"}) == (("x-zebra", "a \t b"), ("x-b", "!"))


@pytest.mark.parametrize(
    "value",
    ["", " ", " a", "a ", "a\t", "a\n", "a\r\nb", "a\0b", "\x7f", "\xa0", "é", "\ud800", 1, None, True, ["a"], {}],
)
def test_what_is_not_visible_ascii_text_is_refused(value: object) -> None:
    assert refusal({"x-a": value}).failure is Failure.INVALID_EXTRA_HEADERS


@pytest.mark.parametrize("value", VALUES)
def test_a_credentials_shape_is_refused_anywhere(value: str) -> None:
    for name in ("x-zebra", *RULES.allow[:3]):
        error = refusal({name: value})
        assert error.failure is Failure.CREDENTIAL_VALUE
        assert value not in error.message + repr(error.details.problems)
    if " " not in value:
        assert refusal({"x-zebra": f"zebra;{value}"}).failure is Failure.CREDENTIAL_VALUE


@pytest.mark.parametrize("pattern", [*RULES.value_patterns, *RULES.value_shapes, *RULES.distinct_shapes])
def test_every_pattern_recognises_a_sample(pattern: str) -> None:
    assert any(re.search(pattern, value) for value in VALUES)


OPAQUE: Final = [
    "01234567-89ab-cdef-0123-456789abcdef",
    "01234567-89AB-CDEF-0123-456789ABCDEF",
    "0123456789abcdef" * 2,  # as Azure's keys
    "0123456789abcdef" * 4,  # as Together's
    "aB3" * 20,
    "see 0123456789ABCDEF0123456789ABCDEF;",
]


@pytest.mark.parametrize("value", OPAQUE)
def test_the_name_decides_between_key_and_identifier(value: str) -> None:
    for name in ("x-zebra", "x-api", "x-user-data", "x-fal-runner-hint", "x-grid", "x-idea"):
        error = refusal({name: value})
        assert error.failure is Failure.CREDENTIAL_VALUE
        assert value not in error.message + repr(error.details.problems)
    identifiers = (
        "x-job-id",
        "x-b3-traceid",
        "x-content-hash2-sha256",
        "x-parent-span-id",
        "X-Image-Commit",
        "x-my-uuid",
    )
    for name in (*identifiers, "x-cache-key", "helicone-property-conversation"):
        assert POLICY.check({name: value}) == ((name.lower(), value),)
    assert POLICY.scrub(f"request {value} failed") == f"request {value} failed"


@pytest.mark.parametrize(
    "value",
    [
        "0" * 40,
        "a" * 40,
        "2026-11-27T15:58:46.123456Z",
        "projects/my-project/locations/us-central1/models/imagen-4.0",
        "00-0123",
        "a-lighthouse-at-dusk-in-the-style-of-1920s-posters-number-17",
        "task-2026-11-27-the-second-run-of-the-day",
    ],
)
def test_words_and_numbers_are_no_keys(value: str) -> None:
    assert POLICY.check({"x-zebra": value}) == (("x-zebra", value),)


@pytest.mark.parametrize(
    "value",
    ["zebra", "task-force-of-seventeen-people", "disk-image-of-the-first-drive", "eyJust.a.word", "1.2.3", "a=b"],
)
def test_ordinary_values_pass(value: str) -> None:
    assert POLICY.check({"x-zebra": value}) == (("x-zebra", value),)


def test_a_credential_written_as_a_name_is_not_repeated() -> None:
    for value in VALUES:
        error = refusal({f"Authorization: {value}": "v", "x": "v"})
        assert not any(part.lower() in error.message for part in re.findall(r"[A-Za-z0-9]{8,}", value))


# Rule 11: strict, and what the operator may allow.


def test_strict_passes_only_what_is_listed() -> None:
    assert refusal({"x-zebra": "v"}, strict=True).failure is Failure.FORBIDDEN_HEADER
    assert POLICY.check({"X-Zebra": "v"}, strict=True, allow=["x-zebra"]) == (("x-zebra", "v"),)


def test_operators_may_allow_only_accounts_and_routes() -> None:
    for kind, name in EXACT:
        if POLICY.allowable(name):
            assert kind in {HeaderClass.ACCOUNT_SELECTOR, HeaderClass.ROUTE_CONTROL}, name
            assert POLICY.check({name: "v"}, allow=[name.upper()]) == ((name, "v"),)
        else:
            with pytest.raises(ProxyError):
                pytest.fail(f"{name} passes: {POLICY.check({name: 'v'}, allow=[name])}")


def test_accounts_and_routes_only_are_allowable() -> None:
    assert all(map(POLICY.allowable, ("OpenAI-Organization", "x-tenant-id", "x-portkey-provider", "x-litellm-zebra")))
    more = (
        "x-litellm-token",
        "x-portkey-api-key",
        "helicone-auth",
        "x-bf-vk",
        "cf-aig-cookie",
        "authorization",
        "host",
    )
    assert not any(map(POLICY.allowable, (*more, "x_zebra", "x-zebra ", "")))
    for name in ("x-litellm-token", "x-bf-session"):
        assert refusal({name: "v"}).failure is Failure.FORBIDDEN_HEADER
        with pytest.raises(ProxyError):
            POLICY.check({name: "v"}, allow=[name])


def test_what_the_adapter_sets_itself_is_reserved() -> None:
    with pytest.raises(ProxyError) as caught:
        POLICY.check({"Anthropic--Version": "v"}, reserved=["anthropic-version"])
    assert caught.value.failure is Failure.RESERVED_HEADER


# Rule 10: the merge.

OWN: Final = [
    ("content-type", "application/json"),
    ("accept-encoding", "identity"),
    ("Authorization", "Bearer hunter22"),
]


def test_own_headers_come_last() -> None:
    assert POLICY.merge([("x-zebra", "v")], OWN, ["authorization"]) == [("x-zebra", "v"), *OWN]
    assert POLICY.merge([], OWN[:2], []) == OWN[:2]


@pytest.mark.parametrize(
    ("extra", "own", "credentials"),
    [
        ([("content-type", "v")], OWN, ["authorization"]),
        ([("authorization", "hunter22")], OWN, ["authorization"]),
        ([("authorization", "hunter22")], OWN[:2], ["authorization"]),
        ([("cookie", "hunter22")], OWN, ["authorization"]),
        ([], OWN, []),
        ([], OWN, ["authorization", "x-api-key"]),
        ([], OWN, ["x-api-key"]),
        ([], [*OWN, ("authorization", "hunter22")], ["authorization"]),
        ([], [*OWN, ("x-api-key", "hunter22")], ["authorization"]),
        ([], [("authorization", "")], ["authorization"]),
        ([], [("authorization", "hunter22\n")], ["authorization"]),
        ([], [("x-fine", "a\r\nb: hunter22")], []),
    ],
)
def test_an_inconsistent_merge_is_an_internal_error(
    extra: list[tuple[str, str]], own: list[tuple[str, str]], credentials: list[str]
) -> None:
    with pytest.raises(ProxyError) as caught:
        POLICY.merge(extra, own, credentials)
    assert caught.value.failure is Failure.INTERNAL
    assert "hunter22" not in caught.value.message


# The log.


@pytest.mark.parametrize("around", ["{}", "failed: {}.", 'said "{}" to', "(key={})", "\n{}\n", "\u00e9{}\u00e9"])
def test_text_is_scrubbed_of_every_shape(around: str) -> None:
    for value in VALUES:
        scrubbed = POLICY.scrub(around.format(value))
        assert REDACTED in scrubbed, value
        secret = max(re.findall(r"[A-Za-z0-9+_*-]+", value.split("/x?")[-1]), key=len)
        assert secret not in scrubbed


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        (
            "Incorrect API key provided: sk-abc*****************wxyz. You can find your API key at https://example.test.",
            "Incorrect API key provided: [redacted] You can find your API key at https://example.test.",
        ),
        ("Incorrect API key provided: hunter22", "Incorrect API key provided: [redacted]"),
        ('{"x-api-key": "hunter22"}', '{"x-api-key": "[redacted]"}'),
        ("{'Authorization': 'Token hunter'}", "{'Authorization': '[redacted]'}"),
        ("Cookie: a=b; c=d\nnext", "Cookie: [redacted]\nnext"),
        ("GET /x?key=sk-" + "a1B2" * 5 + ";hunter22 failed", "GET /x[redacted] failed"),
        ("Bearer\u00a0abcdefgh12345678", "[redacted]"),
        ("\u00e9sk-" + "a1B2" * 5 + " _sk-" + "a1B2" * 5, "\u00e9[redacted] _[redacted]"),
        ("password=hunter22&x=1", "password=[redacted]&x=1"),
        ("at most 4096 tokens, token 17 was odd", "at most 4096 tokens, token 17 was odd"),
        ("The basic plan does not stream.", "The basic plan does not stream."),
    ],
)
def test_scrubbed_text_says_what_it_is_about(text: str, scrubbed: str) -> None:
    assert POLICY.scrub(text) == scrubbed


@pytest.mark.parametrize("value", [VALUES[0], VALUES[4], VALUES[11], "api_key=hunter22hunter22"])
def test_no_part_of_a_secret_survives_where_the_text_is_cut(value: str) -> None:
    secret = re.split(r"[ =]", value)[-1]
    for start in range(SCRUB_CHARS - len(value) - 2, SCRUB_CHARS + 2):
        scrubbed = POLICY.scrub("." * start + " " + value + " tail" * 100)
        assert secret[:8] not in scrubbed


# What comes back.


def test_only_listed_response_headers_reach_the_caller() -> None:
    listed = [(name, "1") for name in RULES.response_allow] + [
        ("x-ratelimit-remaining-tokens", "499"),
        ("x-ratelimit-reset-input-images", "58.891s"),
    ]
    assert POLICY.relayable([(name.title(), value) for name, value in listed]) == listed
    dropped = "set-cookie server openai-organization openai-project www-authenticate content-type date x-ratelimit via"
    assert POLICY.relayable([(name, "1") for name in dropped.split()]) == []
    assert POLICY.relayable([(name, "1") for _, name in EXACT if name != "x-request-id"]) == []


@pytest.mark.parametrize("value", ["", " 1", "1\r\nset-cookie: a=b", "1\0", "\xe9", "v" * 4097, *VALUES])
def test_an_unclean_or_secret_response_value_is_dropped(value: str) -> None:
    assert POLICY.relayable([("x-ratelimit-zebra", value), ("retry-after", "1")]) == [("retry-after", "1")]


def test_response_headers_are_bounded_and_the_first_wins() -> None:
    assert POLICY.relayable([("retry-after", "1"), ("Retry-After", "2")]) == [("retry-after", "1")]
    assert len(POLICY.relayable([(f"x-ratelimit-{i}", "1") for i in range(100)])) == RULES.max_headers
    large = POLICY.relayable([(f"x-ratelimit-{i}", "v" * 4096) for i in range(100)])
    assert sum(len(name) + len(value) for name, value in large) <= RULES.max_total_bytes
    assert (
        POLICY.relayable([("x-ratelimit-to\u212aens", "1"), ("x-ratelimit-a\r\nb", "1"), ("x-ratelimit-", "1")]) == []
    )
