"""Routes of workflows."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.errors import BurnishError, FieldProblem, InvalidRequest
from burnish.core.pages import DEFAULT_LIMIT, MAX_LIMIT, Page
from burnish.core.protocol import Event
from burnish.core.states import ExecutionState
from burnish.infra import event_log, idempotency
from burnish.infra.database import Database, utcnow
from burnish.infra.event_log import EventLog
from burnish.infra.problems import problems
from burnish.platform.identity import Principal, audit
from burnish.platform.identity.permission import requires, requires_unlogged
from burnish.platform.workflow import store, views
from burnish.platform.workflow.library import definition_named, definitions
from burnish.platform.workflow.records import FINAL
from burnish.platform.workflow.schemas import (
    ApproveRequest,
    DefinitionView,
    ExecutionItem,
    ExecutionView,
    ForkRequest,
    RetryRequest,
    RunAnswer,
    RunRequest,
    ValidationAnswer,
)  # fmt: skip
from burnish.platform.workflow.service import Accepted, WorkflowService
from burnish.platform.workflow.tables import WorkflowExecutionRow

Reader = Annotated[Principal, Depends(requires("workflow:read"))]
Runner = Annotated[Principal, Depends(requires("workflow:run"))]
Checker = Annotated[Principal, Depends(requires_unlogged("workflow:run"))]
Controller = Annotated[Principal, Depends(requires("workflow:control"))]
Approver = Annotated[Principal, Depends(requires("workflow:approve"))]
WorkflowId = Annotated[
    str, Path(max_length=255, description="The execution's id, `wf_...`", examples=["wf_01jd8x0k2m4n6p8r0t2v4w"])
]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key", description="The same key and body again is the same execution",
        json_schema_extra=idempotency.KEY_SCHEMA,
    ),
]  # fmt: skip
_HEARTBEAT_SECONDS = 10.0
_SSE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}, "example": 'id: 0-7\nevent: state\ndata: {...}\n\n'}},
          "description": "Server-sent events; the stream ends after the execution has ended"}
}  # fmt: skip


def router(database: Database, log: EventLog, service: WorkflowService) -> APIRouter:
    """Return the routes under ``/platform/workflows``."""
    routes = APIRouter(prefix="/platform/workflows", tags=["workflows"])
    _add_submitting(routes, database, service)
    _add_reading(routes, database, log, service)
    _add_asking(routes, database, service)
    _add_definitions(routes)
    return routes


def _add_submitting(routes: APIRouter, database: Database, service: WorkflowService) -> None:
    @routes.post(
        "/run", summary="Run a workflow", operation_id="run_workflow", response_model=RunAnswer,
        responses=problems(404, 409, 413, 422, 503),
    )  # fmt: skip
    async def run(body: RunRequest, principal: Runner, key: Key = None) -> Response:
        """Validates all of it now (cycle, unknown step, kind, field, type, model or dataset), commits, then answers."""
        submission = _Submission(database, service, principal, key, "run", body.model_dump(mode="json"))
        return await submission.answer(lambda: service.prepare(body, principal))

    @routes.post(
        "/{workflow_id}/fork", summary="Run again with changed parameters", operation_id="fork_workflow",
        response_model=RunAnswer, responses=problems(404, 409, 422, 503),
    )  # fmt: skip
    async def fork(workflow_id: WorkflowId, body: ForkRequest, principal: Runner, key: Key = None) -> Response:
        """Makes a new execution; steps that succeeded and whose inputs do not change keep their results."""
        submission = _Submission(database, service, principal, key, f"fork:{workflow_id}", body.model_dump(mode="json"))
        return await submission.answer(lambda: service.prepare_fork(principal.project_id, workflow_id, body, principal))

    @routes.post(
        "/validate", summary="Check a workflow without running it", operation_id="validate_workflow",
        responses=problems(404, 413, 422, 503),
    )  # fmt: skip
    async def validate(body: RunRequest, principal: Checker) -> ValidationAnswer:
        """Returns every problem at once, each with its place and mend, and what each step would need."""
        try:
            accepted = await service.examine(service.definition_of(body), body.parameters, principal)
        except InvalidRequest as error:
            return ValidationAnswer(valid=False, problems=error.problems or (_problem_of(error),))
        found = accepted.findings
        steps = views.plans(accepted.definition, found.estimates)
        told = (*found.problems, *found.away)
        return ValidationAnswer(valid=not told, problems=told, steps=steps)


def _problem_of(error: BurnishError) -> FieldProblem:
    return FieldProblem(where=error.where or "definition", message=error.message, hint=error.hint)


class _Unclaim(Exception):
    """Rolls the claim of an idempotency key back: nothing was made yet."""


class _Submission:
    """One creating request: answered from memory if its key was used before, else validated, committed, answered."""

    def __init__(
        self, database: Database, service: WorkflowService, principal: Principal, key: str | None, route: str, body: Any
    ) -> None:
        self._database = database
        self._service = service
        self._principal = principal
        self._key = key
        self._route = f"workflows:{route}"
        self._digest = idempotency.body_digest(body) if key is not None else ""

    async def answer(self, prepare: Callable[[], Awaitable[Accepted]]) -> Response:
        if (known := await self._look()) is not None:
            return known
        accepted = await prepare()
        async with self._database.write() as session:
            if (known := await self._remembered(session)) is not None:
                return known
            row = await self._service.submit(session, accepted, self._principal)
            audit.about(row.workflow_id, workflow_type=row.workflow_type)
            body: dict[str, JsonValue] = {"workflow_id": row.workflow_id, "status": str(row.status)}
            if self._key is not None:
                await idempotency.remember(
                    session, self._principal.project_id, self._key, self._route, self._digest, 200, body
                )
        return JSONResponse(body)

    async def _look(self) -> Response | None:
        if self._key is None:
            return None
        try:
            async with self._database.write() as session:
                if (known := await self._remembered(session)) is not None:
                    return known
                raise _Unclaim
        except _Unclaim:
            return None

    async def _remembered(self, session: AsyncSession) -> Response | None:
        if self._key is None:
            return None
        found = await idempotency.remembered(session, self._principal.project_id, self._key, self._route, self._digest)
        return None if found is None else JSONResponse(found.body, found.status)


def _add_reading(routes: APIRouter, database: Database, log: EventLog, service: WorkflowService) -> None:
    @routes.get("", summary="List executions", operation_id="list_workflows", responses=problems(422, 503))
    async def list_executions(
        principal: Reader,
        workflow_type: Annotated[str | None, Query(max_length=100, description="Only of this definition")] = None,
        status: Annotated[ExecutionState | None, Query(description="Only in this state")] = None,
        after: Annotated[str | None, Query(max_length=255, description="`next` of the page before")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
    ) -> Page[ExecutionItem]:
        """The project's executions, newest first."""
        async with database.read() as session:
            rows = await store.page(
                session, principal.project_id, workflow_type=workflow_type, status=status, after=after, limit=limit
            )
        return Page.of([views.item_view(row) for row in rows], limit, lambda item: item.workflow_id)

    @routes.get(
        "/{workflow_id}/status", summary="Tell how an execution stands", operation_id="workflow_status",
        responses=problems(404, 503),
    )  # fmt: skip
    async def status_of(workflow_id: WorkflowId, principal: Reader) -> ExecutionView:
        """Each step's state, attempts, progress, times, artifacts and, where it failed, what, why and what next."""
        async with database.read() as session:
            row = await service.get(session, principal.project_id, workflow_id)
            attempts = await store.attempts_of(session, row.id)
        return views.execution_view(row, service.definition_in(row), attempts, utcnow())

    @routes.get(
        "/{workflow_id}/events", summary="Follow an execution live", operation_id="workflow_events",
        response_class=StreamingResponse, responses={**_SSE, **problems(400, 404, 503)},
    )  # fmt: skip
    async def events(
        workflow_id: WorkflowId,
        principal: Reader,
        request: Request,
        last: Annotated[str | None, Header(alias="Last-Event-ID", description="The last event seen")] = None,
        after: Annotated[str | None, Query(max_length=64, description="The same, for clients without headers")] = None,
    ) -> StreamingResponse:
        """Server-sent events of the execution and of all its jobs: states, progress, metrics, logs. Resumable by id."""
        cursor = last or after
        event_log.check_cursor(cursor)
        async with database.read() as session:
            row = await service.get(session, principal.project_id, workflow_id)
        stream = _until_ended(log, database, row, cursor)
        return StreamingResponse(stream, media_type="text/event-stream", headers=event_log.SSE_HEADERS)


async def _until_ended(
    log: EventLog, database: Database, row: WorkflowExecutionRow, cursor: str | None
) -> AsyncIterator[bytes]:
    """Yield the stream of an execution; it ends when the execution has ended and all of its events were sent."""
    yield b"retry: 1000\n\n"
    async for event in log.follow(origin=row.workflow_id, after=cursor, heartbeat=_HEARTBEAT_SECONDS):
        yield event_log.sse(event)
        if event is not None and not _says_end(event, row.workflow_id):
            continue
        async with database.read() as session:  # a retry may have reopened it since the event
            now = await store.by_key(session, row.id)
            if now is None or (now.status in FINAL and not await _more(session, row.workflow_id, event, cursor)):
                return
        cursor = cursor if event is None else event.id


async def _more(session: AsyncSession, workflow_id: str, event: Event | None, cursor: str | None) -> bool:
    """Tell whether events follow the one that was sent last (events of an earlier run end with one that looks alike)."""
    after = cursor if event is None else event.id
    return bool(await event_log.read(session, origin=workflow_id, after=after, limit=1))


def _says_end(event: Event, workflow_id: str) -> bool:
    return (
        event.subject == workflow_id
        and event.type == "state"
        and "step" not in event.data
        and event.data.get("state") in FINAL
    )


def _add_asking(routes: APIRouter, database: Database, service: WorkflowService) -> None:
    asked = problems(404, 409, 422, 503)

    @routes.post(
        "/{workflow_id}/cancel", summary="Cancel an execution", operation_id="cancel_workflow", responses=asked
    )
    async def cancel(workflow_id: WorkflowId, principal: Controller) -> RunAnswer:
        """What runs is cancelled, nothing new starts. The answer comes before it has ended: follow its events."""
        async with database.write() as session:
            row = await service.cancel(session, principal.project_id, workflow_id)
        return _answer(row)

    @routes.post("/{workflow_id}/pause", summary="Pause an execution", operation_id="pause_workflow", responses=asked)
    async def pause(workflow_id: WorkflowId, principal: Controller) -> RunAnswer:
        """No new step starts; running jobs are paused where their kind can be, else they finish."""
        async with database.write() as session:
            row = await service.pause(session, principal.project_id, workflow_id)
        return _answer(row)

    @routes.post(
        "/{workflow_id}/resume", summary="Resume an execution", operation_id="resume_workflow", responses=asked
    )
    async def resume(workflow_id: WorkflowId, principal: Controller) -> RunAnswer:
        """Lets a paused execution go on."""
        async with database.write() as session:
            row = await service.resume(session, principal.project_id, workflow_id)
        return _answer(row)

    @routes.post(
        "/{workflow_id}/retry", summary="Retry what did not succeed", operation_id="retry_workflow", responses=asked
    )
    async def retry(workflow_id: WorkflowId, principal: Runner, body: RetryRequest | None = None) -> RunAnswer:
        """Runs failed, cancelled and skipped steps again in the same execution; what succeeded is re-used."""
        async with database.write() as session:
            steps = () if body is None else body.steps
            row = await service.retry(session, principal, workflow_id, steps)
        return _answer(row)

    @routes.post(
        "/{workflow_id}/steps/{step}/approve", summary="Answer a step that waits for approval",
        operation_id="approve_step", responses=asked,
    )  # fmt: skip
    async def approve(
        workflow_id: WorkflowId, step: Annotated[str, Path(max_length=64)], body: ApproveRequest, principal: Approver
    ) -> RunAnswer:
        """A yes lets the execution go on; a no ends it as rejected."""
        async with database.write() as session:
            row = await service.approve(session, principal, workflow_id, step, body.approved, body.comment)
        return _answer(row)


def _answer(row: WorkflowExecutionRow) -> RunAnswer:
    return RunAnswer(workflow_id=row.workflow_id, status=ExecutionState(row.status))


def _add_definitions(routes: APIRouter) -> None:
    @routes.get("/definitions", summary="List definitions", operation_id="list_definitions")
    async def list_definitions(_: Reader) -> Page[DefinitionView]:
        """The definitions that can be run by name."""
        return Page(data=[views.definition_view(found, whole=False) for found in definitions().values()])

    @routes.get(
        "/definitions/{name}", summary="Show a definition", operation_id="get_definition", responses=problems(404)
    )
    async def get_definition(name: Annotated[str, Path(max_length=100)], _: Reader) -> DefinitionView:
        """Its parameters, its steps, and the whole source: a good start for one of your own."""
        return views.definition_view(definition_named(name), whole=True)
