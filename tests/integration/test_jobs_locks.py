"""Rows of jobs that are locked together, on PostgreSQL: in the order in which leases are renewed."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import pytest
from sqlalchemy import delete, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.states import JobState
from burnish.infra.database import Database
from burnish.platform.jobs import store
from burnish.platform.jobs.tables import JobTable

pytestmark = pytest.mark.postgres
FIRST, SECOND = "job_B", "job_a"
"""As Python sorts them, and so the renewer of leases; by many a locale it is the other way round."""


def _job(job_id: str, state: JobState, priority: int) -> JobTable:
    return JobTable(
        id=job_id, project_id="default", component_type="fine_tuning", kind="sft", run="module:function", state=state,
        priority=priority, pausable=True, paused_by_shutdown=True, node="here",
    )  # fmt: skip


Locker = Callable[[AsyncSession], Awaitable[Sequence[JobTable]]]
_LOCKERS: dict[str, tuple[JobState, Locker]] = {
    "queued": (JobState.QUEUED, lambda session: store.queued(session, "here", ["fine_tuning"])),
    "pausable": (JobState.RUNNING, lambda session: store.pausable_on_node(session, "here")),
    "paused": (JobState.PAUSED, lambda session: store.paused_by_shutdown(session, "here")),
    "unfinished": (JobState.RUNNING, lambda session: store.unfinished_on(session, "here")),
}


async def test_who_locks_several_jobs_waits_for_the_first_with_nothing_held(postgres_url: str) -> None:
    """Breaks with: rows locked by priority, or as they come: a renewer of leases, and PostgreSQL ends one of the two."""
    database = Database(postgres_url)
    for name, (state, lock) in _LOCKERS.items():
        async with database.write() as session:
            await session.execute(delete(JobTable))
            for job_id, priority in ((SECOND, 9), (FIRST, 0)):
                await store.insert(session, _job(job_id, state, priority))

        async def locked(lock: Locker = lock) -> list[str]:
            async with database.write() as session:
                return [job.id for job in await lock(session)]

        async with database.write() as renewing:
            assert await store.find(renewing, FIRST, lock=True) is not None
            other = asyncio.create_task(locked())
            await _until_one_waits(database)
            assert await _is_free(database, SECOND), f"{name} holds one row and waits for another"
        assert set(await other) == {FIRST, SECOND}
    await database.dispose()


async def _is_free(database: Database, job_id: str) -> bool:
    async with database.write() as session:
        statement = select(JobTable.id).where(JobTable.id == job_id).with_for_update(skip_locked=True)
        return (await session.execute(statement)).scalar_one_or_none() is not None


async def test_the_queue_is_by_priority_and_then_first_come_however_it_is_locked(database: Database) -> None:
    async with database.write() as session:
        for job_id, priority in (("job_c", 0), ("job_b", 5), ("job_a", 0), ("job_d", 5)):
            await store.insert(session, _job(job_id, JobState.QUEUED, priority))
        await store.insert(session, _job("job_r", JobState.RUNNING, 9))
        elsewhere = _job("job_e", JobState.QUEUED, 9)
        elsewhere.node = "there"
        await store.insert(session, elsewhere)
    async with database.write() as session:
        found = await store.queued(session, "here", ["fine_tuning"])
        assert [job.id for job in found] == ["job_b", "job_d", "job_c", "job_a"]


async def test_what_is_no_longer_queued_once_its_lock_is_free_is_left_out(postgres_url: str) -> None:
    """Breaks with: a job that was cancelled while the scheduler waited for its row, and is started."""
    database = Database(postgres_url)
    async with database.write() as session:
        for job_id in (FIRST, SECOND):
            await store.insert(session, _job(job_id, JobState.QUEUED, 0))

    async def queued() -> list[str]:
        async with database.write() as session:
            return [job.id for job in await store.queued(session, "here", ["fine_tuning"])]

    async with database.write() as cancelling:
        job = await store.find(cancelling, FIRST, lock=True)
        assert job is not None
        await store.change_state(cancelling, job, JobState.CANCELLED)
        await cancelling.flush()
        other = asyncio.create_task(queued())
        await _until_one_waits(database)
    assert await other == [SECOND]
    await database.dispose()


async def _until_one_waits(database: Database) -> None:
    waits = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    deadline = time.monotonic() + 10
    while True:
        async with database.read() as session:
            if (await session.execute(waits)).scalar_one():
                return
        assert time.monotonic() < deadline, "nobody waits for the row"
        await asyncio.sleep(0.02)
