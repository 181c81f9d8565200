"""How requests to a provider are authorized: one row each, applied at the moment of sending.

    key       a header with a key: the configured one, or the caller's own
    aws       AWS Signature Version 4, which botocore computes over the request    (extra `aws`)
    google    an OAuth access token, which google-auth keeps fresh                 (extra `google`)

An adapter never sees any of this. Which hosts a request may be signed for is the driver's to say.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from anyio import to_thread

from streamproxy.core.requests import Segment, UpstreamRequest
from streamproxy.errors import Failure, ProxyError
from streamproxy.upstream.sending import pieces

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from google.auth.credentials import Credentials as GoogleCredentials

Headers = tuple[tuple[str, str], ...]

AWS_HEADERS: Final = ("authorization", "x-amz-date", "x-amz-content-sha256", "x-amz-security-token")


class Signer(Protocol):
    """Authorizes requests. `names` are the headers that carry the credential, `secrets` what no text may repeat."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def secrets(self) -> tuple[str, ...]: ...

    async def sign(self, request: UpstreamRequest) -> Headers:
        """The headers to add to this request."""
        ...


@dataclass(frozen=True, slots=True)
class KeySigner:
    """A key in a header; none at all where `headers` is empty."""

    headers: Headers = field(default=(), repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.headers)

    @property
    def secrets(self) -> tuple[str, ...]:
        return tuple(value.rpartition(" ")[2] for _, value in self.headers)

    async def sign(self, request: UpstreamRequest) -> Headers:
        return self.headers


@dataclass(frozen=True, slots=True)
class AwsSigner:
    """Signature Version 4 for one service in one region. Source: AWS IAM User Guide, "Signing AWS API requests"."""

    credentials: Credentials = field(repr=False)
    service: str
    region: str

    @property
    def names(self) -> tuple[str, ...]:
        return AWS_HEADERS if self.credentials.token else AWS_HEADERS[:-1]

    @property
    def secrets(self) -> tuple[str, ...]:
        return tuple(secret for secret in (self.credentials.secret_key, self.credentials.token) if secret)

    async def sign(self, request: UpstreamRequest) -> Headers:
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest

        digest = await _sha256(request.body)
        signed = AWSRequest(request.method, request.url, headers={"x-amz-content-sha256": digest})
        frozen = self.credentials.get_frozen_credentials()
        SigV4Auth(frozen, self.service, self.region).add_auth(signed)
        made = {name.lower(): value for name, value in signed.headers.items()}
        return tuple((name, made[name]) for name in self.names)


async def _sha256(body: tuple[Segment, ...]) -> str:
    digest = hashlib.sha256()
    async for piece in pieces(body):
        digest.update(piece)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class GoogleSigner:
    """An OAuth access token of a service account, or of whatever google-auth finds on the machine."""

    credentials: GoogleCredentials = field(repr=False)
    transport: Any = field(repr=False)
    """google-auth's, which asks for a new token."""

    @property
    def names(self) -> tuple[str, ...]:
        return ("authorization",)

    @property
    def secrets(self) -> tuple[str, ...]:
        return (self.credentials.token,) if self.credentials.token else ()

    async def sign(self, request: UpstreamRequest) -> Headers:
        if not self.credentials.valid:
            try:
                await to_thread.run_sync(self.credentials.refresh, self.transport)
            except Exception as error:  # google-auth's own texts quote the answer of the token server
                raise ProxyError(
                    Failure.PROVIDER_AUTH,
                    f"No access token could be had ({type(error).__name__}). The operator must check the provider's "
                    "`credential` setting.",
                ) from None
        return (("authorization", f"Bearer {self.credentials.token}"),)
