"""Databases for tests: one migrated template a session and dialect, a copy of it a test."""

import asyncio
import importlib
import shutil
import sqlite3
from pathlib import Path

from sqlalchemy import Connection, MetaData

import burnish
from burnish.infra import migrations
from burnish.infra.database import Base, Database

UNFINISHED: dict[str, Exception] = {}
"""Tables modules that could not be imported. The test of the migrations fails on them; other areas' tests need not."""


def all_tables() -> MetaData:
    """Return the metadata of every ``tables`` module of the source tree."""
    source = Path(burnish.__file__).parent
    for path in sorted(source.rglob("tables.py")):
        name = ".".join(("burnish", *path.relative_to(source).with_suffix("").parts))
        try:
            importlib.import_module(name)
        except (ImportError, SyntaxError) as error:
            UNFINISHED[name] = error
    return Base.metadata


def prepare(url: str) -> None:
    """Bring an empty database to the newest schema, as a server does at its start."""

    async def prepared() -> None:
        database = Database(url)
        try:
            await _migrate(database, all_tables())
        finally:
            await database.dispose()

    asyncio.run(prepared())


async def _migrate(database: Database, metadata: MetaData) -> None:
    await migrations.upgrade(database, metadata)
    if await migrations.differences(database, metadata):
        # While a table is being worked on its migration comes later; the test of the migrations fails on that alone.
        async with database.write() as session:
            connection = await session.connection()
            await connection.run_sync(_recreate, metadata)


def _recreate(connection: Connection, metadata: MetaData) -> None:
    metadata.drop_all(connection)
    metadata.create_all(connection)


def sqlite_template(path: Path) -> Path:
    """Make a migrated SQLite file at ``path`` that is whole in itself (no write-ahead log)."""
    prepare(f"sqlite+aiosqlite:///{path}")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return path


def copy_sqlite(template: Path, folder: Path) -> str:
    """Copy the template into ``folder`` and return the copy's URL."""
    target = folder / "burnish.db"
    shutil.copyfile(template, target)
    return f"sqlite+aiosqlite:///{target}"
