"""Which project has which artifact, and what refers to it."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from burnish.infra.database import Base, JsonB, UtcDateTime, utcnow


class ArtifactRow(Base):
    """An artifact as a project knows it. Two projects with the same content have a row each and share the object."""

    __tablename__ = "artifacts"
    __table_args__ = (UniqueConstraint("project_id", "digest"), Index(None, "digest"))

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    project_id: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(71))
    kind: Mapped[str] = mapped_column(String(32))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata", JsonB, default=dict)
    produced_by: Mapped[str | None] = mapped_column(String(64), default=None)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow)


class ArtifactReferenceRow(Base):
    """Something that needs an artifact to stay: an artifact without one is swept after its grace."""

    __tablename__ = "artifact_references"
    __table_args__ = (Index(None, "digest"), Index(None, "owner_kind", "owner_id"))

    project_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    digest: Mapped[str] = mapped_column(String(71), primary_key=True)
    owner_kind: Mapped[str] = mapped_column(String(32), primary_key=True)
    owner_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow)


class ArtifactStoreRow(Base):
    """The one store that belongs to this database, by the id that lies in the store, and the database's own id."""

    __tablename__ = "artifact_store"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, default=1)
    store_id: Mapped[str] = mapped_column(String(64))
    url: Mapped[str] = mapped_column(String(1000))
    database_id: Mapped[str] = mapped_column(String(64))
    """Made once with the database, whatever it is restored into; written into the store and into homes."""
    key_fingerprint: Mapped[str | None] = mapped_column(String(64), default=None)
    """Of the installation's secret key, so that a process with another one is refused; the key itself is in no row."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow)
