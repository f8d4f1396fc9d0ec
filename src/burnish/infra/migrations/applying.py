"""What of the history needs Alembic, whose import costs a start a tenth of a second: applying revisions, and comparing."""

from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData
from sqlalchemy.engine import Connection


def apply(connection: Connection, folder: str, version_table: str, metadata: MetaData) -> None:
    """Apply every revision in ``folder`` that the database lacks, in the connection's transaction."""
    script = ScriptDirectory(folder)

    def steps(revision: Any, _context: Any) -> Any:
        return script._upgrade_revs("head", revision)

    with EnvironmentContext(Config(), script, fn=steps, destination_rev="head") as environment:
        environment.configure(
            connection=connection, target_metadata=metadata, version_table=version_table, transactional_ddl=True
        )
        environment.run_migrations()


def compare(connection: Connection, version_table: str, metadata: MetaData) -> list[Any]:
    """Return where the database differs from the tables in the code, in Alembic's form."""
    context = MigrationContext.configure(connection, opts={"version_table": version_table, "compare_type": True})
    return list(compare_metadata(context, metadata))
