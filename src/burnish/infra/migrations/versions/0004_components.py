"""Leases, probes and recovery of instances."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand the schema."""
    for column in _columns():
        op.add_column("platform_components", column)
    op.create_index(op.f("ix_platform_components_node"), "platform_components", ["node"], unique=False)


def _columns() -> list[sa.Column[object]]:
    document = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    return [
        sa.Column("source", sa.String(length=20), server_default="registered", nullable=False),
        sa.Column("found_by", sa.String(length=500), nullable=True),
        sa.Column("node", sa.String(length=255), nullable=True),
        sa.Column("process", sa.String(length=100), nullable=True),
        sa.Column("generation", sa.Integer(), server_default="0", nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=True),
        sa.Column("beat_until", sa.Float(), nullable=True),
        sa.Column("state_since", sa.Float(), nullable=True),
        sa.Column("successes", sa.Integer(), server_default="0", nullable=False),
        sa.Column("problem_kind", sa.String(length=40), nullable=True),
        sa.Column("alerted", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("evidence", document, nullable=True),
        sa.Column("protocol_version", sa.String(length=20), nullable=True),
        sa.Column("kinds", document, nullable=True),
        sa.Column("description_digest", sa.String(length=80), nullable=True),
        sa.Column("weight", sa.Float(), nullable=True),
        sa.Column("drain_until", sa.Float(), nullable=True),
        sa.Column("restarts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("restart_asked_at", sa.Float(), nullable=True),
        sa.Column("restart_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("moved_at", sa.Float(), nullable=True),
        sa.Column("actions", document, nullable=True),
    ]


def downgrade() -> None:
    """Not offered: a schema only grows; go back by restoring a backup."""
    raise NotImplementedError("restore a backup")
