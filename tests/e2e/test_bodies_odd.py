"""Requests as programs really send them: odd spellings, nameless files, encodings, bodies without a model."""

from __future__ import annotations

import base64
import binascii
from typing import Final

import anyio
import httpx
import orjson
import pytest
from anyio import to_thread
from openai import AzureOpenAI

from streamproxy.simulator.multipart import Part, parts
from streamproxy.simulator.server import Received, serve
from tests.support.caller import EDITS, GENERATIONS, calling, post
from tests.support.faults import IMAGE
from tests.support.proxy import PROMPT, Proxy, no_leaks, running_proxy

pytestmark = pytest.mark.anyio

PNG: Final = b"\x89PNG\r\n\x1a\n\x00\xff\xfe"
JPEG: Final = b"\xff\xd8\xff\xe0\x00\x10JFIF"
WEBP: Final = b"RIFF\x10\x00\x00\x00WEBPVP8 "
AVIF: Final = b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00"
HEIC: Final = b"\x00\x00\x00\x1cftypheic\x00\x00\x00\x00"
KIND: Final = "multipart/form-data; boundary=edge"


def part(disposition: str, value: bytes, *headers: str) -> bytes:
    head = "".join(f"{line}\r\n" for line in (f"Content-Disposition: form-data; {disposition}", *headers))
    return b"--edge\r\n" + head.encode() + b"\r\n" + value + b"\r\n"


TEXTS: Final = part('name="model"', b"sim/gpt-image") + part('name="prompt"', b"a cat")


async def edited(proxy: Proxy, *more: bytes) -> httpx.Response:
    content = TEXTS + b"".join(more) + b"--edge--\r\n"
    return await proxy.client.post(proxy.url + EDITS, content=content, headers={"content-type": KIND})


def sent(received: Received) -> dict[str, Part]:
    return {found.name: found for found in parts(received.body, received.header("content-type") or "")}


@pytest.mark.parametrize("stream", ["True", "TRUE", "1", "on", "yes"])
async def test_a_form_may_spell_true_as_its_language_does(stream: str) -> None:
    async with no_leaks(), serve(lambda _: IMAGE) as server, running_proxy(server.url) as proxy:
        file = part('name="image"; filename="a.png"', PNG)
        answer = await edited(proxy, part('name="stream"', stream.encode()), part('name="n"', b"01"), file)
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = sent(server.received[0])
        assert (found["stream"].data, found["n"].data) == (b"true", b"1")


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (b'"n":"1"', b'"n":1'),
        (b'"n":1.0', b'"n":1'),
        (b'"n" : 1', b'"n" : 1'),
        (b'"stream":"true"', b'"stream":true'),
        (b'"stream":"off","partial_images":"2"', b""),
    ],
)
async def test_json_may_spell_numbers_and_booleans_as_text(members: bytes, expected: bytes) -> None:
    async with no_leaks(), serve(lambda _: IMAGE) as server, running_proxy(server.url) as proxy:
        rest = b'"model":"sim/gpt-image","prompt":"p","zebra":1E2'
        content = b"{" + members + b"," + rest + b"}"
        headers = {"content-type": "application/json"}
        answer = await proxy.client.post(proxy.url + GENERATIONS, content=content, headers=headers)
        assert answer.status_code == 200, answer.text
        assert server.received[0].body == (b"{" + expected + b"," + rest + b"}" if expected else b"{" + rest + b"}")


@pytest.mark.parametrize(
    ("disposition", "value", "headers"),
    [
        ('name="image"', PNG, ("Content-Type: image/png",)),
        ('name="image"', PNG, ()),
        ('name="image[]"', PNG, ()),
        ('name="image"; filename="blob"', PNG, ()),
        ('name="image"; filename="blob"', PNG, ("Content-Type: application/octet-stream",)),
    ],
)
async def test_a_file_is_one_with_or_without_name_and_type(
    disposition: str, value: bytes, headers: tuple[str, ...]
) -> None:
    async with no_leaks(), serve(lambda _: IMAGE) as server, running_proxy(server.url) as proxy:
        assert (await edited(proxy, part(disposition, value, *headers))).status_code == 200
        [found] = [found for name, found in sent(server.received[0]).items() if name.startswith("image")]
        assert found.data == value
        assert b"filename=" in server.received[0].body
        assert b"Content-Type: image/png" in server.received[0].body


@pytest.mark.parametrize(
    ("value", "kind"),
    [(PNG, "image/png"), (JPEG, "image/jpeg"), (WEBP, "image/webp"), (AVIF, "image/avif"), (HEIC, "image/heic")],
)
async def test_the_bytes_give_a_file_its_type(value: bytes, kind: str) -> None:
    async with no_leaks(), serve(lambda _: IMAGE) as server, running_proxy(server.url) as proxy:
        assert (await edited(proxy, part('name="image"; filename="a"', value))).status_code == 200
        assert f"Content-Type: {kind}\r\n".encode() in server.received[0].body


@pytest.mark.parametrize(
    ("encoding", "value"),
    [
        ("base64", base64.encodebytes(PNG * 100)),
        ("BASE64", base64.b64encode(PNG * 100)),
        ("quoted-printable", binascii.b2a_qp(PNG * 100, istext=False)),
        ("binary", PNG * 100),
        ("8bit", PNG * 100),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1 << 16])
async def test_a_transfer_encoding_is_undone(encoding: str, value: bytes, size: int) -> None:
    async with no_leaks(), serve(lambda _: IMAGE) as server, running_proxy(server.url) as proxy:
        file = part('name="image"; filename="a.png"', value, f"Content-Transfer-Encoding: {encoding}")
        content = TEXTS + file + b"--edge--\r\n"
        async with calling(proxy.port) as caller:
            await caller.send(post(b"", path=EDITS, kind=KIND, length=len(content)))
            for at in range(0, len(content), size):
                await caller.send(content[at : at + size])
            assert await caller.head() == 200
            await caller.rest()
        assert sent(server.received[0])["image"].data == PNG * 100
        assert b"ransfer-" not in server.received[0].body


@pytest.mark.parametrize(
    ("encoding", "value"),
    [("uuencode", PNG), ("base64", b"!!!!"), ("base64", b"AAA"), ("quoted-printable", b"x" * 9999)],
)
async def test_an_unknown_transfer_encoding_is_refused(encoding: str, value: bytes) -> None:
    async with no_leaks(), serve(lambda _: IMAGE) as server, running_proxy(server.url) as proxy:
        file = part('name="image"; filename="a.png"', value, f"Content-Transfer-Encoding: {encoding}")
        answer = await edited(proxy, file)
        assert (answer.status_code, answer.json()["error"]["code"], server.calls) == (400, "invalid_multipart", 0)


async def test_a_file_input_that_was_left_alone_is_no_file() -> None:
    async with no_leaks(), serve(lambda _: IMAGE) as server, running_proxy(server.url) as proxy:
        mask = part('name="mask"; filename=""', b"", "Content-Type: application/octet-stream")
        assert (await edited(proxy, part('name="image"; filename="a.png"', PNG), mask)).status_code == 200
        assert b"mask" not in server.received[0].body
        answer = await edited(proxy, part('name="image"; filename=""', b""))
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "image")


@pytest.mark.parametrize("name", ["image", "image[]", "mask"])
async def test_an_empty_image_is_not_paid_for(name: str) -> None:
    async with no_leaks(), serve(lambda _: IMAGE) as server, running_proxy(server.url) as proxy:
        more = part('name="image"; filename="a.png"', PNG) if name == "mask" else b""
        answer = await edited(proxy, more, part(f'name="{name}"; filename="a.png"', b"", "Content-Type: image/png"))
        assert answer.status_code == 422
        assert (answer.json()["error"]["param"], server.calls) == (name, 0)


async def test_a_compressed_body_is_refused_with_what_is_taken() -> None:
    async with no_leaks(), serve(lambda _: IMAGE) as server, running_proxy(server.url) as proxy:
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        answer = await proxy.client.post(proxy.url + GENERATIONS, content=b"\x1f\x8b", headers=headers)
        assert (answer.status_code, server.calls) == (415, 0)
        assert "Content-Encoding" in answer.json()["error"]["message"]
        assert "identity" in answer.json()["error"]["message"]


async def test_a_lone_surrogate_is_named_as_one() -> None:
    async with no_leaks(), serve(lambda _: IMAGE) as server, running_proxy(server.url) as proxy:
        for half in (rb"\ud83d", rb"\udc00x", rb"\udc00\ud83d"):
            content = b'{"model":"sim/gpt-image","prompt":"' + half + b'"}'
            headers = {"content-type": "application/json"}
            answer = await proxy.client.post(proxy.url + GENERATIONS, content=content, headers=headers)
            assert (answer.status_code, server.calls) == (400, 0)
            assert "surrogate" in answer.json()["error"]["message"]


# Requests that name no model.


async def test_a_request_without_a_model_takes_the_setting() -> None:
    chosen = {"default_model": "sim/plain"}
    async with no_leaks(), serve(lambda _: IMAGE) as server, running_proxy(server.url, **chosen) as proxy:  # type: ignore[arg-type]
        for model in ({}, {"model": None}):
            answer = await proxy.client.post(proxy.url + GENERATIONS, json={"prompt": PROMPT, **model})
            assert answer.status_code == 200
        files = {"image": ("a.png", PNG, "image/png")}
        answer = await proxy.client.post(proxy.url + EDITS, data={"prompt": PROMPT}, files=files)
        assert answer.status_code == 200
        assert orjson.loads(server.received[0].body)["model"] == "sim/plain"
        assert orjson.loads(server.received[1].body)["model"] == "sim/plain"
        assert sent(server.received[2])["model"].data == b"sim/plain"


async def test_without_the_setting_the_refusal_names_it() -> None:
    async with no_leaks(), serve(lambda _: IMAGE) as server, running_proxy(server.url) as proxy:
        answer = await proxy.client.post(proxy.url + GENERATIONS, json={"prompt": PROMPT})
        assert (answer.status_code, server.calls) == (422, 0)
        assert answer.json()["detail"] == [{"loc": ["body", "model"], "msg": "Field required", "type": "missing"}]
        assert "default_model" in answer.json()["error"]["message"]


async def test_azures_own_client() -> None:
    def ask(url: str) -> None:
        client = AzureOpenAI(
            azure_endpoint=url, azure_deployment="sim/gpt-image", api_version="2025-04-01-preview", api_key="k"
        )
        with client:
            assert client.images.generate(prompt=PROMPT, model="sim/gpt-image").data
            assert client.images.edit(prompt=PROMPT, model="sim/gpt-image", image=("a.png", PNG, "image/png")).data

    async with no_leaks(), serve(lambda _: IMAGE) as server, running_proxy(server.url) as proxy:
        await to_thread.run_sync(ask, proxy.url)
        path = "/openai/deployments/plain/images/generations?api-version=2025-04-01-preview"
        assert (await proxy.client.post(proxy.url + path, json={"prompt": PROMPT})).status_code == 404  # no such model
        for path in ("/openai/v1/images/generations", "/openai/v1/images/generations?api-version=preview"):
            answer = await proxy.client.post(proxy.url + path, json={"model": "sim/plain", "prompt": PROMPT})
            assert answer.status_code == 200
        assert server.calls == 4


# What bodies may take.


async def test_bodies_in_memory_have_a_budget() -> None:
    most = {"max_body_memory": 1 << 20}
    async with no_leaks(), serve(lambda _: IMAGE) as server, running_proxy(server.url, **most) as proxy:  # type: ignore[arg-type]
        async with calling(proxy.port) as first, calling(proxy.port) as second, calling(proxy.port) as third:
            await first.send(post(b'{"model":', length=(1 << 20) - 1000))
            await second.send(post(b"", length=2000))
            assert await second.head() == 503
            assert second.headers["retry-after"].isdecimal()
            assert b"max_body_memory" in await second.rest()
            chunked = f"POST {GENERATIONS} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            await third.send(f"{chunked}Transfer-Encoding: chunked\r\n\r\n7d0\r\n".encode() + b"x" * 2000)
            assert await third.head() == 503
            first.reset()
        with anyio.fail_after(5):
            while (await proxy.generate(prompt="x" * 30_000)).status_code != 200:  # noqa: ASYNC110
                await anyio.sleep(0.01)  # until the one who left has been noticed
        for _ in range(40):  # 30 kB each: what a request took is given back
            assert (await proxy.generate(prompt="x" * 30_000)).status_code == 200


async def test_a_body_may_not_trickle() -> None:
    rate = {"receive_timeout": 0.3, "receive_rate": 1000}
    async with no_leaks(), serve(lambda _: IMAGE) as server, running_proxy(server.url, **rate) as proxy:  # type: ignore[arg-type]
        async with calling(proxy.port) as caller:
            await caller.send(post(b"{", length=100_000))
            with anyio.fail_after(10):
                async with anyio.create_task_group() as tasks:

                    async def trickle() -> None:
                        for _ in range(1000):
                            await caller.send(b" ")
                            await anyio.sleep(0.02)

                    tasks.start_soon(trickle)
                    assert await caller.head() == 408
                    tasks.cancel_scope.cancel()
            assert b"receive_rate" in await caller.rest()
        assert server.calls == 0


async def test_a_key_is_asked_for_before_the_body_is_read() -> None:
    passed = {"base_url": "https://gateway.invalid/v1", "credential": "caller", "auth_header": "authorization"}
    async with no_leaks(), running_proxy("http://127.0.0.1:9", provider=passed) as proxy:
        for path, kind in ((GENERATIONS, "application/json"), (EDITS, "application/json"), (EDITS, KIND)):
            async with calling(proxy.port) as caller:
                await caller.send(post(b"", path=path, kind=kind, length=20_000_000))
                assert await caller.head() == 401


@pytest.mark.parametrize(("value", "name"), [(HEIC, "HEIC"), (AVIF, "AVIF")])
async def test_a_kind_that_the_model_does_not_take_is_named(value: bytes, name: str) -> None:
    """Before anything is paid, as JSON and as a form, and for the mask too."""
    provider: dict[str, object] = {"models": ("openai/gpt-image-2",)}
    headers = {"content-type": "application/json"}
    async with (
        no_leaks(),
        serve(lambda _: IMAGE) as server,
        running_proxy(server.url, provider=provider, default_model="openai/gpt-image-2") as proxy,
    ):
        texts = part('name="model"', b"openai/gpt-image-2") + part('name="prompt"', b"p")
        form = texts + part('name="image"; filename="a.jpg"', value) + b"--edge--\r\n"
        answers = [await proxy.client.post(proxy.url + EDITS, content=form, headers={"content-type": KIND})]
        images = [f"data:image/png;base64,{base64.b64encode(raw).decode()}" for raw in (PNG, value)]
        for image, mask in (images[::-1], images):
            body = {"prompt": "p", "images": [{"image_url": image}], "mask": {"image_url": mask}}
            answers.append(await proxy.client.post(proxy.url + EDITS, json=body, headers=headers))
        files = {"file": ("a.heic", value)}
        uploaded = await proxy.client.post(f"{proxy.url}/v1/files", data={"purpose": "vision"}, files=files)
        body = {"prompt": "p", "images": [{"file_id": uploaded.json()["id"]}]}
        answers.append(await proxy.client.post(proxy.url + EDITS, json=body, headers=headers))
        assert server.calls == 0
        errors = [answer.json()["error"] for answer in answers]
        assert [answer.status_code for answer in answers] == [400] * 4
        assert [error["param"] for error in errors] == ["image", "image", "mask", "image"]
        assert all(f"is {name}, which openai/gpt-image-2 does not take" in error["message"] for error in errors)
        assert all(error["message"].endswith("Send one of png, jpeg, webp.") for error in errors)
