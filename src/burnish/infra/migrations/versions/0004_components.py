"""Leases, probes and recovery of instances."""

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand the schema."""


def downgrade() -> None:
    """Not offered: a schema only grows; go back by restoring a backup."""
    raise NotImplementedError("restore a backup")
