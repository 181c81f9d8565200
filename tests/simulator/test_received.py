"""A server keeps received requests within limits, hides private values, and wakes waiting tasks."""

from __future__ import annotations

import anyio
import pytest

from streamproxy.simulator.received import KEPT_PREFIX, MAX_KEPT_BODY, Received
from streamproxy.simulator.script import Fin, Script, Send, json_answer
from streamproxy.simulator.server import serve
from tests.simulator.test_connection import SECONDS, exchange, request

pytestmark = pytest.mark.anyio

CLOSED = (*json_answer(200, {"ok": True}), Fin())


@pytest.mark.parametrize("size", [MAX_KEPT_BODY, MAX_KEPT_BODY + 1])
async def test_a_large_body_is_short_in_the_record(size: int) -> None:
    whole: list[int] = []

    def handler(received: Received) -> Script:
        whole.append(len(received.body))
        return (Send(b"HTTP/1.1 204 No Content\r\n\r\n"), Fin())

    async with serve(handler) as server:
        await exchange(server, request(bytes(size)))
        kept = size if size <= MAX_KEPT_BODY else KEPT_PREFIX
        assert (whole, server.received[0].body_size, len(server.received[0].body)) == ([size], size, kept)


async def test_headers_and_bodies_stay_out_of_the_repr() -> None:
    async with serve(lambda _: CLOSED) as server:
        await exchange(server, request(b"private", headers=("Authorization: Bearer private",)))
        assert "private" not in repr(server.received[0])
        assert "private" not in repr(server)
        assert server.received[0].header("AUTHORIZATION") == "Bearer private"


async def test_waiting_is_bounded_and_wakes_at_a_change() -> None:
    async with serve(lambda _: CLOSED) as server:
        with pytest.raises(TimeoutError):
            await server.wait_until(lambda s: s.calls, 0.01)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange, server, request())
            await server.wait_until(lambda s: s.calls == 1, SECONDS)
        await server.wait_closed_connections(SECONDS)
