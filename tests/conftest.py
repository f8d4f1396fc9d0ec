"""Fixtures for every suite: databases of both dialects, a home, an artifact store."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.infra.database import Database
from tests.support import databases
from tests.support.postgres import PostgresMissing, PostgresServer, running_server
from tests.support.redis import RedisMissing, RedisServer, running_redis


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this test session's own."""
    try:
        with running_server() as server:
            yield server
    except PostgresMissing as missing:
        if os.environ.get("CI", "").lower() in {"1", "true"}:
            pytest.fail(str(missing))
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A Redis server of this test session's own; who kills or freezes it starts it again."""
    try:
        with running_redis() as server:
            yield server
    except RedisMissing as missing:
        if os.environ.get("CI", "").lower() in {"1", "true"}:
            pytest.fail(str(missing))
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> str:
    """Name of a migrated database to copy."""
    name = postgres_server.create_database(name="burnish_template")
    databases.prepare(postgres_server.url(name))
    return name


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy."""
    return databases.sqlite_template(tmp_path_factory.mktemp("sqlite") / "template.db")


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """URL of a migrated SQLite database of this test's own."""
    return databases.copy_sqlite(sqlite_template, tmp_path)


@pytest.fixture
def postgres_url(postgres_server: PostgresServer, postgres_template: str) -> Iterator[str]:
    """URL of a migrated PostgreSQL database of this test's own."""
    name = postgres_server.create_database(postgres_template)
    yield postgres_server.url(name)
    postgres_server.drop_database(name)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> str:
    """URL of a migrated database of this test's own, on SQLite and then on PostgreSQL."""
    name = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    url: str = request.getfixturevalue(name)
    return url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database without any table, on SQLite and then on PostgreSQL."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'empty.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = server.create_database()
    yield server.url(name)
    server.drop_database(name)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """An open, migrated database of this test's own, on SQLite and then on PostgreSQL."""
    opened = Database(database_url)
    yield opened
    await opened.dispose()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty Burnish home."""
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def store(home: Path) -> FileArtifactStore:
    """An artifact store in the test's home."""
    return FileArtifactStore(home / "artifacts")


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Name bytes by their size: what gzip writes holds the time, and every worker must find the same names."""
    return f"{argname}_{len(val)}_bytes" if isinstance(val, bytes) and (len(val) > 20 or not val.isascii()) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave what is marked ``full`` to ``make test-full``: a case, never a kind of case."""
    if os.environ.get("BURNISH_TEST_FULL"):
        return
    full = {item for item in items if item.get_closest_marker("full") is not None}
    config.hook.pytest_deselected(items=sorted(full, key=lambda item: item.nodeid))
    items[:] = [item for item in items if item not in full]


def pytest_configure(config: pytest.Config) -> None:
    """In the short form only the tests' own processes are measured for coverage: in those they start it costs a third."""
    if hasattr(config, "workerinput") and not os.environ.get("BURNISH_TEST_FULL"):
        for name in ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START"):
            os.environ.pop(name, None)
