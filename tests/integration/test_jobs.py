"""Jobs in real host processes, on both databases."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from burnish.core.protocol import JobRequest
from burnish.core.specs.base import ArtifactRef
from burnish.core.states import JobState
from burnish.core.threads import SPIN_COUNT
from burnish.infra.artifact_store import store as artifacts
from burnish.infra.processes import group_members, identify
from burnish.platform.jobs import recording, service, store
from burnish.platform.jobs.files import EVENTS_FILE
from burnish.platform.jobs.tables import JobTable
from burnish.platform.jobs.validation import validate
from tests.support.jobs_bench import ROOT, Bench, gone
from tests.support.jobs_kinds import KINDS

Benches = Callable[..., Bench]


@pytest.fixture
async def benches(database_url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Benches]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made: list[Bench] = []

    def make(**settings: Any) -> Bench:
        made.append(Bench(database_url, home, **settings))
        return made[-1]

    yield make
    for bench in made:
        await bench.runtime.stop()
        for folder in bench.runtime.backend.folders().values():
            bench.runtime.backend.remove(folder)
        await bench.database.dispose()


@pytest.fixture
async def bench(benches: Benches) -> Bench:
    made = benches()
    await made.runtime.start()
    return made


async def test_a_job_runs_and_its_result_events_and_artifact_are_recorded(bench: Bench) -> None:
    await bench.submit("job_a", "count", {"to": 30})
    view = await bench.ended("job_a")
    assert view.state == JobState.SUCCEEDED, view.error
    assert view.result is not None
    assert view.result["counted"] == 30
    assert await bench.steps("job_a") == list(range(1, 31))
    assert await bench.states("job_a") == ["queued", "starting", "running", "succeeded"]
    output = ArtifactRef.model_validate(view.result["output"])
    assert view.artifacts == (output,)
    assert (bench.store.open(output) / "count").read_text() == "30"
    assert view.progress is not None
    assert (view.progress.done, view.progress.metrics["loss"]) == (30, 1 / 30)
    await _until(lambda: not bench.folder("job_a").exists())


async def _until(wanted: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_a_failure_is_typed_and_its_traceback_is_in_the_log(bench: Bench) -> None:
    await bench.submit("job_bug", "fail", {})
    await bench.submit("job_row", "count", {"to": 9, "fail_at": 3})
    view = await bench.ended("job_bug")
    assert view.state == JobState.FAILED
    assert view.error is not None
    assert (view.error.code, view.error.message) == ("job_failed", "RuntimeError: this is a bug")
    log = "\n".join(str(e.data["message"]) for e in await bench.events("job_bug") if e.type == "log")
    assert "Traceback" in log
    assert "printed before it failed" in log
    view = await bench.ended("job_row")
    assert view.error is not None
    assert (view.error.code, view.error.where, view.error.hint) == ("bad_data", "line 3", "mend the row")


async def test_characters_that_cannot_be_stored_neither_wedge_a_job_nor_hide_its_error(bench: Bench) -> None:
    """Breaks with: a host's result, error, progress or metadata written as they came."""
    said = "nul \ufffd, half a pair ?."
    await bench.submit("job_odd", "say_odd", {})
    await bench.submit("job_bad", "say_odd", {"fail": True})
    good, bad = await bench.ended("job_odd"), await bench.ended("job_bad")
    assert (good.state, good.restarts, bad.state, bad.restarts) == ("succeeded", 0, "failed", 0)
    assert good.result is not None
    assert good.result["said"] == {"nul \ufffd": said}
    assert good.progress is not None
    assert (good.progress.phase, good.progress.metrics) == (said, {said: 1.0})
    assert bad.error is not None
    assert (bad.error.code, bad.error.message, bad.error.where, bad.error.hint) == ("bad_data", said, said, said)
    assert [(one.where, one.message) for one in bad.error.problems] == [(said, said)]
    async with bench.database.read() as session:
        found = await artifacts.find(session, "default", good.artifacts[0].digest)
    assert found is not None
    assert found.metadata == {said: [said]}


async def test_a_light_job_may_say_what_cannot_be_stored(bench: Bench, tmp_path: Path) -> None:
    path = str(tmp_path / "there")
    await bench.submit("job_w", "wait_for_file", {"path": path, "odd": True})
    await bench.submit("job_f", "wait_for_file", {"path": path, "odd": True, "fail": True})
    view = await bench.until("job_w", lambda one: one.pending_reason is not None)
    assert view.pending_reason == f"waits for {path}nul \ufffd, half a pair ?."
    failed = await bench.ended("job_f")
    assert failed.error is not None
    assert failed.error.message == "the file can never comenul \ufffd, half a pair ?."


async def test_a_host_gets_a_clean_environment_and_no_descriptor(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BURNISH_DATABASE_URL", "postgresql://user:secret@db/burnish")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    held = os.open("/etc/hostname", os.O_RDONLY)
    os.set_inheritable(held, True)
    try:
        await bench.submit("job_env", "count", {"to": 1, "cpus": 2})
        view = await bench.ended("job_env")
    finally:
        os.close(held)
    assert view.result is not None
    environment = view.result["environment"]
    assert isinstance(environment, dict)
    assert "secret" not in str(environment)
    assert not [name for name in environment if name.startswith("BURNISH_")]
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["GOMP_SPINCOUNT"] == str(SPIN_COUNT)
    assert environment["HF_HUB_OFFLINE"] == "1"
    descriptors = [str(path) for path in view.result["descriptors"] or []]  # type: ignore[union-attr]
    foreign = [path for path in descriptors if str(bench.settings.home) not in path and path not in ("/dev/null",)]
    assert not [path for path in foreign if not path.startswith("/proc/")], foreign


async def test_a_running_job_is_cancelled_with_all_its_processes(bench: Bench) -> None:
    await bench.submit("job_c", "count", {"to": 1000, "seconds": 0.05, "children": 2})
    view = await bench.counted("job_c", 2)
    assert view.pid is not None
    host = identify(view.pid)
    assert host is not None
    members = group_members(host)
    assert len(members) == 3
    await bench.cancel("job_c")
    view = await bench.ended("job_c")
    assert view.state == JobState.CANCELLED
    assert view.cancel_requested
    for member in members:
        await gone(member.pid)


async def test_a_job_that_will_not_listen_is_killed_after_the_grace(bench: Bench) -> None:
    await bench.submit("job_deaf", "count", {"to": 1000, "seconds": 0.05, "ignore_stop": True})
    view = await bench.counted("job_deaf", 2)
    assert view.pid is not None
    began = time.monotonic()
    await bench.cancel("job_deaf")
    view = await bench.ended("job_deaf")
    assert view.state == JobState.CANCELLED
    assert time.monotonic() - began >= 1.0


async def test_cancel_before_the_start_and_of_an_unknown_id(benches: Benches) -> None:
    bench = benches()  # no server yet: nothing starts
    await bench.submit("job_q", "count", {"to": 1})
    assert (await bench.cancel("job_q")).state == JobState.CANCELLED
    assert (await bench.cancel("job_never")).state == JobState.CANCELLED
    await bench.runtime.start()
    view = await bench.submit("job_never", "count", {"to": 1})
    assert view.state == JobState.CANCELLED
    await bench.submit("job_other", "count", {"to": 1})
    await bench.ended("job_other")
    assert (await bench.view("job_q")).state == JobState.CANCELLED
    assert await bench.states("job_never") == ["cancelled"]


async def test_limits_end_a_job_and_say_which(bench: Bench) -> None:
    await bench.submit("job_wall", "count", {"to": 1000, "seconds": 0.05, "ignore_stop": True, "wall_seconds": 1.0})
    await bench.submit("job_mem", "alloc", {"allocate_bytes": 200 << 20, "memory_bytes": 128 << 20})
    await bench.submit("job_child", "alloc", {"allocate_bytes": 200 << 20, "memory_bytes": 128 << 20, "in_child": True})
    wall, memory, child = [await bench.ended(one) for one in ("job_wall", "job_mem", "job_child")]
    for view in (wall, memory, child):
        assert view.state == JobState.FAILED
        assert view.error is not None
        assert view.error.code == "limit_exceeded"
    assert wall.error is not None
    assert wall.error.where == "resources.wall_seconds"
    assert "its limit is 1 s" in wall.error.message
    for view in (memory, child):
        assert view.error is not None
        assert view.error.where == "resources.memory_bytes"
        assert "its limit is 128 MiB" in view.error.message
        assert "set resources.memory_bytes to" in (view.error.hint or "")


async def test_a_stopped_host_is_ended_by_the_server_at_its_limit(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("burnish.platform.jobs.reconciler._LIMIT_SLACK_SECONDS", 0.5)
    await bench.submit("job_stop", "count", {"to": 10000, "seconds": 0.05, "wall_seconds": 3.0})
    view = await bench.counted("job_stop", 1)
    assert view.pid is not None
    os.kill(view.pid, signal.SIGSTOP)
    view = await bench.ended("job_stop")
    assert view.error is not None
    assert view.error.code == "limit_exceeded"


async def test_a_lost_host_goes_on_from_its_last_checkpoint(bench: Bench, tmp_path: Path) -> None:
    spec = {"to": 12, "checkpoint_every": 3, "crash_at": 8, "crash_marker": str(tmp_path / "crashed")}
    await bench.submit("job_l", "count", spec)
    view = await bench.ended("job_l")
    assert view.state == JobState.SUCCEEDED, view.error
    assert view.restarts == 1
    assert view.result is not None
    assert view.result["resumed_from"] == 6
    assert await bench.steps("job_l") == [1, 2, 3, 4, 5, 6, 7, 7, 8, 9, 10, 11, 12]


async def test_a_host_that_is_lost_again_and_again_fails_the_job(bench: Bench) -> None:
    await bench.submit("job_ll", "leave", {})
    view = await bench.ended("job_ll")
    assert view.state == JobState.FAILED
    assert view.restarts == 1
    assert view.error is not None
    assert view.error.code == "host_lost"
    assert view.error.retryable
    log = "\n".join(str(e.data["message"]) for e in await bench.events("job_ll") if e.type == "log")
    assert log.count("leaving without a word") >= 2


async def test_events_after_a_power_cut_are_not_hidden_behind_those_it_took(bench: Bench) -> None:
    """Breaks with: reading on from an offset that the file no longer reaches."""
    await bench.submit("job_p", "count", {"to": 40, "seconds": 0.05, "checkpoint_every": 10})
    dead = (await bench.counted("job_p", 25)).pid
    await bench.runtime.stop()
    assert dead is not None
    os.kill(dead, signal.SIGKILL)
    await gone(dead)
    with (bench.folder("job_p") / EVENTS_FILE).open("r+b") as stream:  # what the disk had not got yet is gone
        lines = stream.readlines()
        stream.truncate(len(b"".join(lines[:5])) + len(lines[5]) // 2)
    bench.runtime = bench.new_runtime()
    await bench.runtime.start()
    view = await bench.ended("job_p")
    assert view.state == JobState.SUCCEEDED, view.error
    assert view.result is not None
    first = int(str(view.result["resumed_from"])) + 1
    events = await bench.events("job_p")
    metrics: list[Any] = [e.data for e in events if e.type == "metric"]
    assert [data["step"] for data in metrics if data["values"]["pid"] != dead] == list(range(first, 41))
    assert not [e for e in events if "unreadable" in str(e.data.get("message"))]


async def test_a_server_that_follows_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks with: a long training that keeps every artifact of its time from being swept."""
    monkeypatch.setattr("burnish.platform.jobs.reconciler._FIRST_MARK_SECONDS", 0.5)
    monkeypatch.setattr("burnish.platform.jobs.reconciler._MARK_SECONDS", 0.5)
    await bench.submit("job_f", "count", {"to": 10000, "seconds": 0.3})
    await bench.counted("job_f", 1)
    async with bench.database.write() as session:
        await session.execute(update(JobTable).values(host_started_at=0.0, queued_at=0.0))
    for _ in range(2):  # again and again
        async with bench.database.write() as session:
            await session.execute(update(JobTable).values(followed_at=None))
            assert await store.unread_seconds(session) > 3600
        deadline = time.monotonic() + 20
        while True:
            async with bench.database.read() as session:
                if await store.unread_seconds(session) < 10:
                    break
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
    await bench.cancel("job_f")
    await bench.ended("job_f")
    async with bench.database.read() as session:
        assert await store.unread_seconds(session) == 0


async def test_a_server_that_was_away_charges_a_job_only_what_its_host_ran(bench: Bench) -> None:
    """Breaks with: the time limit measured by the database's clock, from the start of the host on."""
    for job_id in ("job_lost", "job_lives"):
        spec = {"to": 80, "seconds": 0.05, "wall_seconds": 60.0, "checkpoint_every": 1}
        await bench.submit(job_id, "count", spec)
    lost, _ = [await bench.counted(job_id, 10) for job_id in ("job_lost", "job_lives")]
    await bench.runtime.stop()
    assert lost.pid is not None
    os.kill(lost.pid, signal.SIGKILL)
    await gone(lost.pid)
    async with bench.database.write() as session:
        await session.execute(update(JobTable).values(host_started_at=JobTable.host_started_at - 8 * 3600))
    bench.runtime = bench.new_runtime()
    await bench.runtime.start()
    after_loss, after_life = await bench.ended("job_lost"), await bench.ended("job_lives")
    assert (after_loss.state, after_loss.restarts) == ("succeeded", 1), after_loss.error
    assert (after_life.state, after_life.restarts) == ("succeeded", 0), after_life.error
    async with bench.database.read() as session:
        row = await store.find(session, "job_lost")
    assert row is not None
    assert 0.2 < row.ran_seconds < 30


async def test_a_host_that_is_lost_while_it_is_cancelled_does_not_start_again(benches: Benches) -> None:
    """Breaks with: a loss that is recorded without a look at what was asked for meanwhile."""
    bench = benches()  # no server: the rows are moved by hand
    await bench.submit("job_c", "count", {"to": 1})
    async with bench.database.write() as session:
        job = await store.find(session, "job_c", lock=True)
        assert job is not None
        for state in (JobState.STARTING, JobState.RUNNING):
            await store.change_state(session, job, state)
    await bench.cancel("job_c")
    assert (await bench.view("job_c")).state == JobState.RUNNING
    async with bench.database.write() as session:
        job = await store.find(session, "job_c", lock=True)
        assert job is not None
        await recording.lost(session, job, "it was killed", 1.0)
    assert (await bench.view("job_c")).state == JobState.CANCELLED


async def test_a_job_pauses_at_a_checkpoint_and_resumes_from_it(bench: Bench) -> None:
    await bench.submit("job_p", "count", {"to": 40, "seconds": 0.05})
    await bench.counted("job_p", 3)
    await bench.pause("job_p")
    view = await bench.until("job_p", lambda one: one.state == JobState.PAUSED)
    assert view.progress is not None
    reached = int(view.progress.done)
    assert 3 <= reached < 40
    await bench.resume("job_p")
    view = await bench.ended("job_p")
    assert view.state == JobState.SUCCEEDED
    assert view.restarts == 0
    assert view.result is not None
    assert view.result["resumed_from"] == reached
    assert await bench.steps("job_p") == list(range(1, 41))


async def test_a_shutdown_pauses_and_the_next_start_resumes(bench: Bench) -> None:
    await bench.submit("job_s", "count", {"to": 40, "seconds": 0.05})
    await bench.counted("job_s", 3)
    assert await bench.runtime.pause_running() == []
    assert (await bench.view("job_s")).state == JobState.PAUSED
    await bench.runtime.stop()
    bench.runtime = bench.new_runtime()
    await bench.runtime.start()
    view = await bench.ended("job_s")
    assert view.state == JobState.SUCCEEDED
    assert await bench.steps("job_s") == list(range(1, 41))


async def test_the_queue_is_by_priority_and_says_why(benches: Benches) -> None:
    bench = benches(cpus=2)
    await bench.runtime.start()
    await bench.submit("job_1", "count", {"to": 10000, "seconds": 0.05, "cpus": 2})
    await bench.counted("job_1", 1)
    await bench.submit("job_2", "count", {"to": 1, "cpus": 2})
    await bench.submit("job_3", "count", {"to": 1, "cpus": 2}, priority=5)
    view = await bench.until("job_2", lambda one: one.pending_reason is not None)
    assert view.pending_reason == "waits for 2 cpus; job_1 holds 2"
    await bench.cancel("job_1")
    second, third = await bench.ended("job_2"), await bench.ended("job_3")
    assert second.started_at is not None
    assert third.finished_at is not None
    assert third.finished_at <= second.started_at


async def test_artifacts_are_found_checked_and_kept(bench: Bench) -> None:
    await bench.submit("job_src", "count", {"to": 2})
    view = await bench.ended("job_src")
    assert view.result is not None
    source = view.result["output"]
    await bench.submit("job_copy", "copy", {"source": source})
    copy = await bench.ended("job_copy")
    assert copy.state == JobState.SUCCEEDED, copy.error
    assert copy.result is not None
    assert copy.result["output"] == source  # the same content is the same artifact
    wrong = {**ArtifactRef.model_validate(source).model_dump(), "kind": "model"}
    request = JobRequest(kind="copy", spec={"source": wrong, "more": [wrong]})
    answer, _ = await validate(request, KINDS, bench.database, bench.store)
    assert [problem.where for problem in answer.problems] == ["spec.source", "spec.more.0"]
    assert "is a report, not a model" in answer.problems[0].message


async def test_light_jobs_run_in_the_server(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "there"
    await bench.submit("job_w", "wait_for_file", {"path": str(path)})
    await bench.submit("job_f", "wait_for_file", {"path": str(path), "fail": True})
    await bench.submit("job_x", "wait_for_file", {"path": str(tmp_path / "never"), "tidy_turns": 1})
    await bench.submit("job_y", "wait_for_file", {"path": str(tmp_path / "never")})
    view = await bench.until("job_w", lambda one: one.pending_reason is not None)
    assert view.state == JobState.RUNNING
    failed = await bench.ended("job_f")
    assert failed.error is not None
    assert failed.error.code == "bad_data"
    path.touch()
    assert (await bench.ended("job_w")).state == JobState.SUCCEEDED
    for job_id in ("job_x", "job_y"):
        await bench.cancel(job_id)
        assert (await bench.ended(job_id)).state == JobState.CANCELLED
    assert (tmp_path / "never.tidied").exists()


async def test_a_restarted_server_attaches_to_the_same_process(bench: Bench, tmp_path: Path) -> None:
    effects = tmp_path / "effects"
    await bench.submit("job_r", "count", {"to": 60, "seconds": 0.05, "effects": str(effects)})
    before = await bench.counted("job_r", 3)
    await bench.runtime.stop()
    assert before.pid is not None
    assert identify(before.pid) is not None
    bench.runtime = bench.new_runtime()
    await bench.runtime.start()
    after = await bench.counted("job_r", 20)
    assert after.pid == before.pid
    view = await bench.ended("job_r")
    assert view.state == JobState.SUCCEEDED
    assert view.restarts == 0
    assert await bench.steps("job_r") == list(range(1, 61))
    assert len(effects.read_text().splitlines()) == 1


async def test_a_host_whose_server_is_gone_is_found_finished(bench: Bench) -> None:
    await bench.submit("job_g", "count", {"to": 30, "seconds": 0.02})
    view = await bench.counted("job_g", 1)
    await bench.runtime.stop()
    assert view.pid is not None
    await gone(view.pid)
    bench.runtime = bench.new_runtime()
    await bench.runtime.start()
    view = await bench.ended("job_g")
    assert view.state == JobState.SUCCEEDED
    assert await bench.steps("job_g") == list(range(1, 31))


@pytest.mark.postgres
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_two_servers_of_a_node_never_give_a_core_away_twice(benches: Benches, tmp_path: Path) -> None:
    bench = benches(cpus=2)
    second = benches(cpus=2)
    effects = tmp_path / "effects"
    for number in range(6):
        await bench.submit(f"job_{number}", "count", {"to": 2, "seconds": 0.1, "effects": str(effects)})
    await asyncio.gather(bench.runtime.start(), second.runtime.start())
    most = 0
    ended = 0
    while ended < 6:
        async with bench.database.read() as session:
            most = max(most, len(await store.on_node(session, "here")))
            ended = len(await service.finished(session, [f"job_{number}" for number in range(6)]))
        await asyncio.sleep(0.02)
    assert most == 2
    assert len(effects.read_text().splitlines()) == 6
    for number in range(6):
        assert (await bench.view(f"job_{number}")).restarts == 0


async def test_hosts_without_a_row_are_ended(bench: Bench) -> None:
    await bench.submit("job_o", "count", {"to": 10000, "seconds": 0.05})
    view = await bench.counted("job_o", 1)
    assert view.pid is not None
    await bench.runtime.stop()
    async with bench.database.write() as session:  # as if a backup without the job had been restored
        row = await store.find(session, "job_o")
        await session.delete(row)
    os.utime(bench.folder("job_o"), (0, 0))
    assert await bench.runtime.sweep() == ["job_o"]
    await gone(view.pid)


async def test_a_host_that_hangs_before_it_begins_is_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import pathlib, sys, time\n"
        f"marker = pathlib.Path({str(tmp_path / 'hung')!r})\n"
        "if 'burnish.platform.jobs.host' in sys.orig_argv and not marker.exists():\n"
        "    marker.touch()\n"
        "    time.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setattr("burnish.platform.jobs.reconciler._HOST_START_SECONDS", 3.0)
    await bench.submit("job_h", "count", {"to": 2})
    view = await bench.ended("job_h")
    assert view.state == JobState.SUCCEEDED, view.error
    assert view.restarts == 1
    reasons = [str(e.data.get("reason")) for e in await bench.events("job_h") if e.type == "state"]
    assert any("did not begin within 3 s" in reason for reason in reasons)
