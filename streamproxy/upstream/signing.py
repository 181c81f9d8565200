"""Signers, which authorize requests to a provider at the moment of sending.

    key       a header with a key: the configured one, or the caller's own
    aws       AWS Signature Version 4, which botocore computes over the request    (extra `aws`)
    google    an OAuth access token, which google-auth keeps fresh                 (extra `google`)

Adapters see none of this. The driver decides for which hosts a request is signed.
"""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio
import anyio.lowlevel
import httpx
from anyio import to_thread

from streamproxy.core.requests import Segment, UpstreamRequest
from streamproxy.errors import Failure, ProxyError
from streamproxy.upstream.sending import pieces

if TYPE_CHECKING:
    from botocore.credentials import Credentials, ReadOnlyCredentials
    from google.auth.credentials import Credentials as GoogleCredentials

Headers = tuple[tuple[str, str], ...]

SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)
"""The scope that Google's own library requests for Vertex AI."""

TOKEN_SECONDS: Final = 30.0
"""Seconds that the token server has for each step of its answer, for which a request waits."""

AWS_HEADERS: Final = ("authorization", "x-amz-date", "x-amz-content-sha256", "x-amz-security-token")

TURN: Final = 4 * 1024 * 1024
"""Bytes of a body that are hashed in a row: 10 ms at 400 MB/s, which is slow for SHA-256."""

BEDROCK: Final = "bedrock"
"""The name of AWS's service in a signature, for bedrock-runtime too: `signingName` in botocore's model of it."""


class Signer(Protocol):
    """Authorizes requests. `names`: the headers that carry the credential; `secrets`: texts to scrub everywhere."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def secrets(self) -> tuple[str, ...]: ...

    async def sign(self, request: UpstreamRequest) -> Headers:
        """The headers to add to this request."""
        ...


@dataclass(frozen=True, slots=True)
class KeySigner:
    """A key in a header. Empty `headers`: no credential."""

    headers: Headers = field(default=(), repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.headers)

    @property
    def secrets(self) -> tuple[str, ...]:
        return tuple(value.rpartition(" ")[2] for _, value in self.headers)

    async def sign(self, request: UpstreamRequest) -> Headers:
        return self.headers


class AwsSigner:
    """Signature Version 4 for one service in one region. Source: AWS IAM User Guide, "Signing AWS API requests".

    `load` gives the credentials, and is called in a worker thread: those of a machine are asked for, and renewed.
    """

    def __init__(self, load: Callable[[], Credentials], service: str, region: str) -> None:
        self._load = load
        self._service = service
        self._region = region
        self._credentials: Credentials | None = None
        self._keys: ReadOnlyCredentials | None = None
        self._lock = anyio.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        return AWS_HEADERS if self._keys is not None and self._keys.token else AWS_HEADERS[:-1]

    @property
    def secrets(self) -> tuple[str, ...]:
        keys = self._keys
        return () if keys is None else tuple(secret for secret in (keys.secret_key, keys.token) if secret)

    async def sign(self, request: UpstreamRequest) -> Headers:
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest

        digest = await _sha256(request.body)
        signed = AWSRequest(request.method, request.url, headers={"x-amz-content-sha256": digest})
        try:
            async with self._lock:
                self._keys = await to_thread.run_sync(self._valid)
        except Exception as error:  # botocore's own texts may quote what the machine has answered
            raise _no_credentials("signing keys", error) from None
        SigV4Auth(self._keys, self._service, self._region).add_auth(signed)
        made = {name.lower(): value for name, value in signed.headers.items()}
        return tuple((name, made[name]) for name in self.names)

    def _valid(self) -> ReadOnlyCredentials:
        if self._credentials is None:
            self._credentials = self._load()
        return self._credentials.get_frozen_credentials()


def aws_credentials(key: str) -> Credentials:
    """The credentials of a key as `ID:SECRET` or `ID:SECRET:TOKEN`; without a key what is found on this machine.

    Raises ValueError where there are none, ModuleNotFoundError without botocore. Blocks while it looks around.
    """
    from botocore.credentials import Credentials
    from botocore.session import Session

    if key:
        return Credentials(*key.split(":", 2))
    found = Session().get_credentials()
    if found is None:
        raise ValueError("no credentials on this machine")
    return found


def _no_credentials(what: str, error: Exception) -> ProxyError:
    """The failure of looking for the provider's credentials, without the error's own text."""
    reason = f"No {what} could be obtained ({type(error).__name__})."
    return ProxyError(Failure.PROVIDER_AUTH, f"{reason} The operator must check the provider's `credential` setting.")


async def _sha256(body: tuple[Segment, ...]) -> str:
    digest, since = hashlib.sha256(), 0
    async for piece in pieces(body):
        digest.update(piece)
        since += len(piece)
        if since >= TURN:
            since = 0
            await anyio.lowlevel.checkpoint()
    return digest.hexdigest()


def google_credentials(key: str) -> GoogleCredentials:
    """The credentials of a key in JSON, of a service account or a user. "": those that google-auth finds here.

    Raises ValueError for an invalid key, ModuleNotFoundError without google-auth. Blocks while it searches.
    """
    import google.auth
    from google.oauth2 import credentials, service_account

    if not key:
        return google.auth.default(scopes=SCOPES)[0]
    kinds: dict[object, Callable[..., GoogleCredentials]] = {
        "service_account": service_account.Credentials.from_service_account_info,
        "authorized_user": credentials.Credentials.from_authorized_user_info,
    }
    info = json.loads(key)
    load = kinds.get(info.get("type")) if isinstance(info, dict) else None
    if load is None:
        raise ValueError("no key of a known type")
    return load(info, scopes=SCOPES)


@dataclass(frozen=True, slots=True)
class _TokenAnswer:
    """An answer in the form that google-auth reads."""

    status: int
    headers: Mapping[str, str]
    data: bytes


@dataclass(frozen=True, slots=True)
class TokenTransport:
    """The transport for google-auth's token requests: see its `google.auth.transport.Request`. Blocking."""

    ssl_context: ssl.SSLContext
    trust_env: bool = False

    def __call__(
        self, url: str, method: str = "GET", body: bytes | None = None, headers: Any = None, **_: object
    ) -> _TokenAnswer:
        client = httpx.Client(verify=self.ssl_context, trust_env=self.trust_env, timeout=TOKEN_SECONDS)
        with client:
            answer = client.request(method, url, content=body, headers=headers)
        return _TokenAnswer(answer.status_code, answer.headers, answer.content)


class GoogleSigner:
    """An OAuth access token of the credentials that `load` returns. It is refreshed in a worker thread, by one request
    for all that wait.
    """

    def __init__(self, load: Callable[[], GoogleCredentials], transport: Any) -> None:
        self._load = load
        self._transport = transport
        self._credentials: GoogleCredentials | None = None
        self._lock = anyio.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        return ("authorization",)

    @property
    def secrets(self) -> tuple[str, ...]:
        token = self._credentials.token if self._credentials is not None else None
        return (token,) if token else ()

    async def sign(self, request: UpstreamRequest) -> Headers:
        try:
            async with self._lock:
                credentials = await self._valid()
        except Exception as error:  # google-auth's own texts quote the answer of the token server
            raise _no_credentials("access token", error) from None
        return (("authorization", f"Bearer {credentials.token}"),)

    async def _valid(self) -> GoogleCredentials:
        if self._credentials is None:
            self._credentials = await to_thread.run_sync(self._load)
        if not self._credentials.valid:
            await to_thread.run_sync(self._credentials.refresh, self._transport)
        return self._credentials
