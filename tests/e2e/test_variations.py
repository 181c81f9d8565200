"""POST images/variations: by the provider's route, as an edit, or refused with a reason; never a bare 404."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Final

import anyio
import orjson
import pytest
from openai import AsyncOpenAI, BadRequestError

from streamproxy.core.images import probe
from streamproxy.simulator import running
from streamproxy.simulator.pictures import draw, encode
from tests.e2e.node.runner import needs_node, run_node
from tests.e2e.test_wires import wired
from tests.support.proxy import BOUND, events, running_proxy

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning"),  # what the SDK says of this method
]

PNG: Final = encode(draw("input", 64, 64), "png")
SERVED_AS: Final = "streamproxy-served-as"


@pytest.mark.parametrize("n", [1, 2])
async def test_openai_python_by_the_route(n: int) -> None:
    async with (
        running(pace=0) as sim,
        running_proxy(sim.url) as proxy,
        AsyncOpenAI(api_key="none", base_url=f"{proxy.url}/v1", max_retries=0) as client,
    ):
        with anyio.fail_after(BOUND):
            raw = await client.images.with_raw_response.create_variation(
                image=("in.png", PNG),
                model="sim/plain",
                n=n,
                size="256x256",
                response_format="b64_json",
            )
        made = raw.parse()
        assert made.data is not None
        found = [probe(base64.b64decode(image.b64_json or "")) for image in made.data]
        assert [(one.width, one.height) for one in found if one] == [(256, 256)] * n
        assert SERVED_AS not in raw.headers
        [received] = sim.received
        assert received.target == "/v1/images/variations"
        assert PNG in received.body
        assert b'name="prompt"' not in received.body


@needs_node
async def test_openai_node_by_the_route() -> None:
    async with running(pace=0) as sim, running_proxy(sim.url) as proxy:
        picture = base64.b64encode(PNG).decode()
        [seen] = await run_node(
            proxy.url, [{"method": "vary", "body": {"model": "sim/gpt-image", "size": "256x256"}, "picture": picture}]
        )
        assert seen["error"] is None
        assert len(seen["answer"]["data"]) == 1
        assert sim.received[0].target == "/v1/images/variations"


async def test_a_stream_of_a_variation() -> None:
    """The route cannot stream: the answer becomes the one event."""
    async with running(pace=0) as sim, running_proxy(sim.url) as proxy:
        answer = await proxy.client.post(
            f"{proxy.url}/v1/images/variations",
            files={"image": ("in.png", PNG)},
            data={"model": "sim/gpt-image", "size": "256x256", "stream": "true", "partial_images": "2"},
        )
        assert [event.event for event in events(answer.content)] == ["image_edit.completed"]
        assert answer.headers["streamproxy-not-applied"] == "partial_images"
        assert sim.calls == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_whose_edit_serves_as_one(tmp_path: Path, stream: bool) -> None:
    async with wired("bfl", tmp_path) as setup:
        answer = await setup.proxy.client.post(
            f"{setup.proxy.url}/v1/images/variations",
            files={"image": ("in.png", PNG)},
            data={"model": "bfl/flux-pro-1.1", **({"stream": "true"} if stream else {})},
        )
        assert answer.status_code == 200, answer.text
        assert answer.headers[SERVED_AS] == "edit"
        assert "streamproxy-not-applied" not in answer.headers
        [submitted] = [orjson.loads(received.body) for received in setup.server.received if received.method == "POST"]
        assert submitted["prompt"] == ""
        assert base64.b64decode(submitted["image_prompt"]) == PNG


async def test_a_model_that_makes_none_is_refused(tmp_path: Path) -> None:
    async with wired("bfl", tmp_path) as setup:
        with pytest.raises(BadRequestError) as caught:
            await setup.client.images.create_variation(image=("in.png", PNG), model="bfl/flux-2-pro")
        assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "model")
        assert "providers.bfl.variations" in caught.value.message
        assert setup.posts == []


async def test_a_provider_whose_route_is_turned_off() -> None:
    async with running(pace=0) as sim, running_proxy(sim.url, provider={"variations": ""}) as proxy:
        files, data = {"image": ("in.png", PNG)}, {"model": "sim/plain"}
        answer = await proxy.client.post(f"{proxy.url}/v1/images/variations", files=files, data=data)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_parameter")
        assert sim.calls == 0


@pytest.mark.parametrize("images", [0, 2])
async def test_a_variation_is_of_one_image(images: int) -> None:
    async with running(pace=0) as sim, running_proxy(sim.url) as proxy:
        files = [("image[]", ("in.png", PNG))] * images or [("other", ("in.png", PNG))]
        answer = await proxy.client.post(f"{proxy.url}/v1/images/variations", files=files, data={"model": "sim/plain"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "image")
        wrong = await proxy.client.post(f"{proxy.url}/v1/images/variations", json={"model": "sim/plain"})
        assert wrong.status_code == 415
        assert sim.calls == 0
