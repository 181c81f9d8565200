"""Broken heads, and bodies of other types, in place of a provider's answer, and the caller's error for each."""

from __future__ import annotations

import tracemalloc
import zlib

import anyio
import httpx
import pytest
from structlog.testing import capture_logs

from streamproxy.core.headers import REDACTED
from streamproxy.simulator import running
from streamproxy.simulator.openai import OpenAI
from streamproxy.simulator.script import Script, Send, Stall
from streamproxy.simulator.server import Received, serve
from tests.support.faults import IMAGE, IMAGE_BODY, IMAGE_BYTES, STREAMED, Held, Refusal, provider
from tests.support.provider import answered_item
from tests.support.proxy import BOUND, PROMPT, Sent, events, no_leaks, running_proxy, until

pytestmark = pytest.mark.anyio

EVENT = b'{"type":"image_generation.completed",'
PROTOCOL = Refusal(502, "http_protocol_error", "upstream_protocol")
TERMINATED = Refusal(502, "connection_terminated", "upstream_reset")
SILENT = Refusal(504, "first_byte_timeout", "ttfb_timeout")
TOO_LARGE = Refusal(502, "header_section_size", "upstream_protocol")
CODING = Refusal(502, "content_coding", "upstream_encoding")

# What each row of the simulator's faults means to a caller.
BROKEN = {
    "no-bytes": SILENT,
    "half-head-stall": SILENT,
    "reset-before-head": TERMINATED,
    "fin-before-head": TERMINATED,
    "fin-inside-head": TERMINATED,
    "bad-status-line": PROTOCOL,
    "not-http": PROTOCOL,
    "status-1000": PROTOCOL,
    "huge-head": TOO_LARGE,
    "many-headers": TOO_LARGE,
    "cr-in-header": PROTOCOL,
    "conflicting-content-length": PROTOCOL,
    "content-length-and-chunked": PROTOCOL,
    "many-100-continue": PROTOCOL,
    "switching-101": PROTOCOL,
}
SOUND = {
    "redirect": Refusal(502, "unexpected_redirect", "upstream_redirect"),
    "html-200": Refusal(502, "unexpected_content_type", "upstream_protocol"),
    "gzip": CODING,
    "gzip-corrupt": CODING,
    "refused-500": Refusal(502, "provider_failed", "provider_5xx"),
    "html-502": Refusal(502, "provider_failed", "provider_5xx"),
    "no-content": Refusal(502, "no_image", "no_image"),
}
FAULTS = BROKEN | SOUND


@STREAMED
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_before_the_head_is_an_http_status(fault: str, stream: bool) -> None:
    patience = 0.3 if FAULTS[fault] is SILENT else BOUND
    async with no_leaks(), running(pace=0) as sim, running_proxy(sim.url, first_byte_timeout=patience) as proxy:
        await FAULTS[fault].check(proxy, await proxy.generate(model=f"sim/fault-{fault}", stream=stream))
        assert sim.calls == 1
        assert (await proxy.generate(size="64x64", stream=stream, partial_images=0)).status_code == 200
        assert sim.calls == 2
        if fault in BROKEN:
            assert sim.received[0].connection != sim.received[1].connection


@pytest.mark.parametrize(
    ("kind", "noted"),
    [
        (b"Text/HTML; charset=utf-8", "text/html"),
        (b"text/x-" + b"a" * 500, "text/x-" + "a" * 121),
        (b"text/sk-0123456789abcdefghijklmnopqrst", f"text/{REDACTED}"),
    ],
)
async def test_of_an_unexpected_body_only_the_head_is_logged(kind: bytes, noted: str) -> None:
    page = b"<html>" + PROMPT.encode() + b"</html>"
    script = (Send(b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n" % (kind, len(page)) + page),)
    async with provider(script) as (_, proxy):
        with capture_logs() as lines:
            answer = await proxy.generate(stream=True)
            await until(lambda: any("failure" in line for line in lines))
        message = await Refusal(502, "unexpected_content_type", "upstream_protocol").check(proxy, answer)
        (line,) = [line for line in lines if "failure" in line]
        assert (line["content_type"], line["content_length"]) == (noted, str(len(page)))
        assert "html" not in message
        assert not [line for line in lines if PROMPT in repr(line)]


@STREAMED
async def test_a_page_after_its_head_is_an_http_status_too(stream: bool) -> None:
    released = anyio.Event()
    start = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 8\r\n\r\n\n"
    async with provider(Held((Send(start),), released, (Send(b"<html>\n"),))) as (server, proxy):
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await proxy.generate(stream=stream))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await server.wait_until(lambda server: server.calls == 1, BOUND)
            released.set()
        await Refusal(502, "unexpected_content_type", "upstream_protocol").check(proxy, answers[0])
        assert server.calls == 1


@STREAMED
@pytest.mark.parametrize("kind", [b"text/plain", b"application/octet-stream", b"application/problem+json"])
async def test_a_good_answer_under_another_type_is_one(kind: bytes, stream: bool) -> None:
    for body in (
        IMAGE_BODY,
        b"data: " + IMAGE_BODY.replace(b'{"created":1,"data":[{', EVENT).replace(b"}]}", b"}") + b"\n\n",
    ):
        start = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n" % (kind, len(body))
        async with provider((Send(start + body),)) as (server, proxy):
            answer = await proxy.generate(stream=stream)
            assert answer.status_code == 200
            assert (b"aW1hZ2U=" in answer.content, b"event: error" in answer.content) == (True, False)
            assert server.calls == 1


async def test_faults_leave_another_stream_alone() -> None:
    handler = OpenAI(0)
    released = anyio.Event()

    async def beside(received: Received) -> Script:
        script = await handler(received)
        if b"fault-" in received.body:
            return script
        return Held(script[:-2], released, script[-2:])  # all but `completed`

    asked = {"breaker": False}
    async with (
        no_leaks(),
        serve(beside) as sim,
        running_proxy(sim.url, provider=asked, first_byte_timeout=1.0) as proxy,
    ):
        whole: list[Sent] = []

        async def companion() -> None:
            whole.extend(events((await proxy.generate(stream=True, partial_images=2, size="64x64")).content))

        with anyio.fail_after(BOUND):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(companion)
                await sim.wait_until(lambda server: server.calls == 1, BOUND)
                for fault, refusal in FAULTS.items():
                    answer = await proxy.generate(model=f"sim/fault-{fault}", stream=True)
                    assert answer.status_code == refusal.status, fault
                assert whole == []
                released.set()
        assert [event.event.rpartition(".")[2] for event in whole] == ["partial_image"] * 2 + ["completed"]
        assert sim.calls == 1 + len(FAULTS)


async def test_each_deadline_before_the_head_names_its_setting() -> None:
    async with provider((Stall(),), first_byte_timeout=0.2) as (_, proxy):
        message = await SILENT.check(proxy, await proxy.generate())
        assert "0.2 s" in message
        assert "first_byte_timeout" in message
    async with provider((Stall(),), total_timeout=0.2) as (_, proxy):
        message = await Refusal(504, "deadline", "stream_deadline").check(proxy, await proxy.generate())
        assert "0.2 s" in message
        assert "total_timeout" in message


async def test_a_head_that_comes_slowly_is_fine() -> None:
    pieces = (Send(IMAGE_BYTES[at : at + 1]) for at in range(len(IMAGE_BYTES)))
    async with provider(tuple(pieces)) as (server, proxy):
        assert (await proxy.generate()).json()["data"] == [answered_item("aW1hZ2U=")]
        assert server.calls == 1


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: 1\r\n" % i for i in range(201)), PROTOCOL),
        (b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: %s\r\n" % (i, b"v" * 1000) for i in range(110)), TOO_LARGE),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n", PROTOCOL),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n", PROTOCOL),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: identity\r\n", PROTOCOL),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n", PROTOCOL),
        (b"HTTP/2 200\r\n", PROTOCOL),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" * 9 + b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n", PROTOCOL),
    ],
    ids=["201-headers", "110-kb", "equal-lengths", "two-framings", "two-codings", "negative", "http-2", "9-interim"],
)
async def test_heads_that_parsers_may_accept_are_refused(start: bytes, expected: Refusal) -> None:
    # In one segment, and with the last bytes in segments of their own: where it is cut must not decide.
    whole = start + b"\r\n{}"
    async with provider((Send(whole),), (Send(whole[:-5]), *(Send(whole[at:][:1]) for at in range(-5, 0))), IMAGE) as (
        server,
        proxy,
    ):
        await expected.check(proxy, await proxy.generate())
        await expected.check(proxy, await proxy.generate(), times=2)
        assert (await proxy.generate()).status_code == 200
        assert server.calls == 3


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\n" + b"content-length: %d\n\n" % len(IMAGE_BODY),
        b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 8
        + b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(IMAGE_BODY),
        b"HTTP/1.1 200 OK\r\n" + b"x: 1\r\n" * 199 + b"content-length: %d\r\n\r\n" % len(IMAGE_BODY),
    ],
    ids=["lf-only", "8-interim", "200-headers"],
)
async def test_odd_but_sound_heads_pass(start: bytes) -> None:
    async with provider((Send(start + IMAGE_BODY),)) as (server, proxy):
        assert (await proxy.generate()).status_code == 200
        assert (await proxy.generate()).status_code == 200
        assert server.connections == 1


async def test_a_large_body_in_the_heads_segment_is_no_part_of_it() -> None:
    body = b'{"created":1,"data":[{"b64_json":"' + b"A" * 300_000 + b'"}]}'
    for newline in (b"\r\n", b"\n"):
        start = newline.join((b"HTTP/1.1 200 OK", b"content-length: %d" % len(body), b"", b""))
        async with provider((Send(start + body),)) as (_, proxy):
            assert len((await proxy.generate()).content) > 300_000


async def test_a_redirect_is_never_followed() -> None:
    async with provider(IMAGE) as (elsewhere, _):
        start = f"HTTP/1.1 307 Elsewhere\r\nlocation: {elsewhere.url}/v1/x\r\ncontent-length: 0\r\n\r\n"
        async with provider((Send(start.encode()),)) as (server, proxy):
            await FAULTS["redirect"].check(proxy, await proxy.generate())
            assert (server.calls, elsewhere.calls) == (1, 0)


async def test_a_compression_bomb_costs_nothing() -> None:
    pack = zlib.compressobj(9)
    body = b"".join(pack.compress(bytes(1 << 20)) for _ in range(64)) + pack.flush()
    start = b"HTTP/1.1 200 OK\r\ncontent-encoding: deflate\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with provider((Send(start + body),)) as (server, proxy):
        tracemalloc.start()
        try:
            answer = await proxy.generate(stream=True)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        await CODING.check(proxy, answer)
        assert peak < 8 << 20
        assert server.calls == 1
