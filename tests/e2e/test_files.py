"""Uploaded files over real sockets: by OpenAI's SDKs and Eden AI's form, used by every wire, and refused in time."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import httpx
import openai
import orjson
import pytest
from openai import AsyncOpenAI

from streamproxy.core.files import file_id
from streamproxy.simulator import Server, running
from streamproxy.simulator.multipart import parts
from streamproxy.simulator.pictures import draw, encode
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, json_answer, sse
from streamproxy.simulator.server import serve
from tests.e2e.node.runner import needs_node, run_node
from tests.e2e.test_wires import EDITING, EDITORS, wired
from tests.support.provider import completed
from tests.support.proxy import BOUND, PROMPT, Proxy, no_leaks, running_proxy
from tests.support.valkey import ValkeyServer, valkey_server

pytestmark = pytest.mark.anyio

PNG: Final = encode(draw("input", 64, 48), "png")
MASK: Final = encode(draw("mask", 64, 48), "png")
URL: Final = "data:image/png;base64," + base64.b64encode(PNG).decode()
KEYS: Final = ("the-key-of-ann", "the-key-of-bob")
HASHES: Final = tuple("sha256:" + hashlib.sha256(key.encode()).hexdigest() for key in KEYS)
ABSENT: Final = file_id(0xFFFFFFFF, "0" * 32)
EXPIRED: Final = file_id(1, "0" * 32)


@pytest.fixture
async def sim() -> AsyncIterator[Server]:
    async with running(pace=0) as server:
        yield server


@pytest.fixture
async def proxy(sim: Server) -> AsyncIterator[Proxy]:
    async with no_leaks(), running_proxy(sim.url) as one:
        yield one


@asynccontextmanager
async def sdk(proxy: Proxy, key: str = "none") -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(api_key=key, base_url=f"{proxy.url}/v1", max_retries=0) as client:
        with anyio.fail_after(BOUND):
            yield client


async def upload(proxy: Proxy, raw: bytes = PNG, *, key: str = "none", **texts: str) -> httpx.Response:
    return await proxy.client.post(
        f"{proxy.url}/v1/files",
        files={"file": ("in.png", raw)},
        data={"purpose": "vision", **texts},
        headers={"authorization": f"Bearer {key}"},
    )


async def uploaded(proxy: Proxy, raw: bytes = PNG, *, key: str = "none") -> str:
    answer = await upload(proxy, raw, key=key)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def edit(proxy: Proxy, *ids: str, mask: str = "", key: str = "none", **more: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}", **more.pop("headers", {})}
    body = {
        "model": "sim/gpt-image",
        "prompt": PROMPT,
        "size": "64x64",
        "images": [{"file_id": id} for id in ids],
        **more,
    }
    if mask:
        body["mask"] = {"file_id": mask}
    return await proxy.client.post(f"{proxy.url}/v1/images/edits", json=body, headers=headers)


async def test_openai_python_reads_files(proxy: Proxy) -> None:
    async with sdk(proxy) as client:
        made = await client.files.create(
            file=("in.png", PNG), purpose="vision", expires_after={"anchor": "created_at", "seconds": 3600}
        )
        assert (made.object, made.bytes, made.filename, made.purpose) == ("file", len(PNG), "in.png", "vision")
        assert made.expires_at == made.created_at + 3600
        other = await client.files.create(file=("b.png", PNG), purpose="user_data")
        assert await client.files.retrieve(made.id) == made
        assert {one.id async for one in client.files.list(limit=1)} == {made.id, other.id}
        assert [one.id async for one in client.files.list(purpose="vision")] == [made.id]
        content = await client.files.content(made.id)
        assert content.content == PNG
        assert content.response.headers["content-type"] == "image/png"
        assert (await client.files.delete(made.id)).deleted
        with pytest.raises(openai.NotFoundError) as caught:
            await client.files.retrieve(made.id)
        assert caught.value.code == "file_not_found"


@needs_node
async def test_openai_node_reads_files(proxy: Proxy) -> None:
    [seen] = await run_node(proxy.url, [{"method": "files", "picture": base64.b64encode(PNG).decode()}])
    assert seen["error"] is None
    answer = seen["answer"]
    assert answer["made"]["bytes"] == len(PNG)
    assert answer["retrieved"] == answer["made"]
    assert answer["listed"] == [answer["made"]["id"]]
    assert base64.b64decode(answer["content"]) == PNG
    assert answer["deleted"] == {"id": answer["made"]["id"], "object": "file", "deleted": True}


async def test_edens_upload(proxy: Proxy, sim: Server) -> None:
    answer = await proxy.client.post(
        f"{proxy.url}/v3/upload", files={"file": ("in.png", PNG)}, data={"expires_in_days": "30"}
    )
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert (said["file_name"], said["file_size"], said["file_mimetype"]) == ("in.png", len(PNG), "image/png")
    assert answer.headers["streamproxy-not-applied"] == "expires_in_days"  # file_seconds is a day
    assert (await edit(proxy, said["file_id"])).status_code == 200
    assert sim.calls == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_provider_gets_the_bytes(proxy: Proxy, sim: Server, stream: bool) -> None:
    image, mask = await uploaded(proxy), await uploaded(proxy, MASK)
    answer = await edit(proxy, image, image, mask=mask, stream=stream)
    assert answer.status_code == 200, answer.text
    [received] = sim.received
    said = orjson.loads(received.body)
    assert said["images"] == [{"image_url": URL}] * 2
    assert base64.b64decode(said["mask"]["image_url"].partition(",")[2]) == MASK
    assert said["prompt"] == PROMPT
    assert b"upl_" not in received.body


async def test_references_of_all_kinds_keep_their_order(proxy: Proxy, sim: Server) -> None:
    first = "data:image/png;base64," + base64.b64encode(MASK).decode()
    references = [{"image_url": first}, {"file_id": await uploaded(proxy)}, {"file_id": "file-abc"}]
    answer = await edit(proxy, images=references)
    assert answer.status_code == 200, answer.text
    assert orjson.loads(sim.received[0].body)["images"] == [
        {"image_url": first},
        {"image_url": URL},
        {"file_id": "file-abc"},
    ]


LARGE: Final = PNG + bytes(15 * 1024 * 1024 + 800 * 1024)
"""As base64 it is longer than an `image_url` of OpenAI's may be."""


@pytest.mark.parametrize("stream", [False, True])
async def test_a_large_image_goes_as_a_form(stream: bool) -> None:
    got: list[Received] = []  # the server itself keeps no body of this size

    def handle(received: Received) -> Script:
        got.append(received)
        return sse([completed()]) if stream else json_answer(200, {"created": 1, "data": [{"b64_json": "QUFB"}]})

    async with no_leaks(), serve(handle) as server, running_proxy(server.url) as proxy:
        id, small = await uploaded(proxy, LARGE), await uploaded(proxy)
        more: dict[str, Any] = {"stream": stream, "partial_images": 1} if stream else {}
        answer = await edit(proxy, id, small, mask=small, n=1, quality="low", extra_headers={"x-team": "a"}, **more)
        assert answer.status_code == 200, answer.text
        [received] = got
        found = parts(received.body, received.header("content-type") or "")
        files = [(part.name, part.data) for part in found if part.name in ("image[]", "mask")]
        assert files == [("image[]", LARGE), ("image[]", PNG), ("mask", PNG)]
        form = {part.name: part.data.decode() for part in found if part.name not in ("image[]", "mask")}
        streamed = {"stream": "true", "partial_images": "1"} if stream else {}
        assert (
            form == {"model": "sim/gpt-image", "prompt": PROMPT, "size": "64x64", "n": "1", "quality": "low"} | streamed
        )
        assert received.header("x-team") == "a"


async def test_a_large_image_beside_a_file_of_the_providers(sim: Server) -> None:
    """Nothing is sent: a form has no ids."""
    async with running_proxy(sim.url) as proxy:
        answer = await edit(proxy, await uploaded(proxy, LARGE), "file-abc")
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], sim.calls) == (400, "images[1].image_url", 0)
        assert "POST /v1/files" in error["message"]


async def test_a_large_image_in_json_is_refused(proxy: Proxy, sim: Server) -> None:
    """OpenAI's limit of one `image_url`; the upload is the way."""
    url = "data:image/png;base64," + base64.b64encode(LARGE).decode()
    body = {"model": "sim/gpt-image", "prompt": PROMPT, "images": [{"image_url": url}]}
    answer = await proxy.client.post(f"{proxy.url}/v1/images/edits", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], sim.calls) == (422, "images[0].image_url", 0)
    assert "20971520 characters" in error["message"]


async def test_a_host_that_takes_strings() -> None:
    async with running(pace=0) as sim, running_proxy(sim.url, provider={"edit_input": "image"}) as proxy:
        answer = await edit(proxy, await uploaded(proxy), mask=await uploaded(proxy))
        assert answer.status_code == 200, answer.text
        said = orjson.loads(sim.received[0].body)
        assert (said["image"], said["mask"]) == ([URL], URL)


@EDITING
async def test_every_wire_takes_a_file(wire: str, tmp_path: Path) -> None:
    async with wired(wire, tmp_path) as setup:
        made = await setup.client.files.create(file=("in.png", PNG), purpose="vision")
        body = {"model": EDITORS[wire], "prompt": PROMPT, "images": [{"file_id": made.id}]}
        answer = await setup.proxy.client.post(
            f"{setup.proxy.url}/v1/images/edits", json=body, headers={"authorization": "Bearer callers"}
        )
        assert answer.status_code == 200, answer.text
        sent = b"".join(received.body for received in setup.server.received)
        assert base64.b64encode(PNG) in sent or PNG in sent
        assert made.id.encode() not in sent


@pytest.mark.parametrize("place", ["images[1].file_id", "mask.file_id"])
@pytest.mark.parametrize(
    ("id", "status", "code"),
    [(ABSENT, 404, "file_not_found"), (EXPIRED, 410, "file_expired"), ("nope", 404, "file_not_found")],
)
async def test_a_file_that_is_not_there(proxy: Proxy, sim: Server, place: str, id: str, status: int, code: str) -> None:
    there = await uploaded(proxy)
    answer = await (edit(proxy, there, mask=id) if place.startswith("mask") else edit(proxy, there, id))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, place)
    assert (await proxy.client.get(f"{proxy.url}/v1/files/{id}")).status_code == status
    assert sim.calls == 0


async def test_a_wire_without_files_of_its_own_knows_no_ids(tmp_path: Path) -> None:
    async with wired("bfl", tmp_path) as setup:
        answer = await edit(setup.proxy, "file-abc", model=EDITORS["bfl"])
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "file_not_found")
        assert setup.posts == []


async def test_a_file_is_its_callers(sim: Server) -> None:
    ann, bob = KEYS
    async with running_proxy(sim.url, caller_keys=HASHES) as proxy, sdk(proxy, ann) as hers, sdk(proxy, bob) as his:
        id = await uploaded(proxy, key=ann)
        assert [one.id async for one in hers.files.list()] == [id]
        assert [one.id async for one in his.files.list()] == []
        for call in (his.files.retrieve, his.files.content, his.files.delete):
            with pytest.raises(openai.NotFoundError):
                await call(id)
        assert (await edit(proxy, id, key=bob)).status_code == 404
        assert sim.calls == 0
        assert (await edit(proxy, id, key=ann)).status_code == 200
        assert (await upload(proxy, key="unknown")).status_code == 401


async def test_without_caller_keys_the_id_is_the_right(proxy: Proxy) -> None:
    id = await uploaded(proxy, key="one")
    async with sdk(proxy, "other") as other:
        assert [one.id async for one in other.files.list()] == []
        assert (await other.files.retrieve(id)).id == id
    url = f"{proxy.url}/v1/files"
    form = {"files": {"file": ("in.png", PNG)}, "data": {"purpose": "vision"}}
    keyless = (await proxy.client.post(url, **form)).json()  # type: ignore[arg-type]
    assert (await proxy.client.get(url)).json()["data"] == []
    assert (await proxy.client.get(f"{url}/{keyless['id']}")).json() == keyless


async def test_no_room_is_said_and_nothing_lost(sim: Server) -> None:
    limit = 2 * 64 * 1024
    async with running_proxy(sim.url, file_bytes=limit) as proxy:
        too_large = await upload(proxy, PNG + bytes(limit))
        assert (too_large.status_code, too_large.json()["error"]["code"]) == (413, "body_too_large")
        ids = [await uploaded(proxy) for _ in range(2)]
        full = await upload(proxy)
        assert (full.status_code, full.json()["error"]["code"]) == (507, "files_full")
        assert all("file_bytes" in answer.json()["error"]["message"] for answer in (too_large, full))
        for id in ids:
            assert (await proxy.client.get(f"{proxy.url}/v1/files/{id}/content")).content == PNG
        assert (await proxy.client.delete(f"{proxy.url}/v1/files/{ids[0]}")).status_code == 200
        assert (await upload(proxy)).status_code == 200


async def test_one_caller_cannot_fill_the_room_of_all(sim: Server) -> None:
    share = 2 * 64 * 1024
    settings: dict[str, Any] = {"file_bytes": 2 * share, "file_bytes_per_caller": share, "caller_keys": HASHES}
    async with running_proxy(sim.url, **settings) as proxy:
        ids = [await uploaded(proxy, key=KEYS[0]) for _ in range(2)]
        refused = [await upload(proxy, raw, key=KEYS[0]) for raw in (PNG, PNG + bytes(share))]
        assert [answer.status_code for answer in refused] == [413, 413]
        assert [answer.json()["error"]["code"] for answer in refused] == ["caller_files_full", "body_too_large"]
        assert all("file_bytes_per_caller" in answer.json()["error"]["message"] for answer in refused)
        for _ in range(2):
            await uploaded(proxy, key=KEYS[1])
        assert (await edit(proxy, *ids, key=KEYS[0])).status_code == 200


@pytest.mark.parametrize(
    ("raw", "texts", "status", "param"),
    [
        (b"hello", {}, 400, "file"),
        (PNG, {"purpose": "batch"}, 422, "purpose"),
        (PNG, {"expires_after[seconds]": "1"}, 422, "expires_after[seconds]"),
    ],
    ids=["no image", "purpose", "expiry"],
)
async def test_an_upload_that_is_refused(
    proxy: Proxy, raw: bytes, texts: dict[str, str], status: int, param: str
) -> None:
    answer = await upload(proxy, raw, **texts)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    wrong = await proxy.client.post(f"{proxy.url}/v1/files", json={"file": "x"})
    assert wrong.status_code == 415


async def test_a_repeated_request_needs_no_file(proxy: Proxy, sim: Server) -> None:
    id = await uploaded(proxy)
    headers = {"idempotency-key": "one-picture"}
    first = await edit(proxy, id, headers=headers)
    assert (await proxy.client.delete(f"{proxy.url}/v1/files/{id}")).status_code == 200
    again = await edit(proxy, id, headers=headers)
    assert (again.status_code, again.content) == (200, first.content)
    anew = await edit(proxy, id, headers={"idempotency-key": "another"})
    assert anew.status_code == 404
    other = await edit(proxy, await uploaded(proxy), headers={"idempotency-key": "another"})
    assert other.status_code == 200, "a key whose request was refused stands for nothing"
    assert sim.calls == 2


async def test_a_content_is_read_in_parts_and_its_head(proxy: Proxy) -> None:
    large = PNG + bytes(3_000_000)
    id = await uploaded(proxy, large)
    url = f"{proxy.url}/v1/files/{id}/content"
    assert (await proxy.client.get(url)).content == large
    head = await proxy.client.head(url)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(large)), b"")


@pytest.fixture(scope="module")
def valkey() -> Any:
    with valkey_server() as server:
        yield server


async def test_replicas_share_files(sim: Server, valkey: ValkeyServer) -> None:
    settings: dict[str, Any] = {"store": valkey.url, "secret": "one-secret-for-all-of-the-replicas"}
    async with no_leaks(), running_proxy(sim.url, **settings) as one, running_proxy(sim.url, **settings) as other:
        id = await uploaded(one)
        assert (await edit(other, id)).status_code == 200
        assert orjson.loads(sim.received[0].body)["images"] == [{"image_url": URL}]
        assert (await other.client.delete(f"{other.url}/v1/files/{id}")).status_code == 200
        assert (await edit(one, id)).status_code == 404
        assert re.findall(r"upl_\w+", " ".join(valkey.lifetimes())) == []


async def test_a_store_that_is_away_loses_nothing_silently(sim: Server) -> None:
    with valkey_server() as server:
        async with running_proxy(sim.url, store=server.url, secret="one-secret-for-all-of-the-replicas") as proxy:
            id = await uploaded(proxy)
            server.kill()
            for answer in (await upload(proxy), await edit(proxy, id)):
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
                assert "setting is store" in answer.json()["error"]["message"]
            assert sim.calls == 0


@pytest.mark.parametrize("later", [False, True])
async def test_what_is_used_already_may_be_deleted(proxy: Proxy, sim: Server, later: bool) -> None:
    """A generation holds its files open, however long it waits."""
    id = await uploaded(proxy)
    headers = {"prefer": "respond-async"} if later else {}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: edit(proxy, id, headers=headers))
        with anyio.fail_after(BOUND):
            await sim.wait_until(lambda server: server.calls == 1, BOUND)
        assert (await proxy.client.delete(f"{proxy.url}/v1/files/{id}")).status_code == 200
    assert orjson.loads(sim.received[0].body)["images"] == [{"image_url": URL}]


async def test_a_response_takes_files(proxy: Proxy, sim: Server) -> None:
    image = {"type": "input_image", "file_id": await uploaded(proxy)}
    mask = {"file_id": await uploaded(proxy, MASK)}
    tool = {"type": "image_generation", "model": "sim/gpt-image", "input_image_mask": mask}
    said = [{"role": "user", "content": [{"type": "input_text", "text": PROMPT}, image]}]
    answer = await proxy.client.post(f"{proxy.url}/v1/responses", json={"model": "x", "input": said, "tools": [tool]})
    assert answer.status_code == 200, answer.text
    sent = orjson.loads(sim.received[0].body)
    assert sent["images"] == [{"image_url": URL}]
    assert base64.b64decode(sent["mask"]["image_url"].partition(",")[2]) == MASK
    image["file_id"] = ABSENT
    absent = await proxy.client.post(f"{proxy.url}/v1/responses", json={"model": "x", "input": said, "tools": [tool]})
    assert (absent.status_code, absent.json()["error"]["code"]) == (404, "file_not_found")
    assert sim.calls == 1
