"""The unmodified openai-python against the proxy: it must work by changing `base_url` and nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator

import anyio
import openai
import orjson
import pytest
from openai import AsyncOpenAI
from openai.types import (
    ImageEditCompletedEvent,
    ImageEditPartialImageEvent,
    ImageGenCompletedEvent,
    ImageGenPartialImageEvent,
)
from PIL import Image

from streamproxy.simulator import Server, running
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, error_answer, event, json_answer, sse
from streamproxy.simulator.server import serve
from tests.golden.shapes import COMPLETED, PICTURE
from tests.support.proxy import Proxy, events, running_proxy

pytestmark = pytest.mark.anyio

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


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(api_key="none", base_url=f"{proxy.url}/v1", max_retries=0) as one:
        with anyio.fail_after(20):
            yield one


def picture(edge: int = 64) -> io.BytesIO:
    """An input picture, with a name as the SDK wants it."""
    made = io.BytesIO()
    Image.new("RGB", (edge, edge), (200, 80, 40)).save(made, "PNG")
    made.name = "in.png"
    made.seek(0)
    return made


def size_of(b64: str | None) -> tuple[int, int]:
    """The decoded picture's size: it must be one."""
    with Image.open(io.BytesIO(base64.b64decode(b64 or "", validate=True))) as found:
        found.load()
        return found.size


@pytest.mark.parametrize("asked", [0, 1, 3])
async def test_a_streamed_generation(client: AsyncOpenAI, asked: int) -> None:
    stream = await client.images.generate(model=MODEL, prompt="x", size=SIZE, stream=True, partial_images=asked)
    *previews, last = [event async for event in stream]
    assert len(previews) == asked
    for index, preview in enumerate(previews):
        assert isinstance(preview, ImageGenPartialImageEvent)
        assert preview.partial_image_index == index
        assert size_of(preview.b64_json) == (256, 256)
    assert isinstance(last, ImageGenCompletedEvent)
    assert size_of(last.b64_json) == (256, 256)
    assert (last.size, last.output_format, last.background) == (SIZE, "png", "opaque")
    assert last.usage.total_tokens == last.usage.input_tokens + last.usage.output_tokens > 0
    assert last.usage.input_tokens_details.image_tokens == 0


@pytest.mark.parametrize("files", [1, 3])
async def test_a_streamed_edit_of_files(client: AsyncOpenAI, sim: Server, files: int) -> None:
    image = picture() if files == 1 else [picture() for _ in range(files)]
    stream = await client.images.edit(model=MODEL, prompt="x", image=image, size=SIZE, stream=True, partial_images=2)
    first, second, last = [event async for event in stream]
    assert isinstance(first, ImageEditPartialImageEvent)
    assert isinstance(second, ImageEditPartialImageEvent)
    assert isinstance(last, ImageEditCompletedEvent)
    assert (first.partial_image_index, second.partial_image_index) == (0, 1)
    assert size_of(last.b64_json) == (256, 256)
    assert last.usage.input_tokens_details.image_tokens > 0
    assert sim.received[0].body.count(b'filename="in.png"') == files


async def test_a_streamed_edit_in_json(proxy: Proxy) -> None:
    """No SDK method sends one, so plain HTTP does."""
    url = "data:image/png;base64," + base64.b64encode(picture().getvalue()).decode()
    body = {"images": [{"image_url": url}, {"image_url": url}], "size": SIZE, "stream": True, "partial_images": 1}
    answer = await proxy.generate(path="/v1/images/edits", **body)
    preview, last = events(answer.content)
    assert (preview.event, last.event) == ("image_edit.partial_image", "image_edit.completed")
    assert size_of(str(last.json["b64_json"])) == (256, 256)


async def test_a_model_that_cannot_stream_streams(client: AsyncOpenAI, sim: Server) -> None:
    stream = await client.images.generate(model="sim/plain", prompt="x", size=SIZE, stream=True, partial_images=2)
    [last] = [event async for event in stream]
    assert isinstance(last, ImageGenCompletedEvent)
    assert size_of(last.b64_json) == (256, 256)
    assert last.usage.total_tokens > 0


@pytest.mark.parametrize("edit", [False, True])
async def test_not_streamed(client: AsyncOpenAI, edit: bool) -> None:
    if edit:
        answer = await client.images.edit(model=MODEL, prompt="x", image=picture(), size=SIZE, n=2)
    else:
        answer = await client.images.generate(model=MODEL, prompt="x", size=SIZE, n=2)
    assert answer.data is not None
    assert [size_of(image.b64_json) for image in answer.data] == [(256, 256)] * 2
    assert answer.usage is not None
    assert answer.usage.output_tokens > 0
    assert answer._request_id  # noqa: SLF001 - so documented by openai-python


async def test_models(client: AsyncOpenAI) -> None:
    models = [model async for model in client.models.list()]
    assert MODEL in [model.id for model in models]
    one = await client.models.retrieve(MODEL)
    assert (one.id, one.object) == (MODEL, "model")


async def _refused(client: AsyncOpenAI, model: str, **members: int) -> openai.APIStatusError:
    """The error that a streamed and a plain request both end in."""
    codes = set()
    for stream in (True, False):
        with pytest.raises(openai.APIStatusError) as caught:
            await client.images.generate(model=model, prompt="x", stream=stream, extra_body=members or None, timeout=10)
        codes.add((caught.value.status_code, caught.value.code))
    assert len(codes) == 1
    assert caught.value.request_id
    return caught.value


async def test_moderation(client: AsyncOpenAI) -> None:
    error = await _refused(client, "sim/fault-refused-400")
    assert isinstance(error, openai.BadRequestError)
    assert (error.code, error.type) == ("moderation_blocked", "image_generation_user_error")


async def test_an_unknown_model(client: AsyncOpenAI) -> None:
    error = await _refused(client, "sim/no-such-model")
    assert isinstance(error, openai.NotFoundError)
    assert (error.code, error.param) == ("model_not_found", "model")


async def test_invalid_members_are_told_in_both_forms(client: AsyncOpenAI, sim: Server) -> None:
    error = await _refused(client, MODEL, n=99)
    assert isinstance(error, openai.UnprocessableEntityError)
    assert error.param == "n"
    assert "n: Input should be less than or equal to 10" in error.message
    [problem] = error.response.json()["detail"]
    assert problem["loc"] == ["body", "n"]
    assert sim.calls == 0


async def test_a_rate_limit_is_not_repeated_against_the_callers_will(client: AsyncOpenAI, sim: Server) -> None:
    with pytest.raises(openai.RateLimitError) as caught:
        await client.images.generate(model="sim/fault-refused-429", prompt="x", stream=True)
    assert caught.value.response.headers["retry-after"] == "7"
    assert sim.calls == 1


async def test_an_error_inside_the_stream(client: AsyncOpenAI) -> None:
    stream = await client.images.generate(model="sim/fault-moderation-in-sse", prompt="x", stream=True)
    assert isinstance(await anext(stream), ImageGenPartialImageEvent)
    with pytest.raises(openai.APIError) as caught:
        await anext(stream)
    assert not isinstance(caught.value, openai.APIStatusError)
    assert (caught.value.code, caught.value.type) == ("moderation_blocked", "image_generation_user_error")


@pytest.mark.parametrize("fault", ["reset-before-head", "refused-500", "fin-inside-head", "invalid-json", "no-image"])
async def test_what_may_have_been_charged_is_sent_once(proxy: Proxy, sim: Server, fault: str) -> None:
    """With its default retries the SDK would repeat a 502: `x-should-retry: false` holds it back."""
    async with AsyncOpenAI(api_key="none", base_url=f"{proxy.url}/v1") as eager:
        assert eager.max_retries > 0
        with pytest.raises(openai.InternalServerError) as caught, anyio.fail_after(20):
            await eager.images.generate(model=f"sim/fault-{fault}", prompt="x", stream=True)
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert sim.calls == 1


async def test_a_rate_limit_may_be_repeated() -> None:
    def handler(received: Received) -> Script:
        return next(scripts)

    limited = error_answer(429, "slow", code="rate_limit_exceeded", headers=(("Retry-After", "0.01"),))
    scripts = iter((limited, sse((event("image_generation.completed", COMPLETED),))))
    async with serve(handler) as upstream, running_proxy(upstream.url) as proxy:
        async with AsyncOpenAI(api_key="none", base_url=f"{proxy.url}/v1") as eager:
            with anyio.fail_after(20):
                stream = await eager.images.generate(model="sim/x", prompt="x", stream=True)
                [last] = [event async for event in stream]
        assert last.type == "image_generation.completed"
        assert upstream.calls == 2


async def test_several_images_of_a_json_answer_are_several_events() -> None:
    image = {"b64_json": PICTURE.decode()}
    body = {"created": 5, "data": [image, image, image], "usage": {"total_tokens": 9}}
    async with (
        serve(lambda _: json_answer(200, body)) as upstream,
        running_proxy(upstream.url) as proxy,
        AsyncOpenAI(api_key="none", base_url=f"{proxy.url}/v1", max_retries=0) as one,
    ):
        stream = await one.images.generate(model="sim/x", prompt="x", stream=True, n=3)
        got = [event async for event in stream]
    assert [orjson.loads(event.to_json())["image_index"] for event in got] == [0, 1, 2]
    assert [size_of(event.b64_json) for event in got] == [(1, 1)] * 3
    totals = [event.usage.total_tokens for event in got if isinstance(event, ImageGenCompletedEvent)]
    assert totals == [0, 0, 9]
