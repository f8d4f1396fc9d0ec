import asyncio
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import text, update

from burnish.core.errors import MalformedRequest
from burnish.core.protocol import Event
from burnish.infra import event_log
from burnish.infra.database import Database, utcnow
from burnish.infra.event_log import EventLog, store
from burnish.infra.event_log.tables import EventRow
from burnish.infra.logging import redact_fields
from tests.support.postgres import PostgresServer


async def add(database: Database, subject: str, *numbers: int, origin: str | None = None) -> None:
    async with database.write() as session:
        for number in numbers:
            await event_log.append(
                session, project_id="p", subject=subject, type="metric", data={"n": number}, origin=origin
            )


async def numbers(database: Database, **query: object) -> list[object]:
    async with database.read() as session:
        return [event.data["n"] for event in await event_log.read(session, **query)]  # type: ignore[arg-type]


class Following:
    """A follower in a task of its own."""

    def __init__(self, log: EventLog, **query: object) -> None:
        self.seen: list[Event] = []
        self.heartbeats = 0
        self.paused = asyncio.Event()
        self.paused.set()
        self._changed = asyncio.Event()
        self._events = log.follow(**query)  # type: ignore[arg-type]
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async for event in self._events:
            if event is None:
                self.heartbeats += 1
            else:
                self.seen.append(event)
            self._changed.set()
            await self.paused.wait()

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not done():
                assert not self._task.done(), self._task
                self._changed.clear()
                await self._changed.wait()

    async def stop(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        await self._events.aclose()  # type: ignore[attr-defined]

    @property
    def numbers(self) -> list[object]:
        return [event.data["n"] for event in self.seen]


@pytest.fixture
async def log(database: Database) -> AsyncIterator[EventLog]:
    opened = EventLog(database)
    yield opened
    await opened.close()


async def test_read_filters_resumes_and_pages(database: Database) -> None:
    await add(database, "wf_1", 1)
    await add(database, "job_1", 2, 3, origin="wf_1")
    await add(database, "job_2", 4, origin="wf_2")
    await add(database, "wf_1", 5)
    assert await numbers(database) == [1, 2, 3, 4, 5]
    assert await numbers(database, subject="wf_1") == [1, 5]
    assert await numbers(database, subject="job_1") == [2, 3]
    assert await numbers(database, origin="wf_1") == [1, 2, 3, 5]
    assert await numbers(database, origin="wf_1", limit=2) == [1, 2]
    async with database.read() as session:
        page = await event_log.read(session, origin="wf_1", limit=2)
        newest = await event_log.latest(session)
    assert await numbers(database, origin="wf_1", after=page[-1].id) == [3, 5]
    assert await numbers(database, after=newest) == []
    assert await numbers(database, subject="other") == []


@pytest.mark.parametrize("cursor", ["x", "1", "1-", "-", "1-2-x", "1-x", "9" * 60 + "-1", "²-³"])
async def test_a_cursor_that_is_none_is_refused(database: Database, cursor: str) -> None:
    with pytest.raises(MalformedRequest, match="not an event's id"):
        await numbers(database, after=cursor)


async def test_rolled_back_events_never_were(database: Database) -> None:
    async def roll_back() -> None:
        async with database.write() as session:
            await event_log.append(session, project_id="p", subject="s", type="state", data={"n": 0})
            raise RuntimeError("roll back")

    with pytest.raises(RuntimeError):
        await roll_back()
    await add(database, "s", 1)
    assert await numbers(database) == [1]


async def test_data_that_databases_refuse_is_kept_readable(database: Database) -> None:
    data = {
        "nan": float("nan"),
        "inf": -float("inf"),
        "nul": "a\0b",
        "lone": "\ud800",
        "long": "x" * 70_000,
        "deep": [{"k": (1, 2)}],
    }
    async with database.write() as session:
        await event_log.append(session, project_id="p", subject="s", type="metric", data=data)
        await event_log.append(session, project_id="p", subject="s", type="log", data={"message": "password=hunter22"})
    async with database.read() as session:
        first, second = await event_log.read(session)
    assert first.data["nan"] == "NaN"
    assert first.data["inf"] == "-Infinity"
    assert first.data["nul"] == "a\ufffdb"
    assert first.data["lone"] == "?"
    assert first.data["deep"] == [{"k": [1, 2]}]
    assert str(first.data["long"]).endswith("(4464 characters cut)")
    assert "hunter22" not in str(second.data)


async def test_of_a_long_text_no_more_is_looked_through_than_is_kept(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks with: one line of a job that has the server look through 20 MB for secrets; half a secret, cut in two."""
    seen: list[int] = []
    redact = redact_fields

    def counted(text: str, name: str = "") -> Any:
        seen.append(len(text))
        return redact(text, name)

    monkeypatch.setattr(store, "redact_fields", counted)
    line = "x" * 65_520 + " password=hunter22-" + "y" * 20_000_000
    async with database.write() as session:
        data = {"message": line, "api_key": "z" * 100_000, "list": ["token=abcdef"]}
        await event_log.append(session, project_id="p", subject="s", type="log", data=data)
    async with database.read() as session:
        (found,) = await event_log.read(session)
    assert max(seen) <= 128 << 10
    message = str(found.data["message"])
    assert message.endswith(f"({len(line) - 65_536} characters cut)")
    assert len(message) < 66_000
    assert "hunter22" not in message
    assert str(found.data["api_key"]).startswith("***...")
    assert "abcdef" not in str(found.data["list"])


async def test_follow_catches_up_then_lives(database: Database, log: EventLog) -> None:
    await add(database, "wf", 1, 2)
    follower = Following(log, origin="wf")
    await follower.until(lambda: len(follower.seen) == 2)
    await add(database, "job", 3, origin="wf")
    await add(database, "other", 4)
    await add(database, "wf", 5)
    await follower.until(lambda: len(follower.seen) == 4)
    resumed = Following(log, origin="wf", after=follower.seen[1].id)
    await resumed.until(lambda: len(resumed.seen) == 2)
    assert follower.numbers == [1, 2, 3, 5]
    assert resumed.numbers == [3, 5]
    assert log.followers == 2
    await follower.stop()
    await resumed.stop()
    assert log.followers == 0


async def test_heartbeats_when_nothing_happens(log: EventLog) -> None:
    follower = Following(log, subject="s", heartbeat=0.05)
    await follower.until(lambda: follower.heartbeats >= 3)
    await follower.stop()
    assert follower.seen == []


async def test_many_writers_and_followers_lose_nothing_and_see_one_order(database: Database, log: EventLog) -> None:
    """Transactions of random length commit out of order; followers join and leave throughout."""

    async def write(writer: int) -> None:
        rng = random.Random(writer)
        for number in range(15):
            async with database.write() as session:
                await event_log.append(
                    session, project_id="p", subject="s", type="metric", data={"n": f"{writer}.{number}"}
                )
                if database.dialect == "postgresql":
                    await asyncio.sleep(rng.random() * 0.02)

    followers = [Following(log, subject="s") for _ in range(3)]
    writers = [asyncio.create_task(write(number)) for number in range(8)]
    for _ in range(5):
        await asyncio.sleep(0.02)
        followers.append(Following(log, subject="s"))
    await asyncio.gather(*writers)
    for follower in followers:
        await follower.until(lambda follower=follower: len(follower.seen) >= 120)  # type: ignore[misc]
        await follower.stop()
    stored = await numbers(database)
    assert sorted(map(str, stored)) == sorted(f"{writer}.{number}" for writer in range(8) for number in range(15))
    assert all(follower.numbers == stored for follower in followers)


async def test_one_query_serves_all_followers(database: Database, log: EventLog) -> None:
    followers = [Following(log, subject=f"s{number}") for number in range(50)]
    for number, follower in enumerate(followers):
        await add(database, f"s{number}", number)
        await follower.until(lambda follower=follower: len(follower.seen) == 1)  # type: ignore[misc]
    before = log.queries
    loop = asyncio.get_running_loop()
    started = loop.time()
    await add(database, "s7", 100)
    await followers[7].until(lambda: len(followers[7].seen) == 2)
    assert log.queries - before <= 3 + (loop.time() - started) / 0.02
    for follower in followers:
        await follower.stop()


async def test_a_slow_reader_is_bounded_and_loses_nothing(database: Database) -> None:
    log = EventLog(database, queue_capacity=10)
    slow, fast = Following(log, subject="s"), Following(log, subject="s")
    await add(database, "s", 0)
    await slow.until(lambda: len(slow.seen) == 1)
    slow.paused.clear()
    for start in range(1, 1201, 100):
        await add(database, "s", *range(start, start + 100))
    await fast.until(lambda: len(fast.seen) == 1201)
    assert len(slow.seen) <= 2
    queues = [len(follower._waiting) for follower in log._followers]
    assert max(queues) <= 10
    slow.paused.set()
    await slow.until(lambda: len(slow.seen) == 1201)
    assert slow.numbers == fast.numbers == list(range(1201))
    await slow.stop()
    await fast.stop()
    await log.close()


async def test_prune_forgets_old_events_only(database: Database) -> None:
    await add(database, "s", 1, 2, 3)
    async with database.write() as session:
        await session.execute(update(EventRow).values(at=utcnow().replace(year=2001)).where(EventRow.id <= 2))
    async with database.write() as session:
        assert await event_log.prune(session, 3600, limit=1) == 1
        assert await event_log.prune(session, 3600) == 1
        assert await event_log.prune(session, 3600) == 0
    assert await numbers(database) == [3]


async def test_server_sent_events(database: Database, log: EventLog) -> None:
    await add(database, "s", 1, 2)
    pieces = [
        piece async for piece in event_log.stream(log.follow(subject="s"), until=lambda event: event.data["n"] == 2)
    ]
    assert pieces[0] == b"retry: 1000\n\n"
    lines = pieces[1].decode().splitlines()
    assert lines[0].startswith("id: ")
    assert lines[1] == "event: metric"
    assert Event.model_validate_json(lines[2].removeprefix("data: ")).id == lines[0].removeprefix("id: ")
    assert pieces[1].endswith(b"\n\n")
    assert len(pieces) == 3
    assert event_log.sse(None) == b": keep-alive\n\n"


@pytest.mark.postgres
async def test_an_event_that_commits_late_is_not_skipped(postgres_url: str) -> None:
    """The older transaction commits last: a reader must wait for it rather than pass its place by."""
    database = Database(postgres_url)
    log = EventLog(database)
    follower = Following(log, subject="s")
    async with database.write() as late:
        await event_log.append(late, project_id="p", subject="s", type="metric", data={"n": 1})
        await add(database, "s", 2)
        async with database.read() as session:
            assert await event_log.read(session) == [], "2 stays hidden until 1 is decided"
    await follower.until(lambda: len(follower.seen) == 2)
    assert follower.numbers == [1, 2]
    await follower.stop()
    await log.close()
    await database.dispose()


@pytest.mark.postgres
async def test_other_processes_events_arrive(postgres_url: str) -> None:
    here, there = Database(postgres_url), Database(postgres_url)
    log = EventLog(here)
    follower = Following(log, subject="s")
    for number in range(3):
        await add(there, "s", number)
        await follower.until(lambda number=number: len(follower.seen) == number + 1)  # type: ignore[misc]
    await follower.stop()
    await log.close()
    await here.dispose()
    await there.dispose()


@pytest.mark.postgres
async def test_following_survives_a_database_that_goes_away(postgres_server: PostgresServer, postgres_url: str) -> None:
    database = Database(postgres_url)
    log = EventLog(database)
    follower = Following(log, subject="s", heartbeat=0.1)
    await add(database, "s", 1)
    await follower.until(lambda: len(follower.seen) == 1)
    await asyncio.to_thread(postgres_server.stop, signal.SIGQUIT)
    try:
        beats = follower.heartbeats
        await follower.until(lambda: follower.heartbeats > beats + 2)
        early = Following(log, subject="s", heartbeat=0.1)  # joins while there is no database
        await early.until(lambda: early.heartbeats > 0)
    finally:
        await asyncio.to_thread(postgres_server.start)
    await add(database, "s", 2)
    await follower.until(lambda: len(follower.seen) == 2)
    await early.until(lambda: len(early.seen) == 2)
    assert follower.numbers == early.numbers == [1, 2]
    await follower.stop()
    await early.stop()
    await log.close()
    await database.dispose()


@pytest.mark.postgres
async def test_reading_uses_the_indexes(postgres_url: str) -> None:
    database = Database(postgres_url)
    async with database.write() as session:
        await session.execute(text("SET LOCAL enable_seqscan = off"))
        plan = await session.execute(
            text("EXPLAIN SELECT id FROM events WHERE subject = 's' AND (xid, id) > (1, 1) ORDER BY xid, id LIMIT 10")
        )
        lines = " ".join(str(line) for line in plan.scalars())
    assert "ix_events_subject_xid_id" in lines
    assert "Sort" not in lines
    await database.dispose()
