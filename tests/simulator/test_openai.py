"""The simulated endpoints over a real socket: shapes of JSON and events, models, refusals, and the official SDK."""

from __future__ import annotations

import base64
import io
from itertools import pairwise
from typing import cast

import anyio
import orjson
import pytest
from openai import AsyncOpenAI
from PIL import Image

from streamproxy.simulator import BANNER, Server, running
from streamproxy.simulator.faults import FAULTS
from streamproxy.simulator.openai import COMPLETED_AT, MODELS, PREVIEWS_AT, OpenAI
from streamproxy.simulator.pictures import draw, encode
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import CHUNK_BYTES, Send, Wait
from tests.simulator.test_connection import exchange, request
from tests.simulator.test_order import form
from tests.simulator.test_script import Parsed
from tests.support.proxy import running_proxy

pytestmark = pytest.mark.anyio

Json = dict[str, object]
SMALL = "96x64"
PARTIAL = {"type", "b64_json", "created_at", "size", "quality", "background", "output_format", "partial_image_index"}
COMPLETED = PARTIAL - {"partial_image_index"} | {"usage"}
GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
INPUT = encode(draw("input", 32, 32), "png")
INPUT_URL = "data:image/png;base64," + base64.b64encode(INPUT).decode()


async def post(server: Server, path: str, fields: Json) -> Parsed:
    body = orjson.dumps({"prompt": "a fox", "size": SMALL, **fields})
    return Parsed(await exchange(server, request(body, path=path, headers=("Connection: close",))))


async def get(server: Server, path: str, method: str = "GET") -> Parsed:
    host = f"Host: 127.0.0.1:{server.port}"
    return Parsed(await exchange(server, request(method=method, path=path, headers=("Connection: close", host))))


def events(parsed: Parsed) -> list[tuple[str, Json]]:
    """Name and data of each frame, whose layout is `event: <name>\\ndata: <json>\\n\\n` and nothing else."""
    assert parsed.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert parsed.complete
    assert parsed.body.endswith(b"\n\n")
    found: list[tuple[str, Json]] = []
    for frame in parsed.body.split(b"\n\n")[:-1]:
        name, data = frame.split(b"\n")
        assert (name[:7], data[:6]) == (b"event: ", b"data: ")
        found.append((name[7:].decode(), orjson.loads(data[6:])))
    return found


def picture(b64: object) -> tuple[tuple[int, int], str | None]:
    with Image.open(io.BytesIO(base64.b64decode(cast(str, b64), validate=True))) as image:
        image.load()
        return image.size, image.format


@pytest.mark.parametrize("path", [GENERATIONS, EDITS])
@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("previews", [0, 1, 2, 3])
async def test_a_stream_has_its_previews_then_completed(previews: int, format: str, path: str) -> None:
    extra: Json = {"image": INPUT_URL} if path == EDITS else {}
    async with running(pace=0) as server:
        asked: Json = {"stream": True, "partial_images": previews, "output_format": format, **extra}
        got = events(await post(server, path, asked))
    family = "image_edit" if path == EDITS else "image_generation"
    assert [name for name, _ in got] == [f"{family}.partial_image"] * previews + [f"{family}.completed"]
    for number, (name, data) in enumerate(got):
        last = number == previews
        assert (data["type"], set(data)) == (name, COMPLETED if last else PARTIAL)
        assert data.get("partial_image_index") == (None if last else number)
        assert (data["size"], data["output_format"], data["quality"], data["background"]) == (
            SMALL,
            format,
            "medium",
            "opaque",
        )
        assert picture(data["b64_json"]) == ((96, 64), format.upper())


@pytest.mark.parametrize("model", ["sim/gpt-image", "plain", "sim/plain-ignores-stream"])
async def test_json_has_n_different_pictures(model: str) -> None:
    async with running(pace=0) as server:
        parsed = await post(server, GENERATIONS, {"model": model, "n": 3, "background": "transparent"})
    body = orjson.loads(parsed.body)
    assert set(body) == {"created", "background", "data", "output_format", "quality", "size", "usage"}
    assert (body["background"], body["size"]) == ("transparent", SMALL)
    assert parsed.headers["x-request-id"]
    assert parsed.headers["openai-processing-ms"].isdigit()
    pictures = [item["b64_json"] for item in body["data"]]
    assert len(set(pictures)) == 3
    assert {picture(b64) for b64 in pictures} == {((96, 64), "PNG")}


async def test_json_and_stream_have_the_same_first_picture() -> None:
    async with running(pace=0) as server:
        [(_, streamed)] = events(await post(server, GENERATIONS, {"stream": True}))
        body = orjson.loads((await post(server, GENERATIONS, {"n": 2})).body)
    assert body["data"][0]["b64_json"] == streamed["b64_json"]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": "sim/plain", "stream": False}, "stream", "unknown_parameter"),
        ({"model": "sim/plain", "partial_images": 0}, "partial_images", "unknown_parameter"),
        ({"model": "sim/url", "stream": True}, "stream", "unknown_parameter"),
        ({"model": "sim/gpt-image", "response_format": "b64_json"}, "response_format", "unknown_parameter"),
        ({"style": "vivid"}, "style", "unknown_parameter"),
        ({"frame_count": 2}, "frame_count", "unsupported_parameter"),
        ({"frame_duration_ms": 20}, "frame_duration_ms", "unsupported_parameter"),
        ({"svg": {"model": "x"}}, "svg", "unsupported_parameter"),
        ({"output_format": "gif", "frame_count": 2}, "output_format", "invalid_value"),
        ({"stream": True, "n": 2}, "n", "unsupported_parameter"),
        ({"partial_images": 4}, "partial_images", "invalid_value"),
    ],
)
async def test_a_model_refuses_what_it_does_not_have(fields: Json, param: str, code: str) -> None:
    async with running(pace=0) as server:
        parsed = await post(server, GENERATIONS, fields)
    error = orjson.loads(parsed.body)["error"]
    assert (parsed.status, error["type"], error["param"], error["code"]) == (400, "invalid_request_error", param, code)
    assert set(error) == {"message", "type", "param", "code"}


async def test_markup_does_not_go_with_a_mask() -> None:
    async with running(pace=0) as server:
        both: Json = {"image": INPUT_URL, "mask": INPUT_URL, "markup": INPUT_URL}
        refused = orjson.loads((await post(server, EDITS, both)).body)["error"]
        assert (refused["param"], refused["code"]) == ("markup", "unsupported_parameter")
        assert (await post(server, EDITS, {**both, "mask": None})).status == 200


async def test_a_compatible_host_takes_the_whole_schema() -> None:
    whole: Json = {
        **{"background": "transparent", "complexity": "low", "frame_count": 2, "frame_duration_ms": 20},
        **{"moderation": "low", "output_compression": 100, "response_format": "b64_json", "style": "vivid"},
        **{"svg": {"model": "x", "reasoning": {"effort": "none"}}, "user": "u", "safety_identifier": "s"},
    }
    async with running(pace=0) as server:
        for model in ("plain", "plain-ignores-stream"):
            assert (await post(server, GENERATIONS, {**whole, "model": model})).status == 200
            edit = {**whole, "model": model, "image": INPUT_URL, "mask": INPUT_URL, "markup": INPUT_URL}
            assert (await post(server, EDITS, edit)).status == 200


async def test_a_model_that_ignores_stream_answers_json() -> None:
    async with running(pace=0) as server:
        parsed = await post(server, GENERATIONS, {"model": "plain-ignores-stream", "stream": True, "partial_images": 2})
    assert parsed.headers["content-type"] == "application/json"
    assert len(orjson.loads(parsed.body)["data"]) == 1


@pytest.mark.parametrize("fields", [{"model": "sim/url"}, {"model": "sim/plain", "response_format": "url"}])
async def test_a_url_leads_back_to_the_picture(fields: Json) -> None:
    async with running(pace=0) as server:
        body = orjson.dumps({"prompt": "x", "size": SMALL, "output_format": "webp", **fields})
        head = (f"Host: 127.0.0.1:{server.port}", "Connection: close")
        raw = f"POST {GENERATIONS} HTTP/1.1\r\n{head[0]}\r\n{head[1]}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        [item] = orjson.loads(Parsed(await exchange(server, raw + body)).body)["data"]
        assert set(item) == {"url"}
        assert item["url"].startswith(server.url)
        parsed = await get(server, item["url"].removeprefix(server.url))
        assert (parsed.status, parsed.headers["content-type"]) == (200, "image/webp")
        assert picture(base64.b64encode(parsed.body)) == ((96, 64), "WEBP")
        assert (await get(server, "/files/unknown.png")).status == 404


async def test_a_form_edit_streams_and_depends_on_its_input() -> None:
    async with running(pace=0) as server:
        shown = []
        for source in (INPUT, encode(draw("another", 32, 32), "png"), b"no picture"):
            texts = (("prompt", b"x"), ("size", SMALL.encode()), ("stream", b"true"), ("partial_images", b"1"))
            body, kind = form(*texts, ("image[]", source))
            data = request(body, path=EDITS, headers=(f"Content-Type: {kind}", "Connection: close"))
            got = events(Parsed(await exchange(server, data)))
            assert [name for name, _ in got] == ["image_edit.partial_image", "image_edit.completed"]
            shown.append(got[-1][1]["b64_json"])
        assert len(set(shown)) == 3
        drawn = orjson.loads((await post(server, GENERATIONS, {"prompt": "x"})).body)["data"][0]["b64_json"]
        assert shown[2] == drawn


@pytest.mark.parametrize("name", ["refused-429", "eof-inside-event", "sim/fault-error-event"])
async def test_a_fault_is_chosen_by_its_models_name(name: str) -> None:
    model = name if name.startswith("sim/") else f"fault-{name}"
    async with running(pace=0) as server:
        parsed = await post(server, GENERATIONS, {"model": model, "stream": True})
    assert parsed.status == (429 if "429" in name else 200)
    assert parsed.complete == (name != "eof-inside-event")


async def test_models_are_listed_and_say_what_they_are() -> None:
    async with running(pace=0) as server:
        listed = orjson.loads((await get(server, "/v1/models")).body)
        assert {model["id"] for model in listed["data"]} == {f"sim/{name}" for name in MODELS}
        assert all("imulated" in model["description"] for model in listed["data"])
        assert len(MODELS) == 4 + len(FAULTS)
        for name in ("sim/gpt-image", "gpt-image"):
            assert orjson.loads((await get(server, f"/v1/models/{name}")).body)["id"] == "sim/gpt-image"
        assert (await get(server, "/v1/models/none")).status == 404
    assert "SIMULATOR" in BANNER


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/livez", 200),
        ("GET", "/livez?x=1", 200),
        ("GET", "/", 404),
        ("GET", GENERATIONS, 405),
        ("POST", "/livez", 405),
        ("POST", "/v1/images/variations", 400),
        ("POST", "/v1/images/mixtures", 404),
    ],
)
async def test_routes_answer_with_their_status(method: str, path: str, status: int) -> None:
    async with running(pace=0) as server:
        parsed = await get(server, path, method)
        assert parsed.status == status
        assert ("allow" in parsed.headers) == (status == 405)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("sim/none", "`streamproxy simulate --list`"),
        ("sim/fault-eof-inside-evnt", "Did you mean sim/fault-eof-inside-event?"),
        ("fault-refused-502", "Did you mean sim/fault-refused-5"),
        ("sim/gpt-image-1", "Did you mean sim/gpt-image?"),
        ("a" * 100_000, "`streamproxy simulate --list`"),
    ],
)
async def test_an_unknown_model_is_not_found_and_a_near_one_said(name: str, hint: str) -> None:
    async with running(pace=0) as server:
        parsed = await post(server, GENERATIONS, {"model": name})
    error = orjson.loads(parsed.body)["error"]
    assert (parsed.status, error["code"]) == (404, "model_not_found")
    assert hint in error["message"]


async def test_a_near_name_is_said_through_the_proxy_too() -> None:
    async with running(pace=0) as server, running_proxy(server.url) as proxy:
        answer = await proxy.generate(model="sim/fault-eof-inside-evnt", stream=True)
        assert "Did you mean sim/fault-eof-inside-event?" in answer.json()["error"]["message"]


def asked(fields: Json) -> Received:
    body = orjson.dumps({"prompt": "x", "size": SMALL, **fields})
    return Received("POST", GENERATIONS, (("Host", "x"),), body, len(body), 1)


@pytest.mark.parametrize("previews", [0, 1, 3])
async def test_the_pace_of_a_stream_is_a_real_models(previews: int) -> None:
    script = await OpenAI(1.0)(asked({"stream": True, "partial_images": previews}))
    waits = [step.seconds for step in script if isinstance(step, Wait)]
    moments = (0.0, *PREVIEWS_AT[:previews], COMPLETED_AT)
    expected = [after - before for before, after in pairwise(moments)]
    assert waits[1:] == pytest.approx(expected[1:])
    # The time it took to draw is part of the first wait.
    assert 0 < waits[0] <= expected[0]
    assert isinstance(script[0], Send)


async def test_without_pace_nothing_waits_and_chunks_are_bounded() -> None:
    orders: list[Json] = [{"stream": True, "partial_images": 3, "size": "512x512"}, {"n": 2}]
    for fields in orders:
        script = await OpenAI(0)(asked(fields))
        assert not [step for step in script if isinstance(step, Wait)]
        if "stream" in fields:
            assert max(len(step.data) for step in script if isinstance(step, Send)) <= CHUNK_BYTES + 16


async def test_json_waits_as_long_as_a_stream() -> None:
    [first, *_] = await OpenAI(1.0)(asked({}))
    assert isinstance(first, Wait)
    assert 0 < first.seconds <= COMPLETED_AT


async def test_the_official_sdk_streams_and_edits() -> None:
    with anyio.fail_after(30):
        async with running(pace=0) as server, AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            stream = await client.images.generate(prompt="x", model="sim/gpt-image", stream=True, partial_images=2)
            kinds = [event.type async for event in stream]
            assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
            edited = await client.images.edit(image=[INPUT, INPUT], prompt="x", model="sim/gpt-image", n=2)
            assert len(edited.data or []) == 2
            assert edited.usage is not None
            assert (server.received[1].header("content-type") or "").startswith("multipart/form-data")
