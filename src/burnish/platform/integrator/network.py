"""Which addresses a registered endpoint may have, and a resolver that gives no others.

An endpoint's name is resolved by :class:`CheckedResolver` as a connection is made, and the addresses that passed are
the ones that are connected to: a name that leads elsewhere a moment later gains nothing.
"""

import asyncio
import errno
import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from functools import lru_cache
from urllib.parse import urlsplit

from burnish.core.errors import Forbidden, InvalidRequest, Unavailable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Networks = Callable[[], Sequence[str]]
"""Returns the networks that are allowed at the moment."""

_METADATA = (
    ipaddress.ip_network("169.254.0.0/16"),
    ipaddress.ip_network("fe80::/10"),
    ipaddress.ip_network("fd00:ec2::/32"),
    ipaddress.ip_network("fd20:ce::254/128"),
    ipaddress.ip_network("100.100.100.200/32"),
    ipaddress.ip_network("168.63.129.16/32"),
)
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
_NUMBERS = re.compile(r"(0x[0-9a-f]*|[0-9]+)(\.(0x[0-9a-f]*|[0-9]+))*\.?", re.IGNORECASE)


class AddressForbidden(OSError):
    """A name leads to addresses that may not be called; the connection is not made."""


class CheckedResolver:
    """Resolves names for a client's connections; gives only addresses that are allowed."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks

    async def resolve(self, host: str, port: int) -> list[str]:
        """Return the allowed addresses of a name.

        Raises:
            OSError: it cannot be resolved, or leads where nothing may be sent.
        """
        try:
            addresses = allowed(await _addresses(host, port, socket.AF_UNSPEC), self._networks(), host)
        except Forbidden as error:
            raise AddressForbidden(errno.EACCES, error.message) from error
        return [str(one) for one in addresses]


async def check_endpoint(url: str, where: str, networks: Sequence[str]) -> list[Address]:
    """Check the form of an endpoint and every address that its name resolves to; return those that may be called.

    Raises:
        Forbidden: it leads to an address that may not be called.
        InvalidRequest: it is no plain http(s) URL.
        Unavailable: its name cannot be resolved at the moment.
    """
    host, port = host_of(url, where)
    try:
        found = await _addresses(host, port, socket.AF_UNSPEC)
    except (OSError, UnicodeError) as error:
        raise Unavailable(f"{where}: {host} cannot be resolved", where=where, hint="check the name") from error
    return allowed(found, networks, where)


def check_same_host(health_endpoint: str, api_endpoint: str) -> None:
    """Check that an instance's health is asked where its calls go, and nowhere else that can be reached from here.

    Raises:
        InvalidRequest: the two name different hosts; their ports may differ.
    """
    if _named(health_endpoint) != _named(api_endpoint):
        raise InvalidRequest(
            f"health_endpoint names another host than api_endpoint: {_named(health_endpoint)}", where="health_endpoint",
            hint="write the same host in both; port and path may differ",
        )  # fmt: skip


def _named(url: str) -> str:
    """Return the host as it is written in an endpoint."""
    found = re.match(r"\w+://(\[[^\]]*\]|[^/:?#]*)", url)
    return "" if found is None else found[1].lower()


def check_literal(url: str, networks: Sequence[str]) -> None:
    """Check an endpoint that names an address itself; such a one is never resolved.

    Raises:
        Forbidden: the address may not be called.
        InvalidRequest: it is no plain http(s) URL.
    """
    host, _ = host_of(url, "api_endpoint")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return
    allowed([address], networks, "api_endpoint")


def allowed(addresses: Sequence[Address], networks: Sequence[str], where: str) -> list[Address]:
    """Return the addresses that lie in the networks.

    Raises:
        Forbidden: one is a metadata address or no single host's, or none lies in the networks.
    """
    for address in addresses:
        plain = _plain(address)
        if any(plain in network for network in _METADATA) or plain.is_multicast or plain.is_unspecified:
            raise Forbidden(f"{where} leads to {address}, which may not be called", where=where)
    permitted = _parsed(tuple(networks))
    kept = [one for one in addresses if any(_plain(one) in network for network in permitted)]
    if addresses and not kept:
        raise Forbidden(
            f"{where} leads to {addresses[0]}, which lies in none of the allowed networks", where=where,
            hint="an administrator can add its network to integrator.allowed_networks",
        )  # fmt: skip
    return kept


def is_refusal(error: BaseException) -> bool:
    """Tell whether an error means that nothing listens there."""
    return isinstance(error.__cause__, ConnectionRefusedError)


def is_forbidden(error: BaseException) -> bool:
    """Tell whether an error means that the address may not be called."""
    return isinstance(error.__cause__, AddressForbidden)


async def listens(addresses: Sequence[Address], port: int, seconds: float) -> bool:
    """Tell whether a connection can be made to one of these (checked) addresses."""
    for address in addresses:
        try:
            async with asyncio.timeout(seconds):
                _, writer = await asyncio.open_connection(str(address), port)
        except (OSError, TimeoutError):
            continue
        writer.close()
        return True
    return False


def host_of(url: str, where: str) -> tuple[str, int]:
    """Return host and port of an endpoint.

    Raises:
        InvalidRequest: it is no plain http(s) URL.
        Forbidden: it writes an address in a way that hides it.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidRequest(f"{where} is no URL: {error}", where=where) from error
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.password:
        raise InvalidRequest(
            f"{where} must be an http or https URL without a user", where=where, hint="for example http://10.0.0.7:8001"
        )
    if _NUMBERS.fullmatch(host) and not _is_address(host):
        raise Forbidden(
            f"{where} writes an address in an unusual way: {host}", where=where, hint="write it as 10.0.0.7"
        )
    return host, port or (443 if parts.scheme == "https" else 80)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _addresses(host: str, port: int, family: int) -> list[Address]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
    plain = (ipaddress.ip_address(str(address[0]).partition("%")[0]) for *_, address in found)
    return list(dict.fromkeys(plain))


def _plain(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address stands for, if it does."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
    if inner is None and (address in _TRANSLATED or (int(address) >> 32 == 0 and int(address) > 1)):
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return inner or address


@lru_cache(maxsize=16)
def _parsed(networks: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(one, strict=False) for one in networks)
