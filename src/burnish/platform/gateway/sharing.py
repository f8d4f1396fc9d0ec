"""Where this process keeps its buckets: in Redis with the other gateways if there is one, else in itself."""

import asyncio
import logging

from burnish.core.errors import BurnishError
from burnish.infra import event_log
from burnish.infra.database import Database
from burnish.infra.redis import Redis
from burnish.platform.gateway.limits import Limiter, MemoryLimiter, RedisLimiter, SharedLimiter

log = logging.getLogger(__name__)

SUBJECT = "gateway"
"""Of the events that say whether limits are shared."""
_PROJECT = "default"


class Buckets:
    """The limiter of one process, and the events that say where it counts.

    Args:
        database: where the events go.
        url: of the Redis that gateways share; None: this process counts alone.
        node: its name in the events.
    """

    def __init__(self, database: Database, url: str | None, *, node: str) -> None:
        self._database = database
        self._node = node
        self._redis = Redis(url) if url is not None else None
        self._telling: set[asyncio.Task[None]] = set()
        local = MemoryLimiter()
        self.limiter: Limiter = local if self._redis is None else SharedLimiter(RedisLimiter(self._redis), local)

    async def start(self) -> None:
        """Look for Redis; a process starts without it, too."""
        if self._redis is None:
            return
        await self._redis.start()
        self._redis.subscribe(self._changed)
        if not self._redis.available:
            self._changed(False, "it was not there at the start")

    async def stop(self) -> None:
        """Let go of Redis."""
        if self._redis is not None:
            await self._redis.stop()
        await asyncio.gather(*self._telling, return_exceptions=True)

    def _changed(self, available: bool, why: str) -> None:
        what = "limits are shared" if available else "limits fell back"
        telling = asyncio.create_task(self._tell(what, why), name="limits-event")
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    async def _tell(self, what: str, why: str) -> None:
        log.warning("%s: Redis: %s", what, why)
        try:
            async with self._database.write() as session:
                await event_log.append(
                    session, project_id=_PROJECT, subject=SUBJECT, type="action",
                    data={"action": what, "reason": why, "node": self._node},
                )  # fmt: skip
        except BurnishError as error:
            log.warning("the event that %s could not be written: %s", what, error.message)
