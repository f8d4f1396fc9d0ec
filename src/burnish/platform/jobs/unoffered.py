"""Says of queued jobs that nothing is there to take them: no scheduler looks at what its process does not offer."""

import time
from collections.abc import Callable, Mapping

from burnish.core.states import InstanceState
from burnish.infra.database import Database
from burnish.infra.loop import Periodic
from burnish.platform.integrator.schemas import Instance
from burnish.platform.jobs import store

_LOOK_SECONDS = 1.0
_MISSING_SECONDS = 3.0
"""For so long nothing is said: its instance may be registering anew."""
_OFFERED_SECONDS = 20.0
"""A process that said this lately that it takes jobs of a type says itself why they wait; it does so every 10 s."""
_SHOWN = 3
_CALLABLE = frozenset({InstanceState.HEALTHY, InstanceState.DEGRADED})
_GONE = frozenset({InstanceState.LOST, InstanceState.DRAINING})


class UnofferedJobs(Periodic):
    """Looks at the queue for jobs of types that no healthy instance offers. One a process; several write the same."""

    def __init__(self, database: Database, instances: Callable[[], Mapping[str, Instance]]) -> None:
        super().__init__(self.look, _LOOK_SECONDS, "unoffered-jobs")
        self._database = database
        self._instances = instances
        self._missing_since: dict[str, float] = {}

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
