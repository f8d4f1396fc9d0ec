"""Queries over models, versions and aliases. Nothing here commits."""

from collections.abc import Collection, Sequence

from sqlalchemy import delete, func, or_, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.ids import new_id
from burnish.infra.database import utcnow
from burnish.platform.model_registry.tables import ModelAliasMoveRow, ModelAliasRow, ModelRow, ModelVersionRow


async def find_model(session: AsyncSession, project_id: str, name: str, *, lock: bool = False) -> ModelRow | None:
    """Return the project's model, locked against other writers if ``lock``."""
    statement = select(ModelRow).where(ModelRow.project_id == project_id, ModelRow.name == name)
    if lock:
        statement = statement.with_for_update()
    return (await session.execute(statement)).scalar_one_or_none()


async def ensure_model(session: AsyncSession, project_id: str, name: str) -> ModelRow:
    """Return the project's model, made if it is new, locked against other writers."""
    insert = postgresql_insert if session.get_bind().dialect.name == "postgresql" else sqlite_insert
    values = insert(ModelRow.__table__).values(  # type: ignore[arg-type]
        id=new_id("mdl"), project_id=project_id, name=name, description="", last_version=0, created_at=utcnow()
    )
    await session.execute(values.on_conflict_do_nothing())
    found = await find_model(session, project_id, name, lock=True)
    assert found is not None
    return found


async def models(session: AsyncSession, project_id: str, after: str | None, limit: int) -> Sequence[ModelRow]:
    """Return up to ``limit + 1`` models by name."""
    statement = select(ModelRow).where(ModelRow.project_id == project_id)
    if after is not None:
        statement = statement.where(ModelRow.name > after)
    return (await session.execute(statement.order_by(ModelRow.name).limit(limit + 1))).scalars().all()


async def versions(session: AsyncSession, model_id: str, before: int | None, limit: int) -> Sequence[ModelVersionRow]:
    """Return up to ``limit + 1`` versions, newest first."""
    statement = select(ModelVersionRow).where(ModelVersionRow.model_id == model_id)
    if before is not None:
        statement = statement.where(ModelVersionRow.version < before)
    return (await session.execute(statement.order_by(ModelVersionRow.version.desc()).limit(limit + 1))).scalars().all()


async def version(session: AsyncSession, model_id: str, number: int) -> ModelVersionRow | None:
    """Return one version."""
    statement = select(ModelVersionRow).where(ModelVersionRow.model_id == model_id, ModelVersionRow.version == number)
    return (await session.execute(statement)).scalar_one_or_none()


async def latest(session: AsyncSession, model_id: str) -> ModelVersionRow | None:
    """Return the newest version."""
    return next(iter(await versions(session, model_id, None, 1)), None)


async def same_artifacts(
    session: AsyncSession, model_id: str, digest: str, adapter_digest: str | None
) -> ModelVersionRow | None:
    """Return the version that has exactly these artifacts."""
    table = ModelVersionRow
    adapter = table.adapter_digest.is_(None) if adapter_digest is None else table.adapter_digest == adapter_digest
    statement = select(table).where(table.model_id == model_id, table.digest == digest, adapter)
    return (await session.execute(statement.order_by(table.version).limit(1))).scalar_one_or_none()


async def count_versions(session: AsyncSession, model_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return ``{model id: (how many versions, the newest)}``."""
    table = ModelVersionRow
    statement = (
        select(table.model_id, func.count(), func.max(table.version))
        .where(table.model_id.in_(model_ids))
        .group_by(table.model_id)
    )
    return {model: (int(count), int(newest)) for model, count, newest in await session.execute(statement)}


async def aliases(session: AsyncSession, model_ids: Sequence[str]) -> Sequence[ModelAliasRow]:
    """Return the aliases of these models."""
    statement = select(ModelAliasRow).where(ModelAliasRow.model_id.in_(model_ids)).order_by(ModelAliasRow.alias)
    return (await session.execute(statement)).scalars().all()


async def aliases_by_name(
    session: AsyncSession, project_id: str, names: Collection[str]
) -> Sequence[tuple[str, ModelAliasRow]]:
    """Return the aliases of a project's models of these names, each with its model's name."""
    statement = (
        select(ModelRow.name, ModelAliasRow)
        .join(ModelAliasRow, ModelAliasRow.model_id == ModelRow.id)
        .where(ModelRow.project_id == project_id, ModelRow.name.in_(names))
        .order_by(ModelRow.name, ModelAliasRow.alias)
    )
    return [(name, row) for name, row in await session.execute(statement)]


async def alias(session: AsyncSession, model_id: str, name: str) -> ModelAliasRow | None:
    """Return one alias."""
    return await session.get(ModelAliasRow, (model_id, name), populate_existing=True)


async def moves(session: AsyncSession, model_id: str, name: str | None = None) -> Sequence[ModelAliasMoveRow]:
    """Return the moves of an alias (or of all of a model's), oldest first."""
    statement = select(ModelAliasMoveRow).where(ModelAliasMoveRow.model_id == model_id)
    if name is not None:
        statement = statement.where(ModelAliasMoveRow.alias == name)
    return (await session.execute(statement.order_by(ModelAliasMoveRow.id))).scalars().all()


async def derived(
    session: AsyncSession, project_id: str, digests: Sequence[str], besides: int
) -> Sequence[tuple[str, int, str]]:
    """Return ``(model name, version, digest)`` of versions whose base or adapter is one of ``digests``."""
    table = ModelVersionRow
    statement = (
        select(ModelRow.name, table.version, table.digest)
        .join(ModelRow, ModelRow.id == table.model_id)
        .where(
            table.project_id == project_id,
            table.id != besides,
            or_(table.base_digest.in_(digests), table.adapter_digest.in_(digests)),
        )
        .order_by(ModelRow.name, table.version)
        .limit(1_000)
    )
    return [(name, number, digest) for name, number, digest in await session.execute(statement)]


async def delete_alias(session: AsyncSession, model_id: str, name: str) -> None:
    """Delete an alias."""
    await session.execute(delete(ModelAliasRow).where(ModelAliasRow.model_id == model_id, ModelAliasRow.alias == name))
