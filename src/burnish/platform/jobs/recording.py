"""How what a host did becomes rows: each function is applied within one unit of work, to a locked row."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.errors import ErrorBody, HostLost
from burnish.core.specs.base import ArtifactRef
from burnish.core.states import JobState
from burnish.infra import event_log
from burnish.infra.artifact_store import store as artifacts
from burnish.infra.event_log import NewEvent
from burnish.infra.processes import ProcessId
from burnish.infra.storable import cleaned
from burnish.platform.jobs import store
from burnish.platform.jobs.files import HostEvent, HostResult, shortened
from burnish.platform.jobs.service import CHECKPOINT_OWNER, OUTPUT_OWNER, release_unfinished, requeue_paused
from burnish.platform.jobs.tables import NEW_FOLDER, JobTable

_MOST_PROBLEMS = 100


async def attached(session: AsyncSession, job: JobTable, process: ProcessId) -> None:
    """The job's host is this process."""
    job.pid, job.process_started, job.boot_id = process.pid, process.started_ticks, process.boot_id
    job.host_started_at = await store.database_now(session)
    await store.change_state(
        session, job, JobState.RUNNING, data={"pid": process.pid, "node": job.node, "restarts": job.restarts}
    )


async def events(session: AsyncSession, job: JobTable, found: Sequence[HostEvent], offset: int) -> None:
    """Append a host's events and move the offset, so that each enters the log once. Artifacts are kept from here on."""
    for event in found:
        if event.type == "log":
            continue  # nothing of the row's
        data = cleaned(event.data)
        if event.type == "progress":
            job.progress = {**data, "metrics": (job.progress or {}).get("metrics", {})}
        elif event.type == "metric":
            _latest_metrics(job, data)
        elif event.type == "artifact":
            await _artifact(session, job, data)
        elif event.type == "checkpoint":
            await _checkpoint(session, job, data)
    await event_log.append_all(
        session, [NewEvent(job.project_id, job.id, event.type, event.data, job.origin) for event in found]
    )
    job.events_offset = offset


def _latest_metrics(job: JobTable, data: dict[str, Any]) -> None:
    progress = dict(job.progress or {})
    numbers = {name: value for name, value in data.get("values", {}).items() if isinstance(value, int | float)}
    progress["metrics"] = {**progress.get("metrics", {}), **numbers}
    job.progress = progress


async def _artifact(session: AsyncSession, job: JobTable, data: dict[str, Any]) -> None:
    reference = ArtifactRef.model_validate(data["artifact"])
    await artifacts.record(session, job.project_id, reference, produced_by=job.id, metadata=data.get("metadata") or {})
    await artifacts.refer(session, job.project_id, reference.digest, OUTPUT_OWNER, job.id)
    plain = reference.model_dump(mode="json")
    if plain not in job.artifacts:
        job.artifacts = [*job.artifacts, plain]


async def _checkpoint(session: AsyncSession, job: JobTable, data: dict[str, Any]) -> None:
    reference = ArtifactRef.model_validate(data["artifact"])
    await artifacts.record(session, job.project_id, reference, produced_by=job.id, metadata={"step": data["step"]})
    await artifacts.release(session, CHECKPOINT_OWNER, job.id)
    await artifacts.refer(session, job.project_id, reference.digest, CHECKPOINT_OWNER, job.id)
    job.checkpoint, job.checkpoint_step = reference.model_dump(mode="json"), data["step"]


async def finished(session: AsyncSession, job: JobTable, result: HostResult) -> None:
    """The host said how it ended."""
    if result.status == "paused":
        await _paused(session, job, result.seconds)
    elif result.status == "cancelled" and job.cancel_requested_at is None:
        await lost(session, job, "it was told to end (TERM) by somebody else", result.seconds)
    elif result.status == "cancelled":
        await cancelled(session, job, "by request")
    elif result.status == "succeeded":
        job.result = cleaned(result.result)
        await artifacts.release(session, CHECKPOINT_OWNER, job.id)
        await store.change_state(session, job, JobState.SUCCEEDED, data=_figures(result))
    else:
        error = result.error or HostLost("the host ended without saying why").body()
        await failed(session, job, error, _figures(result))


def _figures(result: HostResult) -> dict[str, Any]:
    return {"seconds": round(result.seconds, 3), "peak_memory_bytes": result.peak_memory_bytes}


async def _paused(session: AsyncSession, job: JobTable, seconds: float) -> None:
    _forget_host(job, job.ran_seconds + seconds)
    if job.cancel_requested_at is not None:
        await cancelled(session, job, "while it paused")
        return
    step = "" if job.checkpoint_step is None else f" at step {job.checkpoint_step}"
    await store.change_state(session, job, JobState.PAUSED, reason=f"checkpointed{step} and stopped")
    if job.pause_requested_at is None:  # taken back meanwhile
        await requeue_paused(session, job)


async def cancelled(session: AsyncSession, job: JobTable, reason: str) -> None:
    """The job ended because it was asked to."""
    await release_unfinished(session, job)
    await store.change_state(session, job, JobState.CANCELLED, reason=reason)


async def failed(session: AsyncSession, job: JobTable, error: ErrorBody, figures: dict[str, Any] | None = None) -> None:
    """The job failed for good. What it says of that is bounded: an error's text may hold all that the job worked on."""
    texts = {"message": error.message, "hint": error.hint, "where": error.where}
    told = {name: shortened(text) for name, text in texts.items() if text is not None}
    error = error.model_copy(update={**told, "problems": error.problems[:_MOST_PROBLEMS]})
    job.error = cleaned(error.model_dump())
    await release_unfinished(session, job)
    reason = f"{error.code}: {error.message}"
    await store.change_state(session, job, JobState.FAILED, reason=reason, data=figures)


async def lost(session: AsyncSession, job: JobTable, why: str, ran_seconds: float) -> None:
    """The host is gone without a result: start the same job again from its last checkpoint, or give up.

    ``ran_seconds`` is how long the host lived, by itself: when it is found dead, the server may have been away for long.
    """
    _forget_host(job, job.ran_seconds + ran_seconds)
    if job.cancel_requested_at is not None:  # as it died: it must not start again
        await cancelled(session, job, f"its host was lost: {why}")
        return
    if job.restarts >= job.max_restarts:
        error = HostLost(
            f"the host of {job.id} was lost {job.restarts + 1} times; the last time {why}",
            hint="look at the job's log; if the kernel killed it for memory, raise resources.memory_bytes",
        ).body()
        await failed(session, job, error)
        return
    job.restarts += 1
    start = "the beginning" if job.checkpoint is None else f"its checkpoint at step {job.checkpoint_step}"
    if job.pause_requested_at is not None:  # it dies as it was to pause: it goes on when it is resumed
        await store.change_state(session, job, JobState.PAUSED, reason=f"its host was lost: {why}")
        return
    await store.change_state(session, job, JobState.QUEUED, reason=f"its host was lost ({why}); again from {start}")


async def moved(
    session: AsyncSession, job: JobTable, node: str, seen_at: float = 0.0, *, why: str = "is lost"
) -> None:  # fmt: skip
    """The job's node is away: any other may take it. No fault of the job's, so it does not count as one of its restarts.

    ``seen_at``: when the node was last heard of; its host is charged for the time until then. ``why``: it is away.
    """
    previous = JobState(job.state)
    began = job.host_started_at
    _forget_host(job, job.ran_seconds + (0.0 if began is None else max(0.0, seen_at - began)))
    job.node = job.directory = None
    job.events_offset = NEW_FOLDER
    job.lease_owner = job.lease_until = job.due_at = None  # a process of that node that lives on writes nothing more
    start = "the beginning" if job.checkpoint is None else f"its checkpoint at step {job.checkpoint_step}"
    reason = f"its node {node} {why}; it goes on elsewhere from {start}"
    if job.cancel_requested_at is not None:
        await cancelled(session, job, f"its node {node} {why}")
    elif previous == JobState.PAUSED and job.paused_by_shutdown:
        await requeue_paused(session, job)
    elif previous in (JobState.STARTING, JobState.RUNNING):
        wanted = (
            JobState.PAUSED if job.pause_requested_at is not None and not job.paused_by_shutdown else JobState.QUEUED
        )
        if wanted == JobState.QUEUED:
            job.pause_requested_at, job.paused_by_shutdown = None, False
        await store.change_state(session, job, wanted, reason=reason)
    else:
        data = {"state": previous, "previous": previous, "reason": reason}
        await store.append_event(session, job, "state", data)
        await store.wake_queue(session)


def _forget_host(job: JobTable, ran_seconds: float) -> None:
    job.pid = job.process_started = job.boot_id = job.host_started_at = None
    job.ran_seconds = ran_seconds
    job.gpu_indices = []
