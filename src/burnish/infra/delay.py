"""Calls after a delay that is the same for all of them and that few live to see, at the price of one timer."""

import asyncio
from collections import OrderedDict
from typing import Protocol


class Waiting(Protocol):
    """What is told once its delay is over."""

    def due(self) -> None:
        """The delay is over."""


class Delay:
    """Tells whoever waits, in their order, that a delay is over; of one event loop at a time.

    A timer of the event loop costs more than everything else that a request needs it for, and nearly every one is
    cancelled. A call comes up to a quarter of the delay late.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: OrderedDict[Waiting, float] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def start(self, one: Waiting) -> None:
        """Call ``one.due()`` once the delay is over."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._timer = loop, None
            self._waiting.clear()
        due = loop.time() + self.seconds
        self._waiting[one] = due
        if self._timer is None:
            self._timer = loop.call_at(due, self._look)

    def stop(self, one: Waiting) -> None:
        """Do not call it, if it still waits."""
        self._waiting.pop(one, None)

    def _look(self) -> None:
        assert self._loop is not None, "whoever waits began on a loop"
        now = self._loop.time()
        over = []
        for one, due in self._waiting.items():
            if due > now:
                break
            over.append(one)
        for one in over:
            del self._waiting[one]
        first = next(iter(self._waiting.values()), None)
        self._timer = None if first is None else self._loop.call_at(max(first, now + self.seconds / 4), self._look)
        for one in over:
            one.due()
