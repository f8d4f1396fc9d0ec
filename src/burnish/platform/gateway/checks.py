"""What is checked before a request goes anywhere: whom it names as its host, where it comes from, how large it is."""

import ipaddress
from collections.abc import Mapping
from urllib.parse import unquote_plus, urlsplit

from burnish.core.errors import BurnishError, Forbidden, MalformedRequest, TooLarge
from burnish.core.settings import Settings
from burnish.infra.asgi import Message, Receive

BODY_BYTES = 16 << 20
"""Limit of a body that is read as a whole: everything but an upload."""


class Misdirected(BurnishError):
    """The request names a host that this server is not (a DNS rebinding, or a proxy that keeps the name)."""

    code = "misdirected"
    status = 421


def is_loopback(host: str | None) -> bool:
    """Tell whether a host name can only mean this machine."""
    if not host:
        return False
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_origin(headers: Mapping[str, str]) -> None:
    """While authentication is off: only this machine's own programs and pages may ask.

    Raises:
        Misdirected: the Host is not this machine (DNS rebinding).
        Forbidden: the Origin is not (a request that another site's page makes).
    """
    host = headers.get("host", "")
    if not is_loopback(_hostname(f"//{host}")):
        raise Misdirected(
            f"this server answers to localhost only, not to {host[:200]!r}",
            where="Host",
            hint="use http://127.0.0.1 or http://localhost; from elsewhere use an SSH tunnel",
        )
    origin = headers.get("origin")
    if origin is not None and not is_loopback(_hostname(origin)):
        raise Forbidden(
            f"requests from pages of {origin[:200]!r} are refused while authentication is off",
            where="Origin",
            hint="ask from a program, or from a page of this machine",
        )


def check_text(path: str, query: bytes) -> None:
    """Refuse a URL with a NUL in it: no name has one, and PostgreSQL keeps none.

    Raises:
        MalformedRequest: names the part of the URL.
    """
    for place, text in (("path", path), ("query", unquote_plus(query.decode("latin-1")))):
        if "\0" in text:
            raise MalformedRequest(f"there is a NUL (%00) in the {place} of the URL", where=place, hint="leave it out")


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def body_limit(path: str, headers: Mapping[str, str], to_component: bool, settings: Settings) -> int:
    """Return how many bytes the body may have: an upload's limit for what a component streams, else 16 MiB."""
    is_json = headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"
    streamed = (to_component and not is_json) or path == "/v1/files"
    return settings.upload_max_bytes if streamed else BODY_BYTES


class LimitedBody:
    """A request's body that ends with an error when it grows beyond its limit."""

    def __init__(self, receive: Receive, headers: Mapping[str, str], limit: int) -> None:
        self._receive = receive
        self._left = self._limit = limit
        self.error: TooLarge | None = None
        self.gone = False
        """Whether the client hung up."""
        length = headers.get("content-length")
        if length is not None:
            if not length.isdecimal():
                raise MalformedRequest(f"the content-length {length[:40]!r} is no number", where="content-length")
            if int(length) > limit:
                raise self._too_large()

    async def __call__(self) -> Message:
        """Return the next message.

        Raises:
            TooLarge: the body has more bytes than allowed.
        """
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone = True
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise self._too_large()
        return message

    def _too_large(self) -> TooLarge:
        self.error = TooLarge(
            f"the body is larger than {self._limit} bytes", where="body", hint="send less, or raise the limit"
        )
        return self.error
