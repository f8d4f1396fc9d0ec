"""What was refused, on its way into the audit log: bounded, so that whoever is refused a lot fills nothing."""

import time
from collections import Counter, OrderedDict
from dataclasses import dataclass, replace
from datetime import datetime

from pydantic import JsonValue

from burnish.infra.database import utcnow

_A_MINUTE = 60.0
_PER_MINUTE = 120
_PER_ACTOR = 30
"""Of one actor: nobody keeps what others are refused out of the log."""
_STRANGERS_PER_MINUTE = 20
"""Of those who did not come in: whoever sends made-up keys takes no room from what users are refused."""
_DISTINCT = 500


@dataclass(frozen=True)
class Refusal:
    """One refusal, or several of the same within a minute."""

    actor: str
    action: str
    project_id: str = "default"
    credential: str | None = None
    object_id: str = ""
    route: str = ""
    request_id: str | None = None
    details: tuple[tuple[str, JsonValue], ...] = ()
    times: int = 1
    at: datetime | None = None
    stranger: bool = False
    """Whether whoever was refused had not come in."""


class Refusals:
    """Collects refusals until they are written.

    The same refusal again within a minute is counted, not kept; of different ones, 120 a minute are kept of those who
    came in (30 of each) and 20 of strangers, and the rest is counted.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[tuple[str, ...], Refusal] = OrderedDict()
        self._written: OrderedDict[tuple[str, ...], float] = OrderedDict()
        self._minute = 0.0
        self._kept = {True: 0, False: 0}
        self._kept_of: Counter[tuple[str, bool]] = Counter()
        self.dropped = 0
        """Refusals that were only counted since the last :meth:`take`."""

    def add(self, refusal: Refusal) -> None:
        """Keep or count a refusal."""
        now = time.monotonic()
        if now - self._minute >= _A_MINUTE:
            self._minute, self._kept = now, {True: 0, False: 0}
            self._kept_of.clear()
        key = (refusal.actor, refusal.action, refusal.project_id, refusal.object_id, refusal.credential or "")
        most = _STRANGERS_PER_MINUTE if refusal.stranger else _PER_MINUTE
        waiting = self._waiting.get(key)
        if waiting is not None:
            self._waiting[key] = replace(waiting, times=waiting.times + 1)
        elif (
            now - self._written.get(key, -_A_MINUTE) < _A_MINUTE
            or self._kept[refusal.stranger] >= most
            or self._kept_of[refusal.actor, refusal.stranger] >= _PER_ACTOR
        ):
            self.dropped += 1
        else:
            self._kept[refusal.stranger] += 1
            self._kept_of[refusal.actor, refusal.stranger] += 1
            self._waiting[key] = replace(refusal, at=utcnow())
            self._written[key] = now
            while len(self._written) > _DISTINCT:
                self._written.popitem(last=False)

    def take(self) -> tuple[list[Refusal], int]:
        """Return what waits to be written, and how many were dropped; both begin anew."""
        found, dropped = list(self._waiting.values()), self.dropped
        self._waiting.clear()
        self.dropped = 0
        return found, dropped

    def give_back(self, refusals: list[Refusal], dropped: int) -> None:
        """Take back what could not be written."""
        for one in refusals[: _PER_MINUTE + _STRANGERS_PER_MINUTE]:
            self._waiting.setdefault((one.actor, one.action, one.project_id, one.object_id, one.credential or ""), one)
        self.dropped += dropped
