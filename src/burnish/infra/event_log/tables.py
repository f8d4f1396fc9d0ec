"""The table of events."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from burnish.infra.database import Base, JsonB, UtcDateTime, utcnow


class EventRow(Base):
    """One event. Readers go by ``(xid, id)``; see ``store`` for why."""

    __tablename__ = "events"
    __table_args__ = (
        Index(None, "xid", "id"),
        Index(None, "subject", "xid", "id"),
        Index(None, "origin", "xid", "id"),
        Index(None, "at"),
    )

    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True
    )
    xid: Mapped[int] = mapped_column(BigInteger)
    """The transaction that appended it (PostgreSQL); 0 on SQLite."""
    project_id: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(255))
    origin: Mapped[str | None] = mapped_column(String(255), default=None)
    type: Mapped[str] = mapped_column(String(32))
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow)
    data: Mapped[dict[str, Any]] = mapped_column(JsonB, default=dict)
