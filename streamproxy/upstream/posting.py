"""Webhooks by POST, under the guard of `core.addresses`.

Strategy: as in `fetch`. A name is resolved for each attempt, every address of it is checked, and the connection goes to
exactly such an address. Nothing adds a credential, uses a proxy or follows a redirect.
"""

from __future__ import annotations

import ssl
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import anyio
import httpx

from streamproxy.core.addresses import Destination, prohibited
from streamproxy.core.webhooks import receiver, refused
from streamproxy.errors import ProxyError
from streamproxy.upstream.fetch import Resolver, default_transport, resolve

POST_SECONDS: Final = 15.0
"""For one attempt as a whole. Standard Webhooks asks for 15 to 30 s."""

CONNECT_SECONDS: Final = 5.0

_ERRORS: Final = (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError)
"""What httpx and the layers below it raise."""

_HEADERS: Final = {
    "content-type": "application/json",
    "accept-encoding": "identity",
    "connection": "close",
    "user-agent": "streamproxy",
}


class Undelivered(Exception):
    """No receiver has answered. The text has neither the URL's path nor its query."""


class Poster:
    """Sends webhooks. `origins`: the setting webhook_origins.

    `resolver` replaces the system's name resolution, `transport` what connects.
    """

    def __init__(
        self,
        *,
        origins: Collection[str],
        ssl_context: ssl.SSLContext,
        resolver: Resolver | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._origins = frozenset(origins)
        self._resolve = resolver or resolve
        self._transport = transport or default_transport(ssl_context)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._transport.aclose()

    async def check(self, url: str) -> None:
        """Raises ProxyError(WEBHOOK_REFUSED) where a webhook may not go to this URL now. Nothing is dialled."""
        with anyio.move_on_after(CONNECT_SECONDS):
            await self._addresses(receiver(url, self._origins))
            return
        raise refused("its name cannot be resolved")

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """The status of the answer to one attempt. Raises Undelivered."""
        with anyio.move_on_after(POST_SECONDS):
            try:
                place = receiver(url, self._origins)
                return await self._posted(place, await self._addresses(place), headers, body)
            except ProxyError as error:
                raise Undelivered(error.message) from None
        raise Undelivered(f"it took over {POST_SECONDS:g} s")

    async def _addresses(self, place: Destination) -> Sequence[str]:
        """The addresses of a host, all of them checked."""
        if place.literal is not None:
            return (place.literal,)
        try:
            found = await self._resolve(place.host, place.port)
        except (OSError, ValueError):
            found = ()
        if not found:
            raise refused("its name cannot be resolved")
        for address in found:
            if reason := prohibited(address, listed=place.listed):
                raise refused(f"its address is {reason}")
        return found

    async def _posted(
        self, place: Destination, addresses: Sequence[str], headers: Mapping[str, str], body: bytes
    ) -> int:
        """What the first address says that answers at all."""
        reason = ""
        for address in addresses:
            request = httpx.Request(
                "POST",
                place.at(address),
                headers={"host": place.authority, **_HEADERS, **headers},
                content=body,
                extensions={"sni_hostname": place.host, "timeout": {"connect": CONNECT_SECONDS}},
            )
            try:
                response = await self._transport.handle_async_request(request)
            except _ERRORS as error:
                reason = type(error).__name__
                continue
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + 1.0):
                await response.aclose()
            return response.status_code
        raise Undelivered(f"no connection ({reason})")
