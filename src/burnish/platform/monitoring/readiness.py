"""Readiness: named checks, each of which says in words what is wrong, or nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from burnish.core.errors import BurnishError

CHECK_SECONDS = 2.0
"""A check that takes longer counts as failed: readiness must answer soon, above all when something hangs."""


@dataclass(frozen=True)
class Check:
    """One thing that must hold before requests are worth sending here."""

    name: str
    problem: Callable[[], Awaitable[str | None]]
    """Returns what is wrong and how to mend it, or None."""


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
