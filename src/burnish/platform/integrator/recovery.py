"""The ladder of recovery: what is done about an instance that is not well. Pure: a case in, steps out.

Route around it; have it started again, where something supervises its process; give what waits for its machine to
others, once it has stopped and does not come back, and what runs there, too, once the whole machine has been silent for
long; forget it. Each step is taken once an episode, and says why.
"""

from dataclasses import dataclass
from enum import StrEnum

from burnish.core.states import InstanceState

RESTART_BACKOFF_SECONDS = (0.0, 10.0, 20.0, 40.0, 80.0)
"""Between one request to restart and the next; as many as there are here, then somebody has to look."""
WELL_FOR_LONG_SECONDS = 600.0
"""After so long without a restart the count begins anew."""

_S = InstanceState
_CALLABLE = frozenset({_S.HEALTHY, _S.DEGRADED})
_DEAD = frozenset({_S.UNHEALTHY, _S.LOST})


class Step(StrEnum):
    """One action of recovery."""

    ROUTE_AROUND = "route_around"
    TAKE_BACK = "take_back"
    RESTART_REQUESTED = "restart_requested"
    RESTARTS_EXHAUSTED = "restarts_exhausted"
    MOVE_QUEUED = "move_queued"
    """What waits for the node goes to others; what runs there goes on, to be found again."""
    MOVE_WORK = "move_work"
    REMOVE = "remove"
    FORGET = "forget"


@dataclass(frozen=True)
class Case:
    """One instance, as recovery sees it."""

    before: InstanceState
    now: InstanceState
    in_state_seconds: float = 0.0
    """How long it has been in the state that it is in now."""
    stopped: bool = False
    """It was draining before it fell silent: somebody stopped it."""
    supervised: bool = False
    restarts: int = 0
    since_restart: float | None = None
    """Seconds since the last restart was asked for."""
    node_silent: bool = False
    """Every instance of its machine is lost, for as long as it takes until work is moved."""
    type_stopped: bool = False
    """Every instance of its type on its machine has signed off or is lost, and nobody starts one again."""
    moved: bool = False
    drained: bool = False
    """It was deregistered, and the time for its last calls has passed."""


def decide(case: Case, forget_seconds: float) -> tuple[Step, ...]:
    """Return the steps that are due, in order."""
    if case.drained:
        return (Step.REMOVE,)
    if case.now is _S.LOST and case.in_state_seconds >= forget_seconds and (case.moved or not case.node_silent):
        return (Step.FORGET,)
    steps = [_turned(case)]
    if case.now in _DEAD and case.supervised and not case.stopped:
        steps.append(_restart(case))
    if case.type_stopped and not case.moved:
        steps.append(Step.MOVE_QUEUED)
    if case.now is _S.LOST and case.node_silent and not case.moved:
        steps.append(Step.MOVE_WORK)
    return tuple(step for step in steps if step is not None)


def _turned(case: Case) -> Step | None:
    if case.before in _CALLABLE and case.now in _DEAD:
        return Step.ROUTE_AROUND
    if case.before in _DEAD and case.now in _CALLABLE:
        return Step.TAKE_BACK
    return None


def restarts_so_far(case: Case) -> int:
    """Return how many restarts of this bad spell were asked for."""
    return 0 if case.since_restart is None or case.since_restart > WELL_FOR_LONG_SECONDS else case.restarts


def _restart(case: Case) -> Step | None:
    asked, cap = restarts_so_far(case), len(RESTART_BACKOFF_SECONDS)
    if asked > cap:
        return None
    wait = RESTART_BACKOFF_SECONDS[min(asked, cap - 1)]
    if asked and case.since_restart is not None and case.since_restart < wait:
        return None
    return Step.RESTARTS_EXHAUSTED if asked == cap else Step.RESTART_REQUESTED
