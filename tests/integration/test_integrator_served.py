"""Components of a real server: one that an installed package offers, one that is slow, and a flood of registrations."""

import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from burnish.platform.gateway.wire import PIPELINED
from tests.support.component_process import ComponentRun
from tests.support.server import Answered, Server, wait_for

THIRD = Path(__file__).parents[1] / "support" / "third_party.py"
A_MINUTE = 100
PATHS = os.environ.get("PYTHONPATH", "")
PLUGIN = """
import time

from burnish.component import JobContext, Kind, Resources, Spec
from burnish.platform.jobs.component_app import component_app
from burnish.platform.jobs.embedding import Component


class NapSpec(Spec):
    seconds: float


class NapResult(Spec):
    slept: float


def nap(spec: NapSpec, job: JobContext) -> NapResult:
    time.sleep(spec.seconds)
    return NapResult(slept=spec.seconds)


def build(runtime):
    whole = Resources(cpus=2, memory_bytes=256 << 20)
    kinds = {"nap": Kind(NapSpec, NapResult, "Sleep", run="napping_plugin:nap", resources=lambda spec: whole)}
    return Component("napping", component_app("napping", kinds, runtime))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with one in it, as `pip install --target` leaves it."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "napping_plugin.py").write_text(PLUGIN)
    info = folder / "napping_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: napping-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[burnish.components]\nnapping = napping_plugin:build\n")
    (info / "RECORD").write_text("napping_plugin.py,,\n")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, site: Path) -> Iterator[Server]:
    rules = {"probe_seconds": "0.5", "probe_timeout_seconds": "0.3", "lease_seconds": "4", "registrations_per_minute": str(A_MINUTE)}  # fmt: skip
    running = Server(
        tmp_path_factory.mktemp("platform") / "home",
        environment={
            "BURNISH_DISK_RESERVE_BYTES": "0", "BURNISH_CPUS": "2", "PYTHONPATH": os.pathsep.join(filter(None, (str(site), PATHS))),
            **{f"BURNISH_CONFIGURATION__integrator__{name}": value for name, value in rules.items()},
        },
    )  # fmt: skip
    try:
        yield running.start()
        running.stop()
    finally:
        running.end_everything()


def run_step(server: Server, component: str, kind: str, **spec: Any) -> str:
    definition = {"name": "one", "steps": {"only": {"component": component, "kind": kind, "with": spec}}}
    return str(server.request("POST", "/platform/workflows/run", {"definition": definition})["workflow_id"])


def step(server: Server, workflow_id: str) -> dict[str, Any]:
    found: dict[str, Any] = server.request("GET", f"/platform/workflows/{workflow_id}/status")["steps"][0]
    return found


def ended(server: Server, workflow_id: str) -> dict[str, Any]:
    wait_for(
        lambda: step(server, workflow_id)["state"] in {"succeeded", "failed"},
        60,
        lambda: str(step(server, workflow_id)),
    )
    return step(server, workflow_id)


def instance(server: Server, component_type: str) -> dict[str, Any]:
    page = server.request("GET", f"/platform/components?component_type={component_type}")["data"]
    return dict(page[0]) if page else {"status": None}


def job_of(server: Server, workflow_id: str) -> dict[str, Any]:
    page = server.request("GET", f"/platform/jobs?workflow_id={workflow_id}")["data"]
    return dict(page[0]) if page else {"state": None, "pending_reason": None}


def test_a_component_of_an_installed_package_is_offered_and_runs_jobs(server: Server) -> None:
    """Breaks with: entry points that are looked for and never found, or whose jobs' hosts cannot import them."""
    found = instance(server, "napping")
    assert (found["status"], found["source"], found["kinds"]) == ("healthy", "entry_point", ["nap"])
    done = ended(server, run_step(server, "napping", "nap", seconds=0.01))
    assert (done["state"], done["result"]) == ("succeeded", {"slept": 0.01}), done


def test_a_busy_instance_that_answers_late_keeps_its_job_to_the_end(server: Server, tmp_path: Path) -> None:
    """Breaks with: an instance that is given up, and its job with it, because its health checks are late."""
    component = ComponentRun(tmp_path / "slow", server.url, script=THIRD)
    seen: Counter[str] = Counter()
    late: set[str | None] = set()
    done = threading.Event()

    def stutter() -> None:
        """Have it stand still most of the time: several health checks in a row go by without an answer."""
        while not done.is_set():
            os.kill(component.pid, signal.SIGSTOP)
            done.wait(2.2)
            os.kill(component.pid, signal.SIGCONT)
            done.wait(0.3)

    try:
        component.start()
        wait_for(lambda: instance(server, "third_party")["status"] == "healthy", 30, component.tail)
        workflow_id = run_step(server, "third_party", "count", to=120)  # 6 s: more than a lease
        wait_for(lambda: bool(list(component.home.glob("jobs/*/events.jsonl"))), 30, component.tail)
        stuttering = threading.Thread(target=stutter)
        stuttering.start()
        try:
            while step(server, workflow_id)["state"] not in {"succeeded", "failed"}:
                now = instance(server, "third_party")
                seen[now["status"]] += 1
                late.add(now["problem_kind"])
                assert sum(seen.values()) < 600, seen
                time.sleep(0.1)
        finally:
            done.set()
            stuttering.join()
        end = step(server, workflow_id)
        assert (end["state"], end["result"]) == ("succeeded", {"counted": 120, "began_at": 0}), end
        assert (len(end["attempts"]), end["attempts"][0]["restarts"]) == (1, 0)
        assert set(seen) <= {"healthy", "degraded"}, seen
        assert seen["degraded"], "it was late, and that was seen"
        assert late & {"late", "silent"}, late
    finally:
        component.end_everything()


class Flood:
    """Registrations over many connections at once, on each as many as may wait, written without waiting for what is answered."""

    def __init__(self, url: str, body: Callable[[int], dict[str, Any]], connections: int) -> None:
        self._host, _, port = url.removeprefix("http://").partition(":")
        self._port = int(port)
        each = PIPELINED + 1
        self._parts = [
            [self._request(body(each * one + number)) for number in range(each)] for one in range(connections)
        ]
        self.total = each * connections
        self.answers: Counter[str] = Counter()
        self.without_retry_after = 0
        self.sent_per_second = 0.0

    def _request(self, body: dict[str, Any]) -> bytes:
        content = json.dumps(body).encode()
        head = f"POST /platform/components/register HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n"
        return f"{head}content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content

    async def run(self) -> None:
        """Send all of it, and read what is answered."""
        pairs = []
        for _ in range(0, len(self._parts), 50):  # as many as the server's backlog takes at once, and more
            opened = (asyncio.open_connection(self._host, self._port) for _ in range(50))
            pairs += await asyncio.gather(*opened)
        began = time.monotonic()
        for (_, writer), part in zip(pairs, self._parts, strict=False):
            writer.write(b"".join(part))  # a few kilobytes: sent at once
        self.sent_per_second = self.total / (time.monotonic() - began)
        await asyncio.gather(*(self._read(reader) for (reader, _), _ in zip(pairs, self._parts, strict=False)))
        for _, writer in pairs:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            for _ in range(PIPELINED + 1):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                status = head.split(" ", 2)[1]
                self.answers[status] += 1
                self.without_retry_after += status in {"429", "503"} and "\r\nretry-after: " not in head
                length = re.search(r"\r\ncontent-length: (\d+)", head)
                assert length is not None, head
                await reader.readexactly(int(length[1]))


class Bystander:
    """Asks something else, again and again, and how much memory the server has."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._process = psutil.Process(server.pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.before = self.most = self._process.memory_info().rss
        self.seconds: list[float] = []
        self.failures: list[str] = []

    def __enter__(self) -> "Bystander":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._stop.wait(0.05):
            began = time.monotonic()
            try:
                self._server.request("GET", "/platform/components?limit=5", timeout=10)
            except (OSError, Answered) as error:
                self.failures.append(str(error))
            self.seconds.append(time.monotonic() - began)
            self.most = max(self.most, self._process.memory_info().rss)


def test_a_flood_of_registrations_is_limited_and_hinders_nobody(server: Server) -> None:
    """Breaks with: a table that grows with what is sent, a queue that grows without bound, others that wait for it."""
    flood = Flood(server.url, lambda n: {
        "component_id": "flood" if n % 2 else f"flood-{n}", "component_type": "flooding", "name": "flood",
        "version": "1", "health_endpoint": "http://127.0.0.1:9/health", "api_endpoint": "http://127.0.0.1:9",
    }, connections=500)  # fmt: skip
    began = time.monotonic()
    with Bystander(server) as bystander:
        asyncio.run(flood.run())
    took = time.monotonic() - began
    usual, slowest = statistics.median(bystander.seconds), max(bystander.seconds)
    print(
        f"{flood.sent_per_second:.0f}/s sent, {dict(flood.answers)} answered in {took:.1f} s; others' p50 {usual:.3f} s, "
        f"longest {slowest:.3f} s of {len(bystander.seconds)}; memory +{(bystander.most - bystander.before) >> 20} MiB"
    )
    assert flood.sent_per_second > 10_000, "it is a flood"
    assert set(flood.answers) <= {"200", "429", "503"}
    assert flood.answers.total() == flood.total, "nobody is left without an answer"
    assert flood.answers["429"] >= 200
    assert flood.without_retry_after == 0
    assert flood.answers["200"] <= A_MINUTE * (1 + took / 60) + 1
    rows = len(server.request("GET", "/platform/components?component_type=flooding&limit=500")["data"])
    assert rows <= flood.answers["200"]
    assert bystander.failures == []
    assert usual < 0.5
    assert slowest < 5.0
    assert bystander.most - bystander.before < 64 << 20
    server.request("GET", "/platform/ready", timeout=5)


def test_a_queued_job_that_nobody_offers_says_so_everywhere(server: Server) -> None:
    """Breaks with: a job in the queue of a component that is gone, without a word, or with that of the last scheduler."""
    first = run_step(server, "napping", "nap", seconds=600)
    wait_for(lambda: job_of(server, first)["state"] == "running", 30, server.tail)
    second = run_step(server, "napping", "nap", seconds=0.01)
    wait_for(lambda: job_of(server, second)["pending_reason"] is not None, 30, server.tail)
    server.stop()
    server.start(environment={"PYTHONPATH": PATHS})  # the package was removed
    said = "no healthy instance offers kind nap"
    wait_for(lambda: said in str(job_of(server, second)["pending_reason"]), 20, lambda: str(job_of(server, second)))
    assert said in step(server, second)["waiting_for"]
    job = job_of(server, second)
    assert said in server.request("GET", f"/platform/jobs/{job['job_id']}")["pending_reason"]
    shown = subprocess.run(
        [sys.executable, "-m", "burnish.cli", "job", "show", job["job_id"], "--url", server.url],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert said in " ".join(shown.stdout.split()), shown
