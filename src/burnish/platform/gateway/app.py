"""The gateway: what every request passes on its way in, and every answer on its way out."""

import logging
import re
import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson

from burnish.core.errors import BurnishError, Unauthenticated
from burnish.core.ids import new_id
from burnish.core.openai import envelope
from burnish.core.protocol import CALLER_HEADER, TRACE_HEADER
from burnish.core.settings import Settings
from burnish.infra import signals
from burnish.infra.asgi import ASGIApp, Message, Receive, Send
from burnish.infra.logging import bound, new_trace_id, trace_id_of, traceparent_of
from burnish.infra.problems import problem_body
from burnish.platform.gateway.checks import LimitedBody, body_limit, check_origin, check_text
from burnish.platform.identity import LOCAL, CallerTokens, Principal
from burnish.platform.identity.principal import SCOPE_KEY
from burnish.platform.integrator import Integrator
from burnish.platform.integrator.relay import ClientGone, relay

log = logging.getLogger(__name__)
access = logging.getLogger("burnish.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_HUNG_UP = 499
"""The status under which an answer is counted that nobody waited for."""


class Gateway:
    """The outermost ASGI app."""

    def __init__(
        self, platform_app: ASGIApp, openai: ASGIApp, integrator: Integrator, tokens: CallerTokens, settings: Settings
    ) -> None:
        self._platform = platform_app
        self._openai = openai
        self._integrator = integrator
        self._tokens = tokens
        self._settings = settings

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request; the lifespan is the platform app's."""
        if scope["type"] == "lifespan":
            await self._platform(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000, "reason": "there are no websockets here"})
        else:
            await self._answer(_Exchange.of(scope, send), receive)

    async def _answer(self, exchange: "_Exchange", receive: Receive) -> None:
        signals.REQUESTS_IN_PROGRESS.inc()
        with bound(trace_id=exchange.trace, request_id=exchange.request_id):
            try:
                await self._guarded(exchange, receive)
            finally:
                signals.REQUESTS_IN_PROGRESS.dec()
                exchange.count()

    async def _guarded(self, exchange: "_Exchange", receive: Receive) -> None:
        """Route, and answer for whatever goes wrong."""
        body: LimitedBody | None = None
        try:
            principal = self._admit(exchange)
            component = self._integrator.route_of(exchange.path)
            limit = body_limit(exchange.path, exchange.headers, component is not None, self._settings)
            body = LimitedBody(receive, exchange.headers, limit)
            exchange.body = body
            with bound(project_id=principal.project_id):
                await self._route(exchange, body, principal, component)
        except ClientGone:
            exchange.status = exchange.status or _HUNG_UP
        except BurnishError as error:
            await exchange.fail(error)
        except Exception as error:
            if body is not None and body.gone:
                exchange.status = exchange.status or _HUNG_UP
                return
            await exchange.crash(error)
        if exchange.withheld or (body is not None and body.error is not None):
            await exchange.fail((body.error if body is not None else None) or _internal())

    def _admit(self, exchange: "_Exchange") -> Principal:
        check_text(exchange.path, exchange.scope.get("query_string", b""))
        if self._settings.auth == "off":
            check_origin(exchange.headers)
            return LOCAL
        raise Unauthenticated("authentication is on, and this request carries no credential that is known here")

    async def _route(
        self, exchange: "_Exchange", body: LimitedBody, principal: Principal, component: str | None
    ) -> None:
        scope = exchange.inner_scope(principal)
        if exchange.is_openai:
            exchange.route = _openai_route(exchange.path)
            await self._openai(scope, body, exchange.send)
        elif component is not None:
            exchange.route = _component_route(exchange.path)
            await relay(partial(self._integrator.send, component, principal=principal), scope, body, exchange.send)
        else:
            await self._platform(scope, body, exchange.send)
            exchange.route = _platform_route(scope)


@dataclass
class _Exchange:
    """One request and what is known of its answer."""

    scope: MutableMapping[str, Any]
    client: Send
    headers: dict[str, str]
    request_id: str
    trace: str
    began: float = field(default_factory=time.monotonic)
    route: str = "unmatched"
    status: int = 0
    """0 until the answer began."""
    sent_bytes: int = 0
    ended: bool = False
    withheld: bool = False
    """The app's own answer is replaced: it was that of a crash, or the body was too large."""
    body: LimitedBody | None = None
    allow: bytes | None = None

    @classmethod
    def of(cls, scope: MutableMapping[str, Any], send: Send) -> "_Exchange":
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else new_id("req")
        trace = trace_id_of(headers.get(TRACE_HEADER)) or new_trace_id()
        return cls(scope, send, headers, request_id, trace)

    @property
    def path(self) -> str:
        return str(self.scope["path"])

    @property
    def method(self) -> str:
        return str(self.scope["method"])

    @property
    def is_openai(self) -> bool:
        return self.path == "/v1" or self.path.startswith("/v1/")

    def inner_scope(self, principal: Principal) -> MutableMapping[str, Any]:
        """Return the scope that an app gets: with the principal and the trace, HEAD as GET."""
        drop = {CALLER_HEADER.encode(), TRACE_HEADER.encode(), b"x-request-id"}
        headers = [(name, value) for name, value in self.scope["headers"] if name.lower() not in drop]
        headers += [
            (TRACE_HEADER.encode(), traceparent_of(self.trace).encode()),
            (b"x-request-id", self.request_id.encode()),
        ]
        method = "GET" if self.method == "HEAD" else self.method
        return {**self.scope, "method": method, "headers": headers, SCOPE_KEY: principal}

    async def send(self, message: Message) -> None:
        """Pass the app's messages on, with our headers; answers of crashes are kept back."""
        if message["type"] == "http.response.start":
            await self._start(message)
        elif message["type"] == "http.response.body" and not self.withheld:
            await self._pass_body(message)

    async def _start(self, message: Message) -> None:
        status, headers = int(message["status"]), list(message.get("headers", ()))
        kind = next((value for name, value in headers if name.lower() == b"content-type"), b"")
        if (self.body is not None and self.body.error is not None) or (
            status == 500 and kind.startswith(b"text/plain")
        ):
            self.withheld = True
            return
        if self.method == "OPTIONS" and status == 405:
            allow = next((value for name, value in headers if name.lower() == b"allow"), b"")
            status, headers, self.withheld = 204, [(b"allow", allow + b", OPTIONS")], False
            self.allow = allow
        self.status = status
        headers += [(b"x-request-id", self.request_id.encode()), (b"x-content-type-options", b"nosniff")]
        await self.client({"type": "http.response.start", "status": status, "headers": headers})

    async def _pass_body(self, message: Message) -> None:
        more = bool(message.get("more_body", False))
        body = b"" if self.method == "HEAD" or self.allow is not None else message.get("body", b"")
        self.sent_bytes += len(body)
        self.ended = not more
        if body or not more:
            await self.client({"type": "http.response.body", "body": body, "more_body": more})

    async def fail(self, error: BurnishError) -> None:
        """Answer with the error; if an answer has begun, raise it, so that the server breaks the connection."""
        if self.status:
            if self.ended:
                return
            log.warning("the answer to %s %s broke off: %s", self.method, self.path, error.message)
            raise _BrokenOff(error.message) from error
        self.withheld, self.body = False, None
        status, headers, document = problem_body(error, self.trace)
        if self.is_openai:
            document = dict(envelope(error))
            headers["content-type"] = "application/json"
        data = orjson.dumps(document)
        headers["content-length"] = str(len(data))
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})
        await self.send({"type": "http.response.body", "body": data})

    async def crash(self, error: Exception) -> None:
        """Answer for a fault of ours."""
        log.error("%s %s failed", self.method, self.path, exc_info=error)
        await self.fail(_internal())

    def count(self) -> None:
        """Measure and log what came of it."""
        seconds = time.monotonic() - self.began
        status = str(self.status or _HUNG_UP)
        method = self.method if self.method in _METHODS else "OTHER"
        signals.REQUESTS.labels(method, self.route, status).inc()
        signals.REQUEST_SECONDS.labels(method, self.route).observe(seconds)
        access.info(
            "%s %s %s", self.method, self.path, status,
            extra={"route": self.route, "seconds": round(seconds, 4), "bytes": self.sent_bytes},
        )  # fmt: skip


class _BrokenOff(Exception):
    """An answer ended before its end; raised to the server, which closes the connection."""


def _internal() -> BurnishError:
    return BurnishError(
        "something went wrong here that should not", hint="the server's log has more under this trace id"
    )


def _openai_route(path: str) -> str:
    if path.startswith("/v1/models/"):
        return "/v1/models/{model}"
    return path if path in {"/v1/models", "/v1/chat/completions", "/v1/completions"} else "unmatched"


def _component_route(path: str) -> str:
    """Bounded: what follows a component's collection is one label."""
    parts = path.strip("/").split("/")
    return "/" + "/".join(parts[:2]) + ("/{path}" if len(parts) > 2 else "")


def _platform_route(scope: MutableMapping[str, Any]) -> str:
    route = scope.get("route")
    return str(getattr(route, "path_format", None) or getattr(route, "path", None) or "unmatched")
