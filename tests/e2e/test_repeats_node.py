"""Clients from npm that repeat a POST by themselves: the claims of /docs on each, as calls to the provider."""

from __future__ import annotations

import base64
import itertools
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import orjson
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, json_answer
from tests.e2e.node.runner import HERE, needs_node
from tests.support.provider import COMPLETED, PREVIEW
from tests.support.proxy import BOUND, PROMPT, until
from tests.support.streams import KEY, playing, staged

PACKAGES: Final = ("ai", "@ai-sdk/openai", "@microsoft/fetch-event-source")
MISSING: Final = [package for package in PACKAGES if not (HERE / "node_modules" / package).is_dir()]

pytestmark = [
    pytest.mark.anyio,
    needs_node,
    pytest.mark.skipif(bool(MISSING), reason=f"npm install in {HERE.name}/: it lacks {', '.join(MISSING)}"),
]

GRACE: Final = 20
"""Seconds for which a generation outlives a hidden tab: longer than any test takes."""

KEYED: Final = {"headers": {KEY: "one-picture"}}
LINE: Final = 1 << 20


class Reports:
    """What a program reports, line by line."""

    def __init__(self, stream: BufferedByteReceiveStream) -> None:
        self._stream = stream

    async def next(self) -> Any:
        """The next one."""
        with anyio.fail_after(BOUND):
            return orjson.loads(await self._stream.receive_until(b"\n", LINE))

    async def rest(self) -> list[Any]:
        """All until the program ends."""
        found: list[Any] = []
        while True:
            try:
                found.append(await self.next())
            except (anyio.EndOfStream, anyio.IncompleteRead):
                return found


@asynccontextmanager
async def running(client: str, url: str, options: dict[str, object]) -> AsyncIterator[Reports]:
    """The client, with its options, asking for one image; it must end by itself."""
    body = {"model": "sim/gpt-image", "prompt": PROMPT}
    command = ["node", str(HERE / "repeats.mjs"), client, f"{url}/v1"]
    async with await anyio.open_process(command, stdin=subprocess.PIPE, stderr=None) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            await process.stdin.send(orjson.dumps({"options": options, "body": body}))
            await process.stdin.aclose()
            yield Reports(BufferedByteReceiveStream(process.stdout))
            with anyio.fail_after(BOUND):
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()


@pytest.mark.parametrize(
    ("options", "calls"),
    [({}, 2), ({"openWhenHidden": True}, 1), (KEYED, 1)],
    ids=["as it comes", "openWhenHidden", "key"],
)
async def test_fetch_event_source_in_a_hidden_tab(options: dict[str, object], calls: int) -> None:
    async with (
        staged(disconnect_grace=GRACE) as stage,
        running("fetch-event-source", stage.proxy.url, options) as reports,
    ):
        assert [await reports.next(), await reports.next()] == [PREVIEW, "shown"]
        await until(lambda: stage.server.calls == calls)
        stage.go.set()
        assert (await reports.rest())[-1] == COMPLETED
        assert stage.server.calls == calls


def each_another() -> Any:
    """A provider that never makes the same picture twice, and the pictures, in base64."""
    pictures = [base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes([number])) for number in range(4)]
    left = itertools.cycle(pictures)

    def handle(_: Received) -> Script:
        return json_answer(200, b'{"created":1,"data":[{"b64_json":"%b"}]}' % next(left))

    return handle


@pytest.mark.parametrize(("options", "calls"), [({}, 2), (KEYED, 1)], ids=["no key", "key"])
async def test_one_key_makes_two_requests_of_the_ai_sdk_one(options: dict[str, object], calls: int) -> None:
    async with playing(each_another()) as stage, running("ai", stage.proxy.url, {"n": 2, **options}) as reports:
        (images,) = await reports.rest()
        assert len(images) == 2
        assert len(set(images)) == calls
        assert stage.server.calls == calls


async def test_the_ai_sdk_repeats_a_failure_and_pays_once() -> None:
    """It knows no `x-should-retry` and asks again after two seconds, and then after four."""
    nothing = json_answer(200, b'{"created":1,"data":[]}')
    async with (
        playing(lambda _: nothing, failure_hold=10) as stage,
        running("ai", stage.proxy.url, {}) as reports,
    ):
        (failed,) = await reports.rest()
        assert failed["attempts"] == 3
        assert "was not sent again" in failed["message"]
        assert stage.server.calls == 1
