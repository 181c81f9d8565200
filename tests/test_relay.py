"""Generations without a web part: who is asked, how a run ends, and that its files are given back exactly once."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import anyio
import pytest
from anyio.abc import TaskGroup

from streamproxy.auth import CredentialSource
from streamproxy.configuration import read_catalogue
from streamproxy.core.events import ANSWER, ERROR, Operation
from streamproxy.core.headers import HeaderPolicy
from streamproxy.core.jsonbody import parse
from streamproxy.core.requests import ImageRequest
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.hub import Hub, HubLimits, OnDisconnect
from streamproxy.hub.memory import MemoryMarks, MemoryStore
from streamproxy.hub.store import Kept
from streamproxy.hub.stream import Entry, Stream
from streamproxy.observe import Observer
from streamproxy.relay import Limits, Plan, Relay, Service
from streamproxy.simulator.script import Fin, Script, Stall, error_answer, json_answer, sse
from streamproxy.simulator.server import Server, serve
from streamproxy.upstream import TURN, Deadlines, Upstream, default_ssl_context
from tests.support.provider import COMPLETED, PREVIEW, completed, preview
from tests.support.proxy import no_leaks

pytestmark = pytest.mark.anyio

BOUND = 10.0
MODEL = "sim/gpt-image"
FIRST, LAST = preview(0), completed()
REFUSES_STREAM = error_answer(400, "Unknown parameter: 'stream'.", param="stream", code="unknown_parameter")


@dataclass(slots=True)
class Running:
    """One relay with one provider, and what it gave back."""

    relay: Relay
    tasks: TaskGroup
    observer: Observer
    upstream: Server
    hub: Hub
    released: list[str] = field(default_factory=list)

    async def start(self, *, stream: bool = True) -> tuple[Stream, Plan]:
        plan = self.relay.plan(MODEL, [])
        request = ImageRequest(
            operation=Operation.GENERATION,
            model=plan.route.model,
            upstream_model=plan.route.upstream_model,
            body=parse(b'{"model":"sim/gpt-image","prompt":"x","stream":true}'),
            extra_headers=(),
            n=1,
            stream=stream,
            ask_stream=stream,
        )
        made = Stream("str_1", request_id="req_1")
        await self.hub.create(made, policy=OnDisconnect.CANCEL)
        self.relay.start(request, plan, made, lambda: self.released.append("req_1"))
        return made, plan

    def value(self, name: str, **labels: str) -> float:
        return self.observer.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def relaying(*scripts: Script) -> AsyncIterator[Running]:
    """A relay whose provider plays these scripts in order, the last one for good."""
    deadlines = Deadlines(connect=BOUND, first_byte=BOUND, idle=BOUND, total=BOUND, pool=BOUND)
    catalogue, policy, observer = read_catalogue(), HeaderPolicy.load(), Observer()
    left = list(scripts)
    async with no_leaks(), serve(lambda _: left.pop(0) if len(left) > 1 else left[0]) as server:
        upstream = Upstream(
            deadlines=deadlines,
            max_connections=4,
            ssl_context=default_ssl_context(),
            tolerated=partial(observer.tolerated, "sim"),
        )
        provider = replace(catalogue.providers["sim"], base_url=f"{server.url}/v1")
        service = Service(provider, upstream, CredentialSource("none", "", ""), False, ())
        async with anyio.create_task_group() as tasks:
            store = MemoryStore(max_bytes=1_000_000, linger=BOUND, now=anyio.current_time)
            limits = HubLimits(grace=0, hold=0, viewers=10, viewers_of_owner=10, streams=10)
            kept = Kept(store, store, MemoryMarks(now=anyio.current_time))
            hub = Hub(kept=kept, tasks=tasks, limits=limits, observer=observer)
            relay = Relay(
                catalogue=catalogue,
                services={"sim": service},
                policy=policy,
                observer=observer,
                limits=Limits(1_000_000, 1_000_000),
                hub=hub,
                tasks=tasks,
            )
            yield Running(relay, tasks, observer, server, hub)
            tasks.cancel_scope.cancel()
        await upstream.aclose()


async def _frames(stream: Stream) -> list[str]:
    """Follow to the end: the frames' types."""
    subscriber = stream.subscribe(asker=True)
    stream.commit()
    types: list[str] = []
    with anyio.fail_after(BOUND):
        while (entry := await subscriber.next()) is not None:
            types.append(entry.frame.type)
    subscriber.leave()
    return types


async def _over(running: Running) -> None:
    """Wait until every generation has ended."""
    with anyio.fail_after(BOUND):
        while running.value("streamproxy_streams"):
            await anyio.lowlevel.checkpoint()


async def test_a_generation_is_one_call_and_gives_its_files_back_once() -> None:
    async with relaying(sse((FIRST, LAST))) as running:
        stream, _ = await running.start()
        assert await _frames(stream) == [PREVIEW, COMPLETED]
        await _over(running)
        assert (running.released, running.upstream.calls) == (["req_1"], 1)
        assert running.value("streamproxy_upstream_requests_total", provider="sim") == 1
        assert running.value("streamproxy_frames_total", type=COMPLETED) == 1


async def test_a_failure_is_the_last_frame_and_gives_the_files_back() -> None:
    async with relaying(sse((FIRST,), end=(Fin(),))) as running:
        stream, _ = await running.start()
        assert await _frames(stream) == [PREVIEW, ERROR]
        await _over(running)
        assert stream.error is not None
        assert stream.error.failure is Failure.UPSTREAM_INCOMPLETE
        assert (running.released, running.upstream.calls) == (["req_1"], 1)
        assert running.value("streamproxy_failures_total", label="stream_incomplete") == 0  # its caller's request tells


async def test_a_failure_that_no_caller_waits_for_is_counted_by_the_stream() -> None:
    async with relaying(sse((FIRST,), end=(Fin(),))) as running:
        stream, _ = await running.start()
        stream.commit()
        with anyio.fail_after(BOUND):
            await stream.opened(BOUND)
        await _over(running)
        assert running.value("streamproxy_failures_total", label="stream_incomplete") == 1


async def test_a_failure_before_the_head_is_left_to_whoever_answers() -> None:
    async with relaying(error_answer(400, "No.")) as running:
        stream, _ = await running.start()
        with anyio.fail_after(BOUND):
            await stream.opened(BOUND)
        await _over(running)
        assert stream.opening is None
        assert stream.error is not None
        assert stream.error.status == 400
        assert running.value("streamproxy_failures_total", label="provider_4xx") == 0
        assert running.released == ["req_1"]


async def test_a_refusal_of_streaming_is_asked_again_without_and_no_other() -> None:
    answer = json_answer(200, {"created": 1, "data": [{"b64_json": "QUJD"}]})
    async with relaying(REFUSES_STREAM, answer) as running:
        stream, _ = await running.start()
        assert await _frames(stream) == [COMPLETED]
        assert running.upstream.calls == 2
        assert [b'"stream"' in received.body for received in running.upstream.received] == [True, False]
    async with relaying(REFUSES_STREAM) as running:
        stream, _ = await running.start()
        assert await _frames(stream) == [ERROR]
        assert running.upstream.calls == 2


async def test_without_a_stream_there_is_one_answer() -> None:
    async with relaying(sse((FIRST, LAST))) as running:
        stream, _ = await running.start(stream=False)
        assert await _frames(stream) == [ANSWER]


async def test_a_subscriber_who_leaves_ends_the_generation_and_its_connection() -> None:
    async with relaying(sse((FIRST,), end=(Stall(),))) as running:
        stream, _ = await running.start()
        subscriber = stream.subscribe()
        with anyio.fail_after(BOUND):
            await subscriber.next()
        subscriber.leave()
        await _over(running)
        await running.upstream.wait_closed_connections(BOUND)
        assert running.released == ["req_1"]
        assert stream.error is not None
        assert stream.error.failure is Failure.CANCELLED


async def test_the_end_of_the_app_is_told_to_a_stream_that_runs() -> None:
    async with relaying(sse((FIRST,), end=(Stall(),))) as running:
        stream, _ = await running.start()
        subscriber = stream.subscribe()
        stream.commit()
        with anyio.fail_after(BOUND):
            first = await subscriber.next()
        running.tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True), anyio.fail_after(BOUND):
            last = await subscriber.next()
            assert last is not None
            assert (first and first.frame.type, last.frame.type) == (PREVIEW, ERROR)
            assert await subscriber.next() is None
        assert stream.error is not None
        assert stream.error.failure is Failure.SERVER_SHUTDOWN
        assert running.released == ["req_1"]


async def test_nothing_follows_the_last_image_even_at_the_end_of_the_app() -> None:
    """The provider has sent all and holds its connection; the app ends in just that moment."""
    async with relaying(sse((LAST,), end=(Stall(),))) as running:
        stream, _ = await running.start()
        subscriber = stream.subscribe()
        stream.commit()
        with anyio.fail_after(BOUND):
            assert await subscriber.next() is not None
            assert await subscriber.next() is None
            running.tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await _over(running)
                assert await subscriber.next() is None
        assert stream.error is None
        assert running.released == ["req_1"]


async def test_a_model_nobody_serves_and_no_provider_at_all_are_refused() -> None:
    async with relaying(sse(())) as running:
        with pytest.raises(ProxyError) as unknown:
            running.relay.plan("nobody/nothing", [])
        assert unknown.value.failure is Failure.MODEL_NOT_FOUND
        bare = Relay(
            catalogue=read_catalogue(),
            services={},
            policy=HeaderPolicy.load(),
            observer=running.observer,
            limits=Limits(1, 1),
            hub=running.hub,
            tasks=running.tasks,
        )
        with pytest.raises(ProxyError) as nobody:
            bare.plan(MODEL, [])
        assert nobody.value.failure is Failure.PROVIDER_NOT_CONFIGURED
        assert "OPENAI_API_KEY" in nobody.value.message


async def test_a_cancellation_while_the_last_image_is_kept_does_not_follow_it_with_a_failure() -> None:
    async with relaying(sse((FIRST, LAST))) as running:
        stream, _ = await running.start()

        async def keeping(id: str, entry: Entry) -> None:
            if entry.critical:
                time.sleep(2 * TURN)  # noqa: ASYNC251 - so that the relay lets the cancellation in
                stream.scope.cancel()

        stream.sink = keeping
        assert await _frames(stream) == [PREVIEW, COMPLETED]
        await _over(running)
        assert stream.finished
