"""Who calls, and what is presented upstream."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproxy.auth import Caller, Credential, CredentialSource, authenticate
from streamproxy.errors import Failure, ProxyError

KEY = "caller-key-0123456789"
OTHERS = ("other-key-1", "other-key-2")
VISIBLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=60)


def hashed(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


KEYS = (hashed(OTHERS[0]), hashed(KEY), hashed(OTHERS[1]))


def refused(headers: list[tuple[bytes, bytes]], keys: tuple[str, ...] = KEYS) -> ProxyError:
    with pytest.raises(ProxyError) as caught:
        authenticate(headers, keys)
    assert caught.value.failure is Failure.INVALID_API_KEY
    return caught.value


@pytest.mark.parametrize(
    "header",
    [
        (b"authorization", b"Bearer " + KEY.encode()),
        (b"Authorization", b"bearer  " + KEY.encode() + b" "),
        (b"x-api-key", KEY.encode()),
        (b"API-Key", KEY.encode()),
    ],
)
def test_a_known_key_is_taken_from_any_of_three_headers(header: tuple[bytes, bytes]) -> None:
    caller = authenticate([(b"accept", b"*/*"), header], KEYS)
    assert caller == Caller(hashlib.sha256(KEY.encode()).hexdigest()[:12])
    assert KEY not in repr(caller)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer wrong-key")],
        [(b"authorization", b"Basic " + KEY.encode())],
        [(b"authorization", KEY.encode())],
        [(b"authorization", b"Bearer " + KEY.encode() + b"x")],
        [(b"authorization", b"Bearer " + KEY.encode()[:-1])],
        [(b"authorization", b"Bearer " + hashed(KEY).encode())],
        [(b"authorization", b"Bearer " + KEY.encode() + b"\xff")],
        [(b"authorization", b"Bearer wrong-key"), (b"x-api-key", KEY.encode())],
        [(b"x-api-key", KEY.encode()), (b"X-Api-Key", KEY.encode())],
    ],
)
def test_anything_else_is_refused_without_repeating_it(headers: list[tuple[bytes, bytes]]) -> None:
    error = refused(headers)
    assert KEY[:8] not in error.message
    assert "wrong-key" not in error.message


def test_the_refusal_says_what_to_send_and_which_setting_decides() -> None:
    assert "Authorization: Bearer" in refused([]).message
    assert "caller_keys" in refused([(b"x-api-key", b"wrong")]).message


def test_without_configured_keys_anybody_calls_anonymously() -> None:
    assert authenticate([], ()) == Caller(None)
    assert authenticate([(b"authorization", b"Bearer " + KEY.encode())], ()) == Caller(None)


@pytest.mark.parametrize("key", [KEY, *OTHERS, "wrong"])
def test_every_hash_is_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    compared: list[str] = []
    compare = hmac.compare_digest

    def counting(a: str, b: str) -> bool:
        compared.append(b)
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    if key == "wrong":
        refused([(b"x-api-key", key.encode())])
    else:
        authenticate([(b"x-api-key", key.encode())], KEYS)
    assert compared == list(KEYS)


@given(VISIBLE, VISIBLE)
def test_only_the_very_key_passes(key: str, other: str) -> None:
    assert authenticate([(b"authorization", b"Bearer " + key.encode())], (hashed(key),)).key_id
    if key != other:
        refused([(b"x-api-key", other.encode())], (hashed(key),))


@given(
    st.lists(
        st.tuples(st.sampled_from([b"authorization", b"x-api-key", b"api-key", b"a"]), st.binary(max_size=30)),
        max_size=4,
    )
)
def test_any_headers_authenticate_or_are_refused(headers: list[tuple[bytes, bytes]]) -> None:
    refused(headers)


def test_a_credential_never_shows() -> None:
    credential = Credential("authorization", "Bearer " + KEY)
    source = CredentialSource("environment", "authorization", "Bearer ", credential)
    assert KEY not in f"{credential!r} {credential} {source!r} {source}"
    assert "authorization" in repr(credential)


@pytest.mark.parametrize(
    ("header", "scheme", "sent", "presented"),
    [
        ("authorization", "Bearer ", (b"authorization", b"Bearer k"), ("authorization", "Bearer k")),
        ("authorization", "Bearer ", (b"authorization", b"Basic dTpw"), ("authorization", "Basic dTpw")),
        ("authorization", "Bearer ", (b"x-api-key", b"k"), ("authorization", "Bearer k")),
        ("authorization", "Bearer ", (b"api-key", b"k"), ("authorization", "Bearer k")),
        ("api-key", "", (b"authorization", b"Bearer k"), ("api-key", "k")),
        ("x-api-key", "", (b"x-api-key", b" k "), ("x-api-key", "k")),
        ("", "", (b"api-key", b"k"), ("api-key", "k")),
    ],
)
def test_a_callers_own_key_goes_into_the_providers_header(
    header: str, scheme: str, sent: tuple[bytes, bytes], presented: tuple[str, str]
) -> None:
    assert CredentialSource("caller", header, scheme).present([sent]) == Credential(*presented)


def test_a_caller_without_a_key_presents_none_and_a_broken_one_is_refused() -> None:
    source = CredentialSource("caller", "authorization", "Bearer ")
    for headers in ([], [(b"authorization", b"Bearer ")], [(b"accept", b"k")]):
        assert source.present(headers) is None
    for headers in ([(b"x-api-key", b"a\x00")], [(b"authorization", b"Bearer a")] * 2):
        with pytest.raises(ProxyError):
            source.present(headers)


def test_a_configured_credential_never_gives_way_to_a_callers_key() -> None:
    mine = Credential("authorization", "Bearer mine")
    sent = [(b"authorization", b"Bearer theirs"), (b"x-api-key", b"theirs")]
    assert CredentialSource("environment", "authorization", "Bearer ", mine).present(sent) == mine
    assert CredentialSource("none", "authorization", "Bearer ").present(sent) is None
