"""Write a revision from the tables: ``python -m burnish.infra.migrations.generate burnish.wiring:metadata``.

Without ``--message`` it writes ``0001_initial.py`` anew (until the first release; afterwards that file is history).
With one it writes the next revision: what the tables have and the history lacks. Read it before committing it:
a rename looks like a drop and an add, and a revision only expands what running servers use.
"""

import argparse
import asyncio
import importlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from alembic.autogenerate import produce_migrations, render_python_code
from alembic.runtime.migration import MigrationContext
from sqlalchemy import JSON, BigInteger, MetaData
from sqlalchemy.engine import Connection

from burnish.infra.database import Database, UtcDateTime
from burnish.infra.migrations.history import VERSION_TABLE, revisions, upgrade

_VERSIONS = Path(__file__).parent / "versions"

_TEMPLATE = '''"""{message}."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "{revision}"
down_revision = {down_revision}
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand the schema."""
    {upgrade}


def downgrade() -> None:
    """Not offered: a schema only grows; go back by restoring a backup."""
    raise NotImplementedError("restore a backup")
'''


def main(arguments: list[str] | None = None) -> int:
    """Generate; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m burnish.infra.migrations.generate", description=__doc__)
    parser.add_argument("metadata", help="module:attribute of the MetaData (or of a function that returns it)")
    parser.add_argument("--message", help="what the new revision does; without it, 0001_initial is written anew")
    options = parser.parse_args(arguments)
    path = asyncio.run(generate(_load(options.metadata), options.message))
    sys.stdout.write(f"wrote {path}\n")
    return 0


async def generate(metadata: MetaData, message: str | None = None, versions: Path = _VERSIONS) -> Path:
    """Write a revision into ``versions`` and return its path. See the module."""
    initial = message is None
    down_revision = None if initial else revisions()[-1]
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite+aiosqlite:///{folder}/empty.db")
        try:
            if not initial:
                await upgrade(database, metadata)
            async with database.engine.connect() as connection:
                body = await connection.run_sync(_render, metadata)
        finally:
            await database.dispose()
    number = 1 if down_revision is None else int(down_revision) + 1
    slug = re.sub(r"[^a-z0-9]+", "_", (message or "initial").lower()).strip("_")[:40]
    path = versions / f"{number:04d}_{slug}.py"
    text = _TEMPLATE.format(
        message=(message or "The first schema").rstrip("."), revision=f"{number:04d}",
        down_revision=repr(down_revision), upgrade=body,
    )  # fmt: skip
    if "postgresql." not in text:
        text = text.replace("from sqlalchemy.dialects import postgresql\n", "")
    path.write_text(text)
    _format(path)
    return path


def _load(target: str) -> MetaData:
    module, _, attribute = target.partition(":")
    found = getattr(importlib.import_module(module), attribute or "metadata")
    metadata = found() if callable(found) and not isinstance(found, MetaData) else found
    if not isinstance(metadata, MetaData):
        raise SystemExit(f"{target} is no MetaData")
    return metadata


def _render(connection: Connection, metadata: MetaData) -> str:
    context = MigrationContext.configure(
        connection, opts={"version_table": VERSION_TABLE, "compare_type": True, "target_metadata": metadata}
    )
    script = produce_migrations(context, metadata)
    assert script.upgrade_ops is not None
    body = render_python_code(script.upgrade_ops, render_item=_render_type, migration_context=context)
    return re.sub(r"^\s*# ###.*\n?", "", body, flags=re.MULTILINE).strip()


def _render_type(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """Render our own types as SQLAlchemy's, so that a revision depends on none of our code."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(item, BigInteger) and "sqlite" in item._variant_mapping:
        return 'sa.BigInteger().with_variant(sa.Integer(), "sqlite")'
    if kind == "type" and isinstance(item, JSON) and "postgresql" in item._variant_mapping:
        return 'sa.JSON().with_variant(postgresql.JSONB(), "postgresql")'
    return False


def _format(path: Path) -> None:
    ruff = Path(sys.executable).with_name("ruff")
    if ruff.exists():
        subprocess.run([str(ruff), "format", "--quiet", str(path)], check=True)


if __name__ == "__main__":
    raise SystemExit(main())
