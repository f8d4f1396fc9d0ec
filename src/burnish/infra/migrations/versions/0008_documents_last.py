"""What instances say of themselves stands behind what is read of them all the time, on SQLite.

A row longer than a page goes on in a chain of pages, and SQLite walks through all of what stands before a column:
with a description of 20 KB in the middle that was most of what a list of instances cost. PostgreSQL keeps long values
apart from the row, so that their place does not matter there.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_TABLE = "platform_components"
_LAST = ("evidence", "actions", "description")
"""The longest last."""


def upgrade() -> None:
    """Write the table anew with these columns last; nothing else changes."""
    bind = op.get_bind()
    if bind.dialect.name != "sqlite":
        return
    before = [str(column["name"]) for column in sa.inspect(bind).get_columns(_TABLE) if column["name"] not in _LAST]
    with op.batch_alter_table(_TABLE, recreate="always", partial_reordering=[(*before, *_LAST)]):
        pass


def downgrade() -> None:
    """Not offered: a schema only grows; go back by restoring a backup."""
    raise NotImplementedError("restore a backup")
