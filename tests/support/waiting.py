"""Waiting for a condition in asyncio."""

import asyncio
import time
from collections.abc import Callable


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait until it holds: so long, and what a busy machine adds to a few pauses of ten milliseconds."""
    start, longest = time.monotonic(), 0.0
    while not condition():
        paused = time.monotonic()
        await asyncio.sleep(0.01)
        longest = max(longest, time.monotonic() - paused)
        assert time.monotonic() - start < seconds + 4 * longest, f"not within {seconds} s"
