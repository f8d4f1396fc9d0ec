"""Loops in the background of a process: started, seen to be alive, stopped and waited for."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from burnish.core.errors import BurnishError
from burnish.infra.database import Topic

log = logging.getLogger(__name__)

_PAUSE_SECONDS = 0.25
"""After a turn that failed, so that notices which come quickly do not make a busy loop of it."""


class Loop:
    """Work that goes on in the background from :meth:`start` to :meth:`stop`. If it dies of an error, that is logged at once.

    Args:
        work: returns what is to run until it is cancelled.
        name: of its task, and of the loop where something is logged.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._work = work
        self._name = name
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it; one that is alive goes on as it is."""
        if not self.alive:
            self._task = asyncio.create_task(self._work(), name=self._name)
            self._task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Cancel it, and return once it has ended, whatever it ended with."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    @property
    def alive(self) -> bool:
        """Whether it runs (readiness)."""
        return self._task is not None and not self._task.done()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s died: its work is not done until it is started again", self._name, exc_info=error)


class Periodic(Loop):
    """Takes a turn again and again, the first at once. One that fails is logged, and the next comes all the same.

    Expected trouble is a warning without traceback, once for as long as it lasts.

    Args:
        turn: takes one.
        seconds: from the end of a turn to the beginning of the next.
        name: of its task, and of the loop where something is logged.
        topic: a notice of it brings the next turn at once.
    """

    def __init__(
        self, turn: Callable[[], Awaitable[object]], seconds: float, name: str, topic: Topic | None = None
    ) -> None:
        super().__init__(self._turns, name)
        self._turn = turn
        self._seconds = seconds
        self._topic = topic or Topic()
        self._trouble: str | None = None
        self.beats = 0
        """Rises with each turn, whether it failed or not."""

    async def take_turn(self) -> bool:
        """Take a turn now, as the loop does; tell whether it went well."""
        try:
            await self._turn()
        except BurnishError as error:
            level = logging.DEBUG if error.code == self._trouble else logging.WARNING
            log.log(level, "%s: %s", self._name, error.message)
            self._trouble = error.code
            return False
        except Exception:
            log.exception("%s: a turn failed", self._name)
            return False
        else:
            self._trouble = None
            return True
        finally:
            self.beats += 1

    async def _turns(self) -> None:
        while True:
            seen = self._topic.version
            if not await self.take_turn():
                await asyncio.sleep(_PAUSE_SECONDS)
            await self._topic.wait(seen, self._seconds)
