"""Which settings a running process can take anew."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from streamproxy.settings import Settings

FIXED: Final = (
    "host",
    "port",
    "workers",
    "store",
    "store_bytes",
    "linger",
    "file_bytes",
    "file_bytes_per_caller",
    "secret",
    "playground",
    "webhook_origins",
    "webhook_secret",
    "max_webhooks",
    "max_webhooks_per_caller",
    "results",
    "results_endpoint",
    "results_seconds",
    "drain_timeout",
    "metrics_host",
    "metrics_port",
    "log_level",
    "log_format",
)
"""Settings that need a restart. All others are those of requests, and hold for new ones."""


def reloaded(old: Settings, new: Settings) -> tuple[Settings, tuple[str, ...]]:
    """The new settings with the old ones' values of FIXED, and the names of those that differ."""
    kept = {name: getattr(old, name) for name in FIXED}
    return replace(new, **kept), tuple(name for name in FIXED if getattr(new, name) != kept[name])
