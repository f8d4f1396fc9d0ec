"""The table of instances."""

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import Boolean, Integer, String, Text, Uuid
from sqlalchemy.orm import Mapped, mapped_column

from burnish.infra.database import Base, JsonB, UtcDateTime, utcnow
from burnish.infra.reconcile import Reconciled


class ComponentTable(Reconciled, Base):
    """One running process that offers a component at an endpoint."""

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
    """Reachable only inside the process that registered it."""
    description: Mapped[dict[str, Any] | None] = mapped_column(JsonB)
    """Its ``/describe``, once it validated."""
    health: Mapped[dict[str, Any] | None] = mapped_column(JsonB)
    failures: Mapped[int] = mapped_column(Integer, default=0)
    """Probes failed in a row."""
    problem: Mapped[str | None] = mapped_column(Text)
