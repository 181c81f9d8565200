"""Every parameter that OpenAI's client has for images, all at once, through the proxy to the simulator and back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, get_args, get_type_hints

import anyio
import pytest
from openai import AsyncOpenAI
from openai.types import ImageEditParams, ImageGenerateParams, ImagesResponse

from streamproxy.simulator import running
from tests.support.proxy import BOUND, Proxy, running_proxy

pytestmark = pytest.mark.anyio

FILE: Final = ("a.png", b"Example data", "image/png")
BOTH: Final[dict[str, Any]] = {
    "prompt": "A cute baby sea otter wearing a beret",
    "background": "transparent",
    "complexity": "low",
    "frame_count": 2,
    "frame_duration_ms": 20,
    "model": "gpt-image-2.5-flare",
    "n": 1,
    "output_compression": 100,
    "output_format": "png",
    "partial_images": 1,
    "quality": "high",
    "response_format": "url",
    "safety_identifier": "user-1234",
    "size": "64x64",
    "svg": {"model": "x", "reasoning": {"effort": "none"}},
    "user": "user-1234",
}
GENERATE: Final = {**BOTH, "moderation": "low", "style": "vivid"}
EDIT: Final = {**BOTH, "image": FILE, "input_fidelity": "high", "markup": FILE, "mask": FILE}


@asynccontextmanager
async def client() -> AsyncIterator[AsyncOpenAI]:
    """The official client, before a host that deploys the model as one which takes the whole schema."""
    async with running(pace=0) as simulated:
        deployed = {"deployments": {"gpt-image-2.5-flare": "sim/plain"}}
        async with running_proxy(simulated.url, provider=deployed) as proxy, opened(proxy) as opening:
            yield opening


def opened(proxy: Proxy) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none", timeout=BOUND, max_retries=0)


def test_the_parameters_are_all_that_the_client_has() -> None:
    for given, params in ((GENERATE, ImageGenerateParams), (EDIT, ImageEditParams)):
        known = {name for shape in get_args(params) for name in get_type_hints(shape)}
        assert {*given, "stream"} == known


@pytest.mark.parametrize("edit", [False, True], ids=["generate", "edit"])
async def test_all_parameters_at_once_bring_a_picture(edit: bool) -> None:
    with anyio.fail_after(BOUND):
        async with client() as openai:
            call = openai.images.edit if edit else openai.images.generate
            answer = await call(**(EDIT if edit else GENERATE), stream=False)
            assert isinstance(answer, ImagesResponse)
            assert [bool(image.b64_json or image.url) for image in answer.data or []] == [True]


@pytest.mark.parametrize("edit", [False, True], ids=["generate", "edit"])
async def test_all_parameters_at_once_bring_a_stream(edit: bool) -> None:
    with anyio.fail_after(BOUND):
        async with client() as openai:
            call = openai.images.edit if edit else openai.images.generate
            kinds = [event.type async for event in await call(**(EDIT if edit else GENERATE), stream=True)]
            assert kinds == [f"image_{'edit' if edit else 'generation'}.completed"]
