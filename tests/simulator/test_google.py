"""The simulator's forms of Google's wires, as Google's own SDK speaks them."""

from __future__ import annotations

import base64
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
import httpx
import pytest
from anyio import to_thread
from google import genai
from google.genai import types
from google.oauth2.credentials import Credentials

from streamproxy.simulator import wires
from streamproxy.simulator.server import Server, serve
from tests.support.proxy import BOUND

pytestmark = pytest.mark.anyio

T = TypeVar("T")
MODELS = ("gemini-2.5-flash-image", "gemini-3-pro-image")


@asynccontextmanager
async def simulated() -> AsyncIterator[Server]:
    with anyio.fail_after(2 * BOUND):
        async with serve(wires(0)) as server:
            yield server


def client(server: Server, *, vertex: bool) -> genai.Client:
    if vertex:
        options = types.HttpOptions(base_url=server.url, api_version="v1")
        token = Credentials(token="ya29.simulated")  # type: ignore[no-untyped-call]
        return genai.Client(vertexai=True, project="sim", location="global", credentials=token, http_options=options)
    return genai.Client(api_key="simulated", http_options=types.HttpOptions(base_url=server.url, api_version="v1beta"))


async def called(call: Callable[[], T]) -> T:
    """The SDK's blocking call, in a thread."""

    def quietly() -> T:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its images methods are deprecated, and one is experimental
            return call()

    return await to_thread.run_sync(quietly)


@pytest.mark.parametrize("vertex", [False, True])
@pytest.mark.parametrize("model", MODELS)
async def test_content(vertex: bool, model: str) -> None:
    async with simulated() as server:
        with client(server, vertex=vertex) as sdk:
            config = types.GenerateContentConfig(
                response_modalities=["TEXT", "IMAGE"], image_config=types.ImageConfig(aspect_ratio="3:2")
            )
            made = await called(lambda: sdk.models.generate_content(model=model, contents="a hill", config=config))
            assert made.parts is not None
            blobs = [part.inline_data for part in made.parts if part.inline_data]
            assert len(blobs) == (3 if "pro" in model else 1)
            assert blobs[-1].mime_type == ("image/jpeg" if "pro" in model else "image/png")
            assert made.usage_metadata is not None

            def stream() -> list[types.GenerateContentResponse]:
                return list(sdk.models.generate_content_stream(model=model, contents="a hill", config=config))

            chunks = await called(stream)
            assert sum(bool(part.inline_data) for chunk in chunks for part in chunk.parts or ()) == len(blobs)


async def test_imagen() -> None:
    async with simulated() as server:
        with client(server, vertex=True) as sdk:
            config = types.GenerateImagesConfig(number_of_images=2, aspect_ratio="4:3", include_rai_reason=True)
            made = await called(
                lambda: sdk.models.generate_images(model="imagen-4.0-generate-001", prompt="a hill", config=config)
            )
            assert len(made.images) == 2
            filtered = await called(
                lambda: sdk.models.generate_images(model="imagen-fault-filtered", prompt="a hill", config=config)
            )
            assert filtered.generated_images is not None
            assert [image.rai_filtered_reason is None for image in filtered.generated_images] == [False]


def inline(role: str) -> dict[str, object]:
    picture = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
    return {"role": role, "parts": [{"inlineData": {"mimeType": "image/png", "data": picture}}]}


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("gemini-3-pro-image:generateContent", {"contents": [inline("model")]}, "missing a thought_signature"),
        ("gemini-3-pro-image:other", {"contents": []}, "No such method"),
        ("imagen-4.0-generate-001:other", {}, "No such method"),
        (
            "imagen-4.0-generate-001:predict",
            {"instances": [{"prompt": "p"}], "parameters": {"seed": 1}},
            "not supported when watermark",
        ),
        (
            "imagen-4.0-generate-001:predict",
            {"instances": [{"prompt": "p"}], "parameters": {"negativePrompt": "n"}},
            "Unknown name",
        ),
        (
            "gemini-2.5-flash-image:generateContent",
            {"contents": [], "generationConfig": {"imageConfig": {"imageSize": "1K"}}},
            "Invalid value",
        ),
        (
            "gemini-3-pro-image:generateContent",
            {"contents": [], "generationConfig": {"imageConfig": {"imageOutputOptions": {}}}},
            "Invalid value",
        ),
    ],
)
async def test_what_google_refuses(path: str, body: dict[str, object], word: str) -> None:
    async with simulated() as server, httpx.AsyncClient(trust_env=False) as http:
        asked = {"generationConfig": {}, **body} if "contents" in body else body
        answer = await http.post(f"{server.url}/v1beta/models/{path}", json=asked)
        assert answer.status_code in (400, 404)
        assert word in answer.json()["error"]["message"]
