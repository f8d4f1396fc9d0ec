"""Writes what was decided: the row changes among the actions, in the turn's one transaction."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncSession

from burnish.components.model_serving import decide as d
from burnish.components.model_serving import store
from burnish.components.model_serving.engines import find
from burnish.components.model_serving.service import REFERENCE_OWNER, Deployments
from burnish.components.model_serving.tables import Deployment, Replica, Revision
from burnish.core.errors import ErrorBody
from burnish.core.ids import new_id
from burnish.core.specs.base import Resources
from burnish.core.specs.serving import DeploySpec
from burnish.core.states import DeploymentState, ReplicaState, RevisionState
from burnish.infra.artifact_store import store as artifacts
from burnish.infra.database import notify, utcnow
from burnish.platform.jobs import service as jobs

_STEADY_SECONDS = 60.0
"""A replica that was ready this long had no trouble of its own: what counts as in a row starts again."""


class Sockets(Protocol):
    """Says where a replica shall listen."""

    def socket_path(self, replica_id: str) -> object:
        """Return the path of the replica's unix socket."""


@dataclass
class Applied:
    """What came of it."""

    gone: bool = False
    """The deployment was deleted and its rows are gone."""
    stale: bool = False
    """Somebody asked for a change since the rows were loaded: nothing was written, decide again."""


@dataclass(frozen=True)
class _Writing:
    session: AsyncSession
    rules: Deployments
    sockets: Sockets
    deployment: Deployment
    words: Mapping[str, ErrorBody]


async def apply(
    session: AsyncSession, rules: Deployments, sockets: Sockets, loaded: Deployment, actions: Sequence[d.Action],
    words: Mapping[str, ErrorBody],
) -> Applied:  # fmt: skip
    """Write the row changes of ``actions``, unless what is wanted changed since the rows were loaded.

    Args:
        session: the turn's fenced session.
        rules: the deployments' rules.
        sockets: where new replicas shall listen.
        loaded: the turn's deployment as it was when ``actions`` were decided.
        actions: in the order in which they were decided.
        words: why replicas were lost.
    """
    row = await session.get_one(Deployment, loaded.id)
    if row.wakes != loaded.wakes:
        return Applied(stale=True)
    writing = _Writing(session, rules, sockets, row, words)
    for action in actions:
        if isinstance(action, d.Spawn | d.Verify | d.CheckArtifact):
            continue
        if isinstance(action, d.LoseReplica | d.MarkReady | d.Drain | d.Terminate | d.Ended):
            await _write_replica(writing, action)
        elif isinstance(action, d.StopServing):
            if writing.deployment.wanted is None:
                writing.deployment.serving = None
                await notify(session, store.TOPIC)
        else:
            await _write_revision(writing, action)
    await session.flush()
    return await _settle(writing)


async def _write_replica(
    writing: _Writing, action: d.LoseReplica | d.MarkReady | d.Drain | d.Terminate | d.Ended
) -> None:
    session = writing.session
    row = await store.replica(session, action.replica)
    if row.state in store.ENDED_REPLICA:
        return
    match action:
        case d.MarkReady():
            row.ready_at = utcnow()
            await store.move_replica(session, row, ReplicaState.READY)
        case d.Drain():
            row.draining_since = time.time()
            await store.move_replica(session, row, ReplicaState.DRAINING)
        case d.Terminate():  # it is `stopped` only when its process is known to be gone
            row.draining_since = row.draining_since or time.time()
            await store.move_replica(session, row, ReplicaState.DRAINING)
        case d.Ended():
            row.ended_at = utcnow()
            await store.move_replica(session, row, ReplicaState.STOPPED)
        case d.LoseReplica():
            await lose(session, row.id, writing.words[row.id])


async def lose(session: AsyncSession, replica_id: str, error: ErrorBody) -> None:
    """Record that a replica failed, and count it against its revision."""
    row = await store.replica(session, replica_id)
    if row.state in store.ENDED_REPLICA:
        return
    row.ended_at = utcnow()
    row.error = error.model_dump(mode="json")
    await store.move_replica(session, row, ReplicaState.FAILED)
    revision = await session.get_one(Revision, row.revision_id)
    steady = row.ready_at is not None and (row.ended_at - row.ready_at).total_seconds() > _STEADY_SECONDS
    revision.failures = 1 if steady else revision.failures + 1
    revision.failed_at = time.time()


_RevisionAction = d.AddReplica | d.Advance | d.Switch | d.FailRevision | d.DrainRevision | d.Retire


async def _write_revision(writing: _Writing, action: _RevisionAction) -> None:
    session, deployment = writing.session, writing.deployment
    revision = await store.revision(session, deployment.id, action.revision)
    assert revision is not None, "decided from this row"
    wanted = deployment.wanted == revision.number
    match action:
        case d.AddReplica():
            if wanted or deployment.serving == revision.number:
                await _add_replica(writing, revision)
        case d.Advance():
            if wanted and revision.state == RevisionState.STARTING:
                await store.move_revision(session, revision, RevisionState.VERIFYING)
        case d.Switch():
            if wanted:
                await _switch(writing, revision)
        case d.FailRevision(error=error):
            await _fail(writing, revision, error)
        case d.DrainRevision():
            await store.move_revision(session, revision, RevisionState.DRAINING)
        case d.Retire():
            await store.move_revision(session, revision, RevisionState.RETIRED)


async def _add_replica(writing: _Writing, revision: Revision) -> None:
    """Insert the row, and have the scheduler of jobs count its memory as taken."""
    spec = DeploySpec.model_validate(revision.spec)
    replica_id = new_id("rep")
    memory = find(writing.rules.engines, spec.engine).memory_bytes(spec)
    writing.session.add(
        Replica(
            id=replica_id, deployment_id=revision.deployment_id, revision_id=revision.id, revision=revision.number,
            project_id=revision.project_id, state=str(ReplicaState.STARTING), node=writing.rules.node,
            socket=str(writing.sockets.socket_path(replica_id)), cpus=writing.rules.cpus,
            memory_bytes=memory,
        )
    )  # fmt: skip
    await jobs.claim(writing.session, store.CLAIM_OWNER, replica_id, writing.rules.node, Resources(memory_bytes=memory))


async def _switch(writing: _Writing, revision: Revision) -> None:
    deployment = writing.deployment
    revision.replaced = deployment.serving if deployment.serving != revision.number else revision.replaced
    revision.ready_at = utcnow()
    revision.failures, revision.failed_at, revision.error = 0, None, None
    await store.move_revision(writing.session, revision, RevisionState.SERVING)
    deployment.serving = revision.number
    await store.say(writing.session, deployment, {"serving": revision.number, "replaced": revision.replaced})
    await notify(writing.session, store.TOPIC)


async def _fail(writing: _Writing, revision: Revision, error: ErrorBody | None) -> None:
    session, deployment = writing.session, writing.deployment
    stored = error.model_dump(mode="json") if error is not None else await store.last_error(session, revision.id)
    revision.error = stored
    await store.move_revision(session, revision, RevisionState.FAILED)
    if deployment.wanted == revision.number:
        deployment.wanted = deployment.serving
        deployment.error = stored
        await store.say(session, deployment, {"wanted": deployment.wanted, "error": stored})


async def _settle(writing: _Writing) -> Applied:
    """Bring the deployment's state up to date; remove it if it was deleted and nothing of it lives."""
    session, deployment = writing.session, writing.deployment
    replicas = await store.live_replicas(session, deployment.id)
    if deployment.deleted and not replicas and deployment.serving is None:
        for revision in await store.revisions(session, deployment.id):
            await artifacts.release(session, REFERENCE_OWNER, revision.id)
        await store.delete_rows(session, deployment.id)
        return Applied(gone=True)
    facts = d.DeploymentFacts(
        deployment.wanted, deployment.serving,
        tuple(d.RevisionFacts(revision.number, RevisionState(revision.state), int(revision.spec["replicas"]))
              for revision in await store.live_revisions(session, deployment.id)),
        tuple(d.ReplicaFacts(replica.id, replica.revision, ReplicaState(replica.state)) for replica in replicas),
    )  # fmt: skip
    state = d.state_of(facts, failed=deployment.error is not None)
    if deployment.state != state:
        old, deployment.state = DeploymentState(deployment.state), str(state)
        await store.say(session, deployment, {"state": str(state), "was": str(old)})
    return Applied()
