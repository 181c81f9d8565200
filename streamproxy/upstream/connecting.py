"""From a URL's origin to a Connection: name resolution, TCP, a proxy's tunnel, TLS, and the error of each failure.

A failure is classified by its step and its type, never by its message. Nothing of the request has been sent in any of
them.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import re
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import ip_address
from typing import Final, Protocol
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import anyio
from aiohappyeyeballs import AddrInfoType, start_connection

from streamproxy.errors import ErrorDetails, Failure, ProxyError, descriptors_exhausted
from streamproxy.upstream.connection import Connection, Space
from streamproxy.upstream.parsing import MAX_HEAD_BYTES

EYEBALLS_SECONDS: Final = 0.25
"""Seconds until the next address is tried beside the one before (RFC 8305, section 5)."""

NAME_SECONDS: Final = 10.0
"""Seconds for which a resolved name is kept, and for which its resolution may last. So a burst of requests resolves a
name once, and a change of its address is noticed soon.
"""

_TUNNEL: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r\n]")


@dataclass(frozen=True, slots=True)
class Origin:
    """The target of connections. `host`: a name in ASCII or an address, without brackets."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """Host and port as a request target writes them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def address(self) -> str | None:
        """The host, if it is an address. Raises ValueError if it only looks like one, as 127.1 does."""
        try:
            return str(ip_address(self.host))
        except ValueError:
            last = self.host.removesuffix(".").rpartition(".")[2].lower()
            if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", last):
                raise
            return None


class Resolver(Protocol):
    """Names to addresses."""

    async def resolve(self, host: str, port: int) -> list[str]:
        """The addresses of a name, best first. Raises OSError where it has none."""
        ...


class SystemResolver:
    """The system's name resolution, in a thread."""

    async def resolve(self, host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        return [str(address[0]) for *_, address in found]


class Names:
    """A cache of a resolver's answers. Requests that need the same name at once share one resolution."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._lookups: dict[tuple[str, int], asyncio.Task[list[str]]] = {}

    async def resolve(self, host: str, port: int) -> list[str]:
        """As a Resolver; also raises TimeoutError."""
        task = self._lookups.get((host, port))
        if task is None:
            task = asyncio.get_running_loop().create_task(self._ask(host, port))
            self._lookups[host, port] = task
            task.add_done_callback(lambda done: self._asked((host, port), done))
        return await asyncio.shield(task)  # a cancelled request must not cancel it for the others

    def close(self) -> None:
        """Cancel every resolution."""
        for task in self._lookups.values():
            task.cancel()
        self._lookups.clear()

    async def _ask(self, host: str, port: int) -> list[str]:
        async with asyncio.timeout(NAME_SECONDS):
            return await self._resolver.resolve(host, port)

    def _asked(self, name: tuple[str, int], task: asyncio.Task[list[str]]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._forget(name, task)
        else:
            asyncio.get_running_loop().call_later(NAME_SECONDS, self._forget, name, task)

    def _forget(self, name: tuple[str, int], task: asyncio.Task[list[str]]) -> None:
        if self._lookups.get(name) is task:
            del self._lookups[name]


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy of the environment. `authorization`: its Proxy-Authorization, "" for none."""

    origin: Origin
    authorization: str = field(default="", repr=False)


def environment_proxies() -> dict[str, Proxy | None]:
    """The proxies of HTTP_PROXY and its like, by the target's scheme; None for one of an unsupported kind."""
    named = {scheme: url for scheme, url in getproxies().items() if scheme in ("http", "https")}
    return {scheme: _proxy(urlsplit(url if "://" in url else f"http://{url}")) for scheme, url in named.items()}


def _proxy(url: SplitResult) -> Proxy | None:
    try:
        origin = Origin("http", url.hostname or "", url.port or 80)
        _ = origin.address
    except ValueError:
        return None
    if url.scheme != "http" or not origin.host:
        return None
    if url.username is None:
        return Proxy(origin)
    pair = f"{unquote(url.username)}:{unquote(url.password or '')}".encode()
    return Proxy(origin, f"Basic {base64.b64encode(pair).decode()}")


class _Step(Enum):
    """The step in which a connection attempt is."""

    RESOLVING = 1
    CONNECTING = 2
    TUNNELLING = 3
    SECURING = 4


class Connector:
    """Makes one provider's connections. `resolver` replaces the system's name resolution, `ssl_context` its trust.

    `tolerated` is called with the label of each fault of an idle connection.
    """

    def __init__(
        self,
        *,
        ssl_context: ssl.SSLContext,
        resolver: Resolver | None,
        trust_env: bool,
        tolerated: Callable[[str], None],
    ) -> None:
        self._ssl_context = ssl_context
        self._names = Names(resolver or SystemResolver())
        self._proxies = environment_proxies() if trust_env else {}
        self._tolerated = tolerated
        self._space = Space()

    def close(self) -> None:
        """Cancel name resolutions. No connection can be made after this."""
        self._names.close()

    def proxy(self, origin: Origin) -> Proxy | None:
        """The environment's proxy for this origin. Raises ProxyError(UPSTREAM_REQUEST) for another kind than HTTP."""
        if origin.scheme not in self._proxies or proxy_bypass(origin.host):
            return None
        found = self._proxies[origin.scheme]
        if found is None:
            name = f"{origin.scheme.upper()}_PROXY"
            message = f"The environment's {name} must begin with http://. The setting is trust_env_proxies."
            raise ProxyError(Failure.UPSTREAM_REQUEST, message)
        return found

    async def connect(self, origin: Origin, deadline: float) -> Connection:
        """A new connection, ready for a request. Raises ProxyError."""
        attempt = _Attempt()
        with anyio.CancelScope(deadline=deadline) as scope:
            try:
                return await self._connect(origin, attempt)
            except TimeoutError as error:
                if attempt.step is _Step.RESOLVING:
                    raise _timed_out(attempt.step) from None
                raise _failed(attempt.step, error) from None  # ETIMEDOUT of the kernel: no network
            except (OSError, RuntimeError) as error:  # uvloop raises RuntimeError for a closed descriptor
                raise _failed(attempt.step, error) from None
        assert scope.cancelled_caught
        raise _timed_out(attempt.step)

    async def _connect(self, origin: Origin, attempt: _Attempt) -> Connection:
        loop = asyncio.get_running_loop()
        proxy = self.proxy(origin)
        first = origin if proxy is None else proxy.origin
        address = first.address
        addresses = [address] if address is not None else await self._names.resolve(first.host, first.port)
        attempt.step = _Step.CONNECTING
        infos = [info for each in addresses for info in _numeric(each, first.port)]
        sock = await start_connection(infos, happy_eyeballs_delay=EYEBALLS_SECONDS)
        try:
            secure = origin.scheme == "https"
            if secure and proxy is not None:
                attempt.step = _Step.TUNNELLING
                await _tunnel(loop, sock, origin, proxy)
            if secure:
                attempt.step = _Step.SECURING
            _, connection = await loop.create_connection(
                lambda: Connection(self._space, self._tolerated),
                sock=sock,
                ssl=self._ssl_context if secure else None,
                server_hostname=origin.host if secure else None,
            )
        except BaseException:
            sock.close()
            raise
        return connection


@dataclass(slots=True)
class _Attempt:
    step: _Step = _Step.RESOLVING


def _numeric(address: str, port: int) -> list[AddrInfoType]:
    """An address for sockets, without name resolution."""
    return [*socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)]


async def _tunnel(loop: asyncio.AbstractEventLoop, sock: socket.socket, origin: Origin, proxy: Proxy) -> None:
    """Open a tunnel through a proxy (RFC 9110, 9.3.6). No byte may follow the head, since TLS begins on our side."""
    head = f"CONNECT {origin.authority} HTTP/1.1\r\nHost: {origin.authority}\r\n"
    if proxy.authorization:
        head += f"Proxy-Authorization: {proxy.authorization}\r\n"
    await loop.sock_sendall(sock, f"{head}\r\n".encode())
    said = b""
    while b"\r\n\r\n" not in said and len(said) <= MAX_HEAD_BYTES:
        piece = await loop.sock_recv(sock, 4096)
        if not piece:
            break
        said += piece
    found = _TUNNEL.match(said)
    status = found[1].decode() if found else "none"
    if not status.startswith("2") or not said.endswith(b"\r\n\r\n"):
        raise ProxyError(
            Failure.CONNECTION_REFUSED,
            "The environment's proxy did not open a way to the provider. The setting is trust_env_proxies.",
            details=ErrorDetails(noted={"proxy_status": status}),
        )


def _failed(step: _Step, error: Exception) -> ProxyError:
    """The error for a failure of this step."""
    if (exhausted := _exhausted(step, error)) is not None:
        return exhausted
    match step:
        case _Step.RESOLVING:
            return ProxyError(
                Failure.DNS_ERROR, "The provider's host name cannot be resolved. Check the provider's base_url."
            )
        case _Step.SECURING if isinstance(error, ssl.SSLCertVerificationError):
            return ProxyError(
                Failure.TLS_CERTIFICATE_ERROR,
                "The provider's TLS certificate is not valid. Check the provider's base_url.",
            )
        case _Step.SECURING:
            return ProxyError(
                Failure.TLS_PROTOCOL_ERROR, "The provider does not speak TLS there. Check the provider's base_url."
            )
        case _:
            details = ErrorDetails(noted={"errno": _errno_name(error)})
            return ProxyError(Failure.CONNECTION_REFUSED, "The provider refused the connection.", details=details)


def _exhausted(step: _Step, error: Exception) -> ProxyError | None:
    """DESCRIPTORS_EXHAUSTED if that is the reason; else None.

    glibc reports an unknown name if it cannot open a file or socket to resolve it. So this tries to open one.
    """
    if step is _Step.RESOLVING:
        try:
            socket.socket().close()
        except OSError as reason:
            return descriptors_exhausted(reason)
    return descriptors_exhausted(error)


def _errno_name(error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    return type(error).__name__ if number is None else errno.errorcode.get(number, str(number))


def _timed_out(step: _Step) -> ProxyError:
    """The error for a step that took too long."""
    match step:
        case _Step.RESOLVING:
            return ProxyError(
                Failure.DNS_TIMEOUT, "The provider's host name took too long. The setting is connect_timeout."
            )
        case _Step.SECURING:
            return ProxyError(
                Failure.TLS_PROTOCOL_ERROR,
                "The provider took the connection but does not answer with TLS. Check the provider's base_url; the "
                "setting is connect_timeout.",
                details=ErrorDetails(status=Failure.CONNECTION_TIMEOUT.value.status),
            )
        case _:
            return ProxyError(
                Failure.CONNECTION_TIMEOUT,
                "The provider did not accept the connection. The setting is connect_timeout.",
            )
