"""Rules of jobs: accept, cancel, pause, resume. Nothing here starts or signals a process; it changes rows."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.errors import BurnishError, Conflict, ErrorBody, NotFound
from burnish.core.pages import Page
from burnish.core.protocol import Event, Health, JobRequest, JobView, Progress
from burnish.core.specs.base import ArtifactRef, Resources, digest_of
from burnish.core.states import JobState
from burnish.infra import event_log
from burnish.infra.artifact_store import store as artifacts
from burnish.infra.artifact_store.references import references_in
from burnish.infra.database import utcnow
from burnish.infra.reconcile import announce
from burnish.platform.jobs import store
from burnish.platform.jobs.schemas import JobItem, Kind, LogLine
from burnish.platform.jobs.tables import ClaimTable, JobTable

ENDED = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
INPUT_OWNER = "job-input"
OUTPUT_OWNER = "job"
CHECKPOINT_OWNER = "job-checkpoint"
LOST_TOPIC = store.LOST_TOPIC


async def accept(
    session: AsyncSession, request: JobRequest, kind: Kind, component_type: str, spec: dict[str, Any], parsed: Any, resources: Resources
) -> JobView:  # fmt: skip
    """Accept a validated job. The same id again is the same job; the id of a tombstone stays cancelled.

    Raises:
        Conflict: the id is another job's.
    """
    existing = await resubmitted(session, request, component_type)
    if existing is not None:
        return existing
    inputs = {reference.digest: reference for _, reference in references_in(spec)}
    run = kind.run_of(parsed)
    job = JobTable(
        id=request.job_id, project_id=request.project_id, component_type=component_type, kind=request.kind,
        run=run, spec_type=kind.spec_type, spec=spec, spec_digest=digest_of(request.spec),
        inputs=[reference.model_dump(mode="json") for reference in inputs.values()],
        resources=resources.model_dump(mode="json"), priority=request.priority, pausable=kind.pausable,
        max_restarts=kind.max_restarts, origin=request.origin, state=JobState.QUEUED,
        due_at=0.0 if run is None else None,
    )  # fmt: skip
    await store.insert(session, job)
    for digest in inputs:
        await artifacts.refer(session, job.project_id, digest, INPUT_OWNER, job.id)
    if run is None:
        await announce(session, JobTable)
    return view_of(job)


async def resubmitted(session: AsyncSession, request: JobRequest, component_type: str) -> JobView | None:
    """Return the job if this request's id is known already: the same job, or a tombstone.

    Raises:
        Conflict: the id is another job's.
    """
    job = await store.find(session, request.job_id, lock=True)
    if job is None:
        return None
    store.refuse_other(job, project_id=request.project_id, kind=request.kind, spec_digest=digest_of(request.spec))
    if not job.kind:  # a tombstone learns what it was for
        job.kind, job.spec, job.spec_digest = request.kind, dict(request.spec), digest_of(request.spec)
        job.origin, job.component_type = request.origin, component_type
    return view_of(job)


async def get(session: AsyncSession, job_id: str, project_id: str, component_type: str | None = None) -> JobTable:
    """Return a project's job.

    Raises:
        NotFound: there is none, or it is another project's or component's.
    """
    job = await store.find(session, job_id)
    if job is None or job.project_id != project_id or component_type not in (None, job.component_type):
        raise _unknown(job_id)
    return job


async def cancel(session: AsyncSession, job_id: str, project_id: str, component_type: str) -> JobView:
    """Ask for a job's end. What has not started is cancelled here and now; a host is ended by its reconciler.

    An id that is not known leaves a tombstone, so that the job can never start.

    Raises:
        NotFound: the job is another project's.
    """
    job = await store.find(session, job_id, lock=True)
    if job is None:
        job = JobTable(
            id=job_id, project_id=project_id, component_type=component_type, kind="", run=None,
            state=JobState.CANCELLED, cancel_requested_at=utcnow(), finished_at=utcnow(), due_at=None,
        )  # fmt: skip
        await store.insert(session, job)
        return view_of(job)
    if job.project_id != project_id:
        raise _unknown(job_id)
    if job.finished_at is not None or job.cancel_requested_at is not None:
        return view_of(job)
    job.cancel_requested_at = utcnow()
    unstarted = job.state in (JobState.QUEUED, JobState.PAUSED) and (job.run is not None or job.started_at is None)
    if unstarted:
        await release_unfinished(session, job)
        await store.change_state(session, job, JobState.CANCELLED, reason="cancelled before it ran on")
    await store.wake_job(session, job.id)
    return view_of(job)


async def pause(session: AsyncSession, job_id: str, project_id: str) -> JobView:
    """Ask a job to stop after its next checkpoint.

    Raises:
        NotFound: there is no such job in the project.
        Conflict: its kind cannot pause, or it has ended.
    """
    job = await _locked(session, job_id, project_id)
    if job.finished_at is not None:
        raise Conflict(f"{job_id} is {job.state}; only a job that has not ended can pause")
    if not job.pausable and job.state != JobState.QUEUED:
        raise Conflict(f"jobs of kind {job.kind} cannot pause", hint="cancel it, or let it end")
    if job.state == JobState.PAUSED or job.pause_requested_at is not None:
        return view_of(job)
    job.pause_requested_at = utcnow()
    if job.state == JobState.QUEUED and job.run is not None:
        await store.change_state(session, job, JobState.PAUSED, reason="paused before it started")
    await store.wake_job(session, job.id)
    return view_of(job)


async def resume(session: AsyncSession, job_id: str, project_id: str) -> JobView:
    """Let a paused job go on from its last checkpoint; a pause that was only asked for is taken back.

    Raises:
        NotFound: there is no such job in the project.
        Conflict: it has ended.
    """
    job = await _locked(session, job_id, project_id)
    if job.finished_at is not None:
        raise Conflict(f"{job_id} is {job.state}; it cannot go on", hint="submit it again under a new id")
    await requeue_paused(session, job)
    return view_of(job)


async def requeue_paused(session: AsyncSession, job: JobTable) -> None:
    """Take back a pause, whether it has happened or was only asked for."""
    job.pause_requested_at, job.paused_by_shutdown = None, False
    if job.state == JobState.PAUSED:
        await store.change_state(session, job, JobState.QUEUED, reason="resumed")
    await store.wake_job(session, job.id)


async def release_unfinished(session: AsyncSession, job: JobTable) -> None:
    """Let go of what a job held that will give no result."""
    for owner in (INPUT_OWNER, OUTPUT_OWNER, CHECKPOINT_OWNER):
        await artifacts.release(session, owner, job.id)


async def finished(session: AsyncSession, job_ids: Iterable[str]) -> list[JobView]:
    """Return those of the jobs that have ended: the watcher's one query for all that it waits for."""
    return [view_of(job) for job in await store.rows_of(session, job_ids) if job.finished_at is not None]


async def views(session: AsyncSession, job_ids: Iterable[str]) -> dict[str, JobView]:
    """Return those of the jobs that exist, by id."""
    return {job.id: view_of(job) for job in await store.rows_of(session, job_ids)}


async def wake(session: AsyncSession, job_id: str) -> None:
    """Give a job a turn now: what a light job waits for has happened."""
    await store.wake_job(session, job_id)


async def processes_of(session: AsyncSession, component_type: str) -> Mapping[str, tuple[str, ...]]:
    """Return, by node, the URLs of the processes that offered a component type lately, the latest first."""
    found: dict[str, tuple[str, ...]] = {}
    for node in await store.nodes_that_offer(session, component_type):
        urls = (node.offers or {}).get(component_type, {})
        found[node.name] = tuple(url for url in sorted(urls, key=lambda one: -urls[one]) if url)
    return found


async def lost_nodes(session: AsyncSession) -> list[str]:
    """Return the nodes whose jobs were moved off as they were lost, and that have not come back."""
    return await store.lost_nodes(session)


async def claim(session: AsyncSession, owner_kind: str, owner_id: str, node: str, resources: Resources) -> None:
    """Count resources of a node as held by something that is no job (a serving replica), so that jobs do not get them."""
    row = ClaimTable(owner_kind=owner_kind, owner_id=owner_id, node=node, resources=resources.model_dump(mode="json"))
    await store.put_claim(session, row)


async def unclaim(session: AsyncSession, owner_kind: str, owner_id: str) -> None:
    """Give a claim back. Does nothing if there is none."""
    await store.drop_claim(session, owner_kind, owner_id)


async def health(session: AsyncSession, component_type: str, node: str) -> Health:
    """Return a component's load: what is admitted on this node, by what the node has."""
    counts = await store.counts(session, component_type)
    running = sum(n for (_, _, state), n in counts.items() if state in (JobState.STARTING, JobState.RUNNING))
    queued = sum(n for (_, _, state), n in counts.items() if state == JobState.QUEUED)
    held = sum(int(job.resources.get("cpus", 1)) for job in await store.on_node(session, node))
    own = next((one for one in await store.nodes(session) if one.name == node), None)
    reason = await store.first_pending_reason(session, component_type) if queued else None
    load = held / own.cpus if own is not None else 0.0
    return Health(load=load, running_jobs=running, queued_jobs=queued, waiting_for=reason)


async def ping(session: AsyncSession) -> None:
    """Ask the database something trivial."""
    await store.database_now(session)


async def page(
    session: AsyncSession, project_id: str, *, states: Sequence[str] = (), kind: str | None = None,
    origin: str | None = None, component_type: str | None = None, after: str | None = None, limit: int = 50,
) -> Page[JobItem]:  # fmt: skip
    """Return one page of a project's jobs, newest first."""
    rows = await store.page(
        session, project_id, states=states, kind=kind, origin=origin, component_type=component_type,
        after=after, limit=limit,
    )  # fmt: skip
    return Page[JobItem].of([item_of(job) for job in rows], limit, lambda item: item.job_id)


async def log_lines(session: AsyncSession, job_id: str, *, after: str | None, limit: int) -> Page[LogLine]:
    """Return a page of a job's log, oldest first.

    Raises:
        MalformedRequest: ``after`` is no cursor.
    """
    lines: list[LogLine] = []
    cursor = after
    while len(lines) <= limit and (found := await event_log.read(session, subject=job_id, after=cursor)):
        cursor = found[-1].id
        lines += [
            LogLine.model_validate({"id": event.id, "at": event.at, **event.data})
            for event in found
            if event.type == "log"
        ]
    return Page[LogLine].of(lines, limit, lambda line: line.id)


def ends_job(event: Event) -> bool:
    """Tell whether this event ends its job, so that a stream may end."""
    return event.type == "state" and event.data.get("state") in ENDED


def view_of(job: JobTable) -> JobView:
    """Return the protocol's view of a row."""
    return JobView.model_validate(_view(job))


def item_of(job: JobTable) -> JobItem:
    """Return the platform's view of a row."""
    more = {"component_type": job.component_type, "origin": job.origin, "node": job.node, "spec": job.spec}
    return JobItem.model_validate(_view(job) | more | {"priority": job.priority})


def _view(job: JobTable) -> dict[str, Any]:
    running = job.state in (JobState.STARTING, JobState.RUNNING)
    return {
        "job_id": job.id, "kind": job.kind, "state": job.state, "project_id": job.project_id,
        "pending_reason": job.pending_reason,
        "progress": Progress.model_validate(job.progress) if job.progress else None,
        "result": job.result, "error": ErrorBody.model_validate(job.error) if job.error else None,
        "artifacts": tuple(ArtifactRef.model_validate(one) for one in job.artifacts or ()),
        "cancel_requested": job.cancel_requested_at is not None, "restarts": job.restarts or 0,
        "pid": job.pid if running else None,
        "resources": Resources.model_validate(job.resources) if job.resources else None,
        "created_at": job.created_at, "started_at": job.started_at, "finished_at": job.finished_at,
        "ran_seconds": _ran_seconds(job),
    }  # fmt: skip


def _ran_seconds(job: JobTable) -> float | None:
    if job.run is None:
        return None
    until = time.time() if job.finished_at is None else job.finished_at.timestamp()
    now = 0.0 if job.host_started_at is None else max(0.0, until - job.host_started_at)
    return round((job.ran_seconds or 0.0) + now, 3)


async def _locked(session: AsyncSession, job_id: str, project_id: str) -> JobTable:
    job = await store.find(session, job_id, lock=True)
    if job is None or job.project_id != project_id:
        raise _unknown(job_id)
    return job


def _unknown(job_id: str) -> BurnishError:
    return NotFound(
        f"there is no job {job_id} in this project", where="job_id", hint="`burnish list` shows the executions"
    )
