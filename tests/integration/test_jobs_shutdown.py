"""Ctrl-C: what a node does with its jobs before its server ends."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from burnish.core.states import JobState
from tests.support.jobs_bench import ROOT, Bench


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
    assert (await bench.ended("job_2")).state == JobState.SUCCEEDED
