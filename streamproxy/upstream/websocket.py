"""A WebSocket to a provider's own host: the only module that imports websockets.

Strategy: the library's own connection, without the features that a proxy must not use. By default it follows redirects
to other hosts with all headers but three that it knows as credentials, uses proxies of the environment, compresses, and
buffers sixteen frames of the largest size. Every failure is a ProxyError. A message is whole, or an error.

Sources: RFC 6455 4.1 (opening), 5.5.2 (ping), 7.4.1 (close codes).
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import anyio
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as library_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, WebSocketException

from streamproxy.errors import Failure, ProxyError

PING: Final = 20.0
"""Seconds between pings, and for the answer to one. So a dead connection is noticed within 40 s, and edges, which cut
silence at 60 s, see traffic.
"""

CLOSE: Final = 1.0
"""Seconds for the provider's answer to our close frame. After them the connection is cut."""


@dataclass(frozen=True, slots=True)
class SocketLimits:
    """`open`: seconds for name, TCP, TLS and handshake. `message`: most bytes of one message from the provider."""

    open: float
    message: int


class Socket:
    """An open WebSocket. Only one task may receive at a time; another may send."""

    def __init__(self, connection: ClientConnection, limits: SocketLimits) -> None:
        self._connection = connection
        self._limits = limits

    async def send(self, text: str) -> None:
        """Send one text message. Raises ProxyError where the connection has ended."""
        try:
            await self._connection.send(text)
        except ConnectionClosed as error:
            raise _ended(error, self._limits) from None

    async def receive(self) -> str | bytes:
        """The next message, as str or bytes. A cancelled call loses no message.

        Raises ProxyError where the connection has ended in any way, and for a message over the limit.
        """
        try:
            return await self._connection.recv()
        except ConnectionClosed as error:
            raise _ended(error, self._limits) from None


@asynccontextmanager
async def connect(
    url: str, headers: Sequence[tuple[str, str]] = (), *, limits: SocketLimits, ssl_context: ssl.SSLContext
) -> AsyncIterator[Socket]:
    """Open a WebSocket at a ws:// or wss:// URL, and close it with the block. Raises ProxyError if it does not open."""
    if any(_UNSAFE.search(part) for header in headers for part in header):
        raise ProxyError(Failure.UPSTREAM_REQUEST, "A header of the WebSocket to the provider cannot be sent.")
    try:
        connection = await _Connect(
            url,
            additional_headers=list(headers),
            user_agent_header="streamproxy",
            compression=None,
            proxy=None,
            open_timeout=limits.open,
            close_timeout=CLOSE,
            ping_interval=PING,
            ping_timeout=PING,
            max_size=limits.message,
            max_queue=1,  # frames; above it reading pauses, so that at most a message and a read are held
            ssl=ssl_context if url[:4].lower() == "wss:" else None,
        )
    except (WebSocketException, OSError, ValueError) as error:
        raise _unopened(error) from None
    try:
        yield Socket(connection, limits)
    finally:
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + CLOSE):
            await connection.close()
        connection.transport.abort()


class _Connect(library_connect):
    """The library's, without redirects: one would carry the credential to another host."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


def _unopened(error: Exception) -> ProxyError:
    """The error for a WebSocket that did not open. Nothing was asked of the provider yet."""
    if isinstance(error, InvalidStatus):
        return _answered(error.response.status_code)
    for kind, (failure, happened) in _UNOPENED.items():
        if isinstance(error, kind):
            return ProxyError(failure, f"{happened} Check the provider's base_url.")
    return ProxyError(Failure.UPSTREAM_REQUEST, "The address of the provider's WebSocket cannot be used.")


def _answered(status: int) -> ProxyError:
    """The error for an HTTP answer to the handshake that is not 101."""
    said = f"The provider answered the WebSocket's handshake with HTTP {status}"
    if 300 <= status < 400:
        return ProxyError(
            Failure.UNEXPECTED_REDIRECT, f"{said}. Redirects are not followed. Check the provider's base_url."
        )
    if status in (401, 403):
        return ProxyError(Failure.PROVIDER_AUTH, f"{said}. Check the provider's credential.")
    return ProxyError(Failure.UPSTREAM_REQUEST, f"{said}.")


def _ended(error: ConnectionClosed, limits: SocketLimits) -> ProxyError:
    """The error for an open WebSocket that has ended, by the first close frame. Without one, the connection broke."""
    if error.rcvd is not None and (error.sent is None or error.rcvd_then_sent):
        code = error.rcvd.code
        return ProxyError(Failure.UPSTREAM_INCOMPLETE, f"The provider closed the WebSocket (code {code}).")
    if error.sent is None:
        return ProxyError(Failure.STREAM_RESET, "The connection of the provider's WebSocket broke.")
    failure, happened = _ENDED.get(error.sent.code, (Failure.UPSTREAM_INCOMPLETE, "The WebSocket has been closed."))
    return ProxyError(failure, happened.format(limits.message))


_UNSAFE: Final = re.compile(r"[^\x20-\x7e\t]")

_UNOPENED: Final[dict[type[Exception], tuple[Failure, str]]] = {
    TimeoutError: (Failure.CONNECTION_TIMEOUT, "The provider's WebSocket did not open within connect_timeout."),
    ssl.SSLCertVerificationError: (Failure.TLS_CERTIFICATE_ERROR, "The provider's TLS certificate is not valid."),
    ssl.SSLError: (Failure.TLS_PROTOCOL_ERROR, "The provider does not speak TLS there."),
    socket.gaierror: (Failure.DNS_ERROR, "The provider's host name cannot be resolved."),
    OSError: (Failure.CONNECTION_REFUSED, "The provider did not take the WebSocket's connection."),
    InvalidHandshake: (Failure.UPSTREAM_REQUEST, "The provider's answer does not open a WebSocket."),
}
"""Failures by exception, subclasses before their bases."""

_ENDED: Final = {
    1002: (Failure.STREAM_PROTOCOL, "The provider's WebSocket breaks the protocol."),
    1007: (Failure.STREAM_PROTOCOL, "The provider's WebSocket sent text that is not UTF-8."),
    1009: (Failure.EVENT_TOO_LARGE, "A message of the provider's WebSocket is over {} bytes."),
    1011: (Failure.IDLE_TIMEOUT, f"The provider's WebSocket answered no ping within {PING:g} s."),
}
"""Failures by the code of the close frame that we sent (RFC 6455 7.4.1)."""
