"""Says of queued jobs that nothing is there to take them: no scheduler looks at what its process does not offer."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from burnish.core.errors import Unavailable
from burnish.core.states import InstanceState
from burnish.infra.database import Database
from burnish.platform.integrator.schemas import Instance
from burnish.platform.jobs import store

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_MISSING_SECONDS = 3.0
"""For so long nothing is said: its instance may be registering anew."""
_OFFERED_SECONDS = 20.0
"""A process that said this lately that it takes jobs of a type says itself why they wait; it does so every 10 s."""
_SHOWN = 3
_CALLABLE = frozenset({InstanceState.HEALTHY, InstanceState.DEGRADED})
_GONE = frozenset({InstanceState.LOST, InstanceState.DRAINING})


class UnofferedJobs:
    """Looks at the queue for jobs of types that no healthy instance offers. One a process; several write the same."""

    def __init__(self, database: Database, instances: Callable[[], Mapping[str, Instance]]) -> None:
        self._database = database
        self._instances = instances
        self._missing_since: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start looking."""
        self._task = asyncio.create_task(self._run(), name="unoffered-jobs")

    async def stop(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    @property
    def alive(self) -> bool:
        """Whether it looks (readiness)."""
        return self._task is not None and not self._task.done()

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
            except Unavailable as error:
                log.warning("unoffered jobs: %s", error.message)
            except Exception:
                log.exception("it could not be looked for jobs that nobody offers")
            await asyncio.sleep(_LOOK_SECONDS)

    async def look(self) -> None:
        """Write on each queued job of a type that no healthy instance offers why it waits; its scheduler's word ends that."""
        now = time.monotonic()
        async with self._database.read() as session:
            queued = await store.queued_types(session)
            known = {one: [inst for inst in self._instances().values() if inst.component_type == one] for one in queued}
            missing = [one for one, found in known.items() if not any(inst.status in _CALLABLE for inst in found)]
            self._missing_since = {one: self._missing_since.get(one, now) for one in missing}
            said = {
                one: _reason(one, known[one]) for one in missing if now - self._missing_since[one] >= _MISSING_SECONDS
            }
            unsaid = {
                one: reason
                for one, reason in said.items()
                if not await store.is_explained(session, one, *reason)
                and (_all_gone(known[one]) or not await store.offered_lately(session, one, _OFFERED_SECONDS))
            }
        if unsaid:
            async with self._database.write() as session:
                for component_type, reason in unsaid.items():
                    await store.explain(session, component_type, *reason)


def _all_gone(found: list[Instance]) -> bool:
    return all(one.status in _GONE for one in found)


def _reason(component_type: str, found: list[Instance]) -> tuple[str, str]:
    """Return what is said before and after a job's kind."""
    states = [f"{one.component_id} is {one.status}" + (f" ({one.problem})" if one.problem else "") for one in found]
    more = f" and {len(states) - _SHOWN} more" if len(states) > _SHOWN else ""
    said = ", ".join(states[:_SHOWN]) + more if states else f"no {component_type} is there"
    return "waits: no healthy instance offers kind ", f"; {said}; it starts as soon as one does"
