"""A stream's producer from its start to its end: cleanup at every end, and the one report of a failure."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import anyio
import pytest
from anyio.abc import TaskGroup
from structlog.testing import capture_logs

from streamproxy.auth import Credential, CredentialSource
from streamproxy.core.conversation import Conversation, Job, Limits
from streamproxy.core.events import ANSWER, ERROR
from streamproxy.core.headers import HeaderPolicy
from streamproxy.core.rawjson import parse
from streamproxy.errors import Failure, ProxyError
from streamproxy.generation.attempts import Attempts
from streamproxy.generation.driver import Outside
from streamproxy.generation.producer import Producer
from streamproxy.generation.router import Router, Service
from streamproxy.generation.tabs import Tabs
from streamproxy.hub.generation import Generation, OnDisconnect
from streamproxy.hub.hub import Hub
from streamproxy.hub.keys import Names
from streamproxy.hub.ledger import MemoryLedger
from streamproxy.hub.limits import HubLimits
from streamproxy.hub.log import Entry, Record
from streamproxy.hub.memory import MemoryMarks, MemoryStore
from streamproxy.hub.store import StoreBackend
from streamproxy.hub.stream import Stream, Subscriber
from streamproxy.observe import Observer
from streamproxy.providers import ADAPTERS
from streamproxy.providers.openai import OpenAI
from streamproxy.settings.providers import read_catalogue
from streamproxy.simulator.received import Handler
from streamproxy.simulator.script import Fin, Reset, Script, Stall, error_answer, json_answer, sse
from streamproxy.simulator.server import Server, serve
from streamproxy.upstream import Deadlines, Upstream, default_ssl_context
from streamproxy.upstream.answer import TURN
from streamproxy.upstream.fetch import Fetcher
from tests.contract.scenarios import PLAIN
from tests.support.provider import COMPLETED, PREVIEW, completed, preview
from tests.support.proxy import no_leaks, until

pytestmark = pytest.mark.anyio

BOUND: Final = 10.0
MODEL: Final = "sim/gpt-image"
FIRST, LAST = preview(0), completed()
BODY: Final = b'{"model":"sim/gpt-image","prompt":"x","stream":true,"n":1}'
KEY: Final = "lighthouse-keeper"
POLICY: Final = HeaderPolicy.load()


class Broken(OpenAI):
    """An adapter with a mistake in it."""

    def converse(self, job: Job) -> Conversation[None]:
        yield from ()
        raise ZeroDivisionError("with a prompt in its words")


class SlowStore(MemoryStore):
    """A store that takes its time over an outcome; `scope` is cancelled meanwhile."""

    scope: anyio.CancelScope | None = None

    async def append(self, id: str, entry: Entry) -> None:
        if entry.critical and self.scope is not None:
            time.sleep(2 * TURN)  # noqa: ASYNC251 - so that the answer's reader lets the cancellation in
            self.scope.cancel()
        await super().append(id, entry)


@dataclass(slots=True)
class Running:
    """A producer with one provider; `released` are the streams whose files were given back."""

    producer: Producer
    router: Router
    tasks: TaskGroup
    observer: Observer
    upstream: Server
    hub: Hub
    tabs: Tabs
    store: SlowStore
    generations: list[Generation] = field(default_factory=list)
    released: list[str] = field(default_factory=list)

    async def start(self, *, n: int = 1, stream: bool = True) -> Stream:
        plan = self.router.plan(MODEL, [])
        request = replace(PLAIN, model=MODEL, n=n, stream=stream, extra_headers=None, body=parse(BODY))
        made = await self.register(n=n)
        tab = await self.tabs.open(plan.caller, (plan.route,), n)
        self.producer.start(request, (plan,), made, tab, lambda: self.released.append(made.stream.id))
        return made.stream

    async def register(self, *, n: int = 1, key: str | None = None) -> Generation:
        record, names = Record("str_1", n=n), Names("print", key)
        made = self.hub.prepare(record, request_id="req_1", policy=OnDisconnect.CANCEL, names=names)
        self.generations.append(made)
        await self.hub.register(made)
        return made

    def value(self, name: str, **labels: str) -> float:
        return self.observer.registry.get_sample_value(name, labels) or 0.0

    async def over(self) -> None:
        """Wait until the generation has ended; then it has left nothing behind."""
        await until(lambda: self.released)
        await until(lambda: not self.value("streamproxy_streams"))
        assert self.released == ["str_1"]
        assert self.hub.running == 0


@asynccontextmanager
async def running(*scripts: Script, handler: Handler | None = None, broken: bool = False) -> AsyncIterator[Running]:
    """A producer whose provider plays these scripts in order, the last one for good."""
    left = list(scripts)
    play = handler or (lambda _: left.pop(0) if len(left) > 1 else left[0])
    observer, catalogue, trust = Observer(), read_catalogue(), default_ssl_context()
    deadlines = Deadlines(connect=BOUND, first_byte=BOUND, idle=BOUND, total=BOUND, pool=BOUND)
    async with no_leaks(), serve(play) as server:
        tolerated = partial(observer.tolerated, "sim")
        upstream = Upstream(deadlines=deadlines, max_connections=4, ssl_context=trust, tolerated=tolerated)
        provider = replace(catalogue.providers["sim"], base_url=f"{server.url}/v1")
        credential = CredentialSource("environment", "authorization", "Bearer ", Credential("authorization", KEY))
        service = Service(provider, upstream, credential, False, ())
        fetcher = Fetcher(hosts=(), ssl_context=trust)
        outside = Outside(fetcher, Limits(1_000_000, 1_000_000), BOUND, BOUND, trust)
        adapters = {**ADAPTERS, "openai": Broken()} if broken else ADAPTERS
        async with anyio.create_task_group() as tasks:
            store = SlowStore(max_bytes=1_000_000, linger=BOUND, now=anyio.current_time)
            limits = HubLimits(grace=0, hold=0, viewers=10, viewers_of_owner=10, streams=10)
            backend = StoreBackend(store, store, MemoryMarks(now=anyio.current_time))
            hub = Hub(backend=backend, tasks=tasks, limits=limits, observer=observer)
            attempts = Attempts(adapters, outside, side_by_side=True)
            producer = Producer(attempts=attempts, hub=hub, observer=observer, tasks=tasks)
            router = Router(catalogue, {"sim": service}, POLICY)
            tabs = Tabs(MemoryLedger(), health=hub.health, observer=observer)
            yield Running(producer, router, tasks, observer, server, hub, tabs, store)
            tasks.cancel_scope.cancel()
        await fetcher.aclose()
        await upstream.aclose()


def follow(stream: Stream, *, asker: bool = False) -> Subscriber:
    """Follow a stream whose head has been sent."""
    stream.commit()
    return stream.subscribe(asker=asker)


async def rest(subscriber: Subscriber) -> list[str]:
    """Follow to the end: the frames' types."""
    types: list[str] = []
    with anyio.fail_after(BOUND):
        while (entry := await subscriber.next()) is not None:
            types.append(entry.frame.type)
    return types


async def first(subscriber: Subscriber) -> str:
    """The next frame's type."""
    with anyio.fail_after(BOUND):
        entry = await subscriber.next()
    assert entry is not None
    return entry.frame.type


WAYS_OUT: Final[dict[str, tuple[Script, list[str], Failure | None]]] = {
    "whole": (sse((FIRST, LAST)), [PREVIEW, COMPLETED], None),
    "whole-and-held": (sse((FIRST, LAST), end=(Stall(),)), [PREVIEW, COMPLETED], None),
    "cut": (sse((FIRST,), end=(Fin(),)), [PREVIEW, ERROR], Failure.UPSTREAM_INCOMPLETE),
    "reset": (sse((FIRST,), end=(Reset(),)), [PREVIEW, ERROR], Failure.STREAM_RESET),
    "refused": (error_answer(400, "No."), [ERROR], Failure.PROVIDER_REFUSED),
    "closed": ((Fin(),), [ERROR], Failure.CONNECTION_TERMINATED),
}


@pytest.mark.parametrize("way", WAYS_OUT)
async def test_every_way_out_is_one_call_and_gives_files_back(way: str) -> None:
    script, types, failure = WAYS_OUT[way]
    async with running(script) as run:
        stream = await run.start()
        assert await rest(follow(stream, asker=True)) == types
        await run.over()
        assert (stream.error and stream.error.failure) is failure
        assert run.upstream.calls == 1
        assert run.value("streamproxy_upstream_requests_total", provider="sim") == 1
        for type in (PREVIEW, COMPLETED):
            assert run.value("streamproxy_frames_total", type=type) == types.count(type)


async def test_an_adapters_mistake_is_told_without_its_words() -> None:
    async with running(sse(()), broken=True) as run:
        with capture_logs() as logs:
            stream = await run.start()
            assert await rest(follow(stream)) == [ERROR]
            await run.over()
        assert stream.error is not None
        assert stream.error.failure is Failure.INTERNAL
        assert run.upstream.calls == 0
        assert [line["exception"] for line in logs if line["event"] == "unexpected"] == ["ZeroDivisionError"]
        assert "prompt" not in repr(logs)


TELLS: Final[dict[str, tuple[bool, bool, int]]] = {
    "before the head": (False, False, 0),
    "the request that asked": (True, True, 0),
    "the stream": (True, False, 1),
}
"""Whether the head is out, whether its caller is there, and the failures that the producer itself counts."""


@pytest.mark.parametrize("teller", TELLS)
async def test_a_failure_is_told_once_by_who_can(teller: str) -> None:
    committed, asker, counted = TELLS[teller]
    async with running(sse((FIRST,), end=(Fin(),))) as run:
        with capture_logs() as logs:
            stream = await run.start()
            reader = stream.subscribe(asker=asker)
            if committed:
                stream.commit()
            assert await rest(reader) == [PREVIEW, ERROR]
            await run.over()
        assert run.value("streamproxy_failures_total", label="stream_incomplete") == counted
        lines = [line for line in logs if "failure" in line]
        assert [(line["failure"], line["request_id"]) for line in lines] == [("upstream_incomplete", "req_1")]


async def test_its_line_is_its_account() -> None:
    """The cost is that of the completed image, which the provider states or the catalogue's price gives."""
    said = LAST.replace(b'"created_at":1', b'"created_at":1,"cost":0.25')
    async with running(sse((FIRST, said))) as run:
        with capture_logs() as logs:
            await rest(follow(await run.start(), asker=True))
            await run.over()
    [line] = [line for line in logs if line["event"] == "generation"]
    assert {"ms", "first_preview_ms", "bytes"} <= line.keys()
    expected = {
        "outcome": "completed",
        "provider": "sim",
        "model": MODEL,
        "stream": "str_1",
        "attempts": 1,
        "images": 1,
        "previews": 1,
        "cost": 0.25,
        "request_id": "req_1",
    }
    assert {name: line.get(name) for name in expected} == expected


async def test_without_a_stream_there_is_one_answer() -> None:
    async with running(sse((FIRST, LAST))) as run:
        stream = await run.start(stream=False)
        types = await rest(stream.subscribe(asker=True))
        assert types in ([ANSWER], [COMPLETED])
        await run.over()


async def test_the_providers_headers_pass_but_for_secrets() -> None:
    given = (("x-request-id", "up_1"), ("openai-version", KEY), ("set-cookie", "a=b"), ("x-secret", "c"))
    async with running(sse((FIRST, LAST), headers=given)) as run:
        stream = await run.start()
        await rest(follow(stream))
        await run.over()
        passed = dict(stream.acceptance.headers)
        assert passed["x-request-id"] == "up_1"
        assert passed.keys() & {"openai-version", "set-cookie", "x-secret"} == set()
        assert KEY not in repr(passed)


async def test_a_refusals_headers_do_not_pass() -> None:
    async with running(error_answer(400, "No.", headers=(("x-request-id", "up_1"),))) as run:
        stream = await run.start()
        await rest(stream.subscribe(asker=True))
        await run.over()
        assert stream.acceptance.headers == ()


async def _asked(stream: Stream, run: Running) -> None:
    await run.hub.end(stream)


async def _left(stream: Stream, run: Running) -> None:
    for reader in list(stream.subscribers):
        reader.leave()


async def _drained(stream: Stream, run: Running) -> None:
    await run.hub.drain(0)


ENDS: Final = {"asked": (_asked, Failure.CANCELLED), "left": (_left, Failure.CANCELLED)} | {
    "drained": (_drained, Failure.SERVER_SHUTDOWN)
}


@pytest.mark.parametrize("script", [(Stall(),), sse((FIRST,), end=(Stall(),))], ids=["no-head", "preview"])
@pytest.mark.parametrize("how", ENDS)
async def test_a_cancellation_closes_the_connection(how: str, script: Script) -> None:
    end, failure = ENDS[how]
    async with running(script) as run:
        stream = await run.start()
        reader = follow(stream)
        await run.upstream.wait_until(lambda server: server.calls == 1, BOUND)
        if len(script) > 1:
            assert await first(reader) == PREVIEW
        await end(stream, run)
        await run.over()
        await run.upstream.wait_closed_connections(BOUND)
        assert stream.error is not None
        assert (stream.error.failure, stream.error.charged) == (failure, True)
        assert stream.finished
        assert run.upstream.calls == 1


async def test_the_apps_end_is_told_to_a_stream_that_runs() -> None:
    async with running(sse((FIRST,), end=(Stall(),))) as run:
        stream = await run.start()
        reader = follow(stream)
        assert await first(reader) == PREVIEW
        run.tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            assert await rest(reader) == [ERROR]
            await run.over()
        assert stream.error is not None
        assert stream.error.failure is Failure.SERVER_SHUTDOWN


async def test_nothing_follows_the_last_image_at_the_apps_end() -> None:
    """The provider has sent all and holds its connection; the app ends in just that moment."""
    async with running(sse((LAST,), end=(Stall(),))) as run:
        stream = await run.start()
        reader = follow(stream)
        assert await first(reader) == COMPLETED
        run.tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            assert await rest(reader) == []
            await run.over()
        assert stream.error is None


async def test_a_cancellation_while_the_last_is_kept_is_late() -> None:
    async with running(sse((FIRST, LAST))) as run:
        stream = await run.start()
        run.store.scope = run.generations[0].scope
        assert await rest(follow(stream, asker=True)) == [PREVIEW, COMPLETED]
        await run.over()
        assert (stream.finished, run.generations[0].complete, stream.error) == (True, True, None)


async def test_a_cancellation_before_the_last_of_two_is_none() -> None:
    """One image has its outcome, the other one has not: the stream is not complete, and says so."""
    left = [sse((LAST,)), sse((FIRST,), end=(Stall(),))]
    async with running(handler=lambda _: left.pop()) as run:
        stream = await run.start(n=2)
        reader = follow(stream)
        assert {await first(reader), await first(reader)} == {PREVIEW, COMPLETED}
        run.generations[0].scope.cancel()
        assert await rest(reader) == [ERROR]
        await run.over()
        assert stream.error is not None
        assert stream.error.failure is Failure.CANCELLED


async def test_unknown_models_and_no_provider_cost_no_call() -> None:
    async with running(sse(())) as run:
        bare = Router(read_catalogue(), {}, POLICY)
        plans: tuple[tuple[Callable[[], object], Failure], ...] = (
            (lambda: run.router.plan("nobody/nothing", []), Failure.MODEL_NOT_FOUND),
            (lambda: bare.plan(MODEL, []), Failure.PROVIDER_NOT_CONFIGURED),
            (lambda: run.router.plan(MODEL, []).with_headers({"cookie": "a=b"}, ()), Failure.CREDENTIAL_HEADER),
        )
        for plan, failure in plans:
            with pytest.raises(ProxyError) as refused:
                plan()
            assert (refused.value.failure, refused.value.charged) == (failure, False)
        assert run.upstream.calls == 0
        assert run.value("streamproxy_upstream_requests_total", provider="sim") == 0


async def test_a_refusal_lets_its_key_be_tried_again() -> None:
    """Nothing was processed, so the same Idempotency-Key may be another generation; a charged failure keeps it."""
    for script, again in ((error_answer(400, "No."), True), (sse((FIRST,), end=(Fin(),)), False)):
        async with running(script) as run:
            assert await run.hub.keys.reserve("key", "print", "str_1") is None
            made = await run.register(key="key")
            request = replace(PLAIN, model=MODEL, extra_headers=None, body=parse(BODY))
            plan = run.router.plan(MODEL, [])
            tab = await run.tabs.open(plan.caller, (plan.route,), 1)
            run.producer.start(request, (plan,), made, tab, lambda: run.released.append("str_1"))
            await rest(follow(made.stream))
            await run.over()
            assert (await run.hub.keys.reserve("key", "print", "str_2") is None) is again


async def test_a_job_without_usage_of_json_is_one_call_too() -> None:
    answer = json_answer(200, {"created": 1, "data": [{"b64_json": "QUJD"}]})
    async with running(answer) as run:
        stream = await run.start()
        assert await rest(follow(stream)) == [COMPLETED]
        await run.over()
        assert run.upstream.calls == 1
