"""The requests that a server has received so far, and counts that a test can wait for."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

import anyio

from streamproxy.signals import Signal
from streamproxy.simulator.script import Script

# Limits of `received`: 1000 requests, and of a body over 1 MiB only its size and its first KiB.
MAX_RECEIVED: Final = 1000
MAX_KEPT_BODY: Final = 1024 * 1024
KEPT_PREFIX: Final = 1024


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it came: raw target, headers in order and case, `connection` counted from 1."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)  # may hold a key
    body: bytes = field(repr=False)
    body_size: int
    connection: int

    def header(self, name: str) -> str | None:
        """The first header of this name, in any case."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


Handler: TypeAlias = Callable[[Received], Awaitable[Script] | Script]
Early: TypeAlias = Callable[[str, tuple[tuple[str, str], ...]], Script | None]


@dataclass(slots=True, eq=False)
class Server:
    """The server's requests and counts so far. Counts only grow; times are `time.monotonic()`."""

    handler: Handler = field(repr=False)
    early: Early | None = field(repr=False)
    max_body_bytes: int
    url: str = ""
    port: int = 0
    calls: int = 0
    connections: int = 0
    open_connections: int = 0
    received: deque[Received] = field(default_factory=lambda: deque(maxlen=MAX_RECEIVED), repr=False)
    disconnects: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_RECEIVED))
    _changed: Signal = field(default_factory=Signal, repr=False)

    async def wait_until(self, reached: Callable[[Server], object], timeout: float) -> None:
        """Return once `reached(self)` is true. Raises TimeoutError after `timeout` seconds."""
        with anyio.fail_after(timeout):
            while not reached(self):
                await self._changed.wait()

    async def wait_closed_connections(self, timeout: float) -> None:
        """Wait until no connection is open. Raises TimeoutError after `timeout` seconds."""
        await self.wait_until(lambda server: server.open_connections == 0, timeout)

    def change(self) -> None:
        """Wake all waiting tasks: a count has changed."""
        self._changed.set()

    def record(self, received: Received) -> None:
        """Count a request, and keep it within the limits."""
        self.calls += 1
        kept = received if received.body_size <= MAX_KEPT_BODY else replace(received, body=received.body[:KEPT_PREFIX])
        self.received.append(kept)
        self.change()
