"""What is checked before a request goes anywhere: whom it names as its host, where it comes from, how large it is."""

import ipaddress
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_plus, urlsplit

from burnish.core.configuration import GatewayConfiguration
from burnish.core.errors import BurnishError, Forbidden, MalformedRequest, TooLarge
from burnish.infra.asgi import Message, Receive

TIMEOUT_HEADER = "x-request-timeout"
"""A client's own: seconds until it no longer waits for the answer."""
_LONGEST_SECONDS = 86_400.0
CONTROL_BYTES = 1 << 20
"""Of a registration or a heartbeat: they are let in however full the process is."""


class Misdirected(BurnishError):
    """The request names a host that this server is not (a DNS rebinding, or a proxy that keeps the name)."""

    code = "misdirected"
    status = 421


class BodyTooSlow(BurnishError):
    """The request's body came so slowly that it was given up."""

    code = "body_too_slow"
    status = 408


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


_ONCE = (
    "authorization", "burnish-project", "openai-project", "x-csrf-token", "cookie", "origin", "content-length",
    "content-type", "burnish-priority", TIMEOUT_HEADER,
)  # fmt: skip


def check_once(raw: Sequence[tuple[bytes, bytes]]) -> None:
    """Refuse a header twice that decides something: a proxy before us may have looked at the other one.

    Raises:
        MalformedRequest: names the header.
    """
    names = [name.decode("latin-1") for name, _ in raw]
    twice = next((name for name in _ONCE if names.count(name) > 1), None)
    if twice is not None:
        raise MalformedRequest(f"the header {twice} comes twice", where=twice, hint="send it once")


def check_text(path: str, query: bytes) -> None:
    """Refuse a URL with a NUL in it: no name has one, and PostgreSQL keeps none.

    Raises:
        MalformedRequest: names the part of the URL.
    """
    where = "path" if "\0" in path else "query" if b"\0" in query or _nul_in(query) else None
    if where is not None:
        raise MalformedRequest(f"there is a NUL (%00) in the {where} of the URL", where=where, hint="leave it out")


def _nul_in(query: bytes) -> bool:
    return b"%00" in query and "\0" in unquote_plus(query.decode("latin-1"))


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def patience_of(headers: Mapping[str, str]) -> float | None:
    """Return for how many seconds the client waits for its answer, if it says so.

    Raises:
        MalformedRequest: it says something else.
    """
    given = headers.get(TIMEOUT_HEADER)
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _LONGEST_SECONDS:
        raise MalformedRequest(
            f"the timeout {given[:40]!r} is no number of seconds", where="X-Request-Timeout",
            hint=f"give seconds, more than 0 and at most {_LONGEST_SECONDS:.0f}",
        )  # fmt: skip
    return seconds


def is_upload(path: str, headers: Mapping[str, str], to_component: bool) -> bool:
    """Tell whether the body is an upload: streamed to a component, or a file of ``/v1``; not JSON that is read whole."""
    if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        return False
    if path == "/v1/files":
        return True
    return to_component and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json"


@dataclass(frozen=True)
class Pace:
    """How slowly a body may come."""

    silence: float = 30.0
    """Seconds without a byte."""
    grace: float = 30.0
    """Seconds of waiting after which :attr:`rate` holds."""
    rate: float = 1024.0
    """Bytes a second on average, of the time that it was waited for."""


class LimitedBody:
    """A request's body that ends with an error when it grows beyond its limit, and knows how it comes."""

    def __init__(self, receive: Receive, headers: Mapping[str, str], limit: int, setting: str) -> None:
        self._receive = receive
        self._left = self._limit = limit
        self._setting = setting
        self._waiting_since: float | None = None
        self._waited = 0.0
        self.error: BurnishError | None = None
        self.gone = False
        """Whether the client hung up."""
        length = headers.get("content-length")
        self.pending = length not in (None, "0") or "transfer-encoding" in headers
        """Whether more of it is to come."""
        if length is not None:
            if not length.isdecimal():
                raise MalformedRequest(f"the content-length {length[:40]!r} is no number", where="content-length")
            if int(length) > limit:
                raise self._too_large()

    @property
    def received(self) -> int:
        """Bytes so far."""
        return self._limit - self._left

    async def __call__(self) -> Message:
        """Return the next message.

        Raises:
            TooLarge: the body has more bytes than allowed.
        """
        self._waiting_since = began = time.monotonic()
        message = await self._receive()
        self._waited += time.monotonic() - began
        self._waiting_since = None
        if message["type"] == "http.disconnect":
            self.gone = True
            return message
        self.pending = bool(message.get("more_body", False))
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise self._too_large()
        return message

    def too_slow(self, pace: Pace) -> BodyTooSlow | None:
        """Return the error of a body that somebody waits for and that does not come, or hardly."""
        if not self.pending or self._waiting_since is None:
            return None
        waits = time.monotonic() - self._waiting_since
        waited = self._waited + waits
        if waits <= pace.silence and (waited <= pace.grace or self.received >= pace.rate * waited):
            return None
        error = BodyTooSlow(
            f"after {waited:.0f} s {self.received} bytes of the body are here, and more is to come", where="body",
            hint=f"send it faster: no pause of {pace.silence:.0f} s, {pace.rate:.0f} bytes a second on average",
        )  # fmt: skip
        self.error = error
        return error

    def _too_large(self) -> TooLarge:
        error = TooLarge(
            f"the body is larger than {self._limit} bytes", where="body",
            hint=f"send less, or raise the limit: it is set by {self._setting}",
        )  # fmt: skip
        self.error = error
        return error


def body_of(
    receive: Receive, headers: Mapping[str, str], gateway: GatewayConfiguration, *, upload: bool, anonymous: bool,
    control: bool = False,
) -> LimitedBody:  # fmt: skip
    """Return the body with the limit of its kind.

    Raises:
        TooLarge: it says that it is larger.
        MalformedRequest: its length is no number.
    """
    if anonymous:
        limit = min(gateway.anonymous.max_body_bytes, gateway.max_body_bytes)
        return LimitedBody(receive, headers, limit, "gateway.anonymous.max_body_bytes")
    if control:
        limit = min(CONTROL_BYTES, gateway.max_body_bytes)
        return LimitedBody(receive, headers, limit, "the protocol of components")
    if upload:
        return LimitedBody(receive, headers, gateway.max_upload_bytes, "gateway.max_upload_bytes")
    return LimitedBody(receive, headers, gateway.max_body_bytes, "gateway.max_body_bytes")
