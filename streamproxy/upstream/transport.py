"""httpx's transport over aiohttp: the only module, with `connection`, that imports aiohttp and httpx-aiohttp.

httpx-aiohttp gives httpx's requests to an aiohttp session. Three things are ours here:
  * chunks as they arrive (up to 64 KiB) instead of pieces of 16 KiB: a third of the CPU per byte;
  * connections that trust the provider less, see `connection`;
  * aiohttp's exceptions become ProxyError by what they mean, and by how far the request had come.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any, Final, cast

import aiohttp
from aiohttp import AddrInfoType, abc, http_exceptions
from httpx_aiohttp import AiohttpTransport
from httpx_aiohttp.transport import AiohttpResponseStream

from streamproxy.errors import Failure, ProxyError, descriptors_exhausted
from streamproxy.upstream.connection import MAX_HEAD_BYTES, PROGRESS, Connection, Progress

CHUNK: Final = 64 * 1024
"""Bytes read from a socket at a time, and of a chunk: an event is held as its chunks, so its first and last one hold up
to this of its neighbours. aiohttp holds up to three of them before it stops reading."""


class _Stream(AiohttpResponseStream):
    """A response body as raw chunks of what has arrived."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        content = self._aiohttp_response.content
        try:
            while chunk := await content.read(CHUNK):
                yield chunk
        except (aiohttp.ClientError, http_exceptions.HttpProcessingError) as error:
            if content._buffer:  # it arrived before the fault and counts; aiohttp raises first and would drop it
                yield content._read_nowait(-1)
            raise _translate_body(error) from error


def _translate_body(error: Exception) -> ProxyError:
    """What went wrong in the middle of a body: reset, framing error, or an end before the end."""
    reasons = tuple(_reasons(error))
    text = " ".join(str(reason) for reason in reasons)
    if any(isinstance(reason, ConnectionResetError) for reason in reasons) or "ConnectionResetError" in text:
        return ProxyError(Failure.STREAM_RESET, "The provider reset the connection in the middle of its answer.")
    incomplete = ("Not enough data", "Response payload is not completed")
    bad_framing = any(isinstance(reason, http_exceptions.HttpProcessingError) for reason in reasons)
    if bad_framing and not any(words in text for words in incomplete):
        return ProxyError(Failure.STREAM_PROTOCOL, "The provider's answer breaks HTTP/1.1's chunked framing.")
    return ProxyError(Failure.UPSTREAM_INCOMPLETE, "The provider's answer ended before it was complete.")


def _reasons(error: BaseException) -> Iterator[BaseException]:
    """An exception and those it came from, five at the most."""
    cause: BaseException | None = error
    for _ in range(5):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or cause.__context__


def _translate(error: Exception, progress: Progress) -> ProxyError | None:
    """What went wrong before the provider's head; None for what this module does not know."""
    ours = next((reason for reason in _reasons(error) if isinstance(reason, ProxyError)), None)
    if ours is not None:  # from Connection, or from reading the upload
        return ours
    if not progress.sent and (exhausted := _exhausted(error)) is not None:
        return exhausted
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return None
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return ProxyError(
            Failure.TLS_CERTIFICATE_ERROR, "The provider's TLS certificate is not valid. Check the provider's base_url."
        )
    in_tls = isinstance(error, aiohttp.ClientConnectorError) and progress.accepted
    if in_tls or isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
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
        return ProxyError(Failure.HTTP_PROTOCOL_ERROR, "The provider's answer is not HTTP/1.1.")
    if isinstance(error, aiohttp.ClientError | OSError):
        return _broken(progress)
    return None


def _exhausted(error: Exception) -> ProxyError | None:
    """DESCRIPTORS_EXHAUSTED where that is the reason.

    glibc says of a name that it is unknown where it cannot open a file or a socket to look it up. Hence the trial.
    """
    reasons = list(_reasons(error))
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        try:
            socket.socket().close()
        except OSError as reason:
            reasons.append(reason)
    return next(filter(None, map(descriptors_exhausted, reasons)), None)


def _broken(progress: Progress) -> ProxyError:
    """The connection ended before the provider's head."""
    if not progress.sent:
        return ProxyError(Failure.CONNECTION_REFUSED, "The connection to the provider broke before it could be used.")
    if not progress.uploaded:
        return ProxyError(
            Failure.UPLOAD_REJECTED,
            "The provider closed the connection while the request was still being sent, without an answer. "
            "The upload may be too large for it.",
        )
    return ProxyError(Failure.CONNECTION_TERMINATED, "The provider closed the connection before it answered.")


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
    if progress.accepted:
        return ProxyError(
            Failure.TLS_PROTOCOL_ERROR,
            "The provider took the connection but does not answer with TLS. Check the provider's base_url; the setting "
            "is connect_timeout.",
            status=Failure.CONNECTION_TIMEOUT.value.status,
        )
    return ProxyError(
        Failure.CONNECTION_TIMEOUT, "The provider did not accept the connection. The setting is connect_timeout."
    )


class Transport(AiohttpTransport):
    """One provider's connections. `resolver` replaces the system's name resolution, `ssl_context` its trust.

    `tolerated` is told the label of each fault of an idle connection.
    """

    def __init__(
        self,
        *,
        keepalive: float,
        trust_env: bool,
        ssl_context: ssl.SSLContext,
        resolver: abc.AbstractResolver | None,
        tolerated: Callable[[str], None],
    ) -> None:
        super().__init__(verify=ssl_context, client=self._session)
        self._keepalive = keepalive
        self._trust_env = trust_env
        self._resolver = resolver
        self._tolerated = tolerated

    def _session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=0,
            keepalive_timeout=self._keepalive,
            ssl=self.ssl_context,
            resolver=self._resolver,
            socket_factory=_socket,
        )
        connector._factory = cast(
            "Any", functools.partial(_connection, connector._loop, self._tolerated, memoryview(bytearray(CHUNK)))
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=self._trust_env,
            read_bufsize=CHUNK,
            max_line_size=MAX_HEAD_BYTES,  # the parser's own limits lie behind those of Connection
            max_field_size=MAX_HEAD_BYTES,
            max_headers=MAX_HEAD_BYTES,
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


def _socket(address: AddrInfoType) -> socket.socket:
    """A socket for an address: the name has been resolved, by whichever request it was that asked."""
    PROGRESS.get().resolving = False
    family, kind, protocol, _, _ = address
    return socket.socket(family, kind, protocol)


def _connection(loop: asyncio.AbstractEventLoop, tolerated: Callable[[str], None], buffer: memoryview) -> Connection:
    """The protocol of a connection that has just been accepted; asyncio begins TLS after this."""
    PROGRESS.get().accepted = True
    return Connection(loop, tolerated, buffer)


def _traces() -> aiohttp.TraceConfig:
    """The hooks through which aiohttp tells how far a request has come."""
    trace = aiohttp.TraceConfig()

    async def resolving(_session: aiohttp.ClientSession, _context: SimpleNamespace, _params: object) -> None:
        PROGRESS.get().resolving = True

    async def sent(_session: aiohttp.ClientSession, _context: SimpleNamespace, _params: object) -> None:
        PROGRESS.get().moved()

    async def writes_head(_session: aiohttp.ClientSession, _context: SimpleNamespace, _params: object) -> None:
        if PROGRESS.get().uploaded:  # there is no body; else the head goes out with its first piece
            PROGRESS.get().moved()

    trace.on_connection_create_start.append(resolving)
    trace.on_request_headers_sent.append(writes_head)
    trace.on_request_chunk_sent.append(sent)
    return trace
