"""The platform's routes of jobs: read-only. Jobs are submitted and cancelled through executions."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query
from fastapi.responses import StreamingResponse

from burnish.core.pages import DEFAULT_LIMIT, MAX_LIMIT, Page
from burnish.core.states import JobState
from burnish.infra.database import Database
from burnish.infra.event_log import SSE_HEADERS, EventLog, check_cursor, stream
from burnish.infra.problems import problems
from burnish.platform.identity import Principal
from burnish.platform.identity.permission import requires
from burnish.platform.jobs import service
from burnish.platform.jobs.schemas import JobItem, LogLine

Caller = Annotated[Principal, Depends(requires("job:read"))]
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._:-]*$"
JobId = Annotated[str, Path(min_length=1, max_length=100, pattern=_NAME, examples=["job_01k9zq7d3x8m2v5n0c4r6t1y"])]
After = Annotated[str | None, Query(max_length=100, pattern=_NAME, description="`next` of the page before")]
Cursor = Annotated[
    str | None, Query(max_length=38, pattern=r"^-?[0-9]{1,18}-[0-9]{1,18}$", description="`next` of the page before")
]
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]
_SSE_EXAMPLE = "id: 0-7\nevent: state\ndata: {...}\n\n"


def router(database: Database, event_log: EventLog) -> APIRouter:
    """Return the routes under ``/platform/jobs``."""
    routes = APIRouter(prefix="/platform/jobs", tags=["jobs"])

    @routes.get("", summary="List jobs", operation_id="list_jobs", responses=problems(400, 401, 422, 503))
    async def list_jobs(
        caller: Caller,
        after: After = None,
        limit: Limit = DEFAULT_LIMIT,
        state: Annotated[list[JobState] | None, Query(description="Only these states")] = None,
        kind: Annotated[str | None, Query(max_length=100, pattern=_NAME)] = None,
        component_type: Annotated[str | None, Query(max_length=100, pattern=_NAME)] = None,
        workflow_id: Annotated[
            str | None, Query(max_length=255, pattern=_NAME, description="Only jobs of this execution")
        ] = None,
    ) -> Page[JobItem]:
        """Give the project's jobs, newest first, with their state, progress and why they wait."""
        async with database.read() as session:
            return await service.page(
                session, caller.project_id, states=state or (), kind=kind, origin=workflow_id,
                component_type=component_type, after=after, limit=limit,
            )  # fmt: skip

    @routes.get("/{job_id}", summary="A job", operation_id="get_job", responses=problems(401, 404, 422, 503))
    async def get_job(job_id: JobId, caller: Caller) -> JobItem:
        """Give a job: state, progress, resources, result or error, and the process that runs it."""
        async with database.read() as session:
            return service.item_of(await service.get(session, job_id, caller.project_id))

    _following(routes, database, event_log)
    return routes


def _following(routes: APIRouter, database: Database, event_log: EventLog) -> None:
    @routes.get(
        "/{job_id}/events",
        summary="Follow a job",
        operation_id="follow_job",
        response_class=StreamingResponse,
        responses={
            200: {
                "content": {"text/event-stream": {"schema": {"type": "string"}, "example": _SSE_EXAMPLE}},
                "description": "Server-sent events",
            },
            **problems(400, 401, 404, 422, 503),
        },
    )
    async def follow_job(
        job_id: JobId, caller: Caller, last_event_id: Annotated[str | None, Header()] = None
    ) -> StreamingResponse:
        """Stream the job's events from the beginning, or behind `Last-Event-ID`; ends when the job ends."""
        check_cursor(last_event_id)
        async with database.read() as session:
            await service.get(session, job_id, caller.project_id)
        events = stream(event_log.follow(subject=job_id, after=last_event_id), until=service.ends_job)
        return StreamingResponse(events, media_type="text/event-stream", headers=SSE_HEADERS)

    @routes.get(
        "/{job_id}/logs",
        summary="A job's log",
        operation_id="read_job_log",
        responses=problems(400, 401, 404, 422, 503),
    )
    async def read_log(job_id: JobId, caller: Caller, after: Cursor = None, limit: Limit = MAX_LIMIT) -> Page[LogLine]:
        """Give the lines that the job logged, oldest first."""
        async with database.read() as session:
            await service.get(session, job_id, caller.project_id)
            return await service.log_lines(session, job_id, after=after, limit=limit)
