"""Routes of the configuration."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Path, Query, Response

from burnish.core.configuration import Configuration
from burnish.core.errors import NotFound
from burnish.core.pages import DEFAULT_LIMIT, MAX_LIMIT, Page
from burnish.infra.database import Database
from burnish.infra.problems import problems
from burnish.platform.configuration import environments, service, store, views
from burnish.platform.configuration.environments import NAME_PATTERN
from burnish.platform.configuration.file import document_values
from burnish.platform.configuration.live import LiveConfiguration
from burnish.platform.configuration.schemas import (
    ChangeRequest,
    ChangeView,
    ConfigurationView,
    DiffView,
    Explanation,
    ImportRequest,
    RollbackRequest,
    StatusView,
    VersionView,
)
from burnish.platform.configuration.service import Change, Given
from burnish.platform.identity import Principal
from burnish.platform.identity.permission import requires

Reader = Annotated[Principal, Depends(requires("configuration:read"), scope="function")]
Writer = Annotated[Principal, Depends(requires("configuration:write"), scope="function")]
Environment = Annotated[
    str | None, Query(max_length=63, pattern=NAME_PATTERN, description="By default that of the process that answers")
]
Number = Annotated[int, Path(ge=1, le=2_000_000_000, examples=[7])]
Numbered = Annotated[int, Query(ge=0, le=2_000_000_000)]
Key = Annotated[str, Path(max_length=200, pattern=r"^[A-Za-z0-9_.]+$", examples=["gateway.per_key.burst"])]

_READ = problems(401, 403, 404, 422, 503)
_CHANGE = problems(400, 401, 403, 404, 409, 413, 422, 503)
_YAML = {"application/yaml": {"schema": {"type": "object"}, "example": {"gateway": {"per_key": {"burst": 800}}}}}
_SCHEMA = {
    "type": "object",
    "title": "Configuration",
    "properties": {"gateway": {"$ref": "#/$defs/GatewayConfiguration"}},
}
_SET = {
    "summary": "A limit", "value": {"environment": "production", "set": {"gateway.per_key.burst": 800}, "reason": "the spring campaign"},
}  # fmt: skip
_BACK = {"value": {"environment": "production", "to": 6, "reason": "too high"}}
_DOCUMENT = {
    "value": {
        "environment": "production",
        "document": "gateway:\n  per_key: {burst: 800}\n",
        "reason": "reviewed in git",
    }
}
Changing = Annotated[ChangeRequest, Body(openapi_examples={"set": _SET})]
RollingBack = Annotated[RollbackRequest, Body(openapi_examples={"back": _BACK})]
Importing = Annotated[ImportRequest, Body(openapi_examples={"document": _DOCUMENT})]


def router(database: Database, live: LiveConfiguration) -> APIRouter:
    """Return the routes under ``/platform/configuration``."""
    routes = APIRouter(prefix="/platform/configuration", tags=["configuration"])
    _reading(routes, database, live)
    _versions(routes, database, live)
    _changing(routes, database, live)
    return routes


def _reading(routes: APIRouter, database: Database, live: LiveConfiguration) -> None:
    @routes.get("", summary="The configuration", operation_id="get_configuration", responses=_READ)
    async def get_configuration(caller: Reader, environment: Environment = None) -> ConfigurationView:
        """Give every key with its value, where that comes from, and whether it waits for a restart."""
        await live.refresh()
        async with database.read() as session:
            return await views.effective(session, live, caller, environment or live.environment)

    @routes.get(
        "/schema", summary="What can be set", operation_id="get_configuration_schema",
        responses={200: {"content": {"application/json": {"example": _SCHEMA}}, "description": "A JSON Schema"}, **problems(401, 403)},
    )  # fmt: skip
    async def get_schema(caller: Reader) -> dict[str, Any]:
        """Give the JSON Schema of the configuration: every key with type, range, default and what it sets."""
        return Configuration.model_json_schema()

    @routes.get(
        "/explain/{key}", summary="Where a value comes from", operation_id="explain_configuration", responses=_READ
    )
    async def explain(key: Key, caller: Reader, environment: Environment = None) -> Explanation:
        """Give what each layer says of a key, which one won, and where its value stands. `process.*` is the set-up."""
        async with database.read() as session:
            return await views.explain(session, live, caller, environment or live.environment, key)

    @routes.get(
        "/status",
        summary="Who obeys which version",
        operation_id="get_configuration_status",
        responses=problems(401, 403, 503),
    )
    async def get_status(caller: Reader) -> StatusView:
        """Give every running process: the versions that it obeys, those that it refuses and why, what waits for a restart."""
        async with database.read() as session:
            return await views.status(session)

    @routes.get(
        "/export", summary="An environment's values as a file", operation_id="export_configuration", response_class=Response,
        responses={200: {"content": _YAML, "description": "YAML"}, **_READ},
    )  # fmt: skip
    async def export(
        caller: Reader, environment: Environment = None, version: Annotated[Numbered | None, Query()] = None
    ) -> Response:
        """Give the values that are set in the database, as YAML for review; import gives them back."""
        name = _known(live, environment)
        async with database.read() as session:
            text = await views.document(session, live, caller, name, version)
        return Response(text, media_type="application/yaml")


def _versions(routes: APIRouter, database: Database, live: LiveConfiguration) -> None:
    @routes.get("/versions", summary="List versions", operation_id="list_configuration_versions", responses=_READ)
    async def list_versions(
        caller: Reader, environment: Environment = None,
        after: Annotated[int | None, Query(ge=1, le=2_000_000_000, description="`next` of the page before")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
    ) -> Page[VersionView]:  # fmt: skip
        """Give an environment's versions, newest first: who, when, why, and every value."""
        async with database.read() as session:
            rows = await store.versions(session, _known(live, environment), after, limit)
        found = [views.version_view(caller, row) for row in rows]
        return Page[VersionView].of(found, limit, lambda one: str(one.number))

    @routes.get("/versions/{number}", summary="A version", operation_id="get_configuration_version", responses=_READ)
    async def get_version(number: Number, caller: Reader, environment: Environment = None) -> VersionView:
        """Give one version with every value."""
        async with database.read() as session:
            row = await service.find_version(session, _known(live, environment), number)
        if row is None:
            raise NotFound("version 0 has no values", where="version")
        return views.version_view(caller, row)

    @routes.get("/diff", summary="What differs between versions", operation_id="diff_configuration", responses=_READ)
    async def diff(
        caller: Reader,
        older: Annotated[int, Query(ge=0, le=2_000_000_000, description="0 has no values")],
        newer: Annotated[int, Query(ge=0, le=2_000_000_000)],
        environment: Environment = None,
    ) -> DiffView:
        """Give every key whose value in the database differs between two versions, with both values."""
        name = _known(live, environment)
        async with database.read() as session:
            one, other = [await service.find_version(session, name, number) for number in (older, newer)]
        changed = service.difference(caller, service.overrides_of(one), service.overrides_of(other))
        return DiffView(environment=name, older=older, newer=newer, changed=changed)


def _changing(routes: APIRouter, database: Database, live: LiveConfiguration) -> None:
    def change_of(action: str, request: ChangeRequest | RollbackRequest | ImportRequest) -> Change:
        name = request.environment or live.environment
        return Change(name, action, request.reason, request.expected_version, request.dry_run)

    @routes.patch("", summary="Change keys", operation_id="change_configuration", responses=_CHANGE)
    async def change_configuration(request: Changing, caller: Writer) -> ChangeView:
        """Set and unset keys as one new version: all of it is checked first, and every process obeys within a second."""
        given = service.named(request.set, request.unset)
        async with database.write() as session:
            done = await service.apply(session, live, caller, change_of("change", request), given)
        await live.obey()
        return done

    @routes.post("/rollback", summary="Go back to a version", operation_id="roll_back_configuration", responses=_CHANGE)
    async def roll_back(request: RollingBack, caller: Writer) -> ChangeView:
        """Make a new version that has the values of an older one."""
        async with database.write() as session:
            done = await service.roll_back(session, live, caller, change_of("rollback", request), request.to)
        await live.obey()
        return done

    @routes.post(
        "/import", summary="Replace an environment's values", operation_id="import_configuration", responses=_CHANGE
    )
    async def import_configuration(request: Importing, caller: Writer) -> ChangeView:
        """Make a new version with exactly the values of a YAML document, as `export` gives it."""
        values = Given(document_values(request.document, "document"))
        async with database.write() as session:
            done = await service.replace(session, live, caller, change_of("import", request), values)
        await live.obey()
        return done


def _known(live: LiveConfiguration, environment: str | None) -> str:
    return environments.find(live.file.environments, environment or live.environment).name
