"""Queries over datasets and versions. Sessions belong to the caller; nothing here commits."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.components.data_management.tables import DatasetRow, DatasetVersionRow
from burnish.core.ids import new_id
from burnish.infra.database import utcnow

Pair = tuple[DatasetRow, DatasetVersionRow]


async def find(session: AsyncSession, project_id: str, name_or_id: str) -> DatasetRow | None:
    """Return the project's dataset of this id or name."""
    column = DatasetRow.id if name_or_id.startswith("ds_") else DatasetRow.name
    return await session.scalar(select(DatasetRow).where(DatasetRow.project_id == project_id, column == name_or_id))


async def claim(session: AsyncSession, project_id: str, name: str) -> DatasetRow:
    """Return the project's dataset of this name, made if need be, locked until the unit of work ends."""
    insert = postgresql_insert if session.get_bind().dialect.name == "postgresql" else sqlite_insert
    values = {"id": new_id("ds"), "project_id": project_id, "name": name, "last_version": 0, "created_at": utcnow()}
    await session.execute(insert(DatasetRow.__table__).values(values).on_conflict_do_nothing())  # type: ignore[arg-type]
    statement = select(DatasetRow).where(DatasetRow.project_id == project_id, DatasetRow.name == name)
    return (await session.execute(statement.with_for_update())).scalar_one()


async def names(session: AsyncSession, project_id: str, limit: int = 1000) -> Sequence[str]:
    """Return names of the project's datasets."""
    statement = select(DatasetRow.name).where(DatasetRow.project_id == project_id).order_by(DatasetRow.name)
    return (await session.scalars(statement.limit(limit))).all()


async def page(session: AsyncSession, project_id: str, after: str | None, limit: int) -> list[Pair]:
    """Return datasets with their newest versions, by name, after a name."""
    newest = (DatasetVersionRow.dataset_id == DatasetRow.id) & (DatasetVersionRow.version == DatasetRow.last_version)
    statement = select(DatasetRow, DatasetVersionRow).join(DatasetVersionRow, newest)
    statement = statement.where(DatasetRow.project_id == project_id)
    if after is not None:
        statement = statement.where(DatasetRow.name > after)
    return [
        (dataset, version)
        for dataset, version in await session.execute(statement.order_by(DatasetRow.name).limit(limit))
    ]


async def version(session: AsyncSession, dataset_id: str, number: int) -> DatasetVersionRow | None:
    """Return one version."""
    return await session.get(DatasetVersionRow, (dataset_id, number))


async def versions(
    session: AsyncSession, dataset_id: str, limit: int, before: int | None = None
) -> Sequence[DatasetVersionRow]:
    """Return versions, newest first, below a number."""
    statement = select(DatasetVersionRow).where(DatasetVersionRow.dataset_id == dataset_id)
    if before is not None:
        statement = statement.where(DatasetVersionRow.version < before)
    return (await session.scalars(statement.order_by(DatasetVersionRow.version.desc()).limit(limit))).all()


async def with_rows(session: AsyncSession, dataset_id: str, rows_hash: str, form: str) -> DatasetVersionRow | None:
    """Return the dataset's version with these very rows."""
    return await session.scalar(
        select(DatasetVersionRow).where(
            DatasetVersionRow.dataset_id == dataset_id,
            DatasetVersionRow.rows_hash == rows_hash,
            DatasetVersionRow.format == form,
        )
    )


async def add_version(
    session: AsyncSession, dataset: DatasetRow, digest: str, size_bytes: int, card: dict[str, Any]
) -> DatasetVersionRow:
    """Add the next version of a dataset that :func:`claim` returned."""
    dataset.last_version += 1
    created: datetime = utcnow()
    row = DatasetVersionRow(
        dataset_id=dataset.id, version=dataset.last_version, project_id=dataset.project_id, digest=digest,
        size_bytes=size_bytes, rows=card["rows"], rows_hash=card["rows_hash"], format=card["format"], card=card,
        created_at=created,
    )  # fmt: skip
    session.add(row)
    await session.flush()
    return row


async def remove(session: AsyncSession, dataset_id: str) -> list[int]:
    """Delete a dataset with its versions; return their numbers."""
    numbers = (
        await session.scalars(select(DatasetVersionRow.version).where(DatasetVersionRow.dataset_id == dataset_id))
    ).all()
    await session.execute(delete(DatasetVersionRow).where(DatasetVersionRow.dataset_id == dataset_id))
    await session.execute(delete(DatasetRow).where(DatasetRow.id == dataset_id))
    return list(numbers)
