"""What happened, in order, to every object: one table, read again from any cursor and followed live.

Invariants: a reader that goes on from the last cursor it saw misses no committed event and sees none twice; an event is
appended in the transaction that makes it true; readers cost one query a process, and a slow one costs bounded memory.
"""

from burnish.infra.event_log.follow import EventLog
from burnish.infra.event_log.sse import SSE_HEADERS, sse, stream
from burnish.infra.event_log.store import NewEvent, append, append_all, check_cursor, latest, newest, prune, read

__all__ = [
    "SSE_HEADERS",
    "EventLog",
    "NewEvent",
    "append",
    "append_all",
    "check_cursor",
    "latest",
    "newest",
    "prune",
    "read",
    "sse",
    "stream",
]
