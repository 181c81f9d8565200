"""Small previews: in every layout of events, once for all readers, and the completed image as the provider sent it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from io import BytesIO
from typing import Any, Final

import anyio
import httpx
import orjson
import pytest
from PIL import Image

from tests.support.previews import FIRST, PICTURE, REST, SHA, SMALL, image_of, is_small, is_whole, shown
from tests.support.provider import PREVIEW, USAGE
from tests.support.proxy import BOUND, events
from tests.support.streams import EVENTS, IDS, JSON, LATER, Followed, Stage, followed, following, holds, staged

pytestmark = pytest.mark.anyio


async def posted(stage: Stage, query: str = "", **headers: str) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """The preview that the caller who asked gets; the picture is whole."""
    url = f"{stage.proxy.url}/v1/images/generations{query}"
    body = {"model": "sim/gpt-image", "prompt": "a boat", "stream": True, "partial_images": 1}
    found = b""
    with anyio.fail_after(BOUND):
        async with stage.proxy.client.stream("POST", url, json=body, headers=headers) as answer:
            async for chunk in answer.aiter_raw():
                found += chunk
                if PREVIEW.encode() in found and found.endswith(b"\n\n"):
                    stage.go.set()
    preview, completed = events(found)
    is_whole(orjson.loads(completed.data))
    assert stage.server.calls == 1
    return orjson.loads(preview.data), answer.headers


@pytest.mark.parametrize("kind", ["webp", "jpeg", "avif", "png"])
async def test_an_order_names_it_in_its_query(kind: str) -> None:
    async with staged(FIRST, REST) as stage:
        data, headers = await posted(stage, f"?{SMALL}&preview_format={kind}")
        is_small(data, kind)
        assert "preference-applied" not in headers


async def test_an_order_prefers_it() -> None:
    async with staged(FIRST, REST) as stage:
        data, headers = await posted(stage, prefer="preview=128, preview-format=jpeg")
        is_small(data, "jpeg")
        assert headers["preference-applied"] == "preview=128, preview-format=jpeg"


async def test_an_order_that_is_no_stream_has_none() -> None:
    async with staged((), REST) as stage:
        stage.go.set()
        answer = await stage.post(headers={"prefer": "preview=128"})
        assert hashlib.sha256(base64.b64decode(answer.json()["data"][0]["b64_json"])).hexdigest() == SHA
        assert "preference-applied" not in answer.headers


async def test_a_model_of_the_settings() -> None:
    settings: dict[str, Any] = {"preview_models": ("sim/gpt-image",), "preview_pixels": 128}
    async with staged(FIRST, REST, **settings) as stage:
        data, _ = await posted(stage)
        is_small(data)
    async with staged(FIRST, REST, **settings) as stage:
        data, headers = await posted(stage, prefer="preview=full")
        is_whole(data)
        assert headers["preference-applied"] == "preview=full"
    async with staged(FIRST, REST, **settings) as stage:
        data, _ = await posted(stage, "?preview=full")
        is_whole(data)
    async with staged(FIRST, REST, **settings) as stage:
        data, _ = await posted(stage, "?preview_format=png")
        is_small(data, "png")


async def watched(stage: Stage, url: str, **headers: str) -> tuple[list[Followed], httpx.Headers]:
    """What a reader gets, from the preview on; the second event is the picture."""
    async with following(stage, url, **headers) as reading:
        await reading.until(holds(b"\n\n"))
        stage.go.set()
        found = followed(await reading.rest(), IDS)
        is_whole(found[-1].json)
        return found, reading.response.headers


async def test_followers_with_the_ids_of_the_others() -> None:
    async with staged(FIRST, REST) as stage:
        url = await stage.later()
        (preview, completed), headers = await watched(stage, f"{url}&{SMALL}")
        is_small(preview.json)
        assert (preview.id, completed.id) == ("1.1", "1.2")
        assert "preference-applied" not in headers
        again = await stage.get(f"{url}&{SMALL}", {**EVENTS, "last-event-id": "1.1"})
        assert [one.id for one in followed(again.content)] == ["1.2"]
        assert stage.server.calls == 1


async def test_a_follower_prefers_it() -> None:
    async with staged(FIRST, REST) as stage:
        (preview, _), headers = await watched(stage, await stage.later(), prefer="preview=128")
        is_small(preview.json)
        assert headers["preference-applied"] == "preview=128"


async def test_readers_of_one_stream_want_different_ones() -> None:
    async with staged(FIRST, REST) as stage:
        url = await stage.later()
        async with following(stage, url) as whole, following(stage, f"{url}&{SMALL}") as small:
            await whole.until(holds(b"\n\n"))
            await small.until(holds(b"\n\n"))
            stage.go.set()
            is_whole(followed(await whole.rest())[0].json)
            is_small(followed(await small.rest())[0].json)


async def test_the_url_of_an_order_remembers() -> None:
    """The form is in stream_url, and in that of the picture which an event refers to."""
    async with staged(FIRST, REST) as stage:
        url = await stage.later(headers={"prefer": "respond-async, preview=128"})
        assert url.endswith("&preview=128&preview_format=webp")
        answer = await stage.post(headers={"prefer": "respond-async, preview=128"}, stream=True)
        assert answer.headers["preference-applied"] == "respond-async, preview=128"
        assert str((await stage.state(url))["stream_url"]).endswith("&preview=128&preview_format=webp")
        async with following(stage, f"{url}&payload=ref") as reading:
            await reading.until(holds(b"\n\n"))
            [preview] = followed(reading.body[: reading.body.rindex(b"\n\n") + 2])
            assert (preview.json["size"], preview.json["output_format"]) == ("128x85", "webp")
            picture = await stage.get(stage.url(str(preview.json["image_url"])))
            assert picture.headers["content-type"] == "image/webp"
            assert Image.open(BytesIO(picture.content)).size == (128, 85)
            stage.go.set()
            completed = followed(await reading.rest())[-1]
            picture = await stage.get(stage.url(str(completed.json["image_url"])))
            assert hashlib.sha256(picture.content).hexdigest() == SHA


async def test_the_newest_preview_as_a_file() -> None:
    async with staged(FIRST, REST) as stage:
        url = await stage.later()
        async with following(stage, url) as reading:
            await reading.until(holds(b"\n\n"))
            path, _, token = url.partition("?")
            place = f"{path}/images/0/preview?{token}"
            small = await stage.get(f"{place}&{SMALL}&preview_format=avif")
            assert small.headers["content-type"] == "image/avif"
            assert Image.open(BytesIO(small.content)).size == (128, 85)
            whole = await stage.get(place)
            assert whole.content == PICTURE
            assert whole.headers["etag"] != small.headers["etag"]
            stage.go.set()
            await reading.rest()
        done = await stage.get(f"{place}&{SMALL}")
        assert done.content == PICTURE


async def test_several_streams_on_one_connection() -> None:
    async with staged(FIRST, REST) as stage:
        url = await stage.later()
        path, _, token = url.partition("?token=")
        base, _, id = path.rpartition("/")
        found, _ = await watched(stage, f"{base}?stream={id}:{token}&{SMALL}&payload=inline")
        is_small(found[0].json)
        assert [(one.id, one.json["stream"]) for one in found] == [("1.1", id), ("1.2", id)]


async def test_edits() -> None:
    kind = "image_edit.partial_image"
    rest = (shown("image_edit.completed", usage=USAGE),)
    async with staged((shown(kind, partial_image_index=0),), rest) as stage:
        picture = {"image_url": "data:image/png;base64," + base64.b64encode(PICTURE).decode()}
        body = {"model": "sim/gpt-image", "prompt": "a boat", "images": [picture], "stream": True, "partial_images": 1}
        url = f"{stage.proxy.url}/v1/images/edits?{SMALL}"
        answer = await stage.proxy.client.post(url, json=body, headers=LATER)
        (preview, _), _ = await watched(stage, stage.url(answer.headers["location"]))
        assert preview.event == kind
        is_small({**preview.json, "type": PREVIEW})


async def test_responses() -> None:
    async with staged(FIRST, REST) as stage:
        tool = {"type": "image_generation", "model": "sim/gpt-image", "partial_images": 1}
        body = {"model": "gpt-5", "input": "a boat", "tools": [tool], "stream": True}
        url = f"{stage.proxy.url}/v1/responses?{SMALL}"
        found = b""
        with anyio.fail_after(BOUND):
            async with stage.proxy.client.stream("POST", url, json=body) as answer:
                async for chunk in answer.aiter_raw():
                    found += chunk
                    if b"partial_image_b64" in found and found.endswith(b"\n\n"):
                        stage.go.set()
        sent: dict[str, Any] = {one.event: one.json for one in events(found)}
        preview = sent["response.image_generation_call.partial_image"]
        assert image_of(preview["partial_image_b64"]) == ("WEBP", (128, 85))
        assert (preview["size"], preview["output_format"]) == ("128x85", "webp")
        item = sent["response.output_item.done"]["item"]
        assert hashlib.sha256(base64.b64decode(item["result"])).hexdigest() == SHA


WRONG: Final = [
    ("preview=0", "preview", "16 to 2048"),
    ("preview=abc", "preview", "16 to 2048"),
    ("preview=100000", "preview", "16 to 2048"),
    ("preview=", "preview", "16 to 2048"),
    ("preview=64&preview_format=gif", "preview_format", "webp, jpeg, avif, png"),
]


@pytest.mark.parametrize(("query", "field", "allowed"), WRONG)
async def test_a_wrong_query_is_refused(query: str, field: str, allowed: str) -> None:
    """By each of the routes that take it, before anything is paid."""
    async with staged(FIRST, REST) as stage:
        stage.go.set()
        url = f"{stage.proxy.url}/v1/images/generations?{query}"
        body = {"model": "sim/gpt-image", "prompt": "a boat", "stream": True}
        answers = [await stage.proxy.client.post(url, json=body)]
        assert stage.server.calls == 0
        url = await stage.later()
        path, _, token = url.partition("?token=")
        base, _, id = path.rpartition("/")
        several = f"{base}?stream={id}:{token}&{query}"
        for place in (f"{url}&{query}", several, f"{path}/images/0/preview?token={token}&{query}"):
            answers.append(await stage.get(place, EVENTS))
        answers.append(await stage.get(f"{url}&{query}", JSON))
        for answer in answers:
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (422, field)
            assert allowed in error["message"]


@pytest.mark.parametrize("wish", ["preview=0", "preview=huge", "preview", "preview-format=gif", "preview=4096"])
async def test_a_preference_that_cannot_be_honoured(wish: str) -> None:
    async with staged(FIRST, REST) as stage:
        data, headers = await posted(stage, prefer=wish)
        is_whole(data)
        assert "preference-applied" not in headers
