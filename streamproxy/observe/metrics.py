"""Metrics for Prometheus: one registry per app, and over all workers of a parent where there are several.

Each worker has its numbers in files of a shared directory (`SHARED`), so that any of them can report the sums of all.
The files of a worker that has ended stay, except those of its gauges: a counter that went back would be a reset.

Labels have few values: routes, statuses, labels of failures, configured providers, and models of the catalogue. A model
that is not there is in the caller's words, and counts as OTHER.
"""

from __future__ import annotations

import os
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.exposition import CONTENT_TYPE_LATEST

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
    ("streamproxy_generations_total", "Ended generations by outcome", ("provider", "model", "outcome")),
    ("streamproxy_images_total", "Completed images", ("provider", "model")),
    ("streamproxy_bytes_total", "Bytes of events from providers, once however many read them", ("provider", "model")),
)
"""Every counter: name, meaning, labels. A table of the documentation is checked against it."""

_MODEL: Final = ("provider", "model")
_GENERATION: Final = (1, 2.5, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600)
"""Seconds. An image takes 10 to 130 of them, and at most `total_timeout`, 600 by default."""

_WITHIN: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 20, 30, 45, 60, 90, 120)
_HELD: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)
_LAG: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

HISTOGRAMS: Final[tuple[tuple[str, str, tuple[str, ...], tuple[float, ...]], ...]] = (
    ("streamproxy_generation_seconds", "From a generation's start to its end", _MODEL, _GENERATION),
    ("streamproxy_first_preview_seconds", "From a generation's start to its first preview", _MODEL, _WITHIN),
    ("streamproxy_preview_gap_seconds", "Between two previews of an image", _MODEL, _WITHIN),
    ("streamproxy_held_seconds", "From an event's arrival to the end of its writing to one reader", (), _HELD),
    ("streamproxy_event_loop_lag_seconds", "How late the event loop was, ten times a second", (), _LAG),
)
"""Every histogram: name, meaning, labels, upper bounds of its buckets."""

GAUGES: Final[tuple[tuple[str, str, tuple[str, ...], str], ...]] = (
    ("streamproxy_streams", "Generations running now", (), "livesum"),
    ("streamproxy_breakers_open", "Breakers that are not closed, by provider", ("provider",), "livesum"),
    ("streamproxy_build_info", "1, with the versions that run", ("version", "python"), "livemax"),
)
"""Every gauge: name, meaning, labels, and how prometheus_client puts together those of several workers."""

OTHER: Final = "other"

SHARED: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable by which prometheus_client keeps its numbers in files of this directory, one set a process."""


class Metrics:
    """The numbers of one app. Each set of labels is looked up in the library once: it does so under a lock."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._counters = {name: Counter(name, text, labels, registry=registry) for name, text, labels in METRICS}
        self._histograms = {
            name: Histogram(name, text, labels, buckets=bounds, registry=registry)
            for name, text, labels, bounds in HISTOGRAMS
        }
        self._gauges = {
            name: Gauge(name, text, labels, registry=registry, multiprocess_mode=mode)  # type: ignore[arg-type]
            for name, text, labels, mode in GAUGES
        }
        self._counted: dict[tuple[str, ...], Counter] = {}
        self._timed: dict[tuple[str, ...], Histogram] = {}

    def count(self, name: str, *labels: str, by: float = 1) -> None:
        """So many more."""
        counter = self._counted.get((name, *labels))
        if counter is None:
            family = self._counters[name]
            counter = self._counted[name, *labels] = family.labels(*labels) if labels else family
        counter.inc(by)

    def time(self, name: str, *labels: str, seconds: float) -> None:
        """One more that took so long."""
        histogram = self._timed.get((name, *labels))
        if histogram is None:
            family = self._histograms[name]
            histogram = self._timed[name, *labels] = family.labels(*labels) if labels else family
        histogram.observe(seconds)

    def change(self, name: str, by: float) -> None:
        """Change a gauge without labels."""
        self._gauges[name].inc(by)

    def set(self, name: str, *labels: str, value: float) -> None:
        """Set a gauge."""
        self._gauges[name].labels(*labels).set(value)

    def exposition(self) -> tuple[bytes, str]:
        """All metrics in Prometheus' text form, and its content type: over all workers where there are several."""
        shared = os.environ.get(SHARED)
        return exposition_of(shared) if shared else _exposed(self.registry)


def exposition_of(directory: str) -> tuple[bytes, str]:
    """The sums of all workers that have their numbers in this directory, and the content type."""
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, directory)  # type: ignore[no-untyped-call]
    return _exposed(registry)


def _exposed(registry: CollectorRegistry) -> tuple[bytes, str]:
    return generate_latest(registry), CONTENT_TYPE_LATEST


def worker_ended(pid: int, directory: str) -> None:
    """Take what a worker had running out of the gauges. What it has counted stays."""
    multiprocess.mark_process_dead(pid, directory)  # type: ignore[no-untyped-call]
