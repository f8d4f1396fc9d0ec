"""Bringing a database to the newest schema, and telling whether it is there."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import MetaData, inspect, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from burnish.core.errors import SchemaNewer, Unavailable
from burnish.infra.database import Database

VERSION_TABLE = "burnish_schema_version"
"""Not Alembic's default name: Optuna's storage in the same database uses that one."""

_HISTORY = Path(__file__).parent
_LOCK = 0x6275726E  # "burn"
_WAIT_SECONDS = 120


async def upgrade(database: Database, metadata: MetaData) -> None:
    """Apply every revision that the database lacks, in one transaction under a lock.

    Killed at any moment, it leaves the schema as it was; the next start begins again. Several processes may call it
    at once: one works, the others wait. Not to be called twice at once in one process (Alembic keeps global state).

    Raises:
        SchemaNewer: the database has a revision that this Burnish does not know.
        Unavailable: another process has been migrating for longer than two minutes, or the database is away.
    """
    async with database.read() as session:
        current = await (await session.connection()).run_sync(_current)
    if current == revisions()[-1]:
        return
    async with _transaction(database) as connection:
        await connection.run_sync(_upgrade, metadata)


async def schema_problem(database: Database) -> str | None:
    """Return what is wrong with the schema in words, or None when it is the newest.

    Raises:
        Unavailable: the database is away.
    """
    async with database.read() as session:
        connection = await session.connection()
        current = await connection.run_sync(_current)
    newest = revisions()[-1]
    if current == newest:
        return None
    return f"the database's schema is at {current or 'nothing'}, this Burnish needs {newest}"


async def differences(database: Database, metadata: MetaData) -> list[Any]:
    """Return where the database differs from the tables in the code, in Alembic's form (for tests)."""
    async with database.read() as session:
        connection = await session.connection()
        return await connection.run_sync(_compare, metadata)


def revisions() -> list[str]:
    """Return the revisions that this Burnish knows, oldest first: the files of ``versions/`` begin with them."""
    return sorted(path.name.partition("_")[0] for path in (_HISTORY / "versions").glob("[0-9]*_*.py"))


@asynccontextmanager
async def _transaction(database: Database) -> AsyncIterator[Any]:
    """A transaction that nothing else migrates in: SQLite's only writer, or under PostgreSQL's advisory lock.

    On PostgreSQL the connection is one of its own, because a migration may take longer than a request may.
    """
    if database.dialect == "sqlite":
        async with database.write() as session:
            yield await session.connection()
        return
    settings = {
        "application_name": "burnish-migration",
        "lock_timeout": str(_WAIT_SECONDS * 1000),
        "idle_in_transaction_session_timeout": "60000",  # a frozen migrator lets go
    }
    engine = create_async_engine(
        database.url, poolclass=NullPool, connect_args={"timeout": 10, "server_settings": settings}
    )
    try:
        async with engine.begin() as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            yield connection
    except (DBAPIError, OSError) as error:
        reason = getattr(error, "orig", None) or error
        if isinstance(error, OSError) or _is_trouble(error):
            raise Unavailable(
                f"the schema could not be upgraded: {reason}",
                hint="see that the database runs and that no other server is stuck in its upgrade",
            ) from error
        raise
    finally:
        await engine.dispose()


def _is_trouble(error: DBAPIError) -> bool:
    name = type(getattr(error.orig, "__cause__", None) or error.orig).__name__
    return error.connection_invalidated or name in {
        "LockNotAvailableError", "AdminShutdownError", "CrashShutdownError", "CannotConnectNowError",
        "ConnectionDoesNotExistError", "IdleInTransactionSessionTimeoutError", "InterfaceError",
    }  # fmt: skip


def _upgrade(connection: Connection, metadata: MetaData) -> None:
    current = _current(connection)
    known = revisions()
    if current is not None and current not in known:
        raise SchemaNewer(
            f"the database's schema is at {current}, which this Burnish does not know",
            where=VERSION_TABLE, hint="start the newer Burnish that made it, or restore a backup from before it",
        )  # fmt: skip
    if current != known[-1]:
        from burnish.infra.migrations.applying import apply  # see there

        apply(connection, str(_HISTORY), VERSION_TABLE, metadata)


def _current(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    found = connection.execute(text(f"SELECT max(version_num) FROM {VERSION_TABLE}")).scalar()  # noqa: S608 - a constant
    return None if found is None else str(found)


def _compare(connection: Connection, metadata: MetaData) -> list[Any]:
    from burnish.infra.migrations.applying import compare  # see there

    return compare(connection, VERSION_TABLE, metadata)
