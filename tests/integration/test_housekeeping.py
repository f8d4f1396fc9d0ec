"""What nothing refers to goes after its grace; what something refers to stays."""

import os
from pathlib import Path

import pytest

from burnish.core.errors import Unavailable
from burnish.core.specs import ArtifactRef
from burnish.core.states import JobState
from burnish.infra.artifact_store import ArtifactStore
from burnish.infra.artifact_store import store as artifacts
from burnish.infra.database import Database
from burnish.platform.jobs import store as jobs
from burnish.platform.jobs.tables import JobTable
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


async def test_what_a_host_published_while_its_server_was_away_is_kept(
    database: Database, store: ArtifactStore
) -> None:
    """Another node's server is down for hours; its host publishes on, and no row tells of it yet.

    Breaks with: a grace that counts on servers that read within an hour what their hosts publish.
    """
    published = publish(store, "by a host whose server is down")
    for path in (store.open(published), store.open(published).parent):
        age(path)
    keeper = Housekeeping(database, store, grace_seconds=3600)
    job = JobTable(
        id="job_1", project_id="default", component_type="fine_tuning", kind="count", run="a:b", state=JobState.STARTING
    )
    async with database.write() as session:
        job.queued_at = await jobs.database_now(session) - 3 * 3600
        session.add(job)
    assert await keeper.sweep() == [], "it may have begun, and its server died before it knew"
    async with database.write() as session:
        (await session.get_one(JobTable, "job_1")).host_started_at = await jobs.database_now(session) - 2.5 * 3600
    assert await keeper.sweep() == []
    async with database.write() as session:
        found = await session.get_one(JobTable, "job_1")
        found.state, found.followed_at = JobState.RUNNING, await jobs.database_now(session) - 200
    assert await keeper.sweep() == [published.digest], "its server is there and has read of all that it published"


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
