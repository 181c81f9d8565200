"""The images of a stream as files, and events that refer to them instead of carrying them."""

from __future__ import annotations

import base64
import io
from typing import Final

import anyio
import orjson
import pytest
from PIL import Image

from streamproxy.simulator.script import event, json_answer
from tests.support.provider import COMPLETED, PREVIEW
from tests.support.streams import EVENTS, JSON, Stage, followed, following, holds, playing, staged

pytestmark = pytest.mark.anyio

TYPES: Final = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


def picture(form: str = "png", color: str = "red") -> bytes:
    """A real picture, small."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(file, form)
    return file.getvalue()


def frame(kind: str, file: bytes, **members: object) -> bytes:
    """An event that carries this file."""
    return event(kind, orjson.dumps({"type": kind, "b64_json": base64.b64encode(file).decode(), **members}))


async def drawn(stage: Stage) -> str:
    """A stream that has ended."""
    stage.go.set()
    url = await stage.later()
    await stage.until(url, "completed")
    return url


def within(url: str, path: str) -> str:
    """The URL of something below a stream, with the stream's token."""
    base, _, query = url.partition("?")
    return f"{base}/{path}?{query}"


@pytest.mark.parametrize("form", TYPES)
async def test_a_completed_image_is_a_file_that_never_changes(form: str) -> None:
    file = picture(form)
    async with staged((), (frame(COMPLETED, file, output_format="png"),)) as stage:
        url = within(await drawn(stage), "images/0")
        answer = await stage.get(url)
        assert (answer.status_code, answer.content) == (200, file)
        assert answer.headers["content-type"] == TYPES[form]
        assert answer.headers["content-length"] == str(len(file))
        assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["accept-ranges"] == "bytes"
        assert stage.server.calls == 1


async def test_who_has_the_image_need_not_get_it_again() -> None:
    file = picture()
    async with staged((), (frame(COMPLETED, file),)) as stage:
        url = within(await drawn(stage), "images/0")
        etag = (await stage.get(url)).headers["etag"]
        answer = await stage.get(url, {"if-none-match": f'"other", {etag}'})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == etag
        assert "content-length" not in answer.headers
        assert (await stage.get(url, {"if-none-match": '"other"'})).status_code == 200
        other = within(await drawn(stage), "images/0")
        assert (await stage.get(other)).headers["etag"] != etag


async def test_a_part_of_the_image() -> None:
    file = picture()
    async with staged((), (frame(COMPLETED, file),)) as stage:
        url = within(await drawn(stage), "images/0")
        part = await stage.get(url, {"range": "bytes=1-3"})
        assert (part.status_code, part.content) == (206, file[1:4])
        assert part.headers["content-range"] == f"bytes 1-3/{len(file)}"
        beyond = await stage.get(url, {"range": f"bytes={len(file)}-"})
        assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(file)}")
        head = await stage.proxy.client.head(url)
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(file)))


async def test_an_image_is_not_found_before_it_is_there() -> None:
    early, late = picture(color="red"), picture(color="blue")
    async with staged((frame(PREVIEW, early),), (frame(COMPLETED, late),)) as stage:
        url = await stage.later()
        async with following(stage, url) as reading:
            await reading.until(holds(b"id: 1.1"))
        answer = await stage.get(within(url, "images/0"))
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "image_index")
        preview = await stage.get(within(url, "images/0/preview"))
        assert (preview.status_code, preview.content) == (200, early)
        assert preview.headers["cache-control"] == "no-store"
        assert preview.headers["content-type"] == "image/png"
        stage.go.set()
        await stage.until(url, "completed")
        assert (await stage.get(within(url, "images/0"))).content == late
        newest = await stage.get(within(url, "images/0/preview"))
        assert newest.content == late
        assert newest.headers["etag"] != preview.headers["etag"]


@pytest.mark.parametrize("index", ["1", "00", "-1", "x", "9" * 20, "9" * 5000], ids=lambda index: index[:20])
async def test_an_image_that_there_is_not(index: str) -> None:
    async with staged((), (frame(COMPLETED, picture()),)) as stage:
        url = await drawn(stage)
        for path in (f"images/{index}", f"images/{index}/preview"):
            assert (await stage.get(within(url, path))).status_code == 404


async def test_what_is_no_picture_is_not_shown_as_one() -> None:
    script = b"<script>alert(1)</script>"
    async with staged((), (frame(COMPLETED, script),)) as stage:
        answer = await stage.get(within(await drawn(stage), "images/0"))
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == "default-src 'none'"


@pytest.mark.parametrize("data", [b'"%%%"', b'"QUJDR"', '"ä"'.encode()], ids=["letters", "cut", "not ascii"])
async def test_what_is_no_base64_is_no_image(data: bytes) -> None:
    whole = event(COMPLETED, b'{"type":"image_generation.completed","b64_json":' + data + b"}")
    async with staged((), (whole,)) as stage:
        url = await drawn(stage)
        assert (await stage.get(within(url, "images/0"))).status_code == 404
        assert len(followed((await stage.get(url, EVENTS)).content)) == 1


async def test_every_image_of_a_json_answer_is_a_file() -> None:
    files = [picture(color=color) for color in ("red", "green", "blue")]
    body = {"created": 1, "data": [{"b64_json": base64.b64encode(file).decode()} for file in files]}
    async with playing(lambda _: json_answer(200, body)) as stage:
        url = await stage.later(model="sim/plain", n=3)
        await stage.until(url, "completed")
        for index, file in enumerate(files):
            assert (await stage.get(within(url, f"images/{index}"))).content == file
        assert (await stage.get(within(url, "images/3"))).status_code == 404
        assert stage.server.calls == 1


@pytest.mark.parametrize("version", ["v1", "v3"])
async def test_events_can_refer_to_their_images(version: str) -> None:
    early, late = picture(color="red"), picture(color="blue")
    async with staged((frame(PREVIEW, early, partial_image_index=0),), (frame(COMPLETED, late),)) as stage:
        url = (await stage.later()).replace("/v1/", f"/{version}/")
        async with following(stage, f"{url}&payload=ref") as reading:
            await reading.until(holds(b"id: 1.1"))
            [preview] = followed(reading.body)
            assert preview.json.keys() == {"type", "partial_image_index", "image_url"}
            shown = str(preview.json["image_url"])
            assert shown.startswith(f"/{version}/streams/")
            assert (await stage.get(stage.url(shown))).content == early
            stage.go.set()
            _, completed = followed(await reading.rest())
        assert completed.json.keys() >= {"type", "cost", "provider", "image_url", "usage"}
        assert "b64_json" not in completed.json
        assert (await stage.get(stage.url(str(completed.json["image_url"])))).content == late
        state = orjson.loads((await stage.get(f"{url}&payload=ref", JSON)).content)
        assert state["data"] == [completed.json]
        assert stage.server.calls == 1


async def test_references_for_a_reader_with_a_key_carry_a_token() -> None:
    key = {"authorization": "Bearer mine"}
    file = picture()
    async with staged((), (frame(COMPLETED, file),)) as stage:
        stage.go.set()
        url = await stage.later(headers=key)
        await stage.until(url, "completed")
        bare = url.partition("?")[0]
        [completed] = followed((await stage.get(f"{bare}?payload=ref", {**EVENTS, **key})).content)
        assert (await stage.get(stage.url(str(completed.json["image_url"])))).content == file
        state = orjson.loads((await stage.get(bare, {**JSON, **key})).content)
        assert (await stage.get(stage.url(state["stream_url"]), JSON)).status_code == 200


async def test_an_error_event_refers_to_nothing() -> None:
    async with staged((frame(PREVIEW, picture()),), ()) as stage:
        url = await stage.later()
        stage.go.set()
        await stage.until(url, "failed")
        inline = followed((await stage.get(url, EVENTS)).content)
        assert followed((await stage.get(f"{url}&payload=ref", EVENTS)).content) == inline


async def test_a_picture_of_megabytes_reads_back_whole() -> None:
    file = picture() + bytes(range(256)) * 16_384
    async with staged((), (frame(COMPLETED, file),)) as stage:
        url = await drawn(stage)
        with anyio.fail_after(20):
            assert (await stage.get(within(url, "images/0"))).content == file
            [event] = followed((await stage.get(url, EVENTS)).content)
        assert base64.b64decode(str(event.json["b64_json"])) == file
