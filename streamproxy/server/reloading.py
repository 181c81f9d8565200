"""Settings anew in a running process: at SIGHUP, or where a worker's parent sends them.

A configuration that is wrong changes nothing; the log says what is wrong, without any value.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import anyio
from anyio import to_thread

from streamproxy.settings import Settings
from streamproxy.settings.values import ConfigurationError

LOG = logging.getLogger("streamproxy.server")

Read = Callable[[], Settings]
"""Read the settings. Raises ConfigurationError. Runs in a thread."""

Apply = Callable[[Settings], Awaitable[tuple[str, ...]]]
"""Serve by these settings. Returns the names of those that need a restart. Raises ConfigurationError."""


class Reload:
    """Reads the settings with `read` and applies them with `apply`, once a call, one call after the other."""

    def __init__(self, read: Read, apply: Apply) -> None:
        self._read = read
        self._apply = apply
        self._turn = anyio.Lock()

    async def __call__(self) -> None:
        async with self._turn:
            try:
                left = await self._apply(await to_thread.run_sync(self._read))
            except ConfigurationError as error:
                LOG.error("configuration not reloaded, the old one stays: %s", error)
            except Exception as error:  # its text may hold anything
                LOG.error("configuration not reloaded, the old one stays: %s", type(error).__name__)
            else:
                LOG.info("configuration reloaded")
                for name in left:
                    LOG.warning("%s has changed and needs a restart", name)
