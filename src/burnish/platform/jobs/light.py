"""Advances light jobs: their kind's ``advance`` is called in the server until it returns the result."""

import logging
from collections.abc import Callable, Mapping

from pydantic import ValidationError

from burnish.core.errors import BurnishError, ErrorBody, JobFailed, Unavailable
from burnish.core.job import LogLevel
from burnish.core.specs.base import Spec
from burnish.core.states import JobState
from burnish.infra.database import Database
from burnish.infra.reconcile import LeaseLost, Turn
from burnish.infra.storable import cleaned, cleaned_text
from burnish.platform.jobs import recording, store
from burnish.platform.jobs.schemas import Kind, LightJob, Wait
from burnish.platform.jobs.tables import JobTable

log = logging.getLogger(__name__)


class LightTurns:
    """Gives turns to light jobs."""

    def __init__(self, database: Database, kinds: Callable[[str], Mapping[str, Kind]]) -> None:
        self._database = database
        self._kinds = kinds

    async def turn(self, turn: Turn) -> float | None:
        """Call ``advance`` once and record what came of it."""
        job = await self._begin(turn)
        if job is None:
            return None
        kind = self._kinds(job.component_type).get(job.kind)
        if kind is None or kind.advance is None:
            await self._fail(turn, job, JobFailed(f"no component here offers light jobs of kind {job.kind}").body())
            return None
        try:
            spec = kind.spec.model_validate(job.spec)
            outcome = await kind.advance(self._light_job(turn, job, spec))
        except (LeaseLost, Unavailable):
            raise  # nothing of the job's: the turn is given again
        except BurnishError as error:
            await self._fail(turn, job, error.body())
            return None
        except Exception as error:
            log.exception("%s: advance of kind %s failed", job.id, job.kind)
            message = "its spec does not validate" if isinstance(error, ValidationError) else type(error).__name__
            await self._fail(turn, job, JobFailed(f"{message}: {error}").body())
            return None
        if isinstance(outcome, Wait):
            return await self._wait(turn, job, outcome)
        async with turn.write() as session:
            row = await store.find(session, job.id, lock=True)
            if row is not None and row.finished_at is None:
                row.result = cleaned(outcome.model_dump(mode="json"))
                await store.change_state(session, row, JobState.SUCCEEDED)
        return None

    async def _begin(self, turn: Turn) -> JobTable | None:
        """Return the job if it is to be advanced; its first turn makes it running."""
        async with turn.read() as session:
            job = await store.find(session, turn.key)
        if job is None or job.finished_at is not None or job.state == JobState.PAUSED:
            return None
        if job.state != JobState.QUEUED:
            return job
        async with turn.write() as session:
            row = await store.find(session, turn.key, lock=True)
            if row is None or row.state != JobState.QUEUED:
                return None
            if row.cancel_requested_at is not None:
                await recording.cancelled(session, row, "cancelled before it started")
                return None
            if row.pause_requested_at is not None:
                await store.change_state(session, row, JobState.PAUSED)
                return None
            await store.change_state(session, row, JobState.RUNNING)
        return row

    def _light_job(self, turn: Turn, job: JobTable, spec: Spec) -> LightJob:
        async def progress(done: float, total: float, phase: str = "") -> None:
            async with turn.write() as session:
                row = await store.find(session, job.id, lock=True)
                if row is not None:
                    data = {
                        "done": done,
                        "total": total,
                        "phase": cleaned_text(phase),
                        "unit": "steps",
                        "seconds_left": None,
                    }
                    if row.progress != data:
                        row.progress = data
                        await store.append_event(session, row, "progress", data)

        async def say(message: str, level: LogLevel = "info") -> None:
            async with turn.write() as session:
                await store.append_event(session, job, "log", {"level": level, "message": message})

        return LightJob(
            job_id=job.id, project_id=job.project_id, spec=spec, origin=job.origin,
            cancel_requested=job.cancel_requested_at is not None, database=self._database,
            progress=progress, log=say,
        )  # fmt: skip

    async def _wait(self, turn: Turn, job: JobTable, outcome: Wait) -> float | None:
        async with turn.write() as session:
            row = await store.find(session, job.id, lock=True)
            if row is None or row.finished_at is not None:
                return None
            if job.cancel_requested_at is not None and not outcome.cleaning:
                await recording.cancelled(session, row, "by request")
                return None
            reason = cleaned_text(outcome.reason)
            if row.pending_reason != reason:
                row.pending_reason = reason
                data = {"state": row.state, "previous": row.state, "reason": reason}
                await store.append_event(session, row, "state", data)
            return 0.0 if row.cancel_requested_at != job.cancel_requested_at else outcome.seconds

    async def _fail(self, turn: Turn, job: JobTable, error: ErrorBody) -> None:
        async with turn.write() as session:
            row = await store.find(session, job.id, lock=True)
            if row is None or row.finished_at is not None:
                return
            if job.cancel_requested_at is not None:
                await recording.cancelled(session, row, f"by request; ending it met {error.code}: {error.message}")
            else:
                await recording.failed(session, row, error)
