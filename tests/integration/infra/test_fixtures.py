from sqlalchemy import text

from burnish.infra.artifact_store import FileArtifactStore
from burnish.infra.database import Database


async def test_a_database_is_migrated_and_empty(database: Database) -> None:
    async with database.read() as session:
        assert (await session.execute(text("SELECT count(*) FROM events"))).scalar() == 0


def test_a_store_stands_in_the_home(store: FileArtifactStore) -> None:
    staged = store.stage("x")
    (staged / "a").write_text("1")
    assert (store.open(store.publish(staged, "report")) / "a").read_text() == "1"
