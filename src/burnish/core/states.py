"""Every state machine of Burnish as one table of states and allowed transitions.

A state changes only through :func:`check` (called by the package's store, in the transaction that appends the event).
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from burnish.core.errors import Conflict

State = TypeVar("State", bound=StrEnum)


class ExecutionState(StrEnum):
    """One run of a workflow definition."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    REJECTED = "rejected"
    """A gate's verdict was not ``pass``. Not a failure."""
    FAILED = "failed"
    CANCELLED = "cancelled"


class StepState(StrEnum):
    """One node of an execution."""

    WAITING = "waiting"
    RUNNING = "running"
    RETRYING = "retrying"
    """An attempt failed; the next one waits for its backoff."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    """Its ``when`` was false, or a step it needs did not succeed."""
    CANCELLED = "cancelled"


class JobState(StrEnum):
    """Heavy work of one kind; also the state of the attempt that submitted it."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class InstanceState(StrEnum):
    """One running process that offers a component."""

    STARTING = "starting"
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    LOST = "lost"
    DRAINING = "draining"


class DeploymentState(StrEnum):
    """What is so of a deployment, against what is wanted."""

    PENDING = "pending"
    UPDATING = "updating"
    READY = "ready"
    FAILED = "failed"
    STOPPED = "stopped"


class RevisionState(StrEnum):
    """An immutable snapshot of a deployment, and how far its replicas are."""

    STARTING = "starting"
    VERIFYING = "verifying"
    SERVING = "serving"
    DRAINING = "draining"
    RETIRED = "retired"
    FAILED = "failed"


class ReplicaState(StrEnum):
    """One serving process."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


_E, _S, _J, _I = ExecutionState, StepState, JobState, InstanceState
_D, _R, _P = DeploymentState, RevisionState, ReplicaState

EXECUTION: Mapping[ExecutionState, frozenset[ExecutionState]] = {
    _E.PENDING: frozenset({_E.RUNNING, _E.PAUSED, _E.CANCELLING, _E.CANCELLED, _E.FAILED}),
    _E.RUNNING: frozenset({_E.PAUSED, _E.CANCELLING, _E.SUCCEEDED, _E.REJECTED, _E.FAILED, _E.CANCELLED}),
    _E.PAUSED: frozenset({_E.RUNNING, _E.CANCELLING}),
    _E.CANCELLING: frozenset({_E.CANCELLED, _E.SUCCEEDED, _E.REJECTED, _E.FAILED}),
    _E.SUCCEEDED: frozenset(),
    _E.REJECTED: frozenset({_E.RUNNING}),
    _E.FAILED: frozenset({_E.RUNNING}),
    _E.CANCELLED: frozenset({_E.RUNNING}),
}
"""A finished execution returns to ``running`` only by ``retry``."""

STEP: Mapping[StepState, frozenset[StepState]] = {
    _S.WAITING: frozenset({_S.RUNNING, _S.SUCCEEDED, _S.FAILED, _S.SKIPPED, _S.CANCELLED}),
    _S.RUNNING: frozenset({_S.RETRYING, _S.SUCCEEDED, _S.FAILED, _S.CANCELLED}),
    _S.RETRYING: frozenset({_S.RUNNING, _S.FAILED, _S.CANCELLED}),
    _S.SUCCEEDED: frozenset({_S.WAITING}),
    _S.FAILED: frozenset({_S.WAITING}),
    _S.SKIPPED: frozenset({_S.WAITING}),
    _S.CANCELLED: frozenset({_S.WAITING}),
}
"""A failed, skipped or cancelled step returns to ``waiting`` only by ``retry``; so does one that succeeded on what has
changed since, such as the model that is in production."""

JOB: Mapping[JobState, frozenset[JobState]] = {
    _J.QUEUED: frozenset({_J.STARTING, _J.RUNNING, _J.PAUSED, _J.CANCELLED, _J.FAILED, _J.SUCCEEDED}),
    _J.STARTING: frozenset({_J.RUNNING, _J.QUEUED, _J.PAUSED, _J.SUCCEEDED, _J.FAILED, _J.CANCELLED}),
    _J.RUNNING: frozenset({_J.QUEUED, _J.PAUSED, _J.SUCCEEDED, _J.FAILED, _J.CANCELLED}),
    _J.PAUSED: frozenset({_J.QUEUED, _J.CANCELLED}),
    _J.SUCCEEDED: frozenset(),
    _J.FAILED: frozenset(),
    _J.CANCELLED: frozenset(),
}
"""``running -> queued``: its host was lost and the job is started again from its last checkpoint."""

INSTANCE: Mapping[InstanceState, frozenset[InstanceState]] = {state: frozenset(set(_I) - {state}) for state in _I}

DEPLOYMENT: Mapping[DeploymentState, frozenset[DeploymentState]] = {
    _D.PENDING: frozenset({_D.UPDATING, _D.READY, _D.FAILED, _D.STOPPED}),
    _D.UPDATING: frozenset({_D.READY, _D.FAILED, _D.STOPPED}),
    _D.READY: frozenset({_D.UPDATING, _D.FAILED, _D.STOPPED}),
    _D.FAILED: frozenset({_D.UPDATING, _D.READY, _D.STOPPED}),
    _D.STOPPED: frozenset({_D.UPDATING}),
}

REVISION: Mapping[RevisionState, frozenset[RevisionState]] = {
    _R.STARTING: frozenset({_R.VERIFYING, _R.FAILED, _R.RETIRED}),
    _R.VERIFYING: frozenset({_R.SERVING, _R.FAILED, _R.RETIRED, _R.STARTING}),
    _R.SERVING: frozenset({_R.DRAINING, _R.RETIRED}),
    _R.DRAINING: frozenset({_R.RETIRED, _R.STARTING}),
    _R.RETIRED: frozenset({_R.STARTING}),
    _R.FAILED: frozenset({_R.STARTING}),
}

REPLICA: Mapping[ReplicaState, frozenset[ReplicaState]] = {
    _P.STARTING: frozenset({_P.READY, _P.FAILED, _P.STOPPED, _P.DRAINING}),
    _P.READY: frozenset({_P.DRAINING, _P.STOPPED, _P.FAILED}),
    _P.DRAINING: frozenset({_P.STOPPED, _P.FAILED}),
    _P.STOPPED: frozenset(),
    _P.FAILED: frozenset(),
}


def check(machine: Mapping[State, frozenset[State]], old: State, new: State, what: str) -> None:
    """Raise :class:`Conflict` unless ``machine`` allows ``old -> new`` for the object named ``what``."""
    if new not in machine[old]:
        allowed = ", ".join(sorted(machine[old])) or "nothing: it has ended"
        raise Conflict(f"{what} is {old} and cannot become {new}", hint=f"from {old} it can become: {allowed}")


def is_final(machine: Mapping[State, frozenset[State]], state: State) -> bool:
    """Tell whether nothing follows ``state`` by itself (a retry may still reopen an execution)."""
    return str(state) in {"succeeded", "rejected", "failed", "cancelled", "skipped", "stopped", "retired"} and (
        state in machine
    )
