"""Claiming a key and remembering the answer, in the unit of work that makes the object."""

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

from pydantic import JsonValue
from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.errors import IdempotencyMismatch, MalformedRequest
from burnish.core.specs.base import digest_of
from burnish.infra.database import utcnow
from burnish.infra.idempotency.tables import IdempotencyKeyRow

_KEY_LENGTH = 255
KEY_SCHEMA: dict[str, JsonValue] = {"minLength": 1, "maxLength": _KEY_LENGTH, "pattern": "^[!-~]([ -~]*[!-~])?$"}
"""What a key is, for the documentation of a header: :func:`check_key` says it better than the framework would."""


@dataclass(frozen=True)
class StoredResponse:
    """What was answered to the first request with the key."""

    status: int
    body: JsonValue


def body_digest(body: bytes | JsonValue) -> str:
    """Return what tells two bodies apart: bytes as they are, JSON whatever the order of its fields."""
    return "sha256:" + hashlib.sha256(body).hexdigest() if isinstance(body, bytes) else digest_of(body)


def check_key(key: str) -> str:
    """Return the key.

    Raises:
        MalformedRequest: empty, longer than 255 characters, or not printable ASCII.
    """
    if not key or len(key) > _KEY_LENGTH or not key.isascii() or not key.isprintable():
        raise MalformedRequest(
            "Idempotency-Key is 1 to 255 printable ASCII characters", where="Idempotency-Key", hint="send a UUID"
        )
    return key


async def remembered(
    session: AsyncSession, project_id: str, key: str, route: str, body_digest: str
) -> StoredResponse | None:
    """Claim the key, or return what was answered to it.

    None means: do the work and call :func:`remember` in the same unit of work. A concurrent duplicate waits here
    until that unit of work has committed (then it gets the answer) or rolled back (then it does the work).

    Raises:
        IdempotencyMismatch: the key was used with another body.
        MalformedRequest: it is no key.
        Unavailable: the first request took too long to wait for; send it again.
    """
    insert = postgresql_insert if session.get_bind().dialect.name == "postgresql" else sqlite_insert
    claim = insert(IdempotencyKeyRow.__table__).values(  # type: ignore[arg-type]
        project_id=project_id, key=check_key(key), route=route, body_digest=body_digest, created_at=utcnow()
    )
    await session.execute(claim.on_conflict_do_nothing())
    row = (
        await session.execute(
            select(IdempotencyKeyRow.body_digest, IdempotencyKeyRow.status, IdempotencyKeyRow.body).where(
                *_is(project_id, key, route)
            )
        )
    ).one()
    if row.body_digest != body_digest:
        raise IdempotencyMismatch(
            f"the idempotency key {key!r} was used with another body",
            where="Idempotency-Key", hint="use a new key for a new request",
        )  # fmt: skip
    return None if row.status is None else StoredResponse(row.status, row.body)


async def remember(
    session: AsyncSession, project_id: str, key: str, route: str, body_digest: str, status: int, body: JsonValue
) -> None:
    """Keep the answer to the request that claimed the key in this unit of work."""
    await session.execute(
        update(IdempotencyKeyRow)
        .where(*_is(project_id, key, route), IdempotencyKeyRow.body_digest == body_digest)
        .values(status=status, body=body)
        .execution_options(synchronize_session=False)
    )


async def prune(session: AsyncSession, older_than_seconds: float = 7 * 86_400) -> int:
    """Forget keys used longer ago than that; return how many."""
    old = IdempotencyKeyRow.created_at < utcnow() - timedelta(seconds=older_than_seconds)
    result = await session.execute(delete(IdempotencyKeyRow).where(old).execution_options(synchronize_session=False))
    return int(cast(Any, result).rowcount)


def _is(project_id: str, key: str, route: str) -> tuple[Any, ...]:
    table = IdempotencyKeyRow
    return table.project_id == project_id, table.key == key, table.route == route
