"""A change is obeyed by every process of an installation within a second, whichever way they hear of it."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.postgres import PostgresServer
from tests.support.server import Answered, Server, wait_for

SECOND = 1.0
BASE = "/platform/configuration"
NARROW = {"BURNISH_CONFIGURATION__integrator__probe_seconds": "8"}


class Installation:
    """Two gateways and a component, each a process of its own, on one PostgreSQL database."""

    def __init__(self, folder: Path, postgres: PostgresServer) -> None:
        self.postgres, self.name = postgres, postgres.create_database()
        url = postgres.url(self.name)
        shared = {"BURNISH_ENVIRONMENT": "production"}
        home = folder / "home"
        self.first = Server(
            home, database_url=url, name="first", environment={**shared, "BURNISH_COMPONENTS": "platform"}
        )
        self.second = Server(
            home, database_url=url, name="second", environment={**shared, **NARROW, "BURNISH_COMPONENTS": "platform"}
        )
        self.component = Server(
            home, database_url=url, name="component", environment={**shared, "BURNISH_COMPONENTS": "data_management"}
        )
        self.processes = (self.first, self.second, self.component)

    def start(self) -> None:
        for one in self.processes:
            one.start()

    def change(self, **more: Any) -> Any:
        return self.first.request("PATCH", BASE, more)

    def states(self) -> dict[int, dict[str, Any]]:
        return {one["pid"]: one for one in self.first.request("GET", f"{BASE}/status")["data"]}

    def all_obey(self, version: int) -> bool:
        states = self.states()
        return all(states[one.pid]["versions"] == {"production": version} for one in self.processes)

    def end(self) -> None:
        for one in self.processes:
            one.end_everything()
        self.postgres.drop_database(self.name)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer) -> Iterator[Installation]:
    made = Installation(tmp_path_factory.mktemp("live"), postgres_server)
    try:
        made.start()
        yield made
    finally:
        made.end()


def within_a_second(condition: Callable[[], bool], what: str) -> None:
    """Wait until it holds: a second, and what a busy machine takes for a few looks more."""
    start, longest = time.monotonic(), 0.0
    while True:
        looked = time.monotonic()
        holds = condition()
        longest = max(longest, time.monotonic() - looked)
        if holds:
            return
        allowed = SECOND + 4 * longest
        assert time.monotonic() - start < allowed, f"{what}: not within {allowed:.2f} s"
        time.sleep(0.01)


def refused(server: Server, size: int) -> bool:
    """Send a body of that many bytes; tell whether the server's limit refused it."""
    try:
        server.request("PATCH", BASE, {"reason": "x" * size, "dry_run": True})
    except Answered as error:
        return error.status == 413
    return False


@pytest.mark.postgres
def test_a_limit_holds_for_the_next_request_on_every_gateway(installation: Installation) -> None:
    first, second = installation.first, installation.second
    assert not refused(first, 1500)
    assert not refused(second, 1500)
    done = installation.change(set={"gateway.max_body_bytes": 1024}, reason="small")
    assert refused(first, 1500), "the very next request on the process that answered"
    within_a_second(lambda: refused(second, 1500), "the other gateway obeys")
    within_a_second(lambda: installation.all_obey(done["version"]), "every process obeys, the component's too")
    back = first.request("POST", f"{BASE}/rollback", {"to": 0})
    assert not refused(first, 1500)
    within_a_second(lambda: not refused(second, 1500), "the other gateway obeys the rollback")
    within_a_second(lambda: installation.all_obey(back["version"]), "every process obeys the rollback")


@pytest.mark.postgres
def test_the_level_of_logs_changes_in_every_process(installation: Installation) -> None:
    def logged(server: Server) -> bool:
        path = f"/platform/health?{time.monotonic_ns()}"
        before = server.log.stat().st_size
        server.request("GET", path)
        time.sleep(0.01)
        return b"GET /platform/health" in server.log.read_bytes()[before:]

    assert logged(installation.second)
    quiet = installation.change(set={"logging.level": "error"}, reason="quiet")
    within_a_second(lambda: not logged(installation.second), "the second gateway is quiet")
    assert not logged(installation.first)
    within_a_second(lambda: installation.all_obey(quiet["version"]), "the component is quiet")
    installation.change(unset=["logging"])
    within_a_second(lambda: logged(installation.second), "the second gateway tells again")


@pytest.mark.postgres
def test_a_process_that_cannot_obey_stays_as_it_is_and_says_so(installation: Installation) -> None:
    """On the second gateway a variable contradicts the change: it refuses all of the version, and tells."""
    before = installation.change(set={"gateway.max_body_bytes": 2048})["version"]
    within_a_second(lambda: installation.all_obey(before), "all obey the version before")
    installation.change(set={"integrator.lease_seconds": 7, "gateway.max_body_bytes": 1024})
    second = installation.second
    within_a_second(lambda: installation.states()[second.pid]["state"] == "refuses", "the second gateway refuses")
    told = installation.states()[second.pid]
    assert (told["versions"], told["refused"]) == ({"production": before}, {"production": before + 1})
    assert told["problems"][0]["where"] == next(iter(NARROW))
    within_a_second(
        lambda: installation.states()[installation.component.pid]["state"] == "obeys", "the component obeys"
    )
    assert refused(installation.first, 1500)
    assert not refused(second, 1500), "no part of a version that is refused is obeyed"
    assert "is not shorter than" in second.tail(500)
    mended = installation.change(unset=["integrator", "gateway"])["version"]
    within_a_second(lambda: installation.all_obey(mended), "all obey the next version")
    assert {one["state"] for one in installation.states().values()} == {"obeys"}


@pytest.mark.postgres
def test_a_notice_that_is_missed_is_made_up_for(installation: Installation) -> None:
    """Every LISTEN connection is cut just before the change, so that nobody hears of it."""
    cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{}' AND query ILIKE '%{}%'"
    listening = "pg_terminate_backend(pid) FROM pg_stat_activity\nWHERE"  # what a listener asks between notices

    def cut_all() -> int:
        found = [installation.postgres.execute(cut.format(installation.name, what)) for what in ("LISTEN ", listening)]
        return sum(map(int, found))

    for burst in (5, 6, 7):
        wait_for(lambda: cut_all() > 0, 10, "somebody listens")  # again, after a pause of half a second
        done = installation.change(set={"gateway.per_key.burst": burst})
        within_a_second(lambda done=done: installation.all_obey(done["version"]), "all obey without a notice")  # type: ignore[misc]


@pytest.mark.postgres
def test_a_killed_process_obeys_when_it_is_back_and_what_needs_a_restart_holds_then(installation: Installation) -> None:
    component = installation.component
    done = installation.change(set={"jobs.cancel_grace_seconds": 4})
    assert done["restart_needed"] == ["jobs.cancel_grace_seconds"]
    wait_for(lambda: installation.states()[component.pid]["restart_needed"] == ["jobs.cancel_grace_seconds"], 5)
    component.kill()
    version = installation.change(set={"gateway.per_key.burst": 9})["version"]
    component.start()
    wait_for(lambda: installation.states()[component.pid]["versions"] == {"production": version}, 5)
    assert installation.states()[component.pid]["restart_needed"] == []
    assert installation.states()[installation.first.pid]["restart_needed"] == ["jobs.cancel_grace_seconds"]


def test_on_sqlite_the_file_is_watched(tmp_path: Path) -> None:
    file = tmp_path / "burnish.yaml"
    file.write_text("gateway: {max_body_bytes: 1024}\n")
    server = Server(tmp_path / "home", environment={"BURNISH_CONFIG": str(file)})
    try:
        server.start()
        assert refused(server, 1500)
        file.write_text("gateway: {max_body_bytes: 4096}\n")
        within_a_second(lambda: not refused(server, 1500), "the file is obeyed")
        file.write_text("gateway: {max_body_bytes: many}\n")
        wait_for(lambda: server.request("GET", f"{BASE}/status")["data"][0]["state"] == "refuses", 2)
        assert server.request("GET", f"{BASE}/status")["data"][0]["problems"][0]["where"] == f"{file}:1"
        assert not refused(server, 1500)
        server.stop()
        server.start(ready=False)
        assert server.exit_code(60) == 1
        assert f"{file}:1" in server.tail()
        assert "valid integer" in server.tail()
    finally:
        server.end_everything()
