"""Queries of projects, subjects, bindings, keys and the audit log. Nothing here commits."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Insert, Select, delete, func, insert, or_, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.permissions import EVERY_PROJECT, permissions_of
from burnish.infra.database import Base, notify, utcnow
from burnish.platform.identity.tables import (
    ApiKeyRow,
    AuditHeadRow,
    AuditRow,
    DigestKeyRow,
    LoginStateRow,
    ProjectRow,
    RoleBindingRow,
    SessionRow,
    SubjectRow,
)

TOPIC = "identity"
"""Told of every change to what somebody may do."""
DEFAULT_PROJECT = "default"
ADMINISTRATOR = "administrator"
_BATCH = 1000

Row = TypeVar("Row", bound=Base)


@dataclass(frozen=True)
class Grant:
    """What the rows say of one subject in one project."""

    roles: frozenset[str]
    everywhere: frozenset[str]
    project_exists: bool


async def changed(session: AsyncSession) -> None:
    """Tell every process, after the commit, that what somebody may do has changed."""
    await notify(session, TOPIC)


async def insert_row(session: AsyncSession, row: Base) -> None:
    """Insert a row."""
    session.add(row)
    await session.flush()


def _insert(session: AsyncSession, row: type[Base]) -> Any:
    postgresql = session.get_bind().dialect.name == "postgresql"
    return (postgresql_insert if postgresql else sqlite_insert)(row)


async def ensure_project(session: AsyncSession, project_id: str) -> None:
    """Insert a project unless it is there."""
    statement = _insert(session, ProjectRow).values(id=project_id, created_at=utcnow(), display_name="", created_by="")
    await session.execute(statement.on_conflict_do_nothing())


async def project(session: AsyncSession, project_id: str) -> ProjectRow | None:
    """Return a project."""
    return await session.get(ProjectRow, project_id)


async def projects(
    session: AsyncSession, among: Collection[str] | None, after: str | None, limit: int
) -> list[ProjectRow]:
    """Return up to ``limit + 1`` projects by id, only those ``among`` if given."""
    conditions = [] if among is None else [ProjectRow.id.in_(among)]
    return await _page(session, ProjectRow, ProjectRow.id, conditions, after, limit)


async def subject(session: AsyncSession, subject_id: str, *, lock: bool = False) -> SubjectRow | None:
    """Return a user or service account."""
    statement = select(SubjectRow).where(SubjectRow.id == subject_id)
    return await _one(session, statement.with_for_update() if lock else statement)


async def subject_of_issuer(session: AsyncSession, issuer: str, issuer_subject: str) -> SubjectRow | None:
    """Return the user who is ``issuer_subject`` at a provider."""
    return await _one(
        session,
        select(SubjectRow).where(SubjectRow.issuer == issuer, SubjectRow.issuer_subject == issuer_subject),
    )


async def subjects(
    session: AsyncSession, kind: str, project_id: str | None, after: str | None, limit: int
) -> list[SubjectRow]:
    """Return up to ``limit + 1`` subjects of a kind by id: all, or those of a project or with a role in it."""
    conditions: list[ColumnElement[bool]] = [SubjectRow.kind == kind]
    if project_id is not None:
        bound = select(RoleBindingRow.subject).where(RoleBindingRow.project_id == project_id)
        conditions.append(or_(SubjectRow.project_id == project_id, SubjectRow.id.in_(bound)))
    return await _page(session, SubjectRow, SubjectRow.id, conditions, after, limit)


async def grant(session: AsyncSession, subject_id: str, project_id: str) -> Grant:
    """Return a subject's roles in a project and in all."""
    found = await session.execute(
        select(RoleBindingRow.project_id, RoleBindingRow.role).where(
            RoleBindingRow.subject == subject_id, RoleBindingRow.project_id.in_([project_id, EVERY_PROJECT])
        )
    )
    pairs = [(row.project_id, row.role) for row in found]
    exists = await session.scalar(select(func.count()).where(ProjectRow.id == project_id))
    return Grant(
        frozenset(role for where, role in pairs if where == project_id),
        frozenset(role for where, role in pairs if where == EVERY_PROJECT),
        bool(exists),
    )


async def bindings_of(session: AsyncSession, subject_id: str) -> list[RoleBindingRow]:
    """Return every binding of a subject, by project."""
    statement = select(RoleBindingRow).where(RoleBindingRow.subject == subject_id)
    return list((await session.execute(statement.order_by(RoleBindingRow.project_id, RoleBindingRow.role))).scalars())


async def may_everywhere(session: AsyncSession, subject_id: str, permission: str) -> bool:
    """Tell whether a subject has a permission in every project, by its roles alone."""
    found = await grant(session, subject_id, EVERY_PROJECT)
    return permission in permissions_of(found.everywhere)


async def bindings(
    session: AsyncSession, project_id: str | None, subject_id: str | None, after: str | None, limit: int
) -> list[RoleBindingRow]:
    """Return up to ``limit + 1`` bindings by id, of one project if given."""
    conditions = [] if project_id is None else [RoleBindingRow.project_id == project_id]
    conditions += [] if subject_id is None else [RoleBindingRow.subject == subject_id]
    return await _page(session, RoleBindingRow, RoleBindingRow.id, conditions, after, limit)


async def binding(session: AsyncSession, binding_id: str) -> RoleBindingRow | None:
    """Return a binding."""
    return await _one(session, select(RoleBindingRow).where(RoleBindingRow.id == binding_id))


async def binding_of(session: AsyncSession, subject_id: str, project_id: str, role: str) -> RoleBindingRow | None:
    """Return the binding that gives a subject a role in a project."""
    statement = select(RoleBindingRow).where(
        RoleBindingRow.subject == subject_id, RoleBindingRow.project_id == project_id, RoleBindingRow.role == role
    )
    return await _one(session, statement)


async def delete_bindings(session: AsyncSession, subject_id: str) -> None:
    """Take every role of a subject away."""
    await session.execute(delete(RoleBindingRow).where(RoleBindingRow.subject == subject_id))


async def delete_row(session: AsyncSession, row: Base) -> None:
    """Delete a row."""
    await session.delete(row)
    await session.flush()


async def lock_administrators(session: AsyncSession) -> list[str]:
    """Return the subjects, not disabled, that administer every project; nobody else changes that meanwhile."""
    statement = select(RoleBindingRow.subject).where(
        RoleBindingRow.project_id == EVERY_PROJECT, RoleBindingRow.role == ADMINISTRATOR
    )
    found = list((await session.execute(statement.with_for_update())).scalars())
    living = select(SubjectRow.id).where(SubjectRow.id.in_(found), SubjectRow.disabled_at.is_(None))
    return list((await session.execute(living.with_for_update())).scalars())


async def key(session: AsyncSession, key_id: str, *, lock: bool = False) -> ApiKeyRow | None:
    """Return a key."""
    statement = select(ApiKeyRow).where(ApiKeyRow.id == key_id)
    return await _one(session, statement.with_for_update() if lock else statement)


async def rotation_of(session: AsyncSession, key_id: str) -> ApiKeyRow | None:
    """Return the key that was made to stand for another, unless it was revoked since."""
    statement = select(ApiKeyRow).where(ApiKeyRow.rotated_from == key_id, ApiKeyRow.revoked_at.is_(None))
    return await _one(session, statement.limit(1))


async def shown(session: AsyncSession, credential: str) -> tuple[SessionRow | None, ApiKeyRow | None]:
    """Return what is behind a credential: a key, or a session with the key that opened it, if one did."""
    opened = await _one(session, select(SessionRow).where(SessionRow.id == credential))
    key_id = credential if opened is None else opened.key_id
    return opened, None if key_id is None else await key(session, key_id)


async def key_by_prefix(session: AsyncSession, prefix: str) -> tuple[ApiKeyRow, SubjectRow] | None:
    """Return the key with this prefix and its owner."""
    statement = select(ApiKeyRow, SubjectRow).join(SubjectRow, SubjectRow.id == ApiKeyRow.subject)
    row = (await session.execute(statement.where(ApiKeyRow.prefix == prefix))).first()
    return None if row is None else (row[0], row[1])


async def api_keys(
    session: AsyncSession, project_id: str | None, subject_id: str | None, after: str | None, limit: int
) -> list[ApiKeyRow]:
    """Return up to ``limit + 1`` keys by id, of one project or one subject if given."""
    conditions = [] if project_id is None else [ApiKeyRow.project_id == project_id]
    conditions += [] if subject_id is None else [ApiKeyRow.subject == subject_id]
    return await _page(session, ApiKeyRow, ApiKeyRow.id, conditions, after, limit)


async def living_keys(session: AsyncSession, subject_id: str, component_id: str | None) -> int:
    """Count the keys of a subject that work now: those for an instance, or (None) those for none."""
    statement = select(func.count()).where(
        ApiKeyRow.subject == subject_id, ApiKeyRow.component_id == component_id, ApiKeyRow.revoked_at.is_(None),
        or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > utcnow()),
    )  # fmt: skip
    return int(await session.scalar(statement) or 0)


async def end_credentials(session: AsyncSession, subject_id: str, at: datetime) -> None:
    """Revoke every key and session of a subject."""
    for table in (ApiKeyRow, SessionRow):
        await session.execute(
            update(table).where(table.subject == subject_id, table.revoked_at.is_(None)).values(revoked_at=at)
        )


async def digest_key(session: AsyncSession, wrapped_by: str) -> str | None:
    """Return the digest key as a secret key encrypted it; None: it was handed over to none of this fingerprint."""
    return await session.scalar(select(DigestKeyRow.wrapped).where(DigestKeyRow.wrapped_by == wrapped_by))


async def keep_digest_key(session: AsyncSession, wrapped_by: str, wrapped: str) -> None:
    """Keep the digest key as a secret key encrypted it."""
    statement = _insert(session, DigestKeyRow).values(wrapped_by=wrapped_by, wrapped=wrapped, created_at=utcnow())
    again = statement.on_conflict_do_update(index_elements=["wrapped_by"], set_={"wrapped": wrapped})
    await session.execute(again)


async def used(session: AsyncSession, last: Mapping[str, datetime]) -> None:
    """Note when keys were used; in one order, as other processes do that at the same moment."""
    for key_id, at in sorted(last.items()):
        await session.execute(
            update(ApiKeyRow)
            .where(ApiKeyRow.id == key_id, or_(ApiKeyRow.last_used_at.is_(None), ApiKeyRow.last_used_at < at))
            .values(last_used_at=at)
            .execution_options(synchronize_session=False)
        )


async def usable_keys(session: AsyncSession, subjects_: Collection[str]) -> int:
    """Count the keys for every project with which one of the subjects can administer it now."""
    statement = select(ApiKeyRow.scopes).where(
        ApiKeyRow.subject.in_(subjects_), ApiKeyRow.project_id == EVERY_PROJECT, ApiKeyRow.revoked_at.is_(None),
        ApiKeyRow.component_id.is_(None), or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > utcnow()),
    )  # fmt: skip
    found = (await session.execute(statement)).scalars()
    return sum(scopes is None or "identity:write" in scopes for scopes in found)


async def come_in(session: AsyncSession, subjects_: Collection[str]) -> bool:
    """Tell whether one of the subjects has a key with which to administer every project, or a login at a provider."""
    if await usable_keys(session, subjects_):
        return True
    statement = select(func.count()).where(SubjectRow.id.in_(subjects_), SubjectRow.issuer.is_not(None))
    return bool(await session.scalar(statement))


async def with_login(session: AsyncSession, subjects_: Collection[str], issuer: str) -> int:
    """Count those of the subjects that can log in at a provider."""
    statement = select(func.count()).where(SubjectRow.id.in_(subjects_), SubjectRow.issuer == issuer)
    return int(await session.scalar(statement) or 0)


async def prune(session: AsyncSession) -> None:
    """Forget sessions and login states that have ended."""
    now = utcnow()
    await session.execute(delete(LoginStateRow).where(LoginStateRow.expires_at < now))
    await session.execute(delete(SessionRow).where(SessionRow.expires_at < now))


async def lock_head(session: AsyncSession, beginning: str) -> AuditHeadRow:
    """Return the end of the chain, locked until the unit of work ends."""
    statement = select(AuditHeadRow).where(AuditHeadRow.id == 1).with_for_update()
    found = await _one(session, statement)
    if found is None:
        first = _insert(session, AuditHeadRow).values(id=1, number=0, hash=beginning)
        await session.execute(first.on_conflict_do_nothing())
        found = await _one(session, statement)
    assert found is not None, "just inserted"
    return found


async def append_audit(
    session: AsyncSession, rows: Sequence[Mapping[str, Any]], number: int, hash_: str, seal: str | None
) -> None:
    """Insert entries and move the end of the chain behind them."""
    statement: Insert = insert(AuditRow.__table__)  # type: ignore[arg-type]
    await session.execute(statement, [dict(row) for row in rows])
    await session.execute(
        update(AuditHeadRow)
        .where(AuditHeadRow.id == 1)
        .values(number=number, hash=hash_, seal=seal)
        .execution_options(synchronize_session=False)
    )


async def head(session: AsyncSession) -> AuditHeadRow | None:
    """Return the end of the chain."""
    return await _one(session, select(AuditHeadRow).where(AuditHeadRow.id == 1))


async def audit_rows(session: AsyncSession) -> AsyncIterator[AuditRow]:
    """Yield every entry by number."""
    last: int | None = None
    while rows := await audit_batch(session, None, last, None):
        for row in rows:
            yield row
        last = rows[-1].number
        session.expunge_all()


async def audit_batch(
    session: AsyncSession, project_id: str | None, behind: int | None, until: int | None
) -> list[AuditRow]:
    """Return the next entries by number, of one project if given, behind one number and up to another."""
    conditions = [] if behind is None else [AuditRow.number > behind]
    conditions += [] if project_id is None else [AuditRow.project_id == project_id]
    conditions += [] if until is None else [AuditRow.number <= until]
    statement = select(AuditRow).where(*conditions).order_by(AuditRow.number).limit(_BATCH)
    return list((await session.execute(statement)).scalars())


async def audit_page(
    session: AsyncSession, conditions: Mapping[str, str], before: int | None, limit: int
) -> list[AuditRow]:
    """Return up to ``limit + 1`` entries, newest first, below the number ``before``, where columns have these values."""
    statement = select(AuditRow).where(*(getattr(AuditRow, name) == value for name, value in conditions.items()))
    if before is not None:
        statement = statement.where(AuditRow.number < before)
    return list((await session.execute(statement.order_by(AuditRow.number.desc()).limit(limit + 1))).scalars())


async def _one(session: AsyncSession, statement: Select[Row]) -> Row | None:
    return (await session.execute(statement.execution_options(populate_existing=True))).scalar_one_or_none()


async def _page(
    session: AsyncSession, table: type[Row], order: Any, conditions: Sequence[Any], after: str | None, limit: int
) -> list[Row]:
    statement = select(table).where(*conditions)
    if after is not None:
        statement = statement.where(order > after)
    return list((await session.execute(statement.order_by(order).limit(limit + 1))).scalars())
