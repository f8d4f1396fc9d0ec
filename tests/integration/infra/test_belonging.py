"""A home and a store belong to one database: by another's rows, what is in them would be ended and swept."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from burnish.core.errors import HomeLocked, Unavailable
from burnish.core.settings import Settings
from burnish.infra.artifact_store import FileArtifactStore
from burnish.infra.artifact_store import store as artifacts
from burnish.infra.belonging import OWNER_FILE, claim
from burnish.infra.database import Database
from burnish.wiring import build, open_installation
from tests.support import databases


@pytest.fixture
async def other(sqlite_template: Path, tmp_path: Path) -> AsyncIterator[Database]:
    """A second database, new."""
    folder = tmp_path / "other"
    folder.mkdir()
    database = Database(databases.copy_sqlite(sqlite_template, folder))
    yield database
    await database.dispose()


async def _claim(database: Database, home: Path, store: Path | None = None) -> None:
    folder = store or home / "artifacts"
    await claim(database, FileArtifactStore(folder), home, folder.as_uri())


async def test_a_used_home_is_refused_to_another_database(database: Database, other: Database, home: Path) -> None:
    await _claim(database, home)
    await _claim(database, home)
    for _ in range(2):
        with pytest.raises(Unavailable, match="which is new") as caught:
            await _claim(other, home)
    async with database.read() as session:
        known = await artifacts.database_id(session)
    assert str(known) in caught.value.message
    assert caught.value.where == str(home / OWNER_FILE)
    assert "BURNISH_HOME" in str(caught.value.hint)
    async with other.read() as session:
        assert await artifacts.database_id(session) is None, "a refusal changes nothing"
    await _claim(other, home.parent / "other")  # with a home of its own it may start
    await _claim(database, home)


async def test_a_used_store_is_refused_and_can_be_taken_over(database: Database, other: Database, home: Path) -> None:
    store, second = home / "artifacts", home.parent / "second"
    second.mkdir()
    await _claim(database, home, store)
    with pytest.raises(Unavailable, match="the artifact store") as caught:
        await _claim(other, second, store)
    assert caught.value.where == f"{store.as_uri()}/owner"
    (store / "owner").unlink()  # the first is gone for good
    await _claim(other, second, store)
    with pytest.raises(Unavailable, match=r"other/.*\.db"):
        await _claim(database, home, store)


async def test_servers_that_start_together_agree(database: Database, home: Path, tmp_path: Path) -> None:
    homes = [tmp_path / f"home{number}" for number in range(4)]
    for one in homes:
        one.mkdir()
    await asyncio.gather(*(_claim(database, one, home / "artifacts") for one in homes))
    assert len({(one / OWNER_FILE).read_text() for one in homes}) == 1


async def test_one_that_is_first_just_as_another_looks_is_no_other(
    database: Database, home: Path, tmp_path: Path
) -> None:
    """Breaks with: an owner's file that is younger than what was read of the database."""
    folder, second = home / "artifacts", tmp_path / "second"
    second.mkdir()
    loop = asyncio.get_running_loop()

    class Overtaken(FileArtifactStore):
        """Another server's whole start comes before its owner is read."""

        def owner(self) -> str | None:
            asyncio.run_coroutine_threadsafe(_claim(database, home, folder), loop).result(10)
            return super().owner()

    await claim(database, Overtaken(folder), second, folder.as_uri())
    assert (second / OWNER_FILE).read_text() == (home / OWNER_FILE).read_text()


def _settings(url: str, home: Path) -> Settings:
    return Settings(home=home, database_url=SecretStr(url), components="data_management")


async def test_a_server_on_another_database_does_not_start(database_url: str, other: Database, home: Path) -> None:
    """Breaks with: a server that begins to sweep before it knows that the home is its database's."""
    first = build(await open_installation(_settings(database_url, home)))
    await first.start()
    await first.stop()
    with pytest.raises(Unavailable, match="belongs to the database"):
        await open_installation(_settings(other.url, home))
    again = await open_installation(_settings(database_url, home))  # the refused one let go of the home
    await again.close()


@pytest.mark.postgres
async def test_servers_on_postgres_share_a_home_and_not_with_one_on_sqlite(postgres_url: str, home: Path) -> None:
    first, second = [build(await open_installation(_settings(postgres_url, home))) for _ in range(2)]
    await first.start()
    await second.start()
    assert first.settings.node == second.settings.node
    with pytest.raises(HomeLocked):
        await open_installation(Settings(home=home, components="data_management"))
    await second.stop()
    await first.stop()
