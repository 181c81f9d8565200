"""Log lines, metrics and traces, for operators. Names and sizes, never payloads, prompts or keys.

One `Observer` per app owns its registry, so that nothing is shared between two apps of a process.

metrics   counters, histograms and gauges
log       one line per request and per generation, as JSON or as text
traces    a span per request and per attempt, where OpenTelemetry is configured
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Final

from prometheus_client import CollectorRegistry

from streamproxy.account import Account, Outcome, told
from streamproxy.errors import Failure, ProxyError
from streamproxy.observe.log import as_id, as_identifier, get_log, log_exception
from streamproxy.observe.metrics import OTHER, Metrics
from streamproxy.observe.traces import NO_TRACES, Traces, open_traces

LAG_LOGGED: Final = 0.25
"""Seconds of event loop lag from which on it is logged: as much as a person notices."""

_STATUS: Final = {Outcome.COMPLETED: 200, Outcome.ABANDONED: Failure.CALLER_GONE.value.status}
"""The `status` of a generation without a failure of its own."""


class Observer:
    """The metrics of one app, and its log."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.metrics.set("streamproxy_build_info", version("streamproxy"), platform.python_version(), value=1)
        self.log = get_log()
        self.traces: Traces = NO_TRACES

    @property
    def registry(self) -> CollectorRegistry:
        """This process's numbers."""
        return self.metrics.registry

    def open_traces(self, environ: Mapping[str, str]) -> None:
        """Send traces where the environment says. To be closed by `traces.close`."""
        self.traces, problem = open_traces(environ)
        if problem:
            self.log.warning("there are no traces", problem=problem)

    # Requests.

    def request(self, route: str, sent: int, failure: ProxyError | None) -> None:
        """Count one request that is over. `sent` is the HTTP status; a failure after the head has one of its own."""
        self.metrics.count("streamproxy_requests_total", route, str(sent))
        if failure is not None:
            self.failure(failure)

    def answered(self, route: str, sent: int, failure: ProxyError | None, **fields: str | int | float | None) -> None:
        """The one line of a request that is over, unless the line of its generation tells the same."""
        outcome = _said(failure)
        status = outcome.pop("status", sent)
        given = {name: value for name, value in fields.items() if value is not None}
        log = self.log.info if failure is None else self.log.warning
        log("request", route=route, status=status, **({} if status == sent else {"sent": sent}), **outcome, **given)

    def refused(self, failure: ProxyError) -> None:
        """A request that the app never saw was answered with this failure."""
        self.request("none", failure.status, failure)
        self.answered("none", failure.status, failure)

    def failure(self, error: ProxyError) -> None:
        """Count the failure of a generation that no request waits for any more."""
        self.metrics.count("streamproxy_failures_total", error.failure.value.label)

    def unexpected(self, error: BaseException, request_id: str) -> ProxyError:
        """Log an unforeseen exception: its type and place, but not its text, which may hold anything."""
        log_exception(self.log, error, request_id=request_id)
        return ProxyError(Failure.INTERNAL, "The proxy failed. Its log has the details under this request_id.")

    # Generations.

    def generation(self, account: Account) -> None:
        """One generation has ended: its figures, and its one line."""
        self._measure(account)
        order = account.order
        fields = {
            "outcome": account.outcome.value,
            "status": _STATUS.get(account.outcome),
            **_said(account.failure),
            "provider": order.provider,
            "model": order.model,
            "stream": order.stream_id,
            "caller": order.caller,
            "attempts": account.attempts,
            "tried": told(account.tried) if len(account.tried) > 1 else None,
            "images": account.images,
            "previews": account.previews.count,
            "first_preview_ms": _ms(account.previews.first),
            "ms": _ms(account.seconds),
            "bytes": account.bytes,
            "cost": account.cost,
            "provider_request_id": as_id(account.provider_request_id),
            "request_id": order.request_id,
            "traceparent": order.traceparent,
        }
        log = self.log.info if account.failure is None else self.log.warning
        log("generation", **{name: value for name, value in fields.items() if value is not None})

    def _measure(self, account: Account) -> None:
        metrics, labels = self.metrics, (account.order.provider, account.order.model or OTHER)
        metrics.count("streamproxy_generations_total", *labels, account.outcome.value)
        metrics.count("streamproxy_images_total", *labels, by=account.images)
        metrics.count("streamproxy_bytes_total", *labels, by=account.bytes)
        metrics.time("streamproxy_generation_seconds", *labels, seconds=account.seconds)
        if account.previews.first is not None:
            metrics.time("streamproxy_first_preview_seconds", *labels, seconds=account.previews.first)
        for gap in account.previews.gaps:
            metrics.time("streamproxy_preview_gap_seconds", *labels, seconds=gap)

    def paid(self, caller: str, model: str, usd: float) -> None:
        """A generation of this caller has cost so much."""
        self.metrics.count("streamproxy_cost_usd_total", caller, model, by=usd)

    def streams(self, change: int) -> None:
        """A generation began (1) or ended (-1)."""
        self.metrics.change("streamproxy_streams", change)

    def fallback(self, provider: str, *, taken: bool) -> None:
        """A request has failed at this provider, and goes on to another one if the budget allows it."""
        self.metrics.count("streamproxy_fallbacks_total", provider, "taken" if taken else "over_budget")

    def breaker(self, provider: str, state: str, *, closed: bool) -> None:
        """The breaker of this provider has another state."""
        self.metrics.set("streamproxy_breakers_open", provider, value=0 if closed else 1)
        log = self.log.info if closed else self.log.warning
        log("breaker", provider=provider, state=state)

    def frame(self, type: str) -> None:
        """One event has been handed on."""
        self.metrics.count("streamproxy_frames_total", type)

    def held(self, seconds: float) -> None:
        """An event has been written whole to one reader, so long after it arrived."""
        self.metrics.time("streamproxy_held_seconds", seconds=seconds)

    # Providers.

    def overload(self, short: bool, used: int, limit: int) -> None:
        """Memory became short, or is enough again."""
        if short:
            consequence = "new generations are refused"
            self.log.error("overload", label="overload", used=used, limit=limit, consequence=consequence)
        else:
            self.log.info("overload", recovered=True)

    def shed(self, streams: int) -> None:
        """Generations were ended for lack of memory."""
        self.log.error("overload", label="overload", consequence="the largest generations were ended", streams=streams)

    def upstream(self, provider: str) -> None:
        """One request is about to be sent to this provider."""
        self.metrics.count("streamproxy_upstream_requests_total", provider)

    def tolerated(self, provider: str, label: str) -> None:
        """A provider's fault that cost the caller nothing."""
        self.metrics.count("streamproxy_tolerated_total", label)
        self.log.info("tolerated", label=label, provider=provider)

    def job(self, provider: str, id: str, request_id: str) -> None:
        """A provider works on a job that it calls by this name: what to look for where a paid picture got lost."""
        self.log.info("job", provider=provider, job=as_id(id) or "?", request_id=request_id)

    def progress(self, provider: str, said: Mapping[str, float | int], request_id: str) -> None:
        """A provider says how far it is."""
        self.log.info("progress", provider=provider, **said, request_id=request_id)

    # What becomes of results.

    def webhook(self, outcome: str, stream: str, attempts: int, reason: str = "") -> None:
        """One attempt to deliver a webhook; a line where no further one follows though it failed."""
        self.metrics.count("streamproxy_webhooks_total", outcome)
        if outcome in ("given_up", "gone"):
            self.log.warning("webhook", outcome=outcome, stream=stream, attempts=attempts, reason=reason)

    def result(self, outcome: str, stream: str, reason: str = "") -> None:
        """A picture was put into the bucket; with a `reason` it was not, or what else the bucket failed to do."""
        self.metrics.count("streamproxy_results_total", outcome)
        if reason:
            self.log.warning("result", outcome=outcome, stream=stream, reason=reason)

    # The process.

    def store_failed(self, why: str) -> None:
        """The store stopped answering; streams of this process go on."""
        self.log.error("store", failure=why, consequence="streams are kept in this process only")

    def store_recovered(self) -> None:
        """The store answers again."""
        self.log.info("store", recovered=True)

    def lag(self, seconds: float) -> None:
        """The event loop ran this much late."""
        self.metrics.time("streamproxy_event_loop_lag_seconds", seconds=seconds)
        if seconds >= LAG_LOGGED:
            self.log.warning("loop_lag", ms=_ms(seconds), consequence="every stream stood still meanwhile")


def _said(error: ProxyError | None) -> dict[str, object]:
    """What a log line says of a failure."""
    if error is None:
        return {}
    return {
        "failure": error.failure.name.lower(),
        "label": error.failure.value.label,
        "status": error.status,
        "code": as_identifier(error.code),
        "param": as_identifier(error.param),
        **error.details.noted,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
