"""What this process sees of its calls, told to whoever looks after the instances.

An instance to which nothing could be sent is looked at by a health check at once. Of instances that are not well, or
whose calls fail, the counts go into their rows: answered calls keep a slow one from being called dead, failing ones
keep one from being called healthy. Of all others nothing is written.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from burnish.core.configuration import IntegratorConfiguration
from burnish.core.errors import Unavailable
from burnish.core.states import InstanceState
from burnish.infra.database import Database
from burnish.platform.integrator import store
from burnish.platform.integrator.directory import Directory
from burnish.platform.integrator.health import FEW_CALLS
from burnish.platform.integrator.judging import Observed, observe
from burnish.platform.integrator.routing import Routing

log = logging.getLogger(__name__)

_TELL_SECONDS = 2.0
_LOOK_AGAIN_SECONDS = 1.0
_ANSWERED_SECONDS = 5.0
_MOST_SUSPECTS = 100


@dataclass
class Evidence:
    """Collects suspicions and tells them."""

    database: Database
    settings: Callable[[], IntegratorConfiguration]
    process: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    _suspects: set[str] = field(default_factory=set)
    _told: dict[str, float] = field(default_factory=dict)
    _woken: asyncio.Event = field(default_factory=asyncio.Event)

    def suspect(self, component_id: str) -> None:
        """Have an instance looked at soon; once a second at most."""
        now = time.monotonic()
        if now - self._told.get(component_id, -1e9) < _LOOK_AGAIN_SECONDS or len(self._suspects) >= _MOST_SUSPECTS:
            return
        self._suspects.add(component_id)
        self._woken.set()

    async def run(self, directory: Callable[[], Directory], routing: Routing) -> None:
        """Tell, for as long as the process lives: suspicions at once, counts every few seconds."""
        next_count = time.monotonic() + _TELL_SECONDS
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.05, next_count - time.monotonic())):
                    await self._woken.wait()
            self._woken.clear()
            due = time.monotonic() >= next_count
            if due:
                next_count = time.monotonic() + _TELL_SECONDS
            try:
                await self._tell_suspects()
                if due:
                    await self._tell_counts(directory(), routing)
            except Unavailable as error:
                log.warning("what calls showed could not be told: %s", error.message)
            except Exception:
                log.exception("what calls showed could not be told")

    async def _tell_suspects(self) -> None:
        suspects, self._suspects = self._suspects, set()
        if not suspects:
            return
        now = time.monotonic()
        self._told = {key: at for key, at in self._told.items() if now - at < _LOOK_AGAIN_SECONDS}
        self._told.update(dict.fromkeys(suspects, now))
        async with self.database.write() as session:
            await store.suspect(session, sorted(suspects))

    async def _tell_counts(self, directory: Directory, routing: Routing) -> None:
        now, ratio = time.monotonic(), self.settings().ejection_error_ratio
        found: dict[str, Observed] = {}
        for component_id, record in routing.records():
            instance = directory.instances.get(component_id)
            calls, errors = record.outcomes.totals(now)
            if instance is None or not calls:
                continue
            ill = instance.status is not InstanceState.HEALTHY or instance.failures > 0
            if ill or (calls >= FEW_CALLS and errors / calls >= ratio):
                found[component_id] = Observed(calls, errors, now - record.answered_at < _ANSWERED_SECONDS)
        for component_id, observed in sorted(found.items()):
            async with self.database.write() as session:
                await observe(session, component_id, self.process, observed)
