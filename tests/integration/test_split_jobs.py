"""Jobs of several processes: each admits what it offers, nodes share nothing, and a lost node's jobs go on elsewhere."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from burnish.core.errors import Unavailable
from burnish.core.settings import Settings
from burnish.core.states import InstanceState, JobState
from burnish.infra.database import Database
from burnish.infra.processes import identify
from burnish.platform.configuration import LiveConfiguration
from burnish.platform.integrator.schemas import Instance
from burnish.platform.jobs import store, unoffered
from burnish.platform.jobs.moving import free_queued, move_off
from burnish.platform.jobs.nodes import settle_node
from burnish.platform.jobs.runtime import JobRuntime
from burnish.platform.jobs.tables import HomeTable, JobTable, NodeTable
from tests.support.jobs_bench import COMPONENT, ROOT, Bench, gone
from tests.support.jobs_kinds import KINDS


@pytest.fixture
async def bench(database_url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made = Bench(database_url, home, cpus=3)
    yield made
    for runtime in (made.runtime, getattr(made, "elsewhere", made.runtime)):
        await runtime.stop()
        for folder in runtime.backend.folders().values():
            runtime.backend.remove(folder)
    await made.database.dispose()


def _elsewhere(bench: Bench, home: Path) -> JobRuntime:
    """Another home, another node, the same database and artifacts."""
    home.mkdir(exist_ok=True)
    runtime = bench.new_runtime(home=home, node="there", artifact_url=bench.settings.resolved_artifact_url)
    runtime.settings.jobs_dir.mkdir(exist_ok=True)
    bench.elsewhere = runtime  # type: ignore[attr-defined] # stopped by the fixture
    return runtime


async def _silence(database: Database, node: str) -> None:
    """Make it so that the node was last heard of a minute ago."""
    async with database.write() as session:
        await session.execute(update(NodeTable).where(NodeTable.name == node).values(seen_at=NodeTable.seen_at - 60))


async def test_a_process_admits_only_kinds_that_it_offers(bench: Bench) -> None:
    """Breaks with: a scheduler that admits whatever is queued."""
    other = JobRuntime(bench.database, bench.store, bench.settings, bench.runtime.tokens)
    other.offer("evaluation", KINDS)
    await other.start()
    await bench.submit("job_1", "count", {"to": 1})
    looks = other._scheduler.beats
    while other._scheduler.beats < looks + 2:
        await asyncio.sleep(0.05)
    assert (await bench.view("job_1")).state == JobState.QUEUED
    await bench.runtime.start()
    assert (await bench.ended("job_1")).state == JobState.SUCCEEDED
    await other.stop()


async def test_a_process_without_components_runs_no_jobs_and_is_no_node(bench: Bench) -> None:
    bare = JobRuntime(bench.database, bench.store, bench.settings, bench.runtime.tokens)
    await bare.start()
    assert bare.alive
    assert await bare.pause_running() == []
    async with bench.database.read() as session:
        assert await store.nodes(session) == []
    await bare.stop()


@pytest.mark.postgres
async def test_two_processes_of_a_home_share_what_the_node_has(
    postgres_url: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks with: each process counting its own jobs alone."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    bench = Bench(postgres_url, home, cpus=2)
    second = bench.new_runtime()
    await bench.runtime.start()
    await second.start()
    try:
        for number in range(6):
            await bench.submit(f"job_{number}", "count", {"to": 5, "seconds": 0.05})
        most = 0
        while True:
            async with bench.database.read() as session:
                running = len(await store.on_node(session, "here"))
                most = max(most, running)
                if not running and not await store.any_queued(session, [COMPONENT]):
                    break
            await asyncio.sleep(0.02)
        assert most == 2
        for number in range(6):
            view = await bench.view(f"job_{number}")
            assert (view.state, view.restarts) == (JobState.SUCCEEDED, 0)
    finally:
        await second.stop()
        await bench.runtime.stop()
        await bench.database.dispose()


async def _age(database: Database, node: str, seconds: float) -> None:
    """Make it so that a home took the node's name so long ago."""
    async with database.write() as session:
        since = HomeTable.created_at
        owner = (await session.execute(select(HomeTable.id, since).where(HomeTable.node == node))).one()
        moved = owner[1] - timedelta(seconds=seconds)
        await session.execute(update(HomeTable).where(HomeTable.id == owner[0]).values(created_at=moved))


async def test_a_lost_nodes_job_goes_on_elsewhere_from_its_checkpoint(bench: Bench, tmp_path: Path) -> None:
    """Breaks with: a job that begins anew, that its old host can still end, or whose old host outlives its node's return."""
    spec = {"to": 60, "seconds": 0.05, "checkpoint_every": 5}
    await bench.runtime.start()
    await bench.submit("job_1", "count", spec)
    await bench.until("job_1", lambda one: one.progress is not None and one.progress.done >= 10)
    await bench.runtime.stop()  # the process is gone; its host lives on, as in a partition
    before = await bench.view("job_1")
    assert before.pid is not None
    host = identify(before.pid)
    assert host is not None
    async with bench.database.write() as session:
        assert await move_off(session, "here", "tests") is False, "it was alive a moment ago"
    assert (await bench.view("job_1")).state == JobState.RUNNING
    await _silence(bench.database, "here")
    for _ in range(2):  # again is harmless
        async with bench.database.write() as session:
            assert await move_off(session, "here", "tests") is True
    assert (await bench.view("job_1")).state == JobState.QUEUED
    elsewhere = _elsewhere(bench, tmp_path / "there")
    await elsewhere.start()
    await bench.until("job_1", lambda one: one.state == JobState.RUNNING)
    await bench.runtime.start()  # the node comes back
    await gone(host.pid)
    view = await bench.ended("job_1")
    assert (view.state, view.restarts) == (JobState.SUCCEEDED, 0), view.error
    assert view.result is not None
    assert view.result["counted"] == 60
    assert int(str(view.result["resumed_from"])) >= 10
    steps = await bench.steps("job_1")
    assert max(steps) == 60
    async with bench.database.read() as session:
        row = await store.find(session, "job_1")
        assert row is not None
        assert row.node == "there"


async def test_the_result_of_a_host_on_a_lost_node_is_refused(bench: Bench) -> None:
    """It ended in its folder before the node came back; the same node takes the job again, in a folder made anew.

    Breaks with: a folder that is believed because it has the job's name.
    """
    await bench.runtime.start()
    await bench.submit("job_1", "count", {"to": 12, "seconds": 0.05})
    await bench.counted("job_1", 1)
    await bench.runtime.stop()
    pid = (await bench.view("job_1")).pid
    assert pid is not None
    await gone(pid)
    assert (bench.folder("job_1") / "result.1.json").exists()
    await _silence(bench.database, "here")
    async with bench.database.write() as session:
        await move_off(session, "here", "tests")
    bench.runtime = bench.new_runtime()
    await bench.runtime.start()
    view = await bench.ended("job_1")
    assert view.state == JobState.SUCCEEDED
    async with bench.database.read() as session:
        row = await store.find(session, "job_1")
        assert row is not None
        assert row.incarnation == 2
    steps = await bench.steps("job_1")
    assert steps[-12:] == list(range(1, 13))


async def test_what_was_asked_of_a_job_holds_when_its_node_is_lost(bench: Bench) -> None:
    """A cancel cancels, a pause pauses, what a shutdown paused is queued, and a job in the queue is anybody's."""
    await bench.runtime.start()
    for name in ("cancelled", "paused", "shut"):
        await bench.submit(f"job_{name}", "count", {"to": 1000, "seconds": 0.05})
        await bench.counted(f"job_{name}", 1)
    await bench.pause("job_paused")
    await bench.until("job_paused", lambda one: one.state == JobState.PAUSED)
    pids = [(await bench.view(f"job_{name}")).pid for name in ("cancelled", "shut")]
    await bench.runtime.stop()
    for pid in filter(None, pids):
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    await bench.cancel("job_cancelled")
    async with bench.database.write() as session:
        await session.execute(update(JobTable).where(JobTable.id == "job_shut").values(paused_by_shutdown=True))
    await _silence(bench.database, "here")
    async with bench.database.write() as session:
        await move_off(session, "here", "tests")
    states = {name: (await bench.view(f"job_{name}")).state for name in ("cancelled", "paused", "shut")}
    assert states == {"cancelled": "cancelled", "paused": "paused", "shut": "queued"}
    async with bench.database.read() as session:
        rows = await store.rows_of(session, ["job_paused", "job_shut"])
        assert {row.node for row in rows} == {None}


async def test_what_waits_for_a_node_that_has_stopped_is_anybodys_and_what_runs_there_is_not(
    bench: Bench, tmp_path: Path
) -> None:
    """Breaks with: a job in the queue that waits for its old node until that is lost; a running one that is doubled."""
    await bench.runtime.start()
    await bench.submit("job_runs", "count", {"to": 1000, "seconds": 0.05})
    await bench.submit("job_waits", "count", {"to": 60, "seconds": 0.05, "checkpoint_every": 5})
    await bench.until("job_waits", lambda one: one.progress is not None and one.progress.done >= 10)
    await bench.pause("job_waits")
    await bench.until("job_waits", lambda one: one.state == JobState.PAUSED)
    await bench.counted("job_runs", 1)
    await bench.runtime.stop()
    await bench.resume("job_waits")  # it is queued, and its node's
    for freed in (1, 0):
        async with bench.database.write() as session:
            assert await free_queued(session, "here", "evaluation", "tests") == 0, "another type's"
            assert await free_queued(session, "here", COMPONENT, "tests") == freed
    async with bench.database.read() as session:
        nodes = {row.id: (row.node, row.state) for row in await store.rows_of(session, ["job_runs", "job_waits"])}
    assert nodes == {"job_runs": ("here", "running"), "job_waits": (None, "queued")}
    elsewhere = _elsewhere(bench, tmp_path / "there")
    await elsewhere.start()
    view = await bench.ended("job_waits")
    assert view.result is not None
    assert (view.state, int(str(view.result["resumed_from"])) >= 10) == (JobState.SUCCEEDED, True)
    reasons = [str(e.data.get("reason")) for e in await bench.events("job_waits") if e.type == "state"]
    assert any("its node here has stopped; it goes on elsewhere from its checkpoint" in one for one in reasons), reasons
    await bench.runtime.start()
    await bench.cancel("job_runs")
    assert (await bench.ended("job_runs")).state == JobState.CANCELLED


async def test_a_job_that_nobody_takes_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks with: a queue without a scheduler that says nothing, or what the last one said."""
    monkeypatch.setattr(unoffered, "_MISSING_SECONDS", 0.0)
    instances: dict[str, Instance] = {}
    looking = unoffered.UnofferedJobs(bench.database, lambda: instances)
    await bench.submit("job_1", "count", {"to": 1})

    async def reason() -> str | None:
        await looking.look()
        return (await bench.view("job_1")).pending_reason

    nobody = "waits: no healthy instance offers kind count; no fine_tuning is there; it starts as soon as one does"
    assert await reason() == nobody
    lost = Instance(
        component_id="ft-1", component_type=COMPONENT, api_endpoint="", status=InstanceState.LOST, problem="it is silent"
    )  # fmt: skip
    instances["ft-1"] = lost
    assert "; ft-1 is lost (it is silent); it starts" in str(await reason())
    async with bench.database.write() as session:
        node = NodeTable(name="here", cpus=1, memory_bytes=1, gpus=0, disk_bytes=0)
        await store.put_node(session, node, [COMPONENT])
        await store.set_pending_reasons(session, {"job_1": "waits for 1 cpu"})
    instances["ft-1"] = lost.model_copy(update={"status": InstanceState.UNHEALTHY})
    assert await reason() == "waits for 1 cpu", "its scheduler has spoken lately"
    instances["ft-1"] = lost
    assert "ft-1 is lost" in str(await reason())
    instances["ft-1"] = lost.model_copy(update={"status": InstanceState.HEALTHY})
    await bench.runtime.start()
    ended = await bench.ended("job_1")
    assert (ended.state, ended.pending_reason) == (JobState.SUCCEEDED, None)
    await looking.look()


async def test_two_homes_of_one_machine_are_two_nodes(database: Database, tmp_path: Path) -> None:
    """Breaks with: homes that take the machine's name each."""
    homes = [tmp_path / name for name in ("one", "two", "three")]
    for one in homes:
        one.mkdir()
    found = await asyncio.gather(*(settle_node(database, Settings(home=one)) for one in homes))
    names = [one.node for one in found]
    assert len(set(names)) == 3
    assert os.uname().nodename in names
    again = [(await settle_node(database, Settings(home=one))).node for one in homes]
    assert again == names
    (homes[0] / "node").unlink()  # the database knows it as well
    assert (await settle_node(database, Settings(home=homes[0]))).node == names[0]


async def test_a_name_that_is_asked_for_is_one_homes(database: Database, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for one in (first, second):
        one.mkdir()
    await settle_node(database, Settings(home=first, node="gpu-1"))
    async with database.write() as session:
        node = NodeTable(name="gpu-1", cpus=1, memory_bytes=1, gpus=0, disk_bytes=0)
        await store.put_node(session, node, ["fine_tuning"])
    with pytest.raises(Unavailable, match="another home's"):
        await settle_node(database, Settings(home=second, node="gpu-1"))
    await _silence(database, "gpu-1")  # the home is gone for good, and the machine has a new one
    await _silence(database, "gpu-1")
    assert (await settle_node(database, Settings(home=second, node="gpu-1"))).node == "gpu-1"


@pytest.mark.parametrize("described", [True, False])
async def test_of_homes_that_take_a_silent_nodes_name_one_gets_it(
    database: Database, tmp_path: Path, described: bool
) -> None:
    """Breaks with: silence that is read from what the new home writes only later; a claim whose outcome is ignored."""
    homes = [tmp_path / name for name in ("gone", "a", "b", "late")]
    for one in homes:
        one.mkdir()
    await settle_node(database, Settings(home=homes[0], node="gpu-1"))
    if described:
        async with database.write() as session:
            await store.put_node(
                session, NodeTable(name="gpu-1", cpus=1, memory_bytes=1, gpus=0, disk_bytes=0), ["fine_tuning"]
            )
        await _silence(database, "gpu-1")
        await _silence(database, "gpu-1")
    await _age(database, "gpu-1", 120)
    racing = [settle_node(database, Settings(home=one, node="gpu-1")) for one in homes[1:3]]
    outcomes = await asyncio.gather(*racing, return_exceptions=True)
    assert sorted(type(one).__name__ for one in outcomes) == ["Settings", "Unavailable"], outcomes
    with pytest.raises(Unavailable, match="another home's"):
        await settle_node(database, Settings(home=homes[3], node="gpu-1"))
    winner = homes[1 if isinstance(outcomes[0], Settings) else 2]
    assert (await settle_node(database, Settings(home=winner, node="gpu-1"))).node == "gpu-1"


async def test_a_home_that_runs_only_the_platform_keeps_its_name_while_it_lives(
    database: Database, tmp_path: Path
) -> None:
    """Breaks with: a node that is alive by its jobs' scheduler alone."""
    first, second = tmp_path / "first", tmp_path / "second"
    for one in (first, second):
        one.mkdir()
    settings = await settle_node(database, Settings(home=first, node="edge"))
    await _age(database, "edge", 3600)
    live = LiveConfiguration(database, settings, "edge-1-a")
    await live.start()
    with pytest.raises(Unavailable, match="another home's"):
        await settle_node(database, Settings(home=second, node="edge"))
    await live.stop()
    assert (await settle_node(database, Settings(home=second, node="edge"))).node == "edge"
    assert (await settle_node(database, Settings(home=second, node="other"))).node == "other", "a new name for a home"


async def test_a_node_that_died_before_the_clock_was_set_back_is_lost_in_time(database: Database) -> None:
    """Breaks with: a time ahead of the clock that counts as alive until the clock gets there."""
    async with database.write() as session:
        await store.put_node(
            session, NodeTable(name="gpu-1", cpus=1, memory_bytes=1, gpus=0, disk_bytes=0), ["fine_tuning"]
        )
        await session.execute(update(NodeTable).values(seen_at=NodeTable.seen_at + 3600))
    async with database.write() as session:
        assert await move_off(session, "gpu-1", "tests") is False, "it may live, and has not said so yet"
    await _silence(database, "gpu-1")  # a minute passes
    async with database.write() as session:
        assert await move_off(session, "gpu-1", "tests") is True
