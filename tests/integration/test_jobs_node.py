"""A node and its jobs: what Ctrl-C does with them, what fits, and which folders go."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from burnish.core.protocol import JobRequest
from burnish.core.specs.base import Resources
from burnish.core.states import JobState
from burnish.infra.database import Database
from burnish.platform.jobs import store
from burnish.platform.jobs.tables import NodeTable
from burnish.platform.jobs.validation import validate
from tests.support.jobs_bench import ROOT, Bench
from tests.support.jobs_kinds import KINDS


@pytest.fixture
async def bench(database_url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made = Bench(database_url, home, cpus=2)
    await made.runtime.start()
    yield made
    await made.runtime.stop()
    for folder in made.runtime.backend.folders().values():
        made.runtime.backend.remove(folder)
    await made.database.dispose()


async def test_a_job_that_pauses_makes_no_room_for_another(bench: Bench) -> None:
    """Breaks with: a scheduler that goes on admitting while running jobs are paused."""
    await bench.submit("job_1", "count", {"to": 10000, "seconds": 0.05, "cpus": 2})
    await bench.counted("job_1", 1)
    await bench.submit("job_2", "count", {"to": 1, "cpus": 2})
    await bench.until("job_2", lambda one: one.pending_reason is not None)
    assert await bench.runtime.pause_running() == []
    await bench.runtime.stop()
    assert (await bench.view("job_1")).state == JobState.PAUSED
    second = await bench.view("job_2")
    assert (second.state, second.started_at) == (JobState.QUEUED, None)
    bench.runtime = bench.new_runtime()
    await bench.runtime.start()
    await bench.cancel("job_1")
    second = await bench.ended("job_2")
    assert second.state == JobState.SUCCEEDED, second.error


async def test_what_a_kind_asks_for_by_itself_fits_the_largest_node(bench: Bench) -> None:
    """A machine of one core takes longer; it is not refused. What a definition asks for is as it says.

    Breaks with: a kind's own number of cores that nobody can lower.
    """
    own = JobRequest(kind="count", spec={"to": 1, "cpus": 8})
    answer, _ = await validate(own, KINDS, bench.database, bench.store)
    assert not answer.problems
    assert answer.resources is not None
    assert answer.resources.cpus == 2
    told = own.model_copy(update={"resources": Resources(cpus=8)})
    answer, _ = await validate(told, KINDS, bench.database, bench.store)
    assert [problem.where for problem in answer.problems] == ["resources.cpus"]


async def test_a_folder_into_which_a_job_comes_back_is_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks with: a sweep that removes by what the rows said before it removed others."""
    await bench.runtime.stop()
    jobs = ("job_1", "job_2")
    for job_id in jobs:
        await bench.submit(job_id, "count", {"to": 1})
        bench.folder(job_id).mkdir(parents=True)
    loop, remove = asyncio.get_running_loop(), bench.runtime.backend.remove
    removed: list[Path] = []

    async def admit_the_others() -> None:
        async with bench.database.write() as session:
            for job in await store.rows_of(session, jobs):
                job.directory = str(bench.folder(job.id))

    def remove_slowly(folder: Path) -> None:
        removed.append(folder)
        asyncio.run_coroutine_threadsafe(admit_the_others(), loop).result(10)
        remove(folder)

    with monkeypatch.context() as patched:
        patched.setattr(bench.runtime.backend, "remove", remove_slowly)
        swept = await bench.runtime.sweep()
    assert [bench.folder(job_id) for job_id in swept] == removed
    assert len(removed) == 1
    assert [bench.folder(job_id).exists() for job_id in jobs if job_id not in swept] == [True]
    assert await bench.runtime.sweep() == []


async def test_processes_of_a_node_that_start_at_the_same_moment_all_start(database: Database) -> None:
    """Breaks with: each of them inserts the node that none of them found, and all but one fail to start."""

    async def said(url: str) -> None:
        node = NodeTable(name="new", cpus=2, memory_bytes=1 << 30, gpus=0, disk_bytes=1 << 30)
        async with database.write() as session:
            await store.put_node(session, node, ["fine_tuning"], url)

    urls = {f"http://127.0.0.1:{number}" for number in range(4)}
    await asyncio.gather(*map(said, urls))
    async with database.read() as session:
        (node,) = await store.nodes(session)
    assert set((node.offers or {})["fine_tuning"]) == urls
