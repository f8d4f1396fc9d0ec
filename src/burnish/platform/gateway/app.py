"""The gateway: what every request passes on its way in, and every answer on its way out."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from functools import partial
from typing import Any, Protocol

from burnish.core.configuration import Current, GatewayConfiguration, of_settings
from burnish.core.errors import BurnishError, Forbidden, Unauthenticated, Unavailable
from burnish.core.settings import Settings
from burnish.infra import signals
from burnish.infra.asgi import ASGIApp, Receive, Send
from burnish.infra.logging import bind, bind_only, bind_trace
from burnish.platform.gateway import cors
from burnish.platform.gateway.admission import PROBES, Admission, Stopping, priority_of
from burnish.platform.gateway.checks import (
    LimitedBody,
    Pace,
    body_of,
    check_once,
    check_origin,
    check_text,
    is_upload,
    patience_of,
)
from burnish.platform.gateway.exchange import (
    HUNG_UP,
    Exchange,
    component_route,
    internal,
    openai_route,
    platform_route,
)
from burnish.platform.gateway.limits import Limiter, MemoryLimiter, Verdict
from burnish.platform.gateway.proxies import address_of
from burnish.platform.gateway.rates import Rates, headers_of, refusal
from burnish.platform.gateway.timeouts import Watchdog
from burnish.platform.identity import ANONYMOUS, LOCAL, Principal
from burnish.platform.identity.permission import SAFE_METHODS, authorize, is_open, permission_relayed
from burnish.platform.integrator import Integrator
from burnish.platform.integrator.relay import ClientGone, relay

log = logging.getLogger(__name__)

_in_progress = signals.Level(signals.REQUESTS_IN_PROGRESS)


class Authenticates(Protocol):
    """Finds out who calls."""

    async def authenticate(
        self, headers: Mapping[str, str], *, method: str, unknown: Callable[[], Awaitable[None]] | None = None
    ) -> Principal:
        """Return who shows the credential in these headers (names in lower case).

        Before one is looked up of which this process knows nothing, ``unknown`` is awaited; it may refuse.

        Raises:
            BurnishError: no credential, or one that is not good, or not good for this.
        """


class NotesRelayed(Protocol):
    """Keeps a record of what third parties are asked to change."""

    async def note(self, caller: Principal, component_type: str, route: str, path: str) -> None:
        """Note a request that is about to be passed on.

        Raises:
            BurnishError: it cannot be noted, and is not to be passed on.
        """


class Gateway:
    """The outermost ASGI app.

    Args:
        platform_app: the platform's own routes, and its lifespan.
        openai: what is under ``/v1``.
        integrator: the way to components.
        settings: how the process is set up.
        authenticator: with authentication on, who finds out who calls; None lets nobody in.
        configuration: limits and timeouts, asked for at every request.
        limits: where buckets are kept; in this process by default.
        pace: how slowly a body may come.
        relayed: where changes are noted that a third party is asked for; None: nowhere.
    """

    def __init__(
        self, platform_app: ASGIApp, openai: ASGIApp, integrator: Integrator, settings: Settings, *,
        authenticator: Authenticates | None = None, configuration: Current | None = None,
        limits: Limiter | None = None, pace: Pace | None = None, relayed: NotesRelayed | None = None,
    ) -> None:  # fmt: skip
        self._platform = platform_app
        self._openai = openai
        self._integrator = integrator
        self._open = settings.auth == "off"
        self._authenticator = authenticator
        self._configuration = configuration or of_settings(settings)
        self._rates = Rates(limits or MemoryLimiter(), self._configuration)
        self._admission = Admission(self._configuration)
        self._pace = pace or Pace()
        self._relayed = relayed

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request; the lifespan is the platform app's."""
        if scope["type"] == "lifespan":
            await self._platform(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000, "reason": "there are no websockets here"})
        else:
            await self._answer(Exchange(scope, send), receive)

    def drain(self) -> None:
        """Let no new request in from now on: 503, and the connection is closed."""
        self._admission.stop()

    async def drained(self, seconds: float) -> bool:
        """Wait until nothing is in flight, but no longer than ``seconds``; tell whether that is so."""
        return await self._admission.drained(seconds)

    async def _answer(self, exchange: Exchange, receive: Receive) -> None:
        _in_progress.value += 1
        bind_only(trace_id=exchange.trace, request_id=exchange.request_id)
        if exchange.continued:
            bind_trace(*exchange.passed_on)
        try:
            await self._guarded(exchange, receive)
        finally:
            _in_progress.value -= 1
            exchange.count()

    async def _guarded(self, exchange: Exchange, receive: Receive) -> None:
        """Take the request through, and answer for whatever goes wrong."""
        try:
            await self._through(exchange, receive)
        except ClientGone:
            exchange.status = exchange.status or HUNG_UP
        except BurnishError as error:
            if isinstance(error, Stopping):
                exchange.added.append((b"connection", b"close"))
            await exchange.fail(error)
        except Exception as error:
            if exchange.body is not None and exchange.body.gone:
                exchange.status = exchange.status or HUNG_UP
                return
            await exchange.crash(error)
        body_error = exchange.body.error if exchange.body is not None else None
        if exchange.withheld or body_error is not None:
            await exchange.fail(body_error or internal())

    async def _through(self, exchange: Exchange, receive: Receive) -> None:
        gateway = self._configuration().gateway
        exchange.trusted_proxies = gateway.trusted_proxies
        check_text(exchange.path, exchange.scope.get("query_string", b""))
        if len(exchange.headers) != len(exchange.scope["headers"]):
            check_once(exchange.scope["headers"])
        if self._open:
            check_origin(exchange.headers)
        if gateway.cors_origins:
            if cors.is_preflight(exchange.method, exchange.headers):
                exchange.route = "preflight"
                await exchange.answer(204, cors.preflight(exchange.headers, gateway.cors_origins))
                return
            exchange.added += cors.allowance(exchange.headers, gateway.cors_origins)
        caller = exchange.caller = await self._known(exchange)
        bind(project_id=caller.project_id)
        await self._within_limits(exchange, caller)
        component = None if exchange.is_openai else self._integrator.route_of(exchange.path)
        upload = is_upload(exchange.path, exchange.headers, component is not None)
        registers = partial(caller.may, "component:register")
        priority = priority_of(exchange.method, exchange.path, exchange.headers, upload=upload, registers=registers)
        anonymous = caller is ANONYMOUS
        if anonymous and priority != "control":
            priority = "anonymous"
        exchange.priority = priority
        who = None if self._open else _address(exchange) if anonymous else caller.subject
        await self._admission.enter(priority, who)
        try:
            control = priority == "control"
            exchange.body = body_of(
                receive, exchange.headers, gateway, upload=upload, anonymous=anonymous, control=control
            )
            exchange.response_limit = gateway.max_response_bytes
            await self._in_time(exchange, caller, exchange.body, gateway, component, upload)
        finally:
            self._admission.leave(priority, who)

    async def _known(self, exchange: Exchange) -> Principal:
        """Return who asks. Whoever is not known is counted by where it comes from."""
        try:
            return await self._authenticated(exchange)
        except Unavailable:
            raise
        except BurnishError:
            if not exchange.strange and exchange.path not in PROBES:
                self._hold_to(await self._rates.check_address(_address(exchange)), exchange)
            raise

    async def _count_stranger(self, exchange: Exchange) -> None:
        """Count a credential before it is looked up: guesses take the time of whoever shows a new one that is good."""
        if exchange.path not in PROBES:
            exchange.strange = True
            self._hold_to(await self._rates.check_stranger(_address(exchange)), exchange)

    async def _authenticated(self, exchange: Exchange) -> Principal:
        if self._open:
            return LOCAL
        headers = exchange.headers
        if is_open(exchange.path, exchange.method) and "authorization" not in headers:
            return ANONYMOUS
        if self._authenticator is None:
            raise Unauthenticated("authentication is on, and this request carries no credential that is known here")
        unknown = partial(self._count_stranger, exchange)
        return await self._authenticator.authenticate(headers, method=exchange.method, unknown=unknown)

    async def _within_limits(self, exchange: Exchange, caller: Principal) -> None:
        if exchange.path in PROBES and is_open(exchange.path, exchange.method):
            return  # whoever asks: a caller that has used its limit up must not look like a server that is down
        if caller is not ANONYMOUS:
            verdict = await self._rates.check(caller, exchange.path)
        else:
            verdict = await self._rates.check_address(_address(exchange))
        self._hold_to(verdict, exchange)

    @staticmethod
    def _hold_to(verdict: Verdict | None, exchange: Exchange) -> None:
        if verdict is None:
            return
        exchange.added += headers_of(verdict)
        if not verdict.allowed:
            exchange.route = "limited"
            raise refusal(verdict)

    async def _in_time(
        self, exchange: Exchange, caller: Principal, body: LimitedBody, gateway: GatewayConfiguration,
        component: str | None, upload: bool,
    ) -> None:  # fmt: skip
        """Have it answered, and ended when it no longer moves."""
        waits = patience_of(exchange.headers)
        lateness = _Lateness(exchange, at_once=component is None and not exchange.is_openai)
        pace = self._pace_of(caller, gateway)
        look_again = partial(self._look_again, exchange, caller, lateness)
        watchdog = Watchdog(exchange, gateway, pace, waits, lateness.call, upload=upload, look_again=look_again)
        try:
            await self._route(exchange, caller, body, component, None if waits is None else time.time() + waits)
        except asyncio.CancelledError:
            if lateness.error is None or not lateness.cancelled:
                raise
            lateness.task.uncancel()
            raise lateness.error from None
        finally:
            watchdog.stop()
            if lateness.looking is not None:
                lateness.looking.cancel()
            if lateness.answering is not None:
                await lateness.answering

    def _look_again(self, exchange: Exchange, caller: Principal, lateness: "_Lateness") -> None:
        """See whether whoever gets an answer that goes on may still have it."""
        if self._authenticator is not None and caller not in (ANONYMOUS, LOCAL) and lateness.looking is None:
            looking = self._still_known(exchange, caller, lateness)
            lateness.looking = asyncio.create_task(looking, name="look-again")

    async def _still_known(self, exchange: Exchange, caller: Principal, lateness: "_Lateness") -> None:
        assert self._authenticator is not None, "only then somebody is looked at again"
        error: BurnishError | None = None
        try:
            now = await self._authenticator.authenticate(exchange.headers, method="GET")
        except Unavailable:
            pass  # whoever was let in goes on: that the database is away says nothing of them
        except BurnishError as refused:
            error = refused
        else:
            if not caller.permissions() <= now.permissions():
                error = Forbidden("what you may do has changed since this answer began", hint="ask for it again")
        lateness.looking = None
        if error is not None and not exchange.ended:
            lateness.call(error)

    def _pace_of(self, caller: Principal, gateway: GatewayConfiguration) -> Pace:
        if caller is not ANONYMOUS:
            return self._pace
        seconds = min(gateway.anonymous.body_seconds, self._pace.silence)
        return Pace(seconds, min(seconds, self._pace.grace), self._pace.rate)

    async def _route(
        self, exchange: Exchange, caller: Principal, body: LimitedBody, component: str | None, deadline: float | None
    ) -> None:
        if exchange.is_openai:
            exchange.route = openai_route(exchange.path)
            await self._openai(exchange.inner_scope(outward=True, deadline=deadline), body, exchange.send)
        elif component is not None:
            exchange.route = component_route(exchange.path)
            if (needed := permission_relayed(component, exchange.method)) is not None:
                authorize(caller, needed)
                if self._relayed is not None and exchange.method not in SAFE_METHODS:
                    said = f"{exchange.method} {exchange.route}"
                    await self._relayed.note(caller, component, said, exchange.path)
            send = partial(self._integrator.send, component, principal=caller)
            await relay(send, exchange.inner_scope(outward=True, deadline=deadline), body, exchange.send)
        else:
            scope = exchange.inner_scope(outward=False, deadline=deadline)
            await self._platform(scope, body, exchange.send)
            exchange.route = platform_route(scope)


def _address(exchange: Exchange) -> str:
    return address_of(exchange.scope.get("client"), exchange.headers, exchange.trusted_proxies)


class _Lateness:
    """What happens when a request no longer moves.

    What a component does for it is cancelled. A handler of the platform's own, which may be inside a transaction, is
    not: its client is answered, and what it still says is dropped.
    """

    def __init__(self, exchange: Exchange, *, at_once: bool) -> None:
        task = asyncio.current_task()
        assert task is not None, "a request is answered in a task"
        self.task: asyncio.Task[Any] = task
        self.error: BurnishError | None = None
        self.cancelled = False
        self.answering: asyncio.Task[None] | None = None
        self.looking: asyncio.Task[None] | None = None
        """Whether the caller may still have the answer."""
        self._exchange = exchange
        self._at_once = at_once

    def call(self, error: BurnishError) -> None:
        """End the request with an error."""
        self.error = error
        reading = self._exchange.body is not None and self._exchange.body.pending
        if self._at_once and not self._exchange.status and not reading:
            self._exchange.superseded = True
            self.answering = asyncio.create_task(self._exchange.fail(error), name="late")
        else:
            self.cancelled = True
            self.task.cancel()
