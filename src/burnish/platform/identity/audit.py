"""The audit log: who did what, append-only and hash-chained.

An entry is written in the transaction of the change that it tells of, as the last thing before the commit: the end of
the chain is locked only from there to the commit, so that nothing else waits for it for long (of a process that freezes
there: until its transaction is ended for it, :mod:`burnish.infra.database`). The end bears a seal.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request

from burnish.core.errors import BurnishError
from burnish.core.permissions import PERMISSIONS
from burnish.infra import logging as own_logging
from burnish.infra.database import Database, after_commit, before_commit, before_every_commit, utcnow
from burnish.infra.loop import Periodic
from burnish.infra.storable import cleaned_text
from burnish.platform.identity import store
from burnish.platform.identity.principal import Principal
from burnish.platform.identity.refusals import Refusal, Refusals
from burnish.platform.identity.seal import seal_of
from burnish.platform.identity.tables import AuditRow

log = logging.getLogger(__name__)

BEGINNING = "0" * 64
"""What the first entry continues."""
UNSEALED = "audit:unsealed"
"""Of the entry that says that the log before it was cut or written anew."""
_QUEUE = "burnish_audit"
_WRITE_SECONDS = 1.0
_LONGEST = 255
_LONGEST_DETAIL = 4000
_LONGEST_SECRET = 8 << 10
"""Private keys are the longest."""

REFUSALS = Refusals()
"""Of this process; :class:`RefusalWriter` writes them down."""


@dataclass
class Entry:
    """What an entry will say."""

    actor: str
    action: str
    project_id: str
    object_id: str = ""
    route: str = ""
    credential: str | None = None
    request_id: str | None = None
    details: dict[str, JsonValue] = field(default_factory=dict)
    at: datetime | None = None
    written: bool = False


_request: ContextVar[Entry | None] = ContextVar("burnish_audit_request", default=None)


def begin(caller: Principal, permission: str, request: Request) -> None:
    """Have the request's first committed change leave an entry, unless :func:`note` tells it more precisely."""
    route = getattr(request.scope.get("route"), "path_format", request.url.path)
    _request.set(
        Entry(
            caller.subject, permission, caller.project_id, credential=caller.credential,
            object_id="/".join(str(value) for value in request.path_params.values())[:_LONGEST],
            route=f"{request.method} {route}"[:_LONGEST],
            request_id=own_logging.context().get("request_id") or request.headers.get("x-request-id"),
        )
    )  # fmt: skip
    before_every_commit(_write_queued)


def nothing_to_note() -> None:
    """Have this request leave no entry."""
    _request.set(None)
    before_every_commit(None)


def about(object_id: str, **details: JsonValue) -> None:
    """Name what the present request made or changed; to be called before its change commits."""
    entry = _request.get()
    if entry is not None and not entry.written:
        entry.object_id = object_id[:_LONGEST]
        entry.details.update(details)


async def note(
    session: AsyncSession,
    caller: Principal,
    action: str,
    object_id: str,
    details: Mapping[str, JsonValue] | None = None,
    *,
    project_id: str | None = None,
) -> None:
    """Leave an entry in this unit of work, instead of the one that the request would leave by itself.

    Args:
        session: the unit of work that makes the change.
        caller: who did it.
        action: ``object:verb``.
        object_id: to what.
        details: JSON that says more; what looks like a secret is taken out.
        project_id: whose project it changed; that of the request by default.
    """
    request = _request.get()
    entry = Entry(
        caller.subject, action, project_id or caller.project_id, object_id[:_LONGEST], request.route if request else "",
        caller.credential, request.request_id if request else own_logging.context().get("request_id"), dict(details or {}),
    )  # fmt: skip
    session.info.setdefault(_QUEUE, []).append(entry)
    before_commit(session, _write_queued)


def refused(caller: Principal, permission: str) -> None:
    """Note that a caller lacked a permission."""
    request_id = own_logging.context().get("request_id")
    REFUSALS.add(Refusal(caller.subject, "request:refused", caller.project_id, caller.credential, permission, request_id=request_id))  # fmt: skip


def failed_login(actor: str, details: Mapping[str, JsonValue] | None = None) -> None:
    """Note that somebody could not come in.

    Args:
        actor: what is known of them, never what they claim: the prefix of a key that there is, or words for them all.
        details: JSON that says more.
    """
    request_id = own_logging.context().get("request_id")
    told = tuple((details or {}).items())
    REFUSALS.add(Refusal(actor[:_LONGEST], "login:failed", request_id=request_id, details=told, stranger=True))


async def _write_queued(session: AsyncSession) -> None:
    """Write what is to be noted of this unit of work."""
    queue: list[Entry] = session.info.pop(_QUEUE, [])
    request = _request.get()
    if request is not None and not request.written:
        queue = queue or [request]
        after_commit(session, lambda: setattr(request, "written", True))
    if queue:
        await append(session, queue)


async def append(session: AsyncSession, entries: Sequence[Entry]) -> None:
    """Append entries at the end of the chain, which stays locked until the unit of work ends.

    Where that end does not bear the installation's seal, an entry before them says so.
    """
    await session.flush()
    head = await store.lock_head(session, BEGINNING)
    number, previous = head.number, head.hash
    seal = seal_of(session)
    if seal is not None and not seal.fits(number, previous, head.seal, seal.newest):
        log.error("the audit log ends with entry %d without this installation's seal: `burnish audit verify`", number)
        entries = [_unsealed(number, previous), *entries]
    rows = []
    for entry in entries:
        number += 1
        row = _row_of(entry, number, previous)
        previous = row["hash"]
        rows.append(row)
    await store.append_audit(session, rows, number, previous, None if seal is None else seal.of(number, previous))
    if seal is not None:
        after_commit(session, partial(seal.wrote, number))


def _unsealed(number: int, hash_: str) -> Entry:
    return Entry("burnish", UNSEALED, store.DEFAULT_PROJECT, details={"ended_with": number, "hash": hash_})


def _row_of(entry: Entry, number: int, previous: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "number": number, "at": entry.at or utcnow(), "actor": _text(entry.actor), "credential": entry.credential,
        "project_id": entry.project_id, "action": _name(entry.action)[:100], "object_id": _name(entry.object_id),
        "route": _text(entry.route), "request_id": None if entry.request_id is None else _text(entry.request_id)[:100],
        "details": _plain(entry.details), "previous": previous,
    }  # fmt: skip
    row["hash"] = digest(row)
    return row


def digest(row: Mapping[str, Any]) -> str:
    """Return the hash of an entry: SHA-256 over the JSON array of all its other fields, in the table's order.

    The time is RFC 3339 in UTC with microseconds; objects have their keys sorted; there are no spaces.
    """
    content = [
        row["number"], row["at"].astimezone(UTC).isoformat(timespec="microseconds"), row["actor"], row["credential"],
        row["project_id"], row["action"], row["object_id"], row["route"], row["request_id"], row["details"], row["previous"],
    ]  # fmt: skip
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _name(value: str) -> str:
    """Return a permission as it is, which may look like a secret with its value (``secret:read``); else as :func:`_text`."""
    return value if value in PERMISSIONS else _text(value)


def _text(value: str, name: str = "", longest: int = _LONGEST) -> str:
    """Return a text that can be kept, without secrets; no more of it is looked through than decides on what is kept."""
    looked_at = value[: longest + _LONGEST_SECRET]  # one that lies across the cut is seen whole
    return cleaned_text(str(own_logging.redact_fields(looked_at, name)))[:longest]


def _plain(value: Any, name: str = "") -> Any:
    """Return JSON that reads back as it was written from both databases: numbers with a fraction become text."""
    if isinstance(value, Mapping):
        return {cleaned_text(str(key)): _plain(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, bool | int):
        return value
    return _text(str(value), name, _LONGEST_DETAIL)


@dataclass(frozen=True)
class Tampering:
    """One place where the chain does not hold."""

    number: int
    what: str
    """``changed``, ``removed``, ``inserted``, ``cut`` or ``unsealed``."""
    message: str


@dataclass(frozen=True)
class Verdict:
    """What a check of the whole chain found."""

    entries: int
    head: str
    problems: tuple[Tampering, ...]


async def verify(session: AsyncSession, most: int = 100) -> Verdict:
    """Check every entry of the chain, in one view of the database; name up to ``most`` places where it does not hold."""
    check, seal = _Chain(), seal_of(session)
    newest = 0 if seal is None else seal.newest  # before anything is read: others append meanwhile
    async for row in store.audit_rows(session):
        check.next(row)
    head = await store.head(session)
    number, hash_ = (0, BEGINNING) if head is None else (head.number, head.hash)
    check.end(number, hash_)
    if seal is not None and not seal.fits(number, hash_, None if head is None else head.seal, newest):
        check.unsealed(number)
    return Verdict(check.entries, check.previous, tuple(check.problems[:most]))


class _Chain:
    """Walks the entries in the order of their numbers."""

    def __init__(self) -> None:
        self.entries = 0
        self.number = 0
        self.previous = BEGINNING
        self.problems: list[Tampering] = []

    def next(self, row: AuditRow) -> None:
        self.entries += 1
        expected = self.number + 1
        if row.number < expected:
            self._say(row.number, "inserted", f"entry {row.number} stands before the first")
            return
        if row.number > expected:
            missing = (
                f"entry {expected} is" if row.number == expected + 1 else f"entries {expected} to {row.number - 1} are"
            )
            self._say(expected, "removed", f"{missing} missing")
        if digest(_columns(row)) != row.hash:
            self._say(row.number, "changed", f"entry {row.number} is not what was written: its hash does not fit")
        elif row.number == expected and row.previous != self.previous:
            self._say(
                row.number,
                "changed",
                f"entry {row.number} does not continue entry {row.number - 1}: one was put in another's place",
            )
        if row.action == UNSEALED:
            self.unsealed(row.number - 1, f", was found when entry {row.number} was written")
        self.number, self.previous = row.number, row.hash

    def end(self, number: int, hash: str) -> None:  # noqa: A002 - the column's name
        if self.number < number:
            self._say(self.number + 1, "cut", f"the entries from {self.number + 1} to {number} were cut off the end")
        elif self.number > number:
            self._say(number + 1, "inserted", f"the entries from {number + 1} to {self.number} were put behind the end")
        elif self.previous != hash:
            self._say(number, "changed", f"entry {number} is not the one that was written last")

    def unsealed(self, number: int, found: str = "") -> None:
        self._say(
            number,
            "unsealed",
            f"an end of the log without this installation's seal, entry {number}{found}: entries were cut off, or the log was "
            "written anew, by somebody who has the database alone",
        )

    def _say(self, number: int, what: str, message: str) -> None:
        self.problems.append(Tampering(number, what, message))


def _columns(row: AuditRow) -> dict[str, Any]:
    return {column.key: getattr(row, column.key) for column in AuditRow.__table__.columns}


class RefusalWriter(Periodic):
    """Writes this process's refusals into the audit log, once a second."""

    def __init__(self, database: Database) -> None:
        super().__init__(self.write, _WRITE_SECONDS, "audit-refusals")
        self._database = database

    async def stop(self) -> None:
        """Stop, and write what is left."""
        await super().stop()
        await self.write()

    async def write(self) -> None:
        """Write what was collected; it is kept for the next time while the database is away."""
        found, dropped = REFUSALS.take()
        if not found:
            REFUSALS.give_back([], dropped)
            return
        entries = [_refusal_entry(one) for one in found]
        if dropped:
            entries[-1].details["more_refusals_not_listed"] = dropped
        try:
            async with self._database.write() as session:
                await append(session, entries)
        except BurnishError as error:
            log.warning("refusals are not in the audit log yet: %s", error.message)
            REFUSALS.give_back(found, dropped)


def _refusal_entry(refusal: Refusal) -> Entry:
    details: dict[str, JsonValue] = dict(refusal.details)
    if refusal.times > 1:
        details["times"] = refusal.times
    return Entry(
        refusal.actor, refusal.action, refusal.project_id, refusal.object_id, refusal.route, refusal.credential,
        refusal.request_id, details, refusal.at,
    )  # fmt: skip
