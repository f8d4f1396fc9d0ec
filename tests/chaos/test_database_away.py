"""PostgreSQL away in every way that it can be: what needs it is refused soon, nothing is lost, and it is soon over."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from burnish.core.errors import Unavailable
from burnish.infra.database import Database
from tests.support import netns
from tests.support.postgres import PostgresServer, running_server
from tests.support.proxy import Proxy

REFUSED_SECONDS = 2.0
BACK_SECONDS = 10.0

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A server that only this module uses: it is stopped and frozen here."""
    with running_server() as server:
        server.execute("CREATE TABLE kept (id text PRIMARY KEY)")
        yield server


@asynccontextmanager
async def opened(
    server: PostgresServer, port: int | None = None, host: str = "127.0.0.1", pool_size: int = 2
) -> AsyncIterator[Database]:
    url = make_url(server.url("postgres")).set(host=host, port=port or server.port)
    database = Database(url.render_as_string(hide_password=False), pool_size=pool_size)
    await database.start()
    try:
        await asyncio.gather(*(insert(database, f"first-{os.urandom(6).hex()}") for _ in range(6)))
        yield database
    finally:
        await database.dispose()


async def insert(database: Database, key: str) -> str:
    async with database.write() as session:
        await session.execute(text("INSERT INTO kept VALUES (:key)"), {"key": key})
    return key


def processes(server: PostgresServer) -> list[int]:
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return [server.pid, *map(int, children)]


@contextmanager
def stopped(server: PostgresServer) -> Iterator[None]:
    server.stop()
    try:
        yield
    finally:
        server.start()


@contextmanager
def frozen(server: PostgresServer) -> Iterator[None]:
    everybody = processes(server)
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(everybody):
            os.kill(pid, signal.SIGCONT)


class Load:
    """Writers that go on whatever happens, and what they were told."""

    def __init__(self, database: Database, writers: int = 8) -> None:
        self.database = database
        self.accepted: list[str] = []
        self.refusals: list[float] = []
        self.slowest = self.late = 0.0
        """``late``: how long this very process was kept from running, in all: nobody else's fault."""
        self.last_at = 0.0
        self._stopping = False
        self._clock = asyncio.create_task(self._measure())
        self._tasks = [asyncio.create_task(self._write(number)) for number in range(writers)]

    async def _measure(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.02)
            self.late += max(0.0, time.monotonic() - began - 0.04)

    async def _write(self, writer: int) -> None:
        count = 0
        while not self._stopping:
            count += 1
            began = time.monotonic()
            try:
                self.accepted.append(await insert(self.database, f"{id(self)}-{writer}-{count}"))
                self.last_at = time.monotonic()
            except Unavailable:
                self.refusals.append(time.monotonic() - began)
                await asyncio.sleep(0.02)
            self.slowest = max(self.slowest, time.monotonic() - began)
            await asyncio.sleep(0.002)

    async def until_written(self, since: float, seconds: float) -> float:
        """Wait for something to be accepted after ``since``; return how long that took."""
        async with asyncio.timeout(seconds):
            while self.last_at < since:
                await asyncio.sleep(0.01)
        return self.last_at - since

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)
        self._clock.cancel()


async def disturbed(
    server: PostgresServer, database: Database, begin: Callable[[], object], end: Callable[[], object], seconds: float = 1.5
) -> None:  # fmt: skip
    """Disturb the database under load for a while and check the promises."""
    load = Load(database)
    await load.until_written(time.monotonic(), 10)
    await asyncio.to_thread(begin)
    async with asyncio.timeout(BACK_SECONDS):
        while not (load.refusals and database.away):
            await asyncio.sleep(0.01)
    await asyncio.sleep(seconds)
    started = time.monotonic()
    with pytest.raises(Unavailable) as refusal:
        await insert(database, "refused")
    assert time.monotonic() - started < 0.1, "once it is known to be away nobody waits"
    assert refusal.value.retry_after
    await asyncio.to_thread(end)
    took = await load.until_written(time.monotonic(), BACK_SECONDS)
    await load.stop()
    assert max(load.refusals) < REFUSED_SECONDS + load.late, sorted(load.refusals)[-5:]
    assert load.slowest < BACK_SECONDS, "what was accepted late, as it came back"
    assert set(load.accepted) <= kept(server), "something that was answered is lost"
    refused_after = len(load.refusals)
    await asyncio.gather(*(insert(database, f"after-{os.urandom(6).hex()}") for _ in range(20)))
    print(f"refused {refused_after}, slowest {load.slowest:.2f} s, accepting again after {took:.2f} s")


def kept(server: PostgresServer) -> set[str]:
    return set(server.execute("SELECT id FROM kept").splitlines())


async def test_a_stopped_database_is_refused_and_comes_back(own_server: PostgresServer) -> None:
    """Breaks with: a pool that hands out connections which its server closed."""
    outage = stopped(own_server)
    async with opened(own_server) as database:
        await disturbed(own_server, database, outage.__enter__, lambda: outage.__exit__(None, None, None))


async def test_a_frozen_database_is_refused_soon_and_comes_back(own_server: PostgresServer) -> None:
    """Breaks with: waiting for a statement as long as a statement may take."""
    outage = frozen(own_server)
    async with opened(own_server) as database:
        await disturbed(own_server, database, outage.__enter__, lambda: outage.__exit__(None, None, None))


async def test_a_network_that_swallows_everything_is_refused_soon(own_server: PostgresServer) -> None:
    """Breaks with: connections that are thought good after the network is whole again."""
    with Proxy(("127.0.0.1", own_server.port)) as proxy:
        async with opened(own_server, proxy.port) as database:
            await disturbed(own_server, database, lambda: proxy.set("stall"), lambda: proxy.set("pass"))


async def test_a_network_whose_cable_is_pulled_is_refused_soon(own_server: PostgresServer) -> None:
    """The kernel's own loss of packets: no byte is acknowledged, no connection is refused, no end is told."""
    if (why := netns.missing()) is not None:
        pytest.skip(why)
    with (
        netns.Namespace() as space,
        Proxy(("127.0.0.1", own_server.port), host=space.outside) as near,
        Proxy((space.outside, near.port), host=space.inside, within=space.command) as far,
    ):
        async with opened(own_server, far.port, space.inside) as database:
            await disturbed(own_server, database, space.cut, space.mend)


async def test_a_database_that_answers_garbage_is_refused_soon(own_server: PostgresServer) -> None:
    """Breaks with: an error of the driver that is taken for a fault of ours."""
    with Proxy(("127.0.0.1", own_server.port)) as proxy:
        async with opened(own_server, proxy.port) as database:
            await disturbed(own_server, database, lambda: proxy.set("garbage"), lambda: proxy.set("pass"))


READY = "5a0000000549"
UNREADABLE = {
    "ready, with a length below zero": "5a80000000",
    "ready, without the state": "5a00000004",
    "rows of more columns than are told": "5400000006" + "7fff" + READY,
    "a value longer than its message": "440000000a0001000000ff" + READY,
    "a setting without an end": "5300000006ffff" + READY,
    "done, in no UTF-8": "4300000006ff00" + READY,
    "a notice of another process cut short": "4100000005ff" + READY,
    "a warning without an end": "4e00000006ffff" + READY,
    "an error with a code that there is not": "450000000f" + "435858305858004d780000" + READY,
    "an error without an end": "450000000643ff" + READY,
    "done, before anything was": READY,
    "more authentication": "5200000008000000ff" + READY,
}


@pytest.mark.parametrize("answer", UNREADABLE.values(), ids=UNREADABLE)
async def test_an_answer_that_cannot_be_read_is_trouble_of_the_connection(
    own_server: PostgresServer, answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Breaks with: what the driver stumbles over in an answer, passed on as a fault of ours; a connection that is used
    again with the rest of such an answer on it; a task of notices that ends of it."""
    with Proxy(("127.0.0.1", own_server.port)) as proxy:
        async with opened(own_server, proxy.port) as database, opened(own_server) as other:
            proxy.set(f"answer {answer}")
            for attempt in range(4):
                with pytest.raises(Unavailable):
                    await insert(database, f"unreadable-{attempt}")
                with pytest.raises(Unavailable):
                    async with database.read() as session:
                        await session.execute(text("SELECT id FROM kept"))
                database.publish("sent")
            if answer == UNREADABLE["done, in no UTF-8"]:
                told = [one for one in caplog.records if "cannot be read" in one.message and one.exc_info]
                assert told, "what the driver stumbled over is a fault of somebody's: it is told with its traceback"
            proxy.set("pass")
            async with asyncio.timeout(BACK_SECONDS):
                while database.away:
                    await asyncio.sleep(0.01)
                await asyncio.gather(*(insert(database, f"read-{answer}-{number}") for number in range(6)))
                for sender, hearer in ((database, other), (other, database)):
                    version = hearer.topic("after").version
                    while not await hearer.topic("after").wait(version, 0.1):
                        sender.publish("after")


async def test_what_does_not_even_say_its_version_leaves_no_open_socket(own_server: PostgresServer) -> None:
    """Breaks with: a connection that the driver forgets as it stumbles over the first answer."""
    with Proxy(("127.0.0.1", own_server.port)) as proxy:
        proxy.set(f"answer {READY}")
        url = make_url(own_server.url("postgres")).set(port=proxy.port, query={"ssl": "disable"})  # the first answer
        database = Database(url.render_as_string(hide_password=False))
        for attempt in range(5):
            with pytest.raises(Unavailable):
                await insert(database, f"nobody-{attempt}")
        await database.dispose()
        here = psutil.Process().net_connections("tcp")
        assert not [one for one in here if one.raddr and one.raddr.port == proxy.port and one.status == "ESTABLISHED"]


async def test_half_open_connections_are_found_while_the_database_lives(own_server: PostgresServer) -> None:
    """Breaks with: a database that counts as living on one connection while all others wait for ever."""
    with Proxy(("127.0.0.1", own_server.port)) as proxy:
        async with opened(own_server, proxy.port) as database:
            proxy.set("half-open")
            began = time.monotonic()
            tried = await asyncio.gather(
                *(insert(database, f"half-{n}-{began}") for n in range(3)), return_exceptions=True
            )
            assert time.monotonic() - began < REFUSED_SECONDS
            assert all(isinstance(one, Unavailable) for one in tried)
            began = time.monotonic()
            await asyncio.gather(*(insert(database, f"whole-{n}-{began}") for n in range(20)))
            assert time.monotonic() - began < REFUSED_SECONDS, "those that nobody used meanwhile are dead too"


async def test_connections_that_died_while_idle_disturb_nobody(own_server: PostgresServer) -> None:
    """Breaks with: a first request after the outage that pays for it."""
    async with opened(own_server) as database:
        await asyncio.to_thread(own_server.stop)
        await asyncio.to_thread(own_server.start)
        async with asyncio.timeout(BACK_SECONDS):
            while database.away:
                await asyncio.sleep(0.01)
        await asyncio.gather(*(insert(database, f"idle-{os.urandom(6).hex()}") for _ in range(20)))


async def test_a_statement_that_takes_long_is_no_outage(own_server: PostgresServer) -> None:
    """Breaks with: a limit on statements in place of a question whether the database lives; a busy process that takes
    its own lateness for the database's."""
    async with opened(own_server) as database:

        async def slow() -> None:
            async with database.read() as session:
                await session.execute(text("SELECT pg_sleep(4)"))

        statements = [asyncio.create_task(slow()) for _ in range(3)]
        ends = time.monotonic() + 4
        while time.monotonic() < ends:
            await asyncio.sleep(0.05)
            time.sleep(0.8)  # noqa: ASYNC251 - the process itself is slow
            assert not database.away
        await asyncio.gather(*statements)
        await insert(database, f"slow-{ends}")


async def test_a_process_that_is_kept_from_running_breaks_no_connection_off(own_server: PostgresServer) -> None:
    """What it sends as it goes on is not there yet as the database says for whom it waits: its sessions are held up a little.

    Breaks with: one look at the database's sessions, which is older than what this process has just sent.
    """
    async with opened(own_server, pool_size=8) as database:
        load = Load(database, writers=16)
        await load.until_written(time.monotonic(), 10)
        while (kept := database._outage._kept) is None:
            await asyncio.sleep(0.01)
        own = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'burnish%'"
        sessions = [pid for pid in map(int, own_server.execute(own).split()) if pid != kept.get_server_pid()]
        assert len(sessions) > 10
        for _ in range(5):
            time.sleep(0.7)  # noqa: ASYNC251 - the process itself stands still
            for pid in sessions:
                os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(0.1)
            for pid in sessions:
                os.kill(pid, signal.SIGCONT)
            await load.until_written(time.monotonic(), 10)
        await load.stop()
    assert not load.refusals


async def test_a_lock_that_is_held_is_no_outage(own_server: PostgresServer) -> None:
    """Breaks with: a connection that waits for a lock taken for a dead one."""
    async with opened(own_server) as database:
        holding = asyncio.Event()

        async def hold() -> None:
            async with database.write() as session:
                await session.execute(text("LOCK TABLE kept IN ACCESS EXCLUSIVE MODE"))
                holding.set()
                await asyncio.sleep(2.5)

        holder = asyncio.create_task(hold())
        await holding.wait()
        began = time.monotonic()
        await insert(database, f"locked-{began}")
        assert time.monotonic() - began > 2
        await holder
        assert not database.away


async def test_a_caller_that_gives_up_within_a_unit_of_work_leaves_a_whole_pool(own_server: PostgresServer) -> None:
    """Breaks with: units of work that are counted for ever, connections that nobody gives back."""
    async with opened(own_server) as database:

        async def slow() -> None:
            async with database.read() as session:
                await session.execute(text("SELECT pg_sleep(30)"))

        for _ in range(3):
            tasks = [asyncio.create_task(slow()) for _ in range(4)]
            await asyncio.sleep(0.1)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(insert(database, f"cancel-{os.urandom(6).hex()}") for _ in range(20)))
        assert not database.away
