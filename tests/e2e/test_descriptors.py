"""A process that can open no more files: callers get that error, nothing spins, and it recovers when files close."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import anyio
import orjson
import pytest

from streamproxy.simulator.server import serve
from tests.support.caller import EDITS, Caller, calling, generation, post
from tests.support.faults import IMAGE
from tests.support.process import Process, configuration, serving_process
from tests.support.proxy import PROMPT

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are set through Linux' prlimit"),
]

TICKS: Final = os.sysconf("SC_CLK_TCK")
LIVE: Final = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"


@contextmanager
def no_room(process: Process) -> Iterator[None]:
    """The process can open no file during the block."""
    soft, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    taken = {int(number) for number in os.listdir(f"/proc/{process.pid}/fd")}
    free = next(number for number in range(len(taken) + 1) if number not in taken)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (soft, hard))


def cpu_seconds(process: Process) -> float:
    """Processor time that the process has taken."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def live(caller: Caller) -> None:
    await caller.send(LIVE)
    assert await caller.head() == 200
    await caller.rest()


async def refused(caller: Caller, request: bytes) -> None:
    """The caller is told that there is no room, for now, and that nothing has been charged."""
    await caller.send(request)
    assert await caller.head() == 503
    error = orjson.loads(await caller.rest())["error"]
    assert (error["code"], error["type"]) == ("descriptors_exhausted", "server_error")
    assert "ulimit -n" in error["message"]
    assert caller.headers["retry-after"] == "2"
    assert "x-should-retry" not in caller.headers


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_connected_caller_is_told_and_nothing_is_sent(host: str) -> None:
    async with (
        serve(lambda _: IMAGE) as server,
        serving_process(configuration(server.url.replace("127.0.0.1", host))) as process,
        calling(process.port) as caller,
    ):
        await live(caller)
        with no_room(process):
            for stream in (False, True):
                await refused(caller, generation(stream=stream))
                line = orjson.loads(await process.line("descriptors_exhausted"))
                assert (line["failure"], line["errno"]) == ("descriptors_exhausted", "EMFILE")
                process.log.clear()
            assert server.connections == 0
        await caller.send(generation())
        assert await caller.head() == 200
        await caller.rest()
        assert server.calls == 1


async def test_an_upload_that_has_no_file_is_told_the_same() -> None:
    picture = b"\x89PNG\r\n\x1a\n" + bytes(200_000)
    parts = (("model", b"", b"sim/gpt-image"), ("prompt", b"", PROMPT.encode()), ("image", b'; filename="a"', picture))
    form = b'--edge\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
    body = b"".join(form % (name.encode(), more, value) for name, more, value in parts) + b"--edge--\r\n"
    request = post(body, path=EDITS, kind="multipart/form-data; boundary=edge")

    async def served(caller: Caller) -> None:
        await caller.send(request)
        assert await caller.head() == 200
        await caller.rest()

    async with (
        serve(lambda _: IMAGE) as server,
        serving_process(configuration(server.url)) as process,
        calling(process.port) as caller,
    ):
        await served(caller)  # Python looks for a temporary directory once
        with no_room(process):
            await refused(caller, request)
        await served(caller)
        assert server.calls == 2


async def test_connections_that_cannot_be_accepted_cost_nothing() -> None:
    async with (
        serve(lambda _: IMAGE) as server,
        serving_process(configuration(server.url)) as process,
        calling(process.port) as caller,
    ):
        await live(caller)
        with no_room(process):
            async with calling(process.port) as first, calling(process.port) as second:
                for more in (first, second):
                    await more.send(LIVE)
                began = cpu_seconds(process)
                await anyio.sleep(1)  # spinning would take all of it
                assert cpu_seconds(process) - began < 0.4
                await live(caller)
        async with calling(process.port) as later:
            await later.send(generation())
            assert await later.head() == 200
            await later.rest()
        await live(caller)
        assert server.calls == 1
