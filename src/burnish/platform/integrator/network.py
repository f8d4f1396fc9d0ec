"""Which addresses a registered endpoint may have: no cloud metadata, nothing that is no single host."""

import asyncio
import ipaddress
import socket
from urllib.parse import urlsplit

from burnish.core.errors import InvalidRequest

_METADATA = (ipaddress.ip_network("169.254.0.0/16"), ipaddress.ip_network("fe80::/10"), ipaddress.ip_network("fd00:ec2::/32"))  # fmt: skip


async def check_endpoint(url: str, where: str) -> None:
    """Check the form of an endpoint and every address that its name resolves to.

    Raises:
        InvalidRequest: it is no plain http(s) URL, cannot be resolved, or leads to a forbidden address.
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
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port or 80, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InvalidRequest(f"{where}: {host} cannot be resolved", where=where, hint="check the name") from error
    for *_, address in found:
        ip = ipaddress.ip_address(str(address[0]).partition("%")[0])
        if (
            ip.is_multicast
            or ip.is_unspecified
            or any(ip in network for network in _METADATA if network.version == ip.version)
        ):
            raise InvalidRequest(f"{where} leads to {ip}, which may not be called", where=where)
