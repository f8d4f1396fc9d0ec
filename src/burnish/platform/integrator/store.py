"""Queries of instances, and the one function through which an instance's state changes."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import ColumnElement, delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.states import INSTANCE, InstanceState, check
from burnish.infra import event_log
from burnish.infra.database import notify, utcnow
from burnish.infra.reconcile import announce
from burnish.platform.integrator.tables import ComponentTable

TOPIC = "components"
PLATFORM_PROJECT = "default"


async def find(session: AsyncSession, component_id: str, *, lock: bool = False) -> ComponentTable | None:
    """Return an instance's row."""
    statement = select(ComponentTable).where(ComponentTable.component_id == component_id)
    if lock:
        statement = statement.with_for_update()
    return (await session.execute(statement.execution_options(populate_existing=True))).scalar_one_or_none()


async def by_key(session: AsyncSession, key: str, *, lock: bool = False) -> ComponentTable | None:
    """Return an instance's row by the row's id."""
    statement = select(ComponentTable).where(ComponentTable.id == key)
    if lock:
        statement = statement.with_for_update()
    return (await session.execute(statement.execution_options(populate_existing=True))).scalar_one_or_none()


async def change_state(
    session: AsyncSession, row: ComponentTable, new: InstanceState, reason: str | None = None
) -> None:
    """Change an instance's state: checks the transition, appends the event, tells every process."""
    if row.status == new:
        return
    previous = row.status
    if previous is not None:
        check(INSTANCE, InstanceState(previous), new, f"component {row.component_id}")
    row.status = new
    await notify(session, TOPIC)
    await event_log.append(
        session, project_id=PLATFORM_PROJECT, subject=row.component_id, type="state",
        data={"state": new, "previous": previous, "reason": reason, "component_type": row.component_type},
    )  # fmt: skip


async def insert(session: AsyncSession, row: ComponentTable) -> None:
    """Insert an instance; its status and event are set by :func:`change_state`."""
    session.add(row)
    await session.flush()
    await changed(session)


async def changed(session: AsyncSession) -> None:
    """Tell every process, after the commit, that instances changed."""
    await announce(session, ComponentTable)
    await notify(session, TOPIC)


async def remove(session: AsyncSession, component_id: str) -> None:
    """Delete an instance's row."""
    await session.execute(delete(ComponentTable).where(ComponentTable.component_id == component_id))
    await changed(session)


async def all_of(session: AsyncSession, component_type: str | None = None) -> list[ComponentTable]:
    """Return every instance."""
    statement = select(ComponentTable).order_by(ComponentTable.component_id)
    if component_type is not None:
        statement = statement.where(ComponentTable.component_type == component_type)
    return list((await session.execute(statement)).scalars())


async def page(
    session: AsyncSession, *, component_type: str | None, statuses: Sequence[str], after: str | None, limit: int
) -> list[ComponentTable]:
    """Return up to ``limit + 1`` instances by id, behind the id ``after``."""
    statement = select(ComponentTable)
    if component_type is not None:
        statement = statement.where(ComponentTable.component_type == component_type)
    if statuses:
        statement = statement.where(ComponentTable.status.in_(statuses))
    if after is not None:
        statement = statement.where(ComponentTable.component_id > after)
    return list((await session.execute(statement.order_by(ComponentTable.component_id).limit(limit + 1))).scalars())


async def silent_embedded(session: AsyncSession, seconds: float) -> list[ComponentTable]:
    """Return embedded instances, locked, whose process has not been heard of for so long."""
    statement = select(ComponentTable).where(
        ComponentTable.embedded.is_(True),
        ComponentTable.status != InstanceState.LOST,
        ComponentTable.last_heartbeat < utcnow() - timedelta(seconds=seconds),
    )
    return list((await session.execute(statement.with_for_update(skip_locked=True))).scalars())


def remote() -> ColumnElement[bool]:
    """The rows that a reconciler probes: embedded instances are looked after by their own process."""
    return ComponentTable.embedded.is_(False)
