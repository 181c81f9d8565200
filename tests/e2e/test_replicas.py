"""Processes on one Valkey: a reader gets the same stream from each of them, and it is paid for once."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Final

import anyio
import httpx
import pytest

from streamproxy.hub.mirrors import PRESENCE_SECONDS
from streamproxy.hub.valkey.store import VIEWED_SECONDS
from tests.support import previews
from tests.support.process import Process
from tests.support.provider import COMPLETED, PREVIEW, USAGE, answered_item, completed, passed_on, preview
from tests.support.proxy import BOUND, events
from tests.support.replicas import GRACE, USER, Cluster, replicas
from tests.support.streams import EVENTS, IDS, KEY, Followed, followed, holds, retry_of
from tests.support.valkey import valkey_server

pytestmark = pytest.mark.anyio

OWN: Final = {"authorization": "Bearer a caller's own"}
BIG: Final = 4_000_000
VIEWERS: Final = 200
CALLS: Final = 10
"""With one Idempotency-Key, at each replica."""


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="module")
async def cluster() -> AsyncIterator[Cluster]:
    """One for the module; the last to use it is `test_nothing_is_left`."""
    with valkey_server(*USER) as valkey:
        async with replicas(valkey) as running:
            yield running
        assert valkey.clients() == 0, valkey.command("CLIENT", "LIST")


def said(events: list[Followed]) -> list[tuple[str, bytes, str | None]]:
    return [(event.event, event.data, event.id) for event in events]


async def whole(cluster: Cluster, at: Process, location: str, last_event_id: str = "") -> list[Followed]:
    """What a reader gets, from where it was to the end."""
    async with cluster.following(at, location, last_event_id) as reading:
        assert reading.response.status_code == 200
        return followed(await reading.rest())


async def test_each_replica_makes_its_own_small_previews(cluster: Cluster) -> None:
    scene = cluster.scene((previews.shown(PREVIEW, partial_image_index=0),), (previews.shown(COMPLETED, usage=USAGE),))
    location = await cluster.later(cluster.a, scene)
    small = f"{location}&{previews.SMALL}"
    async with cluster.following(cluster.a, small) as here, cluster.following(cluster.b, small) as there:
        for reading in (here, there):
            await reading.until(holds(b"\n\n"))
        scene.go.set()
        for reading in (here, there):
            preview, completed = followed(await reading.rest())
            previews.is_small(preview.json)
            previews.is_whole(completed.json)
            assert (preview.id, completed.id) == ("1.1", "1.2")
    assert scene.calls == 1


async def test_a_stream_of_one_replica_is_the_same_at_another(cluster: Cluster) -> None:
    scene = cluster.scene((preview(0), preview(1)))
    location = await cluster.later(cluster.a, scene)
    async with cluster.following(cluster.a, location) as here, cluster.following(cluster.b, location) as there:
        for reading in (here, there):
            await reading.until(holds(b"\nid: 1.2\n\n"))
        assert (await cluster.state(cluster.b, location))["status"] == "in_progress"
        scene.go.set()
        got_here, got_there = followed(await here.rest()), followed(await there.rest())
    assert said(got_there)[-2:] == said(got_here)[-2:]
    wanted = [(sent.event, sent.data) for sent in passed_on(preview(1), completed())]
    assert [(event.event, event.data) for event in got_there[-2:]] == wanted
    assert [event.id for event in got_there[-2:]] == ["1.2", "1.3"]
    for at, other in ((cluster.a, got_there), (cluster.b, got_here)):  # each goes on where the other's events ended
        assert said(await whole(cluster, at, location, other[-2].id or "")) == said(got_here)[-1:]
        assert said(await whole(cluster, at, location)) == said(got_here)[-1:]
        assert (await cluster.get(at, location, {**EVENTS, "last-event-id": "1.3"})).status_code == 204
    assert scene.calls == 1


async def test_status_and_images_are_the_same_elsewhere(cluster: Cluster) -> None:
    scene = cluster.scene()
    scene.go.set()
    location = await cluster.later(cluster.a, scene)
    await whole(cluster, cluster.b, location)
    states = [await cluster.state(at, location) for at in (cluster.a, cluster.b)]
    assert states[0] == states[1]
    assert states[0]["status"] == "completed"
    path, _, token = location.partition("?")
    images = [await cluster.get(at, f"{path}/images/0?{token}") for at in (cluster.a, cluster.b)]
    assert images[0].status_code == images[1].status_code == 200
    assert images[0].content == images[1].content
    assert images[0].headers["etag"] == images[1].headers["etag"]
    forged = await cluster.get(cluster.b, f"{location[:-1]}{'A' if location[-1] != 'A' else 'B'}", EVENTS)
    assert forged.status_code == 401
    assert (await cluster.get(cluster.b, path, EVENTS)).status_code == 404  # it has no owner, so no key opens it


async def test_readers_at_another_replica_watch_a_stream(cluster: Cluster) -> None:
    scene = cluster.scene()
    async with cluster.posting(cluster.a, scene) as posted:
        location = posted.response.headers["location"]
        await posted.until(holds(b"\n\n"))
        async with cluster.following(cluster.b, location) as there:
            await there.until(holds(b"\n\n"))
            scene.go.set()
            answer, watched = events(await posted.rest()), followed(await there.rest())
    assert [(sent.event, sent.data) for sent in answer] == [(event.event, event.data) for event in watched]
    assert [event.id for event in watched] == ["1.1", "1.2"]


async def test_a_cancel_at_another_replica_closes_upstream(cluster: Cluster) -> None:
    scene = cluster.scene()
    left = len(cluster.server.disconnects)
    ordered = await cluster.ordered(cluster.a, scene)
    location, ending = ordered["location"], ordered["cancel-location"]
    async with cluster.following(cluster.a, location) as here, cluster.following(cluster.b, location) as there:
        await there.until(holds(b"\nid: 1.1\n\n"))
        began = time.monotonic()
        answer = await cluster.client.delete(cluster.b.url + ending)
        assert answer.json()["cancelled"] is True
        await cluster.server.wait_until(lambda server: len(server.disconnects) > left, BOUND)
        took = cluster.server.disconnects[-1] - began
        ends = [followed(await reading.rest())[-1] for reading in (here, there)]
    assert took < 1, took
    assert ends[0] == ends[1]
    assert ends[0].event == "error"
    error = ends[0].json["error"]
    assert isinstance(error, dict)
    assert error["code"] == "cancelled"
    for at in (cluster.a, cluster.b):
        assert (await cluster.state(at, location))["status"] == "cancelled"
    assert (await cluster.client.delete(cluster.b.url + ending)).json()["deleted"] is True
    assert (await cluster.get(cluster.a, location, EVENTS)).status_code == 410
    assert scene.calls == 1


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_an_idempotency_key_holds_on_every_replica(cluster: Cluster, stream: bool) -> None:
    scene = cluster.scene()
    key = {**OWN, KEY: scene.prompt}
    answers: list[httpx.Response] = []

    async def ask(at: Process) -> None:
        answers.append(await cluster.post(at, scene, headers=key, stream=stream))

    async with anyio.create_task_group() as tasks:
        for at in (cluster.a, cluster.b) * CALLS:
            tasks.start_soon(ask, at)
        await scene.asked()
        with anyio.fail_after(BOUND):
            for at in (cluster.a, cluster.b):
                other = await cluster.post(at, cluster.scene(), headers=key, stream=stream)
                assert other.status_code == 422
                assert other.json()["error"]["code"] == "idempotency_key_reused"
        scene.go.set()
    answers.append(await cluster.post(cluster.b, scene, headers=key, stream=stream))
    assert {answer.status_code for answer in answers} == {200}
    assert len(answers) == 2 * CALLS + 1
    if stream:
        assert {events(answer.content)[-1] for answer in answers} == set(passed_on(completed()))
    else:
        assert len({answer.content for answer in answers}) == 1
        assert answers[0].json()["data"][0]["b64_json"]
    assert scene.calls == 1


async def test_viewers_of_another_replica_keep_a_generation_alive(cluster: Cluster) -> None:
    scene, unseen = cluster.scene(), cluster.scene()
    left = len(cluster.server.disconnects)
    async with cluster.posting(cluster.a, unseen) as alone:
        await alone.until(holds(b"\n\n"))
        location = alone.response.headers["location"]
        assert (await cluster.state(cluster.b, location))["status"] == "in_progress"  # to look once is not to follow
    await cluster.server.wait_until(lambda server: len(server.disconnects) == left + 1, GRACE + BOUND)
    with anyio.fail_after(BOUND):  # the upstream closes first, then the end is stored
        while (await cluster.state(cluster.b, location))["status"] != "cancelled":  # noqa: ASYNC110
            await anyio.sleep(0.01)
    async with AsyncExitStack() as moved:
        async with cluster.posting(cluster.a, scene) as asking:
            await asking.until(holds(b"\n\n"))
            location = asking.response.headers["location"]
            there = await moved.enter_async_context(cluster.following(cluster.b, location, "1.1"))
            await there.until(holds(b":\n"))
        await anyio.sleep(GRACE + PRESENCE_SECONDS + 1)  # its viewers are asked for twice
        assert len(cluster.server.disconnects) == left + 1
    within = VIEWED_SECONDS + PRESENCE_SECONDS + 3
    await cluster.server.wait_until(lambda server: len(server.disconnects) == left + 2, within)
    assert (await cluster.state(cluster.b, location))["status"] == "cancelled"


async def test_viewers_elsewhere_share_one_store_connection(cluster: Cluster) -> None:
    scene = cluster.scene((preview(0),), (completed(size=BIG),))
    location = await cluster.later(cluster.a, scene)
    before = cluster.tails()
    digests: list[bytes] = []
    there = 0

    async def view() -> None:
        nonlocal there
        digest = hashlib.sha256()
        url = f"{cluster.b.url}{location}&from=now"
        async with cluster.client.stream("GET", url, headers=EVENTS) as response:
            chunks = response.aiter_raw()
            retry_of(await anext(chunks))  # the opening words are one chunk, and other ones for each viewer
            there += 1
            async for chunk in chunks:
                digest.update(chunk)
        digests.append(digest.digest())

    with anyio.fail_after(2 * BOUND):
        async with anyio.create_task_group() as tasks:
            for _ in range(VIEWERS):
                tasks.start_soon(view)
            while there < VIEWERS:  # noqa: ASYNC110
                await anyio.sleep(0.01)
            assert cluster.tails() == before + 1
            scene.go.set()
    [sent] = passed_on(completed(size=BIG))
    frame = b"data: %b\nevent: %b\nid: 1.2\n\n" % (sent.data, COMPLETED.encode())
    assert set(digests) == {hashlib.sha256(frame).digest()}
    assert len(digests) == VIEWERS
    await cluster.tailed(before)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_retry_at_another_replica_follows_the_lost_one(cluster: Cluster, stream: bool) -> None:
    scene = cluster.scene((), (completed(),)) if stream else cluster.plain()
    left = len(cluster.server.disconnects)
    members: dict[str, object] = {"stream": True} if stream else {}
    with anyio.move_on_after(BOUND):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(functools.partial(cluster.post, cluster.a, scene, headers=OWN, **members))
            await scene.asked()
            tasks.cancel_scope.cancel()  # as an edge whose patience ends
    got: list[httpx.Response] = []

    async def again() -> None:
        got.append(await cluster.post(cluster.b, scene, headers={**OWN, "x-stainless-retry-count": "1"}, **members))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(again)
        await anyio.sleep(2 * GRACE)  # time itself: without a follower it would be cancelled
        scene.go.set()
    assert got[0].status_code == 200, got[0].text
    if stream:
        assert events(got[0].content)[-1] == passed_on(completed())[0]
    else:
        assert got[0].json()["data"] == [answered_item("aW1hZ2U=")]
    assert scene.calls == 1
    assert len(cluster.server.disconnects) == left


async def test_a_failure_at_one_replica_is_held_at_the_other(cluster: Cluster) -> None:
    scene = cluster.scene((), ())
    scene.go.set()
    first = await cluster.post(cluster.a, scene, headers=OWN, stream=True)
    again = await cluster.post(cluster.b, scene, headers=OWN, stream=True)
    for failed in (first, again):
        assert (failed.status_code, failed.json()["error"]["code"]) == (502, "missing_terminal_event")
    assert "failure_hold" in again.json()["error"]["message"]
    assert scene.calls == 1


async def test_streams_of_two_replicas_on_one_connection(cluster: Cluster) -> None:
    """Running and finished, from either replica; the reader goes on at the other one where it was."""
    scenes = [cluster.scene() for _ in range(3)]
    locations = [
        await cluster.later(at, scene) for at, scene in zip((cluster.a, cluster.b, cluster.a), scenes, strict=True)
    ]
    scenes[2].go.set()
    await cluster.until(cluster.a, locations[2], "completed")
    pairs = [location.rpartition("/")[2].replace("?token=", ":") for location in locations]
    together = "/v3/streams?" + "&".join(f"stream={pair}" for pair in pairs)
    async with cluster.following(cluster.b, together) as reading:
        await reading.until(holds(b"\n\n", 3))
        scenes[1].go.set()
        await reading.until(holds(COMPLETED.encode() + b"\n", 2))
    seen = followed(reading.body, IDS)
    scenes[0].go.set()
    async with cluster.following(cluster.a, together, seen[-1].id or "") as reading:
        seen += followed(await reading.rest(), IDS)
    names = [str(event.json["stream"]) for event in seen if event.event == COMPLETED]
    assert names == [pairs[number].partition(":")[0] for number in (2, 1, 0)]
    assert seen[-1].id == "1.2-1.2-1.2"
    async with cluster.following(cluster.b, together, seen[-1].id) as reading:
        assert reading.response.status_code == 204
    assert [scene.calls for scene in scenes] == [1, 1, 1]


async def test_a_list_is_the_same_at_every_replica(cluster: Cluster) -> None:
    key = {"authorization": "Bearer a key that no other test has"}
    scene = cluster.scene()
    scene.go.set()
    locations = [await cluster.later(at, scene, **key) for at in (cluster.a, cluster.b)]
    ids = [location.rpartition("/")[2].partition("?")[0] for location in reversed(locations)]
    for at in (cluster.a, cluster.b):
        listed = (await cluster.get(at, "/v3/streams", key)).json()["data"]
        assert [one["id"] for one in listed] == ids
        await cluster.until(at, listed[0]["stream_url"], "completed")


async def test_nothing_is_left(cluster: Cluster) -> None:
    """By this generation and, in whatever order they ran, by those that shared the replicas with it."""
    scene = cluster.scene()
    scene.go.set()
    assert (await cluster.post(cluster.a, scene, stream=True)).status_code == 200
    await cluster.tailed(2)
    lifetimes = cluster.valkey.lifetimes()
    assert lifetimes
    assert not [key for key, left in lifetimes.items() if left < 0]
    assert not [key for key in lifetimes if key.endswith(":lease")]
    for at in (cluster.a, cluster.b):
        assert "streamproxy_streams 0.0" in (await cluster.get(at, "/metrics")).text
