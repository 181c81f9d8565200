"""The caller of a request, and the credential that is presented upstream."""

from __future__ import annotations

import hashlib
import hmac
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import TimestampSigner

from streamproxy.auth import (
    Caller,
    Callers,
    Credential,
    CredentialSource,
    StreamTokens,
    authenticate,
    callers_of,
    owner_of,
)
from streamproxy.errors import Failure, ProxyError
from streamproxy.settings import CallerSettings, Settings

KEY = "caller-key-0123456789"
OTHERS = ("other-key-1", "other-key-2")
VISIBLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=60)


def hashed(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def known(*keys: str) -> Callers:
    return {hashed(key): Caller(hashlib.sha256(key.encode()).hexdigest()[:12]) for key in keys}


KEYS = known(OTHERS[0], KEY, OTHERS[1])


def refused(headers: list[tuple[bytes, bytes]], keys: Callers = KEYS) -> ProxyError:
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


def test_the_refusal_says_the_fix_and_the_setting() -> None:
    assert "Authorization: Bearer" in refused([]).message
    assert "caller_keys" in refused([(b"x-api-key", b"wrong")]).message


def test_without_configured_keys_anybody_calls_anonymously() -> None:
    assert authenticate([], {}) == Caller(None)
    assert authenticate([(b"authorization", b"Bearer " + KEY.encode())], {}) == Caller(None)


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
    assert authenticate([(b"authorization", b"Bearer " + key.encode())], known(key)).label
    if key != other:
        refused([(b"x-api-key", other.encode())], known(key))


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


def test_no_key_is_none_and_a_broken_one_is_refused() -> None:
    source = CredentialSource("caller", "authorization", "Bearer ")
    for headers in ([], [(b"authorization", b"Bearer ")], [(b"accept", b"k")]):
        assert source.present(headers) is None
    for headers in ([(b"x-api-key", b"a\x00")], [(b"authorization", b"Bearer a")] * 2):
        with pytest.raises(ProxyError):
            source.present(headers)


def test_a_callers_key_never_replaces_a_credential() -> None:
    mine = Credential("authorization", "Bearer mine")
    sent = [(b"authorization", b"Bearer theirs"), (b"x-api-key", b"theirs")]
    assert CredentialSource("environment", "authorization", "Bearer ", mine).present(sent) == mine
    assert CredentialSource("none", "authorization", "Bearer ").present(sent) is None


ID = "str_0123456789abcdef0123456789abcdef"
SECRET = "s" * 32


def token_error(tokens: StreamTokens, stream_id: str, token: str) -> ProxyError:
    with pytest.raises(ProxyError) as caught:
        tokens.check(stream_id, token)
    assert caught.value.failure is Failure.STREAM_TOKEN
    return caught.value


def made_at(age: float) -> str:
    """A token that was made `age` seconds ago."""

    class Then(TimestampSigner):
        def get_timestamp(self) -> int:
            return int(time.time() - age)

    signer = Then(SECRET, salt="streamproxy.stream", digest_method=hashlib.sha256)
    return signer.sign(ID).decode().removeprefix(ID + ".")


def test_a_token_is_for_one_stream_and_one_secret() -> None:
    tokens = StreamTokens(SECRET, 100)
    token = tokens.mint(ID)
    tokens.check(ID, token)
    StreamTokens(SECRET, 100).check(ID, token)
    token_error(tokens, ID[:-1] + "0", token)
    token_error(StreamTokens("t" * 32, 100), ID, token)


def test_a_token_for_a_name_with_a_part_of_it() -> None:
    """`<id>.<time>` with the rest of the token is the same signed text."""
    tokens = StreamTokens(SECRET, 100)
    made, _, signature = tokens.mint(ID).partition(".")
    token_error(tokens, f"{ID}.{made}", signature)
    token_error(tokens, ID[:4], f"{ID[4:]}.{made}.{signature}")


@pytest.mark.parametrize(("age", "good"), [(0, True), (90, True), (-3600, True), (102, False), (10**6, False)])
def test_a_token_holds_for_its_time(age: float, good: bool) -> None:
    tokens = StreamTokens(SECRET, 100)
    if good:
        tokens.check(ID, made_at(age))
    else:
        assert "token_seconds" in token_error(tokens, ID, made_at(age)).message


@given(st.text(max_size=80))
def test_any_token_is_refused_and_not_repeated(text: str) -> None:
    error = token_error(StreamTokens(SECRET, 100), ID, text)
    assert len(text) < 8 or text not in error.message


def test_no_changed_bit_of_a_token_is_overlooked() -> None:
    tokens = StreamTokens(SECRET, 100)
    token = tokens.mint(ID)
    for at, letter in enumerate(token[:-1]):  # the last letter holds bits beyond the signature
        for bit in range(7):
            token_error(tokens, ID, token[:at] + chr(ord(letter) ^ (1 << bit)) + token[at + 1 :])


def test_the_keys_header_does_not_change_the_owner() -> None:
    owners = {
        owner_of([header], {})
        for header in (
            (b"authorization", b"Bearer k"),
            (b"authorization", b"bearer  k "),
            (b"x-api-key", b"k"),
            (b"api-key", b"k"),
        )
    }
    assert len(owners) == 1
    [owner] = owners
    assert owner is not None
    assert re.fullmatch(r"[0-9a-f]{24}", owner)
    assert owner_of([(b"authorization", b"Basic k")], {}) not in (owner, None)
    assert owner_of([(b"x-api-key", b"K")], {}) != owner


@pytest.mark.parametrize("headers", [[], [(b"authorization", b"")], [(b"authorization", b"Bearer ")]])
def test_without_a_key_a_stream_is_nobodys(headers: list[tuple[bytes, bytes]]) -> None:
    assert owner_of(headers, {}) is None


def test_with_configured_keys_a_stream_is_one_of_theirs() -> None:
    assert owner_of([(b"x-api-key", KEY.encode())], KEYS) is not None
    with pytest.raises(ProxyError) as caught:
        owner_of([(b"x-api-key", b"wrong")], KEYS)
    assert caught.value.failure is Failure.INVALID_API_KEY


def test_callers_have_names_or_short_hashes() -> None:
    row = CallerSettings(key=hashed("b"), models=("x/*",), providers=("p",), streams=2, usd_per_day=0.5)
    callers = callers_of(Settings(caller_keys=(hashed("a"),), callers={"team": row}))
    assert authenticate([(b"x-api-key", b"a")], callers) == Caller(hashed("a")[7:19])
    assert authenticate([(b"x-api-key", b"b")], callers) == Caller("team", ("x/*",), ("p",), 2, 0.5)


@pytest.mark.parametrize(
    ("patterns", "allowed"),
    [
        (("*",), True),
        (("openai/*",), True),
        (("other", "openai/gpt-image-2"), True),
        (("gpt-*-2",), True),
        (("*image*",), True),
        (("openai/gpt-image",), False),
        (("openai/gpt-image-.",), False),
        (("openai/gpt-image-?",), False),
        (("google/*",), False),
        ((), False),
    ],
)
def test_patterns_of_models(patterns: tuple[str, ...], allowed: bool) -> None:
    assert Caller(models=patterns).may_ask_for(("openai/gpt-image-2", "gpt-image-2")) is allowed


def test_names_of_providers() -> None:
    assert Caller().may_use("a")
    assert Caller(providers=("a", "b")).may_use("b")
    assert not Caller(providers=("a",)).may_use("b")
    assert not Caller(providers=("a",)).may_use("*")
