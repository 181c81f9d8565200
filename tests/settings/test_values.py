"""Kinds of values: what they take, and what they refuse without repeating it."""

from __future__ import annotations

import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproxy.settings.values import (
    EXPECTED,
    BucketUrl,
    Bytes,
    CallerKey,
    CallerKeys,
    ConfigurationProblem,
    CredentialReference,
    FetchHosts,
    Grace,
    Host,
    Names,
    Origins,
    PathTemplate,
    Port,
    Query,
    Refused,
    Seconds,
    Text,
    Token,
    Url,
    WebhookOrigins,
    WebhookSecret,
    converted,
    is_loopback,
    shown_origin,
)

HASH = "sha256:" + "0a" * 32
CANARY = "sk-Canary0123456789"


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("8080", int, 8080),
        (" 8080 ", int, 8080),
        ("268_435_456", int, 268_435_456),
        (8080.0, int, 8080),
        ("2.5", float, 2.5),
        (2, float, 2.0),
        *((text, bool, True) for text in ("true", "True", " yes", "on", "y", "1")),
        *((text, bool, False) for text in ("false", "FALSE", "no", "Off", "n", "0")),
        (True, bool, True),
        (1, bool, True),
        ("a, b,,", tuple[str, ...], ("a", "b")),
        ("", tuple[str, ...], ()),
        (["a, b"], tuple[str, ...], ("a, b",)),
        ({"a": "b"}, dict[str, str], {"a": "b"}),
        (" kept as it is ", str, " kept as it is "),
        *((text, Literal["json", "text"], "text") for text in ("text", "TEXT", " Text ")),
        (None, int | None, None),
        ("null", str | None, "null"),
        ("1", int | None, 1),
    ],
)
def test_values_become_what_the_annotation_says(value: object, hint: object, expected: object) -> None:
    assert (converted(value, hint), type(converted(value, hint))) == (expected, type(expected))


@pytest.mark.parametrize(
    ("hint", "values", "word"),
    [
        (int, [True, None, "", "1.5", 1.5, "_1", "1_", "0x10", "1" * 5000, math.nan, [1], CANARY], "a whole number"),
        (float, [False, None, "", "1e", [1.0], CANARY], "a number"),
        (bool, [None, 2, "maybe", "", "truee", [True], CANARY], "true or false"),
        (str, [None, 1, True, b"a", [CANARY], {CANARY: CANARY}], "text"),
        (tuple[str, ...], [None, 1, {CANARY: 1}, [1], [CANARY, [CANARY]]], "a list of texts"),
        (dict[str, str], [None, CANARY, [CANARY], {CANARY: 1}, {1: CANARY}], "a table of texts"),
    ],
)
def test_values_of_another_type_are_refused_in_words(hint: object, values: list[object], word: str) -> None:
    assert hint in EXPECTED
    for value in values:
        with pytest.raises(Refused) as caught:
            converted(value, hint)
        assert caught.value.happened == f"it must be {word}"
        assert caught.value.__context__ is None  # nothing leads back to the value


def test_a_choice_says_its_words_and_not_the_value() -> None:
    for value in (CANARY, "jsonn", None, 1, ["json"]):
        with pytest.raises(Refused, match=r"^it must be one of json, text$") as caught:
            converted(value, Literal["json", "text"])
        assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("hint", "sound", "wrong"),
    [
        (Port, (0, "0", 65_535), {-1: "it must be at least 0", "65536": "it must be at most 65535"}),
        (Bytes, (65_536, 2**40), {65_535: "it must be at least 65536", 2**40 + 1: f"it must be at most {2**40}"}),
        (Grace, (0, "0.0", 86_400), {-0.1: "it must be at least 0", "1e9": "it must be at most 86400"}),
        (
            Seconds,
            (1e-9, 86_400.0),
            {"0": "it must be more than 0", -1: "it must be more than 0", 86_401: "at most 86400"},
        ),
        (Seconds, (), dict.fromkeys(("nan", math.nan, "inf", -math.inf), "it must be a finite number")),
        (Token, ("", "x-api-key", "a" * 64), dict.fromkeys(("a" * 65, "a b", "a\n", "é"), "letters, digits and -")),
        (PathTemplate, ("", "/", "/a/{model}"), dict.fromkeys(("a", " /", "/a b", "/\n", "/é"), "starts with /")),
        (Text, ("", "Bearer ", "a" * 256), dict.fromkeys(("a" * 257, "a\n", "a\x7f", "é"), "256 ASCII characters")),
    ],
)
def test_limits_are_said_in_words(hint: object, sound: tuple[object, ...], wrong: dict[object, str]) -> None:
    for value in sound:
        converted(value, hint)
    for value, word in wrong.items():
        with pytest.raises(Refused) as caught:
            converted(value, hint)
        assert word in caught.value.happened


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("https://api.example.com/v1", "https://api.example.com/v1"),
        ("http://127.0.0.1:8090/v1/", "http://127.0.0.1:8090/v1"),
        ("http://[::1]:1", "http://[::1]:1"),
        ("HTTPS://Example.com", "HTTPS://Example.com"),
        ("https://Bücher.example:8443/v1/", "https://xn--bcher-kva.example:8443/v1"),
    ],
)
def test_base_urls(value: str, kept: str) -> None:
    assert converted(value, Url) == kept


@pytest.mark.parametrize(
    "value",
    [
        *(
            "",
            "api.example.com",
            "ftp://a",
            "http://",
            "https:///v1",
            "http://a b",
            "http://a\n",
            "http://a/é",
            "http://\u2100.example",
            "http://a:x",
        ),
        *("http://a:70000", "http://a:0", "http://u:p@a", "http://u@a", "http://a?key=1", "http://a?", "http://a#f"),
        *("http://a\\b", "http://[::1", "//a", "file:///etc/passwd", "http://a\0"),
    ],
)
def test_other_base_urls_are_refused(value: str) -> None:
    with pytest.raises(Refused):
        converted(value, Url)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.9.10", "::1", "[::1]", "localhost", "LOCALHOST", "::ffff:127.0.0.1"]
)
def test_loopback_hosts(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "128.0.0.1", "::2", "localhost.example.com", "127.1.example", ""]
)
def test_hosts_that_others_reach(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::1", "fe80::1%eth0", "my-host.example", "localhost"])
def test_hosts(host: str) -> None:
    assert converted(host, Host) == host


@pytest.mark.parametrize("host", ["", "http://a", "a b", "a:80", "[::1]", "a/b"])
def test_other_hosts_are_refused(host: str) -> None:
    with pytest.raises(Refused):
        converted(host, Host)


@pytest.mark.parametrize("host", ["stra\u00dfe.example", "a\u200db.example", "\u1e9e.example", "ü" * 64 + ".example"])
def test_a_host_with_two_readings_is_refused(host: str) -> None:
    for hint, value in ((Url, f"https://{host}/v1"), (Host, host), (Origins, f"https://{host}")):
        with pytest.raises(Refused) as caught:
            converted(value, hint)
        assert "xn--" in caught.value.fix
        assert caught.value.__context__ is None


def test_a_host_in_unicode_becomes_punycode() -> None:
    assert converted("bücher.example", Host) == "xn--bcher-kva.example"
    assert converted("https://bücher.example:8443", Origins) == ("https://xn--bcher-kva.example:8443",)
    for value in ("http://a\uff0fb.example", "http://a\uff20b.example"):  # a full-width slash and at
        for hint in (Url, Origins):
            with pytest.raises(Refused):
                converted(value, hint)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:Canary@[::1]:9/Canary?Canary#Canary", "https://[::1]:9"),
        ("http://a.example/v1", "http://a.example"),
    ],
)
def test_an_origin_is_shown_without_secrets(url: str, shown: str) -> None:
    assert shown_origin(url) == shown


def test_a_query_may_begin_with_its_question_mark() -> None:
    for value in ("api-version=preview", "?api-version=preview", "&api-version=preview"):
        assert converted(value, Query) == "api-version=preview"
    with pytest.raises(Refused, match="fragment"):
        converted("a=b#c", Query)


@pytest.mark.parametrize("value", ["*", "http://a", "https://a.example:8443", "http://[::1]:3000"])
def test_origins(value: str) -> None:
    assert converted(value, Origins) == (value,)


@pytest.mark.parametrize(
    "value", ["*,http://a", "a", "https://a/", "https://a/b", "https://*.a", "null", "HTTP://A", "ftp://a"]
)
def test_other_origins_are_refused(value: str) -> None:
    with pytest.raises(Refused):
        converted(value, Origins)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("CDN.internal, *.lan", ("cdn.internal", "*.lan")),
        ("comfyui:8188,10.0.0.5", ("comfyui:8188", "10.0.0.5")),
        ("[FD00:0::1]:8188", ("[fd00::1]:8188",)),
        ("", ()),
    ],
)
def test_fetch_hosts_are_as_the_host_of_a_url_is_read(value: str, expected: tuple[str, ...]) -> None:
    assert converted(value, FetchHosts) == expected


@pytest.mark.parametrize(
    "value",
    [
        *("*", "http://cdn.internal", "cdn.internal/a", "a:0", "a:", "a:99999", "*.", "a.*", "*a.lan", "fd00::1"),
        *(
            "[fd00::1",
            "[::g]",
            "user@a",
            "a b",
            "*.*.lan",
            "127.1",
            "0x7f.1",
            "a..b",
            "a.",
            "*.10.0.0.5",
            "*.[::1]",
            "ä.lan",
        ),
    ],
)
def test_other_fetch_hosts_are_refused(value: str) -> None:
    with pytest.raises(Refused, match="entry 2 is not a host"):
        converted(("cdn.internal", value), FetchHosts)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("https://hooks.example.com", ("https://hooks.example.com",)),
        ("HTTPS://Hooks.Example.com:443", ("https://hooks.example.com",)),
        ("http://hooks.lan:80 internal, http://a:8080", ("http://hooks.lan internal", "http://a:8080")),
        ("http://10.0.0.5:8080 internal", ("http://10.0.0.5:8080 internal",)),
        ("https://[FD00:0::1]:8443 internal", ("https://[fd00::1]:8443 internal",)),
        ("", ()),
    ],
)
def test_webhook_origins_are_as_urls_are_compared(value: str, expected: tuple[str, ...]) -> None:
    assert converted(value, WebhookOrigins) == expected


@pytest.mark.parametrize(
    "value",
    [
        *("*", "hooks.example.com", "https://*.example.com", "https://a.example/path", "https://a.example/"),
        *("ftp://a", "https://", "https://u@a", "https://a?b", "https://a#b", "https://a internal x", "https://a:0"),
        *("https://a external", "https://a  internal", "https://127.1", "https://[::g]", "https://a\\b", "https://a\n"),
    ],
)
def test_other_webhook_origins_are_refused(value: str) -> None:
    with pytest.raises(Refused, match="entry 2 is not an origin"):
        converted(("https://a.example", value), WebhookOrigins)


@pytest.mark.parametrize("value", ["whsec_" + "A" * 32, "whsec_" + "+/" * 42])
def test_a_webhook_secret(value: str) -> None:
    assert converted(value, WebhookSecret) == value


@pytest.mark.parametrize(
    "value", ["", "A" * 32, "whsec_", "whsec_" + "A" * 28, "whsec_" + "A" * 88, "whsec_" + "-" * 32]
)
def test_other_webhook_secrets_are_refused(value: str) -> None:
    with pytest.raises(Refused, match="24 to 64 bytes"):
        converted(value, WebhookSecret)


@pytest.mark.parametrize("value", ["s3://bucket", "s3://bucket/", "s3://my.bucket-1/a/b_c", "s3://bucket/a/"])
def test_a_bucket(value: str) -> None:
    assert converted(value, BucketUrl) == value.rstrip("/")


@pytest.mark.parametrize(
    "value", ["bucket", "s3://", "s3://B", "s3://key:word@bucket", "gs://bucket", "s3://bucket?x", "s3://bucket/a b"]
)
def test_other_buckets_are_refused(value: str) -> None:
    with pytest.raises(Refused, match="not a bucket"):
        converted(value, BucketUrl)


def test_caller_keys_are_hashes() -> None:
    assert converted(f"{HASH}, {HASH}", CallerKeys) == (HASH, HASH)
    for value in ("sk-plain", HASH[:-1], HASH + "0", HASH.upper(), HASH[7:], HASH + "\n"):
        with pytest.raises(Refused, match="entry 2 is not a hash"):
            converted([HASH, value], CallerKeys)


def test_a_callers_key_is_a_hash() -> None:
    assert converted(HASH, CallerKey) == HASH
    for value in ("sk-plain", HASH[:-1], HASH.upper(), f"{HASH},{HASH}"):
        with pytest.raises(Refused, match="it is not a hash") as refused:
            converted(value, CallerKey)
        assert "hash-key" in refused.value.fix


def test_credentials_say_where_and_never_what() -> None:
    for value in ("env:OPENAI_API_KEY", "file:/run/key", "dir:openai.key", "caller", "none"):
        assert converted(value, CredentialReference) == value
    for value in ("sk-plain", "env:", "env:sk-plain", "dir:../key", "dir:a/b", "file:", "caller ", "Caller", "env:A\n"):
        with pytest.raises(Refused):
            converted(value, CredentialReference)


@given(st.lists(st.from_regex(r"[a-z*/.-]+", fullmatch=True)))
def test_a_list_is_the_same_with_commas(names: list[str]) -> None:
    assert converted(", ".join(names), Names) == converted(names, Names) == tuple(names)


def test_a_problem_says_what_which_and_the_fix() -> None:
    assert str(ConfigurationProblem("port", "taken", "choose another", "STREAMPROXY_PORT")) == (
        "port (STREAMPROXY_PORT): taken\n  fix: choose another"
    )
    assert (
        str(ConfigurationProblem("providers.a.query", "wrong", "mend it")) == "providers.a.query: wrong\n  fix: mend it"
    )
