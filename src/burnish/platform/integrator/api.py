"""Routes of instances: register, list, heartbeat, deregister."""

import asyncio
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Header, Path, Query, Response

from burnish.core.configuration import Current, defaults
from burnish.core.errors import Busy, InvalidRequest, Unavailable
from burnish.core.pages import DEFAULT_LIMIT, Page
from burnish.core.protocol import Registration
from burnish.core.states import InstanceState
from burnish.infra.database import Database
from burnish.infra.problems import problems
from burnish.infra.storable import unstorable
from burnish.platform.identity import Principal
from burnish.platform.identity.permission import requires, requires_unlogged
from burnish.platform.integrator import service
from burnish.platform.integrator.credentials import RegistrationRate, check_credential
from burnish.platform.integrator.network import check_endpoint, check_same_host
from burnish.platform.integrator.schemas import ComponentView, Heartbeat, Registered
from burnish.platform.integrator.store import Wanted

Reader = Annotated[Principal, Depends(requires("component:read"))]
Registrar = Annotated[Principal, Depends(requires("component:register"))]
Beating = Annotated[Principal, Depends(requires_unlogged("component:register"))]
GENERATION_HEADER = "Burnish-Generation"
_REFUSED_SECONDS = 0.25
"""Until one too many is refused: whoever sends as fast as it is answered leaves the process to others meanwhile."""
_REGISTERED_AT_ONCE = 4
"""A flood of registrations takes no more than so many of the process's connections to the database."""
_MOST_LISTED = 1000
"""More than other lists give: most of it is written already, so that all of a large installation are one page."""
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._:-]*$"
ComponentId = Annotated[str, Path(min_length=1, max_length=255, pattern=_NAME, examples=["fine_tuning-gpu-1"])]
_EXAMPLE = {
    "component_id": "fine_tuning-gpu-1", "component_type": "fine_tuning", "name": "fine-tuning on gpu-1", "version": "0.1.0",
    "health_endpoint": "http://10.0.0.7:8001/health", "api_endpoint": "http://10.0.0.7:8001", "metadata": {"gpus": 2},
}  # fmt: skip
Registering = Annotated[Registration, Body(openapi_examples={"a GPU machine": {"value": _EXAMPLE}})]


def router(database: Database, configuration: Current = defaults) -> APIRouter:
    """Return the routes under ``/platform/components``."""
    routes = APIRouter(prefix="/platform/components", tags=["components"])
    _registering(routes, database, configuration)
    _listing(routes, database)
    _keeping(routes, database, configuration)
    return routes


def _registering(routes: APIRouter, database: Database, configuration: Current) -> None:
    rate, turns = RegistrationRate(), asyncio.Semaphore(_REGISTERED_AT_ONCE)

    @routes.post(
        "/register",
        summary="Register an instance",
        operation_id="register_component",
        responses=problems(400, 401, 403, 409, 422, 429, 503),
    )
    async def register_component(registration: Registering, caller: Registrar, response: Response) -> Registered:
        """Register an instance, or update it: it is `starting` until its `/describe` and `/health` have answered.

        Registering what is known already renews its lease and changes nothing else. The header `Burnish-Generation` of
        the answer is for heartbeats: those of an earlier process of the same id are refused.
        """
        check_credential(caller, registration.component_id, registration.component_type)
        settings = configuration().integrator
        try:
            rate.take(caller, settings.registrations_per_minute)
        except Busy:
            await asyncio.sleep(_REFUSED_SECONDS)
            raise
        await _check(registration, settings.allowed_networks)
        async with turns:
            generation = await service.registered(database, registration, settings.lease_seconds)
        response.headers[GENERATION_HEADER] = str(generation)
        return Registered(component_id=registration.component_id)


async def _check(registration: Registration, networks: tuple[str, ...]) -> None:
    """Check what the schema does not say.

    Raises:
        InvalidRequest: it cannot be stored, or its endpoints name different hosts.
        Forbidden: an endpoint leads where nothing may be sent.
    """
    if odd := tuple(unstorable(registration.model_dump(), "body")):
        raise InvalidRequest("the registration cannot be stored", problems=odd)
    for where in ("api_endpoint", "health_endpoint"):
        with suppress(InvalidRequest, Unavailable):  # until it can be called it is not healthy, and says why
            await check_endpoint(getattr(registration, where), where, networks)
    check_same_host(registration.health_endpoint, registration.api_endpoint)


def _listing(routes: APIRouter, database: Database) -> None:
    whole, nameless = service.Listing(), service.Listing(names=False)

    @routes.get(
        "", summary="List instances", operation_id="list_components", response_model=Page[ComponentView],
        responses=problems(401, 403, 422, 503),
    )  # fmt: skip
    async def list_components(
        caller: Reader,
        component_type: Annotated[str | None, Query(max_length=100, pattern=_NAME)] = None,
        status: Annotated[list[InstanceState] | None, Query(description="Only these states")] = None,
        after: Annotated[
            str | None, Query(max_length=255, pattern=_NAME, description="`next` of the page before")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=_MOST_LISTED)] = DEFAULT_LIMIT,
    ) -> Response:
        """Give every instance that is known, embedded and remote, with its state and the kinds that it offers."""
        listing = whole if _sees_names(caller) else nameless
        async with database.read() as session:
            found = await listing.page(session, Wanted(component_type, tuple(status or ()), after), limit)
        return Response(found, media_type="application/json")

    @routes.get(
        "/{component_id}", summary="An instance", operation_id="get_component",
        responses=problems(401, 403, 404, 422, 503),
    )  # fmt: skip
    async def get_component(component_id: ComponentId, caller: Reader) -> ComponentView:
        """Give one instance, with the last things that were done about it."""
        async with database.read() as session:
            return service.detail_of(await service.get(session, component_id), names=_sees_names(caller))


def _sees_names(caller: Principal) -> bool:
    """Tell whether somebody may see what other projects' models and jobs are called."""
    return caller.may_everywhere("component:read")


def _keeping(routes: APIRouter, database: Database, configuration: Current) -> None:
    @routes.post(
        "/{component_id}/heartbeat",
        summary="Say that an instance lives",
        operation_id="heartbeat_component",
        responses=problems(400, 401, 403, 404, 409, 422, 503),
    )
    async def heartbeat(component_id: ComponentId, caller: Beating, said: Heartbeat | None = None) -> ComponentView:
        """Note that the instance lives; one that was thought lost starts anew."""
        check_credential(caller, component_id)
        lease = configuration().integrator.lease_seconds
        return await service.beaten(database, component_id, said, lease)

    @routes.delete(
        "/{component_id}", summary="Deregister an instance", operation_id="deregister_component", status_code=204,
        responses=problems(401, 403, 404, 409, 422, 503),
    )  # fmt: skip
    async def deregister_component(
        component_id: ComponentId, caller: Registrar,
        generation: Annotated[
            int,
            Header(alias=GENERATION_HEADER, ge=0, le=2**31 - 1, description="Refuse if it is a later one's; 0: never"),
        ] = 0,
    ) -> Response:  # fmt: skip
        """Forget an instance: it gets no more calls at once, and is gone once those that run have had their time.

        A process that ends sends the `Burnish-Generation` of its registration, so that it does not deregister the one
        that has taken its place.
        """
        check_credential(caller, component_id)
        async with database.write() as session:
            await service.deregister(session, component_id, generation or None)
        return Response(status_code=204)
