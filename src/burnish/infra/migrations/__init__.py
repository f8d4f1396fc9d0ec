"""The schema's history: one for both dialects, applied at start, under a lock, whole or not at all.

``versions/`` holds the revisions; ``python -m burnish.infra.migrations.generate`` writes them from the tables.
"""

from burnish.infra.migrations.history import VERSION_TABLE, differences, schema_problem, upgrade

__all__ = ["VERSION_TABLE", "differences", "schema_problem", "upgrade"]
