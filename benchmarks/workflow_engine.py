"""Workflow executions/s: five no-op steps through our HTTP API, against DBOS and Prefect, each on the same database.

    python benchmarks/workflow_engine.py [--dbos-python VENV/bin/python] [--prefect-python VENV/bin/python]
        [--databases sqlite postgresql] [--rounds 3] [--executions 400] [--waiting 1000] [--json out.json]

Every run is a fresh server on a fresh database at full durability (SQLite WAL with `synchronous=FULL`, PostgreSQL with
its defaults: fsync on). Runs alternate, so that what else the machine does hits all alike. Read the ratios, not the
absolute numbers. *Ours*: a `burnish serve` process, executions submitted over HTTP by 16 connections, timed until the
last has succeeded; a definition, not code. *DBOS*: five plain `@DBOS.step` functions called by one workflow function in
the benchmark's own process, no HTTP, 16 at a time. *Prefect*: five tasks called by a flow, 8 at a time, its own server.
`--waiting`: with so many executions waiting for a job, the server's idle CPU, and the time from a job's end to the
next step's record. DBOS (`pip install dbos psycopg[binary]`) and Prefect (`pip install prefect`) live in environments
of their own: their pins differ from ours.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import aiohttp

from burnish.core.states import JobState
from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.infra.database import Database, notify, utcnow
from burnish.platform.identity import LOCAL
from burnish.platform.jobs.store import FINISHED_TOPIC
from burnish.platform.jobs.tables import JobTable
from burnish.platform.workflow import store
from burnish.platform.workflow.reconciler import WorkflowReconciler
from burnish.platform.workflow.schemas import RunRequest
from burnish.platform.workflow.service import WorkflowService
from tests.support.databases import prepare
from tests.support.fake_components import FakeComponents
from tests.support.postgres import PostgresServer, running_server

STREAMS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dbos-python", type=Path)
    parser.add_argument("--prefect-python", type=Path)
    parser.add_argument("--databases", nargs="+", default=["sqlite", "postgresql"], choices=["sqlite", "postgresql"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--executions", type=int, default=400)
    parser.add_argument("--prefect-executions", type=int, default=16)
    parser.add_argument("--waiting", type=int, default=1_000, help="0: leave this part out")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rates: dict[tuple[str, str], list[float]] = {}
    waiting: dict[str, dict[str, float]] = {}
    with _postgres("postgresql" in options.databases) as server:
        for turn in range(options.rounds):
            for database in options.databases:
                for side, rate in _round(options, database, server, last=turn == options.rounds - 1):
                    rates.setdefault((database, side), []).append(rate)
                    print(f"round {turn + 1} {database} {side}: {rate:.1f}/s", file=sys.stderr, flush=True)
        if options.waiting:
            for database in options.databases:
                waiting[database] = asyncio.run(_wait_and_wake(options.waiting, database, server))
    _print(rates, waiting)
    if options.json:
        runs = {f"{database} {side}": found for (database, side), found in rates.items()}
        options.json.write_text(json.dumps({"executions_per_second": runs, "waiting": waiting}, indent=2) + "\n")


@contextmanager
def _postgres(wanted: bool) -> Iterator[PostgresServer | None]:
    if not wanted:
        yield None
        return
    with running_server() as server:
        yield server


def _round(
    options: argparse.Namespace, database: str, server: PostgresServer | None, *, last: bool
) -> Iterator[tuple[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        yield "burnish", asyncio.run(_burnish(Path(folder), database, server, options.executions))
    if options.dbos_python:
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite:///{folder}/dbos.db" if server is None or database == "sqlite" else _plain(server)
            yield "dbos", _peer(options.dbos_python, DBOS_SIDE, url, options.executions)
    if options.prefect_python and last:
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite+aiosqlite:///{folder}/prefect.db"
            if server is not None and database == "postgresql":
                url = server.url(server.create_database())
            yield "prefect", _peer(options.prefect_python, PREFECT_SIDE, url, options.prefect_executions, home=folder)


def _plain(server: PostgresServer) -> str:
    return server.url(server.create_database()).replace("postgresql+asyncpg", "postgresql")


def _url(folder: Path, database: str, server: PostgresServer | None) -> str:
    if server is None or database == "sqlite":
        return f"sqlite+aiosqlite:///{folder}/home/burnish.db"
    return server.url(server.create_database())


async def _burnish(folder: Path, database: str, server: PostgresServer | None, executions: int) -> float:
    port = _free_port()
    environment = {
        **os.environ,
        "BURNISH_HOME": str(folder / "home"),
        "BURNISH_PORT": str(port),
        "BURNISH_LOG_LEVEL": "warning",
    }
    url = _url(folder, database, server)
    if database == "postgresql":
        environment["BURNISH_DATABASE_URL"] = url.replace("postgresql+asyncpg", "postgresql")
    with _serving(environment):
        base = f"http://127.0.0.1:{port}"
        await asyncio.to_thread(_until_ready, f"{base}/platform/ready")
        await _submit(base, 20)
        await _until_succeeded(url, 20)
        began = time.perf_counter()
        await _submit(base, executions)
        await _until_succeeded(url, 20 + executions)
        return executions / (time.perf_counter() - began)


@contextmanager
def _serving(environment: Mapping[str, str]) -> Iterator[None]:
    command = [sys.executable, "-m", "burnish.cli", "serve"]
    with subprocess.Popen(command, env=dict(environment), stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


async def _submit(base: str, executions: int) -> None:
    left = iter(range(executions))
    async with aiohttp.ClientSession() as session:

        async def one() -> None:
            for _ in left:
                async with session.post(f"{base}/platform/workflows/run", json={"workflow_type": "noop"}) as answer:
                    assert answer.status == 200, await answer.text()
                    await answer.read()

        await asyncio.gather(*(one() for _ in range(STREAMS)))


async def _until_succeeded(url: str, wanted: int) -> None:
    database = Database(url, pool_size=1)
    try:
        while True:
            async with database.read() as session:
                counts = await store.count_by_state(session)
            if counts.get("succeeded", 0) >= wanted:
                return
            await asyncio.sleep(0.05)
    finally:
        await database.dispose()


def _until_ready(url: str) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"{url} does not answer")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _peer(python: Path, code: str, url: str, executions: int, home: str = "") -> float:
    environment = {
        **os.environ,
        "PREFECT_HOME": home,
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }
    found = subprocess.run(
        [str(python), "-c", code, url, str(executions)], env=environment, capture_output=True, text=True
    )
    rates = [line for line in found.stdout.splitlines() if line.startswith("RATE ")]
    if found.returncode or not rates:
        raise RuntimeError(f"the peer failed: {found.stderr[-2000:]}")
    return float(rates[-1].removeprefix("RATE "))


DBOS_SIDE = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from dbos import DBOS, DBOSConfig
url, count = sys.argv[1], int(sys.argv[2])
DBOS(config={"name": "bench", "system_database_url": url, "log_level": "ERROR", "run_admin_server": False})

@DBOS.step()
def noop(value):
    return value

@DBOS.workflow()
def five(value):
    for _ in range(5):
        value = noop(value)
    return value

DBOS.launch()
def run(n):
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(five, range(n))) == list(range(n))
run(20)
began = time.perf_counter()
run(count)
print("RATE", count / (time.perf_counter() - began), flush=True)
DBOS.destroy()
"""

PREFECT_SIDE = """
import asyncio, os, sys, time
os.environ["PREFECT_API_DATABASE_CONNECTION_URL"] = sys.argv[1]
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
from prefect import flow, task

@task
async def noop(value):
    return value

@flow
async def five(value):
    for _ in range(5):
        value = await noop(value)
    return value

async def run(count):
    left = iter(range(count))
    async def one():
        for value in left:
            assert await five(value) == value
    await asyncio.gather(*(one() for _ in range(8)))

async def main():
    await five(0)  # starts its server
    began = time.perf_counter()
    await run(int(sys.argv[2]))
    print("RATE", int(sys.argv[2]) / (time.perf_counter() - began), flush=True)
asyncio.run(main())
"""


async def _wait_and_wake(executions: int, kind: str, server: PostgresServer | None) -> dict[str, float]:
    """Let executions wait for jobs that are rows of our own table; measure idle CPU, then end jobs one by one."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "home").mkdir()
        url = _url(Path(folder), kind, server)
        await asyncio.to_thread(prepare, url)
        database = Database(url)
        await database.start()
        components = FakeComponents(mode="by hand")
        service = WorkflowService(database, components, _no_model)
        reconciler = WorkflowReconciler(database, components, FileArtifactStore(Path(folder) / "artifacts"))
        await reconciler.start()
        try:
            await _fill(database, service, components, executions)
            await asyncio.sleep(15)  # until the first looks at each job are over
            before, began = time.process_time(), time.perf_counter()
            await asyncio.sleep(10)
            idle = (time.process_time() - before) / (time.perf_counter() - began)
            latencies = [await _wake_one(database, components, job_id) for job_id in list(components.jobs)[:100]]
        finally:
            await reconciler.stop()
            await database.dispose()
    latencies.sort()
    return {"idle_cpu_percent": 100 * idle, "p50_ms": 1e3 * latencies[50], "p95_ms": 1e3 * latencies[95]}


async def _no_model(_project: str, _reference: str) -> None:
    return None


_TWO = {"name": "two", "steps": {
    "work": {"component": "worker", "kind": "work"},
    "then": {"kind": "noop", "with": {"value": "${{ steps.work.result.number }}"}},
}}  # fmt: skip


async def _fill(database: Database, service: WorkflowService, components: FakeComponents, executions: int) -> None:
    accepted = await service.prepare(RunRequest.model_validate({"definition": _TWO}), LOCAL)
    for start in range(0, executions, 50):
        async with database.write() as session:
            for _ in range(min(50, executions - start)):
                await service.submit(session, accepted, LOCAL)
    known: set[str] = set()
    while len(known) < executions:
        await asyncio.sleep(0.2)
        new = [job_id for job_id in components.jobs if job_id not in known]
        async with database.write() as session:  # its jobs stand in our table, as an embedded component's do
            for job_id in new:
                session.add(
                    JobTable(
                        id=job_id,
                        project_id="default",
                        component_type="worker",
                        kind="work",
                        state=JobState.RUNNING,
                        due_at=None,
                    )
                )
        known.update(new)


async def _wake_one(database: Database, components: FakeComponents, job_id: str) -> float:
    components.finish(job_id)
    origin = components.jobs[job_id].request.origin
    assert origin is not None
    began = time.perf_counter()
    async with database.write() as session:
        job = await session.get(JobTable, job_id)
        assert job is not None
        job.state, job.finished_at = JobState.SUCCEEDED, utcnow()
        await notify(session, FINISHED_TOPIC)
    while True:
        async with database.read() as session:
            row = await store.by_workflow_id(session, "default", origin)
        if row is not None and row.status == "succeeded":
            return time.perf_counter() - began
        await asyncio.sleep(0.002)


def _print(rates: dict[tuple[str, str], list[float]], waiting: dict[str, dict[str, float]]) -> None:
    print("| database | side | executions/s (median) | runs | ours is |\n|---|---|---|---|---|")
    for (database, side), found in sorted(rates.items()):
        ratio = "" if side == "burnish" else f"{_ratio(rates[database, 'burnish'], found):.2f}x"
        runs = ", ".join(f"{rate:.1f}" for rate in found)
        print(f"| {database} | {side} | {statistics.median(found):.1f} | {runs} | {ratio} |")
    for database, numbers in waiting.items():
        print(
            f"{database}, executions waiting: idle CPU {numbers['idle_cpu_percent']:.1f} % of a core, "
            f"job done to next step recorded p50 {numbers['p50_ms']:.0f} ms, p95 {numbers['p95_ms']:.0f} ms"
        )


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(ours) / statistics.median(theirs)


if __name__ == "__main__":
    main()
