"""One look at a request after the other, which sees now and then whether its body, its answer or its stream still moves."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from burnish.core.configuration import GatewayConfiguration
from burnish.core.errors import BurnishError, DeadlineExceeded
from burnish.infra import signals
from burnish.infra.delay import Delay
from burnish.platform.gateway.checks import LimitedBody, Pace

_LOOK_SECONDS = 5.0
_looks = Delay(_LOOK_SECONDS)
"""The first look at most requests, for which few are there."""


class Progress(Protocol):
    """What is looked at."""

    began: float
    sent_at: float
    """Of the last bytes of the answer, on the monotonic clock; 0 until it began."""
    body: LimitedBody | None


class Watchdog:
    """Ends a request that does not move: ``too_late(error)`` is called, once.

    Until the answer begins a request has ``request_timeout_seconds`` (or what its client waits for, if that is less);
    an upload has them from its end on, and until then must come at :class:`Pace`. In an answer no silence is longer
    than ``idle_timeout_seconds``, whoever causes it: an upstream that writes nothing or a client that reads nothing.
    """

    def __init__(
        self, progress: Progress, gateway: GatewayConfiguration, pace: Pace, waits: float | None,
        too_late: Callable[[BurnishError], None], *, upload: bool, look_again: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._progress = progress
        self._pace = pace
        self._idle = gateway.idle_timeout_seconds
        self._begin = gateway.request_timeout_seconds if waits is None else min(waits, gateway.request_timeout_seconds)
        self._setting = "gateway.request_timeout_seconds" if self._begin != waits else "X-Request-Timeout"
        self._too_late = too_late
        self._look_again = look_again
        self._body_ended = not upload
        self._since = progress.began
        self._received = 0
        self._look = min(_LOOK_SECONDS, pace.silence / 2, self._idle / 2)
        self._timer: asyncio.TimerHandle | None = None
        first = min(self._begin, self._look)
        if first == _looks.seconds < self._begin:
            _looks.start(self)
        else:
            self._timer = asyncio.get_running_loop().call_later(first, self.due)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is None:
            _looks.stop(self)
        else:
            self._timer.cancel()

    def due(self) -> None:
        """Look."""
        now = time.monotonic()
        error = self._verdict(now)
        if error is not None:
            self._too_late(error)
            return
        pause = self._look
        if self._progress.sent_at:
            self._look_again()
        else:
            pause = max(0.001, min(pause, self._since + self._begin - now)) if self._body_ended else pause
        self._timer = asyncio.get_running_loop().call_later(pause, self.due)

    def _verdict(self, now: float) -> BurnishError | None:
        progress = self._progress
        if progress.sent_at:
            if now - progress.sent_at < self._idle:
                return None
            signals.OVERDUE.labels("idle").inc()
            return DeadlineExceeded(
                f"nothing moved in the answer for {self._idle:g} s", where="gateway.idle_timeout_seconds",
                hint="ask again; the setting says how long a silence may be",
            )  # fmt: skip
        body = progress.body
        if body is not None and (slow := body.too_slow(self._pace)) is not None:
            signals.OVERDUE.labels("body").inc()
            return slow
        if not self._body_ended:
            if body is not None and body.received != self._received:
                self._received, self._since = body.received, now
            if body is None or not body.pending:
                self._body_ended, self._since = True, now
            # An upload that nobody takes on stands still like an answer.
            stands = now - self._since > self._idle
            return self._nothing_began(self._idle, "gateway.idle_timeout_seconds") if stands else None
        if now - self._since < self._begin:
            return None
        return self._nothing_began(self._begin, self._setting)

    @staticmethod
    def _nothing_began(seconds: float, setting: str) -> DeadlineExceeded:
        signals.OVERDUE.labels("begin").inc()
        return DeadlineExceeded(
            f"no answer began within {seconds:g} s", where=setting,
            hint="ask for less at once, or stream the answer; the time is set there",
        )  # fmt: skip
