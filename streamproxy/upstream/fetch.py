"""Images by URL: references of a request and results of a provider, fetched under the guard of `core.addresses`.

Strategy: a name is resolved once, all its addresses are checked, and the connection goes to one of them, while TLS and
the Host header have the name. Each redirect starts anew. Requests go straight to the transport: no client above it can
add a credential, a cookie or a referer, use a proxy, or follow a redirect. Every connection is used once, because the
pool knows connections by address: a second name at the same address would be served without a check of its certificate.

The picture becomes base64 as it arrives, one slice at a time, and is kept in that form only.
"""

from __future__ import annotations

import binascii
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import anyio
import anyio.lowlevel
import httpx
from anyio import to_thread

from streamproxy.core.addresses import Destination, destination, prohibited, refusal
from streamproxy.core.conversation import Picture
from streamproxy.core.images import SNIFFED, sniff
from streamproxy.errors import Failure, ProxyError
from streamproxy.upstream.breaker import RetryBudget

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""The IP addresses of a host name, for connections to a port. Raises OSError where there are none."""

SLICE: Final = 48 * 1024
"""Bytes that become one piece of base64, of 64 KiB. A multiple of three, and about 50 us of work."""


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """`size` in bytes and `seconds` of one fetch, `connect` in seconds for one address; `pause` seconds between tries.

    50 MB is OpenAI's limit for an input image. Content networks answer 404 for a second or two while they copy a new
    file, hence three tries a second apart. 30 s take 50 MB at 13 Mbit/s.
    """

    size: int = 50_000_000
    seconds: float = 30.0
    connect: float = 5.0
    redirects: int = 3
    tries: int = 3
    pause: float = 1.0


class Fetcher:
    """Fetches images. `hosts`: those of the setting fetch_hosts, which may speak http and be internal.

    `resolver` replaces the system's name resolution, `transport` the connections.
    """

    def __init__(
        self,
        *,
        hosts: Collection[str],
        ssl_context: ssl.SSLContext,
        limits: FetchLimits | None = None,
        resolver: Resolver | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._hosts = frozenset(hosts)
        self._limits = limits or FetchLimits()
        self._resolve = resolver or resolve
        self._ssl_context = ssl_context
        self._transport = transport
        self._retries = RetryBudget()

    async def aclose(self) -> None:
        """Close every connection."""
        if self._transport is not None:
            await self._transport.aclose()

    async def fetch(self, url: str) -> Picture:
        """The image at `url`; a `data:` URL is decoded, without any network.

        Raises ProxyError: DESTINATION_IP_PROHIBITED where the guard forbids the URL, one of its addresses or a
        redirect, and FETCH_FAILED for everything else. The message names the host, never the path or the query.
        """
        if url[:5].lower() == "data:":
            return await self._decoded(url)
        place = destination(url, self._hosts)
        with anyio.move_on_after(self._limits.seconds):
            return await self._followed(place)
        raise _failed(place.host, f"it took over {self._limits.seconds:g} s")

    async def _followed(self, place: Destination) -> Picture:
        for _ in range(1 + self._limits.redirects):
            answer = await self._tried(place, await self._addresses(place))
            if isinstance(answer, Picture):
                return answer
            place = destination(answer, self._hosts, base=place)
        raise _failed(place.host, f"there were over {self._limits.redirects} redirects")

    async def _addresses(self, place: Destination) -> Sequence[str]:
        """The addresses of a host, after a check of all of them."""
        if place.literal is not None:
            return (place.literal,)
        try:
            found = await self._resolve(place.host, place.port)
        except (OSError, ValueError):
            found = ()
        if not found:
            raise _failed(place.host, "its name cannot be resolved")
        for address in found:
            if reason := prohibited(address, listed=place.listed):
                raise refusal(place, reason)
        return found

    async def _tried(self, place: Destination, addresses: Sequence[str]) -> Picture | str:
        """The image, or a redirect's Location. A fault that may pass is tried again."""
        reason = ""
        self._retries.sent()
        for attempt in range(self._limits.tries):
            if attempt:
                if not self._retries.take():
                    break
                await anyio.sleep(self._limits.pause)
            try:
                return await self._got(place, addresses)
            except _Fault as fault:
                reason = fault.reason
                if not fault.passes:
                    break
        raise _failed(place.host, reason)

    async def _got(self, place: Destination, addresses: Sequence[str]) -> Picture | str:
        """Try once: the answer of the first address that takes a connection."""
        fault = _Fault("its name has no address")
        if self._transport is None:  # with httpcore it takes 1 MB, which few installations need
            self._transport = await to_thread.run_sync(default_transport, self._ssl_context)
        for address in addresses:
            try:
                response = await self._transport.handle_async_request(self._request(place, address))
            except _ERRORS as error:
                fault = _fault(error)
                continue
            try:
                return await self._read(response)
            except _ERRORS as error:
                raise _fault(error) from None
            finally:
                with anyio.CancelScope(shield=True, deadline=anyio.current_time() + 1.0):
                    await response.aclose()
        raise fault

    def _request(self, place: Destination, address: str) -> httpx.Request:
        headers = {"host": place.authority, **_HEADERS}
        timeout = {"connect": self._limits.connect}  # the rest is bounded by the deadline of the whole fetch
        return httpx.Request(
            "GET", place.at(address), headers=headers, extensions={"sni_hostname": place.host, "timeout": timeout}
        )

    async def _read(self, response: httpx.Response) -> Picture | str:
        status, headers = response.status_code, response.headers
        if status in _REDIRECTS and "location" in headers:
            return headers["location"]
        if status != 200:
            raise _Fault(f"the answer is HTTP {status}", passes=status == 404 or status >= 500)
        if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            raise _Fault("the answer is compressed, although that was not accepted")
        picture = _Gathering(self._limits.size)
        picture.expect(int(headers.get("content-length", 0)))
        async for chunk in response.aiter_raw():
            picture.add(chunk)
            await anyio.lowlevel.checkpoint()  # one read may have thousands of chunks of a few bytes
        return picture.whole()

    async def _decoded(self, url: str) -> Picture:
        """The picture of a `data:` URL, decoded and encoded again, so that only base64's own characters remain."""
        picture = _Gathering(self._limits.size)
        try:
            for data in _unwrapped(url):
                picture.add(data)
                await anyio.lowlevel.checkpoint()
            return picture.whole()
        except _Fault as fault:
            raise ProxyError(
                Failure.FETCH_FAILED, f"The image of a data: URL could not be read: {fault.reason}."
            ) from None


class _Fault(Exception):
    """The reason why there is no image. `passes`: another try may succeed."""

    def __init__(self, reason: str, *, passes: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.passes = passes


class _Gathering:
    """A picture as it arrives. It is refused once it is too large, or once its first bytes are not an image's."""

    __slots__ = ("_held", "_limit", "_media_type", "_pieces", "_size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._media_type: str | None = None
        self._pieces: list[bytes] = []
        self._held = bytearray()  # less than a slice

    def expect(self, size: int) -> None:
        if size > self._limit:
            raise _Fault(f"it is over {self._limit} bytes")

    def add(self, chunk: bytes) -> None:
        self._size += len(chunk)
        self.expect(self._size)
        self._held += chunk
        if self._media_type is None and self._size >= SNIFFED:
            self._media_type = sniff(bytes(self._held[:SNIFFED]))
            if self._media_type is None:
                raise _Fault("it is not a PNG, JPEG, WebP, GIF or AVIF image")
        while len(self._held) >= SLICE:
            self._pieces.append(binascii.b2a_base64(self._held[:SLICE], newline=False))
            del self._held[:SLICE]

    def whole(self) -> Picture:
        if self._media_type is None:
            raise _Fault("it is empty, or not an image")
        if self._held:
            self._pieces.append(binascii.b2a_base64(self._held, newline=False))
        return Picture(tuple(self._pieces), self._media_type)


def _unwrapped(url: str) -> Iterator[bytes]:
    """The bytes of a `data:...;base64,` URL, slice by slice. White space and missing padding are allowed.

    Raises _Fault where it is not base64.
    """
    prefix, _, _ = url[:_LONGEST_PREFIX].partition(",")
    if not prefix.replace(" ", "").lower().endswith(";base64"):
        raise _Fault("it is not marked as base64")
    text = url.rstrip("= \t\n\f\r")
    left = b""
    try:
        for at in range(len(prefix) + 1, len(text), _TEXT_SLICE):
            left += text[at : at + _TEXT_SLICE].encode("ascii").translate(None, b" \t\n\f\r")
            if b"=" in left:
                raise ValueError("padding in the middle")
            whole = len(left) - len(left) % 4
            yield binascii.a2b_base64(left[:whole], strict_mode=True)
            left = left[whole:]
        yield binascii.a2b_base64(left + b"=" * (-len(left) % 4), strict_mode=True)
    except ValueError:  # binascii's and the codec's errors too
        raise _Fault("it is not base64") from None


async def resolve(host: str, port: int) -> Sequence[str]:
    """Resolve with the system: addresses in its order of preference (RFC 6724)."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(address[0] for *_, address in found))


def default_transport(ssl_context: ssl.SSLContext) -> httpx.AsyncBaseTransport:
    """A transport whose connections serve one request each, without a proxy."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncHTTPTransport(verify=ssl_context, limits=limits)


def _failed(host: str, reason: str) -> ProxyError:
    return ProxyError(Failure.FETCH_FAILED, f"The image at {host} could not be fetched: {reason}.")


def _fault(error: BaseException) -> _Fault:
    """The fault of the transport's exception, by the first known exception among its causes."""
    cause: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        for kind, (reason, passes) in _MEANINGS.items():
            if isinstance(cause, kind):
                return _Fault(reason, passes=passes)
        cause = cause and (cause.__cause__ or cause.__context__)
    return _Fault("the connection broke", passes=True)


_ERRORS: Final = (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError)
"""Exceptions of httpx and the layers below it. TLS errors are OSErrors, and encoding errors are ValueErrors."""

_MEANINGS: Final[dict[type[BaseException], tuple[str, bool]]] = {
    ssl.SSLCertVerificationError: ("its TLS certificate is not trusted", False),
    ssl.SSLError: ("it does not speak TLS as it should", False),
    ConnectionRefusedError: ("it refused the connection", True),
    TimeoutError: ("it did not take the connection", True),
    httpx.RemoteProtocolError: ("its answer is broken or breaks off", True),
}
_MOST_CAUSES: Final = 8

_REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))
_HEADERS: Final = {
    "accept": "image/png, image/jpeg, image/webp, image/gif, image/avif",  # of CDNs that choose by it, what we can tell
    "accept-encoding": "identity",
    "connection": "close",
    "user-agent": "streamproxy",  # some hosts refuse requests without one
}

_TEXT_SLICE: Final = SLICE // 3 * 4
_LONGEST_PREFIX: Final = 1024
"""Characters of `data:<media type>[;parameter]*;base64,`."""
