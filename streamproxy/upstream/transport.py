"""httpx's transport towards one provider: a request out, its answer's head in, over a pool of kept connections.

A request is sent exactly once. A second connection is tried only if the first one broke before it was used, so that no
byte of the request can have left this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterable, AsyncIterator, Callable
from functools import lru_cache
from typing import Final

import anyio
import httpx

from streamproxy.errors import Failure, ProxyError
from streamproxy.upstream.answer import Answer
from streamproxy.upstream.breaker import RetryBudget
from streamproxy.upstream.connecting import Connector, Origin, Proxy
from streamproxy.upstream.connection import Connection
from streamproxy.upstream.deadlines import Deadlines, took_too_long

KEEPALIVE: Final = 30.0
"""Seconds for which an idle connection is kept: under the 60 s of common load balancers."""

ANSWER: Final = "answer"
"""The extension of a response with its Answer."""

ENDS_AT: Final = "ends_at"
"""The extension of a request with the deadline of its exchange, on anyio's clock. By default that is the total."""

_PORTS: Final = {"http": 80, "https": 443}
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*")


class _Body(httpx.AsyncByteStream):
    """An answer's body in the form that httpx reads."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (chunk := await self._answer.chunk()) is not None:
            yield chunk

    async def aclose(self) -> None:
        await self._answer.aclose()


class _Idle:
    """Idle connections, the last used one first. Each is kept for KEEPALIVE seconds."""

    def __init__(self) -> None:
        self._timers: dict[Connection, tuple[Origin, asyncio.TimerHandle]] = {}

    def __len__(self) -> int:
        return len(self._timers)

    def put(self, origin: Origin, connection: Connection) -> None:
        timer = asyncio.get_running_loop().call_later(KEEPALIVE, self.close, connection)
        self._timers[connection] = (origin, timer)

    def take(self, origin: Origin) -> Connection | None:
        """Take one to this origin. The provider may have closed it meanwhile."""
        for connection, (leads_to, timer) in reversed(self._timers.items()):
            if leads_to == origin:
                del self._timers[connection]
                timer.cancel()
                return connection
        return None

    def close(self, connection: Connection) -> None:
        """Close one."""
        _, timer = self._timers.pop(connection)
        timer.cancel()
        connection.abort()

    def trim(self, most: int) -> None:
        """Close the oldest until at most this many are left."""
        while len(self._timers) > max(0, most):
            self.close(next(iter(self._timers)))


class Transport(httpx.AsyncBaseTransport):
    """At most `max_connections` connections to one provider, one per request. Every failure is a ProxyError.

    `connector` makes them. `retries`: a second connection for one request is within this budget.
    """

    def __init__(
        self,
        *,
        deadlines: Deadlines,
        max_connections: int,
        connector: Connector,
        retries: RetryBudget,
    ) -> None:
        self._deadlines = deadlines
        self._most = max_connections
        self._slots = anyio.CapacityLimiter(max_connections)
        self._idle = _Idle()
        self._retired = False
        self._connector = connector
        self._retries = retries

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send, and return once the head is there. The response has its Answer as the extension ANSWER."""
        origin = _origin(request.url)
        ends_at: float = request.extensions.get(ENDS_AT, asyncio.get_running_loop().time() + self._deadlines.total)
        slot = await self._slot()

        def release(connection: Connection, reusable: bool) -> None:
            connection.drop()
            if reusable and connection.open and not self._retired:
                self._idle.put(origin, connection)
            else:
                connection.abort()
            self._slots.release_on_behalf_of(slot)

        try:
            head = _head(request, origin, self._connector.proxy(origin))
            pieces = _pieces(request)
            first = await anext(pieces, b"")
            rest = pieces if len(first) < int(request.headers.get("content-length", "0")) else None
            answer = await self._asked(origin, head + first, rest, ends_at, release)
        except BaseException:
            self._slots.release_on_behalf_of(slot)
            raise
        try:
            await answer.arrival()
        except BaseException:
            await answer.aclose()
            raise
        return httpx.Response(
            answer.head.status, headers=answer.head.items, stream=_Body(answer), extensions={ANSWER: answer}
        )

    def retire(self) -> None:
        """Keep no connection from now on: each serves one exchange."""
        self._retired = True
        self._idle.trim(0)

    async def aclose(self) -> None:
        """Close every idle connection. The others close with their answers."""
        self._idle.trim(0)
        self._connector.close()

    async def _slot(self) -> object:
        """Wait for a place among `max_connections`, at most for pool_timeout."""
        slot = object()
        with contextlib.suppress(anyio.WouldBlock):
            self._slots.acquire_on_behalf_of_nowait(slot)
            return slot
        with anyio.CancelScope(deadline=asyncio.get_running_loop().time() + self._deadlines.pool) as scope:
            await self._slots.acquire_on_behalf_of(slot)
        if scope.cancelled_caught:
            raise ProxyError(
                Failure.CONNECTION_LIMIT_REACHED,
                "All connections to the provider are in use. The setting is max_connections.",
                retry_after="1",
            )
        return slot

    async def _asked(
        self,
        origin: Origin,
        first: bytes,
        rest: AsyncIterable[bytes] | None,
        ends_at: float,
        release: Callable[[Connection, bool], None],
    ) -> Answer:
        """The answer to a request whose sending has begun. A second connection is tried where the first one broke."""
        connect_by = min(asyncio.get_running_loop().time() + self._deadlines.connect, ends_at)
        again = True
        while True:
            connection = await self._connection(origin, connect_by, ends_at)
            answer = Answer(connection, self._deadlines, ends_at, release)
            try:
                answer.ask(first, rest)
                return answer
            except ProxyError as error:
                broke = error.failure is Failure.CONNECTION_REFUSED
                if not (broke and again and self._retries.take()):
                    raise
                again = False

    async def _connection(self, origin: Origin, connect_by: float, ends_at: float) -> Connection:
        """A connection that can be used for a request: an idle one, else a new one."""
        while (connection := self._idle.take(origin)) is not None:
            try:
                if await connection.fit():
                    return connection
            except BaseException:
                connection.abort()
                raise
        self._idle.trim(self._most - self._slots.borrowed_tokens)  # idle ones to other origins make room
        try:
            return await self._connector.connect(origin, connect_by)
        except ProxyError as error:
            late = connect_by == ends_at and asyncio.get_running_loop().time() >= ends_at
            raise took_too_long(self._deadlines.total) if late else error from None


def _origin(url: httpx.URL) -> Origin:
    """The origin of a URL. Raises ProxyError(UPSTREAM_REQUEST) where it has none."""
    return _known_origin(url.scheme, url.raw_host, url.port)


@lru_cache(maxsize=64)
def _known_origin(scheme: str, host: bytes, port: int | None) -> Origin:
    """The same for a URL's parts: a provider has few, and each request asks."""
    origin = Origin(scheme, host.decode("ascii"), port or _PORTS.get(scheme, 0))
    try:
        _ = origin.address
        if scheme in _PORTS and origin.host and 0 < origin.port < 1 << 16:
            return origin
    except ValueError:
        pass
    raise _unsendable("its address has no host")


def _head(request: httpx.Request, origin: Origin, proxy: Proxy | None) -> bytes:
    """The request's head. Raises ProxyError(UPSTREAM_REQUEST) for a part with bytes that would break it up."""
    target = request.url.raw_path
    headers = request.headers.raw
    if "host" not in request.headers:
        headers = [(b"Host", request.url.netloc), *headers]
    if proxy is not None and origin.scheme == "http":  # it needs the whole URL; a tunnel was opened before the request
        target = f"http://{origin.authority}".encode() + target
        if proxy.authorization:
            headers = [*headers, (b"Proxy-Authorization", proxy.authorization.encode())]
    sound = all(_TOKEN.fullmatch(name) and _VALUE.fullmatch(value) for name, value in headers)
    if not sound or not _TOKEN.fullmatch(request.method.encode()) or "transfer-encoding" in request.headers:
        raise _unsendable("its method or one of its headers is not HTTP/1.1's")
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (request.method.encode(), target, lines)


def _pieces(request: httpx.Request) -> AsyncIterator[bytes]:
    assert isinstance(request.stream, httpx.AsyncByteStream)
    return aiter(request.stream)


def _unsendable(why: str) -> ProxyError:
    return ProxyError(Failure.UPSTREAM_REQUEST, f"The request to the provider could not be sent: {why}.")
