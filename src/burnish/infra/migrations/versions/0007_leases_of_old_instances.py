"""Leases and nodes of the instances that were registered before there were any."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_LEASE_SECONDS = 30.0


def upgrade() -> None:
    """Have instances without a lease looked at, and lost if they are gone; those inside a server said which node."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    now = "(julianday('now') - 2440587.5) * 86400.0" if sqlite else "extract(epoch from clock_timestamp())"
    node = "json_extract(metadata, '$.node')" if sqlite else "metadata ->> 'node'"
    op.execute(
        f"UPDATE platform_components SET node = substr({node}, 1, 255) WHERE node IS NULL AND embedded"  # noqa: S608 - ours
    )
    op.execute(
        sa.text(
            f"UPDATE platform_components SET expires_at = {now} + :lease, state_since = coalesce(state_since, {now}), "  # noqa: S608 - ours
            "due_at = coalesce(due_at, 0) WHERE expires_at IS NULL"
        ).bindparams(lease=_LEASE_SECONDS)
    )


def downgrade() -> None:
    """Not offered: a schema only grows; go back by restoring a backup."""
    raise NotImplementedError("restore a backup")
