"""Traces as a receiver gets them: spans of requests and attempts, in the caller's trace, and without what was asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from structlog.testing import capture_logs

from streamproxy.observe.traces import NO_SPAN, NO_TRACES, Kind, open_traces
from streamproxy.simulator.received import Received, Server
from streamproxy.simulator.script import Script, error_answer, json_answer, sse
from streamproxy.simulator.server import serve
from tests.support.caller import GENERATIONS
from tests.support.provider import completed, preview
from tests.support.proxy import PROMPT, Proxy, no_leaks, running_proxy

pytestmark = pytest.mark.anyio

TRACE_ID: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLERS_SPAN: Final = "00f067aa0ba902b7"
SECRET: Final = "planted-7f20"
GATEWAY: Final = {"models": ["*"], "names": "written", "chat": "/chat/completions"}
MODEL: Final = "openai/gpt-image-2"


@dataclass(slots=True)
class Traced:
    """A proxy whose traces arrive here once it has ended."""

    proxy: Proxy
    provider: Server
    exports: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    async def post(self, *, sampled: bool = True, **members: object) -> int:
        trace = f"00-{TRACE_ID}-{CALLERS_SPAN}-{sampled:02x}"
        body = {"model": MODEL, "prompt": f"{PROMPT} {SECRET}", **members}
        url = f"{self.proxy.url}{GENERATIONS}?key={SECRET}"
        return (await self.proxy.client.post(url, json=body, headers={"traceparent": trace})).status_code

    def spans(self, kind: int) -> list[Span]:
        return [span for span in self._all() if span.kind == kind]

    def _all(self) -> Iterator[Span]:
        for export in self.exports:
            for resource in ExportTraceServiceRequest.FromString(export).resource_spans:
                for scope in resource.scope_spans:
                    yield from scope.spans


@asynccontextmanager
async def traced(script: Script, variable: str = "OTEL_EXPORTER_OTLP_ENDPOINT") -> AsyncIterator[Traced]:
    found: list[Traced] = []

    def receive(received: Received) -> Script:
        found[0].exports.append(received.body)
        found[0].paths.append(received.target.partition("?")[0])
        return json_answer(200, {})

    async with no_leaks(), serve(receive) as receiver, serve(lambda _: script) as provider:
        environ = {variable: receiver.url}
        async with running_proxy(provider.url, provider=GATEWAY, environ=environ) as proxy:
            found.append(Traced(proxy, provider))
            yield found[0]


def attributes(span: Span) -> dict[str, str | int]:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in span.attributes}


async def test_a_stream_is_two_spans_of_the_callers_trace() -> None:
    async with traced(sse([preview(0), preview(1), completed()])) as stage:
        assert await stage.post(stream=True) == 200
        sent = stage.provider.received[0].header("traceparent")
    [request], [attempt] = stage.spans(Span.SPAN_KIND_SERVER), stage.spans(Span.SPAN_KIND_CLIENT)
    assert stage.paths == ["/v1/traces"]
    assert {request.trace_id.hex(), attempt.trace_id.hex()} == {TRACE_ID}
    assert (request.parent_span_id.hex(), attempt.parent_span_id) == (CALLERS_SPAN, request.span_id)
    assert sent == f"00-{TRACE_ID}-{attempt.span_id.hex()}-01"
    assert request.name == f"POST {GENERATIONS}"
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.route": GENERATIONS,
        "http.response.status_code": 200,
    }
    assert attempt.name == f"generate_content {MODEL}"
    assert attributes(attempt) == {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.provider.name": "sim",
        "gen_ai.request.model": MODEL,
        "gen_ai.output.type": "image",
        "gen_ai.usage.input_tokens": 1,
        "gen_ai.usage.output_tokens": 2,
    }
    assert [event.name for event in attempt.events] == ["accepted", "first_preview", "completed"]
    assert attempt.status.code == Status.STATUS_CODE_UNSET
    assert b"\x0bstreamproxy" in stage.exports[0]  # the service's name
    for word in (SECRET, PROMPT, "AAAA", "key="):
        assert word.encode() not in b"".join(stage.exports)


async def test_a_json_answer_tells_its_model_and_tokens() -> None:
    usage = {"input_tokens": 5, "output_tokens": 7}
    answer = {"created": 1, "model": "made-by/this", "data": [{"b64_json": "aW1hZ2U="}], "usage": usage}
    async with traced(json_answer(200, answer)) as stage:
        assert await stage.post() == 200
    [attempt] = stage.spans(Span.SPAN_KIND_CLIENT)
    told = attributes(attempt)
    assert told["gen_ai.response.model"] == "made-by/this"
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (5, 7)


FAILURES: Final = ((400, "provider_refused", False), (500, "provider_failed", True))


@pytest.mark.parametrize(("status", "code", "failed"), FAILURES)
async def test_a_failure_is_the_error_of_both(status: int, code: str, failed: bool) -> None:
    async with traced(error_answer(status, SECRET)) as stage:
        assert await stage.post(stream=True) in (400, 502)
    [request], [attempt] = stage.spans(Span.SPAN_KIND_SERVER), stage.spans(Span.SPAN_KIND_CLIENT)
    assert attributes(request)["error.type"] == attributes(attempt)["error.type"] == code
    assert (request.status.code == Status.STATUS_CODE_ERROR) is failed
    assert attempt.status.code == Status.STATUS_CODE_ERROR
    assert SECRET.encode() not in b"".join(stage.exports)


async def test_a_chat_that_is_passed_on_has_its_span() -> None:
    async with traced(json_answer(200, {"id": "c", "choices": []})) as stage:
        body = {"model": "words", "messages": [{"role": "user", "content": SECRET}]}
        answer = await stage.proxy.client.post(f"{stage.proxy.url}/v1/chat/completions", json=body)
        assert answer.status_code == 200
        sent = stage.provider.received[0].header("traceparent")
    [attempt] = stage.spans(Span.SPAN_KIND_CLIENT)
    assert (attempt.name, sent) == ("chat", f"00-{attempt.trace_id.hex()}-{attempt.span_id.hex()}-01")
    assert SECRET.encode() not in b"".join(stage.exports)


async def test_what_is_not_sampled_is_passed_on_but_not_sent() -> None:
    async with traced(sse([completed()])) as stage:
        assert await stage.post(sampled=False, stream=True) == 200
        sent = stage.provider.received[0].header("traceparent") or ""
    assert stage.exports == []
    assert sent.startswith(f"00-{TRACE_ID}-")
    assert sent.endswith("-00")
    assert CALLERS_SPAN not in sent


async def test_the_signals_own_endpoint_is_taken_as_it_is() -> None:
    async with traced(sse([completed()]), "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") as stage:
        for path in ("/livez", "/readyz", "/metrics"):
            assert (await stage.proxy.client.get(stage.proxy.url + path)).status_code == 200
        assert await stage.post(stream=True) == 200
    assert stage.paths == ["/"]
    assert [span.name for span in stage.spans(Span.SPAN_KIND_SERVER)] == [f"POST {GENERATIONS}"]


OFF: Final[tuple[dict[str, str], ...]] = (
    {},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"},
)


@pytest.mark.parametrize("environ", OFF)
def test_without_a_receiver_there_are_none(environ: dict[str, str]) -> None:
    assert open_traces(environ) == (NO_TRACES, "")
    assert NO_TRACES.begin(Kind.REQUEST, None) is NO_SPAN


async def test_another_protocol_is_told_with_the_fix() -> None:
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    with capture_logs() as logs:
        async with no_leaks(), running_proxy("http://127.0.0.1:9", environ=environ):
            pass
    [line] = [line for line in logs if "traces" in line["event"]]
    assert "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL" in line["problem"]
