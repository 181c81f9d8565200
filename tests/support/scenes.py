"""Scenes for every client that follows a stream: cuts, an overloaded proxy, a failure.

The chain is a client, a cutter, a real proxy, and a provider whose frames wait until the scene releases them. A client
is a `Follow`: it follows one stream URL and reports the events that its user would see. No scene depends on time.

    {"kind": "open"}    {"kind": "event", "type", "id", "index", "size"}
    {"kind": "lost", "state"}           an `error` without data: the connection has ended, or has stopped for good
    {"kind": "failed", "code", "id"}    an `error` with data: the stream's own last word
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, TypeAlias

import anyio
import httpx
import orjson
from starlette.applications import Starlette

from streamproxy.app import create_app
from streamproxy.settings import ProviderSettings, Settings
from streamproxy.signals import Signal
from streamproxy.simulator import Server
from streamproxy.simulator.received import Handler, Received
from streamproxy.simulator.script import EVENT_STREAM, LAST_CHUNK, Fin, Script, Send, Step, Wait, chunks, head
from streamproxy.simulator.server import serve
from tests.support.cutter import Cutter, Place, Then, cutting
from tests.support.provider import COMPLETED, PREVIEW, completed, preview
from tests.support.proxy import BOUND, NO_TRUST, PROMPT, Proxy, serving

SIZE: Final = 300_000
"""Bytes of a picture's base64: several slices, so that a cut lands inside."""

INSIDE: Final = 100_000
CLOSED: Final = 2
QUIET_SECONDS: Final = 1.5
"""Seconds after the end without any request. The scenes' retries are a third of that or less."""

CLOCK_SECONDS: Final = 0.05
"""Most difference of two processes' clocks and wake-ups: a quarter of the shortest retry."""

Report: TypeAlias = dict[str, Any]


@dataclass(slots=True)
class Reports:
    """What a client has reported so far."""

    all: list[Report] = field(default_factory=list)
    _changed: Signal = field(default_factory=Signal)

    def add(self, report: Report) -> None:
        self.all.append(report)
        self._changed.set()

    def of(self, kind: str) -> list[Report]:
        return [report for report in self.all if report["kind"] == kind]

    def events(self) -> list[tuple[str, str]]:
        """Type and id of each event, in order."""
        return [(report["type"], report["id"]) for report in self.of("event")]

    async def until(self, reached: Callable[[], object]) -> None:
        """Return as soon as the condition holds. Raises TimeoutError with the reports so far."""
        try:
            with anyio.fail_after(BOUND):
                while not reached():
                    await self._changed.wait()
        except TimeoutError:
            raise TimeoutError(f"reported so far: {self.all}") from None

    async def stopped(self) -> None:
        """Wait until the client reports that it will not reconnect."""
        await self.until(lambda: any(report.get("state") == CLOSED for report in self.of("lost")))


Follow: TypeAlias = Callable[[str], AbstractAsyncContextManager[Reports]]


class _HeldScript(tuple[Step, ...]):
    """A script that waits, before each frame, until that frame is released."""

    frames: tuple[bytes, ...]
    held: Held

    def __iter__(self) -> Iterator[Step]:
        yield Send(head(200, (EVENT_STREAM,), chunked=True))
        for number, frame in enumerate(self.frames):
            while self.held.allowed <= number:
                yield Wait(0.02)
            yield from chunks(frame)
        while self.held.allowed <= len(self.frames) and self.held.cut_short:
            yield Wait(0.02)
        yield Fin() if self.held.cut_short else Send(LAST_CHUNK)


@dataclass(slots=True)
class Held:
    """A provider's frames, and how many of them are released. `cut_short`: after the last one it disconnects."""

    frames: tuple[bytes, ...]
    cut_short: bool = False
    allowed: int = 0

    def __call__(self, _: Received) -> Script:
        script = _HeldScript((Send(b""),))  # not empty: an empty script plays nothing
        script.frames, script.held = self.frames, self
        return script

    def let(self, count: int) -> None:
        """Release the first `count` frames. One more than there are is the end."""
        self.allowed = count


@dataclass(frozen=True, slots=True)
class Stage:
    """The client's chain to the provider."""

    held: Held
    upstream: Server
    proxy: Proxy
    app: Starlette
    cutter: Cutter

    async def asked(self, query: str = "", **headers: str) -> str:
        """Order a stream with `Prefer: respond-async`; its URL through the cutter."""
        answer = await self.proxy.client.post(
            f"{self.proxy.url}/v3/images/generations",
            json={"model": "sim/gpt-image", "prompt": PROMPT, "stream": True, "partial_images": 3},
            headers={"prefer": "respond-async", **headers},
        )
        assert answer.status_code == 202, answer.text
        assert answer.headers["location"] == answer.json()["stream_url"]
        return f"{self.cutter.url}{answer.json()['stream_url']}{query}"

    async def status(self, url: str) -> httpx.Response:
        """The stream as one object, past the cutter."""
        url = url.replace(self.cutter.url, self.proxy.url)
        return await self.proxy.client.get(url, headers={"accept": "application/json"})

    async def quiet(self) -> None:
        """Assert that no request comes any more."""
        count = len(self.cutter.asked)
        with anyio.move_on_after(QUIET_SECONDS):
            await self.cutter.until(lambda: len(self.cutter.asked) > count)
        assert len(self.cutter.asked) == count, self.cutter.asked[-1]


@asynccontextmanager
async def staged(
    *places: Place,
    frames: tuple[bytes, ...],
    cut_short: bool = False,
    origins: tuple[str, ...] = (),
    caller_keys: tuple[str, ...] = (),
) -> AsyncIterator[Stage]:
    """A provider, a proxy, and a cutter with these places. At the end there was exactly one upstream call."""
    held = Held(frames, cut_short)
    handler: Handler = held
    async with serve(handler) as upstream:
        row = ProviderSettings(base_url=f"{upstream.url}/v1", credential="none")
        settings = Settings(port=0, providers={"sim": row}, cors_origins=origins, caller_keys=caller_keys)
        app = create_app(settings, environ={}, ssl_context=NO_TRUST)
        async with serving(app, settings) as proxy, cutting(proxy.port, *places) as cutter:
            yield Stage(held, upstream, proxy, app, cutter)
        assert upstream.calls == 1


Scene: TypeAlias = Callable[[Follow, tuple[str, ...]], Coroutine[Any, Any, None]]


async def survives_cuts(follow: Follow, origins: tuple[str, ...] = ()) -> None:
    """Cut inside a preview, between frames, and inside the final: every event once, and then never again."""
    frames = (*(preview(number, size=SIZE) for number in range(3)), completed(size=2 * SIZE))
    places = (
        Place(b"id: 1.1\n\n", Then.RST, INSIDE),
        Place(b"id: 1.2\n\n", Then.FIN),
        Place(b"id: 1.3\n\n", Then.RST, INSIDE),
    )
    async with staged(*places, frames=frames, origins=origins) as stage, follow(await stage.asked()) as reports:
        for number in range(1, 5):
            if number == 3:  # back and with nothing to read: what it has already would come at once
                await stage.cutter.until(lambda: [one.status for one in stage.cutter.follows()][2:] == [200])
            stage.held.let(number)
            await reports.until(lambda: len(reports.of("event")) >= number)  # noqa: B023
        await reports.stopped()
        await stage.quiet()
        assert reports.events() == [(PREVIEW, "1.1"), (PREVIEW, "1.2"), (PREVIEW, "1.3"), (COMPLETED, "1.4")]
        assert [report["index"] for report in reports.of("event")] == [0, 1, 2, None]
        assert [report["size"] for report in reports.of("event")] == [SIZE, SIZE, SIZE, 2 * SIZE]
        follows = stage.cutter.follows()
        assert [one.headers.get("last-event-id") for one in follows] == [None, "1.1", "1.2", "1.3", "1.4"]
        assert [one.status for one in follows] == [200, 200, 200, 200, 204]
        _when_told(stage.cutter)
        assert not stage.cutter.places
        assert reports.of("failed") == []
        assert {one.method for one in stage.cutter.asked} == {"GET"}  # Last-Event-ID asks for no permission


def _when_told(cutter: Cutter) -> None:
    """Assert that each reconnect came after the answer's `retry`, not before."""
    follows = cutter.follows()
    for cut, back in pairwise(follows[:4]):
        said = re.search(rb"\nretry: (\d+)\n:\n", cutter.answers[cut.connection])
        assert said is not None
        assert back.at - cutter.ended[cut.connection] > int(said[1]) / 1000 - CLOCK_SECONDS


async def comes_back_after_overload(follow: Follow, origins: tuple[str, ...] = ()) -> None:
    """While the proxy drains it answers 200 and closes: the client comes back until it is served."""
    frames = (preview(0), completed())
    async with staged(frames=frames, origins=origins) as stage, anyio.create_task_group() as tasks:
        url = await stage.asked()
        stage.held.let(1)
        tasks.start_soon(stage.app.state.drain)
        with anyio.fail_after(BOUND):
            while (await stage.proxy.client.get(f"{stage.proxy.url}/readyz")).status_code != 503:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        async with follow(url) as reports:
            await stage.cutter.until(lambda: len([one for one in stage.cutter.follows() if one.status]) >= 2)
            assert reports.of("event") == []
            stage.held.let(2)
            await reports.stopped()
            await stage.quiet()
            assert reports.events() == [(COMPLETED, "1.2")]
            *refused, last = stage.cutter.follows()
            assert len(refused) >= 3
            assert {one.status for one in refused} == {200}
            assert (last.status, last.headers["last-event-id"]) == (204, "1.2")


async def tells_a_failure_from_a_cut(follow: Follow, origins: tuple[str, ...] = ()) -> None:
    """An `error` event has data, a lost connection has none; neither is taken for the other."""
    place = Place(b"id: 1.1\n\n", Then.FIN)
    async with (
        staged(place, frames=(preview(0),), cut_short=True, origins=origins) as stage,
        follow(await stage.asked()) as reports,
    ):
        stage.held.let(1)
        await stage.cutter.until(lambda: len(stage.cutter.follows()) == 2)
        await reports.until(lambda: reports.of("lost"))
        assert reports.of("failed") == []
        stage.held.let(2)
        await reports.stopped()
        await stage.quiet()
        assert reports.events() == [(PREVIEW, "1.1")]
        (failed,) = reports.of("failed")
        assert (failed["code"], failed["id"]) == ("upstream_incomplete", "1.2")
        kinds = [report["kind"] for report in reports.all]
        assert kinds.index("lost") < kinds.index("failed")
        assert [one.headers.get("last-event-id") for one in stage.cutter.follows()] == [None, "1.1", "1.2"]
        assert stage.cutter.follows()[-1].status == 204


async def is_spared_a_stale_preview(follow: Follow, origins: tuple[str, ...] = ()) -> None:
    """A half-written preview of a completed picture ends as an event that is not dispatched, and moves no cursor."""
    big = 8_000_000
    places = (Place(b"id: 1.1\n\n", Then.HOLD, INSIDE), Place(b"event: superseded\n\n", Then.RST, INSIDE))
    frames = (preview(0), preview(1, size=big), completed(size=2 * SIZE))
    async with staged(*places, frames=frames, origins=origins) as stage:
        url = await stage.asked()
        async with follow(url) as reports:
            stage.held.let(1)
            await reports.until(lambda: len(reports.of("event")) == 1)
            stage.held.let(2)
            with anyio.fail_after(BOUND):
                await stage.cutter.held.wait()
            stage.held.let(3)
            await _completed(stage, url)
            stage.cutter.go.set()
            await reports.stopped()
            await stage.quiet()
            assert reports.events() == [(PREVIEW, "1.1"), (COMPLETED, "1.3")]
            assert reports.of("failed") == []
            follows = stage.cutter.follows()
            assert [one.headers.get("last-event-id") for one in follows] == [None, "1.1", "1.3"]
            assert not stage.cutter.places


async def _completed(stage: Stage, url: str) -> None:
    """Wait until the stream has its picture."""
    with anyio.fail_after(BOUND):
        while orjson.loads((await stage.status(url)).content)["status"] != "completed":  # noqa: ASYNC110
            await anyio.sleep(0.01)
