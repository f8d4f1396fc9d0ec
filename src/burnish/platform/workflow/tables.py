"""Rows of executions and of the attempts of their steps."""

from datetime import datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import Float, ForeignKey, Index, Integer, String, Text, Uuid
from sqlalchemy import text as sql_text
from sqlalchemy.orm import Mapped, mapped_column

from burnish.core.states import ExecutionState, JobState
from burnish.infra.database import Base, JsonB, UtcDateTime, utcnow
from burnish.infra.reconcile import Reconciled


class WorkflowExecutionRow(Reconciled, Base):
    """One run of a definition. ``steps`` is authoritative for what is so of each step."""

    __tablename__ = "workflow_executions"
    __table_args__ = (
        Index(None, "project_id", "workflow_id"),
        Index(None, "project_id", "status"),
        Index(None, "workflow_type"),
    )

    id: Mapped[str] = mapped_column(Uuid(as_uuid=False), primary_key=True, default=lambda: str(uuid4()))
    workflow_id: Mapped[str] = mapped_column(String(255), unique=True)
    workflow_type: Mapped[str] = mapped_column(String(100))
    status: Mapped[str] = mapped_column(String(50), default=ExecutionState.PENDING)
    parameters: Mapped[dict[str, Any]] = mapped_column(JsonB, default=dict)
    """With defaults filled in and datasets and models resolved: what the expressions see."""
    steps: Mapped[dict[str, Any]] = mapped_column(JsonB, default=dict)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    completed_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)

    project_id: Mapped[str] = mapped_column(String(64))
    submitted_by: Mapped[str] = mapped_column(String(255), default="")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow)
    definition: Mapped[dict[str, Any]] = mapped_column(JsonB)
    definition_digest: Mapped[str] = mapped_column(String(71))
    given: Mapped[dict[str, Any]] = mapped_column(JsonB, default=dict)
    """The parameters as they were sent; a fork starts from these."""
    error: Mapped[dict[str, Any] | None] = mapped_column(JsonB, default=None)
    cancel_requested_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    pause_requested_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    retries: Mapped[int] = mapped_column(Integer, default=0)
    forked_from: Mapped[str | None] = mapped_column(String(255), default=None)


class StepAttemptRow(Base):
    """One try of a step (of one item, with ``foreach``). Committed before anything is submitted."""

    __tablename__ = "step_attempts"
    __table_args__ = (
        Index(None, "execution_id", "step", "item", "number", unique=True),
        Index(None, "state"),
        Index(None, "project_id", "cache_key"),
    )

    job_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Derived from execution, step, item and number: the same attempt is always the same job."""
    execution_id: Mapped[str] = mapped_column(
        Uuid(as_uuid=False), ForeignKey("workflow_executions.id", ondelete="CASCADE")
    )
    project_id: Mapped[str] = mapped_column(String(64))
    step: Mapped[str] = mapped_column(String(64))
    item: Mapped[int] = mapped_column(Integer, default=0)
    number: Mapped[int] = mapped_column(Integer)
    component: Mapped[str] = mapped_column(String(100))
    kind: Mapped[str] = mapped_column(String(100))
    spec: Mapped[dict[str, Any]] = mapped_column(JsonB, default=dict)
    state: Mapped[str] = mapped_column(String(20), default=JobState.QUEUED)
    """``queued`` until its component has taken the job, then ``running``, then how it ended."""
    cache_key: Mapped[str | None] = mapped_column(String(71), default=None)
    submitted_at: Mapped[float | None] = mapped_column(Float, default=None)
    stop: Mapped[str | None] = mapped_column(String(20), default=None)
    """Why its component is to cancel the job: ``cancel``, ``timeout`` or ``rejected``."""
    stop_delivered: Mapped[bool] = mapped_column(default=False, server_default=sql_text("false"))
    pause: Mapped[str] = mapped_column(String(20), default="", server_default="")
    """``asked`` -> ``delivered``; ``resume`` -> empty again."""
    approval: Mapped[dict[str, Any] | None] = mapped_column(JsonB, default=None)
    """What a person decided, for kind ``approve``."""
    note: Mapped[str | None] = mapped_column(Text, default=None)
    """What it waits for, where that is not its job."""
    result: Mapped[dict[str, Any] | None] = mapped_column(JsonB, default=None)
    error: Mapped[dict[str, Any] | None] = mapped_column(JsonB, default=None)
    reused_from: Mapped[str | None] = mapped_column(String(64), default=None)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)


class ComponentOfferRow(Base):
    """What a type of component offered when it was last seen, and since when none of its instances is known."""

    __tablename__ = "component_offers"

    component_type: Mapped[str] = mapped_column(String(100), primary_key=True)
    kinds: Mapped[list[dict[str, Any]]] = mapped_column(JsonB)
    away_since: Mapped[datetime | None] = mapped_column(UtcDateTime)
