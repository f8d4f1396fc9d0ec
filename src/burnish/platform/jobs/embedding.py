"""A component as the composition root holds it: an app, and what runs beside it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import FastAPI


async def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Component:
    """One component of this process. ``start`` and ``stop`` run loops of its own, where it has any."""

    component_type: str
    app: FastAPI
    start: Callable[[], Awaitable[None]] = _nothing
    stop: Callable[[], Awaitable[None]] = _nothing
    alive: Callable[[], bool] = lambda: True
    drain: Callable[[], Awaitable[list[str]]] | None = None
    """Ends gracefully what would outlive the process (Ctrl-C); returns what it did, in words."""
