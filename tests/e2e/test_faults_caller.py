"""Callers that disconnect: the provider's connection is closed at once in any state, and nothing else is affected."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from streamproxy.errors import Failure
from streamproxy.simulator.script import JSON, Script, Send, Stall, head, sse
from streamproxy.simulator.server import serve
from tests.support.caller import Caller, calling, generation
from tests.support.provider import idle, one_failure, other_stream, preview, provider
from tests.support.proxy import BOUND, no_leaks, running_proxy

pytestmark = pytest.mark.anyio

AT_ONCE = 0.1
"""Seconds from a caller's end to the provider's, both seen from this process."""

ATTEMPTS = 3
"""Attempts, of which the quickest counts, since other processes may delay the idle loop."""

FIRST = preview(0)

LEAVING: dict[str, Callable[[Caller], None]] = {
    "reset": Caller.reset,
    "closed": Caller.close,
    # Not told apart from a caller who left.
    "half closed": Caller.half_close,
}

MOMENTS: dict[str, tuple[Script, bool, bool]] = {
    # the provider's script; whether the caller asks for a stream; whether it has its first frame when it leaves
    "before the provider's head": ((Stall(),), True, False),
    "before the first frame": (sse((), end=(Stall(),)), True, False),
    "between frames": (sse((FIRST,), end=(Stall(),)), True, True),
    "inside a frame": (sse((FIRST, FIRST[:40]), end=(Stall(),)), True, True),
    "before the provider's head, buffered": ((Stall(),), False, False),
    "inside the answer, buffered": ((Send(head(200, (JSON,), length=100)), Send(b"{"), Stall()), False, False),
    "between frames, buffered": (sse((FIRST,), end=(Stall(),)), False, False),
}


@pytest.mark.parametrize("how", LEAVING)
@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_disconnect_closes_the_providers_connection(moment: str, how: str) -> None:
    script, stream, framed = MOMENTS[moment]
    async with no_leaks(), serve(provider(script)) as upstream, running_proxy(upstream.url) as proxy:
        spent: list[float] = []
        for _ in range(ATTEMPTS):
            async with one_failure(Failure.CALLER_GONE), calling(proxy.port) as caller:
                await caller.send(generation(stream=stream))
                if framed:
                    assert await caller.head() == 200
                    body = b""
                    while not body.endswith(b"\n\n"):
                        body += await caller.chunk()
                await upstream.wait_until(lambda server: server.calls > len(spent), BOUND)
                went = time.monotonic()
                LEAVING[how](caller)
                await upstream.wait_until(lambda server: len(server.disconnects) > len(spent), BOUND)
                spent.append(upstream.disconnects[-1] - went)
                await idle(proxy)
        assert min(spent) <= AT_ONCE
        assert await proxy.failures("client_gone") == ATTEMPTS
        assert upstream.calls == ATTEMPTS
        await upstream.wait_closed_connections(BOUND)


async def test_other_streams_do_not_notice_a_caller_who_leaves() -> None:
    script = sse((FIRST,), end=(Stall(),))
    async with no_leaks(), serve(provider(script)) as upstream, running_proxy(upstream.url) as proxy:
        async with other_stream(proxy), calling(proxy.port) as caller:
            await caller.send(generation(stream=True))
            assert await caller.head() == 200
            caller.reset()
            await upstream.wait_until(lambda server: len(server.disconnects) == 1, BOUND)
        assert await proxy.failures("client_gone") == 1
