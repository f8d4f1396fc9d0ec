"""What happens around a server: no disk, no database, a second server, a clock that goes back."""

import contextlib
import json
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from burnish.infra.processes import identify
from tests.support import branches, lifecycle
from tests.support.places import FULL, Material, Place
from tests.support.postgres import PostgresServer
from tests.support.server import Answered, Server, wait_for


def test_a_second_server_of_a_sqlite_home_is_refused_and_names_the_first(sqlite_place: Place) -> None:
    """Breaks with: no lock, a lock that a dead server leaves behind, a message that names nobody."""
    first = sqlite_place.server().start()
    for without_run_file in (False, True):  # the lock itself decides, not the file that only makes a better message
        if without_run_file:
            (first.home / "run" / "server.json").unlink()
        second = sqlite_place.server("second").start(ready=False)
        assert second.exit_code(30) != 0
        assert f"pid {first.pid}" in second.tail(), second.tail()
    branches.ended_right(first, branches.run(first, branches.quick()))
    first.kill()
    third = sqlite_place.server("third").start()
    branches.ended_right(third, branches.run(third, branches.quick()))


def test_two_servers_that_start_at_once_leave_one(sqlite_place: Place) -> None:
    """Breaks with: a check of the run file instead of a lock."""
    servers = [sqlite_place.server(f"server{number}").start(ready=False) for number in range(3)]
    wait_for(lambda: sum(server.running for server in servers) == 1, 60, lambda: "\n".join(s.tail() for s in servers))
    alive = next(server for server in servers if server.running)
    alive.wait_ready()
    assert all(f"pid {alive.pid}" in server.tail() for server in servers if server is not alive)
    branches.ended_right(alive, branches.run(alive, branches.quick()))


def test_a_database_that_is_gone_for_a_while_loses_nothing(
    postgresql_place: Place, postgres_server: PostgresServer, material: Material, draw: random.Random,
    note: Callable[[str], None],
) -> None:  # fmt: skip
    """Breaks with: a loop that ends on the first refused connection, a host that is given up because its row is away."""
    server = postgresql_place.server().start()
    server.upload("words", material.data[0])
    given = branches.definition(draw)
    expected = branches.results(branches.ended_right(server, branches.run(server, given, dataset="words")))
    accepted = [branches.run(server, given, dataset="words") for _ in range(2)]
    follower = lifecycle.Follower(server, accepted[0])
    follower.start()
    branches.wait_for_job(server, accepted[0])
    pid = server.pid
    postgres_server.stop()
    away = time.monotonic()
    refused = 0
    while time.monotonic() - away < (30 if FULL else 8):
        with pytest.raises(Answered) as refusal:
            branches.run(server, branches.quick())
        assert refusal.value.status == 503, refusal.value.text
        refused += 1
    assert server.request("GET", "/platform/health")["status"] in {"ok", "healthy", "alive"}
    postgres_server.start()
    back = time.monotonic()
    wait_for(lambda: _accepts(server), 30, lambda: f"nothing is accepted again\n{server.tail()}")
    took = time.monotonic() - back
    for workflow_id in accepted:
        view = branches.ended_right(server, workflow_id)
        assert branches.results(view) == expected
        assert lifecycle.broken_run(server, view, host_kills={}) == []
    assert follower.lost() == []
    assert (server.pid, server.running) == (pid, True)
    note(f"accepting again {took:.1f} s after the database was back; {refused} requests were refused with 503")


def _accepts(server: Server) -> bool:
    try:
        branches.run(server, branches.quick())
    except (Answered, OSError):
        return False
    return True


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a small disk of its own."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )  # fmt: skip
    if mounted.returncode != 0:
        pytest.skip(f"a disk that runs full needs the right to mount one: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_told_and_a_retry_after_it_works(place: Place, tmp_path: Path) -> None:
    """Breaks with: an artifact that is published cut short, an error that says only `errno 28`, a retry that finds
    what the failed attempt left."""
    with small_disk(tmp_path / "disk", 24) as disk:
        server = place.server(
            BURNISH_ARTIFACT_URL=(disk / "artifacts").as_uri(), BURNISH_DISK_RESERVE_BYTES="0"
        ).start()
        rows = tmp_path / "rows.jsonl"
        rows.write_text("".join(json.dumps({"text": f"{n} " + "x" * 2000, "label": "ab"[n % 2]}) + "\n" for n in range(2500)))  # fmt: skip
        server.upload("rows", rows)
        filler = disk / "filler"
        _fill(filler, leave=2 << 20)
        given = {"name": "fill", "parameters": {"dataset": {"type": "dataset", "required": True}}, "steps": {
            "split": {"component": "data_management", "kind": "split", "with": {"dataset": "${{ parameters.dataset.artifact }}"}},
            "after": {"kind": "noop", "needs": ["split"]}}}  # fmt: skip
        workflow_id = branches.run(server, given, dataset="rows")
        view = lifecycle.wait_until_ended(server, workflow_id, 60)
        assert view["status"] == "failed", lifecycle.summary(view)
        error = lifecycle.step_of(view, "split")["error"]
        assert error["code"] == "out_of_disk", error
        assert error["hint"], error
        with pytest.raises(Answered) as refusal:
            server.upload("more", rows)
        assert refusal.value.status == 507, refusal.value.text
        assert "disk" in refusal.value.text
        assert lifecycle.broken_artifacts(disk / "artifacts") == []
        filler.unlink()
        server.request("POST", f"/platform/workflows/{workflow_id}/retry", {})
        view = branches.ended_right(server, workflow_id)
        assert lifecycle.broken_artifacts(disk / "artifacts") == []
        assert lifecycle.leftovers(server) == []
        server.end_everything()


def _fill(path: Path, leave: int) -> None:
    free = os.statvfs(path.parent)
    with path.open("wb") as stream:
        left = free.f_bavail * free.f_frsize - leave
        while left > 0:
            left -= stream.write(b"\0" * min(left, 1 << 20))


def test_a_clock_that_was_set_back_holds_nothing_up(
    place: Place, material: Material, draw: random.Random, note: Callable[[str], None]
) -> None:
    """A restart finds itself an hour before what the rows say.

    Breaks with: turns that are due at a wall-clock time of the future, waits and retries counted by differences of it.
    """
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        pytest.skip("needs libfaketime: apt-get install -y libfaketime")
    server = place.server().start()
    server.upload("words", material.data[0])
    given = branches.definition(draw)
    long = branches.run(server, branches.waits(6))
    workflow_id = branches.run(server, given, dataset="words")
    branches.wait_for_job(server, workflow_id)
    hosts = [identify(job["pid"]) for job in branches.wait_for_job(server, workflow_id)]
    server.kill()
    earlier = {"LD_PRELOAD": str(found[0]), "FAKETIME": "-3600", "NO_FAKE_STAT": "1"}
    server.start(environment=earlier)
    started = time.monotonic()
    view = branches.ended_right(server, workflow_id)
    assert lifecycle.broken_run(server, view, host_kills={}) == []
    branches.ended_right(server, long, timeout=30)
    branches.ended_right(server, branches.run(server, branches.quick()), timeout=20)
    note(f"all ended {time.monotonic() - started:.1f} s after a restart one hour earlier; {len(hosts)} hosts lived on")
    assert server.stop() == 0
    server.start()  # and forward again
    branches.ended_right(server, branches.run(server, branches.quick()), timeout=20)
