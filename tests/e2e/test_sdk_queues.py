"""The proxy sends the same requests to a queue as the provider's own client, and both read the simulated answers."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Final

import fal_client
import orjson
import pytest
from anyio.to_thread import run_sync
from replicate.client import Client as ReplicateClient

from tests.e2e.test_wires import KEY, Setup, wired
from tests.support.proxy import PROMPT

pytestmark = pytest.mark.anyio

APP: Final = "fal-ai/flux/lora"
MODEL: Final = "black-forest-labs/flux-dev"


def asked(setup: Setup, id: str) -> set[tuple[str, str, bytes, str | None]]:
    """The different requests so far: method, path, body and credential, but for pictures, which are fetched without."""
    found = set()
    for got in setup.server.received:
        if "/files/" not in got.target:
            body = orjson.dumps(orjson.loads(got.body), option=orjson.OPT_SORT_KEYS) if got.body else b""
            path = got.target.partition("?")[0].replace(id, "ID")
            found.add((got.method, path, body, got.header("authorization")))
    setup.server.received.clear()
    return found


def id_of(setup: Setup, marker: str) -> str:
    """The id of the job that was looked at: what stands in a path behind `marker`."""
    [id] = {
        got.target.partition(marker)[2].partition("/")[0].partition("?")[0]
        for got in setup.server.received
        if got.method == "GET" and marker in got.target
    }
    return id


async def _ours(setup: Setup, model: str) -> None:
    body = {"model": model, "prompt": PROMPT}
    answer = await setup.proxy.client.post(f"{setup.proxy.url}/v1/images/generations", json=body)
    assert answer.status_code == 200, answer.text


def _with_fals(key: str) -> tuple[str, int]:
    """A job by fal's own client: its id, and how many pictures it made."""
    client = fal_client.SyncClient(key=key)
    handle = client.submit(APP, arguments={"prompt": PROMPT, "num_images": 1})
    result = handle.get()
    getattr(client, "_client").close()  # noqa: B009 (it keeps its connections open for good)
    return handle.request_id, len(result["images"])


async def test_fal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with wired("fal", tmp_path) as setup:
        module = importlib.import_module("fal_client.client")
        monkeypatch.setattr(module, "QUEUE_URL_FORMAT", f"{setup.server.url}/queue.fal/")
        id, made = await run_sync(_with_fals, KEY)
        assert made == 1
        theirs = asked(setup, id)
        await _ours(setup, f"fal/{APP}")
        assert asked(setup, id_of(setup, "/requests/")) == theirs


def _with_replicates(base_url: str, model: str, wait: bool) -> tuple[str, str]:
    """A prediction by Replicate's own client: its id and output."""
    client = ReplicateClient(api_token=KEY, base_url=base_url)
    given = {"prompt": PROMPT, "num_outputs": 1}
    if wait:
        prediction = client.models.predictions.create(model, given, wait=30)
    else:
        prediction = client.models.predictions.create(model, given)
        prediction.wait()
    getattr(client, "_client").close()  # noqa: B009 (as above)
    return prediction.id, str(prediction.output)


@pytest.mark.parametrize(
    ("model", "wait"), [(MODEL, False), ("black-forest-labs/flux-schnell", True)], ids=["looked-at", "waited-for"]
)
async def test_replicate(model: str, wait: bool, tmp_path: Path) -> None:
    async with wired("replicate", tmp_path) as setup:
        id, output = await run_sync(_with_replicates, f"{setup.server.url}/replicate", model, wait)
        assert ".png" in output
        prefers = [got.header("prefer") for got in setup.server.received if got.method == "POST"]
        theirs = asked(setup, id)
        await _ours(setup, f"replicate/{model}")
        assert [got.header("prefer") for got in setup.server.received if got.method == "POST"] == prefers
        assert asked(setup, "none" if wait else id_of(setup, "/predictions/")) == theirs
