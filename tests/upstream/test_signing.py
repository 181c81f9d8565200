"""What authorizes a request: a key in a header, AWS's signature as botocore makes it, Google's token."""

from __future__ import annotations

import base64
import datetime
from dataclasses import dataclass

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from streamproxy.core.requests import Encoded, UpstreamRequest
from streamproxy.errors import Failure, ProxyError
from streamproxy.upstream.signing import AwsSigner, GoogleSigner, KeySigner

pytestmark = pytest.mark.anyio

NOW = datetime.datetime(2026, 11, 27, 12, 30, 0, tzinfo=datetime.UTC)
URL = "https://bedrock-runtime.us-east-1.amazonaws.com/model/a.b-v1%3A0/invoke?x=1"


@dataclass(frozen=True)
class File:
    """An upload that lies in memory."""

    content: bytes

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self, offset: int, length: int) -> bytes:
        return self.content[offset : offset + length]


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda *_, **__: NOW)


@pytest.mark.parametrize("token", [None, "session-token"])
async def test_an_aws_signature_is_botocores_own_for_the_same_bytes(token: str | None) -> None:
    credentials = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", token)
    body = (b'{"image":"', Encoded(File(b"picture" * 20_000)), b'"}')
    request = UpstreamRequest("POST", URL, (("content-type", "application/json"),), body)
    made = dict(await AwsSigner(credentials, "bedrock", "us-east-1").sign(request))
    whole = b'{"image":"' + base64.b64encode(b"picture" * 20_000) + b'"}'
    theirs = AWSRequest("POST", URL, data=whole, headers={"x-amz-content-sha256": made["x-amz-content-sha256"]})
    SigV4Auth(credentials.get_frozen_credentials(), "bedrock", "us-east-1").add_auth(theirs)
    assert made == {name.lower(): value for name, value in theirs.headers.items()}
    unsigned = AWSRequest("POST", URL, data=whole)
    assert made["x-amz-content-sha256"] == SigV4Auth(credentials, "bedrock", "us-east-1").payload(unsigned)
    assert made["x-amz-date"] == "20261127T123000Z"
    assert ("x-amz-security-token" in made) is (token is not None)


async def test_the_names_and_secrets_of_a_signature_are_known() -> None:
    signer = AwsSigner(Credentials("AKIDEXAMPLE", "secret-key-of-aws", "session-token"), "bedrock", "us-east-1")
    made = await signer.sign(UpstreamRequest("GET", URL))
    assert tuple(name for name, _ in made) == signer.names
    assert signer.secrets == ("secret-key-of-aws", "session-token")
    assert "secret-key-of-aws" not in repr(signer)


class Token:
    """google-auth's Credentials, as far as they are used."""

    def __init__(self, *, fails: bool = False) -> None:
        self.token: str | None = None
        self.asked = 0
        self._fails = fails

    @property
    def valid(self) -> bool:
        return self.token is not None

    def refresh(self, transport: object) -> None:
        self.asked += 1
        if self._fails:
            raise RuntimeError("answer of the token server: ya29.secret")
        self.token = "ya29.secret"


async def test_a_google_token_is_asked_for_once() -> None:
    token = Token()
    signer = GoogleSigner(token, None)  # type: ignore[arg-type]
    request = UpstreamRequest("GET", URL)
    for _ in range(2):
        assert await signer.sign(request) == (("authorization", "Bearer ya29.secret"),)
    assert (token.asked, signer.secrets) == (1, ("ya29.secret",))


async def test_a_failed_token_request_hides_the_servers_words() -> None:
    signer = GoogleSigner(Token(fails=True), None)  # type: ignore[arg-type]
    with pytest.raises(ProxyError) as caught:
        await signer.sign(UpstreamRequest("GET", URL))
    assert caught.value.failure is Failure.PROVIDER_AUTH
    assert "ya29" not in caught.value.message


async def test_a_key_is_a_header_and_none_is_none() -> None:
    signer = KeySigner((("authorization", "Key secret"),))
    assert await signer.sign(UpstreamRequest("GET", URL)) == (("authorization", "Key secret"),)
    assert (signer.names, signer.secrets) == (("authorization",), ("secret",))
    assert await KeySigner().sign(UpstreamRequest("GET", URL)) == ()
