import asyncio
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Integer, MetaData, String, Table, inspect, select, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from burnish.core.errors import SchemaNewer
from burnish.infra import migrations
from burnish.infra.database import Database, epoch_now
from burnish.infra.migrations import history
from burnish.infra.migrations.generate import generate
from tests.support import databases

_UPGRADE = """
import asyncio, sys
from tests.support.databases import all_tables
from burnish.infra import migrations
from burnish.infra.database import Database, epoch_now
async def main():
    metadata = all_tables()
    if len(sys.argv) > 2:  # slow it down, so that it can be killed half-way
        from sqlalchemy import event
        from sqlalchemy.engine import Engine
        import time
        def slow(conn, cursor, statement, *_):
            if statement.lstrip().upper().startswith(("CREATE", "INSERT INTO BURNISH")):
                print("statement", flush=True)
                time.sleep(0.02)
        event.listen(Engine, "after_cursor_execute", slow)
    print("start", flush=True)
    database = Database(sys.argv[1])
    await migrations.upgrade(database, metadata)
    await database.dispose()
asyncio.run(main())
"""


@pytest.fixture
async def empty(empty_database_url: str) -> AsyncIterator[Database]:
    opened = Database(empty_database_url)
    yield opened
    await opened.dispose()


def process(url: str, *slow: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", _UPGRADE, url, *slow], stdout=subprocess.PIPE, text=True)


async def tables(database: Database) -> set[str]:
    def names(connection: Connection) -> set[str]:
        return set(inspect(connection).get_table_names())

    async with database.read() as session:
        return await (await session.connection()).run_sync(names)


async def test_the_history_makes_the_tables_of_the_code(empty: Database) -> None:
    metadata = databases.all_tables()
    assert databases.UNFINISHED == {}
    await migrations.upgrade(empty, metadata)
    assert await migrations.differences(empty, metadata) == [], (
        "regenerate: python -m burnish.infra.migrations.generate tests.support.databases:all_tables"
    )
    assert await migrations.schema_problem(empty) is None


async def test_upgrading_again_changes_nothing(empty: Database) -> None:
    metadata = databases.all_tables()
    problem = await migrations.schema_problem(empty)
    assert problem is not None
    assert "nothing" in problem
    await migrations.upgrade(empty, metadata)
    async with empty.write() as session:
        await session.execute(
            text(
                "INSERT INTO events (xid, project_id, subject, type, at, data) VALUES (0, 'p', 's', 'log', CURRENT_TIMESTAMP, '{}')"
            )
        )
    await migrations.upgrade(empty, metadata)
    async with empty.read() as session:
        assert await session.scalar(text("SELECT count(*) FROM events")) == 1


async def test_a_newer_schema_is_refused_and_left_alone(database: Database) -> None:
    async with database.write() as session:
        await session.execute(text(f"UPDATE {migrations.VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(SchemaNewer, match="9999") as caught:
        await migrations.upgrade(database, databases.all_tables())
    assert caught.value.hint
    problem = await migrations.schema_problem(database)
    assert problem is not None
    assert "9999" in problem


def test_the_files_are_named_as_their_revisions() -> None:
    """Breaks with: a database that is taken for the newest, or for one of another Burnish, by a file's name."""
    script = ScriptDirectory(str(history._HISTORY))
    assert history.revisions() == [one.revision for one in script.walk_revisions()][::-1]
    assert history.revisions()[-1] == script.get_current_head()


async def test_several_processes_upgrade_at_once(empty_database_url: str, empty: Database) -> None:
    started = [process(empty_database_url) for _ in range(3)]
    for one in started:
        await asyncio.to_thread(one.communicate, None, 60)
    assert [one.returncode for one in started] == [0, 0, 0]
    assert await migrations.schema_problem(empty) is None


async def test_killed_in_the_middle_it_leaves_nothing_and_goes_through_later(
    empty_database_url: str, empty: Database
) -> None:
    for statements in (1, 3, 8):
        one = process(empty_database_url, "slowly")
        assert one.stdout is not None
        for _ in range(statements + 1):
            await asyncio.to_thread(one.stdout.readline)
        one.send_signal(signal.SIGKILL)
        one.wait()
        one.stdout.close()
        deadline = time.monotonic() + 10
        while await tables(empty):  # PostgreSQL needs a moment to notice
            assert time.monotonic() < deadline, "half a schema was left"
            await asyncio.sleep(0.05)
    last = process(empty_database_url)
    last.communicate(timeout=60)
    assert last.returncode == 0
    assert await migrations.schema_problem(empty) is None


async def test_a_later_revision_is_generated_and_applied(
    tmp_path: Path, empty: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = tmp_path / "history" / "versions"
    versions.mkdir(parents=True)
    monkeypatch.setattr(history, "_HISTORY", tmp_path / "history")
    one = MetaData()
    Table("things", one, Column("id", Integer, primary_key=True))
    assert (await generate(one, versions=versions)).name == "0001_initial.py"
    await migrations.upgrade(empty, one)
    two = MetaData()
    Table("things", two, Column("id", Integer, primary_key=True), Column("name", String(10), nullable=True))
    Table("others", two, Column("id", Integer, primary_key=True))
    assert await migrations.differences(empty, two) != []
    written = await generate(two, "Things have names.", versions=versions)
    assert written.name == "0002_things_have_names.py"
    assert await migrations.schema_problem(empty) == "the database's schema is at 0001, this Burnish needs 0002"
    await migrations.upgrade(empty, two)
    assert await migrations.differences(empty, two) == []


async def test_instances_of_before_leases_get_one_and_their_node(
    tmp_path: Path, empty: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks with: rows that nobody looks at, that are never lost, and whose node's work nobody moves."""
    versions = tmp_path / "history" / "versions"
    versions.mkdir(parents=True)
    shutil.copy(history._HISTORY / "versions" / "0001_initial.py", versions)
    metadata = databases.all_tables()
    with monkeypatch.context() as first:
        first.setattr(history, "_HISTORY", tmp_path / "history")
        await migrations.upgrade(empty, metadata)
    async with empty.write() as session:
        for name, embedded, due in (("inside", True, None), ("outside", False, 7.0)):
            values = {"id": uuid.uuid4().hex, "name": name, "embedded": embedded, "due": due}
            await session.execute(
                text(
                    "INSERT INTO platform_components (id, component_id, component_type, name, version, status, metadata, "
                    "embedded, failures, due_at) VALUES (:id, :name, 'x', :name, '1', 'healthy', "
                    """'{"node": "gpu-1"}', :embedded, 0, :due)"""
                ),
                values,
            )
    await migrations.upgrade(empty, metadata)
    statement = "SELECT component_id, node, due_at, expires_at, state_since FROM platform_components ORDER BY 1"
    async with empty.read() as session:
        now = float((await session.execute(select(epoch_now()))).scalar_one())
        inside, outside = (await session.execute(text(statement))).all()
    assert (inside[:3], outside[:3]) == (("inside", "gpu-1", 0.0), ("outside", None, 7.0))
    for row in (inside, outside):
        assert now + 20 < row[3] <= now + 30
        assert now - 10 < row[4] <= now


async def test_the_documents_of_instances_go_last_and_nothing_else_changes(
    tmp_path: Path, empty: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks with: a list that reads through each description; a row, an index or a rule that the new table lacks."""
    shutil.copytree(history._HISTORY / "versions", tmp_path / "history" / "versions")
    for later in (tmp_path / "history" / "versions").glob("*.py"):
        if later.name >= "0008":
            later.unlink()
    metadata = databases.all_tables()
    with monkeypatch.context() as before:
        before.setattr(history, "_HISTORY", tmp_path / "history")
        await migrations.upgrade(empty, metadata)
    table = metadata.tables["platform_components"]
    description = {"kinds": ["größer", 1.5, None]}
    async with empty.write() as session:
        for n in range(3):
            values = {"component_id": f"i-{n}", "component_type": "x", "name": "n", "version": "1", "wakes": n}
            await session.execute(table.insert().values(**values, description=description, state_since=1 / 3))
    async with empty.read() as session:
        rows = {tuple(map(str, row._mapping.values())) for row in await session.execute(select(table))}
    await migrations.upgrade(empty, metadata)
    assert await migrations.differences(empty, metadata) == []
    async with empty.write() as session:
        assert {tuple(map(str, row._mapping.values())) for row in await session.execute(select(table))} == rows
        found = list((await session.execute(text("SELECT * FROM platform_components"))).keys())
        assert sorted(found) == sorted(table.c.keys())
        if empty.dialect == "sqlite":
            assert found[-3:] == ["evidence", "actions", "description"]
        with pytest.raises(IntegrityError):
            await session.execute(table.insert().values(component_id="i-0", component_type="x", name="n", version="1"))
