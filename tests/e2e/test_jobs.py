"""Jobs: ordered with `Prefer: respond-async`, polled as JSON, waited for, and listed."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import anyio
import pytest

from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, error_answer, json_answer, sse
from tests.support.faults import IMAGE_BODY
from tests.support.provider import completed, preview
from tests.support.proxy import BOUND, events
from tests.support.streams import EVENTS, JSON, LATER, Stage, playing, staged

pytestmark = pytest.mark.anyio

MINE: Final = "caller-key-of-mine-0123456789"
OTHER: Final = "caller-key-of-another-0123456"
KEYS: Final = tuple("sha256:" + hashlib.sha256(key.encode()).hexdigest() for key in (MINE, OTHER))
WAITING: Final = {"prefer": "respond-async, wait=20"}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def good(received: Received) -> Script:
    return sse((preview(0), completed()))


async def test_an_order_that_is_done_in_time_is_answered_at_once() -> None:
    async with playing(lambda _: json_answer(200, IMAGE_BODY)) as stage:
        plain = await stage.post()
        answer = await stage.post(headers=WAITING)
        assert (answer.status_code, answer.headers["preference-applied"]) == (200, "respond-async, wait=20")
        assert answer.json()["data"] == plain.json()["data"]
        assert stage.server.calls == 2


async def test_a_stream_that_is_done_in_time_is_sent() -> None:
    async with playing(good) as stage:
        answer = await stage.post(headers=WAITING, stream=True)
        assert answer.status_code == 200
        assert [event.event for event in events(answer.content)] == ["image_generation.completed"]
        again = await stage.get(stage.url(answer.headers["location"]), EVENTS)
        assert again.status_code == 200  # it is kept, as every job is


async def test_an_order_that_is_not_done_in_time_is_a_job() -> None:
    async with staged() as stage:
        answer = await stage.post(headers={"prefer": "respond-async, wait=1"}, stream=True)
        assert (answer.status_code, answer.headers["preference-applied"]) == (202, "respond-async, wait=1")
        assert answer.headers["retry-after"] == "2"
        assert answer.json()["status"] == "in_progress"
        stage.go.set()
        await stage.until(stage.url(answer.json()["status_url"]), "completed")
        assert stage.server.calls == 1


async def test_an_order_that_fails_in_time_says_so() -> None:
    async with playing(lambda _: error_answer(400, "No.", code="bad")) as stage:
        answer = await stage.post(headers=WAITING)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad")


async def test_a_job_that_fails_in_time_is_a_failed_job() -> None:
    async with staged(rest=()) as stage, anyio.create_task_group() as tasks:

        async def order() -> None:
            answer = await stage.post(headers=WAITING, stream=True)
            assert (answer.status_code, answer.json()["status"]) == (202, "failed")
            assert "retry-after" not in (await stage.get(stage.url(answer.json()["status_url"]))).headers

        tasks.start_soon(order)
        with anyio.fail_after(BOUND):
            while not await stage.proxy.metric("streamproxy_frames_total"):
                pass
        stage.go.set()


@pytest.mark.parametrize("wait", ["wait", "wait=x", "wait=-1", "on-disconnect=finish"])
async def test_a_wait_that_is_no_number_is_none(wait: str) -> None:
    async with staged() as stage:
        answer = await stage.post(headers={"prefer": f"respond-async, {wait}"}, stream=True)
        assert answer.status_code == 202
        assert "wait" not in answer.headers["preference-applied"]
        stage.go.set()


@pytest.mark.parametrize("path", ["", "/status"])
async def test_a_status_is_answered_as_soon_as_it_is_final(path: str) -> None:
    async with staged() as stage:
        base, _, query = (await stage.later()).partition("?")
        url = f"{base}{path}?{query}"
        first = await stage.get(url, JSON)
        assert (first.json()["status"], first.headers["retry-after"]) == ("in_progress", "2")
        assert "preference-applied" not in first.headers
        short = await stage.get(url, {**JSON, "prefer": "wait=0"})
        assert (short.json()["status"], short.headers["preference-applied"]) == ("in_progress", "wait=0")
        with anyio.fail_after(BOUND):
            async with anyio.create_task_group() as tasks:

                async def poll() -> None:
                    answer = await stage.get(url, {**JSON, "prefer": "wait=600"})
                    assert (answer.json()["status"], len(answer.json()["data"])) == ("completed", 1)
                    assert answer.headers["preference-applied"] == "wait=50"
                    assert "retry-after" not in answer.headers

                tasks.start_soon(poll)
                tasks.start_soon(poll)
                stage.go.set()
        assert stage.server.calls == 1


async def test_who_waits_is_a_viewer() -> None:
    async with staged(max_viewers=1) as stage:
        url = await stage.later()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stage.get, url, {**JSON, "prefer": "wait=20"})
            with anyio.fail_after(BOUND):
                while (await stage.get(url, {**JSON, "prefer": "wait=0"})).status_code != 429:
                    pass
            tasks.cancel_scope.cancel()
        with anyio.fail_after(BOUND):
            while (await stage.get(url, {**JSON, "prefer": "wait=0"})).status_code == 429:
                pass
        stage.go.set()


async def listed(stage: Stage, key: str, query: str = "") -> dict[str, Any]:
    answer = await stage.get(f"{stage.proxy.url}/v1/streams{query}", bearer(key))
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    value = answer.json()
    assert isinstance(value, dict)
    return value


async def test_a_caller_lists_its_own_streams() -> None:
    async with playing(good, caller_keys=KEYS) as stage:
        made = [(await stage.post(headers={**LATER, **bearer(MINE)}, stream=True)).json() for _ in range(3)]
        await stage.later(headers=bearer(OTHER))
        for each in made:
            await stage.until(stage.url(each["stream_url"]), "completed")
        ids = [each["id"] for each in reversed(made)]
        whole = await listed(stage, MINE)
        data = whole["data"]
        assert isinstance(data, list)
        assert [(one["id"], one["status"], one["object"], one["n"]) for one in data] == [
            (id, "completed", "image.stream", 1) for id in ids
        ]
        assert (whole["object"], whole["has_more"], whole["first_id"], whole["last_id"]) == (
            "list",
            False,
            ids[0],
            ids[2],
        )
        assert (await stage.get(stage.url(data[0]["stream_url"]), JSON)).status_code == 200
        assert (await stage.get(stage.url(data[0]["status_url"]))).json()["id"] == ids[0]
        page = await listed(stage, MINE, "?limit=2")
        assert (page["last_id"], page["has_more"]) == (ids[1], True)
        last = await listed(stage, MINE, f"?limit=2&after={ids[1]}")
        assert (last["first_id"], last["last_id"], last["has_more"]) == (ids[2], ids[2], False)
        assert await listed(stage, MINE, f"?after={ids[2]}") == {
            "object": "list",
            "data": [],
            "first_id": None,
            "last_id": None,
            "has_more": False,
        }
        assert len((await listed(stage, OTHER))["data"]) == 1
        gone = await stage.get(f"{stage.proxy.url}/v1/streams?after={ids[0]}", bearer(OTHER))
        assert (gone.status_code, gone.json()["error"]["param"]) == (404, "after")


@pytest.mark.parametrize("limit", ["0", "101", "-1", "x", "", "1e1", "٣"])
async def test_a_page_has_a_size(limit: str) -> None:
    async with playing(good, caller_keys=KEYS) as stage:
        refused = await stage.get(f"{stage.proxy.url}/v1/streams?limit={limit}", bearer(MINE))
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "limit")


async def test_there_is_no_list_without_a_key() -> None:
    async with playing(good, caller_keys=KEYS) as stage:
        url = f"{stage.proxy.url}/v3/streams"
        assert (await stage.get(url)).status_code == 401
        assert (await stage.get(url, bearer("nobody's"))).status_code == 401
    async with playing(good) as stage:
        await stage.later()
        assert (await stage.get(f"{stage.proxy.url}/v3/streams")).status_code == 404
        await stage.later(headers=bearer("the provider's own"))
        assert len((await listed(stage, "the provider's own"))["data"]) == 1


async def test_a_list_says_what_runs_and_what_failed() -> None:
    async with staged(rest=(), caller_keys=KEYS) as stage:
        await stage.later(headers=bearer(MINE))
        [running] = (await listed(stage, MINE))["data"]
        assert running["status"] == "in_progress"
        stage.go.set()
        await stage.until(stage.url(running["stream_url"]), "failed")
        [failed] = (await listed(stage, MINE))["data"]
        assert failed["status"] == "failed"


async def test_an_unreachable_answer_is_not_listed() -> None:
    async with playing(lambda _: json_answer(200, IMAGE_BODY), caller_keys=KEYS) as stage:
        assert (await stage.post(headers=bearer(MINE))).status_code == 200
        with anyio.fail_after(BOUND):
            while (await listed(stage, MINE))["data"]:
                pass
