"""Chat completions that end in a picture, through the OpenAI SDK and as bytes, before the simulator."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import httpx
import openai
import orjson
import pytest
from openai import AsyncOpenAI

from streamproxy.core.images import probe
from streamproxy.simulator import running, wires
from streamproxy.simulator.pictures import draw, encode
from streamproxy.simulator.received import Received, Server
from streamproxy.simulator.script import Script, Send, error_answer, event, head, json_answer, sse
from streamproxy.simulator.server import serve
from tests.support.provider import preview
from tests.support.proxy import BOUND, PROMPT, Proxy, no_leaks, running_proxy

pytestmark = pytest.mark.anyio

PNG: Final = base64.b64encode(encode(draw("a lighthouse", 64, 48), "png")).decode()
DATA_URL: Final = f"data:image/png;base64,{PNG}"
CHAT: Final = "/v1/chat/completions"
ASK: Final = [{"role": "user", "content": PROMPT}]
SMALL: Final = {"size": "256x256"}
NOBODY: Final = "http://127.0.0.1:9"


@asynccontextmanager
async def chatting(pace: float = 0, **settings: Any) -> AsyncIterator[tuple[Proxy, Server, AsyncOpenAI]]:
    async with (
        no_leaks(),
        running(pace=pace) as server,
        running_proxy(server.url, **settings) as proxy,
        AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0) as client,
    ):
        with anyio.fail_after(2 * BOUND):
            yield proxy, server, client


def body(**members: object) -> dict[str, object]:
    """A chat; small pictures are drawn sooner."""
    return {"model": "sim/plain", "messages": ASK, **({} if "image_config" in members else SMALL), **members}


async def post(proxy: Proxy, headers: Mapping[str, str] | None = None, **members: Any) -> httpx.Response:
    return await proxy.client.post(proxy.url + CHAT, json=body(**members), headers=headers)


def chunks(answer: httpx.Response) -> list[dict[str, Any]]:
    """The chunks of a stream, which has data lines and comments alone, and says that it is done."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.split("\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines), [line[:40] for line in lines]
    *found, last = [line.removeprefix("data: ") for line in lines]
    assert last == "[DONE]"
    return [orjson.loads(line) for line in found]


def size_of(url: str) -> tuple[int, int]:
    head, _, text = url.partition(",")
    info = probe(base64.b64decode(text, validate=True))
    assert info is not None
    assert head == f"data:image/{info.format};base64"
    return info.width, info.height


def sent(server: Server) -> dict[str, Any]:
    """The body of the one request that was made for images."""
    [received] = [received for received in server.received if received.method == "POST"]
    found = orjson.loads(received.body)
    assert isinstance(found, dict)
    return found


# The picture.


async def test_the_picture_is_the_content() -> None:
    async with chatting() as (proxy, server, _):
        answer = await post(proxy)
        assert answer.status_code == 200, answer.text
        said = answer.json()
        assert said.keys() == {"id", "object", "created", "model", "choices", "usage", "cost", "provider"}
        assert (said["object"], said["model"], said["provider"]) == ("chat.completion", "sim/plain", "sim")
        assert said["id"].startswith("chatcmpl-")
        [choice] = said["choices"]
        assert (choice["index"], choice["finish_reason"], choice["message"]["role"]) == (0, "stop", "assistant")
        assert choice["message"].keys() == {"role", "content"}
        assert size_of(choice["message"]["content"]) == (256, 256)
        assert said["usage"]["total_tokens"] == said["usage"]["prompt_tokens"] + said["usage"]["completion_tokens"] > 0
        assert sent(server)["prompt"] == PROMPT


async def test_modalities_put_it_into_images() -> None:
    async with chatting() as (proxy, _, _):
        answer = (await post(proxy, modalities=["image", "text"])).json()
        message = answer["choices"][0]["message"]
        assert (message["role"], message["content"]) == ("assistant", "")
        [image] = message["images"]
        assert (image["type"], image["index"]) == ("image_url", 0)
        assert size_of(image["image_url"]["url"]) == (256, 256)


@pytest.mark.parametrize("model", ["sim/plain", "sim/gpt-image"])
@pytest.mark.parametrize("images", [False, True])
async def test_a_stream_has_one_picture_and_no_previews(model: str, images: bool) -> None:
    more: dict[str, Any] = {"modalities": ["image", "text"]} if images else {}
    async with chatting() as (proxy, server, _):
        first, shown, last = chunks(await post(proxy, model=model, stream=True, **more))
        assert {chunk["id"] for chunk in (first, shown, last)} == {first["id"]}
        assert {chunk["object"] for chunk in (first, shown, last)} == {"chat.completion.chunk"}
        assert first["choices"] == [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
        [choice] = shown["choices"]
        delta = choice["delta"]
        url = delta["images"][0]["image_url"]["url"] if images else delta["content"]
        assert size_of(url) == (256, 256)
        assert choice["finish_reason"] is None
        assert last["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
        assert last["usage"]["total_tokens"] > 0
        assert "cost" in last
        assert len(server.received) == 1


async def test_the_sdk_reads_both() -> None:
    async with chatting() as (_, _, client):
        ask: Any = ASK
        whole = await client.chat.completions.create(model="sim/plain", messages=ask, extra_body=SMALL)
        assert size_of(whole.choices[0].message.content or "") == (256, 256)
        assert whole.usage is not None
        assert whole.usage.total_tokens > 0
        text = ""
        images: list[Any] = []
        finished: list[str | None] = []
        stream = await client.chat.completions.create(
            model="sim/gpt-image", messages=ask, stream=True, extra_body={**SMALL, "modalities": ["image", "text"]}
        )
        async for chunk in stream:
            delta = chunk.choices[0].delta
            text += delta.content or ""
            images += getattr(delta, "images", None) or []
            finished.append(chunk.choices[0].finish_reason)
        assert (text, finished) == ("", [None, None, "stop"])
        assert [size_of(image["image_url"]["url"]) for image in images] == [(256, 256)]


async def test_several_choices() -> None:
    async with chatting() as (proxy, server, _):
        answer = (await post(proxy, n=2)).json()
        assert [choice["index"] for choice in answer["choices"]] == [0, 1]
        assert len({choice["message"]["content"] for choice in answer["choices"]}) == 2
        streamed = chunks(await post(proxy, n=2, stream=True))
        assert [chunk["choices"][0]["index"] for chunk in streamed] == [0, 0, 0, 1, 1]
        assert [chunk["choices"][0]["finish_reason"] for chunk in streamed] == [None, None, "stop", None, "stop"]
        assert [("usage" in chunk) for chunk in streamed] == [False] * 4 + [True]
        assert len(server.received) == 2


# What is asked for.


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({"aspect_ratio": "16:9", "image_size": "2K"}, "2736x1536"),
        ({"aspect_ratio": "1:1"}, "1024x1024"),
        ({"image_size": "1K"}, "1024x1024"),
        ({"aspect_ratio": "1:8"}, "368x2896"),
        ({"aspect_ratio": None, "image_size": None}, None),
    ],
)
async def test_image_config_as_pixels(config: dict[str, object], size: str | None) -> None:
    def handle(received: Received) -> Script:
        return json_answer(200, {"created": 1, "data": [{"b64_json": PNG}]})

    async with no_leaks(), serve(handle) as server, running_proxy(server.url) as proxy:
        answer = await post(proxy, image_config=config)
        assert answer.status_code == 200, answer.text
        assert sent(server).get("size") == size
        assert "image_config" not in sent(server)
        assert "streamproxy-not-applied" not in answer.headers


async def test_image_config_as_gemini_takes_it() -> None:
    async with no_leaks(), serve(wires(0)) as server:
        gemini = {"base_url": f"{server.url}/v1beta", "credential": "env:KEY"}
        async with running_proxy(server.url, environ={"KEY": "k" * 20}, providers={"gemini": gemini}) as proxy:
            config = {"aspect_ratio": "16:9", "image_size": "2K"}
            turns = [*ASK, {"role": "assistant", "content": DATA_URL}, {"role": "user", "content": "Make it red"}]
            model = "google/gemini-3.1-flash-image"
            answer = await post(proxy, model=model, messages=turns, image_config=config, temperature=1)
            assert answer.status_code == 200, answer.text
            assert answer.headers["streamproxy-not-applied"] == "temperature"
            [turn] = sent(server)["contents"]  # a picture in a turn of the model's would need its signature
            assert turn["role"] == "user"
            assert turn["parts"][0]["inlineData"]["data"] == PNG
            assert sent(server)["generationConfig"]["imageConfig"] == {"aspectRatio": "16:9", "imageSize": "2K"}
            assert size_of(answer.json()["choices"][0]["message"]["content"])[0] > 1024


async def test_pictures_and_turns() -> None:
    turns = [
        {"role": "system", "content": "Paint in oil."},
        {"role": "user", "content": [{"type": "text", "text": "A boat"}]},
        {"role": "assistant", "content": DATA_URL},
        {"role": "user", "content": "Make it red"},
        {"role": "assistant", "content": "Here:", "images": [{"type": "image_url", "image_url": {"url": DATA_URL}}]},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": DATA_URL}, {"type": "text", "text": "Like this"}],
        },
    ]
    async with chatting() as (proxy, server, _):
        answer = await post(proxy, messages=turns)
        assert answer.status_code == 200, answer.text
        found = sent(server)
        assert server.received[0].target == "/v1/images/edits"
        assert found["images"] == [{"image_url": DATA_URL}] * 3
        assert found["prompt"] == (
            "Paint in oil.\n\nUser: A boat\n\nAssistant: [image 1]\n\nUser: Make it red\n\n"
            "Assistant: Here:\n[image 2]\n\nUser: [image 3]\nLike this"
        )


async def test_a_lone_turn_is_the_prompt() -> None:
    parts = [{"type": "text", "text": "Watercolour"}, {"type": "image_url", "image_url": {"url": DATA_URL}}]
    async with chatting() as (proxy, server, _):
        messages = [{"role": "system", "content": "Be bold."}, {"role": "user", "content": parts}]
        assert (await post(proxy, messages=messages)).status_code == 200
        assert sent(server)["prompt"] == "Be bold.\n\nWatercolour"


@pytest.mark.parametrize("model", ["google/gemini-3.1-flash-image", "sim/plain"])
@pytest.mark.parametrize("allowed", [True, False])
async def test_a_remote_picture_is_fetched_under_the_guard(model: str, allowed: bool) -> None:
    """Gemini's models take URLs, so it is fetched for them without a setting."""
    file = encode(draw("a lighthouse", 64, 48), "png")
    simulated = wires(0)

    async def handle(received: Received) -> Script:
        if received.method == "GET":
            return (Send(head(200, (("Content-Type", "image/png"),), length=len(file))), Send(file))
        made = simulated(received)
        return await made if isinstance(made, Awaitable) else made

    async with no_leaks(), serve(handle) as server:
        row = {"base_url": f"{server.url}/v1beta", "credential": "env:KEY"}
        hosts = ("127.0.0.1",) if allowed else ()
        sim = {"base_url": f"{server.url}/v1", "credential": "none"}
        settings: dict[str, Any] = {"providers": {"gemini": row, "sim": sim}, "fetch_hosts": hosts}
        settings |= {"fetch_images": model == "sim/plain"}
        async with running_proxy(server.url, environ={"KEY": "k" * 20}, **settings) as proxy:
            shown = {"type": "image_url", "image_url": {"url": f"{server.url}/photo.png"}}
            turn = {"role": "user", "content": [{"type": "text", "text": "Watercolour"}, shown]}
            answer = await post(proxy, model=model, messages=[turn])
            if allowed:
                assert answer.status_code == 200, answer.text
                made = next(received for received in server.received if received.method == "POST")
                assert base64.b64encode(file) in made.body
            else:
                assert answer.json()["error"]["code"] == "destination_ip_prohibited"
                assert not server.received


# What is refused, before anything is sent.

PLACES: Final = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [7]}, "messages[0]"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x" * 32_001}]}, "messages"),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,!"}}]}
            ]
        },
        "messages",
    ),
    (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "x"},
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,!"}},
                    ],
                }
            ]
        },
        "messages[0].content[1].image_url.url",
    ),
    ({"messages": [{"role": "assistant", "content": DATA_URL}] * 17}, "messages"),
    ({"n": 11}, "n"),
    ({"stream": "perhaps"}, "stream"),
    ({"model": 7}, "model"),
    ({"model": None}, "model"),
    ({"image_config": 7}, "image_config"),
    ({"image_config": {"aspect_ratio": "5:7"}}, "image_config.aspect_ratio"),
    ({"image_config": {"image_size": "512"}}, "image_config.image_size"),
    ({"image_config": {"image_size": 512}}, "image_config.image_size"),
    ({"image_config": {"strength": 1}}, "image_config.strength"),
    ({"modalities": "image"}, "modalities"),
]


@pytest.mark.parametrize(("members", "param"), PLACES)
async def test_a_wrong_field(members: dict[str, Any], param: str) -> None:
    async with no_leaks(), running_proxy(NOBODY) as proxy:
        answer = await post(proxy, **members)
        assert answer.status_code == 422, answer.text
        error = answer.json()["error"]
        assert (error["param"], error["type"], error["code"]) == (param, "invalid_request_error", "invalid_request")
        assert answer.json()["detail"][0]["loc"][0] == "body"


async def test_a_wrong_size_names_the_right_ones() -> None:
    async with (
        no_leaks(),
        running_proxy(NOBODY) as proxy,
        AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="x") as client,
    ):
        ask: Any = ASK
        for model, words in (("sim/plain", "'1K', '2K' or '4K'"), ("sim/url", "'1K', '2K' or '4K'")):
            with pytest.raises(openai.UnprocessableEntityError) as raised:
                await client.chat.completions.create(
                    model=model, messages=ask, extra_body={"image_config": {"image_size": "8K"}}
                )
            assert f"image_config.image_size: Input should be {words}" in str(raised.value)
            assert raised.value.param == "image_config.image_size"


@pytest.mark.parametrize(
    ("members", "status", "code"),
    [
        ({"modalities": ["text"]}, 400, "unsupported_parameter"),
        ({"extra_headers": {"authorization": "Bearer x"}}, 400, "credential_header"),
        ({"model": "google/gemini-3.1-flash-image"}, 404, "model_not_found"),
    ],
)
async def test_other_refusals(members: dict[str, Any], status: int, code: str) -> None:
    async with no_leaks(), running_proxy(NOBODY) as proxy:
        answer = await post(proxy, **members)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_providers_refusal_is_typed(stream: bool) -> None:
    def handle(received: Received) -> Script:
        return error_answer(400, "Not that.", type="image_generation_user_error", code="moderation_blocked")

    async with (
        no_leaks(),
        serve(handle) as server,
        running_proxy(server.url) as proxy,
        AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none") as client,
    ):
        ask: Any = ASK
        with pytest.raises(openai.BadRequestError) as raised:
            await client.chat.completions.create(model="sim/gpt-image", messages=ask, stream=stream)
        assert raised.value.code == "moderation_blocked"
        assert server.calls == 1


async def test_another_content_type() -> None:
    async with no_leaks(), running_proxy(NOBODY) as proxy:
        for path in (CHAT, "/v1/responses"):
            answer = await proxy.client.post(proxy.url + path, content=b"{}", headers={"content-type": "text/plain"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


async def test_a_body_that_is_too_large() -> None:
    async with no_leaks(), running_proxy(NOBODY, max_json_bytes=65536) as proxy:
        answer = await post(proxy, messages=[{"role": "user", "content": "x" * 70_000}])
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("configured", [("openai/gpt-image-2",), ()])
async def test_a_model_of_images_alone(configured: tuple[str, ...]) -> None:
    async with no_leaks(), running_proxy(NOBODY, provider={"models": list(configured)}) as proxy:
        answer = await post(proxy, model="openai/gpt-image-2")
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == "Model(s) do not support /chat/completions"


# Behind it, everything is as for images.


async def test_a_key_pays_once() -> None:
    async with chatting() as (proxy, server, _):
        answers = [await post(proxy, {"idempotency-key": "one"}, stream=stream) for stream in (True, True)]
        first, second = (chunks(answer) for answer in answers)
        assert first == second
        assert len(server.received) == 1
        await post(proxy, {"idempotency-key": "two"}, stream=True)
        assert len(server.received) == 2


async def test_a_retry_of_the_sdk_gets_the_same_picture() -> None:
    async with chatting(pace=0.05, disconnect_grace=BOUND, commit_after=0.01) as (proxy, server, _):
        async with proxy.client.stream("POST", proxy.url + CHAT, json=body(model="sim/gpt-image", stream=True)) as lost:
            assert lost.status_code == 200  # and leaves, before the end
        again = await post(proxy, {"x-stainless-retry-count": "1"}, model="sim/gpt-image", stream=True)
        assert size_of(chunks(again)[1]["choices"][0]["delta"]["content"]) == (256, 256)
        assert len(server.received) == 1


async def test_it_can_be_followed_elsewhere() -> None:
    async with chatting() as (proxy, _, _):
        answer = await post(proxy, stream=True)
        followed = await proxy.client.get(
            proxy.url + answer.headers["location"], headers={"accept": "application/json"}
        )
        assert followed.status_code == 200
        [image] = followed.json()["data"] if "data" in followed.json() else followed.json()["images"]
        assert image
        later = await post(proxy, {"prefer": "respond-async"})
        assert later.status_code == 202
        assert later.json()["object"] == "image.stream"


async def test_a_failure_in_the_stream() -> None:
    def handle(received: Received) -> Script:
        error = {"type": "error", "error": {"message": "No.", "type": "server_error", "code": "moderation_blocked"}}
        return sse([preview(0), event("error", orjson.dumps(error))])

    async with no_leaks(), serve(handle) as server, running_proxy(server.url) as proxy:
        *_, last = chunks(await post(proxy, model="sim/gpt-image", stream=True))
        assert (last["error"]["message"], last["error"]["code"]) == ("No.", "moderation_blocked")
        assert last["choices"][0]["finish_reason"] == "error"
        async with AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0) as client:
            ask: Any = ASK
            with pytest.raises(openai.APIError, match=r"^No\.$"):
                async for _ in await client.chat.completions.create(model="sim/gpt-image", messages=ask, stream=True):
                    pass
