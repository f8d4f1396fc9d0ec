"""The one pattern for everything that takes time: rows that a reconciler advances, again and again.

A row of a :class:`Reconciled` table is *due* when ``due_at`` has passed and nobody holds its lease. A
:class:`Reconciler` claims due rows (one transaction gives back the leases of turns that ended and takes new ones),
runs a *turn* on each and parks the row until its next time, or until :func:`wake`.

What holds at any moment, in any process: a turn's writes commit only if its lease is still held, checked **in the same
transaction** (:meth:`Turn.write`); the lease's token is unique to the claim, so that a process which was frozen
and thawed cannot write; leases are timed by the database's clock and renewed by a thread and connection of its own, so
that a busy event loop loses nothing; a wake during a turn is never lost (``wakes`` is compared when the lease is given back).
On SQLite there is one server, so its leases do not expire: :meth:`Reconciler.start` takes over all that a dead
incarnation left.

The database's clock may be set back. Rows that are due later are then given a turn at once (whatever they wait for is
looked at again), and a lease that lies further ahead than any owner would set it is a dead server's: a living one has
renewed it by the time at which others take it.
"""

import asyncio
import itertools
import logging
import math
import secrets
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import asyncpg
from sqlalchemy import (
    ColumnElement,
    Float,
    Integer,
    String,
    and_,
    bindparam,
    case,
    collate,
    func,
    inspect,
    or_,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from burnish.core.errors import Unavailable
from burnish.infra import signals
from burnish.infra.clock_watch import ClockWatch
from burnish.infra.database import Database, epoch_now, notify
from burnish.infra.outage import connect

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_CLOCK_SECONDS = 2.0
"""At least so often a busy reconciler looks at the database's clock; an idle one does so with each look for due rows."""
_NEVER = 1e12
_FARTHEST_LEASE_SECONDS = 60.0
"""Leases that are shorter than this by every server's settings are never mistaken for those of before a set-back."""
_RENEW_AGAIN_SECONDS = 0.5
_BUSY_SECONDS = 1.0
"""Until a row is claimed again whose last turn, under a lost lease, has not ended here yet."""
_BACKOFF_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Reconciled:
    """Columns of a table whose rows a reconciler advances. The table must have a one-column string primary key."""

    due_at: Mapped[float | None] = mapped_column(Float, default=0.0, index=True)
    """When the next turn is due, in epoch seconds of the database's clock; NULL is parked until woken."""
    lease_owner: Mapped[str | None] = mapped_column(String(80), default=None)
    lease_until: Mapped[float | None] = mapped_column(Float, default=None)
    wakes: Mapped[int] = mapped_column(Integer, default=0, server_default="0")


class LeaseLost(Exception):
    """Another process holds the row now; what this turn wanted to write is dropped."""


async def wake(session: AsyncSession, table: type[Any], key: str) -> None:
    """Make a row due now, within the caller's unit of work."""
    column = _key(table)
    await session.execute(
        update(table)
        .where(column == key)
        .values(wakes=table.wakes + 1, due_at=case((func.coalesce(table.due_at, _NEVER) > epoch_now(), epoch_now()), else_=table.due_at))
        .execution_options(synchronize_session=False)
    )  # fmt: skip
    await announce(session, table)


async def announce(session: AsyncSession, table: type[Any]) -> None:
    """Tell the table's reconcilers, after the commit, that rows became due (a row just inserted, say)."""
    await notify(session, _topic(table))


@dataclass(frozen=True)
class Turn:
    """One go at one row, under a lease."""

    key: str
    _reconciler: "Reconciler"
    _token: str

    def read(self) -> AbstractAsyncContextManager[AsyncSession]:
        """A session for reading."""
        return self._reconciler.database.read()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A fenced unit of work: commits only while the lease is held.

        Raises:
            LeaseLost: another process has the row; let it pass through the turn function.
        """
        async with self._reconciler.database.write() as session:
            await self._reconciler.fence(session, self.key, self._token)
            yield session


@dataclass(frozen=True)
class _Ended:
    key: str
    token: str
    wakes: int
    delay: float | None


class Reconciler:
    """Claims due rows of one table and gives each a turn, ``concurrency`` at a time.

    ``turn`` returns the seconds until the row's next turn, or None to park it until it is woken. A turn that
    raises is logged and tried again with backoff; it must be safe to run again from what the rows say.
    """

    def __init__(
        self,
        database: Database,
        table: type[Any],
        turn: Callable[[Turn], Awaitable[float | None]],
        *,
        name: str,
        owner: str | None = None,
        lease_seconds: float = 10.0,
        concurrency: int = 16,
        where: ColumnElement[bool] | None = None,
        pace_seconds: float = 0.0,
    ) -> None:
        """Start nothing yet.

        Args:
            database: where the rows are.
            table: of the rows, a :class:`Reconciled` one.
            turn: what is done with each.
            name: of this reconciler in logs and metrics.
            owner: begins the names of its leases.
            lease_seconds: how long a process that fell silent keeps a row.
            concurrency: turns at once.
            where: which rows, all by default.
            pace_seconds: at least so long between two claims, so that many rows which fall due one after the other are
                claimed, and given back, together.
        """
        self.database = database
        self.name = name
        self.beats = 0
        """Rises with every look at the table; readiness watches it."""
        self._table = table
        self._turn = turn
        self._owner = f"{owner or 'server'}.{secrets.token_hex(4)}"
        self._lease = lease_seconds
        self._concurrency = concurrency
        self._where = where
        self._pace = pace_seconds
        self._claims = itertools.count(1)
        self._topic = database.topic(_topic(table))
        self._running: dict[str, asyncio.Task[None]] = {}
        self._ended: list[_Ended] = []
        self._failures: dict[str, int] = {}
        self._loop: asyncio.Task[None] | None = None
        self._stopping = False
        self._clock = ClockWatch()
        self._clock_seen_at = self._clock_fell_at = -math.inf
        self._renewer = _Renewer(database, table, lease_seconds) if database.dialect == "postgresql" else None

    @property
    def alive(self) -> bool:
        """Whether its loop runs."""
        return self._loop is not None and not self._loop.done()

    async def start(self) -> None:
        """Start the loop. On SQLite, first take over what a dead incarnation of this server had leased."""
        self._stopping = False
        if self.database.dialect == "sqlite":
            await self._make_due(or_(self._table.lease_owner.is_not(None), self._table.due_at > epoch_now()))
        else:
            await self._make_due(and_(self._table.lease_owner.is_(None), self._table.due_at > epoch_now()))
        self._clock_fell_at = time.monotonic()  # or shortly before: living owners have not renewed their leases yet
        if self._renewer is not None:
            self._renewer.start()
        self._loop = asyncio.create_task(self._run(), name=f"reconcile-{self.name}")

    async def hasten(self, seconds: float) -> None:
        """Have no row that waits, wait for longer than this from now: those that would, get their turn now."""
        await self._make_due(and_(self._table.lease_owner.is_(None), self._table.due_at > epoch_now() + seconds))
        self._topic.notify()

    async def _make_due(self, which: ColumnElement[bool]) -> None:
        """Give rows a turn now. Those that are due later are among them: the clock may have been set back since."""
        column = _key(self._table)
        which = which if self._where is None else and_(which, self._where)
        keys = select(column).where(which)
        if self.database.dialect == "postgresql":
            keys = keys.order_by(in_key_order(column)).with_for_update()
        statement = update(self._table).where(column.in_(keys.scalar_subquery()))
        statement = statement.values(lease_owner=None, lease_until=None, due_at=0.0)
        async with self.database.write() as session:
            await session.execute(statement.execution_options(synchronize_session=False))

    async def _look(self) -> bool:
        """Tell whether any row is due, and mind the database's clock: set back, it would hold rows up."""
        any_due = self._due_keys(1, far_leases=self._may_take_far_leases).scalar_subquery()
        before = time.monotonic()
        async with self.database.read() as session:
            wall, due = (await session.execute(select(epoch_now(), any_due))).one()
        self._clock_seen_at = time.monotonic()
        fell = self._clock.fell(wall, before, self._clock_seen_at)
        if not fell:
            return due is not None
        log.warning("%s: the database's clock was set back by %.0f s", self.name, fell)
        self._clock_fell_at = self._clock_seen_at
        await self._make_due(and_(self._table.lease_owner.is_(None), self._table.due_at > epoch_now()))
        return True

    @property
    def _may_take_far_leases(self) -> bool:
        """Whether every living owner has renewed its leases since the clock was last set back."""
        return self._renewer is not None and time.monotonic() - self._clock_fell_at > self._lease

    async def stop(self) -> None:
        """Let running turns end (briefly), give their leases back and stop."""
        if self._loop is None:
            return
        self._stopping = True
        self._topic.notify()  # a database call is never cut: a cancelled one would leave its connection half-closed
        with suppress(asyncio.CancelledError):
            await self._loop
        self._loop = None
        if self._running:
            _, late = await asyncio.wait(self._running.values(), timeout=5)
            for task in late:
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)
        with suppress(Unavailable):
            await self._exchange(0)
        if self._renewer is not None:
            await asyncio.to_thread(self._renewer.stop)

    async def fence(self, session: AsyncSession, key: str, token: str) -> None:
        """Lock the row and check, in this transaction, that ``token`` still holds it."""
        column = _key(self._table)
        statement = select(column).where(
            column == key, self._table.lease_owner == token, self._table.lease_until > epoch_now()
        )
        if self.database.dialect == "postgresql":
            statement = statement.with_for_update()
        if (await session.execute(statement)).first() is None:
            raise LeaseLost(f"{self.name}: {key} is held by another process")

    async def _run(self) -> None:
        failures = 0
        while not self._stopping:
            seen = self._topic.version
            free = self._concurrency - len(self._running)
            try:
                claimed = await self._exchange(free) if free > 0 or self._ended else []
                failures = 0
            except Unavailable as error:
                log.log(logging.DEBUG if failures else logging.WARNING, "%s: %s", self.name, error.message)
                # Until then, or until the database is back or the loop is to end: both notify the topic.
                await self._topic.wait(self._topic.version, _BACKOFF_SECONDS[min(failures, 4)])
                failures += 1
                continue
            except Exception:
                log.exception("%s: the claim failed", self.name)
                await asyncio.sleep(1)
                continue
            self.beats += 1
            for key, wakes, token in claimed:
                self._start_turn(key, wakes, token)
            if claimed and len(claimed) == free:
                seen = self._topic.version if len(self._running) >= self._concurrency else -1
            if self._pace:
                await asyncio.sleep(self._pace)
            await self._topic.wait(seen, _POLL_SECONDS)

    async def _exchange(self, free: int) -> list[tuple[str, int, str]]:
        """Give back ended leases and claim due rows, in one transaction; cheap when there is nothing to do."""
        ended, self._ended = self._ended, []
        looked = not ended or time.monotonic() - self._clock_seen_at > _CLOCK_SECONDS
        try:
            if looked and not await self._look() and not ended:
                return []
            far = looked and self._may_take_far_leases
            async with self.database.write() as session:
                await self._give_back(session, ended)
                claimed = await self._claim(session, free, far_leases=far) if free > 0 else []
        except BaseException:
            self._ended = ended + self._ended
            raise
        for one in ended:
            if one.delay is not None and one.delay < _POLL_SECONDS:
                asyncio.get_running_loop().call_later(one.delay, self._topic.notify)
        return claimed

    def _due_keys(self, limit: int, *, far_leases: bool) -> Any:
        table = self._table
        due = and_(table.due_at <= epoch_now(), or_(table.lease_until.is_(None), table.lease_until < epoch_now()))
        if far_leases:  # due by a clock that was ahead, too
            due = or_(due, table.lease_until > epoch_now() + max(2 * self._lease, _FARTHEST_LEASE_SECONDS))
        statement = select(_key(table)).where(due).order_by(table.due_at).limit(limit)
        return statement if self._where is None else statement.where(self._where)

    async def _claim(self, session: AsyncSession, free: int, *, far_leases: bool) -> list[tuple[str, int, str]]:
        table, column = self._table, _key(self._table)
        token = f"{self._owner}#{next(self._claims)}"
        due = self._due_keys(free, far_leases=far_leases)
        if self.database.dialect == "postgresql":
            due = due.with_for_update(skip_locked=True)
            until: Any = epoch_now() + self._lease
        else:
            until = _NEVER
        statement = (
            update(table)
            .where(column.in_(due.scalar_subquery()))
            .values(lease_owner=token, lease_until=until)
            .returning(column, table.wakes)
            .execution_options(synchronize_session=False)
        )
        return [(key, wakes, token) for key, wakes in (await session.execute(statement)).all()]

    async def _give_back(self, session: AsyncSession, ended: list[_Ended]) -> None:
        if not ended:
            return
        table, column = self._table, _key(self._table)
        next_due = case(
            (table.wakes != bindparam("seen"), epoch_now()),
            (bindparam("delay", type_=Float) < 0, None),
            else_=epoch_now() + bindparam("delay", type_=Float),
        )
        statement = (
            update(table.__table__)
            .where(column == bindparam("one"), table.lease_owner == bindparam("token"))
            .values(lease_owner=None, lease_until=None, due_at=next_due)
        )
        connection = await session.connection()
        rows = [
            {"one": e.key, "token": e.token, "seen": e.wakes, "delay": -1.0 if e.delay is None else e.delay}
            for e in sorted(ended, key=lambda one: one.key)
        ]
        await connection.execute(statement, rows)

    def _start_turn(self, key: str, wakes: int, token: str) -> None:
        if key in self._running:  # under a lease that was lost: it ends when it next writes, and the row has one turn
            self._ended.append(_Ended(key, token, wakes, _BUSY_SECONDS))
            return
        if self._renewer is not None:
            self._renewer.hold(key, token)
        task = asyncio.create_task(self._take_turn(key, wakes, token), name=f"{self.name}-{key}")
        self._running[key] = task

    async def _take_turn(self, key: str, wakes: int, token: str) -> None:
        delay: float | None = 0.0
        lost, outcome, began = False, "done", time.monotonic()
        try:
            delay = await self._turn(Turn(key, self, token))
            self._failures.pop(key, None)
        except LeaseLost as error:
            log.info("%s", error)
            lost, outcome = True, "lease_lost"
        except Exception as error:
            outcome = "failed"
            count = self._failures[key] = self._failures.get(key, 0) + 1
            delay = _BACKOFF_SECONDS[min(count, len(_BACKOFF_SECONDS)) - 1]
            if isinstance(error, Unavailable):
                log.warning("%s: %s: %s; again in %.1f s", self.name, key, error.message, delay)
            else:
                log.exception("%s: %s: the turn failed; again in %.1f s", self.name, key, delay)
        finally:
            self._running.pop(key, None)
            signals.RECONCILE_TURNS.labels(self.name, outcome).inc()
            signals.RECONCILE_SECONDS.labels(self.name).observe(time.monotonic() - began)
            if self._renewer is not None:
                self._renewer.release(key, token)
            if not lost:
                self._ended.append(_Ended(key, token, wakes, delay))
            self._topic.notify()


class _Renewer:
    """Renews held leases from a thread and connection of its own (PostgreSQL)."""

    def __init__(self, database: Database, table: type[Any], lease_seconds: float) -> None:
        self._database = database
        name, key = table.__table__.name, _key(table).name
        self._sql = (
            f'UPDATE "{name}" SET lease_until = extract(epoch from clock_timestamp()) + $3 '  # noqa: S608 - names are ours
            f'WHERE "{key}" = $1 AND lease_owner = $2 AND lease_until > extract(epoch from clock_timestamp())'
        )
        self._lease = lease_seconds
        self._held: dict[str, str] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def hold(self, key: str, token: str) -> None:
        with self._lock:
            self._held[key] = token

    def release(self, key: str, token: str) -> None:
        with self._lock:
            if self._held.get(key) == token:
                del self._held[key]

    def start(self) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="lease-renewer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    async def _run(self) -> None:
        connection: asyncpg.Connection | None = None
        pause = self._lease / 3
        while not await asyncio.to_thread(self._stopping.wait, pause):
            with self._lock:
                held = sorted(self._held.items())
            pause = min(_RENEW_AGAIN_SECONDS, self._lease / 3)
            if self._database.away:
                continue
            if not held:
                pause = self._lease / 3
                continue
            try:
                if connection is None or connection.is_closed():
                    connection = await connect(
                        self._database.dsn, timeout=2, server_settings=self._database.server_settings
                    )
                await connection.executemany(
                    self._sql, [(key, token, self._lease) for key, token in held], timeout=self._lease / 3
                )
                pause = self._lease / 3
            except Exception as error:
                log.warning("leases were not renewed: %s", error)
                if connection is not None:
                    connection.terminate()
                connection = None
        if connection is not None:
            with suppress(Exception):
                await connection.close(timeout=1)


def in_key_order(column: Any) -> Any:
    """Return what rows are ordered by that are locked together (PostgreSQL): by their key as Python sorts it.

    Two units of work that lock rows of one table in different orders would wait for each other.
    """
    return collate(column, "C") if isinstance(column.type, String) else column


def _key(table: type[Any]) -> Any:
    column = inspect(table).primary_key[0]
    return getattr(table, column.key)


def _topic(table: type[Any]) -> str:
    return f"due:{table.__tablename__}"
