"""The database: SQLite (WAL, one server) or PostgreSQL (several servers), behind one small interface.

``write()`` is the unit of work: it commits as it is left normally and rolls back on any exception. On SQLite there is
one writer at a time (the write pool holds one connection and begins with ``BEGIN IMMEDIATE``, so that a transaction
never fails half-way for want of the lock). On PostgreSQL a frozen server holds nobody up, wherever in a transaction it
froze: between two statements ``idle_in_transaction_session_timeout`` ends it. Between preparing a statement and running
it, which the driver does in two messages, PostgreSQL calls the session active and no limit of PostgreSQL 15 applies (a
``statement_timeout`` is held back while a message is read): there the other servers end it. Whoever waits for a lock
waits longer than either takes, so that it has the lock in the end and is not refused together with the frozen holder.

A PostgreSQL that is away (stopped, frozen, cut off) is noticed by :mod:`burnish.infra.outage`: units of work then fail
at once, and as it answers again every topic is notified, so that loops which wait for one go on.
"""

import asyncio
import errno
import logging
import os
import socket
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, cast

import asyncpg
from sqlalchemy import JSON, DateTime, MetaData, event
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Connection, Dialect, ExceptionContext, make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Float, TypeDecorator

from burnish.core.errors import OutOfDisk, Unavailable
from burnish.infra import signals
from burnish.infra.outage import Outage, connect, unreadable

log = logging.getLogger(__name__)

_CHANNEL = "burnish"
_CALLBACKS = "burnish_after_commit"
_HOOKS = "burnish_before_commit"
_FROZEN_SECONDS = 5.0
_LOOKS = 4
"""For transactions of frozen servers, within the time that one may last."""
_CONNECT_SECONDS = 5.0

_END_FROZEN = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND usename = current_user AND application_name LIKE 'burnish%'
  AND state = 'active' AND wait_event = 'ClientRead' AND xact_start IS NOT NULL
  AND state_change < clock_timestamp() - make_interval(secs => $1)
"""
"""Ends transactions whose client prepared a statement and never ran it."""

JsonB = JSON().with_variant(JSONB(), "postgresql")
"""Column type for JSON documents."""


class Base(DeclarativeBase):
    """Every table derives from this, so that one metadata holds them all."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime: ``timestamptz`` on PostgreSQL, UTC without zone on SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive datetimes; store UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime without a time zone cannot be stored")
        value = value.astimezone(UTC)
        return value if dialect.name == "postgresql" else value.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def utcnow() -> datetime:
    """This process's clock, for what people read. Leases use :class:`epoch_now`."""
    return datetime.now(UTC)


class epoch_now(FunctionElement[float]):  # noqa: N801 - it reads as a SQL function
    """The database's own clock, in seconds since 1970."""

    type = Float()
    inherit_cache = True


@compiles(epoch_now, "postgresql")
def _epoch_now_postgresql(element: epoch_now, compiler: SQLCompiler, **_: Any) -> str:
    return "CAST(extract(epoch from clock_timestamp()) AS DOUBLE PRECISION)"


@compiles(epoch_now, "sqlite")
def _epoch_now_sqlite(element: epoch_now, compiler: SQLCompiler, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


class Topic:
    """Something that loops wait for. ``version`` rises with each notice, so that none is missed between waits."""

    def __init__(self) -> None:
        self.version = 0
        self._waiters: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Wake everybody who waits. Call it in the event loop's thread."""
        self.version += 1
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, since: int, timeout: float) -> bool:
        """Wait until ``version`` differs from ``since``; return False after ``timeout`` seconds without."""
        if self.version != since:
            return True
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout):
                await waiter
        except TimeoutError:
            return False
        finally:
            self._waiters.discard(waiter)
        return True


class Database:
    """One database, opened by URL (``sqlite+aiosqlite:///...`` or ``postgresql+asyncpg://...``)."""

    def __init__(self, url: str, *, pool_size: int = 10, frozen_seconds: float = _FROZEN_SECONDS) -> None:
        """Open nothing yet.

        Args:
            url: SQLAlchemy's address of it.
            pool_size: connections at most.
            frozen_seconds: how long a transaction may stand between two statements; locks are waited for twice as long.
        """
        self.url = url
        self.info: dict[str, object] = {}
        """What parts of this process keep with the database, by names of their own."""
        self._frozen_seconds = frozen_seconds
        self._topics: dict[str, Topic] = {}
        self._outgoing: set[str] = set()
        self._notifier: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._send = asyncio.Event()
        self._closing = asyncio.Event()
        self._outage = Outage(self._connect, began=lambda: signals.DATABASE_AWAY.set(1), ended=self._is_back)
        if url.startswith("sqlite"):
            self.dialect: Literal["sqlite", "postgresql"] = "sqlite"
            self._readers = _sqlite_engine(url, pool_size, "BEGIN")
            self._writers = _sqlite_engine(url, 1, "BEGIN IMMEDIATE")
        else:
            self.dialect = "postgresql"
            self._readers = self._writers = _postgresql_engine(url, pool_size, self.server_settings, self._outage)
        self._read_sessions = async_sessionmaker(self._readers, expire_on_commit=False, autoflush=False)
        self._write_sessions = async_sessionmaker(self._writers, expire_on_commit=False)

    @property
    def engine(self) -> AsyncEngine:
        """The engine that writes (for migrations)."""
        return self._writers

    @property
    def dsn(self) -> str:
        """PostgreSQL's address for connections beside the pool; give them :attr:`server_settings` too."""
        return make_url(self.url).set(drivername="postgresql").render_as_string(hide_password=False)

    @property
    def server_settings(self) -> dict[str, str]:
        """What every connection to PostgreSQL sets, so that none of them holds others up."""
        milliseconds = round(self._frozen_seconds * 1000)
        return {
            "application_name": f"burnish {os.getpid()}@{socket.gethostname()}"[:63],  # one a process, to count them by
            "lock_timeout": str(2 * milliseconds),
            "idle_in_transaction_session_timeout": str(milliseconds),
            "jit": "off",
        }

    def read(self) -> AbstractAsyncContextManager[AsyncSession]:
        """A session for reading: one consistent view, rolled back at its end.

        Raises:
            Unavailable: the database is away; within 2 s, once :meth:`start` was called.
        """
        return self._session(self._read_sessions, commit=False)

    def write(self) -> AbstractAsyncContextManager[AsyncSession]:
        """The unit of work: commits at its end, rolls back on any exception.

        Raises:
            Unavailable: the database is away (told within 2 s, once :meth:`start` was called), or a lock was not had in
                time. A commit that was under way then may have happened.
            OutOfDisk: the database's disk is full.
        """
        return self._session(self._write_sessions, commit=True)

    @asynccontextmanager
    async def _session(
        self, sessions: async_sessionmaker[AsyncSession], *, commit: bool
    ) -> AsyncIterator[AsyncSession]:
        try:
            with self._outage.unit():
                async with sessions() as session:
                    session.info["burnish_database"] = self
                    yield session
                    if commit:
                        await _run_hooks(session)
                        await session.commit()
                    else:
                        session.expunge_all()  # a rollback expires what was loaded; the caller may keep it
                        await session.rollback()
        except (DBAPIError, OSError, PoolTimeoutError) as error:
            if (typed := _typed(error)) is not None:
                signals.DATABASE_UNAVAILABLE.inc()
                self._outage.suspect()
                raise typed from error
            raise
        for callback in session.info.get(_CALLBACKS, ()):
            callback()

    def topic(self, name: str) -> Topic:
        """Return the topic of this name, made on first use."""
        return self._topics.setdefault(name, Topic())

    def publish(self, name: str) -> None:
        """Wake waiters on a topic here and, as a hint that may be lost, in other processes."""
        self.topic(name).notify()
        if self._notifier is not None:
            self._outgoing.add(name)
            self._send.set()

    @property
    def away(self) -> bool:
        """Whether the database does not answer; may be read in any thread."""
        return self._outage.away

    async def start(self) -> None:
        """Start the watch, and passing notices between processes (PostgreSQL); waiting works without, by polling."""
        if self.dialect == "postgresql" and self._notifier is None:
            self._outage.start()
            self._notifier = asyncio.create_task(self._notify_others(), name="database-notify")
            self._listener = asyncio.create_task(self._listen(), name="database-listen")

    async def dispose(self) -> None:
        """Close every connection."""
        self._closing.set()  # never cancelled: that would leave a connection half-open
        self._send.set()
        for task in (self._notifier, self._listener):
            if task is not None:
                await task
        self._notifier = self._listener = None
        await self._outage.stop()
        await self._readers.dispose()
        if self._writers is not self._readers:
            await self._writers.dispose()
        await asyncio.sleep(0)  # let closed transports tell the loop so, which may end right after

    async def _connect(self) -> asyncpg.Connection:
        return await connect(self.dsn, timeout=_CONNECT_SECONDS, server_settings=self.server_settings)

    def _is_back(self) -> None:
        """Let whatever waits look again: notices were lost meanwhile."""
        signals.DATABASE_AWAY.set(0)
        for topic in self._topics.values():
            topic.notify()

    async def _notify_others(self) -> None:
        """Send collected topics on a connection of its own: a NOTIFY inside a transaction would serialize commits."""
        connection: asyncpg.Connection | None = None
        while not self._closing.is_set():
            await self._send.wait()
            self._send.clear()
            topics, self._outgoing = self._outgoing, set()
            try:
                if connection is None or connection.is_closed():
                    connection = await self._outage.open(self._connect())
                    self._outage.given_back(connection)
                await connection.executemany(
                    "SELECT pg_notify($1, $2)", [(_CHANNEL, topic) for topic in topics], timeout=5
                )
            except Exception as error:
                _tell_unreadable(error)
                await _close(connection)
                connection = None
                await self._pause(0.5)
        await _close(connection)

    async def _listen(self) -> None:
        def heard(_connection: Any, _pid: int, _channel: str, topic: str) -> None:
            self.topic(topic).notify()

        while not self._closing.is_set():
            connection: asyncpg.Connection | None = None
            try:
                connection = await self._outage.open(self._connect())
                self._outage.given_back(connection)  # broken off as soon as any other is found dead
                await connection.add_listener(_CHANNEL, heard)
                while not connection.is_closed() and not await self._pause(self._frozen_seconds / _LOOKS):
                    ended = await connection.fetch(_END_FROZEN, self._frozen_seconds, timeout=2)
                    if ended:
                        log.warning("ended %d transactions of a server that froze within a statement", len(ended))
            except Exception as error:
                _tell_unreadable(error)
                await self._pause(0.5)
            finally:
                await _close(connection)

    async def _pause(self, seconds: float) -> bool:
        """Wait; return True as soon as the database is being closed."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)
        return self._closing.is_set()


async def _close(connection: asyncpg.Connection | None) -> None:
    if connection is not None:
        with suppress(Exception):
            await connection.close(timeout=1)


def _tell_unreadable(error: Exception) -> None:
    if unreadable(error):
        log.warning("notices between processes are interrupted by an answer that cannot be read", exc_info=error)


BeforeCommit = Callable[[AsyncSession], Awaitable[None]]

_every_commit: ContextVar[BeforeCommit | None] = ContextVar("burnish_before_every_commit", default=None)


def before_every_commit(hook: BeforeCommit | None) -> None:
    """Await ``hook`` in each unit of work that this task (or one that it starts) commits from now on; None ends that."""
    _every_commit.set(hook)


def before_commit(session: AsyncSession, hook: BeforeCommit) -> None:
    """Await ``hook`` as the last thing before the session's unit of work commits; once, however often it is given."""
    hooks: list[BeforeCommit] = session.info.setdefault(_HOOKS, [])
    if hook not in hooks:
        hooks.append(hook)


async def _run_hooks(session: AsyncSession) -> None:
    hooks: list[BeforeCommit] = session.info.get(_HOOKS, [])
    every = _every_commit.get()
    for hook in hooks if every is None or every in hooks else [*hooks, every]:
        await hook(session)


def after_commit(session: AsyncSession, callback: Callable[[], None]) -> None:
    """Call ``callback`` once the session's unit of work has committed; never if it rolls back."""
    session.info.setdefault(_CALLBACKS, []).append(callback)


def database_of(session: AsyncSession) -> Database:
    """Return the database that gave the session."""
    return cast(Database, session.info["burnish_database"])


async def notify(session: AsyncSession, topic: str) -> None:
    """Wake waiters on ``topic`` after the commit: at once in this process, soon in others."""
    database = database_of(session)
    sent: set[str] = session.info.setdefault("burnish_topics", set())
    if topic not in sent:
        sent.add(topic)
        after_commit(session, lambda: database.publish(topic))


def _sqlite_engine(url: str, size: int, begin: str) -> AsyncEngine:
    engine = create_async_engine(
        url, pool_size=size, max_overflow=0, pool_timeout=30, connect_args={"timeout": 10, "isolation_level": None}
    )

    @event.listens_for(engine.sync_engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begun(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _postgresql_engine(url: str, size: int, server_settings: dict[str, str], outage: Outage) -> AsyncEngine:
    async def watched(*arguments: Any, **options: Any) -> asyncpg.Connection:
        return await outage.open(connect(*arguments, **options))

    engine = create_async_engine(
        url,
        pool_size=2 * size,
        max_overflow=0,  # an overflow connection is closed as it is given back: under load that is a connect each time
        pool_use_lifo=True,
        pool_timeout=10,
        connect_args={
            "timeout": _CONNECT_SECONDS, "command_timeout": 30, "server_settings": server_settings, "async_creator_fn": watched,
        },
    )  # fmt: skip
    _watched(engine, outage)
    return engine


def _watched(engine: AsyncEngine, outage: Outage) -> None:
    """Tell the watch what each connection waits for, and pass over those that are dead."""
    sync = engine.sync_engine

    def tell(told: Callable[[asyncpg.Connection], None], connection: Connection | None) -> None:
        if connection is not None and not connection.closed and not connection.invalidated:
            told(connection.connection.driver_connection)

    event.listen(sync, "before_cursor_execute", lambda connection, *_: tell(outage.asks, connection))
    event.listen(sync, "after_cursor_execute", lambda connection, *_: tell(outage.heard, connection))
    event.listen(sync, "commit", lambda connection: tell(outage.asks, connection))
    event.listen(sync, "rollback", lambda connection: tell(outage.asks, connection))

    @event.listens_for(sync, "handle_error")
    def _failed(context: ExceptionContext) -> Exception | None:
        tell(outage.settled, context.connection)
        error, wrapped = context.original_exception, context.sqlalchemy_exception
        if isinstance(error, SQLAlchemyError) or not (wrapped is None or isinstance(wrapped, DBAPIError)):
            return None  # what came before the driver: a value that cannot be stored
        if wrapped is not None:
            error = error.__cause__ or error
        if not unreadable(error):
            return None
        log.warning("an answer of the database cannot be read; its connection is broken off", exc_info=error)
        context.is_disconnect = True  # whatever else lies on it answers nothing that was asked
        return ConnectionError(f"its answer cannot be read ({type(error).__name__}: {error})")

    @event.listens_for(sync, "checkin")
    def _given_back(connection: Any, _record: Any) -> None:
        if connection is not None:
            outage.given_back(connection.driver_connection)

    @event.listens_for(sync, "checkout")
    def _taken(connection: Any, _record: Any, _proxy: Any) -> None:
        if not outage.taken(connection.driver_connection):
            raise DisconnectionError("the connection was lost while nobody used it")


def _typed(error: Exception) -> Unavailable | OutOfDisk | None:
    """Return the typed error for trouble with the database itself; None for a fault of ours."""
    original = error.orig if isinstance(error, DBAPIError) else error
    text = str(original)
    full = isinstance(original, OSError) and original.errno == errno.ENOSPC
    if full or "disk is full" in text or "No space left" in text:
        return OutOfDisk("the database's disk is full", hint="free space on the database's disk; nothing was written")
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    if lost or isinstance(error, OSError | PoolTimeoutError | OperationalError | InterfaceError):
        transient = ("locked", "unable to open", "disk I/O", "readonly")
        if isinstance(original, sqlite3.OperationalError) and not any(word in text for word in transient):
            return None  # a missing table, a syntax error: ours
        return Unavailable(f"the database does not answer: {text or type(original).__name__}",
                           hint="check that it runs and can be reached; the request can be sent again", retry_after=2)  # fmt: skip
    name = type(getattr(original, "__cause__", None) or original).__name__
    if name in {"LockNotAvailableError", "DeadlockDetectedError", "IdleInTransactionSessionTimeoutError", "SerializationError",
                "AdminShutdownError", "CrashShutdownError", "CannotConnectNowError", "TooManyConnectionsError",
                "ConnectionDoesNotExistError", "InterfaceError"}:  # fmt: skip
        return Unavailable(f"the database is busy: {text}", hint="send the request again", retry_after=1)
    return None
