"""The recorded exchanges by the real driver over real sockets: the same outcome, and a cancellation at each request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import anyio
import pytest

from streamproxy.core.conversation import Conversation, Convert, Fetch, Picture, Send, Wait
from streamproxy.core.events import Frame
from streamproxy.providers import ADAPTERS
from streamproxy.simulator.received import Received, Server
from streamproxy.simulator.script import LAST_CHUNK, Fin, Script, Stall, chunk, head
from streamproxy.simulator.script import Send as Sending
from tests.contract.peer import Answers, Exchange
from tests.contract.scenarios import KEY, SCENARIOS, Scenario
from tests.generation.test_driver import BOUND, Outcome, World, asked, peer

pytestmark = pytest.mark.anyio

FILES: Final = "https://files.test"
OVER_HTTP: Final = tuple(row for row in SCENARIOS if row.adapter not in ("comfyui-websocket", "automatic1111"))
"""Scenarios without a launched request: recorded answers come at once, so nothing could be under way beside them."""

UNDONE: Final = (
    *("openai-previews", "openai-edited", "openai-refuses-streaming-1", "gemini-previews", "fal-two"),
    *("replicate-two", "bfl-late", "dashscope-task", "leonardo-one", "fireworks-later"),
    *("comfyui-uploaded", "comfyui-redirected"),
)


QUICK: Final = 0.01


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll jobs without pauses."""
    monkeypatch.setattr("streamproxy.core.conversation.POLLS", (QUICK,))


@dataclass(slots=True)
class Recorded:
    """Plays recorded exchanges for their requests. From request `stall_at`, counted from 0, it is silent."""

    exchanges: Answers
    base_url: str
    stall_at: int = -1
    calls: int = 0
    _left: dict[str, list[Exchange]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for exchange in self.exchanges:
            what = exchange.asked.replace(f"FETCH {FILES}", "GET /files.test")
            self._left.setdefault(what, []).append(exchange)

    def __call__(self, received: Received) -> Script:
        number, self.calls = self.calls, self.calls + 1
        if number == self.stall_at:
            return (Stall(),)
        left = self._left.get(f"{received.method} {received.target}")
        if left is None:
            return (Sending(head(200, length=0)),)  # the cancellation of a job
        found = left.pop(0) if len(left) > 1 else left[0]
        return tuple(self._script(found, f"http://{received.header('host')}"))

    def _script(self, found: Exchange, url: str) -> Iterator[Sending | Fin]:
        items = [(name, self.here(value, url)) for name, value in found.head.items]
        yield Sending(head(found.head.status, items, chunked=True))
        if body := self.here(found.body.decode("latin-1"), url).encode("latin-1"):
            yield Sending(chunk(body))
        yield Fin() if found.breaks else Sending(LAST_CHUNK)

    def here(self, text: str, url: str) -> str:
        """The text with the recorded hosts' URLs as this server's."""
        return text.replace(FILES, f"{url}/files.test").replace(self.base_url, url)


def recorded(row: Scenario, stall_at: int = -1) -> Recorded:
    return Recorded(row.exchanges, "/".join(row.route.provider.base_url.split("/", 3)[:3]), stall_at)


def seen(frames: list[Frame]) -> list[tuple[str, int, bool, bytes]]:
    return [(frame.type, frame.image, frame.final, b"".join(frame.data)) for frame in frames]


@pytest.mark.parametrize("row", OVER_HTTP, ids=str)
async def test_the_driver_ends_as_the_recording_does(row: Scenario) -> None:
    pure, play = row.play(), recorded(row)
    async with peer(handler=play) as world:
        outcome = await world.generate(row)
        found = [(type, image, final) for type, image, final, _ in seen(outcome.frames)]
        assert found == [(type, image, final) for type, image, final, _ in seen(pure.frames)]
        data = [told for *_, told in seen(outcome.frames)]
        expected = [told.decode() for *_, told in seen(pure.frames)]
        converted = any(isinstance(step, Convert) and isinstance(step.image, Picture) for step in pure.steps)
        if (
            row.name != "gone" and not converted
        ):  # why there is no picture is in the fetcher's words; pixels are Pillow's
            assert data == [play.here(told, world.server.url).encode() for told in expected]
        assert (outcome.error and outcome.error.failure) is (pure.error and pure.error.failure)
        if outcome.error is not None:
            assert outcome.error.charged or pure.accepted_at is None
        assert outcome.said.count("accepted") == (pure.accepted_at is not None)
        assert outcome.requests == sum(isinstance(step, Send) for step in pure.steps)
        _keys_stay_at_home(world.server)


def _keys_stay_at_home(server: Server) -> None:
    for received in server.received:
        fetched = received.target.startswith("/files.test")
        assert [value for _, value in received.headers if KEY in value] == ([] if fetched else [f"Bearer {KEY}"])


@pytest.mark.parametrize("name", UNDONE)
async def test_a_cancellation_at_each_request_undoes_it_once(name: str) -> None:
    row = next(row for row in OVER_HTTP if str(row) == name)
    whole = row.play()
    requests = [at for at, step in enumerate(whole.waits) if isinstance(step, Send | Fetch)]
    for number, at in enumerate(requests):
        undo = row.play(close_at=at).undo
        play = recorded(row, stall_at=number)
        async with peer(handler=play) as world, anyio.create_task_group() as tasks:
            outcome = Outcome()
            tasks.start_soon(world.drive, _converse(row, world), row, outcome)
            await _reached(world.server, number + 1)
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await _reached(world.server, number + 1 + (undo is not None))
                # The provider's own connection may be idle, to be used again.
                await _left_open(world.server, undo is not None or isinstance(whole.waits[at], Fetch))
            cancels = asked(world.server)[number + 1 :]
            assert cancels == ([f"{undo.method} /{undo.url.split('/', 3)[3]}"] if undo is not None else [])
            assert not any(frame.final for frame in outcome.frames)
            _keys_stay_at_home(world.server)


LOOKED_AT: Final = ("fal-two", "replicate-one", "dashscope-task", "bfl-late", "leonardo-one", "comfyui-uploaded")


@pytest.mark.parametrize("name", LOOKED_AT)
async def test_a_cancellation_between_looks_undoes_it_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(row for row in OVER_HTTP if str(row) == name)
    whole = row.play().waits
    for number, at in enumerate(at for at, step in enumerate(whole) if step == Wait(QUICK)):
        monkeypatch.setattr("streamproxy.core.conversation.POLLS", (*(QUICK,) * number, BOUND / 2))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("streamproxy.core.conversation.POLLS", (QUICK,))
            undo = row.play(close_at=at).undo
        before = sum(isinstance(step, Send | Fetch) for step in whole[:at])
        async with peer(handler=recorded(row)) as world, anyio.create_task_group() as tasks:
            outcome = Outcome()
            tasks.start_soon(world.drive, _converse(row, world), row, outcome)
            await _reached(world.server, before)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await _reached(world.server, before + (undo is not None))
            cancels = asked(world.server)[before:]
            assert cancels == ([f"{undo.method} /{undo.url.split('/', 3)[3]}"] if undo is not None else [])


async def _reached(server: Server, calls: int) -> None:
    await server.wait_until(lambda server: server.calls >= calls, BOUND)


async def _left_open(server: Server, most: int) -> None:
    await server.wait_until(lambda server: server.open_connections <= most, BOUND)


def _converse(row: Scenario, world: World) -> Conversation[None]:
    return ADAPTERS[row.adapter].converse(world.job(row))
