"""The routes of datasets."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import FileResponse
from starlette.requests import ClientDisconnect

from burnish.components.data_management import contents, service
from burnish.components.data_management.adding import Adding
from burnish.components.data_management.reading import RowReading
from burnish.components.data_management.schemas import (
    NAME_PATTERN,
    REFERENCE_PATTERN,
    VERSION_PATTERN,
    DatasetVersionView,
    DatasetView,
    Difference,
    Preview,
    UploadAnswer,
)
from burnish.core.errors import MalformedRequest
from burnish.core.pages import DEFAULT_LIMIT, MAX_LIMIT, Page
from burnish.core.specs.data import DATA_FILE
from burnish.infra.artifact_store import ArtifactStore
from burnish.infra.database import Database
from burnish.infra.idempotency import KEY_SCHEMA
from burnish.infra.problems import problems
from burnish.platform.identity import Principal
from burnish.platform.identity.permission import requires

Reader = Annotated[Principal, Depends(requires("dataset:read"))]
Writer = Annotated[Principal, Depends(requires("dataset:write"))]
Name = Annotated[
    str, Path(pattern=NAME_PATTERN, description="The dataset's name, or its id (`ds_...`)", examples=["reviews"])
]
Reference = Annotated[
    str, Path(pattern=REFERENCE_PATTERN, description="`reviews`, `reviews@2`, or an id", examples=["reviews"])
]
Number = Annotated[str, Path(pattern=VERSION_PATTERN, description="A version's number, or `latest`", examples=["2"])]
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Items at most")]

_CSV_EXAMPLE = 'text,label\n"A great movie",positive\n"The worst film ever",negative\n'
_JSONL_EXAMPLE = (
    '{"text": "A great movie", "label": "positive"}\n{"text": "The worst film ever", "label": "negative"}\n'
)
_FIELD_SCHEMAS: dict[str, Any] = {
    "name": {
        "type": "string", "pattern": NAME_PATTERN, "example": "reviews",
        "description": "Name of the dataset; from the file's name if not given",
    },
    "filename": {
        "type": "string", "maxLength": 1000, "example": "reviews.jsonl",
        "description": "Name of the file: its ending tells the file format",
    },
    "format": {
        "type": "string", "enum": ["classification", "prompt_completion", "chat", "text"],
        "description": "What the rows are; recognised by the columns if not given",
    },
    "columns": {
        "type": "string", "maxLength": 4000, "example": "text=review,label=stars",
        "description": "Which of the file's columns is which: `ours=theirs,...`, or a JSON object",
    },
    "licence": {"type": "string", "maxLength": 200, "example": "MIT", "description": "Kept with the version"},
    "duplicates": {
        "type": "string", "enum": ["keep", "drop"], "default": "keep", "description": "Rows equal to an earlier row",
    },
    "bad_rows": {
        "type": "string", "enum": ["fail", "drop"], "default": "fail",
        "description": "Rows that cannot be read: an error that names them, or left out and counted",
    },
}  # fmt: skip
_FILE_SCHEMA = {
    "type": "string",
    "format": "binary",
    "description": "JSON Lines, CSV or Parquet; the first two also as .gz or .zst",
}
_UPLOAD: dict[str, Any] = {
    "parameters": [
        {
            "name": name, "in": "query", "required": False, "description": schema["description"],
            "schema": {key: value for key, value in schema.items() if key != "description"},
        }
        for name, schema in _FIELD_SCHEMAS.items()
    ],
    "requestBody": {
        "required": True,
        "description": "The file itself (with any content type), or a form with it as `file`, whose fields go before the query's.",
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["file"], "properties": {"file": _FILE_SCHEMA, **_FIELD_SCHEMAS}}
            },
            "application/octet-stream": {"schema": _FILE_SCHEMA, "example": _JSONL_EXAMPLE},
            "text/csv": {"schema": _FILE_SCHEMA, "example": _CSV_EXAMPLE},
        },
    },
}  # fmt: skip
_SAME = {"model": UploadAnswer, "description": "The dataset had these very rows already: `created` is false"}
_LINES = {"content": {"application/x-ndjson": {"schema": {"type": "string"}, "example": _JSONL_EXAMPLE}}}


def router(database: Database, store: ArtifactStore, adding: Adding) -> APIRouter:
    """Return the routes under ``/platform/datasets``."""
    routes = APIRouter(prefix="/platform/datasets", tags=["datasets"])
    _adding(routes, adding)
    _reading(routes, database)
    _looking(routes, database, store)
    return routes


def _adding(routes: APIRouter, adding: Adding) -> None:
    @routes.post(
        "",
        summary="Upload a dataset version",
        status_code=201,
        openapi_extra=_UPLOAD,
        responses={200: _SAME, **problems(400, 401, 413, 415, 422, 429, 503, 507)},
    )
    async def add_dataset(
        request: Request,
        response: Response,
        caller: Writer,
        idempotency_key: Annotated[
            str | None, Header(description="The same key and body again: the same answer", json_schema_extra=KEY_SCHEMA)
        ] = None,
    ) -> UploadAnswer:
        """Stream a file up; it becomes the next version of the named dataset, unless a version has these rows already.

        Every row is checked; what is wrong is named by line and column, and then nothing is kept.
        """
        content_type = request.headers.get("content-type", "")
        given = dict(request.query_params)
        answer = await adding.add(caller.project_id, _body(request), content_type, given, idempotency_key)
        response.status_code = 201 if answer.created else 200
        return answer


async def _body(request: Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect:
        raise MalformedRequest("the upload was cut", where="body", hint="send it again") from None


def _reading(routes: APIRouter, database: Database) -> None:
    @routes.get("", summary="List datasets", responses=problems(401, 422, 503))
    async def list_datasets(
        caller: Reader,
        after: Annotated[str | None, Query(max_length=63, description="Name after which the page starts")] = None,
        limit: Limit = DEFAULT_LIMIT,
    ) -> Page[DatasetVersionView]:
        """List the project's datasets by name, each as its newest version."""
        async with database.read() as session:
            return await service.page(session, caller.project_id, after, limit)

    @routes.get("/resolve", summary="Resolve a reference", responses=problems(401, 404, 422, 503))
    async def resolve_dataset(
        caller: Reader,
        ref: Annotated[
            str, Query(max_length=200, description="`reviews`, `reviews@2`, or an id", examples=["reviews@2"])
        ],
    ) -> DatasetVersionView:
        """Give the version that a reference in a spec or a parameter means now; without a number, the newest."""
        async with database.read() as session:
            return await service.resolve(session, caller.project_id, ref)

    @routes.get("/{dataset}", summary="Show a dataset", responses=problems(401, 404, 422, 503))
    async def show_dataset(caller: Reader, dataset: Reference) -> DatasetView:
        """Show the newest (or the named) version, what was found in its rows, and the 100 newest versions."""
        async with database.read() as session:
            return await service.dataset(session, caller.project_id, dataset)

    @routes.delete("/{dataset}", summary="Delete a dataset", status_code=204, responses=problems(401, 404, 422, 503))
    async def delete_dataset(caller: Writer, dataset: Name) -> None:
        """Forget a dataset with all its versions. Its files stay as long as an execution or a model refers to them."""
        async with database.write() as session:
            await service.delete(session, caller.project_id, dataset)

    @routes.get("/{dataset}/versions", summary="List a dataset's versions", responses=problems(401, 404, 422, 503))
    async def list_versions(
        caller: Reader,
        dataset: Name,
        after: Annotated[
            int | None, Query(ge=1, le=999_999_999, description="Number below which the page starts")
        ] = None,
        limit: Limit = DEFAULT_LIMIT,
    ) -> Page[DatasetVersionView]:
        """List a dataset's versions, newest first."""
        async with database.read() as session:
            return await service.versions(session, caller.project_id, dataset, after, limit)

    @routes.get("/{dataset}/versions/{version}", summary="Show a version", responses=problems(401, 404, 422, 503))
    async def show_version(caller: Reader, dataset: Name, version: Number) -> DatasetVersionView:
        """Show a version and what was found in its rows."""
        async with database.read() as session:
            return await service.version(session, caller.project_id, dataset, version)


def _looking(routes: APIRouter, database: Database, store: ArtifactStore) -> None:
    reading = RowReading()

    async def find(caller: Principal, dataset: str, version: str) -> DatasetVersionView:
        async with database.read() as session:
            return await service.version(session, caller.project_id, dataset, version)

    @routes.get(
        "/{dataset}/versions/{version}/preview", summary="Look at rows", responses=problems(401, 404, 422, 429, 503)
    )
    async def preview_rows(
        caller: Reader,
        dataset: Name,
        version: Number,
        offset: Annotated[int, Query(ge=0, le=1_000_000_000, description="Rows to skip")] = 0,
        limit: Annotated[int, Query(ge=1, le=200, description="Rows at most")] = 20,
    ) -> Preview:
        """Give rows as they are stored. Fewer than `limit` come when they are long; `next` says where to go on."""
        found = await find(caller, dataset, version)

        def look() -> Preview:
            return contents.preview(store.open(found.artifact, verify=False), found.card.rows, offset, limit)

        return await reading.run(caller.project_id, look)

    @routes.get(
        "/{dataset}/versions/{version}/download",
        summary="Download the rows",
        response_class=FileResponse,
        responses={200: {"description": "One row a line", **_LINES}, **problems(401, 404, 422, 429, 500, 503)},
    )
    async def download_rows(caller: Reader, dataset: Name, version: Number) -> FileResponse:
        """Stream the version as JSON Lines, after checking that its bytes are those that were published."""
        found = await find(caller, dataset, version)
        folder = await reading.run(caller.project_id, partial(store.open, found.artifact))
        headers = {"etag": f'"{found.card.rows_hash}"', "x-content-type-options": "nosniff"}
        name = f"{found.name}-{found.version}.jsonl"
        return FileResponse(folder / DATA_FILE, media_type="application/x-ndjson", filename=name, headers=headers)

    @routes.get(
        "/{dataset}/versions/{version}/diff/{other}",
        summary="Compare two versions",
        responses=problems(401, 404, 413, 422, 429, 503),
    )
    async def compare_versions(caller: Reader, dataset: Name, version: Number, other: Number) -> Difference:
        """Count the rows that `other` has and `version` has not, and the other way round, and show the first 20."""
        a, b = await find(caller, dataset, version), await find(caller, dataset, other)

        def compare() -> Difference:
            one, two = ((view.version, store.open(view.artifact, verify=False)) for view in (a, b))
            return contents.difference(one, two)

        return await reading.run(caller.project_id, compare)
