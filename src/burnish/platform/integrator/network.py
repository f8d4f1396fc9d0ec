"""Which addresses a registered endpoint may have: no cloud metadata, nothing that is no single host."""

import asyncio
import ipaddress
import socket
from urllib.parse import urlsplit

from burnish.core.errors import Forbidden, InvalidRequest, Unavailable

_METADATA = (ipaddress.ip_network("169.254.0.0/16"), ipaddress.ip_network("fe80::/10"), ipaddress.ip_network("fd00:ec2::/32"))  # fmt: skip


async def check_endpoint(url: str, where: str) -> None:
    """Check the form of an endpoint and every address that its name resolves to.

    Raises:
        Forbidden: it leads to an address that may not be called.
        InvalidRequest: it is no plain http(s) URL.
        Unavailable: its name cannot be resolved at the moment.
    """
    host, port = _host_of(url, where)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Unavailable(f"{where}: {host} cannot be resolved", where=where, hint="check the name") from error
    for *_, address in found:
        ip = ipaddress.ip_address(str(address[0]).partition("%")[0])
        metadata = any(ip in network for network in _METADATA if network.version == ip.version)
        if metadata or ip.is_multicast or ip.is_unspecified:
            raise Forbidden(f"{where} leads to {ip}, which may not be called", where=where)


def _host_of(url: str, where: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidRequest(f"{where} is no URL: {error}", where=where) from error
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.password:
        raise InvalidRequest(
            f"{where} must be an http or https URL without a user", where=where, hint="for example http://10.0.0.7:8001"
        )
    return host, port or (443 if parts.scheme == "https" else 80)
