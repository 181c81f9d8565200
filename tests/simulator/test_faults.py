"""Every row plays to its end on a real socket, byte for byte; what the rows promise holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256

import anyio
import httptools
import pytest

from streamproxy.simulator.answers import sample
from streamproxy.simulator.faults import FAULTS, STREAM_FAULTS
from streamproxy.simulator.order import read_order
from streamproxy.simulator.refusals import REFUSALS
from streamproxy.simulator.script import Reset, Sample, Script, Send, Stall, Wait
from streamproxy.simulator.server import serve
from tests.simulator.test_connection import AT_ONCE, SECONDS, request
from tests.simulator.test_script import Parsed, wire

pytestmark = pytest.mark.anyio

PLAY_SECONDS = 30.0


@cache
def good() -> Sample:
    return sample(read_order(b'{"prompt":"a fox"}', "application/json", edit=False), 1)


@dataclass
class Peer:
    """What a peer read until the end, or until `enough` bytes."""

    size: int = 0
    reset: bool = False

    async def read(self, port: int, enough: int) -> bytes:
        digest = sha256()
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(request(headers=("Connection: close",)))
            try:
                while self.size < enough:
                    data = await stream.receive(1 << 20)
                    digest.update(data)
                    self.size += len(data)
                if not enough:
                    return b""
                await stream.receive(1)
            except anyio.EndOfStream:
                pass
            except anyio.BrokenResourceError:
                self.reset = True
        return digest.digest()


@pytest.mark.parametrize("name", sorted(FAULTS))
async def test_a_row_plays_to_its_end(name: str) -> None:
    # Waits are left out: what counts here is that every byte of the row reaches the wire, and how it ends.
    script: Script = tuple(step for step in FAULTS[name](good()) if not isinstance(step, Wait))
    holds = isinstance(script[-1], Stall)
    data = wire(script)
    async with serve(lambda _: script) as server:
        with anyio.fail_after(PLAY_SECONDS):
            if holds:
                async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
                    await stream.send(request())
                    got = b""
                    while len(got) < len(data):
                        got += await stream.receive()
                    assert got == data
                    await server.wait_until(lambda s: s.calls == 1, SECONDS)
                left = time.monotonic()
                await server.wait_until(lambda s: s.disconnects, SECONDS)
                assert server.disconnects[0] - left < AT_ONCE
            else:
                peer = Peer()
                digest = await peer.read(server.port, len(data) + 1)
                assert peer.reset == isinstance(script[-1], Reset)
                assert (peer.size, digest) == (len(data), sha256(data).digest())
                assert not server.disconnects
            await server.wait_closed_connections(SECONDS)


def test_a_trickle_is_slow_and_no_row_but_it_waits_for_long() -> None:
    seconds = {name: sum(s.seconds for s in FAULTS[name](good()) if isinstance(s, Wait)) for name in FAULTS}
    assert seconds.pop("trickle") > 300
    assert max(seconds.values()) < 1


def body(name: str) -> Parsed:
    return Parsed(wire(FAULTS[name](good())))


WHOLE = ("byte-by-byte", "trickle", "stall-after-completed", "close-delimited")
TRAILING = ("duplicate-terminal", "data-after-terminal", "error-after-terminal")
PREVIEWS_ONLY = ("eof-at-boundary", "short-content-length", "close-delimited-cut", "partial-only-eof")


@pytest.mark.parametrize(
    ("names", "holds"),
    [
        (WHOLE, lambda data: data == b"".join(good().frames)),
        (TRAILING, lambda data: data.startswith(b"".join(good().frames)) and len(data) > len(b"".join(good().frames))),
        (PREVIEWS_ONLY, lambda data: data == b"".join(good().previews)),
        (("missing-last-blank-line",), lambda data: data == b"".join(good().frames)[:-1]),
        (
            ("error-event", "moderation-in-sse"),
            lambda data: data.startswith(good().previews[0]) and b'"error":{' in data,
        ),
        (("bare-json-in-stream",), lambda data: data.startswith(b'{"error":')),
        (("odd-bytes",), lambda data: all(frame in data for frame in (*good().frames, b"\xff\xfe", b"\0", b"a\rb"))),
        (("keepalive-events",), lambda data: all(frame in data for frame in good().frames)),
        (("crlf",), lambda data: data.replace(b"\r\n", b"\n") == b"".join(good().frames)),
    ],
)
def test_a_stream_holds_what_its_name_says(names: tuple[str, ...], holds: Callable[[bytes], bool]) -> None:
    assert {name: holds(body(name).body) for name in names} == dict.fromkeys(names, True)


@pytest.mark.parametrize("name", ["eof-inside-event", "reset-mid-body", "stall-inside-event"])
def test_a_cut_lies_inside_the_second_frame(name: str) -> None:
    first, second, _ = good().frames
    data = body(name).body
    assert data.startswith(first)
    assert second.startswith(data[len(first) :])
    assert 0 < len(data) - len(first) < len(second)


def test_framing_is_complete_only_where_it_should_be() -> None:
    unended = {"eof-at-boundary", "eof-inside-event", "eof-after-head", "reset-mid-body", "reset-at-boundary"}
    unended |= {"short-content-length", "close-delimited", "close-delimited-cut", "event-too-large"}
    unended |= {name for name in STREAM_FAULTS if name.startswith("stall")}
    broken = {"bad-chunk-header"}
    ended = {name for name in set(STREAM_FAULTS) - broken if body(name).complete}
    assert set(STREAM_FAULTS) - broken - ended == unended
    with pytest.raises(httptools.HttpParserError):
        body("bad-chunk-header")


def test_a_firehose_numbers_previews_of_one_picture() -> None:
    script = FAULTS["firehose"](good())
    sends = [step for step in script if isinstance(step, Send)]
    assert sum(len(step.data) for step in sends) > 60 * 1024 * 1024
    assert sum(len(data) for data in {id(step): step.data for step in sends}.values()) < 4 * 1024 * 1024
    data = body("firehose").body
    assert data.startswith(good().previews[0])
    assert data.endswith(good().completed)
    assert b'"partial_image_index":100}\n\nevent: ' in data


def test_the_two_tables_share_no_name() -> None:
    assert not set(REFUSALS) & set(STREAM_FAULTS)
    assert len(FAULTS) == len(REFUSALS) + len(STREAM_FAULTS)
