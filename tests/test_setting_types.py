"""Kinds of values: what they take, and what they refuse without repeating it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from streamproxy.setting_types import (
    CallerKeys,
    ConfigurationProblem,
    CredentialReference,
    Host,
    Names,
    Origins,
    Url,
    is_loopback,
)

HASH = "sha256:" + "0a" * 32
URL: TypeAdapter[str] = TypeAdapter(Url)
HOST: TypeAdapter[str] = TypeAdapter(Host)
ORIGINS: TypeAdapter[tuple[str, ...]] = TypeAdapter(Origins)
KEYS: TypeAdapter[tuple[str, ...]] = TypeAdapter(CallerKeys)
NAMES: TypeAdapter[tuple[str, ...]] = TypeAdapter(Names)
CREDENTIAL: TypeAdapter[str] = TypeAdapter(CredentialReference)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("https://api.example.com/v1", "https://api.example.com/v1"),
        ("http://127.0.0.1:8090/v1/", "http://127.0.0.1:8090/v1"),
        ("http://[::1]:1", "http://[::1]:1"),
        ("HTTPS://Example.com", "HTTPS://Example.com"),
    ],
)
def test_base_urls(value: str, kept: str) -> None:
    assert URL.validate_python(value) == kept


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
            "http://é",
            "http://a:x",
        ),
        *("http://a:70000", "http://a:0", "http://u:p@a", "http://u@a", "http://a?key=1", "http://a?", "http://a#f"),
        *("http://a\\b", "http://[::1", "//a", "file:///etc/passwd", "http://a\0"),
    ],
)
def test_other_base_urls_are_refused(value: str) -> None:
    with pytest.raises(ValidationError):
        URL.validate_python(value)


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
    assert HOST.validate_python(host) == host


@pytest.mark.parametrize("host", ["", "http://a", "a b", "a:80", "[::1]", "a/b"])
def test_other_hosts_are_refused(host: str) -> None:
    with pytest.raises(ValidationError):
        HOST.validate_python(host)


@pytest.mark.parametrize("value", ["*", "http://a", "https://a.example:8443", "http://[::1]:3000"])
def test_origins(value: str) -> None:
    assert ORIGINS.validate_python(value) == (value,)


@pytest.mark.parametrize(
    "value", ["*,http://a", "a", "https://a/", "https://a/b", "https://*.a", "null", "HTTP://A", "ftp://a"]
)
def test_other_origins_are_refused(value: str) -> None:
    with pytest.raises(ValidationError):
        ORIGINS.validate_python(value)


def test_caller_keys_are_hashes() -> None:
    assert KEYS.validate_python(f"{HASH}, {HASH}") == (HASH, HASH)
    for value in ("sk-plain", HASH[:-1], HASH + "0", HASH.upper(), HASH[7:], HASH + "\n"):
        with pytest.raises(ValidationError, match="entry 2 is not a hash"):
            KEYS.validate_python([HASH, value])


def test_credentials_say_where_and_never_what() -> None:
    for value in ("env:OPENAI_API_KEY", "file:/run/key", "dir:openai.key", "caller", "none"):
        assert CREDENTIAL.validate_python(value) == value
    for value in ("sk-plain", "env:", "env:sk-plain", "dir:../key", "dir:a/b", "file:", "caller ", "Caller", "env:A\n"):
        with pytest.raises(ValidationError):
            CREDENTIAL.validate_python(value)


@given(st.lists(st.from_regex(r"[a-z*/.-]+", fullmatch=True)))
def test_a_list_is_the_same_with_commas(names: list[str]) -> None:
    assert NAMES.validate_python(", ".join(names)) == NAMES.validate_python(names) == tuple(names)


def test_a_problem_says_what_which_and_the_fix() -> None:
    assert str(ConfigurationProblem("port", "taken", "choose another", "STREAMPROXY_PORT")) == (
        "port (STREAMPROXY_PORT): taken\n  fix: choose another"
    )
    assert (
        str(ConfigurationProblem("providers.a.query", "wrong", "mend it")) == "providers.a.query: wrong\n  fix: mend it"
    )
