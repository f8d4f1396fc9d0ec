"""Everything that runs jobs in one process: shared by all components that are embedded in it."""

import asyncio
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from burnish.core.configuration import Current, of_settings
from burnish.core.settings import Settings
from burnish.infra.artifact_store.protocol import ArtifactStore
from burnish.infra.database import Database, utcnow
from burnish.infra.event_log import EventLog
from burnish.infra.loop import Periodic
from burnish.infra.reconcile import Reconciler
from burnish.platform.identity import CallerTokens
from burnish.platform.jobs import service, store
from burnish.platform.jobs.backends.local import LocalBackend
from burnish.platform.jobs.backends.protocol import Backend
from burnish.platform.jobs.light import LightTurns
from burnish.platform.jobs.reconciler import JobTurns
from burnish.platform.jobs.scheduler import Scheduler
from burnish.platform.jobs.schemas import Kind
from burnish.platform.jobs.tables import JobTable

_SWEEP_SECONDS = 60.0
_YOUNG_SECONDS = 60.0


class JobRuntime:
    """Accepts kinds from components, then runs their jobs: admission, hosts, light work.

    Offer all kinds before :meth:`start`. ``owner`` names the process in leases.
    """

    def __init__(
        self, database: Database, artifact_store: ArtifactStore, settings: Settings, tokens: CallerTokens,
        owner: str | None = None, backend: Backend | None = None, event_log: EventLog | None = None,
        configuration: Current | None = None,
    ) -> None:  # fmt: skip
        self.database = database
        self.store = artifact_store
        self.settings = settings
        self.tokens = tokens
        self.configuration = configuration or of_settings(settings)
        self.owner = owner or f"{settings.node}.{secrets.token_hex(3)}"
        self.backend = backend or LocalBackend(settings.jobs_dir, hub_offline=settings.hub_offline)
        self.event_log = event_log or EventLog(database)
        self.instances: Callable[[], Collection[str]] | None = None
        """Returns the ids under which what is offered here is registered; None: not registered, so that nothing is known."""
        self._kinds: dict[str, Mapping[str, Kind]] = {}
        self._sweeper = Periodic(self.sweep, _SWEEP_SECONDS, "job-sweep")
        self._scheduler = Scheduler(
            database, settings, self.backend, self._kinds, self.configuration, came_back=self._sweeper.take_turn
        )
        self._turns: JobTurns | None = None
        self._loops: list[Reconciler] = []

    def offer(self, component_type: str, kinds: Mapping[str, Kind]) -> None:
        """Make a component's kinds known. ``component_app`` calls it."""
        self._kinds[component_type] = kinds

    def kinds_of(self, component_type: str) -> Mapping[str, Kind]:
        """Return the kinds that a component offers here."""
        return self._kinds.get(component_type, {})

    async def start(self) -> None:
        """Start the loops: hosts that live are found again, jobs that a shutdown paused go on.

        A process that offers no kinds runs no jobs: none of this is its own.
        """
        if not self._kinds:
            return
        await self._resume_paused()
        await asyncio.to_thread(self.settings.jobs_dir.mkdir, parents=True, exist_ok=True)
        self._turns = JobTurns(
            self.database, self.backend, artifact_url=self.settings.resolved_artifact_url,
            grace_seconds=self.configuration().jobs.cancel_grace_seconds,
        )  # fmt: skip
        light = LightTurns(self.database, self.kinds_of)
        heavy_rows, light_rows = store.heavy_on(self.settings.node), store.light_of(self._kinds)
        lease = self.settings.lease_seconds
        self._loops = [
            Reconciler(self.database, JobTable, self._turns.turn, name="jobs", owner=self.owner,
                       lease_seconds=lease, concurrency=1024, where=heavy_rows),
            Reconciler(self.database, JobTable, light.turn, name="light-jobs", owner=self.owner,
                       lease_seconds=lease, concurrency=32, where=light_rows),
        ]  # fmt: skip
        for loop in self._loops:
            await loop.start()
        await self._scheduler.start()
        await self._sweeper.start()

    async def stop(self) -> None:
        """Stop the loops. Hosts live on, and are found again by the next start."""
        await self._sweeper.stop()
        await self._scheduler.stop()
        if self._turns is not None:
            self._turns.stop()
        for loop in self._loops:
            await loop.stop()
        self._loops = []
        if self._turns is not None:
            self._turns.close()
            self._turns = None

    @property
    def alive(self) -> bool:
        """Whether every loop runs (readiness)."""
        if not self._kinds:
            return True
        loops = bool(self._loops) and all(loop.alive for loop in self._loops)
        return loops and self._scheduler.alive and self._sweeper.alive

    async def pause_running(self, patience_seconds: float = 60.0) -> list[str]:
        """Checkpoint and pause this node's jobs that can (Ctrl-C); the next :meth:`start` resumes them.

        Nothing is admitted any more: a job that pauses frees room in which the next would start.
        Returns the ids of jobs that still run when the patience is over, or that cannot pause.
        """
        if not self._kinds:
            return []
        await self._scheduler.stop()
        async with self.database.write() as session:
            for job in await store.pausable_on_node(session, self.settings.node):
                job.paused_by_shutdown = True
                job.pause_requested_at = job.pause_requested_at or utcnow()
                await store.wake_job(session, job.id)
        return await self._wait_until_quiet(patience_seconds)

    async def end_running(self, patience_seconds: float = 60.0) -> list[str]:
        """Cancel this node's running jobs (``stop --all``); returns the ids of those that did not end in time."""
        async with self.database.write() as session:
            for job in await store.on_node(session, self.settings.node):
                await service.cancel(session, job.id, job.project_id, job.component_type)
        return await self._wait_until_quiet(patience_seconds)

    async def _wait_until_quiet(self, patience_seconds: float) -> list[str]:
        deadline = time.monotonic() + patience_seconds
        while True:
            async with self.database.read() as session:
                running = await store.on_node(session, self.settings.node)
            waiting = [job.id for job in running if job.pause_requested_at or job.cancel_requested_at]
            if not waiting or time.monotonic() > deadline:
                return [job.id for job in running]
            await asyncio.sleep(0.1)

    async def _resume_paused(self) -> None:
        async with self.database.write() as session:
            for job in await store.paused_by_shutdown(session, self.settings.node):
                if job.finished_at is None:
                    await service.requeue_paused(session, job)
                job.paused_by_shutdown = False

    async def sweep(self) -> list[str]:
        """End hosts without a live row here and remove folders of jobs that have ended or moved away; return their ids."""
        folders = await asyncio.to_thread(self.backend.folders)
        unwanted = await self._unwanted(folders)
        removed = []
        for job_id, folder in unwanted.items():
            if await self._unwanted({job_id: folder}):  # a job that had moved may have been admitted here meanwhile
                await asyncio.to_thread(self.backend.remove, folder)
                removed.append(job_id)
        return removed

    async def _unwanted(self, folders: Mapping[str, Path]) -> dict[str, Path]:
        """Return the folders that no job works in, by what the rows say now."""
        async with self.database.read() as session:
            wanted = await store.folders_of(session, folders)
        return {
            job_id: folder
            for job_id, folder in folders.items()
            if wanted.get(job_id) != str(folder)
            and (job_id in wanted or not await asyncio.to_thread(_is_young, folder))
        }


def _is_young(folder: Path) -> bool:
    """A folder that just appeared may belong to a row that another connection sees later."""
    try:
        return time.time() - folder.stat().st_mtime < _YOUNG_SECONDS
    except FileNotFoundError:
        return True
