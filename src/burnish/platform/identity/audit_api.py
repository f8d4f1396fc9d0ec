"""Routes of the audit log and of the keys by which caller tokens are verified."""

from collections.abc import AsyncIterator
from typing import Annotated

import orjson
from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse

from burnish.core.pages import DEFAULT_LIMIT, MAX_LIMIT, Page
from burnish.infra.database import Database
from burnish.infra.problems import problems
from burnish.platform.identity import CallerTokens, Principal, audit, store
from burnish.platform.identity.permission import anyone, authorize_everywhere, requires
from burnish.platform.identity.schemas import PROJECT_PATTERN, AuditEntry, AuditProblem, AuditVerdict, KeySet
from burnish.platform.identity.service import no_project
from burnish.platform.identity.tables import AuditRow

Auditor = Annotated[Principal, Depends(requires("audit:read"))]
Project = Annotated[str | None, Query(pattern=PROJECT_PATTERN, description="Only of this project")]
_LINE = '{"number": 41, "action": "workflow:run", "actor": "ada", "hash": "9b1c..."}\n'
_LINES = {"content": {"application/x-ndjson": {"schema": {"type": "string"}, "example": _LINE}}}


def router(database: Database, tokens: CallerTokens) -> APIRouter:
    """Return the routes ``/platform/identity/audit...`` and ``/platform/identity/jwks``."""
    routes = APIRouter(prefix="/platform/identity", tags=["identity"])
    _reading(routes, database)
    _exporting(routes, database)

    @routes.get("/jwks", summary="Show the keys of caller tokens", operation_id="get_jwks")
    async def jwks(_: Annotated[Principal, Depends(anyone())]) -> KeySet:
        """The public key by which components verify who calls them (RFC 7517). Open."""
        return KeySet(keys=tuple(tokens.public_jwks()["keys"]))

    return routes


def _reading(routes: APIRouter, database: Database) -> None:
    @routes.get(
        "/audit", summary="Read the audit log", operation_id="list_audit", responses=problems(401, 403, 404, 422, 503)
    )
    async def list_entries(
        caller: Auditor,
        project: Project = None,
        actor: Annotated[str | None, Query(max_length=255, pattern=r"^[^\x00]*$", description="Only of this user or service account")] = None,
        action: Annotated[str | None, Query(max_length=100, pattern=r"^[a-z_.-]+:[a-z_.-]+$", description="Only this, as `key:mint`")] = None,
        after: Annotated[int | None, Query(ge=1, le=1 << 62, description="`next` of the page before")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
    ) -> Page[AuditEntry]:  # fmt: skip
        """Who did what, newest first: in the caller's project, or in all for who administers every project."""
        named = {"project_id": _scope(caller, project), "actor": actor, "action": action}
        async with database.read() as session:
            conditions = {name: value for name, value in named.items() if value is not None}
            rows = await store.audit_page(session, conditions, after, limit)
        return Page.of([entry_of(row) for row in rows], limit, lambda entry: str(entry.number))

    @routes.get(
        "/audit/verify", summary="Verify the audit log", operation_id="verify_audit", responses=problems(401, 403, 503)
    )
    async def verify(caller: Auditor) -> AuditVerdict:
        """Check the whole chain: each entry that was changed, removed or inserted is named. Needs `audit:read` in all projects."""
        authorize_everywhere(caller, "audit:read")
        async with database.read() as session:
            found = await audit.verify(session)
        told = tuple(AuditProblem.model_validate(one, from_attributes=True) for one in found.problems)
        return AuditVerdict(ok=not told, entries=found.entries, head=found.head, problems=told)


def _exporting(routes: APIRouter, database: Database) -> None:
    @routes.get(
        "/audit/export", summary="Export the audit log", operation_id="export_audit", response_class=StreamingResponse,
        responses={200: {"description": "One entry a line, oldest first", **_LINES}, **problems(401, 403, 404, 422, 503)},
    )  # fmt: skip
    async def export(caller: Auditor, project: Project = None) -> StreamingResponse:
        """Every entry up to now, as JSON lines. `hash` is SHA-256 over the entry's other fields, `previous` among them."""
        scope = _scope(caller, project)
        async with database.read() as session:
            head = await store.head(session)
        lines = _lines(database, scope, 0 if head is None else head.number)
        return StreamingResponse(lines, media_type="application/x-ndjson")


def _scope(caller: Principal, project: str | None) -> str | None:
    """Return the one project whose entries the caller may see, or None: of all."""
    if caller.may_everywhere("audit:read"):
        return project
    if project not in (None, caller.project_id):
        raise no_project(str(project))
    return caller.project_id


async def _lines(database: Database, project_id: str | None, until: int) -> AsyncIterator[bytes]:
    """Yield the lines; no transaction stays open while the client reads."""
    last: int | None = None
    while True:
        async with database.read() as session:
            rows = await store.audit_batch(session, project_id, last, until)
        if not rows:
            return
        last = rows[-1].number
        yield b"".join(orjson.dumps(entry_of(row).model_dump(mode="json")) + b"\n" for row in rows)


def entry_of(row: AuditRow) -> AuditEntry:
    """Return the public view of a row."""
    return AuditEntry.model_validate(row, from_attributes=True)
