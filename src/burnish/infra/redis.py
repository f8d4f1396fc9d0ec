"""A Redis that may be gone at any time: what is asked of it fails within milliseconds, and it is found again by itself.

Nothing that Burnish must not lose is kept there. Whoever asks has an answer of their own for :class:`RedisGone`.
"""

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio import BlockingConnectionPool
from redis.asyncio import Redis as Client
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import InvalidResponse, NoScriptError

from burnish.core.errors import Unavailable
from burnish.infra.loop import Loop

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 0.25
"""A Redis that is silent for this long is gone: it answers in a tenth of a millisecond."""
_LOOK_SECONDS = 1.0
"""Between two looks at a Redis that answers, so that its end is noticed without traffic."""
_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 0.1, 1.0


class RedisGone(Unavailable):
    """Redis does not answer."""


class Script:
    """A Lua script, sent once and then called by its hash."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.digest = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class Redis:
    """One Redis. :meth:`start` does not wait for it: while it is away, ``available`` is false and calls fail at once.

    Args:
        url: ``redis://[:password@]host:port/db``, ``rediss://`` or ``unix://``.
        patience: seconds after which a command that is not answered means that Redis is gone.
    """

    def __init__(self, url: str, *, patience: float = PATIENCE_SECONDS) -> None:
        pool = BlockingConnectionPool.from_url(
            url, max_connections=4, timeout=patience, socket_timeout=None, socket_connect_timeout=patience,
            retry=Retry(NoBackoff(), 0), retry_on_error=[], health_check_interval=0,
        )  # fmt: skip
        self._client = Client(connection_pool=pool)
        self._patience = patience
        self._lost = asyncio.Event()
        self._watch = Loop(self._keep_looking, "redis-watch")
        self._told: list[Callable[[bool, str], None]] = []
        self.available = False
        """Whether it answered when it was last asked."""

    async def start(self) -> None:
        """Look for Redis once, then keep looking in the background."""
        await self._look()
        await self._watch.start()

    async def stop(self) -> None:
        """Close the connections."""
        await self._watch.stop()
        self.available = False
        with contextlib.suppress(Exception):
            await self._client.aclose()
        await self._client.connection_pool.disconnect()

    def subscribe(self, told: Callable[[bool, str], None]) -> None:
        """Call ``told(available, why)`` whenever Redis goes or comes back. It must not block."""
        self._told.append(told)

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[str | int | float]) -> Any:
        """Run a script: one round trip, all of it or nothing.

        Raises:
            RedisGone: it is not there, or did not answer in time. The script may have run.
        """
        if not self.available:
            raise RedisGone("Redis does not answer", retry_after=1)
        try:
            async with asyncio.timeout(self._patience):
                try:
                    return await self._client.evalsha(script.digest, len(keys), *keys, *arguments)
                except NoScriptError:  # it was restarted, or its scripts were flushed
                    return await self._client.eval(script.source, len(keys), *keys, *arguments)
        except Exception as error:  # an answer that is none makes the client stumble in any way
            why = self._why(error)
            self._change(False, why)
            raise RedisGone(f"Redis does not answer: {why}", retry_after=1) from error

    def _why(self, error: Exception) -> str:
        return (
            f"no answer within {self._patience} s"
            if isinstance(error, TimeoutError)
            else str(error) or type(error).__name__
        )

    async def _keep_looking(self) -> None:
        pause = _FIRST_RETRY_SECONDS
        while True:
            if self.available:
                pause = _FIRST_RETRY_SECONDS
                self._lost.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await self._lost.wait()
            else:
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LAST_RETRY_SECONDS)
            await self._look()

    async def _look(self) -> None:
        try:
            async with asyncio.timeout(self._patience):
                if not await self._client.set("burnish:seen", 1, px=60_000):  # one that takes no writes is none for us
                    raise InvalidResponse("it does not say that it wrote")
        except Exception as error:
            # Connections that were open when it froze or went are not used again.
            await self._client.connection_pool.disconnect()
            self._change(False, self._why(error))
        else:
            self._change(True, "it answers")

    def _change(self, available: bool, why: str) -> None:
        if available == self.available:
            return
        self.available = available
        if not available:
            self._lost.set()
        level, state = (logging.INFO, "there") if available else (logging.WARNING, "gone")
        log.log(level, "Redis is %s: %s", state, why)
        for told in self._told:
            told(available, why)
