"""Where a webhook may go: the form of its URL, and every address that its host name has."""

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import httpx2

from jobs.webhooks import DEFAULT_PORTS, LOWEST_FREE_PORT
from worker.errors import AddressRefused

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolver = Callable[..., Sequence[tuple[Any, ...]]]

GLOBAL_V6 = IPv6Network("2000::/3")
NAT64 = IPv6Network("64:ff9b::/96")
COMPATIBLE = IPv6Network("::/96")
# Not reachable as public hosts, although `ipaddress` calls (parts of) them global.
NOT_PUBLIC: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "100.64.0.0/10",
        "192.0.0.0/24",
        "192.88.99.0/24",
        "2001::/23",
        "2001:db8::/32",
        "3fff::/20",
    )
)


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that passed the rules and the addresses, all checked, that its host had at that moment."""

    url: str
    host: str
    port: int
    addresses: tuple[str, ...]


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """CIDRs of the operator's allow-list; raises ``AddressRefused`` naming the one that is no network."""
    try:
        return tuple(ip_network(text, strict=False) for text in texts)
    except ValueError as error:
        raise AddressRefused(f"webhook_allow_networks: {error}") from None


def is_permitted(address: Address, allowed: Sequence[Network] = ()) -> bool:
    """Whether a webhook may connect to ``address``: public in every sense, or inside an allowed network."""
    if any(address in network for network in allowed if network.version == address.version):
        return True
    if isinstance(address, IPv6Address):
        inner = _embedded(address)
        if inner:
            return all(is_permitted(each, allowed) for each in inner)
        if address not in GLOBAL_V6:
            return False
    if any(address in network for network in NOT_PUBLIC if network.version == address.version):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _embedded(address: IPv6Address) -> tuple[IPv4Address, ...]:
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address.sixtofour is not None:
        return (address.sixtofour,)
    if address.teredo is not None:
        return address.teredo
    if address in NAT64 or (address in COMPATIBLE and int(address) > 1):
        return (IPv4Address(int(address) & 0xFFFFFFFF),)
    return ()


def check_url(url: str, *, allow_http: bool) -> tuple[httpx2.URL, str, int]:
    """The URL with its host in IDNA form and its port; raises ``AddressRefused`` with the rule it breaks."""
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError) as error:
        raise AddressRefused(f"webhook url is not a URL: {error}") from None
    if parsed.scheme != "https" and not (allow_http and parsed.scheme == "http"):
        raise AddressRefused(f"webhook url must use https, not {parsed.scheme or 'nothing'!r}")
    if parsed.userinfo:
        raise AddressRefused("webhook url must not carry a user name or password")
    host = parsed.raw_host.decode("ascii").strip("[]")
    if not host:
        raise AddressRefused("webhook url names no host")
    port = parsed.port or DEFAULT_PORTS[parsed.scheme]
    if port != DEFAULT_PORTS[parsed.scheme] and port < LOWEST_FREE_PORT:
        raise AddressRefused(f"webhook url uses port {port}; use 443 or one from {LOWEST_FREE_PORT} on")
    return parsed, host, port


def locate(
    url: str,
    *,
    allow_http: bool,
    allowed: Sequence[Network] = (),
    resolver: Resolver = socket.getaddrinfo,
) -> Target:
    """Resolves the host of ``url`` once and refuses it if even one of its addresses is not permitted.

    Raises ``AddressRefused``; a name without an address is refused with the same class.
    """
    parsed, host, port = check_url(url, allow_http=allow_http)
    try:
        answers = resolver(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise AddressRefused(f"webhook host {host!r} has no address: {error}") from None
    addresses = tuple(dict.fromkeys(str(answer[4][0]) for answer in answers))
    if not addresses:
        raise AddressRefused(f"webhook host {host!r} has no address")
    for text in addresses:
        if not is_permitted(ip_address(text), allowed):
            raise AddressRefused(
                f"webhook host {host!r} resolves to {text}, which is not a public address; "
                "an operator can allow its network in MERGERY_WEBHOOK_ALLOW_NETWORKS"
            )
    return Target(str(parsed.copy_with(fragment=None)), host, port, addresses)
