"""Homes as nodes, the fingerprint of the secret key."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand the schema."""
    op.create_table(
        "homes",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("node", sa.String(255), nullable=False),
        sa.Column("lost_at", sa.Float(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_homes")),
        sa.UniqueConstraint("node", name=op.f("uq_homes_node")),
    )
    json = sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql")
    op.add_column("job_nodes", sa.Column("offers", json, nullable=True))
    op.add_column("artifact_store", sa.Column("key_fingerprint", sa.String(64), nullable=True))


def downgrade() -> None:
    """Not offered: a schema only grows; go back by restoring a backup."""
    raise NotImplementedError("restore a backup")
