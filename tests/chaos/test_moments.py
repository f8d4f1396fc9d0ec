"""Blows at the moments where it is easiest to lose something: publish and record, a migration, a deployment's switch."""

import asyncio
import json
import os
import random
import shutil
import signal
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.infra.processes import ProcessId, alive, identify
from tests.support import branches, lifecycle
from tests.support.faults import kill, replicas
from tests.support.places import FULL, Material, Place, Reference
from tests.support.postgres import PostgresServer
from tests.support.server import Server, wait_for

_TRIES = 20
"""A host may run past the moment in one slice."""


def kill_between(host: ProcessId, store: Path, job: Path) -> bool:
    """Let a host run in slices of a fraction of a millisecond, and kill it once it published what it has not told."""
    before = _objects(store)

    def untold() -> bool:
        told = (job / "events.jsonl").read_bytes().count(b'"type":"artifact"') if (job / "events.jsonl").exists() else 0
        return len(_objects(store) - before) > told

    while alive(host):
        try:
            os.kill(host.pid, signal.SIGSTOP)
            if untold():
                kill(host)
                return untold()
            os.kill(host.pid, signal.SIGCONT)
        except ProcessLookupError:
            break
        time.sleep(0.0003)
    return False


def _first_host(jobs: Path) -> tuple[Path, ProcessId]:
    """Wait for a host, sooner than its server knows of it."""
    found: list[tuple[Path, ProcessId]] = []

    def appeared() -> bool:
        for path in jobs.glob("*/host.*.json"):
            if (host := identify(json.loads(path.read_text())["pid"])) is not None and alive(host):
                found.append((path.parent, host))
        return bool(found)

    wait_for(appeared, 60, "a host", pause=0.001)
    return found[0]


def _objects(store: Path) -> set[str]:
    return {path.name for path in store.glob("objects/*/*")}


@pytest.mark.parametrize("victim", ["host", "server+host"])
def test_a_host_killed_between_publish_and_record(
    sqlite_place: Place, material: Material, victim: str, note: Callable[[str], None]
) -> None:
    """The artifact is at its address and no event tells of it yet.

    Breaks with: a store that refuses what is there already, a result written before its artifacts, a training whose
    data order or random state is not in its checkpoint.
    """
    given = {"name": "splits", "parameters": {"dataset": {"type": "dataset", "required": True}}, "steps": {
        "split": {"component": "data_management", "kind": "split", "with": {"dataset": "${{ parameters.dataset.artifact }}"}},
        "after": {"kind": "noop", "needs": ["split"]}}}  # fmt: skip
    server = sqlite_place.server().start()
    server.upload("words", material.data[0])
    expected = branches.results(branches.ended_right(server, branches.run(server, given, dataset="words")))
    for _ in range(_TRIES):
        _forget(server.home / "artifacts", expected["split"])
        workflow_id = branches.run(server, given, dataset="words")
        job, host = _first_host(server.home / "jobs")
        if hit := kill_between(host, server.home / "artifacts", job):
            break
        branches.ended_right(server, workflow_id)
    if victim == "server+host":
        server.kill()
        server.start()
    view = branches.ended_right(server, workflow_id)
    assert branches.results(view) == expected
    assert lifecycle.broken_run(server, view, host_kills={"split": 1}) == []
    restarts = lifecycle.step_of(view, "split")["attempts"][0]["restarts"]
    note(f"struck between: {hit}; {restarts} new start")
    assert hit
    assert restarts == 1


def _forget(root: Path, result: dict[str, Any]) -> None:
    """Remove artifacts from the store, so that the next run makes them anew."""
    for ref in (result["train"], result["validation"], result["test"]):
        digest = ref["digest"].removeprefix("sha256:")
        folder = root / "objects" / digest[:2] / digest
        for current, _, _ in os.walk(folder):
            os.chmod(current, 0o700)
        shutil.rmtree(folder)


@pytest.mark.parametrize("number", range(5 if FULL else 1))
def test_a_first_start_killed_in_its_migration(
    place: Place, draw: random.Random, note: Callable[[str], None], request: pytest.FixtureRequest, number: int
) -> None:
    """Breaks with: a schema that is made in several transactions, a lock that survives its holder."""
    killed: list[int] = []
    for latest in (0.0, 0.02, 0.05, 0.2):
        server = place.server(f"killed{len(killed)}").start(ready=False)
        _wait_for_migration(place, server)
        time.sleep(draw.uniform(0, latest))
        server.kill()
        killed.append(_tables(place, request))
    server = place.server().start()
    branches.ended_right(server, branches.run(server, branches.quick()))
    assert server.request("GET", "/platform/ready")["status"] == "ready"
    whole = _tables(place, request)
    assert set(killed) <= {0, whole}, f"tables after each kill: {killed}"
    note(f"tables after each kill: {killed}")
    assert 0 in killed, "no blow fell before the end of the migration"


def _wait_for_migration(place: Place, server: Server) -> None:
    """Return as soon as the migration has begun."""
    if place.dialect == "sqlite":
        wait_for((place.home / "burnish.db").exists, 60, server.tail, pause=0.001)
        return

    async def seen() -> None:
        connection = await asyncpg.connect(str(place.database_url).replace("+asyncpg", ""))
        try:
            async with asyncio.timeout(60):
                while not await connection.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'burnish-migration'"
                ):
                    await asyncio.sleep(0.001)
        finally:
            await connection.close()

    asyncio.run(seen())


def _tables(place: Place, request: pytest.FixtureRequest) -> int:
    if place.dialect == "sqlite":
        connection = sqlite3.connect(place.home / "burnish.db")
        try:
            return int(connection.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0])
        finally:
            connection.close()
    postgres: PostgresServer = request.getfixturevalue("postgres_server")
    assert place.database_url is not None
    name = place.database_url.rpartition("/")[2]
    return int(postgres.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", name))


def deployable(place: Place, server: Server, reference: Reference) -> dict[str, Any]:
    """Publish the model of the undisturbed run in this server's store; return its reference."""
    digest = reference.outputs.artifacts["gguf"]
    source = FileArtifactStore(reference.home / "artifacts").open(digest)
    store = FileArtifactStore(server.home / "artifacts")
    staged = store.stage("model")
    shutil.copytree(source, staged, dirs_exist_ok=True)
    os.chmod(staged, 0o755)
    published = store.publish(staged, "gguf")
    assert published.digest == digest
    place.make_known(published)
    return published.model_dump(mode="json")


def deploy(server: Server, model: dict[str, Any], context_length: int) -> int:
    """Want a model behind `production`; return the revision."""
    spec = {"deployment": "production", "model": model, "context_length": context_length}
    return int(server.request("POST", "/platform/deployments", spec)["wanted"])


def serves(server: Server, revision: int) -> bool:
    """Tell whether the deployment is as wanted, with this revision."""
    view = server.request("GET", "/platform/deployments/production")
    return bool(view["state"] == "ready" and view["serving"] == revision)


class Streams(threading.Thread):
    """A client that streams one answer after the other, and notes what was cut or refused."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._url = server.url
        self._stopping = threading.Event()
        self.whole = 0
        self.faults: list[str] = []

    def run(self) -> None:
        body = json.dumps({"model": "production", "stream": True, "max_tokens": 200, "logit_bias": {"0": -100, "2": -100},
                           "messages": [{"role": "user", "content": "tell me"}]}).encode()  # fmt: skip
        while not self._stopping.is_set():
            request = urllib.request.Request(
                f"{self._url}/v1/chat/completions", data=body, headers={"Content-Type": "application/json"}
            )
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    text = answer.read().decode()
            except (OSError, urllib.error.URLError) as error:
                self.faults.append(str(error))
                time.sleep(0.05)
                continue
            if text.rstrip().endswith("data: [DONE]") and '"finish_reason":"' in text.replace(" ", ""):
                self.whole += 1
            else:
                self.faults.append(f"cut: {text[-200:]}")

    def stop(self) -> None:
        self._stopping.set()
        self.join(40)


def test_a_candidate_killed_in_a_switch_cuts_no_stream(
    place: Place, reference: Reference, draw: random.Random, note: Callable[[str], None]
) -> None:
    """Clients stream while the new revision's replica is killed as it starts, and then while the switch happens.

    Breaks with: a switch before the candidate was verified, an old replica that is ended with streams in it, a
    candidate that fails for good with its first replica.
    """
    server = place.server().start()
    model = deployable(place, server, reference)
    first = deploy(server, model, 512)
    wait_for(lambda: serves(server, first), 60, server.tail)
    streams = [Streams(server) for _ in range(3)]
    for stream in streams:
        stream.start()
    second = deploy(server, model, 768)
    wait_for(lambda: _replica_of(server, second) is not None, 60, server.tail, pause=0.005)
    time.sleep(draw.uniform(0, 0.2))
    struck = time.monotonic()
    candidate = _replica_of(server, second)
    if candidate is not None and (found := identify(candidate)) is not None:
        kill(found)
    wait_for(lambda: serves(server, second), 60, server.tail)
    took = time.monotonic() - struck
    before = sum(stream.whole for stream in streams)
    wait_for(lambda: sum(stream.whole for stream in streams) > before + 3, 60, server.tail)
    _old_one_has_gone(server)
    for stream in streams:
        stream.stop()
    assert [fault for stream in streams for fault in stream.faults] == []
    note(f"{sum(stream.whole for stream in streams)} streams, none cut; switched {took:.1f} s after the blow")
    assert _revisions(server) == {first: "retired", second: "serving"}
    assert lifecycle.leftovers(server) == []


@pytest.mark.parametrize("number", range(5 if FULL else 1))
def test_a_server_killed_in_a_switch(
    place: Place, reference: Reference, draw: random.Random, note: Callable[[str], None], number: int
) -> None:
    """Breaks with: a switch in two transactions, a replica started without a row, an old one that nobody ends."""
    server = place.server().start()
    model = deployable(place, server, reference)
    wanted = deploy(server, model, 512)
    wait_for(lambda: serves(server, wanted), 60, server.tail)
    waited = []
    for turn in range(3):
        wanted = deploy(server, model, 576 + 64 * turn)
        time.sleep(draw.uniform(0, 1.0))
        server.kill()
        started = time.monotonic()
        server.start()
        assert lifecycle.ask(server)  # what served before, or what serves now: there is always one
        wait_for(lambda wanted=wanted: serves(server, wanted), 60, server.tail)  # type: ignore[misc]
        waited.append(time.monotonic() - started)
    _old_one_has_gone(server)
    states = _revisions(server)
    assert [number for number, state in states.items() if state == "serving"] == [wanted]
    assert set(states.values()) == {"serving", "retired"}
    assert lifecycle.leftovers(server) == []
    note("switched " + ", ".join(f"{seconds:.1f}" for seconds in waited) + " s after a kill")


def _old_one_has_gone(server: Server) -> None:
    """Wait for the end of what served before: of its process, and then, a turn later, of its revision."""
    wait_for(lambda: len(replicas(server)) == 1, 60, server.tail)
    wait_for(lambda: "draining" not in _revisions(server).values(), 60, server.tail)


def _replica_of(server: Server, revision: int) -> int | None:
    return next((one["pid"] for one in replicas(server) if one["revision"] == revision), None)


def _revisions(server: Server) -> dict[int, str]:
    view = server.request("GET", "/platform/deployments/production")
    return {one["number"]: one["state"] for one in reversed(view["revisions"])}
