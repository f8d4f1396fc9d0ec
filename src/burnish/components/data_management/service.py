"""The rules of datasets. Sessions belong to the caller; nothing here commits or touches files."""

import difflib
import re

from sqlalchemy.ext.asyncio import AsyncSession

from burnish.components.data_management import store
from burnish.components.data_management.make_version import NewVersion
from burnish.components.data_management.schemas import (
    VERSION_PATTERN,
    DatasetVersionView,
    DatasetView,
    UploadAnswer,
    VersionSummary,
)
from burnish.components.data_management.tables import DatasetRow, DatasetVersionRow
from burnish.core.errors import NotFound
from burnish.core.pages import Page
from burnish.core.specs.base import ArtifactRef
from burnish.core.specs.data import DatasetCard
from burnish.infra.artifact_store import store as artifacts

_OWNER_KIND = "dataset_version"
_SHOWN_VERSIONS = 100


async def resolve(session: AsyncSession, project_id: str, reference: str) -> DatasetVersionView:
    """Return the version that ``reviews`` (newest), ``reviews@2``, ``reviews@latest`` or ``ds_...[@2]`` means.

    Raises:
        NotFound: no such dataset or version in the project; the hint has the nearest name, or the versions.
    """
    name, _, number = reference.partition("@")
    return _view(*await _get(session, project_id, name, number or "latest"))


async def version(session: AsyncSession, project_id: str, name_or_id: str, number: str) -> DatasetVersionView:
    """Return a version by number or ``latest``. Raises NotFound as :func:`resolve`."""
    return _view(*await _get(session, project_id, name_or_id, number))


async def dataset(session: AsyncSession, project_id: str, reference: str) -> DatasetView:
    """Return a dataset with its newest versions. Raises NotFound as :func:`resolve`."""
    shown = await resolve(session, project_id, reference)
    rows = await store.versions(session, shown.id, _SHOWN_VERSIONS)
    return DatasetView(**shown.model_dump(), versions=tuple(_summary(row) for row in rows))


async def page(session: AsyncSession, project_id: str, after: str | None, limit: int) -> Page[DatasetVersionView]:
    """Return datasets as their newest versions, by name."""
    pairs = await store.page(session, project_id, after, limit + 1)
    return Page.of([_view(*pair) for pair in pairs], limit, lambda view: view.name)


async def versions(
    session: AsyncSession, project_id: str, name_or_id: str, after: int | None, limit: int
) -> Page[DatasetVersionView]:
    """Return a dataset's versions, newest first. Raises NotFound as :func:`resolve`."""
    row, _ = await _get(session, project_id, name_or_id, "latest")
    found = await store.versions(session, row.id, limit + 1, after)
    return Page.of([_view(row, one) for one in found], limit, lambda view: str(view.version))


async def known(session: AsyncSession, project_id: str, name: str, made: NewVersion) -> UploadAnswer | None:
    """Return the dataset's version that has these very rows already."""
    row = await store.find(session, project_id, name)
    if row is None:
        return None
    same = await store.with_rows(session, row.id, made.card.rows_hash, made.card.format)
    return None if same is None else _answer(row, same, made, created=False)


async def add(
    session: AsyncSession, project_id: str, name: str, made: NewVersion, artifact: ArtifactRef
) -> UploadAnswer:
    """Make a published artifact the dataset's next version, unless a version has these rows already."""
    row = await store.claim(session, project_id, name)
    same = await store.with_rows(session, row.id, made.card.rows_hash, made.card.format)
    if same is not None:
        return _answer(row, same, made, created=False)
    card = made.card.model_dump(mode="json")
    added = await store.add_version(session, row, artifact.digest, artifact.size_bytes, card)
    metadata = {"dataset": name, "version": added.version, "rows": made.card.rows, "rows_hash": made.card.rows_hash}
    await artifacts.record(session, project_id, artifact, metadata=metadata)
    await artifacts.refer(session, project_id, artifact.digest, _OWNER_KIND, f"{row.id}@{added.version}")
    return _answer(row, added, made, created=True)


async def delete(session: AsyncSession, project_id: str, name_or_id: str) -> None:
    """Forget a dataset with its versions. Artifacts that something else refers to stay. Raises NotFound."""
    row, _ = await _get(session, project_id, name_or_id, "latest")
    for number in await store.remove(session, row.id):
        await artifacts.release(session, _OWNER_KIND, f"{row.id}@{number}")


async def _get(
    session: AsyncSession, project_id: str, name_or_id: str, number: str
) -> tuple[DatasetRow, DatasetVersionRow]:
    row = await store.find(session, project_id, name_or_id)
    if row is None:
        near = difflib.get_close_matches(name_or_id, await store.names(session, project_id), 1, 0.6)
        hint = f"did you mean {near[0]!r}?" if near else "`burnish dataset list` shows what there is"
        raise NotFound(f"there is no dataset {name_or_id!r}", where=name_or_id, hint=hint)
    known = re.fullmatch(VERSION_PATTERN, number)
    wanted = row.last_version if number == "latest" else int(number) if known else 0
    found = await store.version(session, row.id, wanted)
    if found is None:
        raise NotFound(
            f"dataset {row.name!r} has no version {number!r}",
            where=f"{name_or_id}@{number}",
            hint=f"its newest version is {row.last_version}",
        )
    return row, found


def _view(row: DatasetRow, found: DatasetVersionRow) -> DatasetVersionView:
    return DatasetVersionView(
        id=row.id,
        name=row.name,
        version=found.version,
        artifact=ArtifactRef(digest=found.digest, kind="dataset", size_bytes=found.size_bytes),
        card=DatasetCard.model_validate(found.card),
        created_at=found.created_at,
    )


def _answer(row: DatasetRow, found: DatasetVersionRow, made: NewVersion, *, created: bool) -> UploadAnswer:
    return UploadAnswer(**_view(row, found).model_dump(), created=created, dropped_rows=made.dropped_rows)


def _summary(found: DatasetVersionRow) -> VersionSummary:
    return VersionSummary(
        version=found.version,
        rows=found.rows,
        format=found.format,
        digest=found.digest,
        size_bytes=found.size_bytes,
        created_at=found.created_at,
    )
