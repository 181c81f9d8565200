"""The proxy's side of each exchange: what reached it of a request, and what it answered, and when."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamproxy.signals import Signal
from streamproxy.web.slicing import Pieces

PROBE: Final = "probe"
"""Query parameter with the name of the check: edges may lose headers, but hardly ever a query."""


@dataclass(slots=True, eq=False)
class Exchange:
    """One request as it came to the proxy, and the answer that the proxy gave. Times are `time.monotonic()`.

    `body`: SHA-256 of the request's body as far as it was read. `sent`: pieces of the answer's body.
    """

    http_version: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: str = ""
    status: int = 0
    answered: tuple[tuple[str, str], ...] = ()
    sent: list[tuple[float, bytes]] = field(default_factory=list, repr=False)
    ended: float | None = None


class Witness:
    """An ASGI app round the proxy, which notes the exchanges of expected probes. Others are served without a note."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._exchanges: dict[str, list[Exchange]] = {}
        self._changed = Signal()

    def expect(self, probe: str) -> list[Exchange]:
        """Begin to note this probe. Returns the list of its exchanges, which grows."""
        return self._exchanges.setdefault(probe, [])

    async def ended(self, exchange: Exchange) -> float:
        """Wait until the proxy has done with an exchange, and return the time of that."""
        while exchange.ended is None:
            await self._changed.wait()
        return exchange.ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        noted = self._exchanges.get(query.get(PROBE, [""])[0])
        if scope["type"] != "http" or noted is None:
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope["http_version"], _text(scope["headers"]))
        noted.append(exchange)
        digest = hashlib.sha256()

        async def read() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                digest.update(message.get("body", b""))
                exchange.body = digest.hexdigest()
            return message

        async def written(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                exchange.answered = _text(message["headers"])
            elif data := message.get("body"):
                exchange.sent.append((time.monotonic(), bytes(data.joined() if isinstance(data, Pieces) else data)))
            await send(message)

        try:
            await self._app(scope, read, written)
        finally:
            exchange.ended = time.monotonic()
            self._changed.set()


def _text(headers: list[tuple[bytes, bytes]]) -> tuple[tuple[str, str], ...]:
    return tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers)
