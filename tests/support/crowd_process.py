"""Thousands of callers and their provider, in a process beside the proxy: `python -m tests.support.crowd_process`.

So the proxy's process does only the proxy's work, and the two processes share the machine's cores. The crowd prints its
provider's address and reads the proxy's port. Its callers connect, leave, come back and cancel at random until all
connections have been made. Then it reports the requests and how they ended. The exit status is 0 only if no scene
failed, and if all connections, its own and the provider's, are closed.
"""

from __future__ import annotations

import gc
import random
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import httpx
import msgspec
import orjson
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from streamproxy.server.listening import listen, url_of
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, sse
from streamproxy.simulator.server import Server, serve
from tests.support.crowd import FRAMES, SLOW, Crowd, acting
from tests.support.provider import idle
from tests.support.proxy import BOUND, NO_TRUST, Proxy, no_leaks

ACTORS: Final = 40
SEED: Final = 7
WAITS: Final = (0.0, 0.005, 0.03, 0.3)
"""Seconds before a frame. The longest one is for readers that come back: their streams still run."""

ROOT: Final = Path(__file__).parents[2]
LINE_BYTES: Final = 1024 * 1024
"""Most bytes of a report: far more than one has, unless it holds thousands of prompts."""


@dataclass(frozen=True, slots=True)
class Report:
    """Connections made, and with how many of them a reader came back into a stream; requests to the provider, the
    prompts that came twice, those of accepted generations that never came; how often readers saw each end of a stream.
    """

    made: int
    resumed: int
    calls: int
    twice: list[str]
    missing: list[str]
    ends: dict[str, int]


# In the test's process.


@dataclass(frozen=True, slots=True)
class CrowdProcess:
    """A crowd that waits for its proxy. `upstream`: its provider's origin."""

    upstream: str
    _process: Process
    _lines: BufferedByteReceiveStream

    async def at(self, proxy: Proxy) -> Report:
        """Start it at the proxy. Returns when all callers are done, and no generation runs."""
        assert self._process.stdin is not None
        await self._process.stdin.send(b"%d\n" % proxy.port)
        return msgspec.json.decode(await _line(self._lines), type=Report)


@asynccontextmanager
async def crowd_process(connections: int) -> AsyncIterator[CrowdProcess]:
    """A crowd of so many connections. Raises AssertionError unless it ends with status 0 soon after the block."""
    command = [sys.executable, "-W", "error", "-m", __name__, str(connections)]
    async with await anyio.open_process(command, stdin=subprocess.PIPE, stderr=None, cwd=ROOT) as process:
        assert process.stdout is not None
        lines = BufferedByteReceiveStream(process.stdout)
        try:
            with anyio.fail_after(BOUND):
                upstream = (await _line(lines)).decode()
            yield CrowdProcess(upstream, process, lines)
            with anyio.fail_after(BOUND):
                assert await process.wait() == 0, "the crowd has failed, see its standard error"
        finally:
            if process.returncode is None:
                process.kill()


async def _line(lines: BufferedByteReceiveStream) -> bytes:
    try:
        return await lines.receive_until(b"\n", LINE_BYTES)
    except (anyio.EndOfStream, anyio.IncompleteRead):
        raise AssertionError("the crowd has failed, see its standard error") from None


# In its own.


async def _run(sock: socket.socket, port: int, connections: int) -> None:
    """All scenes; the report goes to standard output."""
    chance = random.Random(SEED)
    asked: Counter[str] = Counter()

    def play(received: Received) -> Script:
        prompt = orjson.loads(received.body)["prompt"]
        asked[prompt] += 1
        last = BOUND if prompt.startswith(SLOW) else 0.0
        return sse(FRAMES, waits=[*(chance.choice(WAITS) for _ in FRAMES[1:]), last])

    async with no_leaks(), serve(play, sock=sock) as server:
        crowd = Crowd(port, connections)
        async with anyio.create_task_group() as tasks:
            for actor in range(ACTORS):
                tasks.start_soon(acting, crowd, SEED + actor)
        async with httpx.AsyncClient(timeout=BOUND, trust_env=False, verify=NO_TRUST) as client:
            await idle(Proxy(f"http://127.0.0.1:{port}", port, client))
        _say(orjson.dumps(_report(crowd, server, asked)))
        await server.wait_closed_connections(BOUND)  # of the provider: when the proxy has ended


def _report(crowd: Crowd, server: Server, asked: Counter[str]) -> Report:
    twice = [prompt for prompt, times in asked.items() if times > 1]
    return Report(crowd.made, crowd.resumed, server.calls, twice, sorted(crowd.accepted - asked.keys()), crowd.ends)


def _say(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """See the module's text. Takes the number of connections."""
    gc.freeze()  # what was imported need not be looked through again and again
    with listen("127.0.0.1", 0) as sock:
        _say(url_of(sock).encode())
        port, connections = int(sys.stdin.readline()), int(sys.argv[1])
        anyio.run(_run, sock, port, connections, backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main()
