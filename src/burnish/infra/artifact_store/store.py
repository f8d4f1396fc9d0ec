"""Queries over artifacts and what refers to them. Nothing here commits; nothing here touches files."""

import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.errors import Unavailable
from burnish.core.specs.base import ArtifactKind, ArtifactRef, Digest
from burnish.infra import signals
from burnish.infra.artifact_store.tables import ArtifactReferenceRow, ArtifactRow, ArtifactStoreRow
from burnish.infra.database import after_commit, utcnow


@dataclass(frozen=True)
class Artifact:
    """An artifact as its project knows it."""

    project_id: str
    ref: ArtifactRef
    created_at: datetime
    produced_by: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


async def record(
    session: AsyncSession,
    project_id: str,
    ref: ArtifactRef,
    *,
    produced_by: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Make a published artifact known to the project. The first record of a digest stays as it is."""
    await _insert_once(
        session, ArtifactRow,
        project_id=project_id, digest=ref.digest, kind=ref.kind, size_bytes=ref.size_bytes,
        metadata=dict(metadata or {}), produced_by=produced_by, created_at=utcnow(),
    )  # fmt: skip
    after_commit(session, signals.ARTIFACTS_PUBLISHED.labels(ref.kind).inc)


async def refer(session: AsyncSession, project_id: str, digest: Digest, owner_kind: str, owner_id: str) -> None:
    """Keep the artifact for as long as the owner refers to it. Again is harmless."""
    await _insert_once(
        session, ArtifactReferenceRow,
        project_id=project_id, digest=digest, owner_kind=owner_kind, owner_id=owner_id, created_at=utcnow(),
    )  # fmt: skip


async def release(session: AsyncSession, owner_kind: str, owner_id: str) -> None:
    """Drop every reference of this owner."""
    await session.execute(
        delete(ArtifactReferenceRow).where(
            ArtifactReferenceRow.owner_kind == owner_kind, ArtifactReferenceRow.owner_id == owner_id
        )
    )


async def find(session: AsyncSession, project_id: str, digest: Digest) -> Artifact | None:
    """Return the project's artifact, or None: another project's is not found."""
    row = await session.scalar(
        select(ArtifactRow).where(ArtifactRow.project_id == project_id, ArtifactRow.digest == digest)
    )
    return None if row is None else _artifact(row)


async def known(session: AsyncSession, project_id: str, digests: Collection[Digest]) -> dict[Digest, Artifact]:
    """Return those of the artifacts that the project has, by digest."""
    wanted = sorted(set(digests))
    found: dict[Digest, Artifact] = {}
    for start in range(0, len(wanted), 500):
        some = select(ArtifactRow).where(
            ArtifactRow.project_id == project_id, ArtifactRow.digest.in_(wanted[start : start + 500])
        )
        found.update({row.digest: _artifact(row) for row in await session.scalars(some)})
    return found


async def live_digests(session: AsyncSession) -> set[Digest]:
    """Return every digest that something refers to: what a sweep must leave."""
    return set(await session.scalars(select(ArtifactReferenceRow.digest).distinct()))


async def forget(session: AsyncSession, digests: list[Digest]) -> None:
    """Delete the rows of artifacts whose objects a sweep removed (and that nothing refers to)."""
    for start in range(0, len(digests), 500):
        await session.execute(
            delete(ArtifactRow)
            .where(ArtifactRow.digest.in_(digests[start : start + 500]))
            .where(~select(ArtifactReferenceRow).where(ArtifactReferenceRow.digest == ArtifactRow.digest).exists())
            .execution_options(synchronize_session=False)
        )


async def database_id(session: AsyncSession) -> str | None:
    """Return the id of the database; None before :func:`claim_store` gave it one."""
    return await session.scalar(select(ArtifactStoreRow.database_id))


async def claim_store(session: AsyncSession, store_id: str, url: str) -> str:
    """Tie the database to its store on the first start; later, refuse any other. Returns the database's id.

    Raises:
        Unavailable: this process sees another store than the one that the database's artifacts are in.
    """
    await _insert_once(
        session, ArtifactStoreRow,
        id=1, store_id=store_id, url=url[:1000], database_id=f"db_{uuid.uuid4().hex}", created_at=utcnow(),
    )  # fmt: skip
    known = (await session.scalars(select(ArtifactStoreRow))).one()
    if known.store_id != store_id:
        raise Unavailable(
            f"this database's artifacts are in another store: {known.url} (id {known.store_id}), not in {url} (id {store_id})",
            where="BURNISH_ARTIFACT_URL",
            hint="point BURNISH_ARTIFACT_URL of every server at the same shared folder, or restore that folder",
        )
    return known.database_id


async def known_store(session: AsyncSession) -> tuple[str, str] | None:
    """Return id and URL of the store that the database's artifacts are in; None before there is one."""
    row = (await session.execute(select(ArtifactStoreRow.store_id, ArtifactStoreRow.url))).first()
    return None if row is None else (row[0], row[1])


async def key_fingerprint(session: AsyncSession) -> str | None:
    """Return the fingerprint of the installation's secret key; None before the first process has claimed it."""
    return await session.scalar(select(ArtifactStoreRow.key_fingerprint))


async def claim_key(session: AsyncSession, fingerprint: str) -> str:
    """Note the fingerprint of the secret key unless one is noted already; return the one that counts."""
    statement = update(ArtifactStoreRow).where(ArtifactStoreRow.key_fingerprint.is_(None))
    await session.execute(statement.values(key_fingerprint=fingerprint).execution_options(synchronize_session=False))
    return str(await key_fingerprint(session))


async def change_key(session: AsyncSession, fingerprint: str) -> None:
    """Note that from now on processes start with the secret key of this fingerprint."""
    statement = update(ArtifactStoreRow).values(key_fingerprint=fingerprint)
    await session.execute(statement.execution_options(synchronize_session=False))


async def _insert_once(
    session: AsyncSession, table: type[ArtifactRow | ArtifactReferenceRow | ArtifactStoreRow], **values: Any
) -> None:
    insert = postgresql_insert if session.get_bind().dialect.name == "postgresql" else sqlite_insert
    await session.execute(insert(table.__table__).values(values).on_conflict_do_nothing())  # type: ignore[arg-type]


def _artifact(row: ArtifactRow) -> Artifact:
    kind: ArtifactKind = row.kind  # type: ignore[assignment] # only `record` writes it, from an ArtifactRef
    return Artifact(
        row.project_id, ArtifactRef(digest=row.digest, kind=kind, size_bytes=row.size_bytes),
        row.created_at, row.produced_by, row.metadata_,
    )  # fmt: skip
