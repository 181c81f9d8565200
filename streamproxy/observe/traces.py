"""Traces by OpenTelemetry: a span for each request, and below it one for each attempt at a provider.

    caller's traceparent -> request's span -> attempt's span -> traceparent that the provider gets

They go to an OTLP receiver that the environment names, by HTTP, in a thread of their own. Without one, nothing of
OpenTelemetry is imported. All else (headers, sampling, the service's name) is OpenTelemetry's own environment.

A span has names and numbers: no prompt, image, key or URL. Names are those of the GenAI semantic conventions.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.context import Context

SIGNAL_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
HTTP: Final = "http/protobuf"

TRACEPARENT: Final = "traceparent"
FLUSH_SECONDS: Final = 2.0
"""For the last spans when the app ends."""

PROVIDERS: Final = {
    "azure": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "vertex": "gcp.vertex_ai",
    "xai": "x_ai",
}
"""Our catalogue's names whose `gen_ai.provider.name` is another one (semantic conventions, GenAI attributes)."""

Value = str | int


class Kind(Enum):
    """A span's side of the exchange."""

    REQUEST = "SERVER"
    ATTEMPT = "CLIENT"


class Span(Protocol):
    """One span. `traceparent`: for what happens below it; None where there are no traces."""

    @property
    def traceparent(self) -> str | None: ...

    def event(self, name: str) -> None:
        """Something happens now."""
        ...

    def note(self, **attributes: Value | None) -> None:
        """Set attributes. In their names, `__` stands for a dot; None sets nothing."""
        ...

    def end(self, name: str, error: str | None = None, *, failed: bool = False) -> None:
        """End it under this name. `error`: the `error.type`; `failed`: its status is an error."""
        ...


class Traces(Protocol):
    """Makes spans."""

    def begin(self, kind: Kind, parent: str | None) -> Span:
        """A span that begins now, below the one that the traceparent `parent` names."""
        ...

    def close(self) -> None:
        """Send what has not been sent, for FLUSH_SECONDS at most. It blocks."""
        ...


class _NoSpan:
    """A span that is not there."""

    traceparent = None

    def event(self, name: str) -> None:
        pass

    def note(self, **attributes: Value | None) -> None:
        pass

    def end(self, name: str, error: str | None = None, *, failed: bool = False) -> None:
        pass


class _NoTraces:
    """Traces that go nowhere."""

    def begin(self, kind: Kind, parent: str | None) -> Span:
        return NO_SPAN

    def close(self) -> None:
        pass


NO_SPAN: Final = _NoSpan()
NO_TRACES: Final = _NoTraces()


def open_traces(environ: Mapping[str, str]) -> tuple[Traces, str]:
    """The traces that the environment asks for, and why there are none although it does ("" otherwise)."""
    endpoint = _endpoint(environ)
    off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
    if not endpoint or off:
        return NO_TRACES, ""
    protocol = next((environ[name] for name in PROTOCOLS if environ.get(name)), HTTP)
    if protocol != HTTP:
        return NO_TRACES, f"traces are sent by {HTTP} only: set {PROTOCOLS[0]} to it, and the receiver's port for HTTP"
    if importlib.util.find_spec("opentelemetry") is None or not _installed():
        return (
            NO_TRACES,
            f"OpenTelemetry is not installed: install the extra otel, or unset {SIGNAL_ENDPOINT} and {ENDPOINT}",
        )
    return _OtlpTraces(endpoint), ""


def _endpoint(environ: Mapping[str, str]) -> str:
    """Where spans go, by the specification: the signal's own as it is, otherwise a path below the common one."""
    own, common = environ.get(SIGNAL_ENDPOINT, ""), environ.get(ENDPOINT, "")
    return own or (f"{common.rstrip('/')}/v1/traces" if common else "")


def _installed() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http.trace_exporter") is not None
    except ModuleNotFoundError:
        return False


class _OtlpTraces:
    """Spans of OpenTelemetry's SDK, sent in batches by its thread."""

    def __init__(self, endpoint: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create()
        if str(resource.attributes["service.name"]).startswith("unknown_service"):  # the environment does not say
            resource = resource.merge(Resource({"service.name": "streamproxy"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer("streamproxy")

    def begin(self, kind: Kind, parent: str | None) -> Span:
        from opentelemetry.trace import SpanKind

        return _OtlpSpan(self._tracer.start_span(kind.name.lower(), _context(parent), SpanKind[kind.value]))

    def close(self) -> None:
        last = threading.Thread(target=self._provider.shutdown, daemon=True)  # a receiver that is gone holds up nothing
        last.start()
        last.join(FLUSH_SECONDS)


def _context(parent: str | None) -> Context | None:
    """The context of a traceparent, which has its form already. One that names no span begins a new trace."""
    if parent is None:
        return None
    from opentelemetry import trace

    _, trace_id, span_id, flags = parent.split("-")
    remote = trace.SpanContext(int(trace_id, 16), int(span_id, 16), True, trace.TraceFlags(int(flags, 16) & 1))
    return trace.set_span_in_context(trace.NonRecordingSpan(remote)) if remote.is_valid else None


class _OtlpSpan:
    """One span of the SDK."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        context = span.get_span_context()
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def event(self, name: str) -> None:
        self._span.add_event(name)

    def note(self, **attributes: Value | None) -> None:
        given = {name.replace("__", "."): value for name, value in attributes.items() if value is not None}
        self._span.set_attributes(given)

    def end(self, name: str, error: str | None = None, *, failed: bool = False) -> None:
        from opentelemetry.trace import StatusCode

        self._span.update_name(name)
        if error is not None:
            self._span.set_attribute("error.type", error)
        if failed:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def below(ids: tuple[tuple[str, str], ...], span: Span) -> tuple[tuple[str, str], ...]:
    """A request's trace ids, for what happens below the span."""
    if span.traceparent is None:
        return ids
    return (*((name, value) for name, value in ids if name != TRACEPARENT), (TRACEPARENT, span.traceparent))
