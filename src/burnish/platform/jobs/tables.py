"""Tables of jobs: the jobs, the nodes that run them, and what else claims a node's resources."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Boolean, Float, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from burnish.infra.database import Base, JsonB, UtcDateTime, utcnow
from burnish.infra.reconcile import Reconciled

NEW_FOLDER = -1
"""As ``events_offset``: the job comes from another node, so what lies in its folder here is an earlier start's."""


class JobTable(Reconciled, Base):
    """A job: what is wanted of it, and what is so."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_state_node", "state", "node"),
        Index("ix_jobs_project_id_created_at", "project_id", "created_at"),
    )

    id: Mapped[str] = mapped_column(String(100), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(100))
    component_type: Mapped[str] = mapped_column(String(100))
    kind: Mapped[str] = mapped_column(String(100))
    run: Mapped[str | None] = mapped_column(String(255))
    """``module:function`` of heavy work; NULL is light work, advanced in the server."""
    spec_type: Mapped[str] = mapped_column(String(255), default="")
    spec: Mapped[dict[str, Any]] = mapped_column(JsonB, default=dict)
    spec_digest: Mapped[str] = mapped_column(String(80), default="")
    inputs: Mapped[list[dict[str, Any]]] = mapped_column(JsonB, default=list)
    resources: Mapped[dict[str, Any]] = mapped_column(JsonB, default=dict)
    priority: Mapped[int] = mapped_column(Integer, default=0)
    pausable: Mapped[bool] = mapped_column(Boolean, default=False)
    max_restarts: Mapped[int] = mapped_column(Integer, default=3)
    origin: Mapped[str | None] = mapped_column(String(255), index=True)

    state: Mapped[str] = mapped_column(String(20))
    pending_reason: Mapped[str | None] = mapped_column(Text)
    cancel_requested_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    pause_requested_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    paused_by_shutdown: Mapped[bool] = mapped_column(Boolean, default=False)
    queued_at: Mapped[float | None] = mapped_column(Float)
    """Epoch of the database's clock: the order of the queue."""

    node: Mapped[str | None] = mapped_column(String(255))
    directory: Mapped[str | None] = mapped_column(Text)
    gpu_indices: Mapped[list[int]] = mapped_column(JsonB, default=list)
    incarnation: Mapped[int] = mapped_column(Integer, default=0)
    """Rises with each start of a host; committed before the host is started."""
    restarts: Mapped[int] = mapped_column(Integer, default=0)
    pid: Mapped[int | None] = mapped_column(Integer)
    process_started: Mapped[int | None] = mapped_column(BigInteger)
    boot_id: Mapped[str | None] = mapped_column(String(64))
    checkpoint: Mapped[dict[str, Any] | None] = mapped_column(JsonB)
    checkpoint_step: Mapped[int | None] = mapped_column(Integer)
    events_offset: Mapped[int] = mapped_column(BigInteger, default=0)
    followed_at: Mapped[float | None] = mapped_column(Float)
    """Epoch of the database's clock: every event that a host wrote before was read. Written now and then."""
    ran_seconds: Mapped[float] = mapped_column(Float, default=0.0)
    """Of earlier incarnations, so that a restart does not renew the wall-time limit."""
    host_started_at: Mapped[float | None] = mapped_column(Float)

    progress: Mapped[dict[str, Any] | None] = mapped_column(JsonB)
    result: Mapped[dict[str, Any] | None] = mapped_column(JsonB)
    error: Mapped[dict[str, Any] | None] = mapped_column(JsonB)
    artifacts: Mapped[list[dict[str, Any]]] = mapped_column(JsonB, default=list)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class NodeTable(Base):
    """A machine that runs hosts. Locking all rows of this table is the lock of admission."""

    __tablename__ = "job_nodes"

    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    cpus: Mapped[int] = mapped_column(Integer)
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    gpus: Mapped[int] = mapped_column(Integer, default=0)
    disk_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    seen_at: Mapped[float] = mapped_column(Float, default=0.0)
    offers: Mapped[dict[str, dict[str, float]] | None] = mapped_column(JsonB)
    """By component type and process (its URL): when, by the database's clock, it last said that it offers that type."""


class HomeTable(Base):
    """A home, and the node that its processes are: two homes are two nodes, also on one machine."""

    __tablename__ = "homes"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Lies in the home, too."""
    node: Mapped[str] = mapped_column(String(255), unique=True)
    lost_at: Mapped[float | None] = mapped_column(Float)
    """Epoch of the database's clock: since then its jobs are others'. NULL while it is well; its next start ends that."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow)


class ClaimTable(Base):
    """Resources of a node that something other than a job holds: a serving replica, say."""

    __tablename__ = "job_claims"

    owner_kind: Mapped[str] = mapped_column(String(50), primary_key=True)
    owner_id: Mapped[str] = mapped_column(String(100), primary_key=True)
    node: Mapped[str] = mapped_column(String(255), index=True)
    resources: Mapped[dict[str, Any]] = mapped_column(JsonB)
