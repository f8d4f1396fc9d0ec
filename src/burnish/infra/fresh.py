"""What was found not long ago, for whoever asks again soon: anybody may ask, and looking costs something."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Fresh(Generic[_T]):
    """What a look finds, at most ``seconds`` old; of many who ask at once, one has it taken.

    A look that fails tells everybody who waits for it, and is taken anew for whoever asks next.
    """

    def __init__(self, look: Callable[[], Awaitable[_T]], seconds: float, name: str) -> None:
        """``name``: of the look's task."""
        self._look = look
        self._seconds = seconds
        self._name = name
        self._found: tuple[_T, float] | None = None
        self._looking: asyncio.Task[_T] | None = None

    async def get(self) -> _T:
        """Return what was found."""
        if self._found is not None and time.monotonic() < self._found[1]:
            return self._found[0]
        if self._looking is None:
            self._looking = asyncio.create_task(self._take(), name=self._name)
        return await asyncio.shield(self._looking)  # whoever goes away does not end it for the others

    async def _take(self) -> _T:
        try:
            found = await self._look()
            self._found = found, time.monotonic() + self._seconds
            return found
        finally:
            self._looking = None
