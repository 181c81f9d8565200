"""Several images in one stream: each event says which image it is about, and each image has one outcome."""

from __future__ import annotations

from typing import Final

import anyio
import orjson
import pytest

from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Fin, Script, error_answer, event, json_answer, sse
from tests.support.faults import Held
from tests.support.provider import COMPLETED, PREVIEW, answered_item
from tests.support.proxy import Sent, events
from tests.support.streams import EVENTS, KEY, LATER, followed, following, held, holds, playing

pytestmark = pytest.mark.anyio

SEVERAL: Final = "sim/plain-ignores-stream"
"""A model that may be asked for several images in one stream."""


def frame(kind: str, image: str, **members: object) -> bytes:
    return event(kind, orjson.dumps({"type": kind, "b64_json": image, **members}))


def of(sent: Sent) -> tuple[str, object, object]:
    """Kind, image and picture of an event."""
    return sent.event.rpartition(".")[2], sent.json.get("image_index"), sent.json.get("b64_json")


@pytest.mark.parametrize("named", [True, False], ids=["named", "in order"])
async def test_a_provider_that_streams_several_images(named: bool) -> None:
    def numbered(kind: str, image: str, index: int) -> bytes:
        return frame(kind, image, **({"image_index": index} if named else {}))

    frames = [
        numbered(PREVIEW, "cDA=", 0),
        numbered(COMPLETED, "YzA=", 0),
        numbered(PREVIEW, "cDE=", 1),
        numbered(COMPLETED, "YzE=", 1),
    ]
    async with playing(lambda _: sse(frames)) as stage:
        answer = await stage.post(model=SEVERAL, stream=True, n=2)
        assert [of(sent) for sent in events(answer.content)] == [
            ("partial_image", 0, "cDA="),
            ("completed", 0, "YzA="),
            ("partial_image", 1, "cDE="),
            ("completed", 1, "YzE="),
        ]
        assert stage.server.calls == 1
        assert orjson.loads(stage.server.received[0].body)["n"] == 2


async def test_a_provider_that_answers_several_images_as_json() -> None:
    data = [{"b64_json": image} for image in ("YzA=", "YzE=", "YzI=")]
    async with playing(lambda _: json_answer(200, {"created": 1, "data": data})) as stage:
        answer = await stage.post(model="sim/plain", stream=True, n=3)
        assert [of(sent) for sent in events(answer.content)] == [
            ("completed", 0, "YzA="),
            ("completed", 1, "YzE="),
            ("completed", 2, "YzI="),
        ]
        again = followed((await stage.get(stage.url(answer.headers["location"]), EVENTS)).content)
        assert [event.id for event in again] == ["1.1", "1.2", "1.3"]
        behind = await stage.get(stage.url(answer.headers["location"]), {**EVENTS, "last-event-id": "1.2"})
        assert [event.id for event in followed(behind.content)] == ["1.3"]
        assert stage.server.calls == 1


@pytest.mark.parametrize("headers", [{}, LATER], ids=["now", "later"])
async def test_a_model_that_streams_one_image_is_asked_for_one(headers: dict[str, str]) -> None:
    async with playing(lambda _: error_answer(500, "Never asked.")) as stage:
        answer = await stage.post(headers=headers, stream=True, n=2)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["message"].startswith("Streaming is only supported with n=1.")
        assert (error["param"], error["code"]) == ("n", "unsupported_parameter")
        assert stage.server.calls == 0


async def test_without_a_stream_it_is_asked_for_all_at_once() -> None:
    data = [{"b64_json": image} for image in ("YzA=", "YzE=")]
    async with playing(lambda _: json_answer(200, {"created": 1, "data": data})) as stage:
        answer = await stage.post(n=2)
        assert answer.json()["data"] == [answered_item(one["b64_json"]) for one in data]
        url = await stage.later(n=2, stream=False)
        await stage.until(url, "completed")
        got = followed((await stage.get(url, EVENTS)).content)
        assert [event.json["image_index"] for event in got] == [0, 1]
        assert stage.server.calls == 2


class Each:
    """A provider that is asked for one image at a time: a preview at once, the image when `go` is set."""

    def __init__(self, *instead: Script) -> None:
        self.go = anyio.Event()
        self.instead = list(instead)
        self.asked: list[Received] = []

    def __call__(self, received: Received) -> Script:
        self.asked.append(received)
        if self.instead:
            return self.instead.pop(0)
        number = len(self.asked)
        return held(
            (frame(PREVIEW, f"cHA{number}", partial_image_index=0),), self.go, (frame(COMPLETED, f"Y2M{number}"),)
        )


async def test_stream_n_asks_once_for_each_image() -> None:
    provider = Each()
    async with playing(provider, stream_n=True) as stage:
        url = await stage.later(n=3)
        async with following(stage, url) as reading:
            await reading.until(holds(b"\n\n", 3))
            previews = followed(reading.body)
            assert {event.json["image_index"] for event in previews} == {0, 1, 2}
            assert {event.json["partial_image_index"] for event in previews} == {0}
            provider.go.set()
            got = followed(await reading.rest())[3:]
        assert [event.event for event in got] == [COMPLETED] * 3
        assert {event.json["image_index"] for event in got} == {0, 1, 2}
        pictures = {event.json["image_index"]: str(event.json["b64_json"])[-1] for event in got}
        assert pictures == {event.json["image_index"]: str(event.json["b64_json"])[-1] for event in previews}
        assert [event.id for event in got] == ["1.4", "1.5", "1.6"]
        assert (await stage.get(url, {**EVENTS, "last-event-id": "1.6"})).status_code == 204
        asked = [orjson.loads(received.body) for received in provider.asked]
        assert [body.get("n", 1) for body in asked] == [1, 1, 1]
        assert all(body["stream"] is True for body in asked)
        assert stage.server.calls == 3


async def test_a_late_reader_gets_each_images_newest_preview() -> None:
    provider = Each()
    async with playing(provider, stream_n=True) as stage:
        url = await stage.later(n=2)
        for _ in range(2):
            async with following(stage, url) as reading:
                await reading.until(holds(b"\n\n", 2))
                assert {event.json["image_index"] for event in followed(reading.body)} == {0, 1}
        provider.go.set()
        await stage.until(url, "completed")
        assert stage.server.calls == 2


@pytest.mark.parametrize("when", ["refused", "in the middle"])
async def test_one_image_that_fails_does_not_take_the_others(when: str) -> None:
    refused = error_answer(400, "No such thing.", code="moderation_blocked")
    broken = sse((frame(PREVIEW, "cHA9"),))
    provider = Each(refused if when == "refused" else broken)
    async with playing(provider, stream_n=True, commit_after=0.05) as stage:
        url = await stage.later(n=3)
        provider.go.set()
        state = await stage.until(url, "failed")
        data, error = state["data"], state["error"]
        assert isinstance(data, list)
        assert isinstance(error, dict)
        assert len(data) == 2
        assert len({item["image_index"] for item in data}) == 2
        assert error["code"] == ("moderation_blocked" if when == "refused" else "missing_terminal_event")
        got = followed((await stage.get(url, EVENTS)).content)
        assert [event.event for event in got] == [COMPLETED, COMPLETED, "error"]
        assert stage.server.calls == 3


async def test_the_posts_caller_learns_of_the_failure_at_the_end() -> None:
    provider = Each(sse((frame(PREVIEW, "cHA9"),)))
    provider.go.set()
    async with playing(provider, stream_n=True) as stage:
        answer = await stage.post(stream=True, n=3)
        assert answer.status_code == 200
        kinds = [sent.event for sent in events(answer.content)]
        assert kinds.count(COMPLETED) == 2
        assert kinds[-1] == "error"
        assert stage.server.calls == 3


async def test_all_refused_is_a_refusal() -> None:
    async with playing(lambda _: error_answer(400, "No.", code="bad"), stream_n=True) as stage:
        answer = await stage.post(stream=True, n=3)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad")
        assert stage.server.calls == 3


async def test_a_refusal_beside_what_was_paid_keeps_the_key() -> None:
    """One of the images is refused in a way that says "again", the other exists: the same key must not pay it twice."""
    provider = Each(error_answer(429, "Slow down."))
    provider.go.set()
    async with playing(provider, stream_n=True) as stage:
        first = await stage.post(headers={KEY: "k"}, stream=True, n=2)
        again = await stage.post(headers={KEY: "k"}, stream=True, n=2)
        assert stage.server.calls == 2
        kinds = [sent.event for sent in events(again.content)]
        assert kinds == [COMPLETED, "error"]
        assert first.status_code == 200


async def test_a_refusal_beside_an_ambiguous_failure_keeps_the_key() -> None:
    left = [error_answer(429, "Slow down."), error_answer(500, "Broken.")]
    async with playing(lambda _: left.pop(0) if left else error_answer(500, "Again."), stream_n=True) as stage:
        first = await stage.post(headers={KEY: "k"}, stream=True, n=2)
        again = await stage.post(headers={KEY: "k"}, stream=True, n=2)
        assert first.status_code == again.status_code == 502
        assert first.headers["x-should-retry"] == "false"
        assert first.json()["error"]["message"] == again.json()["error"]["message"] == "Broken."
        assert stage.server.calls == 2


async def test_delete_ends_all_requests() -> None:
    go = anyio.Event()
    async with playing(lambda _: Held((), go, (Fin(),)), stream_n=True, commit_after=0.05) as stage:
        answer = await stage.post(headers=LATER, stream=True, n=3)
        url = stage.url(answer.headers["location"])
        await stage.server.wait_until(lambda server: server.calls == 3, 10)
        assert (await stage.proxy.client.delete(stage.url(answer.json()["cancel_url"]))).status_code == 200
        await stage.server.wait_until(lambda server: len(server.disconnects) == 3, 10)
        await stage.until(url, "cancelled")
