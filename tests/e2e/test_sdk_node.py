"""The unmodified openai-node against the proxy; what it saw comes back as JSON from tests/e2e/node."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator

import pytest
from PIL import Image

from streamproxy.simulator import Server, running
from tests.e2e.node.runner import Call, Seen, needs_node, run_node
from tests.golden.shapes import PICTURE
from tests.support.proxy import Proxy, running_proxy

pytestmark = [pytest.mark.anyio, needs_node]

MODEL = "sim/gpt-image"
SIZE = "256x256"


@pytest.fixture
async def sim() -> AsyncIterator[Server]:
    async with running(pace=0) as server:
        yield server


@pytest.fixture
async def proxy(sim: Server) -> AsyncIterator[Proxy]:
    async with running_proxy(sim.url) as running_one:
        yield running_one


def _generate(retries: int = 0, **body: object) -> Call:
    return {"method": "generate", "body": {"model": MODEL, "prompt": "x", "size": SIZE, **body}, "retries": retries}


def _size(image: dict[str, str]) -> tuple[int, int]:
    with Image.open(io.BytesIO(base64.b64decode(image["b64_json"], validate=True))) as found:
        found.load()
        return found.size


def _previewed(seen: Seen, family: str, previews: int) -> None:
    assert seen["error"] is None
    assert [event["type"] for event in seen["events"]] == [f"{family}.partial_image"] * previews + [
        f"{family}.completed"
    ]
    assert [event["partial_image_index"] for event in seen["events"][:-1]] == list(range(previews))
    assert [_size(event) for event in seen["events"]] == [(256, 256)] * (previews + 1)
    assert seen["events"][-1]["usage"]["total_tokens"] > 0


async def test_streams_and_answers(proxy: Proxy, sim: Server) -> None:
    def edit(files: int, **body: object) -> Call:
        return {**_generate(0, **body), "method": "edit", "files": files, "picture": PICTURE.decode()}

    seen = await run_node(
        proxy.url,
        [
            _generate(stream=True, partial_images=3),
            _generate(stream=True),
            edit(1, stream=True, partial_images=2),
            edit(3, stream=True, partial_images=1),
            _generate(model="sim/plain", stream=True, partial_images=2),
            _generate(n=2),
            edit(1),
            {"method": "models"},
        ],
    )
    _previewed(seen[0], "image_generation", 3)
    _previewed(seen[1], "image_generation", 0)
    _previewed(seen[2], "image_edit", 2)
    _previewed(seen[3], "image_edit", 1)
    _previewed(seen[4], "image_generation", 0)
    for answer, count in ((seen[5], 2), (seen[6], 1)):
        assert answer["error"] is None
        assert [_size(image) for image in answer["answer"]["data"]] == [(256, 256)] * count
        assert answer["answer"]["usage"]["output_tokens"] > 0
    assert MODEL in seen[7]["answer"]
    files = [received.body.count(b"filename=") for received in sim.received if "edits" in received.target]
    assert files == [1, 3, 1]


async def test_refusals_are_typed(proxy: Proxy, sim: Server) -> None:
    calls = [
        _generate(model="sim/fault-refused-400", stream=True),
        _generate(model="sim/no-such-model", stream=True),
        _generate(n=99, stream=True),
        _generate(model="sim/fault-refused-429", stream=True),
        _generate(model="sim/fault-moderation-in-sse", stream=True),
    ]
    moderation, model, invalid, limit, late = [one["error"] for one in await run_node(proxy.url, calls)]
    assert (moderation["name"], moderation["code"]) == ("BadRequestError", "moderation_blocked")
    assert moderation["type"] == "image_generation_user_error"
    assert (model["name"], model["param"]) == ("NotFoundError", "model")
    assert (invalid["name"], invalid["param"]) == ("UnprocessableEntityError", "n")
    assert invalid["message"].startswith("422 n: ")
    assert (limit["name"], limit["status"]) == ("RateLimitError", 429)
    assert (late["name"], late["status"], late["code"]) == ("APIError", None, "moderation_blocked")
    assert all(error["request_id"] for error in (moderation, model, invalid, limit))
    refused = [received for received in sim.received if b"refused-429" in received.body]
    assert len(refused) == 1


async def test_what_may_have_been_charged_is_sent_once(proxy: Proxy, sim: Server) -> None:
    faults = ("reset-before-head", "refused-500", "invalid-json")
    calls = [_generate(2, model=f"sim/fault-{fault}", stream=True) for fault in faults]
    for seen in await run_node(proxy.url, calls):
        assert (seen["error"]["name"], seen["error"]["status"]) == ("InternalServerError", 502)
    assert sim.calls == len(faults)
