"""`response_format`: base64 of pictures that a provider has at URLs, and the proxy's own URL of any picture."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import orjson
import pytest

from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Send, error_answer, event, head, json_answer, sse
from tests.golden.shapes import PICTURE
from tests.support.provider import COMPLETED, USAGE, preview
from tests.support.proxy import events
from tests.support.streams import EVENTS, Stage, playing

pytestmark = pytest.mark.anyio

TEXT: Final = PICTURE.decode()
FILE: Final = base64.b64decode(TEXT)
KEY: Final = "the-callers-own-key-0123456789"


class Files:
    """A provider whose pictures are at its own URLs, in JSON or in events, or that answers with base64."""

    def __init__(self, form: str = "json", *, pictures: int = 1, missing: bool = False) -> None:
        self._form = form
        self._pictures = pictures
        self._missing = missing
        self.asked: list[Received] = []
        self.fetched: list[Received] = []

    def __call__(self, received: Received) -> Script:
        if received.method == "GET":
            self.fetched.append(received)
            if self._missing:
                return error_answer(403, "No.")
            return (Send(head(200, (("Content-Type", "image/png"),), length=len(FILE))), Send(FILE))
        self.asked.append(received)
        where = f"http://{received.header('host')}/files/{{}}.png?signature=s"
        if self._form == "events":
            members = {"type": COMPLETED, "url": where.format(0), "created_at": 1, "usage": USAGE, "seed": 7}
            return sse((preview(0), event(COMPLETED, orjson.dumps(members))))
        if self._form == "base64":
            return json_answer(200, {"created": 1, "data": [{"b64_json": TEXT}]})
        items = [{"url": where.format(number), "seed": number} for number in range(self._pictures)]
        return json_answer(200, {"created": 1, "data": items, "x": [1.0]})


@asynccontextmanager
async def provided(files: Files, **settings: object) -> AsyncIterator[Stage]:
    """A proxy that may fetch from its provider."""
    async with playing(files, **{"fetch_hosts": ("127.0.0.1",), **settings}) as stage:
        yield stage
        assert len(files.asked) == 1


async def answered(stage: Stage, **members: Any) -> dict[str, Any]:
    """The one item of a JSON answer, or the completed event."""
    answer = await stage.post(model="sim/plain", **members)
    assert answer.status_code == 200, answer.text
    if members.get("stream"):
        found: dict[str, Any] = events(answer.content)[-1].json
        return found
    [item] = answer.json()["data"]
    return dict(item)


FORMS: Final = pytest.mark.parametrize(
    ("form", "stream"), [("json", False), ("json", True), ("events", False), ("events", True)]
)


@FORMS
async def test_base64_is_added_beside_the_url(form: str, stream: bool) -> None:
    files = Files(form)
    async with provided(files) as stage:
        item = await answered(stage, stream=stream)
        assert item["b64_json"] == TEXT
        assert item["url"].endswith("/files/0.png?signature=s")
        assert "warning" not in item
        assert len(files.fetched) == 1


@FORMS
async def test_base64_that_is_asked_for_comes_alone(form: str, stream: bool) -> None:
    async with provided(Files(form), inline_urls="asked") as stage:
        item = await answered(stage, stream=stream, response_format="b64_json")
        assert item["b64_json"] == TEXT
        assert not item.get("url")


@pytest.mark.parametrize(("setting", "asked"), [("never", "b64_json"), ("never", None), ("asked", None)])
@FORMS
async def test_a_url_that_is_not_to_be_fetched_stays(form: str, stream: bool, setting: str, asked: str | None) -> None:
    files = Files(form)
    async with provided(files, inline_urls=setting) as stage:
        item = await answered(stage, stream=stream, response_format=asked)
        assert item["url"].endswith("/files/0.png?signature=s")
        assert not item.get("b64_json")
        assert files.fetched == []


async def test_everything_else_of_the_answer_stays_as_it_is() -> None:
    async with provided(Files(pictures=2)) as stage:
        answer = await stage.post(model="sim/plain", n=2)
        assert [(item["seed"], item["b64_json"]) for item in answer.json()["data"]] == [(0, TEXT), (1, TEXT)]
        assert b'"x":[1.0]' in answer.content
        assert answer.content.startswith(b'{"created":1,"data":[{"url":"')


@pytest.mark.parametrize("form", ["json", "events", "base64"])
async def test_a_url_that_is_asked_for_is_our_own(form: str) -> None:
    async with provided(Files(form)) as stage:
        item = await answered(stage, response_format="url")
        assert not item.get("b64_json")
        assert item["url"].startswith(f"{stage.proxy.url}/v1/streams/str_")
        picture = await stage.get(item["url"])
        assert (picture.status_code, picture.headers["content-type"], picture.content) == (200, "image/png", FILE)
        part = await stage.get(item["url"], {"range": "bytes=1-3"})
        assert (part.status_code, part.content) == (206, FILE[1:4])
        assert (await stage.get(item["url"].replace("/images/0", "/images/1"))).status_code == 404


async def test_each_of_several_pictures_has_a_url() -> None:
    async with provided(Files(pictures=2)) as stage:
        data = (await stage.post(model="sim/plain", n=2, response_format="url")).json()["data"]
        assert [item["url"].partition("?")[0].rpartition("/images/")[2] for item in data] == ["0", "1"]
        assert [(await stage.get(item["url"])).content for item in data] == [FILE, FILE]


@pytest.mark.parametrize("form", ["json", "events", "base64"])
async def test_an_event_has_both(form: str) -> None:
    """SDKs' types need its base64."""
    async with provided(Files(form)) as stage:
        item = await answered(stage, stream=True, response_format="url")
        assert item["b64_json"] == TEXT
        assert (await stage.get(item["url"])).content == FILE


async def test_a_follower_sees_what_was_fetched() -> None:
    async with provided(Files("events")) as stage:
        url = await stage.later(model="sim/plain")
        await stage.until(url, "completed")
        assert TEXT.encode() in (await stage.get(url, EVENTS)).content
        assert (await stage.get(url.replace("?", "/images/0?"))).content == FILE


@FORMS
async def test_what_cannot_be_fetched_keeps_its_url_and_says_so(form: str, stream: bool) -> None:
    for asked in (None, "b64_json", "url"):
        async with provided(Files(form, missing=True)) as stage:
            item = await answered(stage, stream=stream, response_format=asked)
            assert item["url"].endswith("/files/0.png?signature=s")
            assert item["b64_json"] is None
            assert item["warning"].startswith("The image at 127.0.0.1 could not be fetched: ")
            assert await stage.proxy.tolerated() == {"fetch_fail": 1}


async def test_what_the_guard_forbids_is_not_fetched() -> None:
    files = Files()
    async with provided(files, fetch_hosts=()) as stage:
        item = await answered(stage)
        assert item["url"].endswith("/files/0.png?signature=s")
        assert "127.0.0.1" in item["warning"]
        assert "signature" not in item["warning"]
        assert files.fetched == []


async def test_a_picture_is_fetched_without_a_key() -> None:
    files = Files()
    async with provided(files, provider={"credential": "caller"}) as stage:
        answer = await stage.post(model="sim/plain", headers={"authorization": f"Bearer {KEY}"})
        assert answer.status_code == 200
        assert KEY in (files.asked[0].header("authorization") or "")
        assert KEY not in repr(files.fetched[0].headers)


async def test_a_url_begins_with_public_url() -> None:
    async with provided(Files("base64"), public_url="https://images.example.com/proxy") as stage:
        item = await answered(stage, response_format="url")
        assert item["url"].startswith("https://images.example.com/proxy/v1/streams/str_")


@pytest.mark.parametrize(("host", "base"), [("images.test:81", "http://images.test:81/v1/"), ("evil.test", "/v1/")])
async def test_a_url_begins_with_a_host_that_the_settings_know(host: str, base: str) -> None:
    async with provided(Files("base64"), allowed_hosts=("images.test",)) as stage:
        answer = await stage.post(model="sim/plain", headers={"host": host}, response_format="url")
        assert answer.json()["data"][0]["url"].startswith(f"{base}streams/str_")
