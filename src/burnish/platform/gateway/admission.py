"""Who gets in when there is more to do than one process can: interactive before batch, and at the end nobody new."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Literal

from burnish.core.configuration import Current
from burnish.core.errors import MalformedRequest, RateLimited, Unavailable
from burnish.infra import signals

Priority = Literal["control", "interactive", "batch", "anonymous"]
"""``control`` keeps the platform itself going (health, metrics, heartbeats): it is always let in. ``anonymous`` is whoever
shows no credential: they have places of their own, and take nobody else's."""

PRIORITY_HEADER = "burnish-priority"
WAIT_SECONDS = 0.5
"""How long an interactive request waits for a place when all are taken: a burst passes in that, an overload does not."""
_RETRY_SECONDS = 1.0

PROBES = frozenset({"/health", "/platform/health", "/platform/ready", "/platform/metrics"})
_COMPONENTS = "/platform/components/"

_PRIORITIES: tuple[Priority, ...] = ("control", "interactive", "batch", "anonymous")
_levels = {priority: signals.Level(signals.IN_FLIGHT.labels(priority)) for priority in _PRIORITIES}
"""Of the whole process."""


class Overloaded(Unavailable):
    """The process answers as many requests as it may."""

    code = "overloaded"


class Stopping(Unavailable):
    """The process is about to end; another one, or this one after its restart, takes the request."""

    code = "stopping"


def priority_of(
    method: str, path: str, headers: Mapping[str, str], *, upload: bool, registers: Callable[[], bool] = lambda: True
) -> Priority:  # fmt: skip
    """Return the class of a request: what ``Burnish-Priority`` says, else batch for uploads and for runs of workflows.

    Args:
        method: the request's.
        path: the request's.
        headers: the request's.
        upload: whether its body is one.
        registers: tells whether the caller is one whose registrations and heartbeats are taken.

    Raises:
        MalformedRequest: the header says something else.
    """
    if path in PROBES or (path.startswith(_COMPONENTS) and method not in {"GET", "HEAD"} and registers()):
        return "control"
    given = headers.get(PRIORITY_HEADER)
    if given is None:
        return "batch" if upload or (path == "/platform/workflows/run" and method == "POST") else "interactive"
    if given == "batch":
        return "batch"
    if given == "interactive":
        return "interactive"
    raise MalformedRequest(
        f"the priority {given[:40]!r} is not known", where="Burnish-Priority", hint="it is `batch` or `interactive`"
    )


class Admission:
    """Counts the requests in flight, and refuses what is too much."""

    def __init__(self, configuration: Current, *, wait: float = WAIT_SECONDS) -> None:
        self._configuration = configuration
        self._wait = wait
        self._in_flight = dict.fromkeys(_PRIORITIES, 0)
        self._held: dict[str, int] = {}
        """Places, waiting ones included, by who has them."""
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._stopping = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        """Requests that were let in and are being answered."""
        return sum(self._in_flight.values())

    async def enter(self, priority: Priority, who: str | None = None) -> None:
        """Let a request in, interactive ones after a short wait if need be. Each has its :meth:`leave`.

        Args:
            priority: its class.
            who: whoever asks (a subject; without a credential, an address): nobody takes every place. None: not counted.

        Raises:
            Stopping: nobody new is let in.
            RateLimited: whoever asks has as many places as one may.
            Overloaded: there is no place for it.
        """
        if self._stopping:
            signals.SHED.labels(priority).inc()
            raise Stopping("this server is stopping", hint="send it again: another server takes it", retry_after=1)
        if who is not None and priority != "control":
            self._hold(priority, who)
        if self._has_place(priority):
            self._take(priority)
            return
        try:
            await self._wait_for_place(priority)
        except BaseException:
            self._release(priority, who)
            raise

    def leave(self, priority: Priority, who: str | None = None) -> None:
        """Give the place back; whoever waits longest has it."""
        self._release(priority, who)
        self._in_flight[priority] -= 1
        _levels[priority].value -= 1
        while self._waiting and self._taken < self._configuration().gateway.max_in_flight:
            waiter = self._waiting.popleft()
            if not waiter.done():
                self._take("interactive")
                waiter.set_result(None)
        if not any(self._in_flight.values()):
            self._idle.set()

    def _hold(self, priority: Priority, who: str) -> None:
        gateway = self._configuration().gateway
        if priority == "anonymous":
            setting, places = "gateway.anonymous.address_share", gateway.anonymous.max_in_flight
            share = gateway.anonymous.address_share
        else:
            setting, places, share = "gateway.caller_share", gateway.max_in_flight, gateway.caller_share
        held, most = self._held.get(who, 0), max(1, int(places * share))
        if held >= most:
            signals.LIMITED.labels(setting).inc()
            raise RateLimited(
                f"{held} requests of yours are being answered here, as many as one caller may have at once", where=setting,
                hint="wait for some of them to end; the setting says which share of a server's places one caller may take",
                retry_after=_RETRY_SECONDS,
            )  # fmt: skip
        self._held[who] = held + 1

    def _release(self, priority: Priority, who: str | None) -> None:
        if who is None or priority == "control":
            return
        held = self._held[who] - 1
        if held:
            self._held[who] = held
        else:
            del self._held[who]

    def _take(self, priority: Priority) -> None:
        self._in_flight[priority] += 1
        _levels[priority].value += 1
        self._idle.clear()

    @property
    def _taken(self) -> int:
        return self._in_flight["interactive"] + self._in_flight["batch"]

    def stop(self) -> None:
        """Let nobody new in from now on."""
        self._stopping = True

    async def drained(self, seconds: float) -> bool:
        """Wait until nothing is in flight, but no longer than ``seconds``; tell whether that is so."""
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _has_place(self, priority: Priority) -> bool:
        if priority == "control":
            return True
        gateway = self._configuration().gateway
        if priority == "anonymous":
            return self._in_flight["anonymous"] < gateway.anonymous.max_in_flight
        if self._waiting or self._taken >= gateway.max_in_flight:
            return False
        share = max(1, int(gateway.max_in_flight * gateway.batch_share))
        return priority == "interactive" or self._in_flight["batch"] < share

    async def _wait_for_place(self, priority: Priority) -> None:
        """Wait in line; :meth:`leave` takes the place on behalf of whom it wakes."""
        limit = self._configuration().gateway.max_in_flight
        if priority != "interactive" or len(self._waiting) >= max(1, limit // 4):
            raise self._overloaded(priority)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(self._wait):
                await asyncio.shield(waiter)
        except (TimeoutError, asyncio.CancelledError) as error:
            if waiter.done():
                self.leave(priority)
            else:
                self._waiting.remove(waiter)
                waiter.cancel()
            if isinstance(error, asyncio.CancelledError):
                raise
            raise self._overloaded(priority) from None

    def _overloaded(self, priority: Priority) -> Overloaded:
        signals.SHED.labels(priority).inc()
        if priority == "anonymous":
            return Overloaded(
                f"this server answers {self._in_flight['anonymous']} requests without a credential, as many as it may",
                where="gateway.anonymous.max_in_flight", hint="send it again later, or show a key", retry_after=_RETRY_SECONDS,
            )  # fmt: skip
        return Overloaded(
            f"this server answers {self._taken} requests and has no place for one more of priority {priority}",
            where="gateway.max_in_flight",
            hint="send it again later; batch requests are refused first (gateway.batch_share)",
            retry_after=_RETRY_SECONDS,
        )
