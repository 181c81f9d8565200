"""A receiver of webhooks, which verifies each of them with Standard Webhooks' own library."""

from __future__ import annotations

import base64
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
from standardwebhooks.webhooks import Webhook

from streamproxy.core.webhooks import HEADER
from streamproxy.simulator.received import Received, Server
from streamproxy.simulator.script import Script, Send, head
from streamproxy.simulator.server import serve
from tests.support.proxy import BOUND

SECRET: Final = "whsec_" + base64.b64encode(bytes(range(32))).decode()
PATH: Final = "/hooks/one?secret=path-0123456789"


@dataclass(slots=True)
class Receiver:
    """Answers with each of `statuses` in turn, then with 204. `messages` are those that came, verified."""

    server: Server
    statuses: list[int] = field(default_factory=list)
    headers: tuple[tuple[str, str], ...] = ()
    messages: list[Any] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    @property
    def asked(self) -> Mapping[str, str]:
        """The header that orders a webhook to here."""
        return {HEADER: self.origin + PATH}

    @property
    def settings(self) -> dict[str, Any]:
        """What a proxy needs to send webhooks to here."""
        return {"webhook_origins": [f"{self.origin} internal"], "webhook_secret": SECRET}

    def take(self, received: Received) -> Script:
        """Verify a message and answer it."""
        assert (received.method, received.target) == ("POST", PATH)
        assert received.header("authorization") is None
        named = {name.lower(): value for name, value in received.headers}
        self.messages.append(Webhook(SECRET).verify(received.body, named))
        self.ids.append(named["webhook-id"])
        status = self.statuses.pop(0) if self.statuses else 204
        return (Send(head(status, self.headers, length=0)),)

    async def message(self, number: int = 1) -> Any:
        """Wait for a message, counted from 1."""
        with anyio.fail_after(BOUND):
            await self.server.wait_until(lambda _: len(self.messages) >= number, BOUND)
        return self.messages[number - 1]


@asynccontextmanager
async def receiving(
    *statuses: int, headers: tuple[tuple[str, str], ...] = (), sock: socket.socket | None = None
) -> AsyncIterator[Receiver]:
    """A receiver on a free loopback port, or on `sock`."""
    found: list[Receiver] = []
    async with serve(lambda received: found[0].take(received), sock=sock) as server:
        found.append(Receiver(server, list(statuses), headers))
        yield found[0]
