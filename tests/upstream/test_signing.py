"""Signers of requests: a key in a header, AWS's signature as botocore makes it, Google's token."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs

import anyio
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from google.auth import jwt

from streamproxy.core.requests import Encoded, UpstreamRequest
from streamproxy.errors import Failure, ProxyError
from streamproxy.simulator.script import json_answer
from streamproxy.simulator.server import Server, serve
from streamproxy.upstream import default_ssl_context
from streamproxy.upstream.signing import (
    SCOPES,
    TURN,
    AwsSigner,
    GoogleSigner,
    KeySigner,
    TokenTransport,
    aws_credentials,
    google_credentials,
)
from tests.support.google import public_key, service_account
from tests.support.proxy import BOUND

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
async def test_an_aws_signature_is_botocores(token: str | None) -> None:
    credentials = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", token)
    body = (b'{"image":"', Encoded(File(b"picture" * 20_000)), b'"}')
    request = UpstreamRequest("POST", URL, (("content-type", "application/json"),), body)
    made = dict(await AwsSigner(lambda: credentials, "bedrock", "us-east-1").sign(request))
    whole = b'{"image":"' + base64.b64encode(b"picture" * 20_000) + b'"}'
    theirs = AWSRequest("POST", URL, data=whole, headers={"x-amz-content-sha256": made["x-amz-content-sha256"]})
    SigV4Auth(credentials.get_frozen_credentials(), "bedrock", "us-east-1").add_auth(theirs)
    assert made == {name.lower(): value for name, value in theirs.headers.items()}
    unsigned = AWSRequest("POST", URL, data=whole)
    assert made["x-amz-content-sha256"] == SigV4Auth(credentials, "bedrock", "us-east-1").payload(unsigned)
    assert made["x-amz-date"] == "20261127T123000Z"
    assert ("x-amz-security-token" in made) is (token is not None)


async def test_the_names_and_secrets_of_a_signature_are_known() -> None:
    signer = AwsSigner(lambda: aws_credentials("AKIDEXAMPLE:secret-key-of-aws:session-token"), "bedrock", "us-east-1")
    made = await signer.sign(UpstreamRequest("GET", URL))
    assert tuple(name for name, _ in made) == signer.names
    assert signer.secrets == ("secret-key-of-aws", "session-token")
    assert "secret-key-of-aws" not in repr(signer)


async def test_credentials_of_aws_are_loaded_once() -> None:
    loads: list[str] = []

    def load() -> Credentials:
        loads.append(threading.current_thread().name)
        return aws_credentials("AKIDEXAMPLE:secret-key-of-aws")

    signer = AwsSigner(load, "bedrock", "us-east-1")
    for _ in range(2):
        assert tuple(name for name, _ in await signer.sign(UpstreamRequest("GET", URL))) == signer.names
    assert len(loads) == 1
    assert loads != [threading.current_thread().name]
    assert (signer.secrets, "x-amz-security-token" in signer.names) == (("secret-key-of-aws",), False)


async def test_other_tasks_have_turns_while_a_body_is_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = 0

    async def checkpoint() -> None:
        nonlocal turns
        turns += 1

    monkeypatch.setattr("anyio.lowlevel.checkpoint", checkpoint)
    signer = AwsSigner(lambda: aws_credentials("AKIDEXAMPLE:secret-key-of-aws"), "bedrock", "us-east-1")
    made = dict(await signer.sign(UpstreamRequest("POST", URL, (), (memoryview(bytes(3 * TURN)), b"x"))))
    assert made["x-amz-content-sha256"] == hashlib.sha256(bytes(3 * TURN) + b"x").hexdigest()
    assert turns >= 3


async def test_credentials_that_are_not_to_be_had() -> None:
    def load() -> Credentials:
        raise ValueError("what the machine said: secret")

    with pytest.raises(ProxyError) as caught:
        await AwsSigner(load, "bedrock", "us-east-1").sign(UpstreamRequest("GET", URL))
    assert caught.value.failure is Failure.PROVIDER_AUTH
    assert "secret" not in caught.value.message


def test_the_machines_credentials_of_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("AWS_ACCESS_KEY_ID", "AKID"), ("AWS_SECRET_ACCESS_KEY", "secret"), ("AWS_SESSION_TOKEN", "t")):
        monkeypatch.setenv(name, value)
    found = aws_credentials("").get_frozen_credentials()
    assert (found.access_key, found.secret_key, found.token) == ("AKID", "secret", "t")


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
    signer = GoogleSigner(lambda: token, None)  # type: ignore[arg-type, return-value]
    made = []

    async def sign() -> None:
        made.append(await signer.sign(UpstreamRequest("GET", URL)))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(sign)
    assert made == [(("authorization", "Bearer ya29.secret"),)] * 3
    assert (token.asked, signer.secrets) == (1, ("ya29.secret",))


async def test_a_failed_token_request_hides_the_servers_words() -> None:
    signer = GoogleSigner(lambda: Token(fails=True), None)  # type: ignore[arg-type, return-value]
    with pytest.raises(ProxyError) as caught:
        await signer.sign(UpstreamRequest("GET", URL))
    assert caught.value.failure is Failure.PROVIDER_AUTH
    assert "ya29" not in caught.value.message


async def test_a_key_is_a_header_and_none_is_none() -> None:
    signer = KeySigner((("authorization", "Key secret"),))
    assert await signer.sign(UpstreamRequest("GET", URL)) == (("authorization", "Key secret"),)
    assert (signer.names, signer.secrets) == (("authorization",), ("secret",))
    assert await KeySigner().sign(UpstreamRequest("GET", URL)) == ()


GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"


@dataclass(frozen=True)
class TokenServer:
    """Google's token server on the loopback: it knows one service account."""

    server: Server
    key: dict[str, str]

    @property
    def signer(self) -> GoogleSigner:
        text = json.dumps(self.key)
        return GoogleSigner(lambda: google_credentials(text), TokenTransport(default_ssl_context()))


@asynccontextmanager
async def token_server(status: int = 200) -> AsyncIterator[TokenServer]:
    said = {"access_token": "ya29.made-for-tests", "expires_in": 3600, "token_type": "Bearer"}
    answer = said if status == 200 else {"error": "invalid_grant", "error_description": "no, ya29.secret"}
    with anyio.fail_after(BOUND):
        async with serve(lambda _: json_answer(status, answer)) as server:
            yield TokenServer(server, service_account(f"{server.url}/token"))


async def test_a_service_account_signs_for_its_token() -> None:
    async with token_server() as google:
        for _ in range(2):
            headers = await google.signer.sign(UpstreamRequest("GET", URL))
            assert headers == (("authorization", "Bearer ya29.made-for-tests"),)
        asked = parse_qs(google.server.received[0].body.decode())
        assert asked["grant_type"] == [GRANT]
        claims = jwt.decode(  # type: ignore[no-untyped-call]
            asked["assertion"][0], certs=public_key(google.key)
        )
        assert (claims["iss"], claims["scope"]) == (google.key["client_email"], SCOPES[0])
        assert "PRIVATE KEY" not in repr(google.signer)


async def test_a_token_server_that_refuses_is_a_failure() -> None:
    async with token_server(400) as google:
        with pytest.raises(ProxyError) as caught:
            await google.signer.sign(UpstreamRequest("GET", URL))
        assert caught.value.failure is Failure.PROVIDER_AUTH
        assert "secret" not in caught.value.message


@pytest.mark.parametrize("key", ["{}", "[]", '{"type":"external_account"}', '{"type":"service_account"}', "no JSON"])
def test_what_is_no_key_of_googles_is_a_value_error(key: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        google_credentials(key)


def test_a_users_key_will_do() -> None:
    key = {"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r"}
    assert google_credentials(json.dumps(key)).token is None


def test_without_a_key_the_machine_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key.json").write_text(json.dumps(service_account("http://127.0.0.1:1/token")))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    assert not google_credentials("").valid
