"""Responses with the image_generation tool, through the OpenAI SDK and as bytes, before the simulator."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import httpx
import openai
import orjson
import pytest
from openai import AsyncOpenAI

from streamproxy.core.images import probe
from streamproxy.simulator import running
from streamproxy.simulator.pictures import draw, encode
from streamproxy.simulator.received import Received, Server
from streamproxy.simulator.script import Script, event, sse
from streamproxy.simulator.server import serve
from tests.support.provider import preview
from tests.support.proxy import BOUND, PROMPT, Proxy, Sent, events, no_leaks, running_proxy

pytestmark = pytest.mark.anyio

PNG: Final = base64.b64encode(encode(draw("a lighthouse", 64, 48), "png")).decode()
DATA_URL: Final = f"data:image/png;base64,{PNG}"
RESPONSES: Final = "/v1/responses"
NOBODY: Final = "http://127.0.0.1:9"
CALL: Final = "response.image_generation_call"


def tool(**members: object) -> dict[str, object]:
    return {"type": "image_generation", "model": "sim/gpt-image", "size": "256x256", **members}


def body(**members: object) -> dict[str, object]:
    return {"model": "gpt-5", "input": PROMPT, "tools": [tool()], **members}


async def post(proxy: Proxy, headers: Mapping[str, str] | None = None, **members: Any) -> httpx.Response:
    return await proxy.client.post(proxy.url + RESPONSES, json=body(**members), headers=headers)


@asynccontextmanager
async def responding(**settings: Any) -> AsyncIterator[tuple[Proxy, Server, AsyncOpenAI]]:
    async with (
        no_leaks(),
        running(pace=0) as server,
        running_proxy(server.url, **settings) as proxy,
        AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0) as client,
    ):
        with anyio.fail_after(2 * BOUND):
            yield proxy, server, client


def size_of(text: str) -> tuple[int, int]:
    info = probe(base64.b64decode(text, validate=True))
    assert info is not None
    return info.width, info.height


def sent(server: Server) -> dict[str, Any]:
    [received] = server.received
    found = orjson.loads(received.body)
    assert isinstance(found, dict)
    return found


def numbered(found: list[Sent]) -> list[dict[str, Any]]:
    """The events' data, each of the type that its `event` line says, and counted from 0."""
    data: list[dict[str, Any]] = [one.json for one in found]
    assert [one.event for one in found] == [one["type"] for one in data]
    assert [one["sequence_number"] for one in data] == list(range(len(data)))
    return data


# Events.


async def test_the_events_of_one_call() -> None:
    async with responding() as (proxy, server, _):
        answer = await post(proxy, stream=True, tools=[tool(partial_images=2, quality="low")])
        data = numbered(events(answer.content))
        assert [one["type"] for one in data] == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            f"{CALL}.in_progress",
            f"{CALL}.generating",
            f"{CALL}.partial_image",
            f"{CALL}.partial_image",
            f"{CALL}.completed",
            "response.output_item.done",
            "response.completed",
        ]
        created, added, done, completed = data[0]["response"], data[2], data[8], data[9]["response"]
        assert created["id"].startswith("resp_")
        assert (created["object"], created["status"], created["output"]) == ("response", "in_progress", [])
        assert created["model"] == "gpt-5"
        call = added["item"]["id"]
        assert call.startswith("ig_")
        assert added["item"] == {"id": call, "type": "image_generation_call", "status": "in_progress"}
        assert {one["item_id"] for one in data[3:8]} == {call}
        assert {one["output_index"] for one in data[2:9]} == {0}
        for index, shown in enumerate(data[5:7]):
            assert shown["partial_image_index"] == index
            assert size_of(shown["partial_image_b64"]) == (256, 256)
            assert (shown["size"], shown["output_format"]) == ("256x256", "png")
        item = done["item"]
        assert (item["id"], item["type"], item["status"]) == (call, "image_generation_call", "completed")
        assert (item["action"], item["size"], item["quality"]) == ("generate", "256x256", "low")
        assert size_of(item["result"]) == (256, 256)
        assert completed["output"] == [item]
        assert (completed["id"], completed["status"], completed["error"]) == (created["id"], "completed", None)
        assert completed["usage"]["total_tokens"] > 0
        assert completed["tool_usage"]["image_gen"]["total_tokens"] == completed["usage"]["total_tokens"]
        assert "[DONE]" not in answer.text
        asked = sent(server)
        assert (asked["model"], asked["prompt"], asked["partial_images"]) == ("sim/gpt-image", PROMPT, 2)


async def test_the_sdk_reads_the_stream() -> None:
    async with responding() as (_, _, client):
        tools: Any = [tool(partial_images=1)]
        stream = await client.responses.create(model="gpt-5", input=PROMPT, tools=tools, stream=True)
        seen = [one async for one in stream]
        previews = [one for one in seen if one.type == "response.image_generation_call.partial_image"]
        assert [size_of(one.partial_image_b64) for one in previews] == [(256, 256)]
        last = seen[-1]
        assert last.type == "response.completed"
        [item] = last.response.output
        assert item.type == "image_generation_call"
        assert size_of(item.result or "") == (256, 256)
        assert last.response.usage is not None
        assert last.response.usage.total_tokens > 0


async def test_the_sdk_streams_with_its_own_helper() -> None:
    async with responding() as (_, _, client):
        tools: Any = [tool(partial_images=1)]
        async with client.responses.stream(model="gpt-5", input=PROMPT, tools=tools) as stream:
            kinds = [one.type async for one in stream]
            final = await stream.get_final_response()
        assert f"{CALL}.partial_image" in kinds
        assert final.output[0].type == "image_generation_call"


@pytest.mark.parametrize("model", ["sim/gpt-image", "sim/plain"])
async def test_the_sdk_reads_the_answer(model: str) -> None:
    async with responding() as (_, _, client):
        tools: Any = [tool(model=model)]
        response = await client.responses.create(model="gpt-5", input=PROMPT, tools=tools)
        [item] = response.output
        assert item.type == "image_generation_call"
        assert (item.status, size_of(item.result or "")) == ("completed", (256, 256))
        assert response.output_text == ""
        assert response.usage is not None
        assert response.usage.total_tokens > 0


# What is asked for.


async def test_pictures_and_turns() -> None:
    turns = [
        {"role": "developer", "content": "Paint in oil."},
        {"role": "user", "content": [{"type": "input_text", "text": "A boat"}]},
        {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": PNG},
        {
            "role": "user",
            "content": [{"type": "input_image", "image_url": DATA_URL}, {"type": "input_text", "text": "Like this"}],
        },
    ]
    mask = {"image_url": DATA_URL}
    async with responding() as (proxy, server, _):
        tools = [tool(input_image_mask=mask, action="edit")]
        answer = await post(proxy, input=turns, tools=tools, instructions="Be bold.", temperature=1)
        assert answer.status_code == 200, answer.text
        assert answer.json()["output"][0]["action"] == "edit"
        assert answer.headers["streamproxy-not-applied"] == "temperature"
        asked = sent(server)
        assert server.received[0].target == "/v1/images/edits"
        assert asked["images"] == [{"image_url": DATA_URL}] * 2
        assert asked["mask"] == mask
        assert asked["prompt"] == (
            "Be bold.\n\nPaint in oil.\n\nUser: A boat\n\nAssistant: [image 1]\n\nUser: [image 2]\nLike this"
        )


async def test_generate_leaves_pictures_out() -> None:
    shown = [{"type": "input_image", "image_url": DATA_URL}, {"type": "input_text", "text": "A boat"}]
    async with responding() as (proxy, server, _):
        answer = await post(proxy, input=[{"role": "user", "content": shown}], tools=[tool(action="generate")])
        assert answer.json()["output"][0]["action"] == "generate"
        assert sent(server)["prompt"] == "A boat"
        assert "images" not in sent(server)


@pytest.mark.parametrize(
    ("members", "settings", "model"),
    [
        ({"model": "sim/plain"}, {}, "sim/plain"),
        ({"model": "gpt-5"}, {"default_model": "sim/url"}, "sim/url"),
        ({"model": "gpt-5"}, {}, "sim/gpt-image"),
    ],
)
async def test_the_model_of_a_tool_without_one(members: dict[str, Any], settings: dict[str, Any], model: str) -> None:
    async with responding(**settings) as (proxy, server, _):
        unnamed = {"type": "image_generation", "size": "256x256"}
        answer = await post(proxy, tools=[unnamed], **members)
        assert answer.status_code == 200, answer.text
        assert answer.json()["tools"] == [{"type": "image_generation", "model": model, "size": "256x256"}]
        assert orjson.loads(server.received[0].body)["model"] == model


async def test_a_forced_tool_among_others() -> None:
    others = [{"type": "function", "name": "look", "parameters": {}}, tool()]
    async with responding() as (proxy, server, _):
        answer = await post(proxy, tools=others, tool_choice={"type": "image_generation"})
        assert answer.json()["output"][0]["type"] == "image_generation_call"
        assert len(server.received) == 1


# What is refused, before anything is sent.


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": [7]}, "input[0]"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "image_generation_call", "id": "ig_1"}]}, "input[0].result"),
        (
            {
                "input": [
                    {"role": "user", "content": "x"},
                    {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,!"}]},
                ]
            },
            "input[1].content[0].image_url",
        ),
        ({"tools": [tool(size=7)]}, "tools[0].size"),
        ({"tools": [tool(partial_images=4)]}, "tools[0].partial_images"),
        ({"tools": [tool(action="paint")]}, "tools[0].action"),
        ({"tools": [tool(action="edit")]}, "input"),
        ({"tools": [tool(model=7)]}, "tools[0].model"),
    ],
)
async def test_a_wrong_field(members: dict[str, Any], param: str) -> None:
    async with no_leaks(), running_proxy(NOBODY) as proxy:
        answer = await post(proxy, **members)
        assert answer.status_code == 422, answer.text
        error = answer.json()["error"]
        assert (error["param"], error["type"], error["code"]) == (param, "invalid_request_error", "invalid_request")


@pytest.mark.parametrize(
    ("members", "status", "param"),
    [
        ({"previous_response_id": "resp_1"}, 400, "previous_response_id"),
        ({"conversation": "conv_1"}, 400, "conversation"),
        ({"background": True}, 400, "background"),
        ({"tools": [tool(n=2)]}, 400, "tools[0].n"),
        ({"tools": [tool(model="other/model")]}, 404, "model"),
        ({"extra_headers": {"authorization": "x"}}, 400, "extra_headers.authorization"),
    ],
)
async def test_other_refusals(members: dict[str, Any], status: int, param: str) -> None:
    async with no_leaks(), running_proxy(NOBODY) as proxy:
        answer = await post(proxy, **members)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text


async def test_a_refusal_as_the_sdk_sees_it() -> None:
    async with (
        no_leaks(),
        running_proxy(NOBODY) as proxy,
        AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0) as client,
    ):
        tools: Any = [tool(quality=7)]
        with pytest.raises(openai.UnprocessableEntityError) as raised:
            await client.responses.create(model="gpt-5", input=PROMPT, tools=tools, stream=True)
        assert raised.value.param == "tools[0].quality"


# Failures, and what is kept.


async def test_a_failure_in_the_stream() -> None:
    def handle(received: Received) -> Script:
        error = {"type": "error", "error": {"message": "No.", "type": "server_error", "code": "moderation_blocked"}}
        return sse([preview(0), event("error", orjson.dumps(error))])

    async with no_leaks(), serve(handle) as server, running_proxy(server.url) as proxy:
        answer = await post(proxy, stream=True, tools=[tool(partial_images=1)])
        *_, flat, failed = numbered(events(answer.content))
        assert flat.keys() == {"type", "sequence_number", "code", "message", "param"}
        assert (flat["type"], flat["code"], flat["message"]) == ("error", "moderation_blocked", "No.")
        assert failed["type"] == "response.failed"
        assert failed["response"]["status"] == "failed"
        assert failed["response"]["error"] == {"code": "moderation_blocked", "message": "No."}
        async with AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0) as client:
            tools: Any = [tool(partial_images=1)]
            stream = await client.responses.create(model="gpt-5", input=PROMPT, tools=tools, stream=True)
            seen = [one async for one in stream]
            assert [one.type for one in seen[-2:]] == ["error", "response.failed"]


async def test_a_key_pays_once() -> None:
    async with responding() as (proxy, server, _):
        key = {"idempotency-key": "one"}
        first, second = [await post(proxy, key, stream=True, tools=[tool(partial_images=1)]) for _ in range(2)]
        kept, again = (numbered(events(answer.content)) for answer in (first, second))
        assert again[0] == kept[0]
        assert again[-1]["response"] == kept[-1]["response"]  # the repeated one has no previews
        assert len(server.received) == 1
