"""What components offered when they were last seen."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand the schema."""
    json = sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql")
    op.create_table(
        "component_offers",
        sa.Column("component_type", sa.String(100), nullable=False),
        sa.Column("kinds", json, nullable=False),
        sa.Column("away_since", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("component_type", name=op.f("pk_component_offers")),
    )


def downgrade() -> None:
    """Not offered: a schema only grows; go back by restoring a backup."""
    raise NotImplementedError("restore a backup")
