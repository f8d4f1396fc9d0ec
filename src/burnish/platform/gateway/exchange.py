"""One request and what becomes of its answer: names, headers in and out, errors as answers, and its line in the log."""

import logging
import random
import re
import time
from collections.abc import MutableMapping
from functools import lru_cache
from typing import Any

import orjson
from prometheus_client import Counter, Histogram

from burnish.core.errors import BurnishError, UpstreamFailed
from burnish.core.openai import envelope
from burnish.core.protocol import CALLER_HEADER, DEADLINE_HEADER, TRACE_HEADER
from burnish.infra import signals
from burnish.infra.asgi import Message, Send
from burnish.infra.logging import known_secrets, redact, tell, trace_of
from burnish.infra.problems import problem_body
from burnish.platform.gateway.checks import LimitedBody
from burnish.platform.gateway.proxies import over_https
from burnish.platform.identity import Principal
from burnish.platform.identity.principal import SCOPE_KEY
from burnish.platform.integrator.relay import DEADLINE_KEY

log = logging.getLogger(__name__)
access = logging.getLogger("burnish.access")

RawHeaders = list[tuple[bytes, bytes]]

HUNG_UP = 499
"""The status under which an answer is counted that nobody waited for."""
_chance = random.Random()  # noqa: S311 - names of requests, which need not be secret; a system call each would cost more
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")
_LONGEST_PATH = 2000
_CACHED_PATH = 200
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_NEVER_IN = frozenset(
    name.encode() for name in (CALLER_HEADER, DEADLINE_HEADER, TRACE_HEADER, "x-request-id", "forwarded", "x-real-ip")
)
"""Ours, or claims about where a request comes from; whoever sends them, they are not passed on."""
_NEVER_OUT = _NEVER_IN | {b"authorization", b"cookie", b"x-csrf-token", b"proxy-authorization", b"x-request-timeout"}
"""Beyond this process go no credentials: a component gets a signed token in their place."""
_TRACE = TRACE_HEADER.encode()
_NOSNIFF = (b"x-content-type-options", b"nosniff")


class BrokenOff(Exception):
    """An answer ended before its end; raised to the server, which closes the connection."""


class Exchange:
    """One request and what is known of its answer."""

    def __init__(self, scope: MutableMapping[str, Any], client: Send) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.is_openai = self.path.startswith("/v1/") or self.path == "/v1"
        """Whether its errors go into OpenAI's envelope."""
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = self.headers.get("x-request-id")
        self._named = given is not None and _REQUEST_ID.fullmatch(given) is not None
        self.request_id = given if given is not None and self._named else f"req_{_chance.getrandbits(100):025x}"
        """What the client calls it, or we."""
        traced = trace_of(self.headers.get(TRACE_HEADER))
        self.continued = traced is not None
        self.trace, self._flags = traced or (f"{_chance.getrandbits(128):032x}", "01")
        self.began = time.monotonic()
        self.sent_at = 0.0
        self.route = "unmatched"
        self.caller: Principal | None = None
        self.strange = False
        """It shows a credential that had to be looked up, and was counted for that."""
        self.priority = ""
        self.status = 0
        """0 until the answer began."""
        self.sent_bytes = 0
        self.ended = False
        self.withheld = False
        """The app's own answer was none, and waits to be replaced."""
        self.superseded = False
        """An answer of the gateway's own stands in the place of the app's."""
        self.body: LimitedBody | None = None
        self.added: RawHeaders = [(b"x-request-id", self.request_id.encode()), _NOSNIFF]
        """Headers of the answer, whoever gives it."""
        self.response_limit = 0
        self.trusted_proxies: tuple[str, ...] = ()
        self._client = client
        self._allow: bytes | None = None
        self._counts_bytes = False

    @property
    def passed_on(self) -> tuple[str, str | None]:
        """The flags and the ``tracestate`` of its trace, for calls that are made on its behalf."""
        if not self.continued or "tracestate" not in self.headers:
            return self._flags, None
        given = [value.decode("latin-1") for name, value in self.scope["headers"] if name == b"tracestate"]
        return self._flags, ",".join(given)

    def inner_scope(self, *, outward: bool, deadline: float | None) -> MutableMapping[str, Any]:
        """Return the scope that an app gets: with the caller and the trace, HEAD as GET.

        Args:
            outward: it leaves this process, or is relayed as if it did.
            deadline: unix time after which the client does not wait.
        """
        headers = [one for one in self.scope["headers"] if _passes(one[0], outward)]
        if not self.continued and "tracestate" in self.headers:  # it says something of a trace that we do not know
            headers = [one for one in headers if one[0] != b"tracestate"]
        traceparent = f"00-{self.trace}-{_chance.getrandbits(64) or 1:016x}-{self._flags}"
        headers.append((_TRACE, traceparent.encode()))
        headers.append((b"x-request-id", self.request_id.encode()))
        method = "GET" if self.method == "HEAD" else self.method
        scheme = self.scope["scheme"]
        if over_https(scheme, self.scope.get("client"), self.headers, self.trusted_proxies):
            scheme = "https"
        return {
            **self.scope, "method": method, "scheme": scheme, "headers": headers, SCOPE_KEY: self.caller, DEADLINE_KEY: deadline
        }  # fmt: skip

    async def send(self, message: Message) -> None:
        """Pass the app's messages on, with our headers; answers of crashes are kept back."""
        if self.superseded:
            return
        if message["type"] == "http.response.start":
            status, headers = int(message["status"]), list(message.get("headers", ()))
            self.withheld = self._is_none(status, headers)
            if not self.withheld:
                await self._start(status, headers)
        elif message["type"] == "http.response.body" and not self.withheld:
            await self._pass_body(message.get("body", b""), message.get("more_body", False))

    def _is_none(self, status: int, headers: RawHeaders) -> bool:
        """Tell whether an app's answer is none: it is that of a crash, or to a body that was refused meanwhile."""
        if self.body is not None and self.body.error is not None:
            return True
        return status == 500 and _header(headers, b"content-type").startswith(b"text/plain")

    async def _start(self, status: int, headers: RawHeaders) -> None:
        if self.response_limit:
            self._check_length(headers)
        if self.method == "OPTIONS" and status == 405:
            allow = _header(headers, b"allow")
            status, headers = 204, [(b"allow", allow + b", OPTIONS")]
            self._allow = allow
        self.status = status
        self.sent_at = time.monotonic()
        headers += self.added
        await self._client({"type": "http.response.start", "status": status, "headers": headers})

    async def _pass_body(self, body: bytes, more: bool) -> None:
        if self.method == "HEAD" or self._allow is not None:
            body = b""
        self.sent_bytes += len(body)
        if self._counts_bytes and self.sent_bytes > self.response_limit:
            raise self._too_long()
        self.ended = not more
        if body or not more:
            await self._client({"type": "http.response.body", "body": body, "more_body": more})
            self.sent_at = time.monotonic()

    def _check_length(self, headers: RawHeaders) -> None:
        """Hold an answer that is no event stream to its limit, by its length if it tells that, else as it comes."""
        if _header(headers, b"content-type").startswith(b"text/event-stream"):
            return
        length = _header(headers, b"content-length")
        if not length.isdigit():
            self._counts_bytes = True
        elif int(length) > self.response_limit:
            raise self._too_long()

    def _too_long(self) -> UpstreamFailed:
        return UpstreamFailed(
            f"the answer is larger than {self.response_limit} bytes", where="gateway.max_response_bytes",
            hint="ask for less at once, or raise the limit",
        )  # fmt: skip

    async def fail(self, error: BurnishError) -> None:
        """Answer with the error; if an answer has begun, raise it, so that the server breaks the connection."""
        if self.status:
            if self.ended:
                return
            log.warning("the answer to %s %s broke off: %s", self.method, self.path, error.message)
            raise BrokenOff(error.message) from error
        status, headers, document = problem_body(error, self.trace)
        if self.is_openai:
            document = dict(envelope(error))
            headers["content-type"] = "application/json"
        data = orjson.dumps(document)
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        raw.append((b"content-length", b"%d" % len(data)))
        await self.answer(status, raw, data)

    async def answer(self, status: int, headers: RawHeaders, body: bytes = b"") -> None:
        """Give an answer of the gateway's own."""
        self.superseded, self.withheld = True, False
        self.response_limit, self._counts_bytes = 0, False
        await self._start(status, headers)
        await self._pass_body(body, False)

    async def crash(self, error: Exception) -> None:
        """Answer for a fault of ours."""
        log.error("%s %s failed", self.method, self.path, exc_info=error)
        await self.fail(internal())

    def count(self) -> None:
        """Measure and log what came of it. A query string is never logged: it may hold what only the client knows."""
        seconds = time.monotonic() - self.began
        status = self.status or HUNG_UP
        method = self.method if self.method in _METHODS else "OTHER"
        requests, durations = _measures(method, self.route, status)
        requests.inc()
        durations.observe(seconds)
        if not access.isEnabledFor(logging.INFO):
            return
        caller = self.caller
        fields: dict[str, object] = {
            "subject": caller.subject if caller else None, "credential": caller.credential if caller else None,
            "project_id": caller.project_id if caller else None, "method": self.method, "route": self.route,
            "status": status, "seconds": round(seconds, 4), "bytes": self.sent_bytes,
            "bytes_in": self.body.received if self.body is not None else 0, "priority": self.priority,
        }  # fmt: skip
        tell(access, f"{method} {_shown(self.path)} {status}", fields, clean=not (self._named or self.continued))


@lru_cache(1024)
def _passes(name: bytes, outward: bool) -> bool:
    """Tell whether a header of this name goes on to an app, or out of this process. One with `_` may pass for another."""
    never = _NEVER_OUT if outward else _NEVER_IN
    return name not in never and not name.startswith(b"x-forwarded-") and b"_" not in name


def _shown(path: str) -> str:
    """Return a path as the log shows it: what any client writes into the line, so looked through, and cut."""
    if len(path) > _CACHED_PATH:
        found = redact(path[: 2 * _LONGEST_PATH])  # cut behind: half a secret looks like none
        return found if len(found) <= _LONGEST_PATH else f"{found[:_LONGEST_PATH]}..."
    return _redacted(path, known_secrets())


@lru_cache(4096)
def _redacted(path: str, known: int) -> str:
    return redact(path)


_known: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}


def _measures(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    """Return a route's metrics; looking them up by labels each time costs as much as counting."""
    found = _known.get((method, route, status))
    if found is None:
        found = (signals.REQUESTS.labels(method, route, str(status)), signals.REQUEST_SECONDS.labels(method, route))
        _known[method, route, status] = found
    return found


def internal() -> BurnishError:
    """Return the error that stands for a fault of ours: the reason is for the log."""
    return BurnishError(
        "something went wrong here that should not", hint="the server's log has more under this trace id"
    )


def _header(headers: RawHeaders, name: bytes) -> bytes:
    return next((value for found, value in headers if found.lower() == name), b"")


def openai_route(path: str) -> str:
    """Return the label of a path under ``/v1``."""
    if path.startswith("/v1/models/"):
        return "/v1/models/{model}"
    return path if path in {"/v1/models", "/v1/chat/completions", "/v1/completions"} else "unmatched"


def component_route(path: str) -> str:
    """Return the label of a component's path. Bounded: what follows its collection is one label."""
    parts = path.strip("/").split("/")
    return "/" + "/".join(parts[:2]) + ("/{path}" if len(parts) > 2 else "")


def platform_route(scope: MutableMapping[str, Any]) -> str:
    """Return the template that the platform's router found."""
    route = scope.get("route")
    return str(getattr(route, "path_format", None) or getattr(route, "path", None) or "unmatched")
