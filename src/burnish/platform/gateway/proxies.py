"""Proxies in front of the gateway: which are believed, and what they say of a request's address and scheme."""

import ipaddress
from collections.abc import Mapping, Sequence
from functools import lru_cache

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def is_believed(host: str, trusted: Sequence[str]) -> bool:
    """Tell whether a peer is a proxy that is believed: one on this machine, or in one of the networks."""
    address = _address(host)
    return address is not None and _is_believed(address, tuple(trusted))


def address_of(client: tuple[str, int] | None, headers: Mapping[str, str], trusted: Sequence[str] = ()) -> str:
    """Return where a request comes from: its peer's address, or the last one that no believed proxy has.

    Each proxy appends whom it had the request from to ``X-Forwarded-For``, so what a client claims stands to the left of
    what is believed. Of an IPv6 address, the /64 network: whoever has one address of it has them all.
    """
    networks = tuple(trusted)
    address = None if client is None else _address(client[0])
    said = headers.get("x-forwarded-for", "")
    while said and address is not None and _is_believed(address, networks):
        said, _, host = said.rpartition(",")
        address = _address(host.strip())
    if address is None:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(address), 64), strict=False))
    return str(address)


def over_https(scheme: str, client: tuple[str, int] | None, headers: Mapping[str, str], trusted: Sequence[str]) -> bool:
    """Tell whether the client spoke https: to us, or to a believed proxy that says so."""
    if scheme == "https":
        return True
    said = headers.get("x-forwarded-proto")
    if said is None or client is None or not is_believed(client[0], trusted):
        return False
    return said.partition(",")[0].strip().lower() == "https"


def _address(host: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def _is_believed(address: _Address, trusted: tuple[str, ...]) -> bool:
    return address.is_loopback or any(address in network for network in _networks(trusted))


@lru_cache(maxsize=8)
def _networks(trusted: tuple[str, ...]) -> tuple[_Network, ...]:
    return tuple(ipaddress.ip_network(one) for one in trusted)
