"""Rows of deployments, revisions and replicas."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Boolean, Float, ForeignKey, Integer, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from burnish.infra.database import Base, JsonB, UtcDateTime, utcnow
from burnish.infra.reconcile import Reconciled


class Deployment(Reconciled, Base):
    """What is wanted behind a name, and what is so."""

    __tablename__ = "deployments"
    __table_args__ = (UniqueConstraint("project_id", "name"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(63))
    node: Mapped[str] = mapped_column(String(255))
    """The machine whose server runs the replicas."""
    state: Mapped[str] = mapped_column(String(20))
    wanted: Mapped[int | None] = mapped_column(Integer)
    """Number of the revision that shall serve; NULL: none shall."""
    serving: Mapped[int | None] = mapped_column(Integer)
    """Number of the revision that requests go to."""
    last_number: Mapped[int] = mapped_column(Integer, default=0)
    deleted: Mapped[bool] = mapped_column(Boolean, default=False)
    error: Mapped[dict[str, Any] | None] = mapped_column(JsonB)
    """Why the last change did not come about."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow, onupdate=utcnow)


class Revision(Base):
    """An immutable snapshot of a deployment: its spec never changes, only how far it is."""

    __tablename__ = "revisions"
    __table_args__ = (UniqueConstraint("deployment_id", "number"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    deployment_id: Mapped[str] = mapped_column(ForeignKey("deployments.id", ondelete="CASCADE"))
    project_id: Mapped[str] = mapped_column(String(64))
    number: Mapped[int] = mapped_column(Integer)
    spec: Mapped[dict[str, Any]] = mapped_column(JsonB)
    job_id: Mapped[str | None] = mapped_column(String(64), index=True)
    """The job that asked for it."""
    state: Mapped[str] = mapped_column(String(20))
    replaced: Mapped[int | None] = mapped_column(Integer)
    """The revision that served when this one took over."""
    failures: Mapped[int] = mapped_column(Integer, default=0)
    """Replicas lost in a row."""
    failed_at: Mapped[float | None] = mapped_column(Float)
    """When the last replica was lost, in epoch seconds."""
    error: Mapped[dict[str, Any] | None] = mapped_column(JsonB)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """When it was last told to start."""
    ready_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """When it last began to serve."""


class Replica(Base):
    """One serving process, from the intent to start it until it is known to be gone."""

    __tablename__ = "replicas"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    deployment_id: Mapped[str] = mapped_column(ForeignKey("deployments.id", ondelete="CASCADE"), index=True)
    revision_id: Mapped[str] = mapped_column(ForeignKey("revisions.id", ondelete="CASCADE"))
    project_id: Mapped[str] = mapped_column(String(64))
    revision: Mapped[int] = mapped_column(Integer)
    state: Mapped[str] = mapped_column(String(20), index=True)
    node: Mapped[str] = mapped_column(String(255))
    socket: Mapped[str] = mapped_column(String(108))
    pid: Mapped[int | None] = mapped_column(Integer)
    process_started: Mapped[int | None] = mapped_column(BigInteger)
    """Start time of the process in clock ticks since the machine's boot."""
    boot_id: Mapped[str | None] = mapped_column(String(40))
    cpus: Mapped[int] = mapped_column(Integer)
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    error: Mapped[dict[str, Any] | None] = mapped_column(JsonB)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow)
    ready_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    draining_since: Mapped[float | None] = mapped_column(Float)
    """Epoch seconds."""
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
