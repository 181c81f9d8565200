"""Metrics of one process: figures of generations, refusals, the event loop's lag, a listener of its own."""

from __future__ import annotations

import platform
import re
import signal
import socket
import time
from importlib.metadata import version
from typing import Final

import anyio
import pytest
from structlog.testing import capture_logs

from streamproxy.account import Account, Order
from streamproxy.core.events import Frame
from streamproxy.observe import Observer
from streamproxy.server import guard
from streamproxy.server.framing import HEAD_BYTES
from streamproxy.simulator.script import sse
from streamproxy.simulator.server import serve
from tests.support.caller import GENERATIONS, calling
from tests.support.process import caller, configuration
from tests.support.provider import completed, preview
from tests.support.proxy import BOUND, PROMPT, Proxy, no_leaks, running_proxy
from tests.support.stopping import started

pytestmark = pytest.mark.anyio

NOBODY: Final = "http://127.0.0.1:9"
LABELS: Final = {"provider": "sim", "model": "openai/gpt-image-2"}


async def settled(proxy: Proxy, name: str, value: float, **labels: str) -> None:
    """Wait until the metric has this value: it is counted when the answer has been sent."""
    with anyio.fail_after(BOUND):
        while await proxy.metric(name, **labels) != value:  # noqa: ASYNC110  there is no event for it
            await anyio.sleep(0.01)


async def test_a_streams_figures() -> None:
    """By provider and model. A model that the catalogue has not, in the caller's words, is `other`."""
    script = sse([preview(0), preview(1), completed()], waits=(0, 0.01, 0.01))
    gateway = {"models": ["*"], "names": "written"}
    async with no_leaks(), serve(lambda _: script) as server, running_proxy(server.url, provider=gateway) as proxy:
        for model in ("gpt-image-2", PROMPT):
            assert (await proxy.generate(model=model, stream=True, partial_images=2)).status_code == 200
        await settled(proxy, "streamproxy_generations_total", 1, provider="sim", model="other")
        assert await proxy.metric("streamproxy_generations_total", outcome="completed", **LABELS) == 1
        assert await proxy.metric("streamproxy_images_total", **LABELS) == 1
        assert await proxy.metric("streamproxy_bytes_total", **LABELS) > 192
        assert await proxy.metric("streamproxy_generation_seconds_count", **LABELS) == 1
        assert await proxy.metric("streamproxy_first_preview_seconds_count", **LABELS) == 1
        assert await proxy.metric("streamproxy_preview_gap_seconds_count", **LABELS) == 1
        assert await proxy.metric("streamproxy_generation_seconds_sum", **LABELS) >= 0.02
        assert await proxy.metric("streamproxy_held_seconds_count") == 6
        text = (await proxy.client.get(f"{proxy.url}/metrics")).text
        assert PROMPT.split()[-1] not in text
        told = {"version": version("streamproxy"), "python": platform.python_version()}
        assert await proxy.metric("streamproxy_build_info", **told) == 1


def test_gaps_are_between_previews_of_one_image() -> None:
    order = Order(stream_id="s", request_id="r", traceparent=None, caller=None, provider="p", model=None, n=2)
    account = Account(order)
    for image in (0, 1, 0, 0):
        account.take(Frame("image_generation.partial_image", (b"{}",), image=image))
    assert (account.previews.count, len(account.previews.gaps)) == (4, 2)


# Refusals.


async def refused(proxy: Proxy, sent: bytes) -> int:
    async with calling(proxy.port) as raw:
        await raw.send(sent)
        return await raw.head()


BROKEN: Final = {
    "no http": (b"nonsense\r\n\r\n", 400, "bad_request"),
    "too large": (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * HEAD_BYTES, 431, "head_limit"),
    "too slow": (b"GET / HT", 408, "head_timeout"),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_a_broken_head_is_counted_and_logged(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "HEAD_SECONDS", 0.2 if case == "too slow" else BOUND)
    sent, status, label = BROKEN[case]
    async with no_leaks(), running_proxy(NOBODY) as proxy:
        with capture_logs() as logs:
            assert await refused(proxy, sent) == status
        [line] = [line for line in logs if line["event"] == "request"]
        assert (line["route"], line["status"], line["label"]) == ("none", status, label)
        assert await proxy.failures(label) == 1
        assert await proxy.metric("streamproxy_requests_total", route="none", status=str(status)) == 1


async def test_a_broken_body_is_one_line_with_its_reason() -> None:
    head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
    async with no_leaks(), running_proxy(NOBODY) as proxy:
        with capture_logs() as logs:
            assert await refused(proxy, head.encode() + b"\r\nno chunk\r\n") == 400
            await settled(proxy, "streamproxy_failures_total", 1, label="bad_request")
        lines = [line for line in logs if line["event"] == "request" and line["route"] == GENERATIONS]
        assert [(line["failure"], line["status"]) for line in lines] == [("invalid_http", 400)]
        assert await proxy.failures("client_gone") == 0


async def test_a_preflight_for_another_method_is_counted() -> None:
    async with no_leaks(), running_proxy(NOBODY, cors_origins=("https://page.test",)) as proxy:
        asked = {"origin": "https://page.test", "access-control-request-method": "PUT"}
        answer = await proxy.client.options(proxy.url + GENERATIONS, headers=asked)
        assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
        await settled(proxy, "streamproxy_failures_total", 1, label="bad_request")


# The event loop.


async def test_a_blocked_loop_is_measured_and_logged() -> None:
    slow = sse([preview(0), completed()], waits=(0, 0.5))
    async with no_leaks(), serve(lambda _: slow) as server, running_proxy(server.url) as proxy:
        with capture_logs() as logs:
            async with anyio.create_task_group() as tasks:
                answered = anyio.Event()

                async def follow() -> None:
                    answer = await proxy.generate(stream=True, partial_images=1)
                    assert b"image_generation.completed" in answer.content  # no stream is lost
                    answered.set()

                tasks.start_soon(follow)
                for _ in range(20):  # until a tick of the server's comes while it is blocked
                    await anyio.sleep(0.15)
                    time.sleep(0.5)  # noqa: ASYNC251  the fault
                    if any(line["event"] == "loop_lag" for line in logs):
                        break
                await answered.wait()
        [line, *_] = [line for line in logs if line["event"] == "loop_lag"]
        assert line["ms"] >= 250
        late = await proxy.metric("streamproxy_event_loop_lag_seconds_sum")
        assert late >= 0.25
        assert await proxy.metric("streamproxy_event_loop_lag_seconds_count") > 1


def test_a_loop_that_is_a_little_late_is_not_logged() -> None:
    observer = Observer()
    with capture_logs() as logs:
        observer.lag(0.2)
    assert logs == []


# A listener of its own.


KEYED: Final = f'metrics_port = 0\ncaller_keys = ["sha256:{"0" * 64}"]'
"""Settings by which callers need a key, and the metrics do not."""


async def test_metrics_port_alone_serves_them() -> None:
    async with started(configuration(NOBODY, settings=KEYED)) as process, caller() as client:
        [line] = await process.logged("Metrics: ")
        [url] = re.findall(r"http://127\.0\.0\.1:\d+", line)
        key = {"authorization": "Bearer none"}
        assert (await client.get(f"{process.url}/metrics", headers=key)).status_code == 404
        assert (await client.get(f"{process.url}/livez")).status_code == 200
        answer = await client.get(f"{url}/metrics")
        assert (answer.status_code, answer.headers["content-type"][:10]) == (200, "text/plain")
        assert 'streamproxy_requests_total{route="none",status="404"} 1.0' in answer.text
        for path in ("/", "/livez", "/v1/models"):
            assert (await client.get(url + path)).status_code == 404
        process.signal(signal.SIGTERM)
        assert await process.exited(BOUND) == 0


async def test_a_taken_metrics_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = f"metrics_port = {taken.getsockname()[1]}"
        async with started(configuration(NOBODY, settings=settings), serves=False) as process:
            assert await process.exited(BOUND) == 1
            await process.logged("metrics_port (STREAMPROXY_METRICS_PORT)")
            await process.logged("--metrics-port")
