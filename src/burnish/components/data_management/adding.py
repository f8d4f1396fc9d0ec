"""From a request's body to a new dataset version: received, read in a process of its own, published, recorded."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from burnish.components.data_management import service
from burnish.components.data_management.formats import safe_name
from burnish.components.data_management.ingest import ingest
from burnish.components.data_management.make_version import NewVersion, UploadOptions
from burnish.components.data_management.schemas import NAME_PATTERN, UploadAnswer
from burnish.components.data_management.uploads import Spool, receive
from burnish.core.configuration import Current, of_settings
from burnish.core.errors import Busy, FieldProblem, InvalidRequest
from burnish.core.settings import Settings
from burnish.core.specs.base import digest_of
from burnish.infra import idempotency
from burnish.infra.artifact_store.protocol import ArtifactStore
from burnish.infra.database import Database
from burnish.infra.home import disk_free, require_disk
from burnish.infra.storable import unstorable
from burnish.platform.identity import audit

ROUTE = "POST /platform/datasets"
OPTION_FIELDS = ("format", "columns", "licence", "duplicates", "bad_rows")
_FIELDS = {"name", "filename", *OPTION_FIELDS}
_RESERVED = {"resolve", "latest"}
_AT_ONCE = 2
_WAITING = 32
_OF_A_PROJECT = 16


class Adding:
    """Adds versions: at most two files are read at once, and 32 uploads may be under way, 16 of them a project's.

    Nothing of an upload remains when it fails or its request is cancelled.
    """

    def __init__(
        self, database: Database, store: ArtifactStore, settings: Settings, configuration: Current | None = None
    ) -> None:
        self._database = database
        self._store = store
        self._settings = settings
        self._configuration = configuration or of_settings(settings)
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._under_way: Counter[str] = Counter()

    async def add(
        self, project_id: str, body: AsyncIterator[bytes], content_type: str, given: Mapping[str, str], key: str | None
    ) -> UploadAnswer:
        """Receive a body and return the version that has its rows: a new one, or the one that had them already.

        Args:
            project_id: The caller's.
            body: The file, or a form with it.
            content_type: Of the body.
            given: What the query says; a form's fields go before it.
            key: The request's ``Idempotency-Key``.

        Raises:
            BurnishError: see ``make_version``; also OutOfDisk, Busy, MalformedRequest (a cut or broken form).
        """
        if key is not None:
            idempotency.check_key(key)
        own = self._under_way[project_id]
        if own >= _OF_A_PROJECT or self._under_way.total() >= _WAITING:
            whose = f"{own} uploads of this project" if own >= _OF_A_PROJECT else f"{_WAITING} uploads"
            raise Busy(f"{whose} are under way", hint="send it again in a while", retry_after=5)
        self._under_way[project_id] += 1
        try:
            async with self._spool() as spool:
                fields = {**given, **await receive(body, content_type, spool)}
                name, options = parse_fields(fields)
                body_digest = digest_of([spool.digest, name, options.model_dump()])
                async with self._turns:
                    return await self._read(project_id, spool, name, options, key, body_digest)
        finally:
            self._under_way[project_id] -= 1
            if not self._under_way[project_id]:
                del self._under_way[project_id]

    def _spool(self) -> AbstractAsyncContextManager[Spool]:
        now = self._configuration()
        return Spool(self._settings.home / "uploads", now.gateway.max_upload_bytes, now.jobs.disk_reserve_bytes)

    async def _read(
        self, project_id: str, spool: Spool, name: str, options: UploadOptions, key: str | None, body_digest: str
    ) -> UploadAnswer:
        staged = await asyncio.to_thread(self._stage, spool.size)
        try:
            room = await asyncio.to_thread(disk_free, staged) - self._configuration().jobs.disk_reserve_bytes
            made = await ingest(spool.descriptor, options, staged, room)
            return await self._record(project_id, staged, name, made, key, body_digest)
        finally:
            await asyncio.shield(asyncio.to_thread(self._store.discard, staged))

    def _stage(self, size: int) -> Path:
        staged = self._store.stage("dataset")
        try:
            require_disk(staged, self._configuration().jobs.disk_reserve_bytes, size)
        except BaseException:
            self._store.discard(staged)
            raise
        return staged

    async def _record(
        self, project_id: str, staged: Path, name: str, made: NewVersion, key: str | None, body_digest: str
    ) -> UploadAnswer:
        async with self._database.read() as session:
            same = await service.known(session, project_id, name, made)
        artifact = await asyncio.to_thread(self._store.publish, staged, "dataset") if same is None else same.artifact
        async with self._database.write() as session:
            if key is not None and (
                stored := await idempotency.remembered(session, project_id, key, ROUTE, body_digest)
            ):
                return UploadAnswer.model_validate(stored.body)
            answer = same or await service.add(session, project_id, name, made, artifact)
            audit.about(f"{answer.name}@{answer.version}", created=answer.created)
            if key is not None:
                status = 201 if answer.created else 200
                body = answer.model_dump(mode="json")
                await idempotency.remember(session, project_id, key, ROUTE, body_digest, status, body)
        return answer


def parse_fields(fields: Mapping[str, str]) -> tuple[str, UploadOptions]:
    """Return the dataset's name and the options that the texts of a query or form mean.

    Raises:
        InvalidRequest: a field that is not known or not right; ``problems`` names each.
    """
    given = {name: value for name, value in fields.items() if value != ""}
    problems = [
        FieldProblem(
            where=field or "body", message=f"there is no field {field!r}", hint=f"fields: {', '.join(sorted(_FIELDS))}"
        )
        for field in given
        if field not in _FIELDS
    ]
    file_name = safe_name(given.get("filename", ""))
    values: dict[str, Any] = {name: given[name] for name in OPTION_FIELDS if name in given}
    name = given.get("name") or name_from(file_name)
    try:
        name = check_name(name)
        if "columns" in values:
            values["columns"] = parse_columns(values["columns"])
    except InvalidRequest as error:
        problems.append(FieldProblem(where=error.where or "body", message=error.message, hint=error.hint))
        values.pop("columns", None)
    try:
        options = UploadOptions.model_validate({"file_name": file_name, **values})
    except ValidationError as error:
        problems += [
            FieldProblem(where=".".join(map(str, detail["loc"])), message=str(detail["msg"]))
            for detail in error.errors()
        ]
    problems += (problem for field, value in values.items() for problem in unstorable(value, field))
    if problems:
        raise InvalidRequest(problems[0].message, where=problems[0].where, hint=problems[0].hint, problems=problems)
    return name, options


def check_name(name: str) -> str:
    """Return the name of a dataset if it can be one. Raises InvalidRequest."""
    if not re.fullmatch(NAME_PATTERN[1:-1], name) or name in _RESERVED or name.startswith("ds_"):
        raise InvalidRequest(
            f"{name[:80]!r} cannot be a dataset's name" if name else "the dataset has no name",
            where="name",
            hint="1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit; not ds_..., resolve, latest",
        )
    return name


def name_from(file_name: str) -> str:
    """Return the name that a file without another gives its dataset: its own, to the first dot, made fit."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", file_name.split(".")[0]).strip("-_")[:63]


def parse_columns(text: str) -> dict[str, str]:
    """Return the mapping that ``text=review,label=stars`` or a JSON object of the same means. Raises InvalidRequest."""
    hint = "write text=review,label=stars, or a JSON object"
    if text.lstrip().startswith("{"):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise InvalidRequest("columns is not a JSON object", where="columns", hint=hint) from None
        if not all(isinstance(theirs, str) for theirs in value.values()):
            raise InvalidRequest("columns maps names to names", where="columns", hint=hint)
        return dict(value)
    columns = {}
    for part in text.split(","):
        ours, equals, theirs = part.partition("=")
        if not equals or not ours.strip() or not theirs.strip():
            raise InvalidRequest(f"{part[:60]!r} in columns is not name=name", where="columns", hint=hint)
        columns[ours.strip()] = theirs.strip()
    return columns
