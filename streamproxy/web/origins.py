"""Which names and which pages may call: the rules that keep a page from spending what is not its own.

A proxy on the reader's own machine is reached by every page in the reader's browser. CORS only keeps the answer from
a page of another origin; a form, or a body without a type, is sent without asking first. So there are two rules:

    host      where a configured credential can be spent without a caller's key, the request must name this machine,
              the setting `host`, or one of `allowed_hosts`: a name of another site that resolves here (DNS rebinding)
              makes a page same-origin with the proxy
    origin    a request that changes something, and one that follows a stream, is refused for a page whose origin is
              neither the request's own host nor one of `cors_origins`

Browsers send Origin with every POST and DELETE (Fetch Standard, "append a request `Origin` header"), and `null` where
they hide it; so a request without one comes from no page, except for browsers of before 2020. Fetch Metadata alone does
not do: browsers send it to trustworthy addresses only. An edge that hides the page's host from us (nginx's default
Host) needs the page's origin in `cors_origins`. The scheme is not compared: an edge that ends TLS changes it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from starlette.datastructures import Headers

from streamproxy.errors import Failure, ProxyError

EVERY: Final = "*"
CHANGES_NOTHING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
FOREIGN: Final = frozenset({"cross-site", "same-site"})
DEFAULT_PORTS: Final = (":80", ":443")
_PORT: Final = re.compile(r":[0-9]{1,5}\Z")
AUTHORITY: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::[0-9]{1,5})?")
"""A Host header that can go into a URL: a name or an address, and a port."""


@dataclass(frozen=True, slots=True)
class Origins:
    """`allowed` are origins, or "*" for every one. `hosts` are names that callers may use; None: any name will do.

    `known` are those that the settings give the proxy, in any case.
    """

    allowed: frozenset[str]
    hosts: frozenset[str] | None
    known: frozenset[str] = frozenset()

    def check_host(self, headers: Headers) -> None:
        """Raises ProxyError(HOST_NOT_ALLOWED) for a request by a name that is not this proxy's."""
        if self.hosts is None:
            return
        given = headers.getlist("host")
        if len(given) != 1 or not self._is_ours(name_of(given[0])):
            raise ProxyError(
                Failure.HOST_NOT_ALLOWED,
                "This proxy is not known by the host name in the request, and it holds a key that anyone who reaches "
                "it could spend. Add the name to the setting allowed_hosts, or give callers keys (caller_keys).",
            )

    def _is_ours(self, name: str) -> bool:
        names = self.hosts or self.known
        if is_loopback_name(name) or name in names:
            return True
        return any(host.startswith("*.") and name.endswith(host[1:]) for host in names)

    def base_url(self, scheme: str, headers: Headers) -> str:
        """`http://name:port` by which the request came; "" where the settings do not know that name."""
        given = headers.getlist("host")
        if len(given) != 1 or not AUTHORITY.fullmatch(given[0]) or not self._is_ours(name_of(given[0])):
            return ""
        return f"{scheme}://{given[0]}"

    def check_origin(self, method: str, headers: Headers, *, follows: bool = False) -> None:
        """Raises ProxyError(ORIGIN_NOT_ALLOWED) for a page that may not do this. `follows`: it reads a stream."""
        if (follows or method not in CHANGES_NOTHING) and self._is_foreign(headers):
            raise refused_origin()

    def _is_foreign(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is None:
            return headers.get("sec-fetch-site") in FOREIGN and EVERY not in self.allowed
        return not self.allows(origin) and not is_same_host(origin, headers.get("host", ""))

    def allows(self, origin: str) -> bool:
        """Whether the setting names this origin, or its host with every port."""
        return not self.allowed.isdisjoint((EVERY, origin, f"{_PORT.sub('', origin)}:{EVERY}"))


def refused_origin() -> ProxyError:
    """The refusal of a page."""
    return ProxyError(
        Failure.ORIGIN_NOT_ALLOWED, "Pages of this origin may not call the proxy. Add it to the setting cors_origins."
    )


def hosts_of(host: str, allowed: Collection[str]) -> frozenset[str]:
    """The names that the settings `host` and `allowed_hosts` give the proxy."""
    return frozenset(name.lower() for name in (host.strip("[]"), *allowed))


def name_of(host: str) -> str:
    """The name in a Host header: without port, brackets and a trailing dot, lower-case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    name = host.partition(":")[0] if host.count(":") <= 1 else host
    return name.lower().removesuffix(".")


def is_loopback_name(name: str) -> bool:
    """localhost, a name below it (RFC 6761, 6.3), or a loopback address."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_same_host(origin: str, host: str) -> bool:
    """Whether a page of this origin comes from the host that the request names: name and port are the same."""
    scheme, separator, authority = origin.lower().partition("://")
    return bool(separator and scheme and authority) and _plain(authority) == _plain(host.lower())


def _plain(authority: str) -> str:
    """Without a scheme's default port."""
    return next((authority.removesuffix(port) for port in DEFAULT_PORTS if authority.endswith(port)), authority)
