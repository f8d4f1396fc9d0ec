"""Readiness: named checks, each of which says in words what is wrong, or nothing."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from burnish.core.errors import BurnishError

CHECK_SECONDS = 2.0
"""A check that takes longer counts as failed: readiness must answer soon, above all when something hangs."""


FRESH_SECONDS = 1.0
"""Whoever asks again this soon gets the same answer: anybody may ask, and each check costs something."""


@dataclass(frozen=True)
class Check:
    """One thing that must hold before requests are worth sending here."""

    name: str
    problem: Callable[[], Awaitable[str | None]]
    """Returns what is wrong and how to mend it, or None."""


class Readiness:
    """The problems of this process as they were not long ago; of many who ask at once, one has the checks run."""

    def __init__(self, checks: Sequence[Check]) -> None:
        self._checks = checks
        self._found: dict[str, str | None] = {}
        self._until = 0.0
        self._running: asyncio.Task[dict[str, str | None]] | None = None

    async def problems(self) -> dict[str, str | None]:
        """Return each check's problem, None where there is none; at most :data:`FRESH_SECONDS` old."""
        if time.monotonic() < self._until:
            return self._found
        if self._running is None:
            self._running = asyncio.create_task(self._look(), name="readiness")
        return await asyncio.shield(self._running)  # whoever goes away does not end it for the others

    async def _look(self) -> dict[str, str | None]:
        try:
            self._found = await problems(self._checks)
            self._until = time.monotonic() + FRESH_SECONDS
            return self._found
        finally:
            self._running = None


async def problems(checks: Sequence[Check]) -> dict[str, str | None]:
    """Run all checks side by side and return each one's problem, None where there is none."""
    found = await asyncio.gather(*(_run(check) for check in checks))
    return dict(zip((check.name for check in checks), found, strict=True))


async def _run(check: Check) -> str | None:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return await check.problem()
    except TimeoutError:
        return f"no answer within {CHECK_SECONDS:g} s"
    except BurnishError as error:
        return f"{error.message}{f'; {error.hint}' if error.hint else ''}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
