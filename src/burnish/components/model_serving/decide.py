"""What to do next for one deployment, from what the rows say and what was observed. Pure: no clock, no network.

The caller observes (processes, checks, traffic), asks :func:`decide`, commits the row changes among the actions in one
transaction, and then acts. Doing the same twice is harmless.
"""

from dataclasses import dataclass
from typing import Literal

from burnish.core.errors import ErrorBody
from burnish.core.states import DeploymentState, ReplicaState, RevisionState

MAX_CANDIDATE_FAILURES = 3
"""Replicas that a revision which never served may lose in a row before it is given up."""
_BACKOFF_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_LIVE = (ReplicaState.STARTING, ReplicaState.READY)
_CANDIDATE = (RevisionState.STARTING, RevisionState.VERIFYING)

Check = Literal["unknown", "running", "good"] | ErrorBody


@dataclass(frozen=True)
class RevisionFacts:
    """A revision that has not ended."""

    number: int
    state: RevisionState
    replicas: int
    failures: int = 0
    since_failure: float = 1e9
    """Seconds since its last replica was lost."""
    artifact: Check = "unknown"
    """Whether the bytes of its model are those that were published."""


@dataclass(frozen=True)
class ReplicaFacts:
    """A replica that has not ended."""

    id: str
    revision: int
    state: ReplicaState
    process: Literal["none", "alive", "dead"] = "none"
    """``none``: it was never started. ``dead``: it ended, or was ended before it was started."""
    verified: Check = "unknown"
    """Whether a generation of its own came back right."""
    age: float = 0.0
    """Seconds since its row was made."""
    idle: bool = True
    """Nothing that it serves is in flight."""
    draining: float = 0.0
    """Seconds since it began to drain."""


@dataclass(frozen=True)
class DeploymentFacts:
    """One deployment."""

    wanted: int | None
    serving: int | None
    revisions: tuple[RevisionFacts, ...] = ()
    replicas: tuple[ReplicaFacts, ...] = ()
    start_seconds: float = 600.0
    """A replica that is not ready after this long is lost."""
    drain_seconds: float = 300.0
    """What is still in flight after this long is cut."""
    drain_grace_seconds: float = 1.0
    """A replica drains at least this long, so that every server has heard of the switch."""


@dataclass(frozen=True)
class CheckArtifact:
    """Hash the revision's files, in the background."""

    revision: int


@dataclass(frozen=True)
class AddReplica:
    """Insert the row of a new replica."""

    revision: int


@dataclass(frozen=True)
class Spawn:
    """Start (or find) the replica's process."""

    replica: str


@dataclass(frozen=True)
class Verify:
    """Let the replica generate, in the background."""

    replica: str


@dataclass(frozen=True)
class MarkReady:
    """The replica may get requests."""

    replica: str


@dataclass(frozen=True)
class LoseReplica:
    """The replica failed: end what is left of it and count it against its revision."""

    replica: str
    error: ErrorBody | None
    """None: its process died; its last words say why."""


@dataclass(frozen=True)
class Drain:
    """The replica gets no new requests."""

    replica: str


@dataclass(frozen=True)
class Terminate:
    """End the replica's process."""

    replica: str


@dataclass(frozen=True)
class Ended:
    """The replica's process is gone, as it should be."""

    replica: str


@dataclass(frozen=True)
class Advance:
    """Move a candidate from starting to verifying."""

    revision: int


@dataclass(frozen=True)
class Switch:
    """Send requests to this revision from now on."""

    revision: int


@dataclass(frozen=True)
class FailRevision:
    """Give a revision up; what served before goes on serving."""

    revision: int
    error: ErrorBody | None


@dataclass(frozen=True)
class DrainRevision:
    """The revision is no longer wanted but still serves what it has."""

    revision: int


@dataclass(frozen=True)
class Retire:
    """The revision has no replica left."""

    revision: int


@dataclass(frozen=True)
class StopServing:
    """Requests go nowhere from now on."""


Action = (
    CheckArtifact | AddReplica | Spawn | Verify | MarkReady | LoseReplica | Drain | Terminate | Ended | Advance | Switch
    | FailRevision | DrainRevision | Retire | StopServing
)  # fmt: skip


def decide(facts: DeploymentFacts) -> list[Action]:
    """Return the next actions, in the order in which to take them; empty when all is as wanted."""
    actions: list[Action] = []
    if facts.wanted is None and facts.serving is not None:
        actions.append(StopServing())
    for revision in facts.revisions:
        mine = [replica for replica in facts.replicas if replica.revision == revision.number]
        if revision.number in (facts.wanted, facts.serving) and facts.wanted is not None:
            actions += _uphold(facts, revision, mine)
        else:
            actions += _end(facts, revision, mine)
    return actions


def _uphold(facts: DeploymentFacts, revision: RevisionFacts, replicas: list[ReplicaFacts]) -> list[Action]:
    """A revision that serves, or that shall."""
    candidate = revision.number != facts.serving
    if isinstance(revision.artifact, ErrorBody):
        if candidate:
            return [FailRevision(revision.number, revision.artifact)]  # the next turn ends its replicas
    elif candidate and revision.failures >= MAX_CANDIDATE_FAILURES:
        return [FailRevision(revision.number, None)]
    actions = [action for replica in replicas for action in _advance(facts, replica)]
    lost = {action.replica for action in actions if isinstance(action, LoseReplica)}
    live = [replica for replica in replicas if replica.state in _LIVE and replica.id not in lost]
    actions += _fill(revision, len(live), bool(lost))
    if candidate:
        if revision.state is RevisionState.STARTING and any(replica.process == "alive" for replica in live):
            actions.append(Advance(revision.number))
        ready = sum(replica.state is ReplicaState.READY and replica.process == "alive" for replica in live)
        # It may be `serving` still: wanted again before it had begun to drain.
        if ready >= revision.replicas and revision.state in (RevisionState.VERIFYING, RevisionState.SERVING):
            actions.append(Switch(revision.number))
    return actions


def _fill(revision: RevisionFacts, live: int, just_lost: bool) -> list[Action]:
    """Bring a revision to its number of replicas, once its files are known to be whole and its backoff has passed."""
    missing = revision.replicas - live
    if missing <= 0 or just_lost:
        return []
    if revision.artifact == "unknown":
        return [CheckArtifact(revision.number)]
    if revision.artifact != "good" or revision.since_failure < backoff(revision.failures):
        return []
    return [AddReplica(revision.number)] * missing


def _advance(facts: DeploymentFacts, replica: ReplicaFacts) -> list[Action]:
    """One replica of a revision that is upheld."""
    if replica.state is ReplicaState.DRAINING:
        return _drained(facts, replica)
    if replica.process == "dead":
        return [LoseReplica(replica.id, None)]
    if replica.state is ReplicaState.READY:
        return []
    if replica.process == "none":
        return [Spawn(replica.id)]
    if isinstance(replica.verified, ErrorBody):
        return [LoseReplica(replica.id, replica.verified)]
    if replica.verified == "good":
        return [MarkReady(replica.id)]
    if replica.age > facts.start_seconds:
        error = ErrorBody(
            code="deadline_exceeded",
            message=f"the replica was not ready after {facts.start_seconds:g} s",
            hint="look at its log; a larger model needs more time or a faster disk",
        )
        return [LoseReplica(replica.id, error)]
    return [Verify(replica.id)] if replica.verified == "unknown" else []


def _end(facts: DeploymentFacts, revision: RevisionFacts, replicas: list[ReplicaFacts]) -> list[Action]:
    """A revision that shall serve no more. What it has in flight is finished."""
    actions: list[Action] = []
    if revision.state is RevisionState.SERVING:
        actions.append(DrainRevision(revision.number))
    for replica in replicas:
        if replica.process == "dead":
            actions.append(Ended(replica.id))
        elif replica.state is ReplicaState.STARTING:
            actions.append(Terminate(replica.id))
        elif replica.state is ReplicaState.READY:
            actions.append(Drain(replica.id))
        else:
            actions += _drained(facts, replica)
    if not replicas and revision.state in (*_CANDIDATE, RevisionState.DRAINING):
        actions.append(Retire(revision.number))
    return actions


def _drained(facts: DeploymentFacts, replica: ReplicaFacts) -> list[Action]:
    if replica.process == "dead":
        return [Ended(replica.id)]
    idle = replica.idle and replica.draining >= facts.drain_grace_seconds
    if idle or replica.draining >= facts.drain_seconds:
        return [Terminate(replica.id)]
    return []


def backoff(failures: int) -> float:
    """Seconds to wait after the last of ``failures`` losses in a row before the next start."""
    return _BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS) - 1)]


def state_of(facts: DeploymentFacts, *, failed: bool) -> DeploymentState:
    """Return what a reader is told.

    Args:
        facts: the rows.
        failed: the last change did not come about.
    """
    if facts.wanted is None:
        gone = facts.serving is None and not facts.replicas
        return (DeploymentState.FAILED if failed else DeploymentState.STOPPED) if gone else DeploymentState.UPDATING
    if facts.serving != facts.wanted:
        return DeploymentState.UPDATING
    ready = [r for r in facts.replicas if r.revision == facts.serving and r.state is ReplicaState.READY]
    wanted = next((r.replicas for r in facts.revisions if r.number == facts.serving), 1)
    return DeploymentState.READY if len(ready) >= wanted else DeploymentState.UPDATING
