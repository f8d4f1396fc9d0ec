"""What must happen now and then: sweeping artifacts that nothing refers to, forgetting old keys, feeling the loop's pulse."""

import asyncio
import logging
import time

from burnish.core.errors import BurnishError
from burnish.infra import idempotency, signals
from burnish.infra.artifact_store import ArtifactStore
from burnish.infra.artifact_store import store as artifacts
from burnish.infra.database import Database
from burnish.infra.loop import Loop
from burnish.platform.identity import store as identity_store
from burnish.platform.jobs import store as jobs

log = logging.getLogger(__name__)

SWEEP_SECONDS = 600.0
GRACE_SECONDS = 3600.0
"""An object younger than this is left alone: its row may be on its way."""
SLACK_SECONDS = 120.0
"""By how much clocks of machines may differ, and a host's word may come after what it published."""
PULSE_SECONDS = 1.0
KEYS_KEPT_SECONDS = 24 * 3600.0


class Housekeeping:
    """The loops of one process that keep things tidy. A round that fails is logged; the next one tries again."""

    def __init__(self, database: Database, store: ArtifactStore, grace_seconds: float = GRACE_SECONDS) -> None:
        self._database = database
        self._store = store
        self._grace = grace_seconds
        self._loops = [Loop(self._sweep_often, "housekeeping-sweep"), Loop(self._feel_pulse, "housekeeping-pulse")]

    async def start(self) -> None:
        """Start the loops."""
        for loop in self._loops:
            await loop.start()

    async def stop(self) -> None:
        """Stop the loops."""
        for loop in self._loops:
            await loop.stop()

    async def sweep(self) -> list[str]:
        """Remove artifacts that nothing refers to and that are older than the grace period; return their digests.

        The grace reaches back to where some host may have published what no server has read of: its node's may be down.
        """
        async with self._database.read() as session:
            unread = await jobs.unread_seconds(session)
        grace = max(self._grace, unread + SLACK_SECONDS if unread else 0.0)
        loop = asyncio.get_running_loop()

        def live() -> set[str]:  # called in the sweep's thread, once its lock is held
            return asyncio.run_coroutine_threadsafe(self._live(), loop).result(60)

        removed = await asyncio.to_thread(self._store.sweep, live, grace)
        if removed:
            async with self._database.write() as session:
                await artifacts.forget(session, removed)
            signals.ARTIFACTS_SWEPT.inc(len(removed))
            log.info("%d artifacts that nothing refers to were removed", len(removed))
        return removed

    async def _live(self) -> set[str]:
        async with self._database.read() as session:
            return await artifacts.live_digests(session)

    async def _sweep_often(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                await self.sweep()
                async with self._database.write() as session:
                    await idempotency.prune(session, KEYS_KEPT_SECONDS)
                    await identity_store.prune(session)
            except (BurnishError, OSError) as error:
                log.warning("housekeeping: %s", error)
            except Exception:
                log.exception("housekeeping failed")

    async def _feel_pulse(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(PULSE_SECONDS)
            signals.LOOP_LAG.set(max(0.0, time.monotonic() - before - PULSE_SECONDS))
