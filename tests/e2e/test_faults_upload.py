"""Providers that answer, reset or stop reading while a large upload is still being sent to them."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import httpx
import pytest

from streamproxy.simulator.script import Fin, Reset, Script, Wait, error_answer
from streamproxy.simulator.server import Server, serve
from tests.support.faults import IMAGE, STREAMED, Refusal
from tests.support.proxy import BOUND, PROMPT, Proxy, no_leaks, running_proxy

pytestmark = pytest.mark.anyio

FILE = b"\x89PNG\r\n\x1a\n" + bytes(24 << 20)
"""Far more than the socket buffers of one connection hold (Linux: 4 MB to send, 6 MB to receive)."""

TOO_LARGE = error_answer(413, "The upload is over 20 MB.", code="too_large", headers=(("Connection", "close"),))
REJECTED = Refusal(502, "upload_rejected", "upload_rejected", charged=False)


async def edit(proxy: Proxy, *, stream: bool = False, file: bytes = FILE) -> httpx.Response:
    data = {"model": "sim/gpt-image", "prompt": PROMPT} | ({"stream": "true"} if stream else {})
    return await proxy.client.post(f"{proxy.url}/v1/images/edits", data=data, files={"image": ("a.png", file)})


@asynccontextmanager
async def answering_early(script: Script, **settings: float) -> AsyncIterator[tuple[Server, Proxy]]:
    with anyio.fail_after(BOUND):
        async with (
            no_leaks(),
            serve(lambda _: IMAGE, early=lambda _target, _headers: script) as server,
            running_proxy(
                server.url, provider=None, environ=None, ssl_context=None, resolver=None, **settings
            ) as proxy,
        ):
            yield server, proxy


@STREAMED
async def test_an_early_refusal_that_can_be_read_is_passed_on(stream: bool) -> None:
    async with answering_early((*TOO_LARGE, Fin())) as (server, proxy):
        answer = await edit(proxy, stream=stream)
        assert await Refusal(413, "too_large", "provider_4xx", charged=False).check(proxy, answer) == (
            "The upload is over 20 MB."
        )
        assert server.calls == 1
        await server.wait_closed_connections(BOUND)


async def test_an_early_refusal_and_a_reset() -> None:
    async with answering_early((*TOO_LARGE, Reset())) as (server, proxy):
        answer = await edit(proxy)
        expected = REJECTED if answer.status_code == 502 else Refusal(413, "too_large", "provider_4xx", charged=False)
        await expected.check(proxy, answer)
        assert server.calls == 1


@STREAMED
@pytest.mark.parametrize("end", [Reset(), Fin()], ids=["reset", "fin"])
async def test_an_end_while_the_upload_is_sent_is_rejected(end: Reset | Fin, stream: bool) -> None:
    # The simulator reads on while its script plays: the end must come before it has had all of the upload.
    async with answering_early((end,)) as (server, proxy):
        message = await REJECTED.check(proxy, await edit(proxy, stream=stream))
        assert "while the request was still being sent" in message
        assert server.calls == 1


async def test_a_reset_after_the_whole_upload_may_have_been_paid() -> None:
    async with answering_early((Wait(0.1), Reset())) as (server, proxy):
        answer = await edit(proxy, file=b"\x89PNG\r\n\x1a\n")
        await Refusal(502, "connection_terminated", "upstream_reset").check(proxy, answer)
        assert server.calls == 1


async def test_the_first_byte_counts_from_the_uploads_end() -> None:
    # Slower than first_byte_timeout in all, never silent for as long.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        pace = threading.Event()

        def read_slowly() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(BOUND)
                left = None
                seen = b""
                while left is None or left > 0:
                    got = connection.recv(1 << 20)
                    if left is None:
                        seen += got
                        start, blank, body = seen.partition(b"\r\n\r\n")
                        if blank:
                            length = start.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                            left = int(length) - len(body)
                    else:
                        left -= len(got)
                    pace.wait(0.01)
                connection.sendall(b"HTTP/1.1 400 No\r\ncontent-length: 0\r\n\r\n")

        async with (
            no_leaks(),
            running_proxy(f"http://127.0.0.1:{listener.getsockname()[1]}", first_byte_timeout=1) as proxy,
        ):
            with anyio.fail_after(BOUND):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(anyio.to_thread.run_sync, read_slowly)
                    began = anyio.current_time()
                    answer = await edit(proxy)
                    assert answer.status_code == 400
                    assert anyio.current_time() - began > 1


async def test_a_provider_that_stops_reading_leaks_no_socket() -> None:
    # The server does not accept, so it does not read: the kernel takes a few MB, and the rest must not wait for ever.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with anyio.fail_after(BOUND):
            async with no_leaks(), running_proxy(url, first_byte_timeout=0.3) as proxy:
                answer = await edit(proxy)
                await Refusal(504, "first_byte_timeout", "ttfb_timeout").check(proxy, answer)
