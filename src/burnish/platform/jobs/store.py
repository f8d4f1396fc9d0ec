"""Queries of jobs, and the one function through which a job's state changes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, String, case, delete, func, literal, or_, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.errors import Conflict
from burnish.core.states import JOB, JobState, check
from burnish.infra import event_log, signals
from burnish.infra.database import after_commit, epoch_now, notify, utcnow
from burnish.infra.reconcile import in_key_order, wake
from burnish.platform.jobs.tables import ClaimTable, HomeTable, JobTable, NodeTable

FINISHED_TOPIC = "job:finished"
QUEUE_TOPIC = "jobs:queue"
LOST_TOPIC = "nodes:lost"
"""Noticed when a node was found to be lost."""
_OFFER_SECONDS = 60.0
_AHEAD_SECONDS = 5.0
"""A time further ahead of the database's clock than this was written before that clock was set back."""
_FINAL = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
_ON_NODE = (JobState.STARTING, JobState.RUNNING)


def job_topic(job_id: str) -> str:
    """The topic that is noticed when something was asked of a job."""
    return f"job:{job_id}"


async def find(session: AsyncSession, job_id: str, *, lock: bool = False) -> JobTable | None:
    """Return the job's row, locked against other writers if ``lock``."""
    statement = select(JobTable).where(JobTable.id == job_id)
    if lock:
        statement = statement.with_for_update()
    return (await session.execute(statement.execution_options(populate_existing=True))).scalar_one_or_none()


async def change_state(
    session: AsyncSession,
    job: JobTable,
    new: JobState,
    *,
    reason: str | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Change a job's state: checks the transition, sets its times, appends the event, wakes who waits for it.

    Raises:
        Conflict: the transition is not allowed.
    """
    check(JOB, JobState(job.state), new, f"job {job.id}")
    previous, job.state = job.state, new
    if new == JobState.RUNNING and job.started_at is None:
        job.started_at = utcnow()
    if new == JobState.QUEUED:
        if previous == JobState.PAUSED or job.queued_at is None:  # one that lost its host keeps its place
            job.queued_at = await database_now(session)
        await notify(session, QUEUE_TOPIC)
    if new != JobState.QUEUED:
        job.pending_reason = None
    if new in _FINAL:
        job.finished_at = utcnow()
        await notify(session, FINISHED_TOPIC)
    if new in _FINAL or new == JobState.PAUSED:
        await notify(session, QUEUE_TOPIC)  # resources became free
    after_commit(session, _counted(job, JobState(previous), new))
    await append_event(session, job, "state", {"state": new, "previous": previous, "reason": reason, **(data or {})})


def _counted(job: JobTable, previous: JobState, new: JobState) -> Callable[[], None]:
    """Return what counts a change of state, once it is committed."""
    began, ended, kind = job.started_at, job.finished_at, job.kind
    created, component_type = job.created_at, job.component_type

    def count() -> None:
        if new == JobState.RUNNING and previous == JobState.STARTING and job.incarnation == 1 and began is not None:
            signals.JOB_PENDING_SECONDS.labels(kind).observe(max(0.0, (began - created).total_seconds()))
        if new == JobState.QUEUED and previous == JobState.RUNNING:
            signals.JOB_RESTARTS.labels(kind).inc()
        if new in _FINAL:
            signals.JOBS_FINISHED.labels(component_type, kind, str(new)).inc()
            if began is not None and ended is not None:
                signals.JOB_SECONDS.labels(kind, str(new)).observe(max(0.0, (ended - began).total_seconds()))

    return count


async def append_event(session: AsyncSession, job: JobTable, kind: Any, data: Mapping[str, Any]) -> None:
    """Append an event about the job."""
    await event_log.append(session, project_id=job.project_id, subject=job.id, type=kind, data=data, origin=job.origin)


async def insert(session: AsyncSession, job: JobTable) -> None:
    """Insert a new job and its first event."""
    job.queued_at = await database_now(session)
    session.add(job)
    await session.flush()
    await append_event(session, job, "state", {"state": job.state, "previous": None, "reason": job.pending_reason})
    await notify(session, QUEUE_TOPIC)


async def wake_job(session: AsyncSession, job_id: str) -> None:
    """Give the job a turn now; a turn that is in progress looks again."""
    await wake(session, JobTable, job_id)
    await notify(session, job_topic(job_id))


async def database_now(session: AsyncSession) -> float:
    """The database's clock."""
    return float((await session.execute(select(epoch_now()))).scalar_one())


async def page(
    session: AsyncSession, project_id: str, *, states: Sequence[str], kind: str | None, origin: str | None,
    component_type: str | None, after: str | None, limit: int,
) -> list[JobTable]:  # fmt: skip
    """Return up to ``limit + 1`` jobs of a project, newest first, after the job ``after``."""
    statement = select(JobTable).where(JobTable.project_id == project_id)
    conditions: list[ColumnElement[bool]] = []
    if states:
        conditions.append(JobTable.state.in_(states))
    if kind is not None:
        conditions.append(JobTable.kind == kind)
    if origin is not None:
        conditions.append(JobTable.origin == origin)
    if component_type is not None:
        conditions.append(JobTable.component_type == component_type)
    if after is not None and (last := await find(session, after)) is not None:
        conditions.append(tuple_(JobTable.created_at, JobTable.id) < tuple_(last.created_at, last.id))
    statement = statement.where(*conditions).order_by(JobTable.created_at.desc(), JobTable.id.desc()).limit(limit + 1)
    return list((await session.execute(statement)).scalars())


async def queued(session: AsyncSession, node: str, types: Iterable[str]) -> list[JobTable]:
    """Return heavy jobs of these component types that this node may take, locked: priority, then first come."""
    waits = _waits_for(types) & or_(JobTable.node.is_(None), JobTable.node == node)
    first = (
        select(JobTable.id)
        .where(waits)
        .order_by(JobTable.priority.desc(), JobTable.queued_at, JobTable.id)
        .limit(500)
    )  # fmt: skip
    found = await _locked(session, select(JobTable).where(JobTable.id.in_(first.scalar_subquery()), waits))
    return sorted(found, key=lambda job: (-job.priority, job.queued_at or 0.0, job.id))


async def _locked(session: AsyncSession, statement: Select[JobTable]) -> list[JobTable]:
    """Return the rows, locked in the order in which everybody locks several: else two wait for each other."""
    if session.get_bind().dialect.name == "postgresql":
        statement = statement.order_by(in_key_order(JobTable.id)).with_for_update()
    return list((await session.execute(statement.execution_options(populate_existing=True))).scalars())


async def on_node(session: AsyncSession, node: str) -> list[JobTable]:
    """Return heavy jobs that hold resources of the node."""
    statement = select(JobTable).where(JobTable.state.in_(_ON_NODE), JobTable.node == node, JobTable.run.is_not(None))
    return list((await session.execute(statement.order_by(JobTable.id))).scalars())


async def unread_seconds(session: AsyncSession) -> float:
    """Return for how long a host may have published what no server has read of yet; 0 if none can.

    Seconds to minutes where servers follow their hosts; more where a node's server is down and its hosts live on.
    """
    # A host that was started just before its server died has no time of its own yet: it began after it was queued.
    read = func.coalesce(JobTable.followed_at, JobTable.host_started_at, JobTable.queued_at)
    statement = select(epoch_now() - func.min(read)).where(JobTable.state.in_(_ON_NODE), JobTable.run.is_not(None))
    return max(0.0, (await session.execute(statement)).scalar_one() or 0.0)


def _waits_for(types: Iterable[str]) -> ColumnElement[bool]:
    heavy = JobTable.run.is_not(None)
    return (JobTable.state == JobState.QUEUED) & heavy & JobTable.component_type.in_(sorted(types))


async def any_queued(session: AsyncSession, types: Iterable[str]) -> bool:
    """Tell whether any heavy job of these component types waits."""
    statement = select(JobTable.id).where(_waits_for(types)).limit(1)
    return (await session.execute(statement)).first() is not None


async def claims(session: AsyncSession, node: str) -> list[ClaimTable]:
    """Return what else holds resources of the node."""
    return list((await session.execute(select(ClaimTable).where(ClaimTable.node == node))).scalars())


async def put_claim(session: AsyncSession, claim: ClaimTable) -> None:
    """Insert or replace a claim."""
    await session.merge(claim)
    await notify(session, QUEUE_TOPIC)


async def drop_claim(session: AsyncSession, owner_kind: str, owner_id: str) -> None:
    """Remove a claim, if there is one."""
    found = await session.get(ClaimTable, (owner_kind, owner_id))
    if found is not None:
        await session.delete(found)
        await notify(session, QUEUE_TOPIC)


async def put_node(session: AsyncSession, node: NodeTable, types: Iterable[str], url: str = "") -> None:
    """Insert or replace what is known of a node, by one of its processes, which offers these types under ``url``."""
    now = await database_now(session)
    known = await session.get(NodeTable, node.name, with_for_update=True, populate_existing=True)
    if known is None:  # its processes may start at the same moment: one of them inserts, the others wait for its row
        insert = postgresql_insert if session.get_bind().dialect.name == "postgresql" else sqlite_insert
        values = {
            "name": node.name, "cpus": node.cpus, "memory_bytes": node.memory_bytes, "gpus": node.gpus,
            "disk_bytes": node.disk_bytes, "seen_at": now, "offers": {},
        }  # fmt: skip
        await session.execute(insert(NodeTable.__table__).values(values).on_conflict_do_nothing())  # type: ignore[arg-type]
        known = await session.get(NodeTable, node.name, with_for_update=True, populate_existing=True)
    offers = dict((known.offers if known is not None else None) or {})
    for component_type in types:
        lately = {one: at for one, at in offers.get(component_type, {}).items() if at > now - _OFFER_SECONDS}
        offers[component_type] = {**lately, url: now}
    node.seen_at, node.offers = now, offers
    await session.merge(node)


async def home(session: AsyncSession, home_id: str) -> HomeTable | None:
    """Return what is known of a home."""
    return await session.get(HomeTable, home_id)


async def claim_node(session: AsyncSession, home_id: str, node: str) -> bool:
    """Make a node's name this home's; False if it is another home's. Atomic: of several homes that try, one gets it."""
    insert = postgresql_insert if session.get_bind().dialect.name == "postgresql" else sqlite_insert
    since = datetime.fromtimestamp(await database_now(session), UTC)
    statement = insert(HomeTable.__table__).values(id=home_id, node=node, created_at=since)  # type: ignore[arg-type]
    await session.execute(statement.on_conflict_do_nothing())
    owner = await session.scalar(select(HomeTable.id).where(HomeTable.node == node))
    return owner == home_id


async def lock_owner(session: AsyncSession, node: str) -> str | None:
    """Return the home that a node's name is of, locked; None if it is nobody's, or was another's a moment ago."""
    return await session.scalar(select(HomeTable.id).where(HomeTable.node == node).with_for_update())


async def home_age_seconds(session: AsyncSession, home_id: str) -> float:
    """Return how long ago a home took its name, by the database's clock."""
    since = await session.scalar(select(HomeTable.created_at).where(HomeTable.id == home_id))
    return 0.0 if since is None else await database_now(session) - since.timestamp()


async def give_node(session: AsyncSession, home_id: str, node: str, owner: str | None) -> bool:
    """Give a node's name, of this locked home or nobody's, to a home; False if another has got it meanwhile."""
    await session.execute(delete(HomeTable).where(HomeTable.id.in_([home_id] if owner is None else [home_id, owner])))
    return await claim_node(session, home_id, node)


async def note_seen(session: AsyncSession, node: str) -> None:
    """Note that a process of the node begins, if the node has ever been described."""
    statement = update(NodeTable).where(NodeTable.name == node).values(seen_at=epoch_now())
    await session.execute(statement.execution_options(synchronize_session=False))


async def node_silent_seconds(session: AsyncSession, node: str) -> float | None:
    """Return for how long no process of a node has described it; None if none ever has.

    What lies far ahead was written before the clock was set back: it counts as now, and is put right.
    """
    ahead = update(NodeTable).where(NodeTable.name == node, NodeTable.seen_at > epoch_now() + _AHEAD_SECONDS)
    await session.execute(
        ahead.values(seen_at=epoch_now()).execution_options(synchronize_session=False)
    )  # fmt: skip
    return await session.scalar(select(epoch_now() - NodeTable.seen_at).where(NodeTable.name == node))


async def node_seen_at(session: AsyncSession, node: str) -> float:
    """Return when a process of the node last described it; 0 if none ever has."""
    return await session.scalar(select(NodeTable.seen_at).where(NodeTable.name == node)) or 0.0


async def mark_lost(session: AsyncSession, node: str) -> None:
    """Note that a node is lost, until one of its processes says otherwise."""
    since = update(HomeTable).where(HomeTable.node == node, HomeTable.lost_at.is_(None)).values(lost_at=epoch_now())
    await session.execute(since.execution_options(synchronize_session=False))
    await notify(session, LOST_TOPIC)


async def unmark_lost(session: AsyncSession, node: str) -> bool:
    """Note that a node is there; tell whether it had been lost."""
    back = update(HomeTable).where(HomeTable.node == node, HomeTable.lost_at.is_not(None)).values(lost_at=None)
    found = await session.execute(back.returning(HomeTable.id).execution_options(synchronize_session=False))
    return bool(found.all())


async def lost_nodes(session: AsyncSession) -> list[str]:
    """Return the nodes that are lost."""
    return list(await session.scalars(select(HomeTable.node).where(HomeTable.lost_at.is_not(None))))


async def lock_admission(session: AsyncSession) -> list[NodeTable]:
    """Take the lock of admission until the transaction ends: one server decides at a time. Returns all nodes."""
    statement = select(NodeTable).order_by(NodeTable.name).with_for_update()
    return list((await session.execute(statement.execution_options(populate_existing=True))).scalars())


async def nodes(session: AsyncSession) -> list[NodeTable]:
    """Return all nodes."""
    return list((await session.execute(select(NodeTable).order_by(NodeTable.name))).scalars())


async def nodes_that_offer(session: AsyncSession, component_type: str) -> list[NodeTable]:
    """Return the nodes of which some process offered a component type lately; all, if none is known to."""
    found = await nodes(session)
    since = await database_now(session) - _OFFER_SECONDS
    offering = [
        node for node in found if max((node.offers or {}).get(component_type, {}).values(), default=0.0) > since
    ]
    return offering or found


async def counts(session: AsyncSession, component_type: str | None = None) -> dict[tuple[str, str, str], int]:
    """Return numbers of unfinished jobs by (component type, kind, state)."""
    columns = (JobTable.component_type, JobTable.kind, JobTable.state)
    statement = select(*columns, func.count()).where(JobTable.state.not_in(_FINAL)).group_by(*columns)
    if component_type is not None:
        statement = statement.where(JobTable.component_type == component_type)
    return {(row[0], row[1], row[2]): int(row[3]) for row in await session.execute(statement)}


async def first_pending_reason(session: AsyncSession, component_type: str) -> str | None:
    """Return why the component's first queued job waits."""
    statement = (
        select(JobTable.pending_reason)
        .where(JobTable.component_type == component_type, JobTable.state == JobState.QUEUED)
        .where(JobTable.pending_reason.is_not(None))
        .order_by(JobTable.priority.desc(), JobTable.queued_at)
        .limit(1)
    )
    return (await session.execute(statement)).scalar_one_or_none()


async def folders_of(session: AsyncSession, job_ids: Iterable[str]) -> dict[str, str | None]:
    """Return, for those of the jobs that exist, the folder of each that has not ended (None for others)."""
    ids = list(job_ids)
    if not ids:
        return {}
    rows = await session.execute(select(JobTable.id, JobTable.state, JobTable.directory).where(JobTable.id.in_(ids)))
    return {row[0]: None if JobState(row[1]) in _FINAL else row[2] for row in rows}


async def unfinished_on(session: AsyncSession, node: str) -> list[JobTable]:
    """Return a node's heavy jobs that have not ended, locked."""
    statement = select(JobTable).where(JobTable.node == node, JobTable.run.is_not(None), JobTable.state.not_in(_FINAL))
    return await _locked(session, statement)


async def wake_queue(session: AsyncSession) -> None:
    """Have every scheduler look at the queue."""
    await notify(session, QUEUE_TOPIC)


async def rows_of(session: AsyncSession, job_ids: Iterable[str]) -> list[JobTable]:
    """Return the rows of those of the jobs that exist."""
    ids = list(job_ids)
    if not ids:
        return []
    return list((await session.execute(select(JobTable).where(JobTable.id.in_(ids)))).scalars())


async def pausable_on_node(session: AsyncSession, node: str) -> list[JobTable]:
    """Return running jobs of the node that can pause, locked."""
    statement = select(JobTable).where(
        JobTable.node == node, JobTable.state.in_(_ON_NODE), JobTable.pausable.is_(True),
        JobTable.cancel_requested_at.is_(None),
    )  # fmt: skip
    return await _locked(session, statement)


async def paused_by_shutdown(session: AsyncSession, node: str) -> list[JobTable]:
    """Return jobs of the node that a shutdown paused or asked to pause, locked."""
    statement = select(JobTable).where(JobTable.node == node, JobTable.paused_by_shutdown.is_(True))
    return await _locked(session, statement)


async def set_pending_reasons(session: AsyncSession, reasons: Mapping[str, str]) -> None:
    """Write why queued jobs wait."""
    if not reasons:
        return
    statement = (
        update(JobTable)
        .where(JobTable.id.in_(list(reasons)), JobTable.state == JobState.QUEUED)
        .values(pending_reason=case(dict(reasons), value=JobTable.id))
    )
    await session.execute(statement.execution_options(synchronize_session=False))


async def queued_types(session: AsyncSession) -> list[str]:
    """Return the component types of which some job is queued."""
    found = select(JobTable.component_type).where(JobTable.state == JobState.QUEUED).distinct()
    return sorted(await session.scalars(found))


async def offered_lately(session: AsyncSession, component_type: str, seconds: float) -> bool:
    """Tell whether some process said within so many seconds that it takes jobs of a component type."""
    since = await database_now(session) - seconds
    said = ((node.offers or {}).get(component_type, {}) for node in await nodes(session))
    return any(at > since for by_process in said for at in by_process.values())


def _unexplained(component_type: str, reason: ColumnElement[str]) -> ColumnElement[bool]:
    queued = (JobTable.state == JobState.QUEUED) & (JobTable.component_type == component_type)
    return queued & JobTable.pending_reason.is_distinct_from(reason)


def _reason_of_kind(before: str, after: str) -> ColumnElement[str]:
    return literal(before, String) + JobTable.kind + literal(after, String)


async def is_explained(session: AsyncSession, component_type: str, before: str, after: str) -> bool:
    """Tell whether each queued job of a component type says ``before``, its kind and ``after`` as why it waits."""
    unexplained = _unexplained(component_type, _reason_of_kind(before, after))
    return (await session.execute(select(JobTable.id).where(unexplained).limit(1))).first() is None


async def explain(session: AsyncSession, component_type: str, before: str, after: str) -> None:
    """Have each queued job of a component type say ``before``, its kind and ``after`` as why it waits; now or next time."""
    reason = _reason_of_kind(before, after)
    keys = select(JobTable.id).where(_unexplained(component_type, reason)).with_for_update(skip_locked=True)
    statement = update(JobTable).where(JobTable.id.in_(keys.scalar_subquery())).values(pending_reason=reason)
    await session.execute(statement.execution_options(synchronize_session=False))


def heavy_on(node: str) -> ColumnElement[bool]:
    """The rows that a node's reconciler advances."""
    return JobTable.run.is_not(None) & (JobTable.node == node)


def light_of(component_types: Iterable[str]) -> ColumnElement[bool]:
    """The light jobs of these components."""
    return JobTable.run.is_(None) & JobTable.component_type.in_(sorted(component_types))


def refuse_other(job: JobTable, *, project_id: str, kind: str, spec_digest: str) -> None:
    """Check that a job id that is used again is used for the same job.

    Raises:
        Conflict: it is another job's.
    """
    if job.kind and (job.project_id, job.kind, job.spec_digest) != (project_id, kind, spec_digest):
        raise Conflict(
            f"{job.id} is already the id of another job of kind {job.kind}",
            hint="give the new job an id of its own", where="job_id",
        )  # fmt: skip
