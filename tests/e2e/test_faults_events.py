"""Events that a provider should not send, and unusual cuts of good ones: odd bytes, errors, bytes after the end."""

from __future__ import annotations

from collections.abc import Callable

import orjson
import pytest
from structlog.testing import capture_logs

from streamproxy.errors import Failure
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Send, Stall, Wait, event, sse
from streamproxy.simulator.server import serve
from tests.support.provider import (
    COMPLETED,
    PREVIEW,
    completed,
    failed,
    idle,
    one_failure,
    passed_on,
    preview,
    provider,
)
from tests.support.proxy import BOUND, events, no_leaks, running_proxy

pytestmark = pytest.mark.anyio

FIRST = preview(0)
WHOLE = (FIRST, preview(1, size=40_000), completed(size=70_000))


def _odd(byte: bytes) -> bytes:
    """A preview with a member that holds these bytes as they are."""
    return event(PREVIEW, b'{"type":"' + PREVIEW.encode() + b'","note":"' + byte + b'","b64_json":"QUJD"}')


ODD = {"bom inside": b"\xef\xbb\xbf", "u+2028": "\u2028".encode(), "del": b"\x7f"}


@pytest.mark.parametrize("name", ODD)
async def test_odd_bytes_in_an_event_go_on_as_they_are(name: str) -> None:
    odd = _odd(ODD[name])
    async with (
        no_leaks(),
        serve(provider(sse((odd, completed())))) as upstream,
        running_proxy(upstream.url) as proxy,
    ):
        answer = await proxy.generate(stream=True)
        assert events(answer.content) == passed_on(odd, completed())
        assert upstream.calls == 1
        await idle(proxy)
        assert await proxy.tolerated() == {}


async def test_invalid_utf8_is_what_a_browser_reads_it_as() -> None:
    """openai-python would end the whole stream over it; WHATWG decodes it to U+FFFD."""
    script = sse((_odd(b"\xff\xfe"), _odd(b"\xff"), completed()))
    mended = (_odd("\ufffd\ufffd".encode()), _odd("\ufffd".encode()))
    async with no_leaks(), serve(provider(script)) as upstream, running_proxy(upstream.url) as proxy:
        for count in (1, 2):
            with capture_logs() as lines:
                answer = await proxy.generate(stream=True)
                assert events(answer.content) == passed_on(*mended, completed())
                await idle(proxy)
            assert await proxy.tolerated() == {"sse_odd": count}  # once per stream, however many events
            assert [line["label"] for line in lines if line["event"] == "tolerated"] == ["sse_odd"]
        assert upstream.calls == 2


LINE_ENDS = {"LF": (b"\n", {}), "CRLF": (b"\r\n", {}), "CR": (b"\r", {"sse_odd": 1.0})}


@pytest.mark.parametrize("name", LINE_ENDS)
async def test_a_lone_cr_ends_a_line_and_is_counted(name: str) -> None:
    end, counted = LINE_ENDS[name]
    script = sse(tuple(frame.replace(b"\n", end) for frame in (FIRST, completed())))
    async with no_leaks(), serve(provider(script)) as upstream, running_proxy(upstream.url) as proxy:
        answer = await proxy.generate(stream=True)
        assert events(answer.content) == passed_on(FIRST, completed())
        await idle(proxy)
        assert await proxy.tolerated() == counted


async def test_odd_bytes_are_counted_if_the_stream_fails() -> None:
    script = sse((_odd(b"\xff"),))
    async with no_leaks(), serve(provider(script)) as upstream, running_proxy(upstream.url) as proxy:
        assert failed(await proxy.generate(stream=True)).code == "missing_terminal_event"
        await idle(proxy)
        assert await proxy.tolerated() == {"sse_odd": 1}


NOISE = {
    "a nul in a preview": _odd(b"\0"),
    "a comment as data": b"data: : keepalive\n\n",
    "words": b"event: message\ndata: still painting\n\n",
}


@pytest.mark.parametrize("name", NOISE)
async def test_noise_between_events_is_skipped_and_counted(name: str) -> None:
    script = sse((NOISE[name], FIRST, NOISE[name], NOISE[name], completed()))
    async with no_leaks(), serve(provider(script)) as upstream, running_proxy(upstream.url) as proxy:
        answer = await proxy.generate(stream=True)
        assert events(answer.content) == passed_on(FIRST, completed())
        assert upstream.calls == 1
        await idle(proxy)
        assert await proxy.tolerated() == {"sse_noise": 1}


async def test_noise_and_no_image_is_bad_json() -> None:
    script = sse((FIRST, *NOISE.values()))
    async with no_leaks(), serve(provider(script)) as upstream, running_proxy(upstream.url) as proxy:
        async with one_failure(Failure.BAD_JSON):
            answer = failed(await proxy.generate(stream=True))
        assert answer.frames == passed_on(FIRST)
        assert upstream.calls == 1


CUTS: dict[str, Callable[[bytes], Script]] = {
    "every byte a segment": lambda wire: tuple(Send(wire[at : at + 1]) for at in range(len(wire))),
    "one segment": lambda wire: (Send(wire),),
    "prime pieces": lambda wire: tuple(Send(wire[at : at + 4093]) for at in range(0, len(wire), 4093)),
}


@pytest.mark.parametrize("name", CUTS)
async def test_where_the_network_cuts_changes_nothing(name: str) -> None:
    frames = (FIRST, preview(1, size=700), completed(size=900)) if name == "every byte a segment" else WHOLE
    wire = b"".join(step.data for step in sse(frames) if isinstance(step, Send))
    async with (
        no_leaks(),
        serve(provider(CUTS[name](wire))) as upstream,
        running_proxy(upstream.url) as proxy,
    ):
        answer = await proxy.generate(stream=True)
        assert events(answer.content) == passed_on(*frames)
        assert (upstream.calls, upstream.connections) == (1, 1)


MESSAGE = "The server had an error."
NESTED = orjson.dumps(
    {"type": "error", "error": {"message": MESSAGE, "type": "server_error", "param": None, "code": "server_error"}}
)


async def test_a_correct_error_event_is_relayed_once_unchanged() -> None:
    script = sse((FIRST, event("error", NESTED), event("error", NESTED)))
    async with no_leaks(), serve(provider(script)) as upstream, running_proxy(upstream.url) as proxy:
        async with one_failure(Failure.PROVIDER_STREAM_ERROR):
            answer = await proxy.generate(stream=True)
        *frames, last = events(answer.content)
        assert frames == passed_on(FIRST)
        assert (last.event, last.data) == ("error", NESTED)
        assert await proxy.failures("provider_stream_error") == 1
        assert upstream.calls == 1


MODERATION = {"code": "moderation_blocked", "message": MESSAGE, "type": "image_generation_user_error"}
SHAPES: dict[str, tuple[bytes, object, int]] = {
    "flat": (event("error", orjson.dumps({"type": "error", "message": MESSAGE, "code": "busy"})), "busy", 502),
    "data only": (event(None, orjson.dumps({"error": {"message": MESSAGE, "code": "busy"}})), "busy", 502),
    "a string": (event("error", orjson.dumps({"error": MESSAGE})), "provider_stream_error", 502),
    "an integer code": (event(None, orjson.dumps({"error": {"message": MESSAGE, "code": 429}})), "429", 429),
    "moderation": (event(None, orjson.dumps({"error": MODERATION})), "moderation_blocked", 400),
    "moderation, bare json": (orjson.dumps({"error": MODERATION}), "moderation_blocked", 400),
    "a failed event": (
        event("image_generation.failed", orjson.dumps({"type": "image_generation.failed", "error": MODERATION})),
        "moderation_blocked",
        400,
    ),
}


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "buffered"])
@pytest.mark.parametrize("name", SHAPES)
async def test_other_shapes_of_errors_become_the_nested_one(name: str, stream: bool) -> None:
    error, code, status = SHAPES[name]
    alone = not error.endswith(b"\n\n")
    script = sse((error,) if alone else (FIRST, error))
    async with no_leaks(), serve(provider(script)) as upstream, running_proxy(upstream.url) as proxy:
        async with one_failure(Failure.PROVIDER_STREAM_ERROR):
            answer = failed(await proxy.generate(stream=stream))
        assert (answer.code, answer.status, answer.message) == (code, status, MESSAGE)
        assert answer.frames == (passed_on(FIRST) if stream and not alone else [])
        assert upstream.calls == 1


TRAILING = {
    "a second completed": completed(),
    "another preview": preview(2, size=1000),
    "an error": event("error", NESTED),
    "a second completed that never ends": completed(size=5_000_000)[:-3],
}


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "buffered"])
@pytest.mark.parametrize("name", TRAILING)
async def test_bytes_after_the_end_close_the_connection(name: str, stream: bool) -> None:
    late = sse((*WHOLE, TRAILING[name]), waits=(0, 0, 0, 0.05), end=(Stall(),))

    def handle(received: Received) -> Script:
        return late if received.connection == 1 else sse(WHOLE)

    async with no_leaks(), serve(handle) as upstream, running_proxy(upstream.url) as proxy:
        for _ in range(2):
            answer = await proxy.generate(stream=stream)
            assert answer.status_code == 200
            if stream:
                assert events(answer.content) == passed_on(*WHOLE)
            await upstream.wait_until(lambda server: server.open_connections == server.connections - 1, BOUND)
        assert (upstream.calls, upstream.connections) == (2, 2)
        assert await proxy.metric("streamproxy_tolerated_total", label="stream_trailing") == 1
        assert await proxy.failures("stream_trailing") == 0


async def test_bytes_in_the_segment_of_the_end_are_discarded() -> None:
    wire = b"".join(step.data for step in sse((*WHOLE, *TRAILING.values())) if isinstance(step, Send))
    async with no_leaks(), serve(provider((Send(wire),))) as upstream, running_proxy(upstream.url) as proxy:
        for calls in (1, 2):
            answer = await proxy.generate(stream=True)
            assert events(answer.content) == passed_on(*WHOLE)
            assert upstream.calls == calls


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "buffered"])
@pytest.mark.parametrize("marker", [b"", b"data: [DONE]\n\n", b":\n\n\n"], ids=["nothing", "[DONE]", "a comment"])
async def test_an_answer_that_ends_soon_keeps_its_connection(marker: bytes, stream: bool) -> None:
    frames = (*WHOLE, marker) if marker else WHOLE
    script = (*sse(frames, waits=(0, 0, 0, 0.02), end=()), Wait(0.02), Send(b"0\r\n\r\n"))
    async with no_leaks(), serve(provider(script)) as upstream, running_proxy(upstream.url) as proxy:
        for _ in range(3):
            answer = await proxy.generate(stream=stream)
            assert answer.status_code == 200
            with_frames = [sent.event for sent in events(answer.content)] if stream else []
            assert with_frames == ([PREVIEW, PREVIEW, COMPLETED] if stream else [])
            # The next request may come before the last chunk of this answer has: then it takes a connection of its own.
            await idle(proxy)
        assert (upstream.calls, upstream.connections) == (3, 1)
        assert await proxy.metric("streamproxy_tolerated_total") == 0
