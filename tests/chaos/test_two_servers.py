"""Two servers of one node on PostgreSQL: one is killed or frozen, the other takes over, and nothing happens twice."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import branches, lifecycle
from tests.support.places import FULL, Material, Place
from tests.support.postgres import PostgresServer
from tests.support.server import Answered, Server, wait_for

pytestmark = pytest.mark.postgres
_LEASE_SECONDS = 2
_TAKE_OVER_SECONDS = 3 * _LEASE_SECONDS + 4
"""A lease, a look, and what a busy machine adds."""


@pytest.fixture
def pair(postgresql_place: Place, material: Material) -> tuple[Server, Server]:
    """Two servers that share home and database."""
    first, second = postgresql_place.server("first").start(), postgresql_place.server("second").start()
    first.upload("words", material.data[0])
    return first, second


def _judge(server: Server, workflow_ids: list[str], expected: dict[str, Any]) -> None:
    for workflow_id in workflow_ids:
        view = branches.ended_right(server, workflow_id)
        assert branches.results(view) == expected
        wrong = lifecycle.broken_run(server, view, host_kills={})
        wrong += _hosts_twice(server, workflow_id)
        assert wrong == []


def _hosts_twice(server: Server, workflow_id: str) -> list[str]:
    """Each job's host started once: the effect that would be seen twice."""
    wrong = []
    page = server.request("GET", f"/platform/jobs?workflow_id={workflow_id}&limit=200")["data"]
    for job in page:
        started = [event["data"].get("pid") for event in lifecycle.events_of_job(server, job["job_id"])
                   if event["type"] == "state" and event["data"].get("pid")]  # fmt: skip
        if len(set(started)) != 1:
            wrong.append(f"{job['job_id']} ran in processes {started}")
    return wrong


@pytest.mark.parametrize("number", range(3 if FULL else 1))
def test_servers_killed_and_frozen_in_turn(
    pair: tuple[Server, Server], draw: random.Random, note: Callable[[str], None], number: int
) -> None:
    """Breaks with: leases timed by a process's own clock, a thawed server that still writes, hosts that belong to the
    server that started them."""
    given = branches.definition(draw)
    expected = branches.results(branches.ended_right(pair[0], branches.run(pair[0], given, dataset="words")))
    accepted: list[str] = []
    took = []
    for turn, how in enumerate(("kill", "freeze", "freeze", "kill")):
        victim, other = pair if turn % 2 else pair[::-1]
        accepted += [branches.run(victim, given, dataset="words"), branches.run(other, given, dataset="words")]
        time.sleep(draw.uniform(0, 0.6))
        struck = time.monotonic()
        if how == "kill":
            victim.kill()
        else:
            victim.signal(signal.SIGSTOP)
        for workflow_id in accepted[-2:]:
            branches.ended_right(other, workflow_id)
        took.append(f"{how} {time.monotonic() - struck:.1f} s")
        quick = time.monotonic()
        branches.ended_right(other, branches.run(other, branches.quick()))
        assert time.monotonic() - quick < _TAKE_OVER_SECONDS
        if how == "kill":
            victim.start()
        else:
            victim.signal(signal.SIGCONT)
            wait_for(lambda victim=victim: _accepts(victim), 30, victim.tail)  # type: ignore[misc]
    _judge(pair[0], accepted, expected)
    note("both executions ended by the other: " + ", ".join(took))


def _accepts(server: Server) -> bool:
    try:
        return server.running and bool(branches.ended_right(server, branches.run(server, branches.quick())))
    except (OSError, Answered):
        return False


def test_the_other_takes_over_within_seconds(
    pair: tuple[Server, Server], draw: random.Random, note: Callable[[str], None]
) -> None:
    """Waits are held by whoever had the last turn; each goes on when its holder dies.

    Breaks with: leases that are not watched by others, notices without a look of one's own.
    """
    took = []
    for turn, how in enumerate((signal.SIGKILL, signal.SIGSTOP)):
        victim, other = pair[turn], pair[1 - turn]
        many = [branches.run(victim if n % 2 else other, branches.waits(1.0)) for n in range(12)]
        time.sleep(draw.uniform(0.2, 0.8))
        victim.signal(how)
        struck = time.monotonic()
        for workflow_id in many:
            branches.ended_right(other, workflow_id, timeout=30)
        took.append(time.monotonic() - struck)
        if how == signal.SIGKILL:
            victim.kill()
            victim.start()
        else:
            victim.signal(signal.SIGCONT)
        for workflow_id in many:
            view = lifecycle.status(other, workflow_id)
            assert lifecycle.broken_run(other, view, host_kills={}) == []
    assert max(took) < _TAKE_OVER_SECONDS + 1.0, took
    note(f"12 waits of 1 s ended {took[0]:.1f} s after a kill, {took[1]:.1f} s after a freeze")


def test_ctrl_c_on_one_of_two_leaves_their_work_to_the_other(
    pair: tuple[Server, Server], draw: random.Random, note: Callable[[str], None]
) -> None:
    """Breaks with: a drain that pauses the jobs of the machine, whoever else works on them."""
    first, other = pair
    given = branches.definition(draw)
    expected = branches.results(branches.ended_right(other, branches.run(other, given, dataset="words")))
    accepted = [branches.run(one, given, dataset="words") for one in (first, other)]
    branches.wait_for_job(other, accepted[0])
    first.signal(signal.SIGINT)
    assert first.exit_code(30) == 0, first.tail()
    struck = time.monotonic()
    assert "another server of this home goes on" in first.tail()
    _judge(other, accepted, expected)
    note(f"both executions ended {time.monotonic() - struck:.1f} s after the first server's end")


class Pump(threading.Thread):
    """Submits small executions to one server, again and again: so that it often is inside a transaction."""

    def __init__(self, server: Server, given: dict[str, Any] | None = None) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._given = given or branches.quick()
        self._stopping = threading.Event()
        self.accepted: list[str] = []

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.accepted.append(branches.run(self._server, self._given))
            except (OSError, Answered):
                self._stopping.wait(0.2)

    def stop(self) -> None:
        self._stopping.set()
        self.join(60)


def test_a_server_frozen_inside_a_transaction_holds_nobody_up(
    pair: tuple[Server, Server], postgres_server: PostgresServer, note: Callable[[str], None]
) -> None:
    """It is stopped again and again until PostgreSQL says that one of its transactions is open and idle; it then holds
    row locks. PostgreSQL ends that transaction, the other server works on, and the thawed one goes on as if nothing was.

    Breaks with: no timeout for idle transactions, a lock that everybody needs for every turn, a thawed server that
    writes in the belief that its lease still holds.
    """
    said = []
    for turn in range(6 if FULL else 2):
        said.append(_freeze_inside(*(pair if turn % 2 else pair[::-1]), postgres_server))
    note("; ".join(said))


def _freeze_inside(victim: Server, other: Server, postgres: PostgresServer) -> str:
    pumps = [Pump(victim), Pump(victim)]
    for pump in pumps:
        pump.start()
    try:
        wait_for(lambda: sum(len(pump.accepted) for pump in pumps) > 10, 30, victim.tail)
        query, tries = _stop_inside(victim, postgres)
        struck = time.monotonic()
        accepted = [workflow_id for pump in pumps for workflow_id in list(pump.accepted)]
        mine = [branches.run(other, branches.quick()) for _ in range(5)]
        for workflow_id in mine:
            branches.ended_right(other, workflow_id, timeout=30)
        own = time.monotonic() - struck
        for workflow_id in accepted:  # those of the frozen one, whose rows it may hold locked
            branches.ended_right(other, workflow_id, timeout=30)
        took = time.monotonic() - struck
    finally:
        victim.signal(signal.SIGCONT)
        for pump in pumps:
            pump.stop()
    wait_for(lambda: _accepts(victim), 30, victim.tail)
    for workflow_id in {one for pump in pumps for one in pump.accepted}:
        view = branches.ended_right(other, workflow_id)
        assert lifecycle.broken_run(other, view, host_kills={}) == []
    assert own < _TAKE_OVER_SECONDS
    assert took < _TAKE_OVER_SECONDS + 10
    return (
        f"frozen in {query!r} (try {tries}): the other's own 5 ended in {own:.1f} s, "
        f"the frozen one's {len(accepted)} in {took:.1f} s"
    )


def test_a_thawed_server_writes_nothing_over_what_others_did(
    pair: tuple[Server, Server], draw: random.Random, note: Callable[[str], None]
) -> None:
    """Frozen at any moment, with many turns at once that keep over several transactions what they read: the other ends
    them all before it thaws.

    Breaks with: no check of the lease in the transaction that writes (an end told twice, a step back in time).
    """
    ended = 0
    for turn in range(10 if FULL else 3):
        victim, other = pair if turn % 2 else pair[::-1]
        pumps = [Pump(victim, branches.two_transactions()) for _ in range(12)]
        for pump in pumps:
            pump.start()
        wait_for(lambda pumps=pumps: sum(len(pump.accepted) for pump in pumps) > 30, 30, victim.tail)  # type: ignore[misc]
        time.sleep(draw.uniform(0, 0.3))
        victim.signal(signal.SIGSTOP)
        try:
            for workflow_id in [workflow_id for pump in pumps for workflow_id in list(pump.accepted)]:
                branches.ended_right(other, workflow_id, timeout=30)
        finally:
            victim.signal(signal.SIGCONT)
            for pump in pumps:
                pump.stop()
        wait_for(lambda victim=victim: _accepts(victim), 30, victim.tail)  # type: ignore[misc]
        for workflow_id in {one for pump in pumps for one in pump.accepted}:
            view = branches.ended_right(other, workflow_id)
            assert lifecycle.broken_run(other, view, host_kills={}) == []
            ended += 1
    note(f"{ended} executions of frozen and thawed servers, each ended once")


def _stop_inside(victim: Server, postgres: PostgresServer) -> tuple[str, int]:
    """Stop the server again and again, until it is stopped inside a transaction of a turn."""
    for number in range(1, 600):
        victim.signal(signal.SIGSTOP)
        if (query := _idle_in_transaction(postgres, victim)) is not None:
            return query, number
        victim.signal(signal.SIGCONT)
        time.sleep(0.003)
    raise AssertionError("no transaction was caught open")


def _idle_in_transaction(postgres: PostgresServer, server: Server) -> str | None:
    """Return the last statement of a transaction that this frozen server holds open: one of a turn, that wrote."""
    ports = _local_ports(server.pid)
    rows = postgres.execute(
        "SELECT client_port, regexp_replace(left(query, 60), '\\s+', ' ', 'g') FROM pg_stat_activity "
        "WHERE state = 'idle in transaction' AND backend_xid IS NOT NULL AND application_name LIKE 'burnish %' "
        "AND query ~ '(UPDATE workflow_executions|INSERT INTO step_attempts)'"
    )
    for row in rows.splitlines():
        port, _, query = row.partition("|")
        if int(port) in ports:
            return query
    return None


def _local_ports(pid: int) -> set[int]:
    """Return the local TCP ports of a process."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[9] in inodes:
            found.add(int(words[1].rpartition(":")[2], 16))
    return found
