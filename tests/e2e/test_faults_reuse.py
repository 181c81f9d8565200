"""Reused connections: closed ones are noticed, and bytes that no request asked for never become an answer."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import pytest
import trustme
from structlog.testing import capture_logs

from streamproxy.simulator.script import Fin, Script, Send, Wait, chunk, json_answer, sse
from streamproxy.simulator.server import Received, serve
from tests.support.faults import IMAGE, IMAGE_BODY, IMAGE_BYTES, Refusal, provider
from tests.support.provider import answered_item
from tests.support.proxy import BOUND, Proxy, events, no_leaks, running_proxy

pytestmark = pytest.mark.anyio

STOLEN = json_answer(200, b'{"created":6,"data":[{"b64_json":"c3RvbGVu"}]}')
STOLEN_BYTES = b"".join(step.data for step in STOLEN if isinstance(step, Send))
COMPLETED = b'event: image_generation.completed\ndata: {"type":"image_generation.completed","b64_json":"aW1hZ2U="}\n\n'


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunk(IMAGE_BODY) + b"0\r\n\r\n"


async def own_answer(proxy: Proxy) -> None:
    answer = await proxy.generate()
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"] == [answered_item("aW1hZ2U=")]


@contextmanager
def logged(*labels: str) -> Iterator[None]:
    """The block logs these tolerated faults, one line each, and no other, and no failure."""
    with capture_logs() as lines:
        yield
    assert [line["label"] for line in lines if line["event"] == "tolerated"] == [*labels]
    assert {line["provider"] for line in lines if line["event"] == "tolerated"} <= {"sim"}
    assert not [line for line in lines if "failure" in line]


async def test_a_sound_connection_is_used_again() -> None:
    with logged():
        async with provider(IMAGE) as (server, proxy):
            for _ in range(3):
                await own_answer(proxy)
            assert (server.calls, server.connections) == (3, 1)
            assert await proxy.tolerated() == {}


async def test_a_closed_idle_connection_is_noticed() -> None:
    with logged("stale_conn", "stale_conn"):
        async with provider((*IMAGE, Wait(0.05), Fin())) as (server, proxy):
            for count in (1, 2, 3):
                await own_answer(proxy)
                await server.wait_closed_connections(BOUND)
                assert (server.calls, server.connections) == (count, count)
            assert await proxy.tolerated() == {"stale_conn": 2}


async def test_a_closed_idle_connection_is_noticed_over_tls() -> None:
    authority = trustme.CA()
    served, trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("127.0.0.1").configure_cert(served)
    authority.configure_trust(trust)
    with anyio.fail_after(BOUND), logged("stale_conn"):
        async with (
            no_leaks(),
            serve(lambda _: (*IMAGE, Wait(0.05), Fin()), ssl=served) as server,
            running_proxy(server.url, ssl_context=trust) as proxy,
        ):
            for count in (1, 2):
                await own_answer(proxy)
                await server.wait_closed_connections(BOUND)
                assert (server.calls, server.connections) == (count, count)
            assert await proxy.tolerated() == {"stale_conn": 1}


async def test_a_close_during_the_next_request_is_not_repeated() -> None:
    # The end comes with the answer: whatever the kernel has of it when the next request starts must be seen.
    async with provider((*IMAGE, Fin())) as (server, proxy):
        for count in range(1, 31):
            await own_answer(proxy)
            assert server.calls == count


async def test_a_close_after_the_request_was_sent_is_a_failure() -> None:
    async with provider(IMAGE, (Fin(),), IMAGE) as (server, proxy):
        await own_answer(proxy)
        await Refusal(502, "connection_terminated", "upstream_reset").check(proxy, await proxy.generate())
        assert (server.calls, server.connections) == (2, 1)
        await own_answer(proxy)
        assert (server.calls, server.connections) == (3, 2)


EXTRA = {
    "whole-answer": (Send(IMAGE_BYTES + STOLEN_BYTES),),
    "part-of-an-answer": (Send(IMAGE_BYTES + STOLEN_BYTES[:-4]),),
    "part-of-a-head": (Send(IMAGE_BYTES + STOLEN_BYTES[:20]),),
    "one-byte": (Send(IMAGE_BYTES + b"H"),),
    "part-of-a-head-later": (Send(IMAGE_BYTES[:-9]), Wait(0.05), Send(IMAGE_BYTES[-9:] + STOLEN_BYTES[:17])),
    "chunked-and-a-byte": (Send(CHUNKED + b"H"),),
    "chunked-and-a-line": (Send(CHUNKED + STOLEN_BYTES[:17]),),
    "chunked-and-an-answer": (Send(CHUNKED + STOLEN_BYTES),),
    "garbage": (Send(IMAGE_BYTES + b"\x00\x01 garbage\r\n\r\n"),),
    "blank-lines-and-an-answer": (Send(IMAGE_BYTES + b"\r\n\r\n" + STOLEN_BYTES),),
    "with-the-last-byte": (Send(IMAGE_BYTES[:-1]), Wait(0.05), Send(IMAGE_BYTES[-1:] + STOLEN_BYTES)),
    "with-the-last-byte-and-more-later": (
        Send(IMAGE_BYTES[:-1]),
        Wait(0.05),
        Send(IMAGE_BYTES[-1:] + STOLEN_BYTES[:-9]),
        Wait(0.02),
        Send(STOLEN_BYTES[-9:]),
    ),
    "at-once-in-another-segment": (Send(IMAGE_BYTES), *STOLEN),
    "interim": (Send(IMAGE_BYTES + b"HTTP/1.1 100 Continue\r\n\r\n"),),
}


@pytest.mark.parametrize("extra", EXTRA)
async def test_bytes_behind_an_answer_answer_nobody(extra: str) -> None:
    with logged("upstream_extra_bytes"):
        async with provider(EXTRA[extra], IMAGE) as (server, proxy):
            for _ in range(3):
                await own_answer(proxy)
            assert server.calls == 3
            assert server.received[0].connection != server.received[1].connection == server.received[2].connection
            assert await proxy.tolerated() == {"upstream_extra_bytes": 1}


async def test_bytes_on_an_idle_connection_close_it() -> None:
    with logged("upstream_extra_bytes"):
        async with provider((*IMAGE, Wait(0.1), *STOLEN, Wait(BOUND)), IMAGE) as (server, proxy):
            await own_answer(proxy)
            await server.wait_closed_connections(BOUND)
            await own_answer(proxy)
            assert server.calls == 2
            assert await proxy.tolerated() == {"upstream_extra_bytes": 1}


async def test_bytes_behind_a_stream_answer_nobody() -> None:
    script = sse((COMPLETED,), end=(Send(b"0\r\n\r\n" + STOLEN_BYTES),))
    with logged("upstream_extra_bytes"):
        async with provider(script, IMAGE) as (server, proxy):
            assert len(events((await proxy.generate(stream=True)).content)) == 1
            await own_answer(proxy)
            assert server.received[0].connection != server.received[1].connection
            assert await proxy.tolerated() == {"upstream_extra_bytes": 1}


async def test_callers_never_get_each_others_answers() -> None:
    """Many at once, each answer with another one behind it: everybody gets the answer to their own prompt."""

    def handler(received: Received) -> Script:
        mine = received.body.partition(b'"prompt":"')[2].partition(b'"')[0]
        own = b'{"created":1,"data":[{"b64_json":"' + mine + b'"}]}'
        answer = b"".join(step.data for step in json_answer(200, own) if isinstance(step, Send))
        return (Send(answer + STOLEN_BYTES),)

    async with no_leaks(), serve(handler) as server, running_proxy(server.url) as proxy:

        async def ask(number: int) -> None:
            for turn in range(10):
                prompt = f"p{number}x{turn}"
                answer = await proxy.generate(prompt=prompt)
                assert answer.status_code == 200, answer.text
                assert answer.json()["data"] == [answered_item(prompt)]

        with anyio.fail_after(BOUND):
            async with anyio.create_task_group() as tasks:
                for number in range(8):
                    tasks.start_soon(ask, number)
        assert server.calls == 80


@pytest.mark.parametrize("end", [b"0\r\n\r\n", b"0\r\ntrailer: 1\r\n\r\n"], ids=["plain", "trailer"])
async def test_an_end_that_comes_byte_by_byte_is_an_end(end: bytes) -> None:
    start = CHUNKED.removesuffix(b"0\r\n\r\n")
    script = (Send(start), *(Send(end[at : at + 1]) for at in range(len(end))))
    async with provider(script) as (server, proxy):
        await own_answer(proxy)
        await own_answer(proxy)
        assert server.connections == 1


async def test_bytes_after_an_answer_without_body_are_dropped() -> None:
    none = b"HTTP/1.1 429 Slow down\r\ncontent-length: 0\r\n\r\n"
    for extra in (b"H", STOLEN_BYTES[:17], STOLEN_BYTES):
        async with provider((Send(none + extra),), IMAGE) as (server, proxy):
            assert (await proxy.generate()).status_code == 429
            await own_answer(proxy)
            assert server.received[0].connection != server.received[1].connection
