"""Jobs while servers and hosts are killed (KILL) or frozen (STOP): nothing is lost, nothing happens twice."""

import asyncio
import os
import random
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from burnish.core.states import JobState
from burnish.infra.processes import alive, identify
from burnish.platform.jobs import store
from tests.support.jobs_bench import ROOT, Bench
from tests.support.jobs_server import CRASH


class Crowd:
    """Servers in processes of their own, on one database and home."""

    def __init__(self, url: str, home: Path) -> None:
        self.bench = Bench(url, home)
        self.home = home
        self.url = url
        self.servers: list[Process] = []

    async def start(self, crash: str | None = None) -> Process:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)} | ({CRASH: crash} if crash else {})
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.jobs_server", self.url, str(self.home),
            stdout=PIPE, stderr=DEVNULL, env=environment,
        )  # fmt: skip
        self.servers.append(process)
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 60)
        assert line == b"started\n" or crash, line
        return process

    async def kill(self, process: Process) -> None:
        if process.returncode is None:
            process.kill()
        await process.wait()
        self.servers.remove(process)

    async def a_host(self) -> int | None:
        async with self.bench.database.read() as session:
            running = await store.on_node(session, "here")
        pids = [job.pid for job in running if job.pid is not None]
        return random.choice(pids) if pids else None

    async def exactly_once(self, job_id: str, to: int) -> None:
        """Every step's event of each host once; the last host's steps without a gap."""
        seen: Counter[tuple[int, int]] = Counter()
        for event in await self.bench.events(job_id):
            if event.type == "metric":
                values = event.data["values"]
                assert isinstance(values, dict)
                seen[int(str(values["pid"]).removesuffix(".0")), int(str(event.data["step"]))] += 1
        assert set(seen.values()) == {1}, f"{job_id}: events twice"
        assert {step for _, step in seen} == set(range(1, to + 1)), f"{job_id}: events lost"


@pytest.fixture
async def crowd(database_url: str, home: Path) -> AsyncIterator[Crowd]:
    made = Crowd(database_url, home)
    yield made
    for process in list(made.servers):
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
        await made.kill(process)
    for folder in made.bench.runtime.backend.folders().values():
        made.bench.runtime.backend.remove(folder)
    await made.bench.database.dispose()


@pytest.mark.parametrize("moment", ["before_start", "after_start"])
async def test_a_server_killed_between_the_intent_and_the_record_starts_one_host(
    crowd: Crowd, moment: str, tmp_path: Path
) -> None:
    effects = tmp_path / "effects"
    await crowd.bench.submit("job_a", "count", {"to": 20, "seconds": 0.05, "effects": str(effects)})
    first = await crowd.start(crash=moment)
    assert await asyncio.wait_for(first.wait(), 60) == -signal.SIGKILL
    assert (await crowd.bench.view("job_a")).state == JobState.STARTING
    await crowd.start()
    view = await crowd.bench.ended("job_a")
    assert view.state == JobState.SUCCEEDED, view.error
    assert view.restarts == 0
    assert len(effects.read_text().splitlines()) == 1
    await crowd.exactly_once("job_a", 20)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.full), pytest.param(3, marks=pytest.mark.full)])
async def test_kills_at_random_moments_lose_nothing(crowd: Crowd, seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    effects = tmp_path / "effects"
    jobs = {f"job_{n}": chance.randint(30, 60) for n in range(4)}
    for job_id, to in jobs.items():
        spec = {"to": to, "seconds": 0.05, "checkpoint_every": 5, "effects": str(effects)}
        await crowd.bench.submit(job_id, "count", spec)
    killed_hosts = 0
    for victim in ("server", "host", "both", "server"):
        server = await crowd.start()
        await asyncio.sleep(chance.uniform(0.2, 1.2))
        host = await crowd.a_host() if victim != "server" else None
        if host is not None and (who := identify(host)) is not None:
            os.kill(who.pid, signal.SIGKILL)
            killed_hosts += 1
        if victim == "host":
            await asyncio.sleep(chance.uniform(0.1, 0.5))
        await crowd.kill(server)
    await crowd.start()
    restarts = 0
    for job_id, to in jobs.items():
        view = await crowd.bench.ended(job_id)
        assert view.state == JobState.SUCCEEDED, view.error
        assert view.result is not None
        assert view.result["counted"] == to
        restarts += view.restarts
        await crowd.exactly_once(job_id, to)
    reasons = [
        (job_id, event.data["reason"])
        for job_id in jobs
        for event in await crowd.bench.events(job_id)
        if event.type == "state"
    ]
    assert restarts <= killed_hosts, reasons
    starts = len(effects.read_text().splitlines())
    assert len(jobs) <= starts <= len(jobs) + restarts  # a host may be killed before its job begins
    deadline = time.monotonic() + 10
    while crowd.bench.runtime.backend.folders():
        assert time.monotonic() < deadline, "folders of ended jobs are left"
        await asyncio.sleep(0.05)


@pytest.mark.postgres
async def test_a_frozen_server_holds_nobody_up_and_starts_nothing_twice(
    postgres_url: str, home: Path, tmp_path: Path
) -> None:
    crowd = Crowd(postgres_url, home)
    effects = tmp_path / "effects"
    try:
        first = await crowd.start()
        spec = {"to": 200, "seconds": 0.05, "effects": str(effects)}
        await crowd.bench.submit("job_a", "count", spec)
        before = await crowd.bench.counted("job_a", 5)
        assert before.pid is not None
        host = identify(before.pid)
        second = await crowd.start()
        first.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        view = await crowd.bench.view("job_a")
        assert view.progress is not None
        reached = view.progress.done
        await crowd.bench.counted("job_a", int(reached) + 20)
        took_over = time.monotonic() - began
        assert took_over < 15
        await crowd.bench.submit("job_b", "count", {"to": 3, "effects": str(effects)})
        await crowd.bench.ended("job_b")
        first.send_signal(signal.SIGCONT)
        view = await crowd.bench.ended("job_a")
        assert view.state == JobState.SUCCEEDED
        assert view.restarts == 0
        assert host is not None
        assert not alive(host)
        await crowd.exactly_once("job_a", 200)
        assert len(effects.read_text().splitlines()) == 2
        assert second.returncode is None
    finally:
        for process in list(crowd.servers):
            if process.returncode is None:
                process.send_signal(signal.SIGCONT)
            await crowd.kill(process)
        await crowd.bench.database.dispose()
