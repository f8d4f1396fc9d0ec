"""Queries of instances, and the one function through which an instance's state changes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    JSON,
    ColumnElement,
    Float,
    Select,
    Text,
    bindparam,
    cast,
    delete,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import undefer

from burnish.core.states import INSTANCE, InstanceState, check
from burnish.infra import event_log
from burnish.infra.database import epoch_now, notify, utcnow
from burnish.infra.reconcile import announce, wake
from burnish.platform.integrator.tables import ComponentTable

TOPIC = "components"
PLATFORM_PROJECT = "default"
KEPT_ACTIONS = 20
SUPERVISOR = "supervisor"
"""In a row's metadata: who starts its process again."""
_GONE = frozenset({InstanceState.LOST, InstanceState.DRAINING})

_C = ComponentTable


class Listed(NamedTuple):
    """What a list shows of an instance; documents as their text."""

    id: str
    component_id: str
    component_type: str
    name: str
    version: str
    status: str | None
    health_endpoint: str | None
    api_endpoint: str | None
    metadata_: str | None
    registered_at: datetime | None
    last_heartbeat: datetime | None
    embedded: bool
    kinds: str | None
    health: str | None
    failures: int
    problem: str | None
    problem_kind: str | None
    source: str
    node: str | None
    generation: int
    protocol_version: str | None
    weight: float | None
    state_since: float | None
    restarts: int
    restart_requested_at: datetime | None


_SHOWN = tuple(getattr(_C, name).property.columns[0] for name in Listed._fields)


def _as_text(names: Sequence[str]) -> list[ColumnElement[Any]]:
    """Return columns by their attributes' names, documents as their text."""
    columns = (getattr(_C, name).property.columns[0] for name in names)
    return [cast(column, Text) if isinstance(column.type, JSON) else column for column in columns]


@dataclass(frozen=True)
class Wanted:
    """Which instances a list is asked for."""

    component_type: str | None = None
    statuses: Sequence[str] = ()
    after: str | None = None
    """Only those with a greater id."""

    @property
    def conditions(self) -> list[ColumnElement[bool]]:
        """What a query of these has to hold to."""
        found: list[ColumnElement[bool]] = []
        if self.component_type is not None:
            found.append(_C.component_type == self.component_type)
        if self.statuses:
            found.append(_C.status.in_(self.statuses))
        if self.after is not None:
            found.append(_C.component_id > self.after)
        return found


class Known(NamedTuple):
    """What a process reads, again and again, of every instance; documents as their text: few have changed."""

    component_id: str
    component_type: str
    api_endpoint: str | None
    status: str | None
    embedded: bool
    description_digest: str | None
    health: str | None
    weight: float | None
    failures: int
    problem: str | None
    generation: int
    source: str


async def find(session: AsyncSession, component_id: str, *, lock: bool = False) -> ComponentTable | None:
    """Return an instance's row."""
    return await _one(session, select(_C).where(_C.component_id == component_id), lock=lock)


async def lock(session: AsyncSession, component_ids: Sequence[str]) -> None:
    """Lock instances' rows together, in the order in which everybody does, before one after the other is changed."""
    statement = select(_C.id).where(_C.component_id.in_(component_ids)).order_by(_C.id).with_for_update()
    await session.execute(statement)


async def by_key(session: AsyncSession, key: str, *, lock: bool = False) -> ComponentTable | None:
    """Return an instance's row by the row's id."""
    return await _one(session, select(_C).where(_C.id == key), lock=lock)


async def by_keys(session: AsyncSession, keys: Sequence[str]) -> dict[str, ComponentTable]:
    """Return instances' rows by the rows' ids, without what is long."""
    rows = (await session.execute(select(_C).where(_C.id.in_(keys)))).scalars()
    return {row.id: row for row in rows}


async def _one(session: AsyncSession, statement: Select[Any], *, lock: bool) -> ComponentTable | None:
    if lock:
        statement = statement.with_for_update()
    statement = statement.options(undefer(_C.actions))  # its description is long, and only ever written here
    found: ComponentTable | None = (
        await session.execute(statement.execution_options(populate_existing=True))
    ).scalar_one_or_none()
    return found


async def now(session: AsyncSession) -> float:
    """Return the database's clock."""
    return float((await session.execute(select(epoch_now()))).scalar_one())


async def count(session: AsyncSession) -> int:
    """Return how many instances there are."""
    return int((await session.execute(select(func.count()).select_from(_C))).scalar_one())


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
    row.state_since = await now(session)
    await notify(session, TOPIC)
    await event_log.append(
        session, project_id=PLATFORM_PROJECT, subject=row.component_id, type="state",
        data={"state": new, "previous": previous, "reason": reason, "component_type": row.component_type},
    )  # fmt: skip


async def act(
    session: AsyncSession, row: ComponentTable, action: str, cause: str, more: Mapping[str, Any] | None = None
) -> None:
    """Note an action of recovery on the row and as an event."""
    said = {"at": utcnow().isoformat(), "action": action, "cause": cause}
    row.actions = [*(row.actions or []), said][-KEPT_ACTIONS:]
    await event_log.append(
        session, project_id=PLATFORM_PROJECT, subject=row.component_id, type="action",
        data={"action": action, "cause": cause, "component_type": row.component_type, **(more or {})},
    )  # fmt: skip


async def insert(session: AsyncSession, row: ComponentTable) -> bool:
    """Insert an instance; False if another has inserted its id meanwhile."""
    try:
        async with session.begin_nested():
            session.add(row)
    except IntegrityError:
        return False
    await changed(session)
    return True


async def changed(session: AsyncSession) -> None:
    """Tell every process, after the commit, that instances changed."""
    await announce(session, ComponentTable)
    await notify(session, TOPIC)


async def look_now(session: AsyncSession, row: ComponentTable) -> None:
    """Have an instance looked at as soon as possible."""
    await session.flush()
    await wake(session, ComponentTable, row.id)


async def suspect(session: AsyncSession, component_ids: Sequence[str]) -> None:
    """Have instances looked at as soon as possible: a call to them just failed."""
    statement = select(_C.id).where(_C.component_id.in_(component_ids), _C.due_at.is_not(None)).order_by(_C.id)
    for key in list((await session.execute(statement)).scalars()):
        await wake(session, ComponentTable, key)


async def remove(session: AsyncSession, component_id: str) -> None:
    """Delete an instance's row."""
    await session.execute(delete(ComponentTable).where(ComponentTable.component_id == component_id))
    await changed(session)


async def known(session: AsyncSession) -> list[Known]:
    """Return every instance as a process needs it to call them; their descriptions apart."""
    statement = select(*_as_text(Known._fields)).order_by(_C.component_id)
    connection = await session.connection()  # without the ORM, which has nothing to add
    return [Known(*row) for row in (await connection.execute(statement)).all()]


async def descriptions(session: AsyncSession, digests: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return descriptions by their digest."""
    rows = await session.execute(
        select(_C.description_digest, _C.description).where(_C.description_digest.in_(digests))
    )
    return {str(digest): description for digest, description in rows.all() if description is not None}


async def states(session: AsyncSession, wanted: Wanted, limit: int) -> list[tuple[str, str]]:
    """Return up to ``limit`` instances by id, each with a text that differs as soon as a list would show it otherwise.

    That much is read for every list; :func:`listed` reads the rest where the text is not the one seen before.
    """
    statement = select(_C.component_id, _state(session)).where(*wanted.conditions)
    statement = statement.order_by(_C.component_id).limit(limit)
    connection = await session.connection()  # without the ORM, which has nothing to add
    return [(component_id, state) for component_id, state in (await connection.execute(statement)).all()]


async def listed(session: AsyncSession, wanted: Wanted, component_ids: Sequence[str]) -> list[tuple[str, Listed]]:
    """Return those of these instances that still are wanted, each with the text that :func:`states` gives of it."""
    statement = select(_state(session), *_as_text(Listed._fields)).where(
        *wanted.conditions, _C.component_id.in_(component_ids)
    )
    return [(state, Listed(*shown)) for state, *shown in await session.execute(statement)]


def _state(session: AsyncSession) -> ColumnElement[str]:
    """Return what tells the states of a row apart.

    PostgreSQL says which version of the row it is: which transaction wrote it, and where to. Both are counted by one
    server; another one that takes its place, from a backup or as its standby, has started at another time. SQLite has
    no such thing, but reads quickly: there it is all that is shown, floats with all of their digits.
    """
    return _VERSION if session.get_bind().dialect.name == "postgresql" else _CONTENT


_VERSION: ColumnElement[str] = literal_column(
    "concat_ws(' ', (SELECT pg_postmaster_start_time()), platform_components.xmin, platform_components.ctid)", Text
)
_CONTENT: ColumnElement[str] = literal_column(
    f"json_array({', '.join(f'quote({one})' if isinstance(one.type, Float) else str(one) for one in _SHOWN)})", Text
)
"""As text, which is quicker to make a statement of than 25 columns are."""


async def found_by(session: AsyncSession, sources: Iterable[str]) -> list[ComponentTable]:
    """Return the instances that discovery found."""
    return list((await session.execute(select(_C).where(_C.source.in_(list(sources))))).scalars())


async def at_endpoints(session: AsyncSession, endpoints: Sequence[str]) -> dict[str, set[str]]:
    """Return how the instances at these endpoints were found, by endpoint."""
    rows = await session.execute(select(_C.api_endpoint, _C.source).where(_C.api_endpoint.in_(endpoints)))
    found: dict[str, set[str]] = {}
    for endpoint, source in rows.all():
        found.setdefault(str(endpoint), set()).add(source)
    return found


async def renew(session: AsyncSession, seen: Mapping[str, tuple[int, float]]) -> None:
    """Note signs of life that came beside a turn: by component_id of which incarnation, and how long its lease lasts."""
    await lock(session, list(seen))
    statement = (
        update(_C.__table__)  # type: ignore[arg-type]
        .where(
            _C.component_id == bindparam("one"), _C.generation == bindparam("of"), _C.drain_until.is_(None),
        )
        .values(expires_at=epoch_now() + bindparam("seconds", type_=Float), last_heartbeat=utcnow())
    )  # fmt: skip
    connection = await session.connection()
    rows = [{"one": name, "of": generation, "seconds": seconds} for name, (generation, seconds) in seen.items()]
    await connection.execute(statement, rows)


async def speaks_for_silent_node(session: AsyncSession, row: ComponentTable, seconds: float) -> bool:
    """Tell whether all of a node's processes have been lost for so long, and this row is the first of its instances.

    One row of a node speaks for all, so that its work is moved once.
    """
    if row.node is None or not row.embedded:
        return False
    of_node = (_C.node == row.node, _C.embedded.is_(True))
    alive = (_C.status != InstanceState.LOST) | _C.status.is_(None) | (_C.state_since > epoch_now() - seconds)
    await session.flush()
    if (await session.execute(select(_C.id).where(*of_node, alive).limit(1))).first() is not None:
        return False
    first = await session.execute(select(func.min(_C.component_id)).where(*of_node))
    return bool(first.scalar_one() == row.component_id)


async def is_last_of_node(session: AsyncSession, row: ComponentTable) -> bool:
    """Tell whether this locked row alone stands for its node: without it nobody would notice that the node is lost.

    The answer holds until the unit of work ends: whoever else asks it of the node waits, so that of two rows that are
    removed at once one is the last.
    """
    if row.node is None or not row.embedded:
        return False
    if session.get_bind().dialect.name == "postgresql":  # on SQLite there is one writer
        key = func.hashtextextended(f"{_C.__tablename__} {row.node}", 0)
        await session.execute(select(func.pg_advisory_xact_lock(key)))
    others = select(_C.id).where(_C.node == row.node, _C.embedded.is_(True), _C.id != row.id)
    return (await session.execute(others.limit(1))).first() is None


async def speaks_for_stopped_type(session: AsyncSession, row: ComponentTable, seconds: float) -> bool:
    """Tell whether a node's processes have offered the row's type no more for so long, and this row is the first of them.

    Those of a supervisor count as there until they are lost for long: it starts them again in place.
    """
    if row.node is None or not row.embedded:
        return False
    await session.flush()
    columns = (_C.component_id, _C.status, _C.state_since, _C.metadata_)
    of_node = (_C.node == row.node, _C.component_type == row.component_type, _C.embedded.is_(True))
    found = (await session.execute(select(*columns).where(*of_node))).all()
    since = await now(session) - seconds
    if any(
        one.status not in _GONE or (one.state_since or 0) > since or SUPERVISOR in (one.metadata_ or {})
        for one in found
    ):
        return False
    return row.component_id == min(str(one.component_id) for one in found)


def looked_at(but: Sequence[str]) -> ColumnElement[bool]:
    """The rows that a process looks at: all but its own, which beat by themselves."""
    return _C.component_id.not_in(list(but))
