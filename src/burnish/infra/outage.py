"""Whether PostgreSQL answers, noticed in about a second and a half, so that nobody waits for a database that is away.

A *watch* looks for doubt: trouble on a connection, or a unit of work that is older than ``_DOUBT_SECONDS``. It then asks
the database something trivial, on a connection that is open already and on a new one. Only when neither is answered
within ``_ANSWER_SECONDS``, and no other connection of this process heard anything meanwhile, the database is **away**:
every connection is broken off (what waits on them fails now), and units of work are refused at once until the watch
gets an answer again. A statement that takes long on a living database changes nothing, nor does a process that was kept
from running: only time in which its own loop turned is counted.

A living database also tells which connections are dead. One on which this process waits for an answer while the
database waits for the next question, or does not know it at all, is *half-open*, once some looks in a row find nothing
changed: it is broken off, and so are those that lie in the pool, which are opened anew at their next use.
"""

import asyncio
import logging
import math
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import asyncpg
from asyncpg.exceptions import UnknownPostgresError

from burnish.core.errors import Unavailable

log = logging.getLogger(__name__)

_TOLD = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError)
"""What the driver raises on purpose."""

_TICK_SECONDS = 0.1
_DOUBT_SECONDS = 0.4
_ANSWER_SECONDS = 0.9
_SECOND_WITNESS_SECONDS = 0.2
_UNHEARD_SECONDS = 0.5
"""So long an answer may have been on its way before a connection is thought half-open."""
_LOOKS = 3
"""In a row that find it so, a tick apart: what a process that stood still has just sent may not be there at the first."""
_AGAIN_SECONDS = 0.25
_RETRY_AFTER = 2.0

_NOT_LIVING = (
    asyncpg.CannotConnectNowError, asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError, asyncpg.CrashShutdownError,
    UnknownPostgresError,
)  # fmt: skip
"""Answers of a database that starts or stops, or of something else. Any other error proves that it lives."""

_IDLE_SINCE = """
SELECT pid, CASE WHEN wait_event = 'ClientRead' THEN extract(epoch FROM clock_timestamp() - state_change) ELSE 0 END,
  extract(epoch FROM state_change)
FROM pg_stat_activity WHERE pid = ANY($1::int[]) OR pid = pg_backend_pid()
"""
"""For how long each session has been waiting for its client, and since when; our own proves that the pids are the
database's own."""


def unreadable(error: BaseException) -> bool:
    """Tell whether the driver stumbled over an answer: what disturbs the way to a database may answer anything.

    The driver does not distrust what it reads. A message that is too short, a text that is no UTF-8 or a column that
    was not announced come out as the ``BufferError``, ``UnicodeDecodeError`` or ``IndexError`` that they cause, and as
    errors with a code that PostgreSQL does not have. Who uses a connection directly, with statements that are known to
    be right, therefore takes every ``Exception`` for trouble of the connection.
    """
    return isinstance(error, Exception) and (not isinstance(error, _TOLD) or isinstance(error, UnknownPostgresError))


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # it has no types
    """Lets go of its socket where what answers does not even say which version it is: the driver forgets it open."""

    __slots__ = ()

    def __init__(self, protocol: Any, *more: Any, **named: Any) -> None:
        try:
            super().__init__(protocol, *more, **named)
        except BaseException:
            protocol.abort()
            self._aborted = True  # type: ignore[misc]
            raise


async def connect(*arguments: Any, **options: Any) -> asyncpg.Connection:
    """Open a connection, as :func:`asyncpg.connect` does.

    Raises:
        Exception: of any kind; see :func:`unreadable`.
    """
    return await asyncpg.connect(*arguments, connection_class=_Connection, **options)


class _Line:
    """What is known of one connection."""

    __slots__ = ("asked_at", "doubt", "looks", "used")

    def __init__(self) -> None:
        self.asked_at: float | None = None
        """Since when an answer has been waited for."""
        self.used = True
        self.doubt: object = None
        """What made it look half-open, and how many looks found it so."""
        self.looks = 0


class Outage:
    """The state of one database, as this process sees it. Used in one event loop; ``away`` may be read anywhere."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[asyncpg.Connection]],
        *,
        began: Callable[[], None] = lambda: None,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        """``connect`` opens a connection that is not watched; ``began`` and ``ended`` are called as an outage does so."""
        self._connect = connect
        self._began, self._ended = began, ended
        self._away_since: float | None = None
        self._units: dict[object, float] = {}
        self._lines: weakref.WeakKeyDictionary[asyncpg.Connection, _Line] = weakref.WeakKeyDictionary()
        self._connecting: set[asyncio.Task[asyncpg.Connection]] = set()
        self._asking: set[asyncpg.Connection] = set()
        self._suspected = False
        self._heard_at = self._excused_at = time.monotonic()
        self._kept: asyncpg.Connection | None = None
        self._watching: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    @property
    def away(self) -> bool:
        """Whether units of work are refused now."""
        return self._away_since is not None

    def start(self) -> None:
        """Start the watch; without it nothing is ever refused."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="database-watch")

    async def stop(self) -> None:
        """Stop the watch; the database counts as there again."""
        self._closing.set()
        if self._watching is not None:
            await self._watching
            self._watching = None
        await _close(self._kept)
        self._kept = None
        self._away_since = None

    # What units of work and connections tell.

    @contextmanager
    def unit(self) -> Iterator[None]:
        """Around each unit of work.

        Raises:
            Unavailable: the database is away; at once.
        """
        self.check()
        key = object()
        self._units[key] = time.monotonic()
        try:
            yield
        finally:
            del self._units[key]

    def check(self) -> None:
        """Refuse while the database is away.

        Raises:
            Unavailable: it is.
        """
        if self._away_since is not None:
            raise Unavailable(
                f"the database has not answered for {time.monotonic() - self._away_since:.0f} s",
                hint="check that it runs and can be reached; the request can be sent again", retry_after=_RETRY_AFTER,
            )  # fmt: skip

    def suspect(self) -> None:
        """Something went wrong on a connection: look at once."""
        self._suspected = True

    async def open(self, connecting: Awaitable[asyncpg.Connection]) -> asyncpg.Connection:
        """Wait for a connection as long as the database is there, and watch over it from then on.

        Raises:
            ConnectionError: the database is away, or refuses.
        """
        task = asyncio.ensure_future(connecting)
        if self.away:
            task.cancel()
        self._connecting.add(task)
        try:
            connection = await task
        except asyncio.CancelledError:
            if task.done() and not task.cancelled() and task.exception() is None:
                task.result().terminate()  # it came just as its caller went
            if self.away and not _cancelled():
                raise ConnectionError("it is away") from None
            raise
        except Exception as error:
            self.suspect()
            raise ConnectionError(str(error) or type(error).__name__) from error
        finally:
            self._connecting.discard(task)
        self._lines[connection] = _Line()
        return connection

    def asks(self, connection: asyncpg.Connection) -> None:
        """A statement is being sent on a connection."""
        if (line := self._lines.get(connection)) is not None:
            line.asked_at = time.monotonic()

    def heard(self, connection: asyncpg.Connection) -> None:
        """A statement was answered."""
        self._heard_at = time.monotonic()
        self.settled(connection)

    def settled(self, connection: asyncpg.Connection) -> None:
        """Nobody waits for an answer on a connection any more."""
        if (line := self._lines.get(connection)) is not None:
            line.asked_at = None

    def given_back(self, connection: asyncpg.Connection) -> None:
        """A connection lies in the pool."""
        if (line := self._lines.get(connection)) is not None:
            line.asked_at, line.used = None, False

    def taken(self, connection: asyncpg.Connection) -> bool:
        """A connection is taken from the pool; return whether it can be used."""
        if (line := self._lines.get(connection)) is not None:
            line.used = True
        return not connection.is_closed()

    # The watch.

    async def _watch(self) -> None:
        self.suspect()  # a connection that is open already is asked first from now on: a new one takes longer
        while not await self._pause(_TICK_SECONDS if not self.away else _AGAIN_SECONDS):
            if not (self.away or self._doubted()):
                continue
            try:
                problem = await self._problem()
            except Exception:
                log.exception("the database could not be asked")
                continue
            if problem is None:
                self._back()
            elif not self.away:
                self._gone(problem)

    def _doubted(self) -> bool:
        if self._suspected:
            self._suspected = False
            return True
        oldest = next(iter(self._units.values()), None)
        return oldest is not None and time.monotonic() - max(oldest, self._excused_at) > _DOUBT_SECONDS

    def _gone(self, problem: str) -> None:
        log.error("the database is away: %s; what needs it is refused until it answers", problem)
        self._away_since = time.monotonic()
        self._began()
        for task in self._connecting:
            task.cancel()
        for connection in list(self._lines):
            connection.terminate()
        self._lines.clear()

    def _back(self) -> None:
        self._excused_at = time.monotonic()
        if self._away_since is not None:
            log.warning("the database answers again, after %.1f s", time.monotonic() - self._away_since)
            self._away_since = None
            self._ended()

    async def _problem(self) -> str | None:
        """Ask the database; return why it is to be thought away, None if it lives."""
        began = time.monotonic()
        asked: list[asyncio.Task[str | None]] = []
        try:
            if self._kept is not None and not self._kept.is_closed():
                asked.append(asyncio.create_task(self._ask(self._kept)))
                if await _first_good(asked, _SECOND_WITNESS_SECONDS):
                    return None
            asked.append(asyncio.create_task(self._ask_anew()))
            if await _first_good(asked, _ANSWER_SECONDS) or self._heard_at > began:
                return None
            problems = [task.result() for task in asked if task.done()]
            return next((one for one in reversed(problems) if one), f"no answer within {_ANSWER_SECONDS:g} s")
        finally:
            for connection in list(self._asking):  # not cancelled within a query: the driver would connect to say so
                connection.terminate()
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _ask_anew(self) -> str | None:
        try:
            connection = await self._connect()
        except Exception as error:
            return _why_away(error)
        problem: str | None = "nobody waited for its answer"
        try:
            problem = await self._ask(connection)
        finally:
            if problem is not None:
                connection.terminate()
        if problem is not None:
            return problem
        if self._kept is not None:
            self._kept.terminate()
        self._kept = connection
        return None

    async def _ask(self, connection: asyncpg.Connection) -> str | None:
        """Ask on this connection, and break off those that the database knows to be dead."""
        waiting = self._waiting()
        self._asking.add(connection)
        try:
            rows = await connection.fetch(_IDLE_SINCE, [one.get_server_pid() for one in waiting])
            idle = {row[0]: (float(row[1]), row[2]) for row in rows}
        except Exception as error:
            return _why_away(error)
        finally:
            self._asking.discard(connection)
        if connection.get_server_pid() in idle:  # else a pooler stands between, and its pids are its own
            await asyncio.sleep(0)  # what has arrived meanwhile is read first
            self._break_off(waiting, idle)
        return None

    def _waiting(self) -> dict[asyncpg.Connection, float]:
        """Return the connections on which an answer has been waited for, and since when."""
        latest = time.monotonic() - _UNHEARD_SECONDS
        found = {one: line.asked_at for one, line in self._lines.items() if line.asked_at and not one.is_closed()}
        return {one: asked_at for one, asked_at in found.items() if asked_at < latest}

    def _break_off(self, waiting: dict[asyncpg.Connection, float], idle: dict[int, tuple[float, object]]) -> None:
        dead = []
        for connection, asked_at in waiting.items():
            line = self._lines.get(connection)
            if line is None or line.asked_at != asked_at or connection.is_closed():
                continue
            seconds, since = idle.get(connection.get_server_pid(), (math.inf, None))
            if seconds <= _UNHEARD_SECONDS:
                continue
            line.looks = line.looks + 1 if line.doubt == (asked_at, since) else 1
            line.doubt = (asked_at, since)
            if line.looks >= _LOOKS:
                dead.append(connection)
            else:
                self.suspect()  # look again a tick later
        if dead:
            dead += [one for one, line in self._lines.items() if not line.used]
            log.warning("%d connections to the database are dead, or may be; they are opened anew", len(dead))
        for connection in dead:
            connection.terminate()

    async def _pause(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)
        return self._closing.is_set()


def _why_away(error: BaseException) -> str | None:
    if isinstance(error, asyncpg.PostgresError) and not isinstance(error, _NOT_LIVING):
        return None
    return str(error) or type(error).__name__


async def _first_good(asked: list[asyncio.Task[str | None]], seconds: float) -> bool:
    """Wait until one of those asked found the database living, or all have failed, or until the time is over.

    Only time in which this process ran counts: an answer that lies here unread is not late.
    """
    while seconds > 0:
        if any(task.done() and task.result() is None for task in asked):
            return True
        pending = [task for task in asked if not task.done()]
        if not pending:
            return False
        began = time.monotonic()
        await asyncio.wait(pending, timeout=_TICK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        seconds -= min(time.monotonic() - began, 2 * _TICK_SECONDS)
    return any(task.done() and task.result() is None for task in asked)


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _close(connection: asyncpg.Connection | None) -> None:
    if connection is not None:
        with suppress(Exception):
            await connection.close(timeout=1)
