"""The record of what third parties' components are asked to change: their own audit log, if they keep one, is not ours."""

from burnish.infra import logging as own_logging
from burnish.infra.database import Database
from burnish.platform.identity import audit
from burnish.platform.identity.principal import Principal

_LONGEST = 255


class Relayed:
    """Leaves the entries of requests that are passed on: their changes are in no transaction of ours."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def note(self, caller: Principal, component_type: str, route: str, path: str) -> None:
        """Leave an entry, committed on return: before a third party is asked for a change.

        Raises:
            Unavailable: it cannot be written now; what would leave no trace is not to be done.
        """
        entry = audit.Entry(
            caller.subject, "request:relayed", caller.project_id, component_type, route[:_LONGEST], caller.credential,
            own_logging.context().get("request_id"), {"path": path},
        )  # fmt: skip
        async with self._database.write() as session:
            await audit.append(session, [entry])
