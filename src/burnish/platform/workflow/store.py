"""Queries over executions and attempts. Nothing here commits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, and_, func, insert, or_, select, true, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.states import ExecutionState, JobState
from burnish.infra import event_log
from burnish.infra.database import utcnow
from burnish.infra.reconcile import announce, wake
from burnish.platform.jobs.tables import JobTable
from burnish.platform.workflow.records import FINAL
from burnish.platform.workflow.tables import ComponentOfferRow, StepAttemptRow, WorkflowExecutionRow

OPEN = (JobState.QUEUED, JobState.RUNNING)
_INSERT_ATTEMPTS = insert(StepAttemptRow.__table__)  # type: ignore[arg-type]
_ENDED_JOBS = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True)
class OpenAttempt:
    """An attempt without an outcome, and what our own table of jobs says of its job."""

    row: StepAttemptRow
    job_state: JobState | None
    """None where the job is not in our database: a remote component's, or one not submitted yet."""


@dataclass(frozen=True)
class AttemptWithJob:
    """An attempt, and its job where that is in our database; else how far it is by its component's word."""

    row: StepAttemptRow
    job: JobTable | None
    progress: Mapping[str, Any] | None = None


async def insert_execution(session: AsyncSession, row: WorkflowExecutionRow) -> None:
    """Insert an execution; its reconciler hears of it after the commit."""
    session.add(row)
    await session.flush()
    await announce(session, WorkflowExecutionRow)


async def by_key(session: AsyncSession, key: str) -> WorkflowExecutionRow | None:
    """Return the execution with this row id."""
    return await session.get(WorkflowExecutionRow, key)


async def by_workflow_id(
    session: AsyncSession, project_id: str, workflow_id: str, *, lock: bool = False
) -> WorkflowExecutionRow | None:
    """Return the project's execution; another project's is not found."""
    statement = select(WorkflowExecutionRow).where(
        WorkflowExecutionRow.project_id == project_id, WorkflowExecutionRow.workflow_id == workflow_id
    )
    if lock:
        statement = statement.with_for_update()
    return (await session.execute(statement)).scalar_one_or_none()


async def page(
    session: AsyncSession,
    project_id: str,
    *,
    workflow_type: str | None,
    status: str | None,
    after: str | None,
    limit: int,
) -> Sequence[WorkflowExecutionRow]:
    """Return up to ``limit + 1`` executions, newest first, behind the id ``after``."""
    table = WorkflowExecutionRow
    statement = select(table).where(table.project_id == project_id)
    if workflow_type is not None:
        statement = statement.where(table.workflow_type == workflow_type)
    if status is not None:
        statement = statement.where(table.status == status)
    if after is not None:
        statement = statement.where(table.workflow_id < after)
    rows = await session.execute(statement.order_by(table.workflow_id.desc()).limit(limit + 1))
    return rows.scalars().all()


async def open_attempts(session: AsyncSession, key: str) -> list[OpenAttempt]:
    """Return the attempts of an execution that have no outcome yet."""
    statement = (
        select(StepAttemptRow, JobTable.state)
        .outerjoin(JobTable, JobTable.id == StepAttemptRow.job_id)
        .where(StepAttemptRow.execution_id == key, StepAttemptRow.state.in_(OPEN))
    )
    return [
        OpenAttempt(row, None if state is None else JobState(state)) for row, state in await session.execute(statement)
    ]


async def attempts_of(session: AsyncSession, key: str) -> list[AttemptWithJob]:
    """Return every attempt of an execution, in the order of step, item and number."""
    table = StepAttemptRow
    statement = (
        select(table, JobTable)
        .outerjoin(JobTable, JobTable.id == table.job_id)
        .where(table.execution_id == key)
        .order_by(table.step, table.item, table.number)
    )
    found = [(row, job) for row, job in await session.execute(statement)]
    elsewhere = {row.job_id for row, job in found if job is None and row.state == JobState.RUNNING}
    told = await event_log.newest(session, elsewhere, "progress")
    return [AttemptWithJob(row, job, told.get(row.job_id)) for row, job in found]


async def insert_attempts(session: AsyncSession, rows: Iterable[Mapping[str, Any]]) -> None:
    """Insert attempts. A second attempt with the same execution, step, item and number is refused by the database."""
    found = list(rows)
    if found:  # past the ORM, which takes three times as long
        connection = await session.connection()
        await connection.execute(_INSERT_ATTEMPTS, found)


async def update_attempt(session: AsyncSession, job_id: str, values: Mapping[str, Any]) -> None:
    """Change columns of an attempt."""
    statement = update(StepAttemptRow).where(StepAttemptRow.job_id == job_id).values(**values)
    await session.execute(statement.execution_options(synchronize_session=False))


async def update_execution(session: AsyncSession, key: str, values: Mapping[str, Any]) -> None:
    """Change columns of an execution: those that its reconciler owns."""
    table = WorkflowExecutionRow.__table__
    connection = await session.connection()
    await connection.execute(table.update().where(table.c.id == key).values(**values))  # type: ignore[attr-defined]


async def wake_execution(session: AsyncSession, key: str) -> None:
    """Give an execution a turn now."""
    await wake(session, WorkflowExecutionRow, key)


async def with_finished_jobs(session: AsyncSession, limit: int = 1_000) -> Sequence[str]:
    """Return the keys of executions that wait for a job which has ended: the watcher's one query."""
    statement = (
        select(StepAttemptRow.execution_id)
        .join(JobTable, JobTable.id == StepAttemptRow.job_id)
        .where(StepAttemptRow.state.in_(OPEN), JobTable.state.in_(_ENDED_JOBS))
        .distinct()
        .limit(limit)
    )
    return (await session.execute(statement)).scalars().all()


async def cached(
    session: AsyncSession, project_id: str, cache_key: str, limit: int = 5
) -> Sequence[Row[tuple[str, Any]]]:
    """Return ``(job_id, result)`` of equal attempts that succeeded, newest first."""
    table = StepAttemptRow
    statement = (
        select(table.job_id, table.result)
        .where(
            table.project_id == project_id,
            table.cache_key == cache_key,
            table.state == JobState.SUCCEEDED,
            table.reused_from.is_(None),
        )
        .order_by(table.created_at.desc())
        .limit(limit)
    )
    return (await session.execute(statement)).all()


async def parked_wrongly(session: AsyncSession, after: str | None, limit: int = 200) -> Sequence[str]:
    """Return keys of unfinished executions that are parked without an open attempt: what a resync wakes."""
    table = WorkflowExecutionRow
    waits = select(StepAttemptRow.job_id).where(StepAttemptRow.execution_id == table.id, StepAttemptRow.state.in_(OPEN))
    statement = (
        select(table.id)
        .where(
            table.status.not_in(sorted(FINAL)),
            table.due_at.is_(None),
            true() if after is None else table.id > after,
            or_(~waits.exists(), table.cancel_requested_at.is_not(None)),
            or_(table.status != ExecutionState.PAUSED, table.pause_requested_at.is_(None)),
        )
        .order_by(table.id)
        .limit(limit)
    )
    return (await session.execute(statement)).scalars().all()


async def count_by_state(session: AsyncSession) -> Mapping[str, int]:
    """Return how many executions there are in each state."""
    table = WorkflowExecutionRow
    rows = await session.execute(select(table.status, func.count()).group_by(table.status))
    return {str(status): int(count) for status, count in rows}


async def decide_approval(session: AsyncSession, key: str, step: str, approval: Mapping[str, Any]) -> int:
    """Keep what a person decided on the open attempts of an ``approve`` step; return how many waited for it."""
    table = StepAttemptRow
    waiting = and_(table.execution_id == key, table.step == step, table.kind == "approve", table.state.in_(OPEN))
    ids = (await session.execute(select(table.job_id).where(waiting, table.submitted_at.is_not(None)))).scalars().all()
    for job_id in ids:
        await update_attempt(session, job_id, {"approval": dict(approval)})
    return len(ids)


async def registered(
    session: AsyncSession, project_id: str, but: str
) -> list[tuple[str, Mapping[str, Any], StepAttemptRow]]:
    """Return ``(workflow id, steps, attempt)`` of each ``register`` of the project's other unfinished executions."""
    execution, attempt = WorkflowExecutionRow, StepAttemptRow
    statement = (
        select(execution.workflow_id, execution.steps, attempt)
        .join(attempt, attempt.execution_id == execution.id)
        .where(
            execution.project_id == project_id,
            execution.status.in_(sorted(set(ExecutionState) - FINAL)),
            execution.workflow_id != but,
            attempt.kind == "register",
            attempt.state == JobState.SUCCEEDED,
        )
    )
    return [(workflow_id, steps, row) for workflow_id, steps, row in await session.execute(statement)]


async def succeeded_attempts(session: AsyncSession, project_id: str, workflow_id: str) -> Sequence[StepAttemptRow]:
    """Return the attempts of an execution that succeeded, in the order in which they ended."""
    statement = (
        select(StepAttemptRow)
        .join(WorkflowExecutionRow, WorkflowExecutionRow.id == StepAttemptRow.execution_id)
        .where(
            WorkflowExecutionRow.project_id == project_id,
            WorkflowExecutionRow.workflow_id == workflow_id,
            StepAttemptRow.state == JobState.SUCCEEDED,
        )
        .order_by(StepAttemptRow.finished_at, StepAttemptRow.job_id)
    )
    return (await session.execute(statement)).scalars().all()


async def offers(session: AsyncSession) -> dict[str, ComponentOfferRow]:
    """Return what every type of component that was ever seen offered, by type."""
    rows = (await session.execute(select(ComponentOfferRow).order_by(ComponentOfferRow.component_type))).scalars()
    return {row.component_type: row for row in rows}


async def keep_offer(session: AsyncSession, component_type: str, kinds: Sequence[Mapping[str, Any]]) -> None:
    """Note what a type of component offers now."""
    upsert = postgresql_insert if session.get_bind().dialect.name == "postgresql" else sqlite_insert
    values: dict[str, Any] = {"kinds": list(kinds), "away_since": None}
    statement = upsert(ComponentOfferRow).values(component_type=component_type, **values)
    await session.execute(statement.on_conflict_do_update(index_elements=["component_type"], set_=values))


async def mark_away(session: AsyncSession, types: Iterable[str]) -> None:
    """Note that no instance of these types is known any more; the first note stands."""
    gone = update(ComponentOfferRow).where(
        ComponentOfferRow.component_type.in_(sorted(types)), ComponentOfferRow.away_since.is_(None)
    )
    await session.execute(gone.values(away_since=utcnow()))


async def mark_back(session: AsyncSession, types: Iterable[str]) -> None:
    """Note that instances of these types are known again."""
    back = update(ComponentOfferRow).where(ComponentOfferRow.component_type.in_(sorted(types)))
    await session.execute(back.values(away_since=None))
