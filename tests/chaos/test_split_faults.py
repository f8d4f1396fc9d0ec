"""The split form under steady load while its processes, its network, its Redis and its PostgreSQL fail.

Short: each kind of fault once, at a modest rate. ``BURNISH_TEST_FULL=1``: SIGKILL and SIGSTOP each fall on every kind of
process again and again, under one load of at least 50 requests a second and 20,000 requests, with the issue's limits
(``BURNISH_TEST_REQUESTS``, ``BURNISH_TEST_RATE``: other numbers). The table at the end of the run tells what came of each.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.fleet import ROLES, Fleet
from tests.support.harm import Blow, Harm, lost_work, under_load
from tests.support.load import Load, failures, tally
from tests.support.places import FULL
from tests.support.postgres import PostgresServer, running_server
from tests.support.redis import RedisServer, running_redis
from tests.support.server import wait_for
from tests.support.victims import REPLICAS, Victim, frozen, killed, victim

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(1800)]

RATE = float(os.environ.get("BURNISH_TEST_RATE", 55)) if FULL else 15.0
REQUESTS = int(os.environ.get("BURNISH_TEST_REQUESTS", 30_000)) if FULL else 0
KILLS, FREEZES = (4, 3) if FULL else (1, 1)
"""How often each kind of process is struck. One that is frozen costs what is sent to it until that is noticed, too."""
VICTIMS = ("gateway1", "serving1", "replica", "host", *(("tuning", "rest") if FULL else ("tuning+rest",)))
FROZEN_SECONDS = {"gateway1": 4.0, "serving1": 4.0}
GONE_SECONDS = 30.0 if FULL else 4.0
REDIS_GONE_SECONDS = 30.0 if FULL else 3.0
ROUTED_SECONDS = 10.0
_TRIES = 4
"""Of a fault that a health check may find out before anybody is hurt by it."""
HURT_SHARE, SLOW_SECONDS = 0.1, 1.5
"""Of the requests in the second half of a fault that lasts: those that it hurts yet. A third would, if nobody routed around."""
RECOVERED_SECONDS = 30.0
ANSWERED_WELL = 99.95
REFUSED_SECONDS = 2.0
BACK_SECONDS = 10.0
SPLIT = {**ROLES, "serving2": "model_serving,data_management"}
"""Uploads find another process, too."""
ENVIRONMENT = {
    "BURNISH_AUTH": "on", "BURNISH_CPUS": "8", "BURNISH_MEMORY_BYTES": str(16 << 30),
    "BURNISH_CONFIGURATION__integrator__ejection_seconds": "2",
}  # fmt: skip
"""Room for two replicas and a job; what one fault had ejected is asked again when the next begins."""


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL that only this module stops and freezes."""
    with running_server() as server:
        yield server


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    """A Redis that only this module stops."""
    with running_redis() as server:
        yield server


@pytest.fixture(scope="module")
def fleet(
    own_postgres: PostgresServer, own_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    """The split form, serving a fake model."""
    made = Fleet(
        tmp_path_factory.mktemp("fleet"),
        own_postgres,
        own_redis,
        cuttable=True,
        roles=SPLIT,
        environment=ENVIRONMENT,
    )
    try:
        made.start()
        made.deploy_fake("chat", replicas=REPLICAS, token_seconds=0.005)
        yield made
    finally:
        made.end()


@pytest.fixture(autouse=True)
def whole(fleet: Fleet) -> None:
    """Each fault finds everything well."""
    for member in fleet.members.values():
        if not member.running:
            member.start()
    wait_for(fleet.settled, 60, lambda: f"{fleet.instances()}\n{fleet.tails()}")


def judged(fleet: Fleet, harm: Harm) -> Harm:
    """Put down what a fault did; hold it against the promises that every fault has to keep."""
    harm.put_down()
    assert harm.bad("wrong") == [], failures(harm.bad("wrong"))
    assert lost_work(fleet, harm) == []
    assert harm.recovery() < RECOVERED_SECONDS
    return harm


def routed_around(harm: Harm) -> None:
    """Hold it against those of a fault that others can stand in for: only what the victim had may fail, and soon no more."""
    assert harm.strays == [], failures(harm.strays)
    assert harm.route_around < ROUTED_SECONDS


def spared(harm: Harm) -> None:
    """Hold against its limits a fault that lasts, so that a call is sent now and then to see whether it is over."""
    assert harm.strays == [], failures(harm.strays)
    (strike,) = harm.strikes
    later = [one for one in strike.sent if (strike.began + strike.ended) / 2 < one.began < strike.ended]
    hurt = [one for one in later if one.outcome != "ok" or one.seconds > SLOW_SECONDS]
    assert len(hurt) < HURT_SHARE * len(later), f"{len(hurt)} of {len(later)}: {failures(hurt)}"


def struck(fleet: Fleet, fault: str, blow: Callable[[Victim], Blow], hold: Callable[[str], float], rounds: int) -> None:
    """Deal a blow to each kind of process, again and again, under one load; hold what came of it against all limits."""
    blows = [blow(victim(fleet, name)) for _ in range(rounds) for name in VICTIMS]
    harm = under_load(fleet, fault, blows, rate=RATE, hold=hold, requests=REQUESTS)
    routed_around(judged(fleet, harm))
    assert len(harm.bad()) <= harm.with_it
    if FULL:
        assert len(harm.sent) >= REQUESTS
        assert harm.well > ANSWERED_WELL, harm.line()


def test_killed_processes_cost_what_they_were_doing_and_no_more(fleet: Fleet) -> None:
    """Breaks with: a call that is not sent elsewhere, work that only memory knew, an instance that is asked though it is dead."""
    struck(fleet, "kill -9", killed, lambda name: 1.0, KILLS)


def test_frozen_processes_are_routed_around(fleet: Fleet) -> None:
    """Breaks with: waiting for ever for one that accepts connections and says nothing; a job that is taken for dead."""
    struck(fleet, "SIGSTOP", frozen, lambda name: 12.0 if FULL else FROZEN_SECONDS.get(name, 2.0), FREEZES)


@pytest.mark.parametrize("name", ["serving2", pytest.param("tuning", marks=pytest.mark.full)])
def test_a_network_that_is_cut_between_two_processes_is_routed_around(fleet: Fleet, name: str) -> None:
    """The gateways reach one instance no more: every packet is lost, and no end is told. A job goes on all the same.

    Breaks with: an instance that stays healthy because it can still write its heartbeats.
    """
    line, hit = fleet.lines[name], victim(fleet, name)
    blow = Blow(name, line.cut, line.mend, fleet.settled, hit.passed, hit.prepare)
    harm = under_load(fleet, f"network cut ({line.how}):", [blow], rate=RATE, hold=lambda _: 30 if FULL else 5)
    spared(judged(fleet, harm))


@pytest.mark.parametrize("mode", ["delay 1.5", "garbage", "unending", pytest.param("endless", marks=pytest.mark.full)])
def test_a_component_that_answers_badly_is_routed_around(fleet: Fleet, mode: str) -> None:
    """Breaks with: garbage that is passed on as an answer, an answer without end that is collected for ever."""
    line = fleet.lines["serving2"]

    def asked() -> list[str]:
        """Wait until it has its share again: a fault before this one made it slow, and it would be asked nothing."""

        def lately() -> int:
            since = time.monotonic() - 2
            return sum(at > since for at in fleet.passed("serving2").values())

        wait_for(lambda: lately() >= 5, 120, "serving2 is asked nothing")
        return []

    blow = Blow(
        "serving2", lambda: line.disturb(mode), line.mend, fleet.settled, lambda: fleet.passed("serving2"), asked
    )
    for _ in range(_TRIES):
        harm = under_load(
            fleet, f"{mode}:", [blow], rate=RATE, hold=lambda _: 8 if FULL else 4, pause=0.5, timeout=10
        )  # fmt: skip
        spared(judged(fleet, harm))
        if harm.with_it:
            return
    pytest.fail("it was asked nothing: a health check found it out first, each time")


def test_redis_gone_changes_nothing_for_those_who_ask(fleet: Fleet, own_redis: RedisServer) -> None:
    """Breaks with: a limit that cannot be counted and so refuses, or waits."""
    blow = Blow(f"gone {REDIS_GONE_SECONDS:.0f} s", own_redis.stop, own_redis.start, fleet.settled)
    harm = under_load(fleet, "Redis", [blow], rate=RATE, hold=lambda _: REDIS_GONE_SECONDS)
    judged(fleet, harm)
    assert harm.bad() == [], failures(harm.bad())


# in short, test_database_away.py freezes one, and has connections half-open
@pytest.mark.parametrize("how", ["stopped", pytest.param("frozen", marks=pytest.mark.full)])
def test_postgresql_gone_refuses_soon_and_chats_go_on(
    fleet: Fleet, own_postgres: PostgresServer, how: str, note: Callable[[str], None]
) -> None:
    """Breaks with: a chat that asks the database first, a request that waits for it, a loop that does not come back."""
    frozen: list[int] = []

    def strike() -> None:
        if how == "stopped":
            own_postgres.stop()
            return
        frozen.extend(_processes(own_postgres))
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)

    def restore() -> None:
        if how == "stopped":
            own_postgres.start()
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)

    blow = Blow(f"{how} {GONE_SECONDS:.0f} s", strike, restore, fleet.settled)
    harm = under_load(fleet, "PostgreSQL", [blow], rate=RATE, hold=lambda _: GONE_SECONDS, pause=2)
    judged(fleet, harm)
    strike_ = harm.strikes[0]
    away = [one for one in harm.sent if one.began > strike_.began and one.ended < strike_.ended]
    chats = [one for one in away if one.kind in ("chat", "stream")]
    assert len(chats) > 10
    assert [one for one in chats if one.outcome != "ok"] == [], failures(chats)
    others = [one for one in away if one.kind in ("submit", "upload")]
    assert {one.outcome for one in others} <= {"refused"}, failures([o for o in others if o.outcome == "failed"])
    slow = [one for one in harm.sent if one.outcome == "refused" and one.seconds >= REFUSED_SECONDS]
    assert slow == [], failures(slow)
    assert harm.bad("failed") == [], failures(harm.bad("failed"))
    late = [one for one in harm.bad() if one.began > strike_.ended + BACK_SECONDS]
    assert late == [], failures(late)
    last = max((one.began for one in harm.bad()), default=strike_.ended)
    note(
        f"PostgreSQL {how}: {len(chats)} chats went on; all normal {max(0.0, last - strike_.ended):.2f} s after its return"
    )


def _processes(server: PostgresServer) -> list[int]:
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return [server.pid, *map(int, children)]


@pytest.mark.full
def test_half_open_connections_to_postgresql_are_found(fleet: Fleet) -> None:
    """One gateway's connections to the database are dead without a word; new ones work.

    Breaks with: waiting for an answer as long as a statement may take, connection after connection.
    """
    assert fleet.to_database is not None
    proxy = fleet.to_database
    blow = Blow("gateway2", lambda: proxy.set("half-open"), lambda: None, fleet.settled)
    harm = under_load(fleet, "PostgreSQL half-open:", [blow], rate=RATE, hold=lambda _: 4)
    judged(fleet, harm)
    assert harm.bad("failed") == [], failures(harm.bad("failed"))
    slow = [one for one in harm.sent if one.seconds > REFUSED_SECONDS + 1]
    assert slow == [], [f"{one.kind} {one.seconds:.2f}" for one in slow]
    began = harm.strikes[0].began
    assert [one for one in harm.bad() if one.began > began + BACK_SECONDS] == []


def test_the_load_itself_is_judged_rightly(fleet: Fleet, tmp_path: Path) -> None:
    """Breaks with: a load that takes any answer for a right one, which would prove nothing above."""
    load = Load(fleet.url, tmp_path, rate=10, api_key=fleet.key, says="something else", mix={"chat": 1, "stream": 1})
    wait_for(lambda: len(load.sent()) > 3, 30, "no answers")
    found = tally(load.stop())
    assert found["wrong"] > 3
    assert found["ok"] == 0
