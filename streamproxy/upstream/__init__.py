"""Towards one provider: the only module that imports httpx.

`Upstream.open` sends one request exactly once, unless no byte of it can have left this machine, and yields the
provider's answer as its head and raw chunks. Redirects are never followed, cookies never kept, answers never decoded,
and every way it can fail before or in the body is a ProxyError.

Deadlines, each a setting: connect (name resolution, TCP, TLS), first byte (counted from the last piece sent), idle (the
longest silence in a body), total (the whole exchange).
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, cast

import anyio
import anyio.lowlevel
import httpx

from streamproxy.core.requests import Head, UpstreamRequest
from streamproxy.errors import Failure, ProxyError
from streamproxy.upstream.connection import PROGRESS, Progress
from streamproxy.upstream.sending import pieces
from streamproxy.upstream.transport import Transport, timed_out

if TYPE_CHECKING:
    from aiohttp.abc import AbstractResolver

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Decoder(Protocol[T_co]):
    """What an answer's bytes may be poured into: see `core.conversation.Decoder`."""

    @property
    def done(self) -> bool: ...

    def feed(self, chunk: bytes) -> Iterator[T_co | None]: ...

    def finish(self) -> Iterator[T_co]: ...


TURN: Final = 0.005
"""Seconds that the reading of one answer may take in a row before other tasks get a turn."""

KEEPALIVE: Final = 30.0
"""Seconds an idle connection is kept: under the 60 s after which common load balancers close theirs."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds: connect, first byte, idle, total, and the wait for a free connection."""

    connect: float
    first_byte: float
    idle: float
    total: float
    pool: float


class UpstreamResponse:
    """A provider's answer: its head, and its body as chunks that can be read once.

    Bytes may arrive faster than they are read. Then every wait is over before a scope's deadline or a cancellation
    finds the task waiting. So clocks are compared here, and other tasks get turns.
    """

    def __init__(self, response: httpx.Response, deadlines: Deadlines, ends_at: float) -> None:
        items = tuple((name.lower(), value) for name, value in response.headers.multi_items())
        self.head = Head(response.status_code, items)
        self._chunks = response.stream.__aiter__()  # type: ignore[union-attr]
        self._idle = deadlines.idle
        self._total = deadlines.total
        self._ends_at = ends_at
        self._resumed = monotonic()
        self._busy = 0.0

    async def turn(self) -> None:
        """Let other tasks run, and cancellation in, where this one has been busy for TURN."""
        now = monotonic()  # not the event loop's clock: uvloop's stands still until the loop has its turn
        self._busy += now - self._resumed
        self._resumed = now
        if self._busy >= TURN:
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint_if_cancelled()  # waits for a cancellation that the one before just missed
            self._busy = 0.0
            self._resumed = monotonic()

    async def chunk(self, within: float | None = None) -> bytes | None:
        """The next bytes, None at the end. `within`: fewer seconds of silence than the setting's."""
        await self.turn()
        now = anyio.current_time()
        if now >= self._ends_at:
            raise _took_too_long(self._total)
        idle_at = now + (self._idle if within is None else within)
        with anyio.CancelScope(deadline=min(idle_at, self._ends_at)) as scope:
            chunk = await anext(self._chunks, None)
            self._resumed = monotonic()
            return chunk
        if scope.cancelled_caught and idle_at <= self._ends_at:
            raise ProxyError(
                Failure.IDLE_TIMEOUT, f"The provider fell silent for {self._idle:g} s. The setting is idle_timeout."
            )
        raise _took_too_long(self._total)

    async def body(self, limit: int, within: float | None = None) -> bytes:
        """The whole body, or what has come of it `within` so many seconds.

        Raises ProxyError(RESPONSE_BODY_SIZE) over `limit` bytes.
        """
        body = bytearray()
        with anyio.move_on_after(within):
            while (chunk := await self.chunk()) is not None:
                if len(body) + len(chunk) > limit:
                    raise ProxyError(Failure.RESPONSE_BODY_SIZE, f"The provider's answer is over {limit} bytes.")
                body += chunk
        return bytes(body)

    async def frames(self, decoder: Decoder[T]) -> AsyncGenerator[T, None]:
        """What a decoder makes of the body. Where that breaks off, what was whole still counts before the failure."""
        broken: ProxyError | None = None
        while not decoder.done:
            try:
                chunk = await self.chunk()
            except ProxyError as error:
                broken = error
                break
            if chunk is None:
                break
            for value in decoder.feed(chunk):
                if value is not None:
                    yield value
                await self.turn()
            del chunk  # a name that lives on while the next event gathers would hold two of them
        if not decoder.done:
            try:
                for value in decoder.finish():
                    yield value
            except ProxyError as error:
                raise broken or error from None
            if broken is not None:
                raise broken


class Upstream:
    """The connections to one provider, at most `max_connections` in use at a time.

    `tolerated` is told what a provider did that no request noticed: `stale_conn`, it closed an idle connection, or
    `upstream_extra_bytes`, it sent more than the answer.
    """

    def __init__(
        self,
        *,
        deadlines: Deadlines,
        max_connections: int,
        ssl_context: ssl.SSLContext,
        tolerated: Callable[[str], None],
        trust_env: bool = False,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._deadlines = deadlines
        self._slots = anyio.CapacityLimiter(max_connections)
        no_cookies = cast("dict[str, str]", CookieJar(policy=DefaultCookiePolicy(allowed_domains=[])))
        transport = Transport(
            keepalive=KEEPALIVE, trust_env=trust_env, ssl_context=ssl_context, resolver=resolver, tolerated=tolerated
        )
        self._client = httpx.AsyncClient(
            transport=cast(httpx.AsyncBaseTransport, transport),
            cookies=no_cookies,
            follow_redirects=False,
            trust_env=False,
            timeout=httpx.Timeout(None, connect=deadlines.connect, pool=deadlines.connect),
        )

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    @asynccontextmanager
    async def open(self, request: UpstreamRequest, *, ends_at: float | None = None) -> AsyncIterator[UpstreamResponse]:
        """Send `request`; yields the answer once its head is there. Leaving the block early closes the connection.

        `ends_at`: on anyio's clock, instead of the total that one exchange may take.
        """
        ends_at = anyio.current_time() + self._deadlines.total if ends_at is None else ends_at
        async with self._slot():
            response = await self._send(request, ends_at)
            try:
                _check_head(response)
                yield UpstreamResponse(response, self._deadlines, ends_at)
            finally:
                with anyio.CancelScope(shield=True, deadline=anyio.current_time() + 1.0):
                    await response.aclose()

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """A place among `max_connections`, waited for no longer than pool_timeout."""
        holder = object()
        with anyio.CancelScope(deadline=anyio.current_time() + self._deadlines.pool) as scope:
            await self._slots.acquire_on_behalf_of(holder)
        if scope.cancelled_caught:
            raise ProxyError(
                Failure.CONNECTION_LIMIT_REACHED,
                "All connections to the provider are in use. The setting is max_connections.",
                retry_after="1",
            )
        try:
            yield
        finally:
            self._slots.release_on_behalf_of(holder)

    async def _send(self, request: UpstreamRequest, ends_at: float) -> httpx.Response:
        """One exchange, and a second only where nothing of the first can have been sent."""
        connect_by = anyio.current_time() + self._deadlines.connect
        try:
            return await self._attempt(request, connect_by, ends_at)
        except ProxyError as error:
            if error.failure is not Failure.CONNECTION_REFUSED or anyio.current_time() >= min(connect_by, ends_at):
                raise
        return await self._attempt(request, connect_by, ends_at)

    async def _attempt(self, request: UpstreamRequest, connect_by: float, ends_at: float) -> httpx.Response:
        progress = Progress(self._deadlines.first_byte, ends_at)
        token = PROGRESS.set(progress)
        progress.wait_until(connect_by)
        try:
            with progress.scope:
                return await self._client.send(self._build(request, progress), stream=True)
        except (httpx.InvalidURL, httpx.HTTPError, TypeError, ValueError, RecursionError) as error:
            raise ProxyError(
                Failure.UPSTREAM_REQUEST, f"The request to the provider could not be sent ({type(error).__name__})."
            ) from None
        finally:
            PROGRESS.reset(token)
        raise timed_out(progress) if progress.scope.deadline < ends_at else _took_too_long(self._deadlines.total)

    def _build(self, request: UpstreamRequest, progress: Progress) -> httpx.Request:
        """httpx's request. The body is always a stream: aiohttp warns of large bytes, and files are read as they go."""
        if not request.body:
            progress.uploaded = True
            return httpx.Request(request.method, request.url, headers=request.headers, extensions=self._extensions())
        headers = [*request.headers, ("content-length", str(request.content_length))]
        content = _pieces(request, progress)
        return httpx.Request(
            request.method, request.url, headers=headers, content=content, extensions=self._extensions()
        )

    def _extensions(self) -> dict[str, dict[str, float | None]]:
        return {"timeout": self._client.timeout.as_dict()}


async def _pieces(request: UpstreamRequest, progress: Progress) -> AsyncIterator[bytes]:
    async for piece in pieces(request.body):
        yield piece
    progress.uploaded = True


def _took_too_long(total: float) -> ProxyError:
    return ProxyError(Failure.DEADLINE, f"The request took over {total:g} s in all. The setting is total_timeout.")


def _check_head(response: httpx.Response) -> None:
    """Refuse answers that are sound HTTP and still must not be followed or decoded."""
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise ProxyError(Failure.CONTENT_CODING, "The provider compressed its answer although identity was asked for.")


def default_ssl_context() -> ssl.SSLContext:
    """Trust in the public authorities of certifi, or in SSL_CERT_FILE and SSL_CERT_DIR where they are set."""
    return httpx.create_ssl_context()
