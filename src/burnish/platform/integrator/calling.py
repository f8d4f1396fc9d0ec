"""Sends one request to an instance of a type: chooses it, learns from what happens, and goes to another if it may."""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from prometheus_client import Counter, Histogram

from burnish.core.configuration import IntegratorConfiguration
from burnish.core.errors import BurnishError, DeadlineExceeded, Unavailable, UpstreamFailed
from burnish.core.protocol import CALLER_HEADER
from burnish.core.states import InstanceState
from burnish.infra import signals
from burnish.infra.http import Request, Response, Transport, Unreachable
from burnish.platform.identity import CallerTokens, Principal
from burnish.platform.integrator.balancing import OfType
from burnish.platform.integrator.directory import Directory
from burnish.platform.integrator.repeating import MOST_TRIES, Asked, Body, class_of, is_repeatable
from burnish.platform.integrator.routing import Routing, Try
from burnish.platform.integrator.schemas import Instance
from burnish.platform.integrator.ways import Way, Ways

_PATIENCE_FACTOR = 4.0
"""An instance is given up for another after so many times its latency, and no sooner than a late health check."""
_LOOK_SECONDS = 0.1
_FAILED = frozenset({500, 502, 503, 504})
_NONE = OfType()


class GivenUp(Unavailable):
    """An instance did not answer in the time after which another is asked."""


@dataclass
class Calls:
    """The calls of one process to components."""

    directory: Callable[[], Directory]
    own: Callable[[], Mapping[str, Transport]]
    """The instances inside this process."""
    routing: Routing
    ways: Ways
    tokens: CallerTokens
    settings: Callable[[], IntegratorConfiguration]

    def send(
        self, component_type: str, request: Request, principal: Principal, body: Body, prefer: str | None
    ) -> AbstractAsyncContextManager[Response]:
        """Send a request whose content is ``body``, signed for whom it goes to, and give the answer as it comes.

        Raises:
            Unavailable: no instance of the type can take it now.
            DeadlineExceeded: the request's deadline passed.
        """
        return _Call(self, component_type, request, principal, body, prefer)

    async def begin(
        self, component_type: str, request: Request, principal: Principal, body: Body, prefer: str | None
    ) -> "_Begun":
        """Send a request, to others too while that is allowed, until its answer begins."""
        call, repeatable = class_of(request), is_repeatable(request)
        asked = Asked()
        failure: BurnishError | None = None
        while True:
            made = self._begin(component_type, asked.barred, call, prefer, failure)
            asked.begin(made.instance.component_id)
            way: Way | None = None
            try:
                transport, way = self._way(made.instance)
                patience = self._patience(made, asked, request, body) if repeatable else None
                sending = transport.send(self._signed(request, principal, made.instance))
                if patience is None:
                    response = await sending.__aenter__()
                else:
                    response = await _answer(sending, patience, partial(self._is_worth_it, made, asked), made.instance)
            except (Unreachable, GivenUp, DeadlineExceeded) as error:
                self._learn(made, error)
                goes_on = self._goes_on(made, error, asked, body, repeatable=repeatable)
                self._end(made, way)
                if not goes_on:
                    raise
                failure = error
            except BaseException:
                self._end(made, way)
                raise
            else:
                self._note_head(made, response.status)
                return _Begun(made, way, sending, response)

    async def end(self, begun: "_Begun", error: BaseException | None) -> None:
        """Leave an answer, read to its end or not, and note how the call went."""
        went_well = begun.response.status not in _FAILED
        try:
            if error is None:
                await begun.sending.__aexit__(None, None, None)
            else:
                went_well = went_well and not _is_its_fault(error, begun.response)
                await begun.sending.__aexit__(type(error), error, error.__traceback__)
        finally:
            self._note_end(begun.made, went_well=went_well)
            self._end(begun.made, begun.way)

    def _end(self, made: Try, way: Way | None) -> None:
        self.routing.end(made)
        if way is not None:
            self.ways.ended(way)

    def pick(self, component_type: str) -> Instance:
        """Return an instance that can be called.

        Raises:
            Unavailable: there is none.
        """
        of_type = self.directory().by_type.get(component_type, _NONE)
        return self._choose(component_type, of_type, frozenset(), "", None)

    def _begin(
        self, component_type: str, tried: frozenset[str], call: str, prefer: str | None, failure: BurnishError | None
    ) -> Try:
        of_type = self.directory().by_type.get(component_type, _NONE)
        try:
            instance = self._choose(component_type, of_type, tried, call, prefer)
        except Unavailable:
            if failure is not None:
                raise failure from None
            raise
        return self.routing.begin(instance, of_type, call, time.monotonic())

    def _choose(
        self, component_type: str, of_type: OfType, tried: frozenset[str], call: str, prefer: str | None
    ) -> Instance:
        found = self.routing.choose(of_type, self.own().keys(), tried, call, prefer, time.monotonic())
        if found is not None:
            return found
        usable = {one.component_id for one in (*of_type.healthy, *of_type.degraded)}
        states = [
            f"{one.component_id} does not answer" if one.component_id in usable else _why(one) for one in of_type.known
        ]
        said = ", ".join(states[:5]) + (f" and {len(states) - 5} more" if len(states) > 5 else "")
        raise Unavailable(
            f"no instance of {component_type} can be called: {said or 'none is registered'}", where=component_type,
            hint="start a server with this component, or look at GET /platform/components", retry_after=2,
        )  # fmt: skip

    def _signed(self, request: Request, principal: Principal, instance: Instance) -> Request:
        """Return the request with its caller, as this instance and no other believes it."""
        token = self.tokens.sign(principal, instance.component_type, instance=instance.signed_for)
        headers = {**request.headers, CALLER_HEADER: token}
        return Request(request.method, request.path, headers, request.body, request.deadline)

    def _way(self, instance: Instance) -> tuple[Transport, Way | None]:
        if (own := self.own().get(instance.component_id)) is not None:
            return own, None
        way = self.ways.way(instance.component_id, instance.api_endpoint)
        way.calls += 1
        return way.transport, way

    def _patience(self, made: Try, asked: Asked, request: Request, body: Body) -> float | None:
        """Return how long to wait until another is asked; None: to the end, nobody else ever could be."""
        if not isinstance(body.content, bytes) or asked.tries >= MOST_TRIES or len(made.of_type.known) < 2:
            return None
        known = made.record.latencies.get(made.call)
        usual = 0.0 if known is None else _PATIENCE_FACTOR * known.value(made.began)
        patience = max(self.settings().probe_timeout_seconds * asked.patience_factor, usual)
        if request.deadline is None:
            return patience
        return min(patience, max(0.0, request.deadline - time.time()) / 2)

    def _is_worth_it(self, made: Try, asked: Asked) -> bool:
        component_type = made.instance.component_type
        others = asked.others(self._usable(component_type))
        return self.routing.is_worth_a_retry(component_type, others, time.monotonic())

    def _usable(self, component_type: str) -> frozenset[str]:
        """Return who may be called now: more, or fewer, than as the call began."""
        of_type = self.directory().by_type.get(component_type, _NONE)
        return frozenset(one.component_id for one in (*of_type.healthy, *of_type.degraded))

    def _learn(self, made: Try, error: BurnishError) -> None:
        now = time.monotonic()
        if isinstance(error, Unreachable) and not error.sent:
            self.routing.refused(made, now)
            _outcome(made.instance.component_type, "unreachable").inc()
            return
        if isinstance(error, GivenUp):
            self.routing.given_up(made, now)
        else:
            self.routing.stayed_silent(made, now)
        if isinstance(error, Unreachable):
            self.routing.failed(made, now)
        _outcome(made.instance.component_type, "unreachable" if isinstance(error, Unreachable) else "late").inc()

    def _goes_on(self, made: Try, error: BurnishError, asked: Asked, body: Body, *, repeatable: bool) -> bool:
        """Tell whether another instance is asked, and take the retry from the budget."""
        unsent = isinstance(error, Unreachable) and not error.sent
        if isinstance(error, DeadlineExceeded) or not body.is_fresh or not (unsent or repeatable):
            return False
        if isinstance(error, GivenUp):
            asked.give_up()
        usable = self._usable(made.instance.component_type)
        if not asked.others(usable):
            return False
        asked.go_on(usable)
        component_type = made.instance.component_type
        if not self.routing.may_retry(component_type, time.monotonic()):
            signals.COMPONENT_RETRIES.labels(component_type, "over_budget").inc()
            return False
        reason = "not_sent" if unsent else "given_up" if isinstance(error, GivenUp) else "broken"
        signals.COMPONENT_RETRIES.labels(component_type, reason).inc()
        return True

    def _note_head(self, made: Try, status: int) -> None:
        now, component_type = time.monotonic(), made.instance.component_type
        self.routing.answered(made, now)
        _seconds(component_type).observe(now - made.began)
        _outcome(component_type, f"{status // 100}xx").inc()

    def _note_end(self, made: Try, *, went_well: bool) -> None:
        """Note how a call went once its body is over: one that breaks off or never ends is no success."""
        if went_well:
            self.routing.succeeded(made, time.monotonic())
        else:
            self.routing.failed(made, time.monotonic())


@dataclass(slots=True)
class _Begun:
    """A call whose answer has begun."""

    made: Try
    way: Way | None
    sending: AbstractAsyncContextManager[Response]
    response: Response


class _Call(AbstractAsyncContextManager[Response]):
    """One call as a context: a class, since a generator costs every request three times as much."""

    __slots__ = ("_begun", "_calls", "_what")

    def __init__(
        self, calls: Calls, component_type: str, request: Request, principal: Principal, body: Body, prefer: str | None
    ) -> None:
        self._calls = calls
        self._what = (component_type, request, principal, body, prefer)

    async def __aenter__(self) -> Response:
        self._begun = await self._calls.begin(*self._what)
        return self._begun.response

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._calls.end(self._begun, error)


async def _answer(
    sending: AbstractAsyncContextManager[Response], patience: float, is_worth_it: Callable[[], bool], instance: Instance
) -> Response:
    """Wait until the answer begins; each ``patience`` seconds, see whether it is worth it to ask another instead.

    Raises:
        GivenUp: not in time; the request was broken off.
    """
    try:
        async with asyncio.timeout(None) as limit:
            loop = asyncio.get_running_loop()
            waking = loop.call_later(patience, lambda: look())

            def look() -> None:
                nonlocal waking
                if is_worth_it():
                    limit.reschedule(loop.time())
                else:
                    waking = loop.call_later(max(patience, _LOOK_SECONDS), look)

            try:
                return await sending.__aenter__()
            finally:
                waking.cancel()
    except TimeoutError as error:
        raise GivenUp(
            f"{instance.component_id} has not answered within {patience:.1f} s", where=instance.component_id,
            hint="send the request again", retry_after=1,
        ) from error  # fmt: skip


def _is_its_fault(error: BaseException, response: Response) -> bool:
    """Tell whether a body that was not read to its end was broken off, or went on beyond every limit unannounced.

    Whoever asked may have hung up, and what is announced and too long is for whoever set the limit.
    """
    if isinstance(error, UpstreamFailed):
        return "content-length" not in response.headers
    return isinstance(error, Unreachable)


def _why(instance: Instance) -> str:
    if instance.description is None and instance.status in (InstanceState.HEALTHY, InstanceState.DEGRADED):
        return f"{instance.component_id} has not described itself"
    return f"{instance.component_id} is {instance.status}" + (f" ({instance.problem})" if instance.problem else "")


_outcomes: dict[tuple[str, str], Counter] = {}
_histograms: dict[str, Histogram] = {}


def _outcome(component_type: str, outcome: str) -> Counter:
    """Return the labelled counter; looking a child up costs more than counting."""
    found = _outcomes.get((component_type, outcome))
    if found is None:
        found = _outcomes[(component_type, outcome)] = signals.COMPONENT_REQUESTS.labels(component_type, outcome)
    return found


def _seconds(component_type: str) -> Histogram:
    found = _histograms.get(component_type)
    if found is None:
        found = _histograms[component_type] = signals.COMPONENT_SECONDS.labels(component_type)
    return found
