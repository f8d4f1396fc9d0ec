"""Routes of the model registry."""

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Path, Query, Response
from pydantic import BaseModel

from burnish.core.errors import InvalidRequest
from burnish.core.pages import DEFAULT_LIMIT, MAX_LIMIT, Page
from burnish.infra.database import Database
from burnish.infra.problems import problems
from burnish.infra.storable import unstorable
from burnish.platform.identity import Principal
from burnish.platform.identity.permission import requires
from burnish.platform.model_registry import service
from burnish.platform.model_registry.schemas import (
    AliasMove,
    AliasName,
    AliasView,
    LineageView,
    ModelName,
    ModelView,
    MoveAlias,
    NewVersion,
    VersionView,
    example_version,
)

Reader = Annotated[Principal, Depends(requires("model:read"))]
Writer = Annotated[Principal, Depends(requires("model:write"))]
Name = Annotated[ModelName, Path(examples=["production"])]
Alias = Annotated[AliasName, Path(examples=["production"])]
Version = Annotated[int, Path(ge=1, le=2_000_000_000, description="The version's number", examples=[3])]
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]
_READ = problems(404, 422, 503)
_CHANGE = problems(404, 409, 422, 503)


def router(database: Database) -> APIRouter:
    """Return the routes under ``/platform/models``."""
    routes = APIRouter(prefix="/platform/models", tags=["models"])
    _add_reading(routes, database)
    _add_versions(routes, database)
    _add_aliases(routes, database)
    return routes


def _check_storable(body: BaseModel) -> None:
    if odd := tuple(unstorable(body.model_dump(mode="python"), "body")):
        raise InvalidRequest(f"{odd[0].where} {odd[0].message}", where=odd[0].where, problems=odd)


def _add_reading(routes: APIRouter, database: Database) -> None:
    @routes.get("", summary="List models", operation_id="list_models", responses=problems(422, 503))
    async def list_models(
        principal: Reader,
        after: Annotated[str | None, Query(max_length=63, description="`next` of the page before")] = None,
        limit: Limit = DEFAULT_LIMIT,
    ) -> Page[ModelView]:
        """The project's models by name, each with its aliases."""
        async with database.read() as session:
            rows = await service.list_models(session, principal.project_id, after, limit)
        return Page.of(rows, limit, lambda model: model.name)

    @routes.get("/resolve", summary="Resolve a reference", operation_id="resolve_model", responses=_READ)
    async def resolve(
        principal: Reader,
        ref: Annotated[str, Query(min_length=1, max_length=200, examples=["production@production"])],
    ) -> VersionView:
        """The version that `name@3`, `name@production` or `name` (its newest) stands for."""
        async with database.read() as session:
            return await service.resolve(session, principal.project_id, service.check_reference(ref))

    @routes.get("/{name}", summary="Show a model", operation_id="get_model", responses=_READ)
    async def get_model(name: Name, principal: Reader) -> ModelView:
        """The model with its aliases."""
        async with database.read() as session:
            return await service.get_model(session, principal.project_id, name)


def _add_versions(routes: APIRouter, database: Database) -> None:
    @routes.get("/{name}/versions", summary="List versions", operation_id="list_model_versions", responses=_READ)
    async def list_versions(
        name: Name,
        principal: Reader,
        after: Annotated[int | None, Query(ge=1, le=2_000_000_000, description="`next` of the page before")] = None,
        limit: Limit = DEFAULT_LIMIT,
    ) -> Page[VersionView]:
        """The model's versions, newest first."""
        async with database.read() as session:
            rows = await service.list_versions(session, principal.project_id, name, after, limit)
        return Page.of(rows, limit, lambda version: str(version.version))

    @routes.post(
        "/{name}/versions", summary="Register a version", operation_id="register_model_version", responses=_CHANGE
    )
    async def register(
        name: Name, body: Annotated[NewVersion, Body(examples=[example_version()])], principal: Writer
    ) -> VersionView:
        """Makes an immutable version; the same artifacts again are the same version."""
        _check_storable(body)
        async with database.write() as session:
            view, _ = await service.register(session, principal.project_id, name, body, principal.subject)
        return view

    @routes.get(
        "/{name}/versions/{version}", summary="Show a version", operation_id="get_model_version", responses=_READ
    )
    async def get_version(name: Name, version: Version, principal: Reader) -> VersionView:
        """One version: its artifacts, card, metrics and aliases."""
        async with database.read() as session:
            return await service.get(session, principal.project_id, name, version)

    @routes.get(
        "/{name}/versions/{version}/lineage", summary="Tell where a version came from",
        operation_id="get_model_lineage", responses=_READ,
    )  # fmt: skip
    async def lineage(name: Name, version: Version, principal: Reader) -> LineageView:
        """Back to dataset version, rows hash, config, code version, seed, base and licence; on to what was made from it."""
        async with database.read() as session:
            return await service.lineage(session, principal.project_id, name, version)

    @routes.delete(
        "/{name}/versions/{version}", status_code=204, summary="Delete a version",
        operation_id="delete_model_version", responses=_CHANGE,
    )  # fmt: skip
    async def delete(name: Name, version: Version, principal: Writer) -> Response:
        """Refused while an alias points at it or another version was made from it."""
        async with database.write() as session:
            await service.delete_version(session, principal.project_id, name, version)
        return Response(status_code=204)


def _add_aliases(routes: APIRouter, database: Database) -> None:
    @routes.put("/{name}/aliases/{alias}", summary="Move an alias", operation_id="move_model_alias", responses=_CHANGE)
    async def move(name: Name, alias: Alias, body: MoveAlias, principal: Writer) -> AliasView:
        """Points the alias at a version; a running deployment is not touched by it."""
        _check_storable(body)
        async with database.write() as session:
            return await service.move_alias(
                session, principal.project_id, name, alias, body.version, by=principal.subject, reason=body.reason
            )

    @routes.post(
        "/{name}/aliases/{alias}/rollback", summary="Roll an alias back", operation_id="roll_back_model_alias",
        responses=_CHANGE,
    )  # fmt: skip
    async def roll_back(name: Name, alias: Alias, principal: Writer) -> AliasView:
        """Points the alias at the version that it had before; again goes one further back."""
        async with database.write() as session:
            return await service.roll_back(session, principal.project_id, name, alias, by=principal.subject)

    @routes.get("/{name}/aliases/{alias}/history", summary="Show an alias's moves", operation_id="model_alias_history",
                responses=_READ)  # fmt: skip
    async def history(name: Name, alias: Alias, principal: Reader) -> Page[AliasMove]:
        """Every move, oldest first."""
        async with database.read() as session:
            return Page(data=await service.history(session, principal.project_id, name, alias))

    @routes.delete(
        "/{name}/aliases/{alias}", status_code=204, summary="Take an alias away", operation_id="delete_model_alias",
        responses=_CHANGE,
    )  # fmt: skip
    async def remove(name: Name, alias: Alias, principal: Writer) -> Response:
        """The versions stay, and so does the alias's history."""
        async with database.write() as session:
            await service.remove_alias(session, principal.project_id, name, alias, by=principal.subject)
        return Response(status_code=204)
