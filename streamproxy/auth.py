"""The caller of a request, and the key that we present to a provider. The two never mix.

    callers_of(settings)           -> Callers                 all that have keys, by the hashes of these
    authenticate(headers, callers) -> Caller                  each request, before anything else
    CredentialSource.present(headers)  -> Credential | None   the provider's: configured, the caller's own, or none

Callers' keys are known by their SHA-256 hashes, so that no configuration file holds one. Only configuration says which
source a provider has. A request decides the value, and only where the source is "caller".
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Literal, TypeAlias

from itsdangerous import BadSignature, TimestampSigner

from streamproxy.errors import Failure, ProxyError
from streamproxy.settings import Settings

KEY_HEADERS: Final = ("authorization", "x-api-key", "api-key")
"""In this order. The latter two are Anthropic's and Azure's."""

ID_DIGITS: Final = 12  # 48 bits of a hash: enough to tell callers apart in logs, too few to find the key by

Headers = Sequence[tuple[bytes, bytes]]
SourceKind = Literal["environment", "file", "directory", "machine", "caller", "none"]


@dataclass(frozen=True, slots=True)
class Credential:
    """A header that authorizes us at a provider. Its value never shows in a repr."""

    header: str
    value: str = field(repr=False)


EVERYTHING: Final = ("*",)


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request, and what it may do.

    `label`: its name, or a short hash of its key where it has none; both are safe to log. None where no keys are
    configured. `models` are patterns, `providers` names. `streams`: generations at a time.
    """

    label: str | None = None
    models: tuple[str, ...] = EVERYTHING
    providers: tuple[str, ...] = EVERYTHING
    streams: int | None = None
    usd_per_day: float | None = None

    def may_use(self, provider: str) -> bool:
        """Whether the provider of this name may serve it."""
        return self.providers == EVERYTHING or provider in self.providers or "*" in self.providers

    def may_ask_for(self, names: Iterable[str]) -> bool:
        """Whether it may ask for the model that has these names."""
        if self.models == EVERYTHING:
            return True
        patterns = [re.compile(".*".join(map(re.escape, model.split("*")))) for model in self.models]
        return any(pattern.fullmatch(name) for name in names for pattern in patterns)


Callers: TypeAlias = Mapping[str, Caller]
"""The callers that have keys, by the hashes of these (`sha256:<hex>`). Where there are none, anybody is a caller."""


def callers_of(settings: Settings) -> Callers:
    """All callers of the settings."""
    found = {key: Caller(_digits(key)[:ID_DIGITS]) for key in settings.caller_keys}
    for name, row in settings.callers.items():
        found[row.key] = Caller(name, row.models, row.providers, row.streams, row.usd_per_day)
    return found


def _digits(key: str) -> str:
    return key.removeprefix("sha256:")


@dataclass(frozen=True, slots=True)
class CredentialSource:
    """Where one provider's credential comes from; `credential` is the configured one, if any.

    `signing_key`: what a signer makes credentials from, in place of `credential`, so that it is never sent itself; ""
    where the signer finds it on this machine.
    """

    kind: SourceKind
    header: str
    scheme: str
    credential: Credential | None = None
    signing_key: str | None = field(default=None, repr=False)

    @property
    def configured(self) -> bool:
        """Whether the operator pays for requests, whatever key a caller brings."""
        return self.credential is not None or self.signing_key is not None

    def present(self, headers: Headers) -> Credential | None:
        """The credential for one request with these headers. Raises ProxyError(INVALID_API_KEY) for an unusable one."""
        if self.kind != "caller":
            return self.credential
        name, value = _presented(headers)
        if not value:
            return None
        key = _bearer(value) if name == "authorization" else value
        if key == "":
            return None
        if key is None or self.header == "":  # another scheme than Bearer, or no header to move it to: as it came
            return Credential(name, value)
        return Credential(self.header, self.scheme + key)


def authenticate(headers: Headers, callers: Callers) -> Caller:
    """The caller whose key these headers bring; where no caller has a key, one without a label.

    The key is in `Authorization: Bearer`, `x-api-key` or `api-key`. Every hash is compared, so that the time taken says
    nothing about which. Raises ProxyError(INVALID_API_KEY).
    """
    if not callers:
        return Caller()
    name, value = _presented(headers)
    key = _bearer(value) if name == "authorization" else value
    if not key:
        raise ProxyError(Failure.INVALID_API_KEY, "No API key: send one as `Authorization: Bearer <key>`.")
    presented = f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    found = [caller for known, caller in callers.items() if hmac.compare_digest(presented, known)]
    if not found:
        message = f"Incorrect API key in the {name} header: neither caller_keys nor callers has its hash."
        raise ProxyError(Failure.INVALID_API_KEY, message)
    return found[0]


def has_key(headers: Headers) -> bool:
    """Whether these headers bring any key. Raises ProxyError(INVALID_API_KEY) for one that is malformed."""
    return bool(_presented(headers)[1])


def owner_of(headers: Headers, callers: Callers) -> str | None:
    """The owner of the streams that these headers may see: a hash of the presented key, None without one.

    Raises ProxyError(INVALID_API_KEY) where keys are configured and this is none of them.
    """
    authenticate(headers, callers)
    name, value = _presented(headers)
    bearer = _bearer(value) if name == "authorization" else None
    key = value if bearer is None else bearer
    return hashlib.sha256(key.encode()).hexdigest()[: 2 * ID_DIGITS] if key else None


class Right(Enum):
    """The rights that a stream's token gives: to read it, or to end it too. The value salts its signatures."""

    READ = "streamproxy.stream"
    ALL = "streamproxy.stream.all"


class StreamTokens:
    """Signs and checks the tokens that open one stream without a key: a time, and an HMAC of it and the stream's id.

    `secret` signs, `seconds` is how long a token holds. Source: itsdangerous, TimestampSigner.
    """

    def __init__(self, secret: str, seconds: float) -> None:
        self._signers = {
            right: TimestampSigner(secret, salt=right.value, digest_method=hashlib.sha256) for right in Right
        }
        self._seconds = seconds

    def mint(self, stream_id: str, right: Right = Right.READ) -> str:
        """A token for this stream, from now on."""
        return self._signers[right].sign(stream_id).decode().removeprefix(stream_id + ".")

    def check(self, stream_id: str, token: str) -> Right:
        """The right that `token` gives. Raises ProxyError(STREAM_TOKEN) for another stream's, or an expired one."""
        for right, signer in self._signers.items():
            made = _made(signer, stream_id, token)
            if made is None:
                continue
            if time.time() - made > self._seconds:  # one of the future: another replica's clock
                raise ProxyError(Failure.STREAM_TOKEN, "The stream URL has expired. The setting is token_seconds.")
            return right
        raise ProxyError(Failure.STREAM_TOKEN, "The stream URL's token is not valid for this stream.")


def _made(signer: TimestampSigner, stream_id: str, token: str) -> float | None:
    """When a token was made; None where it is not exactly what this signer gave out for the stream.

    base64 has several spellings of the same bytes: the signature is compared as it is written.
    """
    signed, _, signature = f"{stream_id}.{token}".rpartition(".")
    if not token.isascii() or not hmac.compare_digest(signer.get_signature(signed), signature.encode()):
        return None
    try:
        value, made = signer.unsign(f"{stream_id}.{token}", return_timestamp=True)
    except BadSignature:
        return None
    return made.timestamp() if value == stream_id.encode() else None


def _presented(headers: Headers) -> tuple[str, str]:
    """The first header that carries a key, and its value; ("", "") without one."""
    for name in KEY_HEADERS:
        values = [value for key, value in headers if key.lower() == name.encode()]
        if len(values) > 1 or any(re.search(rb"[^\x20-\x7e]", value) for value in values):
            raise ProxyError(Failure.INVALID_API_KEY, f"The {name} header is repeated or not visible ASCII.")
        if values and values[0].strip():
            return name, values[0].strip().decode("ascii")
    return "", ""


def _bearer(value: str) -> str | None:
    scheme, _, key = value.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None
