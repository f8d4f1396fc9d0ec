"""SQLite on a disk that takes nothing any more: said as what it is, and over when the disk is well again."""

import pytest
from sqlalchemy import text

from burnish.core.errors import OutOfDisk, Unavailable
from burnish.infra.database import Database


@pytest.mark.parametrize(
    ("broken", "error"),
    [("query_only=ON", Unavailable), ("max_page_count=1", OutOfDisk)],
    ids=["read-only", "full"],
)
async def test_a_disk_that_takes_nothing_is_told_and_nothing_is_written(
    sqlite_url: str, broken: str, error: type[Exception]
) -> None:
    """Breaks with: an internal error for what an administrator can mend."""
    database = Database(sqlite_url)
    try:
        async with database.write() as session:
            await session.execute(text("CREATE TABLE filled (body text)"))
        async with database.write() as session:  # the one connection that writes
            await session.execute(text(f"PRAGMA {broken}"))
        with pytest.raises(error):
            await _fill(database)
        await database.engine.dispose()  # the disk is well again: a new connection knows nothing of it
        async with database.write() as session:
            await session.execute(text("INSERT INTO filled VALUES ('after')"))
            assert (await session.execute(text("SELECT count(*) FROM filled"))).scalar_one() == 1
    finally:
        await database.dispose()


async def _fill(database: Database) -> None:
    async with database.write() as session:
        for _ in range(50):
            await session.execute(text("INSERT INTO filled VALUES (:body)"), {"body": "x" * 100_000})
