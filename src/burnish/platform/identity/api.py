"""Routes of projects, users, service accounts, roles and keys."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar, cast

from fastapi import APIRouter, Depends, Header, Path, Query, Response
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.pages import DEFAULT_LIMIT, MAX_LIMIT, Page
from burnish.infra import idempotency
from burnish.infra.database import Database
from burnish.infra.problems import problems
from burnish.platform.identity import Principal, credentials, service
from burnish.platform.identity.credentials import Credentials
from burnish.platform.identity.permission import authenticated, requires
from burnish.platform.identity.schemas import (
    PROJECT_PATTERN,
    SUBJECT_PATTERN,
    BindingView,
    KeyView,
    Me,
    MintedKey,
    NewBinding,
    NewKeyRequest,
    NewProject,
    NewSubject,
    ProjectView,
    RotateRequest,
    SubjectView,
)

Anybody = Annotated[Principal, Depends(authenticated())]
Reader = Annotated[Principal, Depends(requires("identity:read"))]
Writer = Annotated[Principal, Depends(requires("identity:write"))]
KeyOwner = Annotated[Principal, Depends(requires("key:write"))]
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]
After = Annotated[str | None, Query(max_length=200, pattern=r"^[!-~]*$", description="`next` of the page before")]
Subject = Annotated[str | None, Query(pattern=SUBJECT_PATTERN, description="Only of this user or service account")]
SubjectId = Annotated[str, Path(pattern=SUBJECT_PATTERN, examples=["ada"])]
ProjectId = Annotated[str, Path(pattern=PROJECT_PATTERN, examples=["ml-team"])]
Id = r"^[a-z]{3}_[0-9a-z]{1,60}$"
BindingId = Annotated[str, Path(pattern=Id, examples=["bnd_01k9zq7d3x8m2v5n0c4r6t1y"])]
KeyId = Annotated[str, Path(pattern=Id, examples=["key_01k9zq7d3x8m2v5n0c4r6t1y"])]
Once = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key", description="The same key and body again is the same object",
        json_schema_extra=idempotency.KEY_SCHEMA,
    ),
]  # fmt: skip
_LIST = problems(401, 403, 422, 503)
_ONE = problems(401, 403, 404, 422, 503)
_CHANGE = problems(401, 403, 404, 409, 422, 503)

View = TypeVar("View", bound=BaseModel)


def router(database: Database, keys: Credentials) -> APIRouter:
    """Return the routes under ``/platform/identity``."""
    routes = APIRouter(prefix="/platform/identity", tags=["identity"])
    _projects(routes, database)
    _subjects(routes, database, "users", "user", service.USER, service.add_user)
    _subjects(
        routes, database, "service-accounts", "service account", service.SERVICE_ACCOUNT, service.add_service_account
    )
    _bindings(routes, database)
    _keys(routes, database, keys)
    _own(routes, database)
    return routes


def _own(routes: APIRouter, database: Database) -> None:
    @routes.get("/me", summary="Tell who you are", operation_id="whoami", responses=problems(401, 503))
    async def me(caller: Anybody) -> Me:
        """The caller, the project of this request, and what they may do in each of their projects."""
        async with database.read() as session:
            return await service.me(session, caller)


def _projects(routes: APIRouter, database: Database) -> None:
    @routes.get("/projects", summary="List projects", operation_id="list_projects", responses=_LIST)
    async def list_projects(caller: Reader, after: After = None, limit: Limit = DEFAULT_LIMIT) -> Page[ProjectView]:
        """The projects that the caller administers, by id."""
        async with database.read() as session:
            return await service.projects(session, caller, after, limit)

    @routes.post("/projects", summary="Make a project", operation_id="add_project", responses=_CHANGE)
    async def add_project(body: NewProject, caller: Writer, key: Once = None) -> ProjectView:
        """It can be used at once, by whoever is given a role in it. Needs `identity:write` in all projects."""
        return await _once(
            database, caller, key, "projects", body, lambda session: service.add_project(session, caller, body)
        )

    @routes.get("/projects/{project_id}", summary="Show a project", operation_id="get_project", responses=_ONE)
    async def get_project(project_id: ProjectId, caller: Reader) -> ProjectView:
        """One project."""
        async with database.read() as session:
            return await service.project(session, caller, project_id)


def _subjects(
    routes: APIRouter, database: Database, path: str, noun: str, kind: str,
    add: Callable[[AsyncSession, Principal, NewSubject], Awaitable[SubjectView]],
) -> None:  # fmt: skip
    name = noun.replace(" ", "_")

    @routes.get(f"/{path}", summary=f"List {noun}s", operation_id=f"list_{name}s", responses=_LIST)
    async def list_them(caller: Reader, after: After = None, limit: Limit = DEFAULT_LIMIT) -> Page[SubjectView]:
        """Those of the caller's project or with a role in it, by id; all for who administers every project."""
        async with database.read() as session:
            return await service.subjects(session, caller, kind, after, limit)

    @routes.post(f"/{path}", summary=f"Add a {noun}", operation_id=f"add_{name}", responses=_CHANGE)
    async def add_one(body: NewSubject, caller: Writer, key: Once = None) -> SubjectView:
        """Without any role yet. A service account belongs to the caller's project; users need `identity:write` in all."""
        return await _once(database, caller, key, path, body, lambda session: add(session, caller, body))

    @routes.get(f"/{path}/{{subject}}", summary=f"Show a {noun}", operation_id=f"get_{name}", responses=_ONE)
    async def get_one(subject: SubjectId, caller: Reader) -> SubjectView:
        """One of them."""
        async with database.read() as session:
            return service.subject_view(await service.subject(session, caller, subject, kind))

    @routes.post(
        f"/{path}/{{subject}}/disable", summary=f"Disable a {noun}", operation_id=f"disable_{name}", responses=_CHANGE
    )
    async def disable(subject: SubjectId, caller: Writer) -> SubjectView:
        """Ends its keys and sessions at once. Its name, its roles and what it did stay."""
        async with database.write() as session:
            return await service.disable(session, caller, subject, kind)

    @routes.post(
        f"/{path}/{{subject}}/enable", summary=f"Enable a {noun}", operation_id=f"enable_{name}", responses=_CHANGE
    )
    async def enable(subject: SubjectId, caller: Writer) -> SubjectView:
        """Lets it come in again; its old keys stay revoked."""
        async with database.write() as session:
            return await service.enable(session, caller, subject, kind)


def _bindings(routes: APIRouter, database: Database) -> None:
    @routes.get("/bindings", summary="List roles", operation_id="list_role_bindings", responses=_LIST)
    async def list_bindings(
        caller: Reader, subject: Subject = None, after: After = None, limit: Limit = DEFAULT_LIMIT
    ) -> Page[BindingView]:
        """Who has which role in the caller's project; in all for who administers every project."""
        async with database.read() as session:
            return await service.bindings(session, caller, subject, after, limit)

    @routes.post("/bindings", summary="Give a role", operation_id="give_role", responses=_CHANGE)
    async def give(body: NewBinding, caller: Writer, key: Once = None) -> BindingView:
        """Nobody can give more than they have. The same again changes nothing."""
        return await _once(database, caller, key, "bindings", body, lambda session: service.give(session, caller, body))

    @routes.delete(
        "/bindings/{binding_id}", status_code=204, summary="Take a role away", operation_id="take_role", responses=_CHANGE
    )  # fmt: skip
    async def take(binding_id: BindingId, caller: Writer) -> Response:
        """Holds in every process within a second. The last administrator of every project stays."""
        async with database.write() as session:
            await service.take(session, caller, binding_id)
        return Response(status_code=204)


def _keys(routes: APIRouter, database: Database, keys: Credentials) -> None:
    @routes.get("/keys", summary="List keys", operation_id="list_keys", responses=_LIST)
    async def list_keys(
        caller: KeyOwner, subject: Subject = None, after: After = None, limit: Limit = DEFAULT_LIMIT
    ) -> Page[KeyView]:
        """The caller's own keys; those of the project for its administrators. No secrets."""
        async with database.read() as session:
            return await credentials.keys(session, caller, subject, after, limit)

    @routes.post("/keys", summary="Mint a key", operation_id="mint_key", responses=_CHANGE)
    async def mint(body: NewKeyRequest, caller: KeyOwner, key: Once = None) -> MintedKey:
        """The key is in this answer and never shown again. Nobody can give more than they have.

        It ends after `days`, or `identity.key_days`; one of the caller's own at the latest with the key or session that
        was shown. Keys for others and for instances, and those that the key of the first start makes, are not bound by it.
        """
        return await _once(database, caller, key, "keys", body, lambda session: keys.mint(session, caller, body))

    @routes.post("/keys/{key_id}/rotate", summary="Rotate a key", operation_id="rotate_key", responses=_CHANGE)
    async def rotate(key_id: KeyId, caller: KeyOwner, body: RotateRequest | None = None, key: Once = None) -> MintedKey:
        """A new key that can do the same and lives as long; the old one works for `overlap_seconds` more.

        One of the caller's own ends at the latest with the key or session that was shown.
        """
        asked = body or RotateRequest()
        return await _once(
            database, caller, key, f"keys:{key_id}:rotate", asked, lambda session: keys.rotate(session, caller, key_id, asked)
        )  # fmt: skip

    @routes.delete(
        "/keys/{key_id}", status_code=204, summary="Revoke a key", operation_id="revoke_key", responses=_CHANGE
    )
    async def revoke(key_id: KeyId, caller: KeyOwner) -> Response:
        """Ends it in every process within a second."""
        async with database.write() as session:
            await keys.revoke(session, caller, key_id)
        return Response(status_code=204)


async def _once(
    database: Database, caller: Principal, key: str | None, route: str, body: BaseModel,
    make: Callable[[AsyncSession], Awaitable[View]],
) -> View:  # fmt: skip
    """Make an object in one unit of work; with a key that was used before, give the answer of then, less any secret."""
    async with database.write() as session:
        if key is None:
            return await make(session)
        digest = idempotency.body_digest(body.model_dump(mode="json"))
        place = f"identity:{route}:{caller.subject}"[:255]
        known = await idempotency.remembered(session, caller.project_id, key, place, digest)
        if known is not None:
            return cast(View, known.body)  # the route's response model reads it
        view = await make(session)
        kept: dict[str, Any] = view.model_dump(mode="json")
        if isinstance(view, MintedKey):
            kept["key"] = None  # shown once
        await idempotency.remember(session, caller.project_id, key, place, digest, 200, kept)
        return view
