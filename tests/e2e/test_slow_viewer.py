"""A viewer that reads 1 MB/s, with a preview of 2 MB each second: never far behind, and the image does not wait."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import anyio
import pytest

from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Step, Wait, sse
from tests.support.caller import calling
from tests.support.faults import Held
from tests.support.provider import completed, data_of, passed_on, preview
from tests.support.proxy import BOUND
from tests.support.streams import Followed, followed, playing

pytestmark = pytest.mark.anyio

MB: Final = 1_000_000
RATE: Final = 1.0 * MB
PIECE: Final = 16 * 1024
RECEIVE_BUFFER: Final = 64 * 1024
PREVIEWS: Final = tuple(preview(number, size=2 * MB) for number in range(5))
PERIOD: Final = 1.0
IMAGE: Final = completed(size=50_000)
IMAGE_AFTER: Final = 0.7
"""Seconds behind the last preview: the slow viewer is in the middle of one."""

SLACK: Final = 0.5
"""Seconds for what is on its way in the kernel's buffers, with TCP_NOTSENT_LOWAT at 128 KiB, and for the machine."""


class Timed(tuple[Step, ...]):
    """A script that notes when it has sent each of its frames: its waits stand between them."""

    def __new__(cls, steps: Script, sent: list[float]) -> Timed:
        timed = super().__new__(cls, steps)
        timed.sent = sent
        return timed

    sent: list[float]

    def __iter__(self) -> Iterator[Step]:
        for step in super().__iter__():
            if isinstance(step, Wait):
                self.sent.append(time.monotonic())
            yield step
        self.sent.append(time.monotonic())


@dataclass(slots=True)
class Viewer:
    """What came, and at each piece how much there was by when."""

    raw: bytearray = field(default_factory=bytearray)
    marks: list[tuple[int, float]] = field(default_factory=list)

    async def read(self, sock: socket.socket) -> None:
        """Until the body ends, at RATE from the first byte of it."""
        loop = asyncio.get_running_loop()
        began = time.monotonic()
        while not self.raw.endswith(b"\r\n0\r\n\r\n"):
            piece = await loop.sock_recv(sock, PIECE)
            assert piece, "the connection was cut"
            self.raw += piece
            now = time.monotonic()
            self.marks.append((len(self.raw), now))
            ahead = began + len(self.raw) / RATE - now
            if ahead > 0:
                await anyio.sleep(ahead)
            else:
                began = now - len(self.raw) / RATE  # what was missed in silence is not caught up with

    def body(self) -> tuple[bytes, list[tuple[int, int]]]:
        """The body without its chunked framing; for each chunk, where it ends in the body and in the raw bytes."""
        body = bytearray()
        ends: list[tuple[int, int]] = []
        at = self.raw.index(b"\r\n\r\n") + 4
        while True:
            end = self.raw.index(b"\r\n", at)
            size = int(self.raw[at:end], 16)
            if not size:
                return bytes(body), ends
            at = end + 2 + size + 2
            body += self.raw[end + 2 : end + 2 + size]
            ends.append((len(body), at))

    def events(self) -> list[tuple[Followed, float, float]]:
        """Every event, and when it began and was whole: a frame ends with a chunk."""
        body, ends = self.body()
        times: list[tuple[float, float]] = []
        start = body.index(b":\n") + 2
        while (end := body.find(b"\n\n", start) + 2) > 1:
            first, last = (next(raw for cooked, raw in ends if cooked >= at) for at in (start + 1, end))
            times.append((self._when(first), self._when(last)))
            start = end
        return [(event, *when) for event, when in zip(followed(body), times, strict=True)]

    def _when(self, raw: int) -> float:
        return next(when for size, when in self.marks if size >= raw)


async def test_a_slow_viewer_is_never_far_behind() -> None:
    sent: list[float] = []
    go = anyio.Event()
    waits = (0.01, *(PERIOD for _ in PREVIEWS[1:]), IMAGE_AFTER)

    def play(received: Received) -> Script:
        script = sse((*PREVIEWS, IMAGE), waits=waits)
        return Held(script[:1], go, Timed(script[1:], sent))

    viewers = {"1": Viewer(), "0": Viewer()}
    async with playing(play) as stage:
        location = (await stage.later()).removeprefix(stage.proxy.url)

        async def view(preempt: str, viewer: Viewer) -> None:
            async with calling(stage.proxy.port, receive_buffer=RECEIVE_BUFFER) as caller:
                target = f"{location}&preempt={preempt}"
                await caller.send(f"GET {target} HTTP/1.1\r\nHost: p\r\nAccept: text/event-stream\r\n\r\n".encode())
                await viewer.read(caller.sock)

        with anyio.fail_after(BOUND):
            async with anyio.create_task_group() as tasks:
                for preempt, viewer in viewers.items():
                    tasks.start_soon(view, preempt, viewer)
                sent.clear()  # of what was noted while the script was put together
                go.set()
        assert stage.server.calls == 1
    _, *published, imaged = sent  # the first wait had no frame before it
    assert len(published) == len(PREVIEWS)
    arrivals: dict[str, float] = {}
    for preempt, viewer in viewers.items():
        *shown, (last, _, arrived) = viewer.events()
        assert (last.event, last.data) == (passed_on(IMAGE)[0].event, passed_on(IMAGE)[0].data)
        assert [event.event for event, _, _ in shown if event.id is None] == ["superseded"] * int(preempt)
        assert 2 <= len(shown) < len(PREVIEWS)  # it was too slow for all
        for event, began, whole in shown:
            if event.id is None:
                continue
            seq = int(event.id.partition(".")[2])
            assert event.data == data_of(PREVIEWS[seq - 1])
            newer = [when for when in published[seq:] if when < whole]
            behind = whole - newer[0] if newer else 0.0  # for so long it has not been the newest
            assert behind < whole - began + SLACK
        arrivals[preempt] = arrived - imaged
    assert arrivals["1"] < len(IMAGE) / RATE + 2 * SLACK  # what is in the kernel's buffers takes most of one
    assert arrivals["0"] > arrivals["1"] + SLACK
