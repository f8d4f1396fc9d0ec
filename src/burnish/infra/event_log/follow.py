"""Following the event log live: one watcher query a process, however many followers.

A follower first reads the table from its cursor, while what the watcher sees collects in its bounded queue, then lives
on that queue. If it is too slow for the queue, the queue is dropped and it reads the table again from where it is: it
loses nothing, and its memory is bounded.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress

from burnish.core.errors import Unavailable
from burnish.core.protocol import Event
from burnish.infra.database import Database
from burnish.infra.event_log import store
from burnish.infra.event_log.store import TOPIC, check_cursor
from burnish.infra.signals import FOLLOWERS

log = logging.getLogger(__name__)

_PAGE = 500
_TICK_SECONDS = 0.5
_HIDDEN_SECONDS = 0.02
_RETRY_SECONDS = 0.5


class _Follower:
    """What the watcher has seen for one follower since it last read the table."""

    def __init__(self, subject: str | None, origin: str | None, capacity: int) -> None:
        self._subject = subject
        self._origin = origin
        self._capacity = capacity
        self._waiting: deque[Event] = deque()
        self._something = asyncio.Event()
        self.overflowed = False

    def nudge(self) -> None:
        """Let whoever waits look again."""
        self._something.set()

    def offer(self, event: Event, origin: str | None) -> None:
        if self.overflowed or not self._wants(event, origin):
            return
        if len(self._waiting) >= self._capacity:
            self._waiting.clear()
            self.overflowed = True
        else:
            self._waiting.append(event)
        self._something.set()

    def _wants(self, event: Event, origin: str | None) -> bool:
        if self._origin is not None:
            return self._origin in (event.subject, origin)
        return self._subject is None or self._subject == event.subject

    def clear(self) -> None:
        self._waiting.clear()
        self._something.clear()
        self.overflowed = False

    async def next(self, timeout: float) -> Event | None:
        """Return the next event, or None after ``timeout`` seconds or when the queue overflowed."""
        if not self._waiting and not self.overflowed:
            self._something.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._something.wait()
        return self._waiting.popleft() if self._waiting else None


class EventLog:
    """Live access to the event log of one database. One a process."""

    def __init__(self, database: Database, *, queue_capacity: int = 1000) -> None:
        self._database = database
        self._capacity = queue_capacity
        self._followers: set[_Follower] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._watching = asyncio.Event()
        self._finishing = False
        self.queries = 0
        """Queries of the watcher so far."""

    @property
    def followers(self) -> int:
        """How many follow at the moment."""
        return len(self._followers)

    async def follow(
        self,
        *,
        subject: str | None = None,
        origin: str | None = None,
        after: str | None = None,
        heartbeat: float = 10,
    ) -> AsyncIterator[Event | None]:
        """Yield every event behind the cursor ``after``, then each new one as it is committed; ends with :meth:`finish`.

        Yields None after ``heartbeat`` seconds without an event, and while the database does not answer (following
        goes on when it does). Filters as :func:`burnish.infra.event_log.read`.

        Raises:
            MalformedRequest: ``after`` is no cursor (raised when the first event is asked for).
        """
        cursor = after
        position = check_cursor(after)
        follower = _Follower(subject, origin, self._capacity)
        self._join(follower)
        try:
            while not await self._is_watching(heartbeat):
                yield None
            while True:
                follower.clear()
                full = True
                while full:
                    try:
                        async with self._database.read() as session:
                            page = await store.read(session, subject=subject, origin=origin, after=cursor, limit=_PAGE)
                    except Unavailable:
                        yield None
                        await asyncio.sleep(_RETRY_SECONDS)
                        continue
                    for event in page:
                        yield event
                        cursor = event.id
                    position = check_cursor(cursor)
                    full = len(page) == _PAGE
                while not follower.overflowed:
                    seen = await follower.next(heartbeat)
                    if self._finishing:
                        return
                    if seen is None:
                        if not follower.overflowed:
                            yield None
                    elif (behind := check_cursor(seen.id)) > position:
                        yield seen
                        cursor, position = seen.id, behind
        finally:
            self._leave(follower)

    def finish(self) -> None:
        """End every follower now: the server stops, and whoever followed asks the next one from where it was."""
        self._finishing = True
        for follower in self._followers:
            follower.nudge()

    async def close(self) -> None:
        """Stop the watcher; followers get no more events."""
        self._end_watcher()
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def _is_watching(self, timeout: float) -> bool:
        """Wait until the watcher has its place in the log: what comes behind that reaches every follower's queue."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._watching.wait()
        return self._watching.is_set()

    def _join(self, follower: _Follower) -> None:
        self._followers.add(follower)
        FOLLOWERS.inc()
        if self._watcher is None or self._watcher.done():
            self._watching.clear()
            self._watcher = asyncio.create_task(self._watch(), name="event-log-watcher")

    def _leave(self, follower: _Follower) -> None:
        self._followers.discard(follower)
        FOLLOWERS.dec()
        if not self._followers:
            self._end_watcher()

    def _end_watcher(self) -> None:
        """Cancel the watcher; its query, if one runs, ends in its own time, and :meth:`close` waits for that."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None and not watcher.done():
            watcher.cancel()
            self._ending.add(watcher)
            watcher.add_done_callback(self._ending.discard)

    async def _watch(self) -> None:
        """Read what is new and hand it to the followers that want it."""
        topic = self._database.topic(TOPIC)
        cursor: str | None = None
        while True:
            version = topic.version
            try:
                async with self._database.read() as session:
                    if cursor is None:
                        cursor = await store.latest(session)
                        self._watching.set()
                    rows = await store.read_with_origin(session, after=cursor, limit=_PAGE)
                    hidden = len(rows) < _PAGE and await store.has_hidden(session)
            except Unavailable as error:
                log.warning("the event log cannot be read: %s", error.message)
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            except Exception:
                log.exception("the event log cannot be read")
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            self.queries += 1
            for event, origin in rows:
                cursor = event.id
                for follower in self._followers:
                    follower.offer(event, origin)
            if len(rows) < _PAGE:
                await topic.wait(version, _HIDDEN_SECONDS if hidden else _TICK_SECONDS)
