"""Queries of sessions and of logins on their way. Nothing here commits."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import CursorResult, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.infra.database import utcnow
from burnish.platform.identity.tables import ApiKeyRow, LoginStateRow, SessionRow, SubjectRow


@dataclass(frozen=True)
class LiveSession:
    """A session that holds, and the key that opened it, if one did."""

    row: SessionRow
    key: ApiKeyRow | None


async def add(session: AsyncSession, row: SessionRow | LoginStateRow) -> None:
    """Insert a row."""
    session.add(row)
    await session.flush()


async def live_session(session: AsyncSession, digest: str, now: datetime) -> LiveSession | None:
    """Return the session of a token unless it, its key or its subject has ended."""
    statement = (
        select(SessionRow, ApiKeyRow)
        .join(SubjectRow, SubjectRow.id == SessionRow.subject)
        .outerjoin(ApiKeyRow, ApiKeyRow.id == SessionRow.key_id)
        .where(
            SessionRow.token_digest == digest,
            SessionRow.revoked_at.is_(None),
            SessionRow.expires_at > now,
            SubjectRow.disabled_at.is_(None),
            or_(SessionRow.key_id.is_(None), ApiKeyRow.revoked_at.is_(None)),
            or_(SessionRow.key_id.is_(None), ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > now),
        )
    )
    found = (await session.execute(statement)).one_or_none()
    if found is None or (found[0].key_id is not None and found[1] is None):
        return None
    return LiveSession(found[0], found[1])


async def add_user(session: AsyncSession, name: str, issuer: str, issuer_subject: str) -> bool:
    """Insert a user of a provider; False: the name is taken, or the user is there already."""
    postgresql = session.get_bind().dialect.name == "postgresql"
    statement = (postgresql_insert if postgresql else sqlite_insert)(SubjectRow).values(
        id=name, kind="user", issuer=issuer, issuer_subject=issuer_subject, created_at=utcnow(), created_by="oidc",
        display_name="",
    )  # fmt: skip
    done = await session.execute(statement.on_conflict_do_nothing())
    return cast(CursorResult[Any], done).rowcount > 0


async def extend(session: AsyncSession, session_id: str, until: datetime) -> None:
    """Let a session live until then, unless it was ended meanwhile."""
    await session.execute(
        update(SessionRow).where(SessionRow.id == session_id, SessionRow.revoked_at.is_(None)).values(expires_at=until)
    )


async def revoke(session: AsyncSession, digest: str, now: datetime) -> bool:
    """End the session of a token; tell whether there was one."""
    statement = (
        update(SessionRow)
        .where(SessionRow.token_digest == digest, SessionRow.revoked_at.is_(None))
        .values(revoked_at=now)
    )
    return cast(CursorResult[Any], await session.execute(statement)).rowcount > 0


async def keep(session: AsyncSession, key: str, payload: Mapping[str, Any], until: datetime) -> None:
    """Keep what a login on its way needs."""
    await add(session, LoginStateRow(id=key, payload=dict(payload), expires_at=until))


async def on_their_way(session: AsyncSession, now: datetime) -> int:
    """Return how many logins have begun and not ended."""
    return int(await session.scalar(select(func.count()).where(LoginStateRow.expires_at > now)) or 0)


async def forget_oldest(session: AsyncSession, number: int, later_than: datetime) -> None:
    """Forget so many of what was kept, what ends first before the rest; nothing that ends before ``later_than``."""
    oldest = select(LoginStateRow.id).where(LoginStateRow.expires_at > later_than).order_by(LoginStateRow.expires_at)
    chosen = oldest.limit(number).with_for_update(skip_locked=True)
    await session.execute(
        delete(LoginStateRow).where(LoginStateRow.id.in_(chosen)).execution_options(synchronize_session=False)
    )


async def look(session: AsyncSession, key: str, now: datetime) -> Mapping[str, Any] | None:
    """Return what was kept under a key; None: nothing, it was taken, or its time is over."""
    statement = select(LoginStateRow.payload).where(LoginStateRow.id == key, LoginStateRow.expires_at > now)
    found: Mapping[str, Any] | None = (await session.execute(statement)).scalar_one_or_none()
    return found


async def take(session: AsyncSession, key: str, now: datetime) -> Mapping[str, Any] | None:
    """Return what was kept under a key and remove it: of two who ask at once, one gets it."""
    statement = (
        delete(LoginStateRow)
        .where(LoginStateRow.id == key)
        .returning(LoginStateRow.payload, LoginStateRow.expires_at)
        .execution_options(synchronize_session=False)
    )
    found = (await session.execute(statement)).one_or_none()
    return found[0] if found is not None and found[1] > now else None
