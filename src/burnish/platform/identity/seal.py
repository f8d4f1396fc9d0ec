"""The seal on the end of the audit log: who has the database alone can neither cut the log nor write it anew unseen.

The hashes of the entries need no key, so that anybody can check an export; so anybody can also compute those of another
log. The end bears a seal by a key of the installation that the database does not have (it has it encrypted at most).
Whoever finds the end without its seal does not go on as if nothing was: what is appended next says so, for good.

What it cannot show: that somebody put the log back to an end of before, of which they kept the row. Processes that run
notice that too, since they know how far the log had come; after a restart only a hash that was kept elsewhere does.
"""

import hashlib
import hmac

from sqlalchemy.ext.asyncio import AsyncSession

from burnish.infra.database import Database, database_of
from burnish.platform.identity.keys import derived, same

_SEAL = "burnish_audit_seal"


class Seal:
    """Seals and checks ends of the log, for one process."""

    def __init__(self, digest_key: bytes) -> None:
        self._key = derived(digest_key, b"burnish audit seal")
        self.newest = 0
        """Number of the newest entry that this process wrote: the log never ends before it again."""

    def of(self, number: int, hash_: str) -> str:
        """Return the seal of a log that ends with this entry."""
        return hmac.new(self._key, f"{number}:{hash_}".encode(), hashlib.sha256).hexdigest()

    def fits(self, number: int, hash_: str, seal: str | None, newest: int) -> bool:
        """Tell whether a log that ends like this was written by this installation, and has all up to ``newest``."""
        if number < newest:
            return False
        return number == 0 or (seal is not None and same(seal, self.of(number, hash_)))

    def wrote(self, number: int) -> None:
        """Note that an entry is committed, and is the last."""
        self.newest = number


def seal_with(database: Database, digest_key: bytes) -> None:
    """Have what this process appends sealed. The key is that of API keys: it stays when the secret key is exchanged."""
    database.info[_SEAL] = Seal(digest_key)


def seal_of(session: AsyncSession) -> Seal | None:
    """Return what seals the log of the session's database; None: this process has no key of it."""
    found = database_of(session).info.get(_SEAL)
    return found if isinstance(found, Seal) else None
