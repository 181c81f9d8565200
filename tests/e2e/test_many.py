"""Several streams on one connection: cursors, turns, lost streams, and refusals."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import anyio
import orjson
import pytest

from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script
from streamproxy.web.many import INLINE, MOST
from tests.support.provider import COMPLETED, PREVIEW, completed, preview
from tests.support.proxy import BOUND
from tests.support.streams import (
    EVENTS,
    IDS,
    LATER,
    Followed,
    Reading,
    Stage,
    followed,
    following,
    held,
    holds,
    playing,
    retry_of,
)

pytestmark = pytest.mark.anyio

BIG: Final = INLINE + 4


@dataclass(slots=True)
class Several:
    """A proxy, and generations that are known by their prompts; each goes on when its own event is set."""

    stage: Stage
    scripts: dict[str, Script]
    go: list[anyio.Event] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    pairs: list[str] = field(default_factory=list)
    endings: list[str] = field(default_factory=list)

    async def order(
        self, first: Sequence[bytes] = (preview(0),), rest: Sequence[bytes] = (completed(),), **headers: str
    ) -> None:
        """One more generation: `first` at once, `rest` when its event is set."""
        prompt, go = f"picture {len(self.go)}", anyio.Event()
        self.go.append(go)
        self.scripts[prompt] = held(tuple(first), go, tuple(rest))
        answer = await self.stage.post(headers={**LATER, **headers}, stream=True, prompt=prompt)
        assert answer.status_code == 202, answer.text
        self.endings.append(self.stage.url(answer.json()["cancel_url"]))
        self.ids.append(answer.json()["id"])
        self.pairs.append(f"{self.ids[-1]}:{answer.json()['stream_url'].partition('token=')[2]}")

    def url(self, *pairs: str, query: str = "") -> str:
        """The URL that follows these streams; all of them by default."""
        named = "&".join(f"stream={pair}" for pair in pairs or self.pairs)
        return f"{self.stage.proxy.url}/v3/streams?{named}{query}"

    def single(self, number: int) -> str:
        """The URL of one of the streams by itself."""
        id, _, token = self.pairs[number].partition(":")
        return f"{self.stage.proxy.url}/v3/streams/{id}?token={token}"

    async def status(self, url: str, headers: dict[str, str] | None = None) -> tuple[int, str | None, str | None]:
        """How a URL is refused: status, code, and what the error names."""
        answer = await self.stage.get(url, headers or EVENTS)
        error = answer.json()["error"] if answer.status_code >= 400 else {}
        return answer.status_code, error.get("code"), error.get("param")

    async def completed(self, *numbers: int) -> None:
        """Let these generations end."""
        for number in numbers:
            self.go[number].set()
            await self.stage.until(self.single(number), "completed")


@asynccontextmanager
async def several(count: int = 0, **settings: object) -> AsyncIterator[Several]:
    """A proxy, with so many generations that have sent one preview."""
    scripts: dict[str, Script] = {}

    def handler(received: Received) -> Script:
        return scripts[orjson.loads(received.body)["prompt"]]

    async with playing(handler, **settings) as stage:
        made = Several(stage, scripts)
        for _ in range(count):
            await made.order()
        yield made


def read(body: bytes) -> list[Followed]:
    return followed(body, IDS)


def whose(events: Sequence[Followed]) -> list[tuple[object, str, str | None]]:
    """Stream, event and id of each."""
    return [(event.json["stream"], event.event, event.id) for event in events]


async def first(reading: Reading, count: int) -> list[Followed]:
    """The first events of an answer that goes on."""
    await reading.until(holds(b"\n\n", count))
    return read(reading.body[: reading.body.rindex(b"\n\n") + 2])


async def test_an_id_holds_a_cursor_for_each_stream() -> None:
    async with several(3) as made, following(made.stage, made.url()) as reading:
        await first(reading, 3)
        made.go[1].set()
        await reading.until(holds(COMPLETED.encode() + b"\n"))
        made.go[2].set()
        await reading.until(holds(COMPLETED.encode() + b"\n", 2))
        made.go[0].set()
        events = read(await reading.rest())
        a, b, c = made.ids
        assert whose(events) == [
            (a, PREVIEW, "1.1-0.0-0.0"),
            (b, PREVIEW, "1.1-1.1-0.0"),
            (c, PREVIEW, "1.1-1.1-1.1"),
            (b, COMPLETED, "1.1-1.2-1.1"),
            (c, COMPLETED, "1.1-1.2-1.2"),
            (a, COMPLETED, "1.2-1.2-1.2"),
        ]
        assert made.stage.server.calls == 3


async def test_the_data_has_the_streams_id_at_its_end() -> None:
    async with several(1) as made:
        await made.completed(0)
        alone = followed((await made.stage.get(made.single(0), EVENTS)).content)
        events = read((await made.stage.get(made.url(), EVENTS)).content)
        added = b',"stream":"%b"}' % made.ids[0].encode()
        assert [event.data for event in events] == [event.data[:-1] + added for event in alone]


async def test_every_cursor_resumes_without_a_repeated_event() -> None:
    async with several(3) as made:
        await made.completed(0, 1, 2)
        events = read((await made.stage.get(made.url(), EVENTS)).content)
        assert [event.event for event in events] == [COMPLETED] * 3
        for count, last in enumerate(events, 1):
            answer = await made.stage.get(made.url(), {**EVENTS, "last-event-id": last.id or ""})
            again = read(answer.content) if answer.status_code == 200 else []
            assert answer.status_code == (204 if count == 3 else 200)
            assert whose(again) == whose(events[count:])
            query = made.url(query=f"&last_event_id={last.id}")
            assert (await made.stage.get(query, EVENTS)).content[-200:] == answer.content[-200:]


@pytest.mark.parametrize("id", ["1.1", "1.1-1.1-1.1", "1.1-x", "-", "1.9-1.9", "7.1-7.1", "1.1_1.1", "0.0-0.0"])
async def test_an_id_that_is_not_theirs_begins_anew(id: str) -> None:
    async with several(2) as made:
        await made.completed(0, 1)
        events = read((await made.stage.get(made.url(), {**EVENTS, "last-event-id": id})).content)
        assert [event.event for event in events] == [COMPLETED] * 2


async def test_what_was_there_before_now_is_not_sent() -> None:
    async with several(2) as made:
        await made.completed(0)
        async with following(made.stage, made.url(query="&from=now")) as reading:
            await reading.until(holds(b"retry"))
            made.go[1].set()
            assert whose(read(await reading.rest())) == [(made.ids[1], COMPLETED, "1.2-1.2")]
        assert (await made.stage.get(made.url(query="&from=now"), EVENTS)).status_code == 204


async def test_a_lost_stream_is_told_once_and_the_others_go_on() -> None:
    async with several(3) as made:
        await made.completed(0, 1)
        assert (await made.stage.proxy.client.delete(made.endings[1])).json()["deleted"] is True
        async with following(made.stage, made.url()) as reading:
            await reading.until(holds(b"event: error"))
            made.go[2].set()
            events = read(await reading.rest())
        a, b, c = made.ids
        assert whose(events)[:2] == [(a, COMPLETED, "1.2-0.0-0.0"), (b, "error", "1.2-0.1-0.0")]
        assert whose(events)[-1] == (c, COMPLETED, "1.2-0.1-1.2")
        error = events[1].json["error"]
        assert isinstance(error, dict)
        assert (error["code"], error["status"]) == ("stream_gone", 410)
        again = await made.stage.get(made.url(), {**EVENTS, "last-event-id": "1.1-0.1-1.1"})
        assert whose(read(again.content)) == [(a, COMPLETED, "1.2-0.1-1.1"), (c, COMPLETED, "1.2-0.1-1.2")]
        assert (await made.stage.get(made.url(), {**EVENTS, "last-event-id": "1.2-0.1-1.2"})).status_code == 204


async def test_a_stream_that_is_cancelled_ends_alone() -> None:
    async with several(2) as made, following(made.stage, made.url()) as reading:
        await first(reading, 2)
        assert (await made.stage.proxy.client.delete(made.endings[0])).json()["cancelled"] is True
        await reading.until(holds(b"event: error"))
        made.go[1].set()
        events = read(await reading.rest())
        assert whose(events)[2:] == [(made.ids[0], "error", "1.2-1.1"), (made.ids[1], COMPLETED, "1.2-1.2")]


async def test_a_failure_is_its_streams_own_last_word() -> None:
    async with several(1) as made:
        await made.order(rest=())
        async with following(made.stage, made.url()) as reading:
            made.go[1].set()
            await reading.until(holds(b"event: error"))
            made.go[0].set()
            events = read(await reading.rest())
        ends = {event.json["stream"]: event.event for event in events}
        assert ends == {made.ids[0]: COMPLETED, made.ids[1]: "error"}
        assert (await made.stage.get(made.url(), {**EVENTS, "last-event-id": events[-1].id or ""})).status_code == 204


async def test_a_token_that_does_not_fit_is_named() -> None:
    async with several(2) as made:
        good, other = made.pairs
        id, _, token = other.partition(":")
        foreign = f"{id}:{good.partition(':')[2]}"
        for wrong in (foreign, f"{id}:", id, f"{id}:{token}x"):
            refused = await made.status(made.url(good, wrong))
            assert refused == (401, "invalid_stream_token", f"stream={id}")
        assert await made.status(made.url(good, "")) == (401, "invalid_stream_token", "stream=")
        assert await made.status(made.url(good, good)) == (422, "invalid_request", f"stream={good.partition(':')[0]}")
        for go in made.go:
            go.set()


async def test_a_token_that_has_expired_is_named() -> None:
    async with several(1, token_seconds=0.001) as made:
        made.go[0].set()
        await anyio.sleep(0.01)
        assert await made.status(made.url()) == (401, "invalid_stream_token", f"stream={made.ids[0]}")


async def test_so_many_streams_fit_into_one_request() -> None:
    async with several(1) as made:
        await made.completed(0)
        many = [made.pairs[0], *(f"str_{number}:x" for number in range(MOST))]
        assert await made.status(made.url(*many)) == (422, "invalid_request", "stream")
        assert len(made.url(*[made.pairs[0]] * MOST)) + len("GET  HTTP/1.1\r\n") < 8192


async def test_only_events_are_to_be_had() -> None:
    async with several(1) as made:
        await made.completed(0)
        assert (await made.status(made.url(), {"accept": "application/json"}))[:2] == (422, "invalid_request")
        assert (await made.stage.proxy.client.head(made.url())).status_code == 422


async def test_each_stream_counts_as_viewed() -> None:
    async with several(2, max_viewers=1) as made:
        async with following(made.stage, made.url()) as reading:
            await first(reading, 2)
            for number, id in enumerate(made.ids):
                refused = (429, "too_many_viewers", None)
                assert await made.status(made.single(number)) == refused
                assert await made.status(made.url(made.pairs[number])) == (*refused[:2], f"stream={id}")
        await welcome(made, 0)
        await welcome(made, 1)
        async with following(made.stage, made.single(1)) as alone:
            await alone.until(holds(b"id: 1.1"))
            assert (await made.status(made.url()))[:2] == (429, "too_many_viewers")
            async with following(made.stage, made.single(0)) as other:  # the refused reader has left it
                await other.until(holds(b"id: 1.1"))
        for go in made.go:
            go.set()


async def welcome(made: Several, number: int) -> None:
    """Wait until a viewer of one of the streams is taken."""
    with anyio.fail_after(BOUND):
        while True:
            async with following(made.stage, made.single(number)) as reading:
                if reading.response.status_code == 200:
                    await reading.until(holds(b"id: 1.1"))
                    return


async def test_large_events_are_references_unless_asked_for() -> None:
    async with several() as made:
        await made.order((preview(0, size=BIG),), (completed(size=INLINE - 1000),))
        await made.order((preview(0),), (completed(size=BIG),))
        async with following(made.stage, made.url()) as reading:
            await first(reading, 2)
            made.go[0].set()
            made.go[1].set()
            events = {(event.json["stream"], event.event): event.json for event in read(await reading.rest())}
        a, b = made.ids
        shown = {key: sorted({"image_url", "b64_json"} & value.keys()) for key, value in events.items()}
        assert shown == {
            (a, PREVIEW): ["image_url"],
            (a, COMPLETED): ["b64_json"],
            (b, PREVIEW): ["b64_json"],
            (b, COMPLETED): ["image_url"],
        }
        picture = await made.stage.get(made.stage.url(str(events[b, COMPLETED]["image_url"])))
        assert (picture.status_code, len(picture.content)) == (200, BIG // 4 * 3)
        whole = read((await made.stage.get(made.url(query="&payload=inline"), EVENTS)).content)
        assert [sorted({"image_url", "b64_json"} & event.json.keys()) for event in whole] == [["b64_json"]] * 2
        none = read((await made.stage.get(made.url(query="&payload=ref"), EVENTS)).content)
        assert [sorted({"image_url", "b64_json"} & event.json.keys()) for event in none] == [["image_url"]] * 2
        assert await made.status(made.url(query="&payload=x")) == (422, "invalid_request", "payload")


async def test_silence_is_filled_between_frames() -> None:
    async with several(2, heartbeat=1) as made, following(made.stage, made.url()) as reading:
        await reading.until(holds(b"\n\n:\n:\n"))
        for go in made.go:
            go.set()
        assert len(read(await reading.rest())) == 4


async def test_while_draining_a_reader_is_told_to_come_back() -> None:
    async with several(2, drain_timeout=BOUND) as made:
        await made.completed(0)
        async with anyio.create_task_group() as tasks:
            assert made.stage.proxy.drain is not None
            tasks.start_soon(made.stage.proxy.drain)
            with anyio.fail_after(BOUND):
                while (await made.stage.get(f"{made.stage.proxy.url}/readyz")).status_code != 503:
                    pass
            answer = await made.stage.get(made.url(), EVENTS)
            assert (answer.status_code, 2000 <= retry_of(answer.content) <= 8000) == (200, True)
            assert read(answer.content) == []
            assert (await made.status(made.url(), {**EVENTS, "prefer": "handling=strict"}))[:2] == (503, "draining")
            ended = await made.stage.get(made.url(made.pairs[0]), EVENTS)
            assert [event.event for event in read(ended.content)] == [COMPLETED]
            made.go[1].set()


async def test_a_reader_who_leaves_is_a_viewer_no_more() -> None:
    async with several(2, max_viewers=1) as made:
        for _ in range(3):
            async with following(made.stage, made.url()) as reading:
                await first(reading, 2)
            for number in range(2):
                await welcome(made, number)
        for go in made.go:
            go.set()
