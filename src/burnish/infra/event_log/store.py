"""Appending to the event log and reading it in an order that is safe to resume from.

On PostgreSQL an id is taken before its transaction commits, so a reader that goes by id alone skips what commits late.
Readers go by ``(xid, id)`` instead and stop below the oldest transaction still running (``pg_snapshot_xmin``): nothing
can commit below it any more. The price: one long writing transaction in the server delays what readers see (ours
are bounded, see :attr:`~burnish.infra.database.Database.server_settings`). On SQLite writers take turns, so ids are in commit order.
After restoring a dump into another PostgreSQL cluster, cursors start anew (transaction ids are the cluster's).
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    delete,
    exists,
    func,
    insert,
    literal,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from burnish.core.errors import MalformedRequest
from burnish.core.protocol import Event, EventType
from burnish.infra.database import notify, utcnow
from burnish.infra.event_log.tables import EventRow
from burnish.infra.logging import redact_fields
from burnish.infra.signals import EVENTS
from burnish.infra.storable import cleaned_text

TOPIC = "events"
_LONGEST_STRING = 64 << 10
_REDACTED = frozenset({"log", "state"})

Cursor = tuple[int, int]
START: Cursor = (-1, 0)


class _current_xid(FunctionElement[int]):  # noqa: N801 - it reads as a SQL function
    type = BigInteger()
    inherit_cache = True


class _horizon(FunctionElement[int]):  # noqa: N801 - it reads as a SQL function
    """Below this transaction id nothing is in progress."""

    type = BigInteger()
    inherit_cache = True


@compiles(_current_xid, "postgresql")
def _current_xid_postgresql(element: _current_xid, compiler: SQLCompiler, **_: Any) -> str:
    return "CAST(CAST(pg_current_xact_id() AS TEXT) AS BIGINT)"


@compiles(_horizon, "postgresql")
def _horizon_postgresql(element: _horizon, compiler: SQLCompiler, **_: Any) -> str:
    return "CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS TEXT) AS BIGINT)"


@compiles(_current_xid, "sqlite")
def _current_xid_sqlite(element: _current_xid, compiler: SQLCompiler, **_: Any) -> str:
    return "0"


@compiles(_horizon, "sqlite")
def _horizon_sqlite(element: _horizon, compiler: SQLCompiler, **_: Any) -> str:
    return "1"


@dataclass(frozen=True)
class NewEvent:
    """An event to append. ``origin``: the execution that the subject works for, so that one stream follows all of it."""

    project_id: str
    subject: str
    type: EventType
    data: Mapping[str, Any]
    origin: str | None = None


async def append(
    session: AsyncSession,
    *,
    project_id: str,
    subject: str,
    type: EventType,  # noqa: A002 - the event's own word
    data: Mapping[str, Any],
    origin: str | None = None,
) -> None:
    """Append one event in the caller's unit of work and wake followers after its commit.

    ``data`` is JSON. Numbers that JSON has no form for become their names (``"NaN"``), text that a database cannot
    keep is replaced, strings beyond 64 Ki characters are cut, saying so, and logs lose what looks like a secret.
    """
    await append_all(session, [NewEvent(project_id, subject, type, data, origin)])


async def append_all(session: AsyncSession, events: Sequence[NewEvent]) -> None:
    """Append several events, in this order."""
    if not events:
        return
    now = utcnow()
    rows = [
        {"project_id": one.project_id, "subject": one.subject, "origin": one.origin, "type": one.type, "at": now,
         "data": _storable(one.data, redact_fields if one.type in _REDACTED else _as_it_is)}
        for one in events
    ]  # fmt: skip
    await session.execute(insert(EventRow.__table__).values(xid=_current_xid()), rows)  # type: ignore[arg-type]
    for one in events:
        EVENTS.labels(type=one.type).inc()
    await notify(session, TOPIC)


async def read(
    session: AsyncSession,
    *,
    subject: str | None = None,
    origin: str | None = None,
    after: str | None = None,
    limit: int = 500,
) -> list[Event]:
    """Return up to ``limit`` events behind the cursor ``after``, oldest first.

    Args:
        session: a unit of work.
        subject: only this object's events.
        origin: only events of this object and of what works for it. With neither, all events.
        after: ``Event.id`` of the last one seen; None is the beginning.
        limit: how many at most.

    Raises:
        MalformedRequest: ``after`` is no cursor.
    """
    cursor = check_cursor(after)
    if origin is None:
        condition = [] if subject is None else [EventRow.subject == subject]
        rows = (await session.execute(_page(cursor, limit, *condition))).all()
        return [_event(row) for row in rows]
    # Two index scans in one statement (one snapshot); an OR would sort all of the execution's events for each page.
    own = _page(cursor, limit, EventRow.origin == origin, EventRow.subject != origin).subquery()
    of_itself = _page(cursor, limit, EventRow.subject == origin).subquery()
    both = union_all(select(own), select(of_itself)).subquery()
    rows = (await session.execute(select(both).order_by(both.c.xid, both.c.id).limit(limit))).all()
    return [_event(row) for row in rows]


async def read_with_origin(session: AsyncSession, *, after: str | None, limit: int) -> list[tuple[Event, str | None]]:
    """Return the next events of all subjects, each with its origin: what a process's watcher hands out."""
    rows = (await session.execute(_page(check_cursor(after), limit))).all()
    return [(_event(row), row.origin) for row in rows]


async def latest(session: AsyncSession) -> str:
    """Return the cursor of the newest event that readers see: follow from here for what is yet to come."""
    newest = (
        select(EventRow.xid, EventRow.id)
        .where(EventRow.xid < _horizon())
        .order_by(EventRow.xid.desc(), EventRow.id.desc())
        .limit(1)
    )
    row = (await session.execute(newest)).first()
    return format_cursor(START if row is None else (row.xid, row.id))


async def newest(session: AsyncSession, subjects: Collection[str], type: EventType) -> dict[str, Mapping[str, Any]]:  # noqa: A002
    """Return what the newest event of a type says of each of these objects, where it has one."""
    if not subjects:
        return {}
    last = select(func.max(EventRow.id)).where(EventRow.subject.in_(sorted(subjects)), EventRow.type == type)
    rows = select(EventRow.subject, EventRow.data).where(EventRow.id.in_(last.group_by(EventRow.subject)))
    return {row.subject: row.data for row in await session.execute(rows)}


async def has_hidden(session: AsyncSession) -> bool:
    """Tell whether committed events wait for an older transaction to end before readers may see them."""
    return bool(await session.scalar(select(exists().where(EventRow.xid >= _horizon()))))


async def prune(session: AsyncSession, older_than_seconds: float, limit: int = 10_000) -> int:
    """Delete up to ``limit`` events older than that and return how many; call again while it returns ``limit``."""
    old = (
        select(EventRow.id).where(EventRow.at < utcnow() - timedelta(seconds=older_than_seconds)).order_by(EventRow.at)
    )
    statement = delete(EventRow).where(EventRow.id.in_(old.limit(limit).scalar_subquery()))
    result = await session.execute(statement.execution_options(synchronize_session=False))
    return int(cast(Any, result).rowcount)


def check_cursor(text: str | None) -> Cursor:
    """Parse a cursor (``Last-Event-ID``); None and the empty string are the beginning.

    Raises:
        MalformedRequest: it is none.
    """
    if not text:
        return START
    xid, dash, number = text.rpartition("-")
    if not dash or not number.isdecimal() or not xid.removeprefix("-").isdecimal() or len(text) > 40:
        raise MalformedRequest(
            f"{text[:60]!r} is not an event's id",
            where="Last-Event-ID",
            hint="send back an `id` of this stream, or none",
        )
    parsed = int(xid), int(number)
    return parsed if parsed[0] < 1 << 63 and parsed[1] < 1 << 63 else START


def format_cursor(cursor: Cursor) -> str:
    """Return the cursor's text."""
    return f"{cursor[0]}-{cursor[1]}"


def _page(cursor: Cursor, limit: int, *conditions: ColumnElement[bool]) -> Select[Any]:
    position = tuple_(EventRow.xid, EventRow.id)
    behind = position > tuple_(literal(cursor[0], BigInteger()), literal(cursor[1], BigInteger()))
    columns = EventRow.xid, EventRow.id, EventRow.subject, EventRow.type, EventRow.at, EventRow.data, EventRow.origin
    statement = select(*columns).where(behind, EventRow.xid < _horizon(), *conditions)
    return statement.order_by(EventRow.xid, EventRow.id).limit(limit)


def _event(row: Any) -> Event:
    return Event(
        id=format_cursor((row.xid, row.id)), subject=row.subject, type=row.type, at=row.at, data=row.data,
    )  # fmt: skip


def _storable(value: Any, clean: Callable[[str, str], str], name: str = "") -> Any:
    """Return ``value`` as JSON that both databases keep. ``clean`` is given each text, and the name under which it stands."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, str):
        return cleaned_text(_shortened(value, clean, name))
    if isinstance(value, Mapping):
        return {
            cleaned_text(_shortened(str(key), _as_it_is, "")): _storable(inner, clean, str(key))
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_storable(inner, clean) for inner in value]
    return value


def _shortened(text: str, clean: Callable[[str, str], str], name: str) -> str:
    """Return a text cleaned, and cut: it is cleaned first, for half a secret looks like none, but no more of it than that takes."""
    left_out = len(text) - _LONGEST_STRING
    text = clean(text[: 2 * _LONGEST_STRING], name)
    return text if left_out <= 0 else f"{text[:_LONGEST_STRING]}... ({left_out} characters cut)"


def _as_it_is(text: str, name: str) -> str:
    return text
