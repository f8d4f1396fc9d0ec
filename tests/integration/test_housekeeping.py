"""What nothing refers to goes after its grace; what something refers to stays."""

import os
from pathlib import Path

import pytest

from burnish.core.errors import Unavailable
from burnish.core.specs import ArtifactRef
from burnish.infra.artifact_store import ArtifactStore
from burnish.infra.artifact_store import store as artifacts
from burnish.infra.database import Database
from burnish.platform.monitoring.housekeeping import Housekeeping


def publish(store: ArtifactStore, text: str) -> ArtifactRef:
    folder = store.stage("report")
    (folder / "a.txt").write_text(text)
    return store.publish(folder, "report")


async def test_a_sweep_removes_what_nothing_refers_to(database: Database, store: ArtifactStore) -> None:
    kept, forgotten = publish(store, "kept"), publish(store, "forgotten")
    async with database.write() as session:
        for ref in (kept, forgotten):
            await artifacts.record(session, "default", ref)
        await artifacts.refer(session, "default", kept.digest, "execution", "wf_1")
    patient = Housekeeping(database, store, grace_seconds=3600)
    assert await patient.sweep() == []
    for ref in (kept, forgotten):  # an hour later
        for path in (store.open(ref), store.open(ref).parent):
            age(path)
    assert await patient.sweep() == [forgotten.digest]
    assert store.exists(kept.digest)
    assert not store.exists(forgotten.digest)
    async with database.read() as session:
        assert await artifacts.find(session, "default", forgotten.digest) is None
        assert await artifacts.find(session, "default", kept.digest) is not None


def age(path: Path) -> None:
    then = path.stat().st_mtime - 7200
    os.utime(path, (then, then))


async def test_a_server_that_sees_another_store_is_refused(database: Database, store: ArtifactStore) -> None:
    async with database.write() as session:
        await artifacts.claim_store(session, store.store_id, "file:///shared")
    async with database.write() as session:
        await artifacts.claim_store(session, store.store_id, "file:///shared/by/another/path")
    with pytest.raises(Unavailable) as caught:
        async with database.write() as session:
            await artifacts.claim_store(session, "another", "file:///not/shared")
    assert caught.value.where == "BURNISH_ARTIFACT_URL"
