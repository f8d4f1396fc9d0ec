"""What looks at instances need of the database, done for many of them in one unit of work: there may be thousands."""

import asyncio
import logging

from burnish.core.errors import BurnishError
from burnish.infra.database import Database
from burnish.platform.integrator import store
from burnish.platform.integrator.tables import ComponentTable

log = logging.getLogger(__name__)

_GATHER_SECONDS = 0.2

Read = tuple[ComponentTable | None, float]


class Rows:
    """Reads rows: those that are asked for in one turn of the event loop with one query."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._asked: dict[str, asyncio.Future[Read]] = {}
        self._reading: set[asyncio.Task[None]] = set()

    async def get(self, key: str) -> Read:
        """Return an instance's row by the row's id (None: it is gone), and the database's clock; the row is detached.

        Raises:
            Unavailable: the database is away.
        """
        if key not in self._asked:
            if not self._asked:
                task = asyncio.create_task(self._read(), name="component-rows-together")
                self._reading.add(task)
                task.add_done_callback(self._reading.discard)
            self._asked[key] = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._asked[key])

    async def _read(self) -> None:
        await asyncio.sleep(0)
        asked, self._asked = self._asked, {}
        try:
            async with self._database.read() as session:
                found, now = await store.by_keys(session, list(asked)), await store.now(session)
        except BaseException as error:
            for future in asked.values():
                future.set_exception(error)
                future.exception()  # whoever asked may have been cancelled: it is not told as never retrieved
            if not isinstance(error, Exception):
                raise
            return
        for key, future in asked.items():
            future.set_result((found.get(key), now))


class SignsOfLife:
    """Writes that instances live, where nothing else is new of them: what came within a moment in one unit of work."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._seen: dict[str, tuple[int, float]] = {}
        self._writing: set[asyncio.Task[None]] = set()

    def note(self, component_id: str, generation: int, seconds: float) -> None:
        """Have an incarnation's lease last so long from now on; soon, and not if it has been deregistered."""
        if not self._seen:
            task = asyncio.create_task(self._write(), name="component-signs-of-life")
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)
        self._seen[component_id] = generation, seconds

    async def stop(self) -> None:
        """Return once what was noted is written: a statement that is cut off would leave its connection half-open."""
        await asyncio.gather(*self._writing, return_exceptions=True)

    async def _write(self) -> None:
        await asyncio.sleep(_GATHER_SECONDS)
        seen, self._seen = self._seen, {}
        try:
            async with self._database.write() as session:
                await store.renew(session, seen)
        except BurnishError as error:
            log.info("%d signs of life were not written: %s", len(seen), error.message)  # the next looks see them, too
