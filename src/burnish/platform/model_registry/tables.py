"""Rows of models, their versions and their aliases."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from burnish.infra.database import Base, JsonB, UtcDateTime, utcnow


class ModelRow(Base):
    """A named model of a project."""

    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("project_id", "name"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(63))
    description: Mapped[str] = mapped_column(Text, default="")
    last_version: Mapped[int] = mapped_column(Integer, default=0)
    """The highest number ever given out: a deleted version's is not used again."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow)


class ModelVersionRow(Base):
    """An immutable version."""

    __tablename__ = "model_versions"
    __table_args__ = (
        UniqueConstraint("model_id", "version"),
        Index(None, "project_id", "digest"),
        Index(None, "project_id", "base_digest"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    project_id: Mapped[str] = mapped_column(String(64))
    model_id: Mapped[str] = mapped_column(String(64), ForeignKey("models.id", ondelete="CASCADE"))
    version: Mapped[int] = mapped_column(Integer)
    digest: Mapped[str] = mapped_column(String(71))
    """Of the artifact that is served."""
    adapter_digest: Mapped[str | None] = mapped_column(String(71), default=None)
    base_digest: Mapped[str | None] = mapped_column(String(71), default=None)
    artifact: Mapped[dict[str, Any]] = mapped_column(JsonB)
    adapter: Mapped[dict[str, Any] | None] = mapped_column(JsonB, default=None)
    card: Mapped[dict[str, Any] | None] = mapped_column(JsonB, default=None)
    metrics: Mapped[dict[str, Any]] = mapped_column(JsonB, default=dict)
    lineage: Mapped[dict[str, Any]] = mapped_column(JsonB, default=dict)
    licence: Mapped[str | None] = mapped_column(String(255), default=None)
    description: Mapped[str] = mapped_column(Text, default="")
    created_by: Mapped[str] = mapped_column(String(255), default="")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow)


class ModelAliasRow(Base):
    """A name that moves between versions."""

    __tablename__ = "model_aliases"

    model_id: Mapped[str] = mapped_column(String(64), ForeignKey("models.id", ondelete="CASCADE"), primary_key=True)
    alias: Mapped[str] = mapped_column(String(63), primary_key=True)
    version: Mapped[int] = mapped_column(Integer)
    moved_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow)


class ModelAliasMoveRow(Base):
    """One move of an alias; never changed."""

    __tablename__ = "model_alias_moves"
    __table_args__ = (Index(None, "model_id", "alias", "id"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    model_id: Mapped[str] = mapped_column(String(64), ForeignKey("models.id", ondelete="CASCADE"))
    alias: Mapped[str] = mapped_column(String(63))
    old_version: Mapped[int | None] = mapped_column(Integer, default=None)
    new_version: Mapped[int | None] = mapped_column(Integer, default=None)
    rolled_back: Mapped[bool] = mapped_column(default=False)
    by: Mapped[str] = mapped_column(String(255), default="")
    reason: Mapped[str] = mapped_column(Text, default="")
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow)
