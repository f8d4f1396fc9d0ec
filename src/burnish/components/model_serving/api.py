"""The routes of deployments."""

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Header, Path, Query

from burnish.components.model_serving.routing import Traffic
from burnish.components.model_serving.schemas import DEPLOY_EXAMPLE, DeploymentPage, DeploymentView, Rollback
from burnish.components.model_serving.service import Deployments
from burnish.core.specs.serving import DeploySpec
from burnish.infra.database import Database
from burnish.infra.idempotency import KEY_SCHEMA
from burnish.infra.problems import problems
from burnish.platform.identity import Principal, audit
from burnish.platform.identity.permission import requires

Reader = Annotated[Principal, Depends(requires("deployment:read"))]
Deployer = Annotated[Principal, Depends(requires("model:deploy"))]
Name = Annotated[
    str,
    Path(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", description="The deployment's name", examples=["sentiment"]),
]


def router(database: Database, deployments: Deployments, traffic: Traffic) -> APIRouter:
    """Return the routes under ``/platform/deployments``."""
    routes = APIRouter(prefix="/platform/deployments", tags=["deployments"])

    async def shown(caller: Principal, name: str) -> DeploymentView:
        async with database.read() as session:
            return await deployments.view(session, caller.project_id, name, traffic.in_flight())

    @routes.get("", summary="List deployments", responses=problems(422))
    async def list_deployments(
        caller: Reader,
        after: Annotated[str | None, Query(max_length=63, description="Name after which the page starts")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> DeploymentPage:
        """List the project's deployments by name, each with its revisions and living replicas."""
        async with database.read() as session:
            data, more = await deployments.page(session, caller.project_id, after, limit, traffic.in_flight())
        return DeploymentPage(data=tuple(data), has_more=more, next=data[-1].name if more else None)

    @routes.post("", summary="Deploy a model", responses=problems(400, 409, 422))
    async def deploy(
        caller: Deployer,
        spec: Annotated[DeploySpec, Body(openapi_examples={"gguf": {"value": DEPLOY_EXAMPLE}})],
        idempotency_key: Annotated[
            str | None,
            Header(description="The same key and body again is the same revision", json_schema_extra=KEY_SCHEMA),
        ] = None,
    ) -> DeploymentView:
        """Want this model to be served under the name. Answers at once; the deployment is `ready` when it serves.

        A new revision starts beside the one that serves, is verified by a generation of its own, and takes over
        without dropping a request. The same spec as the one that serves changes nothing.
        """
        audit.about(spec.deployment)
        async with database.write() as session:
            await deployments.deploy_once(session, caller.project_id, spec, idempotency_key)
        return await shown(caller, spec.deployment)

    @routes.get("/{name}", summary="Show a deployment", responses=problems(404, 422))
    async def show(caller: Reader, name: Name) -> DeploymentView:
        """Show what is wanted, what serves, the last 20 revisions and the living replicas."""
        return await shown(caller, name)

    @routes.post("/{name}/rollback", summary="Roll a deployment back", responses=problems(404, 409, 422))
    async def rollback(
        caller: Deployer,
        name: Name,
        to: Annotated[Rollback | None, Body(openapi_examples={"previous": {"value": {}}})] = None,
    ) -> DeploymentView:
        """Serve an earlier revision again: the one before, or the one named. It starts beside the present one."""
        async with database.write() as session:
            await deployments.rollback(session, caller.project_id, name, None if to is None else to.revision)
        return await shown(caller, name)

    @routes.post("/{name}/stop", summary="Stop a deployment", responses=problems(404, 422))
    async def stop(caller: Deployer, name: Name) -> DeploymentView:
        """Take no new requests, finish those in flight, end the replicas. Its revisions stay."""
        async with database.write() as session:
            await deployments.stop(session, caller.project_id, name)
        return await shown(caller, name)

    @routes.post("/{name}/start", summary="Start a stopped deployment", responses=problems(404, 409, 422))
    async def start(caller: Deployer, name: Name) -> DeploymentView:
        """Serve again what served last."""
        async with database.write() as session:
            await deployments.start(session, caller.project_id, name)
        return await shown(caller, name)

    @routes.delete("/{name}", summary="Delete a deployment", status_code=204, responses=problems(404, 422))
    async def delete(caller: Deployer, name: Name) -> None:
        """Stop it and forget it with its revisions. Requests in flight are finished."""
        async with database.write() as session:
            await deployments.delete(session, caller.project_id, name)

    return routes
