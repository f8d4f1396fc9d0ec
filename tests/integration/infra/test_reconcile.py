"""The reconciler on both databases: claims, fences, wakes, takes over."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest
from sqlalchemy import String, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from burnish.core.errors import Unavailable
from burnish.infra.database import Database, epoch_now
from burnish.infra.reconcile import LeaseLost, Reconciled, Reconciler, Turn, _Renewer, announce, wake


class OwnBase(DeclarativeBase):
    """Apart from the product's tables, whose schema tests compare."""


class Thing(Reconciled, OwnBase):
    __tablename__ = "test_things"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    count: Mapped[int] = mapped_column(default=0)


@pytest.fixture
async def things(database_url: str):  # type: ignore[no-untyped-def]
    database = Database(database_url)
    async with database.engine.begin() as connection:
        await connection.run_sync(lambda sync: Thing.__table__.create(sync))  # type: ignore[attr-defined]
    await database.start()
    yield database
    await database.dispose()


async def add(database: Database, *keys: str) -> None:
    async with database.write() as session:
        session.add_all(Thing(id=key) for key in keys)
        await announce(session, Thing)


async def until(condition, timeout: float = 15) -> None:  # type: ignore[no-untyped-def]
    async with asyncio.timeout(timeout):
        while not await condition():
            await asyncio.sleep(0.01)


async def counts(database: Database) -> dict[str, int]:
    async with database.read() as session:
        return {thing.id: thing.count for thing in (await session.scalars(select(Thing))).all()}


async def test_each_row_is_advanced_until_it_parks(things: Database) -> None:
    async def turn(one: Turn) -> float | None:
        async with one.write() as session:
            thing = await session.get_one(Thing, one.key)
            thing.count += 1
            return None if thing.count >= 3 else 0

    reconciler = Reconciler(things, Thing, turn, name="count", concurrency=4)
    await reconciler.start()
    await add(things, *(f"t{i}" for i in range(20)))
    await until(lambda: _all_equal(things, 3))
    await reconciler.stop()
    async with things.read() as session:
        left = (await session.scalars(select(Thing).where(Thing.lease_owner.is_not(None)))).all()
    assert not left


async def _all_equal(database: Database, value: int) -> bool:
    return set((await counts(database)).values()) == {value}


async def test_a_wake_during_a_turn_is_not_lost(things: Database) -> None:
    seen = Counter[str]()
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def turn(one: Turn) -> float | None:
        seen[one.key] += 1
        inside.set()
        if seen[one.key] == 1:
            await go_on.wait()
        return None

    reconciler = Reconciler(things, Thing, turn, name="wakes")
    await reconciler.start()
    await add(things, "a")
    await inside.wait()
    async with things.write() as session:
        await wake(session, Thing, "a")
    go_on.set()

    async def twice() -> bool:
        return seen["a"] == 2

    await until(twice)
    async with things.write() as session:
        await wake(session, Thing, "a")

    async def thrice() -> bool:
        return seen["a"] == 3

    await until(thrice)
    await reconciler.stop()


async def test_a_write_whose_lease_was_taken_is_dropped(things: Database) -> None:
    outcome: list[str] = []

    async def turn(one: Turn) -> float | None:
        if outcome:
            return None
        async with things.write() as session:  # another server took the row over
            await session.execute(
                update(Thing).where(Thing.id == one.key).values(lease_owner="other", lease_until=epoch_now() + 60)
            )
        try:
            async with one.write() as session:
                (await session.get_one(Thing, one.key)).count = 99
        except LeaseLost:
            outcome.append("lost")
            raise
        return None

    reconciler = Reconciler(things, Thing, turn, name="fence")
    await reconciler.start()
    await add(things, "a")

    async def lost() -> bool:
        return bool(outcome)

    await until(lost)
    await reconciler.stop()
    assert await counts(things) == {"a": 0}


async def test_a_turn_that_raises_is_tried_again(things: Database) -> None:
    tries = Counter[str]()

    async def turn(one: Turn) -> float | None:
        tries[one.key] += 1
        if tries[one.key] < 3:
            raise RuntimeError("a fault in a turn")
        async with one.write() as session:
            (await session.get_one(Thing, one.key)).count = tries[one.key]
        return None

    reconciler = Reconciler(things, Thing, turn, name="raises")
    await reconciler.start()
    await add(things, "a")
    await until(lambda: _all_equal(things, 3))
    await reconciler.stop()


async def test_another_server_takes_over_an_expired_lease(things: Database, database_url: str) -> None:
    async with things.write() as session:
        session.add(Thing(id="a", lease_owner="dead#1", lease_until=0.0 if things.dialect == "postgresql" else 1e12))

    async def turn(one: Turn) -> float | None:
        async with one.write() as session:
            (await session.get_one(Thing, one.key)).count = 1
        return None

    reconciler = Reconciler(things, Thing, turn, name="heir", lease_seconds=1)
    await reconciler.start()
    await until(lambda: _all_equal(things, 1))
    await reconciler.stop()


async def test_two_reconcilers_never_hold_one_row_together(things: Database, database_url: str) -> None:
    if things.dialect == "sqlite":
        pytest.skip("SQLite has one server")
    holding: set[str] = set()
    clashes: list[str] = []

    async def turn(one: Turn) -> float | None:
        if one.key in holding:
            clashes.append(one.key)
        holding.add(one.key)
        try:
            async with one.write() as session:
                (await session.get_one(Thing, one.key)).count += 1
            await asyncio.sleep(0.005)
        finally:
            holding.discard(one.key)
        async with one.read() as session:
            return None if (await session.get_one(Thing, one.key)).count >= 5 else 0

    other = Database(database_url)
    both = [Reconciler(d, Thing, turn, name="pair", lease_seconds=2) for d in (things, other)]
    await add(things, *(f"t{i}" for i in range(30)))
    for one in both:
        await one.start()
    await until(lambda: _all_equal(things, 5), 30)
    for one in both:
        await one.stop()
    await other.dispose()
    assert not clashes


async def test_rows_that_fall_due_one_after_the_other_are_claimed_together(things: Database) -> None:
    """Breaks with: a claim, and a giving back, for each of them."""
    turns = Counter[str]()

    async def turn(one: Turn) -> float | None:
        turns[one.key] += 1
        return None

    reconciler = Reconciler(things, Thing, turn, name="paced", pace_seconds=0.5)
    await reconciler.start()
    for number in range(20):
        await add(things, f"t{number}")

    async def all_had_one() -> bool:
        return len(turns) == 20

    await until(all_had_one)
    looks = reconciler.beats
    await reconciler.stop()
    assert set(turns.values()) == {1}
    assert looks < 10


@pytest.mark.postgres
async def test_no_transaction_of_a_frozen_server_outlives_its_limit(postgres_url: str) -> None:
    """A server may freeze between two statements, or between preparing one and running it: PostgreSQL then calls the
    session active, and other servers have to end it.

    Breaks with: no limit for idle transactions, nobody who looks for those that PostgreSQL calls active, a wait for the
    lock that ends with the frozen transaction or before it.
    """
    database = Database(postgres_url, frozen_seconds=0.5)
    await database.start()
    try:
        async with database.engine.begin() as connection:
            await connection.run_sync(lambda sync: Thing.__table__.create(sync))  # type: ignore[attr-defined]
        await add(database, "row")
        for prepared in (False, True):
            with pytest.raises(Unavailable):
                await _hold_up(database, prepared=prepared)
        assert await counts(database) == {"row": 2}
    finally:
        await database.dispose()


_FAKE_CLOCK = """
CREATE SCHEMA fake;
CREATE TABLE fake.shift (by interval);
INSERT INTO fake.shift VALUES ('0');
CREATE FUNCTION fake.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
AS 'SELECT pg_catalog.clock_timestamp() + by FROM fake.shift';
"""


@pytest.fixture
async def settable(postgres_url: str) -> AsyncIterator[tuple[str, Callable[[str], Awaitable[None]]]]:
    """A database with a clock of its own, and what shifts it."""
    dsn = Database(postgres_url).dsn
    connection = await asyncpg.connect(dsn)
    await connection.execute(_FAKE_CLOCK)
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f'ALTER DATABASE "{name}" SET search_path = fake, pg_catalog, public')

    async def shift(by: str) -> None:
        await connection.execute("UPDATE fake.shift SET by = by + $1::text::interval", by)

    database = Database(postgres_url)
    async with database.engine.begin() as opened:
        await opened.run_sync(lambda sync: Thing.__table__.create(sync))  # type: ignore[attr-defined]
    await database.dispose()
    yield postgres_url, shift
    await connection.close()


Settable = tuple[str, Callable[[str], Awaitable[None]]]


@pytest.mark.postgres
async def test_a_clock_that_is_set_back_holds_no_timer_up(settable: Settable) -> None:
    """Breaks with: a due time that is compared with the clock alone."""
    url, shift = settable
    database = Database(url)
    turns = Counter[str]()

    async def turn(one: Turn) -> float | None:
        turns[one.key] += 1
        return 2.0 if turns[one.key] == 1 else None

    reconciler = Reconciler(database, Thing, turn, name="timer")
    await reconciler.start()
    await add(database, "a")

    async def waits() -> bool:
        async with database.read() as session:
            row = await session.get_one(Thing, "a")
            return turns["a"] == 1 and row.lease_owner is None

    async def again() -> bool:
        return turns["a"] == 2

    await until(waits)
    await shift("-1 hour")
    await until(again, 10)
    await reconciler.stop()
    await database.dispose()


@pytest.mark.postgres
async def test_after_a_set_back_a_dead_servers_lease_is_taken_and_a_living_ones_is_not(settable: Settable) -> None:
    """Breaks with: leases that end by the clock alone, and with those ahead of it taken before they could be renewed."""
    url, shift = settable
    first, second = Database(url), Database(url)
    outcomes = Counter[str]()
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def turn(one: Turn) -> float | None:
        outcomes[f"began {one.key}"] += 1
        if one.key == "lives":
            inside.set()
            await go_on.wait()
        async with one.write() as session:
            (await session.get_one(Thing, one.key)).count += 1
        return None

    reconcilers = [Reconciler(one, Thing, turn, name="back", lease_seconds=2) for one in (first, second)]
    await reconcilers[0].start()
    await add(first, "lives")
    await inside.wait()
    async with first.write() as session:  # in the middle of its turn, its server died
        session.add(Thing(id="dead", due_at=epoch_now(), lease_owner="dead#1", lease_until=epoch_now() + 2))
    await shift("-1 hour")
    await reconcilers[1].start()

    async def taken() -> bool:
        return (await counts(first))["dead"] == 1

    await until(taken, 20)
    go_on.set()

    async def written() -> bool:
        return (await counts(first))["lives"] == 1

    await until(written)
    for one in reconcilers:
        await one.stop()
    await first.dispose()
    await second.dispose()
    assert outcomes == {"began lives": 1, "began dead": 1}


async def _hold_up(database: Database, *, prepared: bool) -> None:
    """Lock the row as a frozen server would; another must get it, at the first try."""
    statement = update(Thing).where(Thing.id == "row").values(count=Thing.count + 1)
    async with database.write() as frozen:
        await frozen.execute(statement.values(count=1000))
        if prepared:
            driver = (await (await frozen.connection()).get_raw_connection()).driver_connection
            await driver.prepare("SELECT 'not run yet'")  # type: ignore[union-attr]

        async with database.write() as waiting:
            await waiting.execute(statement)
        await frozen.execute(statement)


async def test_a_turn_whose_lease_was_lost_costs_its_successor_nothing(things: Database) -> None:
    """Breaks with: a turn's end that stops the renewal of its successor's lease, or two turns of one row at once."""
    go_on, inside, outcomes = asyncio.Event(), Counter[str](), list[str]()

    async def turn(one: Turn) -> float | None:
        inside["turns"] += 1
        inside["now"] += 1
        inside["most"] = max(inside["most"], inside["now"])
        try:
            if inside["turns"] == 1:
                await go_on.wait()
            else:
                await asyncio.sleep(2.5)  # longer than a lease
            async with one.write() as session:
                (await session.get_one(Thing, one.key)).count += 1
            outcomes.append("written")
        except LeaseLost:
            outcomes.append("lost")
            raise
        finally:
            inside["now"] -= 1
        return None

    reconciler = Reconciler(things, Thing, turn, name="successor", lease_seconds=1)
    await reconciler.start()
    await add(things, "a")

    async def begun() -> bool:
        return inside["turns"] == 1

    await until(begun)
    async with things.write() as session:  # what a stop of the process for longer than its lease comes to
        await session.execute(update(Thing).values(lease_owner=None, lease_until=None, due_at=0.0))
    reconciler._topic.notify()
    await asyncio.sleep(0.7)
    go_on.set()
    await until(lambda: _all_equal(things, 1))
    await reconciler.stop()
    assert outcomes == ["lost", "written"]
    assert inside["most"] == 1


@pytest.mark.postgres
def test_the_end_of_an_old_turn_leaves_its_successors_lease_renewed(postgres_url: str) -> None:
    renewer = _Renewer(Database(postgres_url), Thing, 1.0)
    renewer.hold("a", "old")
    renewer.hold("a", "new")
    renewer.release("a", "old")
    assert renewer._held == {"a": "new"}
    renewer.release("a", "new")
    assert renewer._held == {}
