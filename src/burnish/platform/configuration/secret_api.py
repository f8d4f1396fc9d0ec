"""Routes of secrets. No answer has a value."""

from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Path, Query, Response

from burnish.core.pages import DEFAULT_LIMIT, MAX_LIMIT, Page
from burnish.infra.database import Database
from burnish.infra.problems import problems
from burnish.platform.configuration import secrets, service
from burnish.platform.configuration.live import LiveConfiguration
from burnish.platform.configuration.schemas import (
    SECRET_NAME,
    RewrapRequest,
    RewrapView,
    RotationView,
    SecretView,
    SetSecret,
)
from burnish.platform.configuration.secrets import Secrets, read_installation_key
from burnish.platform.identity import Principal
from burnish.platform.identity.permission import requires

Reader = Annotated[Principal, Depends(requires("secret:read"), scope="function")]
Writer = Annotated[Principal, Depends(requires("secret:write"), scope="function")]
Name = Annotated[str, Path(pattern=SECRET_NAME, max_length=100, examples=["oidc-client"])]
Setting = Annotated[SetSecret, Body(openapi_examples={"a value": {"value": {"value": "the value"}}})]
_READ = problems(401, 403, 422, 503)
_CHANGE = problems(400, 401, 403, 404, 409, 413, 422, 503)


def router(database: Database, live: LiveConfiguration, kept: Secrets) -> APIRouter:
    """Return the routes under ``/platform/secrets``."""
    routes = APIRouter(prefix="/platform/secrets", tags=["secrets"])

    @routes.get("", summary="List secrets", operation_id="list_secrets", responses=_READ)
    async def list_secrets(
        caller: Reader,
        after: Annotated[str | None, Query(max_length=100, pattern=SECRET_NAME, description="`next` of the page before")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
    ) -> Page[SecretView]:  # fmt: skip
        """Give the names of all secrets, with who set them last and when; never a value."""
        async with database.read() as session:
            return await secrets.page(session, after, limit)

    @routes.put("/{name}", summary="Set a secret", operation_id="set_secret", responses=_CHANGE)
    async def set_secret(name: Name, given: Setting, caller: Writer) -> SecretView:
        """Set a secret, or give it a new value; write `secret://NAME` into a configuration value to use it."""
        async with database.write() as session:
            return await kept.set(session, name, given.value.get_secret_value(), caller.subject)

    @routes.delete(
        "/{name}", summary="Remove a secret", operation_id="remove_secret", status_code=204, responses=_CHANGE
    )
    async def remove_secret(name: Name, caller: Writer) -> Response:
        """Remove a secret that the configuration does not refer to."""
        async with database.write() as session:
            await secrets.remove(session, name, await service.used_by(session, live, name))
        return Response(status_code=204)

    _keys(routes, database, kept)
    return routes


def _keys(routes: APIRouter, database: Database, kept: Secrets) -> None:
    @routes.post("/rotate-key", summary="Encrypt anew", operation_id="rotate_secret_key", responses=_CHANGE)
    async def rotate_key(caller: Writer) -> RotationView:
        """Make a new data key and encrypt every secret with it. Cut short, it is finished at the next start."""
        return await kept.rotate(caller.subject)

    @routes.post(
        "/rewrap", summary="Prepare another installation key", operation_id="rewrap_secrets", responses=_CHANGE
    )
    async def rewrap(request: RewrapRequest, caller: Writer) -> RewrapView:
        """Let another installation key open the secrets too; then start every process with it, and finish."""
        new = read_installation_key(FilePath(request.new_key_file))
        async with database.write() as session:
            return await kept.rewrap(session, new)

    @routes.post(
        "/rewrap/finish", summary="Let other installation keys go", operation_id="finish_rewrap", responses=_CHANGE
    )
    async def finish_rewrap(caller: Writer) -> RewrapView:
        """Let no installation key but the one of the process that answers open the secrets."""
        async with database.write() as session:
            return await kept.finish_rewrap(session)
