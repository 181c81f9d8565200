"""Completed pictures in a bucket: where they are, that they outlive the process, and what a lost bucket costs."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final

import anyio
import httpx
import pytest
from structlog.testing import capture_logs

from streamproxy.generation import results
from streamproxy.generation.results import WAIT_SECONDS
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Stall, json_answer, sse
from streamproxy.simulator.server import serve
from tests.golden.shapes import PICTURE
from tests.support import bucket, previews
from tests.support.bucket import NAME, PREFIX, BucketServer, bucket_server
from tests.support.previews import REST
from tests.support.provider import COMPLETED, USAGE
from tests.support.proxy import BOUND, events
from tests.support.receiver import receiving
from tests.support.replicas import USER, replicas
from tests.support.streams import EVENTS, Stage, playing
from tests.support.valkey import valkey_server

pytestmark = pytest.mark.anyio

FILE: Final = base64.b64decode(PICTURE)
SECRET: Final = "one-secret-for-all-of-the-processes"


@pytest.fixture(autouse=True)
def found_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.credentials(monkeypatch)


def painter(received: Received) -> Script:
    """JSON with two pictures, or an event stream with one."""
    if b'"stream":true' in received.body:
        return sse((previews.shown(COMPLETED, usage=USAGE),))
    item = {"b64_json": PICTURE.decode()}
    return json_answer(200, {"created": 1, "data": [item, item]})


@asynccontextmanager
async def kept(**settings: object) -> AsyncIterator[tuple[Stage, BucketServer]]:
    async with bucket_server() as server, playing(painter, **server.settings, secret=SECRET, **settings) as stage:
        yield stage, server


async def ordered(stage: Stage) -> list[str]:
    """The URLs of two pictures."""
    answer = await stage.post(model="sim/plain", n=2, response_format="url")
    assert answer.status_code == 200, answer.text
    return [item["url"] for item in answer.json()["data"]]


async def read(url: str) -> httpx.Response:
    """What anybody gets at this URL, without any header of ours."""
    async with httpx.AsyncClient(timeout=BOUND, trust_env=False) as client:
        return await client.get(url)


async def test_an_answer_has_signed_urls_of_the_bucket() -> None:
    async with kept() as (stage, server):
        urls = await ordered(stage)
        today = f"{datetime.now(UTC):%Y-%m-%d}"
        for number, url in enumerate(urls):
            place = rf"{server.url}/{NAME}/{PREFIX}/{today}/str_[0-9a-f]{{32}}/{number}\.png\?.*X-Amz-Expires=86400&.*"
            assert re.fullmatch(place, url), url
            picture = await read(url)
            assert (picture.status_code, picture.headers["content-type"]) == (200, "image/png")
            assert hashlib.sha256(picture.content).digest() == hashlib.sha256(FILE).digest()
        assert len(server.put) == len(set(server.put)) == 2
        assert server.lists == 0
        assert stage.server.calls == 1
        assert await stage.proxy.metric("streamproxy_results_total", outcome="stored") == 2


async def test_another_url_than_the_signed_one_is_refused() -> None:
    async with kept() as (stage, _):
        first, second = await ordered(stage)
        assert (await read(first.replace("/0.png", "/1.png"))).status_code == 403
        assert (await read(second.partition("?")[0])).status_code == 403


async def test_how_long_a_url_is_valid() -> None:
    async with kept(token_seconds=60) as (stage, _):
        assert "X-Amz-Expires=60&" in (await ordered(stage))[0]
    async with kept(results_seconds=7) as (stage, _):
        assert "X-Amz-Expires=7&" in (await ordered(stage))[0]


async def test_a_url_expires() -> None:
    async with kept(results_seconds=1) as (stage, _):
        [url, _] = await ordered(stage)
        assert (await read(url)).status_code == 200
        with anyio.fail_after(BOUND):
            while (await read(url)).status_code != 403:  # noqa: ASYNC110  its time ends by itself
                await anyio.sleep(0.1)


async def test_the_image_route_leads_there() -> None:
    async with kept() as (stage, server):
        url = await stage.later(model="sim/gpt-image")
        await stage.until(url, "completed")
        image = url.replace("?", "/images/0?")
        await moved(stage, image, server)
        head = await stage.proxy.client.head(image)
        assert (head.status_code, head.headers["content-type"]) == (200, "image/png")
        assert (await stage.get(image.replace("/0?", "/1?"))).status_code == 404


async def moved(stage: Stage, url: str, server: BucketServer) -> str:
    """Where an image route leads, once the picture is in the bucket."""
    answer = await stage.get(url)
    assert answer.status_code == 302, answer.text
    assert answer.headers["cache-control"] == "no-store"
    where = answer.headers["location"]
    assert where.startswith(f"{server.url}/{NAME}/")
    assert (await read(where)).content in server.objects().values()
    return str(where)


async def test_the_status_names_the_bucket() -> None:
    async with kept() as (stage, server):
        url = await stage.later(model="sim/gpt-image")
        await stage.until(url, "completed")
        state: dict[str, Any] = (await stage.get(url.replace("?", "/status?") + "&payload=ref")).json()
        [image] = state["data"]
        assert image["image_url"].startswith(f"{server.url}/{NAME}/")
        assert (await read(image["image_url"])).status_code == 200


async def test_events_have_our_own_url() -> None:
    async with kept() as (stage, server):
        answer = await stage.post(stream=True, response_format="url")
        said = events(answer.content)[-1].json
        assert str(said["url"]).startswith(f"{stage.proxy.url}/v1/streams/")
        await moved(stage, str(said["url"]), server)


async def test_a_picture_outlives_its_stream() -> None:
    async with kept(linger=0.05) as (stage, server):
        url = await stage.later(model="sim/gpt-image")
        image = url.replace("?", "/images/0?")
        with anyio.fail_after(BOUND):
            while (await stage.get(url, EVENTS)).status_code != 410:  # noqa: ASYNC110  its time ends by itself
                await anyio.sleep(0.02)
        await moved(stage, image, server)
        bare = image.partition("?")[0]
        assert (await stage.get(bare)).status_code == 410
        assert (await stage.get(f"{bare}?token=x.y")).status_code == 401
        assert (await stage.get(image.replace("/0?", "/7?"))).status_code == 410


async def test_a_picture_outlives_its_process() -> None:
    async with bucket_server() as server:
        async with playing(painter, **server.settings, secret=SECRET) as stage:
            [signed, _] = await ordered(stage)
            url = await stage.later(model="sim/gpt-image")
            await stage.until(url, "completed")
            await moved(stage, url.replace("?", "/images/0?"), server)
            image = url.removeprefix(stage.proxy.url).replace("?", "/images/0?")
        assert (await read(signed)).content == FILE
        async with playing(painter, **server.settings, secret=SECRET) as other:
            await moved(other, other.url(image), server)
            assert other.server.calls == 0


async def test_what_is_deleted_is_deleted_there() -> None:
    async with kept() as (stage, server):
        answer = await stage.post(stream=True)
        image = stage.url(answer.headers["location"]).replace("?", "/images/0?")
        await moved(stage, image, server)
        ending = stage.url(answer.headers["cancel-location"])
        assert (await stage.proxy.client.delete(ending)).json()["deleted"] is True
        with anyio.fail_after(BOUND):
            while server.objects():  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert (await stage.get(image)).status_code == 410


async def test_a_stopping_process_puts_its_last_pictures() -> None:
    async with kept() as (stage, server):
        assert (await stage.post(model="sim/plain", n=2)).status_code == 200
        assert stage.proxy.drain is not None
        await stage.proxy.drain()
        assert list(server.objects().values()) == [FILE, FILE]


async def test_another_replica_leads_there_too() -> None:
    async with bucket_server() as server:
        places = {name: f'"{value}"' for name, value in server.settings.items()}
        with valkey_server(*USER) as valkey:
            async with replicas(valkey, status=-signal.SIGKILL, **places) as cluster:
                scene = cluster.scene((), REST)
                scene.go.set()
                location = await cluster.later(cluster.a, scene)
                await cluster.until(cluster.b, location, "completed")
                image = location.replace("?", "/images/0?")
                with anyio.fail_after(BOUND):
                    while not server.put:  # noqa: ASYNC110  the upload runs beside the delivery
                        await anyio.sleep(0.01)
                os.kill(cluster.a.pid, signal.SIGKILL)
                answer = await cluster.get(cluster.b, image)
                assert answer.status_code == 302, answer.text
                picture = await read(answer.headers["location"])
                assert picture.content == previews.PICTURE
                assert server.put == list(dict.fromkeys(server.put))
                assert server.lists == 1
                assert scene.calls == 1


async def test_a_webhook_names_the_bucket() -> None:
    async with receiving() as receiver, kept(**receiver.settings) as (stage, server):
        await stage.post(model="sim/plain", n=2, headers=receiver.asked)
        data = (await receiver.message())["data"]
        assert [image["url"].startswith(f"{server.url}/{NAME}/") for image in data["images"]] == [True, True]
        assert [(await read(image["url"])).content for image in data["images"]] == [FILE, FILE]


# A bucket that is down.


@asynccontextmanager
async def unreachable() -> AsyncIterator[str]:
    async with serve(lambda _: ()) as server:
        pass
    yield server.url


@asynccontextmanager
async def slow() -> AsyncIterator[str]:
    async with serve(lambda _: (Stall(),)) as server:
        yield server.url


@asynccontextmanager
async def refusing() -> AsyncIterator[str]:
    async with serve(lambda _: json_answer(403, {})) as server:
        yield server.url


@asynccontextmanager
async def another_key() -> AsyncIterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        bucket.credentials(patch, secret="not the key of this bucket")
        async with bucket_server() as server:
            yield server.url


@pytest.mark.parametrize("place", [unreachable, slow, refusing, another_key])
async def test_a_bucket_that_is_down_costs_no_answer(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with capture_logs() as logs:
        async with (
            place() as url,
            playing(painter, results=f"s3://{NAME}", results_endpoint=url, secret=SECRET) as stage,
        ):
            began = anyio.current_time()
            urls = await ordered(stage)
            assert [url.startswith(f"{stage.proxy.url}/v1/streams/str_") for url in urls] == [True, True]
            assert [(await stage.get(url)).content for url in urls] == [FILE, FILE]
            took = anyio.current_time() - began
            assert took < WAIT_SECONDS + 5, took
            began = anyio.current_time()
            await ordered(stage)  # it is not waited for a second time
            assert anyio.current_time() - began < WAIT_SECONDS
            assert stage.server.calls == 2
            counts = [
                await stage.proxy.metric("streamproxy_results_total", outcome=each) for each in ("failed", "slow")
            ]
            assert sum(counts) >= 1
    lines = [line for line in logs if line["event"] == "result"]
    assert lines
    assert bucket.KEY_ID not in repr(logs)


@pytest.mark.parametrize("place", [unreachable, slow])
async def test_an_answer_without_urls_waits_for_no_bucket(place: Any) -> None:
    async with place() as url, playing(painter, results=f"s3://{NAME}", results_endpoint=url) as stage:
        began = anyio.current_time()
        assert (await stage.post(model="sim/plain")).status_code == 200
        assert (await stage.post(stream=True)).status_code == 200
        assert anyio.current_time() - began < WAIT_SECONDS


async def test_what_waits_to_be_put_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "HELD_BYTES", 10)
    async with kept() as (stage, server):
        assert (await stage.post(model="sim/plain")).status_code == 200
        assert await stage.proxy.metric("streamproxy_results_total", outcome="skipped") == 1
        assert server.put == []
