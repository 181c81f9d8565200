"""The HTTP side towards one provider: requests out, answers in. Only `transport` and this module import httpx for it.

    async with upstream.open(request) as answer:         the head is there
        answer.head
        await answer.chunk(), await answer.body(limit)   bytes as they arrived
        async for frame in answer.frames(decoder)        what a decoder makes of them

`Upstream.open` sends one request exactly once, unless no byte of it can have left this machine. Redirects are never
followed, cookies never kept, and answers never decoded. Every failure, before or in the body, is a ProxyError.

Deadlines, each a setting: connect (name resolution, TCP, TLS), first byte (counted from the last piece sent), idle (the
longest silence in a body), total (the whole exchange).
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import lru_cache

import httpx

from streamproxy.core.requests import Head, Segment, UpstreamRequest
from streamproxy.errors import Failure, ProxyError
from streamproxy.upstream.answer import Answer, Decoder
from streamproxy.upstream.breaker import RetryBudget
from streamproxy.upstream.connecting import Connector, Resolver
from streamproxy.upstream.deadlines import Deadlines
from streamproxy.upstream.sending import pieces
from streamproxy.upstream.transport import ANSWER, ENDS_AT, Transport

__all__ = ["Answer", "Deadlines", "Decoder", "Resolver", "Upstream", "default_ssl_context"]


class Upstream:
    """The connections to one provider, at most `max_connections` in use at a time.

    `tolerated` is called for faults that no request notices: `stale_conn`, the provider closed an idle connection, or
    `upstream_extra_bytes`, it sent more than the answer. `retries`: what may be sent again because of this provider.
    """

    def __init__(
        self,
        *,
        deadlines: Deadlines,
        max_connections: int,
        ssl_context: ssl.SSLContext,
        tolerated: Callable[[str], None],
        trust_env: bool = False,
        resolver: Resolver | None = None,
    ) -> None:
        self.retries = RetryBudget()
        self._transport = Transport(
            deadlines=deadlines,
            max_connections=max_connections,
            connector=Connector(ssl_context=ssl_context, resolver=resolver, trust_env=trust_env, tolerated=tolerated),
            retries=self.retries,
        )

    def retire(self) -> None:
        """Close every idle connection, and each other one after its exchange. Requests can still be sent."""
        self._transport.retire()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._transport.aclose()

    @asynccontextmanager
    async def open(self, request: UpstreamRequest, *, ends_at: float | None = None) -> AsyncIterator[Answer]:
        """`send`, as a context manager. Leaving the block early closes the connection."""
        answer = await self.send(request, ends_at=ends_at)
        try:
            yield answer
        finally:
            await answer.aclose()

    async def send(self, request: UpstreamRequest, *, ends_at: float | None = None) -> Answer:
        """Send `request`. Returns its answer, which has to be closed, once the head is there.

        `ends_at`: a deadline on anyio's clock, instead of the total of one exchange.
        """
        sent = _built(request)
        if ends_at is not None:
            sent.extensions[ENDS_AT] = ends_at
        response = await self._transport.handle_async_request(sent)
        answer: Answer = response.extensions[ANSWER]
        try:
            _check_head(answer.head)
        except ProxyError:
            await answer.aclose()
            raise
        return answer


def _built(request: UpstreamRequest) -> httpx.Request:
    """Build httpx's request. Raises ProxyError(UPSTREAM_REQUEST) for a part that httpx does not take."""
    try:
        if not request.body:
            return httpx.Request(request.method, _url(request.url), headers=request.headers)
        headers = [*request.headers, ("content-length", str(request.content_length))]
        return httpx.Request(request.method, _url(request.url), headers=headers, stream=_Stream(request.body))
    except (httpx.InvalidURL, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ProxyError(
            Failure.UPSTREAM_REQUEST, f"The request to the provider could not be built ({type(error).__name__})."
        ) from None


@lru_cache(maxsize=64)
def _url(url: str) -> httpx.URL:
    """A parsed URL, from a cache: parsing one costs a tenth of the CPU of a small request."""
    return httpx.URL(url)


class _Stream(httpx.AsyncByteStream):
    """A request's body as httpx passes it to the transport."""

    def __init__(self, body: tuple[Segment, ...]) -> None:
        self._pieces = pieces(body)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces


def _check_head(head: Head) -> None:
    """Raise ProxyError for an answer that is valid HTTP but must not be decoded."""
    if head.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise ProxyError(Failure.CONTENT_CODING, "The provider compressed its answer although identity was asked for.")


def default_ssl_context() -> ssl.SSLContext:
    """Trust in the public authorities of certifi, or in SSL_CERT_FILE and SSL_CERT_DIR where they are set."""
    return httpx.create_ssl_context()
