"""Log lines and metrics, for operators. Names and sizes, never payloads, prompts or keys.

One `Observer` per app owns its registry, so that nothing is shared between two apps of a process. The log is structlog
over the standard library: one line per request, one per failure, as JSON or as text.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Final

import orjson
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest, multiprocess
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from streamproxy.account import Account, told
from streamproxy.errors import Failure, ProxyError

METRICS: Final[tuple[tuple[str, str, tuple[str, ...]], ...]] = (
    ("streamproxy_requests_total", "Answered requests by route and HTTP status", ("route", "status")),
    ("streamproxy_failures_total", "Failed requests by label, before and after the head", ("label",)),
    ("streamproxy_upstream_requests_total", "Requests sent to a provider", ("provider",)),
    ("streamproxy_frames_total", "Events sent on, by type", ("type",)),
    ("streamproxy_tolerated_total", "Providers' faults that no caller noticed, by label", ("label",)),
    ("streamproxy_fallbacks_total", "Requests that failed over, or did not: over_budget", ("provider", "outcome")),
    ("streamproxy_webhooks_total", "Attempts to deliver a webhook, by outcome", ("outcome",)),
    ("streamproxy_results_total", "Completed pictures for the bucket, by outcome", ("outcome",)),
    (
        "streamproxy_cost_usd_total",
        "US dollars that providers' answers stated, by caller and model; empty where neither is known",
        ("caller", "model"),
    ),
)
"""Every counter: name, meaning, labels. A table of the documentation is checked against it."""

GAUGES: Final[tuple[tuple[str, str, tuple[str, ...]], ...]] = (
    ("streamproxy_streams", "Generations running now", ()),
    ("streamproxy_breakers_open", "Breakers that are not closed, by provider", ("provider",)),
)
"""Every gauge, likewise."""

SHARED: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable by which prometheus_client keeps its numbers in files of this directory, one set a process."""

_QUIET: Final = (
    "httpx",
    "httpcore",
    "sse_starlette",
    "sse_starlette.sse",
    "python_multipart",
    "uvicorn.access",
    "websockets",
)
"""Loggers that print URLs, or every chunk at DEBUG."""


_IDENTIFIER: Final = re.compile(r"[a-z][a-z0-9_.\[\]-]{0,63}")
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
"""UUIDs, mostly."""


class Observer:
    """The metrics of one app, and its log."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._counters = {name: Counter(name, text, labels, registry=self.registry) for name, text, labels in METRICS}
        self._labelled: dict[tuple[str, ...], Counter] = {}
        self._gauges = {
            name: Gauge(name, text, labels, registry=self.registry, multiprocess_mode="livesum")
            for name, text, labels in GAUGES
        }
        self.log: structlog.typing.FilteringBoundLogger = structlog.get_logger("streamproxy")

    def request(self, route: str, sent: int, failure: ProxyError | None) -> None:
        """Count one request that is over. `sent` is the HTTP status; a failure after the head has one of its own."""
        self._count("streamproxy_requests_total", route, str(sent))
        if failure is not None:
            self.failure(failure)

    def answered(self, route: str, sent: int, failure: ProxyError | None, **fields: str | int | float | None) -> None:
        """The one line of a request that is over, unless the line of its generation tells the same."""
        outcome = _said(failure)
        status = outcome.pop("status", sent)
        given = {name: value for name, value in fields.items() if value is not None}
        log = self.log.info if failure is None else self.log.warning
        log("request", route=route, status=status, **({} if status == sent else {"sent": sent}), **outcome, **given)

    def failure(self, error: ProxyError) -> None:
        """Count the failure of a generation that no request waits for any more."""
        self._count("streamproxy_failures_total", error.failure.value.label)

    def generation(self, account: Account) -> None:
        """One generation has ended: its one line."""
        order = account.order
        fields = {
            "outcome": account.outcome.value,
            **_said(account.failure),
            "provider": order.provider,
            "model": order.model,
            "stream": order.stream_id,
            "caller": order.caller,
            "attempts": account.attempts,
            "tried": told(account.tried) if len(account.tried) > 1 else None,
            "images": account.images,
            "previews": account.previews,
            "first_preview_ms": _ms(account.first_preview),
            "ms": _ms(account.seconds),
            "bytes": account.bytes,
            "cost": account.cost,
            "provider_request_id": _id(account.provider_request_id),
            "request_id": order.request_id,
            "traceparent": order.traceparent,
        }
        log = self.log.info if account.failure is None else self.log.warning
        log("generation", **{name: value for name, value in fields.items() if value is not None})

    def paid(self, caller: str, model: str, usd: float) -> None:
        """A generation of this caller has cost so much."""
        self._count("streamproxy_cost_usd_total", caller, model, by=usd)

    def _count(self, name: str, *labels: str, by: float = 1) -> None:
        """So many more. Each set of labels is looked up in the library once: it does so under a lock."""
        counter = self._labelled.get((name, *labels))
        if counter is None:
            counter = self._labelled[name, *labels] = self._counters[name].labels(*labels)
        counter.inc(by)

    def unexpected(self, error: BaseException, request_id: str) -> ProxyError:
        """Log an unforeseen exception: its type and place, but not its text, which may hold anything.

        Of a group, each of its exceptions: the place of the group itself is the task group's.
        """
        for one in _flattened(error):
            self.log.error("unexpected", exception=type(one).__name__, where=_place(one), request_id=request_id)
        return ProxyError(Failure.INTERNAL, "The proxy failed. Its log has the details under this request_id.")

    def tolerated(self, provider: str, label: str) -> None:
        """A provider's fault that cost the caller nothing."""
        self._count("streamproxy_tolerated_total", label)
        self.log.info("tolerated", label=label, provider=provider)

    def job(self, provider: str, id: str, request_id: str) -> None:
        """A provider works on a job that it calls by this name: what to look for where a paid picture got lost."""
        self.log.info("job", provider=provider, job=_id(id) or "?", request_id=request_id)

    def progress(self, provider: str, said: Mapping[str, float | int], request_id: str) -> None:
        """A provider says how far it is."""
        self.log.info("progress", provider=provider, **said, request_id=request_id)

    def webhook(self, outcome: str, stream: str, attempts: int, reason: str = "") -> None:
        """One attempt to deliver a webhook; a line where no further one follows though it failed."""
        self._count("streamproxy_webhooks_total", outcome)
        if outcome in ("given_up", "gone"):
            self.log.warning("webhook", outcome=outcome, stream=stream, attempts=attempts, reason=reason)

    def result(self, outcome: str, stream: str, reason: str = "") -> None:
        """A picture was put into the bucket; with a `reason` it was not, or what else the bucket failed to do."""
        self._count("streamproxy_results_total", outcome)
        if reason:
            self.log.warning("result", outcome=outcome, stream=stream, reason=reason)

    def store_failed(self, why: str) -> None:
        """The store stopped answering; streams of this process go on."""
        self.log.error("store", failure=why, consequence="streams are kept in this process only")

    def store_recovered(self) -> None:
        """The store answers again."""
        self.log.info("store", recovered=True)

    def upstream(self, provider: str) -> None:
        """One request is about to be sent to this provider."""
        self._count("streamproxy_upstream_requests_total", provider)

    def fallback(self, provider: str, *, taken: bool) -> None:
        """A request has failed at this provider, and goes on to another one if the budget allows it."""
        self._count("streamproxy_fallbacks_total", provider, "taken" if taken else "over_budget")

    def breaker(self, provider: str, state: str, *, closed: bool) -> None:
        """The breaker of this provider has another state."""
        self._gauges["streamproxy_breakers_open"].labels(provider).set(0 if closed else 1)
        log = self.log.info if closed else self.log.warning
        log("breaker", provider=provider, state=state)

    def frame(self, type: str) -> None:
        """One event has been handed on."""
        self._count("streamproxy_frames_total", type)

    def streams(self, change: int) -> None:
        """A generation began (1) or ended (-1)."""
        self._gauges["streamproxy_streams"].inc(change)

    def exposition(self) -> tuple[bytes, str]:
        """All metrics in Prometheus' text form, and its content type: over all workers where there are several."""
        registry = self.registry
        if SHARED in os.environ:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST


def _flattened(error: BaseException) -> Iterator[BaseException]:
    """The exception, or all those of a group and of groups in it."""
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    for one in error.exceptions:
        yield from _flattened(one)


def _place(error: BaseException) -> str:
    """The file and the line that raised it."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place is not None else ""


def worker_ended(pid: int, directory: str) -> None:
    """Take what a worker had running out of the gauges. What it has counted stays."""
    multiprocess.mark_process_dead(pid, directory)  # type: ignore[no-untyped-call]


def _said(error: ProxyError | None) -> dict[str, object]:
    """What a log line says of a failure."""
    if error is None:
        return {}
    return {
        "failure": error.failure.name.lower(),
        "label": error.failure.value.label,
        "status": error.status,
        "code": _identifier(error.code),
        "param": _identifier(error.param),
        **error.details.noted,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


def _id(text: str | None) -> str | None:
    """A provider's own name for a request or for its work, None for anything else, which may be a text."""
    return text if text is not None and _ID.fullmatch(text) else None


def _identifier(text: str | None) -> str | None:
    """A code or a field's name, None for anything else: where a provider chose it, it may repeat the prompt."""
    return text if text is not None and _IDENTIFIER.fullmatch(text) else None


def configure_logging(level: str, form: str, *, pid: bool = False) -> None:
    """Send every log line of the process to standard error: as JSON lines or as text. `pid`: each says its process.

    Ours are written as they are rendered: the standard library's way for libraries' lines costs three times as much.
    """
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(_json) if form == "json" else structlog.dev.ConsoleRenderer(colors=False)
    )
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if pid:
        shared.append(_add_pid)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    structlog.configure(
        processors=[*shared, renderer],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        cache_logger_on_first_use=True,
    )
    quiet_libraries()


def _json(line: dict[str, object], default: Callable[[object], object]) -> str:
    return orjson.dumps(line, default=default).decode()


def say(line: str, form: str) -> None:
    """Tell the operator, whatever the level of the log. Where the log is JSON, so is this line."""
    if form == "json":
        line = json.dumps({"event": line, "level": "info", "timestamp": datetime.now(UTC).isoformat()})
    sys.stderr.write(line + "\n")


def _add_pid(logger: object, name: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    line["pid"] = os.getpid()
    return line


def quiet_libraries() -> None:
    """Keep libraries from logging URLs and chunks, whatever the level of our own log."""
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
