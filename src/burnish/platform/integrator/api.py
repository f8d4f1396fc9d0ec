"""Routes of instances: register, list, heartbeat, deregister."""

from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Path, Query, Response

from burnish.core.errors import Forbidden, InvalidRequest, Unavailable
from burnish.core.pages import DEFAULT_LIMIT, MAX_LIMIT, Page
from burnish.core.protocol import Registration
from burnish.core.states import InstanceState
from burnish.infra.database import Database
from burnish.infra.problems import problems
from burnish.infra.storable import unstorable
from burnish.platform.identity import Principal, current_principal
from burnish.platform.integrator import service
from burnish.platform.integrator.network import check_endpoint
from burnish.platform.integrator.schemas import ComponentView, Registered

Caller = Annotated[Principal, Depends(current_principal)]
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._:-]*$"
ComponentId = Annotated[str, Path(min_length=1, max_length=255, pattern=_NAME, examples=["fine_tuning-gpu-1"])]
_EXAMPLE = {
    "component_id": "fine_tuning-gpu-1", "component_type": "fine_tuning", "name": "fine-tuning on gpu-1", "version": "0.1.0",
    "health_endpoint": "http://10.0.0.7:8001/health", "api_endpoint": "http://10.0.0.7:8001", "metadata": {"gpus": 2},
}  # fmt: skip
Registering = Annotated[Registration, Body(openapi_examples={"a GPU machine": {"value": _EXAMPLE}})]


def router(database: Database) -> APIRouter:
    """Return the routes under ``/platform/components``."""
    routes = APIRouter(prefix="/platform/components", tags=["components"])

    @routes.post(
        "/register",
        summary="Register an instance",
        operation_id="register_component",
        responses=problems(400, 401, 403, 409, 422, 503),
    )
    async def register_component(registration: Registering, caller: Caller) -> Registered:
        """Register an instance, or update it: it is `starting` until its `/describe` and `/health` have answered."""
        _may_register(caller)
        if odd := tuple(unstorable(registration.model_dump(), "body")):
            raise InvalidRequest("the registration cannot be stored", problems=odd)
        for where in ("api_endpoint", "health_endpoint"):
            with suppress(
                InvalidRequest, Unavailable
            ):  # it may come up later; until then it is not healthy, and says why
                await check_endpoint(getattr(registration, where), where)
        async with database.write() as session:
            row = await service.register(session, registration)
        return Registered(component_id=row.component_id)

    _listing(routes, database)
    _keeping(routes, database)
    return routes


def _listing(routes: APIRouter, database: Database) -> None:
    @routes.get("", summary="List instances", operation_id="list_components", responses=problems(401, 422, 503))
    async def list_components(
        caller: Caller,
        component_type: Annotated[str | None, Query(max_length=100, pattern=_NAME)] = None,
        status: Annotated[list[InstanceState] | None, Query(description="Only these states")] = None,
        after: Annotated[
            str | None, Query(max_length=255, pattern=_NAME, description="`next` of the page before")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
    ) -> Page[ComponentView]:
        """Give every instance that is known, embedded and remote, with its state and the kinds that it offers."""
        async with database.read() as session:
            return await service.page(
                session, component_type=component_type, statuses=status or (), after=after, limit=limit
            )

    @routes.get(
        "/{component_id}", summary="An instance", operation_id="get_component", responses=problems(401, 404, 422, 503)
    )
    async def get_component(component_id: ComponentId, caller: Caller) -> ComponentView:
        """Give one instance."""
        async with database.read() as session:
            return service.view_of(await service.get(session, component_id))


def _keeping(routes: APIRouter, database: Database) -> None:
    @routes.post(
        "/{component_id}/heartbeat",
        summary="Say that an instance lives",
        operation_id="heartbeat_component",
        responses=problems(401, 403, 404, 422, 503),
    )
    async def heartbeat(component_id: ComponentId, caller: Caller) -> ComponentView:
        """Note that the instance lives; one that was thought lost starts anew."""
        _may_register(caller)
        async with database.write() as session:
            return service.view_of(await service.heartbeat(session, component_id))

    @routes.delete(
        "/{component_id}", summary="Deregister an instance", operation_id="deregister_component", status_code=204,
        responses=problems(401, 403, 404, 409, 422, 503),
    )  # fmt: skip
    async def deregister_component(component_id: ComponentId, caller: Caller) -> Response:
        """Forget an instance; it gets no more calls."""
        _may_register(caller)
        async with database.write() as session:
            await service.deregister(session, component_id)
        return Response(status_code=204)


def _may_register(caller: Principal) -> None:
    if not caller.roles & {"administrator", "component"}:
        raise Forbidden(
            f"{caller.subject} may not register components", hint="it needs the role administrator or component"
        )
