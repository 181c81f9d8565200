"""The guard against server-side request forgery: which addresses and URLs a fetch may go to.

    destination(url, hosts)    the parts of a URL, or ProxyError(DESTINATION_IP_PROHIBITED)
    prohibited(address)        the reason why an IP address must not be dialled, None where it may be

Strategy: nothing is repaired. Browsers, resolvers and libraries disagree about backslashes, `@`, octal numbers and
full-width dots. A guard that sees another host than the dialler is useless, so an ambiguous URL is refused. For IPv4
the table lists networks that are not public. For IPv6 only 2000::/3 is public.

Sources: RFC 3986 3; RFC 6890 and the IANA special-purpose address registries for IPv4 and IPv6 (RFC 8190); RFC 6052 2.1
(NAT64); the providers' own pages for their metadata services. Python's `ipaddress.is_global` follows the registries of
its release only, and does not cover multicast, metadata services and addresses inside addresses.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import quote, urljoin

from streamproxy.errors import Failure, ProxyError
from streamproxy.settings.values import HOST_NAME

MAX_URL: Final = 16 * 1024
"""Characters of a URL: signed ones have up to 3000, and h11 takes no header line over 100 KiB."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A URL that may be fetched, as far as its text shows. `host` is in lower case, IPv6 without brackets.

    `listed`: the configuration names this host, so it may speak http and have an address of an internal network.
    """

    scheme: str
    host: str
    port: int
    target: str = field(repr=False)  # a query may be a signature
    listed: bool

    @property
    def authority(self) -> str:
        """Host and port for the Host header, without the scheme's default port (RFC 9110 7.2)."""
        return _authority(self.host, self.port if self.port != _PORTS[self.scheme] else None)

    @property
    def literal(self) -> str | None:
        """The host where it is an IP address itself."""
        return self.host if _is_literal(self.host) else None

    def at(self, address: str) -> str:
        """The URL with an IP address in place of the host, to dial the resolved name."""
        return f"{self.scheme}://{_authority(address, self.port)}{self.target}"


def destination(url: str, hosts: Collection[str], *, base: Destination | None = None) -> Destination:
    """Parse `url`. `hosts`: the setting `fetch_hosts`. `base`: the URL that a redirect's Location is relative to.

    Raises ProxyError(DESTINATION_IP_PROHIBITED) for every URL that is not https to a public host or http(s) to a listed
    one, and for a host that is an address that must not be dialled. Names are not resolved here.
    """
    if len(url) > MAX_URL or _UNSAFE.search(url):
        raise _refused("it is too long, or has a space, a backslash or a control character")
    if base is not None:
        url = _joined(base, url)
    if (match := _URL.fullmatch(quote(url, safe=_PRINTABLE))) is None:
        raise _refused("it is not an https:// URL with a plain host name and no user")
    scheme, host = match["scheme"].lower(), _host(match["host"].lower())
    port = int(match["port"] or _PORTS[scheme])
    if not host or not 0 < port < 65536:
        raise _refused("its host or port is not in the usual form")
    target = match["target"] if match["target"].startswith("/") else f"/{match['target']}"
    found = Destination(scheme, host, port, target, is_listed(host, port, hosts))
    if found.literal is not None and (reason := prohibited(found.literal, listed=found.listed)):
        raise refusal(found, reason)
    if not found.listed and scheme != "https":
        raise _refused("this host may be fetched from by https only", host)
    if not found.listed and found.literal is None and ("." not in host or host.endswith(".localhost")):
        raise _refused("the name belongs to an internal network", host)
    return found


def refusal(destination: Destination, reason: str) -> ProxyError:
    """The error for a destination with a prohibited address. It has the host, never the rest of the URL."""
    return _refused(f"its address is {reason}", destination.host)


def is_listed(host: str, port: int, hosts: Collection[str]) -> bool:
    """Whether fetch_hosts lists this host: by name or by `*.suffix`, for every port or for this one."""
    names = [_authority(host, None)]
    if not _is_literal(host):
        labels = host.split(".")
        names += [f"*.{'.'.join(labels[at:])}" for at in range(1, len(labels))]
    return any(name in hosts or f"{name}:{port}" in hosts for name in names)


def prohibited(address: str, *, listed: bool = False) -> str | None:
    """The reason why an IP address must not be dialled; None where it is public, or internal and its host `listed`.

    A NAT64 address (RFC 6052) is checked by the IPv4 address inside it: a network without IPv4 reaches every public
    host through one.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        return "not an IP address"
    if isinstance(parsed, IPv6Address) and parsed in _NAT64:
        parsed = IPv4Address(parsed.packed[-4:])
    for network, reason in _SPECIAL.items():
        if parsed in network:
            return reason
    for network in _INTERNAL:
        if parsed in network:
            return None if listed else "internal"
    outside = isinstance(parsed, IPv6Address) and (parsed.scope_id is not None or parsed not in _GLOBAL)
    return "outside the public Internet" if outside else None


def _refused(reason: str, host: str = "") -> ProxyError:
    which = f"The image URL at {host}" if host else "An image URL"
    return ProxyError(
        Failure.DESTINATION_IP_PROHIBITED,
        f"{which} must not be fetched: {reason}. Images are fetched by https from public addresses; the setting "
        "fetch_hosts lists further hosts.",
    )


def _joined(base: Destination, location: str) -> str:
    try:
        return urljoin(f"{base.scheme}://{_authority(base.host, base.port)}{base.target}", location)
    except ValueError:  # a broken IPv6 address
        raise _refused("a redirect's Location is not a URL") from None


def _host(written: str) -> str:
    """The host of a URL without brackets, an address in its shortest form; "" for neither address nor name."""
    try:
        return str(IPv6Address(written[1:-1]) if written.startswith("[") else IPv4Address(written))
    except ValueError:
        return written if _NAME.fullmatch(written) else ""


def _authority(host: str, port: int | None) -> str:
    shown = f"[{host}]" if ":" in host else host
    return shown if port is None else f"{shown}:{port}"


def _is_literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _networks(text: str) -> list[IPv4Network | IPv6Network]:
    return [ip_network(word) for word in text.split()]


_PORTS: Final = {"http": 80, "https": 443}
_UNSAFE: Final = re.compile(r"[\x00-\x20\x7f-\xa0\ud800-\udfff\\]")
_PRINTABLE: Final = "".join(map(chr, range(0x21, 0x7F)))
_URL: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(:(?P<port>[0-9]{0,5}))?"
    r"(?P<target>([/?][^#]*)?)(#.*)?",
    re.IGNORECASE,
)
_NAME: Final = re.compile(rf"(?=.{{1,253}}$){HOST_NAME}")

_SPECIAL: Final = {
    network: reason
    for reason, networks in {
        "link-local, or a cloud's metadata service": "168.63.129.16/32 100.100.100.200/32 169.254.0.0/16 192.0.0.0/24 "
        "fe80::/10 fec0::/10 fd00:ec2::/32 fd20:ce::254/128",
        "unspecified, multicast, broadcast or reserved": "0.0.0.0/8 224.0.0.0/4 240.0.0.0/4 ::/128 ff00::/8",
        "for documentation, tests or anycast services": "192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 "
        "192.88.99.0/24 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 "
        "100::/64 100:0:0:1::/64 2001:db8::/32 3fff::/20 2620:4f:8000::/48 5f00::/16",
        "another address, through a tunnel or translation": "64:ff9b:1::/48 2001::/23 2002::/16 "
        "::ffff:0:0/96 ::ffff:0:0:0/96",
    }.items()
    for network in _networks(networks)
}
"""Networks that hosts of fetch_hosts must not be in either. 169.254.0.0/16 is link-local, and 192.0.0.0/24 has Oracle's
service; 2001::/23 is Teredo, ORCHID, benchmarking and AMT."""

_INTERNAL: Final = _networks("10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 172.16.0.0/12 192.168.0.0/16 ::1/128 fc00::/7")
"""RFC 1918, RFC 6598, loopback, RFC 4193: an operator's own CDN or ComfyUI may be there."""

_GLOBAL: Final = IPv6Network("2000::/3")
_NAT64: Final = IPv6Network("64:ff9b::/96")
