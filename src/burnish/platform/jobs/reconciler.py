"""Advances heavy jobs of this node: starts hosts, attaches to living ones, follows, limits and ends them.

A turn lasts as long as its host lives: it looks at files a few times a second and writes only what is new.
"""

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ParamSpec, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.errors import ErrorBody
from burnish.core.specs.base import ArtifactRef, Resources
from burnish.core.states import JobState
from burnish.infra.database import Database
from burnish.infra.processes import ProcessId
from burnish.infra.reconcile import Turn
from burnish.platform.jobs import recording, store
from burnish.platform.jobs.backends.protocol import Backend
from burnish.platform.jobs.decide import Facts, Step, decide
from burnish.platform.jobs.files import HostEvent, HostResult, JobOrder
from burnish.platform.jobs.tables import NEW_FOLDER, JobTable
from burnish.platform.jobs.watchdog import memory_error, wall_error

log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")
_THREADS = 8
_LOOK_SECONDS = 0.1
_FOLLOW_SECONDS = 0.25
_REREAD_SECONDS = 2.0
_BATCH_BYTES = 256 << 10
_HOST_START_SECONDS = 60.0
_MARK_SECONDS = 300.0
_FIRST_MARK_SECONDS = 5.0
_MEASURE_SECONDS = 1.0
_LIMIT_SLACK = 1.15
_LIMIT_SLACK_SECONDS = 10.0
_PRINTED_BYTES = 4_000


@dataclass
class _Watched:
    """What a turn knows of its job besides the row: gone with the server, and found again."""

    job: JobTable
    read_at: float
    started_here_at: float | None = None
    waiting_since: float | None = None
    told_to_cancel_at: float | None = None
    told_to_pause: bool = False
    measured_at: float = 0.0
    followed_at: float = 0.0
    mark_at: float = field(default_factory=lambda: time.monotonic() + _FIRST_MARK_SECONDS)
    """When to write down next that all events are read: a short job never pays for it."""
    over_limit: ErrorBody | None = None
    ran_from: float | None = None
    """When, on this process's steady clock, the job would have begun had it run without a break."""
    host: ProcessId | None = None
    result: HostResult | None = None
    facts: Facts = field(default_factory=lambda: Facts(JobState.QUEUED))


class JobTurns:
    """Gives turns to heavy jobs."""

    def __init__(self, database: Database, backend: Backend, *, artifact_url: str, grace_seconds: float) -> None:
        self._database = database
        self._backend = backend
        self._artifact_url = artifact_url
        self._grace = grace_seconds
        self._stopping = asyncio.Event()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="jobs")
        """Of its own: work that others hand to threads (hashing, say) must not delay a look at a host."""

    async def _in_thread(self, function: Callable[_P, _R], *arguments: _P.args, **named: _P.kwargs) -> _R:
        call = functools.partial(function, *arguments, **named)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def close(self) -> None:
        """End the threads, once no turn runs any more."""
        self._threads.shutdown(wait=False)

    def stop(self) -> None:
        """Make running turns end soon; their hosts live on."""
        self._stopping.set()

    async def turn(self, turn: Turn) -> float | None:
        """Advance one job until it needs nothing more, or the server stops."""
        topic = self._database.topic(store.job_topic(turn.key))
        version = topic.version
        watched = await self._load(turn)
        while watched is not None and not self._stopping.is_set():
            await self._look(watched)
            step = decide(watched.facts)
            if step is Step.PARK:
                await self._tidy(watched.job)
                return None
            changed = await self._take(turn, watched, step)
            asked = topic.version != version
            if not changed and not asked:
                asked = await topic.wait(version, _LOOK_SECONDS)
            version = topic.version
            if changed or asked or time.monotonic() - watched.read_at > _REREAD_SECONDS:
                watched = await self._reload(turn, watched)
        return None if watched is None else 0.0

    async def _load(self, turn: Turn) -> _Watched | None:
        async with turn.read() as session:
            job = await store.find(session, turn.key)
        return None if job is None else _Watched(job, time.monotonic())

    async def _reload(self, turn: Turn, watched: _Watched) -> _Watched | None:
        fresh = await self._load(turn)
        if fresh is None or fresh.job.incarnation != watched.job.incarnation:
            return fresh
        return replace(watched, job=fresh.job, read_at=fresh.read_at)

    async def _look(self, watched: _Watched) -> None:
        """Gather facts. Whether the host lives is looked at before its result: it writes the result, then ends."""
        job = watched.job
        state = JobState(job.state)
        if state not in (JobState.STARTING, JobState.RUNNING):
            watched.facts = Facts(state)
            return
        now = time.monotonic()
        told = watched.told_to_cancel_at
        host, alive, result, locked, older = await self._in_thread(self._observe, watched)
        watched.host, watched.result = host, result
        if alive and state == JobState.RUNNING:
            await self._measure(watched, now)
        watched.facts = Facts(
            state,
            host="none" if host is None else "alive" if alive else "dead",
            locked=locked,
            older_host_alive=older,
            result=result is not None,
            cancel_requested=job.cancel_requested_at is not None,
            pause_requested=job.pause_requested_at is not None,
            told_to_cancel=told is not None,
            grace_over=told is not None and now - told > self._grace,
            told_to_pause=watched.told_to_pause,
            over_limit=watched.over_limit is not None,
        )

    def _observe(self, watched: _Watched) -> tuple[ProcessId | None, bool, HostResult | None, bool, bool]:
        job, backend = watched.job, self._backend
        folder = self._folder(job)
        host = watched.host or _recorded(job) or backend.find(folder, job.incarnation)
        alive = host is not None and backend.alive(host)
        result = backend.result(folder, job.incarnation)
        if host is not None or result is not None:
            return host, alive, result, True, False
        locked = backend.locked(folder)
        older = locked and backend.newest_other(folder, job.incarnation) is not None
        return None, False, None, locked, older

    async def _take(self, turn: Turn, watched: _Watched, step: Step) -> bool:
        """Do one step; True if the row changed."""
        job = watched.job
        match step:
            case Step.START:
                return await self._start(turn, watched)
            case Step.WAIT_FOR_HOST:
                return await self._await_identity(turn, watched)
            case Step.REPLACE:
                older = await self._in_thread(self._backend.newest_other, self._folder(job), job.incarnation)
                if older is not None:
                    await self._in_thread(self._backend.kill, older)
                return False
            case Step.ATTACH:
                return await self._attach(turn, watched)
            case Step.CANCEL_UNSTARTED if watched.started_here_at is not None:
                return await self._start(turn, watched)
            case Step.CANCEL_UNSTARTED:
                async with turn.write() as session:
                    await recording.cancelled(session, await self._row(session, job), "before its host was started")
                return True
            case Step.FINISH | Step.LOST | Step.CANCELLED:
                await self._end(turn, watched, step)
                return True
            case Step.TERMINATE | Step.KILL | Step.ASK_PAUSE:
                await self._signal(watched, step)
        if time.monotonic() - watched.followed_at > _FOLLOW_SECONDS:
            await self._follow(turn, watched)
        return False

    async def _await_identity(self, turn: Turn, watched: _Watched) -> bool:
        """A host that was started says who it is within moments; one that hangs before that is ended."""
        if watched.waiting_since is None:
            watched.waiting_since = time.monotonic()
        if time.monotonic() - watched.waiting_since < _HOST_START_SECONDS:
            return False
        occupant = await self._in_thread(self._backend.occupant, self._folder(watched.job))
        if occupant is None:
            return False
        await self._in_thread(self._backend.kill, occupant)
        await self._record_lost(turn, watched, f"it did not begin within {_HOST_START_SECONDS:g} s")
        return True

    async def _start(self, turn: Turn, watched: _Watched) -> bool:
        """Start the host of the committed incarnation, once in this turn; whoever has the folder's lock is the host."""
        job, folder = watched.job, self._folder(watched.job)
        if watched.started_here_at is None:
            if job.events_offset == NEW_FOLDER:
                await self._in_thread(self._backend.remove, folder)
            end = await self._in_thread(self._backend.events_end, folder)
            async with (
                turn.write() as session
            ):  # the lease is ours at this moment: a server that was frozen starts nothing
                row = await self._row(session, job)
                # A power cut may have taken lines that were read already: new ones must not hide behind the old offset.
                row.events_offset = 0 if row.events_offset == NEW_FOLDER else min(row.events_offset, end)
            watched.job = job = row
            if await self._in_thread(self._backend.start, folder, self._order(job)):
                watched.started_here_at = time.monotonic()
            return False
        status = await self._in_thread(self._backend.starting_ended, folder)
        if status is None or await self._in_thread(self._backend.find, folder, job.incarnation) is not None:
            return False
        why = f"it ended with status {status} before it began"
        await self._record_lost(turn, watched, why)
        return True

    def _order(self, job: JobTable) -> JobOrder:
        resources = Resources.model_validate(job.resources)
        wall = resources.wall_seconds
        assert job.run is not None, "only heavy jobs have hosts"
        return JobOrder(
            job_id=job.id, project_id=job.project_id, incarnation=job.incarnation, run=job.run,
            spec_type=job.spec_type, spec=job.spec, resources=resources, artifact_url=self._artifact_url,
            inputs=tuple(ArtifactRef.model_validate(one) for one in job.inputs),
            resume_from=None if job.checkpoint is None else ArtifactRef.model_validate(job.checkpoint),
            wall_seconds_left=None if wall is None else max(0.0, wall - job.ran_seconds),
            gpu_indices=tuple(job.gpu_indices),
        )  # fmt: skip

    async def _attach(self, turn: Turn, watched: _Watched) -> bool:
        host = watched.host
        if host is None:  # a result without its host's identity: the folder was tampered with
            host = ProcessId(0, 0, "")
        async with turn.write() as session:
            await recording.attached(session, await self._row(session, watched.job), host)
        return True

    async def _follow(self, turn: Turn, watched: _Watched) -> bool:
        """Move a host's new events into the event log; True if there was anything to read.

        Now and then it is written down that all are read, so that a sweep knows that no artifact of the host's is unheard of.
        """
        watched.followed_at = time.monotonic()
        mark = watched.followed_at >= watched.mark_at
        end = await self._in_thread(self._backend.events_end, self._folder(watched.job)) if mark else 0
        found, offset = await self._new_events(watched.job)
        mark, moved = mark and offset >= end, offset != watched.job.events_offset
        if not moved and not mark:
            return False
        async with turn.write() as session:
            row = await self._row(session, watched.job)
            if moved:
                await recording.events(session, row, found, offset)
            if mark:
                row.followed_at = await store.database_now(session)
        watched.job, watched.read_at = row, time.monotonic()
        if mark:
            watched.mark_at = watched.read_at + _MARK_SECONDS
        return moved

    async def _new_events(self, job: JobTable) -> tuple[list[HostEvent], int]:
        return await self._in_thread(self._backend.events, self._folder(job), job.events_offset, _BATCH_BYTES)

    async def _end(self, turn: Turn, watched: _Watched, step: Step) -> None:
        """The host is done: nothing of it may live on, every event is in the log, then the end is recorded."""
        while await self._follow(turn, watched):
            pass
        if watched.host is not None:
            await self._clear_session(watched.host, patiently=step is Step.FINISH)
        if step is Step.FINISH and watched.result is not None:
            result = watched.result
            if result.status == "failed":
                await self._log_printed(turn, watched)
            async with turn.write() as session:
                await recording.finished(session, await self._row(session, watched.job), result)
        elif step is Step.CANCELLED:
            async with turn.write() as session:
                reason = "killed after its grace" if watched.told_to_cancel_at is not None else "its host had ended"
                await recording.cancelled(session, await self._row(session, watched.job), reason)
        elif watched.over_limit is not None:
            async with turn.write() as session:
                await recording.failed(session, await self._row(session, watched.job), watched.over_limit)
        else:
            await self._record_lost(turn, watched, "it ended without a result (killed, or the machine restarted)")

    async def _clear_session(self, host: ProcessId, *, patiently: bool) -> None:
        deadline = time.monotonic() + (3.0 if patiently else 0.0)
        while time.monotonic() < deadline and await self._in_thread(self._backend.alive, host):  # noqa: ASYNC110 - a process, not ours
            await asyncio.sleep(0.02)
        if not await self._in_thread(self._backend.kill, host):
            log.warning("processes of session %d do not die", host.pid)

    async def _record_lost(self, turn: Turn, watched: _Watched, why: str) -> None:
        await self._log_printed(turn, watched)
        job = watched.job
        ran = await self._in_thread(self._backend.ran_seconds, self._folder(job), job.incarnation)
        async with turn.write() as session:
            await recording.lost(session, await self._row(session, job), why, ran)

    async def _log_printed(self, turn: Turn, watched: _Watched) -> None:
        """Keep the end of what the host printed: after a death it is all there is to read."""
        text = await self._in_thread(self._backend.printed, self._folder(watched.job), _PRINTED_BYTES)
        if not text:
            return
        async with turn.write() as session:
            row = await self._row(session, watched.job)
            await store.append_event(session, row, "log", {"level": "info", "message": f"the host printed:\n{text}"})

    async def _signal(self, watched: _Watched, step: Step) -> None:
        assert watched.host is not None, "only living hosts are signalled"
        if step is Step.TERMINATE:
            await self._in_thread(self._backend.ask_cancel, watched.host)
            watched.told_to_cancel_at = time.monotonic()
        elif step is Step.ASK_PAUSE:
            await self._in_thread(self._backend.ask_pause, watched.host)
            watched.told_to_pause = True
        else:
            await self._in_thread(self._backend.kill, watched.host)

    async def _measure(self, watched: _Watched, now: float) -> None:
        """The backup of the host's own watchdog, for a host that is stopped or cannot run it."""
        if now - watched.measured_at < _MEASURE_SECONDS or watched.host is None:
            return
        watched.measured_at = now
        resources = Resources.model_validate(watched.job.resources)
        limit = int(resources.memory_bytes * _LIMIT_SLACK)
        memory = await self._in_thread(self._backend.memory_bytes, watched.host, limit)
        if memory > limit:
            watched.over_limit = memory_error(memory, resources.memory_bytes)
        if resources.wall_seconds is None:
            return
        if watched.ran_from is None:
            job = watched.job
            running = await self._in_thread(self._backend.running_seconds, self._folder(job), job.incarnation)
            if running is None:
                return
            watched.ran_from = now - running - job.ran_seconds
        ran = now - watched.ran_from
        if ran > resources.wall_seconds + _LIMIT_SLACK_SECONDS:
            watched.over_limit = wall_error(ran, resources.wall_seconds)

    async def _tidy(self, job: JobTable) -> None:
        if job.finished_at is not None and job.directory is not None:
            await self._in_thread(self._backend.remove, self._folder(job))

    def _folder(self, job: JobTable) -> Path:
        return Path(job.directory) if job.directory else self._backend.folder(job.id)

    async def _row(self, session: AsyncSession, job: JobTable) -> JobTable:
        row = await store.find(session, job.id, lock=True)
        assert row is not None, "rows of jobs are not deleted while they run"
        return row


def _recorded(job: JobTable) -> ProcessId | None:
    if job.pid is None or job.process_started is None or job.boot_id is None:
        return None
    return ProcessId(job.pid, job.process_started, job.boot_id)
