"""Queries over deployments, revisions and replicas. Sessions belong to the caller; nothing here commits."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.components.model_serving.tables import Deployment, Replica, Revision
from burnish.core.errors import Unavailable
from burnish.core.states import REPLICA, REVISION, ReplicaState, RevisionState, check
from burnish.infra import event_log
from burnish.infra.database import notify, utcnow
from burnish.infra.reconcile import announce, wake
from burnish.platform.jobs import service as jobs

TOPIC = "deployments"
"""Notified when requests may have to go elsewhere."""

CLAIM_OWNER = "replica"
"""Owner kind of the memory that the scheduler of jobs counts as taken."""

ENDED_REPLICA = (ReplicaState.STOPPED, ReplicaState.FAILED)
_ENDED_REVISION = (RevisionState.RETIRED, RevisionState.FAILED)


async def find(session: AsyncSession, project_id: str, name: str, *, lock: bool = False) -> Deployment | None:
    """Return the project's deployment of this name; ``lock`` it before deciding about a change."""
    statement = select(Deployment).where(Deployment.project_id == project_id, Deployment.name == name)
    if lock:
        statement = statement.with_for_update().execution_options(populate_existing=True)
    return (await session.execute(statement)).scalar_one_or_none()


async def find_or_add(session: AsyncSession, new: Deployment) -> Deployment:
    """Return the deployment of this name, locked: the new one, or the one that is there."""
    try:
        async with session.begin_nested():
            session.add(new)
        return new
    except IntegrityError:
        found = await find(session, new.project_id, new.name, lock=True)
        assert found is not None, "its name is taken"
        return found


async def page(session: AsyncSession, project_id: str, after: str | None, limit: int) -> list[Deployment]:
    """Return up to ``limit`` deployments by name, after a name."""
    statement = select(Deployment).where(Deployment.project_id == project_id, Deployment.deleted.is_(False))
    if after is not None:
        statement = statement.where(Deployment.name > after)
    return list((await session.execute(statement.order_by(Deployment.name).limit(limit))).scalars())


async def revisions(session: AsyncSession, deployment_id: str, limit: int | None = None) -> list[Revision]:
    """Return a deployment's revisions, newest first."""
    statement = select(Revision).where(Revision.deployment_id == deployment_id).order_by(Revision.number.desc())
    return list((await session.execute(statement.limit(limit))).scalars())


async def revision(session: AsyncSession, deployment_id: str, number: int) -> Revision | None:
    """Return one revision."""
    statement = select(Revision).where(Revision.deployment_id == deployment_id, Revision.number == number)
    return (await session.execute(statement)).scalar_one_or_none()


async def revision_of_job(session: AsyncSession, project_id: str, job_id: str) -> Revision | None:
    """Return the revision that a job asked for."""
    statement = select(Revision).where(Revision.project_id == project_id, Revision.job_id == job_id)
    return (await session.execute(statement)).scalars().first()


async def live_revisions(session: AsyncSession, deployment_id: str) -> list[Revision]:
    """Return the revisions that have not ended."""
    statement = select(Revision).where(
        Revision.deployment_id == deployment_id, Revision.state.not_in([str(s) for s in _ENDED_REVISION])
    )
    return list((await session.execute(statement.order_by(Revision.number))).scalars())


async def live_replicas(session: AsyncSession, deployment_id: str | None = None) -> list[Replica]:
    """Return the replicas that have not ended, of one deployment or of all."""
    statement = select(Replica).where(Replica.state.not_in([str(s) for s in ENDED_REPLICA]))
    if deployment_id is not None:
        statement = statement.where(Replica.deployment_id == deployment_id)
    return list((await session.execute(statement.order_by(Replica.created_at, Replica.id))).scalars())


async def take_deployments(session: AsyncSession, nodes: Collection[str], node: str) -> list[str]:
    """Make the deployments of some nodes ``node``'s, and end the rows of their replicas there; return their ids."""
    statement = select(Deployment).where(Deployment.node.in_(nodes)).order_by(Deployment.id)
    locked = statement.with_for_update(skip_locked=True).execution_options(populate_existing=True)
    taken = list((await session.execute(locked)).scalars())
    for deployment in taken:
        for row in await live_replicas(session, deployment.id):
            row.ended_at = utcnow()
            row.error = Unavailable(f"its node {row.node} is lost").body().model_dump(mode="json")
            await move_replica(session, row, ReplicaState.FAILED)
        await say(session, deployment, {"node": node, "was_on": deployment.node})
        deployment.node = node
        deployment.lease_owner = deployment.lease_until = None
        await session.flush()
        await wake(session, Deployment, deployment.id)
    if taken:
        await announce(session, Deployment)
        await notify(session, TOPIC)
    return [deployment.id for deployment in taken]


async def last_error(session: AsyncSession, revision_id: str) -> dict[str, Any] | None:
    """Return why the revision's last replica was lost."""
    statement = (
        select(Replica.error)
        .where(Replica.revision_id == revision_id, Replica.error.is_not(None))
        .order_by(Replica.ended_at.desc())
    )
    return (await session.execute(statement.limit(1))).scalars().first()


async def replica(session: AsyncSession, replica_id: str) -> Replica:
    """Return one replica that is known to exist."""
    return await session.get_one(Replica, replica_id)


async def serving(session: AsyncSession) -> Sequence[tuple[Deployment, Revision, Sequence[Replica]]]:
    """Return every deployment that gets requests, with its revision and ready replicas."""
    statement = (
        select(Deployment, Revision)
        .join(Revision, (Revision.deployment_id == Deployment.id) & (Revision.number == Deployment.serving))
        .where(Deployment.serving.is_not(None))
    )
    rows = (await session.execute(statement)).all()
    ready = select(Replica).where(Replica.state == str(ReplicaState.READY))
    replicas = list((await session.execute(ready)).scalars())
    return [
        (deployment, revision, [r for r in replicas if r.revision_id == revision.id]) for deployment, revision in rows
    ]


async def served_before(session: AsyncSession, deployment_ids: Collection[str]) -> Mapping[tuple[str, str], datetime]:
    """Return when each of these deployments last began to serve each registry version that it ever served."""
    statement = select(Revision.deployment_id, Revision.spec, Revision.ready_at).where(
        Revision.deployment_id.in_(deployment_ids), Revision.ready_at.is_not(None)
    )
    found: dict[tuple[str, str], datetime] = {}
    for deployment_id, spec, ready_at in (await session.execute(statement)).all():
        key = deployment_id, spec.get("model_version")
        if key[1] is not None:
            found[key] = max(ready_at, found.get(key, ready_at))
    return found


async def counts(session: AsyncSession) -> tuple[dict[str, int], dict[str, int]]:
    """Return how many deployments and living replicas there are, by state."""
    deployments = select(Deployment.state, func.count()).group_by(Deployment.state)
    living = Replica.state.not_in([str(s) for s in ENDED_REPLICA])
    replicas = select(Replica.state, func.count()).where(living).group_by(Replica.state)
    found = [
        {str(state): int(count) for state, count in (await session.execute(one)).all()}
        for one in (deployments, replicas)
    ]
    return found[0], found[1]


async def delete_rows(session: AsyncSession, deployment_id: str) -> None:
    """Delete a deployment with its revisions and replicas."""
    await session.execute(delete(Replica).where(Replica.deployment_id == deployment_id))
    await session.execute(delete(Revision).where(Revision.deployment_id == deployment_id))
    await session.execute(delete(Deployment).where(Deployment.id == deployment_id))
    await notify(session, TOPIC)


async def move_revision(session: AsyncSession, row: Revision, new: RevisionState) -> None:
    """Change a revision's state, if its state machine allows that, and append the event."""
    if row.state == new:
        return
    check(REVISION, RevisionState(row.state), new, f"revision {row.number}")
    row.state = str(new)
    await _event(
        session,
        row.project_id,
        row.deployment_id,
        row.job_id,
        {"revision": row.number, "state": str(new), "error": row.error},
    )


async def move_replica(session: AsyncSession, row: Replica, new: ReplicaState) -> None:
    """Change a replica's state, if its state machine allows that, and append the event."""
    if row.state == new:
        return
    check(REPLICA, ReplicaState(row.state), new, f"replica {row.id}")
    row.state = str(new)
    data = {"replica": row.id, "revision": row.revision, "state": str(new), "pid": row.pid, "error": row.error}
    await _event(session, row.project_id, row.deployment_id, None, data)
    if new in ENDED_REPLICA:
        await jobs.unclaim(session, CLAIM_OWNER, row.id)
    await notify(session, TOPIC)


async def say(session: AsyncSession, row: Deployment, data: dict[str, Any]) -> None:
    """Append an event about a deployment."""
    await _event(session, row.project_id, row.id, None, data)


async def _event(
    session: AsyncSession, project_id: str, deployment_id: str, origin: str | None, data: dict[str, Any]
) -> None:
    await event_log.append(
        session, project_id=project_id, subject=deployment_id, type="state", data=data, origin=origin
    )
