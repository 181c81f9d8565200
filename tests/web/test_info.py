"""GET models in front of an upstream that only knows itself what it has: its own list, for one credential at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import orjson
import pytest
from openai import AsyncOpenAI

from streamproxy.app import create_app
from streamproxy.settings import ProviderSettings, Settings
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Fin, Script, Stall, json_answer
from streamproxy.simulator.server import Server, serve
from streamproxy.web import model_lists
from tests.support.proxy import BOUND, NO_TRUST, Proxy, no_leaks, running_proxy, serving

pytestmark = pytest.mark.anyio

THEIRS: list[dict[str, object]] = [
    {"id": "openai/gpt-image-2", "object": "model", "created": 7, "owned_by": "gateway", "pricing": {"prompt": "1"}},
    {"id": "lab/new-model", "object": "model", "created": 8, "owned_by": "lab", "description": "x" * 1000},
    {"id": "bare"},
]


def by_key(received: Received) -> Script:
    """A list that names the key it was asked with."""
    return json_answer(200, {"object": "list", "data": [{"id": f"for/{received.header('authorization')}"}, *THEIRS]})


async def listed(proxy: Proxy, key: str | None = None, path: str = "/v1/models") -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return await proxy.client.get(f"{proxy.url}{path}", headers=headers)


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200
    return [model["id"] for model in answer.json()["data"]]


@asynccontextmanager
async def sidecar(server: Server) -> AsyncIterator[Proxy]:
    """A proxy in front of one upstream, with the callers' own keys."""
    settings = Settings(port=0, upstream=f"{server.url}/v1")
    async with serving(create_app(settings, environ={}, ssl_context=NO_TRUST), settings) as proxy:
        yield proxy


@asynccontextmanager
async def gateway(server: Server, key: str, **row: Any) -> AsyncIterator[Proxy]:
    """A proxy in front of one host that the catalogue does not know, with a configured key."""
    described = ProviderSettings(base_url=f"{server.url}/v1", credential="env:GATEWAY_KEY", **row)
    settings = Settings(port=0, providers={"gateway": described})
    async with serving(create_app(settings, environ={"GATEWAY_KEY": key}, ssl_context=NO_TRUST), settings) as proxy:
        yield proxy


async def test_an_upstreams_own_models_are_listed() -> None:
    async with no_leaks(), serve(by_key) as server, sidecar(server) as proxy:
        found = {model["id"]: model for model in (await listed(proxy, "one")).json()["data"]}
        assert list(found) == ["for/Bearer one", *(str(model["id"]) for model in THEIRS)]
        known = found["openai/gpt-image-2"]
        assert (known["streams"], known["masks"], known["formats"]) == (True, True, ["png", "jpeg", "webp"])
        assert (known["surfaces"], known["price"]["image_output"]) == (["images", "responses"], 30.0)
        assert (known["created"], known["owned_by"]) == (7, "gateway")
        assert found["lab/new-model"] == {"id": "lab/new-model", "object": "model", "created": 8, "owned_by": "lab"}
        assert found["bare"] == {"id": "bare", "object": "model", "created": 0, "owned_by": ""}
        one = await listed(proxy, "one", "/v1/models/lab/new-model")
        assert one.json() == found["lab/new-model"]
        absent = await listed(proxy, "one", "/v1/models/lab/absent")
        assert (absent.status_code, absent.json()["error"]["code"]) == (404, "model_not_found")
        [asked] = server.received
        assert (asked.method, asked.target, asked.body) == ("GET", "/v1/models", b"")


async def test_a_list_is_kept_for_its_own_credential() -> None:
    async with serve(by_key) as server, sidecar(server) as proxy:
        for _ in range(2):
            for key in ("one", "two", None):
                shown = ids(await listed(proxy, key))[0]
                assert shown == (f"for/Bearer {key}" if key else "for/None")
        assert server.calls == 3


async def test_lists_are_kept_for_a_while_and_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_lists, "MOST_LISTS", 2)
    async with serve(by_key) as server, sidecar(server) as proxy:
        for key in ("one", "two", "three", "three", "two"):
            await listed(proxy, key)
        assert server.calls == 3
        await listed(proxy, "one")
        assert server.calls == 4
        monkeypatch.setattr(model_lists, "FRESH_SECONDS", 0.0)
        for _ in range(2):
            await listed(proxy, "four")
        assert server.calls == 6


async def test_a_configured_key_asks_and_not_the_callers() -> None:
    async with serve(by_key) as server, gateway(server, "configured", models=("mine",), query="?a=b") as proxy:
        for key in ("one", "two"):
            assert ids(await listed(proxy, key))[:2] == ["mine", "for/Bearer configured"]
        assert [received.target for received in server.received] == ["/v1/models?a=b"]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (json_answer(404, {"detail": "Not Found"}), "status 404"),
        (json_answer(500, {}), "status 500"),
        (json_answer(200, {"data": {}}), "no list of models"),
        (json_answer(200, {"data": [{"name": "x"}]}), "no list of models"),
        (json_answer(200, b"[" * 5000), "no list of models"),
        (json_answer(200, b'{"data": [{"id": "\xff"}]}'), "no list of models"),
        (json_answer(200, b"x" * (model_lists.LIST_BYTES + 1)), f"over {model_lists.LIST_BYTES} bytes"),
        ((Fin(),), "closed the connection"),
        ((Stall(),), "did not answer"),
    ],
)
async def test_the_catalogue_replaces_a_missing_list(
    script: Script, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if words == "did not answer":
        monkeypatch.setattr(model_lists, "ASK_SECONDS", 0.1)
    async with no_leaks(), serve(lambda _: script) as server, sidecar(server) as proxy:
        with anyio.fail_after(BOUND):
            answer = await listed(proxy, "one")
        assert "openai/gpt-image-2" in ids(answer)
        [note] = answer.json()["notes"]
        assert note.startswith("upstream does not list its models, so these are the catalogue's. ")
        assert words in note
        assert (await listed(proxy, "one", "/v1/models/openai/gpt-image-2")).status_code == 200


async def test_a_refused_key_is_an_error_if_it_is_the_callers() -> None:
    refused = json_answer(401, {"error": {"message": "Incorrect API key provided: sk-Canary0123456789"}})
    async with serve(lambda _: refused) as server, sidecar(server) as proxy:
        answer = await listed(proxy, "sk-Canary0123456789")
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "provider_refused")
        assert "Canary" not in answer.text
    async with serve(lambda _: refused) as server, gateway(server, "sk-Canary0123456789") as proxy:
        answer = await listed(proxy)
        assert "status 401" in answer.json()["notes"][0]
        assert "Canary" not in answer.text


@pytest.mark.parametrize("shape", [lambda data: {"object": "list", "data": data}, lambda data: data], ids=["", "array"])
async def test_openais_client_reads_the_list(shape: Callable[[object], object]) -> None:
    script = json_answer(200, orjson.dumps(shape(THEIRS)))
    with anyio.fail_after(BOUND):
        async with (
            serve(lambda _: script) as server,
            sidecar(server) as proxy,
            AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="one") as client,
        ):
            assert [model.id async for model in client.models.list()] == [model["id"] for model in THEIRS]
            assert (await client.models.retrieve("lab/new-model")).owned_by == "lab"


async def test_hosts_that_the_catalogue_knows_are_not_asked() -> None:
    async with serve(by_key) as server, running_proxy(server.url) as proxy:
        assert "sim/gpt-image" in ids(await listed(proxy))
        assert server.calls == 0
