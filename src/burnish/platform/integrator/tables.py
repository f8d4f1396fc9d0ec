"""The table of instances."""

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import Boolean, Float, Integer, String, Text, Uuid, false
from sqlalchemy.orm import Mapped, mapped_column

from burnish.infra.database import Base, JsonB, UtcDateTime, utcnow
from burnish.infra.reconcile import Reconciled


class ComponentTable(Reconciled, Base):
    """One running process that offers a component at an endpoint. Floats are seconds of the database's own clock."""

    __tablename__ = "platform_components"

    id: Mapped[str] = mapped_column(Uuid(as_uuid=False), primary_key=True, default=lambda: str(uuid.uuid4()))
    component_id: Mapped[str] = mapped_column(String(255), unique=True)
    component_type: Mapped[str] = mapped_column(String(100), index=True)
    name: Mapped[str] = mapped_column(String(255))
    version: Mapped[str] = mapped_column(String(50))
    status: Mapped[str | None] = mapped_column(String(50))
    health_endpoint: Mapped[str | None] = mapped_column(String(500))
    api_endpoint: Mapped[str | None] = mapped_column(String(500))
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata", JsonB)
    registered_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=utcnow)
    last_heartbeat: Mapped[datetime | None] = mapped_column(UtcDateTime)

    embedded: Mapped[bool] = mapped_column(Boolean, default=False)
    """Registered by a process of Burnish for what runs inside it."""
    description: Mapped[dict[str, Any] | None] = mapped_column(JsonB, deferred=True)
    """Its ``/describe``, once it validated. Large: loaded only where it is looked at."""
    health: Mapped[dict[str, Any] | None] = mapped_column(JsonB)
    failures: Mapped[int] = mapped_column(Integer, default=0)
    """Probes failed in a row."""
    problem: Mapped[str | None] = mapped_column(Text)

    source: Mapped[str] = mapped_column(String(20), default="registered", server_default="registered")
    """How it was found: ``embedded``, ``registered``, ``static``, ``dns`` or ``entry_point``."""
    found_by: Mapped[str | None] = mapped_column(String(500))
    """The entry of the configuration that names it (``static`` and ``dns``)."""
    node: Mapped[str | None] = mapped_column(String(255), index=True)
    """The machine whose jobs and replicas its process looks after (processes of Burnish only)."""
    process: Mapped[str | None] = mapped_column(String(100))
    """Names the incarnation: pid and start."""
    generation: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    """Rises with each registration that begins anew: an older incarnation's heartbeat is refused by it."""
    expires_at: Mapped[float | None] = mapped_column(Float)
    """Until then it counts as alive; every sign of life renews it."""
    beat_until: Mapped[float | None] = mapped_column(Float)
    """The same, renewed by its own heartbeats alone."""
    state_since: Mapped[float | None] = mapped_column(Float)
    successes: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    """Probes answered in a row."""
    problem_kind: Mapped[str | None] = mapped_column(String(40))
    alerted: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    """Its failing health check has been alerted, and not yet ended."""
    evidence: Mapped[dict[str, Any] | None] = mapped_column(JsonB)
    """What processes that call it saw lately, by process."""
    protocol_version: Mapped[str | None] = mapped_column(String(20))
    kinds: Mapped[list[str] | None] = mapped_column(JsonB)
    description_digest: Mapped[str | None] = mapped_column(String(80))
    weight: Mapped[float | None] = mapped_column(Float)
    drain_until: Mapped[float | None] = mapped_column(Float)
    """Deregistered: removed then."""
    restarts: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    """Restarts asked for since it last was well for long."""
    restart_asked_at: Mapped[float | None] = mapped_column(Float)
    """When the last restart was asked for."""
    restart_requested_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """A restart is wanted of whoever supervises its process; its next registration clears it."""
    moved_at: Mapped[float | None] = mapped_column(Float)
    """When the work of its node was given to others, in this episode of being lost."""
    actions: Mapped[list[dict[str, Any]] | None] = mapped_column(JsonB, deferred=True)
    """The last actions of recovery, newest last."""
