"""The loop that admits queued jobs to this node: those of the component types that its process offers.

Several processes of one node share what it has by their rows. Decisions are made in one transaction under one lock, so that two servers of one node, or of one database, never give
the same core away twice.
"""

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.configuration import Current
from burnish.core.protocol import COMPONENT_TYPES
from burnish.core.settings import Settings
from burnish.core.specs.base import Resources
from burnish.core.states import JobState
from burnish.infra import signals
from burnish.infra.database import Database
from burnish.infra.loop import Periodic
from burnish.platform.jobs import store
from burnish.platform.jobs.admission import Capacity, Holding, Waiting, admit
from burnish.platform.jobs.backends.protocol import Backend
from burnish.platform.jobs.tables import JobTable, NodeTable

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_NODE_SECONDS = 10.0
_MEASURE_SECONDS = 1.0
_MEMORY_SHARE = 0.85
_UNFINISHED = (JobState.QUEUED, JobState.STARTING, JobState.RUNNING, JobState.PAUSED)


def node_capacity(settings: Settings, disk_reserve_bytes: int) -> Capacity:
    """Return what this machine gives to jobs."""
    memory = settings.memory_bytes or int(_total_memory() * _MEMORY_SHARE)
    gpus = Path("/proc/driver/nvidia/gpus")
    count = len(list(gpus.iterdir())) if gpus.is_dir() else 0
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    disk = os.statvfs(settings.home)
    free = max(0, disk.f_bavail * disk.f_frsize - disk_reserve_bytes)
    return Capacity(settings.capacity_cpus, memory, count, free)


def _total_memory() -> int:
    """Return the machine's memory, or the control group's limit if that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            total = min(total, int(Path(path).read_text()))
    return total


class Scheduler(Periodic):
    """Admits jobs to one node."""

    def __init__(
        self, database: Database, settings: Settings, backend: Backend, types: Collection[str], configuration: Current,
        came_back: Callable[[], Awaitable[object]],
    ) -> None:  # fmt: skip
        """Make it, not started.

        Args:
            database: of the jobs.
            settings: name the node and limit what it gives.
            backend: says where a job's folder is to be.
            types: of the components that this process offers, as they are when the queue is looked at.
            configuration: the disk reserve.
            came_back: called when others have taken the node for lost: what it had is theirs by now.
        """
        super().__init__(self._take_care, _LOOK_SECONDS, "job-scheduler", database.topic(store.QUEUE_TOPIC))
        self._database = database
        self._settings = settings
        self._backend = backend
        self._types = types
        self._configuration = configuration
        self._came_back = came_back
        self._node_at = 0.0
        self._measured_at = 0.0

    async def start(self) -> None:
        """Say what this node has, then start the loop."""
        await self._describe_node()
        await super().start()

    async def _take_care(self) -> None:
        if time.monotonic() - self._node_at > _NODE_SECONDS:
            await self._describe_node()
        await self.look()
        if time.monotonic() > self._measured_at + _MEASURE_SECONDS:
            await self._measure()

    async def _describe_node(self) -> None:
        capacity = await self._capacity()
        node = NodeTable(
            name=self._settings.node, cpus=capacity.cpus, memory_bytes=capacity.memory_bytes,
            gpus=capacity.gpus, disk_bytes=capacity.disk_bytes,
        )  # fmt: skip
        async with self._database.write() as session:
            await store.put_node(session, node, self._types, self._settings.advertise_url or "")
            was_lost = await store.unmark_lost(session, node.name)
        if was_lost:
            log.warning("node %s had been lost to the others: what they took over ends here", node.name)
            await self._came_back()
        self._node_at = time.monotonic()

    async def _capacity(self) -> Capacity:
        reserve = self._configuration().jobs.disk_reserve_bytes
        return await asyncio.to_thread(node_capacity, self._settings, reserve)

    async def _measure(self) -> None:
        """Set the gauges of jobs from the rows, so that they are right after a restart, too."""
        async with self._database.read() as session:
            counts = await store.counts(session)
        self._measured_at = time.monotonic()
        by_type: dict[str, Counter[str]] = {one: Counter() for one in COMPONENT_TYPES}
        for (component_type, _, state), number in counts.items():
            by_type.setdefault(component_type, Counter())[state] += number
        for component_type, states in by_type.items():
            signals.set_counts(signals.JOBS, states, _UNFINISHED, component_type=component_type)
        training = by_type["fine_tuning"]
        signals.ACTIVE_TRAINING_JOBS.set(training[JobState.STARTING] + training[JobState.RUNNING])
        signals.QUEUE.labels(queue="jobs").set(sum(states[JobState.QUEUED] for states in by_type.values()))

    async def look(self) -> int:
        """Look at the queue once; return how many jobs were admitted."""
        async with self._database.read() as session:
            if not await store.any_queued(session, self._types):
                return 0
        capacity = await self._capacity()
        async with self._database.write() as session:
            return await self._admit(session, capacity)

    async def _admit(self, session: AsyncSession, capacity: Capacity) -> int:
        await store.lock_admission(session)
        node = self._settings.node
        queue = await store.queued(session, node, self._types)
        running = await store.on_node(session, node)
        claims = await store.claims(session, node)
        now = await store.database_now(session)
        holding = [Holding(job.id, Resources.model_validate(job.resources)) for job in running]
        # Claims hold memory, not cores: a replica mostly waits, and one that took its cores would keep every job out.
        holding += [
            Holding(
                f"{claim.owner_kind} {claim.owner_id}",
                Resources.model_validate(claim.resources).model_copy(update={"cpus": 0}),
            )
            for claim in claims
        ]
        waiting = [
            Waiting(job.id, Resources.model_validate(job.resources), max(0.0, now - (job.queued_at or now)))
            for job in queue
        ]
        decision = admit(waiting, holding, capacity)
        rows = {job.id: job for job in queue}
        gpus = _free_gpus(capacity.gpus, running)
        for job_id in decision.start:
            await self._start(session, rows[job_id], gpus)
        changed = {one: why for one, why in decision.reasons.items() if rows[one].pending_reason != why}
        await store.set_pending_reasons(session, changed)
        return len(decision.start)

    async def _start(self, session: AsyncSession, job: JobTable, gpus: list[int]) -> None:
        """Commit the intent: from here on, a host of this incarnation may be started, by this node."""
        job.node = self._settings.node
        job.incarnation += 1
        if job.directory is None:
            job.directory = str(self._backend.folder(job.id))
        job.gpu_indices = [gpus.pop(0) for _ in range(int(job.resources.get("gpus", 0)))]
        await store.change_state(session, job, JobState.STARTING)
        await store.wake_job(session, job.id)


def _free_gpus(count: int, running: list[JobTable]) -> list[int]:
    held = {index for job in running for index in job.gpu_indices}
    return [index for index in range(count) if index not in held]
