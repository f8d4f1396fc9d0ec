"""``Idempotency-Key``: a creating request that is sent again gets the answer it got before.

Invariant: the key is claimed, the object made and the answer remembered in one transaction, so that of any number of
duplicates, concurrent ones included, exactly one does the work.
"""

from burnish.infra.idempotency.store import (
    KEY_SCHEMA,
    StoredResponse,
    body_digest,
    check_key,
    prune,
    remember,
    remembered,
)

__all__ = ["KEY_SCHEMA", "StoredResponse", "body_digest", "check_key", "prune", "remember", "remembered"]
