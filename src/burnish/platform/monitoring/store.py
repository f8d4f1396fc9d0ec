"""What the database says of itself."""

from dataclasses import dataclass

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.infra.database import epoch_now
from burnish.platform.integrator.judging import STOPPED
from burnish.platform.integrator.tables import ComponentTable


@dataclass(frozen=True)
class DatabaseFacts:
    """A database server, as far as Burnish needs it."""

    version: str
    now: float
    """Its clock, in seconds since 1970."""
    max_connections: int | None
    """That others than superusers may have; None on SQLite."""
    used_connections: int = 0


async def facts(session: AsyncSession) -> DatabaseFacts:
    """Return what a database says of itself."""
    now = float((await session.execute(select(epoch_now()))).scalar_one())
    if session.get_bind().dialect.name == "sqlite":
        version = (await session.execute(text("SELECT sqlite_version()"))).scalar_one()
        return DatabaseFacts(f"SQLite {version}", now, None)
    row = (
        await session.execute(
            text(
                "SELECT current_setting('server_version'), current_setting('max_connections')::int"
                " - current_setting('superuser_reserved_connections')::int,"
                " (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')"
            )
        )
    ).one()
    return DatabaseFacts(f"PostgreSQL {row[0]}", now, int(row[1]), int(row[2]))


async def damage(session: AsyncSession) -> str | None:
    """Return what is wrong with a SQLite file, None if nothing is."""
    found = (await session.execute(text("PRAGMA quick_check(3)"))).scalars().all()
    return None if list(found) == ["ok"] else "; ".join(map(str, found))


@dataclass(frozen=True)
class KnownInstance:
    """An instance of a component as its row says."""

    component_id: str
    component_type: str
    version: str
    status: str
    problem: str | None
    stopped: bool = False
    """Somebody ended its process: that it is lost is no fault."""


async def instances(session: AsyncSession) -> list[KnownInstance]:
    """Return all instances."""
    table = ComponentTable
    columns = (table.component_id, table.component_type, table.version, table.status, table.problem, table.problem_kind)
    rows = await session.execute(select(*columns).order_by(table.component_id))
    return [
        KnownInstance(row[0], row[1] or "", row[2] or "", row[3] or "", row[4], row[5] == STOPPED) for row in rows.all()
    ]


async def processes(session: AsyncSession) -> int:
    """Return how many other processes of Burnish there are: with living instances or, more, with connections."""
    statement = select(func.count(func.distinct(ComponentTable.process))).where(ComponentTable.status != "lost")
    with_instances = int((await session.execute(statement)).scalar_one())
    if session.get_bind().dialect.name == "sqlite":
        return with_instances
    connected = text(
        "SELECT count(DISTINCT application_name) FROM pg_stat_activity WHERE application_name LIKE 'burnish %@%'"
        " AND application_name <> current_setting('application_name') AND datname = current_database()"
    )
    return max(with_instances, int((await session.execute(connected)).scalar_one()))
