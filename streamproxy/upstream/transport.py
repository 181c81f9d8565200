"""httpx's transport over aiohttp, hardened: the only module that imports aiohttp and httpx-aiohttp.

httpx-aiohttp gives httpx's requests to an aiohttp session. Three things are ours here:
  * chunks as they arrive (up to 256 KiB) instead of pieces of 16 KiB: a third of the CPU per byte;
  * a connection that trusts the provider less: at most MAX_INTERIM 1xx answers, and a byte that nobody asked for closes
    it, so that a second response behind a body can never answer the next request;
  * aiohttp's exceptions become ProxyError by what they mean, and by how far the request had come.
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final, cast

import aiohttp
from aiohttp import abc, client_proto, http_exceptions
from anyio import CancelScope, current_time
from httpx_aiohttp import AiohttpTransport
from httpx_aiohttp.transport import AiohttpResponseStream

from streamproxy.errors import Failure, ProxyError

READ_BUFFER: Final = 256 * 1024
"""Bytes aiohttp holds before it stops reading from the socket (twice this); larger reads cost less per byte."""

MAX_INTERIM: Final = 8
"""1xx answers accepted before the real one; more than one is already unusual (RFC 9110, 15.2)."""

MAX_HEADERS: Final = 200
MAX_HEADER_BYTES: Final = 64 * 1024
"""Of one header or of the status line."""


@dataclass(slots=True)
class Progress:
    """How far one request has come. `connected`/`sent` decide what a failure means, and whether anybody may retry.

    `deadline` moves: seconds for connecting, then `first_byte` seconds counted anew from every piece that is sent.
    """

    first_byte: float
    scope: CancelScope = field(default_factory=CancelScope)
    resolving: bool = False
    connected: bool = False
    sent: bool = False

    def moved(self) -> None:
        """Bytes of the request went out: wait anew for the answer."""
        self.sent = True
        self.scope.deadline = current_time() + self.first_byte


PROGRESS: ContextVar[Progress] = ContextVar("upstream_progress")
"""aiohttp's traces know no caller-supplied object through httpx; the context of the request's task is where it is."""


class _Connection(client_proto.ResponseHandler):
    """One connection to a provider, which accepts bytes only as the answer to a request."""

    _awaiting = False
    _interim = 0

    def set_response_params(self, **params: Any) -> None:
        self._awaiting = True
        self._interim = 0
        super().set_response_params(**params)

    def feed_data(self, data: Any, size: int = 0) -> None:
        code = data[0].code
        if 100 <= code <= 199 and code != 101:
            self._interim += 1
            if self._interim > MAX_INTERIM:
                self._refuse("too many interim responses")
                return
        elif self._awaiting:
            self._awaiting = False
        else:
            self.force_close()
            return
        super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        idle = self._parser is not None and not self._awaiting and (self._payload is None or self._payload.is_eof())
        if data and idle:
            self.abort()
            return
        super().data_received(data)

    def _refuse(self, why: str) -> None:
        self.set_exception(http_exceptions.BadHttpMessage(why))
        if self.transport is not None:
            self.transport.abort()


class _Stream(AiohttpResponseStream):
    """A response body as raw chunks, each as large as what had arrived."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        content = self._aiohttp_response.content
        try:
            while chunk := await content.readany():
                yield chunk
        except aiohttp.ClientError as error:
            raise _translate_body(error) from error
        except http_exceptions.HttpProcessingError as error:
            raise _translate_body(error) from error


def _translate_body(error: Exception) -> ProxyError:
    """What went wrong in the middle of a body: reset, framing error, or an end before the end."""
    reasons: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and len(reasons) < 5:
        reasons.append(cause)
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(reason) for reason in reasons)
    if any(isinstance(reason, ConnectionResetError) for reason in reasons) or "ConnectionResetError" in text:
        return ProxyError(Failure.STREAM_RESET, "The provider reset the connection in the middle of its answer.")
    incomplete = ("Not enough data", "Response payload is not completed")
    bad_framing = any(isinstance(reason, http_exceptions.TransferEncodingError) for reason in reasons)
    if bad_framing and not any(words in text for words in incomplete):
        return ProxyError(Failure.STREAM_PROTOCOL, "The provider's answer breaks HTTP/1.1's chunked framing.")
    return ProxyError(Failure.UPSTREAM_INCOMPLETE, "The provider's answer ended before it was complete.")


def _translate(error: Exception, progress: Progress) -> ProxyError | None:
    """What went wrong before the provider's head; None for what this module does not know."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return ProxyError(
            Failure.TLS_CERTIFICATE_ERROR, "The provider's TLS certificate is not valid. Check the provider's base_url."
        )
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return ProxyError(
            Failure.TLS_PROTOCOL_ERROR, "The provider does not speak TLS there. Check the provider's base_url."
        )
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return ProxyError(
            Failure.DNS_ERROR, "The provider's host name cannot be resolved. Check the provider's base_url."
        )
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return timed_out(progress)
    if isinstance(error, aiohttp.ClientConnectorError):
        return ProxyError(Failure.CONNECTION_REFUSED, "The provider refused the connection.")
    if isinstance(error, aiohttp.ClientResponseError | http_exceptions.HttpProcessingError):
        text = str(error.message)
        if any(words in text for words in ("Got more than", "Too many", "too large")):
            return ProxyError(Failure.HEADER_SECTION_SIZE, "The provider's answer has too large a header section.")
        return ProxyError(Failure.HTTP_PROTOCOL_ERROR, "The provider's answer is not HTTP/1.1.")
    if isinstance(error, aiohttp.ClientError | OSError):
        if not progress.connected:
            return ProxyError(Failure.CONNECTION_REFUSED, "The connection to the provider broke while it was made.")
        return ProxyError(Failure.CONNECTION_TERMINATED, "The provider closed the connection before it answered.")
    return None


def timed_out(progress: Progress) -> ProxyError:
    """Which deadline it was that passed before the provider's head."""
    if progress.sent:
        return ProxyError(
            Failure.FIRST_BYTE_TIMEOUT,
            f"The provider did not answer within {progress.first_byte:g} s. The setting is first_byte_timeout.",
        )
    if progress.resolving:
        return ProxyError(
            Failure.DNS_TIMEOUT, "The provider's host name took too long. The setting is connect_timeout."
        )
    return ProxyError(
        Failure.CONNECTION_TIMEOUT, "The provider did not accept the connection. The setting is connect_timeout."
    )


class Transport(AiohttpTransport):
    """One provider's connections. `resolver` replaces the system's name resolution, `ssl_context` its trust."""

    def __init__(
        self,
        *,
        keepalive: float,
        trust_env: bool,
        ssl_context: ssl.SSLContext,
        resolver: abc.AbstractResolver | None,
    ) -> None:
        super().__init__(verify=ssl_context, client=self._session)
        self._keepalive = keepalive
        self._trust_env = trust_env
        self._resolver = resolver

    def _session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=0,
            keepalive_timeout=self._keepalive,
            ssl=self.ssl_context,
            resolver=self._resolver,
        )
        connector._factory = cast("Any", functools.partial(_Connection, loop=connector._loop))
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=self._trust_env,
            read_bufsize=READ_BUFFER,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADERS,
            trace_configs=[_traces()],
            timeout=aiohttp.ClientTimeout(total=None),
        )

    async def handle_async_request(self, request: Any) -> Any:
        try:
            response: Any = await super().handle_async_request(request)
        except Exception as error:
            known = _translate(_original(error), PROGRESS.get())
            if known is None:
                raise
            raise known from None
        response.stream = _Stream(response.stream._aiohttp_response)
        return response


def _original(error: Exception) -> Exception:
    """aiohttp's own exception under the one that httpx-aiohttp makes of it."""
    cause = error.__cause__
    if type(error).__module__.startswith("httpx") and isinstance(cause, Exception):
        return cause
    return error


def _traces() -> aiohttp.TraceConfig:
    """The hooks through which aiohttp tells how far a request has come."""
    trace = aiohttp.TraceConfig()

    async def resolving(_session: aiohttp.ClientSession, _context: SimpleNamespace, _params: object) -> None:
        PROGRESS.get().resolving = True

    async def resolved(_session: aiohttp.ClientSession, _context: SimpleNamespace, _params: object) -> None:
        PROGRESS.get().resolving = False

    async def connected(_session: aiohttp.ClientSession, _context: SimpleNamespace, _params: object) -> None:
        PROGRESS.get().connected = True

    async def sent(_session: aiohttp.ClientSession, _context: SimpleNamespace, _params: object) -> None:
        PROGRESS.get().moved()

    trace.on_dns_resolvehost_start.append(resolving)
    trace.on_dns_resolvehost_end.append(resolved)
    trace.on_connection_create_end.append(connected)
    trace.on_connection_reuseconn.append(connected)
    trace.on_request_headers_sent.append(sent)
    trace.on_request_chunk_sent.append(sent)
    return trace
