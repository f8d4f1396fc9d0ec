"""The split form under steady load while its processes, its network, its Redis and its PostgreSQL fail.

Short: each kind of fault once, at a modest rate. ``BURNISH_TEST_FULL=1``: at least 50 requests a second and 20,000
requests for each fault of a process, struck again and again, with the issue's limits (``BURNISH_TEST_REQUESTS`` sets
another number of requests).
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.balancer import Passed
from tests.support.fleet import GATEWAYS, ROLES, Fleet, Member
from tests.support.harm import Harm, lost_work, under_load
from tests.support.load import Load, Sent, failures, tally
from tests.support.places import FULL
from tests.support.postgres import PostgresServer, running_server
from tests.support.redis import RedisServer, running_redis
from tests.support.server import wait_for

pytestmark = pytest.mark.postgres

RATE = 55.0 if FULL else 15.0
REQUESTS = int(os.environ.get("BURNISH_TEST_REQUESTS", 20_000)) if FULL else 0
STRIKE_SECONDS = 20.0
"""About so long one strike with its recovery takes; the whole form strikes until it has sent its requests."""
TIMES = max(1, round(REQUESTS / RATE / STRIKE_SECONDS))
GONE_SECONDS = 30.0 if FULL else 6.0
REDIS_GONE_SECONDS = 30.0 if FULL else 3.0
ROUTED_SECONDS = 10.0
RECOVERED_SECONDS = 30.0
ANSWERED_WELL = 99.95
REFUSED_SECONDS = 2.0
BACK_SECONDS = 10.0
KINDS_OF = {"serving1": ("chat", "stream"), "serving2": ("chat", "stream"), "tuning": (), "rest": ("upload",)}
"""The load's kinds of requests that each process answers."""
SPLIT = {**ROLES, **({"data": "data_management"} if FULL else {})}
"""The whole form counts uploads, too, so a second process takes them."""


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
        environment={"BURNISH_AUTH": "on"},
    )
    try:
        made.start()
        made.deploy_fake("chat", token_seconds=0.005)
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


def judged(fleet: Fleet, harm: Harm, note: Callable[[str], None]) -> Harm:
    """Print what a fault did; hold it against the promises that every fault has to keep."""
    note(harm.line())
    assert harm.bad("wrong") == [], failures(harm.bad("wrong"))
    assert lost_work(fleet, harm.sent) == []
    assert harm.recovery < RECOVERED_SECONDS
    return harm


def on(connections: list[Passed], gateway: int, one: Sent) -> bool:
    """Tell whether a request went over a connection to this gateway."""
    return any(
        passed.port == one.port and passed.backend == gateway and passed.began <= one.ended and passed.ended >= one.began
        for passed in connections
    )  # fmt: skip


def held(harm: Harm, victims: list[Sent], strays: list[Sent]) -> None:
    """Hold a fault of a process against its limits."""
    assert strays == [], failures(strays)
    assert len(harm.bad()) <= len(victims), failures(harm.bad())
    assert harm.route_around < ROUTED_SECONDS
    if FULL:
        assert len(harm.sent) >= REQUESTS
        assert harm.well > ANSWERED_WELL, harm.line()


VICTIMS = ("gateway1", "serving1", *(("tuning", "rest") if FULL else ("tuning+rest",)))


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_killed_process_costs_what_it_was_doing_and_no_more(
    fleet: Fleet, victim: str, note: Callable[[str], None]
) -> None:
    """Breaks with: a call that is not sent elsewhere, work that only memory knew, an instance that is asked though it is dead."""
    harm = under_load(
        fleet, f"kill -9 {victim}", lambda: each(fleet, victim, Member.kill), lambda: each(fleet, victim, begin),
        rate=RATE, hold=1, times=TIMES, requests=REQUESTS,
    )  # fmt: skip
    judged(fleet, harm, note)
    alone = "rest" in victim and not FULL  # nobody else takes uploads: they are refused until it is back
    held(harm, *_hurt(fleet, harm, victim, lasting=alone))


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_frozen_process_is_routed_around(fleet: Fleet, victim: str, note: Callable[[str], None]) -> None:
    """Breaks with: waiting for ever for one that accepts connections and says nothing."""
    harm = under_load(
        fleet, f"SIGSTOP {victim}", lambda: each(fleet, victim, Member.freeze), lambda: each(fleet, victim, Member.thaw),
        rate=RATE, hold=12 if FULL else 4, times=TIMES, requests=REQUESTS,
    )  # fmt: skip
    judged(fleet, harm, note)
    held(harm, *_hurt(fleet, harm, victim, lasting=True))


def each(fleet: Fleet, victims: str, strike: Callable[[Member], object]) -> None:
    """Do something to each of the victims."""
    for name in victims.split("+"):
        strike(fleet[name])


def begin(member: Member) -> None:
    """Start it, and do not wait: others are to be started too."""
    member.start(ready=False)


def _hurt(fleet: Fleet, harm: Harm, victim: str, lasting: bool = False) -> tuple[list[Sent], list[Sent]]:
    """Return the requests that were with the victim when it was struck (for as long as it was frozen), and the failed
    ones that were not."""
    if victim in GATEWAYS:
        assert fleet.balancer is not None
        passed, number = fleet.balancer.passed(), GATEWAYS.index(victim)
        with_victim = [one for one in harm.sent if on(passed, number, one) and _during(harm, one, lasting)]
    else:
        kinds = [kind for name in victim.split("+") for kind in KINDS_OF[name]]
        with_victim = [one for one in harm.sent if one.kind in kinds and _during(harm, one, lasting)]
    return with_victim, [one for one in harm.bad() if one not in with_victim]


def _during(harm: Harm, one: Sent, lasting: bool) -> bool:
    """Tell whether a request was under way as a strike fell; ``lasting``: or began before all was well again."""
    return any(
        one.ended >= strike.began and one.began <= (strike.recovered if lasting else strike.began + 0.1)
        for strike in harm.strikes
    )


def test_a_network_that_is_cut_between_two_processes_is_routed_around(
    fleet: Fleet, note: Callable[[str], None]
) -> None:
    """The gateways reach one of two instances no more: every byte is swallowed, and no end is told.

    Breaks with: an instance that stays healthy because it can still write its heartbeats.
    """
    assert fleet.to_serving is not None
    proxy = fleet.to_serving
    harm = under_load(
        fleet, "network to serving2 swallows all", lambda: proxy.set("stall"), lambda: _whole_again(proxy), rate=RATE, hold=30 if FULL else 6
    )  # fmt: skip
    judged(fleet, harm, note)
    _, strays = _hurt(fleet, harm, "serving2", lasting=True)
    assert strays == [], failures(strays)
    assert harm.route_around < ROUTED_SECONDS


@pytest.mark.parametrize("mode", ["delay 1.5", "garbage", "endless"])
def test_a_component_that_answers_badly_is_routed_around(fleet: Fleet, mode: str, note: Callable[[str], None]) -> None:
    """Breaks with: garbage that is passed on as an answer, an answer without end that is collected for ever."""
    assert fleet.to_serving is not None
    proxy = fleet.to_serving
    harm = under_load(
        fleet, f"serving2: {mode}", lambda: proxy.set(mode), lambda: _whole_again(proxy), rate=RATE,
        hold=20 if FULL else 3, pause=0.5, timeout=8
    )  # fmt: skip
    judged(fleet, harm, note)
    _, strays = _hurt(fleet, harm, "serving2", lasting=True)
    assert strays == [], failures(strays)


def _whole_again(proxy: object) -> None:
    for mode in ("cut", "pass"):  # connections whose middle is lost are of no use
        proxy.set(mode)  # type: ignore[attr-defined]


def test_redis_gone_changes_nothing_for_those_who_ask(
    fleet: Fleet, own_redis: RedisServer, note: Callable[[str], None]
) -> None:
    """Breaks with: a limit that cannot be counted and so refuses, or waits."""
    harm = under_load(
        fleet,
        f"Redis gone {REDIS_GONE_SECONDS:.0f} s",
        own_redis.stop,
        own_redis.start,
        rate=RATE,
        hold=REDIS_GONE_SECONDS,
    )
    judged(fleet, harm, note)
    assert harm.bad() == [], failures(harm.bad())


@pytest.mark.parametrize("how", ["stopped", "frozen"])
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

    hold = GONE_SECONDS
    harm = under_load(fleet, f"PostgreSQL {how} {hold:.0f} s", strike, restore, rate=RATE, hold=hold, pause=2)
    strike_ = harm.strikes[0]
    note(harm.line())
    assert harm.bad("wrong") == [], failures(harm.bad("wrong"))
    assert lost_work(fleet, harm.sent) == []
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


def test_half_open_connections_to_postgresql_are_found(fleet: Fleet, note: Callable[[str], None]) -> None:
    """One gateway's connections to the database are dead without a word; new ones work.

    Breaks with: waiting for an answer as long as a statement may take, connection after connection.
    """
    assert fleet.to_database is not None
    proxy = fleet.to_database
    harm = under_load(
        fleet, "gateway2: database half-open", lambda: proxy.set("half-open"), lambda: None, rate=RATE, hold=4
    )
    judged(fleet, harm, note)
    assert harm.bad("failed") == [], failures(harm.bad("failed"))
    slow = [one for one in harm.sent if one.seconds > REFUSED_SECONDS + 1]
    assert slow == [], [f"{one.kind} {one.seconds:.2f}" for one in slow]
    began = harm.strikes[0].began
    assert [one for one in harm.bad() if one.began > began + BACK_SECONDS] == []


def test_the_load_itself_is_judged_rightly(fleet: Fleet, tmp_path: Path) -> None:
    """Breaks with: a load that takes any answer for a right one, which would prove nothing above."""
    load = Load(fleet.url, tmp_path, rate=10, api_key=fleet.key, says="something else", mix={"chat": 1, "stream": 1})
    time.sleep(1.5)
    found = tally(load.stop())
    assert found["wrong"] > 3
    assert found["ok"] == 0
