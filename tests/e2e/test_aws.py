"""Bedrock over real sockets: signed as botocore signs, refused in AWS's words, and filtered under 200."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import orjson
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from openai import AsyncOpenAI

from streamproxy.simulator import wires
from streamproxy.simulator.server import Server, serve
from tests.e2e.test_wires import MODELS, PNG, size_of, wired
from tests.support.proxy import BOUND, PROMPT, Proxy, events, no_leaks, running_proxy

pytestmark = pytest.mark.anyio

ID, SECRET, TOKEN = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "session-token-of-aws"
REGION: Final = "eu-west-1"
ENVIRON: Final = {
    **{"AWS_ACCESS_KEY_ID": ID, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": TOKEN, "AWS_REGION": REGION}
}


@asynccontextmanager
async def signing(wire: str) -> AsyncIterator[tuple[Proxy, Server]]:
    async with no_leaks(), serve(wires(0)) as server:
        row = {"base_url": f"{server.url}/bedrock", "signing": "aws"}
        async with running_proxy(server.url, environ=ENVIRON, providers={wire: row}) as proxy:
            with anyio.fail_after(BOUND):
                yield proxy, server


@pytest.mark.parametrize("edit", [True, False])
@pytest.mark.parametrize("wire", ["bedrock", "nova"])
async def test_a_signature_is_botocores(wire: str, edit: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        signing(wire) as (proxy, server),
        AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="callers", max_retries=0) as client,
    ):
        if edit:
            made = await client.images.edit(model=MODELS[wire], image=("in.png", PNG, "image/png"), prompt=PROMPT)
        else:
            made = await client.images.generate(model=MODELS[wire], prompt=PROMPT)
        assert made.data is not None
        assert size_of(made.data[0].b64_json)
        [got] = server.received
        headers = {name.lower(): value for name, value in got.headers}
        assert headers["x-amz-content-sha256"] == hashlib.sha256(got.body).hexdigest()
        when = datetime.datetime.strptime(headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)
        monkeypatch.setattr("botocore.auth.get_current_datetime", lambda *_, **__: when)
        given = {"x-amz-content-sha256": headers["x-amz-content-sha256"]}
        theirs = AWSRequest("POST", f"{server.url}{got.target}", data=got.body, headers=given)
        SigV4Auth(Credentials(ID, SECRET, TOKEN), "bedrock", REGION).add_auth(theirs)
        assert headers["authorization"] == theirs.headers["Authorization"]
        assert headers["host"] == server.url.removeprefix("http://")
        assert headers["x-amz-security-token"] == TOKEN
        assert "callers" not in str(got.headers)
        assert SECRET not in str(got.headers)


FAULTS: Final = [
    ("bedrock", "timeout", 504, "ModelTimeoutException", None),
    ("bedrock", "broken", 502, "ModelErrorException", None),
    ("bedrock", "prompt", 400, "moderation_blocked", "Filter reason: prompt"),
    ("bedrock", "output", 400, "moderation_blocked", "Filter reason: output image"),
    ("bedrock", "inference", 502, "provider_failed", "Inference error"),
    ("nova", "blocked", 400, "moderation_blocked", "ValidationException"),
    ("nova", "all-blocked", 400, "moderation_blocked", "content_filters"),
]
NAMES: Final = {"bedrock": "bedrock/stability.fault-{}", "nova": "nova/amazon.fault-{}"}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("wire", "fault", "status", "code", "own"), FAULTS)
async def test_faults(
    wire: str, fault: str, status: int, code: str, own: str | None, stream: bool, tmp_path: Path
) -> None:
    async with wired(wire, tmp_path) as setup:
        answer = await setup.proxy.generate(model=NAMES[wire].format(fault), stream=stream)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error.get("provider_code")) == (status, code, own)
        assert answer.headers["x-should-retry"] == "false"
        assert len(setup.posts) == 1
        assert PROMPT not in answer.text


async def test_what_the_filter_left(tmp_path: Path) -> None:
    async with wired("nova", tmp_path, stream_n=True) as setup:
        model = NAMES["nova"].format("some-blocked")
        [image] = (await setup.proxy.generate(model=model, n=2)).json()["data"]
        assert "Some of the generated images" in image["warning"]
        [event] = events((await setup.proxy.generate(model=model, n=2, stream=True)).content)
        assert "Some of the generated images" in str(event.json["warning"])


async def test_a_member_that_a_model_lacks_is_not_sent(tmp_path: Path) -> None:
    """The simulator refuses every member that the real model does not have."""
    async with wired("bedrock", tmp_path) as setup:
        for name in ("stable-image-erase-object", "stable-image-remove-background", "stable-outpaint"):
            model = f"bedrock/us.stability.{name}-v1:0"
            answer = await setup.proxy.client.post(
                f"{setup.proxy.url}/v1/images/edits",
                files={"image": ("in.png", PNG, "image/png")},
                data={"model": model, "prompt": PROMPT, "quality": "low", "left": "64"},
            )
            assert answer.status_code == 200, answer.text
            said = answer.headers["streamproxy-not-applied"]
            assert said == ("quality" if name == "stable-outpaint" else "left, prompt, quality")
        assert len(setup.posts) == 3


async def test_a_variation_is_an_edit_without_words(tmp_path: Path) -> None:
    async with wired("nova", tmp_path) as setup:
        answer = await setup.proxy.client.post(
            f"{setup.proxy.url}/v1/images/variations",
            files={"image": ("in.png", PNG, "image/png")},
            data={"model": MODELS["nova"], "n": "2"},
        )
        assert answer.status_code == 200, answer.text
        assert (answer.headers["streamproxy-served-as"], len(answer.json()["data"])) == ("edit", 2)
        [got] = setup.server.received
        assert sorted(orjson.loads(got.body)["imageVariationParams"]) == ["images"]
