"""Every wire but OpenAI's through OpenAI's own SDK, against the simulator's form of each."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import anyio
import orjson
import pytest
from openai import AsyncOpenAI, BadRequestError
from PIL import Image

from streamproxy.core.conversation import TRIES
from streamproxy.core.images import probe
from streamproxy.simulator import wires
from streamproxy.simulator.gemini import VERTEX
from streamproxy.simulator.pictures import draw, encode
from streamproxy.simulator.received import Handler, Received
from streamproxy.simulator.script import LAST_CHUNK, Script, Wait, chunk, head, json_answer
from streamproxy.simulator.script import Send as Sending
from streamproxy.simulator.server import Server, serve
from tests.support.google import service_account
from tests.support.proxy import BOUND, PROMPT, Proxy, events, no_leaks, running_proxy

pytestmark = pytest.mark.anyio

KEY: Final = "k-0123456789abcdefghijkl"
PNG: Final = encode(draw("a lighthouse", 64, 48), "png")
GRAPH: Final = {
    "3": {"class_type": "KSampler", "inputs": {"seed": "{seed}", "positive": ["6", 0], "latent_image": ["5", 0]}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": "{width}", "height": "{height}", "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "{prompt}"}},
}
EDIT_GRAPH: Final = {**GRAPH, "7": {"class_type": "LoadImage", "inputs": {"image": "{image}"}}}

MODELS: Final = {
    "gemini": "gemini-3-pro-image",
    "vertex": "vertex/gemini-3-pro-image",
    "imagen": "imagen-4.0-generate-001",
    "fal": "fal/fal-ai/flux/dev",
    "bfl": "bfl/flux-2-pro",
    "replicate": "replicate/black-forest-labs/flux-dev",
    "stability": "stability/sd3.5-large",
    "bedrock": "bedrock/stability.sd3-5-large-v1:0",
    "nova": "amazon.nova-canvas-v1:0",
    "ideogram": "ideogram-v3",
    "luma": "luma/photon-1",
    "mai": "mai/MAI-Image-2.6",
    "dashscope": "dashscope/wan2.7-image",
    "openrouter": "openai/gpt-image-2",
    "automatic1111": "automatic1111/default",
    "ark": "seedream-4-5-251128",
    "minimax": "MiniMax-H3-Image",
    "xai": "grok-imagine-image-2.0",
    "fireworks": "fireworks/flux-1-dev-fp8",
    "cloudflare": "cloudflare/@cf/black-forest-labs/flux-2-dev",
    "huggingface": "huggingface/black-forest-labs/FLUX.1-Kontext-dev",
    "leonardo": "leonardo/6bef9f1b-29cb-40c7-b9df-32b51c1f67d3",
    "runware": "runware/runware:101@1",
    "responses": "responses/gpt-image-2",
    "comfyui": "painter",
}
EDITORS: Final = {name: model for name, model in MODELS.items() if name not in ("leonardo", "luma")} | {
    "comfyui": "editor",
    "imagen": "imagen-3.0-capability-001",
    "fireworks": "fireworks/flux-kontext-pro",
}
WIRES: Final = pytest.mark.parametrize("wire", MODELS)
FORMS: Final = ("comfyui", "mai", "stability", "cloudflare", "ideogram")
"""They take files as they are."""

EDITING: Final = pytest.mark.parametrize("wire", EDITORS)


@dataclass(frozen=True, slots=True)
class Setup:
    """A proxy of one provider, the simulator behind it, and an SDK before it."""

    proxy: Proxy
    server: Server
    client: AsyncOpenAI

    @property
    def posts(self) -> list[str]:
        """Targets of the requests that ask for work."""
        found = [received.target for received in self.server.received if received.method == "POST"]
        return [target for target in found if not target.endswith(("/internal/progress", "/get_result"))]


SMALL: Final = ("fireworks", "cloudflare", "huggingface", "leonardo", "runware")
PREVIEWS: Final = {
    **dict.fromkeys(SMALL, 0),
    **dict.fromkeys(("imagen", "bfl", "replicate", "ark", "minimax", "xai", "stability", "mai", "dashscope"), 0),
    **dict.fromkeys(("bedrock", "nova", "ideogram", "luma"), 0),
    **dict.fromkeys(("gemini", "vertex", "fal", "openrouter", "automatic1111", "comfyui", "responses"), 2),
}
PATHS: Final = {
    "sim": "/v1",
    "gemini": "/v1beta",
    "vertex": VERTEX,
    "imagen": VERTEX,
    "fal": "/queue.fal",
    "bfl": "/bfl/v1",
    "replicate": "/replicate/v1",
    "stability": "/stability/v2beta",
    "bedrock": "/bedrock",
    "nova": "/bedrock",
    "ideogram": "/ideogram",
    "luma": "/luma/dream-machine/v1",
    "mai": "/azure",
    "dashscope": "/dashscope/api/v1",
    "openrouter": "/openrouter/api/v1",
    "automatic1111": "/a1111",
    "ark": "/ark/api/v3",
    "minimax": "/minimax/v1",
    "xai": "/xai/v1",
    "fireworks": "/fireworks",
    "cloudflare": "/cloudflare/ai/run",
    "huggingface": "/huggingface",
    "leonardo": "/leonardo/v1",
    "runware": "/runware/v1",
    "responses": "/responses/v1",
    "comfyui": "/comfy",
}


def _token(_: Received) -> Script:
    return json_answer(200, {"access_token": KEY, "expires_in": 3600, "token_type": "Bearer"})


@contextmanager
def quick_looks() -> Iterator[None]:
    """Looks at a job follow each other at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streamproxy.core.conversation.POLLS", (0.02,))
        yield


@asynccontextmanager
async def wired(wire: str, tmp_path: Path, handler: Handler | None = None, **settings: object) -> AsyncIterator[Setup]:
    async with no_leaks(), serve(handler or wires(0)) as server, serve(_token) as google:
        row: dict[str, object] = {"base_url": server.url + PATHS[wire], "credential": "env:KEY"}
        if wire in ("gemini", "vertex", "imagen", "fireworks", "responses"):
            row["models"] = ("*",)  # the simulator's faults have models of their own
        if PATHS[wire] == VERTEX:
            (tmp_path / "key.json").write_bytes(orjson.dumps(service_account(f"{google.url}/token")))
            row |= {"signing": "google", "credential": f"file:{tmp_path / 'key.json'}"}
        if wire == "comfyui":
            for name, graph in (("painter", GRAPH), ("editor", EDIT_GRAPH)):
                (tmp_path / f"{name}.json").write_bytes(orjson.dumps(graph))
            row["workflows"] = {name: str(tmp_path / f"{name}.json") for name in ("painter", "editor")}
        if wire == "sim":
            row["credential"] = "none"
        chosen: dict[str, Any] = {"providers": {wire: row}, "fetch_hosts": ("127.0.0.1",), **settings}
        async with (
            running_proxy(server.url, environ={"KEY": KEY}, **chosen) as proxy,
            AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="callers", max_retries=0) as client,
        ):
            with quick_looks(), anyio.fail_after(2 * BOUND):
                yield Setup(proxy, server, client)


def size_of(text: str | None) -> tuple[int, int]:
    info = probe(base64.b64decode(text or "", validate=True))
    assert info is not None
    return info.width, info.height


@WIRES
async def test_a_generation(wire: str, tmp_path: Path) -> None:
    async with wired(wire, tmp_path) as setup:
        made = await setup.client.images.generate(model=MODELS[wire], prompt=PROMPT, size="512x512")
        assert made.data is not None
        [image] = made.data
        assert size_of(image.b64_json)[0] >= 512
        assert made.usage is not None
        assert len(setup.posts) == 1
        assert await setup.proxy.metric("streamproxy_upstream_requests_total", provider=wire) == len(
            [received for received in setup.server.received if "/files/" not in received.target]
        )


@WIRES
async def test_a_streamed_generation(wire: str, tmp_path: Path) -> None:
    async with wired(wire, tmp_path) as setup:
        stream = await setup.client.images.generate(
            model=MODELS[wire], prompt=PROMPT, size="512x512", stream=True, partial_images=2
        )
        seen = [event async for event in stream]
        assert [event.type for event in seen[:-1]] == ["image_generation.partial_image"] * (PREVIEWS[wire])
        assert seen[-1].type == "image_generation.completed"
        assert all(size_of(event.b64_json) for event in seen)
        assert len(setup.posts) == 1


@EDITING
@pytest.mark.parametrize("stream", [True, False])
async def test_an_edit_of_an_uploaded_file(wire: str, stream: bool, tmp_path: Path) -> None:
    async with wired(wire, tmp_path) as setup:
        given = ("in.png", PNG, "image/png")
        if stream:
            events = await setup.client.images.edit(model=EDITORS[wire], image=given, prompt=PROMPT, stream=True)
            seen = [event async for event in events]
            assert [event.type for event in seen] == ["image_edit.completed"]
        else:
            made = await setup.client.images.edit(model=EDITORS[wire], image=given, prompt=PROMPT)
            assert made.data is not None
            assert size_of(made.data[0].b64_json)
        assert len([target for target in setup.posts if "assets" not in target]) == 1
        sent = b"".join(received.body for received in setup.server.received if received.method == "POST")
        assert (PNG if wire in FORMS else base64.b64encode(PNG)) in sent


@WIRES
async def test_the_credential_goes_to_the_providers_own_host_only(wire: str, tmp_path: Path) -> None:
    async with wired(wire, tmp_path) as setup:
        await setup.client.images.generate(model=MODELS[wire], prompt=PROMPT)
        for received in setup.server.received:
            fetched = "/files/" in received.target
            assert any(KEY in value for _, value in received.headers) is not fetched, received.target


TOGETHER: Final = frozenset(
    (
        *("fal", "imagen", "replicate", "ark", "minimax", "xai", "dashscope", "automatic1111", "leonardo", "runware"),
        *("nova", "ideogram"),
    )
)


@WIRES
@pytest.mark.parametrize("stream", [True, False])
async def test_several_images_are_one_job_or_several(wire: str, stream: bool, tmp_path: Path) -> None:
    async with wired(wire, tmp_path, stream_n=True) as setup:
        body = {"model": MODELS[wire], "prompt": PROMPT, "n": 2, "stream": stream}
        answer = await setup.proxy.client.post(f"{setup.proxy.url}/v1/images/generations", json=body)
        assert answer.status_code == 200, answer.text
        if stream:
            found = events(answer.content)
            assert sorted(event.json["image_index"] for event in found) == [0, 1]  # type: ignore[type-var]
        else:
            assert len(answer.json()["data"]) == 2
        together = wire in TOGETHER or (wire == "openrouter" and not stream)
        assert len(setup.posts) == (1 if together else 2)


@pytest.mark.parametrize("wire", ["gemini", "vertex"])
@pytest.mark.parametrize(("asked", "made"), [("png", "png"), ("jpeg", "jpeg"), ("webp", "png"), (None, "jpeg")])
async def test_a_picture_has_the_format_that_is_asked_for(
    wire: str, asked: str | None, made: str, tmp_path: Path
) -> None:
    async with wired(wire, tmp_path) as setup:
        body = {"model": MODELS[wire], "prompt": PROMPT, "size": "512x512", "output_format": asked}
        answer = await setup.proxy.client.post(f"{setup.proxy.url}/v1/images/generations", json=body)
        image = answer.json()
        info = probe(base64.b64decode(image["data"][0]["b64_json"]))
        assert info is not None
        assert (info.format, image["output_format"], image["size"]) == (made, made, "1024x1024")
        assert answer.headers.get("streamproxy-not-applied") == ("output_format" if asked == "webp" else None)
        natively = b"image/" + made.encode() in setup.server.received[0].body
        assert natively is (wire == "vertex" and asked is not None)
        assert len(setup.posts) == 1


async def test_images_by_url_are_fetched_and_shown(tmp_path: Path) -> None:
    kind = head(200, (("Content-Type", "image/png"),), length=len(PNG))
    async with (
        serve(lambda _: (Sending(kind), Sending(PNG))) as files,
        wired("gemini", tmp_path, fetch_images=True) as setup,
    ):
        data_url = "data:image/png;base64," + base64.b64encode(PNG).decode()
        body = {"model": MODELS["gemini"], "prompt": PROMPT, "image": [data_url, f"{files.url}/a.png"]}
        answer = await setup.proxy.client.post(f"{setup.proxy.url}/v1/images/generations", json=body)
        assert answer.status_code == 200, answer.text
        [turn] = orjson.loads(setup.server.received[0].body)["contents"]
        shown = [part["inlineData"]["data"] for part in turn["parts"] if "inlineData" in part]
        assert [base64.b64decode(text) for text in shown] == [PNG, PNG]
        assert len(setup.posts) == 1


async def test_words_and_the_sum_of_several_jobs(tmp_path: Path) -> None:
    async with wired("gemini", tmp_path, stream_n=True) as setup:
        made = await setup.client.images.generate(model="gemini-2.5-flash-image", prompt=PROMPT, n=2)
        assert made.usage is not None
        assert (made.usage.input_tokens, made.usage.output_tokens) == (28, 2240)
        extra = made.model_extra or {}
        assert extra["parts"] == [{"type": "image", "index": 0}, {"type": "image", "index": 1}]
        assert extra["cost"] == round(2 * (14 * 0.3 + 1120 * 30) / 1e6, 6)
        streamed = await setup.proxy.generate(model="gemini-2.5-flash-image", stream=True)
        last = events(streamed.content)[-1].json
        assert last["text"] == "Let me draw that."


GEMINI_FAULTS: Final = {
    "blocked": (400, "moderation_blocked", "PROHIBITED_CONTENT"),
    "image-safety": (400, "moderation_blocked", "IMAGE_SAFETY"),
    "no-image": (502, "no_image", "NO_IMAGE"),
    "new-reason": (502, "no_image", "SOMETHING_NEW"),
    "null-parts": (502, "no_image", "STOP"),
    "null-candidates": (502, "no_image", None),
    "bare-error": (400, "INVALID_ARGUMENT", None),
    "429": (429, "RESOURCE_EXHAUSTED", None),
    "bad-key": (502, "provider_auth", None),
    "503": (503, "UNAVAILABLE", None),
}
IMAGEN_FAULTS: Final = {
    "blocked": (400, "moderation_blocked", "42876398"),
    "filtered": (400, "moderation_blocked", "39322892, 29310472"),
    "nothing": (502, "no_image", None),
    "429": (429, "RESOURCE_EXHAUSTED", None),
}
GOOGLES_FAULTS: Final = [
    *(("gemini", "fault-", name, *told) for name, told in GEMINI_FAULTS.items()),
    *(("imagen", "imagen-fault-", name, *told) for name, told in IMAGEN_FAULTS.items()),
]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("wire", "prefix", "fault", "status", "code", "own"), GOOGLES_FAULTS)
async def test_faults_of_googles(
    wire: str, prefix: str, fault: str, status: int, code: str, own: str | None, stream: bool, tmp_path: Path
) -> None:
    async with wired(wire, tmp_path) as setup:
        body = {"model": f"{wire}/{prefix}{fault}", "prompt": PROMPT, "stream": stream}
        answer = await setup.proxy.client.post(f"{setup.proxy.url}/v1/images/generations", json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error.get("provider_code")) == (status, code, own)
        assert len(setup.posts) == 1
        assert PROMPT not in answer.text


async def test_what_a_filter_left_is_delivered(tmp_path: Path) -> None:
    async with wired("imagen", tmp_path) as setup:
        body = {"model": "imagen/imagen-fault-some-filtered", "prompt": PROMPT, "n": 2}
        url = f"{setup.proxy.url}/v1/images/generations"
        whole = (await setup.proxy.client.post(url, json=body)).json()
        assert [sorted(image) for image in whole["data"]] == [["b64_json", "revised_prompt", "url", "warning"]]
        streamed = events((await setup.proxy.client.post(url, json={**body, "stream": True})).content)
        assert [event.event for event in streamed] == ["image_generation.completed"]
        assert "filtered out 1" in str(streamed[0].json["warning"])
        assert len(setup.posts) == 2


MASK: Final = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAABCAYAAAD0In+KAAAADElEQVR4nGNggID/AAEIAQBNGY85AAAAAElFTkSuQmCC"
)
"""Two pixels: the left one is transparent, the right one opaque."""


@pytest.mark.parametrize("readable", [True, False])
async def test_a_mask_is_turned_for_the_provider(readable: bool, tmp_path: Path) -> None:
    async with wired("imagen", tmp_path) as setup:
        files = {"image": ("in.png", PNG, "image/png"), "mask": ("m.png", MASK if readable else PNG, "image/png")}
        form = {"model": EDITORS["imagen"], "prompt": PROMPT}
        answer = await setup.proxy.client.post(f"{setup.proxy.url}/v1/images/edits", data=form, files=files)
        if not readable:
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error["param"]) == (400, "unreadable_image", "mask")
            assert setup.posts == []
            return
        assert answer.status_code == 200, answer.text
        [instance] = orjson.loads(setup.server.received[0].body)["instances"]
        mask = base64.b64decode(instance["referenceImages"][1]["referenceImage"]["bytesBase64Encoded"])
        assert Image.open(BytesIO(mask)).tobytes() == b"\xff\x00"


FAL_FAULTS: Final = {
    "submit-429": (429, "rate_limit_exceeded", 1),
    "foreign": (502, "foreign_host", 1),
    "failed": (502, None, 1),
    "flagged": (400, "moderation_blocked", 1),
    "nsfw": (400, "moderation_blocked", 1),
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fault", FAL_FAULTS)
async def test_faults_of_a_queue(fault: str, stream: bool, tmp_path: Path) -> None:
    status, code, posts = FAL_FAULTS[fault]
    async with wired("fal", tmp_path) as setup:
        body = {"model": f"fal/fal-ai/fault-{fault}", "prompt": PROMPT, "stream": stream}
        answer = await setup.proxy.client.post(f"{setup.proxy.url}/v1/images/generations", json=body)
        error = answer.json()["error"] if not stream or fault == "submit-429" else events(answer.content)[-1].json
        told = error.get("error", error)
        assert isinstance(told, dict)
        if not stream or fault == "submit-429":
            assert answer.status_code == status, answer.text
        if code is not None:
            assert told["code"] == code, told
        assert len(setup.posts) == posts
        assert PROMPT not in answer.text


async def test_a_failed_poll_is_repeated_at_no_charge(tmp_path: Path) -> None:
    async with wired("fal", tmp_path) as setup:
        made = await setup.client.images.generate(model="fal/fal-ai/fault-poll-503", prompt=PROMPT)
        assert made.data is not None
        assert len(setup.posts) == 1


@pytest.mark.parametrize(("fault", "hosts"), [("gone", ("127.0.0.1",)), ("elsewhere", ()), ("none", ())])
async def test_a_result_that_is_not_fetched_keeps_its_url(fault: str, hosts: tuple[str, ...], tmp_path: Path) -> None:
    async with wired("fal", tmp_path, fetch_hosts=hosts) as setup:
        made = await setup.client.images.generate(model=f"fal/fal-ai/fault-{fault}", prompt=PROMPT)
        assert made.data is not None
        [image] = made.data
        assert image.b64_json is None
        assert (image.url or "").endswith(".png")
        fetches = [received for received in setup.server.received if "/files/" in received.target]
        assert len(fetches) == (3 if fault == "gone" else 0)


async def test_a_caller_who_leaves_cancels_the_job(tmp_path: Path) -> None:
    async with wired("fal", tmp_path) as setup:
        body = {"model": "fal/fal-ai/fault-never", "prompt": PROMPT}
        with anyio.move_on_after(1.0):
            await setup.proxy.client.post(f"{setup.proxy.url}/v1/images/generations", json=body)
        await setup.server.wait_until(lambda server: any(got.method == "PUT" for got in server.received), BOUND)
        assert [got.target.rpartition("/")[2] for got in setup.server.received if got.method == "PUT"] == ["cancel"]


async def test_a_look_that_is_cut_ends_as_a_paid_failure(tmp_path: Path) -> None:
    """Both forms beside each other, for the looks' pauses are long."""
    answers: dict[bool, tuple[int, bytes, str | None]] = {}
    async with wired("fal", tmp_path) as setup:

        async def one(stream: bool) -> None:
            answer = await setup.proxy.generate(model="fal/fal-ai/fault-killed-poll", stream=stream)
            answers[stream] = answer.status_code, answer.content, answer.headers.get("x-should-retry")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one, True)
            tasks.start_soon(one, False)
        status, content, retry = answers[False]
        assert (status, orjson.loads(content)["error"]["code"], retry) == (502, "connection_terminated", "false")
        status, content, _ = answers[True]
        error = events(content)[-1].json["error"]
        assert isinstance(error, dict)
        assert (status, error["code"]) == (200, "connection_terminated")
        assert len(setup.posts) == 2
        looks = [received for received in setup.server.received if received.target.endswith("/status")]
        assert len(looks) == 2 * TRIES


BLOCKED: Final = {"gemini": "fault-image-safety", "fal": "fal/fal-ai/fault-nsfw"}


@pytest.mark.parametrize("wire", BLOCKED)
async def test_a_moderated_result_is_the_sdks_bad_request(wire: str, tmp_path: Path) -> None:
    async with wired(wire, tmp_path) as setup:
        with pytest.raises(BadRequestError) as refused:
            await setup.client.images.generate(model=BLOCKED[wire], prompt=PROMPT)
        assert refused.value.code == "moderation_blocked"
        assert refused.value.response.headers["x-should-retry"] == "false"
        assert PROMPT not in refused.value.response.text
        assert len(setup.posts) == 1


def _queue(received: Received, result: str) -> Script:
    """A queue whose one job is done, with a picture at `result`."""
    url = f"http://{received.header('host')}/fal/fal-ai/b/requests/1"
    urls = {"response_url": url, "status_url": f"{url}/status", "cancel_url": f"{url}/cancel"}
    if received.method == "POST":
        return json_answer(200, {"request_id": "1", **urls})
    if received.target.endswith("/status"):
        return json_answer(200, {"status": "COMPLETED"})
    return json_answer(200, {"images": [{"url": result}]})


FOREIGN: Final = {
    "listed": ("http://127.0.0.1", ("127.0.0.1",), True),
    "plain": ("http://127.0.0.1", (), False),
    "private": ("https://127.0.0.1", (), False),
    "metadata": ("http://169.254.169.254", ("169.254.169.254",), False),
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("place", FOREIGN)
async def test_a_result_elsewhere_is_fetched_without_a_key(place: str, stream: bool, tmp_path: Path) -> None:
    origin, hosts, fetched = FOREIGN[place]
    file = (Sending(head(200, (("Content-Type", "image/png"),), length=len(PNG)) + PNG),)
    async with serve(partial(_play, file)) as other:
        result = f"{origin}:{other.port}/a.png"
        async with wired("fal", tmp_path, partial(_queue, result=result), fetch_hosts=hosts) as setup:
            images, model = setup.client.images, "fal/fal-ai/b"
            found: list[tuple[str | None, str | None]]
            if stream:
                seen = await images.generate(model=model, prompt=PROMPT, stream=True)
                found = [(event.b64_json, getattr(event, "url", None)) async for event in seen]
            else:
                made = await images.generate(model=model, prompt=PROMPT)
                found = [(image.b64_json, image.url) for image in made.data or ()]
            assert found == [(base64.b64encode(PNG).decode(), None) if fetched else (None, result)]
            assert other.calls == fetched
            assert len(setup.posts) == 1
        told = [value for received in other.received for _, value in received.headers]
        assert not any(KEY in value or "callers" in value for value in told)


@EDITING
async def test_a_streamed_edit_has_previews(wire: str, tmp_path: Path) -> None:
    async with wired(wire, tmp_path) as setup:
        given = ("in.png", PNG, "image/png")
        stream = await setup.client.images.edit(
            model=EDITORS[wire], image=given, prompt=PROMPT, stream=True, partial_images=2
        )
        seen = [event async for event in stream]
        previews = [event for event in seen if event.type == "image_edit.partial_image"]
        assert [event.partial_image_index for event in previews] == list(range(PREVIEWS[wire]))
        assert seen[-1].type == "image_edit.completed"
        assert all(size_of(event.b64_json) for event in seen)
        assert len([target for target in setup.posts if "assets" not in target]) == 1


REFUSALS: Final[dict[str, dict[str, object]]] = {
    "sim": {"error": {"message": "No.", "type": "t", "param": None, "code": "c"}},
    "gemini": {"error": {"code": 400, "message": "No.", "status": "INVALID_ARGUMENT"}},
    "fal": {"detail": "No."},
    "bfl": {"detail": "No."},
    "replicate": {"detail": "No."},
    "stability": {"id": "1", "name": "bad_request", "errors": ["No."]},
    "bedrock": {"message": "No."},
    "nova": {"message": "No."},
    "ideogram": {"error": "No."},
    "luma": {"detail": "No."},
    "mai": {"error": {"code": "c", "message": "No."}},
    "dashscope": {"code": "InvalidParameter", "message": "No."},
    "openrouter": {"error": {"code": 400, "message": "No."}},
    "automatic1111": {"error": "HTTPException", "detail": "No."},
    "ark": {"error": {"code": "InvalidParameter", "message": "No.", "param": "size"}},
    "minimax": {"error": {"code": "2013", "message": "No.", "http_code": "400"}},
    "xai": {"code": "400", "error": "No."},
    "fireworks": {"error": {"type": "invalid_request_error", "message": "No."}},
    "cloudflare": {"success": False, "errors": [{"code": 5006, "message": "No."}], "result": None},
    "huggingface": {"error": "No."},
    "leonardo": {"error": "No.", "code": "bad-request", "path": "$"},
    "runware": {"errors": [{"code": "invalidParameter", "message": "No."}]},
    "responses": {"error": {"message": "No.", "type": "t", "param": None, "code": "c"}},
    "comfyui": {"error": {"code": "c", "message": "No."}},
}
MODELS_OF: Final = {"sim": "sim/gpt-image", **MODELS}


def _play(script: Script, _: Received) -> Script:
    return script


@pytest.mark.parametrize("form", ["json", "sse"])
@pytest.mark.parametrize("wire", REFUSALS)
async def test_a_refusal_under_200_is_one_status(wire: str, form: str, tmp_path: Path) -> None:
    """Streamed or not, and wherever the packets' borders are."""
    body = orjson.dumps(REFUSALS[wire])
    data = body if form == "json" else b"event: error\ndata: " + body + b"\n\n"
    kind = ("Content-Type", "application/json" if form == "json" else "text/event-stream")
    top, rest = head(200, (kind,), chunked=True), chunk(data) + LAST_CHUNK
    scripts = [(Sending(top + rest),), (Sending(top), Wait(0.05), Sending(rest))] * 2
    left = list(scripts)
    async with wired(wire, tmp_path, lambda _: left.pop()) as setup:
        answers = set()
        for stream in (True, True, False, False):
            answer = await setup.proxy.generate(model=MODELS_OF[wire], stream=stream)
            answers.add((answer.status_code, answer.json()["error"]["code"], answer.headers["content-type"]))
        assert (len(answers), len(setup.posts), left) == (1, len(scripts), [])
        [(status, _, media_type)] = answers
        assert status >= 400
        assert media_type == "application/json"
