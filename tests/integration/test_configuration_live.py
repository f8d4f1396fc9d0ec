"""What all processes of an installation obey together: the configuration, limits. And how one of its gateways ends."""

import http.client
import json
import re
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import Fleet, answers
from tests.support.postgres import PostgresServer
from tests.support.redis import RedisServer, running_redis
from tests.support.server import Answered, Server, wait_for

SECOND = 1.0
BASE = "/platform/configuration"
NARROW = {"BURNISH_CONFIGURATION__integrator__probe_seconds": "8"}


class Installation(Fleet):
    """Two gateways (``burnish serve`` as it is) and a process of components, on one PostgreSQL database and one Redis."""

    def __init__(self, folder: Path, postgres: PostgresServer, redis: RedisServer) -> None:
        roles = {"gateway1": "platform", "gateway2": "platform", "component": "data_management,model_serving"}
        super().__init__(folder, postgres, redis, roles=roles, environment={"BURNISH_ENVIRONMENT": "production"})
        self.postgres, self.redis = postgres, redis
        self.database = self.database_url.rpartition("/")[2]
        self.first, self.second, self.component = self.members.values()
        for gateway in self.gateways:
            gateway.program = ("-m", "burnish.cli", "serve")
        self.second._environment |= NARROW

    def change(self, **more: Any) -> Any:
        return self.first.request("PATCH", BASE, more)

    def states(self) -> dict[int, dict[str, Any]]:
        return {one["pid"]: one for one in self.first.request("GET", f"{BASE}/status")["data"]}

    def all_obey(self, version: int) -> bool:
        states = self.states()
        return all(states[one.pid]["versions"] == {"production": version} for one in self.members.values())

    def told(self, action: str) -> int:
        """Return how many events of the gateways say that."""
        count = f"SELECT count(*) FROM events WHERE subject = 'gateway' AND data->>'action' = '{action}'"
        return int(self.postgres.execute(count, self.database))


@pytest.fixture(scope="module")
def installation(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer, redis_server: RedisServer
) -> Iterator[Installation]:
    """The installation; its Redis is its own, to be stopped (the session's tells whether there is one at all)."""
    with running_redis() as redis:
        made = Installation(tmp_path_factory.mktemp("live"), postgres_server, redis)
        try:
            made.start()
            yield made
        finally:
            made.end()
            postgres_server.drop_database(made.database)


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
        found = [
            installation.postgres.execute(cut.format(installation.database, what)) for what in ("LISTEN ", listening)
        ]
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


ROUTE = "/platform/kinds"


def passes(*servers: Server) -> int:
    """Ask each server in turn, ten times; return how often the limit of the route let it through."""
    found = [limited_by(server) for _ in range(10) for server in servers]
    limits = ("", *(f"gateway.per_route.{route}" for route in (ROUTE, f"{ROUTE}/", f"{ROUTE}.requests_per_day")))
    assert all(limit in limits for limit in found)
    return found.count("")


def limited_by(server: Server) -> str:
    """Ask for the route; return the limit that refused it, if one did."""
    try:
        server.request("GET", ROUTE)
    except Answered as refusal:
        return str(json.loads(refusal.text)["where"]) if refusal.status == 429 else refusal.text
    return ""


@pytest.mark.postgres
def test_two_gateways_obey_one_limit_together_while_there_is_redis(installation: Installation) -> None:
    """Breaks with: a bucket for each gateway; requests that fail with Redis; a gateway that stays by itself."""
    first, second = installation.gateways
    slow = {"requests_per_second": 0.001, "burst": 6}
    done = installation.change(set={"gateway.per_route": {ROUTE: slow}})
    within_a_second(lambda: installation.all_obey(done["version"]), "both know the limit")
    alone = counted_alone(first, second)
    found = passes(first, second)
    late = counted_alone(first, second) - alone  # 0, unless the machine is too busy for an answer of Redis in 25 ms
    assert 6 <= found <= 6 + late, "together"
    fell, shared = installation.told("limits fell back"), installation.told("limits are shared")
    installation.redis.stop()
    assert passes(first, second) <= late, "each goes on from what Redis said last"
    wait_for(lambda: installation.told("limits fell back") == fell + 2, 10, "each gateway says so")
    done = installation.change(set={"gateway.per_route": {f"{ROUTE}/": slow}})
    within_a_second(lambda: installation.all_obey(done["version"]), "a limit of which Redis never heard")
    assert passes(first, second) == 12, "each by itself"
    installation.redis.start()
    wait_for(lambda: installation.told("limits are shared") == shared + 2, 10, "each gateway says that it is over")
    alone = counted_alone(first, second)
    found = passes(first, second)
    late = counted_alone(first, second) - alone  # such a request may be charged in both places, and pass in neither
    assert 6 - late <= found <= 6, "together again, in a Redis that has forgotten"
    installation.change(unset=["gateway.per_route"])


def counted_alone(*servers: Server) -> int:
    """Return how many requests these gateways have counted without Redis."""
    metrics = [urllib.request.urlopen(f"{one.url}/platform/metrics", timeout=10).read().decode() for one in servers]
    return sum(int(float(re.findall(r"^platform_gateway_local_limits_total (\S+)$", one, re.M)[0])) for one in metrics)


@pytest.mark.postgres
def test_what_smuggles_or_breaks_off_gets_no_further_than_a_servers_edge(installation: Installation) -> None:
    """Breaks with: a server that is started with another HTTP protocol than the gateway's."""
    head = f"PATCH {BASE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    body = json.dumps({"set": {"logging.level": "debug"}})
    chunk = f"{len(body):x}\r\n{body}\r\n0\r\n\r\n"
    refused = {
        "400": [f"{head}Content-Length: {len(body)}\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}",
                f"{head}Content-Length: {len(body)}\r\nContent-Length: 2\r\n\r\n{body}",
                f"{head}Host: elsewhere\r\nContent-Length: {len(body)}\r\n\r\n{body}"],
        "431": [f"{head}X-A: {'a' * 70_000}\r\nContent-Length: {len(body)}\r\n\r\n{body}"],
    }  # fmt: skip
    before = installation.first.request("GET", BASE)["version"]
    for server in installation.gateways:
        for status, requests in refused.items():
            for request in requests:
                assert answered(server, request).startswith(f"HTTP/1.1 {status} "), request[:300]
        assert answered(server, f"{head}Content-Length: {len(body) + 1}\r\n\r\n{body}", hang_up=True) == ""
        assert answered(server, f"{head}Transfer-Encoding: chunked\r\n\r\n{chunk[:-6]}", hang_up=True) == ""
        assert server.request("GET", BASE)["version"] == before, "nothing of it was obeyed"
        forged = {"Burnish-Caller": "forged", "X-Forwarded-User": "root"}
        assert server.request("GET", "/platform/identity/me", headers=forged)["subject"] == "local"


def answered(server: Server, request: str, *, hang_up: bool = False) -> str:
    """Send bytes; return everything that comes until the connection is closed."""
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=10) as connection:
        connection.sendall(request.encode())
        if hang_up:
            connection.shutdown(socket.SHUT_WR)
        found = b""
        try:
            while piece := connection.recv(65_536):
                found += piece
        except ConnectionResetError:
            pass
        return found.decode()


@pytest.mark.postgres
def test_a_gateway_that_is_told_to_end_lets_streams_end_and_its_next_life_knows_the_days_quotas(
    installation: Installation,
) -> None:
    """The serving process is told, too. Breaks with: a stream that is cut, a listener that stays open, a deaf second TERM."""
    first, second = installation.gateways
    ending = (second, installation.component)
    installation.deploy_fake("steady", token_seconds=0.05)
    quota = {"requests_per_second": 0, "requests_per_day": 5}
    done = installation.change(set={"gateway.per_route": {ROUTE: quota}})
    within_a_second(lambda: installation.all_obey(done["version"]), "both know the quota")
    alone = counted_alone(first, second)
    assert 5 <= passes(first, second) <= 5 + counted_alone(first, second) - alone

    with streaming(second, tokens=80) as stream:
        assert b"steady" in stream.readline()
        told = time.monotonic()
        for one in ending:
            one.signal(signal.SIGTERM)
        for one in ending:
            wait_for(lambda one=one: is_closed(one), 1, "nobody new gets in")  # type: ignore[misc]
            assert one.running
        rest = stream.read().decode()
        assert rest.rstrip().endswith("data: [DONE]"), rest[-300:]
        assert rest.count(" w") == 79
        assert time.monotonic() - told > 4, "longer than connections get that nobody counts"
        assert [one.exit_code(5) for one in ending] == [0, 0]
        assert time.monotonic() - told < 10, "gateway.drain_seconds"

    for one in ending:
        one.start(ready=False)
    for one in ending:
        one.wait_ready()
    assert passes(second) <= counted_alone(second), "the day's quota is used up, whoever was away meanwhile"
    wait_for(lambda: answers(second, "steady"), 30, installation.tails)
    with streaming(second, tokens=4000) as stream:
        assert b"steady" in stream.readline()
        second.signal(signal.SIGTERM)
        wait_for(lambda: is_closed(second), 1, "nobody new gets in")
        told = time.monotonic()
        second.signal(signal.SIGTERM)
        assert second.exit_code(5) == 0
        assert time.monotonic() - told < 2, "at once"
        with pytest.raises(http.client.IncompleteRead):
            stream.read()


@contextmanager
def streaming(server: Server, tokens: int) -> Iterator[http.client.HTTPResponse]:
    """Ask for a chat of so many tokens as a stream."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    asked = {"model": "steady", "max_tokens": tokens, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    connection.request("POST", "/v1/chat/completions", json.dumps(asked), {"Content-Type": "application/json"})
    try:
        yield connection.getresponse()
    finally:
        connection.close()


def is_closed(server: Server) -> bool:
    """Tell whether a server takes no connection."""
    try:
        socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


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
