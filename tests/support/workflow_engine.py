"""A workflow engine over a test's database, with fake components around it and its API in front."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from burnish.core.errors import BurnishError
from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.infra.database import Database, utcnow
from burnish.infra.event_log import EventLog
from burnish.infra.problems import problem_body
from burnish.platform.identity import LOCAL, Principal
from burnish.platform.identity.guard import Guard
from burnish.platform.model_registry import api as registry_api
from burnish.platform.model_registry.service import ModelFinder
from burnish.platform.workflow import api, store, views
from burnish.platform.workflow.engine_kinds import EngineKind
from burnish.platform.workflow.kinds import ENGINE_KINDS
from burnish.platform.workflow.reconciler import WorkflowReconciler
from burnish.platform.workflow.schemas import ExecutionView, ForkRequest, RunRequest
from burnish.platform.workflow.service import WorkflowService
from tests.support.fake_components import FakeComponents

CHAIN = """
name: chain
parameters:
  n: {type: integer, default: 3}
  text: {type: string, default: t}
steps:
  a: {component: worker, kind: work, cache: false, with: {number: "${{ parameters.n }}"}}
  b: {component: worker, kind: work, with: {number: "${{ steps.a.result.number }}", text: "${{ parameters.text }}"}}
  side: {kind: noop, with: {value: 1}}
  c: {kind: noop, needs: [side], with: {value: "n=${{ steps.b.result.number }}"}}
"""


ENDED = {"succeeded", "failed", "rejected", "cancelled"}


@dataclass
class Engine:
    """What a test talks to."""

    database: Database
    components: FakeComponents
    artifacts: FileArtifactStore
    service: WorkflowService
    log: EventLog
    reconciler: WorkflowReconciler

    async def submit(self, definition: str | dict[str, Any], **parameters: Any) -> str:
        return await self.submit_as(LOCAL, definition, **parameters)

    async def submit_as(self, principal: Principal, definition: str | dict[str, Any], **parameters: Any) -> str:
        request = RunRequest(definition=definition, parameters=parameters)
        accepted = await self.service.prepare(request, principal)
        async with self.database.write() as session:
            row = await self.service.submit(session, accepted, principal)
        return row.workflow_id

    async def fork(self, workflow_id: str, from_step: str | None = None, **parameters: Any) -> str:
        request = ForkRequest(parameters=parameters, from_step=from_step)
        accepted = await self.service.prepare_fork("default", workflow_id, request, LOCAL)
        async with self.database.write() as session:
            row = await self.service.submit(session, accepted, LOCAL)
        return row.workflow_id

    async def ask(self, verb: str, workflow_id: str) -> None:
        async with self.database.write() as session:
            await getattr(self.service, verb)(session, LOCAL if verb == "retry" else "default", workflow_id)

    async def status(self, workflow_id: str, project_id: str = "default") -> ExecutionView:
        async with self.database.read() as session:
            row = await self.service.get(session, project_id, workflow_id)
            attempts = await store.attempts_of(session, row.id)
        return views.execution_view(row, self.service.definition_in(row), attempts, utcnow())

    async def until(
        self, workflow_id: str, *states: str, timeout: float = 20, project_id: str = "default"
    ) -> ExecutionView:
        """Wait until the execution is in one of ``states``."""
        async with asyncio.timeout(timeout):
            while (view := await self.status(workflow_id, project_id)).status not in states:
                assert view.status not in ENDED, f"{view.status}: {view.error}"
                await asyncio.sleep(0.01)
        return view

    async def until_step(self, workflow_id: str, step: str, state: str, timeout: float = 20) -> ExecutionView:
        """Wait until a step is in ``state`` and, if it runs, its job was submitted."""
        async with asyncio.timeout(timeout):
            while True:
                view = await self.status(workflow_id)
                found = step_of(view, step)
                if found.state == state and (
                    state != "running"
                    or all(a.state != "queued" for a in found.attempts)
                    or found.component == "platform"
                ):
                    return view
                assert view.status not in ENDED, f"{view.status}: {view.error}"
                await asyncio.sleep(0.01)

    def finish(self, view: ExecutionView, step: str, error: BurnishError | None = None) -> None:
        """End the running job of a step, as its component would."""
        running = [a for a in step_of(view, step).attempts if a.finished_at is None]
        self.components.finish(running[0].job_id, error)

    async def nudge(self, workflow_id: str) -> None:
        """Do what the watcher does for jobs in our own table: the fake's jobs are not there."""
        async with self.database.write() as session:
            row = await self.service.get(session, "default", workflow_id)
            await store.wake_execution(session, row.id)

    def client(self) -> httpx.AsyncClient:
        """An HTTP client of the API."""
        return httpx.AsyncClient(transport=httpx.ASGITransport(app=self.app()), base_url="http://test")

    def app(self) -> FastAPI:
        app = FastAPI()
        app.include_router(api.router(self.database, self.log, self.service))
        app.include_router(registry_api.router(self.database))
        app.add_middleware(Guard, authenticator=None)

        @app.exception_handler(BurnishError)
        async def problem(_: Request, error: BurnishError) -> Response:
            status, headers, body = problem_body(error)
            return JSONResponse(body, status, headers)

        return app


def step_of(view: ExecutionView, name: str) -> Any:
    return next(step for step in view.steps if step.name == name)


def states_of(view: ExecutionView) -> Mapping[str, str]:
    return {step.name: str(step.state) for step in view.steps}


@asynccontextmanager
async def engine(
    database: Database,
    artifacts: FileArtifactStore,
    components: FakeComponents | None = None,
    kinds: Mapping[str, EngineKind] = ENGINE_KINDS,
    settle_seconds: float = 0,
) -> AsyncIterator[Engine]:
    found = components or FakeComponents()
    found.store = artifacts
    log = EventLog(database)
    service = WorkflowService(database, found, ModelFinder(database), kinds=kinds)
    reconciler = WorkflowReconciler(database, found, artifacts, kinds=kinds, settle_seconds=settle_seconds)
    await reconciler.start()
    try:
        yield Engine(database, found, artifacts, service, log, reconciler)
    finally:
        await reconciler.stop()
        await log.close()
